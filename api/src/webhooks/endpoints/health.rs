//! How an endpoint fares: its health, a day of counts, and another chance.

use poem_openapi::{Enum, Object, types::Example};
use view_derive::{Example, View};

use domain::{Timestamp, id::EndpointId};
use persistence::{BUCKET_MS, Enabled, Endpoint, Health, StatsBucket};

use super::EndpointView;
use crate::{
    shared::{EXAMPLE_DAY_BEFORE, Time},
    webhooks::replays::ReplayView,
};

/// Spans of a day.
const BUCKETS: i64 = 24 * 3600 * 1000 / BUCKET_MS;

/// How tries at an endpoint go.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "EndpointState", rename_all = "snake_case")]
pub enum State {
    /// Nothing was tried yet, or not since it was enabled again.
    Untried,
    /// The last try succeeded.
    Healthy,
    /// The last try failed.
    Failing,
    /// A part of it can't be read as it is stored, so nothing is delivered to it. Such parts are
    /// shown empty; a `PATCH` that sets them mends it.
    Unreadable,
}

/// How tries at an endpoint went lately.
#[derive(Object, View, Clone, Debug)]
#[oai(rename = "EndpointHealth", example)]
#[view(of = Health)]
pub struct HealthView {
    /// In a word.
    #[view(from = State::of(of))]
    state: State,
    /// Failures since the last success.
    consecutive_failures: i32,
    /// When the first of them was.
    #[oai(nullable)]
    failing_since: Option<Time>,
    /// When a try last succeeded.
    #[oai(nullable)]
    last_success_at: Option<Time>,
    /// When a try last failed.
    #[oai(nullable)]
    last_failure_at: Option<Time>,
    /// Why it failed: the class, as attempts have it.
    #[oai(nullable)]
    last_error: Option<String>,
    /// What the consumer answered then.
    #[oai(nullable)]
    last_status_code: Option<i32>,
    /// Of the tries of the last 24 hours, the part that succeeded, 0 to 1; null without any.
    #[oai(nullable)]
    #[view(from = share(of.succeeded_day, of.succeeded_day + of.failed_day))]
    success_rate: Option<f64>,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate of counts far below 2^52"
)]
fn share(part: i64, whole: i64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl State {
    /// As the tries alone say.
    fn of(health: &Health) -> Self {
        if health.consecutive_failures > 0 {
            Self::Failing
        } else if health.last_success_at.is_some() {
            Self::Healthy
        } else {
            Self::Untried
        }
    }
}

impl HealthView {
    /// As an endpoint shows it.
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        let view = Self::from(&endpoint.health);
        let unreadable = endpoint.unreadable
            || endpoint.health.last_error.as_deref() == Some("endpoint_unreadable")
                && endpoint.health.consecutive_failures > 0;
        let state = if unreadable {
            State::Unreadable
        } else {
            view.state
        };
        Self { state, ..view }
    }
}

impl Example for HealthView {
    fn example() -> Self {
        Self::from(&Health {
            last_success_at: Some(Timestamp::from_ms(1_769_860_800_000)),
            succeeded_day: 399,
            failed_day: 1,
            ..Health::default()
        })
    }
}

/// What else to do when an endpoint is enabled.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "EnableEndpoint",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub struct EnableBody {
    /// If given, everything from this moment on is sent to it again.
    #[example(EXAMPLE_DAY_BEFORE)]
    pub(super) replay_since: Option<Time>,
}

/// An endpoint that was enabled.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(example)]
#[view(of = Enabled)]
pub struct EnabledEndpoint {
    #[oai(flatten)]
    endpoint: EndpointView,
    /// Deliveries that waited for a later attempt, and are due now.
    #[example(12)]
    deliveries_due: u64,
    /// The replay that was asked for.
    #[oai(nullable)]
    #[example(ReplayView::example())]
    replay: Option<ReplayView>,
}

/// Tries within five minutes.
#[derive(Object, Clone, Debug)]
#[oai(rename = "EndpointStatsBucket")]
pub struct BucketView {
    /// When they begin.
    at: Time,
    /// Tries that succeeded.
    succeeded: i64,
    /// Tries that failed.
    failed: i64,
    /// How long a try took on average, milliseconds; null without any.
    #[oai(nullable)]
    latency_ms_mean: Option<f64>,
    /// How long the longest took, milliseconds.
    latency_ms_max: i64,
}

/// A day of tries.
#[derive(Object, Clone, Debug)]
#[oai(example)]
pub struct EndpointStats {
    /// `ep_…`
    endpoint_id: String,
    /// How long each span is, seconds.
    bucket_seconds: i64,
    /// 288 spans of five minutes, oldest first; the last one is not over.
    items: Vec<BucketView>,
}

impl EndpointStats {
    /// A day up to `now`, with a span for each five minutes.
    pub(super) fn new(endpoint: EndpointId, buckets: &[StatsBucket], now: Timestamp) -> Self {
        let last = now.ms() - now.ms().rem_euclid(BUCKET_MS);
        let items = (0..BUCKETS).rev().map(|back| {
            let at = Timestamp::from_ms(last - back * BUCKET_MS);
            let found = buckets.iter().find(|bucket| bucket.at == at);
            let (succeeded, failed) = found.map_or((0, 0), |b| (b.succeeded, b.failed));
            BucketView {
                at: at.into(),
                succeeded,
                failed,
                latency_ms_mean: found.and_then(|b| share(b.latency_ms_sum, succeeded + failed)),
                latency_ms_max: found.map_or(0, |b| b.latency_ms_max),
            }
        });
        Self {
            endpoint_id: endpoint.to_string(),
            bucket_seconds: BUCKET_MS / 1000,
            items: items.collect(),
        }
    }
}

impl Example for EndpointStats {
    fn example() -> Self {
        let at = Timestamp::from_ms(1_769_860_800_000);
        let bucket = StatsBucket {
            at,
            succeeded: 41,
            failed: 1,
            latency_ms_sum: 966,
            latency_ms_max: 180,
        };
        let endpoint = domain::id::Id::from_uuid(uuid::Uuid::nil());
        let mut example = Self::new(endpoint, &[bucket], at);
        example.items = example.items.split_off(example.items.len() - 2);
        example
    }
}
