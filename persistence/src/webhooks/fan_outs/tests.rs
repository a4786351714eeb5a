//! Fan-outs, on both engines.

use std::time::Duration;

use domain::{Code, id::EndpointId};
use proptest::prelude::*;
use sea_orm::Statement;

use super::*;
use crate::{
    NewOwnEvent, NewReplay, Store,
    fixture::{Fixture, context, engines, no_content},
    runs::tests::{Slot, code, house},
    store::Scoped,
};

/// Deliveries that one step writes.
const STEP: usize = 256;

fn order(pipeline: Option<&str>) -> NewOwnEvent {
    NewOwnEvent {
        event_type: "order.paid".into(),
        data: serde_json::json!({ "n": 1 }).into(),
        external_id: None,
        pipeline: pipeline.map(str::to_owned),
    }
}

async fn publish(scoped: &Scoped, count: usize) -> Result<Vec<EventId>> {
    let slot = Slot::new();
    let events = (0..count).map(|_| order(None)).collect();
    scoped
        .webhooks()
        .publish(&context(), events, true, |published| slot.keep(published))
        .await?;
    Ok(slot.take().into_iter().map(|one| one.event.id).collect())
}

/// A publisher with `endpoints` endpoints that want everything.
async fn heard_by(fixture: &Fixture, endpoints: usize) -> (Scoped, Vec<EndpointId>) {
    let scoped = house(fixture, "acme", &[]).await;
    let mut all = Vec::new();
    for _ in 0..endpoints {
        all.push(fixture.endpoint(scoped.scope.publisher(), false).await);
    }
    (scoped, all)
}

/// Spreads one step. Returns how many deliveries it wrote.
async fn spread(store: &Store) -> usize {
    let Some(publisher) = store.system().webhooks().fanning_out(None).await.unwrap() else {
        return 0;
    };
    store
        .system()
        .webhooks()
        .spread(publisher, STEP)
        .await
        .unwrap()
}

async fn spread_all(store: &Store) -> usize {
    let mut all = 0;
    loop {
        match spread(store).await {
            0 => return all,
            some => all += some,
        }
    }
}

/// The events of an endpoint's deliveries, in the order of their sequence numbers.
async fn line_of(fixture: &Fixture, endpoint: EndpointId) -> Vec<EventId> {
    let mut sql = Sql::new("SELECT event_id FROM deliveries WHERE endpoint_id = ");
    sql.bind(endpoint.uuid()).push(" ORDER BY seq, created_at");
    let statement: Statement = sql.statement(fixture.store.backend());
    let rows = fixture.store.read().query_all_raw(statement).await.unwrap();
    let ids = rows.iter().map(|row| row.try_get("", "event_id").unwrap());
    ids.map(EventId::from_uuid).collect()
}

#[tokio::test]
async fn a_large_call_is_written_down_and_spread_in_steps() {
    for fixture in engines().await {
        let (acme, endpoints) = heard_by(&fixture, 3).await;
        let events = publish(&acme, 250).await.unwrap();
        assert_eq!(fixture.count("deliveries").await, 0);
        assert_eq!(fixture.count("fan_outs").await, 3, "of a hundred events");
        tokio::time::timeout(Duration::from_secs(5), fixture.store.fanned_out())
            .await
            .expect("the spreader is woken");
        assert_eq!(spread(&fixture.store).await, STEP);
        assert_eq!(fixture.count("deliveries").await, 256);
        assert_eq!(spread_all(&fixture.store).await, 750 - STEP);
        assert_eq!(fixture.count("fan_outs").await, 0);
        for endpoint in endpoints {
            let line = line_of(&fixture, endpoint).await;
            assert_eq!(line.len(), 250);
            let line: BTreeSet<EventId> = line.into_iter().collect();
            assert_eq!(line, events.iter().copied().collect());
        }
    }
}

#[tokio::test]
async fn usual_calls_are_written_at_once() {
    for fixture in engines().await {
        let (acme, _) = heard_by(&fixture, 10).await;
        publish(&acme, 1).await.unwrap();
        publish(&acme, 12).await.unwrap();
        assert_eq!(fixture.count("deliveries").await, 130);
        assert_eq!(fixture.count("fan_outs").await, 0);
    }
}

