use std::{collections::HashSet, time::Duration};

use domain::{
    Timestamp,
    credential::CredentialKind,
    id::{DeliveryId, EndpointId, EventId, Id as _, PublisherId},
    retry::Schedule,
};
use sea_orm::{ConnectionTrait as _, DbBackend, EntityTrait as _};
use secrecy::ExposeSecret as _;
use serde_json::json;

use super::{
    AttemptOutcome, DueRequest, Handover, Lease, Next, PROCESS_EXPIRES_AFTER, ProcessId,
    RecordResult, Renewed, outcomes::record_sql,
};
use crate::{
    CreatedPublisher, DueDelivery, EndpointKey, NewCredential, StoreError, System,
    fixture::{Fixture, START, context, engines, no_content},
    store::{
        entity::{deliveries, delivery_attempts},
        sql::Sql,
    },
    webhooks::{Webhooks, events},
};

mod targets;

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
    fn system(&self) -> Webhooks<System> {
        self.fixture.store.system().webhooks()
    }

    fn key(&self) -> EndpointKey {
        EndpointKey {
            publisher: self.publisher,
            endpoint: self.endpoint,
        }
    }

    async fn delivery(&self, due: Timestamp) -> DeliveryId {
        self.fixture
            .delivery(self.publisher, self.event, self.endpoint, due)
            .await
    }

    async fn process(&self) -> ProcessId {
        self.system().register_process().await.unwrap()
    }

    async fn take(&self, process: ProcessId) -> Option<Lease> {
        let key = self.key();
        let mut taken = self.system().take_leases(process, &[key]).await.unwrap();
        assert!(taken.len() < 2);
        taken.pop()
    }

    async fn load(
        &self,
        limit: u64,
        known: &[DeliveryId],
        ordered: bool,
    ) -> (Vec<DueDelivery>, bool) {
        let ask = DueRequest {
            key: self.key(),
            ordered,
            limit,
            known: known.iter().copied().collect::<HashSet<_>>(),
        };
        let page = self.system().load_due(&[ask]).await.unwrap().remove(0);
        (page.due, page.more)
    }

    fn outcome(&self, lease: &Lease, due: &DueDelivery, next: Next) -> AttemptOutcome {
        let error = (next != Next::Succeeded).then_some("status");
        AttemptOutcome {
            key: self.key(),
            fence: lease.fence,
            id: due.id,
            attempt: due.attempt,
            at: self.fixture.store.now(),
            status_code: Some(if error.is_none() { 204 } else { 500 }),
            error,
            latency_ms: 12,
            excerpt: Some("said".into()),
            next,
        }
    }

    async fn record(&self, lease: &Lease, due: &DueDelivery, next: Next) -> RecordResult {
        let outcome = self.outcome(lease, due, next);
        self.system().record_outcomes(&[outcome]).await.unwrap().0[0]
    }

    async fn row(&self, id: DeliveryId) -> deliveries::Model {
        deliveries::Entity::find_by_id((self.publisher.uuid(), id.uuid()))
            .one(self.fixture.store.read())
            .await
            .unwrap()
            .unwrap()
    }

    async fn attempts(&self) -> Vec<delivery_attempts::Model> {
        let mut all = delivery_attempts::Entity::find()
            .all(self.fixture.store.read())
            .await
            .unwrap();
        all.sort_by_key(|attempt| attempt.number);
        all
    }

    async fn waiting(&self, process: ProcessId) -> Vec<(EndpointId, Timestamp)> {
        let waiting = self.system().waiting_endpoints(process).await.unwrap();
        let waiting = waiting.into_iter();
        waiting.map(|one| (one.key.endpoint, one.due)).collect()
    }

    /// Writes an event number `n` that every endpoint wants.
    async fn emit(&self, n: i32) {
        let data = &json!({ "n": n });
        let owner = self.publisher.uuid();
        self.fixture
            .store
            .write(|tx| async move { events::emit(&tx, owner, "run.created", data, None).await })
            .await
            .unwrap();
    }

    async fn plan(&self, sql: Sql) -> String {
        let text = format!("EXPLAIN QUERY PLAN {}", sql.text());
        let statement = sea_orm::Statement::from_string(DbBackend::Sqlite, text);
        let rows = self.fixture.store.read().query_all_raw(statement).await;
        let lines: Vec<String> = rows
            .unwrap()
            .iter()
            .map(|row| row.try_get("", "detail").unwrap())
            .collect();
        lines.join("\n")
    }
}

