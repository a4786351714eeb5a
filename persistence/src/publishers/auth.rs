//! Authenticates a presented token, through a cache that never returns a revoked token (see
//! [`crate::store::freshness`]). Tokens of publishers and of trains are cached alike.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use domain::{
    Timestamp,
    audit::{Actor, ActorKind},
    credential::{Grants, Source},
    id::{Id as _, SessionId, TokenId, TrainId, UserId},
    people::Role,
    permission::{Permission, TokenKind},
    token::TokenHash,
};
use moka::sync::Cache;
use sea_orm::{ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _};
use uuid::Uuid;

use crate::{
    publishers::Publishers,
    publishers::publisher::Publisher,
    store::{
        Store, System,
        columns::slugs_of,
        db::Tx,
        entity::{credentials, publishers, token_hashes, train_token_hashes, train_tokens},
        error::{Result, StoreError},
        freshness::{Cell, Reading},
        plane_state::PlaneState,
        scope::Scope,
        sql::Sql,
    },
    trains::train_tokens::IMPORTED,
};

/// Most authenticated tokens that are cached.
const CACHED_TOKENS: u64 = 200_000;
/// `last_used_at` is precise to the minute.
const USED_EVERY_MS: i64 = 60_000;
/// Most tokens whose use waits to be written. Uses of further tokens are dropped until then.
const PENDING_USES: usize = 100_000;
/// Tokens whose use one statement writes.
const USES_A_STATEMENT: usize = 500;

struct TokenCacheEntry {
    principal: Arc<Principal>,
    cell: Arc<Cell>,
    last_used_ms: AtomicI64,
}

/// What acts for a publisher.
#[derive(Clone, Debug)]
pub enum Holder {
    /// A token of the publisher's own.
    Token {
        /// The token's identifier.
        id: TokenId,
        /// The token's rights.
        grants: Grants,
    },
    /// A token of one of the publisher's trains.
    Train {
        /// The token's identifier.
        id: TokenId,
        /// The train.
        train: TrainId,
    },
    /// A member who is signed in.
    Member(Member),
}

/// A member of a publisher who is signed in.
#[derive(Clone, Debug)]
pub struct Member {
    /// The person.
    pub user: UserId,
    /// The person's session.
    pub session: SessionId,
    /// The role in the publisher.
    pub role: Role,
    /// When the person last proved who they are.
    pub authenticated_at: Timestamp,
}

/// A token, or a session of a member, that acts for a publisher.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The publisher and the pipelines that the token reaches.
    pub scope: Scope,
    /// What acts for the publisher.
    pub holder: Holder,
    /// When the token or the session expires.
    pub expires_at: Option<Timestamp>,
    /// The publisher, as of the last change that this process knows of.
    pub publisher: Arc<Publisher>,
}

impl Principal {
    /// Whether a token of this kind, or a member of this role, holds the permission.
    #[must_use]
    pub fn holds(&self, permission: Permission) -> bool {
        let kind_holds =
            |held: &dyn Fn(TokenKind) -> bool| permission.holders().iter().any(|kind| held(*kind));
        match &self.holder {
            Holder::Token { grants, .. } => kind_holds(&|kind| match kind {
                TokenKind::Admin => grants.admin,
                TokenKind::Runner => grants.runner,
                TokenKind::Train | TokenKind::Bootstrap => false,
            }),
            Holder::Train { .. } => kind_holds(&|kind| kind == TokenKind::Train),
            Holder::Member(member) => permission.is_held_by_member(member.role),
        }
    }

    /// The train whose token it is.
    #[must_use]
    pub const fn train(&self) -> Option<TrainId> {
        match &self.holder {
            Holder::Train { train, .. } => Some(*train),
            _ => None,
        }
    }

    /// The member, if a person acts.
    #[must_use]
    pub const fn member(&self) -> Option<&Member> {
        match &self.holder {
            Holder::Member(member) => Some(member),
            _ => None,
        }
    }

    /// The rights of a token; none for a train's, and for a member.
    #[must_use]
    pub fn grants(&self) -> Grants {
        match &self.holder {
            Holder::Token { grants, .. } => *grants,
            _ => Grants::default(),
        }
    }

    /// The identifier of the token, or of the session.
    #[must_use]
    pub fn credential(&self) -> Uuid {
        match &self.holder {
            Holder::Token { id, .. } | Holder::Train { id, .. } => id.uuid(),
            Holder::Member(member) => member.session.uuid(),
        }
    }

