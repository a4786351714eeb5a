//! Registers this process, renews the registration, and knows until when it surely holds. Leases
//! belong to a registration.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use domain::Timestamp;
use persistence::{PROCESS_EXPIRES_AFTER, ProcessId, Renewed, Store, StoreError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often the registration is renewed.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// The pause before a failed renewal is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// The process starts nothing any more this long before others may consider it dead.
const MARGIN: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Default)]
struct State {
    process: Option<ProcessId>,
    good_until: Option<Instant>,
    next_expiry: Option<Timestamp>,
}

/// The registration of this process.
#[derive(Default)]
pub(crate) struct Alive {
    state: Mutex<State>,
    /// Notified when the process was registered, or its registration ended.
    pub(crate) changed: Notify,
}

impl Alive {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registration under which leases are held.
    pub(crate) fn process(&self) -> Option<ProcessId> {
        self.state().process
    }

    /// Whether the leases of this process surely still hold.
    pub(crate) fn sure(&self, now: Instant) -> bool {
        self.state().good_until.is_some_and(|until| now < until)
    }

    /// When the first of the other processes counts as dead unless it renews.
    pub(crate) fn next_expiry(&self) -> Option<Timestamp> {
        self.state().next_expiry
    }

    fn set(&self, process: ProcessId, began: Instant, next_expiry: Option<Timestamp>) {
        *self.state() = State {
            process: Some(process),
            good_until: Some(began + PROCESS_EXPIRES_AFTER.saturating_sub(MARGIN)),
            next_expiry,
        };
    }

    fn clear(&self) {
        *self.state() = State::default();
    }
}

async fn beat(store: &Store, alive: &Alive) -> Result<(), StoreError> {
    // Taken before the call, so that this process never counts on its leases for longer than others
    // grant them.
    let began = Instant::now();
    let system = store.system();
    if let Some(process) = alive.process() {
        match system.webhooks().renew_process(process).await? {
            Renewed::Alive { next_expiry } => {
                alive.set(process, began, next_expiry);
                return Ok(());
            }
            Renewed::Expired => {
                tracing::warn!(
                    "this process renewed its registration too late: its leases are lost"
                );
                alive.clear();
                alive.changed.notify_one();
            }
        }
    }
    let began = Instant::now();
    let process = system.webhooks().register_process().await?;
    alive.set(process, began, None);
    alive.changed.notify_one();
    Ok(())
}

/// Registers, renews until `end`, and then ends the registration.
pub(crate) async fn run(store: Store, alive: Arc<Alive>, end: CancellationToken) {
    let mut failing = false;
    let part = store.progress().part(persistence::HEARTBEAT);
    let _at_work = part.work();
    while !end.is_cancelled() {
        let beaten = beat(&store, &alive).await;
        part.went(beaten.is_ok());
        let pause = match beaten {
            Ok(()) => {
                failing = false;
                HEARTBEAT
            }
            Err(error) => {
                if !failing {
                    tracing::warn!(%error, "this process can't renew its registration");
                }
                failing = true;
                RETRY
            }
        };
        tokio::select! {
            () = end.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    if let Some(process) = alive.process()
        && let Err(error) = store.system().webhooks().end_process(process).await
    {
        tracing::warn!(%error, "this process could not end its registration; others wait until it counts as dead");
    }
}
