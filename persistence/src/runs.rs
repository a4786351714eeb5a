//! Runs: created, claimed, finished, called off, and taken back when a lease runs out.
//!
//! Every change of state goes through [`RunStatus::after`], in [`advance`], and tells of itself
//! by an event in the same transaction. A run taken back to the queue is no arrival anywhere new
//! and has no event; its next claim has.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use domain::{
    Code, Problem, Timestamp,
    event::OwnType,
    id::{Id as _, RunId},
    limits::CLAIM_MAX,
    run::{RunChange, RunStatus},
    slug::Slug,
    token::{self, Prefix, TokenHash},
};
use sea_orm::{
    ActiveModelTrait as _,
    ActiveValue::Set,
    ColumnTrait as _, DbBackend, EntityTrait as _, IntoActiveModel as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, QueryTrait as _, Statement, TryInsertResult,
    sea_query::{LockBehavior, LockType, OnConflict},
};
use secrecy::SecretString;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    change::{Answer, Context},
    db::Tx,
    entity::{pipelines, publishers, runs},
    error::{Result, StoreError, damaged},
    events::{self, NewEvent},
    page::{Page, PageRequest},
    pipelines::{Pipeline, hold},
    publishers::PublisherStatus,
    scope::{Scoped, System},
    sql::Sql,
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
    pub input: Value,
    /// What it gave, once it succeeded.
    pub output: Option<Value>,
    /// Why it failed, once it did.
    pub error: Option<Value>,
    /// The caller's name for it, unique within the pipeline.
    pub external_id: Option<String>,
    /// 0 to 9; 0 goes first.
    pub priority: i32,
    /// When it may be claimed at the earliest.
    pub not_before: Timestamp,
    /// How often it was claimed.
    pub attempt: i32,
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

fn parsed(text: &str) -> Result<Value> {
    serde_json::from_str(text).map_err(|_| damaged("JSON text of a run"))
}

fn status_of(row: &runs::Model) -> Result<RunStatus> {
    RunStatus::parse(&row.status).ok_or_else(|| damaged("run status"))
}

impl Run {
    fn of_row(row: runs::Model) -> Result<Self> {
        Ok(Self {
            id: RunId::from_uuid(row.id),
            status: status_of(&row)?,
            pipeline: row.pipeline_slug,
            pipeline_version: row.pipeline_version,
            input: parsed(&row.input)?,
            output: row.output.as_deref().map(parsed).transpose()?,
            error: row.error.as_deref().map(parsed).transpose()?,
            external_id: row.external_id,
            priority: row.priority,
            not_before: Timestamp::from_ms(row.not_before),
            attempt: row.attempt,
            lease_expires_at: row.lease_expires_at.map(Timestamp::from_ms),
            created_by_id: row.created_by_id,
            created_by_kind: row.created_by_kind,
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            started_at: row.started_at.map(Timestamp::from_ms),
            finished_at: row.finished_at.map(Timestamp::from_ms),
        })
    }

