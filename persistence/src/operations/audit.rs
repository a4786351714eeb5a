//! Reading the audit log: lists, exports, and verification.

use std::time::Duration;

use domain::{
    Timestamp,
    audit::{Action, AuditRow, GENESIS},
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QueryResult, QuerySelect as _,
};
use uuid::Uuid;

use crate::{
    operations::Operations,
    store::{
        Scoped, Store, System,
        audit_log::mac_of,
        change::{AuditEntry, Context, audit_entry},
        entity::{audit_events, audit_heads},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        scope::OPERATOR,
        sql::padded,
        walk::{Check, Path, Span, Walk},
    },
};

/// Rows that one step of a verification or an export reads.
const STEP_ROWS: u64 = 1000;
/// Which entries of an audit log a list contains.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Only entries with this action.
    pub action: Option<Action>,
    /// Only entries with this actor's identifier.
    pub actor: Option<String>,
    /// Only entries with this target's identifier.
    pub target: Option<String>,
    /// Only entries at or after this time.
    pub since: Option<Timestamp>,
    /// Only entries before this time.
    pub until: Option<Timestamp>,
}

/// The result of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// Rows that were checked.
    pub checked: u64,
    /// The number and MAC of the last row. Whoever keeps it elsewhere can notice later that the end
    /// of the log was cut off.
    pub head: Checkpoint,
    /// The first fault, if any.
    pub fault: Option<ChainFault>,
}

/// The end of a log at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The last row's number; 0 for an empty log.
    pub seq: i64,
    /// The last row's MAC.
    pub mac: [u8; 32],
}

/// How a log differs from what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// A row before this one is missing, or rows were reordered.
    Gap {
        /// The number of the missing row.
        seq: i64,
    },
    /// A row's content, or its link to the row before, was changed.
    Edited {
        /// The row's number.
        seq: i64,
    },
    /// There is a row after the log's head, which the service did not write.
    PastHead {
        /// The first such row's number.
        seq: i64,
    },
    /// The log ends at another row than its head says.
    Head {
        /// The number in the head.
        seq: i64,
    },
    /// The row of the given checkpoint is missing or different.
    Checkpoint {
        /// The checkpoint's number.
        seq: i64,
    },
}

/// How far times may deviate from the order of numbers, because processes' clocks differ or a clock
/// was set.
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

/// The range of numbers for a filter of times. Numbers follow the order of commits, and times
/// follow the processes' clocks; they agree up to [`CLOCKS_AGREE`].
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
    /// The head of an owner's log. Rows after it do not belong to the log. So every reader reads
    /// the head first and stops there.
    async fn audit_head(&self, owner: Uuid) -> Result<audit_heads::Model> {
        audit_heads::Entity::find_by_id(owner)
            .one(self.read())
            .await?
            .ok_or_else(|| corrupt_row("audit head"))
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
        // Rows after the head are forged, and not returned.
        let keys = keys.to(Some(head.seq.saturating_add(1)));
        let found = walk.part(db, &page, keys).await?;
        let rows = audit_events::Entity::find()
            .filter(Column::OwnerId.eq(owner))
            .filter(Column::Seq.is_in(padded(found.keys.iter().copied())))
            .all(db)
            .await?;
        let page = Page::of_key_page(found, rows, |row| row.seq);
        page.try_map(|row| Ok(row_of(row).0))
    }

    /// The rows after number `after` up to `last`, oldest first, at most a thousand.
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

    /// Verifies the whole chain. The head is read first, so rows that are added meanwhile do not
    /// matter.
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
                    fault = Some(ChainFault::Gap { seq: seq + 1 });
                    break 'walk;
                }
                mac = row.mac(&chain, &mac);
                if mac.as_slice() != stored {
                    fault = Some(ChainFault::Edited { seq: row.seq });
                    break 'walk;
                }
                if checkpoint.is_some_and(|point| point.seq == row.seq && point.mac != mac) {
                    fault = Some(ChainFault::Checkpoint { seq: row.seq });
                    break 'walk;
                }
                seq = row.seq;
                checked += 1;
            }
        }
        if fault.is_none() && (seq != head.seq || mac != head.mac) {
            fault = Some(ChainFault::Head { seq: head.seq });
        }
        if fault.is_none() {
            fault = self.row_past_head(owner).await?;
        }
        if fault.is_none() && checkpoint.is_some_and(|point| point.seq > head.seq) {
            fault = checkpoint.map(|point| ChainFault::Checkpoint { seq: point.seq });
        }
        Ok(Verification {
            checked,
            head,
            fault,
        })
    }
}

impl Store {
    /// A row after the current head. The rows are read before the head: a row that the service
    /// writes meanwhile is covered by the later head.
    async fn row_past_head(&self, owner: Uuid) -> Result<Option<ChainFault>> {
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
            .map(|_| ChainFault::PastHead { seq: head.seq + 1 }))
    }
}

impl Operations<Scoped> {
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

    /// Verifies the publisher's whole log.
    pub async fn verify_audit(
        &self,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<Verification, StoreError> {
        self.store.verify_audit(self.scope.uuid(), checkpoint).await
    }
}

impl Operations<System> {
    /// The operator's log, newest first.
    pub async fn audit(
        &self,
        filter: &AuditFilter,
        page: PageRequest<i64>,
    ) -> Result<Page<AuditRow, i64>, StoreError> {
        self.store.list_audit(OPERATOR, filter, page).await
    }

    /// Verifies a publisher's log, or the operator's.
    pub async fn verify_audit(
        &self,
        publisher: Option<domain::id::PublisherId>,
    ) -> Result<Verification, StoreError> {
        let owner = publisher.map_or(OPERATOR, domain::id::Id::uuid);
        self.store.verify_audit(owner, None).await
    }

    /// Logs a use of a bootstrap token.
    pub async fn note_bootstrap_use(&self, context: &Context) -> Result<(), StoreError> {
        let entry = audit_entry(
            Action::BootstrapUsed,
            "bootstrap",
            &context.actor.id,
            serde_json::json!({}),
        );
        let entries = vec![AuditEntry {
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

impl Operations<Scoped> {
    /// Logs that a token of the publisher was refused something, in a transaction of its own.
    pub async fn note_denial(&self, context: &Context, reason: &str) -> Result<(), StoreError> {
        let entry = audit_entry(
            Action::TokenDenied,
            "token",
            &context.actor.id,
            serde_json::json!({ "reason": reason }),
        );
        let entries = vec![AuditEntry {
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
