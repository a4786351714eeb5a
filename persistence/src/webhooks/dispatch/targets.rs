//! Delivery targets: endpoints as the dispatcher needs them, with opened secrets.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use domain::{Timestamp, credential::CredentialKind, id::Id as _, retry::Schedule};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait as _, EntityTrait as _, FromQueryResult, QueryFilter as _,
    QueryOrder as _,
};
use secrecy::SecretString;
use uuid::Uuid;

use super::values::rows_of;
use crate::{
    publishers::credentials::{live_at, open_secret},
    store::{
        Store, System,
        effects::EndpointKey,
        entity::credentials,
        error::{Result, StoreError, corrupt_row},
        plane_state::PlaneState,
        sql::Sql,
        unreadable,
    },
    webhooks::Webhooks,
    webhooks::{endpoint_secrets::OwnSecrets, listeners::check_filters},
};

/// Most publishers whose opened secrets are cached.
const CACHED_PUBLISHERS: usize = 10_000;

/// An endpoint that may be sent to.
#[derive(Clone, Debug)]
pub struct DeliveryTarget {
    /// The URL of the receiver.
    pub url: String,
    /// The endpoint's own headers.
    pub headers: BTreeMap<String, String>,
    /// The newest live bearer, if the endpoint wants one and there is one.
    pub bearer: Option<SecretString>,
    /// All live signing secrets, newest first: the endpoint's own if it has any, or else the
    /// publisher's.
    pub secrets: Vec<SecretString>,
    /// Whether deliveries are sent one after the other, in the order of their events.
    pub ordered: bool,
    /// Most deliveries a second.
    pub rate_limit_per_second: Option<u32>,
    /// The waits between attempts, if the endpoint has its own.
    pub retry_schedule: Option<Schedule>,
    /// Most deliveries in flight, if the endpoint has its own limit.
    pub max_in_flight: Option<u32>,
    /// Whether a part of the endpoint, or one of its secrets, cannot be read. Then nothing can be
    /// sent.
    pub unreadable: bool,
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
    event_types: String,
    pipelines: Option<String>,
}

/// A publisher's live secrets.
#[derive(Clone, Default)]
pub(crate) struct Secrets {
    /// The signing secrets, newest first.
    pub(crate) signing: Vec<SecretString>,
    /// The newest bearer.
    pub(crate) bearer: Option<SecretString>,
    /// When the first of the secrets expires.
    until: Option<Timestamp>,
    /// Whether a signing secret, and whether a bearer, cannot be opened.
    unreadable: (bool, bool),
}

/// Opened secrets by publisher. An entry is invalidated together with the publisher's cached
/// tokens: at once in the process that changes a credential, within moments in the others.
#[derive(Default)]
pub(crate) struct SecretCache {
    entries: Mutex<HashMap<Uuid, Arc<Secrets>>>,
    /// Counts invalidations. Secrets that were read before one are not cached after it.
    generation: AtomicU64,
}

impl SecretCache {
    fn entries(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Secrets>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, publisher: Uuid, now: Timestamp) -> Option<Arc<Secrets>> {
        let found = self.entries().get(&publisher).cloned()?;
        let holds = found.until.is_none_or(|until| until > now);
        holds.then_some(found)
    }

    fn keep(&self, publisher: Uuid, opened: &Arc<Secrets>, generation: u64) {
        let mut entries = self.entries();
        if self.generation.load(Ordering::SeqCst) != generation {
            return;
        }
        if entries.len() >= CACHED_PUBLISHERS {
            entries.clear();
        }
        entries.insert(publisher, Arc::clone(opened));
    }
}

impl PlaneState for SecretCache {
    fn forget(&self, publisher: Uuid) {
        let mut entries = self.entries();
        self.generation.fetch_add(1, Ordering::SeqCst);
        entries.remove(&publisher);
    }

    fn forget_all(&self) {
        let mut entries = self.entries();
        self.generation.fetch_add(1, Ordering::SeqCst);
        entries.clear();
    }
}

fn report(key: EndpointKey, error: &StoreError) {
    let (publisher, endpoint) = (key.publisher.uuid(), key.endpoint.uuid());
    unreadable::report("endpoint", publisher, endpoint, error);
}

impl DeliveryTarget {
    /// A target whose row cannot be read.
    fn unreadable(ordered: bool) -> Self {
        Self {
            url: String::new(),
            headers: BTreeMap::new(),
            bearer: None,
            secrets: Vec::new(),
            ordered,
            rate_limit_per_second: None,
            retry_schedule: None,
            max_in_flight: None,
            unreadable: true,
        }
    }
}

impl Row {
    fn is_live(&self) -> bool {
        self.enabled && self.deleted_at.is_none() && self.status == "active"
    }

