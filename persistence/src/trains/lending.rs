//! Which account a train lends, answered from memory.
//!
//! All that a publisher's trains lend is kept opened, as one snapshot, and believed exactly as
//! long as its tokens are (see [`crate::store::freshness`]): a change of its trains or accounts kills it
//! before the call that made the change returns, and elsewhere within one second. What gateways
//! report (cooldowns, use) is kept beside the snapshot and outlives it: it changes often, and is no
//! question of access. A store that does not answer is an error, never an older snapshot.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering},
    },
};

use domain::{
    Timestamp,
    account::{Ceilings, UpstreamHeader},
    id::{AccountId, Id as _, TrainId},
    lending::{Candidate, EXHAUSTED_EVERY, EXPIRES_SOON, Unavailable, Used, choose, first_return},
};
use moka::sync::Cache;
use secrecy::SecretString;
use uuid::Uuid;

use crate::store::{
    Scoped, Store,
    error::{Result, StoreError},
    freshness::Cell,
    plane_state::PlaneState,
    scope::Scope,
};

mod cooldowns;
mod exhausted;
mod load;
mod pending;
pub(crate) mod reports;
pub(crate) mod shown;
mod usage;

use cooldowns::Cooldowns;
use pending::Pending;

/// Most memory for what trains lend, bytes; beyond it, what is asked for least goes.
const KEPT_BYTES: u64 = 64 * 1024 * 1024;
/// What a publisher takes beside its snapshot, bytes.
const TENANT_BYTES: u32 = 512;

/// What this process keeps of all publishers.
pub(crate) struct Lending {
    tenants: Cache<Uuid, Arc<Tenant>>,
    usage: Pending,
    cooldowns_polled_ms: AtomicI64,
    /// Whether anything was ever asked for here. The cache's own count is an estimate, which may
    /// be none for as long as it likes.
    used: AtomicBool,
}

impl Lending {
    pub(crate) fn new() -> Self {
        Self {
            tenants: Cache::builder()
                .max_capacity(KEPT_BYTES)
                .weigher(|_, tenant: &Arc<Tenant>| tenant.bytes.load(Ordering::Relaxed))
                .build(),
            usage: Pending::default(),
            cooldowns_polled_ms: AtomicI64::new(0),
            used: AtomicBool::new(false),
        }
    }

    fn tenant(&self, publisher: Uuid) -> Arc<Tenant> {
        // Before anything is read: a look that misses this began before it.
        if !self.used.load(Ordering::SeqCst) {
            self.used.store(true, Ordering::SeqCst);
        }
        self.tenants
            .get_with(publisher, || Arc::new(Tenant::new(publisher)))
    }
}

impl PlaneState for Lending {
    fn time_was_set(&self) {
        self.tenants.invalidate_all();
    }
}

/// What this process keeps of one publisher.
struct Tenant {
    publisher: Uuid,
    bytes: AtomicU32,
    loaded: RwLock<Option<Loaded>>,
    /// One load at a time.
    loading: tokio::sync::Mutex<()>,
    /// How many loads have begun.
    begun: AtomicU64,
    cooldowns: RwLock<Cooldowns>,
    used: Mutex<HashMap<Uuid, Used>>,
    used_read_ms: AtomicI64,
}

/// A snapshot, for as long as its cell is not stale.
#[derive(Clone)]
struct Loaded {
    snapshot: Arc<Snapshot>,
    cell: Arc<Cell>,
    /// Which load it is of.
    number: u64,
}

impl Tenant {
    fn new(publisher: Uuid) -> Self {
        Self {
            publisher,
            bytes: AtomicU32::new(TENANT_BYTES),
            loaded: RwLock::default(),
            loading: tokio::sync::Mutex::default(),
            begun: AtomicU64::new(0),
            cooldowns: RwLock::default(),
            used: Mutex::default(),
            used_read_ms: AtomicI64::new(0),
        }
    }

    fn loaded(&self) -> Option<Loaded> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.clone()
    }

    fn fresh(&self) -> Option<Arc<Snapshot>> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.as_ref().filter(|loaded| !loaded.cell.is_stale())?;
        Some(Arc::clone(&loaded.snapshot))
    }

    fn cooldowns(&self) -> RwLockReadGuard<'_, Cooldowns> {
        self.cooldowns
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn cooldowns_mut(&self) -> RwLockWriteGuard<'_, Cooldowns> {
        self.cooldowns
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> std::sync::MutexGuard<'_, HashMap<Uuid, Used>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that a publisher's trains lend, as of one reading.
struct Snapshot {
    trains: HashMap<Uuid, Train>,
    /// Whether the use of any account counts.
    has_ceilings: bool,
}

