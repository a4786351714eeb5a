//! Sends webhook deliveries. For each endpoint, the dispatcher takes a lease, loads the due
//! deliveries, signs and sends them, and records the outcomes.
//!
//! One loop (`control`) makes all decisions. The `board` keeps the endpoints and decides which
//! sends next; it knows neither store nor network. Each request is a task of its own and holds
//! neither connection nor transaction. One recorder writes the outcomes in batches. Nothing cancels
//! the tasks that use the store: sqlx loses PostgreSQL writes after a cancelled `begin`. ADR 0017
//! has the reasons.
//!
//! Slack messages about trains (`notices`) and mails to people (`mails`) are few. Each kind is sent
//! by a simpler loop of its own.

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
mod mails;
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
use mails::MailSender;
use notices::Sender;
use process::Alive;

pub use mails::{MAIL_TIME_MAX, Outgoing};

/// The loop runs several times a second. If it has not run for this long, it hangs.
const LOOP_PAUSE_MAX: Duration = Duration::from_secs(90);

/// The number of tasks: the loop, the recorder, the heartbeat, the sender of messages about trains,
/// the sender of mails, and the spreader of fan-outs.
const TASKS: usize = 6;

/// Limits and intervals of the dispatcher.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The waits between tries, for endpoints without a schedule of their own.
    pub schedule: Schedule,
    /// Most requests under way in this process to receivers that have not been slow so far. As many
    /// again may be under way to slow receivers. At least 1.
    pub in_flight_max: usize,
    /// Most requests of one publisher under way; at least 1.
    pub per_publisher_max: usize,
    /// Most requests to one endpoint under way, unless it has its own limit; at least 1.
    pub per_endpoint_max: usize,
    /// How often the store is searched for due deliveries of which no notice came.
    pub poll: Duration,
    /// The waits between tries to send a message about a train.
    pub notices: Schedule,
    /// The waits between tries to send a mail. The last one is repeated for as long as the mail is
    /// of use.
    pub mails: Schedule,
    /// How often the loop looks at what changes with time alone. Notices are handled at once.
    pub tick: Duration,
}

impl Default for Settings {
    /// 8 tries over some 28 hours; 256 requests under way, 64 of a publisher, 16 to an endpoint;
    /// a search every two seconds; 5 tries of a message about a train within an hour; mails every
    /// quarter of an hour after the first ten minutes.
    fn default() -> Self {
        let schedule = |text| Schedule::parse(text).expect("the text has the documented form");
        Self {
            schedule: schedule("5s,5m,30m,2h,5h,10h,10h"),
            notices: schedule("10s,1m,10m,45m"),
            mails: schedule("10s,30s,1m,2m,5m,15m"),
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

/// The running dispatcher. It goes on when this value is dropped.
#[derive(Debug)]
pub struct Dispatcher {
    last_run: Arc<LastRun>,
    tasks: TaskTracker,
}

impl Dispatcher {
    /// Starts the tasks, which deliver until `stop` is cancelled. Mails leave by `outgoing`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(
        store: &Store,
        client: outbound::Client,
        outgoing: Outgoing,
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
        let mails = MailSender::new(
            store.working(),
            outgoing,
            settings.mails.clone(),
            settings.poll,
        );
        tasks.spawn(mails.run(stop.clone()));
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

    /// Waits until the requests under way have ended and are recorded and all leases are returned.
    /// Cancel `stop` first, and set a deadline around this call: deliveries that the deadline cuts
    /// off come due again once this process counts as dead.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// Whether all tasks run and the loop is not stuck. A failing store does not make this false:
    /// the dispatcher goes on by itself once the store answers again.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.tasks.len() == TASKS && self.last_run.at().elapsed() < LOOP_PAUSE_MAX
    }
}