/// Even if PostgreSQL has no statistics, and most of the table is pending.
#[tokio::test]
async fn each_outcome_finds_its_row_by_its_key() {
    for world in worlds().await {
        if world.fixture.store.backend() != DbBackend::Postgres {
            continue;
        }
        let id = world.delivery(START).await;
        world
            .fixture
            .execute(
                "INSERT INTO deliveries (publisher_id, id, event_id, endpoint_id, status, attempts, \
                 next_attempt_at, created_at, seq, precedence) \
                 SELECT publisher_id, gen_random_uuid(), event_id, endpoint_id, status, attempts, \
                 next_attempt_at, created_at, seq, precedence \
                 FROM deliveries, generate_series(1, 2000)",
            )
            .await;
        let lease = world.take(world.process().await).await.unwrap();
        let due = DueDelivery {
            id,
            ..world.load(1, &[], false).await.0.remove(0)
        };
        let outcomes = vec![world.outcome(&lease, &due, Next::Succeeded); 256];
        let mut statement = record_sql(&outcomes, START).statement(DbBackend::Postgres);
        statement.sql.insert_str(0, "EXPLAIN ");
        let rows = world.fixture.store.read().query_all_raw(statement).await;
        let lines = rows.unwrap().into_iter();
        let plan: Vec<String> = lines
            .map(|row| row.try_get("", "QUERY PLAN").unwrap())
            .collect();
        let plan = plan.join("\n");
        assert!(plan.contains("deliveries_pkey"), "{plan}");
    }
}

#[tokio::test]
async fn one_process_holds_an_endpoint_until_it_gives_it_back_or_dies() {
    for world in worlds().await {
        let (one, two) = (world.process().await, world.process().await);
        let first = world.take(one).await.unwrap();
        assert_eq!((first.fence, first.state), (1, Handover::default()));
        assert_eq!(world.take(two).await, None, "somebody alive holds it");

        let left = Handover {
            tokens: Some((1500, START)),
            failures: 12,
            probe_at: Some(START.plus(Duration::from_secs(4))),
        };
        let given = Lease {
            state: left,
            ..first
        };
        let stale = Lease {
            fence: 7,
            ..given.clone()
        };
        world
            .system()
            .give_back_leases(one, &[stale])
            .await
            .unwrap();
        assert_eq!(
            world.take(two).await,
            None,
            "another number gives nothing back"
        );
        world
            .system()
            .give_back_leases(one, &[given])
            .await
            .unwrap();
        let second = world.take(two).await.unwrap();
        assert_eq!((second.fence, second.state), (2, left));

        world.fixture.clock.advance(PROCESS_EXPIRES_AFTER);
        let three = world.process().await;
        let third = world.take(three).await.unwrap();
        assert_eq!(third.fence, 3, "a holder that does not renew is taken over");
        assert_eq!(world.take(two).await, None, "and takes nothing itself");
        let again = world.take(three).await.unwrap();
        assert_eq!(again.fence, 4, "the holder may take it anew");
        world.system().end_process(three).await.unwrap();
        let four = world.process().await;
        assert!(
            world.take(four).await.is_some(),
            "one that says it ends frees all"
        );
    }
}

#[tokio::test]
async fn a_process_lives_while_it_renews_and_hears_who_may_die() {
    for world in worlds().await {
        let (one, two) = (world.process().await, world.process().await);
        let step = PROCESS_EXPIRES_AFTER / 2;
        for _ in 0..4 {
            let next = Renewed::Alive {
                next_expiry: Some(world.fixture.store.now().plus(PROCESS_EXPIRES_AFTER)),
            };
            world.system().renew_process(two).await.unwrap();
            assert_eq!(world.system().renew_process(one).await.unwrap(), next);
            world.fixture.clock.advance(step);
        }
        world.fixture.clock.advance(step);
        let renewed = world.system().renew_process(one).await.unwrap();
        assert_eq!(renewed, Renewed::Expired);
        assert_eq!(world.take(one).await, None);
    }
}

