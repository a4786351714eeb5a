//! How many more runs of a pipeline may be held at once.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use domain::{id::Id as _, run::RunStatus};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
    sea_query::{Expr, ExprTrait as _, LockType},
};
use uuid::Uuid;

use super::changes::Create;
use crate::{
    runs::pipelines::Pipeline,
    store::{
        db::Tx,
        entity::{pipelines, runs},
        error::Result,
    },
};

/// How many more runs of each pipeline may be held. Pipelines without a limit are not in the map.
pub(super) struct RunCapacity(HashMap<Uuid, u32>);

impl RunCapacity {
    /// The capacity for runs that their creators claim.
    pub(super) async fn of(
        tx: &Tx,
        creates: &[Arc<Create>],
        pipelines: &HashMap<(Uuid, String), Pipeline>,
    ) -> Result<Self> {
        let claimed = creates.iter().filter(|create| create.new.claim);
        let limited = claimed.filter_map(|create| {
            let owner = create.scope.uuid();
            let pipeline = pipelines.get(&(owner, create.new.pipeline.clone()))?;
            let limit = pipeline.definition.max_concurrent_runs?;
            Some(((owner, pipeline.id.uuid()), limit))
        });
        Self::count(tx, limited.collect()).await
    }

    /// Locks the pipelines, so that two claims cannot both take the last free one, and counts.
    pub(super) async fn count(tx: &Tx, limits: HashMap<(Uuid, Uuid), u32>) -> Result<Self> {
        if limits.is_empty() {
            return Ok(Self(HashMap::new()));
        }
        let keys: BTreeSet<(Uuid, Uuid)> = limits.keys().copied().collect();
        let key = Expr::tuple([
            Expr::col(pipelines::Column::PublisherId),
            Expr::col(pipelines::Column::Id),
        ]);
        pipelines::Entity::find()
            .select_only()
            .column(pipelines::Column::Id)
            .filter(key.in_tuples(keys))
            .order_by_asc(pipelines::Column::PublisherId)
            .order_by_asc(pipelines::Column::Id)
            .lock(LockType::NoKeyUpdate)
            .into_tuple::<Uuid>()
            .all(tx.db())
            .await?;
        Self::left(tx.db(), limits).await
    }

    /// Counts without a lock. The result may be out of date when it is used.
    pub(super) async fn left(
        db: &impl ConnectionTrait,
        limits: HashMap<(Uuid, Uuid), u32>,
    ) -> Result<Self> {
        if limits.is_empty() {
            return Ok(Self(HashMap::new()));
        }
        let keys: BTreeSet<(Uuid, Uuid)> = limits.keys().copied().collect();
        let key = Expr::tuple([
            Expr::col(runs::Column::PublisherId),
            Expr::col(runs::Column::PipelineId),
        ]);
        let held: Vec<(Uuid, i64)> = runs::Entity::find()
            .select_only()
            .column(runs::Column::PipelineId)
            .column_as(runs::Column::Id.count(), "held")
            .filter(runs::Column::Status.eq(RunStatus::Running.as_str()))
            .filter(key.in_tuples(keys))
            .group_by(runs::Column::PipelineId)
            .into_tuple()
            .all(db)
            .await?;
        let held: HashMap<Uuid, i64> = held.into_iter().collect();
        let room = limits.into_iter().map(|((_, pipeline), limit)| {
            let held = held.get(&pipeline).copied().unwrap_or(0);
            let held = u32::try_from(held).unwrap_or(u32::MAX);
            (pipeline, limit.saturating_sub(held))
        });
        Ok(Self(room.collect()))
    }

    /// How many more runs of the pipeline may be held, at most `wanted`.
    pub(super) fn available(&self, pipeline: Uuid, wanted: u32) -> u32 {
        self.0
            .get(&pipeline)
            .map_or(wanted, |room| Ord::min(wanted, *room))
    }

    /// Counts one more run as held; `false` if the limit is reached.
    pub(super) fn take(&mut self, pipeline: Uuid) -> bool {
        match self.0.get_mut(&pipeline) {
            None => true,
            Some(0) => false,
            Some(room) => {
                *room -= 1;
                true
            }
        }
    }
}