    /// The actor for audit entries and runs: a token, or a person.
    #[must_use]
    pub fn actor(&self) -> Actor {
        let (kind, id) = match &self.holder {
            Holder::Token { id, grants } if grants.admin => (ActorKind::Admin, id),
            Holder::Token { id, .. } => (ActorKind::Runner, id),
            Holder::Train { id, .. } => (ActorKind::Train, id),
            Holder::Member(member) => return Actor::user(member.user),
        };
        Actor {
            kind,
            id: id.to_string(),
        }
    }
}

/// A used token: whether it is a train's, its publisher, and its identifier.
type UsedToken = (bool, Uuid, Uuid);

pub(crate) struct AuthCache {
    tokens: Cache<[u8; 32], Arc<TokenCacheEntry>>,
    used: Mutex<HashMap<UsedToken, i64>>,
    /// Whether publishers have live tokens that do not have this program's form.
    foreign: AtomicBool,
    /// Whether trains have live tokens that do not have this program's form.
    imported: AtomicBool,
}

impl AuthCache {
    pub(crate) fn new() -> Self {
        Self {
            tokens: Cache::new(CACHED_TOKENS),
            used: Mutex::default(),
            foreign: AtomicBool::new(false),
            imported: AtomicBool::new(false),
        }
    }

    fn keep(
        &self,
        hash: [u8; 32],
        principal: &Arc<Principal>,
        reading: &Reading<'_>,
        now: Timestamp,
    ) {
        reading.keep(principal.scope.uuid(), |cell| {
            let entry = TokenCacheEntry {
                principal: Arc::clone(principal),
                cell,
                last_used_ms: AtomicI64::new(
                    now.ms() / USED_EVERY_MS * USED_EVERY_MS - USED_EVERY_MS,
                ),
            };
            self.tokens.insert(hash, Arc::new(entry));
        });
    }

    fn note_use(&self, principal: &Principal, now: Timestamp) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < PENDING_USES {
            let of = (
                principal.train().is_some(),
                principal.scope.uuid(),
                principal.credential(),
            );
            used.insert(of, now.ms());
        }
    }

    /// A cached and valid principal. An invalid entry stays in the cache until the next look-up
    /// replaces or removes it, to show that the token was once live.
    fn hit(&self, hash: &[u8; 32], now: Timestamp) -> Option<Arc<Principal>> {
        let entry = self.tokens.get(hash)?;
        if entry.cell.is_stale() {
            return None;
        }
        let last = entry.last_used_ms.load(Ordering::Relaxed);
        if now.ms() - last >= USED_EVERY_MS
            && entry
                .last_used_ms
                .compare_exchange(last, now.ms(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            self.note_use(&entry.principal, now);
        }
        Some(Arc::clone(&entry.principal))
    }
}

impl PlaneState for AuthCache {
    fn forget_all(&self) {
        self.tokens.invalidate_all();
    }
}

/// What the cache knows of a token.
#[derive(Clone, Debug)]
pub enum CachedToken {
    /// The token is live.
    Live(Arc<Principal>),
    /// The token was live once. Only the database can tell whether it still is.
    Stale,
    /// The token is not in the cache.
    Unknown,
}

impl Store {
    /// What the cache knows of a token. Makes no query.
    #[must_use]
    pub fn cached_token(&self, hash: TokenHash) -> CachedToken {
        let now = self.now();
        match self.cached(hash, now).filter(|p| is_live(p, now)) {
            Some(principal) => CachedToken::Live(principal),
            None if self
                .state::<AuthCache>()
                .tokens
                .contains_key(hash.as_bytes()) =>
            {
                CachedToken::Stale
            }
            None => CachedToken::Unknown,
        }
    }

    /// The cached principal, if the cache can be trusted.
    fn cached(&self, hash: TokenHash, now: Timestamp) -> Option<Arc<Principal>> {
        let cache = self.state::<AuthCache>();
        self.inner
            .freshness
            .trusted(now)
            .then(|| cache.hit(hash.as_bytes(), now))
            .flatten()
    }

    /// The principal of a token; `None` if no live token matches.
    ///
    /// Tokens of a suspended publisher still authenticate, and the caller decides by
    /// [`Principal::publisher`]. Those of a deleted publisher do not.
    pub async fn authenticate(&self, hash: TokenHash) -> Result<Option<Arc<Principal>>> {
        let now = self.now();
        let principal = match self.cached(hash, now) {
            Some(principal) => Some(principal),
            None => self.look_up(hash, now).await?,
        };
        Ok(principal.filter(|p| is_live(p, now)))
    }

    async fn look_up(&self, hash: TokenHash, now: Timestamp) -> Result<Option<Arc<Principal>>> {
        let cache = self.state::<AuthCache>();
        let reading = self.inner.freshness.begin();
        let Some(principal) = self.read_principal(hash).await? else {
            cache.tokens.invalidate(hash.as_bytes());
            return Ok(None);
        };
        let principal = Arc::new(principal);
        cache.keep(*hash.as_bytes(), &principal, &reading, now);
        cache.note_use(&principal, now);
        Ok(Some(principal))
    }

