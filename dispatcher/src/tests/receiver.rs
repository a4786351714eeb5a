//! Receivers for the tests, with given answers, and closed ports.

use std::net::SocketAddr;

use tokio::{net::TcpSocket, sync::watch};

use super::*;

/// A request as a receiver sees it.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

/// The answer of a receiver.
#[derive(Clone)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: &'static str,
    pub(super) body: &'static str,
    pub(super) after: Duration,
}

pub(super) fn reply(status: u16) -> Reply {
    Reply {
        status,
        headers: "",
        body: "",
        after: Duration::ZERO,
    }
}

/// An HTTP server that answers the n-th request by `replies[n]`, and further ones by the last.
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    answers: watch::Sender<bool>,
}

impl Receiver {
    pub(super) async fn start(replies: Vec<Reply>) -> Self {
        let receiver = Self::holding(replies).await;
        receiver.answer();
        receiver
    }

    /// A receiver that holds all requests until it is released.
    pub(super) async fn holding(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&received);
        let (answers, may) = watch::channel(false);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&seen);
                tokio::spawn(answer(stream, seen, replies.clone(), may.clone()));
            }
        });
        Self {
            address,
            received,
            answers,
        }
    }

    /// Answers all held requests, and later ones at once.
    pub(super) fn answer(&self) {
        self.answers.send_replace(true);
    }

    /// Waits until `count` requests have arrived.
    pub(super) async fn has(&self, count: usize) {
        for _ in 0..2000 {
            if self.received().len() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("only {} of {count} came", self.received().len());
    }

    pub(super) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }
}

async fn answer(
    mut stream: TcpStream,
    seen: Arc<Mutex<Vec<Received>>>,
    replies: Vec<Reply>,
    mut may: watch::Receiver<bool>,
) {
    let mut bytes = Vec::new();
    let (head, start) = loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return;
        }
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break (String::from_utf8(bytes[..end].to_vec()).unwrap(), end + 4);
        }
    };
    let headers: BTreeMap<String, String> = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers["content-length"].parse().unwrap();
    while bytes.len() < start + length {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0);
    }
    let body = String::from_utf8(bytes.split_off(start)).unwrap();
    let reply = {
        let mut seen = seen.lock().unwrap();
        seen.push(Received { headers, body });
        replies[(seen.len() - 1).min(replies.len() - 1)].clone()
    };
    // An error means that the receiver was dropped.
    if may.wait_for(|answers| *answers).await.is_err() {
        return;
    }
    tokio::time::sleep(reply.after).await;
    let Reply {
        status,
        headers,
        body,
        ..
    } = reply;
    let text = format!(
        "HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    // The dispatcher may have closed the connection.
    let _ = stream.write_all(text.as_bytes()).await;
}

/// A port on which nothing listens as long as this exists. A port that was only closed could be
/// given to a receiver of another test, which would count a request that was not meant for it.
pub(super) struct Closed {
    _bound: TcpSocket,
    pub(super) address: SocketAddr,
}

impl Closed {
    pub(super) fn new() -> Self {
        let bound = TcpSocket::new_v4().unwrap();
        bound.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = bound.local_addr().unwrap();
        Self {
            _bound: bound,
            address,
        }
    }
}
