//! Webhook endpoints: where a publisher's events go.

use std::collections::BTreeMap;

use domain::{
    Code, FaultCode, Problem, Timestamp,
    audit::Action,
    credential::Source,
    event::{Filter, OwnType},
    id::{EndpointId, Id as _, KeySetId, PublisherId},
    retry::Schedule,
    signature::Signing,
    slug::Slug,
};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, ConnectionTrait, EntityTrait as _,
    IntoActiveModel as _, PaginatorTrait as _, QueryFilter as _, QuerySelect as _, sea_query::Expr,
};
use serde_json::json;
use uuid::Uuid;

mod texts;

pub use texts::Sending;

use texts::Texts;

use crate::{
    runs::pipelines::check_known,
    store::{
        Scoped, Store,
        change::{Answer, AuditEntry, Audited, Context, Expected, audit_entry, check_revision},
        db::Tx,
        entity::{credentials, deliveries, webhook_endpoints},
        error::{Result, StoreError},
        page::{Page, PageRequest},
        quota::{over_quota, quotas_of},
        sql::padded,
        unreadable,
        walk::{Path, Span, Walk},
    },
    webhooks::Webhooks,
    webhooks::{
        endpoint_rows::{live, live_row, write_row},
        endpoint_secrets::{ensure_key_set_id, ensure_signing_key},
        events::{Event, emit_to},
        health::{Health, health_of},
        recovery::recover,
        replays::end_all_of,
    },
};

/// The reason for disabling an endpoint if its publisher did it.
const REQUESTED: &str = "requested";

/// A webhook destination with its filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The endpoint's identifier.
    pub id: EndpointId,
    /// The URL of the receiver.
    pub url: String,
    /// A description for people.
    pub description: Option<String>,
    /// `*`, `prefix.*` or types. An event of a matching type is delivered.
    pub event_types: Vec<String>,
    /// If set, only events of these pipelines are delivered.
    pub pipelines: Option<Vec<Slug>>,
    /// Further headers of every delivery.
    pub headers: BTreeMap<String, String>,
    /// Whether the endpoint gets deliveries.
    pub enabled: bool,
    /// Why the endpoint is disabled: `requested` if its publisher did it.
    pub disabled_reason: Option<String>,
    /// Whether deliveries carry the subcommand bearer.
    pub send_bearer: bool,
    /// The kind of signature of deliveries.
    pub signing: Signing,
    /// The identifier under which the public keys are served, if the endpoint ever had a key pair.
    pub key_set: Option<KeySetId>,
    /// The results of recent attempts.
    pub health: Health,
    /// Whether a stored part of the endpoint cannot be read. Then nothing is delivered to it.
    pub unreadable: bool,
    /// How deliveries are sent.
    pub sending: Sending,
    /// Increased with each change of this row.
    pub revision: i64,
    /// When the endpoint was created.
    pub created_at: Timestamp,
    /// When the endpoint last changed.
    pub updated_at: Timestamp,
}

/// What a caller gives for a new endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEndpoint {
    /// The URL of the receiver. The caller has checked that it is an allowed destination.
    pub url: String,
    /// A description for people.
    pub description: Option<String>,
    /// `*`, `prefix.*` or types. An event of a matching type is delivered.
    pub event_types: Vec<String>,
    /// If set, only events of these pipelines are delivered.
    pub pipelines: Option<Vec<Slug>>,
    /// Further headers of every delivery.
    pub headers: BTreeMap<String, String>,
    /// Whether the endpoint gets deliveries.
    pub enabled: bool,
    /// Whether deliveries carry the subcommand bearer. By default only those of a seeded publisher
    /// do.
    pub send_bearer: Option<bool>,
    /// The kind of signature of deliveries.
    pub signing: Signing,
    /// How deliveries are sent.
    pub sending: Sending,
}

