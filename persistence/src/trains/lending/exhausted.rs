//! Tells a publisher that a train has no usable account.

use domain::{
    Timestamp,
    event::OwnType,
    id::{Id as _, TrainId},
    lending::EXHAUSTED_EVERY,
};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, ExprTrait as _, QueryFilter as _, sea_query::Expr,
};
use serde_json::json;

use crate::{
    store::{
        Scoped,
        entity::trains,
        error::{Result, StoreError},
    },
    trains::Trains,
    trains::notices::{NoticeTrigger, notify},
};

impl Trains<Scoped> {
    /// Emits `stationmaster.train.exhausted`, unless any process did so within the last five
    /// minutes. Returns whether it did. Trains that want it also get a Slack message.
    pub async fn tell_exhausted(
        &self,
        train: TrainId,
        slug: &str,
        available_at: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        use trains::Column;
        let owner = self.scope.uuid();
        self.store
            .write_for(owner, |tx| async move {
                let before = tx.now.minus(EXHAUSTED_EVERY).ms();
                let told = trains::Entity::update_many()
                    .col_expr(Column::ExhaustedAt, Expr::value(tx.now.ms()))
                    .filter(Column::PublisherId.eq(owner))
                    .filter(Column::Id.eq(train.uuid()))
                    .filter(
                        Column::ExhaustedAt
                            .is_null()
                            .or(Column::ExhaustedAt.lte(before)),
                    )
                    .exec(tx.db())
                    .await?;
                if told.rows_affected == 0 {
                    return Ok(false);
                }
                let data = json!({
                    "train": slug,
                    "available_at": available_at.map(|at| at.to_string()),
                });
                let word = OwnType::TrainExhausted.as_str();
                crate::webhooks::events::emit(&tx, owner, word, &data, None).await?;
                let trigger = NoticeTrigger::Exhausted(train, available_at);
                notify(&tx, self.scope.publisher(), &trigger).await?;
                Ok(true)
            })
            .await
    }
}
