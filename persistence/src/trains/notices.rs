//! Messages about trains, sent to Slack.
//!
//! A message for each train that wants it is inserted in the transaction of the event that it is
//! about. A sender claims some messages by moving their next attempt forward. If the sender dies
//! before it records the result, the messages become due again for any sender.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use domain::{
    Timestamp,
    event::OwnType,
    id::{AccountId, Id as _, NoticeId, PublisherId, TrainId},
    notice,
    train::{self, NoticeKind},
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityTrait as _, FromQueryResult,
    QueryFilter as _, QueryOrder as _, QueryResult, Value,
};
use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    store::{
        Scoped, Store, System,
        db::Tx,
        entity::train_notices,
        error::{Result, StoreError, corrupt_row},
        sql::{self, Sql, padded},
        unreadable,
    },
    trains::Trains,
    trains::train::notices_of,
};

/// How many due messages a claim considers.
const REACH: i64 = 1000;

/// The event that messages are about.
pub(crate) enum NoticeTrigger<'a> {
    /// No account of the train is usable until this time, if it is known.
    Exhausted(TrainId, Option<Timestamp>),
    /// An account cannot be refreshed any more.
    RefreshFailed {
        account: AccountId,
        name: &'a str,
        /// The class of error.
        reason: &'a str,
        /// Until when the account's current token is still lent.
        lent_until: Option<Timestamp>,
    },
}

impl NoticeTrigger<'_> {
    const fn notice(&self) -> NoticeKind {
        match self {
            Self::Exhausted(..) => NoticeKind::TrainExhausted,
            Self::RefreshFailed { .. } => NoticeKind::AccountRefreshFailed,
        }
    }

    const fn event_type(&self) -> OwnType {
        match self {
            Self::Exhausted(..) => OwnType::TrainExhausted,
            Self::RefreshFailed { .. } => OwnType::AccountRefreshFailed,
        }
    }

    fn message(&self, slug: &str) -> String {
        match self {
            Self::Exhausted(_, usable_at) => notice::train_exhausted(slug, *usable_at),
            Self::RefreshFailed {
                name,
                reason,
                lent_until,
                ..
            } => notice::refresh_failed(name, slug, reason, *lent_until),
        }
    }

    /// The trains that the event is about and that want any messages. Locked until the commit,
    /// since messages refer to them.
    fn trains_sql(&self, publisher: Uuid, backend: DbBackend) -> Sql {
        let mut sql = Sql::new("SELECT t.id, t.slug, t.slack_events FROM trains t ");
        sql.push("WHERE t.publisher_id = ").bind(publisher);
        sql.push(" AND t.slack_events IS NOT NULL AND ");
        match self {
            Self::Exhausted(train, _) => sql.push("t.id = ").bind(train.uuid()),
            Self::RefreshFailed { account, .. } => sql
                .push("t.id IN (SELECT m.train_id FROM train_accounts m WHERE m.publisher_id = ")
                .bind(publisher)
                .push(" AND m.account_id = ")
                .bind(account.uuid())
                .push(")"),
        };
        sql.push(" ORDER BY t.id");
        if backend == DbBackend::Postgres {
            sql.push(" FOR KEY SHARE");
        }
        sql
    }
}

/// A train, and which messages it wants.
#[derive(FromQueryResult)]
struct ConcernedTrain {
    id: Uuid,
    slug: String,
    slack_events: String,
}

/// Writes a message for each train that is concerned and wants it. To be called in the transaction
/// of the event.
pub(crate) async fn notify(
    tx: &Tx,
    publisher: PublisherId,
    trigger: &NoticeTrigger<'_>,
) -> Result<()> {
    let backend = tx.db().get_database_backend();
    let statement = trigger
        .trains_sql(publisher.uuid(), backend)
        .statement(backend);
    let trains = ConcernedTrain::find_by_statement(statement)
        .all(tx.db())
        .await?;
    let mut rows = Vec::new();
    for train in &trains {
        if !notices_of(&train.slack_events)?.contains(&trigger.notice()) {
            continue;
        }
        rows.push(train_notices::Model {
            publisher_id: publisher.uuid(),
            id: NoticeId::generate(tx.now).uuid(),
            train_id: train.id,
            event_type: trigger.event_type().as_str().to_owned(),
            message: trigger.message(&train.slug),
            attempts: 0,
            next_attempt_at: Some(tx.now.ms()),
            last_error: None,
            created_at: tx.now.ms(),
            finished_at: None,
        });
    }
    if !rows.is_empty() {
        sql::insert(tx.db(), rows, "").await?;
        tx.writes_notices();
    }
    Ok(())
}