    /// The run as its events carry it: the members that the API shows, less the input.
    #[must_use]
    pub fn without_input(&self) -> Value {
        let shown = |at: Option<Timestamp>| at.map(|at| at.to_string());
        json!({
            "id": self.id.to_string(),
            "pipeline": self.pipeline,
            "pipeline_version": self.pipeline_version,
            "status": self.status.as_str(),
            "output": self.output,
            "error": self.error,
            "external_id": self.external_id,
            "priority": self.priority,
            "not_before": self.not_before.to_string(),
            "attempt": self.attempt,
            "lease_expires_at": shown(self.lease_expires_at),
            "created_by": { "id": self.created_by_id, "kind": self.created_by_kind },
            "created_at": self.created_at.to_string(),
            "started_at": shown(self.started_at),
            "finished_at": shown(self.finished_at),
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
    pub input: Value,
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

/// What a listing of runs is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Only of the pipelines that have, or had, this slug.
    pub pipeline: Option<String>,
    /// Only those that stand here.
    pub status: Option<RunStatus>,
    /// Only those of this external identifier.
    pub external_id: Option<String>,
    /// Only those created at or after this moment.
    pub since: Option<Timestamp>,
    /// Only those created before this moment.
    pub until: Option<Timestamp>,
}

/// Changes a row's state; `None`, and nothing is changed, if it can't take `change`.
///
/// The caller adds the claim's hash and lease when the row is running afterwards.
fn advance(row: &mut runs::Model, change: RunChange, now: Timestamp) -> Result<Option<RunStatus>> {
    let Some(status) = status_of(row)?.after(change) else {
        return Ok(None);
    };
    status.as_str().clone_into(&mut row.status);
    row.revision += 1;
    if status == RunStatus::Running {
        row.attempt += 1;
        row.started_at.get_or_insert(now.ms());
    } else {
        row.claim_hash = None;
        row.lease_expires_at = None;
    }
    if status == RunStatus::Queued {
        row.claimed_by = None;
    }
    if status.is_final() {
        let days = u64::try_from(row.retention_days).unwrap_or(0);
        row.finished_at = Some(now.ms());
        row.sweep_at = Some(now.plus(Duration::from_secs(days * 24 * 3600)).ms());
    }
    Ok(Some(status))
}

/// Writes what [`advance`] and the results changed, and nothing that never changes.
async fn save(tx: &Tx, row: &runs::Model) -> Result<()> {
    runs::Entity::update_many()
        .set(runs::ActiveModel {
            status: Set(row.status.clone()),
            output: Set(row.output.clone()),
            error: Set(row.error.clone()),
            attempt: Set(row.attempt),
            claim_hash: Set(row.claim_hash.clone()),
            claimed_by: Set(row.claimed_by.clone()),
            lease_expires_at: Set(row.lease_expires_at),
            revision: Set(row.revision),
            started_at: Set(row.started_at),
            finished_at: Set(row.finished_at),
            sweep_at: Set(row.sweep_at),
            ..Default::default()
        })
        .filter(runs::Column::PublisherId.eq(row.publisher_id))
        .filter(runs::Column::Id.eq(row.id))
        .exec(tx.db())
        .await?;
    Ok(())
}

/// Writes the events of runs that just arrived where they stand, all of one publisher.
async fn tell(tx: &Tx, publisher: Uuid, runs: &[&Run]) -> Result<()> {
    let data: Vec<Value> = runs
        .iter()
        .map(|run| json!({ "run": run.without_input() }))
        .collect();
    let news: Vec<NewEvent<'_>> = runs
        .iter()
        .zip(&data)
        .map(|(run, data)| NewEvent {
            event_type: OwnType::of_run(run.status).as_str(),
            data,
            pipeline: Some(&run.pipeline),
        })
        .collect();
    events::emit_all(tx, publisher, &news).await
}

fn bounded(value: u32, what: &str) -> Result<i32> {
    i32::try_from(value).map_err(|_| damaged(what))
}

/// The row of a new run that waits in the queue.
fn queued_row(
    context: &Context,
    publisher: Uuid,
    pipeline: &Pipeline,
    new: &NewRun,
    now: Timestamp,
) -> Result<runs::Model> {
    let definition = &pipeline.definition;
    Ok(runs::Model {
        publisher_id: publisher,
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
        not_before: new.not_before.unwrap_or(now).ms(),
        attempt: 0,
        max_attempts: bounded(definition.max_attempts, "number of attempts")?,
        lease_seconds: bounded(definition.lease_seconds, "lease")?,
        retention_days: bounded(definition.retention_days, "retention")?,
        claim_hash: None,
        claimed_by: None,
        lease_expires_at: None,
        created_by_id: context.actor.id.clone(),
        created_by_kind: context.actor.kind.as_str().to_owned(),
        revision: 1,
        created_at: now.ms(),
        started_at: None,
        finished_at: None,
        sweep_at: None,
    })
}

/// Claims a row that is not stored yet.
fn claim_new(
    row: &mut runs::Model,
    context: &Context,
    now: Timestamp,
) -> Result<(SecretString, Timestamp)> {
    advance(row, RunChange::Claim, now)?;
    // Created and claimed in one change: still the first revision that anybody sees.
    row.revision = 1;
    let token = token::generate(Prefix::Claim);
    let seconds = u64::try_from(row.lease_seconds).unwrap_or(0);
    let until = now.plus(Duration::from_secs(seconds));
    row.claim_hash = Some(TokenHash::of_secret(&token).as_bytes().to_vec());
    row.claimed_by = Some(context.actor.id.clone());
    row.lease_expires_at = Some(until.ms());
    Ok((token, until))
}

/// Inserts the row unless the pipeline has a run of its external identifier already.
async fn insert_new(tx: &Tx, row: &runs::Model) -> Result<bool> {
    use runs::Column;
    let by_name =
        OnConflict::columns([Column::PublisherId, Column::PipelineId, Column::ExternalId])
            .do_nothing()
            .to_owned();
    let inserted = runs::Entity::insert(row.clone().into_active_model().reset_all())
        .on_conflict(by_name)
        .try_insert()
        .exec_without_returning(tx.db())
        .await?;
    Ok(matches!(inserted, TryInsertResult::Inserted(1)))
}

/// The run that has the external identifier which `row` could not take.
async fn first_of_name(tx: &Tx, row: &runs::Model) -> Result<CreatedRun> {
    let found = runs::Entity::find()
        .filter(runs::Column::PublisherId.eq(row.publisher_id))
        .filter(runs::Column::PipelineId.eq(row.pipeline_id))
        .filter(runs::Column::ExternalId.eq(row.external_id.as_deref()))
        .one(tx.db())
        .await?;
    // Swept between the two statements: the whole transaction begins anew.
    let found = found.ok_or_else(|| StoreError::Conflict("a run was swept meanwhile".into()))?;
    Ok(CreatedRun {
        run: Run::of_row(found)?,
        claim: None,
        existed: true,
    })
}

/// How a claim passes over rows that another one is taking right now. SQLite has one writer and
/// no such clause.
const fn skip_locked(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => " FOR UPDATE SKIP LOCKED",
        _ => "",
    }
}

/// What a claim may take.
struct Claim<'a> {
    publisher: Uuid,
    claimed_by: &'a str,
    /// `None` for every pipeline.
    pipelines: Option<Vec<&'a str>>,
    /// One for each run that may be taken.
    hashes: Vec<TokenHash>,
    now: Timestamp,
}

impl Claim<'_> {
    /// Takes the first due runs, each under a hash of its own. Materialised, because a planner
    /// that ran the choice twice would take too many.
    fn statement(&self, backend: DbBackend) -> Statement {
        let now = self.now.ms();
        let mut sql = Sql::new(
            "WITH picked AS MATERIALIZED (SELECT publisher_id, id FROM runs WHERE publisher_id = ",
        );
        sql.bind(self.publisher)
            .push(" AND status = 'queued' AND not_before <= ")
            .bind(now);
        if let Some(slugs) = &self.pipelines {
            sql.push(" AND pipeline_slug IN (")
                .bind_list(slugs.iter().copied())
                .push(")");
        }
        let places = 1_i64..;
        let limit = i64::try_from(self.hashes.len()).unwrap_or(1);
        let hashes = self.hashes.iter().map(|hash| hash.as_bytes().to_vec());
        sql.push(" ORDER BY priority, not_before, id LIMIT ")
            .bind(limit)
            .push(skip_locked(backend))
            .push(
                "), numbered AS MATERIALIZED (\
                 SELECT publisher_id, id, row_number() OVER (ORDER BY id) AS place FROM picked), \
                 hashes (place, hash) AS (",
            )
            .values(
                places
                    .zip(hashes)
                    .map(|(place, hash)| vec![place.into(), hash.into()]),
            )
            .push(
                ") UPDATE runs SET status = 'running', attempt = attempt + 1, \
                 revision = revision + 1, claimed_by = ",
            )
            .bind(self.claimed_by)
            .push(", started_at = COALESCE(started_at, ")
            .bind(now)
            .push("), lease_expires_at = ")
            .bind(now)
            .push(
                " + CAST(lease_seconds AS BIGINT) * 1000, \
                 claim_hash = (SELECT hashes.hash FROM numbered \
                 JOIN hashes ON hashes.place = numbered.place \
                 WHERE numbered.publisher_id = runs.publisher_id AND numbered.id = runs.id) \
                 WHERE (publisher_id, id) IN (SELECT publisher_id, id FROM numbered) RETURNING *",
            );
        sql.statement(backend)
    }
}

