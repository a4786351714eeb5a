//! One job's work: look whether it is due, do it in batches, write down how it went.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{Timestamp, limits::UNDELETE_DAYS, progress::Part};
use oauth::Refresher;
use persistence::{Store, StoreError};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    ROUND, Settings,
    job::{Kind, Schedule},
    rest::Batches,
};

/// How long a job is ours without a sign of life.
const LEASE: Duration = Duration::from_mins(5);
/// The shortest time between two looks that nobody asked for.
const LOOK_MIN: Duration = Duration::from_millis(100);
/// How often a job under way gives one.
const KEEP_EVERY: Duration = Duration::from_mins(1);
/// A job that failed is due again after this, if its schedule is not sooner.
const RETRY_AFTER: Duration = Duration::from_mins(5);
/// Runs that one batch takes back; each of them may tell many endpoints. Somebody waits for them,
/// so there is no lull before a batch and no rest after it.
const LEASES_BATCH: u64 = 100;

/// How many of what.
type Counts = BTreeMap<&'static str, u64>;

/// A batch's counts, and whether there may be more.
struct Batch {
    counts: Vec<(&'static str, u64)>,
    more: bool,
}

impl Batch {
    /// Of sweeps that take up to `limit` rows each.
    fn of(limit: u64, counts: Vec<(&'static str, u64)>) -> Self {
        let more = counts.iter().any(|(_, count)| *count >= limit);
        Self { counts, more }
    }

    fn removed(limit: u64, count: u64) -> Self {
        Self::of(limit, vec![("removed", count)])
    }
}

/// Why a job ended before its end.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("another process has taken the job over")]
    Lost,
}

/// What a job remembers from one batch to the next.
struct Progress {
    /// When the lease was last prolonged.
    kept: Instant,
    /// Whether deliveries to deleted endpoints may be left: looked for once, not at each batch.
    /// Those that are found too late are the next job's.
    orphans: bool,
}

pub(crate) struct Worker {
    store: Store,
    refresher: Refresher,
    settings: Settings,
    stop: CancellationToken,
    /// This process, in leases.
    owner: String,
}

impl Worker {
    pub(crate) fn new(
        store: Store,
        refresher: Refresher,
        settings: Settings,
        stop: CancellationToken,
    ) -> Self {
        let owner = hex::encode(domain::random::bytes::<8>());
        Self {
            store,
            refresher,
            settings,
            stop,
            owner,
        }
    }

    /// Looks at one job whenever the bell rings, until the end.
    pub(crate) async fn serve(self: Arc<Self>, kind: Kind, schedule: Schedule, bell: Arc<Notify>) {
        loop {
            // The scheduler waits by the machine's clock, and stands still for as long as that is set
            // back; this waits by one that nobody sets.
            let now = self.store.now();
            let wait = schedule.next(now).map_or(ROUND, |next| next.since(now));
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = bell.notified() => {}
                () = tokio::time::sleep(wait.clamp(LOOK_MIN, ROUND)) => {}
            }
            // A task of its own, so that a panic ends this look and not the job for good.
            let look = Arc::clone(&self).look(kind, schedule.clone());
            if let Err(error) = tokio::spawn(look).await {
                tracing::error!(job = kind.as_str(), %error, "a job broke down");
                metrics::counter!("stationmaster_job_failures_total", "job" => kind.as_str())
                    .increment(1);
            }
        }
    }

