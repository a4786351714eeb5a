//! Reports of gateways, which cause cooldowns of accounts.
//!
//! A report is written with one statement before it is answered, and takes effect in this process
//! at once. Other processes read recent reports every quarter of a second. Reports do not affect
//! access, so the caches of tokens and snapshots are not invalidated.

use std::{sync::atomic::Ordering, time::Duration};

use domain::{
    Problem, Timestamp,
    id::{AccountId, Id as _, TokenId, TrainId},
    lending::UseOutcome,
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DbErr, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, SqlErr,
};
use uuid::Uuid;

use super::{
    CredentialPool, PoolCache, Tenant,
    cooldowns::{Cooldown, Cooldowns, REMEMBERED_MS, WHOLE, readable},
};
use crate::{
    store::{
        Scoped, Store,
        db::Tx,
        entity::account_cooldowns,
        error::{Result, StoreError},
        sql::Sql,
    },
    trains::Trains,
};

/// A cooldown is not extended by less than this, in milliseconds.
const SLACK_MS: i64 = 1000;
/// How far back other processes' reports are read. It covers differences of clocks and the duration
/// of commits.
const LOOK_BACK: Duration = Duration::from_secs(10);
/// A report does not cause a refresh of an account that was refreshed within this time.
const REFRESHED_LATELY: Duration = Duration::from_mins(1);
/// Most reports that one poll reads; the newest come first.
const POLL_ROWS: u64 = 10_000;

/// A gateway's report about a request with a lent credential.
#[derive(Clone, Debug)]
pub struct AccountReport {
    /// The account that was used.
    pub account: AccountId,
    /// The outcome of the request.
    pub outcome: UseOutcome,
    /// The model that the outcome concerns; `None` for the account as a whole.
    pub model: Option<String>,
    /// How long the upstream asked to wait.
    pub retry_after: Option<Duration>,
    /// The number of requests.
    pub requests: u32,
    /// The number of tokens that the model used.
    pub tokens: u32,
}

/// A cooldown to write.
struct NewCooldown<'a> {
    publisher: Uuid,
    account: Uuid,
    model: &'a str,
    outcome: UseOutcome,
    length: Duration,
    reporter: TokenId,
    /// Whether the credential was refused and should be refreshed.
    refresh: bool,
}

impl NewCooldown<'_> {
    /// Writes the cooldown, unless a longer one exists. Returns what was written.
    async fn write(&self, tx: &Tx) -> Result<Option<Cooldown>> {
        if self.refresh {
            self.make_refresh_due(tx).await?;
        }
        let mut sql = Sql::new(
            "INSERT INTO account_cooldowns \
             (publisher_id, account_id, model, until, reason, reported_at, reported_by) VALUES (",
        );
        sql.bind(self.publisher).push(", ").bind(self.account);
        sql.push(", ").bind(self.model).push(", ");
        sql.bind(tx.now.plus(self.length).ms()).push(", ");
        sql.bind(self.outcome.as_str()).push(", ").bind(tx.now.ms());
        sql.push(", ").bind(self.reporter.uuid());
        // The time grows with each change of a row, so that it also orders the changes however the
        // processes' clocks differ.
        sql.push(
            ") ON CONFLICT (publisher_id, account_id, model) DO UPDATE SET \
             until = excluded.until, reason = excluded.reason, \
             reported_by = excluded.reported_by, reported_at = \
             CASE WHEN account_cooldowns.reported_at >= excluded.reported_at \
             THEN account_cooldowns.reported_at + 1 ELSE excluded.reported_at END \
             WHERE account_cooldowns.until < excluded.until \
             RETURNING until, reason, reported_at",
        );
        let statement = sql.statement(tx.db().get_database_backend());
        let row = tx.db().query_one_raw(statement).await;
        row.map_err(gone)?
            .as_ref()
            .map(Cooldown::of_row)
            .transpose()
    }

    /// Not while the endpoint fails, and not soon after a refresh: reports must not determine how
    /// often an upstream is called.
    async fn make_refresh_due(&self, tx: &Tx) -> Result<()> {
        let now = tx.now.ms();
        let mut sql = Sql::new("UPDATE accounts SET refresh_due_at = ");
        sql.bind(now).push(" WHERE publisher_id = ");
        sql.bind(self.publisher).push(" AND id = ");
        sql.bind(self.account);
        sql.push(" AND credential_type = 'oauth' AND health = 'ok' AND refresh_due_at > ");
        sql.bind(now);
        sql.push(" AND refresh_failures = 0 AND (refreshed_at IS NULL OR refreshed_at <= ");
        sql.bind(tx.now.minus(REFRESHED_LATELY).ms()).push(")");
        let statement = sql.statement(tx.db().get_database_backend());
        tx.db().execute_raw(statement).await?;
        Ok(())
    }
}