/// Changes of an endpoint. `None` keeps a member, `Some(None)` empties it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPatch {
    /// The URL of the receiver.
    pub url: Option<String>,
    /// A description for people.
    pub description: Option<Option<String>>,
    /// `*`, `prefix.*` or types. An event of a matching type is delivered.
    pub event_types: Option<Vec<String>>,
    /// If set, only events of these pipelines are delivered.
    pub pipelines: Option<Option<Vec<Slug>>>,
    /// Further headers of every delivery.
    pub headers: Option<BTreeMap<String, String>>,
    /// Whether the endpoint gets deliveries.
    pub enabled: Option<bool>,
    /// Whether deliveries carry the subcommand bearer.
    pub send_bearer: Option<bool>,
    /// The kind of signature of deliveries.
    pub signing: Option<Signing>,
    /// Whether deliveries are sent in order.
    pub ordered: Option<bool>,
    /// Most deliveries a second.
    pub rate_limit_per_second: Option<Option<u32>>,
    /// The waits between attempts.
    pub retry_schedule: Option<Option<Schedule>>,
    /// Most deliveries in flight.
    pub max_in_flight: Option<Option<u32>>,
}

/// A limit as it is stored. A limit that is too large for the column is stored as none.
fn limit_column(limit: Option<u32>) -> Option<i32> {
    limit.and_then(|limit| i32::try_from(Ord::max(limit, 1)).ok())
}

fn schedule_column(schedule: Option<&Schedule>) -> Option<String> {
    schedule.map(ToString::to_string)
}

impl Endpoint {
    /// If the stored texts cannot be read, the endpoint is returned without them, so that lists
    /// show it and its owner can set them again.
    fn of_row(row: webhook_endpoints::Model) -> Self {
        let texts = Texts::of_row(&row)
            .inspect_err(|error| unreadable::report("endpoint", row.publisher_id, row.id, error));
        let unreadable = texts.is_err();
        let Texts {
            sending,
            event_types,
            pipelines,
            headers,
            signing,
        } = texts.unwrap_or_default();
        Self {
            id: EndpointId::from_uuid(row.id),
            url: row.url,
            description: row.description,
            event_types,
            pipelines,
            headers,
            enabled: row.enabled,
            disabled_reason: row.disabled_reason,
            send_bearer: row.send_bearer,
            signing,
            key_set: row.key_set.map(KeySetId::from_uuid),
            health: Health::default(),
            unreadable,
            sending,
            revision: row.revision,
            created_at: Timestamp::from_ms(row.created_at),
            updated_at: Timestamp::from_ms(row.updated_at),
        }
    }
}

/// The endpoints of the rows, with the results of recent attempts.
async fn with_health<C: ConnectionTrait>(
    db: &C,
    owner: Uuid,
    endpoints: &mut [Endpoint],
    now: Timestamp,
) -> Result<()> {
    let ids: Vec<Uuid> = endpoints
        .iter()
        .map(|endpoint| endpoint.id.uuid())
        .collect();
    let mut health = health_of(db, owner, &ids, now).await?;
    for endpoint in endpoints {
        endpoint.health = health.remove(&endpoint.id.uuid()).unwrap_or_default();
    }
    Ok(())
}

fn slugs_text(slugs: &[Slug]) -> String {
    json!(slugs.iter().map(Slug::as_str).collect::<Vec<_>>()).to_string()
}

fn reason(enabled: bool) -> Option<String> {
    (!enabled).then(|| REQUESTED.to_owned())
}

/// Checked now: a filter that does not parse would later fail the transactions that write events.
fn check_types(event_types: &[String]) -> Result<()> {
    for (at, filter) in event_types.iter().enumerate() {
        if Filter::parse(filter).is_none() {
            let detail = "It takes `*`, an event type, or `prefix.*`.";
            return Err(
                Problem::field(&format!("/event_types/{at}"), FaultCode::Invalid, detail).into(),
            );
        }
    }
    Ok(())
}

async fn check_quota(tx: &Tx, publisher: Uuid) -> Result<()> {
    let limit = quotas_of(tx, publisher).await?.webhook_endpoints;
    let live = live(publisher).count(tx.db()).await?;
    if live >= u64::from(limit) {
        return Err(over_quota("webhook endpoints", limit));
    }
    Ok(())
}

/// Whether the boot seed ever wrote this publisher's credentials.
async fn is_seeded(tx: &Tx, publisher: Uuid) -> Result<bool> {
    let found = credentials::Entity::find()
        .select_only()
        .column(credentials::Column::Id)
        .filter(credentials::Column::PublisherId.eq(publisher))
        .filter(credentials::Column::Source.eq(Source::Seed.as_str()))
        .into_tuple::<Uuid>()
        .one(tx.db())
        .await?;
    Ok(found.is_some())
}