#[tokio::test]
async fn only_endpoints_that_may_be_sent_to_are_taken_or_found_or_shown() {
    for world in worlds().await {
        world.delivery(START).await;
        let process = world.process().await;
        let key = world.key();
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
            assert_eq!(world.take(process).await, None);
            assert!(world.waiting(process).await.is_empty());
            assert!(world.system().targets(&[key]).await.unwrap().is_empty());
            world.fixture.execute(go).await;
            assert_eq!(world.waiting(process).await, [(world.endpoint, START)]);
            assert_eq!(world.system().targets(&[key]).await.unwrap().len(), 1);
        }
        assert!(world.take(process).await.is_some());
    }
}

#[tokio::test]
async fn endpoints_with_work_are_found_unless_somebody_alive_holds_them() {
    for world in worlds().await {
        let (one, two) = (world.process().await, world.process().await);
        let idle = world.fixture.endpoint(world.publisher, false).await;
        let other = world.fixture.publisher("other").await.publisher.id;
        let theirs = world.fixture.endpoint(other, false).await;
        let event = world.fixture.event(other).await;
        let later = START.plus(Duration::from_mins(1));
        for _ in 0..3 {
            world.fixture.delivery(other, event, theirs, later).await;
            world.delivery(later).await;
        }
        world.delivery(START).await;
        let mut both = vec![(world.endpoint, START), (theirs, later)];
        both.sort_unstable();
        let mut found = world.waiting(one).await;
        found.sort_unstable();
        assert_eq!(found, both, "{idle} has nothing");

        world.take(one).await.unwrap();
        assert_eq!(world.waiting(two).await, [(theirs, later)]);
        assert_eq!(world.waiting(one).await.len(), 2);
        world.fixture.clock.advance(PROCESS_EXPIRES_AFTER);
        let three = world.process().await;
        assert_eq!(world.waiting(three).await.len(), 2);
    }
}

