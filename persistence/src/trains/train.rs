//! Trains: the named clients of a gateway, and the accounts that each lends.

use domain::{
    Code, FaultCode, Problem, Timestamp,
    audit::Action,
    id::{AccountId, Id as _, PublisherId, TrainId},
    slug::Slug,
    train::{Notice, seal_webhook},
};
use sea_orm::{
    ActiveModelTrait as _, ActiveValue::NotSet, ColumnTrait as _, Condition, ConnectionTrait,
    DbErr, EntityTrait as _, FromQueryResult as _, IntoActiveModel as _, PaginatorTrait as _,
    QueryFilter as _, QueryResult, Select, SqlErr,
};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use super::lending::shown::{AccountCooldown, Shown, cooldowns};
use crate::store::{
    Scoped, Store,
    change::{Answer, Audited, Context, Entry, Expected, check_revision, entry},
    db::Tx,
    entity::{accounts, train_accounts, train_tokens, trains},
    error::{Result, StoreError, damaged},
    page::{Page, PageRequest},
    quota::{over_quota, quotas_of},
    sql::Sql,
};

/// Where a train's people read, without the URL that leads there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slack {
    /// The channel, if not the webhook's own.
    pub channel: Option<String>,
    /// What they are told.
    pub events: Vec<Notice>,
}

/// An account in its place in a train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainAccount {
    /// Which one.
    pub account: AccountId,
    /// Its name.
    pub name: String,
    /// 0 is tried first.
    pub priority: u16,
    /// The cooldown of the account as a whole.
    pub cooldown: Option<AccountCooldown>,
}

/// A named client of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Train {
    /// Which one.
    pub id: TrainId,
    /// Unique within its publisher.
    pub slug: String,
    /// For people.
    pub description: Option<String>,
    /// Whether it lends anything.
    pub enabled: bool,
    /// Whether a client that names itself keeps its account while that is usable.
    pub sticky: bool,
    /// Where its people read.
    pub slack: Option<Slack>,
    /// What it lends, in the order in which they are tried: by priority, then by identifier.
    pub accounts: Vec<TrainAccount>,
    /// Counts changes of this row and of its accounts.
    pub revision: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Where a train's people read.
#[derive(Clone, Debug)]
pub struct NewSlack {
    /// Who knows it may send; the caller has checked that it is an allowed destination.
    pub webhook_url: SecretString,
    /// The channel, if not the webhook's own.
    pub channel: Option<String>,
    /// What they are told.
    pub events: Vec<Notice>,
}

/// What a new train is given.
#[derive(Clone, Debug)]
pub struct NewTrain {
    /// Unique within its publisher.
    pub slug: Slug,
    /// For people.
    pub description: Option<String>,
    /// Whether it lends anything.
    pub enabled: bool,
    /// Whether a client that names itself keeps its account while that is usable.
    pub sticky: bool,
    /// Where its people read.
    pub slack: Option<NewSlack>,
}

/// What changes of where a train's people read.
#[derive(Clone, Debug, Default)]
pub struct SlackPatch {
    /// Who knows it may send; the caller has checked that it is an allowed destination.
    pub webhook_url: Option<SecretString>,
    /// The channel, if not the webhook's own.
    pub channel: Option<Option<String>>,
    /// What they are told.
    pub events: Option<Vec<Notice>>,
}

/// What changes of a train; `None` leaves a member as it is, `Some(None)` empties it.
#[derive(Clone, Debug, Default)]
pub struct TrainPatch {
    /// For people.
    pub description: Option<Option<String>>,
    /// Whether it lends anything.
    pub enabled: Option<bool>,
    /// Whether a client that names itself keeps its account while that is usable.
    pub sticky: Option<bool>,
    /// Where its people read.
    pub slack: Option<Option<SlackPatch>>,
}

impl Train {
    fn of_row(row: trains::Model, accounts: Vec<TrainAccount>) -> Result<Self> {
        Ok(Self {
            id: TrainId::from_uuid(row.id),
            slack: slack_of(row.slack_channel, row.slack_events.as_deref())?,
            slug: row.slug,
            description: row.description,
            enabled: row.enabled,
            sticky: row.sticky,
            accounts,
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            updated_at: Timestamp::from_ms(row.updated_at),
        })
    }
}

