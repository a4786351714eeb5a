//! Publishers: what the operator creates and changes, and what each publisher sees of itself.

use std::{collections::BTreeMap, time::Duration};

use domain::{
    Code, Problem, Timestamp,
    audit::Action,
    credential::CredentialKind,
    id::{Id as _, PublisherId},
    limits::{Quotas, UNDELETE_DAYS},
    slug::Slug,
};
use sea_orm::{
    ColumnTrait as _, DbErr, EntityTrait as _, PaginatorTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _, SqlErr, sea_query::LockType,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    publishers::Publishers,
    publishers::credentials::{Minted, NewCredential, insert_first_four},
    store::{
        Scoped, Store, System,
        change::{Answer, Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        entity::{credentials, pipelines, publishers, webhook_endpoints},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        quota::quotas_in,
        scope::OPERATOR,
    },
    trains::{accounts, train},
};

domain::words! {
    /// Whether a publisher's tokens work.
    pub enum PublisherStatus {
        /// Its tokens work.
        Active = "active",
        /// Its tokens are refused until the operator resumes it.
        Suspended = "suspended",
        /// Its tokens are unknown. The operator can resume it for some days.
        Deleted = "deleted",
    }
}

/// A publisher, which is a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publisher {
    /// The publisher's identifier.
    pub id: PublisherId,
    /// The publisher's name for the operator, unique.
    pub slug: String,
    /// The publisher's name for people.
    pub display_name: String,
    /// Whether the publisher's tokens work.
    pub status: PublisherStatus,
    /// The publisher's quotas.
    pub quotas: Quotas,
    /// Increased with each change of this row.
    pub revision: i64,
    /// When the publisher was created.
    pub created_at: Timestamp,
    /// When the publisher last changed.
    pub updated_at: Timestamp,
    /// When the publisher was deleted.
    pub deleted_at: Option<Timestamp>,
}

impl Publisher {
    /// Whether the publisher's tokens work.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.status == PublisherStatus::Active
    }

    pub(crate) fn of_row(row: publishers::Model) -> Result<Self> {
        Ok(Self {
            id: PublisherId::from_uuid(row.id),
            status: PublisherStatus::parse(&row.status)
                .ok_or_else(|| corrupt_row("publisher status"))?,
            quotas: quotas_in(&row)?,
            slug: row.slug,
            display_name: row.display_name,
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            updated_at: Timestamp::from_ms(row.updated_at),
            deleted_at: row.deleted_at.map(Timestamp::from_ms),
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests(id: PublisherId) -> Self {
        Self {
            id,
            slug: "x".into(),
            display_name: "X".into(),
            status: PublisherStatus::Active,
            quotas: Quotas::default(),
            revision: 1,
            created_at: Timestamp::from_ms(0),
            updated_at: Timestamp::from_ms(0),
            deleted_at: None,
        }
    }
}

/// What the operator gives for a new publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPublisher {
    /// The publisher's name for the operator, unique.
    pub slug: Slug,
    /// The publisher's name for people.
    pub display_name: String,
}

/// A new publisher with its first credentials, whose values cannot be read later.
#[derive(Clone, Debug)]
pub struct CreatedPublisher {
    /// The publisher.
    pub publisher: Publisher,
    /// Its first admin token.
    pub admin: Minted,
    /// Its first runner token.
    pub runner: Minted,
    /// Its first webhook secret.
    pub webhook_signing: Minted,
    /// Its first subcommand bearer.
    pub subcommand_bearer: Minted,
}

/// Changes of a publisher by the operator. `None` keeps a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublisherPatch {
    /// The publisher's name for people.
    pub display_name: Option<String>,
    /// The publisher's quotas.
    pub quotas: QuotasPatch,
}

