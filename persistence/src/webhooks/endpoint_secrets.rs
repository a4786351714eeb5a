//! Secrets of single endpoints. They sign in place of the publisher's secrets.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use domain::{
    Code, Problem, Timestamp,
    audit::Action,
    credential::CredentialKind,
    id::{CredentialId, EndpointId, Id as _, KeySetId, SecretId},
    limits::ENDPOINT_SECRETS,
    seal::{Key, SealContext},
    signature::{self, Signing},
    token::last_four,
};
use sea_orm::{
    ActiveModelTrait as _,
    ActiveValue::Set,
    ColumnTrait as _, Condition, EntityTrait as _, IntoActiveModel as _, QueryFilter as _,
    QueryOrder as _, Select,
    sea_query::{Expr, ExprTrait as _},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use uuid::Uuid;

use crate::{
    publishers::credentials::Replaced,
    store::{
        Scoped, Store, System,
        change::{Answer, AuditEntry, Audited, Context, audit_entry},
        db::Tx,
        entity::{endpoint_secrets, webhook_endpoints},
        error::{Result, StoreError, corrupt_row},
        quota::over_quota,
        unreadable,
    },
    webhooks::Webhooks,
    webhooks::endpoint_rows::live_row,
};

/// A secret of an endpoint, without its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSecret {
    /// The secret's identifier.
    pub id: SecretId,
    /// The kind of signature that it makes.
    pub kind: Signing,
    /// The public key, if the secret is a key pair.
    pub public_key: Option<String>,
    /// The last four characters of the secret, or of the public key of a pair.
    pub last_four: String,
    /// When the secret was created.
    pub created_at: Timestamp,
    /// When the secret stops signing.
    pub expires_at: Option<Timestamp>,
    /// When a rotation replaced the secret.
    pub superseded_at: Option<Timestamp>,
}

/// A new secret of an endpoint.
#[derive(Clone, Debug)]
pub struct MintedEndpointSecret {
    /// The secret without its value.
    pub secret: EndpointSecret,
    /// The value, if the receiver needs it. Nobody ever sees a private key.
    pub text: Option<SecretString>,
    /// The secrets that it replaces.
    pub replaced: Vec<Replaced>,
}

/// A public key with which an endpoint's receiver verifies deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// `whpk_…`
    pub text: String,
    /// When the key is no longer used.
    pub expires_at: Option<Timestamp>,
}

/// The signing secrets of an endpoint that has its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct OwnSecrets {
    /// The secrets, newest first.
    pub(crate) signing: Vec<SecretString>,
    /// When the first of them expires.
    pub(crate) until: Option<Timestamp>,
    /// Whether one of them cannot be opened.
    pub(crate) unreadable: bool,
}

fn kind_of(row: &endpoint_secrets::Model) -> Result<Signing> {
    Signing::parse(&row.kind).ok_or_else(|| corrupt_row("secret of an endpoint"))
}

fn secret_of(row: endpoint_secrets::Model) -> Result<EndpointSecret> {
    Ok(EndpointSecret {
        id: SecretId::from_uuid(row.id),
        kind: kind_of(&row)?,
        public_key: row.public_key,
        last_four: row.last_four,
        created_at: Timestamp::from_ms(row.created_at),
        expires_at: row.expires_at.map(Timestamp::from_ms),
        superseded_at: row.superseded_at.map(Timestamp::from_ms),
    })
}

/// The row's name in the seal context. It contains the endpoint, so that a secret opens for its own
/// endpoint only.
fn sealed_row(endpoint: Uuid, id: Uuid) -> [u8; 32] {
    let mut row = [0; 32];
    row[..16].copy_from_slice(endpoint.as_bytes());
    row[16..].copy_from_slice(id.as_bytes());
    row
}

fn seal_context(publisher: Uuid, row: &[u8]) -> SealContext<'_> {
    SealContext {
        owner: publisher,
        table: "endpoint_secrets",
        row,
        column: "sealed",
    }
}

fn open(data_key: &Key, row: &endpoint_secrets::Model) -> Result<SecretString> {
    let row_key = sealed_row(row.endpoint_id, row.id);
    let plain = data_key
        .open(&seal_context(row.publisher_id, &row_key), &row.sealed)
        .map_err(|_| corrupt_row("secret of an endpoint"))?;
    let text = std::str::from_utf8(&plain).map_err(|_| corrupt_row("secret of an endpoint"))?;
    Ok(SecretString::from(text.to_owned()))
}

