//! How everything changes: one transaction for the idempotency key, the change, its audit rows
//! and the news for other processes' caches.
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
//! PostgreSQL the batches of two processes can wait for each other for that reason. The database
//! then refuses one of the two, and it runs again.

use std::{future::Future, sync::Arc, time::Duration};

use domain::{
    Code, FaultCode, FieldError, Problem, Timestamp,
    audit::{Action, Actor},
    limits,
    seal::Place,
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
    Store,
    db::Tx,
    entity::{idempotency_keys, publishers},
    error::{Result, StoreError, damaged},
    freshness::publish_credential_changes,
    scope::{OPERATOR, Scope},
    storage,
};

/// Who asks for a change, and under which request.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who acts.
    pub actor: Actor,
    /// The request's identifier.
    pub request_id: Option<String>,
    /// The caller's address.
    pub address: Option<String>,
    /// The caller's program, shortened.
    pub user_agent: Option<String>,
    /// The caller's wish that this be done at most once.
    pub idempotency: Option<IdempotencyKey>,
}

impl Context {
    /// A change that a part of the service makes by itself.
    #[must_use]
    pub fn system(part: &str) -> Self {
        Self {
            actor: Actor::system(part),
            request_id: None,
            address: None,
            user_agent: None,
            idempotency: None,
        }
    }
}

/// Which state of a thing a caller means to change (`If-Match`, RFC 9110 §13.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Any, as long as the thing exists: `*`.
    Any,
    /// This revision alone.
    Revision(i64),
}

/// Refuses a change of another state than the caller has seen; `revision` is the present one.
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
    /// What the caller sent; in the store, whoever alone shares the key stands below it.
    pub key: String,
    /// SHA-256 over path, query and body.
    pub request_hash: [u8; 32],
}

impl IdempotencyKey {
    /// The key as only requests with the same `sharer` see it: for others it is another key, so
    /// that they neither get the kept answer nor learn that there is one. A caller's own text has
    /// no line break, so it can't spell this.
    fn shared_by(&self, sharer: &[u8]) -> Self {
        let hash = hex::encode(Sha256::digest(sharer));
        Self {
            key: format!("{}\n{hash}", self.key),
            ..self.clone()
        }
    }
}

impl Context {
    /// The same for a token of this scope. One that is limited to pipelines shares its keys with
    /// tokens of the same limits alone: an answer that is kept for others may be about what it does
    /// not reach.
    pub(crate) fn within(&self, scope: &Scope) -> Self {
        let Some(pipelines) = scope.pipelines() else {
            return self.clone();
        };
        let mut slugs: Vec<&str> = pipelines.iter().map(Slug::as_str).collect();
        slugs.sort_unstable();
        let sharer = format!("pipelines\n{}", slugs.join("\n"));
        self.keyed_for(sharer.as_bytes())
    }

    /// The same for the holder of a claim: the answer that is kept for it is nobody else's.
    pub(crate) fn by_holder(&self, claim: &TokenHash) -> Self {
        self.keyed_for(&[b"claim\n".as_slice(), claim.as_bytes()].concat())
    }

    fn keyed_for(&self, sharer: &[u8]) -> Self {
        let key = self.idempotency.as_ref();
        Self {
            idempotency: key.map(|key| key.shared_by(sharer)),
            ..self.clone()
        }
    }
}

/// An answer as it goes out, and as it is kept for a repeat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON; empty for no content.
    pub body: String,
    /// The thing's revision.
    pub etag: Option<String>,
    /// Where the new thing is.
    pub location: Option<String>,
    /// Whether the body holds a credential, and so is kept only for minutes.
    pub holds_secret: bool,
    /// Whether this is the answer to an earlier request.
    #[serde(skip)]
    pub replayed: bool,
}

/// The answer to a change that nobody waits for.
pub(crate) const fn nothing() -> Answer {
    Answer {
        status: 204,
        body: String::new(),
        etag: None,
        location: None,
        holds_secret: false,
        replayed: false,
    }
}

