//! Health and its consequences, on both engines.

use domain::{Timestamp, id::PublisherId};

use super::*;
use crate::{
    Enabled, Endpoint, NewReplay, Replay,
    fixture::{Fixture, context, engines},
    runs::tests::{PAGE, Slot, house},
};

const DAY: Duration = Duration::from_hours(24);
const FIVE_DAYS: Duration = Duration::from_hours(120);

/// A publisher with two endpoints that want everything.
async fn two(fixture: &Fixture) -> (Scoped, EndpointId, EndpointId) {
    let acme = house(fixture, "acme", &[]).await;
    let one = fixture.endpoint(acme.scope.publisher(), false).await;
    let other = fixture.endpoint(acme.scope.publisher(), false).await;
    (acme, one, other)
}

async fn note(fixture: &Fixture, of: PublisherId, to: EndpointId, codes: &[u16]) -> bool {
    let at = fixture.store.now();
    let tries: Vec<Try> = codes
        .iter()
        .zip(0..)
        .map(|(code, n)| Try {
            publisher: of.uuid(),
            endpoint: to.uuid(),
            at: at.plus(Duration::from_millis(n)),
            status_code: Some(*code),
            error: (*code >= 300).then_some("status"),
            latency_ms: 10 * (n + 1),
        })
        .collect();
    let tries = tries.as_slice();
    fixture
        .store
        .write(|tx| async move { note_outcomes(&tx, tries).await })
        .await
        .unwrap()
}

async fn settle(fixture: &Fixture) -> (u64, u64, u64) {
    let system = fixture.store.system();
    let done = system
        .webhooks()
        .settle_endpoints(FIVE_DAYS, 10)
        .await
        .unwrap();
    (done.disabled, done.warned, done.recovered)
}

async fn types(scoped: &Scoped) -> Vec<String> {
    let events = scoped.webhooks().events(None, PAGE).await.unwrap().items;
    events.into_iter().map(|event| event.event_type).collect()
}

async fn enable(
    scoped: &Scoped,
    id: EndpointId,
    replay: Option<NewReplay>,
) -> (Endpoint, Option<Replay>) {
    let slot = Slot::new();
    scoped
        .webhooks()
        .enable_endpoint(&context(), id, replay, |enabled| slot.keep(enabled))
        .await
        .unwrap();
    let enabled: Enabled = slot.take();
    (enabled.endpoint, enabled.replay)
}

