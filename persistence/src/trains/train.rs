//! Trains: the named clients of a gateway, and the accounts of each.

use domain::{
    Code, FaultCode, Problem, Timestamp,
    audit::Action,
    id::{AccountId, Id as _, PublisherId, TrainId},
    slug::Slug,
    train::{NoticeKind, seal_webhook},
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
use crate::{
    store::{
        Scoped, Store,
        change::{Answer, AuditEntry, Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        entity::{accounts, train_accounts, train_tokens, trains},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        quota::{over_quota, quotas_of},
        sql::Sql,
    },
    trains::Trains,
};

/// The Slack channel for messages about a train, without the webhook's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slack {
    /// The channel; `None` for the webhook's own.
    pub channel: Option<String>,
    /// The messages that are wanted.
    pub events: Vec<NoticeKind>,
}

/// An account in a train.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainAccount {
    /// The account's identifier.
    pub account: AccountId,
    /// The account's name.
    pub name: String,
    /// The priority; 0 is tried first.
    pub priority: u16,
    /// The cooldown of the account as a whole.
    pub cooldown: Option<AccountCooldown>,
}

/// A named client of a gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Train {
    /// The train's identifier.
    pub id: TrainId,
    /// The train's slug, unique within its publisher.
    pub slug: String,
    /// A description for people.
    pub description: Option<String>,
    /// Whether the train lends its accounts.
    pub enabled: bool,
    /// Whether a client that names itself keeps its account as long as that is usable.
    pub sticky: bool,
    /// The Slack channel for messages about the train.
    pub slack: Option<Slack>,
    /// The accounts in the order in which they are tried: by priority, then by identifier.
    pub accounts: Vec<TrainAccount>,
    /// Increased with each change of this row or of its accounts.
    pub revision: i64,
    /// When the train was created.
    pub created_at: Timestamp,
    /// When the train last changed.
    pub updated_at: Timestamp,
}

/// The Slack channel for messages about a train, with the webhook.
#[derive(Clone, Debug)]
pub struct NewSlack {
    /// Whoever knows this URL may send. The caller has checked that it is an allowed destination.
    pub webhook_url: SecretString,
    /// The channel; `None` for the webhook's own.
    pub channel: Option<String>,
    /// The messages that are wanted.
    pub events: Vec<NoticeKind>,
}

/// What a caller gives for a new train.
#[derive(Clone, Debug)]
pub struct NewTrain {
    /// The train's slug, unique within its publisher.
    pub slug: Slug,
    /// A description for people.
    pub description: Option<String>,
    /// Whether the train lends its accounts.
    pub enabled: bool,
    /// Whether a client that names itself keeps its account as long as that is usable.
    pub sticky: bool,
    /// The Slack channel for messages about the train.
    pub slack: Option<NewSlack>,
}

/// Changes of a train's Slack channel.
#[derive(Clone, Debug, Default)]
pub struct SlackPatch {
    /// Whoever knows this URL may send. The caller has checked that it is an allowed destination.
    pub webhook_url: Option<SecretString>,
    /// The channel; `None` for the webhook's own.
    pub channel: Option<Option<String>>,
    /// The messages that are wanted.
    pub events: Option<Vec<NoticeKind>>,
}

