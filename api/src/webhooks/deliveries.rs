//! Deliveries: what became of each event at each endpoint.

use std::sync::Arc;

use poem_openapi::{
    Enum, Object, OpenApi,
    param::{Path, Query},
    types::Example,
};

use domain::{
    Code, Timestamp,
    id::{DeliveryId, EndpointId, EventId, Id},
};
use persistence::{Attempt, Delivery, DeliveryFilter};

use crate::{
    auth::Admin,
    shared::{
        App,
        common::{Ok, Tag, Time, answer, parse_id},
        cursor::{List, Listed},
        idempotency::Idempotency,
    },
};
use web::{
    contract::OperationDoc,
    http::{ApiError, RequestContext},
};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[OperationDoc {
    operation_id: "retry_delivery",
    codes: &[Code::EndpointDisabled, Code::IdempotencyKeyReused],
}];

/// Where a delivery stands.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "DeliveryStatus", rename_all = "snake_case")]
pub enum Status {
    /// A try is due or under way.
    Pending,
    /// The consumer took it.
    Succeeded,
    /// All tries failed.
    Failed,
    /// Its endpoint was deleted.
    Cancelled,
}

impl Status {
    const ALL: [Self; 4] = [
        Self::Pending,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// From the store's word, of which there are no others.
    fn of(word: &str) -> Self {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == word)
            .unwrap_or(Self::Pending)
    }
}

/// A delivery of one event to one endpoint.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Delivery", example)]
pub struct DeliveryView {
    /// `dlv_…`
    id: String,
    /// What is delivered.
    event_id: String,
    /// The event's type.
    event_type: String,
    /// Where to.
    endpoint_id: String,
    /// Where it stands.
    status: Status,
    /// How often it was tried.
    attempt_count: i32,
    /// When the next try is due.
    #[oai(nullable)]
    next_attempt_at: Option<Time>,
    /// When it was written, with its event.
    created_at: Time,
    /// When it succeeded, failed or was cancelled.
    #[oai(nullable)]
    finished_at: Option<Time>,
}

impl From<&Delivery> for DeliveryView {
    fn from(delivery: &Delivery) -> Self {
        Self {
            id: delivery.id.to_string(),
            event_id: delivery.event_id.to_string(),
            event_type: delivery.event_type.clone(),
            endpoint_id: delivery.endpoint_id.to_string(),
            status: Status::of(&delivery.status),
            attempt_count: delivery.attempts,
            next_attempt_at: delivery.next_attempt_at.map(Time),
            created_at: delivery.created_at.into(),
            finished_at: delivery.finished_at.map(Time),
        }
    }
}

impl Example for DeliveryView {
    fn example() -> Self {
        let at = Timestamp::from_ms(1_769_860_800_000);
        let nil = uuid::Uuid::nil();
        Self {
            id: DeliveryId::from_uuid(nil).to_string(),
            event_id: EventId::from_uuid(nil).to_string(),
            event_type: "run.succeeded".into(),
            endpoint_id: EndpointId::from_uuid(nil).to_string(),
            status: Status::Succeeded,
            attempt_count: 1,
            next_attempt_at: None,
            created_at: at.into(),
            finished_at: Some(at.into()),
        }
    }
}

/// One try.
#[derive(Object, Clone, Debug)]
#[oai(rename = "DeliveryAttempt", example)]
pub struct AttemptView {
    /// Counts from 1.
    number: i32,
    /// When it began.
    at: Time,
    /// The consumer's status, if it answered.
    #[oai(nullable)]
    status_code: Option<i32>,
    /// Why there was no good answer: a stable word.
    #[oai(nullable)]
    error: Option<String>,
    /// How long it took, milliseconds.
    latency_ms: i64,
    /// The beginning of the consumer's answer, 1 KiB at most.
    #[oai(nullable)]
    response_excerpt: Option<String>,
}