fn slack_of(channel: Option<String>, events: Option<&str>) -> Result<Option<Slack>> {
    let Some(events) = events else {
        return Ok(None);
    };
    let events = notices_of(events)?;
    Ok(Some(Slack { channel, events }))
}

/// What a train's people are told.
pub(crate) fn notices_of(column: &str) -> Result<Vec<Notice>> {
    let notices = column.split(' ').map(Notice::parse);
    let notices: Option<Vec<Notice>> = notices.collect();
    notices.ok_or_else(|| damaged("train's notices"))
}

pub(crate) fn events_column(events: &[Notice]) -> String {
    let words: Vec<&str> = events.iter().map(|notice| notice.as_str()).collect();
    words.join(" ")
}

fn slug_conflict(error: DbErr) -> StoreError {
    match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Code::SlugTaken.into(),
        _ => error.into(),
    }
}

/// A publisher's trains.
pub(crate) fn of(publisher: Uuid) -> Select<trains::Entity> {
    trains::Entity::find().filter(trains::Column::PublisherId.eq(publisher))
}

/// The tokens of a publisher's trains that are good at `now`.
pub(crate) fn live_tokens(publisher: Uuid, now: Timestamp) -> Select<train_tokens::Entity> {
    use train_tokens::Column;
    let running = Condition::any()
        .add(Column::ExpiresAt.is_null())
        .add(Column::ExpiresAt.gt(now.ms()));
    train_tokens::Entity::find()
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::RevokedAt.is_null())
        .filter(running)
}

/// The row of a train, to change it.
pub(crate) async fn row_of(tx: &Tx, publisher: Uuid, slug: &Slug) -> Result<trains::Model> {
    let row = of(publisher).filter(trains::Column::Slug.eq(slug.as_str()));
    row.one(tx.db())
        .await?
        .ok_or_else(|| Problem::not_found().into())
}

async fn check_quota(tx: &Tx, publisher: Uuid) -> Result<()> {
    let limit = quotas_of(tx, publisher).await?.trains;
    if of(publisher).count(tx.db()).await? >= u64::from(limit) {
        return Err(over_quota("trains", limit));
    }
    Ok(())
}

