//! Replays: what happened since a time, sent to an endpoint again.

use std::sync::Arc;

use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    types::Example,
};

use domain::{
    Code, Timestamp,
    id::{EndpointId, Id as _, ReplayId},
};
use persistence::{NewReplay, Replay};

use crate::{
    auth::Admin,
    shared::{
        App,
        common::{Accepted, Ok, Tag, Time, answer, parse_id},
        cursor::{List, Listed},
        idempotency::Idempotency,
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, Body, RequestContext},
};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "start_replay",
        codes: &[
            Code::EndpointDisabled,
            Code::QuotaExceeded,
            Code::IdempotencyKeyReused,
        ],
    },
    OperationDoc {
        operation_id: "cancel_replay",
        codes: &[Code::IdempotencyKeyReused],
    },
];

/// Where a replay stands.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "ReplayStatus", rename_all = "snake_case")]
pub enum Status {
    /// Deliveries are being written, or some have not ended.
    Running,
    /// All its deliveries have ended, well or not.
    Succeeded,
    /// It was called off, or its endpoint deleted.
    Cancelled,
}

impl Status {
    /// From the store's word, of which there are no others.
    fn of(word: &str) -> Self {
        match word {
            "succeeded" => Self::Succeeded,
            "cancelled" => Self::Cancelled,
            _ => Self::Running,
        }
    }
}

/// A replay.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Replay", example)]
pub struct ReplayView {
    /// `rpl_…`
    id: String,
    /// Where to.
    endpoint_id: String,
    /// Where it stands.
    status: Status,
    /// Events from this moment on.
    since: Time,
    /// Up to this one.
    until: Time,
    /// Whether only events are sent of which a delivery failed and none succeeded.
    only_failed: bool,
    /// Whether deliveries of these events that wait for a later attempt are made due at once.
    include_pending: bool,
    /// Only events that one of these filters lets through, besides the endpoint's own.
    #[oai(nullable)]
    event_types: Option<Vec<String>>,
    /// Events that fit, of those that were looked at so far.
    matched: i64,
    /// Deliveries that were written for them so far.
    queued: i64,
    /// Those that have ended.
    done: i64,
    /// Waiting deliveries that were made due so far.
    made_due: i64,
    /// When it was started.
    created_at: Time,
    /// When it ended.
    #[oai(nullable)]
    finished_at: Option<Time>,
}

impl From<&Replay> for ReplayView {
    fn from(replay: &Replay) -> Self {
        Self {
            id: replay.id.to_string(),
            endpoint_id: replay.endpoint.to_string(),
            status: Status::of(&replay.status),
            since: replay.since.into(),
            until: replay.until.into(),
            only_failed: replay.only_failed,
            include_pending: replay.include_pending,
            event_types: replay.event_types.clone(),
            matched: replay.matched,
            queued: replay.queued,
            done: replay.done,
            made_due: replay.made_due,
            created_at: replay.created_at.into(),
            finished_at: replay.finished_at.map(Time),
        }
    }
}

impl Example for ReplayView {
    fn example() -> Self {
        let at = Timestamp::from_ms(1_769_860_800_000);
        let nil = uuid::Uuid::nil();
        Self {
            id: ReplayId::from_uuid(nil).to_string(),
            endpoint_id: EndpointId::from_uuid(nil).to_string(),
            status: Status::Running,
            since: Timestamp::from_ms(1_769_774_400_000).into(),
            until: at.into(),
            only_failed: true,
            include_pending: true,
            event_types: None,
            matched: 1200,
            queued: 340,
            done: 120,
            made_due: 12,
            created_at: at.into(),
            finished_at: None,
        }
    }
}

