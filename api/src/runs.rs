//! Runs: created, claimed, finished and called off.

use std::{borrow::Cow, sync::Arc};

use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Header, Path, Query},
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::{Example, ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};

use domain::{
    Code, Problem, Timestamp,
    id::{Id as _, PipelineId, RunId, TokenId},
    run::RunStatus,
    slug::Slug,
};
use persistence::{Claimed, CreatedRun, NewRun, Pipeline, Run, RunFilter, Scoped, StoreError};

use crate::{
    auth::{AdminOrRunner, Runner},
    common::{App, Ok, OkOrCreated, Tag, Time, answer, parse_id, parse_slug},
    contract::OperationDoc,
    cursor::{List, Listed},
    destination,
    http::{ApiError, Body, OptionalBody, RequestContext},
    idempotency::Idempotency,
    pipelines::{
        schema::{Schemas, Side, payload_bytes},
        slugs,
    },
};

/// Longest message of a failure, characters.
const MESSAGE_CHARS: usize = 1000;
/// Most members of a failure.
const ERROR_MEMBERS: usize = 50;
const FINISHING: [Code; 2] = [Code::IdempotencyKeyReused, Code::ClaimLost];

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "create_run",
        codes: &[Code::IdempotencyKeyReused, Code::SecretNoLongerAvailable],
    },
    OperationDoc {
        operation_id: "cancel_run",
        codes: &[Code::IdempotencyKeyReused, Code::RunFinished],
    },
    OperationDoc {
        operation_id: "complete_run",
        codes: &FINISHING,
    },
    OperationDoc {
        operation_id: "fail_run",
        codes: &FINISHING,
    },
];

/// Where a run stands.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "RunStatus", rename_all = "snake_case")]
pub enum Status {
    /// Waits for a runner.
    Queued,
    /// A runner holds its claim.
    Running,
    /// Finished well.
    Succeeded,
    /// Finished badly.
    Failed,
    /// Called off.
    Cancelled,
    /// Its last lease ran out.
    Expired,
}

impl From<RunStatus> for Status {
    fn from(status: RunStatus) -> Self {
        match status {
            RunStatus::Queued => Self::Queued,
            RunStatus::Running => Self::Running,
            RunStatus::Succeeded => Self::Succeeded,
            RunStatus::Failed => Self::Failed,
            RunStatus::Cancelled => Self::Cancelled,
            RunStatus::Expired => Self::Expired,
        }
    }
}

impl From<Status> for RunStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Queued => Self::Queued,
            Status::Running => Self::Running,
            Status::Succeeded => Self::Succeeded,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Expired => Self::Expired,
        }
    }
}

/// Why a run failed: a message, and whatever else its runner wants to say.
#[derive(Clone, Debug, PartialEq)]
pub struct RunError(Map<String, Value>);

impl RunError {
    fn schema() -> MetaSchema {
        let message = MetaSchema {
            description: Some("What went wrong."),
            min_length: Some(1),
            max_length: Some(MESSAGE_CHARS),
            ..MetaSchema::new("string")
        };
        MetaSchema {
            description: Some(
                "Why the run failed. Members beside `message` are the runner's own; 256 KiB in all.",
            ),
            required: vec!["message"],
            properties: vec![("message", MetaSchemaRef::Inline(Box::new(message)))],
            additional_properties: Some(Box::new(MetaSchemaRef::Inline(Box::new(MetaSchema::ANY)))),
            max_properties: Some(ERROR_MEMBERS),
            example: Some(json!({"message": "The file of the day is missing.", "code": 2})),
            ..MetaSchema::new("object")
        }
    }
}

impl Type for RunError {
    const IS_REQUIRED: bool = true;
    type RawValueType = Self;
    type RawElementValueType = Self;

    fn name() -> Cow<'static, str> {
        "RunError".into()
    }

    fn schema_ref() -> MetaSchemaRef {
        MetaSchemaRef::Reference(Self::name().into_owned())
    }

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(Self::name().into_owned(), |_| Self::schema());
    }

    fn as_raw_value(&self) -> Option<&Self> {
        Some(self)
    }

    fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
        Box::new(self.as_raw_value().into_iter())
    }
}