struct Train {
    slug: String,
    enabled: bool,
    sticky: bool,
    /// When its publisher was last told that it is exhausted.
    told_ms: AtomicI64,
    accounts: Vec<(u16, Arc<Lent>)>,
}

/// An account as it is lent. Its credential does not show in `Debug` and is wiped when dropped.
#[derive(Debug)]
pub struct Lent {
    /// Which one.
    pub id: AccountId,
    /// Whose credential it is.
    pub provider: String,
    /// Where requests go.
    pub base_url: String,
    /// The header that carries the credential.
    pub header: UpstreamHeader,
    /// The header's value.
    pub value: SecretString,
    /// When the access token expires.
    pub expires_at: Option<Timestamp>,
    /// Whether it holds tokens that can be refreshed.
    pub is_oauth: bool,
    enabled: bool,
    /// Whether it can be refreshed, if it has to be.
    healthy: bool,
    refreshed_at: Option<Timestamp>,
    ceilings: Ceilings,
}

impl Lent {
    /// Whether its access token is expired, or nearly.
    #[must_use]
    pub fn expires_soon(&self, now: Timestamp) -> bool {
        self.expires_at
            .is_some_and(|at| at <= now.plus(EXPIRES_SOON))
    }
}

/// Which accounts a caller can use at all: those of the upstream to which it sends requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upstream<'a> {
    /// Whose credential it has to be.
    pub provider: Option<&'a str>,
    /// Where requests go, without a slash at the end.
    pub base_url: Option<&'a str>,
}

impl Upstream<'_> {
    fn takes(&self, lent: &Lent) -> bool {
        self.provider.is_none_or(|name| name == lent.provider)
            && self.base_url.is_none_or(|url| url == lent.base_url)
    }
}

/// To how many upstreams a train's accounts belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// There is no account.
    None,
    /// All have the same base URL.
    One,
    /// Their base URLs differ.
    Several,
}

/// What a caller asks of a train.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// The upstream that it can use.
    pub upstream: Upstream<'a>,
    /// The model that it will use.
    pub model: Option<&'a str>,
    /// Accounts that it does not want.
    pub exclude: &'a [AccountId],
    /// The client that it asks for.
    pub client: Option<&'a str>,
    /// Accounts whose tokens were tried to be replaced already.
    pub tried: &'a [AccountId],
}

/// No account of a train can be lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// Why not, for each in the order of its priority.
    pub accounts: Vec<(AccountId, Unavailable)>,
}

impl Exhausted {
    /// When the first account is back; `None` if none comes back by itself.
    #[must_use]
    pub fn available_at(&self) -> Option<Timestamp> {
        first_return(self.accounts.iter().map(|(_, out)| *out))
    }

    /// Whether the caller's own wishes have no part in it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.accounts
            .iter()
            .all(|(_, out)| *out != Unavailable::Excluded)
    }
}

/// A train, as it lends now.
pub struct LentBy {
    tenant: Arc<Tenant>,
    snapshot: Arc<Snapshot>,
    train: Uuid,
}

impl LentBy {
    /// There is one: whoever makes a `LentBy` has looked.
    fn train(&self) -> &Train {
        &self.snapshot.trains[&self.train]
    }

    /// Its name.
    #[must_use]
    pub fn slug(&self) -> &str {
        &self.train().slug
    }