/// The run with its present claim; the answer's order is not the statement's.
fn claimed(row: runs::Model, tokens: &HashMap<TokenHash, SecretString>) -> Result<Claimed> {
    let hash = row.claim_hash.as_deref().and_then(TokenHash::from_stored);
    let token = hash.and_then(|hash| tokens.get(&hash)).cloned();
    let run = Run::of_row(row)?;
    Ok(Claimed {
        token: token.ok_or_else(|| damaged("claim"))?,
        expires_at: run.lease_expires_at.ok_or_else(|| damaged("lease"))?,
        run,
    })
}

impl Scoped {
    /// Creates a run, or finds the one that has its external identifier already. `judge` says
    /// whether the very version that the run is to keep takes its input; it must be quick, since
    /// the transaction waits for it.
    pub async fn create_run<J, A>(
        &self,
        context: &Context,
        new: NewRun,
        judge: J,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        J: Fn(&Pipeline, &Value) -> Result<(), Problem> + Send + Sync,
        A: Fn(&CreatedRun) -> Answer + Send + Sync,
    {
        let (owner, new, judge) = (self.scope.uuid(), &new, &judge);
        self.store
            .transact(
                context,
                owner,
                |tx| async move {
                    let pipeline = hold(&tx, owner, &new.pipeline)
                        .await?
                        .filter(|found| self.scope.reaches(&found.slug))
                        .ok_or_else(Problem::not_found)?;
                    judge(&pipeline, &new.input)?;
                    if new.claim && new.not_before.is_some_and(|at| at > tx.now) {
                        let detail = "A run that is claimed at once can't wait.";
                        return Err(Problem::field("/not_before", "not_allowed", detail).into());
                    }
                    let mut row = queued_row(context, owner, &pipeline, new, tx.now)?;
                    let created = Run::of_row(row.clone())?;
                    let claim = if new.claim {
                        Some(claim_new(&mut row, context, tx.now)?)
                    } else {
                        None
                    };
                    if !insert_new(&tx, &row).await? {
                        return first_of_name(&tx, &row).await;
                    }
                    let run = Run::of_row(row)?;
                    let arrivals = [&created, &run];
                    tell(
                        &tx,
                        owner,
                        if claim.is_some() {
                            &arrivals
                        } else {
                            &arrivals[..1]
                        },
                    )
                    .await?;
                    Ok(CreatedRun {
                        run,
                        claim,
                        existed: false,
                    })
                },
                render,
            )
            .await
    }

    /// One run.
    pub async fn run(&self, id: RunId) -> Result<Run, StoreError> {
        let row = runs::Entity::find_by_id((self.scope.uuid(), id.uuid()))
            .one(self.store.read())
            .await?
            .filter(|row| self.scope.reaches(&row.pipeline_slug));
        Run::of_row(row.ok_or_else(Problem::not_found)?)
    }

    /// The runs in reach, newest first.
    pub async fn runs(
        &self,
        filter: &RunFilter,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Run, Uuid>, StoreError> {
        use runs::Column;
        let owner = self.scope.uuid();
        let mut query = runs::Entity::find().filter(Column::PublisherId.eq(owner));
        if let Some(slugs) = self.scope.pipelines() {
            query = query.filter(Column::PipelineSlug.is_in(slugs.iter().map(Slug::as_str)));
        }
        if let Some(slug) = &filter.pipeline {
            query = query.filter(Column::PipelineSlug.eq(slug));
        }
        if let Some(status) = filter.status {
            query = query.filter(Column::Status.eq(status.as_str()));
        }
        if let Some(external_id) = &filter.external_id {
            // Names all pipelines, so that the index of external identifiers serves.
            let every = pipelines::Entity::find()
                .select_only()
                .column(pipelines::Column::Id)
                .filter(pipelines::Column::PublisherId.eq(owner));
            query = query
                .filter(Column::PipelineId.in_subquery(every.into_query()))
                .filter(Column::ExternalId.eq(external_id));
        }
        if let Some(since) = filter.since {
            query = query.filter(Column::CreatedAt.gte(since.ms()));
        }
        if let Some(until) = filter.until {
            query = query.filter(Column::CreatedAt.lt(until.ms()));
        }
        if let Some(after) = page.after {
            query = query.filter(Column::Id.lt(after));
        }
        let query = query.order_by_desc(Column::Id).limit(page.fetch());
        let rows = query.all(self.store.read()).await?;
        page.cut(rows, |row| row.id).try_map(Run::of_row)
    }

    /// Claims up to `max` (1 to 100) due runs of the pipelines named, or of all in reach: by
    /// priority, then by when they may start, then by identifier.
    pub async fn claim_runs(
        &self,
        context: &Context,
        pipelines: Option<&[Slug]>,
        max: u32,
    ) -> Result<Vec<Claimed>, StoreError> {
        let asked = pipelines.or(self.scope.pipelines());
        let reach: Option<Vec<&str>> = asked.map(|slugs| {
            slugs
                .iter()
                .map(Slug::as_str)
                .filter(|slug| self.scope.reaches(slug))
                .collect()
        });
        if reach.as_ref().is_some_and(Vec::is_empty) {
            return Ok(Vec::new());
        }
        let (owner, reach, store) = (self.scope.uuid(), &reach, &self.store);
        store
            .write(|tx| async move {
                let tokens: HashMap<TokenHash, SecretString> = (0..max.clamp(1, CLAIM_MAX))
                    .map(|_| token::generate(Prefix::Claim))
                    .map(|token| (TokenHash::of_secret(&token), token))
                    .collect();
                let claim = Claim {
                    publisher: owner,
                    claimed_by: &context.actor.id,
                    pipelines: reach.clone(),
                    hashes: tokens.keys().copied().collect(),
                    now: tx.now,
                };
                let mut rows = runs::Entity::find()
                    .from_raw_sql(claim.statement(store.backend()))
                    .all(tx.db())
                    .await?;
                rows.sort_unstable_by_key(|row| (row.priority, row.not_before, row.id));
                let taken: Vec<Claimed> = rows
                    .into_iter()
                    .map(|row| claimed(row, &tokens))
                    .collect::<Result<_>>()?;
                let started: Vec<&Run> = taken.iter().map(|claimed| &claimed.run).collect();
                tell(&tx, owner, &started).await?;
                Ok(taken)
            })
            .await
    }

    /// Calls a run off, whoever holds it.
    pub async fn cancel_run<A>(
        &self,
        context: &Context,
        id: RunId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        self.change_run(context, id, render, |row, now| {
            advance(row, RunChange::Cancel, now)?.ok_or(Code::RunFinished)?;
            Ok(())
        })
        .await
    }

    /// Finishes a run well; `claim` is the text that the claim gave.
    pub async fn complete_run<A>(
        &self,
        context: &Context,
        id: RunId,
        claim: &str,
        output: Value,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        let output = output.to_string();
        self.change_run(context, id, render, |row, now| {
            check_claim(row, claim, now)?;
            advance(row, RunChange::Complete, now)?.ok_or(Code::ClaimLost)?;
            row.output = Some(output.clone());
            Ok(())
        })
        .await
    }

    /// Finishes a run badly; `claim` is the text that the claim gave.
    pub async fn fail_run<A>(
        &self,
        context: &Context,
        id: RunId,
        claim: &str,
        error: Value,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        let error = error.to_string();
        self.change_run(context, id, render, |row, now| {
            check_claim(row, claim, now)?;
            advance(row, RunChange::Fail, now)?.ok_or(Code::ClaimLost)?;
            row.error = Some(error.clone());
            Ok(())
        })
        .await
    }

    /// Reads, changes and writes one run, and tells of it.
    async fn change_run<A, C>(
        &self,
        context: &Context,
        id: RunId,
        render: A,
        change: C,
    ) -> Result<Answer>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
        C: Fn(&mut runs::Model, Timestamp) -> Result<()> + Send + Sync,
    {
        let (owner, change) = (self.scope.uuid(), &change);
        self.store
            .transact(
                context,
                owner,
                |tx| async move {
                    let mut row = runs::Entity::find_by_id((owner, id.uuid()))
                        .lock(LockType::NoKeyUpdate)
                        .one(tx.db())
                        .await?
                        .filter(|row| self.scope.reaches(&row.pipeline_slug))
                        .ok_or_else(Problem::not_found)?;
                    change(&mut row, tx.now)?;
                    save(&tx, &row).await?;
                    let run = Run::of_row(row)?;
                    let data = json!({ "run": run.without_input() });
                    let event_type = OwnType::of_run(run.status).as_str();
                    let pipeline = Some(run.pipeline.as_str());
                    events::emit(&tx, owner, event_type, &data, pipeline).await?;
                    Ok(run)
                },
                render,
            )
            .await
    }
}

/// Refuses a claim that is not the run's, or not any more.
fn check_claim(row: &runs::Model, claim: &str, now: Timestamp) -> Result<()> {
    let stored = row.claim_hash.as_deref().and_then(TokenHash::from_stored);
    let matches = stored.is_some_and(|hash| hash.matches(&TokenHash::of(claim)));
    let holds = row.lease_expires_at.is_some_and(|until| until > now.ms());
    if matches && holds {
        Ok(())
    } else {
        Err(Code::ClaimLost.into())
    }
}

impl System {
    /// Takes back up to `limit` runs whose lease ran out: into the queue, or for good if their
    /// attempts are used up. Answers how many of each. A publisher that is not active can't
    /// extend its leases, so its runs stay as they are until it is.
    pub async fn expire_leases(&self, limit: u64) -> Result<(u64, u64), StoreError> {
        let store = &self.store;
        store
            .write(|tx| async move {
                let (mut requeued, mut expired) = (0, BTreeMap::<Uuid, Vec<Run>>::new());
                for mut row in overdue(&tx, limit).await? {
                    let used_up = row.attempt >= row.max_attempts;
                    let change = if used_up {
                        RunChange::Expire
                    } else {
                        RunChange::Requeue
                    };
                    advance(&mut row, change, tx.now)?.ok_or_else(|| damaged("lease"))?;
                    save(&tx, &row).await?;
                    if used_up {
                        expired
                            .entry(row.publisher_id)
                            .or_default()
                            .push(Run::of_row(row)?);
                    } else {
                        requeued += 1;
                    }
                }
                let mut count = 0;
                for (publisher, runs) in &expired {
                    let runs: Vec<&Run> = runs.iter().collect();
                    tell(&tx, *publisher, &runs).await?;
                    count += u64::try_from(runs.len()).unwrap_or(0);
                }
                Ok((requeued, count))
            })
            .await
    }
}

/// The runs whose lease has run out longest ago; those that somebody is changing are left out.
async fn overdue(tx: &Tx, limit: u64) -> Result<Vec<runs::Model>> {
    use runs::Column;
    let active = publishers::Entity::find()
        .select_only()
        .column(publishers::Column::Id)
        .filter(publishers::Column::Status.eq(PublisherStatus::Active.as_str()));
    Ok(runs::Entity::find()
        .filter(Column::Status.eq(RunStatus::Running.as_str()))
        .filter(Column::LeaseExpiresAt.lte(tx.now.ms()))
        .filter(Column::PublisherId.in_subquery(active.into_query()))
        .order_by_asc(Column::LeaseExpiresAt)
        .limit(limit)
        .lock_with_behavior(LockType::NoKeyUpdate, LockBehavior::SkipLocked)
        .all(tx.db())
        .await?)
}

#[cfg(test)]
pub(crate) mod tests;
