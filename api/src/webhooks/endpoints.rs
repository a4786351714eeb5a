//! Webhook endpoints: where a publisher's events are delivered to.

mod body;
mod health;

use std::{collections::BTreeMap, sync::Arc};

use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};

use domain::{
    Code, Timestamp,
    id::{EndpointId, Id as _},
    retry::Schedule,
    slug::Slug,
};
use persistence::{Endpoint, NewReplay};

use crate::{
    auth::Admin,
    shared::{
        App,
        common::{
            Accepted, Created, IfMatch, NoContent, Ok, Tag, Time, answer, no_content, parse_id,
        },
        cursor::{List, Listed},
        idempotency::Idempotency,
    },
    webhooks::{
        endpoint_secrets::SigningName,
        events::{self, views::EventView},
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, Body, OptionalBody, Patch, RequestContext},
};

use body::{EndpointPatchBody, NewEndpointBody};
use health::{EnableBody, EnabledEndpoint, EndpointStats, HealthView};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "create_webhook_endpoint",
        codes: &[
            Code::DestinationRefused,
            Code::QuotaExceeded,
            Code::IdempotencyKeyReused,
        ],
    },
    OperationDoc {
        operation_id: "update_webhook_endpoint",
        codes: &[Code::DestinationRefused, Code::PreconditionFailed],
    },
    OperationDoc {
        operation_id: "delete_webhook_endpoint",
        codes: &[Code::PreconditionFailed],
    },
    OperationDoc {
        operation_id: "enable_webhook_endpoint",
        codes: &[Code::QuotaExceeded, Code::IdempotencyKeyReused],
    },
    OperationDoc {
        operation_id: "test_webhook_endpoint",
        codes: &[Code::EndpointDisabled, Code::IdempotencyKeyReused],
    },
];

/// A webhook endpoint.
#[derive(Object, Clone, Debug)]
#[oai(rename = "WebhookEndpoint", example)]
pub struct EndpointView {
    /// `ep_…`
    id: String,
    /// Where it is, in its normalised form.
    url: String,
    /// For people.
    #[oai(nullable)]
    description: Option<String>,
    /// `*`, `prefix.*` or event types.
    event_types: Vec<String>,
    /// If given, only what happens in these pipelines is delivered.
    #[oai(nullable)]
    pipelines: Option<Vec<String>>,
    /// What every delivery carries besides.
    headers: BTreeMap<String, String>,
    /// Whether deliveries are made.
    enabled: bool,
    /// Why not, if not: `requested` if its publisher wished so, `gone` if it answered 410,
    /// `failing` if every try failed for too long.
    #[oai(nullable)]
    disabled_reason: Option<String>,
    /// Whether deliveries carry the newest subcommand bearer.
    send_bearer: bool,
    /// What deliveries are signed by.
    signing: SigningName,
    /// Where the keys are that verify what a pair of keys signs; null if it never had one.
    #[oai(nullable)]
    public_keys: Option<String>,
    /// Whether deliveries go out one after the other, in the order of their events.
    ordered: bool,
    /// Most deliveries a second; null for no limit.
    #[oai(nullable)]
    rate_limit_per_second: Option<u32>,
    /// Waits before the second, third, … try in seconds; null for the operator's.
    #[oai(nullable)]
    retry_schedule_seconds: Option<Vec<u32>>,
    /// Most deliveries under way at a time; null for the operator's limit.
    #[oai(nullable)]
    max_in_flight: Option<u32>,
    /// How tries at it went lately.
    health: HealthView,
    /// When it was made.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
}

impl From<&Endpoint> for EndpointView {
    fn from(endpoint: &Endpoint) -> Self {
        let waits = endpoint.sending.retry_schedule.as_ref();
        let words = |slugs: &Vec<Slug>| slugs.iter().map(Slug::to_string).collect();
        Self {
            id: endpoint.id.to_string(),
            url: endpoint.url.clone(),
            description: endpoint.description.clone(),
            event_types: endpoint.event_types.clone(),
            pipelines: endpoint.pipelines.as_ref().map(words),
            headers: endpoint.headers.clone(),
            enabled: endpoint.enabled,
            disabled_reason: endpoint.disabled_reason.clone(),
            send_bearer: endpoint.send_bearer,
            signing: endpoint.signing.into(),
            public_keys: endpoint
                .key_set
                .map(|name| format!("/v1/webhook-keys/{name}")),
            ordered: endpoint.sending.ordered,
            rate_limit_per_second: endpoint.sending.rate_limit_per_second,
            retry_schedule_seconds: waits.map(Schedule::seconds),
            max_in_flight: endpoint.sending.max_in_flight,
            health: HealthView::of(endpoint),
            created_at: endpoint.created_at.into(),
            updated_at: endpoint.updated_at.into(),
        }
    }
}

impl Example for EndpointView {
    fn example() -> Self {
        let body = NewEndpointBody::example();
        let at = Timestamp::from_ms(1_769_860_800_000);
        Self {
            id: EndpointId::from_uuid(uuid::Uuid::nil()).to_string(),
            url: body.url,
            description: body.description,
            event_types: body.event_types,
            pipelines: body.pipelines,
            headers: body.headers,
            enabled: true,
            disabled_reason: None,
            send_bearer: false,
            signing: SigningName::Hmac,
            public_keys: None,
            ordered: false,
            rate_limit_per_second: Some(50),
            retry_schedule_seconds: None,
            max_in_flight: None,
            health: HealthView::example(),
            created_at: at.into(),
            updated_at: at.into(),
        }
    }
}