/// A claimed message, to be sent now.
#[derive(Clone, Debug)]
pub struct DueNotice {
    /// The publisher.
    pub publisher: PublisherId,
    /// The message's identifier.
    pub id: NoticeId,
    /// The train that the message is about.
    pub train: TrainId,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// The text.
    pub message: String,
    /// When the message was written.
    pub created_at: Timestamp,
    /// The Slack webhook; `None` if the train wants no messages any more.
    pub webhook: Option<SecretString>,
    /// The channel, if one is set.
    pub channel: Option<String>,
}

/// Messages to send, and when to look again.
#[derive(Debug, Default)]
pub struct Notices {
    /// Messages that the caller has claimed until its lease ends.
    pub claimed: Vec<DueNotice>,
    /// When the next message is due that the caller could claim.
    pub next: Option<Timestamp>,
}

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct NoticeOutcome {
    /// The publisher.
    pub publisher: PublisherId,
    /// The message's identifier.
    pub id: NoticeId,
    /// The attempt's number.
    pub attempt: u32,
    /// The class of error; `None` if the message arrived.
    pub error: Option<&'static str>,
    /// When the next attempt is due; `None` if there is none.
    pub retry_at: Option<Timestamp>,
}

/// The state of the last message about a train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastNotice {
    /// The type of the event that the message is about.
    pub event_type: String,
    /// How many attempts were begun.
    pub attempts: u32,
    /// The class of error of the last attempt, if it failed.
    pub error: Option<String>,
    /// When the message was written.
    pub created_at: Timestamp,
    /// When the message was sent or given up; `None` while it is pending.
    pub finished_at: Option<Timestamp>,
}

impl Trains<Scoped> {
    /// The last message about a train, if one was written within the retention of messages.
    pub async fn last_notice(&self, train: TrainId) -> Result<Option<LastNotice>, StoreError> {
        use train_notices::Column;
        let row = train_notices::Entity::find()
            .filter(Column::PublisherId.eq(self.scope.uuid()))
            .filter(Column::TrainId.eq(train.uuid()))
            .order_by_desc(Column::Id)
            .one(self.store.read())
            .await?;
        Ok(row.map(|row| LastNotice {
            event_type: row.event_type,
            attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
            error: row.last_error,
            created_at: Timestamp::from_ms(row.created_at),
            finished_at: row.finished_at.map(Timestamp::from_ms),
        }))
    }
}

/// A claimed row.
#[derive(FromQueryResult)]
struct Row {
    publisher_id: Uuid,
    id: Uuid,
    train_id: Uuid,
    attempts: i32,
    message: String,
    created_at: i64,
}

/// The opened webhook and the channel of each train.
type Destinations = HashMap<(Uuid, Uuid), (SecretString, Option<String>)>;

/// Adds `FROM … WHERE …` for pending messages of publishers that are active and not `busy`.
/// Messages of a suspended or deleted publisher stay until it is resumed.
fn waiting(sql: &mut Sql, busy: &[PublisherId]) {
    sql.push(
        " FROM train_notices n JOIN publishers p ON p.id = n.publisher_id \
         WHERE n.next_attempt_at IS NOT NULL AND p.status = 'active'",
    );
    if !busy.is_empty() {
        let busy = padded(busy.iter().map(|publisher| publisher.uuid()));
        sql.push(" AND n.publisher_id NOT IN (").bind_list(busy);
        sql.push(")");
    }
}

