//! Connections: accepted within limits, drained at shutdown.
//!
//! poem's own server sets no `TCP_NODELAY`, waits for headers for ever, caps nothing and retries a
//! failed accept at once, so the loop is ours, over hyper. HTTP/1.1 only: whoever wants HTTP/2 or
//! TLS has a proxy in front.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use poem::{
    Addr, Endpoint, Response,
    http::uri::Scheme,
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use domain::permits::{Bounds, Full};

use super::{
    last_answer::last_answer,
    malformed::Explained,
    open::{Answering, OpenConnection, OpenConnections, Peer},
    share::Owner,
    slow_client::Watched,
};

/// Limits on connections.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// Open connections.
    pub open_max: usize,
    /// Open connections of one address: an IPv4 address, or the /64 of an IPv6 one. Those of
    /// `trusted_proxies` have no bound of their own, since the clients behind them are many.
    pub open_per_address: usize,
    /// See there.
    pub trusted_proxies: Vec<IpNet>,
    /// How long a request's head may take to arrive, and how long a connection may sit idle.
    pub header_timeout: Duration,
    /// Largest request head, bytes. (hyper takes at most 100 header fields.)
    pub header_bytes_max: usize,
    /// Most bytes that a connection keeps to be read or written, beside one answer.
    pub buffer_bytes_max: usize,
    /// How long a new connection waits for room at most.
    pub room_timeout: Duration,
    /// How long requests in flight may take to finish at shutdown.
    pub drain_timeout: Duration,
    /// How long a client may take nothing of an answer; and how long at shutdown.
    pub stall_timeout: Duration,
    /// See there.
    pub stall_timeout_at_shutdown: Duration,
}

impl ConnectionLimits {
    /// So many connections in all, and half of them for one address.
    #[must_use]
    pub fn of(open_max: usize) -> Self {
        Self {
            open_max,
            open_per_address: open_max.div_ceil(2),
            ..Self::default()
        }
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            open_max: 4096,
            open_per_address: 2048,
            trusted_proxies: Vec::new(),
            header_timeout: Duration::from_secs(10),
            header_bytes_max: 16 * 1024,
            buffer_bytes_max: 64 * 1024,
            room_timeout: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_mins(1),
            stall_timeout_at_shutdown: Duration::from_secs(5),
        }
    }
}

/// Accepted connections that wait for room: they are beyond [`ConnectionLimits::open_max`].
pub const WAITING_FOR_ROOM: usize = 64;
/// How often whoever waits for room has others closed.
const LOOK_AGAIN: Duration = Duration::from_millis(150);
/// How long accepting waits at most for connections of an address that are closing.
const ROOM_SOON: Duration = Duration::from_millis(50);
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
    let bounds = Bounds {
        total: limits.open_max,
        per_owner: limits.open_per_address,
    };
    let server = Arc::new(Server {
        app: Arc::new(app),
        local: LocalAddr(Addr::from(listener.local_addr()?)),
        http: protocol(&limits),
        open: OpenConnections::new(bounds, limits.trusted_proxies.clone()),
        waiting: Arc::new(Semaphore::new(WAITING_FOR_ROOM)),
        limits,
        shutdown: shutdown.clone(),
        cut: CancellationToken::new(),
    });
    let connections = TaskTracker::new();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = accept(&listener, &server, &connections) => {}
    }
    drop(listener);
    connections.close();
    let open = connections.len();
    if tokio::time::timeout(server.limits.drain_timeout, connections.wait())
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
        .max_buf_size(limits.buffer_bytes_max)
        .keep_alive(true)
        // One buffer for head and body: answers are small, and one write is enough.
        .writev(false);
    http
}

struct Server<E> {
    app: Arc<E>,
    local: LocalAddr,
    http: http1::Builder,
    open: OpenConnections,
    /// Who was accepted and waits for room.
    waiting: Arc<Semaphore>,
    limits: ConnectionLimits,
    shutdown: CancellationToken,
    cut: CancellationToken,
}

/// An answer for a connection that there is no room for, whatever its request is.
fn refusal(full: Full) -> Vec<u8> {
    let owner = Owner::address(IpAddr::from([0; 4]));
    let problem = owner.refusal(full, "connections");
    last_answer(&problem, &["retry-after: 1"])
}

/// Tells a connection that there is no room for it, as far as that can be done without waiting.
fn refuse(socket: &TcpStream, full: Full) {
    metrics::counter!("http_connections_refused_total").increment(1);
    let _ = socket.try_write(&refusal(full));
}

