//! How a run's row changes, and how many are written at once.

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
        error::{Result, damaged},
        sql::{self, Sql},
        storage,
    },
    webhooks::events::{self, NewEvent},
};

/// Progress and calls beyond this revision of a run are not told of, so that no timeline grows
/// without end.
pub(super) const TIMELINE_REVISIONS: i64 = 10_000;

/// What a run's next step is decided by.
pub(super) fn tries_of(row: &runs::Model) -> Tries {
    Tries {
        failures: u32::try_from(row.failures).unwrap_or(0),
        max_attempts: u32::try_from(row.max_attempts).unwrap_or(1),
        cancel_requested: row.cancel_requested,
        expires_at: row.expires_at.map(Timestamp::from_ms),
    }
}

/// Changes a row's state; `false`, and nothing is changed, if it can't take `change`.
///
/// The caller adds claim and lease when a runner takes it, and results.
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

/// How long a claim holds.
pub(super) fn lease_of(row: &runs::Model) -> Duration {
    Duration::from_secs(u64::try_from(row.lease_seconds).unwrap_or(0))
}

/// Takes a row that waits under a new claim.
pub(super) fn take(
    row: &mut runs::Model,
    hash: TokenHash,
    actor: &Actor,
    now: Timestamp,
) -> Result<()> {
    if !advance(row, RunChange::Claim, now)? {
        return Err(damaged("run that waits"));
    }
    row.claim_hash = Some(hash.as_bytes().to_vec());
    row.claimed_by = Some(actor.id.clone());
    row.lease_expires_at = Some(now.plus(lease_of(row)).ms());
    Ok(())
}

/// What is to be written about runs beside their rows, in the order in which it happened.
#[derive(Default)]
pub(super) struct News {
    timeline: Vec<run_timeline::Model>,
    /// Whose, of which type, with which data (JSON text), of which pipeline.
    arrivals: Vec<(Uuid, OwnType, String, String)>,
}

impl News {
    /// Tells of what just happened to a run, by an entry of its timeline and, if the run arrived
    /// somewhere, an event. `actor` is `None` for the service's own doing, `data` is JSON text.
    pub(super) fn tell(
        &mut self,
        tx: &Tx,
        row: &runs::Model,
        moment: TimelineEntryKind,
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
            moment: moment.as_str().to_owned(),
            attempt: row.attempt,
            actor_kind: actor.map(|actor| actor.kind.as_str().to_owned()),
            actor_id: actor.map(|actor| actor.id.clone()),
            data,
        });
        if moment == TimelineEntryKind::Created
            || moment == TimelineEntryKind::Claimed
            || moment.is_last()
        {
            let event = OwnType::of_run(status_of(row)?);
            let data = carried::event_data(row)?;
            let pipeline = row.pipeline_slug.clone();
            self.arrivals
                .push((row.publisher_id, event, data, pipeline));
        }
        Ok(())
    }

    /// Writes it all; the runs' rows must be there.
    pub(super) async fn write(self, tx: &Tx) -> Result<()> {
        for row in &self.timeline {
            let data = row.data.as_ref().map_or(0, String::len);
            tx.stores(row.publisher_id, storage::ENTRY + data);
        }
        sql::insert(tx.db(), self.timeline, "").await?;
        let news: Vec<(Uuid, NewEvent<'_>)> = self
            .arrivals
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
        let news: Vec<(Uuid, &NewEvent<'_>)> = news.iter().map(|(of, new)| (*of, new)).collect();
        events::emit_many(tx, &news).await
    }
}

/// One change of state, and word of it.
pub(super) fn step(
    tx: &Tx,
    row: &mut runs::Model,
    change: RunChange,
    actor: Option<&Actor>,
    data: Option<String>,
    news: &mut News,
) -> Result<()> {
    if !advance(row, change, tx.now)? {
        return Err(Code::ClaimLost.into());
    }
    news.tell(tx, row, TimelineEntryKind::of(change), actor, data)
}

/// Calls a run off, or asks its holder to.
pub(super) fn cancel(
    tx: &Tx,
    row: &mut runs::Model,
    actor: Option<&Actor>,
    news: &mut News,
) -> Result<()> {
    match status_of(row)? {
        RunStatus::Queued => step(tx, row, RunChange::Cancel, actor, None, news),
        // Asked for already: the request stands as it is.
        RunStatus::Running if row.cancel_requested => Ok(()),
        RunStatus::Running => step(tx, row, RunChange::RequestCancel, actor, None, news),
        _ => Err(Code::RunFinished.into()),
    }
}

/// Writes what can change of rows that exist, several to a statement.
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