#[tokio::test]
async fn a_page_brings_what_is_due_longest_and_not_known_yet() {
    for world in worlds().await {
        let mut due = Vec::new();
        for ago in [30, 10, 20] {
            let at = START.minus(Duration::from_secs(ago));
            due.push((at, world.delivery(at).await));
        }
        world.delivery(START.plus(Duration::from_secs(1))).await;
        due.sort_unstable();
        let ids: Vec<DeliveryId> = due.iter().map(|(_, id)| *id).collect();
        let (page, more) = world.load(2, &[], false).await;
        let first: Vec<DeliveryId> = page.iter().map(|one| one.id).collect();
        assert_eq!((first.as_slice(), more), (&ids[..2], true));
        assert_eq!((page[0].attempt, page[0].event), (1, world.event));
        assert_eq!(page[0].due, due[0].0);
        assert_eq!(*page[0].body, *format!(r#"{{"id":"{}"}}"#, world.event));

        let (page, more) = world.load(2, &first, false).await;
        assert_eq!((page[0].id, page.len(), more), (ids[2], 1, false));
        let (page, more) = world.load(2, &ids, false).await;
        assert!(page.is_empty() && !more);
    }
}

#[tokio::test]
async fn pages_of_many_endpoints_come_in_one_go() {
    for world in worlds().await {
        let mut asks = Vec::new();
        for at in 0..100 {
            let endpoint = world.fixture.endpoint(world.publisher, false).await;
            if at % 2 == 0 {
                world
                    .fixture
                    .delivery(world.publisher, world.event, endpoint, START)
                    .await;
            }
            asks.push(DueRequest {
                key: EndpointKey {
                    publisher: world.publisher,
                    endpoint,
                },
                ordered: at % 3 == 0,
                limit: 10,
                known: HashSet::new(),
            });
        }
        let pages = world.system().load_due(&asks).await.unwrap();
        assert_eq!(pages.len(), 100);
        for (at, (page, ask)) in pages.iter().zip(&asks).enumerate() {
            assert_eq!(page.key, ask.key);
            assert_eq!(page.due.len(), (at + 1) % 2, "{at}");
        }
    }
}

#[tokio::test]
async fn an_ordered_endpoint_gives_places_in_the_order_of_commits() {
    for world in worlds().await {
        let before = world.delivery(START).await;
        world
            .fixture
            .execute("UPDATE webhook_endpoints SET ordered = TRUE")
            .await;
        for n in 0..5 {
            world.emit(n).await;
        }
        let (page, more) = world.load(10, &[], true).await;
        assert_eq!((page.len(), more), (6, false));
        assert_eq!(page[0].id, before, "what had no place goes first");
        for (n, due) in page[1..].iter().enumerate() {
            assert!(due.body.contains(&format!(r#""n":{n}"#)), "{}", due.body);
        }
        // A first delivery that waits for its next attempt still blocks the others.
        let process = world.process().await;
        let lease = world.take(process).await.unwrap();
        let later = START.plus(Duration::from_secs(9));
        world.record(&lease, &page[0], Next::Succeeded).await;
        world.record(&lease, &page[1], Next::RetryAt(later)).await;
        let (page, _) = world.load(2, &[], true).await;
        assert!(page[0].body.contains(r#""n":0"#));
        assert_eq!((page[0].due, page[0].attempt), (later, 2));
        assert_eq!(world.waiting(process).await, [(world.endpoint, later)]);
        // After the endpoint stopped being ordered, everything due is sent.
        world
            .fixture
            .execute("UPDATE webhook_endpoints SET ordered = FALSE")
            .await;
        assert_eq!(world.load(10, &[], false).await.0.len(), 4);
        assert_eq!(world.waiting(process).await[0].1, START.min(later));
    }
}

#[tokio::test]
async fn producers_at_once_get_places_without_gaps_or_twins() {
    for world in worlds().await {
        world
            .fixture
            .execute("UPDATE webhook_endpoints SET ordered = TRUE")
            .await;
        for n in 0..20 {
            world.emit(n).await;
        }
        let owner = world.publisher.uuid();
        let writes = (0..20).map(|_| {
            let store = world.fixture.store.clone();
            tokio::spawn(async move {
                let data = "{}";
                let news = |_| events::NewEvent {
                    event_type: "run.created",
                    data,
                    pipeline: None,
                };
                let news: Vec<_> = (0..3).map(news).collect();
                let news = &news;
                store
                    .write(|tx| async move { events::emit_all(&tx, owner, news).await })
                    .await
            })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap().unwrap();
        }
        let rows = deliveries::Entity::find()
            .all(world.fixture.store.read())
            .await;
        let mut places: Vec<i64> = rows.unwrap().iter().map(|row| row.seq).collect();
        places.sort_unstable();
        assert_eq!(places, (1..=80).collect::<Vec<i64>>());
    }
}

#[tokio::test]
async fn outcomes_end_a_delivery_or_move_it() {
    for world in worlds().await {
        let process = world.process().await;
        let lease = world.take(process).await.unwrap();
        let id = world.delivery(START).await;
        let due = world.load(10, &[], false).await.0.remove(0);
        let later = START.plus(Duration::from_secs(5));
        let result = world.record(&lease, &due, Next::RetryAt(later)).await;
        assert_eq!(result, RecordResult::Recorded);
        let row = world.row(id).await;
        assert_eq!((row.status.as_str(), row.attempts), ("pending", 1));
        assert_eq!(
            (row.next_attempt_at, row.finished_at),
            (Some(later.ms()), None)
        );

        world.fixture.clock.advance(Duration::from_secs(5));
        let due = world.load(10, &[], false).await.0.remove(0);
        assert_eq!((due.attempt, due.throttled), (2, 0));
        let now = world.fixture.store.now();
        world.record(&lease, &due, Next::Throttled(now)).await;
        let due = world.load(10, &[], false).await.0.remove(0);
        assert_eq!((due.attempt, due.throttled), (3, 1));
        world.record(&lease, &due, Next::Succeeded).await;
        let row = world.row(id).await;
        assert_eq!((row.status.as_str(), row.attempts), ("succeeded", 3));
        assert_eq!(
            (row.next_attempt_at, row.finished_at),
            (None, Some(later.ms()))
        );

        let attempts = world.attempts().await;
        assert_eq!(attempts.len(), 3);
        assert_eq!(attempts[0].status_code, Some(500));
        assert_eq!(attempts[0].error.as_deref(), Some("status"));
        assert_eq!(attempts[2].error, None);
        assert_eq!(attempts[2].response_excerpt.as_deref(), Some("said"));
        assert_eq!(attempts[2].latency_ms, 12);

        for next in [Next::Failed, Next::Gone] {
            let last = world.delivery(START).await;
            let due = world.load(10, &[], false).await.0.remove(0);
            world.record(&lease, &due, next).await;
            assert_eq!(world.row(last).await.status, "failed");
        }
    }
}

#[tokio::test]
async fn many_outcomes_are_judged_each_by_itself() {
    for world in worlds().await {
        let process = world.process().await;
        let lease = world.take(process).await.unwrap();
        for _ in 0..4 {
            world.delivery(START).await;
        }
        let page = world.load(10, &[], false).await.0;
        let off = format!(
            "UPDATE deliveries SET status = 'cancelled', next_attempt_at = NULL, finished_at = 1 \
             WHERE id = (SELECT id FROM deliveries WHERE attempts = 0 AND id <> {} LIMIT 1)",
            match world.fixture.store.backend() {
                DbBackend::Sqlite => format!("x'{}'", page[0].id.uuid().simple()),
                _ => format!("'{}'", page[0].id.uuid()),
            }
        );
        world.fixture.execute(&off).await;
        let mut outcomes: Vec<AttemptOutcome> = page
            .iter()
            .map(|due| world.outcome(&lease, due, Next::Succeeded))
            .collect();
        outcomes[0].fence -= 1;
        let (results, _) = world.system().record_outcomes(&outcomes).await.unwrap();
        assert_eq!(results[0], RecordResult::LeaseLost);
        let count = |wanted| results.iter().filter(|one| **one == wanted).count();
        assert_eq!(
            (count(RecordResult::Recorded), count(RecordResult::Settled)),
            (2, 1)
        );
        assert_eq!(world.attempts().await.len(), 2);
    }
}

#[tokio::test]
async fn a_late_outcome_changes_nothing() {
    for world in worlds().await {
        let id = world.delivery(START).await;
        let one = world.process().await;
        let lost = world.take(one).await.unwrap();
        let due = world.load(1, &[], false).await.0.remove(0);
        world.fixture.clock.advance(PROCESS_EXPIRES_AFTER);
        let two = world.process().await;
        let held = world.take(two).await.unwrap();
        let result = world.record(&lost, &due, Next::Failed).await;
        assert_eq!(result, RecordResult::LeaseLost);
        assert_eq!(world.row(id).await.status, "pending");
        assert!(world.attempts().await.is_empty());
        let result = world.record(&held, &due, Next::Succeeded).await;
        assert_eq!(result, RecordResult::Recorded);
        let result = world.record(&held, &due, Next::Failed).await;
        assert_eq!(result, RecordResult::Settled);
        assert_eq!(world.row(id).await.status, "succeeded");
        assert_eq!(world.attempts().await.len(), 1);
    }
}

#[tokio::test]
async fn what_a_dead_process_held_is_free_at_once_on_sqlite() {
    for world in worlds().await {
        let dead = world.process().await;
        world.take(dead).await.unwrap();
        world.system().release_leases().await.unwrap();
        let process = world.process().await;
        let taken = world.take(process).await;
        let sqlite = world.fixture.store.backend() == DbBackend::Sqlite;
        assert_eq!(taken.is_some(), sqlite);
    }
}

#[tokio::test]
async fn what_a_process_locked_before_it_stood_still_is_free_before_it_counts_as_dead() {
    for world in worlds().await {
        let store = &world.fixture.store;
        if store.backend() == DbBackend::Sqlite {
            continue;
        }
        let touch = "UPDATE publishers SET display_name = 'touched'";
        let (locked, has_locked) = tokio::sync::oneshot::channel();
        let locked = std::sync::Mutex::new(Some(locked));
        let stands_still = store.write(|tx| {
            let locked = locked.lock().unwrap().take();
            async move {
                tx.db().execute_unprepared(touch).await?;
                let _ = locked.unwrap().send(());
                tokio::time::sleep(PROCESS_EXPIRES_AFTER).await;
                tx.db().execute_unprepared(touch).await?;
                Ok(())
            }
        });
        let goes_on = async {
            has_locked.await.unwrap();
            let began = std::time::Instant::now();
            world.fixture.execute(touch).await;
            began.elapsed()
        };
        let (stood_still, waited) = tokio::join!(stands_still, goes_on);
        assert!(waited < PROCESS_EXPIRES_AFTER, "{waited:?}");
        // Its own work has to be repeated, as after any lost connection.
        assert!(
            matches!(stood_still, Err(StoreError::Unavailable(_))),
            "{stood_still:?}"
        );
    }
}

#[tokio::test]
async fn two_that_want_the_same_never_both_get_it() {
    for world in worlds().await {
        let mut keys = vec![world.key()];
        for _ in 0..20 {
            keys.push(EndpointKey {
                publisher: world.publisher,
                endpoint: world.fixture.endpoint(world.publisher, false).await,
            });
        }
        let mut tasks = Vec::new();
        for at in 0..6 {
            let (process, system) = (world.process().await, world.system());
            let mut keys = keys.clone();
            keys.rotate_left(at * 3);
            tasks.push(tokio::spawn(async move {
                system.take_leases(process, &keys).await
            }));
        }
        let mut taken = Vec::new();
        for task in tasks {
            taken.extend(task.await.unwrap().unwrap());
        }
        assert_eq!(taken.len(), keys.len());
        assert!(taken.iter().all(|lease| lease.fence == 1));
    }
}

#[tokio::test]
async fn sqlite_follows_the_index_of_waiting_deliveries() {
    for world in worlds().await {
        if world.fixture.store.backend() != DbBackend::Sqlite {
            continue;
        }
        let process = world.process().await;
        let plan = world.plan(super::due::waiting_sql(process, START)).await;
        for wanted in [
            "SEARCH d USING COVERING INDEX deliveries_waiting (publisher_id>?)",
            "SEARCH d USING COVERING INDEX deliveries_waiting (publisher_id=? AND endpoint_id>?)",
            "SEARCH d USING COVERING INDEX deliveries_waiting (publisher_id=? AND endpoint_id=?)",
        ] {
            assert!(plan.contains(wanted), "{wanted}: {plan}");
        }
        // All rows except the very first are found by the index.
        assert_eq!(plan.matches("SCAN d").count(), 1, "{plan}");
        let ask = |ordered| DueRequest {
            key: world.key(),
            ordered,
            limit: 10,
            known: HashSet::new(),
        };
        let plan = world
            .plan(super::due::load_sql(
                &[ask(false), ask(true)],
                START,
                DbBackend::Sqlite,
            ))
            .await;
        for wanted in [
            "deliveries_waiting (publisher_id=? AND endpoint_id=? AND seq=? AND next_attempt_at<?)",
            "deliveries_waiting (publisher_id=? AND endpoint_id=? AND seq>?)",
            "deliveries_waiting (publisher_id=? AND endpoint_id=?)",
            "deliveries_of_replay (publisher_id=? AND replay_id>?)",
        ] {
            assert!(plan.contains(wanted), "{wanted}: {plan}");
        }
        // Only the few replayed deliveries are sorted.
        assert_eq!(plan.matches("TEMP B-TREE").count(), 1, "{plan}");
    }
}
