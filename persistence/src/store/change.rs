//! How every change is made: one transaction for the idempotency key, the change, its audit rows
//! and the notice that invalidates other processes' caches.
//!
//! Order of locks:
//!
//! 1. the idempotency key;
//! 2. the publisher's row;
//! 3. the rows of the change;
//! 4. fan-out numbers, in the order of publishers;
//! 5. sequence numbers of ordered endpoints, in the order of their keys;
//! 6. the cache epoch;
//! 7. audit heads, the operator's last.
//!
//! A transaction leaves out what it does not need. One case departs from the order: a batch of the
//! write lane takes 4 and 5 for the events of its runs, and then 3 to 5 for published events. On
//! PostgreSQL the batches of two processes can deadlock for that reason. The database then refuses
//! one of the two, and it runs again.

use std::{future::Future, sync::Arc, time::Duration};

use domain::{
    Code, FaultCode, FieldError, Problem, Timestamp,
    audit::{Action, Actor},
    limits,
    permission::Permission,
    seal::SealContext,
    slug::Slug,
    token::TokenHash,
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, EntityTrait as _, QueryFilter as _, QuerySelect as _,
    TryInsertResult, sea_query::LockType,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::store::{
    Store, acting,
    db::Tx,
    entity::{idempotency_keys, publishers},
    error::{Result, StoreError, corrupt_row},
    freshness::publish_credential_changes,
    scope::{OPERATOR, Scope},
    storage,
};

/// Who makes a change, and in which request.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who acts.
    pub actor: Actor,
    /// The request's identifier.
    pub request_id: Option<String>,
    /// The caller's address.
    pub address: Option<String>,
    /// The caller's `User-Agent`, shortened.
    pub user_agent: Option<String>,
    /// The key under which the caller wants this done at most once.
    pub idempotency: Option<IdempotencyKey>,
    /// What who acts has to hold still when the change is made; `None` for the service itself.
    pub permission: Option<Permission>,
}

impl Context {
    /// The context of a change that a part of the service makes by itself.
    #[must_use]
    pub fn system(part: &str) -> Self {
        Self {
            actor: Actor::system(part),
            request_id: None,
            address: None,
            user_agent: None,
            idempotency: None,
            permission: None,
        }
    }
}

/// Which revision a caller means to change (`If-Match`, RFC 9110 §13.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any revision, as long as the object exists: `*`.
    Any,
    /// This revision only.
    Revision(i64),
}

/// Fails unless `revision`, the present one, is the one that the caller expects.
///
/// # Errors
/// `precondition_failed`.
pub(crate) fn check_revision(expected: Option<Expected>, revision: i64) -> Result<()> {
    match expected {
        Some(Expected::Revision(seen)) if seen != revision => Err(Code::PreconditionFailed.into()),
        _ => Ok(()),
    }
}

/// An `Idempotency-Key`, bound to the operation and to the request's content.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The operation's id.
    pub operation: String,
    /// The caller's key. In the store, the hash of the sharer is appended if only some callers
    /// share the key.
    pub key: String,
    /// SHA-256 over path, query and body.
    pub request_hash: [u8; 32],
}

impl IdempotencyKey {
    /// A key that only requests with the same `sharer` share. Others have a different key, so that
    /// they neither get the stored response nor learn that there is one. The separator is a line
    /// break, which a caller's own text cannot contain.
    fn shared_by(&self, sharer: &[u8]) -> Self {
        let hash = hex::encode(Sha256::digest(sharer));
        Self {
            key: format!("{}\n{hash}", self.key),
            ..self.clone()
        }
    }
}

impl Context {
    /// This context for a token of `scope`. A token that is limited to pipelines shares its keys
    /// only with tokens of the same limits, since a response that was stored for others may concern
    /// pipelines that it cannot reach.
    pub(crate) fn within(&self, scope: &Scope) -> Self {
        let Some(pipelines) = scope.pipelines() else {
            return self.clone();
        };
        let mut slugs: Vec<&str> = pipelines.iter().map(Slug::as_str).collect();
        slugs.sort_unstable();
        let sharer = format!("pipelines\n{}", slugs.join("\n"));
        self.keyed_for(sharer.as_bytes())
    }

