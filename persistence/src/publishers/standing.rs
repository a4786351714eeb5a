//! Members who are signed in, as what acts for a publisher; and how whoever asked once is asked
//! after again.
//!
//! The scope comes from the membership row that is read here. The slug in a request only says which
//! row that is: a person who is no member gets nothing, as if there were no such publisher.

use std::{sync::Arc, time::Duration};

use domain::{id::Id as _, people::Role, slug::Slug, token::TokenHash};
use moka::sync::Cache;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};
use uuid::Uuid;

use crate::{
    identity::sessions::SignedIn,
    publishers::{
        auth::{CachedToken, Holder, Member, Principal},
        publisher::Publisher,
    },
    store::{
        Store,
        entity::{memberships, publishers},
        error::{Result, StoreError, corrupt_row},
        freshness::Cell,
        plane_state::PlaneState,
        scope::Scope,
    },
};

/// Most memberships that are cached.
const CACHED: u64 = 100_000;

/// A cached membership of a session. It is valid while nothing of the person and nothing of the
/// publisher changes.
struct Entry {
    principal: Arc<Principal>,
    of_user: Arc<Cell>,
    of_publisher: Arc<Cell>,
}

/// What this process keeps of members who are signed in.
pub(crate) struct MemberCache {
    entries: Cache<(Uuid, Slug), Arc<Entry>>,
}

impl MemberCache {
    pub(crate) fn new() -> Self {
        Self {
            entries: Cache::new(CACHED),
        }
    }
}

impl PlaneState for MemberCache {
    fn forget_all(&self) {
        self.entries.invalidate_all();
    }
}

/// What a request presented, to ask again later whether it is still good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    /// A token.
    Token(TokenHash),
    /// A session, and the publisher that the request named.
    Member {
        /// The keyed hash of what the browser holds.
        session: TokenHash,
        /// The publisher's name in the request.
        publisher: Slug,
        /// How long a session may be idle.
        idle: Duration,
    },
}

impl Store {
    /// A signed-in person as a member of the publisher with this slug; `None` if the person is no
    /// member of one.
    ///
    /// Members of a suspended publisher are found, and the caller decides by
    /// [`Principal::publisher`]. A deleted publisher has none.
    pub async fn member(
        &self,
        who: &SignedIn,
        slug: &Slug,
    ) -> Result<Option<Arc<Principal>>, StoreError> {
        let key = (who.session.id.uuid(), slug.clone());
        let cache = self.state::<MemberCache>();
        if self.inner.freshness.trusted(self.now())
            && let Some(entry) = cache.entries.get(&key)
            && !entry.of_user.is_stale()
            && !entry.of_publisher.is_stale()
        {
            return Ok(Some(Arc::clone(&entry.principal)));
        }
        let reading = self.inner.freshness.begin();
        let Some(principal) = self.read_member(who, slug).await? else {
            cache.entries.invalidate(&key);
            return Ok(None);
        };
        let principal = Arc::new(principal);
        // The second cell may die before the first is kept with it: then the entry is not valid.
        let mut of_user = None;
        reading.keep(who.user.id.uuid(), |cell| of_user = Some(cell));
        if let Some(of_user) = of_user {
            reading.keep(principal.scope.uuid(), |of_publisher| {
                let entry = Entry {
                    principal: Arc::clone(&principal),
                    of_user,
                    of_publisher,
                };
                cache.entries.insert(key, Arc::new(entry));
            });
        }
        Ok(Some(principal))
    }

    async fn read_member(&self, who: &SignedIn, slug: &Slug) -> Result<Option<Principal>> {
        let publisher = publishers::Entity::find()
            .filter(publishers::Column::LiveSlug.eq(slug.as_str()))
            .one(self.read())
            .await?;
        let Some(publisher) = publisher.filter(|row| row.deleted_at.is_none()) else {
            return Ok(None);
        };
        let key = (publisher.id, who.user.id.uuid());
        let Some(row) = memberships::Entity::find_by_id(key)
            .one(self.read())
            .await?
        else {
            return Ok(None);
        };
        let role = Role::parse(&row.role).ok_or_else(|| corrupt_row("role"))?;
        Ok(Some(Principal {
            scope: Scope::of_row(row.publisher_id, None),
            holder: Holder::Member(Member {
                user: who.user.id,
                session: who.session.id,
                role,
                authenticated_at: who.session.authenticated_at,
            }),
            expires_at: Some(who.session.expires_at),
            publisher: Arc::new(Publisher::of_row(publisher)?),
        }))
    }

    /// Whether what was presented once is still good, and what it is now.
    pub async fn standing(
        &self,
        presented: &Presented,
    ) -> Result<Option<Arc<Principal>>, StoreError> {
        match presented {
            Presented::Token(hash) => self.authenticate(*hash).await,
            Presented::Member {
                session,
                publisher,
                idle,
            } => match self.signed_in(*session, *idle).await? {
                Some(who) => self.member(&who, publisher).await,
                None => Ok(None),
            },
        }
    }

    /// What is known of what was presented without a query; `None` if only the database can tell.
    pub(crate) fn known_standing(&self, presented: &Presented) -> Option<Arc<Principal>> {
        match presented {
            Presented::Token(hash) => match self.cached_token(*hash) {
                CachedToken::Live(principal) => Some(principal),
                CachedToken::Stale | CachedToken::Unknown => None,
            },
            Presented::Member { .. } => None,
        }
    }
}
