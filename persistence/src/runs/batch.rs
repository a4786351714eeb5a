//! Many changes of runs in one transaction, with one statement for each table, however many callers
//! there are.
//!
//! Each change is checked by itself, in memory, on rows that the transaction has locked. If one is
//! refused, the others are still made.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use domain::{
    Code, FaultCode, JsonText, Problem, Timestamp,
    audit::Actor,
    id::{Id as _, RunId},
    run::{RunChange, RunStatus, TimelineEntryKind},
    token::{self, Prefix, TokenHash},
};
use sea_orm::{
    EntityTrait as _, IdenStatic as _, Iterable as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Select,
    sea_query::{Expr, ExprTrait as _, LockType},
};
use secrecy::SecretString;
use uuid::Uuid;

use super::{
    capacity::RunCapacity,
    changes::{Change, Create, What},
    claims::{self, Claim},
    row::{RunEvents, TIMELINE_REVISIONS, advance, cancel, save_all, step, take, tries_of},
    run::{Claimed, CreatedRun, Run},
};
use crate::{
    runs::{pipelines::Pipeline, versions::Definitions},
    store::{
        Store,
        db::Tx,
        entity::{pipelines, runs},
        error::{PipelineVersion, Result, StoreError, corrupt_row},
        sql::{self, padded},
        storage,
    },
    webhooks::own_events::{Publish, PublishedEvent, publish_all},
};

/// Changes to make in one transaction.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) creates: Vec<Arc<Create>>,
    pub(crate) changes: Vec<Arc<Change>>,
    pub(crate) claims: Vec<Arc<Claim>>,
    pub(crate) publishes: Vec<Publish>,
}

/// The results, in the same order.
#[derive(Default)]
pub(crate) struct BatchResults {
    pub(crate) creates: Vec<Result<CreatedRun>>,
    pub(crate) changes: Vec<Result<Run, Problem>>,
    pub(crate) claims: Vec<Vec<Claimed>>,
    pub(crate) publishes: Vec<Result<Vec<PublishedEvent>, Problem>>,
}

/// Makes the changes. Those of existing runs come first, since they may free capacity of pipelines.
pub(crate) async fn apply(store: &Store, tx: &Tx, batch: &Batch) -> Result<BatchResults> {
    let mut events = RunEvents::default();
    let changes = change_all(tx, &batch.changes, &mut events).await?;
    let creates = create_all(store, tx, &batch.creates, &mut events).await?;
    let claims = claims::claim_all(store, tx, &batch.claims, &mut events).await?;
    events.write(tx).await?;
    let publishes = publish_all(tx, &batch.publishes).await?;
    Ok(BatchResults {
        creates,
        changes,
        claims,
        publishes,
    })
}

/// Locks runs and reads them. The order is always the same, so that two batches cannot deadlock.
async fn held_rows(tx: &Tx, keys: BTreeSet<(Uuid, Uuid)>) -> Result<HashMap<Uuid, runs::Model>> {
    let rows = hold(tx, runs::Entity::find(), keys).await?;
    Ok(rows.into_iter().map(|row| (row.id, row)).collect())
}

/// Like [`held_rows`] without inputs, which may be large: they are empty in the result. In the
/// order of the runs.
pub(super) async fn held_without_inputs(
    tx: &Tx,
    keys: BTreeSet<(Uuid, Uuid)>,
) -> Result<Vec<runs::Model>> {
    use runs::Column;
    let others = Column::iter().filter(|column| !matches!(column, Column::Input));
    let find = runs::Entity::find()
        .select_only()
        .columns(others)
        .column_as(Expr::val(""), Column::Input.as_str());
    hold(tx, find, keys).await
}

async fn hold(
    tx: &Tx,
    find: Select<runs::Entity>,
    keys: BTreeSet<(Uuid, Uuid)>,
) -> Result<Vec<runs::Model>> {
    use runs::Column;
    let key = Expr::tuple([Expr::col(Column::PublisherId), Expr::col(Column::Id)]);
    let rows = find
        .filter(key.in_tuples(padded(keys)))
        .order_by_asc(Column::PublisherId)
        .order_by_asc(Column::Id)
        .lock(LockType::NoKeyUpdate)
        .all(tx.db())
        .await?;
    Ok(rows)
}