impl ParseFromJSON for RunError {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        match value {
            Some(Value::Object(members)) => Ok(Self(members)),
            other => Err(ParseError::expected_type(other.unwrap_or_default())),
        }
    }
}

impl ToJSON for RunError {
    fn to_json(&self) -> Option<Value> {
        Some(Value::Object(self.0.clone()))
    }
}

/// The credential that created a run.
#[derive(Object, Clone, Debug)]
pub struct Creator {
    /// Its identifier.
    id: String,
    /// Its kind: `admin` or `runner`.
    kind: String,
}

/// A run.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Run", example)]
pub struct RunView {
    /// `run_…`
    id: String,
    /// The pipeline's slug.
    pipeline: String,
    /// The version of the pipeline that it was created with, and keeps.
    pipeline_version: i64,
    /// Where it stands.
    status: Status,
    /// What it was given.
    input: Value,
    /// What it gave, once it succeeded.
    #[oai(nullable)]
    output: Option<Value>,
    /// Why it failed, once it did.
    #[oai(nullable)]
    error: Option<RunError>,
    /// The caller's name for it, unique within the pipeline.
    #[oai(nullable)]
    external_id: Option<String>,
    /// 0 to 9; 0 goes first.
    priority: i32,
    /// When it may be claimed at the earliest.
    not_before: Time,
    /// How often it was claimed.
    attempt: i32,
    /// Until when its present claim holds.
    #[oai(nullable)]
    lease_expires_at: Option<Time>,
    /// Who created it.
    created_by: Creator,
    /// When it was created.
    created_at: Time,
    /// When it was first claimed.
    #[oai(nullable)]
    started_at: Option<Time>,
    /// When it reached a final status.
    #[oai(nullable)]
    finished_at: Option<Time>,
}

impl From<&Run> for RunView {
    fn from(run: &Run) -> Self {
        let members = |error: &Value| error.as_object().cloned().unwrap_or_default();
        Self {
            id: run.id.to_string(),
            pipeline: run.pipeline.clone(),
            pipeline_version: run.pipeline_version,
            status: run.status.into(),
            input: run.input.clone(),
            output: run.output.clone(),
            error: run.error.as_ref().map(|error| RunError(members(error))),
            external_id: run.external_id.clone(),
            priority: run.priority,
            not_before: run.not_before.into(),
            attempt: run.attempt,
            lease_expires_at: run.lease_expires_at.map(Time),
            created_by: Creator {
                id: run.created_by_id.clone(),
                kind: run.created_by_kind.clone(),
            },
            created_at: run.created_at.into(),
            started_at: run.started_at.map(Time),
            finished_at: run.finished_at.map(Time),
        }
    }
}

/// A run as examples show it.
pub(crate) fn sample(status: RunStatus) -> Run {
    let at = Timestamp::from_ms(1_769_860_800_000);
    let started = !matches!(status, RunStatus::Queued);
    Run {
        id: RunId::from_uuid(uuid::Uuid::nil()),
        pipeline: "nightly-import".into(),
        pipeline_version: 1,
        status,
        input: json!({"day": "2026-01-31"}),
        output: (status == RunStatus::Succeeded).then(|| json!({"rows": 1024})),
        error: (status == RunStatus::Failed)
            .then(|| json!({"message": "The file of the day is missing.", "code": 2})),
        external_id: Some("import-2026-01-31".into()),
        priority: 5,
        not_before: at,
        attempt: i32::from(started),
        lease_expires_at: (status == RunStatus::Running)
            .then(|| at.plus(std::time::Duration::from_mins(5))),
        created_by_id: TokenId::from_uuid(uuid::Uuid::nil()).to_string(),
        created_by_kind: "runner".into(),
        revision: 1,
        created_at: at,
        started_at: started.then_some(at),
        finished_at: status.is_final().then_some(at),
    }
}

impl Example for RunView {
    fn example() -> Self {
        Self::from(&sample(RunStatus::Succeeded))
    }
}