/// The condition of secrets that are neither revoked nor expired at `now`.
fn live_at(now: Timestamp) -> Condition {
    use endpoint_secrets::Column;
    let running = Condition::any()
        .add(Column::ExpiresAt.is_null())
        .add(Column::ExpiresAt.gt(now.ms()));
    Condition::all()
        .add(Column::RevokedAt.is_null())
        .add(running)
}

fn live_of(owner: Uuid, endpoint: Uuid, now: Timestamp) -> Select<endpoint_secrets::Entity> {
    use endpoint_secrets::Column;
    endpoint_secrets::Entity::find()
        .filter(Column::PublisherId.eq(owner))
        .filter(Column::EndpointId.eq(endpoint))
        .filter(live_at(now))
}

fn signing_of(endpoint: &webhook_endpoints::Model) -> Result<Signing> {
    Signing::parse(&endpoint.signing).ok_or_else(|| corrupt_row("endpoint's signing"))
}

/// Inserts a new secret, sealed with the publisher's data key.
async fn insert(
    tx: &Tx,
    data_key: &Key,
    endpoint: &webhook_endpoints::Model,
    kind: Signing,
) -> Result<MintedEndpointSecret> {
    let (text, public_key) = match kind {
        Signing::Hmac => (CredentialKind::WebhookSigning.generate(), None),
        Signing::Ed25519 => {
            let (private, public) = signature::generate_pair();
            (private, Some(public))
        }
    };
    let id = SecretId::generate(tx.now).uuid();
    let row_key = sealed_row(endpoint.id, id);
    let sealed = data_key.seal(
        &seal_context(endpoint.publisher_id, &row_key),
        text.expose_secret().as_bytes(),
    );
    let shown = public_key.as_deref().unwrap_or(text.expose_secret());
    let row = endpoint_secrets::Model {
        publisher_id: endpoint.publisher_id,
        id,
        endpoint_id: endpoint.id,
        kind: kind.as_str().to_owned(),
        sealed,
        last_four: last_four(shown),
        public_key,
        created_at: tx.now.ms(),
        expires_at: None,
        superseded_at: None,
        revoked_at: None,
    };
    let active = row.clone().into_active_model().reset_all();
    endpoint_secrets::Entity::insert(active)
        .exec_without_returning(tx.db())
        .await?;
    Ok(MintedEndpointSecret {
        secret: secret_of(row)?,
        text: (kind == Signing::Hmac).then_some(text),
        replaced: Vec::new(),
    })
}

fn entry(action: Action, endpoint: Uuid, minted: &EndpointSecret, overlap: Duration) -> AuditEntry {
    let facts = json!({
        "endpoint_id": EndpointId::from_uuid(endpoint).to_string(),
        "signing": minted.kind.as_str(),
        "overlap_seconds": overlap.as_secs(),
    });
    audit_entry(action, "secret", minted.id, facts)
}

/// Gives an endpoint that signs with a key pair an identifier under which the public keys are
/// served, unless it has one.
pub(crate) fn ensure_key_set_id(endpoint: &mut webhook_endpoints::Model) {
    if endpoint.signing == Signing::Ed25519.as_str() {
        endpoint
            .key_set
            .get_or_insert_with(|| Uuid::from_bytes(domain::random::bytes()));
    }
}

/// Creates a key pair for an endpoint that signs with one, unless it has one.
pub(crate) async fn ensure_signing_key(
    store: &Store,
    tx: &Tx,
    endpoint: &webhook_endpoints::Model,
) -> Result<Option<AuditEntry>> {
    if signing_of(endpoint)? != Signing::Ed25519 {
        return Ok(None);
    }
    let pair = live_of(endpoint.publisher_id, endpoint.id, tx.now)
        .filter(endpoint_secrets::Column::Kind.eq(Signing::Ed25519.as_str()))
        .one(tx.db())
        .await?;
    if pair.is_some() {
        return Ok(None);
    }
    let keys = store.inner.keys.of(tx.db(), endpoint.publisher_id).await?;
    let minted = insert(tx, &keys.data, endpoint, Signing::Ed25519).await?;
    let entry = entry(
        Action::SecretMinted,
        endpoint.id,
        &minted.secret,
        Duration::ZERO,
    );
    Ok(Some(entry))
}

