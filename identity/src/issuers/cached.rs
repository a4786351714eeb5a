//! Something that is fetched rarely, however many ask for it.

use std::sync::Arc;

use tokio::{sync::Mutex, time::Instant};

use super::{IssuerError, Pace};

/// A value that is fetched when it is needed and too old. One fetch is under way at a time, and
/// those who come meanwhile wait for it.
pub(super) struct Cached<T> {
    pace: Pace,
    slot: Mutex<Slot<T>>,
}

struct Slot<T> {
    value: Option<(Arc<T>, Instant)>,
    tried_at: Option<Instant>,
    failure: IssuerError,
}

impl<T> Cached<T> {
    pub(super) fn new(pace: Pace) -> Self {
        let slot = Slot {
            value: None,
            tried_at: None,
            failure: IssuerError::Passing("cooling_down"),
        };
        Self {
            pace,
            slot: Mutex::new(slot),
        }
    }

    /// The value; another one than `unfit`, if it may be fetched again. `fetch` does nothing unless
    /// it is needed.
    pub(super) async fn get(
        &self,
        unfit: Option<&Arc<T>>,
        fetch: impl Future<Output = Result<T, IssuerError>>,
    ) -> Result<Arc<T>, IssuerError> {
        let mut slot = self.slot.lock().await;
        if let Some((value, at)) = &slot.value
            && at.elapsed() < self.pace.fresh_for
            && !unfit.is_some_and(|unfit| Arc::ptr_eq(unfit, value))
        {
            return Ok(Arc::clone(value));
        }
        let cooled = |at: Instant| at.elapsed() >= self.pace.cool_down;
        if slot.tried_at.is_none_or(cooled) {
            // Before the fetch: one that is given up counts as well.
            slot.tried_at = Some(Instant::now());
            match fetch.await {
                Ok(value) => {
                    let value = Arc::new(value);
                    slot.value = Some((Arc::clone(&value), Instant::now()));
                    return Ok(value);
                }
                Err(error) => slot.failure = error,
            }
        }
        match &slot.value {
            Some((value, at)) if at.elapsed() < self.pace.stale_for => Ok(Arc::clone(value)),
            _ => Err(slot.failure),
        }
    }
}