    /// This context for the holder of a claim: nobody else gets its stored responses.
    pub(crate) fn by_holder(&self, claim: &TokenHash) -> Self {
        self.keyed_for(&[b"claim\n".as_slice(), claim.as_bytes()].concat())
    }

    /// This context for a person: nobody else gets the stored responses to a person's requests.
    fn of_person(&self) -> Option<Self> {
        let user = self.actor.user_id()?;
        Some(self.keyed_for(format!("user\n{user}").as_bytes()))
    }

    fn keyed_for(&self, sharer: &[u8]) -> Self {
        let key = self.idempotency.as_ref();
        Self {
            idempotency: key.map(|key| key.shared_by(sharer)),
            ..self.clone()
        }
    }
}

/// A response as it is sent, and as it is stored for a repeated request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON; empty for no content.
    pub body: String,
    /// The object's revision.
    pub etag: Option<String>,
    /// The URL of a new object.
    pub location: Option<String>,
    /// Whether the body holds a credential. Such a response is stored for minutes only.
    pub holds_secret: bool,
    /// Whether this is the stored response to an earlier request.
    #[serde(skip)]
    pub replayed: bool,
}

impl Answer {
    /// An answer without an `ETag`, a location or a secret. `body` is JSON, or empty.
    #[must_use]
    pub const fn new(status: u16, body: String) -> Self {
        Self {
            status,
            body,
            etag: None,
            location: None,
            holds_secret: false,
            replayed: false,
        }
    }

    /// With the object's revision, if it has one, as its `ETag`.
    #[must_use]
    pub fn revision(mut self, revision: impl Into<Option<i64>>) -> Self {
        self.etag = revision.into().map(|revision| revision.to_string());
        self
    }

    /// With the path of the object, if it is new.
    #[must_use]
    pub fn at(mut self, location: impl Into<Option<String>>) -> Self {
        self.location = location.into();
        self
    }

    /// Whether the body holds a credential.
    #[must_use]
    pub const fn holds_secret(mut self, holds: bool) -> Self {
        self.holds_secret = holds;
        self
    }
}

/// The answer to a change whose caller needs none.
pub(crate) const fn nothing() -> Answer {
    Answer::new(204, String::new())
}

/// One entry of the audit log, before it is chained.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// What was done.
    pub action: Action,
    /// The kind of object that was changed.
    pub target_kind: &'static str,
    /// The object's identifier.
    pub target_id: String,
    /// Further facts; never a credential.
    pub metadata: serde_json::Value,
    /// The logs in which it is written. What the operator does to a publisher is in both their
    /// logs.
    pub(crate) owners: Vec<Uuid>,
}

/// A change's result together with its audit entries. It cannot be made without them, and an
/// administrative change must return one.
pub(crate) struct Audited<T> {
    value: T,
    entries: Vec<AuditEntry>,
}

impl<T> Audited<T> {
    /// A change within one publisher.
    pub(crate) fn new(value: T, owner: Uuid, entry: AuditEntry) -> Self {
        Self {
            value,
            entries: Vec::new(),
        }
        .and(&[owner], entry)
    }

    /// A change that the operator made to a publisher. It is written in both logs.
    pub(crate) fn by_operator(value: T, publisher: Uuid, entry: AuditEntry) -> Self {
        Self {
            value,
            entries: Vec::new(),
        }
        .and(&[publisher, OPERATOR], entry)
    }

    /// Adds an entry.
    pub(crate) fn and(mut self, owners: &[Uuid], entry: AuditEntry) -> Self {
        self.entries.push(AuditEntry {
            owners: owners.to_vec(),
            ..entry
        });
        self
    }

    /// The result of the change.
    pub(crate) const fn value(&self) -> &T {
        &self.value
    }

