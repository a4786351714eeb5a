//! A server that answers as a test says: slowly, without end, or with anything else.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// How a path is answered.
#[derive(Clone)]
pub(super) enum Reply {
    /// With a status and JSON.
    Json(u16, Value),
    /// With a redirect to this URL.
    Redirect(u16, String),
    /// With 10 MB of JSON.
    Huge,
    /// Never.
    Never,
    /// By an end of the connection.
    Hangup,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) path: String,
    /// Names in lower case.
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
}

#[derive(Default)]
struct State {
    asked: Vec<Asked>,
    replies: HashMap<String, Reply>,
}

/// The server. Gone when dropped.
pub(super) struct Fake {
    pub(super) url: String,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        Self { url, state, task }
    }

    /// Answers a path in this way from now on. Paths without an answer are 404.
    pub(super) fn reply(&self, path: &str, reply: Reply) {
        let mut state = self.state.lock().unwrap();
        state.replies.insert(path.to_owned(), reply);
    }

    /// The requests for a path.
    pub(super) fn asked(&self, path: &str) -> Vec<Asked> {
        let state = self.state.lock().unwrap();
        let asked = state.asked.iter().filter(|asked| asked.path == path);
        asked.cloned().collect()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let Some(asked) = read(&mut stream).await else {
        return;
    };
    let reply = {
        let mut state = state.lock().unwrap();
        let reply = state.replies.get(&asked.path).cloned();
        state.asked.push(asked);
        reply.unwrap_or(Reply::Json(404, Value::Null))
    };
    let (status, header, body) = match reply {
        Reply::Json(status, body) => (status, String::new(), body.to_string()),
        Reply::Redirect(status, to) => (status, format!("location: {to}\r\n"), String::new()),
        Reply::Huge => {
            let body = format!("{{\"x\":\"{}\"}}", "x".repeat(10_000_000));
            (200, String::new(), body)
        }
        Reply::Never => return std::future::pending().await,
        Reply::Hangup => return,
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\ncontent-type: application/json\r\n\
         connection: close\r\n{header}\r\n",
        body.len()
    );
    // The client may have enough before the end.
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut lines = head.lines();
            let target = lines.next()?.split(' ').nth(1)?.to_owned();
            let headers: HashMap<String, String> = lines
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
                .collect();
            let length = headers.get("content-length");
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            while bytes.len() < end + 4 + length {
                stream.read_buf(&mut bytes).await.ok().filter(|n| *n > 0)?;
            }
            let body = String::from_utf8(bytes[end + 4..].to_vec()).unwrap();
            let path = target.split('?').next()?.to_owned();
            return Some(Asked {
                path,
                headers,
                body,
            });
        }
        stream.read_buf(&mut bytes).await.ok().filter(|n| *n > 0)?;
    }
}
