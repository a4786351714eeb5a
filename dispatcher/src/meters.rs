//! The dispatcher's own metrics.

/// Counts an outcome that could not be recorded.
pub(crate) fn lost(reason: &'static str) {
    metrics::counter!("stationmaster_delivery_outcomes_lost_total", "reason" => reason)
        .increment(1);
}

/// Sets a gauge; values above `u32::MAX` count as that.
pub(crate) fn gauge(name: &'static str, value: usize) {
    metrics::gauge!(name).set(u32::try_from(value).unwrap_or(u32::MAX));
}