    /// The same entries with another result.
    pub(crate) fn with<U>(self, value: U) -> Audited<U> {
        Audited {
            value,
            entries: self.entries,
        }
    }

    /// The same entries with a result made of this one.
    pub(crate) fn map<U>(self, made: impl FnOnce(T) -> U) -> Audited<U> {
        Audited {
            value: made(self.value),
            entries: self.entries,
        }
    }

    /// The result and the entries.
    pub(crate) fn into_parts(self) -> (T, Vec<AuditEntry>) {
        (self.value, self.entries)
    }

    /// A request that found everything as it wants it: there is nothing to log.
    pub(crate) fn unchanged(value: T) -> Self {
        Self {
            value,
            entries: Vec::new(),
        }
    }
}

/// An entry of the audit log. [`Audited`] adds the owners of the logs.
#[expect(
    clippy::needless_pass_by_value,
    reason = "identifiers are copied, not lent"
)]
pub(crate) fn audit_entry(
    action: Action,
    target_kind: &'static str,
    target: impl ToString,
    metadata: serde_json::Value,
) -> AuditEntry {
    AuditEntry {
        action,
        target_kind,
        target_id: target.to_string(),
        metadata,
        owners: Vec::new(),
    }
}

/// What is stored under an idempotency key. The variants' names are part of the stored format.
#[derive(Serialize, Deserialize)]
enum StoredResponse {
    Answer(Answer),
    /// A response that holds a claim. Only `holder`, the credential that got it first, gets it
    /// again.
    Held {
        answer: Answer,
        holder: String,
    },
    Refusal {
        code: String,
        detail: String,
        errors: Vec<(String, String, String)>,
    },
}

enum KeyState {
    Claimed,
    Answered(StoredResponse),
}

impl Store {
    /// Makes an administrative change: audited, and one at a time within a publisher.
    pub(crate) async fn administer<T, F, W, A>(
        &self,
        context: &Context,
        owner: Uuid,
        work: F,
        render: A,
    ) -> Result<Answer>
    where
        T: Send,
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<Audited<T>>> + Send,
        A: Fn(&T) -> Answer + Send + Sync,
    {
        let work = &work;
        self.change(
            context,
            owner,
            |tx| async move {
                lock_publisher(&tx, owner).await?;
                acting::check(&tx, owner, context).await?;
                let audited = work(Arc::clone(&tx)).await?;
                publish_credential_changes(&tx).await?;
                Ok((audited.value, audited.entries))
            },
            render,
            |answer| StoredResponse::Answer(answer.clone()),
        )
        .await
    }

    /// Makes a change, by a token of this scope, of objects that have an immutable history of their
    /// own (runs, deliveries). If the response holds a credential, it is a claim, and only the
    /// token that got it first gets it again.
    pub(crate) async fn transact<T, F, W, A>(
        &self,
        context: &Context,
        scope: &Scope,
        work: F,
        render: A,
    ) -> Result<Answer>
    where
        T: Send,
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<T>> + Send,
        A: Fn(&T) -> Answer + Send + Sync,
    {
        let (work, context) = (&work, &context.within(scope));
        self.change(
            context,
            scope.uuid(),
            |tx| async move { Ok((work(tx).await?, Vec::new())) },
            render,
            |answer| {
                let answer = answer.clone();
                if answer.holds_secret {
                    let holder = context.actor.id.clone();
                    StoredResponse::Held { answer, holder }
                } else {
                    StoredResponse::Answer(answer)
                }
            },
        )
        .await
    }