/// Changes of quotas. `None` keeps a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QuotasPatch {
    /// Live credentials of each kind.
    pub credentials_per_kind: Option<u32>,
    /// Pipelines.
    pub pipelines: Option<u32>,
    /// Webhook endpoints.
    pub webhook_endpoints: Option<u32>,
    /// Upstream accounts.
    pub accounts: Option<u32>,
    /// Trains.
    pub trains: Option<u32>,
    /// Live tokens of all trains.
    pub train_tokens: Option<u32>,
    /// Live tokens of one train.
    pub train_tokens_per_train: Option<u32>,
    /// Bytes stored of events, runs and deliveries.
    pub storage_bytes: Option<u64>,
}

impl QuotasPatch {
    fn over(self, now: Quotas) -> Quotas {
        Quotas {
            credentials_per_kind: self
                .credentials_per_kind
                .unwrap_or(now.credentials_per_kind),
            pipelines: self.pipelines.unwrap_or(now.pipelines),
            webhook_endpoints: self.webhook_endpoints.unwrap_or(now.webhook_endpoints),
            accounts: self.accounts.unwrap_or(now.accounts),
            trains: self.trains.unwrap_or(now.trains),
            train_tokens: self.train_tokens.unwrap_or(now.train_tokens),
            train_tokens_per_train: self
                .train_tokens_per_train
                .unwrap_or(now.train_tokens_per_train),
            storage_bytes: self.storage_bytes.unwrap_or(now.storage_bytes),
        }
    }
}

/// How much a publisher uses, and its quotas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Live credentials by kind.
    pub credentials: BTreeMap<&'static str, u64>,
    /// Pipelines.
    pub pipelines: u64,
    /// Webhook endpoints.
    pub webhook_endpoints: u64,
    /// Upstream accounts.
    pub accounts: u64,
    /// Trains.
    pub trains: u64,
    /// Live tokens of all trains.
    pub train_tokens: u64,
    /// Bytes stored of events, runs and deliveries, as of the last sum.
    pub storage_bytes: u64,
    /// The quotas.
    pub quotas: Quotas,
}

fn slug_conflict(error: DbErr) -> StoreError {
    match error.sql_err() {
        Some(SqlErr::UniqueConstraintViolation(_)) => Code::SlugTaken.into(),
        _ => error.into(),
    }
}

impl Store {
    /// Reads and locks a publisher's row, to change it.
    async fn publisher_row(&self, tx: &Tx, id: PublisherId) -> Result<publishers::Model> {
        let row = publishers::Entity::find_by_id(id.uuid()).lock(LockType::NoKeyUpdate);
        row.one(tx.db())
            .await?
            .ok_or_else(|| Problem::not_found().into())
    }

    /// Inserts a publisher with its keys, audit log and first credentials.
    pub(crate) async fn insert_publisher(
        &self,
        tx: &Tx,
        new: &NewPublisher,
    ) -> Result<CreatedPublisher> {
        let id = PublisherId::generate(tx.now);
        let row = publishers::Model {
            id: id.uuid(),
            slug: new.slug.to_string(),
            live_slug: Some(new.slug.to_string()),
            display_name: new.display_name.clone(),
            status: PublisherStatus::Active.as_str().to_owned(),
            quotas: "{}".to_owned(),
            revision: 1,
            created_at: tx.now.ms(),
            updated_at: tx.now.ms(),
            deleted_at: None,
        };
        let active: publishers::ActiveModel = row.clone().into();
        publishers::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
            .exec_without_returning(tx.db())
            .await
            .map_err(slug_conflict)?;
        let keys = self.inner.keys.create(tx.db(), id.uuid(), tx.now).await?;
        self.start_audit(tx.db(), id.uuid()).await?;
        let [admin, runner, webhook_signing, subcommand_bearer] =
            insert_first_four(tx, id, &keys.data).await?;
        Ok(CreatedPublisher {
            publisher: Publisher::of_row(row)?,
            admin,
            runner,
            webhook_signing,
            subcommand_bearer,
        })
    }
}

