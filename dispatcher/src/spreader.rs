//! Writes the deliveries of large fan-outs in steps. Publishers take turns, and a step waits until
//! nothing else is written for a moment. While other publishers write, a step is smaller and a rest
//! follows it: a fan-out is never urgent.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use domain::{id::PublisherId, progress::Part};
use persistence::{Store, StoreError};
use tokio_util::sync::CancellationToken;

/// The longest time between two searches for fan-outs: a process that died may have left some.
const POLL: Duration = Duration::from_secs(1);
/// The pause after the store failed.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long a publisher whose fan-out fails is left out, so that it does not hold up others.
const BROKEN_PAUSE: Duration = Duration::from_secs(30);

/// Deliveries of a step while no other publisher writes.
const ALONE: usize = 256;
/// Deliveries of a step while others write: one or two milliseconds of work for the writer.
const BESIDE: usize = 64;
/// The rest after such a step: so many times the length of the step, and at most this long.
const REST: u32 = 4;
const REST_MAX: Duration = Duration::from_millis(100);

/// The state of the loop.
struct Spreader {
    store: Store,
    stop: CancellationToken,
    part: Part,
    /// The publishers whose fan-outs fail, and until when they are left out.
    broken: HashMap<PublisherId, Instant>,
}

/// Runs until `stop`.
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
        // Reported before `under_way` is dropped: a failed round is no progress.
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
    /// Makes a step for each publisher that has a fan-out; returns whether any delivery was
    /// written.
    async fn round(&mut self) -> Result<bool, StoreError> {
        let (mut moved, mut after) = (false, None);
        self.broken.retain(|_, until| *until > Instant::now());
        while !self.stop.is_cancelled() {
            let Some(publisher) = self.store.system().webhooks().fanning_out(after).await? else {
                break;
            };
            after = Some(publisher);
            if !self.broken.contains_key(&publisher) {
                moved |= self.step(publisher).await?;
            }
        }
        Ok(moved)
    }

    /// Makes one step, in a task that nothing cancels; returns whether a delivery was written.
    async fn step(&mut self, publisher: PublisherId) -> Result<bool, StoreError> {
        let system = self.store.system();
        let work = async move {
            system.wait_for_idle().await;
            if !system.others_are_active(publisher) {
                return system.webhooks().spread(publisher, ALONE).await;
            }
            let began = Instant::now();
            let spread = system.webhooks().spread(publisher, BESIDE).await;
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