/// Changes of a train. `None` keeps a member, `Some(None)` empties it.
#[derive(Clone, Debug, Default)]
pub struct TrainPatch {
    /// A description for people.
    pub description: Option<Option<String>>,
    /// Whether the train lends its accounts.
    pub enabled: Option<bool>,
    /// Whether a client that names itself keeps its account as long as that is usable.
    pub sticky: Option<bool>,
    /// The Slack channel for messages about the train.
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

/// The messages that a train wants, from the column.
pub(crate) fn notices_of(column: &str) -> Result<Vec<NoticeKind>> {
    let notices = column.split(' ').map(NoticeKind::parse);
    let notices: Option<Vec<NoticeKind>> = notices.collect();
    notices.ok_or_else(|| corrupt_row("train's notices"))
}

pub(crate) fn events_column(events: &[NoticeKind]) -> String {
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

/// The live tokens of a publisher's trains at `now`.
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

/// The row of a train, locked for a change.
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

/// Which of a publisher's trains to read.
enum Which<'a> {
    One(&'a str),
    Part(&'a PageRequest<Uuid>),
}

/// The columns of trains, of which there is one row for each account. Long texts are only in a
/// train's first row, and sealed texts in none.
const COLUMNS: &str = "SELECT t.publisher_id, t.id, t.slug, t.enabled, t.sticky, \
     NULL AS slack_webhook, t.slack_channel, t.slack_events, t.exhausted_at, t.revision, \
     t.created_at, t.updated_at, m.account_id, m.priority, a.name AS account_name, \
     CASE WHEN row_number() OVER (PARTITION BY t.id ORDER BY m.priority, m.account_id) = 1 \
     THEN t.description END AS description";

/// The trains with their accounts, newest first: one query for any number. A second query reads the
/// cooldowns.
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
        priority: u16::try_from(priority).map_err(|_| corrupt_row("account's priority"))?,
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

/// Writes a changed row with the next revision, and invalidates all caches of it.
async fn write_row(tx: &Tx, mut row: trains::Model) -> Result<()> {
    row.revision += 1;
    row.updated_at = tx.now.ms();
    tx.touches_credentials_of(PublisherId::from_uuid(row.publisher_id));
    let row = trains::ActiveModel {
        // Not a setting: reports change it meanwhile.
        exhausted_at: NotSet,
        ..row.into_active_model().reset_all()
    };
    trains::Entity::update(row).exec(tx.db()).await?;
    Ok(())
}

/// Applies the Slack part of a patch. Returns whether it changes anything. A URL always counts as
/// changed, since the old one is not opened to compare.
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

/// Applies a patch. Returns the names of the members that changed.
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
    for (name, member, wanted) in [
        ("enabled", &mut row.enabled, patch.enabled),
        ("sticky", &mut row.sticky, patch.sticky),
    ] {
        if let Some(wanted) = wanted.filter(|wanted| wanted != member) {
            *member = wanted;
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

/// Fails unless all accounts are the publisher's. The error does not tell which are not.
async fn check_accounts(tx: &Tx, publisher: Uuid, accounts: &[(AccountId, u16)]) -> Result<()> {
    let ids = accounts.iter().map(|(account, _)| account.uuid());
    let there = accounts::Entity::find()
        .filter(accounts::Column::PublisherId.eq(publisher))
        .filter(accounts::Column::Id.is_in(ids))
        .count(tx.db())
        .await?;
    if there != u64::try_from(accounts.len()).unwrap_or(u64::MAX) {
        return Err(Problem::not_found().into());
    }
    Ok(())
}

/// Sets the accounts of a train. Returns whether they changed.
async fn write_accounts(
    tx: &Tx,
    train: &trains::Model,
    accounts: &[(AccountId, u16)],
) -> Result<bool> {
    use train_accounts::Column;
    let (publisher, id) = (train.publisher_id, train.id);
    let mut new: Vec<train_accounts::Model> = accounts
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

fn accounts_set(train: &Train) -> AuditEntry {
    let accounts = train.accounts.iter();
    let accounts: serde_json::Map<_, _> = accounts
        .map(|place| (place.account.to_string(), json!(place.priority)))
        .collect();
    let facts = json!({ "accounts": accounts });
    audit_entry(Action::TrainAccountsSet, "train", train.id, facts)
}

/// Creates a train with these accounts of the publisher, if the quota allows it.
pub(crate) async fn create_within(
    store: &Store,
    tx: &Tx,
    publisher: PublisherId,
    new: &NewTrain,
    accounts: &[(AccountId, u16)],
) -> Result<Audited<Train>> {
    let owner = publisher.uuid();
    check_quota(tx, owner).await?;
    let train = insert(store, tx, publisher, new).await?;
    let facts = json!({ "slug": train.slug });
    let entry = audit_entry(Action::TrainCreated, "train", train.id, facts);
    if accounts.is_empty() {
        return Ok(Audited::new(train, owner, entry));
    }
    let row = row_of(tx, owner, &new.slug).await?;
    write_accounts(tx, &row, accounts).await?;
    let train = load_one(tx.db(), owner, new.slug.as_str(), tx.now).await?;
    let set = accounts_set(&train);
    Ok(Audited::new(train, owner, entry).and(&[owner], set))
}

/// Changes a train, and sets its accounts if `accounts` is given. Values that are already set
/// change nothing.
pub(crate) async fn update_within(
    store: &Store,
    tx: &Tx,
    mut row: trains::Model,
    patch: &TrainPatch,
    accounts: Option<&[(AccountId, u16)]>,
) -> Result<Audited<Train>> {
    let (owner, slug) = (row.publisher_id, row.slug.clone());
    let changed = apply(store, tx, &mut row, patch).await?;
    let moved = match accounts {
        Some(accounts) => write_accounts(tx, &row, accounts).await?,
        None => false,
    };
    if changed.is_empty() && !moved {
        let train = load_one(tx.db(), owner, &slug, tx.now).await?;
        return Ok(Audited::unchanged(train));
    }
    write_row(tx, row).await?;
    let train = load_one(tx.db(), owner, &slug, tx.now).await?;
    let (updated, set) = (
        audit_entry(
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

impl Trains<Scoped> {
    /// Creates a train without accounts.
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

    /// Reads a train with its accounts.
    pub async fn train(&self, slug: &Slug) -> Result<Train, StoreError> {
        let (db, now) = (self.store.read(), self.store.now());
        load_one(db, self.scope.uuid(), slug.as_str(), now).await
    }

    /// The publisher's trains with their accounts, newest first.
    pub async fn trains(&self, page: PageRequest<Uuid>) -> Result<Page<Train, Uuid>, StoreError> {
        let (db, now) = (self.store.read(), self.store.now());
        let found = load(db, self.scope.uuid(), &Which::Part(&page), now).await?;
        Ok(page.cut(found, |train| train.id.uuid()))
    }

    /// Changes a train. Values that are already set change nothing.
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

    /// Sets all accounts of a train. `accounts` may contain no account twice. An account of another
    /// publisher gets the same error as one that does not exist.
    pub async fn set_train_accounts<A>(
        &self,
        context: &Context,
        slug: &Slug,
        accounts: Vec<(AccountId, u16)>,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Train) -> Answer + Send + Sync,
    {
        let (store, owner, accounts) = (&self.store, self.scope.uuid(), &accounts);
        let work = |tx: Tx| async move {
            let row = row_of(&tx, owner, slug).await?;
            check_revision(if_match, row.revision)?;
            check_accounts(&tx, owner, accounts).await?;
            update_within(store, &tx, row, &TrainPatch::default(), Some(accounts)).await
        };
        store.administer(context, owner, work, render).await
    }

    /// Deletes a train with its tokens. Its accounts stay.
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
            let entry = audit_entry(Action::TrainDeleted, "train", id, facts);
            Ok(Audited::new((), owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }
}

#[cfg(test)]
pub(crate) mod tests;
