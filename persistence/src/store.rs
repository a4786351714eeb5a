//! The store and its two handles: [`Scoped`] for one publisher, and [`System`] for all.

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

pub(crate) mod acting;
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
pub(crate) mod handle;
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

/// Name of a part in [`Store::progress`]: the poll for changes that other processes made.
pub(crate) const POLLS: &str = "changes";
/// Name of a part in [`Store::progress`]: the dispatcher's heartbeat.
pub const HEARTBEAT: &str = "heartbeat";
/// A part that has failed for this long counts as failing; a shorter failure is a lost connection.
const FAILING: Duration = Duration::from_secs(1);
/// A poll without an answer for this long is late. The next constant is the same for the heartbeat.
const POLLS_LATE: Duration = Duration::from_secs(5);
const HEARTBEAT_LATE: Duration = Duration::from_secs(8);
/// After SQLite failed to write, readiness fails for this long: on a full disk, small writes may
/// still succeed.
const UNWRITABLE: Duration = Duration::from_secs(5);

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
    /// Which connections this handle uses.
    line: Line,
}

/// What all handles to the store share.
pub(crate) struct Inner {
    pub(crate) db: Db,
    pub(crate) keys: KeyRing,
    pub(crate) freshness: Freshness,
    pub(crate) wake: Wake,
    pub(crate) progress: Progress,
    /// Cancelled when nobody may wait any more.
    pub(crate) stopping: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    pub(crate) scans: Scans,
    /// Transactions that publishers have open in the general write lane.
    general: Permits<Uuid>,
    planes: PlaneStates,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Makes the store on `db`. `planes` holds what the planes keep in memory.
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

    /// The store for one publisher.
    #[must_use]
    pub fn scoped(&self, scope: &Scope) -> Scoped {
        Scoped {
            store: self.clone(),
            scope: scope.clone(),
        }
    }

    /// The store for background work. On PostgreSQL it uses connections that requests cannot take.
    /// Background work has many statements, so nothing urgent belongs here.
    #[must_use]
    pub fn working(&self) -> Self {
        self.on(Line::Work)
    }

    /// The store for the dispatcher's leases and loads. On PostgreSQL it uses connections that
    /// requests cannot take.
    #[must_use]
    pub fn loading(&self) -> Self {
        self.on(Line::Load)
    }

    /// The store for what must never wait for other work: heartbeat, polls, probes. On PostgreSQL
    /// these have a connection of their own.
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

    /// The store for all publishers. The crate's documentation says who may call this.
    #[must_use]
    pub fn system(&self) -> System {
        System {
            store: self.clone(),
        }
    }

