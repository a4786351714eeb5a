//! What a run is.

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
    /// Which one.
    pub id: RunId,
    /// The pipeline's slug.
    pub pipeline: String,
    /// The version of the pipeline that it was created with.
    pub pipeline_version: i64,
    /// Where it stands.
    pub status: RunStatus,
    /// What it was given.
    pub input: JsonText,
    /// What it gave, once it succeeded.
    pub output: Option<JsonText>,
    /// Why it failed, once it did.
    pub error: Option<JsonText>,
    /// The caller's name for it, unique within the pipeline.
    pub external_id: Option<String>,
    /// 0 to 9; 0 goes first.
    pub priority: i32,
    /// When it may be claimed at the earliest.
    pub not_before: Timestamp,
    /// How often it was claimed. It only grows, so it also tells an older holder's writes from a
    /// newer one's.
    pub attempt: i32,
    /// What its holder last reported.
    pub progress: Option<JsonText>,
    /// Whether somebody wants it called off.
    pub cancel_requested: bool,
    /// Until when its present claim holds.
    pub lease_expires_at: Option<Timestamp>,
    /// The credential that created it.
    pub created_by_id: String,
    /// That credential's kind.
    pub created_by_kind: String,
    /// Counts changes of this row.
    pub revision: i64,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was first claimed.
    pub started_at: Option<Timestamp>,
    /// When it reached a final status.
    pub finished_at: Option<Timestamp>,
}

fn parsed(text: String) -> Result<JsonText> {
    JsonText::parse(text).ok_or_else(|| corrupt_row("JSON text of a run"))
}

/// What a run's own JSON takes, in bytes: as the database says it, and of a row that was read.
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

/// A run together with the proof that one holds it: the only time that it is at hand.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The run.
    pub run: Run,
    /// What finishing it takes.
    pub token: SecretString,
    /// Until when the claim holds.
    pub expires_at: Timestamp,
}

/// What a new run is given.
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
    /// When it may be claimed at the earliest; at once if absent.
    pub not_before: Option<Timestamp>,
    /// Whether whoever creates it also claims it.
    pub claim: bool,
}

/// A run that was asked for.
#[derive(Clone, Debug)]
pub struct CreatedRun {
    /// The run.
    pub run: Run,
    /// The claim, if it was asked for and the run is new, and until when it holds.
    pub claim: Option<(SecretString, Timestamp)>,
    /// Whether the pipeline had a run of that external identifier already: this one.
    pub existed: bool,
}
