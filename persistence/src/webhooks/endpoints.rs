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
        change::{Answer, Audited, Context, Entry, Expected, check_revision, entry},
        db::Tx,
        entity::{credentials, deliveries, webhook_endpoints},
        error::{Result, StoreError},
        page::{Page, PageRequest},
        quota::{over_quota, quotas_of},
        sql::padded,
        unreadable,
        walk::{Path, Span, Walk},
    },
    webhooks::{
        endpoint_rows::{live, live_row, write_row},
        endpoint_secrets::{equip, name_keys},
        events::{Event, emit_to},
        health::{Health, health_of},
        recovery::recover,
        replays::end_all_of,
    },
};

/// Why an endpoint is disabled that its publisher disabled.
const REQUESTED: &str = "requested";

/// A webhook destination with its filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which one.
    pub id: EndpointId,
    /// Where it is.
    pub url: String,
    /// For people.
    pub description: Option<String>,
    /// `*`, `prefix.*` or types; an event passes that one of them matches.
    pub event_types: Vec<String>,
    /// If given, only what happens in these pipelines passes.
    pub pipelines: Option<Vec<Slug>>,
    /// What every delivery carries besides.
    pub headers: BTreeMap<String, String>,
    /// Whether deliveries are made.
    pub enabled: bool,
    /// Why not, if not: `requested` if its publisher wished so.
    pub disabled_reason: Option<String>,
    /// Whether deliveries carry the subcommand bearer.
    pub send_bearer: bool,
    /// What its deliveries are signed by.
    pub signing: Signing,
    /// Under which name the keys are served that verify them, if it ever had a pair.
    pub key_set: Option<KeySetId>,
    /// How tries at it went lately.
    pub health: Health,
    /// Whether a part of it can't be read as it is stored; nothing is delivered to it then.
    pub unreadable: bool,
    /// How deliveries go out.
    pub sending: Sending,
    /// Counts changes of this row.
    pub revision: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// What a new endpoint is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEndpoint {
    /// Where it is; the caller has checked that it is an allowed destination.
    pub url: String,
    /// For people.
    pub description: Option<String>,
    /// `*`, `prefix.*` or types.
    pub event_types: Vec<String>,
    /// If given, only what happens in these pipelines passes.
    pub pipelines: Option<Vec<Slug>>,
    /// What every delivery carries besides.
    pub headers: BTreeMap<String, String>,
    /// Whether deliveries are made.
    pub enabled: bool,
    /// Whether deliveries carry the subcommand bearer; by default only a seeded publisher's do.
    pub send_bearer: Option<bool>,
    /// What deliveries are signed by.
    pub signing: Signing,
    /// How deliveries go out.
    pub sending: Sending,
}

/// What changes of an endpoint; `None` leaves a member as it is, `Some(None)` empties it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointPatch {
    /// Where it is.
    pub url: Option<String>,
    /// For people.
    pub description: Option<Option<String>>,
    /// `*`, `prefix.*` or types.
    pub event_types: Option<Vec<String>>,
    /// If given, only what happens in these pipelines passes.
    pub pipelines: Option<Option<Vec<Slug>>>,
    /// What every delivery carries besides.
    pub headers: Option<BTreeMap<String, String>>,
    /// Whether deliveries are made.
    pub enabled: Option<bool>,
    /// Whether deliveries carry the subcommand bearer.
    pub send_bearer: Option<bool>,
    /// What deliveries are signed by.
    pub signing: Option<Signing>,
    /// Whether they go out in order.
    pub ordered: Option<bool>,
    /// Most a second.
    pub rate_limit_per_second: Option<Option<u32>>,
    /// Waits between tries.
    pub retry_schedule: Option<Option<Schedule>>,
    /// Most under way.
    pub max_in_flight: Option<Option<u32>>,
}

/// A limit as it is stored; one that is larger than fits is none.
fn limit_column(limit: Option<u32>) -> Option<i32> {
    limit.and_then(|limit| i32::try_from(Ord::max(limit, 1)).ok())
}

fn schedule_column(schedule: Option<&Schedule>) -> Option<String> {
    schedule.map(ToString::to_string)
}