async fn change_all(
    tx: &Tx,
    changes: &[Arc<Change>],
    events: &mut RunEvents,
) -> Result<Vec<Result<Run, Problem>>> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let keys = changes
        .iter()
        .map(|change| (change.scope.uuid(), change.run.uuid()));
    let mut rows = held_rows(tx, keys.collect()).await?;
    let mut touched = HashSet::new();
    let mut done = Vec::with_capacity(changes.len());
    for change in changes {
        let row = rows
            .get_mut(&change.run.uuid())
            .filter(|row| row.publisher_id == change.scope.uuid())
            .filter(|row| change.scope.reaches(&row.pipeline_slug));
        let Some(row) = row else {
            done.push(Err(Problem::not_found()));
            continue;
        };
        let outcome = match change_row(tx, row, change, events) {
            Ok(()) => Ok(Run::of_row(row.clone())?),
            Err(StoreError::Refused(problem)) => Err(problem),
            Err(error) => return Err(error),
        };
        if outcome.is_ok() {
            touched.insert(row.id);
            // The pipeline may limit how many runs are held, and this one is not held any more.
            tx.readies_runs_of(row.publisher_id);
        }
        done.push(outcome);
    }
    let touched: Vec<&runs::Model> = touched.iter().filter_map(|id| rows.get(id)).collect();
    save_all(tx, &touched).await?;
    Ok(done)
}