/// Which trains of a publisher.
enum Which<'a> {
    One(&'a str),
    Part(&'a PageRequest<Uuid>),
}

/// What is read of a train, once for each of its accounts: so long texts stand in its first row
/// alone, and what is sealed in none.
const COLUMNS: &str = "SELECT t.publisher_id, t.id, t.slug, t.enabled, t.sticky, \
     NULL AS slack_webhook, t.slack_channel, t.slack_events, t.exhausted_at, t.revision, \
     t.created_at, t.updated_at, m.account_id, m.priority, a.name AS account_name, \
     CASE WHEN row_number() OVER (PARTITION BY t.id ORDER BY m.priority, m.account_id) = 1 \
     THEN t.description END AS description";

/// Trains with what they lend, newest first: one query, however many there are. What of it cools
/// down is one more.
fn query(publisher: Uuid, which: &Which<'_>) -> Sql {
    let mut sql = Sql::new(COLUMNS);
    sql.push(" FROM (SELECT * FROM trains WHERE publisher_id = ");
    sql.bind(publisher);
    match which {
        Which::One(slug) => {
            sql.push(" AND slug = ").bind(*slug);
        }
        Which::Part(page) => {
            if let Some(after) = page.after {
                sql.push(" AND id < ").bind(after);
            }
            sql.push(" ORDER BY id DESC LIMIT ")
                .bind(i64::try_from(page.fetch()).unwrap_or(i64::MAX));
        }
    }
    sql.push(
        ") t LEFT JOIN train_accounts m ON m.publisher_id = t.publisher_id AND m.train_id = t.id \
         LEFT JOIN accounts a ON a.publisher_id = m.publisher_id AND a.id = m.account_id \
         ORDER BY t.id DESC, m.priority, m.account_id",
    );
    sql
}

fn account_of(row: &QueryResult) -> Result<Option<TrainAccount>> {
    let Some(id) = row.try_get::<Option<Uuid>>("", "account_id")? else {
        return Ok(None);
    };
    let priority: i32 = row.try_get("", "priority")?;
    Ok(Some(TrainAccount {
        account: AccountId::from_uuid(id),
        name: row.try_get("", "account_name")?,
        priority: u16::try_from(priority).map_err(|_| damaged("account's priority"))?,
        cooldown: None,
    }))
}

async fn load<C: ConnectionTrait>(
    db: &C,
    publisher: Uuid,
    which: &Which<'_>,
    now: Timestamp,
) -> Result<Vec<Train>> {
    let statement = query(publisher, which).statement(db.get_database_backend());
    let mut found: Vec<Train> = Vec::new();
    for row in db.query_all_raw(statement).await? {
        let train = trains::Model::from_query_result(&row, "")?;
        let id = TrainId::from_uuid(train.id);
        if found.last().is_none_or(|last| last.id != id) {
            found.push(Train::of_row(train, Vec::new())?);
        }
        if let Some(last) = found.last_mut() {
            last.accounts.extend(account_of(&row)?);
        }
    }
    let trains: Vec<Uuid> = found.iter().map(|train| train.id.uuid()).collect();
    let resting = cooldowns(db, publisher, Shown::OfTrains(&trains), now).await?;
    for place in found.iter_mut().flat_map(|train| &mut train.accounts) {
        let cooldowns = resting.get(&place.account.uuid());
        place.cooldown = cooldowns.and_then(|all| all.first()).cloned();
    }
    Ok(found)
}

async fn load_one<C: ConnectionTrait>(
    db: &C,
    publisher: Uuid,
    slug: &str,
    now: Timestamp,
) -> Result<Train> {
    let found = load(db, publisher, &Which::One(slug), now).await?;
    found
        .into_iter()
        .next()
        .ok_or_else(|| Problem::not_found().into())
}

async fn insert(store: &Store, tx: &Tx, publisher: PublisherId, new: &NewTrain) -> Result<Train> {
    let id = TrainId::generate(tx.now);
    let mut row = trains::Model {
        publisher_id: publisher.uuid(),
        id: id.uuid(),
        slug: new.slug.to_string(),
        description: new.description.clone(),
        enabled: new.enabled,
        sticky: new.sticky,
        slack_webhook: None,
        slack_channel: None,
        slack_events: None,
        exhausted_at: None,
        revision: 1,
        created_at: tx.now.ms(),
        updated_at: tx.now.ms(),
    };
    if let Some(slack) = &new.slack {
        let key = store.inner.keys.of(tx.db(), publisher.uuid()).await?.data;
        row.slack_webhook = Some(seal_webhook(&key, publisher, id, &slack.webhook_url));
        row.slack_channel.clone_from(&slack.channel);
        row.slack_events = Some(events_column(&slack.events));
    }
    let active = row.clone().into_active_model().reset_all();
    trains::Entity::insert(active)
        .exec_without_returning(tx.db())
        .await
        .map_err(slug_conflict)?;
    Train::of_row(row, Vec::new())
}

/// Writes a changed row with the next revision, and tells every cache of it.
async fn write_row(tx: &Tx, mut row: trains::Model) -> Result<()> {
    row.revision += 1;
    row.updated_at = tx.now.ms();
    tx.touches_credentials_of(PublisherId::from_uuid(row.publisher_id));
    let row = trains::ActiveModel {
        // Not a setting: clients find it out meanwhile.
        exhausted_at: NotSet,
        ..row.into_active_model().reset_all()
    };
    trains::Entity::update(row).exec(tx.db()).await?;
    Ok(())
}

/// Applies what a patch says of Slack; answers whether that changes anything. A URL always counts
/// as another one: the old one is not opened for it.
async fn apply_slack(
    store: &Store,
    tx: &Tx,
    row: &mut trains::Model,
    patch: Option<&SlackPatch>,
) -> Result<bool> {
    let before = (row.slack_channel.clone(), row.slack_events.clone());
    let Some(patch) = patch else {
        (row.slack_webhook, row.slack_channel, row.slack_events) = (None, None, None);
        return Ok(before.1.is_some());
    };
    if row.slack_webhook.is_none() {
        let missing = [
            ("/slack/webhook_url", patch.webhook_url.is_none()),
            ("/slack/events", patch.events.is_none()),
        ];
        if let Some((pointer, _)) = missing.into_iter().find(|(_, missing)| *missing) {
            let detail = "It is needed, since nothing is set for Slack yet.";
            return Err(Problem::field(pointer, FaultCode::Required, detail).into());
        }
    }
    if let Some(url) = &patch.webhook_url {
        let key = store.inner.keys.of(tx.db(), row.publisher_id).await?.data;
        let publisher = PublisherId::from_uuid(row.publisher_id);
        let train = TrainId::from_uuid(row.id);
        row.slack_webhook = Some(seal_webhook(&key, publisher, train, url));
    }
    if let Some(channel) = &patch.channel {
        row.slack_channel.clone_from(channel);
    }
    if let Some(events) = &patch.events {
        row.slack_events = Some(events_column(events));
    }
    let after = (row.slack_channel.clone(), row.slack_events.clone());
    Ok(patch.webhook_url.is_some() || after != before)
}

/// Applies a patch; answers the names of the members that it changed.
async fn apply(
    store: &Store,
    tx: &Tx,
    row: &mut trains::Model,
    patch: &TrainPatch,
) -> Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    if let Some(description) = &patch.description
        && *description != row.description
    {
        row.description.clone_from(description);
        changed.push("description");
    }
    for (name, member, wish) in [
        ("enabled", &mut row.enabled, patch.enabled),
        ("sticky", &mut row.sticky, patch.sticky),
    ] {
        if let Some(wish) = wish.filter(|wish| wish != member) {
            *member = wish;
            changed.push(name);
        }
    }
    if let Some(slack) = &patch.slack
        && apply_slack(store, tx, row, slack.as_ref()).await?
    {
        changed.push("slack");
    }
    Ok(changed)
}

