//! A wire to a database that can be cut.

use std::sync::{Arc, Mutex};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinHandle},
};
use url::Url;

/// Passes connections on to a server until it is cut.
pub struct Proxy {
    port: u16,
    target: String,
    accepting: Option<JoinHandle<()>>,
    open: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Proxy {
    /// Opens one to the server that a URL names.
    pub async fn to(url: &str) -> Self {
        let url = Url::parse(url).unwrap();
        let target = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap_or(5432));
        let mut proxy = Self {
            port: 0,
            target,
            accepting: None,
            open: Arc::default(),
        };
        proxy.mend().await;
        proxy
    }

    /// The URL with this wire in between.
    #[must_use]
    pub fn url(&self, url: &str) -> String {
        let mut url = Url::parse(url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(self.port)).unwrap();
        url.into()
    }

    /// Breaks every connection and takes no new one.
    pub async fn cut(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            // Only then is the port closed for certain.
            let _ = accepting.await;
        }
        for connection in self.open.lock().unwrap().drain(..) {
            connection.abort();
        }
    }

    /// Takes connections again, on the same port.
    pub async fn mend(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.port = listener.local_addr().unwrap().port();
        let (target, open) = (self.target.clone(), Arc::clone(&self.open));
        self.accepting = Some(tokio::spawn(async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                let target = target.clone();
                let connection = tokio::spawn(async move {
                    if let Ok(mut outer) = TcpStream::connect(target).await {
                        let _ = copy_bidirectional(&mut inner, &mut outer).await;
                    }
                });
                open.lock().unwrap().push(connection.abort_handle());
            }
        }));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}
