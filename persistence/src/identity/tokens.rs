//! Single-use tokens: mailed links and codes, challenges, and sign-ins elsewhere that were begun.
//!
//! A token is good for one purpose, once, until it expires or a newer one for the same purpose
//! takes its place. Only its hash is stored. Using it is a conditional update, so that of many
//! parallel attempts one wins.

use std::time::Duration;

use domain::{
    Timestamp,
    id::{Id as _, UserId},
    people::{EmailAddress, Purpose},
    seal::SealContext,
    token::TokenHash,
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, ExprTrait as _, QueryFilter as _,
    QueryOrder as _, sea_query::Expr,
};
use zeroize::Zeroizing;

use crate::{
    identity::Identity,
    store::{
        Store,
        db::Tx,
        entity::single_use_tokens,
        error::{Result, StoreError, corrupt_row},
        scope::OPERATOR,
    },
};

/// How often a code may be tried before its token is spent: one in 20 million succeeds.
const CODE_ATTEMPTS: i32 = 5;

/// What is given for a new token.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// The hash of the token.
    pub hash: TokenHash,
    /// What it is good for.
    pub purpose: Purpose,
    /// The user whom it concerns, if that is known.
    pub user: Option<UserId>,
    /// The address to which it is mailed, or that it concerns.
    pub address: Option<EmailAddress>,
    /// The hash of what the browser that asked holds in a cookie.
    pub browser: Option<TokenHash>,
    /// The keyed hash of the short code beside the link.
    pub code: Option<TokenHash>,
    /// What belongs to the purpose. It is stored encrypted.
    pub payload: Option<Zeroizing<Vec<u8>>>,
    /// How long the token is valid.
    pub lasts: Duration,
    /// Whether older tokens for the same purpose and address, or the same user if no address is
    /// given, are good no more. Not if nobody gets this one.
    pub supersedes: bool,
}

/// Why a token is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    /// There is none, or none any more, or it is for another purpose.
    Unknown,
    /// It was used, or its code was tried too often.
    Used,
    /// It is too old, or a newer one took its place.
    Expired,
}

/// A token that is good, or was when it was used.
#[derive(Clone, Debug)]
pub struct Token {
    /// The hash of the token.
    pub hash: TokenHash,
    /// The user whom it concerns, if that was known.
    pub user: Option<UserId>,
    /// The address to which it was mailed, or that it concerns.
    pub address: Option<EmailAddress>,
    /// The hash of what the browser that asked holds.
    pub browser: Option<TokenHash>,
    /// What belongs to the purpose.
    pub payload: Option<Zeroizing<Vec<u8>>>,
    /// When it expires.
    pub expires_at: Timestamp,
}

impl Token {
    /// Whether the browser with this cookie asked for it.
    #[must_use]
    pub fn is_of_browser(&self, browser: Option<&TokenHash>) -> bool {
        match (&self.browser, browser) {
            (Some(asked), Some(now)) => asked.matches(now),
            _ => false,
        }
    }
}

fn seal_context(hash: &[u8]) -> SealContext<'_> {
    SealContext {
        owner: OPERATOR,
        table: "single_use_tokens",
        row: hash,
        column: "sealed",
    }
}

fn fault_of(row: &single_use_tokens::Model, now: Timestamp) -> Option<TokenFault> {
    if row.used_at.is_some() || row.code_attempts >= CODE_ATTEMPTS {
        Some(TokenFault::Used)
    } else if row.superseded_at.is_some() || row.expires_at <= now.ms() {
        Some(TokenFault::Expired)
    } else {
        None
    }
}

