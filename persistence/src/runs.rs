//! Runs: created, claimed, finished, called off, and taken back when a lease runs out.
//!
//! Every change of state goes through the table of [`domain::run`] and tells of itself, in the
//! same transaction, by an entry of the run's timeline and, where the run arrives somewhere new,
//! by an event. [`batch`] makes the changes, many at once; [`lane`] gathers them. A change under an
//! `Idempotency-Key` is a batch of its own.

use std::sync::Arc;

use domain::{
    JsonText, Problem, Timestamp,
    audit::Action,
    id::{Id as _, RunId},
    limits::BULK_CANCEL,
    run::RunStatus,
    slug::Slug,
    token::TokenHash,
};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QueryResult};
use serde_json::json;
use uuid::Uuid;

use crate::{
    runs::lane::{Lane, WaitOptions},
    store::{
        Scoped, System,
        change::{Answer, Audited, Context, audit_entry},
        db::Tx,
        entity::runs,
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        sql::padded,
        walk::{Check, Path, Span, Walk, distinct, first_id_at},
    },
};

pub(crate) mod batch;
mod capacity;
mod carried;
pub(crate) mod changes;
pub(crate) mod claims;
pub(crate) mod lane;
pub(crate) mod pipelines;
mod row;
pub(crate) mod run;
pub(crate) mod subcommands;
pub(crate) mod timeline;
pub(crate) mod versions;
pub(crate) mod waiting;

use batch::{Batch, apply};
use changes::{Change, Create, ValidatedInput, What};
use claims::Claim;
use row::{RunEvents, save_all};
use run::{Claimed, CreatedRun, NewRun, Run, bytes, size_of};

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

/// The index of runs that wait or are held, and its condition.
const UNFINISHED: &str = "status IN ('queued', 'running')";
/// The same of those that have ended.
const ENDED: &str = "status IN ('succeeded', 'failed', 'cancelled', 'expired')";

/// Runs that a bulk cancellation locks and writes at a time.
const CANCEL_STEP: usize = 128;

/// What a filter of runs looks at in a row.
const CHECKED: &[&str] = &["status", "pipeline_slug", "external_id", "cancel_requested"];

impl RunFilter {
    /// The slugs of pipelines that are asked for and in reach; `None` for all.
    fn slugs(&self, scope: &crate::Scope) -> Option<Vec<String>> {
        match (&self.pipeline, scope.pipelines()) {
            (Some(slug), _) => Some(if scope.reaches(slug) {
                vec![slug.clone()]
            } else {
                Vec::new()
            }),
            (None, some) => some.map(|slugs| slugs.iter().map(Slug::to_string).collect()),
        }
    }

    /// Identifiers tell when their runs were created.
    fn span(&self, after: Option<Uuid>) -> Span<Uuid> {
        Span::after(after)
            .from(self.since.map(|at| first_id_at(at.ms())))
            .to(self.until.map(|at| first_id_at(at.ms())))
    }

    /// The ways to what passes; `unfinished` for those runs alone.
    fn paths(&self, slugs: Option<&[String]>, unfinished: bool) -> Vec<Path> {
        let mut paths = Vec::new();
        if let Some(slugs) = slugs {
            let values = distinct(slugs.iter().cloned());
            paths.push(Path::by("runs_by_slug", &["pipeline_slug"], values));
        }
        if let Some(external_id) = &self.external_id {
            let value = [external_id.as_str().into()];
            let path = Path::by("runs_by_external_id", &["external_id"], value);
            paths.push(path.only("external_id IS NOT NULL"));
        }
        match self.status {
            Some(status) if status.is_final() => {
                let value = [status.as_str().into()];
                paths.push(Path::by("runs_ended", &["status"], value).only(ENDED));
            }
            None if !unfinished => {}
            _ => {
                let asked = [false.into(), true.into()];
                let path = Path::by("runs_unfinished", &["cancel_requested"], asked);
                paths.push(path.only(UNFINISHED));
            }
        }
        if paths.is_empty() {
            paths.push(Path::primary());
        }
        paths
    }

