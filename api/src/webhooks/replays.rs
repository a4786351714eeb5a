//! Replays: what happened since a time, sent to an endpoint again.

use poem_openapi::{Object, OpenApi};
use view_derive::{Example, View};

use domain::{
    id::{EndpointId, ReplayId},
    permission::{WebhooksRead, WebhooksWrite},
    words,
};
use persistence::{NewReplay, Replay};

use crate::{
    auth::Caller,
    shared::{
        Accepted, EXAMPLE_DAY_BEFORE, Idempotency, Listed, Ok, PageQuery, Path, Tag, Time, Word,
        answer, nil_id, schemas_of_words,
    },
};
use web::http::{ApiError, Body};

words! {
    /// Where a replay stands.
    pub enum Status {
        /// Deliveries are being written, or some have not ended.
        Running = "running",
        /// All its deliveries have ended, well or not.
        Succeeded = "succeeded",
        /// It was called off, or its endpoint deleted.
        Cancelled = "cancelled",
    }
}

schemas_of_words! { Status, "ReplayStatus", "Where a replay stands."; }

/// A replay.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "Replay", example)]
#[view(of = Replay)]
pub struct ReplayView {
    /// `rpl_…`
    #[example(nil_id::<ReplayId>())]
    id: String,
    /// Where to.
    #[example(nil_id::<EndpointId>())]
    #[view(field = endpoint)]
    endpoint_id: String,
    /// Where it stands.
    #[example(Status::Running)]
    // The store has no other words.
    #[view(from = Word(Status::parse(&of.status).unwrap_or(Status::Running)))]
    status: Word<Status>,
    /// Events from this moment on.
    #[example(EXAMPLE_DAY_BEFORE)]
    since: Time,
    /// Up to this one.
    until: Time,
    /// Whether only events are sent of which a delivery failed and none succeeded.
    #[example(true)]
    only_failed: bool,
    /// Whether deliveries of these events that wait for a later attempt are made due at once.
    #[example(true)]
    include_pending: bool,
    /// Only events that one of these filters lets through, besides the endpoint's own.
    #[oai(nullable)]
    event_types: Option<Vec<String>>,
    /// Events that fit, of those that were looked at so far.
    #[example(1200)]
    matched: i64,
    /// Deliveries that were written for them so far.
    #[example(340)]
    queued: i64,
    /// Those that have ended.
    #[example(120)]
    done: i64,
    /// Waiting deliveries that were made due so far.
    #[example(12)]
    made_due: i64,
    /// When it was started.
    created_at: Time,
    /// When it ended.
    #[oai(nullable)]
    finished_at: Option<Time>,
}

/// What to send again.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(
    rename = "NewReplay",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
#[view(into = NewReplay)]
pub struct NewReplayBody {
    /// Events from this moment on.
    #[example(EXAMPLE_DAY_BEFORE)]
    since: Time,
    /// Up to this one; by default, and at most, up to now.
    until: Option<Time>,
    /// Whether to send only events of which a delivery to the endpoint failed and none succeeded.
    #[oai(default)]
    #[example(true)]
    only_failed: bool,
    /// Whether to make due at once the deliveries of these events that wait for a later attempt.
    /// Otherwise they are left as they are. A pause that the receiver asked for ends with it.
    #[oai(default)]
    #[example(true)]
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
    #[example(["order.*"])]
    event_types: Option<Vec<String>>,
}

/// The operations on replays.
pub struct Replays;

#[OpenApi(prefix_path = "/v1/webhook-endpoints", tag = "Tag::Webhooks")]
impl Replays {
    /// Replay events
    ///
    /// Sends to this endpoint, once more, the events since a time that its filters let through:
    /// each with a new delivery, under the `webhook-id` that it always had. An event whose delivery
    /// is still pending gets no second one; `include_pending` makes that one due at once. It goes on by itself, a part at a time and after what just happened,
    /// also after a restart. A replay of the same filter that is running is answered instead of
    /// another one.
    #[oai(path = "/:id/replays", method = "post", operation_id = "start_replay")]
    async fn start(
        &self,
        who: Caller<WebhooksWrite>,
        Path(id): Path<EndpointId>,
        key: Idempotency,
        body: Body<NewReplayBody>,
    ) -> Result<Accepted<ReplayView>, ApiError> {
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let started = webhooks.start_replay(&context, id, body.0.into(), |(replay, _)| {
            answer(202, &ReplayView::from(replay))
        });
        Ok(started.await?.into())
    }

    /// List replays
    ///
    /// Newest first.
    #[oai(path = "/:id/replays", method = "get", operation_id = "list_replays")]
    async fn list(
        &self,
        who: Caller<WebhooksRead>,
        Path(id): Path<EndpointId>,
        page: PageQuery,
    ) -> Result<Listed<ReplayView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.scoped().webhooks().replays(id, list.page()?).await?;
        Ok(list.answer(page, |replay| ReplayView::from(&replay)))
    }

    /// Get a replay
    #[oai(
        path = "/:id/replays/:replay",
        method = "get",
        operation_id = "get_replay"
    )]
    async fn get(
        &self,
        who: Caller<WebhooksRead>,
        Path(id): Path<EndpointId>,
        Path(replay): Path<ReplayId>,
    ) -> Result<Ok<ReplayView>, ApiError> {
        let found = who.scoped().webhooks().replay(id, replay).await?;
        Ok(Ok::show(&ReplayView::from(&found), None))
    }

    /// Cancel a replay
    ///
    /// No more deliveries are written, and those that wait are cancelled. One that has ended stays
    /// as it is.
    #[oai(
        path = "/:id/replays/:replay/cancel",
        method = "post",
        operation_id = "cancel_replay"
    )]
    async fn cancel(
        &self,
        who: Caller<WebhooksWrite>,
        Path(id): Path<EndpointId>,
        Path(replay): Path<ReplayId>,
        key: Idempotency,
    ) -> Result<Ok<ReplayView>, ApiError> {
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let cancelled = webhooks.cancel_replay(&context, id, replay, |replay| {
            answer(200, &ReplayView::from(replay))
        });
        Ok(cancelled.await?.into())
    }
}