/// The proof that one holds a run. It is shown once.
#[derive(Object, Clone)]
#[oai(example)]
pub struct Claim {
    /// To send as `X-Stationmaster-Claim` when the run is finished.
    token: String,
    /// When the claim ends, unless the run is finished before.
    expires_at: Time,
}

impl Claim {
    fn of(token: &SecretString, expires_at: Timestamp) -> Self {
        Self {
            token: token.expose_secret().to_owned(),
            expires_at: expires_at.into(),
        }
    }
}

impl Example for Claim {
    fn example() -> Self {
        Self {
            token: "stm_claim_…".into(),
            expires_at: Timestamp::from_ms(1_769_861_100_000).into(),
        }
    }
}

/// A run, with its claim if that was asked for.
#[derive(Object, Clone)]
#[oai(example)]
pub struct CreatedRunView {
    #[oai(flatten)]
    run: RunView,
    /// The claim; absent unless `claim` was true and the run is new.
    #[oai(skip_serializing_if_is_none)]
    claim: Option<Claim>,
}

impl From<&CreatedRun> for CreatedRunView {
    fn from(created: &CreatedRun) -> Self {
        let claim = created.claim.as_ref();
        Self {
            run: RunView::from(&created.run),
            claim: claim.map(|(token, expires_at)| Claim::of(token, *expires_at)),
        }
    }
}

impl Example for CreatedRunView {
    fn example() -> Self {
        Self {
            run: RunView::from(&sample(RunStatus::Queued)),
            claim: None,
        }
    }
}

/// A run and its claim.
#[derive(Object, Clone)]
#[oai(example)]
pub struct ClaimedRun {
    #[oai(flatten)]
    run: RunView,
    /// The claim.
    claim: Claim,
}

impl From<&Claimed> for ClaimedRun {
    fn from(claimed: &Claimed) -> Self {
        Self {
            run: RunView::from(&claimed.run),
            claim: Claim::of(&claimed.token, claimed.expires_at),
        }
    }
}

impl Example for ClaimedRun {
    fn example() -> Self {
        Self {
            run: RunView::from(&sample(RunStatus::Running)),
            claim: Claim::example(),
        }
    }
}

/// Claimed runs, the one to do first at the head.
#[derive(Object, Clone)]
#[oai(example)]
pub struct ClaimedRuns {
    /// As many as there were, up to `max`; none is an ordinary answer.
    items: Vec<ClaimedRun>,
}

impl Example for ClaimedRuns {
    fn example() -> Self {
        Self {
            items: vec![ClaimedRun::example()],
        }
    }
}

/// A run to create.
#[derive(Object, Clone, Debug)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
pub struct NewRunBody {
    /// What the run is given: any JSON that the pipeline's input schema takes, at most 256 KiB.
    input: Value,
    /// The caller's name for the run, unique within the pipeline.
    #[oai(validator(min_length = 1, max_length = 200))]
    external_id: Option<String>,
    /// 0 goes first.
    #[oai(
        default = "priority_default",
        validator(minimum(value = "0"), maximum(value = "9"))
    )]
    priority: i32,
    /// When it may be claimed at the earliest.
    not_before: Option<Time>,
    /// Whether whoever creates it also claims it; takes a runner token.
    #[oai(default)]
    claim: bool,
}

const fn priority_default() -> i32 {
    5
}

impl Example for NewRunBody {
    fn example() -> Self {
        Self {
            input: json!({"day": "2026-01-31"}),
            external_id: Some("import-2026-01-31".into()),
            priority: priority_default(),
            not_before: None,
            claim: false,
        }
    }
}

/// Which runs to claim.
#[derive(Object, Clone, Debug)]
#[oai(example, deny_unknown_fields)]
pub struct ClaimBody {
    /// Only runs of these; of all in reach if it is left out.
    #[oai(validator(
        min_items = 1,
        max_items = 50,
        unique_items,
        pattern = "^[a-z0-9][a-z0-9-]{0,62}$"
    ))]
    pipelines: Option<Vec<String>>,
    /// At most so many.
    #[oai(
        default = "max_default",
        validator(minimum(value = "1"), maximum(value = "100"))
    )]
    max: u32,
}

