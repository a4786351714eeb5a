//! Versions of pipelines. One never changes, so what was read once is kept.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use domain::{
    Problem,
    id::{Id as _, PipelineId, RunId},
    pipeline::Definition,
};
use moka::sync::Cache;
use sea_orm::{
    ConnectionTrait, EntityTrait as _, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, ExprTrait as _},
};
use uuid::Uuid;

use crate::{
    entity::{pipeline_versions, runs},
    error::{Result, StoreError, damaged},
    pipelines::definition_of,
    scope::Scoped,
};

/// Most versions whose definitions are kept at hand.
const CACHED_VERSIONS: u64 = 10_000;

/// Publisher, pipeline, version.
pub(crate) type VersionKey = (Uuid, Uuid, i64);

/// Definitions that were read before.
pub(crate) struct Definitions(Cache<VersionKey, Arc<Definition>>);

impl Definitions {
    pub(crate) fn new() -> Self {
        Self(Cache::new(CACHED_VERSIONS))
    }

    /// The definitions of versions that exist; those not at hand are read in one statement.
    pub(crate) async fn of<C: ConnectionTrait>(
        &self,
        db: &C,
        keys: impl IntoIterator<Item = VersionKey>,
    ) -> Result<HashMap<VersionKey, Arc<Definition>>> {
        use pipeline_versions::Column;
        let mut found = HashMap::new();
        let mut missing = BTreeSet::new();
        for key in keys {
            match self.0.get(&key) {
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
            return Err(damaged("pipeline version"));
        }
        for row in rows {
            let key = (row.publisher_id, row.pipeline_id, row.version);
            let definition = Arc::new(definition_of(&row)?);
            self.0.insert(key, Arc::clone(&definition));
            found.insert(key, definition);
        }
        Ok(found)
    }
}

/// A version of a pipeline. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptVersion {
    /// Of which pipeline.
    pub pipeline: PipelineId,
    /// Which version.
    pub version: i64,
    /// What the pipeline was then.
    pub definition: Arc<Definition>,
}

impl Scoped {
    /// The version that a run was created with; its pipeline may be deleted since.
    pub async fn version_of_run(&self, id: RunId) -> Result<KeptVersion, StoreError> {
        use runs::Column;
        let owner = self.scope.uuid();
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
        let key = (owner, pipeline, version);
        let definitions = &self.store.inner.definitions;
        let mut found = definitions.of(self.store.read(), [key]).await?;
        Ok(KeptVersion {
            pipeline: PipelineId::from_uuid(pipeline),
            version,
            definition: found
                .remove(&key)
                .ok_or_else(|| damaged("pipeline version"))?,
        })
    }
}
