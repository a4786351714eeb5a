//! Runs a job: checks whether it is due, works in batches, and records how it went.

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

/// How long the lease of a job lasts unless it is prolonged.
const LEASE: Duration = Duration::from_mins(5);
/// The shortest time between two checks without a wake-up.
const LOOK_MIN: Duration = Duration::from_millis(100);
/// How often a job under way prolongs its lease.
const KEEP_EVERY: Duration = Duration::from_mins(1);
/// A failed job is due again after this, or at its next scheduled time if that is sooner.
const RETRY_AFTER: Duration = Duration::from_mins(5);
/// Runs with a lost lease that one batch ends; the event of each may go to many endpoints. Runners
/// wait for these runs, so a batch neither waits for other writes nor rests.
const LEASES_BATCH: u64 = 100;

/// The counts of a job, by name.
type Counts = BTreeMap<&'static str, u64>;

/// The counts of a batch, and whether there may be more to do.
#[derive(Default)]
struct Batch {
    counts: Vec<(&'static str, u64)>,
    more: bool,
}

impl Batch {
    /// The result of sweeps that take up to `limit` rows each.
    fn of(limit: u64, counts: Vec<(&'static str, u64)>) -> Self {
        let more = counts.iter().any(|(_, count)| *count >= limit);
        Self { counts, more }
    }
}

/// Why a job stopped before it was done.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("another process has taken the job over")]
    Lost,
}

/// What a job keeps from one batch to the next.
struct JobState {
    /// When the lease was taken or last prolonged.
    kept: Instant,
    /// Whether deliveries to deleted endpoints may be left. Searched until none is found, not at
    /// each batch. The next run of the job finds those that come later.
    orphans: bool,
}

pub(crate) struct Worker {
    store: Store,
    refresher: Refresher,
    settings: Settings,
    stop: CancellationToken,
    /// The name of this process in leases.
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

    /// Runs one job at each wake-up and each scheduled time, until `stop`.
    pub(crate) async fn serve(self: Arc<Self>, job: Job, schedule: Schedule, wakeup: Arc<Notify>) {
        loop {
            // The scheduler waits by the machine's clock, and does nothing for hours if that is set
            // back. This waits by a clock that nobody sets.
            let now = self.store.now();
            let wait = schedule.next(now).map_or(ROUND, |next| next.since(now));
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = wakeup.notified() => {}
                () = tokio::time::sleep(wait.clamp(LOOK_MIN, ROUND)) => {}
            }
            // In a task of its own, so that a panic ends this run and not the loop.
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
        // Refreshes of accounts do not report progress: they wait for token endpoints of others,
        // each within a time limit.
        let part = (kind != Job::Accounts).then(|| self.store.progress().part(kind.part()));
        let _under_way = part.as_ref().map(Part::work);
        // The schedule was checked when it was parsed, so there is always a next time.
        let Some(next) = schedule.next(self.store.now()) else {
            return;
        };
        match system
            .operations()
            .take_job(job, &self.owner, LEASE, next)
            .await
        {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(job, %error, "a job could not be taken");
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
            // These run so often that most runs find nothing.
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
            // The run was cut short: another process may do the rest at once.
            due = now;
        }
        let done = system
            .operations()
            .finish_job(job, &self.owner, due, &counts, error.as_deref())
            .await;
        if let Err(error) = done {
            tracing::warn!(job, %error, "the end of a job could not be recorded");
        }
    }

    /// Works in batches, with rests, until nothing is left, the process stops, or a batch fails.
    async fn work(&self, job: Job, part: Option<&Part>) -> (Counts, Option<Interruption>) {
        let mut counts = Counts::new();
        let mut state = JobState {
            kept: Instant::now(),
            orphans: true,
        };
        let mut batches = Batches::new();
        loop {
            let waits = Instant::now();
            let idle = job == Job::Leases || self.store.system().wait_for_idle().await;
            let began = Instant::now();
            match self.step(job, batches.rows(idle), &mut state).await {
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
            // The time spent waiting counts as rest.
            let rest = batches.took(began.elapsed());
            let rest = rest.saturating_sub(began - waits);
            tokio::select! {
                () = self.stop.cancelled() => return (counts, None),
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    async fn step(&self, job: Job, rows: u64, state: &mut JobState) -> Result<Batch, Interruption> {
        if state.kept.elapsed() >= KEEP_EVERY {
            state.kept = Instant::now();
            if !self
                .store
                .system()
                .operations()
                .keep_job(job.as_str(), &self.owner, LEASE)
                .await?
            {
                return Err(Interruption::Lost);
            }
        }
        Ok(self.batch(job, rows, state).await?)
    }

    /// Makes one batch: what the job does besides removing rows, and then the removal of expired
    /// rows.
    async fn batch(&self, job: Job, rows: u64, state: &mut JobState) -> Result<Batch, StoreError> {
        let mut batch = self.beside(job, rows, state).await?;
        let removed = self
            .store
            .system()
            .operations()
            .sweep(job, &self.settings.retention, rows)
            .await?;
        batch.more |= removed.more;
        batch.counts.extend(removed.counts);
        Ok(batch)
    }

    async fn beside(&self, job: Job, rows: u64, state: &mut JobState) -> Result<Batch, StoreError> {
        let (system, keep) = (self.store.system(), &self.settings);
        Ok(match job {
            Job::Credentials | Job::Events | Job::Notices | Job::People => Batch::default(),
            Job::IdempotencyKeys => {
                let wiped = system.operations().wipe_secret_answers(rows).await?;
                Batch::of(rows, vec![("answers_wiped", wiped)])
            }
            Job::Deliveries => {
                let cancelled = if state.orphans {
                    system.operations().cancel_orphans(rows).await?
                } else {
                    0
                };
                state.orphans = cancelled >= rows;
                Batch::of(rows, vec![("cancelled", cancelled)])
            }
            Job::Runs => {
                let cutoff = self.store.now().minus(keep.retention.runs);
                let shortened = system.operations().shorten_runs(cutoff, rows).await?;
                Batch::of(rows, vec![("shortened", shortened)])
            }
            Job::Publishers => {
                let age = Duration::from_hours(UNDELETE_DAYS * 24);
                let cutoff = self.store.now().minus(age);
                let removed = system.operations().sweep_publishers(cutoff, rows).await?;
                Batch::of(rows, vec![("removed", removed)])
            }
            Job::Endpoints => {
                let days = u64::from(keep.disable_endpoint_after_days);
                let after = Duration::from_hours(days * 24);
                let settled = system.webhooks().settle_endpoints(after, rows).await?;
                let counts = vec![
                    ("disabled", settled.disabled),
                    ("warned", settled.warned),
                    ("recovered", settled.recovered),
                ];
                Batch::of(rows, counts)
            }
            Job::Accounts => {
                // As many due accounts as may be refreshed at a time.
                let (limit, each) = Refresher::BATCH;
                let due = system.trains().due_refreshes(limit, each).await?;
                let (refreshed, failed) = self.refresher.refresh_due(&due).await;
                Batch {
                    counts: vec![("refreshed", refreshed), ("failed", failed)],
                    // Failed accounts are not due again for a while, so only successes hint at
                    // more.
                    more: refreshed > 0,
                }
            }
            Job::Leases => {
                let (requeued, expired) = system.runs().expire_runs(LEASES_BATCH).await?;
                Batch {
                    counts: vec![("requeued", requeued), ("expired", expired)],
                    more: requeued + expired >= LEASES_BATCH,
                }
            }
        })
    }
}
