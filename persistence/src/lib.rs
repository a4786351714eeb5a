//! The store: one set of functions over SQLite and PostgreSQL.
//!
//! A tenant's rows are reachable only through [`Store::scoped`], whose [`Scope`] only this crate
//! can make. [`Store::system`] sees everything; operator routes, the dispatcher, jobs and the
//! process's own commands may call it, and a test looks for others. Rows never leave this crate:
//! callers get domain types.

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
    permits::{Bounds, Permit, Permits},
    progress::Progress,
    seal::MasterKeys,
};
use sea_orm::DbBackend;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

mod accounts;
mod audit;
mod auth;
mod certificates;
mod change;
mod checkpoint;
mod connections;
mod credentials;
mod db;
mod deliveries;
mod dispatch;
mod effects;
mod endpoint_secrets;
mod endpoints;
mod ends;
mod entity;
mod error;
mod event_types;
mod events;
mod fan_outs;
mod feed;
#[cfg(test)]
mod fixture;
mod freshness;
mod health;
mod import;
mod jobs;
mod keys;
mod lane;
mod lending;
mod lines;
mod logins;
mod notices;
mod open;
mod page;
mod pipelines;
mod pool;
mod publish;
mod publishers;
mod quota;
mod refresh;
mod replays;
mod runs;
mod scans;
mod scope;
mod seed;
mod shares;
mod sql;
mod statistics;
mod storage;
mod subcommands;
mod sweeps;
mod time;
mod traffic;
mod train_tokens;
mod trains;
mod unreadable;
mod versions;
mod wake;
mod walk;

pub use accounts::{Account, AccountHealth, AccountPatch, NewAccount, OauthClient};
pub use audit::{AuditFilter, Checkpoint, Fault, Verification};
pub use auth::Known;
pub use change::{Answer, Context, Expected, IdempotencyKey};
pub use credentials::{Credential, Minted, NewCredential, Replaced};
pub use deliveries::{Attempt, Delivery, DeliveryFilter};
pub use dispatch::{
    Ask, DueDelivery, EndpointKey, Handover, Lease, Next, Outcome, PROCESS_EXPIRES_AFTER,
    Page as DuePage, ProcessId, Renewed, Target, Verdict, Waiting,
};
pub use effects::HandedOver;
pub use endpoint_secrets::{EndpointSecret, MintedEndpointSecret, PublicKey};
pub use endpoints::{Endpoint, EndpointPatch, NewEndpoint, Sending};
pub use ends::Retention;
pub use error::StoreError;
pub use event_types::{EventTypePut, PublishersType, TypeSchema};
pub use events::Event;
pub use feed::{Feed, Place};
pub use health::{BUCKET_MS, Bucket, Health, Settled};
pub use import::{AccountWish, ClientKeyWish, Done, Import, Outcome as ImportOutcome, TrainWish};
pub use jobs::{Job, JobRow};
pub use keys::{ClosedKeys, KeySource, KeysSurvey, RewrapPlace, Rewrapped, survey_keys};
pub use lane::Patience;
pub use lending::{Exhausted, Lent, LentBy, Report, Upstream, Upstreams, Wish};
pub use lines::OWN as OWN_CONNECTIONS;
pub use logins::{LOGIN_LIFE, Login, LoginSecrets};
pub use notices::{DueNotice, LastNotice, NoticeOutcome, Notices};
pub use open::{OpenError, Options, SchemaState, migrate, schema_state, try_connections};
pub use page::{Page, PageRequest};
pub use pipelines::Pipeline;
pub use publish::{NewOwnEvent, PublishedEvent};
pub use publishers::{
    CreatedPublisher, NewPublisher, Publisher, PublisherPatch, PublisherStatus, QuotasPatch, Usage,
};
pub use refresh::{AccountToken, DueRefresh, RefreshLease, Refreshable, Turn, Want};
pub use replays::{NewReplay, Replay, Worked};
pub use runs::{
    BulkCancelled, Claimed, CreatedRun, NewRun, Run, RunFilter, batch::Judged,
    timeline::TimelineEntry,
};
pub use scope::{Principal, Scope, Scoped, System};
pub use subcommands::{CallRecord, SubcommandCall};
pub use sweeps::Removed;
pub use train_tokens::{MintedTrainToken, NewTrainToken, TrainToken};
pub use trains::{NewSlack, NewTrain, Slack, SlackPatch, Train, TrainAccount, TrainPatch};
pub use versions::KeptVersion;
pub use wake::Written;