/// The account was removed meanwhile.
fn gone(error: DbErr) -> StoreError {
    match error.sql_err() {
        Some(SqlErr::ForeignKeyConstraintViolation(_)) => Problem::not_found().into(),
        _ => error.into(),
    }
}

/// Which cooldowns of an account to end.
#[derive(Clone, Copy)]
pub(crate) enum Ending<'a> {
    /// That of the account as a whole, and that for a model.
    WholeAnd(&'a str),
    /// That for a model only.
    Model(&'a str),
    /// All cooldowns.
    Everything,
}

/// Ends cooldowns of an account. Returns the rows as they are then.
pub(crate) async fn end_cooldowns(
    tx: &Tx,
    publisher: Uuid,
    account: Uuid,
    ending: Ending<'_>,
) -> Result<Vec<(String, Cooldown)>> {
    let now = tx.now.ms();
    let mut sql = Sql::new("UPDATE account_cooldowns SET until = ");
    sql.bind(now)
        .push(", reported_at = CASE WHEN reported_at >= ");
    sql.bind(now).push(" THEN reported_at + 1 ELSE ").bind(now);
    sql.push(" END WHERE publisher_id = ").bind(publisher);
    sql.push(" AND account_id = ").bind(account);
    match ending {
        Ending::WholeAnd(model) => {
            sql.push(" AND model IN (").bind_list([WHOLE, model]);
            sql.push(")");
        }
        Ending::Model(model) => {
            sql.push(" AND model = ").bind(model);
        }
        Ending::Everything => {}
    }
    sql.push(" AND until > ").bind(now);
    sql.push(" RETURNING model, until, reason, reported_at");
    let statement = sql.statement(tx.db().get_database_backend());
    let rows = tx.db().query_all_raw(statement).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("", "model")?, Cooldown::of_row(row)?)))
        .collect()
}

/// Removes ended cooldowns of an account's models.
async fn prune(tx: &Tx, publisher: Uuid, account: Uuid) -> Result<()> {
    use account_cooldowns::Column;
    let oldest = tx.now.ms() - REMEMBERED_MS;
    account_cooldowns::Entity::delete_many()
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::AccountId.eq(account))
        .filter(Column::Until.lte(oldest))
        .filter(Column::ReportedAt.lte(oldest))
        .exec(tx.db())
        .await?;
    Ok(())
}

impl Trains<Scoped> {
    /// Takes in a gateway's report. `reporter` is the train's token that the gateway used.
    ///
    /// # Errors
    /// 404 if the account is not one of the train's.
    pub async fn report(
        &self,
        train: TrainId,
        reporter: TokenId,
        report: &AccountReport,
    ) -> Result<(), StoreError> {
        let by = self
            .credential_pool(train)
            .await?
            .ok_or_else(Problem::not_found)?;
        by.account(report.account).ok_or_else(Problem::not_found)?;
        match report.outcome.rest(report.retry_after) {
            None => self.store.end_cooldowns(&by, report).await?,
            Some(length) => {
                let from = (report, reporter);
                self.store.begin_cooldown(&by, from, length).await?;
            }
        }
        self.store.note_usage(&by, report);
        Ok(())
    }
}

impl Store {
    /// Ends the cooldowns of an account that works. If none is known, nothing is written.
    async fn end_cooldowns(&self, by: &CredentialPool, report: &AccountReport) -> Result<()> {
        let now = self.now().ms();
        let account = report.account.uuid();
        let model = report.model.as_deref().unwrap_or(WHOLE);
        let rests = [WHOLE, model].into_iter().any(|model| {
            let cooldowns = by.tenant.cooldowns();
            cooldowns
                .get(account, model)
                .is_some_and(|one| one.until > now)
        });
        if !rests {
            return Ok(());
        }
        let publisher = by.tenant.publisher;
        let ended = self
            .write_for(publisher, |tx| async move {
                end_cooldowns(&tx, publisher, account, Ending::WholeAnd(model)).await
            })
            .await?;
        self.update_cached(publisher, |cooldowns| {
            for (model, one) in &ended {
                cooldowns.apply(account, model, *one);
            }
        });
        Ok(())
    }