    /// Whether a single path says all that the filter says.
    fn is_said_by(&self, paths: &[Path], unfinished: bool) -> bool {
        paths.len() == 1 && !unfinished && self.status.is_none_or(RunStatus::is_final)
    }

    fn passes(
        &self,
        slugs: Option<&[String]>,
        slug: &str,
        status: &str,
        external_id: Option<&str>,
    ) -> bool {
        slugs.is_none_or(|slugs| slugs.iter().any(|wanted| wanted == slug))
            && self.status.is_none_or(|wanted| wanted.as_str() == status)
            && (self.external_id.is_none() || self.external_id.as_deref() == external_id)
    }

    fn wants(&self, slugs: Option<&[String]>, row: &QueryResult) -> Result<bool> {
        let (slug, status): (String, String) = (
            row.try_get("", "pipeline_slug")?,
            row.try_get("", "status")?,
        );
        let external_id: Option<String> = row.try_get("", "external_id")?;
        Ok(self.passes(slugs, &slug, &status, external_id.as_deref()))
    }
}

/// Whether a run can be called off that was not yet.
fn can_be_cancelled(status: &str, cancel_requested: bool) -> bool {
    status == RunStatus::Queued.as_str()
        || (status == RunStatus::Running.as_str() && !cancel_requested)
}

/// What a bulk cancellation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkCancelled {
    /// Runs that waited, and are cancelled.
    pub cancelled: u64,
    /// Runs that are held; their holders learn of it with their next heartbeat.
    pub requested: u64,
    /// Whether there are more: the same again goes on.
    pub more: bool,
}

fn first<T, E: Into<StoreError>>(results: Vec<Result<T, E>>) -> Result<T> {
    let first = results.into_iter().next();
    let first = first.ok_or_else(|| corrupt_row("batch of one"))?;
    first.map_err(Into::into)
}