async fn insert(
    store: &Store,
    tx: &Tx,
    publisher: Uuid,
    new: &NewEndpoint,
) -> Result<(Endpoint, Option<AuditEntry>)> {
    check_types(&new.event_types)?;
    check_known(
        tx,
        publisher,
        new.pipelines.as_deref().unwrap_or_default(),
        "/pipelines",
    )
    .await?;
    check_quota(tx, publisher).await?;
    let send_bearer = match new.send_bearer {
        Some(given) => given,
        None => is_seeded(tx, publisher).await?,
    };
    let mut row = webhook_endpoints::Model {
        publisher_id: publisher,
        id: EndpointId::generate(tx.now).uuid(),
        url: new.url.clone(),
        description: new.description.clone(),
        event_types: json!(new.event_types).to_string(),
        pipelines: new.pipelines.as_deref().map(slugs_text),
        headers: json!(new.headers).to_string(),
        enabled: new.enabled,
        disabled_reason: reason(new.enabled),
        send_bearer,
        revision: 1,
        created_at: tx.now.ms(),
        updated_at: tx.now.ms(),
        deleted_at: None,
        signing: new.signing.as_str().to_owned(),
        key_set: None,
        ordered: new.sending.ordered,
        rate_limit_per_second: limit_column(new.sending.rate_limit_per_second),
        retry_schedule: schedule_column(new.sending.retry_schedule.as_ref()),
        max_in_flight: limit_column(new.sending.max_in_flight),
    };
    ensure_key_set_id(&mut row);
    let active = row.clone().into_active_model().reset_all();
    webhook_endpoints::Entity::insert(active)
        .exec_without_returning(tx.db())
        .await?;
    let entry = ensure_signing_key(store, tx, &row).await?;
    Ok((Endpoint::of_row(row), entry))
}

/// Replaces a value, and returns whether it changed.
fn replace<T: PartialEq + Clone>(old: &mut T, new: Option<T>) -> bool {
    match new {
        Some(new) if new != *old => {
            *old = new;
            true
        }
        _ => false,
    }
}

/// Applies a patch except for `enabled`. Returns the names of the members that changed.
fn apply(row: &mut webhook_endpoints::Model, patch: &EndpointPatch) -> Vec<&'static str> {
    let event_types = patch
        .event_types
        .as_ref()
        .map(|types| json!(types).to_string());
    let pipelines = patch
        .pipelines
        .as_ref()
        .map(|slugs| slugs.as_deref().map(slugs_text));
    let headers = patch
        .headers
        .as_ref()
        .map(|headers| json!(headers).to_string());
    let signing = patch.signing.map(|signing| signing.as_str().to_owned());
    let members = [
        ("url", replace(&mut row.url, patch.url.clone())),
        (
            "description",
            replace(&mut row.description, patch.description.clone()),
        ),
        ("event_types", replace(&mut row.event_types, event_types)),
        ("pipelines", replace(&mut row.pipelines, pipelines)),
        ("headers", replace(&mut row.headers, headers)),
        (
            "send_bearer",
            replace(&mut row.send_bearer, patch.send_bearer),
        ),
        ("signing", replace(&mut row.signing, signing)),
        ("ordered", replace(&mut row.ordered, patch.ordered)),
        (
            "rate_limit_per_second",
            replace(
                &mut row.rate_limit_per_second,
                patch.rate_limit_per_second.map(limit_column),
            ),
        ),
        (
            "retry_schedule",
            replace(
                &mut row.retry_schedule,
                patch
                    .retry_schedule
                    .as_ref()
                    .map(|schedule| schedule_column(schedule.as_ref())),
            ),
        ),
        (
            "max_in_flight",
            replace(
                &mut row.max_in_flight,
                patch.max_in_flight.map(limit_column),
            ),
        ),
    ];
    members
        .into_iter()
        .filter(|(_, changed)| *changed)
        .map(|(name, _)| name)
        .collect()
}

