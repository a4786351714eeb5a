//! Sessions: a browser's sign-in. A session is a row; the browser holds a random text whose keyed
//! hash finds it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use domain::{
    Problem, Timestamp,
    audit::Action,
    id::{Id as _, SessionId, UserId},
    people::SignInMethod,
    token::TokenHash,
};
use moka::sync::Cache;
use sea_orm::sea_query::Expr;
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    identity::{
        Identity,
        tokens::spend_all,
        touch,
        users::{self, User, about},
    },
    store::{
        Store,
        change::Context,
        db::Tx,
        entity::sessions,
        error::{Result, StoreError, corrupt_row},
        freshness::Cell,
        plane_state::PlaneState,
        sql::Sql,
    },
};

/// Most sessions that are cached.
const CACHED: u64 = 100_000;
/// `last_seen_at` in the store is precise to the minute.
const SEEN_EVERY_MS: i64 = 60_000;
/// Most sessions whose use waits to be written. Uses of further ones are dropped until then.
const PENDING: usize = 100_000;
/// Sessions whose use one statement writes.
const A_STATEMENT: usize = 500;
/// Most sessions of a user. The one that was seen least recently ends when another begins.
const SESSIONS_A_USER: usize = 100;

/// A session as its user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The session's identifier.
    pub id: SessionId,
    /// How the person signed in.
    pub method: SignInMethod,
    /// The provider, if the person signed in elsewhere.
    pub provider: Option<String>,
    /// When the person last proved who they are.
    pub authenticated_at: Timestamp,
    /// When the session began.
    pub created_at: Timestamp,
    /// When the session was last used, to the minute.
    pub last_seen_at: Timestamp,
    /// When the session ends, however much it is used.
    pub expires_at: Timestamp,
    /// The address from which the person signed in.
    pub client_address: Option<String>,
    /// The browser's `User-Agent`, shortened.
    pub user_agent: Option<String>,
}

/// What is given for a new session.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// The keyed hash of what the browser holds.
    pub hash: TokenHash,
    /// How the person signed in.
    pub method: SignInMethod,
    /// The provider, if the person signed in elsewhere.
    pub provider: Option<String>,
    /// How long the session lasts, however much it is used.
    pub lasts: Duration,
}

/// A person who is signed in.
#[derive(Clone, Debug)]
pub struct SignedIn {
    /// The session.
    pub session: Session,
    /// The user, as of the last change that this process knows of.
    pub user: User,
}

/// A cached session.
struct Entry {
    signed_in: Arc<SignedIn>,
    cell: Arc<Cell>,
    /// When this process last saw the session, or another one wrote that it did.
    seen: AtomicI64,
    /// When a use was last noted, to be written.
    noted: AtomicI64,
}

/// What this process keeps of sessions.
pub(crate) struct SessionCache {
    entries: Cache<[u8; 32], Arc<Entry>>,
    seen: Mutex<HashMap<Uuid, i64>>,
}

impl SessionCache {
    pub(crate) fn new() -> Self {
        Self {
            entries: Cache::new(CACHED),
            seen: Mutex::default(),
        }
    }

    fn note(&self, session: Uuid, at: i64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < PENDING {
            seen.insert(session, at);
        }
    }
}

impl PlaneState for SessionCache {
    fn forget_all(&self) {
        self.entries.invalidate_all();
    }
}

fn session_of(row: sessions::Model) -> Result<Session> {
    Ok(Session {
        id: SessionId::from_uuid(row.id),
        method: SignInMethod::parse(&row.method).ok_or_else(|| corrupt_row("session's method"))?,
        provider: row.provider,
        authenticated_at: Timestamp::from_ms(row.authenticated_at),
        created_at: Timestamp::from_ms(row.created_at),
        last_seen_at: Timestamp::from_ms(row.last_seen_at),
        expires_at: Timestamp::from_ms(row.expires_at),
        client_address: row.client_address,
        user_agent: row.user_agent,
    })
}