    async fn change<T, F, W, A, K>(
        &self,
        context: &Context,
        owner: Uuid,
        work: F,
        render: A,
        to_stored: K,
    ) -> Result<Answer>
    where
        T: Send,
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<(T, Vec<AuditEntry>)>> + Send,
        A: Fn(&T) -> Answer + Send + Sync,
        K: Fn(&Answer) -> StoredResponse + Send + Sync,
    {
        let (work, render, to_stored) = (&work, &render, &to_stored);
        let person = context.of_person();
        let context = person.as_ref().unwrap_or(context);
        let result = self
            .write_for(owner, |tx| async move {
                if let Some(key) = &context.idempotency
                    && let KeyState::Answered(response) =
                        self.claim_idempotency_key(&tx, owner, key).await?
                {
                    return response.replay(&context.actor);
                }
                if let Some(user) = context.actor.user_id() {
                    tx.made_by(user);
                }
                let (value, entries) = work(Arc::clone(&tx)).await?;
                let answer = render(&value);
                if let Some(key) = &context.idempotency {
                    let until = answer.holds_secret.then(|| {
                        tx.now
                            .plus(Duration::from_secs(60 * limits::IDEMPOTENCY_SECRET_MINUTES))
                    });
                    self.store_response(&tx, owner, key, &to_stored(&answer), until)
                        .await?;
                }
                self.append_audit(&tx, context, entries).await?;
                Ok(answer)
            })
            .await;
        if let (Err(StoreError::Refused(problem)), Some(key)) = (&result, &context.idempotency) {
            self.store_refusal(owner, key, problem).await;
        }
        result
    }

    /// Claims the key, after waiting for a running request with the same key; or returns the stored
    /// response.
    async fn claim_idempotency_key(
        &self,
        tx: &Tx,
        owner: Uuid,
        key: &IdempotencyKey,
    ) -> Result<KeyState> {
        loop {
            if self.insert_key(tx, owner, key).await? {
                return Ok(KeyState::Claimed);
            }
            let by_key = (owner, key.operation.clone(), key.key.clone());
            let found = idempotency_keys::Entity::find_by_id(by_key.clone())
                .one(tx.db())
                .await?;
            let Some(row) = found else { continue };
            if row.expires_at <= tx.now.ms() {
                idempotency_keys::Entity::delete_by_id(by_key)
                    .exec(tx.db())
                    .await?;
                continue;
            }
            if row.request_hash != key.request_hash {
                return Err(Code::IdempotencyKeyReused.into());
            }
            if row.answer_until.is_some_and(|until| until <= tx.now.ms()) {
                return Err(Code::SecretNoLongerAvailable.into());
            }
            let sealed = row.answer.ok_or_else(|| corrupt_row("idempotent answer"))?;
            let keys = self.inner.keys.of(tx.db(), owner).await?;
            let plain = keys
                .data
                .open(&seal_context(owner, &seal_row(key)), &sealed)
                .map_err(|_| corrupt_row("idempotent answer"))?;
            let response =
                serde_json::from_slice(&plain).map_err(|_| corrupt_row("idempotent answer"))?;
            return Ok(KeyState::Answered(response));
        }
    }

    async fn insert_key(&self, tx: &Tx, owner: Uuid, key: &IdempotencyKey) -> Result<bool> {
        let until = tx
            .now
            .plus(Duration::from_secs(3600 * limits::IDEMPOTENCY_HOURS));
        let row = idempotency_keys::ActiveModel {
            owner_id: Set(owner),
            operation: Set(key.operation.clone()),
            key: Set(key.key.clone()),
            request_hash: Set(key.request_hash.to_vec()),
            answer: Set(None),
            answer_until: Set(None),
            created_at: Set(tx.now.ms()),
            expires_at: Set(until.ms()),
        };
        let result = idempotency_keys::Entity::insert(row)
            .on_conflict_do_nothing_on([
                idempotency_keys::Column::OwnerId,
                idempotency_keys::Column::Operation,
                idempotency_keys::Column::Key,
            ])
            .exec_without_returning(tx.db())
            .await?;
        let inserted = matches!(result, TryInsertResult::Inserted(1));
        if inserted {
            tx.stores(owner, storage::ANSWER);
        }
        Ok(inserted)
    }

