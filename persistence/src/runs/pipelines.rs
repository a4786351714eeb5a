//! Pipelines and their versions.

use std::sync::Arc;

use domain::{
    Code, FaultCode, Problem, Timestamp,
    audit::Action,
    id::{Id as _, PipelineId},
    pipeline::Definition,
    slug::Slug,
};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, DbBackend,
    EntityTrait as _, JoinType, PaginatorTrait as _, QueryFilter as _, QueryResult,
    QuerySelect as _, RelationDef, sea_query::LockType,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    runs::Runs,
    store::{
        Scoped, Store,
        change::{Answer, Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        entity::{pipeline_versions, pipelines},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        quota::{over_quota, quotas_of},
        sql::{Sql, padded},
        storage::{Room, VERSION},
        walk::{Check, Path, Span, Walk},
    },
};

/// A pipeline with its current version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pipeline {
    /// The pipeline's identifier.
    pub id: PipelineId,
    /// The pipeline's name, unique within its publisher while the pipeline exists.
    pub slug: String,
    /// The number of the current definition, from 1.
    pub version: i64,
    /// The current definition.
    pub definition: Arc<Definition>,
    /// Since when the pipeline is paused; `None` if it is not.
    pub paused_at: Option<Timestamp>,
    /// Increased with each change of this row.
    pub revision: i64,
    /// When the pipeline was created.
    pub created_at: Timestamp,
    /// When the pipeline last changed.
    pub updated_at: Timestamp,
}

impl Pipeline {
    pub(crate) fn of_rows(row: pipelines::Model, definition: Arc<Definition>) -> Self {
        Self {
            id: PipelineId::from_uuid(row.id),
            slug: row.slug,
            version: row.version,
            definition,
            paused_at: row.paused_at.map(Timestamp::from_ms),
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            updated_at: Timestamp::from_ms(row.updated_at),
        }
    }

    fn of_joined(
        (row, version): (pipelines::Model, Option<pipeline_versions::Model>),
    ) -> Result<Self> {
        let version = version.ok_or_else(|| corrupt_row("pipeline version"))?;
        Ok(Self::of_rows(row, Arc::new(definition_of(&version)?)))
    }
}

pub(crate) fn definition_of(row: &pipeline_versions::Model) -> Result<Definition> {
    serde_json::from_str(&row.definition).map_err(|_| corrupt_row("pipeline definition"))
}

/// The join from a pipeline to its current version.
fn current_version() -> RelationDef {
    use pipeline_versions::Column as Version;
    use pipelines::Column;
    pipelines::Entity::belongs_to(pipeline_versions::Entity)
        .from((Column::PublisherId, Column::Id, Column::Version))
        .to((Version::PublisherId, Version::PipelineId, Version::Version))
        .into()
}

async fn live_row(
    tx: &Tx,
    publisher: Uuid,
    slug: &str,
    lock: LockType,
) -> Result<Option<pipelines::Model>> {
    Ok(pipelines::Entity::find()
        .filter(pipelines::Column::PublisherId.eq(publisher))
        .filter(pipelines::Column::LiveSlug.eq(slug))
        .lock(lock)
        .one(tx.db())
        .await?)
}

async fn definition_at(tx: &Tx, row: &pipelines::Model) -> Result<Definition> {
    let key = (row.publisher_id, row.id, row.version);
    let version = pipeline_versions::Entity::find_by_id(key)
        .one(tx.db())
        .await?;
    definition_of(&version.ok_or_else(|| corrupt_row("pipeline version"))?)
}

/// Refuses slugs that name no pipeline of the publisher. `pointer` is the JSON pointer of the list
/// in the request.
pub(crate) async fn check_known(
    tx: &Tx,
    publisher: Uuid,
    slugs: &[Slug],
    pointer: &str,
) -> Result<()> {
    let known: Vec<String> = pipelines::Entity::find()
        .select_only()
        .column(pipelines::Column::Slug)
        .filter(pipelines::Column::PublisherId.eq(publisher))
        .filter(pipelines::Column::LiveSlug.is_in(slugs.iter().map(Slug::as_str)))
        .into_tuple()
        .all(tx.db())
        .await?;
    for (at, slug) in slugs.iter().enumerate() {
        if !known.iter().any(|name| name == slug.as_str()) {
            let detail = "There is no pipeline of that name.";
            return Err(
                Problem::field(&format!("{pointer}/{at}"), FaultCode::Invalid, detail).into(),
            );
        }
    }
    Ok(())
}

async fn insert_version(tx: &Tx, row: &pipelines::Model, definition: &Definition) -> Result<()> {
    let text = serde_json::to_string(definition)
        .map_err(|error| StoreError::Internal(error.to_string()))?;
    tx.stores(row.publisher_id, VERSION + text.len());
    pipeline_versions::Entity::insert(pipeline_versions::ActiveModel {
        publisher_id: Set(row.publisher_id),
        pipeline_id: Set(row.id),
        version: Set(row.version),
        definition: Set(text),
        created_at: Set(tx.now.ms()),
    })
    .exec_without_returning(tx.db())
    .await?;
    Ok(())
}

