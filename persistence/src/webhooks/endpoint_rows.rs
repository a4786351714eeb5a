//! How changes read and write the rows of endpoints.

use domain::{
    Problem,
    id::{EndpointId, Id as _},
};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, EntityTrait as _, IntoActiveModel as _,
    QueryFilter as _, Select,
};
use uuid::Uuid;

use crate::store::{db::Tx, entity::webhook_endpoints, error::Result};

/// The endpoints of a publisher that are not deleted.
pub(crate) fn live(publisher: Uuid) -> Select<webhook_endpoints::Entity> {
    webhook_endpoints::Entity::find()
        .filter(webhook_endpoints::Column::PublisherId.eq(publisher))
        .filter(webhook_endpoints::Column::DeletedAt.is_null())
}

pub(crate) async fn live_row(
    tx: &Tx,
    publisher: Uuid,
    id: EndpointId,
) -> Result<webhook_endpoints::Model> {
    let query = live(publisher).filter(webhook_endpoints::Column::Id.eq(id.uuid()));
    query
        .one(tx.db())
        .await?
        .ok_or_else(|| Problem::not_found().into())
}

pub(crate) async fn write_row(
    tx: &Tx,
    row: webhook_endpoints::Model,
) -> Result<webhook_endpoints::Model> {
    let row = webhook_endpoints::Model {
        revision: row.revision + 1,
        updated_at: tx.now.ms(),
        ..row
    };
    tx.touches_endpoints_of(row.publisher_id);
    let active = row.into_active_model().reset_all();
    Ok(webhook_endpoints::Entity::update(active)
        .exec(tx.db())
        .await?)
}
