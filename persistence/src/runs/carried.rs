//! A run in the data of its events: the members that the API shows, without the input. JSON texts
//! of the runner are inserted unchanged.

use domain::{
    JsonText, Timestamp,
    id::{Id as _, RunId},
};
use serde::Serialize;
use serde_json::value::RawValue;

use super::run::Run;
use crate::store::{
    entity::runs,
    error::{Result, corrupt_row},
};

/// The members, in the order of their names.
#[derive(Serialize)]
struct Carried<'a> {
    attempt: i32,
    cancel_requested: bool,
    created_at: String,
    created_by: Creator<'a>,
    error: Option<&'a RawValue>,
    external_id: Option<&'a str>,
    finished_at: Option<String>,
    id: String,
    lease_expires_at: Option<String>,
    not_before: String,
    output: Option<&'a RawValue>,
    pipeline: &'a str,
    pipeline_version: i64,
    priority: i32,
    progress: Option<&'a RawValue>,
    started_at: Option<String>,
    status: &'a str,
}

#[derive(Serialize)]
struct Creator<'a> {
    id: &'a str,
    kind: &'a str,
}

#[derive(Serialize)]
struct Data<'a> {
    run: Carried<'a>,
}

impl Run {
    /// The run as JSON, with the members that the API shows, without the input.
    #[must_use]
    pub fn without_input(&self) -> JsonText {
        let at = |at: Option<Timestamp>| at.map(|at| at.to_string());
        JsonText::of(&Carried {
            attempt: self.attempt,
            cancel_requested: self.cancel_requested,
            created_at: self.created_at.to_string(),
            created_by: Creator {
                id: &self.created_by_id,
                kind: &self.created_by_kind,
            },
            error: self.error.as_ref().map(JsonText::as_raw),
            external_id: self.external_id.as_deref(),
            finished_at: at(self.finished_at),
            id: self.id.to_string(),
            lease_expires_at: at(self.lease_expires_at),
            not_before: self.not_before.to_string(),
            output: self.output.as_ref().map(JsonText::as_raw),
            pipeline: &self.pipeline,
            pipeline_version: self.pipeline_version,
            priority: self.priority,
            progress: self.progress.as_ref().map(JsonText::as_raw),
            started_at: at(self.started_at),
            status: self.status.as_str(),
        })
    }
}

fn at(ms: i64) -> String {
    Timestamp::from_ms(ms).to_string()
}

fn raw(text: Option<&String>) -> Result<Option<&RawValue>> {
    let parsed = text.map(|text| serde_json::from_str(text)).transpose();
    parsed.map_err(|_| corrupt_row("JSON text of a run"))
}

/// The data of an event about a run, as JSON text.
pub(super) fn event_data(row: &runs::Model) -> Result<String> {
    let data = Data {
        run: Carried {
            attempt: row.attempt,
            cancel_requested: row.cancel_requested,
            created_at: at(row.created_at),
            created_by: Creator {
                id: &row.created_by_id,
                kind: &row.created_by_kind,
            },
            error: raw(row.error.as_ref())?,
            external_id: row.external_id.as_deref(),
            finished_at: row.finished_at.map(at),
            id: RunId::from_uuid(row.id).to_string(),
            lease_expires_at: row.lease_expires_at.map(at),
            not_before: at(row.not_before),
            output: raw(row.output.as_ref())?,
            pipeline: &row.pipeline_slug,
            pipeline_version: row.pipeline_version,
            priority: row.priority,
            progress: raw(row.progress.as_ref())?,
            started_at: row.started_at.map(at),
            status: &row.status,
        },
    };
    serde_json::to_string(&data).map_err(|_| corrupt_row("run"))
}