#[tokio::test]
async fn tries_are_counted_by_endpoint_and_time() {
    for fixture in engines().await {
        let (acme, one, other) = two(&fixture).await;
        let of = acme.scope.publisher();
        assert_eq!(
            acme.webhooks().endpoint(one).await.unwrap().health,
            Health::default()
        );
        assert!(!note(&fixture, of, one, &[500, 200, 503, 429]).await);
        note(&fixture, of, one, &[500]).await;
        let health = acme.webhooks().endpoint(one).await.unwrap().health;
        assert_eq!(health.consecutive_failures, 3);
        assert_eq!(
            health.failing_since,
            Some(fixture.store.now().plus(Duration::from_millis(2)))
        );
        assert_eq!(health.last_status_code, Some(500));
        assert_eq!((health.succeeded_day, health.failed_day), (1, 4));
        let later = 2 * BUCKET_MS.unsigned_abs();
        fixture.clock.advance(Duration::from_millis(later));
        note(&fixture, of, one, &[200]).await;
        let health = acme.webhooks().endpoint(one).await.unwrap().health;
        assert_eq!(
            (health.consecutive_failures, health.failing_since),
            (0, None)
        );
        assert_eq!(
            health.last_error.as_deref(),
            Some("status"),
            "of the last failure"
        );
        let stats = acme.webhooks().endpoint_stats(one).await.unwrap();
        let counts: Vec<_> = stats
            .iter()
            .map(|b| (b.succeeded, b.failed, b.latency_ms_max))
            .collect();
        assert_eq!(counts, [(1, 4, 40), (1, 0, 10)]);
        assert_eq!(
            acme.webhooks().endpoint(other).await.unwrap().health,
            Health::default()
        );
        fixture.clock.advance(26 * Duration::from_hours(1));
        assert!(
            acme.webhooks()
                .endpoint_stats(one)
                .await
                .unwrap()
                .is_empty()
        );
        assert_eq!(
            fixture
                .store
                .system()
                .operations()
                .sweep_table("endpoint_stats", Timestamp::from_ms(0), 10)
                .await
                .unwrap(),
            2
        );
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_for_days_is_told_of_and_then_disabled() {
    for fixture in engines().await {
        let (acme, one, _) = two(&fixture).await;
        let of = acme.scope.publisher();
        note(&fixture, of, one, &[500]).await;
        assert_eq!(settle(&fixture).await, (0, 0, 0));
        fixture.clock.advance(DAY);
        assert_eq!(settle(&fixture).await, (0, 1, 0));
        assert_eq!(settle(&fixture).await, (0, 0, 0), "told once");
        note(&fixture, of, one, &[500]).await;
        fixture.clock.advance(4 * DAY);
        assert_eq!(settle(&fixture).await, (1, 0, 0));
        assert_eq!(settle(&fixture).await, (0, 0, 0));
        let endpoint = acme.webhooks().endpoint(one).await.unwrap();
        assert_eq!(
            (endpoint.enabled, endpoint.disabled_reason.as_deref()),
            (false, Some("failing"))
        );
        let told = [
            "stationmaster.endpoint.disabled",
            "stationmaster.endpoint.failing",
        ];
        assert_eq!(types(&acme).await, told);
        assert_eq!(
            fixture.count("deliveries").await,
            2,
            "each to the other endpoint"
        );
        assert_eq!(
            fixture
                .count("audit_events WHERE action = 'endpoint.disabled' AND actor_kind = 'system'")
                .await,
            1
        );

        // Enabled again: earlier failures do not count.
        let (endpoint, replay) = enable(&acme, one, None).await;
        assert!(endpoint.enabled && replay.is_none());
        assert_eq!(settle(&fixture).await, (0, 0, 0));
        assert_eq!(endpoint.health.failing_since, None);
    }
}

#[tokio::test]
async fn a_warned_endpoint_that_works_again_is_told_of_once() {
    for fixture in engines().await {
        let (acme, one, _) = two(&fixture).await;
        let of = acme.scope.publisher();
        note(&fixture, of, one, &[500]).await;
        fixture.clock.advance(DAY);
        settle(&fixture).await;
        note(&fixture, of, one, &[204]).await;
        assert_eq!(settle(&fixture).await, (0, 0, 1));
        assert_eq!(settle(&fixture).await, (0, 0, 0));
        let told = types(&acme).await;
        assert!(told.contains(&"stationmaster.endpoint.recovered".to_owned()));
        // Nobody is told of a short failure.
        note(&fixture, of, one, &[500]).await;
        note(&fixture, of, one, &[204]).await;
        assert_eq!(settle(&fixture).await, (0, 0, 0));
    }
}

#[tokio::test]
async fn what_is_gone_is_disabled_at_once_and_can_be_enabled_with_a_replay() {
    for fixture in engines().await {
        let (acme, one, _) = two(&fixture).await;
        let of = acme.scope.publisher();
        assert!(note(&fixture, of, one, &[410]).await, "it says so");
        assert_eq!(
            fixture
                .store
                .system()
                .webhooks()
                .disable_gone_endpoints()
                .await
                .unwrap(),
            1
        );
        let endpoint = acme.webhooks().endpoint(one).await.unwrap();
        assert_eq!(endpoint.disabled_reason.as_deref(), Some("gone"));
        let replay = NewReplay {
            since: fixture.store.now().minus(DAY),
            until: None,
            only_failed: false,
            include_pending: false,
            event_types: None,
        };
        let (endpoint, replay) = enable(&acme, one, Some(replay)).await;
        assert!(endpoint.enabled);
        assert_eq!(replay.unwrap().status, "running");
        assert_eq!(
            fixture
                .store
                .system()
                .webhooks()
                .disable_gone_endpoints()
                .await
                .unwrap(),
            0
        );
    }
}