impl Publishers<System> {
    /// Creates a publisher with one credential of each kind.
    pub async fn create_publisher<A>(
        &self,
        context: &Context,
        new: NewPublisher,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&CreatedPublisher) -> Answer + Send + Sync,
    {
        let (store, new) = (&self.store, &new);
        store
            .administer(
                context,
                OPERATOR,
                |tx| async move {
                    let created = store.insert_publisher(&tx, new).await?;
                    let id = created.publisher.id;
                    let facts = json!({ "slug": created.publisher.slug });
                    let entry = audit_entry(Action::PublisherCreated, "publisher", id, facts);
                    Ok(Audited::by_operator(created, id.uuid(), entry))
                },
                render,
            )
            .await
    }

    /// All publishers, newest first.
    pub async fn publishers(
        &self,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Publisher, Uuid>, StoreError> {
        use publishers::Column;
        let mut query = publishers::Entity::find();
        if let Some(after) = page.after {
            query = query.filter(Column::Id.lt(after));
        }
        let rows = query
            .order_by_desc(Column::Id)
            .limit(page.fetch())
            .all(self.store.read())
            .await?;
        page.cut(rows, |row| row.id).try_map(Publisher::of_row)
    }

    /// Reads a publisher.
    pub async fn publisher(&self, id: PublisherId) -> Result<Publisher, StoreError> {
        let row = publishers::Entity::find_by_id(id.uuid())
            .one(self.store.read())
            .await?;
        Publisher::of_row(row.ok_or_else(Problem::not_found)?)
    }

    /// Changes names or quotas. The quotas are merged with those in the locked row, so that two
    /// concurrent changes of different quotas both take effect.
    pub async fn update_publisher<A>(
        &self,
        context: &Context,
        id: PublisherId,
        patch: PublisherPatch,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Publisher) -> Answer + Send + Sync,
    {
        let patch = &patch;
        self.change_publisher(context, id, if_match, render, move |row, _now| {
            let mut action = Action::PublisherUpdated;
            let mut facts = json!({});
            let mut changed = false;
            if let Some(name) = &patch.display_name
                && *name != row.display_name
            {
                row.display_name.clone_from(name);
                facts["display_name"] = json!(name);
                changed = true;
            }
            let before = quotas_in(row)?;
            let quotas = patch.quotas.over(before);
            if quotas != before {
                row.quotas = serde_json::to_string(&quotas).map_err(|_| corrupt_row("quotas"))?;
                facts["quotas"] = json!(quotas);
                action = Action::PublisherQuotaSet;
                changed = true;
            }
            Ok(changed.then_some((action, facts)))
        })
        .await
    }

    /// Suspends a publisher: its tokens and deliveries stop until it is resumed.
    pub async fn suspend_publisher<A>(
        &self,
        context: &Context,
        id: PublisherId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Publisher) -> Answer + Send + Sync,
    {
        self.change_publisher(
            context,
            id,
            None,
            render,
            |row, _now| match PublisherStatus::parse(&row.status) {
                Some(PublisherStatus::Active) => {
                    PublisherStatus::Suspended
                        .as_str()
                        .clone_into(&mut row.status);
                    Ok(Some((Action::PublisherSuspended, json!({}))))
                }
                Some(PublisherStatus::Suspended) => Ok(None),
                _ => Err(wrong_state("It is deleted.")),
            },
        )
        .await
    }

    /// Resumes a suspended publisher, or one that was deleted within the last days; under the new
    /// name `slug` if that is given.
    pub async fn resume_publisher<A>(
        &self,
        context: &Context,
        id: PublisherId,
        slug: Option<Slug>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Publisher) -> Answer + Send + Sync,
    {
        let slug = &slug;
        self.change_publisher(context, id, None, render, move |row, now| {
            match PublisherStatus::parse(&row.status) {
                Some(PublisherStatus::Active) => return Ok(None),
                Some(PublisherStatus::Suspended) => {
                    if slug.as_ref().is_some_and(|slug| slug.as_str() != row.slug) {
                        return Err(wrong_state("Only a deleted publisher can take a new slug."));
                    }
                }
                _ => {
                    let gone = row.deleted_at.map_or(now, Timestamp::from_ms);
                    if now.since(gone) >= Duration::from_secs(UNDELETE_DAYS * 24 * 3600) {
                        return Err(wrong_state("It was deleted too long ago."));
                    }
                    if let Some(slug) = slug {
                        row.slug = slug.to_string();
                    }
                    row.live_slug = Some(row.slug.clone());
                    row.deleted_at = None;
                }
            }
            PublisherStatus::Active.as_str().clone_into(&mut row.status);
            Ok(Some((
                Action::PublisherResumed,
                json!({ "slug": row.slug }),
            )))
        })
        .await
    }

    /// Marks a publisher for removal. `confirm` must be its slug.
    pub async fn delete_publisher<A>(
        &self,
        context: &Context,
        id: PublisherId,
        confirm: &str,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        self.change_publisher(
            context,
            id,
            if_match,
            move |_| render(&()),
            move |row, now| {
                if row.deleted_at.is_some() {
                    return Err(Problem::not_found().into());
                }
                if row.slug != confirm {
                    let detail = "Repeat the publisher's slug to delete it.";
                    return Err(Problem::parameter("/query/confirm", detail).into());
                }
                PublisherStatus::Deleted
                    .as_str()
                    .clone_into(&mut row.status);
                row.live_slug = None;
                row.deleted_at = Some(now.ms());
                Ok(Some((
                    Action::PublisherDeleted,
                    json!({ "slug": row.slug }),
                )))
            },
        )
        .await
    }

    /// Reads, changes and writes a publisher's row. `change` returns the audit action and facts, or
    /// `None` if nothing has to change.
    async fn change_publisher<A, C>(
        &self,
        context: &Context,
        id: PublisherId,
        if_match: Option<Expected>,
        render: A,
        change: C,
    ) -> Result<Answer>
    where
        A: Fn(&Publisher) -> Answer + Send + Sync,
        C: Fn(&mut publishers::Model, Timestamp) -> Result<Option<(Action, serde_json::Value)>>
            + Send
            + Sync,
    {
        let (store, change) = (&self.store, &change);
        store
            .administer(
                context,
                OPERATOR,
                |tx| async move {
                    let mut row = store.publisher_row(&tx, id).await?;
                    check_revision(if_match, row.revision)?;
                    let Some((action, facts)) = change(&mut row, tx.now)? else {
                        return Ok(Audited::unchanged(Publisher::of_row(row)?));
                    };
                    let publisher = write_row(&tx, row).await?;
                    let entry = audit_entry(action, "publisher", id, facts);
                    Ok(Audited::by_operator(publisher, id.uuid(), entry))
                },
                render,
            )
            .await
    }

    /// Creates an admin token for a publisher that has lost its own.
    pub async fn mint_admin_token<A>(
        &self,
        context: &Context,
        id: PublisherId,
        new: NewCredential,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Minted) -> Answer + Send + Sync,
    {
        let (store, new) = (&self.store, &new);
        store
            .administer(
                context,
                OPERATOR,
                |tx| async move {
                    let row = store.publisher_row(&tx, id).await?;
                    if row.deleted_at.is_some() {
                        return Err(wrong_state("It is deleted."));
                    }
                    let minted = store
                        .mint_in(&tx, id.uuid(), CredentialKind::Admin, new)
                        .await?;
                    let token = minted.credential.id;
                    let entry = audit_entry(
                        Action::TokenMinted,
                        "token",
                        token,
                        json!({ "kind": "admin" }),
                    );
                    Ok(Audited::by_operator(minted, id.uuid(), entry))
                },
                render,
            )
            .await
    }
}

fn wrong_state(detail: &str) -> StoreError {
    Problem::new(Code::WrongPublisherState, detail).into()
}

/// Writes a changed row with the next revision, and invalidates all caches of it.
async fn write_row(tx: &Tx, mut row: publishers::Model) -> Result<Publisher> {
    row.revision += 1;
    row.updated_at = tx.now.ms();
    let active: publishers::ActiveModel = row.clone().into();
    publishers::Entity::update(sea_orm::ActiveModelTrait::reset_all(active))
        .exec(tx.db())
        .await
        .map_err(slug_conflict)?;
    let publisher = Publisher::of_row(row)?;
    tx.touches_credentials_of(publisher.id);
    Ok(publisher)
}

impl Scoped {
    /// The scope's own publisher.
    pub async fn publisher(&self) -> Result<Publisher, StoreError> {
        let row = publishers::Entity::find_by_id(self.scope.uuid())
            .one(self.store.read())
            .await?;
        Publisher::of_row(row.ok_or_else(Problem::not_found)?)
    }

