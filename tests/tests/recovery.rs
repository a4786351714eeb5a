//! Receivers that are overloaded, and receivers that work again: what waits for them goes out as
//! soon as it may.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tests::{
    Consumer, Publisher, Reply, World, on_both_stores, on_postgres,
    tools::{self, eventually},
};

on_both_stores!(
    an_overloaded_receiver_is_sent_to_as_fast_as_it_takes,
    a_pause_holds_for_the_endpoint_and_uses_up_no_try,
    a_retry_makes_due_what_waits,
    enabling_makes_due_what_waits,
    a_replay_can_make_due_what_waits,
);
on_postgres!(a_retry_reaches_the_process_that_sends);

/// Within this, whatever may go out has gone out. Far less than any wait below.
const LIMIT: Duration = Duration::from_secs(20);
/// Longer than any story lasts.
const LONG: u64 = 3600;

/// An endpoint with these waits between tries; `ordered` or not.
async fn endpoint(
    publisher: &Publisher,
    consumer: &Consumer,
    waits: &[u64],
    ordered: bool,
) -> String {
    let body = json!({
        "url": consumer.url,
        "event_types": ["own.*"],
        "retry_schedule_seconds": waits,
        "ordered": ordered,
    });
    let made = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    format!(
        "/v1/webhook-endpoints/{}",
        made.expect(201).await.text("/id")
    )
}

async fn publish(publisher: &Publisher, count: usize) {
    let event = json!({"type": "own.event", "data": {}});
    for part in vec![event; count].chunks(100) {
        let events = json!({"events": part});
        publisher
            .admin
            .post("/v1/events")
            .json(&events)
            .expect(202)
            .await;
    }
}

/// The publisher's deliveries, once all of them are as `wanted`.
async fn all(publisher: &Publisher, what: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    eventually(what, 2 * LIMIT, async || {
        let all = publisher.admin.all("/v1/deliveries").await;
        all.iter().all(&wanted).then_some(all)
    })
    .await
}

async fn succeeded(publisher: &Publisher) -> Vec<Value> {
    let wanted = |one: &Value| one["status"] == "succeeded";
    all(publisher, "all have succeeded", wanted).await
}

/// The publisher's deliveries, once each was tried and waits.
async fn tried(publisher: &Publisher) -> Vec<Value> {
    all(publisher, "all were tried and wait", |one| {
        one["attempt_count"] != 0 && one["status"] == "pending"
    })
    .await
}

fn path_of(delivery: &Value) -> String {
    format!("/v1/deliveries/{}", delivery["id"].as_str().unwrap())
}

/// A receiver that refuses all, and asks for a pause.
fn overloaded(status: u16, seconds: u64) -> Reply {
    Reply {
        headers: vec![("retry-after", seconds.to_string())],
        ..Reply::status(status)
    }
}

async fn an_overloaded_receiver_is_sent_to_as_fast_as_it_takes(world: &World) {
    // With the usual schedule a second failure costs five minutes.
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    consumer.take_a_second(50);
    let body = json!({"url": consumer.url, "event_types": ["own.*"]});
    let made = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    made.expect(201).await;
    publish(&publisher, 300).await;
    succeeded(&publisher).await;
    let mut answers: BTreeMap<u16, usize> = BTreeMap::new();
    for delivery in consumer.seen() {
        *answers.entry(delivery.answered).or_default() += 1;
    }
    // Those that were under way when the first refusal came, and one each time that the rate is
    // found again.
    let refused = answers.get(&429).copied().unwrap_or(0);
    assert_eq!(answers[&204], 300);
    assert!((1..=100).contains(&refused), "{answers:?}");
}

async fn a_pause_holds_for_the_endpoint_and_uses_up_no_try(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    // Each delivery has one try.
    let endpoint = endpoint(&publisher, &consumer, &[], false).await;
    consumer.reply_next([overloaded(429, 4), overloaded(503, 1)]);
    publish(&publisher, 1).await;
    consumer.count(1).await;
    publish(&publisher, 5).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(consumer.seen().len(), 1, "others were sent in the pause");
    let health = publisher.admin.get(&endpoint).expect(200).await;
    assert_eq!(health["health"]["last_status_code"], 429, "{health}");
    let mut tries = Vec::new();
    for delivery in succeeded(&publisher).await {
        let path = path_of(&delivery);
        let attempts = publisher.admin.get(&path).expect(200).await["attempts"].clone();
        let codes = attempts.as_array().unwrap().iter();
        let codes = codes.map(|attempt| attempt["status_code"].as_u64().unwrap());
        tries.extend(codes);
    }
    tries.sort_unstable();
    assert_eq!(tries, [204, 204, 204, 204, 204, 204, 429, 503]);
}