async fn accept<E>(listener: &TcpListener, server: &Arc<Server<E>>, connections: &TaskTracker)
where
    E: Endpoint<Output = Response> + 'static,
{
    let mut pause = BACKOFF.0;
    loop {
        match listener.accept().await {
            Ok((socket, peer)) => {
                pause = BACKOFF.0;
                admit(server, connections, socket, peer).await;
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                // Most likely out of file descriptors: trying again at once would only spin.
                metrics::counter!("http_accept_errors_total").increment(1);
                tracing::warn!(%error, pause_ms = pause.as_millis(), "can't accept connections");
                server.open.close_idle(None);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(BACKOFF.1);
            }
        }
    }
}

/// Serves a connection if there is room, else makes room by closing those that have been idle for
/// longest: of its own address where that has its share, else of all. Whoever finds none in time is
/// refused. Nobody else is kept waiting by an address that has its share; when there is no room
/// for anybody, the kernel's queue holds the rest.
async fn admit<E>(
    server: &Arc<Server<E>>,
    connections: &TaskTracker,
    socket: TcpStream,
    peer: SocketAddr,
) where
    E: Endpoint<Output = Response> + 'static,
{
    let peer_owner = server.open.peer(peer.ip());
    let full = match server.open.try_open(peer_owner) {
        Ok(connection) => {
            let server = Arc::clone(server);
            connections.spawn(async move { server.converse(socket, peer, connection).await });
            return;
        }
        Err(full) => full,
    };
    let waiting = Arc::clone(&server.waiting);
    let waiting = match full {
        Full::Owner => match Arc::clone(&waiting).try_acquire_owned() {
            Ok(waiting) => Some(waiting),
            Err(_) if server.open.close_idle(Some(peer_owner)) => {
                let soon = tokio::time::timeout(ROOM_SOON, waiting.acquire_owned());
                soon.await.ok().and_then(Result::ok)
            }
            Err(_) => None,
        },
        Full::Total => {
            server.open.close_idle(None);
            waiting.acquire_owned().await.ok()
        }
    };
    let Some(waiting) = waiting else {
        return refuse(&socket, full);
    };
    let server = Arc::clone(server);
    connections.spawn(async move {
        let room = tokio::select! {
            room = server.room(peer_owner, full) => room,
            () = server.shutdown.cancelled() => None,
        };
        drop(waiting);
        match room {
            Some(connection) => server.converse(socket, peer, connection).await,
            None => refuse(&socket, full),
        }
    });
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
    /// Makes room for a connection and waits for it.
    async fn room(&self, peer: Peer, full: Full) -> Option<OpenConnection> {
        let mut room = pin!(self.open.open(peer));
        let until = Instant::now() + self.limits.room_timeout;
        while Instant::now() < until {
            self.open.close_idle((full == Full::Owner).then_some(peer));
            let found = tokio::time::timeout(LOOK_AGAIN, room.as_mut()).await;
            if let Ok(connection) = found {
                return Some(connection);
            }
        }
        None
    }

    async fn converse(&self, socket: TcpStream, peer: SocketAddr, open: OpenConnection) {
        // Answers are one small write: waiting for more only adds 40 ms.
        let _ = socket.set_nodelay(true);
        let (socket, stalled) = Watched::new(socket);
        open.watch(stalled.clone());
        let peer = RemoteAddr(Addr::from(peer));
        let state = open.state();
        let socket = Explained::new(socket, state);
        let service = service_fn(|request: hyper::Request<Incoming>| {
            let busy = state.begin();
            let request = (request, self.local.clone(), peer.clone(), Scheme::HTTP);
            async move {
                let response = self.app.get_response(request.into()).await;
                let response = hyper::Response::from(response);
                Ok::<_, Infallible>(response.map(|body| Answering { body, _busy: busy }))
            }
        });
        let connection = self.http.serve_connection(TokioIo::new(socket), service);
        let mut connection = pin!(connection);
        let stopping = tokio::select! {
            _ = connection.as_mut() => return,
            () = stalled.for_long(self.limits.stall_timeout) => return,
            () = self.shutdown.cancelled() => true,
            () = state.told_to_close() => false,
        };
        // hyper would wait for the first request of a connection that has not sent any.
        if !state.has_spoken() {
            return;
        }
        connection.as_mut().graceful_shutdown();
        let stalled_for = if stopping {
            self.limits.stall_timeout_at_shutdown
        } else {
            self.limits.stall_timeout
        };
        tokio::select! {
            _ = connection => {}
            () = stalled.for_long(stalled_for) => {}
            () = self.cut.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests;