/// Ends a secret, at once or after an overlap. Never extends its life.
async fn retire(tx: &Tx, row: &endpoint_secrets::Model, overlap: Duration) -> Result<Replaced> {
    let mut change = endpoint_secrets::ActiveModel {
        publisher_id: Set(row.publisher_id),
        id: Set(row.id),
        superseded_at: Set(row.superseded_at.or(Some(tx.now.ms()))),
        ..Default::default()
    };
    let mut until = tx.now.ms();
    if overlap.is_zero() {
        change.revoked_at = Set(Some(until));
    } else {
        let end = tx.now.plus(overlap).ms();
        until = row.expires_at.map_or(end, |at| Ord::min(at, end));
        change.expires_at = Set(Some(until));
    }
    endpoint_secrets::Entity::update(change)
        .exec(tx.db())
        .await?;
    Ok(Replaced {
        id: CredentialId::Secret(SecretId::from_uuid(row.id)),
        valid_until: Timestamp::from_ms(until),
        last_used_at: None,
    })
}

impl Webhooks<Scoped> {
    /// The live secrets of an endpoint, newest first.
    pub async fn endpoint_secrets(
        &self,
        id: EndpointId,
    ) -> Result<Vec<EndpointSecret>, StoreError> {
        self.endpoint(id).await?;
        let rows = live_of(self.scope.uuid(), id.uuid(), self.store.now())
            .order_by_desc(endpoint_secrets::Column::Id)
            .all(self.store.read())
            .await?;
        rows.into_iter().map(secret_of).collect()
    }

    /// Creates a further secret of an endpoint, of its kind of signature. From then on the
    /// publisher's secrets do not sign for it.
    pub async fn mint_endpoint_secret<A>(
        &self,
        context: &Context,
        id: EndpointId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&MintedEndpointSecret) -> Answer + Send + Sync,
    {
        self.issue(context, id, None, render).await
    }

    /// Replaces the endpoint's live secrets of its kind of signature with a new one. They continue
    /// to sign beside the new one for `overlap`.
    pub async fn rotate_endpoint_secrets<A>(
        &self,
        context: &Context,
        id: EndpointId,
        overlap: Duration,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&MintedEndpointSecret) -> Answer + Send + Sync,
    {
        self.issue(context, id, Some(overlap), render).await
    }

    async fn issue<A>(
        &self,
        context: &Context,
        id: EndpointId,
        rotate: Option<Duration>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&MintedEndpointSecret) -> Answer + Send + Sync,
    {
        let (store, owner) = (&self.store, self.scope.uuid());
        let work = |tx: Tx| async move {
            let endpoint = live_row(&tx, owner, id).await?;
            let kind = signing_of(&endpoint)?;
            let old = live_of(owner, endpoint.id, tx.now).all(tx.db()).await?;
            let mut replaced = Vec::new();
            if let Some(overlap) = rotate {
                for row in old.iter().filter(|row| row.kind == kind.as_str()) {
                    replaced.push(retire(&tx, row, overlap).await?);
                }
            }
            let left =
                old.len() - rotate.map_or(0, |o| if o.is_zero() { replaced.len() } else { 0 });
            if left >= ENDPOINT_SECRETS {
                let limit = u32::try_from(ENDPOINT_SECRETS).unwrap_or(u32::MAX);
                return Err(over_quota("live secrets of an endpoint", limit));
            }
            let keys = store.inner.keys.of(tx.db(), owner).await?;
            let minted = insert(&tx, &keys.data, &endpoint, kind).await?;
            let minted = MintedEndpointSecret { replaced, ..minted };
            tx.touches_credentials_of(self.scope.publisher());
            let (action, overlap) = match rotate {
                Some(overlap) => (Action::SecretRotated, overlap),
                None => (Action::SecretMinted, Duration::ZERO),
            };
            let entry = entry(action, endpoint.id, &minted.secret, overlap);
            Ok(Audited::new(minted, owner, entry))
        };
        store.administer(context, owner, work, render).await
    }