/// The wrapper of administrative changes has locked the publisher's row, so the count holds.
async fn check_quota(tx: &Tx, publisher: Uuid) -> Result<()> {
    let limit = quotas_of(tx, publisher).await?.pipelines;
    let live = pipelines::Entity::find()
        .filter(pipelines::Column::PublisherId.eq(publisher))
        .filter(pipelines::Column::LiveSlug.is_not_null())
        .count(tx.db())
        .await?;
    if live >= u64::from(limit) {
        return Err(over_quota("pipelines", limit));
    }
    Ok(())
}

async fn register(
    tx: &Tx,
    publisher: Uuid,
    slug: &Slug,
    definition: &Definition,
) -> Result<Pipeline> {
    check_quota(tx, publisher).await?;
    let row = pipelines::Model {
        publisher_id: publisher,
        id: PipelineId::generate(tx.now).uuid(),
        slug: slug.to_string(),
        live_slug: Some(slug.to_string()),
        version: 1,
        revision: 1,
        created_at: tx.now.ms(),
        updated_at: tx.now.ms(),
        paused_at: None,
    };
    let active: pipelines::ActiveModel = row.clone().into();
    pipelines::Entity::insert(active.reset_all())
        .exec_without_returning(tx.db())
        .await?;
    insert_version(tx, &row, definition).await?;
    Ok(Pipeline::of_rows(row, Arc::new(definition.clone())))
}

async fn write_row(tx: &Tx, row: pipelines::Model) -> Result<pipelines::Model> {
    let row = pipelines::Model {
        revision: row.revision + 1,
        updated_at: tx.now.ms(),
        ..row
    };
    let active: pipelines::ActiveModel = row.into();
    Ok(pipelines::Entity::update(active.reset_all())
        .exec(tx.db())
        .await?)
}

