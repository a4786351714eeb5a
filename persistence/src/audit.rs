//! The audit log: appended in the change's own transaction, chained under a key of its owner.

use std::{collections::BTreeMap, time::Duration};

use domain::{
    Timestamp,
    audit::{Action, AuditRow, GENESIS},
    id::{AuditId, Id as _},
};
use sea_orm::{
    ActiveValue::Set,
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QueryResult, QuerySelect as _,
    sea_query::{ExprTrait as _, LockType},
};
use uuid::Uuid;

use crate::{
    Store,
    change::{Context, Entry},
    db::Tx,
    entity::{audit_events, audit_heads},
    error::{Result, StoreError, damaged},
    page::{Page, PageRequest},
    scope::OPERATOR,
    sql::padded,
    store::{Scoped, System},
    walk::{Check, Path, Span, Walk},
};

/// Rows that one step of a verification or an export reads.
const STEP_ROWS: u64 = 1000;
/// Forged rows that are named in the log at a time.
const FORGED_SHOWN: u64 = 20;

/// What an audit listing is narrowed to.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only this action.
    pub action: Option<Action>,
    /// Only this actor's identifier.
    pub actor: Option<String>,
    /// Only this target's identifier.
    pub target: Option<String>,
    /// Only at or after this moment.
    pub since: Option<Timestamp>,
    /// Only before this moment.
    pub until: Option<Timestamp>,
}

/// What a verification found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Rows that were checked.
    pub checked: u64,
    /// The last row's number and code; keep it elsewhere to notice a cut tail later.
    pub head: Checkpoint,
    /// The first fault, if any.
    pub fault: Option<Fault>,
}

/// The end of a log at some moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last row's number; 0 for an empty log.
    pub seq: i64,
    /// Its code.
    pub mac: [u8; 32],
}

/// Where a log is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A row is missing before this one, or rows changed places.
    Gap {
        /// The number that should stand here.
        seq: i64,
    },
    /// A row's content or its place in the chain was changed.
    Edited {
        /// Its number.
        seq: i64,
    },
    /// There is a row behind the log's end, which the service did not write.
    PastHead {
        /// The first such row's number.
        seq: i64,
    },
    /// The log ends elsewhere than its head says.
    Head {
        /// The number that the head names.
        seq: i64,
    },
    /// The row of the checkpoint given is missing or another one.
    Checkpoint {
        /// The checkpoint's number.
        seq: i64,
    },
}

/// How far the clocks of processes, or of one that was set, may be apart for a log's times to be
/// found by number.
const CLOCKS_AGREE: Duration = Duration::from_hours(24);

impl AuditFilter {
    fn wants(&self, row: &QueryResult) -> Result<bool> {
        let at: i64 = row.try_get("", "at")?;
        let (action, actor, target): (String, String, String) = (
            row.try_get("", "action")?,
            row.try_get("", "actor_id")?,
            row.try_get("", "target_id")?,
        );
        Ok(self.since.is_none_or(|since| since.ms() <= at)
            && self.until.is_none_or(|until| at < until.ms())
            && self.action.is_none_or(|wanted| wanted.as_str() == action)
            && self.actor.as_ref().is_none_or(|wanted| *wanted == actor)
            && self.target.as_ref().is_none_or(|wanted| *wanted == target))
    }
}

fn row_of(model: audit_events::Model) -> (AuditRow, Vec<u8>) {
    let row = AuditRow {
        owner: model.owner_id,
        seq: model.seq,
        id: model.id,
        at: Timestamp::from_ms(model.at),
        actor_kind: model.actor_kind,
        actor_id: model.actor_id,
        action: model.action,
        target_kind: model.target_kind,
        target_id: model.target_id,
        request_id: model.request_id,
        address: model.address,
        user_agent: model.user_agent,
        metadata: model.metadata,
    };
    (row, model.mac)
}

fn mac_of(bytes: &[u8]) -> Result<[u8; 32]> {
    <[u8; 32]>::try_from(bytes).map_err(|_| damaged("audit code"))
}

/// The numbers between which rows of the times asked for can stand. Numbers follow the order
/// of commits, and times the processes' clocks: within [`CLOCKS_AGREE`] both say the same.
async fn audit_span(
    db: &impl ConnectionTrait,
    owner: Uuid,
    filter: &AuditFilter,
    after: Option<i64>,
) -> Result<Span<i64>> {
    use audit_events::Column;
    let rows = || {
        let rows = audit_events::Entity::find().filter(Column::OwnerId.eq(owner));
        rows.select_only().column(Column::Seq).limit(1)
    };
    let mut span = Span::after(after);
    if let Some(since) = filter.since {
        let before = rows()
            .filter(Column::At.lt(since.minus(CLOCKS_AGREE).ms()))
            .order_by_desc(Column::At)
            .order_by_desc(Column::Seq);
        span = span.from(before.into_tuple().one(db).await?);
    }
    if let Some(until) = filter.until {
        let beyond = rows()
            .filter(Column::At.gte(until.plus(CLOCKS_AGREE).ms()))
            .order_by_asc(Column::At)
            .order_by_asc(Column::Seq);
        span = span.to(beyond.into_tuple().one(db).await?);
    }
    Ok(span)
}