    /// Whether it lends anything.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.train().enabled
    }

    /// To how many upstreams those of its accounts belong that the caller can use, whether or not
    /// they can be lent now.
    #[must_use]
    pub fn upstreams(&self, of: &Upstream<'_>) -> Upstreams {
        let accounts = self.train().accounts.iter();
        let mut urls = accounts
            .filter(|(_, lent)| of.takes(lent))
            .map(|(_, lent)| lent.base_url.as_str());
        let Some(first) = urls.next() else {
            return Upstreams::None;
        };
        if urls.all(|url| url == first) {
            Upstreams::One
        } else {
            Upstreams::Several
        }
    }

    /// Its account of that identifier.
    fn account(&self, id: AccountId) -> Option<&Arc<Lent>> {
        let mut accounts = self.train().accounts.iter();
        accounts.find_map(|(_, lent)| (lent.id == id).then_some(lent))
    }

    /// The account to use now.
    ///
    /// # Errors
    /// [`Exhausted`] when there is none.
    pub fn choose(&self, wish: &Wish<'_>, now: Timestamp) -> Result<Arc<Lent>, Exhausted> {
        let train = self.train();
        let candidates = self.candidates(wish);
        let client = wish.client.filter(|_| train.sticky);
        choose(&candidates, now, client)
            .and_then(|id| self.account(id))
            .cloned()
            .ok_or_else(|| {
                let out = |one: &Candidate| Some((one.account, one.out(now)?));
                Exhausted {
                    accounts: candidates.iter().filter_map(out).collect(),
                }
            })
    }

    fn candidates(&self, wish: &Wish<'_>) -> Vec<Candidate> {
        let cooldowns = self.tenant.cooldowns();
        let accounts = self.train().accounts.iter();
        accounts
            .filter(|(_, lent)| wish.upstream.takes(lent))
            .map(|(priority, lent)| Candidate {
                account: lent.id,
                priority: *priority,
                enabled: lent.enabled,
                healthy: lent.healthy,
                expires_at: lent.expires_at,
                resting_until: cooldowns.until(lent.id.uuid(), lent.refreshed_at, wish.model),
                near_ceiling: self.is_near_ceiling(lent),
                excluded: wish.exclude.contains(&lent.id),
                renewable: lent.is_oauth && !wish.tried.contains(&lent.id),
            })
            .collect()
    }

    fn is_near_ceiling(&self, lent: &Lent) -> bool {
        lent.ceilings != Ceilings::default()
            && self
                .tenant
                .used()
                .get(&lent.id.uuid())
                .copied()
                .unwrap_or_default()
                .is_near(&lent.ceilings)
    }

    /// Whether it is time to tell that the train is exhausted; if so, it counts as told.
    #[must_use]
    pub fn is_news(&self, now: Timestamp) -> bool {
        let told = &self.train().told_ms;
        let last = told.load(Ordering::Relaxed);
        let every = i64::try_from(EXHAUSTED_EVERY.as_millis()).unwrap_or(i64::MAX);
        now.ms() - last >= every
            && told
                .compare_exchange(last, now.ms(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Scoped {
    /// A train as it lends now; `None` if there is no such train (any more).
    pub async fn lending(&self, train: TrainId) -> Result<Option<LentBy>, StoreError> {
        let (tenant, mut snapshot) = self.store.lent_by(&self.scope).await?;
        let train = train.uuid();
        if !snapshot.trains.contains_key(&train) {
            // Made since, maybe by another process: its token was read from the store.
            snapshot = self.store.load(&self.scope, &tenant).await?;
        }
        Ok(snapshot.trains.contains_key(&train).then(|| LentBy {
            tenant,
            snapshot,
            train,
        }))
    }
}

impl Store {
    /// What a publisher's trains lend: what is kept, if that can be believed, else from the store.
    async fn lent_by(&self, scope: &Scope) -> Result<(Arc<Tenant>, Arc<Snapshot>)> {
        let tenant = self.state::<Lending>().tenant(scope.uuid());
        let kept = self.inner.freshness.trusted(self.now());
        let snapshot = match tenant.fresh().filter(|_| kept) {
            Some(snapshot) => snapshot,
            None => self.load(scope, &tenant).await?,
        };
        self.renew_usage(&tenant, &snapshot);
        Ok((tenant, snapshot))
    }

    /// Reads a snapshot, or takes one whose reading began after this call did.
    async fn load(&self, scope: &Scope, tenant: &Arc<Tenant>) -> Result<Arc<Snapshot>> {
        let arrived = tenant.begun.load(Ordering::SeqCst);
        let _alone = tenant.loading.lock().await;
        if let Some(loaded) = tenant.loaded()
            && loaded.number > arrived
            && !loaded.cell.is_stale()
        {
            return Ok(loaded.snapshot);
        }
        let number = tenant.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let reading = self.inner.freshness.begin();
        let (snapshot, bytes) = self.read_snapshot(scope, tenant).await?;
        let snapshot = Arc::new(snapshot);
        reading.keep(scope.uuid(), |cell| {
            let loaded = Loaded {
                snapshot: Arc::clone(&snapshot),
                cell,
                number,
            };
            *tenant
                .loaded
                .write()
                .unwrap_or_else(PoisonError::into_inner) = Some(loaded);
        });
        // Put in again, it is weighed again.
        let bytes = bytes.saturating_add(TENANT_BYTES);
        if tenant.bytes.swap(bytes, Ordering::Relaxed) != bytes {
            let tenants = &self.state::<Lending>().tenants;
            tenants.insert(tenant.publisher, Arc::clone(tenant));
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests;