/// Inserts a token.
pub(crate) async fn issue(store: &Store, tx: &Tx, new: &NewToken) -> Result<()> {
    use single_use_tokens::Column;
    let of_user = |user: UserId| Column::UserId.eq(user.uuid());
    if let Some(same) = match (&new.address, new.user) {
        // A user changes to one address at a time, whichever it is.
        (Some(_), Some(user)) if new.purpose == Purpose::ChangeAddress => Some(of_user(user)),
        (Some(address), _) => Some(Column::Address.eq(address.as_str())),
        (None, Some(user)) => Some(
            Column::UserId
                .eq(user.uuid())
                .and(Column::Address.is_null()),
        ),
        (None, None) => None,
    }
    .filter(|_| new.supersedes)
    {
        single_use_tokens::Entity::update_many()
            .col_expr(Column::SupersededAt, Expr::value(Some(tx.now.ms())))
            .filter(same)
            .filter(Column::Purpose.eq(new.purpose.as_str()))
            .filter(Column::UsedAt.is_null())
            .filter(Column::SupersededAt.is_null())
            .exec(tx.db())
            .await?;
    }
    let hash = new.hash.as_bytes();
    let sealed = match &new.payload {
        Some(payload) => {
            let keys = store.inner.keys.of(tx.db(), OPERATOR).await?;
            Some(keys.data.seal(&seal_context(hash), payload))
        }
        None => None,
    };
    let row = single_use_tokens::Model {
        hash: hash.to_vec(),
        purpose: new.purpose.as_str().to_owned(),
        user_id: new.user.map(UserId::uuid),
        address: new.address.as_ref().map(EmailAddress::to_string),
        browser: new.browser.map(|browser| browser.as_bytes().to_vec()),
        code: new.code.map(|code| code.as_bytes().to_vec()),
        code_attempts: 0,
        sealed,
        created_at: tx.now.ms(),
        expires_at: tx.now.plus(new.lasts).ms(),
        used_at: None,
        superseded_at: None,
    };
    let active: single_use_tokens::ActiveModel = row.into();
    single_use_tokens::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
        .exec_without_returning(tx.db())
        .await?;
    Ok(())
}

async fn find(
    db: &impl ConnectionTrait,
    hash: &TokenHash,
    purpose: Purpose,
) -> Result<Option<single_use_tokens::Model>> {
    let row = single_use_tokens::Entity::find_by_id(hash.as_bytes().to_vec())
        .one(db)
        .await?;
    Ok(row.filter(|row| row.purpose == purpose.as_str()))
}

async fn token_of(
    store: &Store,
    db: &impl ConnectionTrait,
    row: single_use_tokens::Model,
) -> Result<Token> {
    let stored =
        |bytes: &[u8]| TokenHash::from_stored(bytes).ok_or_else(|| corrupt_row("single-use token"));
    let payload = match &row.sealed {
        Some(sealed) => {
            let keys = store.inner.keys.of(db, OPERATOR).await?;
            let plain = keys.data.open(&seal_context(&row.hash), sealed);
            Some(plain.map_err(|_| corrupt_row("single-use token"))?)
        }
        None => None,
    };
    let address = row.address.as_deref().map(|text| {
        EmailAddress::parse(text).ok_or_else(|| corrupt_row("single-use token's address"))
    });
    Ok(Token {
        hash: stored(&row.hash)?,
        user: row.user_id.map(UserId::from_uuid),
        address: address.transpose()?,
        browser: row.browser.as_deref().map(stored).transpose()?,
        payload,
        expires_at: Timestamp::from_ms(row.expires_at),
    })
}

/// Looks at a token without using it.
pub(crate) async fn look(
    store: &Store,
    db: &impl ConnectionTrait,
    hash: &TokenHash,
    (purpose, now): (Purpose, Timestamp),
) -> Result<std::result::Result<Token, TokenFault>> {
    let Some(row) = find(db, hash, purpose).await? else {
        return Ok(Err(TokenFault::Unknown));
    };
    match fault_of(&row, now) {
        Some(fault) => Ok(Err(fault)),
        None => token_of(store, db, row).await.map(Ok),
    }
}

/// Uses a token. Of several transactions that try, one succeeds.
pub(crate) async fn take(
    store: &Store,
    tx: &Tx,
    hash: &TokenHash,
    purpose: Purpose,
) -> Result<std::result::Result<Token, TokenFault>> {
    let token = match look(store, tx.db(), hash, (purpose, tx.now)).await? {
        Ok(token) => token,
        Err(fault) => return Ok(Err(fault)),
    };
    Ok(if spend(tx, hash).await? {
        Ok(token)
    } else {
        Err(TokenFault::Used)
    })
}