    /// Revokes a secret of an endpoint. If none is left, the publisher's secrets sign again. So the
    /// last key pair cannot be revoked while the endpoint signs with one.
    pub async fn revoke_endpoint_secret<A>(
        &self,
        context: &Context,
        endpoint: EndpointId,
        id: SecretId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let of = live_row(&tx, owner, endpoint).await?;
            let all = live_of(owner, of.id, tx.now).all(tx.db()).await?;
            let row = all.iter().find(|row| row.id == id.uuid());
            let row = row.ok_or_else(Problem::not_found)?;
            let pairs = all
                .iter()
                .filter(|row| row.kind == Signing::Ed25519.as_str());
            let standing = pairs.filter(|row| row.superseded_at.is_none());
            let mut others = standing.filter(|other| other.id != row.id);
            let needed = signing_of(&of)? == Signing::Ed25519
                && kind_of(row)? == Signing::Ed25519
                && row.superseded_at.is_none();
            if needed && others.next().is_none() {
                return Err(Code::LastSecret.into());
            }
            retire(&tx, row, Duration::ZERO).await?;
            tx.touches_credentials_of(self.scope.publisher());
            let facts = json!({ "endpoint_id": endpoint.to_string(), "signing": row.kind });
            let entry = audit_entry(Action::SecretRevoked, "secret", id, facts);
            Ok(Audited::new((), owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }
}

impl Store {
    /// The public keys that verify an endpoint's deliveries, newest first. Anybody who knows the
    /// identifier may read them; they tell nothing about the publisher.
    pub async fn public_keys(&self, name: KeySetId) -> Result<Vec<PublicKey>, StoreError> {
        use webhook_endpoints::Column;
        let endpoint = webhook_endpoints::Entity::find()
            .filter(Column::KeySet.eq(name.uuid()))
            .filter(Column::DeletedAt.is_null())
            .one(self.read())
            .await?;
        let endpoint = endpoint.ok_or_else(Problem::not_found)?;
        let rows = live_of(endpoint.publisher_id, endpoint.id, self.now())
            .filter(endpoint_secrets::Column::PublicKey.is_not_null())
            .order_by_desc(endpoint_secrets::Column::Id)
            .all(self.read())
            .await?;
        let keys = rows.into_iter().filter_map(|row| {
            Some(PublicKey {
                text: row.public_key?,
                expires_at: row.expires_at.map(Timestamp::from_ms),
            })
        });
        Ok(keys.collect())
    }
}

/// The identifiers of a publisher and of one of its endpoints.
pub(crate) type EndpointIds = (Uuid, Uuid);

impl Webhooks<System> {
    /// The signing secrets of those endpoints that have live ones of their kind of signature. The
    /// publisher's secrets sign for the others.
    pub(crate) async fn own_secrets(
        &self,
        endpoints: BTreeSet<EndpointIds>,
    ) -> Result<HashMap<EndpointIds, OwnSecrets>> {
        use endpoint_secrets::Column;
        let mut own: HashMap<EndpointIds, OwnSecrets> = HashMap::new();
        if endpoints.is_empty() {
            return Ok(own);
        }
        let key = Expr::tuple([
            Expr::col(Column::PublisherId),
            Expr::col(Column::EndpointId),
        ]);
        let used = Expr::cust(
            "EXISTS (SELECT 1 FROM webhook_endpoints e \
             WHERE e.publisher_id = endpoint_secrets.publisher_id \
             AND e.id = endpoint_secrets.endpoint_id AND e.signing = endpoint_secrets.kind)",
        );
        let rows = endpoint_secrets::Entity::find()
            .filter(key.in_tuples(endpoints))
            .filter(live_at(self.store.now()))
            .filter(used)
            .order_by_desc(Column::Id)
            .all(self.store.read())
            .await?;
        for row in rows {
            let found = own.entry((row.publisher_id, row.endpoint_id)).or_default();
            let ring = &self.store.inner.keys;
            let keys = match ring.of(self.store.read(), row.publisher_id).await {
                Ok(keys) => keys,
                Err(error) if error.may_pass() => return Err(error),
                // None of the publisher's secrets can be opened: all its endpoints wait.
                Err(_) => continue,
            };
            match open(&keys.data, &row) {
                Ok(secret) => found.signing.push(secret),
                Err(error) => {
                    unreadable::report("endpoint_secret", row.publisher_id, row.id, &error);
                    found.unreadable = true;
                }
            }
            let expires = row.expires_at.map(Timestamp::from_ms);
            found.until = found.until.into_iter().chain(expires).min();
        }
        Ok(own)
    }
}
