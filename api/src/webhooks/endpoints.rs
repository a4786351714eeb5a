//! Webhook endpoints: where a publisher's events are delivered to.

mod body;
mod health;

use std::{collections::BTreeMap, sync::Arc};

use poem_openapi::{Object, OpenApi};
use view_derive::{Example, View};

use domain::{
    id::EndpointId,
    permission::{WebhooksRead, WebhooksSend, WebhooksWrite},
    retry::Schedule,
    signature::Signing,
};
use persistence::{Endpoint, NewReplay};

use crate::{
    auth::Caller,
    shared::{
        Accepted, App, Created, Idempotency, IfMatch, Listed, NoContent, Ok, PageQuery, Path, Tag,
        Time, Word, answer, created, nil_id, no_content,
    },
    webhooks::events::{self, views::EventView},
};
use web::http::{ApiError, Body, OptionalBody, Patch};

use body::{EndpointPatchBody, NewEndpointBody};
use health::{EnableBody, EnabledEndpoint, EndpointStats, HealthView};

/// A webhook endpoint.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "WebhookEndpoint", example)]
#[view(of = Endpoint)]
pub struct EndpointView {
    /// `ep_…`
    #[example(nil_id::<EndpointId>())]
    id: String,
    /// Where it is, in its normalised form.
    #[example("https://example.com/hooks")]
    url: String,
    /// For people.
    #[oai(nullable)]
    #[example("Tells the billing service.")]
    description: Option<String>,
    /// `*`, `prefix.*` or event types.
    #[example(["run.*"])]
    event_types: Vec<String>,
    /// If given, only what happens in these pipelines is delivered.
    #[oai(nullable)]
    pipelines: Option<Vec<String>>,
    /// What every delivery carries besides.
    #[example(NewEndpointBody::example().headers)]
    headers: BTreeMap<String, String>,
    /// Whether deliveries are made.
    #[example(true)]
    enabled: bool,
    /// Why not, if not: `requested` if its publisher wished so, `gone` if it answered 410,
    /// `failing` if every try failed for too long.
    #[oai(nullable)]
    disabled_reason: Option<String>,
    /// Whether deliveries carry the newest subcommand bearer.
    send_bearer: bool,
    /// What deliveries are signed by.
    #[example(Signing::Hmac)]
    signing: Word<Signing>,
    /// Where the keys are that verify what a pair of keys signs; null if it never had one.
    #[oai(nullable)]
    #[view(from = of.key_set.map(|name| format!("/v1/webhook-keys/{name}")))]
    public_keys: Option<String>,
    /// Whether deliveries go out one after the other, in the order of their events.
    #[view(field = sending.ordered)]
    ordered: bool,
    /// Most deliveries a second; null for no limit.
    #[oai(nullable)]
    #[example(50)]
    #[view(field = sending.rate_limit_per_second)]
    rate_limit_per_second: Option<u32>,
    /// Waits before the second, third, … try in seconds; null for the operator's.
    #[oai(nullable)]
    #[view(from = of.sending.retry_schedule.as_ref().map(Schedule::seconds))]
    retry_schedule_seconds: Option<Vec<u32>>,
    /// Most deliveries under way at a time; null for the operator's limit.
    #[oai(nullable)]
    #[view(field = sending.max_in_flight)]
    max_in_flight: Option<u32>,
    /// How tries at it went lately.
    #[view(from = HealthView::of(of))]
    health: HealthView,
    /// When it was made.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
}

/// The operations on webhook endpoints.
pub struct Endpoints {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1/webhook-endpoints", tag = "Tag::Webhooks")]
impl Endpoints {
    /// Create a webhook endpoint
    #[oai(path = "/", method = "post", operation_id = "create_webhook_endpoint")]
    async fn create(
        &self,
        who: Caller<WebhooksWrite>,
        key: Idempotency,
        body: Body<NewEndpointBody>,
    ) -> Result<Created<EndpointView>, ApiError> {
        let new = body.0.checked(&self.app.policy)?;
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let answer = webhooks.create_endpoint(&context, new, |endpoint| {
            let location = format!("/v1/webhook-endpoints/{}", endpoint.id);
            created(shown(endpoint), location)
        });
        Ok(answer.await?.into())
    }

    /// List webhook endpoints
    ///
    /// Newest first.
    #[oai(path = "/", method = "get", operation_id = "list_webhook_endpoints")]
    async fn list(
        &self,
        who: Caller<WebhooksRead>,
        page: PageQuery,
    ) -> Result<Listed<EndpointView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.scoped().webhooks().endpoints(list.page()?).await?;
        Ok(list.answer(page, |endpoint| EndpointView::from(&endpoint)))
    }

