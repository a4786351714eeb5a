//! How a run's row changes, and how many rows are written at once.

use std::time::Duration;

use domain::{
    Code, Timestamp,
    audit::Actor,
    event::OwnType,
    run::{RunChange, RunStatus, TimelineEntryKind, Tries, backoff},
    token::TokenHash,
};
use sea_orm::ConnectionTrait as _;
use uuid::Uuid;

use super::{carried, run::status_of};
use crate::{
    store::{
        db::Tx,
        entity::{run_timeline, runs},
        error::{Result, corrupt_row},
        sql::{self, Sql},
        storage,
    },
    webhooks::events::{self, NewEvent},
};

/// Progress and calls beyond this revision of a run are not recorded, so that no timeline grows
/// without limit.
pub(super) const TIMELINE_REVISIONS: i64 = 10_000;

/// The values that decide a run's next state.
pub(super) fn tries_of(row: &runs::Model) -> Tries {
    Tries {
        failures: u32::try_from(row.failures).unwrap_or(0),
        max_attempts: u32::try_from(row.max_attempts).unwrap_or(1),
        cancel_requested: row.cancel_requested,
        expires_at: row.expires_at.map(Timestamp::from_ms),
    }
}

/// Changes a row's state. Returns `false`, and changes nothing, if `change` is not allowed in that
/// state.
///
/// The caller sets the claim, the lease and results.
pub(super) fn advance(row: &mut runs::Model, change: RunChange, now: Timestamp) -> Result<bool> {
    let Some(status) = status_of(row)?.after(change) else {
        return Ok(false);
    };
    status.as_str().clone_into(&mut row.status);
    row.revision += 1;
    match change {
        RunChange::Claim => {
            row.attempt += 1;
            row.started_at.get_or_insert(now.ms());
        }
        RunChange::Heartbeat => {
            row.lease_expires_at = Some(now.plus(lease_of(row)).ms());
        }
        RunChange::Retry => {
            row.failures += 1;
            let wait = backoff(u32::try_from(row.failures).unwrap_or(1));
            row.not_before = now.plus(wait).ms();
            row.ready = false;
        }
        RunChange::LoseLease => {
            row.failures += 1;
            row.ready = true;
        }
        RunChange::Release => row.ready = true,
        RunChange::Cancel | RunChange::RequestCancel => row.cancel_requested = true,
        RunChange::Complete
        | RunChange::Fail
        | RunChange::Stop
        | RunChange::Abandon
        | RunChange::Expire => {}
    }
    if status != RunStatus::Running {
        row.claim_hash = None;
        row.claimed_by = None;
        row.lease_expires_at = None;
    }
    if status.is_final() {
        let days = u64::try_from(row.retention_days).unwrap_or(0);
        row.finished_at = Some(now.ms());
        row.sweep_at = Some(now.plus(Duration::from_secs(days * 24 * 3600)).ms());
    }
    Ok(true)
}

/// How long a claim holds without a heartbeat.
pub(super) fn lease_of(row: &runs::Model) -> Duration {
    Duration::from_secs(u64::try_from(row.lease_seconds).unwrap_or(0))
}

/// Gives a queued row to a new claim.
pub(super) fn take(
    row: &mut runs::Model,
    hash: TokenHash,
    actor: &Actor,
    now: Timestamp,
) -> Result<()> {
    if !advance(row, RunChange::Claim, now)? {
        return Err(corrupt_row("run that waits"));
    }
    row.claim_hash = Some(hash.as_bytes().to_vec());
    row.claimed_by = Some(actor.id.clone());
    row.lease_expires_at = Some(now.plus(lease_of(row)).ms());
    Ok(())
}

/// What a transaction writes about runs besides their rows: timeline entries and events, in order.
#[derive(Default)]
pub(super) struct RunEvents {
    timeline: Vec<run_timeline::Model>,
    /// Publisher, type, data (JSON text) and pipeline of each event.
    events: Vec<(Uuid, OwnType, String, String)>,
}