async fn a_retry_makes_due_what_waits(world: &World) {
    let server = world.start().await;
    for (slug, ordered, reply) in [
        ("plain", false, Reply::status(500)),
        ("ordered", true, Reply::status(500)),
        ("paused", false, overloaded(503, LONG)),
    ] {
        let publisher = server.publisher(slug).await;
        let consumer = Consumer::start().await;
        let _ = endpoint(&publisher, &consumer, &[LONG], ordered).await;
        consumer.reply_next([reply]);
        publish(&publisher, 1).await;
        let head = tried(&publisher).await.remove(0);
        assert!(
            head["next_attempt_at"].as_str() > Some(&tools::in_seconds(1800)),
            "{head}"
        );
        publish(&publisher, 1).await;
        let retry = format!("{}/retry", path_of(&head));
        let retried = publisher.admin.post(&retry).expect(200).await;
        assert_eq!(retried["status"], "pending");
        assert!(
            retried["next_attempt_at"].as_str() < Some(&tools::in_seconds(5)),
            "{retried}"
        );
        assert_eq!(succeeded(&publisher).await.len(), 2);
        let actions = publisher.actions().await;
        assert!(actions.iter().any(|action| action == "delivery.retried"));
    }
}

async fn enabling_makes_due_what_waits(world: &World) {
    // Enough to open the breaker, each of which has failed or waits behind it.
    const MANY: usize = 30;
    let server = world.start().await;
    for way in ["enable", "switch", "url"] {
        let publisher = server.publisher(way).await;
        let (consumer, other) = (Consumer::start().await, Consumer::start().await);
        let endpoint = endpoint(&publisher, &consumer, &[LONG], false).await;
        consumer.reply_always(Reply::status(500));
        publish(&publisher, MANY).await;
        consumer.count(10).await;
        let recorded = async || {
            let all = publisher.admin.all("/v1/deliveries").await;
            let tried = |one: &&Value| one["attempt_count"] != 0;
            let counts = all.iter().filter_map(|one| one["attempt_count"].as_u64());
            (all.iter().filter(tried).count(), counts.sum::<u64>())
        };
        eventually("ten wait for their second try", LIMIT, async || {
            (recorded().await.0 >= 10).then_some(())
        })
        .await;
        consumer.reply_always(Reply::status(204));
        // What was refused until now has to be recorded first: a failure that comes after the
        // endpoint was enabled waits for its own next try.
        let waits = eventually("every request is recorded", LIMIT, async || {
            let (waits, tries) = recorded().await;
            (tries == consumer.seen().len() as u64).then_some(waits)
        })
        .await;
        let patch = async |body: Value| {
            let patch = publisher.admin.patch(&endpoint).json(&body);
            patch.expect(200).await;
        };
        match way {
            "enable" => {
                let enable = publisher.admin.post(&format!("{endpoint}/enable"));
                let enabled = enable.expect(200).await;
                let due = enabled["deliveries_due"].as_u64().unwrap();
                // The breaker may have let one through meanwhile.
                assert!(due + 1 >= waits as u64, "{enabled}");
            }
            "switch" => {
                patch(json!({"enabled": false})).await;
                patch(json!({"enabled": true})).await;
            }
            _ => patch(json!({"url": other.url})).await,
        }
        assert_eq!(succeeded(&publisher).await.len(), MANY);
    }
}

async fn a_replay_can_make_due_what_waits(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let endpoint = endpoint(&publisher, &consumer, &[LONG], false).await;
    consumer.reply_next([
        Reply::status(500),
        Reply::status(500),
        overloaded(503, LONG),
    ]);
    for _ in 0..3 {
        publish(&publisher, 1).await;
        tried(&publisher).await;
    }
    // One that only waits for the pause to end, and was never tried.
    publish(&publisher, 1).await;
    let replays = format!("{endpoint}/replays");
    let start = async |body: Value| {
        let started = publisher.admin.post(&replays).json(&body).expect(202).await;
        let path = format!("{replays}/{}", started.text("/id"));
        eventually("the replay has ended", LIMIT, async || {
            let replay = publisher.admin.get(&path).expect(200).await.json().clone();
            (replay["status"] == "succeeded").then_some(replay)
        })
        .await
    };
    let since = tools::seconds_ago(600);
    let plain = start(json!({"since": since})).await;
    assert_eq!(
        (&plain["queued"], &plain["made_due"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(consumer.seen().len(), 3);
    let replay = start(json!({"since": since, "include_pending": true})).await;
    assert_eq!(
        (&replay["queued"], &replay["made_due"]),
        (&json!(0), &json!(3))
    );
    assert_eq!(replay["include_pending"], true);
    assert_eq!(succeeded(&publisher).await.len(), 4, "one is sent twice");
    assert_eq!(consumer.seen().len(), 7);
}

async fn a_retry_reaches_the_process_that_sends(world: &World) {
    let site = world.site().await;
    let one = site.start(&[]).await;
    let publisher = one.publisher("acme").await;
    let consumer = Consumer::start().await;
    let _ = endpoint(&publisher, &consumer, &[LONG], true).await;
    consumer.reply_next([overloaded(503, LONG)]);
    publish(&publisher, 2).await;
    // The first process holds the endpoint, its pause and the head of its order.
    let waits = eventually("the head waits", LIMIT, async || {
        let all = publisher.admin.all("/v1/deliveries").await;
        all.into_iter().find(|one| one["attempt_count"] == 1)
    })
    .await;
    let two = site.start_beside(&[]).await;
    let admin = two.user(publisher.admin.token());
    admin
        .post(&format!("{}/retry", path_of(&waits)))
        .expect(200)
        .await;
    assert_eq!(succeeded(&publisher).await.len(), 2);
}
