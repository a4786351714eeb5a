//! Runs as requests and answers show them.

use poem_openapi::{
    Enum, Object,
    registry::{MetaSchema, MetaSchemaRef, Registry},
    types::{ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde_json::{Value, json};
use view_derive::{Example, View};

use domain::{JsonText, Timestamp, id::TokenId, run::RunStatus};
use persistence::{BulkCancelled, Claimed, CreatedRun, Run, RunFilter};

use crate::shared::{EXAMPLE_SOON, Time, Verbatim, Word, nil_id, own_value};

/// Longest message of a failure, characters.
const MESSAGE_CHARS: usize = 1000;
/// Most members of a failure.
const ERROR_MEMBERS: usize = 50;

/// Why a run failed: a message, and whatever else its runner wants to say.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(transparent)]
pub struct RunError(pub(super) JsonText);

impl From<JsonText> for RunError {
    fn from(text: JsonText) -> Self {
        Self(text)
    }
}

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
    own_value!("RunError");

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(Self::name().into_owned(), |_| Self::schema());
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
#[derive(Object, View, Serialize, Clone, Debug)]
#[view(of = Run)]
pub struct Creator {
    /// Its identifier.
    #[view(field = created_by_id)]
    pub(super) id: String,
    /// Its kind: `admin` or `runner`.
    #[view(field = created_by_kind)]
    pub(super) kind: String,
}

/// A run.
#[derive(Object, View, Example, Serialize, Clone, Debug)]
#[oai(rename = "Run", example)]
#[view(of = Run)]
#[example(sample(RunStatus::Succeeded))]
pub struct RunView {
    /// `run_…`
    id: String,
    /// The pipeline's slug.
    pipeline: String,
    /// The version of the pipeline that it was created with, and keeps.
    pipeline_version: i64,
    /// Where it stands.
    status: Word<RunStatus>,
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
    #[view(from = Creator::from(of))]
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

/// A run as examples show it.
pub(crate) fn sample(status: RunStatus) -> Run {
    let at = Timestamp::from_ms(1_769_860_800_000);
    let started = !matches!(status, RunStatus::Queued);
    Run {
        id: nil_id(),
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
        created_by_id: nil_id::<TokenId>().into(),
        created_by_kind: "runner".into(),
        revision: 1,
        created_at: at,
        started_at: started.then_some(at),
        finished_at: status.is_final().then_some(at),
    }
}

/// The proof that one holds a run. It is shown once.
#[derive(Object, Example, Serialize, Clone)]
#[oai(example)]
pub struct Claim {
    /// To send as `X-Stationmaster-Claim` when the run is finished.
    #[example("stm_claim_…")]
    token: String,
    /// When the claim ends, unless the run is finished before.
    #[example(EXAMPLE_SOON)]
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

/// A run, with its claim if that was asked for.
#[derive(Object, View, Example, Serialize, Clone)]
#[oai(example)]
#[view(of = CreatedRun)]
pub struct CreatedRunView {
    #[oai(flatten)]
    #[serde(flatten)]
    #[example(sample(RunStatus::Queued))]
    run: RunView,
    /// The claim; absent unless `claim` was true and the run is new.
    #[oai(skip_serializing_if_is_none)]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[view(from = of.claim.as_ref().map(|(token, expires_at)| Claim::of(token, *expires_at)))]
    claim: Option<Claim>,
}

/// A run and its claim.
#[derive(Object, View, Example, Serialize, Clone)]
#[oai(example)]
#[view(of = Claimed)]
pub struct ClaimedRun {
    #[oai(flatten)]
    #[serde(flatten)]
    #[example(sample(RunStatus::Running))]
    run: RunView,
    /// The claim.
    #[view(from = Claim::of(&of.token, of.expires_at))]
    claim: Claim,
}

/// Claimed runs, the one to do first at the head.
#[derive(Object, Example, Serialize, Clone)]
#[oai(example)]
pub struct ClaimedRuns {
    /// As many as there were, up to `max`; none is an ordinary answer.
    #[example([ClaimedRun::example()])]
    pub(super) items: Vec<ClaimedRun>,
}

/// A run to create.
#[derive(Object, Example, Clone, Debug)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
pub struct NewRunBody {
    /// What the run is given: any JSON that the pipeline's input schema takes, at most 256 KiB, and
    /// 50 000 values where there is a schema. It is handed on as it came, to the byte.
    #[example(json!({"day": "2026-01-31"}))]
    pub(super) input: Verbatim,
    /// The caller's name for the run, unique within the pipeline.
    #[oai(validator(min_length = 1, max_length = 200))]
    #[example("import-2026-01-31")]
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

/// Which runs to claim.
#[derive(Object, Example, Clone, Debug)]
#[oai(example, deny_unknown_fields)]
pub struct ClaimBody {
    /// Only runs of these; of all in reach if it is left out.
    #[oai(validator(
        min_items = 1,
        max_items = 50,
        unique_items,
        pattern = "^[a-z0-9][a-z0-9-]{0,62}$"
    ))]
    #[example(["nightly-import"])]
    pub(super) pipelines: Option<Vec<String>>,
    /// At most so many.
    #[oai(
        default = "max_default",
        validator(minimum(value = "1"), maximum(value = "100"))
    )]
    pub(super) max: u32,
    /// How long to wait for one if there is none now, seconds.
    #[oai(default, validator(minimum(value = "0"), maximum(value = "60")))]
    #[example(20)]
    pub(super) wait_seconds: u32,
}

