use std::time::Duration;

use domain::{
    Timestamp,
    credential::CredentialKind,
    id::{DeliveryId, EndpointId, EventId, Id as _, PublisherId},
};
use sea_orm::{ConnectionTrait as _, DbBackend, EntityTrait as _};
use secrecy::ExposeSecret as _;

use super::{DueDelivery, Next, Outcome};
use crate::{
    CreatedPublisher, NewCredential,
    entity::{deliveries, delivery_attempts},
    fixture::{Fixture, START, context, engines, no_content},
};

const LEASE: Duration = Duration::from_mins(1);

struct World {
    fixture: Fixture,
    created: CreatedPublisher,
    publisher: PublisherId,
    endpoint: EndpointId,
    event: EventId,
}

async fn worlds() -> Vec<World> {
    let mut worlds = Vec::new();
    for fixture in engines().await {
        let created = fixture.publisher("acme").await;
        let publisher = created.publisher.id;
        let endpoint = fixture.endpoint(publisher, true).await;
        let event = fixture.event(publisher).await;
        worlds.push(World {
            fixture,
            created,
            publisher,
            endpoint,
            event,
        });
    }
    worlds
}

impl World {
    async fn delivery(&self, due: Timestamp) -> DeliveryId {
        self.fixture
            .delivery(self.publisher, self.event, self.endpoint, due)
            .await
    }

    async fn claim(&self, limit: u64) -> Vec<DueDelivery> {
        self.claim_beside(limit, 1000, &[]).await
    }

    async fn claim_beside(
        &self,
        limit: u64,
        per_endpoint: u64,
        busy: &[(EndpointId, u64)],
    ) -> Vec<DueDelivery> {
        let system = self.fixture.store.system();
        system
            .claim_deliveries(limit, LEASE, per_endpoint, busy)
            .await
            .unwrap()
    }

    async fn record(&self, due: &DueDelivery, next: Next) {
        let error = if next == Next::Succeeded {
            None
        } else {
            Some("status")
        };
        let outcome = Outcome {
            publisher: due.publisher,
            id: due.id,
            fence: due.fence,
            attempt: due.attempt,
            at: self.fixture.store.now(),
            status_code: Some(if error.is_none() { 204 } else { 500 }),
            error,
            latency_ms: 12,
            excerpt: Some("said".into()),
            next,
        };
        self.fixture
            .store
            .system()
            .record_outcomes(vec![outcome])
            .await
            .unwrap();
    }

    async fn row(&self, id: DeliveryId) -> deliveries::Model {
        deliveries::Entity::find_by_id((self.publisher.uuid(), id.uuid()))
            .one(self.fixture.store.read())
            .await
            .unwrap()
            .unwrap()
    }