/// Marks a token as used. Returns whether it was not yet.
async fn spend(tx: &Tx, hash: &TokenHash) -> Result<bool> {
    use single_use_tokens::Column;
    let used = single_use_tokens::Entity::update_many()
        .col_expr(Column::UsedAt, Expr::value(Some(tx.now.ms())))
        .filter(Column::Hash.eq(hash.as_bytes().to_vec()))
        .filter(Column::UsedAt.is_null())
        .filter(Column::SupersededAt.is_null())
        .exec(tx.db())
        .await?;
    Ok(used.rows_affected == 1)
}

/// Uses the newest token that this browser asked for, by its code.
///
/// An attempt is counted before the code is compared: of many parallel ones, no more are compared
/// than may be made one after the other.
pub(crate) async fn take_by_code(
    store: &Store,
    tx: &Tx,
    (browser, code): (&TokenHash, &TokenHash),
    purpose: Purpose,
) -> Result<std::result::Result<Token, TokenFault>> {
    use single_use_tokens::Column;
    let row = single_use_tokens::Entity::find()
        .filter(Column::Browser.eq(browser.as_bytes().to_vec()))
        .filter(Column::Purpose.eq(purpose.as_str()))
        .order_by_desc(Column::CreatedAt)
        .one(tx.db())
        .await?;
    let Some(row) = row else {
        return Ok(Err(TokenFault::Unknown));
    };
    if let Some(fault) = fault_of(&row, tx.now) {
        return Ok(Err(fault));
    }
    let counted = single_use_tokens::Entity::update_many()
        .col_expr(Column::CodeAttempts, Expr::col(Column::CodeAttempts).add(1))
        .filter(Column::Hash.eq(row.hash.clone()))
        .filter(Column::CodeAttempts.lt(CODE_ATTEMPTS))
        .exec(tx.db())
        .await?;
    if counted.rows_affected == 0 {
        return Ok(Err(TokenFault::Used));
    }
    let hash = TokenHash::from_stored(&row.hash).ok_or_else(|| corrupt_row("single-use token"))?;
    let right = row.code.as_deref().and_then(TokenHash::from_stored);
    if !right.is_some_and(|right| right.matches(code)) {
        return Ok(Err(TokenFault::Unknown));
    }
    if !spend(tx, &hash).await? {
        return Ok(Err(TokenFault::Used));
    }
    token_of(store, tx.db(), row).await.map(Ok)
}

/// Makes all unused tokens of a user, and those mailed to `address`, good no more.
pub(crate) async fn spend_all(tx: &Tx, user: UserId, address: Option<&EmailAddress>) -> Result<()> {
    use single_use_tokens::Column;
    let mut whose = Column::UserId.eq(user.uuid());
    if let Some(address) = address {
        whose = whose.or(Column::Address.eq(address.as_str()));
    }
    single_use_tokens::Entity::update_many()
        .col_expr(Column::SupersededAt, Expr::value(Some(tx.now.ms())))
        .filter(whose)
        .filter(Column::UsedAt.is_null())
        .filter(Column::SupersededAt.is_null())
        .exec(tx.db())
        .await?;
    Ok(())
}

impl Identity {
    /// Looks at a token without using it.
    pub async fn token(
        &self,
        hash: &TokenHash,
        purpose: Purpose,
    ) -> Result<std::result::Result<Token, TokenFault>, StoreError> {
        let now = self.store.now();
        look(&self.store, self.store.read(), hash, (purpose, now)).await
    }

    /// Stores a token that goes to no mail: a challenge, or the state of a sign-in elsewhere. It is
    /// no change that the audit log has to tell of.
    pub async fn issue_token(&self, new: &NewToken) -> Result<(), StoreError> {
        let store = &self.store;
        self.store
            .write_for(
                super::PEOPLE,
                |tx| async move { issue(store, &tx, new).await },
            )
            .await
    }

    /// Uses a token that stands for nothing more than that it is there: a challenge, or the state
    /// of a sign-in elsewhere.
    pub async fn take_token(
        &self,
        hash: &TokenHash,
        purpose: Purpose,
    ) -> Result<std::result::Result<Token, TokenFault>, StoreError> {
        let store = &self.store;
        self.store
            .write_for(super::PEOPLE, |tx| async move {
                take(store, &tx, hash, purpose).await
            })
            .await
    }
}
