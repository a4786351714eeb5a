//! Large fan-outs: what is acknowledged arrives, whatever happens while it is spread, and others
//! are served meanwhile.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use sqlx::PgConnection;
use tests::{Consumer, Publisher, Server, World, on_both_stores, on_postgres, tools};

on_both_stores!(
    a_fan_out_survives_a_kill_in_the_middle,
    others_are_served_while_a_fan_out_is_spread,
    many_keyed_calls_of_one_publisher_leave_room_for_others,
);
on_postgres!(fan_outs_that_stand_still_are_seen);

/// Endpoints of the fan-outs here: enough for every call to be one, few enough for a slow machine.
pub(crate) const ENDPOINTS: usize = 20;

/// An endpoint; `more` are further members.
pub(crate) async fn endpoint(publisher: &Publisher, consumer: &Consumer, more: &Value) -> String {
    let mut body = json!({"url": consumer.url, "event_types": ["order.*"]});
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    let call = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    call.expect(201).await.text("/id")
}

/// Many endpoints that take few deliveries at a time, so that this machine is not busy with them.
pub(crate) async fn crowd(publisher: &Publisher, consumer: &Consumer) {
    for _ in 1..ENDPOINTS {
        endpoint(publisher, consumer, &json!({"rate_limit_per_second": 1})).await;
    }
}

/// Publishes so many events in one call; answers their identifiers.
pub(crate) async fn publish(publisher: &Publisher, events: usize) -> Vec<String> {
    let events: Vec<Value> = (0..events)
        .map(|n| json!({"type": "order.paid", "data": n}))
        .collect();
    let call = publisher.admin.post("/v1/events");
    let answer = call.json(&json!({"events": events})).expect(202).await;
    let items = answer["items"].as_array().unwrap().iter();
    items
        .map(|item| item["id"].as_str().unwrap().to_owned())
        .collect()
}

pub(crate) async fn spread(server: &Server) {
    let limit = Duration::from_mins(1);
    tools::eventually("all is spread", limit, async || {
        (server.site().count("fan_outs").await == 0).then_some(())
    })
    .await;
}

async fn a_fan_out_survives_a_kill_in_the_middle(world: &World) {
    let mut server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (consumer, rest) = (Consumer::start().await, Consumer::start().await);
    let ordered = endpoint(&publisher, &consumer, &json!({"ordered": true})).await;
    crowd(&publisher, &rest).await;
    let (mut events, mut kills) = (Vec::new(), 0);
    // Until a kill met it in the middle: some is written and some is not.
    while kills == 0 {
        for _ in 0..3 {
            events.extend(publish(&publisher, 100).await);
        }
        let limit = Duration::from_secs(20);
        tools::eventually("it has begun", limit, async || {
            let begun = server.site().count("fan_outs WHERE done > 0").await > 0;
            (begun || server.site().count("fan_outs").await == 0).then_some(())
        })
        .await;
        server.kill().await;
        kills += i32::from(server.site().count("fan_outs").await > 0);
        server = server.site().start(&[]).await;
    }
    // What comes after it lines up behind it.
    events.extend(publish(&publisher, 1).await);
    spread(&server).await;
    let all = i64::try_from(events.len() * ENDPOINTS).unwrap();
    let site = server.site();
    assert_eq!(site.count("deliveries").await, all, "each is written");
    let pairs = "(SELECT DISTINCT event_id, endpoint_id FROM deliveries) pairs";
    assert_eq!(site.count(pairs).await, all, "and once");
    let limit = Duration::from_mins(1);
    tools::eventually("all has arrived", limit, async || {
        let path = format!("/v1/deliveries?endpoint={ordered}&status=pending");
        let pending = publisher.admin.get(&path).expect(200).await;
        (pending["items"] == json!([])).then_some(())
    })
    .await;
    // One that was under way when the process died may come twice.
    let mut seen = BTreeSet::new();
    let arrived = consumer.seen();
    let arrived = arrived.iter().map(|one| one.id().to_owned());
    let arrived: Vec<String> = arrived.filter(|id| seen.insert(id.clone())).collect();
    assert_eq!(arrived, events, "in the order in which they were published");
}

async fn others_are_served_while_a_fan_out_is_spread(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let other = server.publisher("other").await;
    let (consumer, rest) = (Consumer::start().await, Consumer::start().await);
    other.endpoint(&consumer, &["run.created"]).await;
    other.pipeline("nightly").await;
    crowd(&publisher, &rest).await;
    let mut between = 0;
    // A call is between when something was left to spread before it was made and after its answer.
    while between < 3 {
        publish(&publisher, 200).await;
        while server.site().count("fan_outs").await > 0 {
            let run = other.run("nightly").await;
            let told = consumer.find("its event", |one| one.json()["data"]["run"]["id"] == run);
            told.await;
            between += i32::from(server.site().count("fan_outs").await > 0);
            if between == 3 {
                break;
            }
        }
    }
}

async fn many_keyed_calls_of_one_publisher_leave_room_for_others(world: &World) {
    let server = world.start().await;
    let (acme, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let mut calls = Vec::new();
    for n in 0..60 {
        let body = json!({"type": "order.paid", "data": n});
        let call = acme
            .admin
            .post("/v1/events")
            .json(&body)
            .key(&format!("k{n}"));
        calls.push(tokio::spawn(async move { call.answer().await.status }));
    }
    let body = json!({"type": "order.paid", "data": 1});
    for n in 0..10 {
        let call = other.admin.post("/v1/events").json(&body);
        call.key(&format!("k{n}")).expect(202).await;
    }
    // Who waits too long in its own line is told so, and nothing of it is written.
    let mut taken = 0;
    for call in calls {
        let status = call.await.unwrap();
        assert!([202, 429].contains(&status), "{status}");
        taken += usize::from(status == 202);
    }
    assert_eq!(acme.admin.all("/v1/events").await.len(), taken);
}

/// Another session holds the table, so that nothing of it can be changed.
async fn fan_outs_that_stand_still_are_seen(world: &World) {
    let timeout = [("STATIONMASTER_DATABASE_TIMEOUT_SECONDS", "2")];
    let server = world.start_with(&timeout).await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    crowd(&publisher, &consumer).await;
    let mut connection = server.site().database.as_ref().unwrap().connect().await;
    let run = async |statement: &'static str, connection: &mut PgConnection| {
        sqlx::raw_sql(statement).execute(connection).await.unwrap();
    };
    // Until something is left to spread.
    loop {
        for _ in 0..3 {
            publish(&publisher, 100).await;
        }
        let hold = "BEGIN; LOCK TABLE fan_outs IN EXCLUSIVE MODE";
        run(hold, &mut connection).await;
        if server.site().count("fan_outs").await > 0 {
            break;
        }
        run("ROLLBACK", &mut connection).await;
    }
    let limit = Duration::from_secs(40);
    let age = "stationmaster_progress_age_seconds{part=\"spreading\"}";
    tools::eventually("it is named", limit, async || {
        let answer = server.anon().get("/readyz").answer().await;
        let parts = answer["stuck"].as_array().unwrap();
        let named = parts.iter().any(|one| one["part"] == "spreading");
        assert!(!named || answer.status == 503, "{answer}");
        named.then_some(())
    })
    .await;
    assert!(server.metrics().await.contains(age));
    run("ROLLBACK", &mut connection).await;
    spread(&server).await;
    server.anon().get("/readyz").expect(200).await;
}