    async fn look(self: Arc<Self>, kind: Kind, schedule: Schedule) {
        let (job, system) = (kind.as_str(), self.store.system());
        let part = kind.part().map(|name| self.store.progress().part(name));
        let _under_way = part.as_ref().map(Part::work);
        // Checked when it was read: there is always a next time.
        let Some(next) = schedule.next(self.store.now()) else {
            return;
        };
        match system.take_job(job, &self.owner, LEASE, next).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(job, %error, "a job could not be looked at");
                return;
            }
        }
        let began = Instant::now();
        let (counts, interrupted) = self.work(kind, part.as_ref()).await;
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        for (what, count) in &counts {
            metrics::counter!("stationmaster_job_rows_total", "job" => job, "what" => *what)
                .increment(*count);
        }
        let counts = json!(counts);
        let error = interrupted.map(|error| error.to_string());
        match &error {
            // They come so often that most looks find nothing.
            None if matches!(kind, Kind::Leases | Kind::IdempotencyKeys | Kind::Accounts) => {
                tracing::debug!(job, %counts, took_ms, "job done");
            }
            None => tracing::info!(job, %counts, took_ms, "job done"),
            Some(error) => {
                tracing::warn!(job, %counts, took_ms, error, "job failed");
                metrics::counter!("stationmaster_job_failures_total", "job" => job).increment(1);
            }
        }
        let now = self.store.now();
        let mut due = schedule.next(now).unwrap_or(next);
        if error.is_some() {
            due = due.min(now.plus(RETRY_AFTER));
        } else if self.stop.is_cancelled() {
            // Cut short: what is left is for whoever comes next.
            due = now;
        }
        let done = system
            .finish_job(job, &self.owner, due, &counts, error.as_deref())
            .await;
        if let Err(error) = done {
            tracing::warn!(job, %error, "a job's end could not be written down");
        }
    }

    /// Batch after batch, with rests, until nothing is left, the process stops, or something fails.
    async fn work(&self, kind: Kind, part: Option<&Part>) -> (Counts, Option<Interruption>) {
        let mut counts = Counts::new();
        let mut progress = Progress {
            kept: Instant::now(),
            orphans: true,
        };
        let mut batches = Batches::new();
        loop {
            let waits = Instant::now();
            let lull = kind == Kind::Leases || self.store.system().lull().await;
            let began = Instant::now();
            match self.step(kind, batches.rows(lull), &mut progress).await {
                Ok(batch) => {
                    if let Some(part) = part {
                        part.moved();
                    }
                    for (what, count) in batch.counts {
                        *counts.entry(what).or_default() += count;
                    }
                    if !batch.more || self.stop.is_cancelled() {
                        return (counts, None);
                    }
                }
                Err(error) => return (counts, Some(error)),
            }
            if kind == Kind::Leases {
                tokio::task::yield_now().await;
                continue;
            }
            // Waiting was rest, too.
            let rest = batches.took(began.elapsed());
            let rest = rest.saturating_sub(began - waits);
            tokio::select! {
                () = self.stop.cancelled() => return (counts, None),
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn step(
        &self,
        kind: Kind,
        rows: u64,
        progress: &mut Progress,
    ) -> Result<Batch, Interruption> {
        if progress.kept.elapsed() >= KEEP_EVERY {
            progress.kept = Instant::now();
            if !self
                .store
                .system()
                .keep_job(kind.as_str(), &self.owner, LEASE)
                .await?
            {
                return Err(Interruption::Lost);
            }
        }
        Ok(self.batch(kind, rows, progress).await?)
    }

    fn before(&self, days: u32) -> Timestamp {
        self.store
            .now()
            .minus(Duration::from_hours(u64::from(days) * 24))
    }

    /// As many accounts that are due as may be asked for at a time.
    async fn refresh(&self, rows: u64) -> Result<Batch, StoreError> {
        let system = self.store.system();
        let (limit, each) = Refresher::BATCH;
        let due = system.due_refreshes(limit, each).await?;
        let (refreshed, failed) = self.refresher.refresh_due(&due).await;
        let removed = system.sweep_logins(rows).await?;
        let counts = vec![
            ("refreshed", refreshed),
            ("failed", failed),
            ("logins_removed", removed),
        ];
        // Those that failed are not due for a while; without any other, that is all.
        let more = refreshed > 0 || removed >= rows;
        Ok(Batch { counts, more })
    }

    /// Tokens and secrets that ended, and what else is soon of no use to anybody.
    async fn sweep_credentials(&self, rows: u64) -> Result<Batch, StoreError> {
        let system = self.store.system();
        let cutoff = self.before(self.settings.retention_credentials_days);
        let counts = vec![
            ("removed", system.sweep_credentials(cutoff, rows).await?),
            (
                "train_tokens_removed",
                system.sweep_train_tokens(cutoff, rows).await?,
            ),
            (
                "changes_removed",
                system.sweep_credential_changes(rows).await?,
            ),
            ("usage_removed", system.sweep_account_usage(rows).await?),
            ("cooldowns_removed", system.sweep_cooldowns(rows).await?),
        ];
        Ok(Batch::of(rows, counts))
    }

    async fn batch(
        &self,
        kind: Kind,
        rows: u64,
        progress: &mut Progress,
    ) -> Result<Batch, StoreError> {
        let (system, keep) = (self.store.system(), &self.settings);
        Ok(match kind {
            Kind::Credentials => self.sweep_credentials(rows).await?,
            Kind::IdempotencyKeys => {
                let wiped = system.wipe_secret_answers(rows).await?;
                let removed = system.sweep_idempotency_keys(rows).await?;
                Batch::of(rows, vec![("removed", removed), ("answers_wiped", wiped)])
            }
            Kind::Deliveries => {
                let cutoff = self.before(keep.retention_deliveries_days);
                let cancelled = if progress.orphans {
                    system.cancel_orphans(rows).await?
                } else {
                    0
                };
                progress.orphans = cancelled >= rows;
                let removed = system.sweep_deliveries(cutoff, rows).await?;
                Batch::of(rows, vec![("removed", removed), ("cancelled", cancelled)])
            }
            Kind::Events => {
                let cutoff = self.before(keep.retention_events_days);
                Batch::removed(rows, system.sweep_events(cutoff, rows).await?)
            }
            Kind::Runs => {
                let cutoff = self.before(keep.retention_runs_days);
                let shortened = system.shorten_runs(cutoff, rows).await?;
                let removed = system.sweep_runs(rows).await?;
                Batch::of(rows, vec![("removed", removed), ("shortened", shortened)])
            }
            Kind::Notices => {
                let cutoff = self.before(keep.retention_notices_days);
                Batch::removed(rows, system.sweep_notices(cutoff, rows).await?)
            }
            Kind::Publishers => {
                let age = Duration::from_hours(UNDELETE_DAYS * 24);
                let cutoff = self.store.now().minus(age);
                Batch::removed(rows, system.sweep_publishers(cutoff, rows).await?)
            }
            Kind::Endpoints => {
                let days = u64::from(keep.disable_endpoint_after_days);
                let after = Duration::from_hours(days * 24);
                let settled = system.settle_endpoints(after, rows).await?;
                let removed = system.sweep_endpoint_stats(rows).await?;
                let counts = vec![
                    ("disabled", settled.disabled),
                    ("warned", settled.warned),
                    ("recovered", settled.recovered),
                    ("stats_removed", removed),
                ];
                Batch::of(rows, counts)
            }
            Kind::Accounts => self.refresh(rows).await?,
            Kind::Leases => {
                let (requeued, expired) = system.expire_runs(LEASES_BATCH).await?;
                let counts = vec![("requeued", requeued), ("expired", expired)];
                Batch {
                    counts,
                    more: requeued + expired >= LEASES_BATCH,
                }
            }
        })
    }
}
