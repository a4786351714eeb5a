//! The four kinds of credentials of a publisher: create, rotate, revoke.

use std::time::Duration;

use domain::{
    Code, FaultCode, Problem, Timestamp,
    audit::Action,
    credential::{CredentialKind, Grants, Source},
    id::{CredentialId, Id, PublisherId, SecretId, TokenId, UserId},
    seal::{Key, SealContext},
    slug::Slug,
    token::{TokenHash, last_four},
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, Condition, EntityTrait as _, PaginatorTrait as _,
    QueryFilter as _,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use uuid::Uuid;

mod list;

use crate::{
    publishers::{Credentials, invitations::withdraw_of_tokens},
    store::{
        Scoped, Store,
        change::{Answer, Audited, Context, audit_entry},
        columns::slugs_of,
        db::Tx,
        entity::{credentials, token_hashes},
        error::{Result, StoreError, corrupt_row},
        quota::{over_quota, quotas_of},
    },
};

/// A credential, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The credential's identifier.
    pub id: CredentialId,
    /// The kind; the first of a legacy token's kinds.
    pub kind: CredentialKind,
    /// The rights of a token.
    pub grants: Grants,
    /// A name for people.
    pub name: Option<String>,
    /// The last four characters.
    pub last_four: String,
    /// How the credential was created.
    pub source: Source,
    /// The only pipelines that a runner token reaches; `None` for all.
    pub pipelines: Option<Vec<Slug>>,
    /// When the credential was created.
    pub created_at: Timestamp,
    /// When the credential expires.
    pub expires_at: Option<Timestamp>,
    /// When a rotation replaced the credential, which works until `expires_at`.
    pub superseded_at: Option<Timestamp>,
    /// When the credential was last used, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// The person who created it, if a person did.
    pub minted_by: Option<UserId>,
}

/// A new credential with its value, which cannot be read later.
#[derive(Clone, Debug)]
pub struct Minted {
    /// The credential without its value.
    pub credential: Credential,
    /// The value.
    pub text: SecretString,
    /// The credentials that it replaces.
    pub replaced: Vec<Replaced>,
}

/// A credential that a rotation replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The credential's identifier.
    pub id: CredentialId,
    /// Until when the credential works; the time of the rotation if there is no overlap.
    pub valid_until: Timestamp,
    /// When the credential was last used.
    pub last_used_at: Option<Timestamp>,
}

/// What a caller gives for a new credential.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewCredential {
    /// A name for people.
    pub name: Option<String>,
    /// When the credential expires.
    pub expires_at: Option<Timestamp>,
    /// The only pipelines that a runner token reaches; `None` for all.
    pub pipelines: Option<Vec<Slug>>,
}

pub(crate) fn kind_of(row: &credentials::Model) -> Result<CredentialKind> {
    CredentialKind::parse(&row.kind).ok_or_else(|| corrupt_row("credential kind"))
}

fn id_of(kind: CredentialKind, id: Uuid) -> CredentialId {
    if kind.is_token() {
        CredentialId::Token(TokenId::from_uuid(id))
    } else {
        CredentialId::Secret(SecretId::from_uuid(id))
    }
}

fn credential_of(row: credentials::Model) -> Result<Credential> {
    let kind = kind_of(&row)?;
    Ok(Credential {
        id: id_of(kind, row.id),
        kind,
        grants: Grants {
            admin: row.grants_admin,
            runner: row.grants_runner,
        },
        name: row.name,
        last_four: row.last_four,
        source: Source::parse(&row.source).ok_or_else(|| corrupt_row("credential source"))?,
        pipelines: row.pipelines.as_deref().map(slugs_of).transpose()?,
        created_at: Timestamp::from_ms(row.created_at),
        expires_at: row.expires_at.map(Timestamp::from_ms),
        superseded_at: row.superseded_at.map(Timestamp::from_ms),
        last_used_at: row.last_used_at.map(Timestamp::from_ms),
        minted_by: row.minted_by.map(UserId::from_uuid),
    })
}

fn seal_context(publisher: Uuid, id: &[u8]) -> SealContext<'_> {
    SealContext {
        owner: publisher,
        table: "credentials",
        row: id,
        column: "sealed",
    }
}

