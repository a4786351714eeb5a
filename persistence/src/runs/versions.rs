//! Versions of pipelines. They never change, so they are cached without a limit of time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use domain::{
    Problem,
    id::{Id as _, PipelineId, RunId},
    pipeline::Definition,
    slug::Slug,
};
use moka::sync::Cache;
use sea_orm::{
    ConnectionTrait, EntityTrait as _, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, ExprTrait as _},
};
use uuid::Uuid;

use crate::{
    runs::Runs,
    runs::pipelines::{Pipeline, definition_of},
    store::{
        Scoped,
        entity::{pipeline_versions, runs},
        error::{PipelineVersion, Result, StoreError, corrupt_row},
        plane_state::PlaneState,
    },
};

/// Most versions whose definitions are cached.
const CACHED_VERSIONS: u64 = 10_000;

/// Publisher, pipeline, version.
pub(crate) type VersionKey = (Uuid, Uuid, i64);

/// Most pipelines whose version is remembered, and most runs whose version is.
const REMEMBERED: u64 = 20_000;

/// Cached definitions, and which version pipelines and runs have.
pub(crate) struct Definitions {
    known: Cache<VersionKey, Arc<Definition>>,
    /// By publisher and slug: the version that this process saw last, which may be out of date.
    last_seen: Cache<(Uuid, String), PipelineVersion>,
    /// The versions of runs that were claimed in this process. A run never changes its version or
    /// slug.
    of_runs: Cache<Uuid, Arc<(VersionKey, String)>>,
}

impl Definitions {
    pub(crate) fn new() -> Self {
        Self {
            known: Cache::new(CACHED_VERSIONS),
            last_seen: Cache::new(REMEMBERED),
            of_runs: Cache::new(REMEMBERED),
        }
    }

    /// Notes the current version of a live pipeline.
    pub(crate) fn saw(&self, publisher: Uuid, slug: &str, version: PipelineVersion) {
        let name = (publisher, slug.to_owned());
        let same = self.last_seen.get(&name).is_some_and(|last| {
            (last.pipeline, last.version) == (version.pipeline, version.version)
        });
        if !same {
            self.last_seen.insert(name, version);
        }
    }

    /// Notes the version of a run.
    pub(crate) fn claimed(&self, run: &runs::Model) {
        let version = (run.publisher_id, run.pipeline_id, run.pipeline_version);
        let kept = Arc::new((version, run.pipeline_slug.clone()));
        self.of_runs.insert(run.id, kept);
    }

    /// The definitions of existing versions. Those that are not cached are read with one statement.
    pub(crate) async fn of<C: ConnectionTrait>(
        &self,
        db: &C,
        keys: impl IntoIterator<Item = VersionKey>,
    ) -> Result<HashMap<VersionKey, Arc<Definition>>> {
        use pipeline_versions::Column;
        let mut found = HashMap::new();
        let mut missing = BTreeSet::new();
        for key in keys {
            match self.known.get(&key) {
                Some(definition) => drop(found.insert(key, definition)),
                None => drop(missing.insert(key)),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        let wanted = missing.len();
        let key = Expr::tuple([
            Expr::col(Column::PublisherId),
            Expr::col(Column::PipelineId),
            Expr::col(Column::Version),
        ]);
        let rows = pipeline_versions::Entity::find()
            .filter(key.in_tuples(missing))
            .all(db)
            .await?;
        if rows.len() != wanted {
            return Err(corrupt_row("pipeline version"));
        }
        for row in rows {
            let key = (row.publisher_id, row.pipeline_id, row.version);
            let definition = Arc::new(definition_of(&row)?);
            self.known.insert(key, Arc::clone(&definition));
            found.insert(key, definition);
        }
        Ok(found)
    }
}

impl PlaneState for Definitions {}

impl Runs<Scoped> {
    /// The version that a run was created with. Its pipeline may have been deleted since.
    pub async fn version_of_run(&self, id: RunId) -> Result<PipelineVersion, StoreError> {
        let key = self.version_key_of_run(id).await?;
        let definitions = self.store.state::<Definitions>();
        let mut found = definitions.of(self.store.read(), [key]).await?;
        Ok(PipelineVersion {
            pipeline: PipelineId::from_uuid(key.1),
            version: key.2,
            definition: found
                .remove(&key)
                .ok_or_else(|| corrupt_row("pipeline version"))?,
        })
    }

    async fn version_key_of_run(&self, id: RunId) -> Result<VersionKey, StoreError> {
        use runs::Column;
        let owner = self.scope.uuid();
        let remembered = self.store.state::<Definitions>().of_runs.get(&id.uuid());
        if let Some(kept) = remembered
            && kept.0.0 == owner
            && self.scope.reaches(&kept.1)
        {
            return Ok(kept.0);
        }
        let found: Option<(Uuid, i64, String)> = runs::Entity::find_by_id((owner, id.uuid()))
            .select_only()
            .columns([
                Column::PipelineId,
                Column::PipelineVersion,
                Column::PipelineSlug,
            ])
            .into_tuple()
            .one(self.store.read())
            .await?;
        let (pipeline, version, _) = found
            .filter(|(_, _, slug)| self.scope.reaches(slug))
            .ok_or_else(Problem::not_found)?;
        Ok((owner, pipeline, version))
    }

    /// The version that a new run of a pipeline will probably keep: the one that this process saw
    /// last, or else the one in the database.
    pub async fn likely_version(&self, slug: &Slug) -> Result<PipelineVersion, StoreError> {
        let owner = self.scope.uuid();
        let definitions = self.store.state::<Definitions>();
        if self.scope.reaches(slug.as_str())
            && let Some(version) = definitions.last_seen.get(&(owner, slug.to_string()))
        {
            return Ok(version);
        }
        let version = PipelineVersion::of(&self.pipeline(slug.as_str()).await?);
        definitions.saw(owner, slug.as_str(), version.clone());
        Ok(version)
    }
}

impl PipelineVersion {
    pub(crate) fn of(pipeline: &Pipeline) -> Self {
        Self {
            pipeline: pipeline.id,
            version: pipeline.version,
            definition: Arc::clone(&pipeline.definition),
        }
    }
}