/// The result of changing an endpoint.
pub(crate) struct Changed {
    pub(crate) endpoint: Endpoint,
    pub(crate) entries: Vec<AuditEntry>,
    /// How many deliveries waited for a later attempt, and are due now.
    pub(crate) deliveries_due: u64,
}

/// Changes an endpoint in a transaction. The audit log holds no values, since URLs and headers may
/// be secret to some of its readers.
pub(crate) async fn change(
    store: &Store,
    tx: &Tx,
    publisher: Uuid,
    mut row: webhook_endpoints::Model,
    patch: &EndpointPatch,
) -> Result<Changed> {
    if let Some(types) = &patch.event_types {
        check_types(types)?;
    }
    if let Some(Some(slugs)) = &patch.pipelines {
        check_known(tx, publisher, slugs, "/pipelines").await?;
    }
    let id = EndpointId::from_uuid(row.id);
    let members = apply(&mut row, patch);
    let mut entries = Vec::new();
    if !members.is_empty() {
        let facts = json!({ "changed": members });
        entries.push(audit_entry(Action::EndpointUpdated, "endpoint", id, facts));
    }
    let switched = replace(&mut row.enabled, patch.enabled);
    if switched {
        row.disabled_reason = reason(row.enabled);
        let action = if row.enabled {
            Action::EndpointEnabled
        } else {
            Action::EndpointDisabled
        };
        entries.push(audit_entry(action, "endpoint", id, json!({})));
    }
    let mut deliveries_due = 0;
    if row.enabled && (switched || members.contains(&"url")) {
        // The earlier failures were another receiver's, or the receiver is to be tried again.
        deliveries_due = recover(tx, publisher, row.id).await?;
    }
    if !entries.is_empty() {
        ensure_key_set_id(&mut row);
        row = write_row(tx, row).await?;
        entries.extend(ensure_signing_key(store, tx, &row).await?);
    }
    if patch.signing.is_some() {
        // Caches of the endpoint's secrets are invalidated.
        tx.touches_credentials_of(PublisherId::from_uuid(publisher));
    }
    let mut changed = [Endpoint::of_row(row)];
    with_health(tx.db(), publisher, &mut changed, tx.now).await?;
    let [endpoint] = changed;
    Ok(Changed {
        endpoint,
        entries,
        deliveries_due,
    })
}

/// Cancels pending deliveries to an endpoint. The outcome of a running attempt does not change a
/// delivery that has ended.
async fn cancel_pending(tx: &Tx, publisher: Uuid, endpoint: Uuid) -> Result<u64> {
    use deliveries::Column;
    let done = deliveries::Entity::update_many()
        .col_expr(Column::Status, Expr::value("cancelled"))
        .col_expr(Column::NextAttemptAt, Expr::value(Option::<i64>::None))
        .col_expr(Column::FinishedAt, Expr::value(tx.now.ms()))
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::EndpointId.eq(endpoint))
        .filter(Column::Status.eq("pending"))
        .exec(tx.db())
        .await?;
    Ok(done.rows_affected)
}

impl Webhooks<Scoped> {
    /// Creates an endpoint.
    pub async fn create_endpoint<A>(
        &self,
        context: &Context,
        new: NewEndpoint,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Endpoint) -> Answer + Send + Sync,
    {
        let (store, owner, new) = (&self.store, self.scope.uuid(), &new);
        store
            .administer(
                context,
                owner,
                |tx| async move {
                    let (endpoint, minted) = insert(store, &tx, owner, new).await?;
                    let facts = json!({
                        "event_types": endpoint.event_types,
                        "send_bearer": endpoint.send_bearer,
                    });
                    let entry =
                        audit_entry(Action::EndpointCreated, "endpoint", endpoint.id, facts);
                    let audited = Audited::new(endpoint, owner, entry);
                    Ok(match minted {
                        Some(entry) => audited.and(&[owner], entry),
                        None => audited,
                    })
                },
                render,
            )
            .await
    }

    /// Reads an endpoint.
    pub async fn endpoint(&self, id: EndpointId) -> Result<Endpoint, StoreError> {
        let row = live(self.scope.uuid())
            .filter(webhook_endpoints::Column::Id.eq(id.uuid()))
            .one(self.store.read())
            .await?;
        let mut found = [Endpoint::of_row(row.ok_or_else(Problem::not_found)?)];
        let (db, now) = (self.store.read(), self.store.now());
        with_health(db, self.scope.uuid(), &mut found, now).await?;
        let [endpoint] = found;
        Ok(endpoint)
    }