impl Scoped {
    /// Creates a run, or finds the one that has its external identifier already. `validated` says
    /// whether its input is taken. If that was another version than the one that the run is to
    /// keep, nothing is done: the error names this one, for the caller to judge by.
    pub async fn create_run<A>(
        &self,
        context: &Context,
        new: Arc<NewRun>,
        validated: Option<ValidatedInput>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&CreatedRun) -> Answer + Send + Sync,
    {
        // Before the key is looked at: for who can't reach the pipeline there is nothing to keep.
        if !self.scope.reaches(&new.pipeline) {
            return Err(Problem::not_found().into());
        }
        let room = self.store.storage_room(self.scope.uuid()).await?;
        let create = Arc::new(Create {
            scope: self.scope.clone(),
            actor: context.actor.clone(),
            new,
            validated,
        });
        if context.idempotency.is_none() {
            room.check()?;
            return Ok(render(&self.store.state::<Lane>().create(create).await?));
        }
        let (store, create, room) = (&self.store, &create, &room);
        let work = |tx: Tx| async move {
            room.check()?;
            let batch = Batch {
                creates: vec![Arc::clone(create)],
                ..Batch::default()
            };
            first(apply(store, &tx, &batch).await?.creates)
        };
        store.transact(context, &self.scope, work, render).await
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
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        let slugs = filter.slugs(&self.scope);
        let slugs = slugs.as_deref();
        let paths = filter.paths(slugs, false);
        let wants = |row: &QueryResult| filter.wants(slugs, row);
        let check = Check {
            columns: CHECKED,
            wants: &wants,
        };
        let walk = Walk {
            check: (!filter.is_said_by(&paths, false)).then_some(check),
            few: (filter.status == Some(RunStatus::Running))
                .then_some(("runs_held", "status = 'running'")),
            ..Walk::over("runs", owner, paths)
        };
        let found = walk.part(db, &page, filter.span(page.after)).await?;
        let query = runs::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Id.is_in(padded(found.keys.iter().copied())))
            .order_by_desc(Column::Id);
        page.read_key_page(found, query, db, bytes(), size_of, |row| row.id)
            .await?
            .try_map(Run::of_row)
    }

    /// Claims up to `max` (1 to 100) due runs of the pipelines named, or of all in reach: by
    /// priority, then in turns between pipelines, then by when they may start and by age. Waits
    /// for some as long as `options` says, and answers none after that.
    pub async fn claim_runs(
        &self,
        context: &Context,
        pipelines: Option<&[Slug]>,
        max: u32,
        options: WaitOptions,
    ) -> Result<Vec<Claimed>, StoreError> {
        let asked = pipelines.or(self.scope.pipelines());
        let reach: Option<Vec<Slug>> = asked.map(|slugs| {
            let within = slugs
                .iter()
                .filter(|slug| self.scope.reaches(slug.as_str()));
            within.cloned().collect()
        });
        let claim = Claim {
            publisher: self.scope.uuid(),
            pipelines: reach,
            max,
            actor: context.actor.clone(),
        };
        self.store.state::<Lane>().claim(claim, options).await
    }

    /// Calls a run off: at once if nobody holds it; else its holder learns of it with its next
    /// heartbeat.
    pub async fn cancel_run<A>(
        &self,
        context: &Context,
        id: RunId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        self.change_run(context, id, What::Cancel, render).await
    }

    /// Calls off up to 1000 unfinished runs that pass the filter, oldest first.
    pub async fn cancel_runs<A>(
        &self,
        context: &Context,
        filter: &RunFilter,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&BulkCancelled) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        // Looked for before the transaction, which then takes what it finds as it was found.
        let (keys, more) = self.cancellable(filter).await?;
        if keys.is_empty() && context.idempotency.is_none() {
            return Ok(render(&BulkCancelled::default()));
        }
        let (slugs, keys) = (filter.slugs(&self.scope), &keys);
        let slugs = slugs.as_deref();
        let work = |tx: Tx| async move {
            let mut done = BulkCancelled {
                more,
                ..BulkCancelled::default()
            };
            let mut events = RunEvents::default();
            for part in keys.chunks(CANCEL_STEP) {
                let part = part.iter().map(|id| (owner, *id)).collect();
                let mut rows = batch::held_without_inputs(&tx, part).await?;
                rows.retain(|row| {
                    can_be_cancelled(&row.status, row.cancel_requested)
                        && filter.passes(
                            slugs,
                            &row.pipeline_slug,
                            &row.status,
                            row.external_id.as_deref(),
                        )
                });
                for row in &mut rows {
                    row::cancel(&tx, row, Some(&context.actor), &mut events)?;
                    let ended = row.status == RunStatus::Cancelled.as_str();
                    *(if ended {
                        &mut done.cancelled
                    } else {
                        &mut done.requested
                    }) += 1;
                }
                save_all(&tx, &rows.iter().collect::<Vec<_>>()).await?;
            }
            events.write(&tx).await?;
            if done.cancelled + done.requested == 0 {
                return Ok(Audited::unchanged(done));
            }
            let facts = json!({
                "cancelled": done.cancelled,
                "requested": done.requested,
                "pipeline": filter.pipeline,
                "status": filter.status.map(RunStatus::as_str),
                "external_id": filter.external_id,
                "since": filter.since.map(|at| at.to_string()),
                "until": filter.until.map(|at| at.to_string()),
            });
            let line = audit_entry(
                Action::RunsCancelled,
                "publisher",
                self.scope.publisher(),
                facts,
            );
            Ok(Audited::new(done, owner, line))
        };
        let context = &context.within(&self.scope);
        self.store.administer(context, owner, work, render).await
    }

    /// The first runs that pass and can be called off, and whether there are more. Each part of
    /// the search ends, and waits for its turn among the publisher's other scans.
    async fn cancellable(&self, filter: &RunFilter) -> Result<(Vec<Uuid>, bool)> {
        let owner = self.scope.uuid();
        if filter.status.is_some_and(RunStatus::is_final) {
            return Ok((Vec::new(), false));
        }
        let slugs = filter.slugs(&self.scope);
        let slugs = slugs.as_deref();
        let wants = |row: &QueryResult| -> Result<bool> {
            let status: String = row.try_get("", "status")?;
            let asked: bool = row.try_get("", "cancel_requested")?;
            Ok(can_be_cancelled(&status, asked) && filter.wants(slugs, row)?)
        };
        let walk = Walk {
            check: Some(Check {
                columns: CHECKED,
                wants: &wants,
            }),
            ..Walk::over("runs", owner, filter.paths(slugs, true))
        };
        let most = usize::try_from(BULK_CANCEL).unwrap_or(usize::MAX);
        let mut span = Span {
            newest_first: false,
            ..filter.span(None)
        };
        let mut keys: Vec<Uuid> = Vec::new();
        loop {
            let turn = self.store.scan(owner).await?;
            let found = walk.keys(turn.db(), span, most - keys.len()).await?;
            keys.extend(found.keys.into_iter().filter(|key| *key != span.from));
            let Some(next) = found.next else {
                return Ok((keys, false));
            };
            if keys.len() >= most {
                return Ok((keys, true));
            }
            span.from = next;
        }
    }

    /// Finishes a run well; `claim` is the text that the claim gave.
    pub async fn complete_run<A>(
        &self,
        context: &Context,
        id: RunId,
        claim: &str,
        output: JsonText,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        let what = What::Complete {
            claim: TokenHash::of(claim),
            output,
        };
        self.change_run(context, id, what, render).await
    }

    /// Reports that a try of a run failed; `claim` is the text that the claim gave. It is tried
    /// again, after a wait that doubles, if that is wanted and tries are left.
    pub async fn fail_run<A>(
        &self,
        context: &Context,
        id: RunId,
        claim: &str,
        (error, retryable): (JsonText, bool),
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        let what = What::Fail {
            claim: TokenHash::of(claim),
            error,
            retryable,
        };
        self.change_run(context, id, what, render).await
    }

    /// Gives a run back; that uses up no try. `claim` is the text that the claim gave.
    pub async fn release_run<A>(
        &self,
        context: &Context,
        id: RunId,
        claim: &str,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        let claim = TokenHash::of(claim);
        self.change_run(context, id, What::Release { claim }, render)
            .await
    }

    /// Extends the lease of a run, and keeps what its holder reports. `claim` is the text that
    /// the claim gave.
    pub async fn heartbeat_run(
        &self,
        context: &Context,
        id: RunId,
        claim: &str,
        progress: Option<JsonText>,
    ) -> Result<Run, StoreError> {
        let what = What::Heartbeat {
            claim: TokenHash::of(claim),
            progress,
        };
        let change = Arc::new(self.change(context, id, what));
        self.store.state::<Lane>().change(change).await
    }

    fn change(&self, context: &Context, run: RunId, what: What) -> Change {
        Change {
            scope: self.scope.clone(),
            actor: context.actor.clone(),
            run,
            what,
        }
    }

    async fn change_run<A>(
        &self,
        context: &Context,
        id: RunId,
        what: What,
        render: A,
    ) -> Result<Answer>
    where
        A: Fn(&Run) -> Answer + Send + Sync,
    {
        let by_holder = what.claim().map(|claim| context.by_holder(claim));
        let change = Arc::new(self.change(context, id, what));
        if context.idempotency.is_none() {
            return Ok(render(&self.store.state::<Lane>().change(change).await?));
        }
        let (store, change) = (&self.store, &change);
        let work = |tx: Tx| async move {
            let batch = Batch {
                changes: vec![Arc::clone(change)],
                ..Batch::default()
            };
            first(apply(store, &tx, &batch).await?.changes)
        };
        store
            .transact(
                by_holder.as_ref().unwrap_or(context),
                &self.scope,
                work,
                render,
            )
            .await
    }
}

impl System {
    /// Takes back up to `limit` runs whose lease ran out, and ends up to `limit` that outlived
    /// their time in the queue: answers how many wait again, and how many ended.
    pub async fn expire_runs(&self, limit: u64) -> Result<(u64, u64), StoreError> {
        self.store
            .write(|tx| async move {
                let mut events = RunEvents::default();
                let (again, ended) = claims::take_back(&tx, None, limit, &mut events).await?;
                let outlived = claims::end_outlived(&tx, limit, &mut events).await?;
                events.write(&tx).await?;
                Ok((again, ended + outlived))
            })
            .await
    }
}

#[cfg(test)]
pub(crate) mod tests;
