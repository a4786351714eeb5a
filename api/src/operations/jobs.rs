//! The service's own regular work, for the operator.

use poem_openapi::{Object, OpenApi};
use serde_json::{Value, json};
use view_derive::{Example, View};

use domain::permission::OperatorRead;
use persistence::JobRow;

use crate::{
    auth::Operator,
    shared::{EXAMPLE_AT, Ok, Tag, Time},
};
use web::http::ApiError;

/// A regular piece of work and how it last went.
#[derive(Object, View, Example)]
#[oai(rename = "Job", example)]
#[view(of = JobRow)]
struct JobView {
    /// Its name.
    #[example("expire_leases")]
    name: String,
    /// When it is due next.
    due_at: Time,
    /// When it last began.
    #[oai(nullable)]
    #[example(EXAMPLE_AT)]
    started_at: Option<Time>,
    /// When it last ended well.
    #[oai(nullable)]
    #[example(EXAMPLE_AT)]
    finished_at: Option<Time>,
    /// What it then did.
    #[oai(nullable)]
    #[example(json!({ "requeued": 2 }))]
    counts: Option<Value>,
    /// Why it last failed; null once it went well.
    #[oai(nullable)]
    error: Option<String>,
}

/// Every job.
#[derive(Object, Example)]
#[oai(example)]
struct Jobs {
    /// All of them, by name.
    #[example([JobView::example()])]
    items: Vec<JobView>,
}

/// The operator's view of the jobs.
pub(crate) struct JobList;

#[OpenApi(prefix_path = "/v1/jobs", tag = "Tag::Operator")]
impl JobList {
    /// List the service's jobs
    ///
    /// When each is due, when it last ran, what it did, and why it last failed.
    #[oai(path = "/", method = "get", operation_id = "list_jobs")]
    async fn list(&self, who: Operator<OperatorRead>) -> Result<Ok<Jobs>, ApiError> {
        let rows = who.system().operations().jobs().await?;
        let items = rows.into_iter().map(Into::into).collect();
        Ok(Ok::show(&Jobs { items }, None))
    }
}