impl Endpoint {
    /// One whose texts can't be read is shown without them, so that its owner sees it, among the
    /// others, and can set them anew.
    fn of_row(row: webhook_endpoints::Model) -> Self {
        let texts = Texts::of_row(&row)
            .inspect_err(|error| unreadable::tell("endpoint", row.publisher_id, row.id, error));
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

/// With how tries at them went.
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

/// A filter that does not parse would later fail the change whose event meets it.
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

/// Whether the boot seed made, or ever changed, this publisher's credentials.
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
) -> Result<(Endpoint, Option<Entry>)> {
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
        Some(wish) => wish,
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
    name_keys(&mut row);
    let active = row.clone().into_active_model().reset_all();
    webhook_endpoints::Entity::insert(active)
        .exec_without_returning(tx.db())
        .await?;
    let line = equip(store, tx, &row).await?;
    Ok((Endpoint::of_row(row), line))
}

/// Writes a new value over an old one; tells whether they differ.
fn replace<T: PartialEq + Clone>(old: &mut T, new: Option<T>) -> bool {
    match new {
        Some(new) if new != *old => {
            *old = new;
            true
        }
        _ => false,
    }
}

/// Applies a patch but for `enabled`; answers the names of the members that it changed.
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

/// What a change did.
pub(crate) struct Changed {
    pub(crate) endpoint: Endpoint,
    pub(crate) lines: Vec<Entry>,
    /// Deliveries that waited for a later try, and are due now.
    pub(crate) deliveries_due: u64,
}

/// The change itself. Values do not stand in the audit log, since URLs and headers may hold
/// what is not for every reader of it.
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
    let mut lines = Vec::new();
    if !members.is_empty() {
        let facts = json!({ "changed": members });
        lines.push(entry(Action::EndpointUpdated, "endpoint", id, facts));
    }
    let switched = replace(&mut row.enabled, patch.enabled);
    if switched {
        row.disabled_reason = reason(row.enabled);
        let action = if row.enabled {
            Action::EndpointEnabled
        } else {
            Action::EndpointDisabled
        };
        lines.push(entry(action, "endpoint", id, json!({})));
    }
    let mut deliveries_due = 0;
    if row.enabled && (switched || members.contains(&"url")) {
        // What failed was another receiver, or one that is to be tried again.
        deliveries_due = recover(tx, publisher, row.id).await?;
    }
    if !lines.is_empty() {
        name_keys(&mut row);
        row = write_row(tx, row).await?;
        lines.extend(equip(store, tx, &row).await?);
    }
    if patch.signing.is_some() {
        // Whoever has the endpoint's secrets at hand reads them anew.
        tx.touches_credentials_of(PublisherId::from_uuid(publisher));
    }
    let mut changed = [Endpoint::of_row(row)];
    with_health(tx.db(), publisher, &mut changed, tx.now).await?;
    let [endpoint] = changed;
    Ok(Changed {
        endpoint,
        lines,
        deliveries_due,
    })
}

/// Ends what is on its way to an endpoint; the outcome of an attempt under way changes nothing
/// of what has ended.
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

impl Scoped {
    /// Makes an endpoint.
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
                    let line = entry(Action::EndpointCreated, "endpoint", endpoint.id, facts);
                    let audited = Audited::new(endpoint, owner, line);
                    Ok(match minted {
                        Some(line) => audited.and(&[owner], line),
                        None => audited,
                    })
                },
                render,
            )
            .await
    }

    /// One endpoint.
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
        let page = Page::of_found(found, rows, |row| row.id);
        let mut page = page.try_map(|row| Ok::<_, StoreError>(Endpoint::of_row(row)))?;
        let now = self.store.now();
        with_health(db, self.scope.uuid(), &mut page.items, now).await?;
        Ok(page)
    }

    /// Changes an endpoint. `wish` is given the endpoint as it stands, which nobody else changes
    /// meanwhile, and answers what to change of it. What it already is changes nothing.
    pub async fn update_endpoint<C, A>(
        &self,
        context: &Context,
        id: EndpointId,
        if_match: Option<Expected>,
        wish: C,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        C: Fn(&Endpoint) -> Result<EndpointPatch, Problem> + Send + Sync,
        A: Fn(&Endpoint) -> Answer + Send + Sync,
    {
        let (owner, wish) = (self.scope.uuid(), &wish);
        self.store
            .administer(
                context,
                owner,
                |tx| async move {
                    let row = live_row(&tx, owner, id).await?;
                    check_revision(if_match, row.revision)?;
                    let patch = wish(&Endpoint::of_row(row.clone()))?;
                    let changed = change(&self.store, &tx, owner, row, &patch).await?;
                    let audited = Audited::unchanged(changed.endpoint);
                    let lines = changed.lines.into_iter();
                    Ok(lines.fold(audited, |audited, line| audited.and(&[owner], line)))
                },
                render,
            )
            .await
    }

    /// Removes an endpoint and calls off what is on its way to it.
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
                    // The row stays for its deliveries, which are listed for a while. What may be secret
                    // of it does not.
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
                    let line = entry(Action::EndpointDeleted, "endpoint", id, facts);
                    Ok(Audited::new((), owner, line))
                },
                render,
            )
            .await
    }

    /// Sends a test event to one endpoint, past its filters.
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
