//! An event as it is shown, and an example of each of the service's own types.

use poem_openapi::Object;
use serde::Serialize;
use serde_json::{Value, json};
use view_derive::Example;

use domain::{
    event::OwnType,
    id::{AccountId, EndpointId, EventId, Id as _, TokenId},
    run::RunStatus,
};

use crate::{
    runs::run::sample,
    shared::{EXAMPLE_AT, Time, Verbatim},
};

/// An event.
#[derive(Object, Example, Serialize, Clone, Debug)]
#[oai(rename = "Event", example)]
#[example(EventView::of_type(OwnType::RunSucceeded))]
pub struct EventView {
    /// `evt_…`, also the `webhook-id` of its deliveries: by it consumers know a repeat.
    id: String,
    /// Its type.
    r#type: String,
    /// When it happened.
    timestamp: Time,
    /// What happened; for a run's events `{"run": …}`, the run without its input.
    data: Verbatim,
}

impl EventView {
    /// An example of one of the service's own types.
    pub(crate) fn of_type(own: OwnType) -> Self {
        Self::sample(own.as_str(), example_data(own).into())
    }

    /// An example of any type.
    pub(crate) fn sample(event_type: &str, data: Verbatim) -> Self {
        Self {
            id: EventId::from_uuid(uuid::Uuid::nil()).to_string(),
            r#type: event_type.to_owned(),
            timestamp: EXAMPLE_AT,
            data,
        }
    }
}

fn example_data(own: OwnType) -> Value {
    let run = |status| json!({ "run": sample(status).without_input().to_tree() });
    let endpoint = EndpointId::from_uuid(uuid::Uuid::nil()).to_string();
    match own {
        OwnType::RunCreated => run(RunStatus::Queued),
        OwnType::RunStarted => run(RunStatus::Running),
        OwnType::RunSucceeded => run(RunStatus::Succeeded),
        OwnType::RunFailed => run(RunStatus::Failed),
        OwnType::RunCancelled => run(RunStatus::Cancelled),
        OwnType::RunExpired => run(RunStatus::Expired),
        OwnType::TokenRotated | OwnType::TokenRevoked => {
            json!({ "id": TokenId::from_uuid(uuid::Uuid::nil()).to_string(), "kind": "admin" })
        }
        OwnType::EndpointDisabled => json!({
            "endpoint_id": endpoint,
            "reason": "failing",
            "failing_since": "2026-01-26T12:00:00.000Z",
            "last_error": "timeout",
        }),
        OwnType::EndpointFailing => json!({
            "endpoint_id": endpoint,
            "failing_since": "2026-01-30T12:00:00.000Z",
            "last_error": "timeout",
            "disabled_after": "2026-02-04T12:00:00.000Z",
        }),
        OwnType::AccountRefreshFailed => json!({
            "account_id": AccountId::from_uuid(uuid::Uuid::nil()).to_string(),
            "name": "team-one",
            "reason": "invalid_grant",
            "lent_until": "2026-01-31T12:40:00.000Z",
        }),
        OwnType::TrainExhausted => json!({
            "train": "chat",
            "available_at": "2026-01-31T12:05:00.000Z",
        }),
        OwnType::EndpointRecovered | OwnType::Test => json!({ "endpoint_id": endpoint }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::event;
    use poem_openapi::types::ToJSON as _;

    #[test]
    fn an_event_is_shown_as_it_is_delivered() {
        for own in OwnType::ALL {
            let id = EventId::from_uuid(uuid::Uuid::nil());
            let delivered = event::body(
                id,
                own.as_str(),
                EXAMPLE_AT.0,
                &example_data(own).to_string(),
            );
            let described = EventView::of_type(own).to_json();
            assert_eq!(described, serde_json::from_str(&delivered).unwrap());
        }
    }
}
