//! Import: accounts, trains and clients' keys as files describe them.
//!
//! Each thing is a transaction of its own, and what is there already as described is left alone.
//! So an import may be repeated, and one that broke off is completed by the next.

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
    trains::{accounts::NewAccount, train::NewSlack},
};

mod accounts;
mod client_keys;
mod trains;

/// Who the audit log names.
const ACTOR: &str = "import";

/// What an import did about one thing, or, in a dry run, would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImportOutcome {
    /// It was not there.
    Created,
    /// Its settings were others.
    Updated,
    /// A new account took its place: its credential, or where that goes, was another.
    Replaced,
    /// It is as described.
    Unchanged,
    /// It can't be.
    Failed,
}

impl ImportOutcome {
    /// All of them, in the order in which they are counted.
    pub const ALL: [Self; 5] = [
        Self::Created,
        Self::Updated,
        Self::Replaced,
        Self::Unchanged,
        Self::Failed,
    ];

    /// The word in reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Failed => "failed",
        }
    }
}

/// An outcome, with a sentence about it where there is something to say. Holds no credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportResult {
    /// What became of it.
    pub outcome: ImportOutcome,
    /// Why, or what to know.
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

/// An account as a file describes it; the caller has checked its URLs.
#[derive(Clone, Debug)]
pub struct AccountSpec {
    /// What it is, if it has to be made.
    pub new: NewAccount,
    /// Whether trains lend it; `None` leaves that as it is.
    pub enabled: Option<bool>,
    /// How much of it is to be used; `None` leaves that as it is.
    pub ceilings: Option<Ceilings>,
}

/// A train as a file describes it; the caller has checked its URL. `None` leaves a member as it
/// is, `Some(None)` empties it.
#[derive(Clone, Debug)]
pub struct TrainSpec {
    /// Which one.
    pub slug: Slug,
    /// For people.
    pub description: Option<Option<String>>,
    /// Whether it lends anything.
    pub enabled: Option<bool>,
    /// Whether a client that names itself keeps its account while that is usable.
    pub sticky: Option<bool>,
    /// Where its people read.
    pub slack: Option<Option<NewSlack>>,
    /// All that it lends: names of accounts with their priorities, no name twice.
    pub accounts: Option<Vec<(String, u16)>>,
}

/// A key that a train's clients have already, in whatever form.
#[derive(Clone, Debug)]
pub struct ClientKeySpec {
    /// Whose.
    pub train: Slug,
    /// The key.
    pub hash: TokenHash,
    /// What lists show of it.
    pub last_four: String,
    /// For people.
    pub name: Option<String>,
}

/// What a dry run takes to be there by now, since the real one would have made it.
#[derive(Default)]
struct DryRun {
    accounts: BTreeSet<String>,
    trains: BTreeSet<String>,
    /// How many keys, by the train's slug.
    keys: BTreeMap<String, u64>,
}

/// An import into one publisher. Things are to come in this order: accounts, trains, keys.
pub struct Import {
    scoped: Scoped,
    context: Context,
    reserved: Vec<TokenHash>,
    pretended: Option<DryRun>,
}

fn refuse(detail: impl Into<String>) -> StoreError {
    Problem::new(Code::ValidationFailed, detail).into()
}

/// What is refused is a failure of one thing; anything else ends the import.
fn told(result: Result<ImportResult>) -> Result<ImportResult> {
    match result {
        Err(StoreError::Refused(problem)) => Ok(ImportResult {
            outcome: ImportOutcome::Failed,
            note: Some(problem.detail),
        }),
        other => other,
    }
}

impl System {
    /// The publisher with this identifier or slug, unless it is deleted.
    pub async fn publisher_named(&self, name: &str) -> Result<Publisher, StoreError> {
        if let Some(id) = PublisherId::parse(name) {
            let found = self.publisher(id).await?;
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

    /// Begins an import. `reserved` are bearers that no client's key may be, such as the
    /// operator's. A dry run reads and writes nothing.
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

    /// Makes a change with its audit rows, and answers what became of the thing.
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
