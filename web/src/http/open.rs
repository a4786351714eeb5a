//! Connections that are open: how many of each address, which are idle, and since when.
//!
//! When there is no room for a new one, those that have been idle for longest are closed. Idle is
//! whatever waits for a request's head: one that never spoke, and one kept alive after an answer.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body, Frame, SizeHint};
use ipnet::IpNet;
use tokio::sync::Notify;

use domain::permits::{Bounds, Full, Permit, Permits};

use super::{address::network, slow_client::Stalled};

/// Which part of all that are open is closed at a time: so looking through them is paid for by as
/// many new connections.
const CLOSED_AT_A_TIME: usize = 32;
/// How long nobody looks again after none was found idle.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Whose share of connections it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Peer {
    /// That of this network.
    Network(IpAddr),
    /// Nobody's: a proxy's, numbered. Its clients are many.
    Proxied(u64),
}

/// The open connections of a listener.
#[derive(Clone)]
pub(super) struct OpenConnections(Arc<Inner>);

struct Inner {
    permits: Permits<Peer>,
    trusted: Vec<IpNet>,
    began: Instant,
    numbers: AtomicU64,
    open: Mutex<HashMap<u64, Arc<State>>>,
    /// Until when looking for idle ones is of no use, milliseconds: among an address's own, and
    /// among all.
    none_idle_until: [AtomicU64; 2],
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, HashMap<u64, Arc<State>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl OpenConnections {
    /// None are open yet. Those of `trusted` proxies have no bound of their own.
    pub(super) fn new(bounds: Bounds, trusted: Vec<IpNet>) -> Self {
        Self(Arc::new(Inner {
            permits: Permits::new(bounds),
            trusted,
            began: Instant::now(),
            numbers: AtomicU64::new(0),
            open: Mutex::default(),
            none_idle_until: Default::default(),
        }))
    }

    /// Whose share a connection from this address is.
    pub(super) fn peer(&self, address: IpAddr) -> Peer {
        let address = address.to_canonical();
        if self.0.trusted.iter().any(|net| net.contains(&address)) {
            Peer::Proxied(self.0.numbers.fetch_add(1, Relaxed))
        } else {
            Peer::Network(network(address))
        }
    }

    /// A connection of this peer, if there is room.
    ///
    /// # Errors
    /// Which bound stands in the way.
    pub(super) fn try_open(&self, peer: Peer) -> Result<OpenConnection, Full> {
        let permit = self.0.permits.try_acquire(peer, 1)?;
        Ok(self.opened(peer, permit))
    }

    /// The same as soon as there is room.
    pub(super) async fn open(&self, peer: Peer) -> OpenConnection {
        let permit = self.0.permits.acquire(peer, 1).await;
        self.opened(peer, permit)
    }

    fn opened(&self, peer: Peer, permit: Permit<Peer>) -> OpenConnection {
        let state = Arc::new(State {
            peer,
            all: Arc::clone(&self.0),
            under_way: AtomicU32::new(0),
            steps: AtomicU64::new(0),
            spoken: AtomicBool::new(false),
            idle_since: AtomicU64::new(self.0.now_ms()),
            closing: AtomicBool::new(false),
            close: Notify::new(),
            stalled: OnceLock::new(),
        });
        let number = self.0.numbers.fetch_add(1, Relaxed);
        self.0.open().insert(number, Arc::clone(&state));
        OpenConnection {
            state,
            number,
            _permit: permit,
        }
    }

    /// Has those close that have been idle for longest: of this peer, or of all. Answers whether
    /// some of them are closing now, so that there is room in a moment.
    pub(super) fn close_idle(&self, of: Option<Peer>) -> bool {
        let now = self.0.now_ms();
        let none_until = &self.0.none_idle_until[usize::from(of.is_none())];
        if none_until.load(Relaxed) > now {
            return false;
        }
        let mut closing = 0;
        let mut idle: Vec<(u64, Arc<State>)> = Vec::new();
        let at_a_time = {
            let open = self.0.open();
            for state in open.values() {
                if of.is_some_and(|peer| state.peer != peer) || !state.is_idle() {
                    continue;
                }
                if state.closing.load(Relaxed) {
                    closing += 1;
                } else {
                    idle.push((state.idle_since.load(Relaxed), Arc::clone(state)));
                }
            }
            (open.len() / CLOSED_AT_A_TIME).max(1)
        };
        // Whoever came before has had as many close as will do.
        if closing >= at_a_time {
            return true;
        }
        if idle.is_empty() {
            let until = now + u64::try_from(LOOK_AGAIN.as_millis()).unwrap_or(u64::MAX);
            none_until.store(until, Relaxed);
            return closing > 0;
        }
        if idle.len() > at_a_time {
            idle.select_nth_unstable_by_key(at_a_time, |(since, _)| *since);
            idle.truncate(at_a_time);
        }
        for (_, state) in idle {
            metrics::counter!("http_connections_closed_for_room_total").increment(1);
            state.closing.store(true, Relaxed);
            state.close.notify_one();
        }
        true
    }
}

/// How it is with a connection.
pub(super) struct State {
    peer: Peer,
    all: Arc<Inner>,
    /// Requests that are not answered yet.
    under_way: AtomicU32,
    /// Counts the beginnings and ends of requests.
    steps: AtomicU64,
    spoken: AtomicBool,
    /// Since when it was idle the last time, milliseconds.
    idle_since: AtomicU64,
    /// Whether it was told to close.
    closing: AtomicBool,
    close: Notify,
    stalled: OnceLock<Stalled>,
}

impl State {
    /// A request has come; it is under way until what this gives is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.spoken.store(true, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        self.steps.fetch_add(1, Relaxed);
        Busy(Arc::clone(self))
    }