impl From<&Attempt> for AttemptView {
    fn from(attempt: &Attempt) -> Self {
        Self {
            number: attempt.number,
            at: attempt.at.into(),
            status_code: attempt.status_code,
            error: attempt.error.clone(),
            latency_ms: attempt.latency_ms,
            response_excerpt: attempt.response_excerpt.clone(),
        }
    }
}

impl Example for AttemptView {
    fn example() -> Self {
        Self {
            number: 1,
            at: Timestamp::from_ms(1_769_860_800_000).into(),
            status_code: Some(200),
            error: None,
            latency_ms: 23,
            response_excerpt: Some("ok".into()),
        }
    }
}

/// A delivery with its tries.
#[derive(Object, Clone, Debug)]
#[oai(example)]
pub struct DeliveryWithAttempts {
    #[oai(flatten)]
    delivery: DeliveryView,
    /// The newest tries, the oldest of them first.
    attempts: Vec<AttemptView>,
}

impl Example for DeliveryWithAttempts {
    fn example() -> Self {
        Self {
            delivery: DeliveryView::example(),
            attempts: vec![AttemptView::example()],
        }
    }
}

/// An identifier to filter by. One that isn't in canonical form names nothing, as does one of
/// another publisher: nothing is found, by the same query.
fn filter_id<T: Id>(text: Option<&str>) -> Option<T> {
    text.map(|text| T::parse(text).unwrap_or_else(|| T::from_uuid(uuid::Uuid::nil())))
}

/// The operations on deliveries.
pub struct Deliveries {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Webhooks")]
impl Deliveries {
    /// List deliveries
    ///
    /// Newest first.
    #[oai(path = "/deliveries", method = "get", operation_id = "list_deliveries")]
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a parameter of the request"
    )]
    async fn list(
        &self,
        who: Admin,
        request: &RequestContext,
        /// Only deliveries to this endpoint.
        #[oai(validator(max_length = 40))]
        endpoint: Query<Option<String>>,
        /// Only deliveries of this event.
        #[oai(validator(max_length = 40))]
        event: Query<Option<String>>,
        /// Only deliveries with this status.
        status: Query<Option<Status>>,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<DeliveryView>, ApiError> {
        let scope = &who.0.scope;
        let list = List::begin(&self.app, request, Some(scope), limit.0, cursor.0).await?;
        let filter = DeliveryFilter {
            endpoint: filter_id(endpoint.0.as_deref()),
            event: filter_id(event.0.as_deref()),
            status: status.0.map(|status| status.as_str().to_owned()),
        };
        let page = self
            .app
            .store
            .scoped(scope)
            .deliveries(&filter, list.page()?)
            .await?;
        Ok(list.answer(page, |delivery| DeliveryView::from(&delivery)))
    }

    /// Get a delivery with its attempts
    #[oai(
        path = "/deliveries/:id",
        method = "get",
        operation_id = "get_delivery"
    )]
    async fn get(
        &self,
        who: Admin,
        /// The delivery's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
    ) -> Result<Ok<DeliveryWithAttempts>, ApiError> {
        let id = parse_id::<DeliveryId>(&id.0)?;
        let (delivery, attempts) = self.app.store.scoped(&who.0.scope).delivery(id).await?;
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
    #[oai(
        path = "/deliveries/:id/retry",
        method = "post",
        operation_id = "retry_delivery"
    )]
    async fn retry(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The delivery's identifier.
        #[oai(validator(max_length = 40))]
        id: Path<String>,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
    ) -> Result<Ok<DeliveryView>, ApiError> {
        let id = parse_id::<DeliveryId>(&id.0)?;
        let key = key.of("retry_delivery", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped
            .retry_delivery(&context, id, |delivery| {
                answer(200, &DeliveryView::from(delivery), None, None, false)
            })
            .await?;
        Ok(answer.into())
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

    #[test]
    fn words_are_the_stores() {
        for status in Status::ALL {
            assert_eq!(Status::of(status.as_str()), status);
        }
    }
}
