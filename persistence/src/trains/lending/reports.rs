//! What gateways report: until when accounts rest.
//!
//! A report is written in one statement before it is answered, and counts in this process at once.
//! Other processes look every quarter of a second for what was reported of late. Nothing of it is
//! a question of access, so the caches of tokens and snapshots are not touched.

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
    Lending, LentBy, Tenant,
    cooldowns::{Cooldown, Cooldowns, REMEMBERED_MS, WHOLE, readable},
};
use crate::store::{
    Scoped, Store,
    db::Tx,
    entity::account_cooldowns,
    error::{Result, StoreError},
    sql::Sql,
};

/// A rest that a report would make longer by no more than this is long enough.
const SLACK_MS: i64 = 1000;
/// How far back other processes' reports are looked for: their clocks may differ by so much, and
/// their commits take so long.
const LOOK_BACK: Duration = Duration::from_secs(10);
/// An account that was refreshed within this time is not refreshed because of a report.
const REFRESHED_LATELY: Duration = Duration::from_mins(1);
/// Most reports that one look reads; the newest come first.
const POLL_ROWS: u64 = 10_000;

/// What a gateway reports of a request that it made with a lent credential.
#[derive(Clone, Debug)]
pub struct Report {
    /// The account that it used.
    pub account: AccountId,
    /// How it ended.
    pub outcome: UseOutcome,
    /// The model that it is about, if not the account as a whole.
    pub model: Option<String>,
    /// How long the upstream asked to wait.
    pub retry_after: Option<Duration>,
    /// Requests made.
    pub requests: u32,
    /// Tokens of a model used.
    pub tokens: u32,
}

/// A rest that is to be written.
struct Rest<'a> {
    publisher: Uuid,
    account: Uuid,
    model: &'a str,
    outcome: UseOutcome,
    length: Duration,
    reporter: TokenId,
    /// Whether a token that was refused is to be refreshed.
    refresh: bool,
}

impl Rest<'_> {
    /// Writes it, unless the account rests for longer already; answers what is written.
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
        // Its time counts the changes of a row too, however the clocks of processes differ.
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

    /// Not while the endpoint fails, and not again soon after a refresh: reports must not set the
    /// pace at which an upstream is asked.
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

/// An account that was removed meanwhile.
fn gone(error: DbErr) -> StoreError {
    match error.sql_err() {
        Some(SqlErr::ForeignKeyConstraintViolation(_)) => Problem::not_found().into(),
        _ => error.into(),
    }
}

/// Which rests of an account end.
#[derive(Clone, Copy)]
pub(crate) enum Ending<'a> {
    /// That of the account as a whole, and that for a model.
    WholeAnd(&'a str),
    /// That for a model alone.
    Model(&'a str),
    /// All.
    Everything,
}

/// Ends rests of an account; answers the rows as they are then.
pub(crate) async fn end_rest(
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

/// Removes what an account's models need no more.
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

impl Scoped {
    /// Takes a gateway's report, which it made with this token of the train. The account must be one
    /// of the train's.
    pub async fn report(
        &self,
        train: TrainId,
        reporter: TokenId,
        report: &Report,
    ) -> Result<(), StoreError> {
        let by = self.lending(train).await?.ok_or_else(Problem::not_found)?;
        by.account(report.account).ok_or_else(Problem::not_found)?;
        match report.outcome.rest(report.retry_after) {
            None => self.store.end_rest(&by, report).await?,
            Some(length) => {
                let from = (report, reporter);
                self.store.begin_rest(&by, from, length).await?;
            }
        }
        self.store.note_usage(&by, report);
        Ok(())
    }
}

impl Store {
    /// An account that works need not rest. Nothing is written where nothing is known to rest.
    async fn end_rest(&self, by: &LentBy, report: &Report) -> Result<()> {
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
                end_rest(&tx, publisher, account, Ending::WholeAnd(model)).await
            })
            .await?;
        self.hear(publisher, |cooldowns| {
            for (model, one) in &ended {
                cooldowns.hear(account, model, *one);
            }
        });
        Ok(())
    }

    async fn begin_rest(
        &self,
        by: &LentBy,
        (report, reporter): (&Report, TokenId),
        length: Duration,
    ) -> Result<()> {
        let now = self.now();
        let (publisher, account) = (by.tenant.publisher, report.account.uuid());
        let wanted = report.model.as_deref().unwrap_or(WHOLE);
        let (model, known) = {
            let mut cooldowns = by.tenant.cooldowns_mut();
            cooldowns.place(account, wanted, now)
        };
        let rests = known.filter(|one| one.until > now.ms());
        if rests.is_some_and(|one| one.until + SLACK_MS >= now.plus(length).ms()) {
            return Ok(());
        }
        let refused = rests.is_some_and(|one| one.reason == UseOutcome::Unauthorized);
        let rest = Rest {
            publisher,
            account,
            model,
            outcome: report.outcome,
            length,
            reporter,
            refresh: report.outcome == UseOutcome::Unauthorized && !refused,
        };
        let rest = &rest;
        let written = self
            .write_for(publisher, |tx| async move {
                if known.is_none() && model != WHOLE {
                    prune(&tx, publisher, account).await?;
                }
                rest.write(&tx).await
            })
            .await?;
        if let Some(written) = written {
            self.hear(publisher, |cooldowns| {
                cooldowns.hear(account, model, written);
            });
        }
        Ok(())
    }

    /// Lets `tell` tell what was written of a publisher, if anything is kept of it now.
    fn hear(&self, publisher: Uuid, tell: impl FnOnce(&mut Cooldowns)) {
        if let Some(tenant) = self.state::<Lending>().tenants.get(&publisher) {
            tell(&mut tenant.cooldowns_mut());
        }
    }

    /// Reads an account's rows, also those whose end has come, so that what is known here is what
    /// they say.
    pub(crate) async fn hear_anew(&self, publisher: Uuid, account: Uuid) -> Result<()> {
        use account_cooldowns::Column;
        let rows = account_cooldowns::Entity::find()
            .filter(Column::PublisherId.eq(publisher))
            .filter(Column::AccountId.eq(account))
            .all(self.read())
            .await?;
        self.hear(publisher, |cooldowns| {
            for row in &rows {
                if let Some(one) = readable(row) {
                    cooldowns.hear(account, &row.model, one);
                }
            }
        });
        Ok(())
    }

    /// Reads what rests of a publisher's accounts.
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
                cooldowns.hear(row.account_id, &row.model, one);
            }
        }
        Ok(())
    }

    /// Looks for what gateways reported to other processes of late. On SQLite there are none.
    pub(crate) async fn poll_cooldowns(&self) -> Result<()> {
        use account_cooldowns::Column;
        let lending = self.state::<Lending>();
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
                self.hear(row.publisher_id, |cooldowns| {
                    cooldowns.hear(row.account_id, &row.model, one);
                });
            }
        }
        lending
            .cooldowns_polled_ms
            .store(began.ms(), Ordering::Relaxed);
        Ok(())
    }
}