    /// The current time, by the clock with which the store was opened.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.inner.db.now()
    }

    /// Waits until a commit, here or in another process, wrote deliveries, and returns their
    /// endpoints. From the first call on, it also returns the deliveries that commits of this
    /// process wrote (ADR 0022). At most one caller at a time. May be dropped at any time.
    pub async fn deliveries_written(&self) -> Written {
        self.inner.wake.written().await
    }

    /// Waits until a commit of this process wrote messages about trains. May be dropped at any
    /// time.
    pub async fn notices_written(&self) {
        self.inner.wake.noticed().await;
    }

    /// Waits until a commit of this process wrote mails. May be dropped at any time.
    pub async fn mails_written(&self) {
        self.inner.wake.mailed().await;
    }

    /// Waits until a commit, here or in another process, wrote fan-outs that have to be spread. May
    /// be dropped at any time.
    pub async fn fanned_out(&self) {
        self.inner.wake.fanned_out().await;
    }

    /// Ends all waiting for runs, and limits the wait for a database that accepts no connections,
    /// now and from now on. Called when the process is about to stop.
    pub fn stop_waiters(&self) {
        self.inner.stopping.cancel();
        self.inner.db.stop_soon();
    }

    /// A token that is cancelled by [`Store::stop_waiters`].
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }

    /// The progress of the parts of this process that work with the store. The dispatcher and the
    /// jobs report here, too.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.inner.progress
    }

    /// Whether the store was read and written recently, as far as this process knows without a
    /// query. The poll for changes reads it four times a second, and the dispatcher's heartbeat
    /// writes it every two seconds.
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

    /// A key for signing values that a publisher gets and sends back (cursors). It is the same in
    /// every process, and different for each owner and purpose.
    pub async fn derived_key(&self, scope: Option<&Scope>, purpose: &str) -> Result<[u8; 32]> {
        let owner = scope.map_or(OPERATOR, Scope::uuid);
        let keys = self.inner.keys.of(self.read(), owner).await?;
        Ok(keys
            .data
            .mac(&[b"stationmaster.derived.v1", purpose.as_bytes()]))
    }

    /// The state that the plane `S` keeps in memory.
    pub(crate) fn state<S: PlaneState>(&self) -> &S {
        self.inner.planes.get()
    }

    /// Invalidates everything that this process caches of a publisher.
    pub(crate) fn forget_publisher(&self, publisher: Uuid) {
        self.inner.freshness.invalidate(publisher);
        for state in self.inner.planes.all() {
            state.forget(publisher);
        }
    }

    /// Invalidates everything that this process caches of anybody.
    pub(crate) fn forget_everybody(&self) {
        self.inner.freshness.invalidate_all();
        for state in self.inner.planes.all() {
            state.forget_all();
        }
        self.inner.keys.forget_all();
    }

    /// Called after the clock was set forward or back.
    pub(crate) fn time_was_set(&self) {
        for state in self.inner.planes.all() {
            state.time_was_set();
        }
        self.inner.wake.stepped();
    }

    /// Waits until a scan of `owner` may begin. The operator's scans are counted under the nil
    /// owner.
    ///
    /// # Errors
    /// 429 `share_exceeded` if the publisher's other scans did not end in time.
    pub(crate) async fn scan(&self, owner: Uuid) -> Result<Scan<'_>> {
        self.inner.scans.turn(self.inner.db.scan(), owner).await
    }

    pub(crate) fn read(&self) -> &Connections {
        self.inner.db.line(self.line)
    }

    pub(crate) fn backend(&self) -> DbBackend {
        self.inner.db.backend()
    }

    /// Runs `work` in a transaction of its own, in the general write lane, and then publishes its
    /// effects.
    pub(crate) async fn write<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write(self.line, work).await?))
    }

    /// Like [`Store::write`], for a publisher's request. It takes one of the publisher's permits
    /// first, so that other publishers wait for that share of the writer at most.
    pub(crate) async fn write_for<T, F, W>(&self, publisher: Uuid, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        self.inner.db.activity.note_request(publisher);
        let share = shares::one_of(&self.inner.general, publisher, "changes at work").await?;
        self.write_resting(publisher, share, work).await
    }

    /// Runs `work` in a transaction of its own. If the transaction took long while other publishers
    /// were active, the publisher's permit `turn` is kept for a rest afterwards.
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
        // The time counts from the beginning of the transaction. Waiting for others does not count,
        // and a transaction that never began took no time.
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

    /// Like [`Store::write`], for removals of expired rows. The commit is not flushed, so the rows
    /// may come back if the machine fails.
    pub(crate) async fn write_unflushed<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write_unflushed(self.line, work).await?))
    }

    /// Like [`Store::write`], on the connection of the write lane.
    pub(crate) async fn write_batch<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write_batch(work).await?))
    }

    /// Like [`Store::write`], on the connection for outcomes of deliveries.
    pub(crate) async fn write_outcomes<T, F, W>(&self, work: F) -> Result<T>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
    {
        Ok(self.after(self.inner.db.write_outcomes(work).await?))
    }

    /// Publishes a commit's effects: invalidates caches, tells the planes, and notifies waiters.
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

/// The store for one publisher. It cannot reach another publisher's rows.
#[derive(Clone)]
pub struct Scoped {
    pub(crate) store: Store,
    pub(crate) scope: Scope,
}

/// The store for all publishers: for the operator's routes, the dispatcher, jobs and the process.
#[derive(Clone)]
pub struct System {
    pub(crate) store: Store,
}

impl System {
    /// Waits, for 20 ms at most, until this process writes nothing. Returns whether that happened.
    pub async fn wait_for_idle(&self) -> bool {
        self.store.inner.db.activity.wait_for_idle().await
    }

    /// Whether this process wrote something for another publisher in the last second.
    #[must_use]
    pub fn others_are_active(&self, publisher: PublisherId) -> bool {
        self.store
            .inner
            .db
            .activity
            .others_are_active(publisher.uuid())
    }
}
