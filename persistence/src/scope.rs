//! Who a request acts for, and the two handles to the store.

use std::sync::Arc;

use domain::{
    Timestamp,
    audit::{Actor, ActorKind},
    credential::Grants,
    id::{PublisherId, TokenId, TrainId},
    slug::Slug,
};
use uuid::Uuid;

use crate::{Store, publishers::Publisher};

/// The operator, as the owner of keys, audit rows and idempotency keys.
pub(crate) const OPERATOR: Uuid = Uuid::nil();

/// The publisher that a request acts for, and the pipelines that it may touch.
///
/// Its fields are private: only this crate makes one, from a row that it has read. So a tenant
/// query without a scope, or with a made-up one, does not compile outside of it.
#[derive(Clone, Debug)]
pub struct Scope {
    publisher: PublisherId,
    pipelines: Option<Arc<[Slug]>>,
}

impl Scope {
    pub(crate) fn of_row(publisher: Uuid, pipelines: Option<Arc<[Slug]>>) -> Self {
        Self {
            publisher: domain::id::Id::from_uuid(publisher),
            pipelines,
        }
    }

    /// Whose things are in reach.
    #[must_use]
    pub const fn publisher(&self) -> PublisherId {
        self.publisher
    }

    pub(crate) fn uuid(&self) -> Uuid {
        domain::id::Id::uuid(self.publisher)
    }

    /// The only pipelines in reach, or `None` if all of the publisher's are.
    #[must_use]
    pub fn pipelines(&self) -> Option<&[Slug]> {
        self.pipelines.as_deref()
    }

    pub(crate) fn reaches(&self, pipeline: &str) -> bool {
        self.pipelines
            .as_ref()
            .is_none_or(|some| some.iter().any(|slug| slug.as_str() == pipeline))
    }
}

/// An authenticated token of a publisher or of one of its trains.
#[derive(Clone, Debug)]
pub struct Principal {
    /// What it acts for.
    pub scope: Scope,
    /// Which token.
    pub credential: TokenId,
    /// What it may do of what a publisher's tokens may; nothing if it is a train's.
    pub grants: Grants,
    /// The train that it is a token of, if it is none of its publisher's own.
    pub train: Option<TrainId>,
    /// When it stops working.
    pub expires_at: Option<Timestamp>,
    /// The publisher, as of the last change that this process has heard of.
    pub publisher: Arc<Publisher>,
}

impl Principal {
    /// The actor that audit rows and runs name.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let kind = if self.train.is_some() {
            ActorKind::Train
        } else if self.grants.admin {
            ActorKind::Admin
        } else {
            ActorKind::Runner
        };
        Actor {
            kind,
            id: self.credential.to_string(),
        }
    }
}

/// The store as one publisher sees it: nothing of another's is in reach.
#[derive(Clone)]
pub struct Scoped {
    pub(crate) store: Store,
    pub(crate) scope: Scope,
}

/// The store without a scope: for the operator's routes, the dispatcher, jobs and the process.
#[derive(Clone)]
pub struct System {
    pub(crate) store: Store,
}