/// One line of the audit log, before it is chained.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What was done.
    pub action: Action,
    /// To which kind of thing.
    pub target_kind: &'static str,
    /// To which thing.
    pub target_id: String,
    /// Further facts; never a credential.
    pub metadata: serde_json::Value,
    /// In whose logs; what the operator does to a publisher stands in both.
    pub(crate) owners: Vec<Uuid>,
}

/// A change's result together with its audit rows. There is no way to make one without saying
/// which rows those are, and an administrative change must return one.
pub(crate) struct Audited<T> {
    value: T,
    entries: Vec<Entry>,
}

impl<T> Audited<T> {
    /// A change of one publisher's things.
    pub(crate) fn new(value: T, owner: Uuid, entry: Entry) -> Self {
        Self {
            value,
            entries: Vec::new(),
        }
        .and(&[owner], entry)
    }

    /// A change that the operator made to a publisher: it stands in both logs.
    pub(crate) fn by_operator(value: T, publisher: Uuid, entry: Entry) -> Self {
        Self {
            value,
            entries: Vec::new(),
        }
        .and(&[publisher, OPERATOR], entry)
    }

    /// One more row.
    pub(crate) fn and(mut self, owners: &[Uuid], entry: Entry) -> Self {
        self.entries.push(Entry {
            owners: owners.to_vec(),
            ..entry
        });
        self
    }

    /// What the change answers.
    pub(crate) const fn value(&self) -> &T {
        &self.value
    }

    /// The same rows with another value.
    pub(crate) fn with<U>(self, value: U) -> Audited<U> {
        Audited {
            value,
            entries: self.entries,
        }
    }

    /// The request found everything as it wants it.
    pub(crate) fn unchanged(value: T) -> Self {
        Self {
            value,
            entries: Vec::new(),
        }
    }
}

/// A line of the log; whose logs it stands in is said by [`Audited`].
#[expect(
    clippy::needless_pass_by_value,
    reason = "identifiers are copied, not lent"
)]
pub(crate) fn entry(
    action: Action,
    target_kind: &'static str,
    target: impl ToString,
    metadata: serde_json::Value,
) -> Entry {
    Entry {
        action,
        target_kind,
        target_id: target.to_string(),
        metadata,
        owners: Vec::new(),
    }
}