/// Begins a session of a user, and ends the least recently seen one if there are too many.
pub(crate) async fn begin(
    tx: &Tx,
    context: &Context,
    user: UserId,
    new: &NewSession,
) -> Result<Session> {
    let oldest: Vec<Uuid> = sessions::Entity::find()
        .select_only()
        .column(sessions::Column::Id)
        .filter(sessions::Column::UserId.eq(user.uuid()))
        .order_by_desc(sessions::Column::LastSeenAt)
        .into_tuple()
        .all(tx.db())
        .await?;
    if let Some(surplus) = oldest.get(SESSIONS_A_USER - 1..) {
        sessions::Entity::delete_many()
            .filter(sessions::Column::Id.is_in(surplus.iter().copied()))
            .exec(tx.db())
            .await?;
        touch(tx, user);
    }
    let row = sessions::Model {
        id: SessionId::generate(tx.now).uuid(),
        hash: new.hash.as_bytes().to_vec(),
        user_id: user.uuid(),
        method: new.method.as_str().to_owned(),
        provider: new.provider.clone(),
        authenticated_at: tx.now.ms(),
        created_at: tx.now.ms(),
        last_seen_at: tx.now.ms(),
        expires_at: tx.now.plus(new.lasts).ms(),
        client_address: context.address.clone(),
        user_agent: context.user_agent.clone(),
    };
    let active: sessions::ActiveModel = row.clone().into();
    sessions::Entity::insert(sea_orm::ActiveModelTrait::reset_all(active))
        .exec_without_returning(tx.db())
        .await?;
    session_of(row)
}

/// Has a session that began just now count as one whose person proved long ago who they are.
pub(crate) async fn is_no_recent_proof(tx: &Tx, session: SessionId) -> Result<()> {
    sessions::Entity::update_many()
        .col_expr(sessions::Column::AuthenticatedAt, Expr::value(0_i64))
        .filter(sessions::Column::Id.eq(session.uuid()))
        .exec(tx.db())
        .await?;
    Ok(())
}

/// Ends all sessions of a user but `except`. Returns how many there were.
pub(crate) async fn end_all(tx: &Tx, user: UserId, except: Option<SessionId>) -> Result<u64> {
    let mut query =
        sessions::Entity::delete_many().filter(sessions::Column::UserId.eq(user.uuid()));
    if let Some(except) = except {
        query = query.filter(sessions::Column::Id.ne(except.uuid()));
    }
    let ended = query.exec(tx.db()).await?.rows_affected;
    touch(tx, user);
    Ok(ended)
}

impl Store {
    /// The person whose browser holds the text with this keyed hash; `None` if the session has
    /// ended, was not seen for `idle`, or never was.
    ///
    /// Another process, or this one after a restart, may end an idle session up to two minutes
    /// early: the row is so far behind.
    pub async fn signed_in(
        &self,
        hash: TokenHash,
        idle: Duration,
    ) -> Result<Option<Arc<SignedIn>>, StoreError> {
        let now = self.now();
        if let Some(signed_in) = self.cached_session(hash, now, idle) {
            return Ok(Some(signed_in));
        }
        let cache = self.state::<SessionCache>();
        let reading = self.inner.freshness.begin();
        let row = sessions::Entity::find()
            .filter(sessions::Column::Hash.eq(hash.as_bytes().to_vec()))
            .one(self.read())
            .await?;
        let known = cache.entries.get(hash.as_bytes());
        let seen_here = known.map_or(0, |entry| entry.seen.load(Ordering::Relaxed));
        let row = row.map(|row| sessions::Model {
            last_seen_at: row.last_seen_at.max(seen_here),
            ..row
        });
        let Some(row) = row.filter(|row| is_live(row, now, idle)) else {
            return Ok(None);
        };
        let (id, seen) = (row.id, row.last_seen_at);
        let user = users::read(self.read(), UserId::from_uuid(row.user_id)).await?;
        let Some(user) = user.filter(User::is_enabled) else {
            return Ok(None);
        };
        let signed_in = Arc::new(SignedIn {
            session: session_of(row)?,
            user,
        });
        reading.keep(signed_in.user.id.uuid(), |cell| {
            let entry = Entry {
                signed_in: Arc::clone(&signed_in),
                cell,
                seen: AtomicI64::new(now.ms()),
                noted: AtomicI64::new(now.ms()),
            };
            cache.entries.insert(*hash.as_bytes(), Arc::new(entry));
        });
        if now.ms() - seen >= SEEN_EVERY_MS {
            cache.note(id, now.ms());
        }
        Ok(Some(signed_in))
    }

