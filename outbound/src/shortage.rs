//! Reports to the operator that this process lacks a resource of its own.

use std::{
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A shortage lasts and affects every request, so it is logged once in this time.
const TELL_EVERY: Duration = Duration::from_secs(10);

static TOLD: LazyLock<Mutex<Option<Instant>>> = LazyLock::new(Mutex::default);

/// Counts, and at times logs, a request to `host` that could not be made because of a shortage.
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
