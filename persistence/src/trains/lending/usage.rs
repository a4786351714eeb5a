//! Usage of accounts, as gateways report it: counted in this process at once, written in batches,
//! and read again regularly to include other processes' counts.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use domain::{Timestamp, account::Ceilings, id::Id as _, lending::Used};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, IdenStatic as _, QueryFilter as _,
    QuerySelect as _, sea_query::Expr,
};
use uuid::Uuid;

use super::{
    CredentialPool, PoolCache, ResolvedAccount, Snapshot, Tenant, pending::Span,
    reports::AccountReport,
};
use crate::{
    store::{
        Store, System,
        db::Tx,
        entity::account_usage,
        error::{Result, StoreError},
        sql::{self, Row, Sql},
    },
    trains::Trains,
    webhooks::health::BUCKET_MS,
};

/// How often the usage of a publisher's accounts is read, in milliseconds.
const READ_EVERY_MS: i64 = 60_000;

/// Adds counts to their spans. Counts of accounts that were removed are left out.
async fn add_all(tx: &Tx, spans: &BTreeMap<Span, (i64, i64)>) -> Result<()> {
    let backend = tx.db().get_database_backend();
    let rows: Vec<_> = spans.iter().collect();
    for part in sql::parts(rows) {
        let row = |(span, counts): (&Span, &(i64, i64))| account_usage::Model {
            publisher_id: span.0,
            account_id: span.1,
            bucket: span.2,
            requests: counts.0,
            tokens: counts.1,
        };
        let values = part.into_iter().map(row).map(Row::values);
        let mut sql = Sql::new(
            "INSERT INTO account_usage (publisher_id, account_id, bucket, requests, tokens) \
             SELECT * FROM (",
        );
        sql.values(values).push(
            ") AS new WHERE EXISTS (SELECT 1 FROM accounts a \
             WHERE a.publisher_id = new.column1 AND a.id = new.column2) \
             ON CONFLICT (publisher_id, account_id, bucket) DO UPDATE SET \
             requests = account_usage.requests + excluded.requests, \
             tokens = account_usage.tokens + excluded.tokens",
        );
        tx.db().execute_raw(sql.statement(backend)).await?;
    }
    Ok(())
}

impl Store {
    /// Counts the usage in a report.
    pub(super) fn note_usage(&self, by: &CredentialPool, report: &AccountReport) {
        let (requests, tokens) = (report.requests, report.tokens);
        if requests == 0 && tokens == 0 {
            return;
        }
        let account = report.account.uuid();
        let bucket = self.now().ms() / BUCKET_MS * BUCKET_MS;
        let span = (by.tenant.publisher, account, bucket);
        let counts = (i64::from(requests), i64::from(tokens));
        self.state::<PoolCache>().usage.add(span, counts);
        if by.snapshot.has_ceilings {
            let mut used = by.tenant.used();
            let used = used.entry(account).or_default();
            *used = used.and(requests.into(), tokens.into());
        }
    }

    /// Writes the counted usage. What cannot be written stays for the next time.
    pub(crate) async fn flush_usage(&self) -> Result<u64> {
        let pending = &self.state::<PoolCache>().usage;
        let taken = std::mem::take(&mut *pending.spans());
        if taken.is_empty() {
            return Ok(0);
        }
        let spans = &taken;
        let written = self
            .write(|tx| async move { add_all(&tx, spans).await })
            .await;
        if let Err(error) = written {
            for (span, counts) in taken {
                pending.add(span, counts);
            }
            return Err(error);
        }
        Ok(u64::try_from(taken.len()).unwrap_or(u64::MAX))
    }

    /// Reads the usage of accounts with ceilings.
    pub(super) async fn read_usage(
        &self,
        tenant: &Tenant,
        accounts: &HashMap<Uuid, Arc<ResolvedAccount>>,
    ) -> Result<()> {
        let now = self.now();
        tenant.used_read_ms.store(now.ms(), Ordering::Relaxed);
        let limited = accounts
            .iter()
            .filter(|(_, account)| account.ceilings != Ceilings::default())
            .map(|(id, _)| *id);
        let mut all = HashMap::new();
        for account in limited {
            let used = self.used_of(tenant.publisher, account, now).await?;
            let pending = self
                .state::<PoolCache>()
                .usage
                .of(tenant.publisher, account);
            all.insert(account, used.and(pending.0, pending.1));
        }
        *tenant.used() = all;
        Ok(())
    }

    async fn used_of(&self, publisher: Uuid, account: Uuid, now: Timestamp) -> Result<Used> {
        use account_usage::Column;
        let since = |hours| now.minus(Duration::from_hours(hours)).ms();
        let sum = |column: Column, hours| {
            let (column, since) = (column.as_str(), since(hours));
            Expr::cust(format!(
                "CAST(COALESCE(SUM(CASE WHEN bucket > {since} THEN {column} ELSE 0 END), 0) AS BIGINT)"
            ))
        };
        let sums: Option<(i64, i64, i64, i64)> = account_usage::Entity::find()
            .select_only()
            .column_as(sum(Column::Requests, 5), "requests_5h")
            .column_as(sum(Column::Tokens, 5), "tokens_5h")
            .column_as(sum(Column::Requests, 168), "requests_7d")
            .column_as(sum(Column::Tokens, 168), "tokens_7d")
            .filter(Column::PublisherId.eq(publisher))
            .filter(Column::AccountId.eq(account))
            .filter(Column::Bucket.gt(since(168)))
            .into_tuple()
            .one(self.read())
            .await?;
        let sums = sums.unwrap_or_default();
        let count = |sum: i64| u64::try_from(sum).unwrap_or(0);
        Ok(Used {
            requests_5h: count(sums.0),
            tokens_5h: count(sums.1),
            requests_7d: count(sums.2),
            tokens_7d: count(sums.3),
        })
    }

    /// Reads the usage of a publisher's accounts again if that is due, in a task of its own.
    pub(super) fn renew_usage(&self, tenant: &Arc<Tenant>, snapshot: &Arc<Snapshot>) {
        if !snapshot.has_ceilings {
            return;
        }
        let now = self.now().ms();
        let read = tenant.used_read_ms.load(Ordering::Relaxed);
        let due = now - read >= READ_EVERY_MS
            && tenant
                .used_read_ms
                .compare_exchange(read, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if !due {
            return;
        }
        let (store, tenant, snapshot) = (self.clone(), Arc::clone(tenant), Arc::clone(snapshot));
        self.inner.tasks.spawn(async move {
            let members = snapshot.trains.values().flat_map(|train| &train.accounts);
            let accounts = members.map(|(_, account)| (account.id.uuid(), Arc::clone(account)));
            if let Err(error) = store.read_usage(&tenant, &accounts.collect()).await {
                tracing::warn!(%error, "the usage of accounts could not be read again");
            }
        });
    }
}

impl Trains<System> {
    /// Writes the usage that gateways reported. Returns of how many accounts.
    pub async fn flush_usage(&self) -> Result<u64, StoreError> {
        self.store.flush_usage().await
    }
}
