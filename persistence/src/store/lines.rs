//! PostgreSQL's connections by what they are for.

use crate::store::{
    connections::Connections,
    pool::{Pool, Server},
};

/// Connections that lease endpoints and load what is due. They are few, so that each soon knows the
/// few large statements that this takes.
const LOADING: u32 = 3;
/// Connections of jobs, and of messages about trains.
const WORKING: u32 = 2;
/// Connections that tell other processes and hear from them (`wake`).
const EXCHANGING: u32 = 2;
/// Connections that a process has beside its pool: these, and one each for the lane, for
/// outcomes, and for the heartbeat with the polls.
pub const OWN: u32 = LOADING + WORKING + EXCHANGING + 3;

/// For whom connections to PostgreSQL are kept apart, so that no load of requests takes the last
/// one from what has to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Line {
    /// Requests: the pool.
    #[default]
    Requests,
    /// Jobs, and messages about trains.
    Work,
    /// What the dispatcher leases and loads.
    Load,
    /// The heartbeat, the polls, and the question whether the store can be written.
    Watch,
}

/// PostgreSQL's connections beside the pool. The lane's and the dispatcher's also know their few
/// large statements: in turn on all of the pool's, these would be parsed and planned anew on each.
pub(crate) struct Own {
    pub(crate) lane: Connections,
    pub(crate) load: Connections,
    pub(crate) record: Connections,
    pub(crate) work: Connections,
    pub(crate) watch: Connections,
}

/// Fewer connections than a start needs.
#[derive(Debug)]
pub(crate) struct TooFew {
    pub(crate) needed: u32,
    pub(crate) had: u32,
    pub(crate) why: String,
}

impl Own {
    pub(crate) fn new(server: &Server) -> (Self, [Pool; 5]) {
        // Asked each time whether it lives: a lost one would be a lost batch of many callers.
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

/// Opens all that a process ever uses, what has to go on first, and tells how many it got if they
/// are too few. (A role's or a database's limit shows in no other way, least of all through a
/// pooler.)
pub(crate) async fn open_all(server: &Server, own: [Pool; 5], pool: &Pool) -> Result<(), TooFew> {
    // The two of `wake` are opened when they are needed; here they are only tried.
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
