//! Scheduled work: removing expired rows, ending lost leases of runs, refreshing accounts.
//!
//! The store's table of jobs says which job is due, which process works on it, and how its last run
//! ended. So any number of processes can share the work. A tick of tokio-cron-scheduler only makes
//! a process look at that table. A lost tick costs seconds, because every process also looks every
//! 15 seconds. Nothing cancels store work half-way: it runs in tasks of its own.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")
)]

mod job;
mod rest;
#[cfg(test)]
mod tests;
mod worker;

use std::{collections::HashMap, sync::Arc, time::Duration};

use domain::Timestamp;
use persistence::{Job, Retention, Store};
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job as Tick, JobScheduler, JobSchedulerError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use upstream::Refresher;

use job::Schedule;
use worker::Worker;

/// How often the uses of tokens are stored, the ages of jobs are measured, and overdue jobs are
/// started.
const ROUND: Duration = Duration::from_secs(15);

/// The pause between two steps of replays: when no replay runs, when all wait for their deliveries,
/// and when one made progress.
const REPLAYS_IDLE: Duration = Duration::from_secs(1);
const REPLAYS_WAITING: Duration = Duration::from_millis(250);
const REPLAYS_MOVING: Duration = Duration::from_millis(10);

/// When jobs run, and how long rows are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cron expression of each job: six fields, in UTC.
    pub crons: Vec<(Job, String)>,
    /// An endpoint is disabled after so many days with nothing but failures.
    pub disable_endpoint_after_days: u32,
    /// How long rows of what has ended are kept.
    pub retention: Retention,
}

/// Why the jobs did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An expression is not six cron fields, or names no time at all.
    #[error("the schedule {cron:?} of job {job} is not understood: {cause}")]
    Cron {
        /// The job.
        job: &'static str,
        /// The expression.
        cron: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The scheduler failed.
    #[error("the scheduler does not start: {0}")]
    Scheduler(#[from] JobSchedulerError),
}

/// The running jobs. They go on when this value is dropped.
pub struct Jobs {
    tasks: TaskTracker,
    scheduler: JobScheduler,
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs")
            .field("tasks", &self.tasks)
            .finish_non_exhaustive()
    }
}

/// Starts the jobs, which run until `stop` is cancelled. Each is checked once at the start.
///
/// # Errors
/// [`StartError`] if an expression is no schedule, or the scheduler fails.
pub async fn start(
    store: Store,
    refresher: Refresher,
    settings: Settings,
    stop: CancellationToken,
) -> Result<Jobs, StartError> {
    let mut known = Vec::new();
    for (job, cron) in &settings.crons {
        known.push((
            *job,
            cron.clone(),
            Schedule::parse(*job, cron, store.now())?,
        ));
    }
    let store = store.working();
    let scheduler = JobScheduler::new().await?;
    let tasks = TaskTracker::new();
    let worker = Arc::new(Worker::new(
        store.clone(),
        refresher,
        settings,
        stop.clone(),
    ));
    let mut wakeups = HashMap::new();
    for (job, cron, schedule) in known {
        let wakeup = Arc::new(Notify::new());
        // So that the job is checked at once.
        wakeup.notify_one();
        let ticked = Arc::clone(&wakeup);
        let tick = Tick::new_async(cron, move |_, _| {
            let ticked = Arc::clone(&ticked);
            Box::pin(async move { ticked.notify_one() })
        })?;
        scheduler.add(tick).await?;
        wakeups.insert(job.as_str(), Arc::clone(&wakeup));
        tasks.spawn(Arc::clone(&worker).serve(job, schedule, wakeup));
    }
    tasks.spawn(replays(store.clone(), stop.clone()));
    tasks.spawn(rounds(store, wakeups, stop));
    tasks.close();
    scheduler.start().await?;
    Ok(Jobs { tasks, scheduler })
}

impl Jobs {
    /// Waits until the jobs under way have ended; a sweep ends after its present batch. Cancel
    /// `stop` first.
    pub async fn stopped(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!(%error, "the scheduler did not stop cleanly");
        }
        self.tasks.wait().await;
    }
}

/// Works on replays of events until `stop`. Every process does so at the same time: the store makes
/// sure that no two do the same part.
async fn replays(store: Store, stop: CancellationToken) {
    let mut pause = REPLAYS_IDLE;
    let part = store.progress().part("replays");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let system = store.system();
        let under_way = part.work();
        // In a task of its own, so that a panic ends this step and not the loop.
        let worked = tokio::spawn(async move { system.webhooks().work_replays().await }).await;
        drop(under_way);
        pause = match worked {
            Ok(Ok(worked)) if worked.moved => REPLAYS_MOVING,
            Ok(Ok(worked)) if worked.running > 0 => REPLAYS_WAITING,
            Ok(Ok(_)) => REPLAYS_IDLE,
            Ok(Err(error)) => {
                tracing::warn!(%error, "replays can't be worked on");
                REPLAYS_IDLE
            }
            Err(error) => {
                tracing::error!(%error, "the work on replays panicked");
                REPLAYS_IDLE
            }
        };
    }
}

/// The work that every process does for itself, every [`ROUND`]. The uses of tokens and accounts
/// since the last round are stored when the store closes.
async fn rounds(
    store: Store,
    wakeups: HashMap<&'static str, Arc<Notify>>,
    stop: CancellationToken,
) {
    let part = store.progress().part("usage");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(ROUND) => {}
        }
        let _under_way = part.work();
        if let Err(error) = store.system().publishers().flush_uses().await {
            tracing::warn!(%error, "the last uses of tokens could not be stored");
        }
        part.moved();
        if let Err(error) = store.identity().flush_seen().await {
            tracing::warn!(%error, "when sessions were last seen could not be stored");
        }
        part.moved();
        if let Err(error) = store.system().trains().flush_usage().await {
            tracing::warn!(%error, "the use of accounts could not be stored");
        }
        match store.system().operations().jobs().await {
            Ok(rows) => look_at(&rows, &wakeups, store.now()),
            Err(error) => tracing::warn!(%error, "the table of jobs can't be read"),
        }
    }
}

/// Measures the age of each job's last successful run, and wakes the jobs that are due: their tick
/// was lost, or they failed.
fn look_at(
    rows: &[persistence::JobRow],
    wakeups: &HashMap<&'static str, Arc<Notify>>,
    now: Timestamp,
) {
    for row in rows {
        let Some((job, wakeup)) = wakeups.get_key_value(row.name.as_str()) else {
            continue;
        };
        if let Some(at) = row.finished_at {
            let age = now.since(at).as_secs_f64();
            metrics::gauge!("stationmaster_job_age_seconds", "job" => *job).set(age);
        }
        if row.due_at <= now {
            wakeup.notify_one();
        }
    }
}