    /// The publisher's endpoints, newest first.
    pub async fn endpoints(
        &self,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Endpoint, Uuid>, StoreError> {
        use webhook_endpoints::Column;
        let owner = self.scope.uuid();
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        let either = [false.into(), true.into()];
        let path = Path::by("webhook_endpoints_live", &["enabled"], either);
        let path = path.only("deleted_at IS NULL");
        let walk = Walk::over("webhook_endpoints", owner, vec![path]);
        let found = walk.part(db, &page, Span::after(page.after)).await?;
        let ids = padded(found.keys.iter().copied());
        let rows = live(owner).filter(Column::Id.is_in(ids)).all(db).await?;
        let page = Page::of_key_page(found, rows, |row| row.id);
        let mut page = page.try_map(|row| Ok::<_, StoreError>(Endpoint::of_row(row)))?;
        let now = self.store.now();
        with_health(db, self.scope.uuid(), &mut page.items, now).await?;
        Ok(page)
    }

    /// Changes an endpoint. `patch_of` gets the current endpoint, which nobody else changes
    /// meanwhile, and returns the changes. Values that are already set change nothing.
    pub async fn update_endpoint<C, A>(
        &self,
        context: &Context,
        id: EndpointId,
        if_match: Option<Expected>,
        patch_of: C,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        C: Fn(&Endpoint) -> Result<EndpointPatch, Problem> + Send + Sync,
        A: Fn(&Endpoint) -> Answer + Send + Sync,
    {
        let (owner, patch_of) = (self.scope.uuid(), &patch_of);
        self.store
            .administer(
                context,
                owner,
                |tx| async move {
                    let row = live_row(&tx, owner, id).await?;
                    check_revision(if_match, row.revision)?;
                    let patch = patch_of(&Endpoint::of_row(row.clone()))?;
                    let changed = change(&self.store, &tx, owner, row, &patch).await?;
                    let audited = Audited::unchanged(changed.endpoint);
                    let entries = changed.entries.into_iter();
                    Ok(entries.fold(audited, |audited, entry| audited.and(&[owner], entry)))
                },
                render,
            )
            .await
    }

    /// Deletes an endpoint and cancels its pending deliveries.
    pub async fn delete_endpoint<A>(
        &self,
        context: &Context,
        id: EndpointId,
        if_match: Option<Expected>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&()) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        self.store
            .administer(
                context,
                owner,
                |tx| async move {
                    let row = live_row(&tx, owner, id).await?;
                    check_revision(if_match, row.revision)?;
                    // The row stays because deliveries refer to it and are listed for a while. Its
                    // secrets are removed.
                    let gone = webhook_endpoints::Model {
                        headers: "{}".to_owned(),
                        enabled: false,
                        disabled_reason: reason(false),
                        deleted_at: Some(tx.now.ms()),
                        ..row
                    };
                    write_row(&tx, gone).await?;
                    end_all_of(&tx, owner, id.uuid()).await?;
                    let cancelled = cancel_pending(&tx, owner, id.uuid()).await?;
                    let facts = json!({ "deliveries_cancelled": cancelled });
                    let entry = audit_entry(Action::EndpointDeleted, "endpoint", id, facts);
                    Ok(Audited::new((), owner, entry))
                },
                render,
            )
            .await
    }

    /// Sends a test event to one endpoint, whatever its filters are.
    pub async fn test_endpoint<A>(
        &self,
        context: &Context,
        id: EndpointId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Event) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        self.store
            .transact(
                context,
                &self.scope,
                |tx| async move {
                    let row = live_row(&tx, owner, id).await?;
                    if !row.enabled {
                        return Err(Code::EndpointDisabled.into());
                    }
                    let data = json!({ "endpoint_id": id.to_string() });
                    emit_to(
                        &tx,
                        (owner, row.id),
                        row.ordered,
                        OwnType::Test.as_str(),
                        &data,
                    )
                    .await
                },
                render,
            )
            .await
    }
}

#[cfg(test)]
mod tests;
