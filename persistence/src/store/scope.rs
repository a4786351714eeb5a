//! The publisher that a request acts for.

use std::sync::Arc;

use domain::{id::PublisherId, slug::Slug};
use uuid::Uuid;

/// The operator, as the owner of keys, audit rows and idempotency keys.
pub(crate) const OPERATOR: Uuid = Uuid::nil();

/// The publisher that a request acts for, and the pipelines that it may use.
///
/// The fields are private: only this crate makes a scope, from a row that it has read. So a query
/// of a publisher's rows without a scope, or with an invented one, does not compile outside of this
/// crate.
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

    /// The publisher whose rows the scope reaches.
    #[must_use]
    pub const fn publisher(&self) -> PublisherId {
        self.publisher
    }

    pub(crate) fn uuid(&self) -> Uuid {
        domain::id::Id::uuid(self.publisher)
    }

    /// The pipelines that the scope reaches; `None` for all of the publisher's.
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