impl RunEvents {
    /// Records a change of a run: a timeline entry and, if the run reached a new state, an event.
    /// `actor` is `None` if the service made the change, `data` is JSON text.
    pub(super) fn record(
        &mut self,
        tx: &Tx,
        row: &runs::Model,
        kind: TimelineEntryKind,
        actor: Option<&Actor>,
        data: Option<String>,
    ) -> Result<()> {
        tx.changes_run(row.id);
        if row.status == RunStatus::Queued.as_str() && row.ready {
            tx.readies_runs_of(row.publisher_id);
        }
        self.timeline.push(run_timeline::Model {
            publisher_id: row.publisher_id,
            run_id: row.id,
            seq: row.revision,
            at: tx.now.ms(),
            moment: kind.as_str().to_owned(),
            attempt: row.attempt,
            actor_kind: actor.map(|actor| actor.kind.as_str().to_owned()),
            actor_id: actor.map(|actor| actor.id.clone()),
            data,
        });
        if kind == TimelineEntryKind::Created
            || kind == TimelineEntryKind::Claimed
            || kind.is_last()
        {
            let event = OwnType::of_run(status_of(row)?);
            let data = carried::event_data(row)?;
            let pipeline = row.pipeline_slug.clone();
            self.events.push((row.publisher_id, event, data, pipeline));
        }
        Ok(())
    }

    /// Writes everything. The runs' rows must exist.
    pub(super) async fn write(self, tx: &Tx) -> Result<()> {
        for row in &self.timeline {
            let data = row.data.as_ref().map_or(0, String::len);
            tx.stores(row.publisher_id, storage::ENTRY + data);
        }
        sql::insert(tx.db(), self.timeline, "").await?;
        let events: Vec<(Uuid, NewEvent<'_>)> = self
            .events
            .iter()
            .map(|(publisher, event, data, pipeline)| {
                let new = NewEvent {
                    event_type: event.as_str(),
                    data,
                    pipeline: Some(pipeline),
                };
                (*publisher, new)
            })
            .collect();
        let events: Vec<(Uuid, &NewEvent<'_>)> =
            events.iter().map(|(of, new)| (*of, new)).collect();
        events::emit_many(tx, &events).await
    }
}

/// Makes a change of state and records it.
///
/// # Errors
/// `claim_lost` if the run's state does not allow it.
pub(super) fn step(
    tx: &Tx,
    row: &mut runs::Model,
    change: RunChange,
    actor: Option<&Actor>,
    data: Option<String>,
    events: &mut RunEvents,
) -> Result<()> {
    if !advance(row, change, tx.now)? {
        return Err(Code::ClaimLost.into());
    }
    events.record(tx, row, TimelineEntryKind::of(change), actor, data)
}

/// Cancels a queued run, or asks the holder of a running one to stop.
pub(super) fn cancel(
    tx: &Tx,
    row: &mut runs::Model,
    actor: Option<&Actor>,
    events: &mut RunEvents,
) -> Result<()> {
    match status_of(row)? {
        RunStatus::Queued => step(tx, row, RunChange::Cancel, actor, None, events),
        // The holder was asked before.
        RunStatus::Running if row.cancel_requested => Ok(()),
        RunStatus::Running => step(tx, row, RunChange::RequestCancel, actor, None, events),
        _ => Err(Code::RunFinished.into()),
    }
}

/// Writes the changeable columns of existing rows, several rows with each statement.
pub(super) async fn save_all(tx: &Tx, rows: &[&runs::Model]) -> Result<()> {
    let backend = sea_orm::ConnectionTrait::get_database_backend(tx.db());
    for part in sql::parts(rows.to_vec()) {
        let mut sql = Sql::new(
            "WITH v (publisher_id, id, status, output, error, progress, attempt, failures, \
             cancel_requested, not_before, ready, claim_hash, claimed_by, lease_expires_at, \
             revision, started_at, finished_at, sweep_at) AS (",
        );
        sql.values(part.iter().map(|row| {
            vec![
                row.publisher_id.into(),
                row.id.into(),
                row.status.as_str().into(),
                row.output.clone().into(),
                row.error.clone().into(),
                row.progress.clone().into(),
                row.attempt.into(),
                row.failures.into(),
                row.cancel_requested.into(),
                row.not_before.into(),
                row.ready.into(),
                row.claim_hash.clone().into(),
                row.claimed_by.clone().into(),
                row.lease_expires_at.into(),
                row.revision.into(),
                row.started_at.into(),
                row.finished_at.into(),
                row.sweep_at.into(),
            ]
        }));
        sql.push(
            ") UPDATE runs SET status = v.status, output = v.output, error = v.error, \
             progress = v.progress, attempt = v.attempt, failures = v.failures, \
             cancel_requested = v.cancel_requested, not_before = v.not_before, ready = v.ready, \
             claim_hash = v.claim_hash, claimed_by = v.claimed_by, \
             lease_expires_at = v.lease_expires_at, revision = v.revision, \
             started_at = v.started_at, finished_at = v.finished_at, sweep_at = v.sweep_at \
             FROM v WHERE runs.publisher_id = v.publisher_id AND runs.id = v.id",
        );
        tx.db().execute_raw(sql.statement(backend)).await?;
    }
    Ok(())
}
