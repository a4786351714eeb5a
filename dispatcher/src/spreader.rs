//! Spreads large fan-outs: in turns between publishers, some deliveries at a time, each time once
//! nothing else is written for a moment. While others write, they are fewer, with a rest after
//! them: a fan-out has time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use domain::{id::PublisherId, progress::Part};
use persistence::{Store, StoreError};
use tokio_util::sync::CancellationToken;

/// The longest time between two looks at what is to be spread: a process that died may have left
/// some.
const POLL: Duration = Duration::from_secs(1);
/// The pause after the store failed.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long a publisher whose fan-out can't be spread is left alone: it must not hold up others.
const BROKEN_PAUSE: Duration = Duration::from_secs(30);

/// Deliveries of a step while its publisher is alone.
const ALONE: usize = 256;
/// The same while others write: one or two milliseconds of the writer.
const BESIDE: usize = 64;
/// How many times as long as such a step its rest is, and how long at most.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_millis(100);

/// See the module.
struct Spreader {
    store: Store,
    stop: CancellationToken,
    part: Part,
    /// Whose fan-outs can't be spread, and until when they are left alone.
    broken: HashMap<PublisherId, Instant>,
}

/// Works until `stop`.
pub(crate) async fn run(store: Store, stop: CancellationToken) {
    let mut spreader = Spreader {
        store: store.clone(),
        stop: stop.clone(),
        part: store.progress().part("spreading"),
        broken: HashMap::new(),
    };
    while !stop.is_cancelled() {
        let under_way = spreader.part.work();
        let done = spreader.round().await;
        // Before the piece of work ends: a failure is no step.
        spreader.part.went(done.is_ok());
        drop(under_way);
        let pause = match done {
            Ok(true) => continue,
            Ok(false) => POLL,
            Err(error) => {
                tracing::warn!(%error, "fan-outs can't be spread now");
                STORE_PAUSE
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = store.fanned_out() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

impl Spreader {
    /// A step for each publisher that has something to spread; answers whether one came further.
    async fn round(&mut self) -> Result<bool, StoreError> {
        let (mut moved, mut after) = (false, None);
        self.broken.retain(|_, until| *until > Instant::now());
        while !self.stop.is_cancelled() {
            let Some(publisher) = self.store.system().fanning_out(after).await? else {
                break;
            };
            after = Some(publisher);
            if !self.broken.contains_key(&publisher) {
                moved |= self.step(publisher).await?;
            }
        }
        Ok(moved)
    }

    /// Store work runs in a task that nothing cancels.
    async fn step(&mut self, publisher: PublisherId) -> Result<bool, StoreError> {
        let system = self.store.system();
        let work = async move {
            system.wait_for_idle().await;
            if !system.others_are_active(publisher) {
                return system.spread(publisher, ALONE).await;
            }
            let began = Instant::now();
            let spread = system.spread(publisher, BESIDE).await;
            tokio::time::sleep((began.elapsed() * REST).min(REST_MAX)).await;
            spread
        };
        let done = tokio::spawn(work).await;
        let done = done.unwrap_or_else(|failed| Err(StoreError::Internal(failed.to_string())));
        match done {
            Ok(count) => {
                let count = u64::try_from(count).unwrap_or(0);
                metrics::counter!("stationmaster_deliveries_spread_total").increment(count);
                self.part.moved();
                Ok(count > 0)
            }
            Err(StoreError::Internal(error)) => {
                tracing::error!(%publisher, error, "a publisher's fan-out can't be spread");
                metrics::counter!("stationmaster_fan_out_failures_total").increment(1);
                self.broken.insert(publisher, Instant::now() + BROKEN_PAUSE);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
