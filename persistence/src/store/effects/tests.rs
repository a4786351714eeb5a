use std::time::Duration;

use serde_json::json;

use super::*;
use crate::{
    DueRequest, ProcessId, StoreError, Written,
    fixture::{Fixture, engines},
    webhooks::events,
};

struct House {
    fixture: Fixture,
    process: ProcessId,
    publisher: PublisherId,
    key: EndpointKey,
}

/// A publisher with an endpoint, and a dispatcher that has asked before.
async fn houses() -> Vec<House> {
    let mut houses = Vec::new();
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        let endpoint = fixture.endpoint(publisher, false).await;
        let process = fixture
            .store
            .system()
            .webhooks()
            .register_process()
            .await
            .unwrap();
        let house = House {
            fixture,
            process,
            publisher,
            key: EndpointKey {
                publisher,
                endpoint,
            },
        };
        house.heard().await;
        houses.push(house);
    }
    houses
}

impl House {
    /// Everything that the dispatcher is notified of now.
    async fn heard(&self) -> Written {
        let mut all = Written::default();
        let moment = Duration::from_millis(50);
        let store = &self.fixture.store;
        while let Ok(some) = tokio::time::timeout(moment, store.deliveries_written()).await {
            all.endpoints.extend(some.endpoints);
            all.handed.extend(some.handed);
        }
        all
    }

    async fn emit(&self, count: i32) {
        let data: Vec<_> = (0..count).map(|n| format!("{{\"n\":{n}}}")).collect();
        let owner = self.publisher.uuid();
        let news: Vec<_> = data.iter().map(|data| event(data)).collect();
        let news = &news;
        let write = |tx| async move { events::emit_all(&tx, owner, news).await };
        self.fixture.store.write(write).await.unwrap();
    }

    async fn page(&self) -> Vec<DueDelivery> {
        let ask = DueRequest {
            key: self.key,
            ordered: false,
            limit: 100,
            known: std::collections::HashSet::new(),
        };
        let system = self.fixture.store.system();
        system
            .webhooks()
            .load_due(&[ask])
            .await
            .unwrap()
            .remove(0)
            .due
    }
}

fn event(data: &str) -> events::NewEvent<'_> {
    events::NewEvent {
        event_type: "run.created",
        data,
        pipeline: None,
    }
}

#[tokio::test]
async fn what_is_handed_over_is_what_would_be_loaded() {
    for house in houses().await {
        let before = Instant::now();
        house.emit(3).await;
        let heard = house.heard().await;
        assert!(heard.endpoints.is_empty(), "nothing has to be looked for");
        assert!(heard.handed.iter().all(|one| one.key == house.key));
        assert!(heard.handed.iter().all(|one| one.since > before));
        let mut handed: Vec<DueDelivery> = heard.handed.into_iter().map(|one| one.due).collect();
        let mut page = house.page().await;
        handed.sort_by_key(|due| due.id);
        page.sort_by_key(|due| due.id);
        assert_eq!(handed.len(), 3);
        assert_eq!(handed, page);
    }
}

#[tokio::test]
async fn what_has_a_place_in_an_order_or_waits_already_is_looked_for() {
    for house in houses().await {
        let ordered = "UPDATE webhook_endpoints SET ordered = true";
        house.fixture.execute(ordered).await;
        house.emit(2).await;
        let heard = house.heard().await;
        assert!(heard.handed.is_empty());
        assert_eq!(heard.endpoints, BTreeSet::from([house.key]));
    }
    let row = |seq, precedence| deliveries::Model {
        publisher_id: Uuid::nil(),
        id: Uuid::nil(),
        event_id: Uuid::nil(),
        endpoint_id: Uuid::nil(),
        status: "pending".into(),
        attempts: 0,
        next_attempt_at: Some(1),
        created_at: 1,
        finished_at: None,
        replay_id: None,
        precedence,
        seq,
        throttled: 0,
    };
    let bodies = Bodies(HashMap::from([(Uuid::nil(), "{}".into())]));
    let none = Bodies::default();
    for (row, bodies, handed) in [
        (row(0, 0), &bodies, true),
        (row(0, 0), &none, false),
        (row(1, 0), &bodies, false),
        (row(0, 1), &bodies, false),
    ] {
        let mut written = Deliveries::default();
        written.wrote(&[row], bodies);
        assert_eq!(written.endpoints.len(), 1, "others are told either way");
        assert_eq!(written.handed.is_empty(), !handed);
        assert_eq!(written.looked_for.is_empty(), handed);
    }
}

#[tokio::test]
async fn nothing_is_handed_over_that_is_not_surely_there() {
    for house in houses().await {
        let data = &json!({});
        let owner = house.publisher.uuid();
        let refused: Result<(), StoreError> = house
            .fixture
            .store
            .write(|tx| async move {
                events::emit(&tx, owner, "run.created", data, None).await?;
                Err(domain::Problem::not_found().into())
            })
            .await;
        assert!(refused.is_err());
        assert_eq!(house.heard().await, Written::default());
        // The commit itself fails, as if its result were unknown.
        let fails = match house.fixture.store.backend() {
            sea_orm::DbBackend::Sqlite => {
                "PRAGMA defer_foreign_keys = ON; UPDATE deliveries SET event_id = x'00'"
            }
            _ => {
                "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql \
                 AS 'BEGIN RAISE EXCEPTION ''no''; END'; \
                 CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON deliveries \
                 DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail(); \
                 UPDATE deliveries SET attempts = attempts"
            }
        };
        let failed: Result<(), StoreError> = house
            .fixture
            .store
            .write(|tx| async move {
                events::emit(&tx, owner, "run.created", data, None).await?;
                sea_orm::ConnectionTrait::execute_unprepared(tx.db(), fails).await?;
                Ok(())
            })
            .await;
        assert!(failed.is_err());
        assert_eq!(house.heard().await, Written::default());
        let waiting = house.fixture.store.system();
        let waiting = waiting
            .webhooks()
            .waiting_endpoints(house.process)
            .await
            .unwrap();
        assert_eq!(waiting, [], "and it is not there");
    }
}

#[tokio::test]
async fn without_a_dispatcher_nothing_is_kept() {
    for fixture in engines().await {
        let publisher = fixture.publisher("acme").await.publisher.id;
        fixture.endpoint(publisher, false).await;
        let (owner, data) = (publisher.uuid(), &json!({}));
        let write = |tx| async move { events::emit(&tx, owner, "run.created", data, None).await };
        fixture.store.write(write).await.unwrap();
        let written = fixture.store.deliveries_written().await;
        assert!(written.handed.is_empty());
        assert!(written.others || written.endpoints.len() == 1);
    }
}

#[test]
fn what_is_handed_over_is_bounded() {
    let mut handed = Handed::default();
    let count = (0..10_000).take_while(|n| handed.push(*n, 100)).count();
    assert_eq!(count, HANDED_MAX);
    let mut handed = Handed::default();
    assert!(handed.push(1, HANDED_BYTES_MAX));
    assert!(!handed.push(2, 1));
    assert_eq!(handed.into_all(), [1]);
}