    /// Reads the principal of a token that is not revoked.
    async fn read_principal(&self, hash: TokenHash) -> Result<Option<Principal>> {
        let key = hash.as_bytes().to_vec();
        let found = token_hashes::Entity::find_by_id(key.clone())
            .one(self.read())
            .await?;
        if let Some(found) = found {
            return self
                .publishers_token(found.publisher_id, found.token_id)
                .await;
        }
        let found = train_token_hashes::Entity::find_by_id(key)
            .one(self.read())
            .await?;
        match found {
            Some(found) => self.trains_token(found.publisher_id, found.token_id).await,
            None => Ok(None),
        }
    }

    /// The row of a publisher, unless it is deleted.
    async fn standing_publisher(&self, id: Uuid) -> Result<Option<publishers::Model>> {
        let row = publishers::Entity::find_by_id(id).one(self.read()).await?;
        Ok(row.filter(|row| row.deleted_at.is_none()))
    }

    async fn publishers_token(&self, publisher: Uuid, id: Uuid) -> Result<Option<Principal>> {
        let row = credentials::Entity::find_by_id((publisher, id))
            .one(self.read())
            .await?;
        let publisher = self.standing_publisher(publisher).await?;
        match (row, publisher) {
            (Some(row), Some(publisher)) if row.revoked_at.is_none() => {
                principal_of(&row, publisher).map(Some)
            }
            _ => Ok(None),
        }
    }

