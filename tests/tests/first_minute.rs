//! The first minute of a new deployment: from the bootstrap token to a webhook that anybody can
//! verify.

use serde_json::json;
use tests::{Consumer, World, on_both_stores};

use crate::verifiers::{self, verify};

on_both_stores!(
    a_run_ends_in_a_webhook_that_verifies,
    published_verifiers_accept_a_real_delivery,
    a_rotation_with_overlap_signs_with_both_secrets,
    the_bearer_goes_only_where_it_is_wanted,
    a_test_event_reaches_one_endpoint,
    the_documentation_comes_with_the_binary,
);

async fn a_run_ends_in_a_webhook_that_verifies(world: &World) {
    let server = world.start().await;
    server.anon().get("/healthz").expect(200).await;
    server.anon().get("/readyz").expect(200).await;

    let publisher = server.publisher("acme").await;
    assert_eq!(publisher.created["publisher"]["slug"], "acme");
    assert_eq!(publisher.created["publisher"]["status"], "active");
    for user in [&publisher.admin, &publisher.runner] {
        let me = user.get("/v1/publishers/me").expect(200).await;
        assert_eq!(me["id"], publisher.id, "{me}");
    }

    let pipeline = publisher.pipeline("nightly").await;
    assert_eq!(pipeline["version"], 1, "{pipeline}");
    let consumer = Consumer::start().await;
    let endpoint = publisher.endpoint(&consumer, &["run.*"]).await;

    let (run, claim) = publisher.claimed_run("nightly").await;
    let done = publisher.complete(&run, &claim).await;
    assert_eq!(done["status"], "succeeded", "{done}");
    assert_eq!(done["output"], json!({"rows": 42}), "{done}");
    assert_eq!(done["created_by"]["kind"], "runner", "{done}");
    assert_eq!(
        done["created_by"]["id"],
        publisher.credential("runner"),
        "{done}"
    );

    let delivery = consumer.event("run.succeeded").await;
    verify(&publisher.secret("webhook_signing"), &delivery).unwrap();
    assert!(
        delivery
            .header("content-type")
            .starts_with("application/json")
    );
    assert_eq!(
        delivery.header("authorization"),
        "",
        "nobody asked for the bearer"
    );
    let body = delivery.json();
    assert_eq!(body["id"], delivery.id());
    assert_eq!(body["data"]["run"]["id"], run);
    assert_eq!(body["data"]["run"]["status"], "succeeded");
    assert!(body["data"]["run"].get("input").is_none(), "{body}");

    let event = format!("/v1/events/{}", delivery.id());
    let event = publisher.admin.get(&event).expect(200).await;
    assert_eq!(event["type"], "run.succeeded", "{event}");
    assert_eq!(event["timestamp"], body["timestamp"], "{event}");
    assert_eq!(event["data"], body["data"], "{event}");

    let mut types: Vec<String> = consumer
        .count(3)
        .await
        .iter()
        .map(tests::Delivery::event_type)
        .collect();
    types.sort();
    assert_eq!(types, ["run.created", "run.started", "run.succeeded"]);
    let mine = publisher.admin.all("/v1/deliveries").await;
    assert_eq!(mine.len(), 3, "{mine:?}");
    assert!(
        mine.iter()
            .all(|delivery| delivery["endpoint_id"] == endpoint)
    );
}

async fn published_verifiers_accept_a_real_delivery(world: &World) {
    if !verifiers::installed("published_verifiers_accept_a_real_delivery") {
        return;
    }
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let other = server.publisher("other").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    let delivery = consumer.event("run.succeeded").await;

    let genuine = verifiers::case(&publisher.secret("webhook_signing"), &delivery);
    let foreign = verifiers::case(&other.secret("webhook_signing"), &delivery);
    for name in verifiers::names() {
        assert_eq!(verifiers::ask(name, &genuine).await, "ok", "{name}");
        for (what, case) in [
            ("a changed byte", verifiers::with_a_changed_byte(&genuine)),
            ("a stale time", verifiers::with_a_stale_time(&genuine)),
            ("a wrong secret", foreign.clone()),
        ] {
            let said = verifiers::ask(name, &case).await;
            assert!(said.starts_with("refused: "), "{name} takes {what}: {said}");
        }
    }
}

