//! Where deliveries go and how: an endpoint as the dispatcher sees it, with its secrets opened.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use domain::{Timestamp, credential::CredentialKind, id::PublisherId, retry::Schedule};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, FromQueryResult, QueryFilter as _, QueryOrder as _,
};
use secrecy::SecretString;
use uuid::Uuid;

use super::{EndpointKey, rows_of};
use crate::{
    Store,
    credentials::{live_at, open_secret},
    endpoint_secrets::OwnSecrets,
    entity::credentials,
    error::{Result, StoreError, damaged},
    scope::System,
    sql::Sql,
};

/// Most publishers whose secrets are kept opened.
const CACHED_PUBLISHERS: usize = 10_000;

/// An endpoint that may be sent to.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where it is.
    pub url: String,
    /// Its own headers.
    pub headers: BTreeMap<String, String>,
    /// The newest live bearer, if it asks for one and there is one.
    pub bearer: Option<SecretString>,
    /// All live secrets that sign, newest first: the endpoint's own, if it has some, else its
    /// publisher's.
    pub secrets: Vec<SecretString>,
    /// Whether deliveries go out one after the other, in the order of their events.
    pub ordered: bool,
    /// Most deliveries a second.
    pub rate_limit_per_second: Option<u32>,
    /// Waits between tries, if it has its own.
    pub retry_schedule: Option<Schedule>,
    /// Most deliveries under way, if it has its own limit.
    pub max_in_flight: Option<u32>,
}

#[derive(FromQueryResult)]
struct Row {
    publisher_id: Uuid,
    endpoint_id: Uuid,
    url: String,
    headers: String,
    send_bearer: bool,
    enabled: bool,
    deleted_at: Option<i64>,
    status: String,
    ordered: bool,
    rate_limit_per_second: Option<i32>,
    retry_schedule: Option<String>,
    max_in_flight: Option<i32>,
}

/// A publisher's live secrets.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    /// Those that sign, newest first.
    pub(crate) signing: Vec<SecretString>,
    /// The newest bearer.
    pub(crate) bearer: Option<SecretString>,
    /// When the first of them expires.
    until: Option<Timestamp>,
}

/// Nothing where they do not open.
type Opened = Option<Arc<Secrets>>;

/// Opened secrets by publisher. An entry dies with the publisher's cached tokens: at once in the
/// process that changes a credential, within moments in the others.
#[derive(Default)]
pub(crate) struct SecretCache {
    entries: Mutex<HashMap<Uuid, Opened>>,
    /// Counts invalidations; what was read before one is not kept after it.
    generation: AtomicU64,
}

impl SecretCache {
    fn entries(&self) -> MutexGuard<'_, HashMap<Uuid, Opened>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn invalidate(&self, publisher: Uuid) {
        let mut entries = self.entries();
        self.generation.fetch_add(1, Ordering::SeqCst);
        entries.remove(&publisher);
    }

    pub(crate) fn invalidate_all(&self) {
        let mut entries = self.entries();
        self.generation.fetch_add(1, Ordering::SeqCst);
        entries.clear();
    }

    fn get(&self, publisher: Uuid, now: Timestamp) -> Option<Opened> {
        let found = self.entries().get(&publisher).cloned()?;
        let holds = found
            .as_ref()
            .is_none_or(|secrets| secrets.until.is_none_or(|until| until > now));
        holds.then_some(found)
    }

    fn keep(&self, publisher: Uuid, opened: &Opened, generation: u64) {
        let mut entries = self.entries();
        if self.generation.load(Ordering::SeqCst) != generation {
            return;
        }
        if entries.len() >= CACHED_PUBLISHERS {
            entries.clear();
        }
        entries.insert(publisher, opened.clone());
    }
}

impl Row {
    fn is_live(&self) -> bool {
        self.enabled && self.deleted_at.is_none() && self.status == "active"
    }

    /// An endpoint that has secrets of its own is signed for by those alone.
    fn target(self, secrets: &Secrets, own: Option<OwnSecrets>) -> Result<Target> {
        let limit = |number: Option<i32>| number.and_then(|some| u32::try_from(some).ok());
        let schedule = self.retry_schedule.as_deref().map(Schedule::parse);
        Ok(Target {
            url: self.url,
            headers: serde_json::from_str(&self.headers).map_err(|_| damaged("map of headers"))?,
            bearer: secrets.bearer.clone().filter(|_| self.send_bearer),
            secrets: own.map_or_else(|| secrets.signing.clone(), |own| own.signing),
            ordered: self.ordered,
            rate_limit_per_second: limit(self.rate_limit_per_second),
            retry_schedule: schedule
                .transpose()
                .map_err(|_| damaged("schedule of retries"))?,
            max_in_flight: limit(self.max_in_flight),
        })
    }
}