/// Each part reads one entry of an index of queued and running runs, and no past runs.
async fn has_unfinished_runs(tx: &Tx, row: &pipelines::Model) -> Result<bool> {
    let backend = tx.db().get_database_backend();
    for (index, unfinished) in [
        ("runs_ready", "status = 'queued' AND ready"),
        ("runs_scheduled", "status = 'queued' AND NOT ready"),
        ("runs_held", "status = 'running'"),
    ] {
        let mut sql = Sql::new("SELECT id FROM runs");
        if backend == DbBackend::Sqlite {
            sql.push(" INDEXED BY ").push(index);
        }
        sql.push(" WHERE publisher_id = ").bind(row.publisher_id);
        sql.push(" AND pipeline_id = ").bind(row.id);
        sql.push(" AND ").push(unfinished).push(" LIMIT 1");
        let found = tx.db().query_one_raw(sql.statement(backend)).await?;
        if found.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Store {
    async fn put_pipeline(
        &self,
        tx: &Tx,
        publisher: Uuid,
        slug: &Slug,
        definition: &Definition,
        if_match: Option<Expected>,
        room: &Room,
    ) -> Result<Audited<(Pipeline, bool)>> {
        let entry = |action: Action, pipeline: &Pipeline| {
            let facts = json!({ "slug": pipeline.slug, "version": pipeline.version });
            audit_entry(action, "pipeline", pipeline.id, facts)
        };
        let Some(row) = live_row(tx, publisher, slug.as_str(), LockType::NoKeyUpdate).await? else {
            if if_match.is_some() {
                return Err(Code::PreconditionFailed.into());
            }
            room.check()?;
            let pipeline = register(tx, publisher, slug, definition).await?;
            let entry = entry(Action::PipelineCreated, &pipeline);
            return Ok(Audited::new((pipeline, true), publisher, entry));
        };
        check_revision(if_match, row.revision)?;
        if definition_at(tx, &row).await? == *definition {
            return Ok(Audited::unchanged((
                Pipeline::of_rows(row, Arc::new(definition.clone())),
                false,
            )));
        }
        room.check()?;
        let row = pipelines::Model {
            version: row.version + 1,
            ..row
        };
        insert_version(tx, &row, definition).await?;
        let row = write_row(tx, row).await?;
        let pipeline = Pipeline::of_rows(row, Arc::new(definition.clone()));
        let entry = entry(Action::PipelineUpdated, &pipeline);
        Ok(Audited::new((pipeline, false), publisher, entry))
    }
}

impl Runs<Scoped> {
    /// Creates a pipeline, or stores a new version of it. `render` also learns whether it is new.
    /// An unchanged definition changes nothing.
    ///
    /// For a pipeline that does not exist, no `if_match` is fulfilled.
    pub async fn put_pipeline<A>(
        &self,
        context: &Context,
        slug: Slug,
        definition: Definition,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&(Pipeline, bool)) -> Answer + Send + Sync,
    {
        if !self.scope.reaches(slug.as_str()) {
            return Err(Problem::not_found().into());
        }
        let (store, owner) = (&self.store, self.scope.uuid());
        let (slug, definition) = (&slug, &definition);
        let room = &store.storage_room(owner).await?;
        store
            .administer(
                context,
                owner,
                |tx| async move {
                    store
                        .put_pipeline(&tx, owner, slug, definition, if_match, room)
                        .await
                },
                render,
            )
            .await
    }

    /// Reads a pipeline with its current version.
    pub async fn pipeline(&self, slug: &str) -> Result<Pipeline, StoreError> {
        let found = pipelines::Entity::find()
            .join(JoinType::InnerJoin, current_version())
            .select_also(pipeline_versions::Entity)
            .filter(pipelines::Column::PublisherId.eq(self.scope.uuid()))
            .filter(pipelines::Column::LiveSlug.eq(slug))
            .one(self.store.read())
            .await?
            .filter(|_| self.scope.reaches(slug));
        Pipeline::of_joined(found.ok_or_else(Problem::not_found)?)
    }

    /// The pipelines that the scope reaches, newest first.
    pub async fn pipelines(
        &self,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Pipeline, Uuid>, StoreError> {
        use pipelines::Column;
        let owner = self.scope.uuid();
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        let wants = |row: &QueryResult| -> Result<bool> {
            let slug: Option<String> = row.try_get("", "live_slug")?;
            Ok(slug.is_some_and(|slug| self.scope.reaches(&slug)))
        };
        let walk = Walk {
            check: Some(Check {
                columns: &["live_slug"],
                wants: &wants,
            }),
            // The quota limits them. Deleted pipelines have no live slug.
            few: Some(("pipelines_slug", "live_slug > ''")),
            ..Walk::over("pipelines", owner, vec![Path::primary()])
        };
        let found = walk.part(db, &page, Span::after(page.after)).await?;
        let rows = pipelines::Entity::find()
            .join(JoinType::InnerJoin, current_version())
            .select_also(pipeline_versions::Entity)
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Id.is_in(padded(found.keys.iter().copied())))
            .all(db)
            .await?;
        Page::of_key_page(found, rows, |(row, _)| row.id).try_map(Pipeline::of_joined)
    }

    /// Pauses a pipeline, which then hands out no runs, or resumes it. Running runs continue, and
    /// new ones are queued. A pipeline that is already in that state does not change.
    pub async fn pause_pipeline<A>(
        &self,
        context: &Context,
        slug: &str,
        paused: bool,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Pipeline) -> Answer + Send + Sync,
    {
        let (store, owner) = (&self.store, self.scope.uuid());
        store
            .administer(
                context,
                owner,
                |tx| async move {
                    let row = live_row(&tx, owner, slug, LockType::NoKeyUpdate)
                        .await?
                        .filter(|_| self.scope.reaches(slug))
                        .ok_or_else(Problem::not_found)?;
                    let definition = Arc::new(definition_at(&tx, &row).await?);
                    if row.paused_at.is_some() == paused {
                        return Ok(Audited::unchanged(Pipeline::of_rows(row, definition)));
                    }
                    let paused_at = paused.then(|| tx.now.ms());
                    let row = write_row(&tx, pipelines::Model { paused_at, ..row }).await?;
                    let action = if paused {
                        Action::PipelinePaused
                    } else {
                        tx.readies_runs_of(owner);
                        Action::PipelineResumed
                    };
                    let pipeline = Pipeline::of_rows(row, definition);
                    let entry =
                        audit_entry(action, "pipeline", pipeline.id, json!({ "slug": slug }));
                    Ok(Audited::new(pipeline, owner, entry))
                },
                render,
            )
            .await
    }

    /// Deletes a pipeline without unfinished runs. Its finished runs stay, and its slug can be used
    /// again.
    pub async fn delete_pipeline<A>(
        &self,
        context: &Context,
        slug: &str,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        let (store, owner) = (&self.store, self.scope.uuid());
        store
            .administer(
                context,
                owner,
                |tx| async move {
                    // Waits for transactions that are creating a run of it. Later ones find it
                    // deleted.
                    let row = live_row(&tx, owner, slug, LockType::Update)
                        .await?
                        .filter(|_| self.scope.reaches(slug))
                        .ok_or_else(Problem::not_found)?;
                    check_revision(if_match, row.revision)?;
                    if has_unfinished_runs(&tx, &row).await? {
                        return Err(Code::PipelineInUse.into());
                    }
                    let id = PipelineId::from_uuid(row.id);
                    write_row(
                        &tx,
                        pipelines::Model {
                            live_slug: None,
                            ..row
                        },
                    )
                    .await?;
                    let facts = json!({ "slug": slug });
                    let entry = audit_entry(Action::PipelineDeleted, "pipeline", id, facts);
                    Ok(Audited::new((), owner, entry))
                },
                render,
            )
            .await
    }
}