    async fn trains_token(&self, publisher: Uuid, id: Uuid) -> Result<Option<Principal>> {
        let row = train_tokens::Entity::find_by_id((publisher, id))
            .one(self.read())
            .await?;
        let publisher = self.standing_publisher(publisher).await?;
        match (row, publisher) {
            (Some(row), Some(publisher)) if row.revoked_at.is_none() => {
                principal_of_train(&row, publisher).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Whether tokens without this program's form have to be looked up as publishers' tokens: only
    /// while there are live ones, which the boot seed made.
    #[must_use]
    pub fn knows_foreign_tokens(&self) -> bool {
        self.state::<AuthCache>().foreign.load(Ordering::Acquire)
    }

    /// Whether tokens without this program's form have to be looked up as trains' tokens: only
    /// while there are live imported ones.
    #[must_use]
    pub fn knows_imported_tokens(&self) -> bool {
        self.state::<AuthCache>().imported.load(Ordering::Acquire)
    }

    /// Finds out whether there are live tokens without this program's form. While none of the
    /// imported ones is known, they are searched among the publishers in `changed` only, since no
    /// index finds them; `None` means all publishers.
    pub(crate) async fn look_for_foreign_tokens(&self, changed: Option<&[Uuid]>) -> Result<()> {
        let auth = self.state::<AuthCache>();
        let seeded = credentials::Entity::find()
            .filter(credentials::Column::Source.eq(Source::Seed.as_str()))
            .filter(credentials::Column::Sealed.is_null())
            .filter(credentials::Column::RevokedAt.is_null())
            .one(self.read())
            .await?;
        auth.foreign.store(seeded.is_some(), Ordering::Release);
        let mut imported = train_tokens::Entity::find()
            .filter(train_tokens::Column::Source.eq(IMPORTED))
            .filter(train_tokens::Column::RevokedAt.is_null());
        if let Some(changed) = changed
            && !auth.imported.load(Ordering::Acquire)
        {
            let owners = changed.iter().copied();
            imported = imported.filter(train_tokens::Column::PublisherId.is_in(owners));
        }
        let imported = imported.one(self.read()).await?;
        auth.imported.store(imported.is_some(), Ordering::Release);
        Ok(())
    }

    /// Writes when tokens were last used. Called regularly, outside of requests.
    pub(crate) async fn flush_uses(&self) -> Result<u64> {
        let taken = {
            let used = &self.state::<AuthCache>().used;
            std::mem::take(&mut *used.lock().unwrap_or_else(PoisonError::into_inner))
        };
        let mut by_minute: HashMap<(bool, i64), Vec<(Uuid, Uuid)>> = HashMap::new();
        for ((of_train, publisher, id), at) in &taken {
            by_minute
                .entry((*of_train, at / USED_EVERY_MS * USED_EVERY_MS))
                .or_default()
                .push((*publisher, *id));
        }
        let by_minute = &by_minute;
        self.write(|tx| async move {
            for ((of_train, at), tokens) in by_minute {
                for part in tokens.chunks(USES_A_STATEMENT) {
                    note_uses(&tx, *of_train, *at, part).await?;
                }
            }
            Ok(())
        })
        .await?;
        Ok(u64::try_from(taken.len()).unwrap_or(u64::MAX))
    }
}

/// Writes that tokens of trains, or of publishers, were used at `at`, unless later uses are stored.
async fn note_uses(tx: &Tx, of_train: bool, at: i64, tokens: &[(Uuid, Uuid)]) -> Result<()> {
    let table = if of_train {
        "train_tokens"
    } else {
        "credentials"
    };
    let keys = tokens
        .iter()
        .map(|(publisher, id)| vec![(*publisher).into(), (*id).into()]);
    let mut sql = Sql::new("UPDATE ");
    sql.push(table).push(" SET last_used_at = ").bind(at);
    sql.push(" WHERE (last_used_at IS NULL OR last_used_at < ")
        .bind(at)
        .push(") AND (publisher_id, id) IN (")
        .values(keys)
        .push(")");
    let statement = sql.statement(tx.db().get_database_backend());
    tx.db().execute_raw(statement).await?;
    Ok(())
}

fn is_live(principal: &Principal, now: Timestamp) -> bool {
    principal.expires_at.is_none_or(|at| at > now)
}

fn principal_of(row: &credentials::Model, publisher: publishers::Model) -> Result<Principal> {
    let pipelines = match &row.pipelines {
        None => None,
        Some(text) => Some(slugs_of(text)?.into()),
    };
    Ok(Principal {
        scope: Scope::of_row(row.publisher_id, pipelines),
        holder: Holder::Token {
            id: TokenId::from_uuid(row.id),
            grants: Grants {
                admin: row.grants_admin,
                runner: row.grants_runner,
            },
        },
        expires_at: row.expires_at.map(Timestamp::from_ms),
        publisher: Arc::new(Publisher::of_row(publisher)?),
    })
}

/// The principal of a train's token. It has none of the rights of a publisher's tokens.
fn principal_of_train(
    row: &train_tokens::Model,
    publisher: publishers::Model,
) -> Result<Principal> {
    Ok(Principal {
        scope: Scope::of_row(row.publisher_id, None),
        holder: Holder::Train {
            id: TokenId::from_uuid(row.id),
            train: TrainId::from_uuid(row.train_id),
        },
        expires_at: row.expires_at.map(Timestamp::from_ms),
        publisher: Arc::new(Publisher::of_row(publisher)?),
    })
}

impl Publishers<System> {
    /// Writes when tokens were last used. Returns of how many tokens.
    pub async fn flush_uses(&self) -> Result<u64, StoreError> {
        self.store.flush_uses().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::freshness::Freshness;

    fn principal(publisher: u128) -> Arc<Principal> {
        let now = Timestamp::from_ms(1);
        Arc::new(Principal {
            scope: Scope::of_row(Uuid::from_u128(publisher), None),
            holder: Holder::Token {
                id: TokenId::generate(now),
                grants: Grants::default(),
            },
            expires_at: None,
            publisher: Arc::new(Publisher::for_tests(domain::id::PublisherId::from_uuid(
                Uuid::from_u128(publisher),
            ))),
        })
    }

    #[test]
    fn an_invalidation_kills_what_is_cached() {
        let (cache, freshness) = (AuthCache::new(), Freshness::default());
        let now = Timestamp::from_ms(1);
        cache.keep([1; 32], &principal(7), &freshness.begin(), now);
        assert!(cache.hit(&[1; 32], now).is_some());
        freshness.invalidate(Uuid::from_u128(8));
        assert!(cache.hit(&[1; 32], now).is_some());
        freshness.invalidate(Uuid::from_u128(7));
        assert!(cache.hit(&[1; 32], now).is_none());
    }

    #[test]
    fn a_lookup_begun_before_a_revocation_can_not_refill_the_cache_after_it() {
        let (cache, freshness) = (AuthCache::new(), Freshness::default());
        let now = Timestamp::from_ms(1);
        let reading = freshness.begin();
        freshness.invalidate(Uuid::from_u128(7));
        cache.keep([1; 32], &principal(7), &reading, now);
        assert!(cache.hit(&[1; 32], now).is_none());
        cache.keep([1; 32], &principal(7), &freshness.begin(), now);
        assert!(cache.hit(&[1; 32], now).is_some());
        let reading = freshness.begin();
        freshness.invalidate_all();
        cache.keep([1; 32], &principal(7), &reading, now);
        cache.keep([2; 32], &principal(8), &reading, now);
        assert!(cache.hit(&[1; 32], now).is_none());
        assert!(cache.hit(&[2; 32], now).is_none());
    }
}