    /// Changes the display name of the scope's own publisher.
    pub async fn update_publisher<A>(
        &self,
        context: &Context,
        display_name: Option<String>,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Publisher) -> Answer + Send + Sync,
    {
        let (store, owner, name) = (&self.store, self.scope.uuid(), &display_name);
        store
            .administer(
                context,
                owner,
                |tx| async move {
                    let mut row = store.publisher_row(&tx, self.scope.publisher()).await?;
                    check_revision(if_match, row.revision)?;
                    let Some(name) = name.as_ref().filter(|name| **name != row.display_name) else {
                        return Ok(Audited::unchanged(Publisher::of_row(row)?));
                    };
                    row.display_name.clone_from(name);
                    let publisher = write_row(&tx, row).await?;
                    let facts = json!({ "display_name": name });
                    let entry =
                        audit_entry(Action::PublisherUpdated, "publisher", publisher.id, facts);
                    Ok(Audited::new(publisher, owner, entry))
                },
                render,
            )
            .await
    }

    /// How much the scope's own publisher uses, and its quotas.
    pub async fn usage(&self) -> Result<Usage, StoreError> {
        let (db, owner, now) = (self.store.read(), self.scope.uuid(), self.store.now());
        let rows: Vec<(String, bool, bool)> = credentials::Entity::find()
            .select_only()
            .column(credentials::Column::Kind)
            .column(credentials::Column::GrantsAdmin)
            .column(credentials::Column::GrantsRunner)
            .filter(credentials::Column::PublisherId.eq(owner))
            .filter(crate::publishers::credentials::live_at(now))
            .into_tuple()
            .all(db)
            .await?;
        let count = |kind: CredentialKind| {
            let has = |(name, admin, runner): &&(String, bool, bool)| match kind {
                CredentialKind::Admin => *admin,
                CredentialKind::Runner => *runner,
                other => name == other.as_str(),
            };
            u64::try_from(rows.iter().filter(has).count()).unwrap_or(u64::MAX)
        };
        let pipelines = pipelines::Entity::find()
            .filter(pipelines::Column::PublisherId.eq(owner))
            .filter(pipelines::Column::LiveSlug.is_not_null())
            .count(db)
            .await?;
        let webhook_endpoints = webhook_endpoints::Entity::find()
            .filter(webhook_endpoints::Column::PublisherId.eq(owner))
            .filter(webhook_endpoints::Column::DeletedAt.is_null())
            .count(db)
            .await?;
        Ok(Usage {
            credentials: CredentialKind::ALL
                .into_iter()
                .map(|kind| (kind.as_str(), count(kind)))
                .collect(),
            pipelines,
            webhook_endpoints,
            accounts: accounts::of(owner).count(db).await?,
            trains: train::of(owner).count(db).await?,
            train_tokens: train::live_tokens(owner, now).count(db).await?,
            storage_bytes: u64::try_from(self.store.storage_of(owner).await?.0).unwrap_or(0),
            quotas: self.publisher().await?.quotas,
        })
    }
}