/// The condition of credentials that are neither revoked nor expired at `now`.
pub(crate) fn live_at(now: Timestamp) -> Condition {
    use credentials::Column;
    Condition::all().add(Column::RevokedAt.is_null()).add(
        Condition::any()
            .add(Column::ExpiresAt.is_null())
            .add(Column::ExpiresAt.gt(now.ms())),
    )
}

/// The condition of credentials of this kind. A token counts for each of its rights.
fn of_kind(kind: CredentialKind) -> Condition {
    use credentials::Column;
    match kind {
        CredentialKind::Admin => Condition::all().add(Column::GrantsAdmin.eq(true)),
        CredentialKind::Runner => Condition::all().add(Column::GrantsRunner.eq(true)),
        secret => Condition::all().add(Column::Kind.eq(secret.as_str())),
    }
}

/// The columns of a new credential.
pub(crate) struct Insert<'a> {
    pub(crate) kind: CredentialKind,
    pub(crate) grants: Grants,
    pub(crate) text: SecretString,
    pub(crate) source: Source,
    pub(crate) new: &'a NewCredential,
}

/// Inserts a credential: the hash of a token, or a secret sealed with the publisher's data key.
pub(crate) async fn insert(
    tx: &Tx,
    publisher: Uuid,
    data_key: &Key,
    insert: Insert<'_>,
) -> Result<Minted> {
    let Insert {
        kind,
        grants,
        text,
        source,
        new,
    } = insert;
    let id = TokenId::generate(tx.now).uuid();
    let sealed = (!kind.is_token()).then(|| {
        data_key.seal(
            &seal_context(publisher, id.as_bytes()),
            text.expose_secret().as_bytes(),
        )
    });
    let slugs = new
        .pipelines
        .as_ref()
        .map(|some| json!(some.iter().map(Slug::as_str).collect::<Vec<_>>()).to_string());
    let row = credentials::Model {
        publisher_id: publisher,
        id,
        kind: kind.as_str().to_owned(),
        grants_admin: grants.admin,
        grants_runner: grants.runner,
        sealed,
        last_four: last_four(text.expose_secret()),
        name: new.name.clone(),
        source: source.as_str().to_owned(),
        pipelines: slugs,
        created_at: tx.now.ms(),
        expires_at: new.expires_at.map(Timestamp::ms),
        superseded_at: None,
        revoked_at: None,
        last_used_at: None,
        minted_by: tx.member().map(Id::uuid),
    };
    let active: credentials::ActiveModel = row.clone().into();
    credentials::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
        .exec_without_returning(tx.db())
        .await?;
    if kind.is_token() {
        token_hashes::Entity::insert(token_hashes::ActiveModel {
            hash: Set(TokenHash::of_secret(&text).as_bytes().to_vec()),
            publisher_id: Set(publisher),
            token_id: Set(id),
        })
        .exec_without_returning(tx.db())
        .await?;
    }
    Ok(Minted {
        credential: credential_of(row)?,
        text,
        replaced: Vec::new(),
    })
}

async fn live_of_kind(
    tx: &Tx,
    publisher: Uuid,
    kind: CredentialKind,
) -> Result<Vec<credentials::Model>> {
    Ok(credentials::Entity::find()
        .filter(credentials::Column::PublisherId.eq(publisher))
        .filter(of_kind(kind))
        .filter(live_at(tx.now))
        .all(tx.db())
        .await?)
}

const fn actions(kind: CredentialKind) -> (Action, Action, Action) {
    if kind.is_token() {
        (
            Action::TokenMinted,
            Action::TokenRotated,
            Action::TokenRevoked,
        )
    } else {
        (
            Action::SecretMinted,
            Action::SecretRotated,
            Action::SecretRevoked,
        )
    }
}

const fn target_kind(kind: CredentialKind) -> &'static str {
    if kind.is_token() { "token" } else { "secret" }
}

