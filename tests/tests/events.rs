//! Events of a publisher's own: published one by one or many at once, of types that it describes.

use serde_json::{Value, json};
use tests::{Consumer, User, World, on_both_stores};

use crate::verifiers::verify;

on_both_stores!(
    an_event_is_published_and_delivered,
    a_thousand_events_are_published_at_once,
    a_list_with_a_fault_publishes_nothing,
    a_repeat_publishes_nothing_new,
    types_that_are_the_services_own_are_refused,
    a_described_type_takes_only_what_fits_its_schema,
    a_limited_runner_publishes_in_its_pipelines,
);

fn order(number: usize) -> Value {
    json!({"type": "order.paid", "data": {"order": number}})
}

async fn an_event_is_published_and_delivered(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["order.*"]).await;
    let call = publisher.runner.post("/v1/events").json(&order(17));
    let answer = call.expect(202).await;
    let delivery = consumer.event("order.paid").await;
    assert_eq!(&delivery.json(), answer.json());
    assert_eq!(delivery.id(), answer.text("/id"));
    verify(&publisher.secret("webhook_signing"), &delivery).unwrap();
    let path = format!("/v1/events/{}", answer.text("/id"));
    let read = publisher.runner.get(&path).expect(200).await;
    assert_eq!(read.json(), answer.json());
}

async fn a_thousand_events_are_published_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["stock.low"]).await;
    let mut events: Vec<Value> = (0..1000).map(order).collect();
    events[500]["type"] = json!("stock.low");
    let body = json!({"events": events});
    let call = publisher.admin.post("/v1/events").json(&body);
    let answer = call.expect(202).await;
    let items = answer["items"].as_array().unwrap();
    assert_eq!(items.len(), 1000);
    for (at, item) in items.iter().enumerate() {
        assert_eq!(item["data"]["order"], at);
    }
    assert_eq!(consumer.event("stock.low").await.id(), items[500]["id"]);
    let deliveries = publisher.admin.all("/v1/deliveries").await;
    assert_eq!(deliveries.len(), 1, "nobody wants the others");
    let newest = publisher.admin.get("/v1/events?limit=1").expect(200).await;
    assert_eq!(newest["items"][0], items[999]);

    let one_more: Vec<Value> = (0..1001).map(order).collect();
    let call = publisher.admin.post("/v1/events");
    let answer = call.json(&json!({"events": one_more})).expect(422).await;
    assert_eq!(answer.pointers(), ["/events"]);
}

async fn a_list_with_a_fault_publishes_nothing(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let large = json!({"type": "a.b", "data": "x".repeat(256 * 1024)});
    let strange = json!({"type": "a.b", "data": 1, "pipeline": "none-such"});
    for (bad, pointer) in [
        (json!({"type": "run.mine", "data": 1}), "/events/3/type"),
        (json!({"type": "Not.So", "data": 1}), "/events/3/type"),
        (json!({"type": "a.b"}), "/events/3/data"),
        (large, "/events/3/data"),
        (strange, "/events/3/pipeline"),
    ] {
        let events = json!({"events": [order(0), order(1), order(2), bad]});
        let call = publisher.runner.post("/v1/events").json(&events);
        let answer = call.refused(422, "validation_failed").await;
        assert_eq!(answer.pointers(), [pointer]);
    }
    assert!(publisher.admin.all("/v1/events").await.is_empty());
}

async fn a_repeat_publishes_nothing_new(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let other = server.publisher("other").await;
    let mut named = order(1);
    named["external_id"] = json!("order-1");
    let first = publisher.runner.post("/v1/events").json(&named);
    let first = first.expect(202).await;
    // Whatever the repeat says: the first one counts.
    named["data"] = json!({"order": 2});
    let again = publisher.admin.post("/v1/events").json(&named);
    assert_eq!(again.expect(200).await.json(), first.json());
    let list = json!({"events": [order(3), named]});
    let listed = publisher.admin.post("/v1/events").json(&list);
    assert_eq!(&listed.expect(202).await["items"][1], first.json());
    // The name is the publisher's.
    other
        .runner
        .post("/v1/events")
        .json(&named)
        .expect(202)
        .await;

    let keyed = async || {
        let call = publisher.runner.post("/v1/events").json(&list);
        call.header("idempotency-key", "batch-1").expect(202).await
    };
    let (once, twice) = (keyed().await, keyed().await);
    assert_eq!(once.json(), twice.json());
    assert_eq!(twice.header("idempotent-replayed"), "true");
    assert_eq!(publisher.admin.all("/v1/events").await.len(), 3);
}

async fn types_that_are_the_services_own_are_refused(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    for bad in [
        "run.succeeded",
        "run",
        "stationmaster.test",
        "a..b",
        "A",
        "*",
    ] {
        let body = json!({"type": bad, "data": {}});
        let answer = publisher.runner.post("/v1/events").json(&body);
        assert_eq!(answer.expect(422).await.pointers(), ["/type"], "{bad}");
    }
    let path = "/v1/event-types/run.mine";
    let call = publisher.admin.put(path).json(&json!({}));
    call.refused(400, "invalid_parameter").await;
}

