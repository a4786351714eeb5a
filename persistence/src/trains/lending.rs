//! Which account a train resolves to, decided in memory.
//!
//! All credentials of a publisher's trains are cached opened, as one snapshot, and trusted as long
//! as the publisher's tokens are (see [`crate::store::freshness`]): a change of a train or an
//! account invalidates the snapshot before the call that made the change returns, and in other
//! processes within one second. Reports of gateways (cooldowns, usage) are cached beside the
//! snapshot and outlive it, since they change often and do not affect access. If the database does
//! not answer, that is an error; an older snapshot is never used.

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

use crate::{
    store::{
        Scoped, Store,
        error::{Result, StoreError},
        freshness::Cell,
        plane_state::PlaneState,
        scope::Scope,
    },
    trains::Trains,
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

/// Most bytes of cached snapshots. Beyond it, those that are used least are dropped.
const KEPT_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes that a publisher takes besides its snapshot.
const TENANT_BYTES: u32 = 512;

/// The cached pools of all publishers.
pub(crate) struct PoolCache {
    tenants: Cache<Uuid, Arc<Tenant>>,
    usage: Pending,
    cooldowns_polled_ms: AtomicI64,
    /// Whether anything was ever read here. The cache's own count is an estimate, and may stay zero
    /// for any time.
    used: AtomicBool,
}

impl PoolCache {
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
        // Set before anything is read: a reader that does not see it began before.
        if !self.used.load(Ordering::SeqCst) {
            self.used.store(true, Ordering::SeqCst);
        }
        self.tenants
            .get_with(publisher, || Arc::new(Tenant::new(publisher)))
    }
}

impl PlaneState for PoolCache {
    fn time_was_set(&self) {
        self.tenants.invalidate_all();
    }
}

/// The cached pools of one publisher, and its gateways' reports.
struct Tenant {
    publisher: Uuid,
    bytes: AtomicU32,
    loaded: RwLock<Option<Loaded>>,
    /// Held during a load, so that there is one at a time.
    loading: tokio::sync::Mutex<()>,
    /// How many loads have begun.
    begun: AtomicU64,
    cooldowns: RwLock<Cooldowns>,
    used: Mutex<HashMap<Uuid, Used>>,
    used_read_ms: AtomicI64,
}

/// A snapshot, valid while its cell is not stale.
#[derive(Clone)]
struct Loaded {
    snapshot: Arc<Snapshot>,
    cell: Arc<Cell>,
    /// The number of the load that read it.
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

/// All trains and opened accounts of a publisher, as read at one time.
struct Snapshot {
    trains: HashMap<Uuid, Train>,
    /// Whether any account has ceilings, so that usage matters.
    has_ceilings: bool,
}

struct Train {
    slug: String,
    enabled: bool,
    sticky: bool,
    /// When the publisher was last told that the train is exhausted.
    told_ms: AtomicI64,
    accounts: Vec<(u16, Arc<ResolvedAccount>)>,
}

/// An account with its opened credential. `Debug` does not show the credential, which is wiped when
/// it is dropped.
#[derive(Debug)]
pub struct ResolvedAccount {
    /// The account's identifier.
    pub id: AccountId,
    /// The provider.
    pub provider: String,
    /// The base URL for requests.
    pub base_url: String,
    /// The header that carries the credential.
    pub header: UpstreamHeader,
    /// The header's value.
    pub value: SecretString,
    /// When the access token expires.
    pub expires_at: Option<Timestamp>,
    /// Whether the credential is a token that can be refreshed.
    pub is_oauth: bool,
    enabled: bool,
    /// Whether the credential works, or can be refreshed.
    healthy: bool,
    refreshed_at: Option<Timestamp>,
    ceilings: Ceilings,
}

impl ResolvedAccount {
    /// Whether the access token has expired, or is about to.
    #[must_use]
    pub fn expires_soon(&self, now: Timestamp) -> bool {
        self.expires_at
            .is_some_and(|at| at <= now.plus(EXPIRES_SOON))
    }
}

/// Which accounts a caller can use: those of the upstream to which it sends requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upstream<'a> {
    /// The provider; `None` for any.
    pub provider: Option<&'a str>,
    /// The base URL, without a slash at the end; `None` for any.
    pub base_url: Option<&'a str>,
}

impl Upstream<'_> {
    fn takes(&self, account: &ResolvedAccount) -> bool {
        self.provider.is_none_or(|name| name == account.provider)
            && self.base_url.is_none_or(|url| url == account.base_url)
    }
}

/// To how many upstreams accounts belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstreams {
    /// There is no account.
    None,
    /// All accounts have the same base URL.
    One,
    /// The accounts' base URLs differ.
    Several,
}

/// Which account of a train a caller wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccountCriteria<'a> {
    /// The upstream that the caller can use.
    pub upstream: Upstream<'a>,
    /// The model that the caller will use.
    pub model: Option<&'a str>,
    /// Accounts that the caller does not want.
    pub exclude: &'a [AccountId],
    /// The client that the caller names, for sticky trains.
    pub client: Option<&'a str>,
    /// Accounts whose tokens the caller has already tried to refresh.
    pub tried: &'a [AccountId],
}

/// No account of a train is usable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exhausted {
    /// For each account, in order of priority, why it is not usable.
    pub accounts: Vec<(AccountId, Unavailable)>,
}

impl Exhausted {
    /// When the first account is usable again; `None` if none will be by itself.
    #[must_use]
    pub fn available_at(&self) -> Option<Timestamp> {
        first_return(self.accounts.iter().map(|(_, out)| *out))
    }

