//! Connections: accepted within limits, drained at shutdown.
//!
//! poem's own server sets no `TCP_NODELAY`, waits for headers for ever, caps nothing and retries a
//! failed accept at once, so the loop is ours, over hyper. HTTP/1.1 only: whoever wants HTTP/2 or
//! TLS has a proxy in front.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use poem::{
    Addr, Endpoint, Response,
    http::uri::Scheme,
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::stall::Watched;

/// Limits on connections.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    /// Open connections; the kernel's queue holds the rest.
    pub open_max: usize,
    /// How long a request's head may take to arrive, and how long a connection may sit idle.
    pub header_timeout: Duration,
    /// Largest request head, bytes. (hyper takes at most 100 header fields.)
    pub header_bytes_max: usize,
    /// How long requests in flight may take to finish at shutdown.
    pub drain_timeout: Duration,
    /// How long a client may take nothing of an answer; and how long at shutdown.
    pub stall_timeout: Duration,
    /// See there.
    pub stall_timeout_at_shutdown: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            open_max: 4096,
            header_timeout: Duration::from_secs(10),
            header_bytes_max: 16 * 1024,
            drain_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_mins(1),
            stall_timeout_at_shutdown: Duration::from_secs(5),
        }
    }
}

/// First and longest pause after the system refused to accept.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Serves `app` on `listener` until `shutdown`, then stops accepting, closes idle connections and
/// waits for the requests in flight, up to the limit.
///
/// # Errors
/// When the listener has no local address.
pub async fn serve<E>(
    listener: TcpListener,
    app: E,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
) -> io::Result<()>
where
    E: Endpoint<Output = Response> + 'static,
{
    let server = Arc::new(Server {
        app: Arc::new(app),
        local: LocalAddr(Addr::from(listener.local_addr()?)),
        http: protocol(&limits),
        limits,
        shutdown: shutdown.clone(),
        cut: CancellationToken::new(),
    });
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(limits.open_max));
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = accept(&listener, &server, &connections, &places) => {}
    }
    drop(listener);
    connections.close();
    let open = connections.len();
    if tokio::time::timeout(limits.drain_timeout, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            open,
            cut = connections.len(),
            "requests did not finish in time"
        );
        server.cut.cancel();
        connections.wait().await;
    }
    Ok(())
}

fn protocol(limits: &ConnectionLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes_max)
        .keep_alive(true)
        .pipeline_flush(true);
    http
}

struct Server<E> {
    app: Arc<E>,
    local: LocalAddr,
    http: http1::Builder,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    cut: CancellationToken,
}

async fn accept<E>(
    listener: &TcpListener,
    server: &Arc<Server<E>>,
    connections: &TaskTracker,
    places: &Arc<Semaphore>,
) where
    E: Endpoint<Output = Response> + 'static,
{
    let mut pause = BACKOFF.0;
    loop {
        // The place comes first: without one, nothing is accepted and the kernel queues.
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((socket, peer)) => {
                pause = BACKOFF.0;
                let server = Arc::clone(server);
                connections.spawn(async move {
                    server.converse(socket, RemoteAddr(Addr::from(peer))).await;
                    drop(place);
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Most likely out of file descriptors: trying again at once would only spin.
                metrics::counter!("http_accept_errors_total").increment(1);
                tracing::warn!(%error, pause_ms = pause.as_millis(), "can't accept connections");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Whether only the connection that was about to be accepted failed.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

impl<E: Endpoint<Output = Response> + 'static> Server<E> {
    async fn converse(&self, socket: TcpStream, peer: RemoteAddr) {
        // Answers are one small write: waiting for more only adds 40 ms.
        let _ = socket.set_nodelay(true);
        let spoken = std::sync::atomic::AtomicBool::new(false);
        let service = service_fn(|request: hyper::Request<Incoming>| {
            spoken.store(true, std::sync::atomic::Ordering::Relaxed);
            let request = (request, self.local.clone(), peer.clone(), Scheme::HTTP);
            async move {
                let response = self.app.get_response(request.into()).await;
                Ok::<_, Infallible>(hyper::Response::from(response))
            }
        });
        let (socket, stalled) = Watched::new(socket);
        let connection = self.http.serve_connection(TokioIo::new(socket), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = stalled.for_long(self.limits.stall_timeout) => return,
            () = self.shutdown.cancelled() => {}
        }
        // hyper would wait for the first request of a connection that has not sent any.
        if !spoken.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            _ = connection => {}
            () = stalled.for_long(self.limits.stall_timeout_at_shutdown) => {}
            () = self.cut.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests;