async fn a_rotation_with_overlap_signs_with_both_secrets(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    let old = publisher.secret("webhook_signing");
    let rotate = "/v1/publishers/me/tokens/webhook_signing/rotate";

    let overlap = json!({"overlap_seconds": 3600});
    let new = publisher
        .admin
        .post(rotate)
        .json(&overlap)
        .expect(200)
        .await
        .text("/secret");
    publisher.finished_run("nightly").await;
    let both = consumer.event("run.succeeded").await;
    verify(&old, &both).unwrap();
    verify(&new, &both).unwrap();
    let codes = |text: &str, mark: &str| text.matches(mark).count();
    assert_eq!(codes(both.header("x-stationmaster-signature"), "v1="), 2);
    assert_eq!(codes(both.header("webhook-signature"), "v1,"), 2);

    let newest = publisher
        .admin
        .post(rotate)
        .json(&json!({}))
        .expect(200)
        .await
        .text("/secret");
    let run = publisher.finished_run("nightly").await;
    let last = consumer
        .find("the last run", |delivery| {
            delivery.json()["data"]["run"]["id"] == *run
        })
        .await;
    verify(&newest, &last).unwrap();
    for gone in [&old, &new] {
        assert_eq!(verify(gone, &last), Err("no_match"));
    }
}

async fn the_bearer_goes_only_where_it_is_wanted(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let (with, without) = (Consumer::start().await, Consumer::start().await);
    publisher.endpoint(&without, &["run.succeeded"]).await;
    let body = json!({
        "url": with.url,
        "event_types": ["run.succeeded"],
        "send_bearer": true,
        "headers": {"X-Tenant": "seven"},
    });
    publisher
        .admin
        .post("/v1/webhook-endpoints")
        .json(&body)
        .expect(201)
        .await;
    publisher.finished_run("nightly").await;
    let bearer = format!("Bearer {}", publisher.secret("subcommand_bearer"));
    let delivery = with.event("run.succeeded").await;
    assert_eq!(delivery.header("authorization"), bearer);
    assert_eq!(delivery.header("x-tenant"), "seven");
    let delivery = without.event("run.succeeded").await;
    assert_eq!(delivery.header("authorization"), "");
    assert_eq!(delivery.header("x-tenant"), "");
}

async fn a_test_event_reaches_one_endpoint(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (one, two) = (Consumer::start().await, Consumer::start().await);
    // Even an endpoint whose filters would not let it through.
    let endpoint = publisher.endpoint(&one, &["run.created"]).await;
    publisher.endpoint(&two, &["*"]).await;
    let test = format!("/v1/webhook-endpoints/{endpoint}/test");
    let answer = publisher.admin.post(&test).answer().await;
    assert!((200..300).contains(&answer.status), "{answer}");
    let delivery = one.event("stationmaster.test").await;
    verify(&publisher.secret("webhook_signing"), &delivery).unwrap();
    publisher
        .admin
        .get(&format!("/v1/events/{}", delivery.id()))
        .expect(200)
        .await;
    assert!(two.seen().is_empty(), "the other endpoint was not asked");
}

async fn the_documentation_comes_with_the_binary(world: &World) {
    let server = world.start().await;
    let document = server.anon().get("/openapi.json").expect(200).await;
    assert!(document["openapi"].as_str().unwrap().starts_with("3."));
    let page = server.anon().get("/docs").expect(200).await;
    assert!(
        page.header("content-type").starts_with("text/html"),
        "{page}"
    );
    let text = String::from_utf8_lossy(&page.body).into_owned();
    for elsewhere in ["src=\"http", "href=\"http", "src='http", "src=\"//"] {
        assert!(
            !text.contains(elsewhere),
            "/docs loads something from elsewhere"
        );
    }
    let problems = server.anon().get("/docs/problems").expect(200).await;
    let text = String::from_utf8_lossy(&problems.body).into_owned();
    for code in domain::Code::ALL {
        assert!(
            text.contains(code.as_str()),
            "/docs/problems says nothing of {code}"
        );
    }
}
