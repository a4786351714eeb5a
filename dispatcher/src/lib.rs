//! Webhook deliveries: claim what is due, sign it, send it, record how it went.
//!
//! One loop claims, woken by commits; each claimed delivery is a task that makes one HTTP request
//! and holds neither connection nor transaction meanwhile; one recorder writes the outcomes in
//! batches. Store work is done by these long-lived tasks alone, which nothing cancels: sqlx loses
//! PostgreSQL writes after a cancelled `begin`.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")
)]

mod attempt;
mod claims;
mod recorder;
mod shared;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use domain::retry::Schedule;
use persistence::Store;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use shared::Shared;

/// The loop turns at least once in a poll; when it has not for this long, it hangs.
const TURN_MAX: Duration = Duration::from_secs(90);

/// The claiming loop and the recorder.
const TASKS: usize = 2;

/// How to deliver.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Waits between tries.
    pub schedule: Schedule,
    /// Most deliveries under way in this process; at least 1.
    pub in_flight_max: usize,
    /// Most of them for one endpoint; at least 1.
    pub per_endpoint_max: usize,
    /// How often to look for due deliveries when nothing rings.
    pub poll: Duration,
    /// How long a claim holds. Must be longer than a request can take.
    pub lease: Duration,
}

impl Default for Settings {
    /// 8 tries over some 28 hours, 256 under way, 16 for an endpoint, a look each second, leases
    /// of a minute.
    fn default() -> Self {
        let schedule = Schedule::parse("5s,5m,30m,2h,5h,10h,10h");
        Self {
            schedule: schedule.expect("the text has the documented form"),
            in_flight_max: 256,
            per_endpoint_max: 16,
            poll: Duration::from_secs(1),
            lease: Duration::from_mins(1),
        }
    }
}

/// The running dispatcher. Dropping it leaves it running.
#[derive(Debug)]
pub struct Dispatcher {
    shared: Arc<Shared>,
    /// The claiming loop and the recorder. Deliveries under way keep the recorder from ending.
    tasks: TaskTracker,
}

impl Dispatcher {
    /// Starts to deliver, until `stop`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(
        store: Store,
        client: outbound::Client,
        settings: Settings,
        stop: CancellationToken,
    ) -> Self {
        let settings = Settings {
            in_flight_max: settings.in_flight_max.max(1),
            per_endpoint_max: settings.per_endpoint_max.max(1),
            ..settings
        };
        let shared = Arc::new(Shared::new());
        let (outcomes, finished) = tokio::sync::mpsc::channel(settings.in_flight_max);
        let tasks = TaskTracker::new();
        tasks.spawn(recorder::run(
            store.clone(),
            Arc::clone(&shared),
            settings.poll,
            finished,
        ));
        let claims = claims::Claims::new(store, client, settings, Arc::clone(&shared), outcomes);
        tasks.spawn(claims.run(stop));
        tasks.close();
        Self { shared, tasks }
    }

    /// Waits, once `stop` was called, until what is under way has ended and is recorded. Set a
    /// deadline around it; what it cuts off comes due again when its lease ends.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// Whether the loop lives and turns. A store that fails is no fault of the dispatcher's: it
    /// goes on by itself once the store is back.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.tasks.len() == TASKS && self.shared.since_turn() < TURN_MAX
    }
}