/// All of them must be the publisher's. Which of them is not is not said.
async fn check_accounts(tx: &Tx, publisher: Uuid, wish: &[(AccountId, u16)]) -> Result<()> {
    let ids = wish.iter().map(|(account, _)| account.uuid());
    let there = accounts::Entity::find()
        .filter(accounts::Column::PublisherId.eq(publisher))
        .filter(accounts::Column::Id.is_in(ids))
        .count(tx.db())
        .await?;
    if there != u64::try_from(wish.len()).unwrap_or(u64::MAX) {
        return Err(Problem::not_found().into());
    }
    Ok(())
}

/// Writes which accounts a train lends; answers whether that differs from what was there.
async fn write_accounts(tx: &Tx, train: &trains::Model, wish: &[(AccountId, u16)]) -> Result<bool> {
    use train_accounts::Column;
    let (publisher, id) = (train.publisher_id, train.id);
    let mut new: Vec<train_accounts::Model> = wish
        .iter()
        .map(|(account, priority)| train_accounts::Model {
            publisher_id: publisher,
            train_id: id,
            account_id: account.uuid(),
            priority: i32::from(*priority),
        })
        .collect();
    new.sort_by_key(|place| place.account_id);
    let of_train = Condition::all()
        .add(Column::PublisherId.eq(publisher))
        .add(Column::TrainId.eq(id));
    let old = train_accounts::Entity::find().filter(of_train.clone());
    let mut old = old.all(tx.db()).await?;
    old.sort_by_key(|place| place.account_id);
    if old == new {
        return Ok(false);
    }
    train_accounts::Entity::delete_many()
        .filter(of_train)
        .exec(tx.db())
        .await?;
    if !new.is_empty() {
        let rows = new
            .into_iter()
            .map(|row| row.into_active_model().reset_all());
        train_accounts::Entity::insert_many(rows)
            .exec_without_returning(tx.db())
            .await?;
    }
    Ok(true)
}

fn accounts_set(train: &Train) -> Entry {
    let places = train.accounts.iter();
    let places: serde_json::Map<_, _> = places
        .map(|place| (place.account.to_string(), json!(place.priority)))
        .collect();
    let facts = json!({ "accounts": places });
    entry(Action::TrainAccountsSet, "train", train.id, facts)
}

/// Makes a train that lends these accounts of the publisher, if the quota has room for one.
pub(crate) async fn create_within(
    store: &Store,
    tx: &Tx,
    publisher: PublisherId,
    new: &NewTrain,
    places: &[(AccountId, u16)],
) -> Result<Audited<Train>> {
    let owner = publisher.uuid();
    check_quota(tx, owner).await?;
    let train = insert(store, tx, publisher, new).await?;
    let facts = json!({ "slug": train.slug });
    let line = entry(Action::TrainCreated, "train", train.id, facts);
    if places.is_empty() {
        return Ok(Audited::new(train, owner, line));
    }
    let row = row_of(tx, owner, &new.slug).await?;
    write_accounts(tx, &row, places).await?;
    let train = load_one(tx.db(), owner, new.slug.as_str(), tx.now).await?;
    let set = accounts_set(&train);
    Ok(Audited::new(train, owner, line).and(&[owner], set))
}

