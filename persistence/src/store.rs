//! The store, and its two handles: as one publisher sees it, and without a scope.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use domain::{
    Timestamp,
    id::{Id as _, PublisherId},
    permits::{Bounds, Permit, Permits},
    progress::Progress,
    seal::MasterKeys,
};
use sea_orm::DbBackend;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use crate::store::{
    connections::Connections,
    db::{Committed, Db, Tx},
    error::Result,
    freshness::Freshness,
    keys::KeyRing,
    lines::Line,
    plane_state::{PlaneState, PlaneStates},
    scans::{Scan, Scans},
    scope::{OPERATOR, Scope},
    wake::{Wake, Written},
    write_activity::rest_after,
};

pub(crate) mod audit_log;
pub(crate) mod certificates;
pub(crate) mod change;
mod checkpoint;
pub(crate) mod columns;
mod connections;
pub(crate) mod database_config;
pub(crate) mod db;
pub(crate) mod effects;
pub(crate) mod ends;
pub(crate) mod entity;
pub(crate) mod error;
pub(crate) mod freshness;
pub(crate) mod job;
pub(crate) mod keys;
pub(crate) mod lines;
pub(crate) mod page;
pub(crate) mod plane_state;
pub(crate) mod pool;
pub(crate) mod quota;
mod scans;
pub(crate) mod scope;
pub(crate) mod shares;
pub(crate) mod sql;
mod statistics;
pub(crate) mod storage;
pub(crate) mod tables;
mod time;
pub(crate) mod unreadable;
pub(crate) mod wake;
pub(crate) mod walk;
pub(crate) mod write_activity;

/// Names of parts in [`Store::progress`]: the poll of changes, and what the dispatcher says to live.
pub(crate) const POLLS: &str = "changes";
/// The same of the heartbeat, which the dispatcher makes.
pub const HEARTBEAT: &str = "heartbeat";
/// What fails again and again for so long is no passing loss of a connection.
const FAILING: Duration = Duration::from_secs(1);
/// When a poll that does not answer is late, and a heartbeat.
const POLLS_LATE: Duration = Duration::from_secs(5);
const HEARTBEAT_LATE: Duration = Duration::from_secs(8);
/// After SQLite failed to write, a full disk may still take the small writes that ask.
const UNWRITABLE: Duration = Duration::from_secs(5);

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Which connections it uses.
    line: Line,
}