const fn max_default() -> u32 {
    1
}

impl Example for ClaimBody {
    fn example() -> Self {
        Self {
            pipelines: Some(vec!["nightly-import".into()]),
            max: max_default(),
        }
    }
}

/// How a run ended well.
#[derive(Object, Clone, Debug)]
#[oai(example, deny_unknown_fields)]
pub struct CompleteBody {
    /// What it gives: any JSON that its pipeline version's output schema takes, at most 256 KiB.
    output: Value,
}

impl Example for CompleteBody {
    fn example() -> Self {
        Self {
            output: json!({"rows": 1024}),
        }
    }
}

/// How a run ended badly.
#[derive(Object, Clone, Debug)]
#[oai(deny_unknown_fields)]
pub struct FailBody {
    /// Why.
    error: RunError,
}

/// The operations on runs.
pub struct Runs {
    pub(crate) app: Arc<App>,
    schemas: Schemas,
}

impl Runs {
    /// The operations over the application's parts.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self {
            app,
            schemas: Schemas::new(),
        }
    }

    /// Judges an input by the pipeline's present version, before the store is kept waiting. Which
    /// version the run will keep is certain only within its transaction.
    async fn prejudge(
        &self,
        scoped: &Scoped,
        pipeline: &Slug,
        input: Value,
    ) -> Result<(Value, Option<Verdict>), ApiError> {
        let found = match scoped.pipeline(pipeline.as_str()).await {
            // Left to the transaction, which may have an answer kept from when it existed.
            Err(StoreError::Refused(_)) => return Ok((input, None)),
            found => found?,
        };
        let schema = found.definition.input_schema.as_ref();
        let version = (found.id, found.version);
        let checked = self.schemas.check(version, Side::Input, schema, input);
        let (input, verdict) = checked.await;
        Ok((input, Some((version, verdict))))
    }

    /// Whether the version that a new run will keep takes its input.
    fn judge(
        &self,
        pipeline: &Pipeline,
        input: &Value,
        before: Option<&Verdict>,
    ) -> Result<(), Problem> {
        let version = (pipeline.id, pipeline.version);
        match before {
            Some((judged, verdict)) if *judged == version => verdict.clone(),
            _ => {
                let schema = pipeline.definition.input_schema.as_ref();
                self.schemas.check_now(version, Side::Input, schema, input)
            }
        }
    }

    /// The output of a run, judged by the version that the run was created with.
    async fn judged_output(
        &self,
        scoped: &Scoped,
        run: RunId,
        output: Value,
    ) -> Result<Value, ApiError> {
        let kept = scoped.version_of_run(run).await?;
        let schema = kept.definition.output_schema.as_ref();
        let version = (kept.pipeline, kept.version);
        let (output, verdict) = self
            .schemas
            .check(version, Side::Output, schema, output)
            .await;
        verdict?;
        Ok(output)
    }
}

/// What is to be said of an input, by which version.
type Verdict = ((PipelineId, i64), Result<(), Problem>);