/// Changes a train, and sets what it lends where that is given. What it already is changes
/// nothing.
pub(crate) async fn update_within(
    store: &Store,
    tx: &Tx,
    mut row: trains::Model,
    patch: &TrainPatch,
    places: Option<&[(AccountId, u16)]>,
) -> Result<Audited<Train>> {
    let (owner, slug) = (row.publisher_id, row.slug.clone());
    let changed = apply(store, tx, &mut row, patch).await?;
    let moved = match places {
        Some(places) => write_accounts(tx, &row, places).await?,
        None => false,
    };
    if changed.is_empty() && !moved {
        let train = load_one(tx.db(), owner, &slug, tx.now).await?;
        return Ok(Audited::unchanged(train));
    }
    write_row(tx, row).await?;
    let train = load_one(tx.db(), owner, &slug, tx.now).await?;
    let (updated, set) = (
        entry(
            Action::TrainUpdated,
            "train",
            train.id,
            json!({ "changed": changed }),
        ),
        accounts_set(&train),
    );
    let mut audited = Audited::unchanged(train);
    if !changed.is_empty() {
        audited = audited.and(&[owner], updated);
    }
    if moved {
        audited = audited.and(&[owner], set);
    }
    Ok(audited)
}

impl Scoped {
    /// Makes a train. It lends nothing yet.
    pub async fn create_train<A>(
        &self,
        context: &Context,
        new: NewTrain,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Train) -> Answer + Send + Sync,
    {
        let (store, publisher, new) = (&self.store, self.scope.publisher(), &new);
        let owner = publisher.uuid();
        let work = |tx: Tx| async move { create_within(store, &tx, publisher, new, &[]).await };
        store.administer(context, owner, work, render).await
    }

    /// One train, with what it lends.
    pub async fn train(&self, slug: &Slug) -> Result<Train, StoreError> {
        let (db, now) = (self.store.read(), self.store.now());
        load_one(db, self.scope.uuid(), slug.as_str(), now).await
    }

    /// The publisher's trains with what they lend, newest first.
    pub async fn trains(&self, page: PageRequest<Uuid>) -> Result<Page<Train, Uuid>, StoreError> {
        let (db, now) = (self.store.read(), self.store.now());
        let found = load(db, self.scope.uuid(), &Which::Part(&page), now).await?;
        Ok(page.cut(found, |train| train.id.uuid()))
    }

    /// Changes a train. What it already is changes nothing.
    pub async fn update_train<A>(
        &self,
        context: &Context,
        slug: &Slug,
        patch: TrainPatch,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Train) -> Answer + Send + Sync,
    {
        let (store, owner, patch) = (&self.store, self.scope.uuid(), &patch);
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, slug).await?;
            check_revision(if_match, row.revision)?;
            update_within(store, &tx, row, patch, None).await
        };
        store.administer(context, owner, work, render).await
    }

    /// Sets which accounts a train lends, as a whole. No account may stand twice in `wish`; one
    /// that is not the publisher's is answered like one that never was.
    pub async fn set_train_accounts<A>(
        &self,
        context: &Context,
        slug: &Slug,
        wish: Vec<(AccountId, u16)>,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Train) -> Answer + Send + Sync,
    {
        let (store, owner, wish) = (&self.store, self.scope.uuid(), &wish);
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, slug).await?;
            check_revision(if_match, row.revision)?;
            check_accounts(&tx, owner, wish).await?;
            update_within(store, &tx, row, &TrainPatch::default(), Some(wish)).await
        };
        store.administer(context, owner, work, render).await
    }

    /// Removes a train with its tokens. Its accounts stay.
    pub async fn delete_train<A>(
        &self,
        context: &Context,
        slug: &Slug,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        let (publisher, owner) = (self.scope.publisher(), self.scope.uuid());
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, slug).await?;
            check_revision(if_match, row.revision)?;
            trains::Entity::delete_by_id((owner, row.id))
                .exec(tx.db())
                .await?;
            tx.touches_credentials_of(publisher);
            let facts = json!({ "slug": row.slug });
            let id = TrainId::from_uuid(row.id);
            let line = entry(Action::TrainDeleted, "train", id, facts);
            Ok(Audited::new((), owner, line))
        };
        self.store.administer(context, owner, work, render).await
    }
}

#[cfg(test)]
pub(crate) mod tests;
