//! The outbox: mails that are written in the transaction of the change that they are about, and
//! sent later by whichever process claims them.
//!
//! A mail holds a link, so it is stored encrypted, and emptied once it was sent. A sender claims a
//! mail by moving its next attempt forward. If the sender dies before it records the outcome, the
//! mail becomes due again.

use std::time::Duration;

use domain::{
    Timestamp,
    id::{Id as _, MailId},
    people::EmailAddress,
    seal::SealContext,
};
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, ConnectionTrait as _, DbBackend, EntityTrait as _,
    FromQueryResult, QueryFilter as _, QueryOrder as _, QuerySelect as _,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    identity::Identity,
    store::{
        Store,
        db::Tx,
        entity::mails,
        error::{Result, StoreError, corrupt_row},
        scope::OPERATOR,
        sql::Sql,
    },
};

/// A mail that is to be sent.
#[derive(Clone, Serialize, Deserialize)]
pub struct NewMail {
    /// The receiver.
    pub to: String,
    /// The subject.
    pub subject: String,
    /// The text part.
    pub text: String,
    /// The HTML part.
    pub html: String,
    /// What the mail is about, for logs and metrics.
    #[serde(skip)]
    pub kind: &'static str,
    /// After how long the mail is of no use.
    #[serde(skip)]
    pub lasts: Duration,
}

impl std::fmt::Debug for NewMail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewMail")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// A claimed mail, to be sent now.
#[derive(Clone, Debug)]
pub struct DueMail {
    /// The mail's identifier; also the left part of its `Message-ID`.
    pub id: MailId,
    /// What the mail is about.
    pub kind: String,
    /// The mail; `None` if it could not be opened.
    pub mail: Option<NewMail>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// After this the mail is of no use.
    pub expires_at: Timestamp,
}

/// Mails to send, and when to look again.
#[derive(Debug, Default)]
pub struct Mails {
    /// Mails that the caller has claimed until its lease ends.
    pub claimed: Vec<DueMail>,
    /// When the next mail is due that the caller could claim.
    pub next: Option<Timestamp>,
}

fn seal_context(id: &[u8]) -> SealContext<'_> {
    SealContext {
        owner: OPERATOR,
        table: "mails",
        row: id,
        column: "sealed",
    }
}

/// Writes a mail in the transaction of what it is about.
pub(crate) async fn write(store: &Store, tx: &Tx, mail: &NewMail) -> Result<MailId> {
    EmailAddress::parse(&mail.to).ok_or_else(|| corrupt_row("receiver of a mail"))?;
    let id = MailId::generate(tx.now);
    let plain =
        Zeroizing::new(serde_json::to_vec(mail).map_err(|e| StoreError::Internal(e.to_string()))?);
    let keys = store.inner.keys.of(tx.db(), OPERATOR).await?;
    let row = mails::Model {
        id: id.uuid(),
        kind: mail.kind.to_owned(),
        sealed: Some(keys.data.seal(&seal_context(id.uuid().as_bytes()), &plain)),
        attempts: 0,
        next_attempt_at: Some(tx.now.ms()),
        last_error: None,
        created_at: tx.now.ms(),
        expires_at: tx.now.plus(mail.lasts).ms(),
        finished_at: None,
    };
    let active: mails::ActiveModel = row.into();
    mails::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
        .exec_without_returning(tx.db())
        .await?;
    tx.writes_mails();
    Ok(id)
}

/// Ends a mail that was just written, unsent.
pub(crate) async fn withhold(tx: &Tx, id: MailId) -> Result<()> {
    mails::Entity::update(mails::ActiveModel {
        id: Set(id.uuid()),
        sealed: Set(None),
        next_attempt_at: Set(None),
        finished_at: Set(Some(tx.now.ms())),
        ..Default::default()
    })
    .exec(tx.db())
    .await?;
    Ok(())
}

#[derive(FromQueryResult)]
struct Row {
    id: Uuid,
    kind: String,
    sealed: Option<Vec<u8>>,
    attempts: i32,
    expires_at: i64,
}

impl Identity {
    /// Claims at most `limit` due mails for `lease`. If none is due, nothing is written.
    pub async fn claim_mails(&self, limit: u32, lease: Duration) -> Result<Mails, StoreError> {
        let next: Option<i64> = mails::Entity::find()
            .select_only()
            .column(mails::Column::NextAttemptAt)
            .filter(mails::Column::NextAttemptAt.is_not_null())
            .order_by_asc(mails::Column::NextAttemptAt)
            .into_tuple()
            .one(self.store.read())
            .await?;
        let next = next.map(Timestamp::from_ms);
        if next.is_none_or(|at| at > self.store.now()) {
            return Ok(Mails {
                claimed: Vec::new(),
                next,
            });
        }
        let store = &self.store;
        let claimed = store
            .write(|tx| async move { claim(store, &tx, limit, lease).await })
            .await?;
        Ok(Mails { claimed, next })
    }

    /// Records the outcome of an attempt: `retry_at` is `None` if the mail arrived or is given up.
    /// Does nothing if another process has claimed the mail since.
    pub async fn record_mail(
        &self,
        mail: &DueMail,
        error: Option<&str>,
        retry_at: Option<Timestamp>,
    ) -> Result<(), StoreError> {
        let error = error.map(str::to_owned);
        let error = &error;
        self.store
            .write(|tx| async move {
                let mut change = mails::ActiveModel {
                    last_error: Set(error.clone()),
                    next_attempt_at: Set(retry_at.map(Timestamp::ms)),
                    ..Default::default()
                };
                if retry_at.is_none() {
                    change.finished_at = Set(Some(tx.now.ms()));
                    change.sealed = Set(None);
                }
                mails::Entity::update_many()
                    .set(change)
                    .filter(mails::Column::Id.eq(mail.id.uuid()))
                    .filter(mails::Column::Attempts.eq(mail.attempt))
                    .filter(mails::Column::FinishedAt.is_null())
                    .exec(tx.db())
                    .await?;
                Ok(())
            })
            .await
    }
}

async fn claim(store: &Store, tx: &Tx, limit: u32, lease: Duration) -> Result<Vec<DueMail>> {
    let backend = tx.db().get_database_backend();
    let mut sql = Sql::new("UPDATE mails SET attempts = attempts + 1, next_attempt_at = ");
    sql.bind(tx.now.plus(lease).ms())
        .push(" WHERE id IN (SELECT id FROM mails WHERE next_attempt_at IS NOT NULL");
    sql.push(" AND next_attempt_at <= ").bind(tx.now.ms());
    sql.push(" ORDER BY next_attempt_at LIMIT ")
        .bind(i64::from(limit));
    if backend == DbBackend::Postgres {
        sql.push(" FOR UPDATE SKIP LOCKED");
    }
    sql.push(") RETURNING id, kind, sealed, attempts, expires_at");
    let rows = Row::find_by_statement(sql.statement(backend))
        .all(tx.db())
        .await?;
    let keys = store.inner.keys.of(tx.db(), OPERATOR).await?;
    let due = rows.into_iter().map(|row| {
        let opened = row.sealed.and_then(|sealed| {
            let context = seal_context(row.id.as_bytes());
            let plain = keys.data.open(&context, &sealed).ok()?;
            serde_json::from_slice(&plain).ok()
        });
        DueMail {
            id: MailId::from_uuid(row.id),
            kind: row.kind,
            mail: opened,
            attempt: u32::try_from(row.attempts).unwrap_or(u32::MAX),
            expires_at: Timestamp::from_ms(row.expires_at),
        }
    });
    Ok(due.collect())
}