    async fn begin_cooldown(
        &self,
        by: &CredentialPool,
        (report, reporter): (&AccountReport, TokenId),
        length: Duration,
    ) -> Result<()> {
        let now = self.now();
        let (publisher, account) = (by.tenant.publisher, report.account.uuid());
        let wanted = report.model.as_deref().unwrap_or(WHOLE);
        let (model, known) = {
            let mut cooldowns = by.tenant.cooldowns_mut();
            cooldowns.model_to_write(account, wanted, now)
        };
        let rests = known.filter(|one| one.until > now.ms());
        if rests.is_some_and(|one| one.until + SLACK_MS >= now.plus(length).ms()) {
            return Ok(());
        }
        let refused = rests.is_some_and(|one| one.reason == UseOutcome::Unauthorized);
        let cooldown = NewCooldown {
            publisher,
            account,
            model,
            outcome: report.outcome,
            length,
            reporter,
            refresh: report.outcome == UseOutcome::Unauthorized && !refused,
        };
        let cooldown = &cooldown;
        let written = self
            .write_for(publisher, |tx| async move {
                if known.is_none() && model != WHOLE {
                    prune(&tx, publisher, account).await?;
                }
                cooldown.write(&tx).await
            })
            .await?;
        if let Some(written) = written {
            self.update_cached(publisher, |cooldowns| {
                cooldowns.apply(account, model, written);
            });
        }
        Ok(())
    }

    /// Calls `update` with a publisher's cooldowns, if this process caches any.
    fn update_cached(&self, publisher: Uuid, update: impl FnOnce(&mut Cooldowns)) {
        if let Some(tenant) = self.state::<PoolCache>().tenants.get(&publisher) {
            update(&mut tenant.cooldowns_mut());
        }
    }

    /// Reads an account's rows, including ended ones, so that this process knows their current
    /// state.
    pub(crate) async fn reload_cooldowns(&self, publisher: Uuid, account: Uuid) -> Result<()> {
        use account_cooldowns::Column;
        let rows = account_cooldowns::Entity::find()
            .filter(Column::PublisherId.eq(publisher))
            .filter(Column::AccountId.eq(account))
            .all(self.read())
            .await?;
        self.update_cached(publisher, |cooldowns| {
            for row in &rows {
                if let Some(one) = readable(row) {
                    cooldowns.apply(account, &row.model, one);
                }
            }
        });
        Ok(())
    }

    /// Reads the cooldowns of a publisher's accounts.
    pub(super) async fn read_cooldowns(&self, tenant: &Tenant) -> Result<()> {
        use account_cooldowns::Column;
        let now = self.now();
        let rows = account_cooldowns::Entity::find()
            .filter(Column::PublisherId.eq(tenant.publisher))
            .filter(Column::Until.gt(now.ms()))
            .all(self.read())
            .await?;
        let mut cooldowns = tenant.cooldowns_mut();
        cooldowns.forget_old(now);
        for row in rows {
            if let Some(one) = readable(&row) {
                cooldowns.apply(row.account_id, &row.model, one);
            }
        }
        Ok(())
    }

    /// Reads what gateways recently reported to other processes. On SQLite there are no others.
    pub(crate) async fn poll_cooldowns(&self) -> Result<()> {
        use account_cooldowns::Column;
        let lending = self.state::<PoolCache>();
        if self.inner.db.notifies().is_none() {
            return Ok(());
        }
        let began = self.now();
        let last = Timestamp::from_ms(lending.cooldowns_polled_ms.load(Ordering::Relaxed));
        if lending.used.load(Ordering::SeqCst) {
            let rows = account_cooldowns::Entity::find()
                .filter(Column::ReportedAt.gt(last.minus(LOOK_BACK).ms()))
                .order_by_desc(Column::ReportedAt)
                .limit(POLL_ROWS)
                .all(self.read())
                .await?;
            for row in &rows {
                let Some(one) = readable(row) else { continue };
                self.update_cached(row.publisher_id, |cooldowns| {
                    cooldowns.apply(row.account_id, &row.model, one);
                });
            }
        }
        lending
            .cooldowns_polled_ms
            .store(began.ms(), Ordering::Relaxed);
        Ok(())
    }
}