/// Checks that `new` fits the kind, the time and the publisher's pipelines.
async fn check_new(
    tx: &Tx,
    publisher: Uuid,
    kind: CredentialKind,
    new: &NewCredential,
) -> Result<()> {
    if new.expires_at.is_some_and(|at| at <= tx.now) {
        return Err(
            Problem::field("/expires_at", FaultCode::TooSmall, "The time has passed.").into(),
        );
    }
    let Some(slugs) = &new.pipelines else {
        return Ok(());
    };
    if kind != CredentialKind::Runner {
        let detail = "Only a runner token can be limited to pipelines.";
        return Err(Problem::field("/pipelines", FaultCode::NotAllowed, detail).into());
    }
    crate::runs::pipelines::check_known(tx, publisher, slugs, "/pipelines").await
}

/// Limits replaced credentials that have not expired yet, since each rotation leaves some, beyond
/// the quota. Only the existing ones are counted, so that a first rotation is always possible.
async fn check_running_out(tx: &Tx, publisher: Uuid, kind: CredentialKind) -> Result<()> {
    let limit = quotas_of(tx, publisher).await?.credentials_per_kind;
    let running_out = credentials::Entity::find()
        .filter(credentials::Column::PublisherId.eq(publisher))
        .filter(of_kind(kind))
        .filter(live_at(tx.now))
        .filter(credentials::Column::SupersededAt.is_not_null())
        .count(tx.db())
        .await?;
    if running_out >= u64::from(limit) {
        return Err(over_quota(
            &format!("replaced {kind} credentials that still run out"),
            limit,
        ));
    }
    Ok(())
}

impl Store {
    /// Creates a credential within an open administrative transaction.
    pub(crate) async fn mint_in(
        &self,
        tx: &Tx,
        publisher: Uuid,
        kind: CredentialKind,
        new: &NewCredential,
    ) -> Result<Minted> {
        check_new(tx, publisher, kind, new).await?;
        let limit = quotas_of(tx, publisher).await?.credentials_per_kind;
        let live = credentials::Entity::find()
            .filter(credentials::Column::PublisherId.eq(publisher))
            .filter(of_kind(kind))
            .filter(live_at(tx.now))
            .count(tx.db())
            .await?;
        if live >= u64::from(limit) {
            return Err(over_quota(&format!("live {kind} credentials"), limit));
        }
        let keys = self.inner.keys.of(tx.db(), publisher).await?;
        let values = Insert {
            kind,
            grants: Grants::of(kind),
            text: kind.generate(),
            source: Source::Api,
            new,
        };
        insert(tx, publisher, &keys.data, values).await
    }
}

/// Opens a stored secret.
pub(crate) fn open_secret(data_key: &Key, row: &credentials::Model) -> Result<SecretString> {
    let sealed = row.sealed.as_deref().ok_or_else(|| corrupt_row("secret"))?;
    let context = seal_context(row.publisher_id, row.id.as_bytes());
    let plain = data_key
        .open(&context, sealed)
        .map_err(|_| corrupt_row("secret"))?;
    let text = std::str::from_utf8(&plain).map_err(|_| corrupt_row("secret"))?;
    Ok(SecretString::from(text.to_owned()))
}

/// Ends the right of `kind` of a credential, at once or after an overlap.
///
/// A token that has another right keeps it. Such a token cannot expire as a whole, so despite an
/// overlap its right ends at once.
async fn retire(
    tx: &Tx,
    row: &credentials::Model,
    kind: CredentialKind,
    overlap: Duration,
) -> Result<Replaced> {
    let left = Grants {
        admin: row.grants_admin,
        runner: row.grants_runner,
    }
    .without(kind);
    let mut change = credentials::ActiveModel {
        publisher_id: Set(row.publisher_id),
        id: Set(row.id),
        ..Default::default()
    };
    let mut valid_until = tx.now;
    if kind.is_token() && !left.is_empty() {
        change.grants_admin = Set(left.admin);
        change.grants_runner = Set(left.runner);
        let first = left.kinds().first().copied().unwrap_or(kind);
        change.kind = Set(first.as_str().to_owned());
    } else if overlap.is_zero() {
        change.revoked_at = Set(Some(tx.now.ms()));
        change.superseded_at = Set(row.superseded_at.or(Some(tx.now.ms())));
    } else {
        let until = tx.now.plus(overlap).ms();
        // A rotation never extends a life.
        let until = row.expires_at.map_or(until, |at| at.min(until));
        valid_until = Timestamp::from_ms(until);
        change.expires_at = Set(Some(until));
        change.superseded_at = Set(row.superseded_at.or(Some(tx.now.ms())));
    }
    credentials::Entity::update(change).exec(tx.db()).await?;
    Ok(Replaced {
        id: id_of(kind, row.id),
        valid_until,
        last_used_at: row.last_used_at.map(Timestamp::from_ms),
    })
}