/// What a repeat finds.
#[derive(Serialize, Deserialize)]
enum Kept {
    Answer(Answer),
    /// An answer with a claim in it: for the credential that it was given to.
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

enum Begun {
    First,
    Repeat(Kept),
}

impl Store {
    /// An administrative change: audited, and one at a time within a publisher.
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
                let audited = work(Arc::clone(&tx)).await?;
                publish_credential_changes(&tx).await?;
                Ok((audited.value, audited.entries))
            },
            render,
            |answer| Kept::Answer(answer.clone()),
        )
        .await
    }

    /// A change of things that have their own immutable history (runs, deliveries), by a token of
    /// this scope. A credential in its answer is a claim, and is kept for who got it alone.
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
                    Kept::Held { answer, holder }
                } else {
                    Kept::Answer(answer)
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
        keep: K,
    ) -> Result<Answer>
    where
        T: Send,
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<(T, Vec<Entry>)>> + Send,
        A: Fn(&T) -> Answer + Send + Sync,
        K: Fn(&Answer) -> Kept + Send + Sync,
    {
        let (work, render, keep) = (&work, &render, &keep);
        let result = self
            .write_for(owner, |tx| async move {
                if let Some(key) = &context.idempotency
                    && let Begun::Repeat(kept) = self.begin_once(&tx, owner, key).await?
                {
                    return kept.replay(&context.actor);
                }
                let (value, entries) = work(Arc::clone(&tx)).await?;
                let answer = render(&value);
                if let Some(key) = &context.idempotency {
                    let until = answer.holds_secret.then(|| {
                        tx.now
                            .plus(Duration::from_secs(60 * limits::IDEMPOTENCY_SECRET_MINUTES))
                    });
                    self.keep_answer(&tx, owner, key, &keep(&answer), until)
                        .await?;
                }
                self.append_audit(&tx, context, entries).await?;
                Ok(answer)
            })
            .await;
        if let (Err(StoreError::Refused(problem)), Some(key)) = (&result, &context.idempotency) {
            self.keep_refusal(owner, key, problem).await;
        }
        result
    }

    /// Claims the key, waiting for a request under way with the same one, or finds its answer.
    async fn begin_once(&self, tx: &Tx, owner: Uuid, key: &IdempotencyKey) -> Result<Begun> {
        loop {
            if self.insert_key(tx, owner, key).await? {
                return Ok(Begun::First);
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
            let sealed = row.answer.ok_or_else(|| damaged("idempotent answer"))?;
            let keys = self.inner.keys.of(tx.db(), owner).await?;
            let plain = keys
                .data
                .open(&answer_place(owner, &place_row(key)), &sealed)
                .map_err(|_| damaged("idempotent answer"))?;
            let kept = serde_json::from_slice(&plain).map_err(|_| damaged("idempotent answer"))?;
            return Ok(Begun::Repeat(kept));
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

    async fn keep_answer(
        &self,
        tx: &Tx,
        owner: Uuid,
        key: &IdempotencyKey,
        kept: &Kept,
        until: Option<Timestamp>,
    ) -> Result<()> {
        let keys = self.inner.keys.of(tx.db(), owner).await?;
        let plain = zeroize::Zeroizing::new(
            serde_json::to_vec(kept).map_err(|e| StoreError::Internal(e.to_string()))?,
        );
        let sealed = keys
            .data
            .seal(&answer_place(owner, &place_row(key)), &plain);
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

    /// Keeps a refusal for a repeat, in a transaction of its own since the change's was undone.
    /// Best effort: without it the repeat is simply tried anew.
    async fn keep_refusal(&self, owner: Uuid, key: &IdempotencyKey, problem: &Problem) {
        let ours = [Code::IdempotencyKeyReused, Code::SecretNoLongerAvailable];
        if !matches!(problem.code.status(), 404 | 409 | 412 | 422) || ours.contains(&problem.code) {
            return;
        }
        let kept = &Kept::refusal(problem);
        let stored = self
            .write_for(owner, |tx| async move {
                if self.insert_key(&tx, owner, key).await? {
                    self.keep_answer(&tx, owner, key, kept, None).await?;
                }
                Ok(())
            })
            .await;
        if let Err(error) = stored {
            tracing::warn!(%error, "a refusal could not be kept under its idempotency key");
        }
    }
}

impl Kept {
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

    /// The answer for `actor`, who asks again.
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
                let code = Code::parse(&code).ok_or_else(|| damaged("refusal"))?;
                let errors = errors.into_iter().map(|(pointer, code, detail)| {
                    let code = FaultCode::parse(&code).ok_or_else(|| damaged("refusal"))?;
                    Ok(FieldError::new(pointer, code, detail))
                });
                let mut problem = Problem::new(code, detail);
                problem.errors = errors.collect::<Result<_>>()?;
                Err(problem.into())
            }
        }
    }
}

fn place_row(key: &IdempotencyKey) -> Vec<u8> {
    format!("{}\n{}", key.operation, key.key).into_bytes()
}

fn answer_place(owner: Uuid, row: &[u8]) -> Place<'_> {
    Place {
        owner,
        table: "idempotency_keys",
        row,
        column: "answer",
    }
}

/// Makes administrative changes of one publisher wait for each other, so that a count taken
/// before a change (quotas, the last admin token) still holds at its commit. Foreign keys that
/// other writers check do not wait (`FOR NO KEY UPDATE`).
async fn lock_publisher(tx: &Tx, owner: Uuid) -> Result<()> {
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