    async fn attempts(&self) -> Vec<delivery_attempts::Model> {
        delivery_attempts::Entity::find()
            .all(self.fixture.store.read())
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_claim_brings_all_that_a_request_needs_and_holds_it_for_the_lease() {
    for world in worlds().await {
        let id = world.delivery(START).await;
        world.delivery(START.plus(Duration::from_mins(10))).await;
        let claimed = world.claim(10).await;
        assert_eq!(claimed.len(), 1);
        let due = &claimed[0];
        assert_eq!((due.id, due.attempt, due.fence), (id, 1, 1));
        assert_eq!((due.endpoint, due.event), (world.endpoint, world.event));
        assert_eq!(due.body, format!(r#"{{"id":"{}"}}"#, world.event));
        assert_eq!(due.headers.get("x-own").map(String::as_str), Some("1"));
        let signing = world.created.webhook_signing.text.expose_secret();
        assert_eq!(due.secrets.len(), 1);
        assert_eq!(due.secrets[0].expose_secret(), signing);
        let bearer = due.bearer.as_ref().unwrap().expose_secret();
        assert_eq!(bearer, world.created.subcommand_bearer.text.expose_secret());

        assert!(world.claim(10).await.is_empty(), "it is leased");
        let system = world.fixture.store.system();
        assert_eq!(system.next_due(&[]).await.unwrap(), Some(START.plus(LEASE)));
        assert_eq!(system.next_due(&[world.endpoint]).await.unwrap(), None);
        world.fixture.clock.advance(LEASE);
        let again = world.claim(10).await;
        assert_eq!((again[0].id, again[0].attempt, again[0].fence), (id, 1, 2));
    }
}

#[tokio::test]
async fn all_live_secrets_sign_and_the_newest_bearer_goes_along_only_where_asked() {
    for world in worlds().await {
        let plain = world.fixture.endpoint(world.publisher, false).await;
        world
            .fixture
            .delivery(world.publisher, world.event, plain, START)
            .await;
        world.delivery(START).await;
        world.fixture.clock.advance(Duration::from_millis(5));
        let scope = crate::Scope::of_row(world.publisher.uuid(), None);
        let scoped = world.fixture.store.scoped(&scope);
        for kind in [
            CredentialKind::WebhookSigning,
            CredentialKind::SubcommandBearer,
        ] {
            let new = NewCredential::default();
            scoped
                .mint(&context(), kind, new, |_| no_content())
                .await
                .unwrap();
        }
        for due in world.claim(10).await {
            assert_eq!(due.secrets.len(), 2);
            let old = world.created.webhook_signing.text.expose_secret();
            assert_ne!(
                due.secrets[0].expose_secret(),
                old,
                "the newest comes first"
            );
            assert_eq!(due.secrets[1].expose_secret(), old);
            assert_eq!(due.bearer.is_some(), due.endpoint == world.endpoint);
            if let Some(bearer) = due.bearer {
                let old = world.created.subcommand_bearer.text.expose_secret();
                assert_ne!(bearer.expose_secret(), old);
            }
        }
    }
}

#[tokio::test]
async fn outcomes_end_a_delivery_or_move_it() {
    for world in worlds().await {
        let id = world.delivery(START).await;
        let due = world.claim(10).await.remove(0);
        let later = START.plus(Duration::from_secs(5));
        world.record(&due, Next::RetryAt(later)).await;
        let row = world.row(id).await;
        assert_eq!((row.status.as_str(), row.attempts), ("pending", 1));
        assert_eq!(
            (row.next_attempt_at, row.finished_at),
            (Some(later.ms()), None)
        );

        world.fixture.clock.advance(Duration::from_secs(5));
        let due = world.claim(10).await.remove(0);
        assert_eq!(due.attempt, 2);
        world.record(&due, Next::Succeeded).await;
        let row = world.row(id).await;
        assert_eq!((row.status.as_str(), row.attempts), ("succeeded", 2));
        assert_eq!(
            (row.next_attempt_at, row.finished_at),
            (None, Some(later.ms()))
        );

        let mut attempts = world.attempts().await;
        attempts.sort_by_key(|attempt| attempt.number);
        assert_eq!(attempts.len(), 2);
        assert_eq!(attempts[0].status_code, Some(500));
        assert_eq!(attempts[0].error.as_deref(), Some("status"));
        assert_eq!(attempts[1].error, None);
        assert_eq!(attempts[1].response_excerpt.as_deref(), Some("said"));
        assert_eq!(attempts[1].latency_ms, 12);

        let last = world.delivery(START).await;
        let due = world.claim(10).await.remove(0);
        world.record(&due, Next::Failed).await;
        assert_eq!(world.row(last).await.status, "failed");
    }
}

#[tokio::test]
async fn a_late_outcome_changes_nothing() {
    for world in worlds().await {
        let id = world.delivery(START).await;
        let lost = world.claim(10).await.remove(0);
        world.fixture.clock.advance(LEASE);
        let held = world.claim(10).await.remove(0);
        world.record(&lost, Next::Failed).await;
        assert_eq!(world.row(id).await.status, "pending");
        assert!(world.attempts().await.is_empty());
        world.record(&held, Next::Succeeded).await;
        world.record(&held, Next::Failed).await;
        assert_eq!(world.row(id).await.status, "succeeded");
        assert_eq!(world.attempts().await.len(), 1);
    }
}

#[tokio::test]
async fn paused_and_suspended_receivers_are_left_alone() {
    for world in worlds().await {
        world.delivery(START).await;
        let system = world.fixture.store.system();
        for (stop, go) in [
            (
                "UPDATE webhook_endpoints SET enabled = FALSE",
                "UPDATE webhook_endpoints SET enabled = TRUE",
            ),
            (
                "UPDATE publishers SET status = 'suspended'",
                "UPDATE publishers SET status = 'active'",
            ),
        ] {
            world.fixture.execute(stop).await;
            assert!(world.claim(10).await.is_empty());
            assert_eq!(system.next_due(&[]).await.unwrap(), None);
            world.fixture.execute(go).await;
            assert_eq!(system.next_due(&[]).await.unwrap(), Some(START));
        }
        assert_eq!(world.claim(10).await.len(), 1);
    }
}

#[tokio::test]
async fn one_endpoint_takes_no_more_than_its_share() {
    for world in worlds().await {
        for ms in 0..20 {
            world
                .delivery(START.minus(Duration::from_millis(1000 - ms)))
                .await;
        }
        let other = world.fixture.endpoint(world.publisher, false).await;
        world
            .fixture
            .delivery(world.publisher, world.event, other, START)
            .await;

        // The window of ten holds the first endpoint's only.
        let first = world.claim_beside(10, 4, &[(world.endpoint, 1)]).await;
        assert_eq!(first.len(), 3);
        assert!(first.iter().all(|due| due.endpoint == world.endpoint));
        // Full, it no longer stands in the other's way.
        let second = world.claim_beside(10, 4, &[(world.endpoint, 4)]).await;
        assert_eq!(second.len(), 1);
        assert_eq!(second[0].endpoint, other);
        let next = world
            .fixture
            .store
            .system()
            .next_due(&[world.endpoint])
            .await
            .unwrap();
        assert_eq!(next, Some(START.plus(LEASE)));
        assert!(
            world
                .claim_beside(10, 4, &[(world.endpoint, 4)])
                .await
                .is_empty()
        );
        assert_eq!(world.claim_beside(3, 4, &[]).await.len(), 3);
    }
}

#[tokio::test]
async fn two_claims_at_once_never_hand_out_the_same() {
    for world in worlds().await {
        for _ in 0..40 {
            world.delivery(START).await;
        }
        let claims = (0..8).map(|_| {
            let system = world.fixture.store.system();
            tokio::spawn(async move { system.claim_deliveries(10, LEASE, 1000, &[]).await })
        });
        let mut seen = Vec::new();
        for claim in claims.collect::<Vec<_>>() {
            seen.extend(claim.await.unwrap().unwrap().into_iter().map(|due| due.id));
        }
        seen.extend(world.claim(100).await.into_iter().map(|due| due.id));
        assert_eq!(seen.len(), 40);
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 40);
    }
}

#[tokio::test]
async fn what_a_dead_process_held_comes_back_at_once_on_sqlite() {
    for world in worlds().await {
        let held = world.delivery(START).await;
        let waiting = world.delivery(START).await;
        let retry = START.plus(Duration::from_secs(5));
        for due in world.claim(10).await {
            if due.id == waiting {
                world.record(&due, Next::RetryAt(retry)).await;
            }
        }
        let released = world.fixture.store.system().release_leases().await.unwrap();
        if world.fixture.store.backend() == DbBackend::Sqlite {
            assert_eq!(released, 1);
            assert_eq!(world.row(held).await.next_attempt_at, Some(START.ms()));
            assert_eq!(world.row(waiting).await.next_attempt_at, Some(retry.ms()));
        } else {
            assert_eq!(released, 0);
        }
    }
}

#[tokio::test]
async fn sqlite_finds_due_deliveries_by_their_index() {
    for world in worlds().await {
        if world.fixture.store.backend() != DbBackend::Sqlite {
            continue;
        }
        let busy = [(world.endpoint.uuid(), 1)];
        let claim = super::claim_sql(DbBackend::Sqlite, (START, START), 10, 4, &busy);
        let plan = format!("EXPLAIN QUERY PLAN {}", claim.text());
        let statement = sea_orm::Statement::from_string(DbBackend::Sqlite, plan);
        let rows = world
            .fixture
            .store
            .read()
            .query_all_raw(statement)
            .await
            .unwrap();
        let lines: Vec<String> = rows
            .iter()
            .map(|row| row.try_get("", "detail").unwrap())
            .collect();
        let plan = lines.join("\n");
        assert!(
            plan.contains("SEARCH d USING INDEX deliveries_due (next_attempt_at<?)"),
            "{plan}"
        );
        assert!(plan.contains("SEARCH deliveries USING "), "{plan}");
    }
}
