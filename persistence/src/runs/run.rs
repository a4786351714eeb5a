//! The types of runs.

use domain::{
    JsonText, Timestamp,
    id::{Id as _, RunId},
    run::RunStatus,
};
use sea_orm::sea_query::{Expr, ExprTrait as _, SimpleExpr};
use secrecy::SecretString;

use crate::store::{
    entity::runs,
    error::{Result, corrupt_row},
    page::bytes_of,
};

/// One execution of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The run's identifier.
    pub id: RunId,
    /// The pipeline's slug.
    pub pipeline: String,
    /// The version of the pipeline that it was created with.
    pub pipeline_version: i64,
    /// The run's state.
    pub status: RunStatus,
    /// The input.
    pub input: JsonText,
    /// The output, if the run succeeded.
    pub output: Option<JsonText>,
    /// The error, if the run failed.
    pub error: Option<JsonText>,
    /// The caller's name for it, unique within the pipeline.
    pub external_id: Option<String>,
    /// 0 to 9; 0 goes first.
    pub priority: i32,
    /// When it may be claimed at the earliest.
    pub not_before: Timestamp,
    /// How often the run was claimed. It only grows, so it also distinguishes an older holder's
    /// writes from a newer one's.
    pub attempt: i32,
    /// The progress that the holder last reported.
    pub progress: Option<JsonText>,
    /// Whether cancellation was requested.
    pub cancel_requested: bool,
    /// When the current lease ends.
    pub lease_expires_at: Option<Timestamp>,
    /// The credential that created it.
    pub created_by_id: String,
    /// That credential's kind.
    pub created_by_kind: String,
    /// Increased with each change of this row.
    pub revision: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was first claimed.
    pub started_at: Option<Timestamp>,
    /// When it reached a final state.
    pub finished_at: Option<Timestamp>,
}

fn parsed(text: String) -> Result<JsonText> {
    JsonText::parse(text).ok_or_else(|| corrupt_row("JSON text of a run"))
}

/// The SQL expression for the bytes of a run's own JSON. The next function computes them from a
/// row.
pub(super) fn bytes() -> SimpleExpr {
    use runs::Column;
    bytes_of(Expr::col(Column::Input))
        .add(bytes_of(Expr::col(Column::Output)))
        .add(bytes_of(Expr::col(Column::Error)))
        .add(bytes_of(Expr::col(Column::Progress)))
}

pub(super) fn size_of(row: &runs::Model) -> usize {
    let results = [&row.output, &row.error, &row.progress];
    let results = results.into_iter().flatten();
    row.input.len() + results.map(String::len).sum::<usize>()
}

pub(super) fn status_of(row: &runs::Model) -> Result<RunStatus> {
    RunStatus::parse(&row.status).ok_or_else(|| corrupt_row("run status"))
}

impl Run {
    pub(super) fn of_row(row: runs::Model) -> Result<Self> {
        Ok(Self {
            id: RunId::from_uuid(row.id),
            status: status_of(&row)?,
            pipeline: row.pipeline_slug,
            pipeline_version: row.pipeline_version,
            input: parsed(row.input)?,
            output: row.output.map(parsed).transpose()?,
            error: row.error.map(parsed).transpose()?,
            external_id: row.external_id,
            priority: row.priority,
            not_before: Timestamp::from_ms(row.not_before),
            attempt: row.attempt,
            progress: row.progress.map(parsed).transpose()?,
            cancel_requested: row.cancel_requested,
            lease_expires_at: row.lease_expires_at.map(Timestamp::from_ms),
            created_by_id: row.created_by_id,
            created_by_kind: row.created_by_kind,
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            started_at: row.started_at.map(Timestamp::from_ms),
            finished_at: row.finished_at.map(Timestamp::from_ms),
        })
    }
}

/// A run with the token of its claim, which is not stored and cannot be read later.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The run.
    pub run: Run,
    /// The claim's token.
    pub token: SecretString,
    /// When the lease ends without a heartbeat.
    pub expires_at: Timestamp,
}

/// What a caller gives for a new run.
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    /// The pipeline's slug.
    pub pipeline: String,
    /// Any JSON.
    pub input: JsonText,
    /// The caller's name for it, unique within the pipeline.
    pub external_id: Option<String>,
    /// 0 to 9; 0 goes first.
    pub priority: i32,
    /// When it may be claimed at the earliest; `None` for at once.
    pub not_before: Option<Timestamp>,
    /// Whether the creator also claims the run.
    pub claim: bool,
}

/// The result of creating a run.
#[derive(Clone, Debug)]
pub struct CreatedRun {
    /// The run.
    pub run: Run,
    /// The claim's token and the end of its lease, if the creator claims the run and the run is
    /// new.
    pub claim: Option<(SecretString, Timestamp)>,
    /// Whether the pipeline had a run with the same external identifier: then `run` is that one.
    pub existed: bool,
}
