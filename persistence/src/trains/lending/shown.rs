//! Cooldowns as the publisher's admins see them.

use std::collections::HashMap;

use domain::{
    Timestamp,
    id::{Id as _, TokenId},
    lending::UseOutcome,
};
use sea_orm::{ConnectionTrait, QueryResult};
use uuid::Uuid;

use super::cooldowns::WHOLE;
use crate::store::{
    error::{Result, corrupt_row},
    sql::{Sql, padded},
    unreadable,
};

/// The train's token with which a cooldown was reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reporter {
    /// The token's identifier.
    pub token: TokenId,
    /// The token's name, if it has one and still exists.
    pub name: Option<String>,
    /// The slug of the train, if it still exists.
    pub train: Option<String>,
}

/// A time during which an account is not lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountCooldown {
    /// The model; `None` for the account as a whole.
    pub model: Option<String>,
    /// When the cooldown ends.
    pub until: Timestamp,
    /// The reported outcome.
    pub reason: UseOutcome,
    /// When it was reported.
    pub reported_at: Timestamp,
    /// Who reported it, if that was recorded.
    pub reported_by: Option<Reporter>,
}

/// Which cooldowns to read.
#[derive(Clone, Copy)]
pub(crate) enum Shown<'a> {
    /// All of one account: as a whole, and for each model.
    All(Uuid),
    /// Those of accounts as a whole.
    OfAccounts(&'a [Uuid]),
    /// Those of trains' accounts as a whole.
    OfTrains(&'a [Uuid]),
}

impl Shown<'_> {
    fn is_empty(&self) -> bool {
        matches!(self, Self::OfAccounts([]) | Self::OfTrains([]))
    }

    /// Cooldowns that a refresh has ended are left out, as in resolving.
    fn query(&self, publisher: Uuid, now: Timestamp) -> Sql {
        let mut sql = Sql::new(
            "SELECT c.account_id, c.model, c.until, c.reason, c.reported_at, c.reported_by, \
             k.name AS token_name, t.slug AS train FROM account_cooldowns c \
             JOIN accounts a ON a.publisher_id = c.publisher_id AND a.id = c.account_id \
             LEFT JOIN train_tokens k ON k.publisher_id = c.publisher_id AND k.id = c.reported_by \
             LEFT JOIN trains t ON t.publisher_id = k.publisher_id AND t.id = k.train_id \
             WHERE c.publisher_id = ",
        );
        sql.bind(publisher).push(" AND c.until > ").bind(now.ms());
        sql.push(
            " AND (c.reason <> 'unauthorized' OR a.refreshed_at IS NULL \
             OR c.reported_at >= a.refreshed_at) AND ",
        );
        match self {
            Self::All(account) => {
                sql.push("c.account_id = ").bind(*account);
            }
            Self::OfAccounts(accounts) => {
                sql.push("c.account_id IN (");
                sql.bind_list(padded(accounts.iter().copied()));
                sql.push(") AND c.model = ").bind(WHOLE);
            }
            Self::OfTrains(trains) => {
                sql.push("c.account_id IN (SELECT m.account_id FROM train_accounts m ");
                sql.push("WHERE m.publisher_id = ").bind(publisher);
                sql.push(" AND m.train_id IN (");
                sql.bind_list(padded(trains.iter().copied()));
                sql.push(")) AND c.model = ").bind(WHOLE);
            }
        }
        sql.push(" ORDER BY c.account_id, c.model");
        sql
    }
}

fn cooldown_of(row: &QueryResult) -> Result<AccountCooldown> {
    let reason: String = row.try_get("", "reason")?;
    let model: String = row.try_get("", "model")?;
    let time = |name: &str| row.try_get("", name).map(Timestamp::from_ms);
    let token = row.try_get::<Option<Uuid>>("", "reported_by")?;
    let (name, train) = (row.try_get("", "token_name")?, row.try_get("", "train")?);
    Ok(AccountCooldown {
        model: Some(model).filter(|model| model != WHOLE),
        until: time("until")?,
        reason: UseOutcome::parse(&reason).ok_or_else(|| corrupt_row("cooldown's reason"))?,
        reported_at: time("reported_at")?,
        reported_by: token.map(|token| Reporter {
            token: TokenId::from_uuid(token),
            name,
            train,
        }),
    })
}

/// The current cooldowns by account, that of the account as a whole first. A row that cannot be
/// read is left out and reported.
pub(crate) async fn cooldowns(
    db: &impl ConnectionTrait,
    publisher: Uuid,
    shown: Shown<'_>,
    now: Timestamp,
) -> Result<HashMap<Uuid, Vec<AccountCooldown>>> {
    let mut found: HashMap<Uuid, Vec<AccountCooldown>> = HashMap::new();
    if shown.is_empty() {
        return Ok(found);
    }
    let statement = shown
        .query(publisher, now)
        .statement(db.get_database_backend());
    for row in db.query_all_raw(statement).await? {
        let account: Uuid = row.try_get("", "account_id")?;
        match cooldown_of(&row) {
            Ok(one) => found.entry(account).or_default().push(one),
            Err(error) => unreadable::report("cooldown", publisher, account, &error),
        }
    }
    Ok(found)
}

/// All current cooldowns of one account.
pub(crate) async fn cooldowns_of(
    db: &impl ConnectionTrait,
    publisher: Uuid,
    account: Uuid,
    now: Timestamp,
) -> Result<Vec<AccountCooldown>> {
    let mut found = cooldowns(db, publisher, Shown::All(account), now).await?;
    Ok(found.remove(&account).unwrap_or_default())
}