    /// Whether a request is not answered as a whole yet.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.load(Relaxed) > 0
    }

    /// How many requests have begun, and how many of them have ended, together. It stays the same
    /// while nothing is answered.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Relaxed)
    }

    /// Whether a request has ever come.
    pub(super) fn has_spoken(&self) -> bool {
        self.spoken.load(Relaxed)
    }

    /// Ends when the connection is to be closed for want of room.
    pub(super) async fn told_to_close(&self) {
        self.close.notified().await;
    }

    /// Whether it waits for a request, with all of the answer before taken.
    fn is_idle(&self) -> bool {
        self.under_way.load(Relaxed) == 0 && !self.stalled.get().is_some_and(Stalled::is_stalled)
    }
}

/// A request under way.
pub(super) struct Busy(Arc<State>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.all.now_ms(), Relaxed);
        self.0.under_way.fetch_sub(1, Relaxed);
        self.0.steps.fetch_add(1, Relaxed);
    }
}

/// An open connection; its room is free again when it is dropped.
pub(super) struct OpenConnection {
    state: Arc<State>,
    number: u64,
    _permit: Permit<Peer>,
}

impl OpenConnection {
    /// Has `stalled` say whether an answer is still being taken.
    pub(super) fn watch(&self, stalled: Stalled) {
        let _ = self.state.stalled.set(stalled);
    }

    pub(super) fn state(&self) -> &Arc<State> {
        &self.state
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.state.all.open().remove(&self.number);
    }
}

/// An answer's body, whose request is under way until it has been handed over as a whole.
pub(super) struct Answering {
    pub(super) body: BoxBody<Bytes, std::io::Error>,
    pub(super) _busy: Busy,
}

impl Body for Answering {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn connections(total: usize, per_address: usize, trusted: &[&str]) -> OpenConnections {
        let bounds = Bounds {
            total,
            per_owner: per_address,
        };
        let trusted = trusted.iter().map(|net| net.parse().unwrap()).collect();
        OpenConnections::new(bounds, trusted)
    }

    fn told(connection: &OpenConnection) -> bool {
        connection.state().told_to_close().now_or_never().is_some()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_a_share_and_a_trusted_proxy_has_none() {
        let all = connections(6, 2, &["10.0.0.0/8"]);
        let open = |text| all.try_open(all.peer(ip(text)));
        let _one = (open("2001:db8::1").unwrap(), open("2001:db8::2").unwrap());
        assert_eq!(open("2001:db8::3").err(), Some(Full::Owner));
        let _others = (open("192.0.2.1").unwrap(), open("::ffff:10.0.0.1").unwrap());
        let _proxied = (open("10.0.0.1").unwrap(), open("10.0.0.1").unwrap());
        assert_eq!(open("10.0.0.1").err(), Some(Full::Total));
    }

    #[test]
    fn the_longest_idle_are_closed_and_none_at_work() {
        let all = connections(9, 9, &[]);
        let peers = [all.peer(ip("192.0.2.1")), all.peer(ip("192.0.2.2"))];
        let open: Vec<_> = (0..4)
            .map(|at| {
                let connection = all.try_open(peers[at / 2]).unwrap();
                let since = u64::try_from(at).unwrap();
                connection.state.idle_since.store(since, Relaxed);
                connection
            })
            .collect();
        let busy = open[0].state().begin();
        all.close_idle(None);
        assert_eq!(
            open.iter().map(told).collect::<Vec<_>>(),
            [false, true, false, false]
        );
        // The other peer's are left alone, and who is told once is not told again.
        all.close_idle(Some(peers[1]));
        all.close_idle(Some(peers[0]));
        assert_eq!(
            open.iter().map(told).collect::<Vec<_>>(),
            [false, false, true, false]
        );
        drop((busy, open));
        assert!(all.0.open().is_empty());
        assert_eq!(all.0.permits.in_use(), 0);
    }
}