/// What all handles to the store share.
pub(crate) struct Inner {
    pub(crate) db: Db,
    pub(crate) keys: KeyRing,
    pub(crate) freshness: Freshness,
    pub(crate) wake: Wake,
    pub(crate) progress: Progress,
    /// Cancelled when nobody is to wait any more.
    pub(crate) stopping: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) scans: Scans,
    /// Transactions of the general write lane that publishers have under way.
    general: Permits<Uuid>,
    planes: PlaneStates,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// The store on `db`, which holds `planes` for the modules that made them.
    pub(crate) fn assemble(db: Db, master: MasterKeys, planes: PlaneStates) -> Self {
        let inner = Inner {
            keys: KeyRing::new(master),
            freshness: Freshness::default(),
            wake: Wake::new(db.notifies().is_some()),
            progress: db.progress().clone(),
            stopping: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            scans: Scans::new(db.scanners()),
            general: Permits::new(Bounds {
                total: usize::MAX,
                per_owner: db.writers_a_publisher(),
            }),
            planes,
            db,
        };
        Self {
            inner: Arc::new(inner),
            line: Line::Requests,
        }
    }

    /// The store as one publisher sees it.
    #[must_use]
    pub fn scoped(&self, scope: &Scope) -> Scoped {
        Scoped {
            store: self.clone(),
            scope: scope.clone(),
        }
    }

    /// The store as work in the background uses it: on PostgreSQL on connections that requests
    /// can't take. Its statements are many, so nothing that must not wait belongs here.
    #[must_use]
    pub fn working(&self) -> Self {
        self.on(Line::Work)
    }

    /// The store as the dispatcher leases and loads by it, likewise.
    #[must_use]
    pub fn loading(&self) -> Self {
        self.on(Line::Load)
    }

    /// The store as what must never wait for other work uses it: the heartbeat, polls, probes. On
    /// PostgreSQL they have a connection of their own.
    #[must_use]
    pub fn watching(&self) -> Self {
        self.on(Line::Watch)
    }

    fn on(&self, line: Line) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            line,
        }
    }

    /// The store without a scope. See the crate's documentation for who may call this.
    #[must_use]
    pub fn system(&self) -> System {
        System {
            store: self.clone(),
        }
    }

    /// The present moment, by the clock that the store was opened with.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.db.now()
    }

    /// Waits until a commit, here or in another process, wrote deliveries, and says for which
    /// endpoints; from the first call on it also hands over what commits of this process wrote
    /// (ADR 0022). For one caller. May be dropped at any time.
    pub async fn deliveries_written(&self) -> Written {
        self.inner.wake.written().await
    }

    /// Waits until a commit of this process wrote messages about trains. May be dropped at any time.
    pub async fn notices_written(&self) {
        self.inner.wake.noticed().await;
    }

    /// Waits until a commit, here or in another process, wrote fan-outs that are to be spread. May
    /// be dropped at any time.
    pub async fn fanned_out(&self) {
        self.inner.wake.fanned_out().await;
    }

    /// Ends all waiting for runs, and nearly all for a database that takes no connections, now and
    /// from now on: the process is about to stop.
    pub fn stop_waiters(&self) {
        self.inner.stopping.cancel();
        self.inner.db.stop_soon();
    }

    /// Cancelled once [`Store::stop_waiters`] was called.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }

    /// How the parts of this process that work with the store come on; the dispatcher and the jobs
    /// tell of themselves here, too.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.inner.progress
    }

    /// Whether the store was read and written of late, as far as this process knows without asking:
    /// the poll of changes reads it four times a second, and the dispatcher's heartbeat writes it
    /// every two seconds.
    #[must_use]
    pub fn answers(&self) -> bool {
        let standings = self.inner.progress.standings();
        let well = |part: &str, grace: Duration| {
            standings.get(part).is_none_or(|standing| {
                let limit = if standing.failing { FAILING } else { grace };
                standing.age < limit
            })
        };
        well(POLLS, POLLS_LATE)
            && well(HEARTBEAT, HEARTBEAT_LATE)
            && !self.inner.db.failed_to_write_within(UNWRITABLE)
    }

    /// A key for signing what is handed to a publisher and comes back (cursors): the same on
    /// every process, different for each owner and purpose.
    pub async fn derived_key(&self, scope: Option<&Scope>, purpose: &str) -> Result<[u8; 32]> {
        let owner = scope.map_or(OPERATOR, Scope::uuid);
        let keys = self.inner.keys.of(self.read(), owner).await?;
        Ok(keys
            .data
            .mac(&[b"stationmaster.derived.v1", purpose.as_bytes()]))
    }

    /// What a plane keeps in memory.
    pub(crate) fn state<S: PlaneState>(&self) -> &S {
        self.inner.planes.get()
    }

    /// Kills everything kept of a publisher in this process.
    pub(crate) fn forget_publisher(&self, publisher: Uuid) {
        self.inner.freshness.invalidate(publisher);
        for state in self.inner.planes.all() {
            state.forget(publisher);
        }
    }

    /// Kills everything kept of anybody in this process.
    pub(crate) fn forget_everybody(&self) {
        self.inner.freshness.invalidate_all();
        for state in self.inner.planes.all() {
            state.forget_all();
        }
        self.inner.keys.forget_all();
    }

    /// The time was set.
    pub(crate) fn time_was_set(&self) {
        for state in self.inner.planes.all() {
            state.time_was_set();
        }
        self.inner.wake.stepped();
    }

    /// Waits for a scan's turn; the operator's are counted under the nil owner.
    ///
    /// # Errors
    /// 429 `share_exceeded` where the publisher's other scans are what it waited for.
    pub(crate) async fn scan(&self, owner: Uuid) -> Result<Scan<'_>> {
        self.inner.scans.turn(self.inner.db.scan(), owner).await
    }

    pub(crate) fn read(&self) -> &Connections {
        self.inner.db.line(self.line)
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.inner.db.backend()
    }

    /// The general write lane: `work` in a transaction of its own, then what follows a commit.
    pub(crate) async fn write<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write(self.line, work).await?))
    }

    /// The same for what somebody of a publisher asked for: in a line of the publisher's own, so
    /// that however many it asks for at once, others wait for its share of the writer alone.
    pub(crate) async fn write_for<T, F, W>(&self, publisher: Uuid, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        self.inner.db.activity.note_request(publisher);
        let share = shares::one_of(&self.inner.general, publisher, "changes at work").await?;
        self.write_resting(publisher, share, work).await
    }

    /// `work` in a transaction of its own, after which the publisher keeps `turn` for a rest if it
    /// took long while others were at work.
    pub(crate) async fn write_resting<T, F, W>(
        &self,
        publisher: Uuid,
        turn: Permit<Uuid>,
        work: F,
    ) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        // From when the transaction has begun: its wait for others is not its own doing, and one
        // that never began took nothing.
        let (known, began) = (Instant::now(), AtomicU64::new(u64::MAX));
        let timed = |tx| {
            let waited = u64::try_from(known.elapsed().as_micros()).unwrap_or(u64::MAX);
            began.store(waited, Ordering::Relaxed);
            work(tx)
        };
        let done = Box::pin(self.write(timed)).await;
        let waited = Duration::from_micros(began.into_inner());
        let rest = rest_after(known.elapsed().saturating_sub(waited));
        if !rest.is_zero() && self.inner.db.activity.others_are_active(publisher) {
            tokio::spawn(async move {
                tokio::time::sleep(rest).await;
                drop(turn);
            });
        }
        done
    }

    /// The same for removals of what is past its time, which may come back when the machine fails.
    pub(crate) async fn write_unflushed<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write_unflushed(self.line, work).await?))
    }

    /// The same for the hot write lane.
    pub(crate) async fn write_batch<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write_batch(work).await?))
    }

    /// The same for how deliveries went.
    pub(crate) async fn write_outcomes<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write_outcomes(work).await?))
    }

    /// What follows a commit.
    fn after<T>(&self, committed: Committed<T>) -> T {
        for publisher in &committed.effects.credentials_of {
            self.forget_publisher(publisher.uuid());
        }
        for state in self.inner.planes.all() {
            state.committed(&committed.effects);
        }
        self.inner.wake.after(committed.effects, committed.since);
        committed.value
    }
}

/// The store as one publisher sees it: nothing of another's is in reach.
#[derive(Clone)]
pub struct Scoped {
    pub(crate) store: Store,
    pub(crate) scope: Scope,
}

/// The store without a scope: for the operator's routes, the dispatcher, jobs and the process.
#[derive(Clone)]
pub struct System {
    pub(crate) store: Store,
}

impl System {
    /// Waits for a moment in which this process writes nothing, for 20 ms at most; answers whether
    /// one came.
    pub async fn wait_for_idle(&self) -> bool {
        self.store.inner.db.activity.wait_for_idle().await
    }

    /// Whether another publisher than this one had something written in the last second, by this
    /// process.
    #[must_use]
    pub fn others_are_active(&self, publisher: PublisherId) -> bool {
        self.store
            .inner
            .db
            .activity
            .others_are_active(publisher.uuid())
    }
}
