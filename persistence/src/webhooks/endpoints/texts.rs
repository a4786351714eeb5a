//! What of an endpoint is stored as text, read or not to be read.

use std::collections::BTreeMap;

use domain::{retry::Schedule, signature::Signing, slug::Slug};

use crate::{
    store::{
        columns::slugs_of,
        entity::webhook_endpoints,
        error::{Result, corrupt_row},
    },
    webhooks::listeners::Listener,
};

/// How an endpoint's deliveries go out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sending {
    /// One after the other, in the order of their events; a failed one holds up the others until
    /// it arrives or its last try is over.
    pub ordered: bool,
    /// Most a second, at least 1.
    pub rate_limit_per_second: Option<u32>,
    /// Waits between tries, instead of the operator's.
    pub retry_schedule: Option<Schedule>,
    /// Most under way, at least 1, instead of the dispatcher's own limit.
    pub max_in_flight: Option<u32>,
}

impl Sending {
    fn of_row(row: &webhook_endpoints::Model) -> Result<Self> {
        let limit = |number: Option<i32>| number.and_then(|some| u32::try_from(some).ok());
        let schedule = row.retry_schedule.as_deref().map(Schedule::parse);
        Ok(Self {
            ordered: row.ordered,
            rate_limit_per_second: limit(row.rate_limit_per_second),
            retry_schedule: schedule
                .transpose()
                .map_err(|_| corrupt_row("schedule of retries"))?,
            max_in_flight: limit(row.max_in_flight),
        })
    }
}

/// The parts of an endpoint that are stored as text; empty where they can't be read.
#[derive(Default)]
pub(super) struct Texts {
    pub(super) sending: Sending,
    pub(super) event_types: Vec<String>,
    pub(super) pipelines: Option<Vec<Slug>>,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) signing: Signing,
}

impl Texts {
    pub(super) fn of_row(row: &webhook_endpoints::Model) -> Result<Self> {
        // What producers go by.
        Listener::of_endpoint(row)?;
        Ok(Self {
            sending: Sending::of_row(row)?,
            event_types: serde_json::from_str(&row.event_types)
                .map_err(|_| corrupt_row("list of event types"))?,
            pipelines: row.pipelines.as_deref().map(slugs_of).transpose()?,
            headers: serde_json::from_str(&row.headers)
                .map_err(|_| corrupt_row("list of headers"))?,
            signing: Signing::parse(&row.signing)
                .ok_or_else(|| corrupt_row("endpoint's signing"))?,
        })
    }
}
