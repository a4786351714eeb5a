//! How the audit log is written: in the transaction of the change, chained with a key of the log's
//! owner.

use std::collections::BTreeMap;

use domain::{
    audit::{Action, AuditRow, GENESIS},
    id::{AuditId, Id as _},
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
    sea_query::{ExprTrait as _, LockType},
};
use uuid::Uuid;

use crate::store::{
    Store,
    change::{AuditEntry, Context, audit_entry},
    db::Tx,
    entity::{audit_events, audit_heads},
    error::{Result, corrupt_row},
};

/// At most so many forged rows are listed in one audit entry.
const FORGED_SHOWN: u64 = 20;

/// A stored MAC as an array.
pub(crate) fn mac_of(bytes: &[u8]) -> Result<[u8; 32]> {
    <[u8; 32]>::try_from(bytes).map_err(|_| corrupt_row("audit code"))
}

impl Store {
    /// Appends to each owner's log. Runs last in a transaction, since it locks the heads of the
    /// logs. Owners are in a fixed order, so that two such transactions cannot deadlock.
    pub(crate) async fn append_audit(
        &self,
        tx: &Tx,
        context: &Context,
        entries: Vec<AuditEntry>,
    ) -> Result<()> {
        let mut by_owner: BTreeMap<Uuid, Vec<&AuditEntry>> = BTreeMap::new();
        for entry in &entries {
            for owner in &entry.owners {
                by_owner.entry(*owner).or_default().push(entry);
            }
        }
        // The operator's head comes last because all publishers share it.
        for (owner, entries) in by_owner.into_iter().rev() {
            self.append_to(tx, context, owner, &entries).await?;
        }
        Ok(())
    }

    async fn append_to(
        &self,
        tx: &Tx,
        context: &Context,
        owner: Uuid,
        entries: &[&AuditEntry],
    ) -> Result<()> {
        let keys = self.inner.keys.of(tx.db(), owner).await?;
        let head = audit_heads::Entity::find_by_id(owner)
            .lock(LockType::NoKeyUpdate)
            .one(tx.db())
            .await?
            .ok_or_else(|| corrupt_row("audit head"))?;
        let mut seq = head.seq;
        let mut mac = mac_of(&head.mac)?;
        let forged = remove_past(tx, owner, head.seq).await?;
        let mut rows = Vec::with_capacity(entries.len() + 1);
        for entry in forged.iter().chain(entries.iter().copied()) {
            seq += 1;
            let row = AuditRow {
                owner,
                seq,
                id: AuditId::generate(tx.now).uuid(),
                at: tx.now,
                actor_kind: context.actor.kind.as_str().to_owned(),
                actor_id: context.actor.id.clone(),
                action: entry.action.as_str().to_owned(),
                target_kind: entry.target_kind.to_owned(),
                target_id: entry.target_id.clone(),
                request_id: context.request_id.clone(),
                address: context.address.clone(),
                user_agent: context.user_agent.clone(),
                metadata: entry.metadata.to_string(),
            };
            mac = row.mac(&keys.chain, &mac);
            rows.push(active(row, mac));
        }
        audit_events::Entity::insert_many(rows)
            .exec_without_returning(tx.db())
            .await?;
        audit_heads::Entity::update(audit_heads::ActiveModel {
            owner_id: Set(owner),
            seq: Set(seq),
            mac: Set(mac.to_vec()),
        })
        .exec(tx.db())
        .await?;
        Ok(())
    }

    /// Starts an owner's log.
    pub(crate) async fn start_audit<C: ConnectionTrait>(&self, db: &C, owner: Uuid) -> Result<()> {
        audit_heads::Entity::insert(audit_heads::ActiveModel {
            owner_id: Set(owner),
            seq: Set(0),
            mac: Set(GENESIS.to_vec()),
        })
        .exec_without_returning(db)
        .await?;
        Ok(())
    }
}

/// Removes rows behind the head, which the caller has locked, and returns an audit entry about
/// them. Such rows are forged, since the service moves the head with each row. If they stayed, the
/// next audited change would conflict with them, and so would every later one.
async fn remove_past(tx: &Tx, owner: Uuid, head: i64) -> Result<Option<AuditEntry>> {
    use audit_events::Column;
    let past = || Column::OwnerId.eq(owner).and(Column::Seq.gt(head));
    let forged = audit_events::Entity::find()
        .filter(past())
        .order_by_asc(Column::Seq)
        .limit(FORGED_SHOWN)
        .all(tx.db())
        .await?;
    if forged.is_empty() {
        return Ok(None);
    }
    let gone = audit_events::Entity::delete_many().filter(past());
    let count = gone.exec(tx.db()).await?.rows_affected;
    metrics::counter!("stationmaster_audit_rows_forged_total").increment(count);
    for row in &forged {
        tracing::error!(
            owner = %row.owner_id, seq = row.seq, action = row.action, actor = row.actor_id,
            "a row that the service did not write stood behind an audit log's end; it was removed"
        );
    }
    let facts = serde_json::json!({ "rows": count, "after_seq": head });
    Ok(Some(audit_entry(
        Action::AuditTampered,
        "audit",
        AuditId::from_uuid(forged[0].id),
        facts,
    )))
}

fn active(row: AuditRow, mac: [u8; 32]) -> audit_events::ActiveModel {
    audit_events::ActiveModel {
        owner_id: Set(row.owner),
        seq: Set(row.seq),
        id: Set(row.id),
        at: Set(row.at.ms()),
        actor_kind: Set(row.actor_kind),
        actor_id: Set(row.actor_id),
        action: Set(row.action),
        target_kind: Set(row.target_kind),
        target_id: Set(row.target_id),
        request_id: Set(row.request_id),
        address: Set(row.address),
        user_agent: Set(row.user_agent),
        metadata: Set(row.metadata),
        mac: Set(mac.to_vec()),
    }
}