    async fn store_response(
        &self,
        tx: &Tx,
        owner: Uuid,
        key: &IdempotencyKey,
        response: &StoredResponse,
        until: Option<Timestamp>,
    ) -> Result<()> {
        let keys = self.inner.keys.of(tx.db(), owner).await?;
        let plain = zeroize::Zeroizing::new(
            serde_json::to_vec(response).map_err(|e| StoreError::Internal(e.to_string()))?,
        );
        let sealed = keys.data.seal(&seal_context(owner, &seal_row(key)), &plain);
        tx.stores(owner, sealed.len());
        idempotency_keys::Entity::update(idempotency_keys::ActiveModel {
            owner_id: Set(owner),
            operation: Set(key.operation.clone()),
            key: Set(key.key.clone()),
            answer: Set(Some(sealed)),
            answer_until: Set(until.map(Timestamp::ms)),
            ..Default::default()
        })
        .exec(tx.db())
        .await?;
        Ok(())
    }

    /// Stores a refusal for repeated requests. It needs a transaction of its own, since the
    /// change's was rolled back. A failure is only logged: a repeated request is then tried anew.
    async fn store_refusal(&self, owner: Uuid, key: &IdempotencyKey, problem: &Problem) {
        let ours = [Code::IdempotencyKeyReused, Code::SecretNoLongerAvailable];
        if !matches!(problem.code.status(), 404 | 409 | 412 | 422) || ours.contains(&problem.code) {
            return;
        }
        let response = &StoredResponse::refusal(problem);
        let stored = self
            .write_for(owner, |tx| async move {
                if self.insert_key(&tx, owner, key).await? {
                    self.store_response(&tx, owner, key, response, None).await?;
                }
                Ok(())
            })
            .await;
        if let Err(error) = stored {
            tracing::warn!(%error, "a refusal could not be stored under its idempotency key");
        }
    }
}

impl StoredResponse {
    fn refusal(problem: &Problem) -> Self {
        let errors = problem.errors.iter();
        Self::Refusal {
            code: problem.code.as_str().to_owned(),
            detail: problem.detail.clone(),
            errors: errors
                .map(|e| (e.pointer.clone(), e.code.to_string(), e.detail.clone()))
                .collect(),
        }
    }

    /// The response for `actor`, who repeats the request.
    fn replay(self, actor: &Actor) -> Result<Answer> {
        match self {
            Self::Held { holder, .. } if holder != actor.id => {
                Err(Code::SecretNoLongerAvailable.into())
            }
            Self::Answer(answer) | Self::Held { answer, .. } => Ok(Answer {
                replayed: true,
                ..answer
            }),
            Self::Refusal {
                code,
                detail,
                errors,
            } => {
                let code = Code::parse(&code).ok_or_else(|| corrupt_row("refusal"))?;
                let errors = errors.into_iter().map(|(pointer, code, detail)| {
                    let code = FaultCode::parse(&code).ok_or_else(|| corrupt_row("refusal"))?;
                    Ok(FieldError::new(pointer, code, detail))
                });
                let mut problem = Problem::new(code, detail);
                problem.errors = errors.collect::<Result<_>>()?;
                Err(problem.into())
            }
        }
    }
}

fn seal_row(key: &IdempotencyKey) -> Vec<u8> {
    format!("{}\n{}", key.operation, key.key).into_bytes()
}

fn seal_context(owner: Uuid, row: &[u8]) -> SealContext<'_> {
    SealContext {
        owner,
        table: "idempotency_keys",
        row,
        column: "answer",
    }
}

/// Serializes the administrative changes of one publisher, so that a count taken before a change
/// (quotas, the last admin token) still holds at its commit. Other writers' foreign key checks do
/// not wait for it (`FOR NO KEY UPDATE`).
pub(crate) async fn lock_publisher(tx: &Tx, owner: Uuid) -> Result<()> {
    if owner == OPERATOR {
        return Ok(());
    }
    publishers::Entity::find()
        .select_only()
        .column(publishers::Column::Id)
        .filter(publishers::Column::Id.eq(owner))
        .lock(LockType::NoKeyUpdate)
        .into_tuple::<Uuid>()
        .one(tx.db())
        .await?
        .map(|_| ())
        .ok_or_else(|| Problem::not_found().into())
}