    /// Get a webhook endpoint
    #[oai(path = "/:id", method = "get", operation_id = "get_webhook_endpoint")]
    async fn get(
        &self,
        who: Caller<WebhooksRead>,
        Path(id): Path<EndpointId>,
    ) -> Result<Ok<EndpointView>, ApiError> {
        let endpoint = who.scoped().webhooks().endpoint(id).await?;
        Ok(shown(&endpoint).into())
    }

    /// Update a webhook endpoint
    ///
    /// A JSON Merge Patch (RFC 7396), so `headers` are changed one by one. What is disabled keeps
    /// its deliveries waiting.
    #[oai(
        path = "/:id",
        method = "patch",
        operation_id = "update_webhook_endpoint"
    )]
    async fn update(
        &self,
        who: Caller<WebhooksWrite>,
        Path(id): Path<EndpointId>,
        if_match: IfMatch,
        body: Patch<EndpointPatchBody>,
    ) -> Result<Ok<EndpointView>, ApiError> {
        let context = who.context();
        let webhooks = who.scoped().webhooks();
        let (body, checked) = (&body.0, body.0.checked(&self.app.policy)?);
        let change = |endpoint: &Endpoint| body.merged_into(endpoint, &checked);
        let answer = webhooks.update_endpoint(&context, id, if_match.0, change, shown);
        Ok(answer.await?.into())
    }

    /// Delete a webhook endpoint
    ///
    /// Deliveries that are on their way to it are cancelled.
    #[oai(
        path = "/:id",
        method = "delete",
        operation_id = "delete_webhook_endpoint"
    )]
    async fn delete(
        &self,
        who: Caller<WebhooksWrite>,
        Path(id): Path<EndpointId>,
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let webhooks = who.scoped().webhooks();
        let answer = webhooks.delete_endpoint(&context, id, if_match.0, |()| no_content());
        Ok(answer.await?.into())
    }

    /// Enable a webhook endpoint
    ///
    /// Gives it another chance, also one that is enabled. Its failures are forgotten. Deliveries
    /// that wait for a later attempt are due at once, and a pause that the receiver asked for
    /// ends. If that is wished, everything since a time is sent to it again.
    #[oai(
        path = "/:id/enable",
        method = "post",
        operation_id = "enable_webhook_endpoint"
    )]
    async fn enable(
        &self,
        who: Caller<WebhooksWrite>,
        Path(id): Path<EndpointId>,
        key: Idempotency,
        body: OptionalBody<EnableBody>,
    ) -> Result<Ok<EnabledEndpoint>, ApiError> {
        let replay = body.0.replay_since.map(|since| NewReplay {
            since: since.0,
            until: None,
            only_failed: false,
            include_pending: false,
            event_types: None,
        });
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let enabled = webhooks.enable_endpoint(&context, id, replay, |enabled| {
            answer(200, &EnabledEndpoint::from(enabled))
        });
        Ok(enabled.await?.into())
    }

    /// Get an endpoint's statistics
    ///
    /// How its tries went in the last day, in spans of five minutes.
    #[oai(
        path = "/:id/stats",
        method = "get",
        operation_id = "get_webhook_endpoint_stats"
    )]
    async fn stats(
        &self,
        who: Caller<WebhooksRead>,
        Path(id): Path<EndpointId>,
    ) -> Result<Ok<EndpointStats>, ApiError> {
        let webhooks = who.scoped().webhooks();
        let buckets = webhooks.endpoint_stats(id).await?;
        let stats = EndpointStats::new(id, &buckets, self.app.store.now());
        Ok(Ok::show(&stats, None))
    }

    /// Send a test event
    ///
    /// Delivers a `stationmaster.test` event to this endpoint alone, whatever its filters.
    #[oai(
        path = "/:id/test",
        method = "post",
        operation_id = "test_webhook_endpoint"
    )]
    async fn test(
        &self,
        who: Caller<WebhooksSend>,
        Path(id): Path<EndpointId>,
        key: Idempotency,
    ) -> Result<Accepted<EventView>, ApiError> {
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let answer = webhooks.test_endpoint(&context, id, |event| events::shown(202, event));
        Ok(answer.await?.into())
    }
}

/// An endpoint as it is now.
fn shown(endpoint: &Endpoint) -> persistence::Answer {
    answer(200, &EndpointView::from(endpoint)).revision(endpoint.revision)
}