/// A claim at once makes its holder a runner.
fn check_may_claim(wanted: bool, may: bool) -> Result<(), Problem> {
    if wanted && !may {
        let detail = "Only a runner token can claim: leave `claim` out, or use one.";
        return Err(Problem::field("/claim", "not_allowed", detail));
    }
    Ok(())
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Runs")]
impl Runs {
    /// Create a run
    ///
    /// Whoever does the work itself sends `claim: true` and gets run and claim in one answer. An
    /// `external_id` that the pipeline has already answers 200 with the run that has it, unchanged
    /// and without a claim.
    #[oai(
        path = "/pipelines/:slug/runs",
        method = "post",
        operation_id = "create_run"
    )]
    async fn create(
        &self,
        who: AdminOrRunner,
        request: &RequestContext,
        /// The pipeline's slug.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<NewRunBody>,
    ) -> Result<OkOrCreated<CreatedRunView>, ApiError> {
        let slug = parse_slug(&slug.0)?;
        check_may_claim(body.0.claim, who.0.grants.runner)?;
        let scoped = self.app.store.scoped(&who.0.scope);
        let (input, verdict) = self.prejudge(&scoped, &slug, body.0.input).await?;
        let new = NewRun {
            pipeline: slug.to_string(),
            input,
            external_id: body.0.external_id,
            priority: body.0.priority,
            not_before: body.0.not_before.map(|at| at.0),
            claim: body.0.claim,
        };
        let judge =
            |pipeline: &Pipeline, input: &Value| self.judge(pipeline, input, verdict.as_ref());
        let key = key.of("create_run", request);
        let context = self.app.context(request, who.0.actor(), key);
        let answer = scoped
            .create_run(&context, new, judge, |created| {
                let view = CreatedRunView::from(created);
                let revision = Some(created.run.revision);
                let location = format!("/v1/runs/{}", created.run.id);
                if created.existed {
                    answer(200, &view, revision, None, false)
                } else {
                    answer(
                        201,
                        &view,
                        revision,
                        Some(location),
                        created.claim.is_some(),
                    )
                }
            })
            .await?;
        Ok(answer.into())
    }

    /// List runs
    ///
    /// Newest first. A token that is limited to some pipelines sees only their runs.
    #[oai(path = "/runs", method = "get", operation_id = "list_runs")]
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a parameter of the request"
    )]
    async fn list(
        &self,
        who: AdminOrRunner,
        request: &RequestContext,
        /// Only runs of this pipeline.
        #[oai(validator(max_length = 63))]
        pipeline: Query<Option<String>>,
        /// Only runs that stand here.
        status: Query<Option<Status>>,
        /// Only runs of this external identifier.
        #[oai(validator(max_length = 200))]
        external_id: Query<Option<String>>,
        /// Only runs created at or after this time.
        since: Query<Option<Time>>,
        /// Only runs created before this time.
        until: Query<Option<Time>>,
        /// How many.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Where to go on: `next_cursor` of the part before.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<RunView>, ApiError> {
        let scope = &who.0.scope;
        let list = List::begin(&self.app, request, Some(scope), limit.0, cursor.0).await?;
        let filter = RunFilter {
            pipeline: pipeline.0,
            status: status.0.map(RunStatus::from),
            external_id: external_id.0,
            since: since.0.map(|at| at.0),
            until: until.0.map(|at| at.0),
        };
        let page = self
            .app
            .store
            .scoped(scope)
            .runs(&filter, list.page()?)
            .await?;
        Ok(list.answer(page, |run| RunView::from(&run)))
    }

    /// Read a run
    #[oai(path = "/runs/:id", method = "get", operation_id = "get_run")]
    async fn get(
        &self,
        who: AdminOrRunner,
        /// The run's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
    ) -> Result<Ok<RunView>, ApiError> {
        let id = parse_id::<RunId>(&id.0)?;
        let run = self.app.store.scoped(&who.0.scope).run(id).await?;
        Ok(Ok::show(&RunView::from(&run), Some(run.revision)))
    }

    /// Cancel a run
    ///
    /// At once, whoever holds it: its claim is lost.
    #[oai(
        path = "/runs/:id/cancel",
        method = "post",
        operation_id = "cancel_run"
    )]
    async fn cancel(
        &self,
        who: AdminOrRunner,
        request: &RequestContext,
        /// The run's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
    ) -> Result<Ok<RunView>, ApiError> {
        let id = parse_id::<RunId>(&id.0)?;
        let key = key.of("cancel_run", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        Ok(scoped.cancel_run(&context, id, shown).await?.into())
    }

    /// Claim runs
    ///
    /// Hands out due runs, by priority, then by when they may start. Each comes with a claim that
    /// holds for its pipeline's `lease_seconds`; finishing the run takes it.
    #[oai(path = "/runs/claim", method = "post", operation_id = "claim_runs")]
    async fn claim(
        &self,
        who: Runner,
        request: &RequestContext,
        body: OptionalBody<ClaimBody>,
    ) -> Result<Ok<ClaimedRuns>, ApiError> {
        let mut faults = Vec::new();
        let wanted = body.0.pipelines.as_deref();
        let pipelines = wanted.map(|texts| slugs(texts, "/pipelines", &mut faults));
        destination::refuse(faults, Vec::new())?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let claimed = scoped
            .claim_runs(&context, pipelines.as_deref(), body.0.max)
            .await?;
        let items = claimed.iter().map(ClaimedRun::from).collect();
        Ok(Ok::show(&ClaimedRuns { items }, None))
    }

    /// Complete a run
    #[oai(
        path = "/runs/:id/complete",
        method = "post",
        operation_id = "complete_run"
    )]
    async fn complete(
        &self,
        who: Runner,
        request: &RequestContext,
        /// The run's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The claim's token.
        #[oai(name = "X-Stationmaster-Claim", validator(max_length = 200))]
        claim: Header<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<CompleteBody>,
    ) -> Result<Ok<RunView>, ApiError> {
        let id = parse_id::<RunId>(&id.0)?;
        let scoped = self.app.store.scoped(&who.0.scope);
        let output = self.judged_output(&scoped, id, body.0.output).await?;
        let key = key.of("complete_run", request);
        let context = self.app.context(request, who.0.actor(), key);
        Ok(scoped
            .complete_run(&context, id, &claim.0, output, shown)
            .await?
            .into())
    }

    /// Give up a run
    #[oai(path = "/runs/:id/fail", method = "post", operation_id = "fail_run")]
    async fn fail(
        &self,
        who: Runner,
        request: &RequestContext,
        /// The run's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The claim's token.
        #[oai(name = "X-Stationmaster-Claim", validator(max_length = 200))]
        claim: Header<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<FailBody>,
    ) -> Result<Ok<RunView>, ApiError> {
        let id = parse_id::<RunId>(&id.0)?;
        let error = Value::Object(body.0.error.0);
        payload_bytes("error", &error)?;
        let key = key.of("fail_run", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        Ok(scoped
            .fail_run(&context, id, &claim.0, error, shown)
            .await?
            .into())
    }
}

