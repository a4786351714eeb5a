//! Runs as requests and answers show them.

use std::borrow::Cow;

use poem_openapi::{
    Enum, Object,
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::{Example, ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::{Value, json};

use domain::{
    JsonText, Timestamp,
    id::{Id as _, RunId, TokenId},
    run::RunStatus,
};
use persistence::{BulkCancelled, Claimed, CreatedRun, Run, RunFilter};

use crate::shared::{common::Time, verbatim::Verbatim};

/// Longest message of a failure, characters.
const MESSAGE_CHARS: usize = 1000;
/// Most members of a failure.
const ERROR_MEMBERS: usize = 50;

/// Where a run stands.
#[derive(Enum, Serialize, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "RunStatus", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
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
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(transparent)]
pub struct RunError(pub(super) JsonText);

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
        Verbatim::parse_from_json(value)
            .map(|error| Self(error.0))
            .map_err(ParseError::propagate)
    }
}

impl ToJSON for RunError {
    fn to_json(&self) -> Option<Value> {
        Some(self.0.to_tree())
    }
}

/// The credential that created a run.
#[derive(Object, Serialize, Clone, Debug)]
pub struct Creator {
    /// Its identifier.
    pub(super) id: String,
    /// Its kind: `admin` or `runner`.
    pub(super) kind: String,
}

/// A run.
#[derive(Object, Serialize, Clone, Debug)]
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
    input: Verbatim,
    /// What it gave, once it succeeded.
    #[oai(nullable)]
    output: Option<Verbatim>,
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
    /// How often it was claimed. It only grows: whoever writes results elsewhere can refuse an
    /// older attempt's.
    attempt: i32,
    /// What its holder last reported.
    #[oai(nullable)]
    progress: Option<Verbatim>,
    /// Whether somebody wants it cancelled: its holder should stop.
    cancel_requested: bool,
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
        Self::from(run.clone())
    }
}

