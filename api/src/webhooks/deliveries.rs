//! Deliveries: what became of each event at each endpoint.

use poem_openapi::{Object, OpenApi, param::Query};
use view_derive::{Example, View};

use domain::{
    id::{DeliveryId, EndpointId, EventId, Id},
    permission::{WebhooksRead, WebhooksSend},
    words,
};
use persistence::{Attempt, Delivery, DeliveryFilter};

use crate::{
    auth::Caller,
    shared::{
        EXAMPLE_AT, Idempotency, Listed, Ok, PageQuery, Path, Tag, Time, Word, answer, nil_id,
        schemas_of_words,
    },
};
use web::http::ApiError;

words! {
    /// Where a delivery stands.
    pub enum Status {
        /// A try is due or under way.
        Pending = "pending",
        /// The consumer took it.
        Succeeded = "succeeded",
        /// All tries failed.
        Failed = "failed",
        /// Its endpoint was deleted.
        Cancelled = "cancelled",
    }
}

schemas_of_words! { Status, "DeliveryStatus", "Where a delivery stands."; }

/// A delivery of one event to one endpoint.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "Delivery", example)]
#[view(of = Delivery)]
pub struct DeliveryView {
    /// `dlv_…`
    #[example(nil_id::<DeliveryId>())]
    id: String,
    /// What is delivered.
    #[example(nil_id::<EventId>())]
    event_id: String,
    /// The event's type.
    #[example("run.succeeded")]
    event_type: String,
    /// Where to.
    #[example(nil_id::<EndpointId>())]
    endpoint_id: String,
    /// Where it stands.
    #[example(Status::Succeeded)]
    // The store has no other words.
    #[view(from = Word(Status::parse(&of.status).unwrap_or(Status::Pending)))]
    status: Word<Status>,
    /// How often it was tried.
    #[example(1)]
    #[view(field = attempts)]
    attempt_count: i32,
    /// When the next try is due.
    #[oai(nullable)]
    next_attempt_at: Option<Time>,
    /// When it was written, with its event.
    created_at: Time,
    /// When it succeeded, failed or was cancelled.
    #[oai(nullable)]
    #[example(EXAMPLE_AT)]
    finished_at: Option<Time>,
}

/// One try.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "DeliveryAttempt", example)]
#[view(of = Attempt)]
pub struct AttemptView {
    /// Counts from 1.
    #[example(1)]
    number: i32,
    /// When it began.
    at: Time,
    /// The consumer's status, if it answered.
    #[oai(nullable)]
    #[example(200)]
    status_code: Option<i32>,
    /// Why there was no good answer: a stable word.
    #[oai(nullable)]
    error: Option<String>,
    /// How long it took, milliseconds.
    #[example(23)]
    latency_ms: i64,
    /// The beginning of the consumer's answer, 1 KiB at most.
    #[oai(nullable)]
    #[example("ok")]
    response_excerpt: Option<String>,
}

/// A delivery with its tries.
#[derive(Object, Example, Clone, Debug)]
#[oai(example)]
pub struct DeliveryWithAttempts {
    #[oai(flatten)]
    delivery: DeliveryView,
    /// The newest tries, the oldest of them first.
    #[example([AttemptView::example()])]
    attempts: Vec<AttemptView>,
}

/// An identifier to filter by. One that isn't in canonical form names nothing, as does one of
/// another publisher: nothing is found, by the same query.
fn filter_id<T: Id>(text: Option<&str>) -> Option<T> {
    text.map(|text| T::parse(text).unwrap_or_else(|| T::from_uuid(uuid::Uuid::nil())))
}

/// The operations on deliveries.
pub struct Deliveries;

#[OpenApi(prefix_path = "/v1/deliveries", tag = "Tag::Webhooks")]
impl Deliveries {
    /// List deliveries
    ///
    /// Newest first.
    #[oai(path = "/", method = "get", operation_id = "list_deliveries")]
    async fn list(
        &self,
        who: Caller<WebhooksRead>,
        /// Only deliveries to this endpoint.
        #[oai(validator(max_length = 40))]
        endpoint: Query<Option<String>>,
        /// Only deliveries of this event.
        #[oai(validator(max_length = 40))]
        event: Query<Option<String>>,
        /// Only deliveries with this status.
        status: Query<Option<Word<Status>>>,
        page: PageQuery,
    ) -> Result<Listed<DeliveryView>, ApiError> {
        let list = who.list(page).await?;
        let filter = DeliveryFilter {
            endpoint: filter_id(endpoint.0.as_deref()),
            event: filter_id(event.0.as_deref()),
            status: status.0.map(|status| status.0.as_str().to_owned()),
        };
        let page = who
            .scoped()
            .webhooks()
            .deliveries(&filter, list.page()?)
            .await?;
        Ok(list.answer(page, |delivery| DeliveryView::from(&delivery)))
    }

    /// Get a delivery with its attempts
    #[oai(path = "/:id", method = "get", operation_id = "get_delivery")]
    async fn get(
        &self,
        who: Caller<WebhooksRead>,
        Path(id): Path<DeliveryId>,
    ) -> Result<Ok<DeliveryWithAttempts>, ApiError> {
        let (delivery, attempts) = who.scoped().webhooks().delivery(id).await?;
        let view = DeliveryWithAttempts {
            delivery: DeliveryView::from(&delivery),
            attempts: attempts.iter().map(AttemptView::from).collect(),
        };
        Ok(Ok::show(&view, None))
    }

    /// Retry a delivery
    ///
    /// Makes a delivery due at once, whether it has ended or waits for a later attempt. A pause that
    /// the receiver asked for ends. On an ordered endpoint, the deliveries before it go first.
    #[oai(path = "/:id/retry", method = "post", operation_id = "retry_delivery")]
    async fn retry(
        &self,
        who: Caller<WebhooksSend>,
        Path(id): Path<DeliveryId>,
        key: Idempotency,
    ) -> Result<Ok<DeliveryView>, ApiError> {
        let context = who.context_with(key);
        let webhooks = who.scoped().webhooks();
        let answer = webhooks.retry_delivery(&context, id, |delivery| {
            answer(200, &DeliveryView::from(delivery))
        });
        Ok(answer.await?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identifier_that_is_none_filters_like_one_that_names_nothing() {
        assert_eq!(filter_id::<EventId>(None), None);
        let nothing = Some(EventId::from_uuid(uuid::Uuid::nil()));
        assert_eq!(filter_id::<EventId>(Some("evt_x")), nothing);
        let own = EventId::from_uuid(uuid::Uuid::from_u128(7));
        assert_eq!(filter_id::<EventId>(Some(&own.to_string())), Some(own));
    }
}
