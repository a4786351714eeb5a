//! PostgreSQL's connections, by purpose.

use crate::store::{
    connections::Connections,
    pool::{Pool, Server},
};

/// Connections that lease endpoints and load due deliveries. There are few, so that each soon has
/// the few large statements prepared.
const LOADING: u32 = 3;
/// Connections of jobs, and of messages about trains.
const WORKING: u32 = 2;
/// Connections that notify other processes and listen to them (`wake`).
const EXCHANGING: u32 = 2;
/// Connections that a process has besides its pool: the three groups above, and one each for the
/// write lane, for outcomes, and for the heartbeat with the polls.
pub const OWN: u32 = LOADING + WORKING + EXCHANGING + 3;

/// Purposes with PostgreSQL connections of their own, so that requests cannot take the last
/// connection from work that must go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Line {
    /// Requests, which use the pool.
    #[default]
    Requests,
    /// Jobs, and messages about trains.
    Work,
    /// Leasing and loading by the dispatcher.
    Load,
    /// The heartbeat, the polls, and the check whether the store can be written.
    Watch,
}

/// PostgreSQL's connections besides the pool. The write lane and the dispatcher have few large
/// statements. On their own connections these stay prepared; on the pool's, each connection would
/// parse and plan them again.
pub(crate) struct Own {
    pub(crate) lane: Connections,
    pub(crate) load: Connections,
    pub(crate) record: Connections,
    pub(crate) work: Connections,
    pub(crate) watch: Connections,
}

/// A start got fewer connections than it needs.
#[derive(Debug)]
pub(crate) struct TooFew {
    pub(crate) needed: u32,
    pub(crate) had: u32,
    pub(crate) why: String,
}

impl Own {
    pub(crate) fn new(server: &Server) -> (Self, [Pool; 5]) {
        // Pinged before each use: with a lost connection, a whole batch of callers would fail.
        let lane = Pool::new(server, 1, true);
        let load = Pool::new(server, LOADING, false);
        let record = Pool::new(server, 1, false);
        let work = Pool::new(server, WORKING, false);
        let watch = Pool::new(server, 1, false);
        let own = Self {
            lane: Connections::Postgres(lane.clone()),
            load: Connections::Postgres(load.clone()),
            record: Connections::Postgres(record.clone()),
            work: Connections::Postgres(work.clone()),
            watch: Connections::Postgres(watch.clone()),
        };
        (own, [lane, load, record, work, watch])
    }

    pub(crate) fn all(&self) -> [&Connections; 5] {
        let Self {
            lane,
            load,
            record,
            work,
            watch,
        } = self;
        [lane, load, record, work, watch]
    }
}

/// Opens all connections that a process ever uses, the indispensable ones first. If there are too
/// few, it returns how many it got. (A limit of a role or a database shows in no other way, least
/// of all through a pooler.)
pub(crate) async fn open_all(server: &Server, own: [Pool; 5], pool: &Pool) -> Result<(), TooFew> {
    // The two connections of `wake` are opened when they are needed. Here they are only tried.
    let exchange = Pool::new(server, EXCHANGING, false);
    let needed = OWN + pool.size();
    let mut had = 0;
    let parts = own.into_iter().chain([exchange.clone(), pool.clone()]);
    for part in parts {
        match part.fill().await {
            Ok(()) => had += part.size(),
            Err((some, why)) => {
                return Err(TooFew {
                    needed,
                    had: had + some,
                    why: why.to_string(),
                });
            }
        }
    }
    exchange.close().await;
    Ok(())
}