impl Store {
    /// Appends to each owner's log. Runs last in a transaction, since it locks the logs' heads;
    /// owners come in one order, so that two such transactions can't wait for each other.
    pub(crate) async fn append_audit(
        &self,
        tx: &Tx,
        context: &Context,
        entries: Vec<Entry>,
    ) -> Result<()> {
        let mut by_owner: BTreeMap<Uuid, Vec<&Entry>> = BTreeMap::new();
        for entry in &entries {
            for owner in &entry.owners {
                by_owner.entry(*owner).or_default().push(entry);
            }
        }
        // The operator's head comes last: all publishers share it.
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
        entries: &[&Entry],
    ) -> Result<()> {
        let keys = self.inner.keys.of(tx.db(), owner).await?;
        let head = audit_heads::Entity::find_by_id(owner)
            .lock(LockType::NoKeyUpdate)
            .one(tx.db())
            .await?
            .ok_or_else(|| damaged("audit head"))?;
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

    /// The head of an owner's log. Rows behind it are not the log's: whatever reads the log reads
    /// the head first and stops there.
    async fn audit_head(&self, owner: Uuid) -> Result<audit_heads::Model> {
        audit_heads::Entity::find_by_id(owner)
            .one(self.read())
            .await?
            .ok_or_else(|| damaged("audit head"))
    }

    async fn list_audit(
        &self,
        owner: Uuid,
        filter: &AuditFilter,
        page: PageRequest<i64>,
    ) -> Result<Page<AuditRow, i64>> {
        use audit_events::Column;
        let head = self.audit_head(owner).await?;
        let scan = self.scan(owner).await?;
        let db = scan.db();
        let mut paths = Vec::new();
        let by = |index, column, value: &str| Path::by(index, column, [value.into()]);
        if let Some(target) = &filter.target {
            paths.push(by("audit_events_by_target", &["target_id"], target));
        }
        if let Some(actor) = &filter.actor {
            paths.push(by("audit_events_by_actor", &["actor_id"], actor));
        }
        if let Some(action) = filter.action {
            let action = action.as_str();
            paths.push(by("audit_events_by_action", &["action"], action));
        }
        if paths.is_empty() {
            paths.push(Path::primary());
        }
        let timed = filter.since.is_some() || filter.until.is_some();
        let wants = |row: &QueryResult| filter.wants(row);
        let check = Check {
            columns: &["at", "action", "actor_id", "target_id"],
            wants: &wants,
        };
        let walk = Walk {
            owner: "owner_id",
            check: (timed || paths.len() > 1).then_some(check),
            ..Walk::over("audit_events", owner, paths)
        };
        let keys = audit_span(db, owner, filter, page.after).await?;
        // What lies past the head is forged: it is not shown.
        let keys = keys.to(Some(head.seq.saturating_add(1)));
        let found = walk.part(db, &page, keys).await?;
        let rows = audit_events::Entity::find()
            .filter(Column::OwnerId.eq(owner))
            .filter(Column::Seq.is_in(padded(found.keys.iter().copied())))
            .all(db)
            .await?;
        let page = Page::of_found(found, rows, |row| row.seq);
        page.try_map(|row| Ok(row_of(row).0))
    }

    /// The rows after `after` up to `last`, oldest first, at most a thousand of them.
    async fn audit_step(
        &self,
        owner: Uuid,
        after: i64,
        last: i64,
    ) -> Result<Vec<(AuditRow, Vec<u8>)>> {
        use audit_events::Column;
        let scan = self.scan(owner).await?;
        let rows = audit_events::Entity::find()
            .filter(Column::OwnerId.eq(owner))
            .filter(Column::Seq.gt(after))
            .filter(Column::Seq.lte(last))
            .order_by_asc(Column::Seq)
            .limit(STEP_ROWS)
            .all(scan.db())
            .await?;
        Ok(rows.into_iter().map(row_of).collect())
    }

    /// Walks the whole chain. The head is read first: rows added meanwhile are not its concern.
    async fn verify_audit(
        &self,
        owner: Uuid,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Verification> {
        let chain = self.inner.keys.chain_of(self.read(), owner).await?;
        let head = self.audit_head(owner).await?;
        let head = Checkpoint {
            seq: head.seq,
            mac: mac_of(&head.mac)?,
        };
        let (mut seq, mut mac, mut checked) = (0, GENESIS, 0);
        let mut fault = None;
        'walk: while seq < head.seq {
            let step = self.audit_step(owner, seq, head.seq).await?;
            if step.is_empty() {
                break;
            }
            for (row, stored) in step {
                if row.seq != seq + 1 {
                    fault = Some(Fault::Gap { seq: seq + 1 });
                    break 'walk;
                }
                mac = row.mac(&chain, &mac);
                if mac.as_slice() != stored {
                    fault = Some(Fault::Edited { seq: row.seq });
                    break 'walk;
                }
                if checkpoint.is_some_and(|point| point.seq == row.seq && point.mac != mac) {
                    fault = Some(Fault::Checkpoint { seq: row.seq });
                    break 'walk;
                }
                seq = row.seq;
                checked += 1;
            }
        }
        if fault.is_none() && (seq != head.seq || mac != head.mac) {
            fault = Some(Fault::Head { seq: head.seq });
        }
        if fault.is_none() {
            fault = self.row_past_head(owner).await?;
        }
        if fault.is_none() && checkpoint.is_some_and(|point| point.seq > head.seq) {
            fault = checkpoint.map(|point| Fault::Checkpoint { seq: point.seq });
        }
        Ok(Verification {
            checked,
            head,
            fault,
        })
    }
}

impl Store {
    /// A row behind the present head. The rows are looked at first: one that was written meanwhile
    /// came with a head at least as far.
    async fn row_past_head(&self, owner: Uuid) -> Result<Option<Fault>> {
        let last = audit_events::Entity::find()
            .select_only()
            .column(audit_events::Column::Seq)
            .filter(audit_events::Column::OwnerId.eq(owner))
            .order_by_desc(audit_events::Column::Seq)
            .into_tuple::<i64>()
            .one(self.read())
            .await?;
        let head = self.audit_head(owner).await?;
        Ok(last
            .filter(|last| *last > head.seq)
            .map(|_| Fault::PastHead { seq: head.seq + 1 }))
    }
}

/// Removes rows behind the head, which the caller holds, and answers what the log says of that.
/// They are forged: the service moves the head with each row. Left there they would stand in the
/// way of the next one, and so of every audited change.
async fn remove_past(tx: &Tx, owner: Uuid, head: i64) -> Result<Option<Entry>> {
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
    Ok(Some(crate::change::entry(
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

impl Scoped {
    /// The publisher's log, newest first.
    pub async fn audit(
        &self,
        filter: &AuditFilter,
        page: PageRequest<i64>,
    ) -> Result<Page<AuditRow, i64>, StoreError> {
        self.store.list_audit(self.scope.uuid(), filter, page).await
    }

    /// The rows after number `after`, oldest first, for an export; empty at the end.
    pub async fn audit_after(&self, after: i64) -> Result<Vec<AuditRow>, StoreError> {
        let (store, owner) = (&self.store, self.scope.uuid());
        let head = store.audit_head(owner).await?;
        let rows = store.audit_step(owner, after, head.seq).await?;
        Ok(rows.into_iter().map(|(row, _)| row).collect())
    }

    /// Checks the publisher's whole log.
    pub async fn verify_audit(
        &self,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Verification, StoreError> {
        self.store.verify_audit(self.scope.uuid(), checkpoint).await
    }
}

impl System {
    /// The operator's log, newest first.
    pub async fn audit(
        &self,
        filter: &AuditFilter,
        page: PageRequest<i64>,
    ) -> Result<Page<AuditRow, i64>, StoreError> {
        self.store.list_audit(OPERATOR, filter, page).await
    }

    /// Checks a publisher's log, or the operator's.
    pub async fn verify_audit(
        &self,
        publisher: Option<domain::id::PublisherId>,
    ) -> Result<Verification, StoreError> {
        let owner = publisher.map_or(OPERATOR, domain::id::Id::uuid);
        self.store.verify_audit(owner, None).await
    }

    /// Writes down a use of a bootstrap token.
    pub async fn note_bootstrap_use(&self, context: &Context) -> Result<(), StoreError> {
        let entry = crate::change::entry(
            Action::BootstrapUsed,
            "bootstrap",
            &context.actor.id,
            serde_json::json!({}),
        );
        let entries = vec![Entry {
            owners: vec![OPERATOR],
            ..entry
        }];
        let entries = &entries;
        let store = &self.store;
        store
            .write(|tx| async move { store.append_audit(&tx, context, entries.clone()).await })
            .await
    }
}

impl Scoped {
    /// Writes down that a token of the publisher was refused something. A transaction of its own.
    pub async fn note_denial(&self, context: &Context, reason: &str) -> Result<(), StoreError> {
        let entry = crate::change::entry(
            Action::TokenDenied,
            "token",
            &context.actor.id,
            serde_json::json!({ "reason": reason }),
        );
        let entries = vec![Entry {
            owners: vec![self.scope.uuid()],
            ..entry
        }];
        let (entries, store) = (&entries, &self.store);
        store
            .write_for(self.scope.uuid(), |tx| async move {
                store.append_audit(&tx, context, entries.clone()).await
            })
            .await
    }
}
