//! Reports stored rows that cannot be read: a secret that does not open, a text that does not
//! parse.
//!
//! A statement that reads rows of several owners leaves such a row out or marks it, so that only
//! its owner is affected, and reports it here: in the log and in a metric.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use domain::id::{Id as _, PublisherId};
use uuid::Uuid;

use crate::store::error::StoreError;

/// The same row is reported once in this time.
const REPORT_EVERY: Duration = Duration::from_mins(5);
/// Rows that are remembered as reported. When there are more, all are forgotten and reported again.
const REMEMBERED: usize = 1000;

type Row = (&'static str, Uuid, Uuid);

static REPORTED: LazyLock<Mutex<HashMap<Row, Instant>>> = LazyLock::new(Mutex::default);

fn is_report_due(row: Row, now: Instant) -> bool {
    let mut reported = REPORTED.lock().unwrap_or_else(PoisonError::into_inner);
    let lately = |at: &Instant| now.saturating_duration_since(*at) < REPORT_EVERY;
    if reported.get(&row).is_some_and(lately) {
        return false;
    }
    if reported.len() >= REMEMBERED {
        reported.clear();
    }
    reported.insert(row, now);
    true
}

/// Reports that a row of `owner` cannot be read. `what` names its kind, and is a label of the
/// metric.
pub(crate) fn report(what: &'static str, owner: Uuid, row: Uuid, error: &StoreError) {
    metrics::counter!("stationmaster_unreadable_rows_total", "what" => what).increment(1);
    if is_report_due((what, owner, row), Instant::now()) {
        let publisher = PublisherId::from_uuid(owner);
        tracing::error!(what, %publisher, %row, %error, "a stored row can't be read; only its owner is affected");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_reported_once_in_a_while() {
        let (now, row) = (Instant::now(), ("test", Uuid::nil(), Uuid::nil()));
        assert!(is_report_due(row, now));
        assert!(!is_report_due(row, now + Duration::from_secs(1)));
        assert!(is_report_due(row, now + REPORT_EVERY));
    }
}