/// The operations on webhook endpoints.
pub struct Endpoints {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Webhooks")]
impl Endpoints {
    /// Create a webhook endpoint
    #[oai(
        path = "/webhook-endpoints",
        method = "post",
        operation_id = "create_webhook_endpoint"
    )]
    async fn create(
        &self,
        who: Admin,
        request: &RequestContext,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<NewEndpointBody>,
    ) -> Result<Created<EndpointView>, ApiError> {
        let new = body.0.checked(&self.app.policy)?;
        let key = key.of("create_webhook_endpoint", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped
            .create_endpoint(&context, new, |endpoint| {
                let location = format!("/v1/webhook-endpoints/{}", endpoint.id);
                let view = EndpointView::from(endpoint);
                answer(201, &view, Some(endpoint.revision), Some(location), false)
            })
            .await?;
        Ok(answer.into())
    }

    /// List webhook endpoints
    ///
    /// Newest first.
    #[oai(
        path = "/webhook-endpoints",
        method = "get",
        operation_id = "list_webhook_endpoints"
    )]
    async fn list(
        &self,
        who: Admin,
        request: &RequestContext,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<EndpointView>, ApiError> {
        let scope = &who.0.scope;
        let list = List::begin(&self.app, request, Some(scope), limit.0, cursor.0).await?;
        let page = self.app.store.scoped(scope).endpoints(list.page()?).await?;
        Ok(list.answer(page, |endpoint| EndpointView::from(&endpoint)))
    }

    /// Get a webhook endpoint
    #[oai(
        path = "/webhook-endpoints/:id",
        method = "get",
        operation_id = "get_webhook_endpoint"
    )]
    async fn get(
        &self,
        who: Admin,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
    ) -> Result<Ok<EndpointView>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let endpoint = self.app.store.scoped(&who.0.scope).endpoint(id).await?;
        Ok(Ok::show(
            &EndpointView::from(&endpoint),
            Some(endpoint.revision),
        ))
    }

    /// Update a webhook endpoint
    ///
    /// A JSON Merge Patch (RFC 7396), so `headers` are changed one by one. What is disabled keeps
    /// its deliveries waiting.
    #[oai(
        path = "/webhook-endpoints/:id",
        method = "patch",
        operation_id = "update_webhook_endpoint"
    )]
    async fn update(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The expected revision (`ETag`).
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        body: Patch<EndpointPatchBody>,
    ) -> Result<Ok<EndpointView>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let (body, checked) = (&body.0, body.0.checked(&self.app.policy)?);
        let change = |endpoint: &Endpoint| body.merged_into(endpoint, &checked);
        let answer = scoped
            .update_endpoint(&context, id, if_match.0, change, shown)
            .await?;
        Ok(answer.into())
    }

    /// Delete a webhook endpoint
    ///
    /// Deliveries that are on their way to it are cancelled.
    #[oai(
        path = "/webhook-endpoints/:id",
        method = "delete",
        operation_id = "delete_webhook_endpoint"
    )]
    async fn delete(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The expected revision (`ETag`).
        #[oai(name = "If-Match")]
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped
            .delete_endpoint(&context, id, if_match.0, |()| no_content())
            .await?;
        Ok(answer.into())
    }

    /// Enable a webhook endpoint
    ///
    /// Gives it another chance, also one that is enabled. Its failures are forgotten. Deliveries
    /// that wait for a later attempt are due at once, and a pause that the receiver asked for
    /// ends. If that is wished, everything since a time is sent to it again.
    #[oai(
        path = "/webhook-endpoints/:id/enable",
        method = "post",
        operation_id = "enable_webhook_endpoint"
    )]
    async fn enable(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: OptionalBody<EnableBody>,
    ) -> Result<Ok<EnabledEndpoint>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let replay = body.0.replay_since.map(|since| NewReplay {
            since: since.0,
            until: None,
            only_failed: false,
            include_pending: false,
            event_types: None,
        });
        let key = key.of("enable_webhook_endpoint", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let enabled = scoped.enable_endpoint(&context, id, replay, |enabled| {
            answer(200, &EnabledEndpoint::from(enabled), None, None, false)
        });
        Ok(enabled.await?.into())
    }

    /// Get an endpoint's statistics
    ///
    /// How its tries went in the last day, in spans of five minutes.
    #[oai(
        path = "/webhook-endpoints/:id/stats",
        method = "get",
        operation_id = "get_webhook_endpoint_stats"
    )]
    async fn stats(
        &self,
        who: Admin,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
    ) -> Result<Ok<EndpointStats>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let scoped = self.app.store.scoped(&who.0.scope);
        let buckets = scoped.endpoint_stats(id).await?;
        let stats = EndpointStats::new(id, &buckets, self.app.store.now());
        Ok(Ok::show(&stats, None))
    }

    /// Send a test event
    ///
    /// Delivers a `stationmaster.test` event to this endpoint alone, whatever its filters.
    #[oai(
        path = "/webhook-endpoints/:id/test",
        method = "post",
        operation_id = "test_webhook_endpoint"
    )]
    async fn test(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
    ) -> Result<Accepted<EventView>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let key = key.of("test_webhook_endpoint", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped
            .test_endpoint(&context, id, |event| events::shown(202, event))
            .await?;
        Ok(answer.into())
    }
}

/// A changed endpoint.
fn shown(endpoint: &Endpoint) -> persistence::Answer {
    answer(
        200,
        &EndpointView::from(endpoint),
        Some(endpoint.revision),
        None,
        false,
    )
}