    /// Whether the train is exhausted for every caller: no account was left out because this caller
    /// excluded it.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.accounts
            .iter()
            .all(|(_, out)| *out != Unavailable::Excluded)
    }
}

/// A train's accounts and their state, from which a request is resolved.
pub struct CredentialPool {
    tenant: Arc<Tenant>,
    snapshot: Arc<Snapshot>,
    train: Uuid,
}

impl CredentialPool {
    /// Exists: a `CredentialPool` is only made of a snapshot with the train.
    fn train(&self) -> &Train {
        &self.snapshot.trains[&self.train]
    }

    /// The train's slug.
    #[must_use]
    pub fn slug(&self) -> &str {
        &self.train().slug
    }

    /// Whether the train lends its accounts.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.train().enabled
    }

    /// To how many upstreams those accounts belong that the caller can use, whether or not they are
    /// usable now.
    #[must_use]
    pub fn upstreams(&self, of: &Upstream<'_>) -> Upstreams {
        let accounts = self.train().accounts.iter();
        let mut urls = accounts
            .filter(|(_, account)| of.takes(account))
            .map(|(_, account)| account.base_url.as_str());
        let Some(first) = urls.next() else {
            return Upstreams::None;
        };
        if urls.all(|url| url == first) {
            Upstreams::One
        } else {
            Upstreams::Several
        }
    }

    /// The train's account with this identifier.
    fn account(&self, id: AccountId) -> Option<&Arc<ResolvedAccount>> {
        let mut accounts = self.train().accounts.iter();
        accounts.find_map(|(_, account)| (account.id == id).then_some(account))
    }

    /// The account to use now.
    ///
    /// # Errors
    /// [`Exhausted`] if no account is usable.
    pub fn choose(
        &self,
        criteria: &AccountCriteria<'_>,
        now: Timestamp,
    ) -> Result<Arc<ResolvedAccount>, Exhausted> {
        let train = self.train();
        let candidates = self.candidates(criteria);
        let client = criteria.client.filter(|_| train.sticky);
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

    fn candidates(&self, criteria: &AccountCriteria<'_>) -> Vec<Candidate> {
        let cooldowns = self.tenant.cooldowns();
        let accounts = self.train().accounts.iter();
        accounts
            .filter(|(_, account)| criteria.upstream.takes(account))
            .map(|(priority, account)| Candidate {
                account: account.id,
                priority: *priority,
                enabled: account.enabled,
                healthy: account.healthy,
                expires_at: account.expires_at,
                resting_until: cooldowns.until(
                    account.id.uuid(),
                    account.refreshed_at,
                    criteria.model,
                ),
                near_ceiling: self.is_near_ceiling(account),
                excluded: criteria.exclude.contains(&account.id),
                renewable: account.is_oauth && !criteria.tried.contains(&account.id),
            })
            .collect()
    }

    fn is_near_ceiling(&self, account: &ResolvedAccount) -> bool {
        account.ceilings != Ceilings::default()
            && self
                .tenant
                .used()
                .get(&account.id.uuid())
                .copied()
                .unwrap_or_default()
                .is_near(&account.ceilings)
    }

    /// Whether it is time to tell the publisher that the train is exhausted. If so, the next call
    /// returns `false` for a while.
    #[must_use]
    pub fn claim_exhausted_notice(&self, now: Timestamp) -> bool {
        let told = &self.train().told_ms;
        let last = told.load(Ordering::Relaxed);
        let every = i64::try_from(EXHAUSTED_EVERY.as_millis()).unwrap_or(i64::MAX);
        now.ms() - last >= every
            && told
                .compare_exchange(last, now.ms(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Trains<Scoped> {
    /// The credential pool of a train; `None` if the train does not exist.
    pub async fn credential_pool(
        &self,
        train: TrainId,
    ) -> Result<Option<CredentialPool>, StoreError> {
        let (tenant, mut snapshot) = self.store.pool_snapshot(&self.scope).await?;
        let train = train.uuid();
        if !snapshot.trains.contains_key(&train) {
            // The train may have been created meanwhile by another process: its token was read from
            // the database.
            snapshot = self.store.load(&self.scope, &tenant).await?;
        }
        Ok(snapshot
            .trains
            .contains_key(&train)
            .then(|| CredentialPool {
                tenant,
                snapshot,
                train,
            }))
    }
}

impl Store {
    /// The snapshot of a publisher: the cached one if it can be trusted, or else one from the
    /// database.
    async fn pool_snapshot(&self, scope: &Scope) -> Result<(Arc<Tenant>, Arc<Snapshot>)> {
        let tenant = self.state::<PoolCache>().tenant(scope.uuid());
        let kept = self.inner.freshness.trusted(self.now());
        let snapshot = match tenant.fresh().filter(|_| kept) {
            Some(snapshot) => snapshot,
            None => self.load(scope, &tenant).await?,
        };
        self.renew_usage(&tenant, &snapshot);
        Ok((tenant, snapshot))
    }

    /// Reads a snapshot, or waits for one whose load began after this call.
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
        // Inserting it again updates its weight.
        let bytes = bytes.saturating_add(TENANT_BYTES);
        if tenant.bytes.swap(bytes, Ordering::Relaxed) != bytes {
            let tenants = &self.state::<PoolCache>().tenants;
            tenants.insert(tenant.publisher, Arc::clone(tenant));
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests;
