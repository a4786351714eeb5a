//! A proxy in front of a database that can break connections, delay bytes and lose them.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinHandle},
};
use url::Url;

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forwarding {
    Passes,
    /// They wait until the setting changes.
    Stalls,
    /// They are lost, and so are all later bytes of the connection.
    Swallows,
}

/// One connection.
struct Open {
    task: AbortHandle,
    deaf: Arc<AtomicBool>,
}

/// Passes connections on to a server until it is cut.
pub struct Proxy {
    port: u16,
    target: String,
    accepting: Option<JoinHandle<()>>,
    open: Arc<Mutex<Vec<Open>>>,
    forwarding: watch::Sender<Forwarding>,
}

impl Proxy {
    /// Opens a proxy in front of the server in a URL.
    pub async fn to(url: &str) -> Self {
        let url = Url::parse(url).unwrap();
        let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let mut proxy = Self {
            port: 0,
            target,
            accepting: None,
            open: Arc::default(),
            forwarding: watch::channel(Forwarding::Passes).0,
        };
        proxy.mend().await;
        proxy
    }

    /// The URL with the address of this proxy.
    #[must_use]
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.into()
    }

    /// Breaks every connection, and accepts no new ones.
    pub async fn cut(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // The port is certainly closed only after this.
            let _ = accepting.await;
        }
        for connection in self.open.lock().unwrap().drain(..) {
            connection.task.abort();
        }
    }

    /// Silences every open connection for ever: neither side receives anything again, not even the
    /// end of the connection. New connections work. Returns how many were silenced.
    #[must_use]
    pub fn silence(&self) -> usize {
        let open = self.open.lock().unwrap();
        let open = open.iter().filter(|one| !one.task.is_finished());
        open.map(|one| one.deaf.store(true, Ordering::SeqCst))
            .count()
    }

    /// Loses all bytes from now on, on new connections, too.
    pub fn swallow(&self) {
        let _ = self.silence();
        self.forwarding.send_replace(Forwarding::Swallows);
    }

    /// Holds all bytes back.
    pub fn stall(&self) {
        self.forwarding.send_replace(Forwarding::Stalls);
    }

    /// Passes bytes again, beginning with those that were held back.
    pub fn pass(&self) {
        self.forwarding.send_replace(Forwarding::Passes);
    }

    /// Accepts connections again, on the same port.
    pub async fn mend(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.port = listener.local_addr().unwrap().port();
        let (target, open) = (self.target.clone(), Arc::clone(&self.open));
        let forwarding = self.forwarding.clone();
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                let deaf = Arc::new(AtomicBool::new(false));
                let passing = pass(
                    inner,
                    target.clone(),
                    forwarding.subscribe(),
                    Arc::clone(&deaf),
                );
                let task = tokio::spawn(passing).abort_handle();
                open.lock().unwrap().push(Open { task, deaf });
            }
        }));
    }
}

async fn pass(
    inner: TcpStream,
    target: String,
    forwarding: watch::Receiver<Forwarding>,
    deaf: Arc<AtomicBool>,
) {
    let Ok(outer) = TcpStream::connect(target).await else {
        return;
    };
    let (asks, hears) = inner.into_split();
    let (answers, is_asked) = outer.into_split();
    tokio::join!(
        one_way(asks, is_asked, forwarding.clone(), &deaf),
        one_way(answers, hears, forwarding, &deaf),
    );
}

async fn one_way(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut forwarding: watch::Receiver<Forwarding>,
    deaf: &AtomicBool,
) {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut bytes).await.unwrap_or(0);
        let open = forwarding.wait_for(|now| *now != Forwarding::Stalls).await;
        if open.is_ok_and(|now| *now == Forwarding::Swallows) {
            deaf.store(true, Ordering::SeqCst);
        }
        match (deaf.load(Ordering::SeqCst), count) {
            // The end of the connection is not passed on, either.
            (true, 0) => pending().await,
            (true, _) => {}
            (false, 0) => return,
            (false, _) => {
                if to.write_all(&bytes[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        for connection in self.open.lock().unwrap().drain(..) {
            connection.task.abort();
        }
    }
}