impl System {
    /// The endpoints as they stand; those that may not be sent to are left out: disabled, deleted,
    /// of a publisher that is not active, or whose secrets do not open.
    pub async fn targets(
        &self,
        keys: &[EndpointKey],
    ) -> Result<HashMap<EndpointKey, Arc<Target>>, StoreError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut sql = Sql::new(
            "SELECT e.publisher_id, e.id AS endpoint_id, e.url, e.headers, e.send_bearer, \
             e.enabled, e.deleted_at, p.status, e.ordered, e.rate_limit_per_second, \
             e.retry_schedule, e.max_in_flight \
             FROM webhook_endpoints e JOIN publishers p ON p.id = e.publisher_id \
             WHERE (e.publisher_id, e.id) IN (",
        );
        sql.values(rows_of(keys)).push(")");
        let statement = sql.statement(self.store.backend());
        let mut rows = Row::find_by_statement(statement)
            .all(self.store.read())
            .await?;
        rows.retain(Row::is_live);
        let secrets = self.secrets_of(&rows).await?;
        let of_rows = rows.iter().map(|row| (row.publisher_id, row.endpoint_id));
        let mut own = self.own_secrets(of_rows.collect()).await?;
        let mut targets = HashMap::with_capacity(rows.len());
        for row in rows {
            let (publisher, endpoint) = (row.publisher_id, row.endpoint_id);
            let key = EndpointKey::of_uuids(publisher, endpoint);
            if let Some(Some(secrets)) = secrets.get(&publisher) {
                let own = own.remove(&(publisher, endpoint));
                targets.insert(key, Arc::new(row.target(secrets, own)?));
            }
        }
        Ok(targets)
    }

    /// The live secrets of all these endpoints' publishers. One whose secrets do not open does
    /// not hold up the others.
    async fn secrets_of(&self, rows: &[Row]) -> Result<HashMap<Uuid, Opened>> {
        let (now, cache) = (self.store.now(), &self.store.inner.secrets);
        let trusted = self.store.inner.freshness.trusted(now);
        let mut all = HashMap::new();
        let mut missing = Vec::new();
        for row in rows {
            let owner = row.publisher_id;
            if all.contains_key(&owner) || missing.contains(&owner) {
                continue;
            }
            match cache.get(owner, now).filter(|_| trusted) {
                Some(opened) => {
                    all.insert(owner, opened);
                }
                None => missing.push(owner),
            }
        }
        if missing.is_empty() {
            return Ok(all);
        }
        let generation = cache.generation.load(Ordering::SeqCst);
        let found = self.store.live_secrets(&missing).await?;
        for owner in missing {
            let own = found.iter().filter(|row| row.publisher_id == owner);
            let opened = match self.store.open_secrets(owner, own).await {
                Ok(secrets) => Some(Arc::new(secrets)),
                Err(error @ StoreError::Unavailable(_)) => return Err(error),
                Err(error) => {
                    let publisher = <PublisherId as domain::id::Id>::from_uuid(owner);
                    tracing::error!(%publisher, %error, "a publisher's deliveries wait: its secrets do not open");
                    None
                }
            };
            cache.keep(owner, &opened, generation);
            all.insert(owner, opened);
        }
        Ok(all)
    }
}

impl Store {
    /// The live secrets of one publisher, opened.
    pub(crate) async fn secrets_of(&self, owner: Uuid) -> Result<Secrets> {
        let rows = self.live_secrets(&[owner]).await?;
        self.open_secrets(owner, rows.iter()).await
    }

    /// The sealed secrets of publishers that are live now, newest first.
    async fn live_secrets(&self, owners: &[Uuid]) -> Result<Vec<credentials::Model>> {
        let kinds = [
            CredentialKind::WebhookSigning,
            CredentialKind::SubcommandBearer,
        ];
        Ok(credentials::Entity::find()
            .filter(credentials::Column::PublisherId.is_in(owners.iter().copied()))
            .filter(credentials::Column::Kind.is_in(kinds.map(CredentialKind::as_str)))
            .filter(live_at(self.now()))
            .order_by_desc(credentials::Column::Id)
            .all(self.read())
            .await?)
    }

    async fn open_secrets(
        &self,
        owner: Uuid,
        rows: impl Iterator<Item = &credentials::Model> + Send,
    ) -> Result<Secrets> {
        let keys = self.inner.keys.of(self.read(), owner).await?;
        let mut secrets = Secrets::default();
        for row in rows {
            let secret = open_secret(&keys.data, row)?;
            if row.kind == CredentialKind::WebhookSigning.as_str() {
                secrets.signing.push(secret);
            } else if secrets.bearer.is_none() {
                secrets.bearer = Some(secret);
            } else {
                continue;
            }
            let expires = row.expires_at.map(Timestamp::from_ms);
            secrets.until = secrets.until.into_iter().chain(expires).min();
        }
        Ok(secrets)
    }
}
