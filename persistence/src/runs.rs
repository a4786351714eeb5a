//! Runs: created, claimed, finished, cancelled, and requeued when a lease expires.
//!
//! Every change of state follows the table of [`domain::run`]. In the same transaction it adds an
//! entry to the run's timeline and, if the run reached a new state, an event. [`batch`] makes the
//! changes, many at once; [`lane`] gathers them. A change under an `Idempotency-Key` is a batch of
//! its own.

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
        handle::handle,
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

handle! {
    "Pipelines and runs: of one
     publisher over [`Scoped`](crate::Scoped), of all over [`System`](crate::System).",
    Runs, Scoped::runs, System::runs
}

/// Which runs a list contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunFilter {
    /// Only runs of the pipelines that have, or had, this slug.
    pub pipeline: Option<String>,
    /// Only runs in this state.
    pub status: Option<RunStatus>,
    /// Only runs with this external identifier.
    pub external_id: Option<String>,
    /// Only runs created at or after this time.
    pub since: Option<Timestamp>,
    /// Only runs created before this time.
    pub until: Option<Timestamp>,
}

/// The condition of the index of queued and running runs.
const UNFINISHED: &str = "status IN ('queued', 'running')";
/// The condition of the index of ended runs.
const ENDED: &str = "status IN ('succeeded', 'failed', 'cancelled', 'expired')";

/// Runs that a bulk cancellation locks and writes in one transaction.
const CANCEL_STEP: usize = 128;

/// The columns that a filter of runs checks.
const CHECKED: &[&str] = &["status", "pipeline_slug", "external_id", "cancel_requested"];

impl RunFilter {
    /// The requested slugs that the scope reaches; `None` for all pipelines.
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

    /// The range of identifiers: an identifier contains the time at which its run was created.
    fn span(&self, after: Option<Uuid>) -> Span<Uuid> {
        Span::after(after)
            .from(self.since.map(|at| first_id_at(at.ms())))
            .to(self.until.map(|at| first_id_at(at.ms())))
    }

    /// The paths to the matching runs; if `unfinished`, to queued and running ones only.
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

    /// Whether a single path expresses the whole filter.
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

/// Whether a run can be cancelled, and has not been asked to be.
fn can_be_cancelled(status: &str, cancel_requested: bool) -> bool {
    status == RunStatus::Queued.as_str()
        || (status == RunStatus::Running.as_str() && !cancel_requested)
}

/// The result of a bulk cancellation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkCancelled {
    /// Queued runs that were cancelled.
    pub cancelled: u64,
    /// Running runs whose holders learn of the cancellation with their next heartbeat.
    pub requested: u64,
    /// Whether more runs match. The same call cancels the next ones.
    pub more: bool,
}

fn first<T, E: Into<StoreError>>(results: Vec<Result<T, E>>) -> Result<T> {
    let first = results.into_iter().next();
    let first = first.ok_or_else(|| corrupt_row("batch of one"))?;
    first.map_err(Into::into)
}

impl Runs<Scoped> {
    /// Creates a run, or returns the one that has the same external identifier. `validated` says
    /// whether the input matches the pipeline's schema.
    ///
    /// # Errors
    /// [`StoreError::VersionChanged`], if `validated` is of another version than the one that the
    /// run would keep. It holds the version by which the caller has to validate the input.
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
        // Before the idempotency key is checked: a token that cannot reach the pipeline has no
        // stored response.
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

    /// Reads a run.
    pub async fn run(&self, id: RunId) -> Result<Run, StoreError> {
        let row = runs::Entity::find_by_id((self.scope.uuid(), id.uuid()))
            .one(self.store.read())
            .await?
            .filter(|row| self.scope.reaches(&row.pipeline_slug));
        Run::of_row(row.ok_or_else(Problem::not_found)?)
    }

    /// The runs that the scope reaches, newest first.
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

    /// Claims up to `max` (1 to 100) due runs of the named pipelines, or of all that the scope
    /// reaches. The order is: priority, then pipelines in turn, then the earliest start, then age.
    /// If there are none, it waits as `options` say, and then returns none.
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

    /// Cancels a run: at once if it is queued. If it is running, its holder learns of it with its
    /// next heartbeat.
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

    /// Cancels up to 1000 unfinished runs that match the filter, oldest first.
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
        // Found before the transaction, which checks again whether each can be cancelled.
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
            let entry = audit_entry(
                Action::RunsCancelled,
                "publisher",
                self.scope.publisher(),
                facts,
            );
            Ok(Audited::new(done, owner, entry))
        };
        let context = &context.within(&self.scope);
        self.store.administer(context, owner, work, render).await
    }

    /// The first matching runs that can be cancelled, and whether there are more. The search runs
    /// in parts, each of which waits for the publisher's other scans.
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

    /// Completes a run successfully. `claim` is the claim's token.
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

    /// Reports that an attempt failed. `claim` is the claim's token. If the holder allows it and
    /// attempts are left, the run is tried again after a wait that doubles each time.
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

    /// Releases a run, without using up an attempt. `claim` is the claim's token.
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

    /// Extends the lease of a run, and stores the progress that its holder reports. `claim` is the
    /// claim's token.
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

impl Runs<System> {
    /// Requeues up to `limit` runs whose lease expired, and ends up to `limit` that exceeded their
    /// time in the queue. Returns how many are queued again, and how many ended.
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