fn inherited(row: &credentials::Model) -> Result<NewCredential> {
    Ok(NewCredential {
        name: row.name.clone(),
        expires_at: row.expires_at.map(Timestamp::from_ms),
        pipelines: row.pipelines.as_deref().map(slugs_of).transpose()?,
    })
}

impl Credentials<Scoped> {
    /// Creates a further credential of a kind.
    pub async fn mint<A>(
        &self,
        context: &Context,
        kind: CredentialKind,
        new: NewCredential,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Minted) -> Answer + Send + Sync,
    {
        let (owner, new, store) = (self.scope.uuid(), &new, &self.store);
        store
            .administer(
                context,
                owner,
                |tx| async move {
                    let minted = store.mint_in(&tx, owner, kind, new).await?;
                    let secret = matches!(
                        kind,
                        CredentialKind::WebhookSigning | CredentialKind::SubcommandBearer
                    );
                    if secret {
                        // Opened secrets are cached together with tokens. A new secret signs at
                        // once.
                        tx.touches_credentials_of(self.scope.publisher());
                    }
                    let entry = audit_entry(
                        actions(kind).0,
                        target_kind(kind),
                        minted.credential.id,
                        json!({ "kind": kind.as_str() }),
                    );
                    Ok(Audited::new(minted, owner, entry))
                },
                render,
            )
            .await
    }

    /// Replaces all live credentials of a kind by a new one. If there is exactly one, the new one
    /// has its name, pipelines and expiry, unless `new` sets others.
    pub async fn rotate_all<A>(
        &self,
        context: &Context,
        kind: CredentialKind,
        overlap: Duration,
        new: NewCredential,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Minted) -> Answer + Send + Sync,
    {
        let (owner, new) = (self.scope.uuid(), &new);
        self.store
            .administer(
                context,
                owner,
                |tx| async move {
                    let old = live_of_kind(&tx, owner, kind).await?;
                    // Without credentials that an earlier rotation has replaced.
                    let standing: Vec<_> = old
                        .iter()
                        .filter(|row| row.superseded_at.is_none())
                        .collect();
                    let from = match standing.as_slice() {
                        [one] => inherited(one)?,
                        _ => NewCredential::default(),
                    };
                    let new = NewCredential {
                        name: new.name.clone().or(from.name),
                        expires_at: new.expires_at.or(from.expires_at),
                        pipelines: new.pipelines.clone().or(from.pipelines),
                    };
                    self.replace(&tx, kind, &old, overlap, &new).await
                },
                render,
            )
            .await
    }