const fn max_default() -> u32 {
    1
}

/// How a run ended well.
#[derive(Object, Example, Clone, Debug)]
#[oai(example, deny_unknown_fields)]
pub struct CompleteBody {
    /// What it gives: any JSON that its pipeline version's output schema takes, at most 256 KiB, and
    /// 50 000 values where there is a schema. It is handed on as it came, to the byte.
    #[example(json!({"rows": 1024}))]
    pub(super) output: Verbatim,
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
#[derive(Object, Example, Clone, Debug, Default)]
#[oai(example, deny_unknown_fields)]
pub struct HeartbeatBody {
    /// How far it is: any JSON but null, at most 16 KiB. Shown with the run; the next holder
    /// finds it there.
    #[oai(skip_serializing_if_is_none)]
    #[example(json!({"percent": 40}))]
    pub(super) progress: Option<Verbatim>,
}

/// A lease that was extended.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "Heartbeat", example)]
pub struct HeartbeatView {
    /// Until when the claim holds now.
    #[example(EXAMPLE_SOON)]
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

/// Which runs to cancel: those that pass all that is given. An empty object means every one.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(example, deny_unknown_fields, skip_serializing_if_is_none)]
#[view(into = RunFilter)]
pub struct CancelBody {
    /// Only runs of this pipeline.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    #[example("nightly-import")]
    pipeline: Option<String>,
    /// Only runs that stand here; finished ones can't be cancelled.
    #[example(Unfinished::Queued)]
    status: Option<Unfinished>,
    /// Only runs of this external identifier.
    #[oai(validator(min_length = 1, max_length = 200))]
    external_id: Option<String>,
    /// Only runs created at or after this time.
    since: Option<Time>,
    /// Only runs created before this time.
    until: Option<Time>,
}

/// Where a run that is not finished stands.
#[derive(Enum, View, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "UnfinishedStatus", rename_all = "snake_case")]
#[view(into = RunStatus)]
pub enum Unfinished {
    /// Waits for a runner.
    Queued,
    /// A runner holds its claim.
    Running,
}

/// What a bulk cancellation did.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "CancelledRuns", example)]
#[view(of = BulkCancelled)]
pub struct CancelledRuns {
    /// Runs that waited, and are cancelled.
    #[example(12)]
    cancelled: u64,
    /// Runs that are held: their holders learn of it with their next heartbeat.
    #[example(1)]
    requested: u64,
    /// Whether there are more: the same request again goes on.
    more: bool,
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