/// A changed run.
fn shown(run: &Run) -> persistence::Answer {
    answer(200, &RunView::from(run), Some(run.revision), None, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_show_the_run_as_the_api_does() {
        for status in RunStatus::ALL {
            let run = sample(status);
            let mut shown = RunView::from(&run).to_json().unwrap();
            shown.as_object_mut().unwrap().remove("input").unwrap();
            assert_eq!(shown, run.without_input(), "{}", status.as_str());
        }
    }

    #[test]
    fn a_claim_stands_beside_the_runs_own_members() {
        let created = CreatedRun {
            run: sample(RunStatus::Queued),
            claim: None,
            existed: false,
        };
        let plain = CreatedRunView::from(&created).to_json().unwrap();
        assert_eq!(plain, RunView::from(&created.run).to_json().unwrap());
        let at = Timestamp::from_ms(0);
        let claim = Some((SecretString::from("stm_claim_x".to_owned()), at));
        let claimed = CreatedRunView::from(&CreatedRun { claim, ..created })
            .to_json()
            .unwrap();
        assert_eq!(
            claimed["claim"],
            json!({"token": "stm_claim_x", "expires_at": at.to_string()})
        );
        assert_eq!(claimed["id"], plain["id"]);
    }

    #[test]
    fn only_a_runner_claims() {
        let problem = check_may_claim(true, false).unwrap_err();
        assert_eq!(problem.errors[0].pointer, "/claim");
        assert!(check_may_claim(true, true).is_ok() && check_may_claim(false, false).is_ok());
    }

    #[test]
    fn a_failure_keeps_the_runners_own_members() {
        let value = json!({"message": "x", "trace": [1]});
        let error = RunError::parse_from_json(Some(value.clone())).unwrap();
        assert_eq!(error.to_json(), Some(value));
        assert!(RunError::parse_from_json(Some(json!("x"))).is_err());
    }
}
