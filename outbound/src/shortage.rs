//! What this process tells its operator when it is short of something itself.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A shortage lasts, and meets every request: it is told of once in this time.
const TELL_EVERY: Duration = Duration::from_secs(10);

static TOLD: LazyLock<Mutex<Option<Instant>>> = LazyLock::new(Mutex::default);

/// A request to `host` could not be made for want of something of our own.
pub(crate) fn tell(host: &str) {
    metrics::counter!("stationmaster_own_shortages_total").increment(1);
    let now = Instant::now();
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY) {
        *told = Some(now);
        tracing::error!(
            host,
            "a request could not be made: this process has no file descriptor, memory or local port left, or can't query name servers; the request is made again, and does not count as an attempt"
        );
    }
}