    fn cached_session(
        &self,
        hash: TokenHash,
        now: Timestamp,
        idle: Duration,
    ) -> Option<Arc<SignedIn>> {
        if !self.inner.freshness.trusted(now) {
            return None;
        }
        let cache = self.state::<SessionCache>();
        let entry = cache.entries.get(hash.as_bytes())?;
        let seen = Timestamp::from_ms(entry.seen.load(Ordering::Relaxed));
        // Another process may have seen it since: the row tells.
        let known = !entry.cell.is_stale()
            && entry.signed_in.session.expires_at > now
            && now.since(seen) <= idle;
        if !known {
            return None;
        }
        entry.seen.fetch_max(now.ms(), Ordering::Relaxed);
        let noted = entry.noted.load(Ordering::Relaxed);
        if now.ms() - noted >= SEEN_EVERY_MS
            && entry
                .noted
                .compare_exchange(noted, now.ms(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            cache.note(entry.signed_in.session.id.uuid(), now.ms());
        }
        Some(Arc::clone(&entry.signed_in))
    }

    /// Writes when sessions were last seen. Called regularly, outside of requests.
    pub(crate) async fn flush_seen(&self) -> Result<u64> {
        let taken = {
            let seen = &self.state::<SessionCache>().seen;
            std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner))
        };
        if taken.is_empty() {
            return Ok(0);
        }
        let mut by_minute: HashMap<i64, Vec<Uuid>> = HashMap::new();
        for (session, at) in &taken {
            let minute = at / SEEN_EVERY_MS * SEEN_EVERY_MS;
            by_minute.entry(minute).or_default().push(*session);
        }
        let by_minute = &by_minute;
        self.write(|tx| async move {
            for (at, ids) in by_minute {
                for part in ids.chunks(A_STATEMENT) {
                    let mut sql = Sql::new("UPDATE sessions SET last_seen_at = ");
                    sql.bind(*at).push(" WHERE last_seen_at < ").bind(*at);
                    sql.push(" AND (id) IN (")
                        .values(part.iter().map(|id| vec![(*id).into()]))
                        .push(")");
                    let statement = sql.statement(tx.db().get_database_backend());
                    tx.db().execute_raw(statement).await?;
                }
            }
            Ok(())
        })
        .await?;
        Ok(u64::try_from(taken.len()).unwrap_or(u64::MAX))
    }
}

fn is_live(row: &sessions::Model, now: Timestamp, idle: Duration) -> bool {
    let seen = Timestamp::from_ms(row.last_seen_at);
    row.expires_at > now.ms() && now.since(seen) <= idle
}

impl Identity {
    /// A user's live sessions, the most recently seen one first.
    pub async fn sessions(&self, user: UserId, idle: Duration) -> Result<Vec<Session>, StoreError> {
        let now = self.store.now();
        let rows = sessions::Entity::find()
            .filter(sessions::Column::UserId.eq(user.uuid()))
            .order_by_desc(sessions::Column::LastSeenAt)
            .order_by_desc(sessions::Column::Id)
            .all(self.store.read())
            .await?;
        rows.into_iter()
            .filter(|row| is_live(row, now, idle))
            .map(session_of)
            .collect()
    }

    /// Ends one session of a user.
    ///
    /// # Errors
    /// `not_found` if the user has no such session.
    pub async fn end_session(
        &self,
        context: &Context,
        user: UserId,
        session: SessionId,
    ) -> Result<(), StoreError> {
        self.change(context, |tx| async move {
            let ended = sessions::Entity::delete_many()
                .filter(sessions::Column::Id.eq(session.uuid()))
                .filter(sessions::Column::UserId.eq(user.uuid()))
                .exec(tx.db())
                .await?;
            if ended.rows_affected == 0 {
                return Err(Problem::not_found().into());
            }
            touch(&tx, user);
            let facts = json!({ "session": session.to_string() });
            Ok(about((), Action::SessionEnded, user, facts))
        })
        .await
    }

    /// Ends all sessions of a user but `except`. Returns how many there were.
    pub async fn end_sessions(
        &self,
        context: &Context,
        user: UserId,
        except: Option<SessionId>,
    ) -> Result<u64, StoreError> {
        self.change(context, |tx| async move {
            let ended = end_all(&tx, user, except).await?;
            // Nor does anything that was begun in one of them go on.
            spend_all(&tx, user, None).await?;
            let facts = json!({ "sessions": ended });
            Ok(about(ended, Action::SessionsEnded, user, facts))
        })
        .await
    }

    /// Writes when sessions were last seen. Returns of how many.
    pub async fn flush_seen(&self) -> Result<u64, StoreError> {
        self.store.flush_seen().await
    }
}