async fn a_described_type_takes_only_what_fits_its_schema(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    let path = "/v1/event-types/order.paid";
    let described = json!({
        "description": "An order was paid.",
        "example": {"order": 1},
        "schema": {"type": "object", "required": ["order"],
            "properties": {"order": {"type": "integer"}}},
    });
    let made = admin.put(path).json(&described).expect(201).await;
    assert_eq!(made.header("location"), path);
    assert_eq!(made["example"]["data"], json!({"order": 1}));
    admin.put(path).json(&described).expect(200).await;
    let wrong = json!({"type": "order.paid", "data": {"order": "one"}});
    let call = publisher.runner.post("/v1/events").json(&wrong);
    assert_eq!(call.expect(422).await.pointers(), ["/data/order"]);
    let list = json!({"events": [order(1), wrong, order(2), wrong]});
    let answer = publisher.runner.post("/v1/events").json(&list);
    let answer = answer.expect(422).await;
    let pointers = answer.pointers();
    assert_eq!(pointers, ["/events/1/data/order", "/events/3/data/order"]);
    assert!(
        answer.to_string().contains("`events.1.data.order`"),
        "{answer}"
    );
    let good = publisher.runner.post("/v1/events").json(&order(1));
    good.expect(202).await;

    looks_of_types(admin, &described).await;

    // A looser schema counts at once; without the description anything goes.
    let loose = json!({"schema": {"type": "object"}});
    let call = admin.put(path).json(&loose).header("if-match", "\"7\"");
    call.refused(412, "precondition_failed").await;
    admin.put(path).json(&loose).expect(200).await;
    let call = publisher.runner.post("/v1/events").json(&wrong);
    call.expect(202).await;
    admin.delete(path).expect(204).await;
    admin.delete(path).expect(404).await;
    let anything = json!({"type": "order.paid", "data": 1});
    let call = publisher.runner.post("/v1/events").json(&anything);
    call.expect(202).await;
    let actions = publisher.actions().await;
    let of_types = actions
        .iter()
        .filter(|action| action.starts_with("event_type."));
    let expected = ["created", "updated", "deleted"].map(|word| format!("event_type.{word}"));
    assert!(of_types.eq(&expected), "{actions:?}");
}

/// The type as it is listed and read; what can't describe one is refused.
async fn looks_of_types(admin: &User, described: &Value) {
    let path = "/v1/event-types/order.paid";
    // An example must fit, a schema must be one.
    let mut unfit = described.clone();
    unfit["example"] = json!({"order": null});
    let answer = admin.put(path).json(&unfit).expect(422).await;
    assert_eq!(answer.pointers(), ["/example/order"]);
    let answer = admin.put(path).json(&json!({"schema": {"type": "text"}}));
    assert_eq!(answer.expect(422).await.pointers(), ["/schema/type"]);

    let list = admin.get("/v1/event-types").expect(200).await;
    let own = list["items"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&own["type"], &own["built_in"]),
        (&json!("order.paid"), &json!(false))
    );
    let read = admin.get(path).expect(200).await;
    assert_eq!(read["schema"], described["schema"]);
    let built_in = admin.get("/v1/event-types/run.succeeded").expect(200).await;
    assert_eq!(built_in["built_in"], true);
}

async fn a_limited_runner_publishes_in_its_pipelines(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.pipeline("weekly").await;
    let mint = publisher.admin.post("/v1/publishers/me/tokens/runner");
    let mint = mint
        .json(&json!({"pipelines": ["nightly"]}))
        .expect(201)
        .await;
    let runner = server.user(&mint.text("/token"));
    let consumer = Consumer::start().await;
    let body =
        json!({"url": consumer.url, "event_types": ["order.paid"], "pipelines": ["nightly"]});
    publisher
        .admin
        .post("/v1/webhook-endpoints")
        .json(&body)
        .expect(201)
        .await;
    let within = |pipeline: &str| {
        let mut event = order(1);
        event["pipeline"] = json!(pipeline);
        event
    };
    runner.post("/v1/events").json(&order(0)).expect(202).await;
    let sent = runner.post("/v1/events").json(&within("nightly"));
    let sent = sent.expect(202).await;
    let refused = runner.post("/v1/events").json(&within("weekly"));
    let refused = refused.expect(422).await;
    let absent = runner.post("/v1/events").json(&within("none-such"));
    assert_eq!(refused["errors"], absent.expect(422).await["errors"]);
    assert_eq!(consumer.event("order.paid").await.id(), sent.text("/id"));
    assert_eq!(publisher.admin.all("/v1/deliveries").await.len(), 1);
    publisher
        .admin
        .post("/v1/events")
        .json(&within("weekly"))
        .expect(202)
        .await;
    assert_eq!(
        runner.all("/v1/events").await.len(),
        2,
        "not what it can't reach"
    );
}