/// The statement that claims at most `limit` due messages, and at most `each` of one publisher.
fn claim_sql(
    backend: DbBackend,
    now: Timestamp,
    until: Timestamp,
    busy: &[PublisherId],
    (limit, each): (i64, i64),
) -> Sql {
    let mut sql = Sql::new("WITH due AS MATERIALIZED (SELECT n.publisher_id, n.id");
    sql.push(", n.next_attempt_at AS at");
    waiting(&mut sql, busy);
    sql.push(" AND n.next_attempt_at <= ").bind(now.ms());
    sql.push(" ORDER BY n.next_attempt_at LIMIT ").bind(REACH);
    sql.push(
        "), placed AS MATERIALIZED (SELECT publisher_id, id, \
         row_number() OVER (PARTITION BY publisher_id ORDER BY at, id) AS place FROM due), \
         chosen AS MATERIALIZED (SELECT n.publisher_id AS owner, n.id AS notice \
         FROM train_notices n \
         JOIN placed ON placed.publisher_id = n.publisher_id AND placed.id = n.id \
         WHERE placed.place <= ",
    );
    sql.bind(each).push(" AND n.next_attempt_at <= ");
    sql.bind(now.ms())
        .push(" ORDER BY n.next_attempt_at LIMIT ");
    sql.bind(limit);
    if backend == DbBackend::Postgres {
        sql.push(" FOR UPDATE OF n SKIP LOCKED");
    }
    sql.push(") UPDATE train_notices SET attempts = attempts + 1, next_attempt_at = ");
    sql.bind(until.ms()).push(
        " FROM chosen WHERE publisher_id = owner AND id = notice \
         RETURNING publisher_id, id, train_id, attempts, message, created_at",
    );
    sql
}

impl Trains<System> {
    /// Claims due messages for `lease`: at most `limit`, at most `each` of one publisher, and none
    /// of publishers in `busy`. If none is due, nothing is written.
    pub async fn claim_notices(
        &self,
        busy: &[PublisherId],
        (limit, each): (u32, u32),
        lease: Duration,
    ) -> Result<Notices, StoreError> {
        let next = self.next_notice(busy).await?;
        if next.is_none_or(|at| at > self.store.now()) {
            let claimed = Vec::new();
            return Ok(Notices { claimed, next });
        }
        let store = &self.store;
        let bounds = (limit.into(), each.into());
        let claimed = store
            .write(|tx| async move { claim(store, &tx, busy, bounds, lease).await })
            .await?;
        Ok(Notices { claimed, next })
    }

    async fn next_notice(&self, busy: &[PublisherId]) -> Result<Option<Timestamp>> {
        let mut sql = Sql::new("SELECT n.next_attempt_at");
        waiting(&mut sql, busy);
        sql.push(" ORDER BY n.next_attempt_at LIMIT 1");
        let statement = sql.statement(self.store.backend());
        let row = self.store.read().query_one_raw(statement).await?;
        let at = |row: QueryResult| row.try_get("", "next_attempt_at");
        Ok(row.map(at).transpose()?.map(Timestamp::from_ms))
    }

    /// Gives back a claimed message that could not be sent, although its receiver is not the cause.
    /// It is due again after `wait`, and the attempt does not count.
    pub async fn return_notice(&self, due: &DueNotice, wait: Duration) -> Result<(), StoreError> {
        let backend = self.store.backend();
        self.store
            .write(|tx| async move {
                let mut sql = Sql::new("UPDATE train_notices SET next_attempt_at = ");
                sql.bind(tx.now.plus(wait).ms())
                    .push(", attempts = attempts - 1 WHERE publisher_id = ")
                    .bind(due.publisher.uuid())
                    .push(" AND id = ")
                    .bind(due.id.uuid())
                    .push(" AND finished_at IS NULL AND attempts = ")
                    .bind(i64::from(due.attempt));
                tx.db().execute_raw(sql.statement(backend)).await?;
                Ok(())
            })
            .await
    }

    /// Records the outcome of an attempt. Returns whether it was recorded: not if the claim expired
    /// and another sender has the message, or if the message was removed with its train.
    pub async fn record_notice(&self, outcome: NoticeOutcome) -> Result<bool, StoreError> {
        let backend = self.store.backend();
        self.store
            .write(|tx| async move {
                let finished = outcome.retry_at.is_none().then_some(tx.now.ms());
                let mut sql = Sql::new("UPDATE train_notices SET next_attempt_at = ");
                sql.bind(outcome.retry_at.map(Timestamp::ms))
                    .push(", finished_at = ")
                    .bind(finished)
                    .push(", last_error = ")
                    .bind(outcome.error)
                    .push(" WHERE publisher_id = ")
                    .bind(outcome.publisher.uuid())
                    .push(" AND id = ")
                    .bind(outcome.id.uuid())
                    .push(" AND finished_at IS NULL AND attempts = ")
                    .bind(i64::from(outcome.attempt));
                let done = tx.db().execute_raw(sql.statement(backend)).await?;
                Ok(done.rows_affected() > 0)
            })
            .await
    }
}