use auth::AuthCache;
use connections::Connections;
use db::{Committed, Db, Tx};
use dispatch::SecretCache;
use error::Result;
use event_types::TypeSchemas;
use freshness::Freshness;
use keys::KeyRing;
use lane::{Inlet, Lane};
use lending::Lending;
use lines::Line;
use runs::claims::Turns;
use scans::Scans;
use storage::Storage;
use versions::Definitions;
use wake::Wake;

/// Names of parts in [`Store::progress`]: the poll of changes, and what the dispatcher says to live.
const POLLS: &str = "changes";
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
    inner: Arc<Inner>,
    /// Which connections it uses.
    line: Line,
}

struct Inner {
    db: Db,
    keys: KeyRing,
    freshness: Freshness,
    auth: AuthCache,
    lending: Lending,
    secrets: SecretCache,
    definitions: Definitions,
    type_schemas: TypeSchemas,
    turns: Turns,
    scans: Scans,
    storage: Storage,
    lane: Lane,
    /// Transactions of the general write lane that publishers have under way.
    general: Permits<Uuid>,
    wake: Wake,
    progress: Progress,
    /// Cancelled when nobody is to wait any more.
    quiet: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    fn assemble(db: Db, master: MasterKeys) -> (Self, Inlet) {
        let (lane, inlet) = Lane::new();
        let inner = Inner {
            keys: KeyRing::new(master),
            freshness: Freshness::default(),
            auth: AuthCache::new(),
            lending: Lending::new(),
            secrets: SecretCache::default(),
            definitions: Definitions::new(),
            type_schemas: TypeSchemas::new(),
            turns: Turns::new(),
            scans: Scans::new(db.scanners()),
            storage: Storage::default(),
            lane,
            general: Permits::new(Bounds {
                total: usize::MAX,
                per_owner: db.writers_a_publisher(),
            }),
            wake: Wake::new(db.notifies().is_some()),
            progress: db.progress().clone(),
            quiet: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            db,
        };
        let store = Self {
            inner: Arc::new(inner),
            line: Line::Requests,
        };
        (store, inlet)
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
    pub fn quiesce(&self) {
        self.inner.quiet.cancel();
        self.inner.db.stop_soon();
    }

    /// Cancelled once [`Store::quiesce`] was called.
    #[must_use]
    pub fn quiet(&self) -> CancellationToken {
        self.inner.quiet.clone()
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
        let owner = scope.map_or(keys::OPERATOR, Scope::uuid);
        let keys = self.inner.keys.of(self.read(), owner).await?;
        Ok(keys
            .data
            .mac(&[b"stationmaster.derived.v1", purpose.as_bytes()]))
    }

    /// Ends background work, waits for it, and closes the connections.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        if let Err(error) = self.flush_uses().await {
            tracing::warn!(%error, "the last uses of tokens could not be written down");
        }
        if let Err(error) = self.flush_usage().await {
            tracing::warn!(%error, "the last use of accounts could not be written down");
        }
        if let Err(error) = self.flush_storage().await {
            tracing::warn!(%error, "the last sums of stored bytes could not be written down");
        }
        self.inner.db.close().await;
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
        self.inner.db.traffic.asks(publisher);
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
        let rest = lane::rest_after(known.elapsed().saturating_sub(waited));
        if !rest.is_zero() && self.inner.db.traffic.others_ask(publisher) {
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
    fn after<T>(&self, mut committed: Committed<T>) -> T {
        for publisher in &committed.effects.credentials_of {
            self.forget_publisher(domain::id::Id::uuid(*publisher));
            self.inner.storage.forget(domain::id::Id::uuid(*publisher));
        }
        self.inner.lane.listening(&committed.effects.listening);
        let stored = std::mem::take(&mut committed.effects.stored);
        self.inner.storage.add(stored);
        self.inner.wake.after(committed.effects, committed.since);
        committed.value
    }
}

impl System {
    /// Writes down when tokens were last used; answers how many.
    pub async fn flush_uses(&self) -> Result<u64, StoreError> {
        self.store.flush_uses().await
    }

    /// Writes down what gateways reported to have used; answers of how many accounts.
    pub async fn flush_usage(&self) -> Result<u64, StoreError> {
        self.store.flush_usage().await
    }
}