#[tokio::test]
async fn what_one_transaction_tells_is_bounded_however_it_comes_about() {
    for fixture in engines().await {
        let (acme, _) = heard_by(&fixture, 20).await;
        let owner = acme.scope.uuid();
        let news: Vec<_> = (0..60)
            .map(|_| crate::webhooks::events::NewEvent {
                event_type: "run.created",
                data: "{}",
                pipeline: None,
            })
            .collect();
        let news = &news;
        let write = |count: usize| {
            let store = &fixture.store;
            async move {
                let some = &news[..count];
                let work =
                    |tx| async move { crate::webhooks::events::emit_all(&tx, owner, some).await };
                store.write(work).await.unwrap();
            }
        };
        write(50).await;
        assert_eq!(fixture.count("deliveries").await, 1000);
        write(60).await;
        assert_eq!(
            fixture.count("deliveries").await,
            1000,
            "1200 more would be too many"
        );
        assert_eq!(spread_all(&fixture.store).await, 1200);
        assert_eq!(fixture.count("deliveries").await, 2200);
    }
}

#[tokio::test]
async fn an_ordered_endpoint_keeps_its_order_and_others_do_not_wait() {
    for fixture in engines().await {
        let (acme, endpoints) = heard_by(&fixture, 2).await;
        let (ordered, other) = (endpoints[0], endpoints[1]);
        let mut sql = Sql::new("UPDATE webhook_endpoints SET ordered = TRUE WHERE id = ");
        sql.bind(ordered.uuid());
        let statement = &sql.statement(fixture.store.backend());
        let work = |tx: Tx| async move {
            tx.db().execute_raw(statement.clone()).await?;
            Ok(())
        };
        fixture.store.write(work).await.unwrap();
        let mut expected = publish(&acme, 2).await.unwrap();
        expected.extend(publish(&acme, 150).await.unwrap());
        spread(&fixture.store).await;
        let late = publish(&acme, 3).await.unwrap();
        expected.extend(&late);
        let line = line_of(&fixture, other).await;
        assert!(
            late.iter().all(|event| line.contains(event)),
            "they are not held up"
        );
        let line = line_of(&fixture, ordered).await;
        assert!(
            !line.contains(&late[0]),
            "older ones are still to be written"
        );
        spread_all(&fixture.store).await;
        expected.extend(publish(&acme, 2).await.unwrap());
        assert_eq!(line_of(&fixture, ordered).await, expected);
        assert_eq!(line_of(&fixture, other).await.len(), expected.len());
    }
}

#[tokio::test]
async fn publishers_take_turns() {
    for fixture in engines().await {
        let (acme, _) = heard_by(&fixture, 3).await;
        publish(&acme, 1000).await.unwrap();
        let beta = house(&fixture, "beta", &[]).await;
        fixture.endpoint(beta.scope.publisher(), false).await;
        publish(&beta, 200).await.unwrap();
        let system = fixture.store.system();
        let first = system.webhooks().fanning_out(None).await.unwrap().unwrap();
        let second = system
            .webhooks()
            .fanning_out(Some(first))
            .await
            .unwrap()
            .unwrap();
        assert_ne!(first, second);
        assert_eq!(
            system.webhooks().fanning_out(Some(second)).await.unwrap(),
            None
        );
        assert_eq!(
            system
                .webhooks()
                .spread(beta.scope.publisher(), STEP)
                .await
                .unwrap(),
            200
        );
        assert_eq!(
            system
                .webhooks()
                .spread(beta.scope.publisher(), STEP)
                .await
                .unwrap(),
            0
        );
        assert_eq!(
            system
                .webhooks()
                .spread(acme.scope.publisher(), STEP)
                .await
                .unwrap(),
            STEP
        );
    }
}

#[tokio::test]
async fn one_process_at_a_time_spreads_what_a_publisher_has() {
    for fixture in engines().await {
        if fixture.store.backend() != DbBackend::Postgres {
            continue;
        }
        let (acme, _) = heard_by(&fixture, 3).await;
        publish(&acme, 300).await.unwrap();
        let (owner, other) = (acme.scope.uuid(), fixture.beside(&fixture.keys).await);
        let (other, acme) = (&other, &acme);
        let work = |tx: Tx| async move {
            assert_eq!(step(&tx, owner, STEP).await?, STEP);
            let publisher = acme.scope.publisher();
            assert_eq!(
                other.system().webhooks().spread(publisher, STEP).await?,
                0,
                "it is held"
            );
            Ok(())
        };
        fixture.store.write(work).await.unwrap();
        let publisher = acme.scope.publisher();
        assert_eq!(
            other
                .system()
                .webhooks()
                .spread(publisher, STEP)
                .await
                .unwrap(),
            STEP
        );
        other.close().await;
    }
}

#[tokio::test]
async fn endpoints_are_those_of_the_moment_of_the_event() {
    for fixture in engines().await {
        let (acme, endpoints) = heard_by(&fixture, 3).await;
        publish(&acme, 50).await.unwrap();
        let late = fixture.endpoint(acme.scope.publisher(), false).await;
        let by = context();
        let webhooks = acme.webhooks();
        let gone = webhooks.delete_endpoint(&by, endpoints[0], None, |()| no_content());
        gone.await.unwrap();
        fixture
            .execute("UPDATE webhook_endpoints SET enabled = FALSE, disabled_reason = 'admin'")
            .await;
        assert_eq!(spread_all(&fixture.store).await, 150);
        let mut lines = Vec::new();
        for endpoint in endpoints.into_iter().chain([late]) {
            lines.push(line_of(&fixture, endpoint).await.len());
        }
        assert_eq!(
            lines,
            [0, 50, 50, 0],
            "what is disabled keeps what waits for it"
        );
    }
}