    /// Replaces one live credential. The new one has its name, pipelines and expiry.
    pub async fn rotate_one<A>(
        &self,
        context: &Context,
        kind: CredentialKind,
        id: CredentialId,
        overlap: Duration,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Minted) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        self.store
            .administer(
                context,
                owner,
                |tx| async move {
                    let row = self.live_one(&tx, kind, id).await?;
                    let new = inherited(&row)?;
                    self.replace(&tx, kind, std::slice::from_ref(&row), overlap, &new)
                        .await
                },
                render,
            )
            .await
    }

    async fn replace(
        &self,
        tx: &Tx,
        kind: CredentialKind,
        old: &[credentials::Model],
        overlap: Duration,
        new: &NewCredential,
    ) -> Result<Audited<Minted>> {
        let owner = self.scope.uuid();
        // A pipeline that was deleted since stays in the list: a rotation extends no limit.
        check_new(
            tx,
            owner,
            kind,
            &NewCredential {
                pipelines: None,
                ..new.clone()
            },
        )
        .await?;
        if !overlap.is_zero() {
            check_running_out(tx, owner, kind).await?;
        }
        let mut replaced = Vec::with_capacity(old.len());
        for row in old {
            replaced.push(retire(tx, row, kind, overlap).await?);
        }
        let keys = self.store.inner.keys.of(tx.db(), owner).await?;
        let values = Insert {
            kind,
            grants: Grants::of(kind),
            text: kind.generate(),
            source: Source::Api,
            new,
        };
        let minted = insert(tx, owner, &keys.data, values).await?;
        let minted = Minted { replaced, ..minted };
        tx.touches_credentials_of(self.scope.publisher());
        let ids: Vec<String> = minted
            .replaced
            .iter()
            .map(|one| one.id.to_string())
            .collect();
        let facts = json!({
            "kind": kind.as_str(),
            "overlap_seconds": overlap.as_secs(),
            "replaced": ids,
        });
        crate::webhooks::events::emit(
            tx,
            owner,
            domain::event::OwnType::TokenRotated.as_str(),
            &json!({ "id": minted.credential.id.to_string(), "kind": kind.as_str() }),
            None,
        )
        .await?;
        let entry = audit_entry(
            actions(kind).1,
            target_kind(kind),
            minted.credential.id,
            facts,
        );
        Ok(Audited::new(minted, owner, entry))
    }

    async fn live_one(
        &self,
        tx: &Tx,
        kind: CredentialKind,
        id: CredentialId,
    ) -> Result<credentials::Model> {
        if matches!(id, CredentialId::Token(_)) != kind.is_token() {
            return Err(Problem::not_found().into());
        }
        credentials::Entity::find_by_id((self.scope.uuid(), id.uuid()))
            .filter(of_kind(kind))
            .filter(live_at(tx.now))
            .one(tx.db())
            .await?
            .ok_or_else(|| Problem::not_found().into())
    }

    /// Revokes a credential. A token with several rights only loses that of `kind`.
    pub async fn revoke<A>(
        &self,
        context: &Context,
        kind: CredentialKind,
        id: CredentialId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        self.store
            .administer(
                context,
                owner,
                |tx| async move {
                    let row = self.live_one(&tx, kind, id).await?;
                    if row.superseded_at.is_none() {
                        guard_last(&tx, owner, kind, row.id).await?;
                    }
                    retire(&tx, &row, kind, Duration::ZERO).await?;
                    withdraw_of_tokens(&tx, owner, [row.id]).await?;
                    tx.touches_credentials_of(self.scope.publisher());
                    crate::webhooks::events::emit(
                        &tx,
                        owner,
                        domain::event::OwnType::TokenRevoked.as_str(),
                        &json!({ "id": id.to_string(), "kind": kind.as_str() }),
                        None,
                    )
                    .await?;
                    let facts = json!({ "kind": kind.as_str() });
                    let entry = audit_entry(actions(kind).2, target_kind(kind), id, facts);
                    Ok(Audited::new((), owner, entry))
                },
                render,
            )
            .await
    }
}

/// Refuses to revoke the last credential of a kind that must always have one. Credentials that a
/// rotation has replaced do not count.
async fn guard_last(tx: &Tx, publisher: Uuid, kind: CredentialKind, id: Uuid) -> Result<()> {
    let code = match kind {
        CredentialKind::Runner => return Ok(()),
        CredentialKind::Admin => Code::LastAdminToken,
        CredentialKind::WebhookSigning | CredentialKind::SubcommandBearer => Code::LastSecret,
    };
    let others = live_of_kind(tx, publisher, kind)
        .await?
        .into_iter()
        .filter(|row| row.id != id && row.superseded_at.is_none())
        .count();
    if others == 0 {
        Err(code.into())
    } else {
        Ok(())
    }
}

/// Creates the first credential of each kind for a new publisher.
pub(crate) async fn insert_first_four(
    tx: &Tx,
    publisher: PublisherId,
    data_key: &Key,
) -> Result<[Minted; 4]> {
    let new = NewCredential::default();
    let mut made = Vec::with_capacity(4);
    for kind in CredentialKind::ALL {
        let values = Insert {
            kind,
            grants: Grants::of(kind),
            text: kind.generate(),
            source: Source::Bootstrap,
            new: &new,
        };
        made.push(insert(tx, publisher.uuid(), data_key, values).await?);
    }
    made.try_into()
        .map_err(|_| StoreError::Internal("there are four kinds".into()))
}
