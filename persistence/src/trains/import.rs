//! Import of accounts, trains and clients' keys that files describe.
//!
//! Each item has a transaction of its own, and an item that already exists as described does not
//! change. So an import may be repeated, and an interrupted one is completed by the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Mutex, PoisonError},
};

use domain::{
    Code, Problem,
    account::Ceilings,
    id::{Id as _, PublisherId},
    slug::Slug,
    token::TokenHash,
};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};
use uuid::Uuid;

use crate::{
    publishers::publisher::{Publisher, PublisherStatus},
    store::{
        Scoped, System,
        change::{Audited, Context, nothing},
        db::Tx,
        entity::publishers,
        error::{Result, StoreError},
        scope::Scope,
    },
    trains::Trains,
    trains::{accounts::NewAccount, train::NewSlack},
};

mod accounts;
mod client_keys;
mod trains;

/// The actor in the audit log.
const ACTOR: &str = "import";

domain::words! {
    /// What an import did with one item, or in a dry run would do.
    #[derive(PartialOrd, Ord)]
    pub enum ImportOutcome {
        /// The item did not exist, and was created.
        Created = "created",
        /// The item's settings differed, and were changed.
        Updated = "updated",
        /// A new account replaced an old one, because the credential or its destination differed.
        Replaced = "replaced",
        /// The item already exists as described.
        Unchanged = "unchanged",
        /// The item was refused.
        Failed = "failed",
    }
}

/// The outcome of one item, with a sentence about it if there is something to say. Holds no
/// credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportResult {
    /// The outcome.
    pub outcome: ImportOutcome,
    /// The reason, or a remark.
    pub note: Option<String>,
}

impl ImportResult {
    const fn of(outcome: ImportOutcome) -> Self {
        Self {
            outcome,
            note: None,
        }
    }

    fn unchanged(note: &str) -> Self {
        Self {
            outcome: ImportOutcome::Unchanged,
            note: Some(note.to_owned()),
        }
    }
}

/// An account in a file. The caller has checked its URLs.
#[derive(Clone, Debug)]
pub struct AccountSpec {
    /// The account's settings for the case that it has to be created.
    pub new: NewAccount,
    /// Whether trains may lend the account; `None` keeps the current value.
    pub enabled: Option<bool>,
    /// Soft limits of its use; `None` keeps the current ones.
    pub ceilings: Option<Ceilings>,
}

/// A train in a file. The caller has checked its URL. `None` keeps a member, `Some(None)` empties
/// it.
#[derive(Clone, Debug)]
pub struct TrainSpec {
    /// The train's slug.
    pub slug: Slug,
    /// A description for people.
    pub description: Option<Option<String>>,
    /// Whether the train lends its accounts.
    pub enabled: Option<bool>,
    /// Whether a client that names itself keeps its account as long as that is usable.
    pub sticky: Option<bool>,
    /// The Slack channel for messages about the train.
    pub slack: Option<Option<NewSlack>>,
    /// All accounts of the train: names and priorities, no name twice.
    pub accounts: Option<Vec<(String, u16)>>,
}

/// A key of any form that a client of a train already has.
#[derive(Clone, Debug)]
pub struct ClientKeySpec {
    /// The slug of the train.
    pub train: Slug,
    /// The hash of the key.
    pub hash: TokenHash,
    /// The last four characters of the key.
    pub last_four: String,
    /// A name for people.
    pub name: Option<String>,
}

/// The items that a dry run would have created by now.
#[derive(Default)]
struct DryRun {
    accounts: BTreeSet<String>,
    trains: BTreeSet<String>,
    /// The number of keys, by the train's slug.
    keys: BTreeMap<String, u64>,
}

/// An import into one publisher. The order must be: accounts, trains, keys.
pub struct Import {
    scoped: Scoped,
    context: Context,
    reserved: Vec<TokenHash>,
    pretended: Option<DryRun>,
}

fn refuse(detail: impl Into<String>) -> StoreError {
    Problem::new(Code::ValidationFailed, detail).into()
}

/// Turns a refusal into a failed item. Any other error ends the import.
fn refusal_as_result(result: Result<ImportResult>) -> Result<ImportResult> {
    match result {
        Err(StoreError::Refused(problem)) => Ok(ImportResult {
            outcome: ImportOutcome::Failed,
            note: Some(problem.detail),
        }),
        other => other,
    }
}

impl Trains<System> {
    /// The publisher with this identifier or slug, unless it is deleted.
    pub async fn publisher_named(&self, name: &str) -> Result<Publisher, StoreError> {
        if let Some(id) = PublisherId::parse(name) {
            let found = self.publishers().publisher(id).await?;
            if found.status == PublisherStatus::Deleted {
                return Err(Problem::not_found().into());
            }
            return Ok(found);
        }
        let row = publishers::Entity::find()
            .filter(publishers::Column::LiveSlug.eq(name))
            .one(self.store.read())
            .await?;
        Publisher::of_row(row.ok_or_else(Problem::not_found)?)
    }

    /// Begins an import. `reserved` are tokens that no client's key may equal, such as the
    /// operator's. A dry run only reads.
    #[must_use]
    pub fn import(&self, publisher: &Publisher, reserved: Vec<TokenHash>, dry_run: bool) -> Import {
        let scope = Scope::of_row(publisher.id.uuid(), None);
        Import {
            scoped: self.store.scoped(&scope),
            context: Context::system(ACTOR),
            reserved,
            pretended: dry_run.then(DryRun::default),
        }
    }
}

impl Import {
    fn publisher(&self) -> PublisherId {
        self.scoped.scope.publisher()
    }

    fn owner(&self) -> Uuid {
        self.scoped.scope.uuid()
    }

    /// Makes a change with its audit entries, and returns the item's result.
    async fn commit<F, W>(&self, work: F) -> Result<ImportResult>
    where
        F: Fn(Tx) -> W + Send + Sync,
        W: Future<Output = Result<Audited<ImportResult>>> + Send,
    {
        let kept = Mutex::new(None);
        let render = |done: &ImportResult| {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(done.clone());
            nothing()
        };
        let (store, owner) = (&self.scoped.store, self.owner());
        store.administer(&self.context, owner, work, render).await?;
        kept.into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .ok_or_else(|| StoreError::Internal("an import left no outcome".into()))
    }
}

#[cfg(test)]
mod tests;
