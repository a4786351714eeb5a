//! One job's work: look whether it is due, do it in batches, write down how it went.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use domain::{limits::UNDELETE_DAYS, progress::Part};
use persistence::{Job, Store, StoreError};
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use upstream::Refresher;

use crate::{ROUND, Settings, job::Schedule, rest::Batches};

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
#[derive(Default)]
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
    pub(crate) async fn serve(self: Arc<Self>, job: Job, schedule: Schedule, bell: Arc<Notify>) {
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
            let look = Arc::clone(&self).look(job, schedule.clone());
            if let Err(error) = tokio::spawn(look).await {
                tracing::error!(job = job.as_str(), %error, "a job panicked");
                metrics::counter!("stationmaster_job_failures_total", "job" => job.as_str())
                    .increment(1);
            }
        }
    }

    async fn look(self: Arc<Self>, kind: Job, schedule: Schedule) {
        let (job, system) = (kind.as_str(), self.store.system());
        // Refreshes of accounts are no part of the process's progress: they wait for others' token
        // endpoints, each within a limit of its own.
        let part = (kind != Job::Accounts).then(|| self.store.progress().part(kind.part()));
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
            None if matches!(kind, Job::Leases | Job::IdempotencyKeys | Job::Accounts) => {
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
    async fn work(&self, job: Job, part: Option<&Part>) -> (Counts, Option<Interruption>) {
        let mut counts = Counts::new();
        let mut progress = Progress {
            kept: Instant::now(),
            orphans: true,
        };
        let mut batches = Batches::new();
        loop {
            let waits = Instant::now();
            let lull = job == Job::Leases || self.store.system().wait_for_idle().await;
            let began = Instant::now();
            match self.step(job, batches.rows(lull), &mut progress).await {
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
            if job == Job::Leases {
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
        job: Job,
        rows: u64,
        progress: &mut Progress,
    ) -> Result<Batch, Interruption> {
        if progress.kept.elapsed() >= KEEP_EVERY {
            progress.kept = Instant::now();
            if !self
                .store
                .system()
                .keep_job(job.as_str(), &self.owner, LEASE)
                .await?
            {
                return Err(Interruption::Lost);
            }
        }
        Ok(self.batch(job, rows, progress).await?)
    }

    /// One step of a job: what it does beside removing rows, and then the rows whose end has come.
    async fn batch(
        &self,
        job: Job,
        rows: u64,
        progress: &mut Progress,
    ) -> Result<Batch, StoreError> {
        let mut batch = self.beside(job, rows, progress).await?;
        let removed = self
            .store
            .system()
            .sweep(job, &self.settings.retention, rows)
            .await?;
        batch.more |= removed.more;
        batch.counts.extend(removed.counts);
        Ok(batch)
    }

    async fn beside(
        &self,
        job: Job,
        rows: u64,
        progress: &mut Progress,
    ) -> Result<Batch, StoreError> {
        let (system, keep) = (self.store.system(), &self.settings);
        Ok(match job {
            Job::Credentials | Job::Events | Job::Notices => Batch::default(),
            Job::IdempotencyKeys => {
                let wiped = system.wipe_secret_answers(rows).await?;
                Batch::of(rows, vec![("answers_wiped", wiped)])
            }
            Job::Deliveries => {
                let cancelled = if progress.orphans {
                    system.cancel_orphans(rows).await?
                } else {
                    0
                };
                progress.orphans = cancelled >= rows;
                Batch::of(rows, vec![("cancelled", cancelled)])
            }
            Job::Runs => {
                let cutoff = self.store.now().minus(keep.retention.runs);
                let shortened = system.shorten_runs(cutoff, rows).await?;
                Batch::of(rows, vec![("shortened", shortened)])
            }
            Job::Publishers => {
                let age = Duration::from_hours(UNDELETE_DAYS * 24);
                let cutoff = self.store.now().minus(age);
                let removed = system.sweep_publishers(cutoff, rows).await?;
                Batch::of(rows, vec![("removed", removed)])
            }
            Job::Endpoints => {
                let days = u64::from(keep.disable_endpoint_after_days);
                let after = Duration::from_hours(days * 24);
                let settled = system.settle_endpoints(after, rows).await?;
                let counts = vec![
                    ("disabled", settled.disabled),
                    ("warned", settled.warned),
                    ("recovered", settled.recovered),
                ];
                Batch::of(rows, counts)
            }
            Job::Accounts => {
                // As many that are due as may be asked for at a time.
                let (limit, each) = Refresher::BATCH;
                let due = system.due_refreshes(limit, each).await?;
                let (refreshed, failed) = self.refresher.refresh_due(&due).await;
                Batch {
                    counts: vec![("refreshed", refreshed), ("failed", failed)],
                    // Those that failed are not due for a while; without any other, that is all.
                    more: refreshed > 0,
                }
            }
            Job::Leases => {
                let (requeued, expired) = system.expire_runs(LEASES_BATCH).await?;
                Batch {
                    counts: vec![("requeued", requeued), ("expired", expired)],
                    more: requeued + expired >= LEASES_BATCH,
                }
            }
        })
    }
}