/// Checks and makes one change, on the row in memory.
fn change_row(
    tx: &Tx,
    row: &mut runs::Model,
    change: &Change,
    events: &mut RunEvents,
) -> Result<()> {
    let (now, actor) = (tx.now, Some(&change.actor));
    match &change.what {
        What::Complete { claim, output } => {
            check_claim(row, claim, now)?;
            row.output = Some(output.to_string());
            // Errors of earlier attempts are in the timeline. A run that succeeded has no error.
            let replaced = row.error.take().map_or(0, |error| error.len());
            step(tx, row, RunChange::Complete, actor, None, events)?;
            let bytes = row.output.as_ref().map_or(0, String::len);
            tx.stores(row.publisher_id, bytes);
            tx.removes(row.publisher_id, i64::try_from(replaced).unwrap_or(0));
            Ok(())
        }
        What::Fail {
            claim,
            error,
            retryable,
        } => {
            check_claim(row, claim, now)?;
            let replaced = row.error.as_ref().map_or(0, String::len);
            row.error = Some(error.to_string());
            let data = format!(r#"{{"error":{error}}}"#);
            let change = tries_of(row).at_failure(*retryable, now);
            step(tx, row, change, actor, Some(data), events)?;
            tx.stores(row.publisher_id, row.error.as_ref().map_or(0, String::len));
            tx.removes(row.publisher_id, i64::try_from(replaced).unwrap_or(0));
            Ok(())
        }
        What::Release { claim } => {
            check_claim(row, claim, now)?;
            let change = tries_of(row).at_release();
            step(tx, row, change, actor, None, events)
        }
        What::Heartbeat { claim, progress } => {
            check_claim(row, claim, now)?;
            heartbeat(tx, row, progress.as_ref(), actor, events)
        }
        What::Cancel => cancel(tx, row, actor, events),
    }
}

fn heartbeat(
    tx: &Tx,
    row: &mut runs::Model,
    progress: Option<&JsonText>,
    actor: Option<&Actor>,
    events: &mut RunEvents,
) -> Result<()> {
    if !advance(row, RunChange::Heartbeat, tx.now)? {
        return Err(Code::ClaimLost.into());
    }
    let Some(progress) = progress else {
        return Ok(());
    };
    row.progress = Some(progress.to_string());
    if row.revision <= TIMELINE_REVISIONS {
        let data = format!(r#"{{"progress":{progress}}}"#);
        events.record(tx, row, TimelineEntryKind::Progress, actor, Some(data))?;
    }
    Ok(())
}

/// Fails unless the claim is the run's current one.
pub(crate) fn check_claim(row: &runs::Model, claim: &TokenHash, now: Timestamp) -> Result<()> {
    check_held(
        (row.claim_hash.as_deref(), row.lease_expires_at),
        claim,
        now,
    )
}

/// The same check for a stored hash and lease. A run that is not running has neither.
pub(crate) fn check_held(
    (hash, lease_expires_at): (Option<&[u8]>, Option<i64>),
    claim: &TokenHash,
    now: Timestamp,
) -> Result<()> {
    let stored = hash.and_then(TokenHash::from_stored);
    let matches = stored.is_some_and(|hash| hash.matches(claim));
    let holds = lease_expires_at.is_some_and(|until| until > now.ms());
    if matches && holds {
        Ok(())
    } else {
        Err(Code::ClaimLost.into())
    }
}

/// The named live pipelines, locked so that none can be deleted before the transaction ends. These
/// locks conflict neither with each other nor with a new version.
///
/// Rows and definitions are read by two statements: in one joined statement PostgreSQL would drop
/// the row if a new version was stored meanwhile.
async fn hold_all(
    store: &Store,
    tx: &Tx,
    names: BTreeSet<(Uuid, String)>,
) -> Result<HashMap<(Uuid, String), Pipeline>> {
    use pipelines::Column;
    let name = Expr::tuple([Expr::col(Column::PublisherId), Expr::col(Column::LiveSlug)]);
    let rows = pipelines::Entity::find()
        .filter(name.in_tuples(padded(names)))
        .order_by_asc(Column::PublisherId)
        .order_by_asc(Column::Id)
        .lock(LockType::KeyShare)
        .all(tx.db())
        .await?;
    let keys = rows
        .iter()
        .map(|row| (row.publisher_id, row.id, row.version));
    let definitions = store.state::<Definitions>().of(tx.db(), keys).await?;
    rows.into_iter()
        .map(|row| {
            let definition = definitions.get(&(row.publisher_id, row.id, row.version));
            let definition = definition.ok_or_else(|| corrupt_row("pipeline version"))?;
            let name = (row.publisher_id, row.slug.clone());
            let pipeline = Pipeline::of_rows(row, Arc::clone(definition));
            let version = PipelineVersion::of(&pipeline);
            store.state::<Definitions>().saw(name.0, &name.1, version);
            Ok((name, pipeline))
        })
        .collect()
}

/// A run to insert, and the claim of its creator.
struct Draft {
    at: usize,
    row: runs::Model,
    claim: Option<SecretString>,
}

async fn create_all(
    store: &Store,
    tx: &Tx,
    creates: &[Arc<Create>],
    events: &mut RunEvents,
) -> Result<Vec<Result<CreatedRun>>> {
    if creates.is_empty() {
        return Ok(Vec::new());
    }
    let names = creates
        .iter()
        .map(|create| (create.scope.uuid(), create.new.pipeline.clone()));
    let pipelines = hold_all(store, tx, names.collect()).await?;
    let mut capacity = RunCapacity::of(tx, creates, &pipelines).await?;
    let mut done: Vec<Option<Result<CreatedRun>>> = Vec::new();
    let mut drafts = Vec::with_capacity(creates.len());
    for (at, create) in creates.iter().enumerate() {
        match draft(tx, create, &pipelines, &mut capacity) {
            Ok((row, claim)) => {
                drafts.push(Draft { at, row, claim });
                done.push(None);
            }
            Err(refused @ (StoreError::Refused(_) | StoreError::VersionChanged(_))) => {
                done.push(Some(Err(refused)));
            }
            Err(error) => return Err(error),
        }
    }
    let existing = insert_all(tx, &drafts).await?;
    for draft in drafts {
        let result = match existing.get(&draft.row.id) {
            Some(first) => CreatedRun {
                run: Run::of_row(first.clone())?,
                claim: None,
                existed: true,
            },
            None => record_created(tx, draft.row, draft.claim, &creates[draft.at].actor, events)?,
        };
        done[draft.at] = Some(Ok(result));
    }
    done.into_iter()
        .map(|done| done.ok_or_else(|| corrupt_row("batch of runs")))
        .collect()
}

/// Records that a run was inserted. A claimed one is recorded as queued first.
fn record_created(
    tx: &Tx,
    row: runs::Model,
    claim: Option<SecretString>,
    actor: &Actor,
    events: &mut RunEvents,
) -> Result<CreatedRun> {
    let mut claimed = None;
    if let Some(token) = claim {
        let queued = runs::Model {
            status: RunStatus::Queued.as_str().to_owned(),
            attempt: 0,
            claim_hash: None,
            claimed_by: None,
            lease_expires_at: None,
            started_at: None,
            revision: 1,
            ready: false,
            ..row.clone()
        };
        events.record(tx, &queued, TimelineEntryKind::Created, Some(actor), None)?;
        events.record(tx, &row, TimelineEntryKind::Claimed, Some(actor), None)?;
        let until = row.lease_expires_at.ok_or_else(|| corrupt_row("lease"))?;
        claimed = Some((token, Timestamp::from_ms(until)));
    } else {
        events.record(tx, &row, TimelineEntryKind::Created, Some(actor), None)?;
    }
    Ok(CreatedRun {
        run: Run::of_row(row)?,
        claim: claimed,
        existed: false,
    })
}

fn draft(
    tx: &Tx,
    create: &Create,
    pipelines: &HashMap<(Uuid, String), Pipeline>,
    capacity: &mut RunCapacity,
) -> Result<(runs::Model, Option<SecretString>)> {
    let (new, owner) = (&create.new, create.scope.uuid());
    let pipeline = pipelines
        .get(&(owner, new.pipeline.clone()))
        .filter(|found| create.scope.reaches(&found.slug))
        .ok_or_else(Problem::not_found)?;
    create.check_input(pipeline)?;
    let mut row = queued_row(create, pipeline, tx.now)?;
    if !new.claim {
        return Ok((row, None));
    }
    if !row.ready {
        let detail = "A run that is claimed at once can't wait.";
        return Err(Problem::field("/not_before", FaultCode::NotAllowed, detail).into());
    }
    if pipeline.paused_at.is_some() {
        return Err(Code::PipelinePaused.into());
    }
    if !capacity.take(pipeline.id.uuid()) {
        return Err(Code::ConcurrencyLimit.into());
    }
    let token = token::generate(Prefix::Claim);
    take(
        &mut row,
        TokenHash::of_secret(&token),
        &create.actor,
        tx.now,
    )?;
    Ok((row, Some(token)))
}

fn bounded(value: u32, what: &str) -> Result<i32> {
    i32::try_from(value).map_err(|_| corrupt_row(what))
}

/// The row of a new queued run.
fn queued_row(create: &Create, pipeline: &Pipeline, now: Timestamp) -> Result<runs::Model> {
    let (new, definition) = (&create.new, &pipeline.definition);
    let not_before = new.not_before.unwrap_or(now);
    let ttl = definition.time_to_live_seconds;
    let expires_at = ttl.map(|seconds| now.plus(Duration::from_secs(u64::from(seconds))).ms());
    Ok(runs::Model {
        publisher_id: create.scope.uuid(),
        id: RunId::generate(now).uuid(),
        pipeline_id: pipeline.id.uuid(),
        pipeline_version: pipeline.version,
        pipeline_slug: pipeline.slug.clone(),
        status: RunStatus::Queued.as_str().to_owned(),
        input: new.input.to_string(),
        output: None,
        error: None,
        external_id: new.external_id.clone(),
        priority: new.priority,
        not_before: not_before.ms(),
        attempt: 0,
        max_attempts: bounded(definition.max_attempts, "number of attempts")?,
        lease_seconds: bounded(definition.lease_seconds, "lease")?,
        retention_days: bounded(definition.retention_days, "retention")?,
        claim_hash: None,
        claimed_by: None,
        lease_expires_at: None,
        created_by_id: create.actor.id.clone(),
        created_by_kind: create.actor.kind.as_str().to_owned(),
        revision: 1,
        created_at: now.ms(),
        started_at: None,
        finished_at: None,
        sweep_at: None,
        progress: None,
        cancel_requested: false,
        failures: 0,
        expires_at,
        ready: not_before <= now,
    })
}

/// Skips a run if its pipeline has one with the same external identifier.
const UNLESS_NAMED: &str = " ON CONFLICT (publisher_id, pipeline_id, external_id) DO NOTHING";

/// Inserts the rows, except those whose pipeline has a run with the same external identifier.
/// Returns these existing runs, by the identifier that the new run would have had.
async fn insert_all(tx: &Tx, drafts: &[Draft]) -> Result<HashMap<Uuid, runs::Model>> {
    if drafts.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = drafts.iter().map(|draft| draft.row.clone()).collect();
    let inserted = sql::insert(tx.db(), rows, UNLESS_NAMED).await?;
    let existing = if usize::try_from(inserted).is_ok_and(|inserted| inserted == drafts.len()) {
        HashMap::new()
    } else {
        first_of_names(tx, drafts).await?
    };
    let new = drafts.iter().map(|draft| &draft.row);
    for row in new.filter(|row| !existing.contains_key(&row.id)) {
        tx.stores(row.publisher_id, storage::RUN + row.input.len());
    }
    Ok(existing)
}

async fn first_of_names(tx: &Tx, drafts: &[Draft]) -> Result<HashMap<Uuid, runs::Model>> {
    use runs::Column;
    let named = drafts.iter().map(|draft| &draft.row);
    let named = named.filter_map(|row| {
        let name = row.external_id.clone()?;
        Some((row.publisher_id, row.pipeline_id, name))
    });
    let key = Expr::tuple([
        Expr::col(Column::PublisherId),
        Expr::col(Column::PipelineId),
        Expr::col(Column::ExternalId),
    ]);
    let found = runs::Entity::find()
        .filter(key.in_tuples(named.collect::<BTreeSet<_>>()))
        .all(tx.db())
        .await?;
    let mut existing = HashMap::new();
    for draft in drafts
        .iter()
        .filter(|draft| draft.row.external_id.is_some())
    {
        let same = found.iter().find(|row| {
            (row.publisher_id, row.pipeline_id) == (draft.row.publisher_id, draft.row.pipeline_id)
                && row.external_id == draft.row.external_id
        });
        let first = same.ok_or_else(|| {
            // The existing run was swept between the two statements: the transaction starts anew.
            StoreError::Conflict("a run was swept meanwhile".into())
        })?;
        if first.id != draft.row.id {
            existing.insert(draft.row.id, first.clone());
        }
    }
    Ok(existing)
}