/// Ends a message that cannot be read, and so cannot be sent.
async fn give_up(tx: &Tx, (owner, id): (Uuid, Uuid)) -> Result<()> {
    let mut sql = Sql::new("UPDATE train_notices SET next_attempt_at = NULL, finished_at = ");
    sql.bind(tx.now.ms())
        .push(", last_error = 'unreadable' WHERE publisher_id = ")
        .bind(owner)
        .push(" AND id = ")
        .bind(id);
    let statement = sql.statement(tx.db().get_database_backend());
    tx.db().execute_raw(statement).await?;
    Ok(())
}

async fn claim(
    store: &Store,
    tx: &Tx,
    busy: &[PublisherId],
    bounds: (i64, i64),
    lease: Duration,
) -> Result<Vec<DueNotice>> {
    let backend = tx.db().get_database_backend();
    let statement = claim_sql(backend, tx.now, tx.now.plus(lease), busy, bounds);
    let found = tx.db().query_all_raw(statement.statement(backend)).await?;
    let mut rows = Vec::with_capacity(found.len());
    for row in &found {
        match Row::from_query_result(row, "") {
            Ok(row) => rows.push(row),
            Err(error) => {
                let key = (row.try_get("", "publisher_id")?, row.try_get("", "id")?);
                unreadable::report("notice", key.0, key.1, &error.into());
                give_up(tx, key).await?;
            }
        }
    }
    let destinations = destinations(store, tx, &rows).await?;
    let due = |row: Row| {
        let to = destinations.get(&(row.publisher_id, row.train_id)).cloned();
        let (webhook, channel) = to.unzip();
        DueNotice {
            publisher: PublisherId::from_uuid(row.publisher_id),
            id: NoticeId::from_uuid(row.id),
            train: TrainId::from_uuid(row.train_id),
            attempt: u32::try_from(row.attempts).unwrap_or(u32::MAX),
            message: row.message,
            created_at: Timestamp::from_ms(row.created_at),
            webhook,
            channel: channel.flatten(),
        }
    };
    Ok(rows.into_iter().map(due).collect())
}

/// Where messages go. If a URL cannot be opened, it is left out and the other messages are still
/// sent.
async fn destinations(store: &Store, tx: &Tx, rows: &[Row]) -> Result<Destinations> {
    let trains = rows.iter().map(|row| (row.publisher_id, row.train_id));
    let trains: BTreeSet<(Uuid, Uuid)> = trains.collect();
    if trains.is_empty() {
        return Ok(Destinations::new());
    }
    let mut sql = Sql::new(
        "SELECT publisher_id, id, slack_webhook, slack_channel FROM trains \
         WHERE slack_webhook IS NOT NULL AND (publisher_id, id) IN (",
    );
    let keys = padded(trains).into_iter();
    sql.values(keys.map(|(owner, id)| vec![Value::from(owner), Value::from(id)]));
    sql.push(")");
    let statement = sql.statement(tx.db().get_database_backend());
    let mut found = Destinations::new();
    for row in tx.db().query_all_raw(statement).await? {
        let (owner, id): (Uuid, Uuid) = (row.try_get("", "publisher_id")?, row.try_get("", "id")?);
        let (publisher, train) = (PublisherId::from_uuid(owner), TrainId::from_uuid(id));
        let sealed: Vec<u8> = row.try_get("", "slack_webhook")?;
        match open(store, tx, (publisher, train), &sealed).await {
            Ok(url) => {
                found.insert((owner, id), (url, row.try_get("", "slack_channel")?));
            }
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => {
                unreadable::report("train", owner, id, &error);
            }
        }
    }
    Ok(found)
}

async fn open(
    store: &Store,
    tx: &Tx,
    (publisher, train): (PublisherId, TrainId),
    sealed: &[u8],
) -> Result<SecretString> {
    let keys = store.inner.keys.of(tx.db(), publisher.uuid()).await?;
    train::open_webhook(&keys.data, publisher, train, sealed).map_err(|_| corrupt_row("webhook"))
}

#[cfg(test)]
mod tests;