#[tokio::test]
async fn events_that_are_still_to_be_spread_are_neither_swept_nor_replayed() {
    for fixture in engines().await {
        let (acme, endpoints) = heard_by(&fixture, 2).await;
        publish(&acme, 100).await.unwrap();
        let since = fixture.store.now();
        fixture.clock.advance(Duration::from_mins(1));
        let now = fixture.store.now();
        let system = fixture.store.system();
        assert_eq!(
            system
                .operations()
                .sweep_table("events", now, 1000)
                .await
                .unwrap(),
            0
        );
        let new = NewReplay {
            since,
            until: None,
            only_failed: false,
            include_pending: false,
            event_types: None,
        };
        let by = context();
        let webhooks = acme.webhooks();
        let started = webhooks.start_replay(&by, endpoints[0], new, |_| no_content());
        started.await.unwrap();
        assert_eq!(system.webhooks().work_replays().await.unwrap().queued, 0);
        assert_eq!(spread_all(&fixture.store).await, 200);
        let worked = system.webhooks().work_replays().await.unwrap();
        assert_eq!(
            (worked.queued, worked.moved),
            (0, true),
            "all are on their way"
        );
        fixture.execute("DELETE FROM deliveries").await;
        assert_eq!(
            system
                .operations()
                .sweep_table("events", now, 1000)
                .await
                .unwrap(),
            100
        );
    }
}

#[tokio::test]
async fn too_much_that_waits_is_the_publishers_own_affair() {
    for fixture in engines().await {
        let (acme, _) = heard_by(&fixture, 2).await;
        let beta = house(&fixture, "beta", &[]).await;
        for _ in 0..2 {
            fixture.endpoint(beta.scope.publisher(), false).await;
        }
        publish(&acme, 100).await.unwrap();
        let more = format!("UPDATE fan_outs SET total = total + {WAITING_MAX}");
        fixture.execute(&more).await;
        assert_eq!(code(publish(&acme, 100).await), Code::ShareExceeded);
        assert_eq!(fixture.count("events").await, 100, "all or none");
        publish(&acme, 10).await.unwrap();
        publish(&beta, 100).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_damaged_is_an_error_of_its_publisher() {
    for fixture in engines().await {
        let (acme, _) = heard_by(&fixture, 2).await;
        publish(&acme, 100).await.unwrap();
        fixture.execute("UPDATE fan_outs SET plan = '{'").await;
        let spread = fixture
            .store
            .system()
            .webhooks()
            .spread(acme.scope.publisher(), STEP)
            .await;
        assert!(matches!(spread, Err(StoreError::Internal(_))), "{spread:?}");
    }
}

proptest! {
    #[test]
    fn steps_of_any_length_name_every_pair_once(
        sets in proptest::collection::vec(proptest::collection::btree_set(0_usize..9, 1..9), 1..20),
        length in 1_usize..40,
    ) {
        let listeners: Vec<Listener> = (0..9).map(|n| Listener::alone(Uuid::from_u128(n), false)).collect();
        let lines: Vec<(Uuid, Vec<usize>)> = (100..)
            .map(Uuid::from_u128)
            .zip(sets.into_iter().map(|set| set.into_iter().collect()))
            .collect();
        let text = serde_json::to_string(&Plan::of(&listeners, &lines)).unwrap();
        let plan: Plan = serde_json::from_str(&text).unwrap();
        let mut found = Vec::new();
        loop {
            let some = plan.pairs(found.len(), length).unwrap();
            if some.is_empty() {
                break;
            }
            found.extend(some);
        }
        let expected: Vec<(Uuid, Uuid)> = lines
            .iter()
            .flat_map(|(event, to)| to.iter().map(|at| (*event, listeners[*at].endpoint)))
            .collect();
        prop_assert_eq!(found, expected);
    }
}

#[test]
fn the_stored_form_stays() {
    let listeners = [Listener::alone(Uuid::from_u128(1), false)];
    let lines = [(Uuid::from_u128(2), vec![0])];
    let text = serde_json::to_string(&Plan::of(&listeners, &lines)).unwrap();
    assert_eq!(
        text,
        r#"{"endpoints":["00000000000000000000000000000001"],"sets":[[0]],"events":[["00000000000000000000000000000002",0]]}"#
    );
}
