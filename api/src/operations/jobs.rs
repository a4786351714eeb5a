//! The service's own regular work, for the operator.

use std::sync::Arc;

use poem_openapi::{Object, OpenApi, types::Example};
use serde_json::{Value, json};

use persistence::JobRow;

use crate::{
    auth::Operator,
    shared::{
        App,
        common::{Ok, Tag, Time},
        examples::EXAMPLE_AT,
    },
};
use web::http::ApiError;

/// A regular piece of work and how it last went.
#[derive(Object)]
#[oai(rename = "Job", example)]
struct JobView {
    /// Its name.
    name: String,
    /// When it is due next.
    due_at: Time,
    /// When it last began.
    #[oai(nullable)]
    started_at: Option<Time>,
    /// When it last ended well.
    #[oai(nullable)]
    finished_at: Option<Time>,
    /// What it then did.
    #[oai(nullable)]
    counts: Option<Value>,
    /// Why it last failed; null once it went well.
    #[oai(nullable)]
    error: Option<String>,
}

impl From<JobRow> for JobView {
    fn from(row: JobRow) -> Self {
        Self {
            name: row.name,
            due_at: row.due_at.into(),
            started_at: row.started_at.map(Time),
            finished_at: row.finished_at.map(Time),
            counts: row.counts,
            error: row.error,
        }
    }
}

impl Example for JobView {
    fn example() -> Self {
        Self {
            name: "expire_leases".into(),
            due_at: EXAMPLE_AT,
            started_at: Some(EXAMPLE_AT),
            finished_at: Some(EXAMPLE_AT),
            counts: Some(json!({ "requeued": 2 })),
            error: None,
        }
    }
}

/// Every job.
#[derive(Object)]
#[oai(example)]
struct Jobs {
    /// All of them, by name.
    items: Vec<JobView>,
}

impl Example for Jobs {
    fn example() -> Self {
        Self {
            items: vec![JobView::example()],
        }
    }
}

/// The operator's view of the jobs.
pub(crate) struct JobList {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Operator")]
impl JobList {
    /// List the service's jobs
    ///
    /// When each is due, when it last ran, what it did, and why it last failed.
    #[oai(path = "/jobs", method = "get", operation_id = "list_jobs")]
    async fn list(&self, _who: Operator) -> Result<Ok<Jobs>, ApiError> {
        let rows = self.app.store.system().jobs().await?;
        let items = rows.into_iter().map(Into::into).collect();
        Ok(Ok::show(&Jobs { items }, None))
    }
}