    /// The target of this row. If the endpoint has secrets of its own, only those sign.
    fn target(self, secrets: &Secrets, own: Option<OwnSecrets>) -> Result<DeliveryTarget> {
        let limit = |number: Option<i32>| number.and_then(|some| u32::try_from(some).ok());
        let schedule = self.retry_schedule.as_deref().map(Schedule::parse);
        check_filters(&self.event_types, self.pipelines.as_deref())?;
        let (signing, bearer) = secrets.unreadable;
        let signing = own.as_ref().map_or(signing, |own| own.unreadable);
        Ok(DeliveryTarget {
            url: self.url,
            headers: serde_json::from_str(&self.headers)
                .map_err(|_| corrupt_row("map of headers"))?,
            bearer: secrets.bearer.clone().filter(|_| self.send_bearer),
            secrets: own.map_or_else(|| secrets.signing.clone(), |own| own.signing),
            ordered: self.ordered,
            rate_limit_per_second: limit(self.rate_limit_per_second),
            retry_schedule: schedule
                .transpose()
                .map_err(|_| corrupt_row("schedule of retries"))?,
            max_in_flight: limit(self.max_in_flight),
            unreadable: signing || (self.send_bearer && bearer),
        })
    }
}

impl Webhooks<System> {
    /// The targets of these endpoints. Endpoints that may not be sent to are left out: those that
    /// are disabled or deleted, and those of a publisher that is not active or whose keys cannot be
    /// opened. An endpoint that cannot be read is returned and marked as unreadable.
    pub async fn targets(
        &self,
        keys: &[EndpointKey],
    ) -> Result<HashMap<EndpointKey, Arc<DeliveryTarget>>, StoreError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut sql = Sql::new(
            "SELECT e.publisher_id, e.id AS endpoint_id, e.url, e.headers, e.send_bearer, \
             e.enabled, e.deleted_at, p.status, e.ordered, e.rate_limit_per_second, \
             e.retry_schedule, e.max_in_flight, e.event_types, e.pipelines \
             FROM webhook_endpoints e JOIN publishers p ON p.id = e.publisher_id \
             WHERE (e.publisher_id, e.id) IN (",
        );
        sql.values(rows_of(keys)).push(")");
        let statement = sql.statement(self.store.backend());
        let found = self.store.read().query_all_raw(statement).await?;
        let mut targets = HashMap::with_capacity(found.len());
        let mut rows = Vec::with_capacity(found.len());
        for row in &found {
            match Row::from_query_result(row, "") {
                Ok(row) => rows.push(row),
                Err(error) => {
                    let key = EndpointKey::of_row(row)?;
                    report(key, &error.into());
                    targets.insert(key, Arc::new(DeliveryTarget::unreadable(false)));
                }
            }
        }
        rows.retain(Row::is_live);
        let secrets = self.secrets_of(&rows).await?;
        let of_rows = rows.iter().map(|row| (row.publisher_id, row.endpoint_id));
        let mut own = self.own_secrets(of_rows.collect()).await?;
        for row in rows {
            let (publisher, endpoint) = (row.publisher_id, row.endpoint_id);
            let key = EndpointKey::of_uuids(publisher, endpoint);
            if let Some(secrets) = secrets.get(&publisher) {
                let own = own.remove(&(publisher, endpoint));
                let ordered = row.ordered;
                let target = row.target(secrets, own).unwrap_or_else(|error| {
                    report(key, &error);
                    DeliveryTarget::unreadable(ordered)
                });
                targets.insert(key, Arc::new(target));
            }
        }
        Ok(targets)
    }

    /// The live secrets of all these endpoints' publishers. If the secrets of one cannot be opened,
    /// the others are still returned.
    async fn secrets_of(&self, rows: &[Row]) -> Result<HashMap<Uuid, Arc<Secrets>>> {
        let (now, cache) = (self.store.now(), self.store.state::<SecretCache>());
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
            match self.store.open_secrets(owner, own).await {
                Ok(secrets) => {
                    let opened = Arc::new(secrets);
                    cache.keep(owner, &opened, generation);
                    all.insert(owner, opened);
                }
                Err(error) if error.may_pass() => return Err(error),
                // Deliveries wait, since the operator may have to provide a master key first.
                Err(error) => unreadable::report("owner_keys", owner, owner, &error),
            }
        }
        Ok(all)
    }
}

impl Store {
    /// The live secrets of one publisher, opened.
    pub(crate) async fn secrets_of(&self, owner: Uuid) -> Result<Secrets> {
        let rows = self.live_secrets(&[owner]).await?;
        let secrets = self.open_secrets(owner, rows.iter()).await?;
        if secrets.unreadable.0 || secrets.unreadable.1 {
            return Err(corrupt_row("secret"));
        }
        Ok(secrets)
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
            let signs = row.kind == CredentialKind::WebhookSigning.as_str();
            let secret = match open_secret(&keys.data, row) {
                Ok(secret) => secret,
                Err(error) => {
                    unreadable::report("credential", owner, row.id, &error);
                    secrets.unreadable.0 |= signs;
                    secrets.unreadable.1 |= !signs;
                    continue;
                }
            };
            if signs {
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