/// What to send again.
#[derive(Object, Clone, Debug)]
#[oai(
    rename = "NewReplay",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub struct NewReplayBody {
    /// Events from this moment on.
    since: Time,
    /// Up to this one; by default, and at most, up to now.
    until: Option<Time>,
    /// Whether to send only events of which a delivery to the endpoint failed and none succeeded.
    #[oai(default)]
    only_failed: bool,
    /// Whether to make due at once the deliveries of these events that wait for a later attempt.
    /// Otherwise they are left as they are. A pause that the receiver asked for ends with it.
    #[oai(default)]
    include_pending: bool,
    /// Only events that one of these lets through: `*`, `prefix.*` or types. The endpoint's own
    /// filters hold besides.
    #[oai(validator(
        min_items = 1,
        max_items = 50,
        unique_items,
        max_length = 128,
        pattern = r"^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$"
    ))]
    event_types: Option<Vec<String>>,
}

impl From<NewReplayBody> for NewReplay {
    fn from(body: NewReplayBody) -> Self {
        Self {
            since: body.since.0,
            until: body.until.map(|at| at.0),
            only_failed: body.only_failed,
            include_pending: body.include_pending,
            event_types: body.event_types,
        }
    }
}

impl Example for NewReplayBody {
    fn example() -> Self {
        Self {
            since: Timestamp::from_ms(1_769_774_400_000).into(),
            until: None,
            only_failed: true,
            include_pending: true,
            event_types: Some(vec!["order.*".into()]),
        }
    }
}

/// The operations on replays.
pub struct Replays {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Webhooks")]
impl Replays {
    /// Replay events
    ///
    /// Sends to this endpoint, once more, the events since a time that its filters let through:
    /// each with a new delivery, under the `webhook-id` that it always had. An event whose delivery
    /// is still pending gets no second one; `include_pending` makes that one due at once. It goes on by itself, a part at a time and after what just happened,
    /// also after a restart. A replay of the same filter that is running is answered instead of
    /// another one.
    #[oai(
        path = "/webhook-endpoints/:id/replays",
        method = "post",
        operation_id = "start_replay"
    )]
    async fn start(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<NewReplayBody>,
    ) -> Result<Accepted<ReplayView>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let key = key.of("start_replay", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let started = scoped.start_replay(&context, id, body.0.into(), |(replay, _)| {
            answer(202, &ReplayView::from(replay), None, None, false)
        });
        Ok(started.await?.into())
    }

    /// List replays
    ///
    /// Newest first.
    #[oai(
        path = "/webhook-endpoints/:id/replays",
        method = "get",
        operation_id = "list_replays"
    )]
    async fn list(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<ReplayView>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let scope = &who.0.scope;
        let list = List::begin(&self.app, request, Some(scope), limit.0, cursor.0).await?;
        let page = self
            .app
            .store
            .scoped(scope)
            .replays(id, list.page()?)
            .await?;
        Ok(list.answer(page, |replay| ReplayView::from(&replay)))
    }

    /// Get a replay
    #[oai(
        path = "/webhook-endpoints/:id/replays/:replay",
        method = "get",
        operation_id = "get_replay"
    )]
    async fn get(
        &self,
        who: Admin,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The replay's identifier.
        #[oai(validator(max_length = 40))]
        replay: Path<String>,
    ) -> Result<Ok<ReplayView>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let replay = parse_id::<ReplayId>(&replay.0)?;
        let found = self
            .app
            .store
            .scoped(&who.0.scope)
            .replay(id, replay)
            .await?;
        Ok(Ok::show(&ReplayView::from(&found), None))
    }

    /// Cancel a replay
    ///
    /// No more deliveries are written, and those that wait are cancelled. One that has ended stays
    /// as it is.
    #[oai(
        path = "/webhook-endpoints/:id/replays/:replay/cancel",
        method = "post",
        operation_id = "cancel_replay"
    )]
    async fn cancel(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The endpoint's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// The replay's identifier.
        #[oai(validator(max_length = 40))]
        replay: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
    ) -> Result<Ok<ReplayView>, ApiError> {
        let id = parse_id::<EndpointId>(&id.0)?;
        let replay = parse_id::<ReplayId>(&replay.0)?;
        let key = key.of("cancel_replay", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let cancelled = scoped.cancel_replay(&context, id, replay, |replay| {
            answer(200, &ReplayView::from(replay), None, None, false)
        });
        Ok(cancelled.await?.into())
    }
}
