//! Event types, the event-type filters of endpoints, and the body of deliveries.

use std::fmt;

use crate::words;
use crate::{clock::Timestamp, id::EventId, run::RunStatus};

/// `name(.name)*` in `[a-z0-9_]`, at most 128 characters.
pub const TYPE_PATTERN: &str = r"^[a-z0-9_]+(\.[a-z0-9_]+)*$";
/// An event type, `*`, or a type followed by `.*`.
pub const FILTER_PATTERN: &str = r"^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$";
/// Longest event type, in characters.
pub const MAX_TYPE_LEN: usize = 128;

words! {
    /// The event types that the service itself emits.
    pub enum OwnType {
        /// A run was created.
        RunCreated = "run.created",
        /// A runner claimed a run.
        RunStarted = "run.started",
        /// A run succeeded.
        RunSucceeded = "run.succeeded",
        /// A run failed.
        RunFailed = "run.failed",
        /// A run was cancelled.
        RunCancelled = "run.cancelled",
        /// A run expired: its leases or its time to live ran out.
        RunExpired = "run.expired",
        /// The live credentials of a kind were replaced by a new one.
        TokenRotated = "stationmaster.token.rotated",
        /// A credential was revoked.
        TokenRevoked = "stationmaster.token.revoked",
        /// The service disabled an endpoint.
        EndpointDisabled = "stationmaster.endpoint.disabled",
        /// Every try at an endpoint has failed for a day.
        EndpointFailing = "stationmaster.endpoint.failing",
        /// An endpoint works again after an `endpoint.failing` event.
        EndpointRecovered = "stationmaster.endpoint.recovered",
        /// An upstream credential can't be refreshed any more.
        AccountRefreshFailed = "stationmaster.account.refresh_failed",
        /// No account of a train is usable.
        TrainExhausted = "stationmaster.train.exhausted",
        /// A test event, sent on request to one endpoint.
        Test = "stationmaster.test",
    }
}

impl OwnType {
    /// The type of the event for a run that has reached `status`.
    #[must_use]
    pub const fn of_run(status: RunStatus) -> Self {
        match status {
            RunStatus::Queued => Self::RunCreated,
            RunStatus::Running => Self::RunStarted,
            RunStatus::Succeeded => Self::RunSucceeded,
            RunStatus::Failed => Self::RunFailed,
            RunStatus::Cancelled => Self::RunCancelled,
            RunStatus::Expired => Self::RunExpired,
        }
    }
}

/// One of an endpoint's event-type filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

fn is_type(text: &str) -> bool {
    !text.is_empty()
        && text.split('.').all(|name| {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        })
}

/// Whether a publisher may publish events of this type: it has the documented form, and its first
/// word is not reserved.
#[must_use]
pub fn is_publishable(text: &str) -> bool {
    text.len() <= MAX_TYPE_LEN && is_type(text) && !is_reserved(text)
}

/// Whether a type's first word is reserved for the service's own types.
#[must_use]
pub fn is_reserved(text: &str) -> bool {
    let first = text.split_once('.').map_or(text, |(first, _)| first);
    matches!(first, "run" | "stationmaster")
}

impl Filter {
    /// Parses `*`, an exact type, or `prefix.*`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let stem = text.strip_suffix(".*").unwrap_or(text);
        let fits = text.len() <= MAX_TYPE_LEN && (text == "*" || is_type(stem));
        fits.then(|| Self(text.to_owned()))
    }

    /// Whether the filter accepts events of this type.
    #[must_use]
    pub fn matches(&self, event_type: &str) -> bool {
        match self.0.strip_suffix('*') {
            None => self.0 == event_type,
            // For `run.*` the prefix is `run.`, and more must follow it.
            Some(prefix) => event_type.len() > prefix.len() && event_type.starts_with(prefix),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The exact text that every delivery of an event sends and signs. `data` must be JSON text, and
/// the type must have the documented form.
#[must_use]
pub fn body(id: EventId, event_type: &str, at: Timestamp, data: &str) -> String {
    // Formatted by hand, so that `data` is not parsed.
    format!(r#"{{"data":{data},"id":"{id}","timestamp":"{at}","type":"{event_type}"}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_what_they_say() {
        let passes = |filter: &str, event: &str| Filter::parse(filter).unwrap().matches(event);
        assert!(passes("*", "run.created"));
        assert!(passes("run.*", "run.created"));
        assert!(passes("stationmaster.*", "stationmaster.token.rotated"));
        assert!(passes("run.created", "run.created"));
        assert!(!passes("run.*", "runs.created"));
        assert!(!passes("run.*", "run"));
        assert!(!passes("run.created", "run.created.x"));
        for bad in [
            "", "**", "run*", "*.run", "run.", ".run", "Run", "run..x", "run.*.x",
        ] {
            assert!(Filter::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn every_own_type_has_the_documented_form() {
        for own in OwnType::ALL {
            assert!(is_type(own.as_str()) && is_reserved(own.as_str()));
        }
    }

    #[test]
    fn a_publishers_types_keep_off_the_services_words() {
        for good in ["order.paid", "runs.created", "order", "a_1.b_2", "my.run.x"] {
            assert!(is_publishable(good), "{good}");
        }
        let long = "x".repeat(MAX_TYPE_LEN + 1);
        for bad in [
            "run",
            "run.x",
            "stationmaster",
            "stationmaster.test",
            "Order",
            "a..b",
            "a.",
            "",
            "*",
            "a.*",
            "a-b",
            "\"",
            &long,
        ] {
            assert!(!is_publishable(bad), "{bad}");
        }
    }

    #[test]
    fn a_body_is_json_with_four_members() {
        let id = <EventId as crate::id::Id>::from_uuid(uuid::Uuid::nil());
        let data = serde_json::json!({"a\"b": [1, null, "ü\n"]});
        let text = body(id, "order.paid", Timestamp::from_ms(1), &data.to_string());
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "id": id.to_string(),
            "type": "order.paid",
            "timestamp": "1970-01-01T00:00:00.001Z",
            "data": data,
        });
        assert_eq!(read, expected);
    }
}
