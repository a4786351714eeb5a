//! Scheduled work: sweeps of what is past its time, leases that ran out, accounts to refresh.
//!
//! The scheduler of tokio-cron-scheduler ticks, and a tick only says "look now". What is due,
//! which process has it and how it last went stand in the store's table of jobs, so any number of
//! processes share the work, and a tick that is lost costs seconds: a look every quarter of a
//! minute catches up. Nothing cancels store work half-way: it runs in tasks of its own.

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

/// How often uses of tokens are written down, ages are measured and overdue jobs looked at.
const ROUND: Duration = Duration::from_secs(15);

/// The pause between two looks at replays when none is running, when those that are wait for
/// their deliveries, and when one came further.
const REPLAYS_IDLE: Duration = Duration::from_secs(1);
const REPLAYS_WAITING: Duration = Duration::from_millis(250);
const REPLAYS_MOVING: Duration = Duration::from_millis(10);

/// When jobs run, and how long things are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// When each job runs: six cron fields, in UTC.
    pub crons: Vec<(Job, String)>,
    /// Days of nothing but failures after which an endpoint is disabled.
    pub disable_endpoint_after_days: u32,
    /// How long what has ended stays.
    pub retention: Retention,
}

/// Why no jobs run.
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
    /// The scheduler gave up.
    #[error("the scheduler does not start: {0}")]
    Scheduler(#[from] JobSchedulerError),
}

/// The running jobs. Dropping it leaves them running.
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

/// Starts the jobs, until `stop`. Each is looked at once at the start.
///
/// # Errors
/// [`StartError`] for an expression that can't be a schedule.
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
        // The first look is due at once.
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
    /// Waits, once `stop` was called, until what is under way has ended; a sweep ends with the
    /// batch that it is at.
    pub async fn stopped(mut self) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!(%error, "the scheduler did not stop cleanly");
        }
        self.tasks.wait().await;
    }
}

/// Works on replays of events, as every process may at any time: the store sees to it that no two
/// do the same part.
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
        // In a task of its own, so that a defect ends this look and not the work for good.
        let worked = tokio::spawn(async move { system.work_replays().await }).await;
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

/// What every process does for itself, every [`ROUND`]. The last uses of tokens and accounts are
/// written down when the store closes.
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
        if let Err(error) = store.system().flush_uses().await {
            tracing::warn!(%error, "the last uses of tokens could not be written down");
        }
        part.moved();
        if let Err(error) = store.system().flush_usage().await {
            tracing::warn!(%error, "the use of accounts could not be written down");
        }
        match store.system().jobs().await {
            Ok(rows) => look_at(&rows, &wakeups, store.now()),
            Err(error) => tracing::warn!(%error, "the table of jobs can't be read"),
        }
    }
}

/// Measures the age of each job's last good run, and wakes those that are overdue: their tick was
/// lost, or they failed.
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
