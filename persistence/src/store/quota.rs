//! A publisher's quotas, and the refusal of more.

use domain::{Code, Problem, limits::Quotas};
use sea_orm::EntityTrait as _;
use uuid::Uuid;

use crate::store::{
    db::Tx,
    entity::publishers,
    error::{Result, StoreError, corrupt_row},
};

/// A publisher's quotas, from its row.
pub(crate) fn quotas_in(row: &publishers::Model) -> Result<Quotas> {
    serde_json::from_str(&row.quotas).map_err(|_| corrupt_row("quotas"))
}

/// A publisher's quotas, as this transaction sees them.
pub(crate) async fn quotas_of(tx: &Tx, publisher: Uuid) -> Result<Quotas> {
    let row = publishers::Entity::find_by_id(publisher)
        .one(tx.db())
        .await?;
    let row = row.ok_or_else(Problem::not_found)?;
    quotas_in(&row)
}

pub(crate) fn over_quota(what: &str, limit: u32) -> StoreError {
    Problem::new(
        Code::QuotaExceeded,
        format!("The publisher may have {limit} {what}."),
    )
    .into()
}
