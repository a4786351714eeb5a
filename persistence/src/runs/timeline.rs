//! A run's timeline: everything that happened to the run, in order.

use domain::{
    JsonText, Problem, Timestamp,
    id::{Id as _, RunId},
    run::TimelineEntryKind,
};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, IntoActiveModel as _,
    QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, LockType},
};
use serde_json::Value;
use tokio::sync::watch;

use super::row::TIMELINE_REVISIONS;
use crate::{
    runs::Runs,
    store::{
        Scoped,
        change::Context,
        entity::{run_timeline, runs},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest, bytes_of},
        storage,
    },
};

/// An entry of a run's timeline.
#[derive(Clone, Debug, PartialEq)]
pub struct TimelineEntry {
    /// Orders the entries. Numbers may be missing.
    pub seq: i64,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub kind: TimelineEntryKind,
    /// The run's number of claims at that time.
    pub attempt: i32,
    /// The kind and identifier of the credential; `None` if the service made the change.
    pub actor: Option<(String, String)>,
    /// Further facts, as JSON.
    pub data: Option<JsonText>,
}

impl TimelineEntry {
    fn of_row(row: run_timeline::Model) -> Result<Self> {
        let parsed = |text| JsonText::parse(text).ok_or_else(|| corrupt_row("timeline"));
        Ok(Self {
            seq: row.seq,
            at: Timestamp::from_ms(row.at),
            kind: TimelineEntryKind::parse(&row.moment).ok_or_else(|| corrupt_row("timeline"))?,
            attempt: row.attempt,
            actor: row.actor_kind.zip(row.actor_id),
            data: row.data.map(parsed).transpose()?,
        })
    }
}

impl Runs<Scoped> {
    /// Reads a run's timeline, oldest entry first.
    pub async fn timeline(
        &self,
        id: RunId,
        page: PageRequest<i64>,
    ) -> Result<Page<TimelineEntry, i64>, StoreError> {
        use run_timeline::Column;
        let owner = self.scope.uuid();
        let slug: Option<String> = runs::Entity::find_by_id((owner, id.uuid()))
            .select_only()
            .column(runs::Column::PipelineSlug)
            .into_tuple()
            .one(self.store.read())
            .await?;
        slug.filter(|slug| self.scope.reaches(slug))
            .ok_or_else(Problem::not_found)?;
        let query = run_timeline::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::RunId.eq(id.uuid()))
            .filter(Column::Seq.gt(page.after.unwrap_or(0)))
            .order_by_asc(Column::Seq);
        let bytes = bytes_of(Expr::col(Column::Data));
        let size = |row: &run_timeline::Model| row.data.as_ref().map_or(0, String::len);
        page.read(query, self.store.read(), bytes, size, |row| row.seq)
            .await?
            .try_map(TimelineEntry::of_row)
    }

    /// A counter that changes whenever the run changes, in any process. It may also change without
    /// a reason.
    #[must_use]
    pub fn watch_run(&self, id: RunId) -> watch::Receiver<u64> {
        self.store.inner.wake.watch(id.uuid())
    }

    /// Adds an entry to a run's timeline. Nothing is added if the run has been swept, or if its
    /// timeline is at its limit.
    pub async fn add_to_timeline(
        &self,
        context: &Context,
        id: RunId,
        kind: TimelineEntryKind,
        data: &Value,
    ) -> Result<(), StoreError> {
        let key = (self.scope.uuid(), id.uuid());
        self.store
            .write_for(key.0, |tx| async move {
                let row = runs::Entity::find_by_id(key)
                    .lock(LockType::NoKeyUpdate)
                    .one(tx.db())
                    .await?;
                let Some(row) = row else { return Ok(()) };
                let seq = row.revision + 1;
                if seq > TIMELINE_REVISIONS {
                    return Ok(());
                }
                runs::Entity::update_many()
                    .col_expr(runs::Column::Revision, seq.into())
                    .filter(runs::Column::PublisherId.eq(key.0))
                    .filter(runs::Column::Id.eq(key.1))
                    .exec(tx.db())
                    .await?;
                let entry = run_timeline::Model {
                    publisher_id: key.0,
                    run_id: key.1,
                    seq,
                    at: tx.now.ms(),
                    moment: kind.as_str().to_owned(),
                    attempt: row.attempt,
                    actor_kind: Some(context.actor.kind.as_str().to_owned()),
                    actor_id: Some(context.actor.id.clone()),
                    data: Some(data.to_string()),
                };
                let bytes = entry.data.as_ref().map_or(0, String::len);
                tx.stores(key.0, storage::ENTRY + bytes);
                run_timeline::Entity::insert(entry.into_active_model().reset_all())
                    .exec_without_returning(tx.db())
                    .await?;
                tx.changes_run(key.1);
                Ok(())
            })
            .await
    }
}