impl From<Run> for RunView {
    fn from(run: Run) -> Self {
        Self {
            id: run.id.to_string(),
            pipeline: run.pipeline,
            pipeline_version: run.pipeline_version,
            status: run.status.into(),
            input: Verbatim(run.input),
            output: run.output.map(Verbatim),
            error: run.error.map(RunError),
            external_id: run.external_id,
            priority: run.priority,
            not_before: run.not_before.into(),
            attempt: run.attempt,
            progress: run.progress.map(Verbatim),
            cancel_requested: run.cancel_requested,
            lease_expires_at: run.lease_expires_at.map(Time),
            created_by: Creator {
                id: run.created_by_id,
                kind: run.created_by_kind,
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
        input: json!({"day": "2026-01-31"}).into(),
        output: (status == RunStatus::Succeeded).then(|| json!({"rows": 1024}).into()),
        error: (status == RunStatus::Failed)
            .then(|| json!({"message": "The file of the day is missing.", "code": 2}).into()),
        external_id: Some("import-2026-01-31".into()),
        priority: 5,
        not_before: at,
        attempt: i32::from(started),
        progress: started.then(|| json!({"percent": 100}).into()),
        cancel_requested: status == RunStatus::Cancelled,
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
#[derive(Object, Serialize, Clone)]
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
#[derive(Object, Serialize, Clone)]
#[oai(example)]
pub struct CreatedRunView {
    #[oai(flatten)]
    #[serde(flatten)]
    run: RunView,
    /// The claim; absent unless `claim` was true and the run is new.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
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
#[derive(Object, Serialize, Clone)]
#[oai(example)]
pub struct ClaimedRun {
    #[oai(flatten)]
    #[serde(flatten)]
    run: RunView,
    /// The claim.
    claim: Claim,
}

impl From<Claimed> for ClaimedRun {
    fn from(claimed: Claimed) -> Self {
        Self {
            run: RunView::from(claimed.run),
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
#[derive(Object, Serialize, Clone)]
#[oai(example)]
pub struct ClaimedRuns {
    /// As many as there were, up to `max`; none is an ordinary answer.
    pub(super) items: Vec<ClaimedRun>,
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
    /// What the run is given: any JSON that the pipeline's input schema takes, at most 256 KiB, and
    /// 50 000 values where there is a schema. It is handed on as it came, to the byte.
    pub(super) input: Verbatim,
    /// The caller's name for the run, unique within the pipeline.
    #[oai(validator(min_length = 1, max_length = 200))]
    pub(super) external_id: Option<String>,
    /// 0 goes first.
    #[oai(
        default = "priority_default",
        validator(minimum(value = "0"), maximum(value = "9"))
    )]
    pub(super) priority: i32,
    /// When it may be claimed at the earliest.
    pub(super) not_before: Option<Time>,
    /// Whether whoever creates it also claims it; takes a runner token.
    #[oai(default)]
    pub(super) claim: bool,
}

const fn priority_default() -> i32 {
    5
}

impl Example for NewRunBody {
    fn example() -> Self {
        Self {
            input: json!({"day": "2026-01-31"}).into(),
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
    pub(super) pipelines: Option<Vec<String>>,
    /// At most so many.
    #[oai(
        default = "max_default",
        validator(minimum(value = "1"), maximum(value = "100"))
    )]
    pub(super) max: u32,
    /// How long to wait for one if there is none now, seconds.
    #[oai(default, validator(minimum(value = "0"), maximum(value = "60")))]
    pub(super) wait_seconds: u32,
}

const fn max_default() -> u32 {
    1
}

impl Example for ClaimBody {
    fn example() -> Self {
        Self {
            pipelines: Some(vec!["nightly-import".into()]),
            max: max_default(),
            wait_seconds: 20,
        }
    }
}

/// How a run ended well.
#[derive(Object, Clone, Debug)]
#[oai(example, deny_unknown_fields)]
pub struct CompleteBody {
    /// What it gives: any JSON that its pipeline version's output schema takes, at most 256 KiB, and
    /// 50 000 values where there is a schema. It is handed on as it came, to the byte.
    pub(super) output: Verbatim,
}

impl Example for CompleteBody {
    fn example() -> Self {
        Self {
            output: json!({"rows": 1024}).into(),
        }
    }
}

/// How a run ended badly.
#[derive(Object, Clone, Debug)]
#[oai(deny_unknown_fields)]
pub struct FailBody {
    /// Why.
    pub(super) error: RunError,
    /// Whether another try may do better: the run waits (5 s, doubled with each failure up to an
    /// hour, ±20 %) and is queued again, as long as the pipeline's `max_attempts` allow.
    #[oai(default)]
    pub(super) retryable: bool,
}

/// What a runner at work reports.
#[derive(Object, Clone, Debug, Default)]
#[oai(example, deny_unknown_fields)]
pub struct HeartbeatBody {
    /// How far it is: any JSON but null, at most 16 KiB. Shown with the run; the next holder
    /// finds it there.
    #[oai(skip_serializing_if_is_none)]
    pub(super) progress: Option<Verbatim>,
}

impl Example for HeartbeatBody {
    fn example() -> Self {
        Self {
            progress: Some(json!({"percent": 40}).into()),
        }
    }
}

/// A lease that was extended.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Heartbeat", example)]
pub struct HeartbeatView {
    /// Until when the claim holds now.
    lease_expires_at: Time,
    /// Whether somebody wants the run cancelled: its holder should stop, and release or fail it.
    cancel_requested: bool,
}

impl HeartbeatView {
    /// Of a run that is held.
    pub(super) fn of(run: &Run) -> Option<Self> {
        Some(Self {
            lease_expires_at: run.lease_expires_at?.into(),
            cancel_requested: run.cancel_requested,
        })
    }
}

impl Example for HeartbeatView {
    fn example() -> Self {
        Self {
            lease_expires_at: Timestamp::from_ms(1_769_861_100_000).into(),
            cancel_requested: false,
        }
    }
}

/// Which runs to cancel: those that pass all that is given. An empty object means every one.
#[derive(Object, Clone, Debug)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
pub struct CancelBody {
    /// Only runs of this pipeline.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    pipeline: Option<String>,
    /// Only runs that stand here; finished ones can't be cancelled.
    status: Option<Unfinished>,
    /// Only runs of this external identifier.
    #[oai(validator(min_length = 1, max_length = 200))]
    external_id: Option<String>,
    /// Only runs created at or after this time.
    since: Option<Time>,
    /// Only runs created before this time.
    until: Option<Time>,
}

impl From<CancelBody> for RunFilter {
    fn from(body: CancelBody) -> Self {
        Self {
            pipeline: body.pipeline,
            status: body.status.map(|status| match status {
                Unfinished::Queued => RunStatus::Queued,
                Unfinished::Running => RunStatus::Running,
            }),
            external_id: body.external_id,
            since: body.since.map(|at| at.0),
            until: body.until.map(|at| at.0),
        }
    }
}

impl Example for CancelBody {
    fn example() -> Self {
        Self {
            pipeline: Some("nightly-import".into()),
            status: Some(Unfinished::Queued),
            external_id: None,
            since: None,
            until: None,
        }
    }
}

/// Where a run that is not finished stands.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "UnfinishedStatus", rename_all = "snake_case")]
pub enum Unfinished {
    /// Waits for a runner.
    Queued,
    /// A runner holds its claim.
    Running,
}

/// What a bulk cancellation did.
#[derive(Object, Clone, Debug)]
#[oai(rename = "CancelledRuns", example)]
pub struct CancelledRuns {
    /// Runs that waited, and are cancelled.
    cancelled: u64,
    /// Runs that are held: their holders learn of it with their next heartbeat.
    requested: u64,
    /// Whether there are more: the same request again goes on.
    more: bool,
}

impl From<&BulkCancelled> for CancelledRuns {
    fn from(done: &BulkCancelled) -> Self {
        Self {
            cancelled: done.cancelled,
            requested: done.requested,
            more: done.more,
        }
    }
}

impl Example for CancelledRuns {
    fn example() -> Self {
        Self {
            cancelled: 12,
            requested: 1,
            more: false,
        }
    }
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
            assert_eq!(shown, run.without_input().to_tree(), "{}", status.as_str());
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
    fn a_failure_keeps_the_runners_own_members() {
        let text = r#"{"trace": [1e2], "message": "x"}"#;
        let error = RunError::parse_from_json(Some(text.into())).unwrap();
        assert_eq!(serde_json::to_string(&error).unwrap(), text);
        assert!(RunError::parse_from_json(Some(json!({"message": "x"}))).is_err());
    }
}
