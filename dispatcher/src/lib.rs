//! Webhook deliveries, endpoint by endpoint: lease it, load what is due, sign, send, record.
//!
//! One loop decides (`control`): who goes next stands on a `board`, which knows neither store nor
//! network; every request is a task of its own and holds neither connection nor transaction; one
//! recorder writes the outcomes in batches. Store work is done in tasks that nothing cancels: sqlx
//! loses PostgreSQL writes after a cancelled `begin`. ADR 0017 has the reasons.
//!
//! Slack messages about trains (`notices`) are few, and go their own, simpler way.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")
)]

mod attempt;
mod backlog_throttle;
mod board;
mod breaker;
mod bucket;
mod control;
mod endpoint;
mod meters;
mod note;
mod notices;
mod process;
mod recorder;
mod spreader;
#[cfg(test)]
mod tests;
mod throttle;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::retry::Schedule;
use persistence::Store;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use control::Control;
use notices::Sender;
use process::Alive;

/// The loop runs several times a second. If it has not run for this long, it hangs.
const LOOP_PAUSE_MAX: Duration = Duration::from_secs(90);

/// The loop, the recorder, the heartbeat, the sender of messages about trains, and the spreader of
/// fan-outs.
const TASKS: usize = 5;

/// How to deliver.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Waits between tries, for endpoints without their own.
    pub schedule: Schedule,
    /// Most deliveries under way in this process whose receivers have not been slow so far; as
    /// many again may be under way to slow ones. At least 1.
    pub in_flight_max: usize,
    /// Most of one publisher; at least 1.
    pub per_publisher_max: usize,
    /// Most for one endpoint, unless it has its own limit; at least 1.
    pub per_endpoint_max: usize,
    /// How often to look for due deliveries that nobody told of.
    pub poll: Duration,
    /// Waits between tries to send a message about a train.
    pub notices: Schedule,
    /// How often to look at what only time brings. Nothing that somebody told of waits for it.
    pub tick: Duration,
}

impl Default for Settings {
    /// 8 tries over some 28 hours; 256 under way, 64 of a publisher, 16 for an endpoint; a look
    /// every two seconds. 5 tries of a message about a train within an hour.
    fn default() -> Self {
        let schedule = |text| Schedule::parse(text).expect("the text has the documented form");
        Self {
            schedule: schedule("5s,5m,30m,2h,5h,10h,10h"),
            notices: schedule("10s,1m,10m,45m"),
            in_flight_max: 256,
            per_publisher_max: 64,
            per_endpoint_max: 16,
            poll: Duration::from_secs(2),
            tick: Duration::from_millis(250),
        }
    }
}

/// When the loop last ran.
#[derive(Debug)]
struct LastRun(Mutex<Instant>);

impl LastRun {
    fn at(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) {
        *self.at() = Instant::now();
    }
}

/// The running dispatcher. Dropping it leaves it running.
#[derive(Debug)]
pub struct Dispatcher {
    last_run: Arc<LastRun>,
    tasks: TaskTracker,
}

impl Dispatcher {
    /// Starts to deliver, until `stop`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(
        store: &Store,
        client: outbound::Client,
        settings: Settings,
        stop: CancellationToken,
    ) -> Self {
        let settings = Settings {
            in_flight_max: settings.in_flight_max.max(1),
            per_publisher_max: settings.per_publisher_max.max(1),
            per_endpoint_max: settings.per_endpoint_max.max(1),
            ..settings
        };
        let last_run = Arc::new(LastRun(Mutex::new(Instant::now())));
        let alive = Arc::new(Alive::default());
        let end = CancellationToken::new();
        let notes = mpsc::unbounded_channel();
        let (outcomes, finished) = mpsc::unbounded_channel();
        let tasks = TaskTracker::new();
        tasks.spawn(recorder::run(store.working(), finished, notes.0.clone()));
        tasks.spawn(process::run(
            store.watching(),
            Arc::clone(&alive),
            end.clone(),
        ));
        tasks.spawn(spreader::run(store.working(), stop.clone()));
        let sender = Sender::new(
            store.working(),
            client.clone(),
            settings.notices.clone(),
            settings.poll,
        );
        tasks.spawn(sender.run(stop.clone()));
        let control = Control::new(
            (store.loading(), client, settings),
            alive,
            Arc::clone(&last_run),
            notes,
            outcomes,
        );
        tasks.spawn(control.run(stop, end));
        tasks.close();
        Self { last_run, tasks }
    }

    /// Waits, once `stop` was called, until what is under way has ended and is recorded, and what
    /// was held is given back. Set a deadline around it; what it cuts off comes due again when
    /// this process counts as dead.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// Whether the loop lives and turns. A store that fails is no fault of the dispatcher's: it
    /// goes on by itself once the store is back.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.tasks.len() == TASKS && self.last_run.at().elapsed() < LOOP_PAUSE_MAX
    }
}
