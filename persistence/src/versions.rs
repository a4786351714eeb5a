//! The version of a pipeline that a run was created with, and keeps.

use domain::{
    Problem,
    id::{Id as _, PipelineId, RunId},
    pipeline::Definition,
};
use sea_orm::{EntityTrait as _, QuerySelect as _};
use uuid::Uuid;

use crate::{
    entity::{pipeline_versions, runs},
    error::{StoreError, damaged},
    scope::Scoped,
};

/// A version of a pipeline. It never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptVersion {
    /// Of which pipeline.
    pub pipeline: PipelineId,
    /// Which version.
    pub version: i64,
    /// What the pipeline was then.
    pub definition: Definition,
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
        let row = pipeline_versions::Entity::find_by_id((owner, pipeline, version))
            .one(self.store.read())
            .await?
            .ok_or_else(|| damaged("pipeline version"))?;
        Ok(KeptVersion {
            pipeline: PipelineId::from_uuid(pipeline),
            version,
            definition: serde_json::from_str(&row.definition)
                .map_err(|_| damaged("pipeline definition"))?,
        })
    }
}
