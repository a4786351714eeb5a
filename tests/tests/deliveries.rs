//! Deliveries: retries, attempts, what an endpoint's state does to them.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tests::{Consumer, Publisher, Reply, World, on_both_stores, tools::eventually};

use crate::{audit::verified, verifiers::verify};

on_both_stores!(
    a_failed_delivery_is_tried_again_until_it_succeeds,
    a_delivery_fails_in_the_end_and_can_be_retried,
    a_disabled_endpoint_gets_nothing,
    an_endpoint_gets_what_its_filters_let_through,
    a_slow_consumer_holds_nobody_up,
    deliveries_of_a_suspended_publisher_wait,
    a_destination_that_is_not_allowed_is_refused,
    what_nobody_could_deliver_is_delivered_after_a_restart,
    what_waits_for_a_deleted_endpoint_is_called_off,
    a_publisher_is_deleted_while_its_deliveries_fly,
    a_publisher_is_destroyed_while_its_deliveries_fly,
);

const QUICK: [(&str, &str); 1] = [("STATIONMASTER_RETRY_SCHEDULE", "200ms,200ms")];
const LIMIT: Duration = Duration::from_secs(15);
/// More deliveries than go out to one endpoint at once.
const MANY: usize = 40;

/// The one delivery of an endpoint, once it has this status.
async fn settled(publisher: &Publisher, status: &str) -> Value {
    let id = eventually(&format!("a delivery is {status}"), LIMIT, async || {
        let list = publisher.admin.all("/v1/deliveries").await;
        let found = list.iter().find(|delivery| delivery["status"] == status);
        found.map(|delivery| delivery["id"].as_str().unwrap().to_owned())
    })
    .await;
    let path = format!("/v1/deliveries/{id}");
    publisher.admin.get(&path).expect(200).await.json().clone()
}

async fn a_failed_delivery_is_tried_again_until_it_succeeds(world: &World) {
    let server = world.start_with(&QUICK).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    let busy = Reply {
        body: "the database of the consumer is down".to_owned(),
        ..Reply::status(500)
    };
    consumer.reply_next([busy, Reply::status(302)]);
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;

    let seen = consumer.count(3).await;
    let secret = publisher.secret("webhook_signing");
    for delivery in &seen {
        verify(&secret, delivery).unwrap();
        assert_eq!(
            delivery.id(),
            seen[0].id(),
            "every try is of the same event"
        );
        assert_eq!(delivery.body, seen[0].body, "and sends the same bytes");
    }
    let delivery = settled(&publisher, "succeeded").await;
    assert_eq!(delivery["event_id"], seen[0].id());
    let attempts = delivery["attempts"].as_array().unwrap();
    let statuses: Vec<&Value> = attempts
        .iter()
        .map(|attempt| &attempt["status_code"])
        .collect();
    assert_eq!(statuses, [500, 302, 204], "{delivery}");
    let numbers: Vec<&Value> = attempts.iter().map(|attempt| &attempt["number"]).collect();
    assert_eq!(numbers, [1, 2, 3], "{delivery}");
    assert_eq!(
        attempts[0]["response_excerpt"],
        "the database of the consumer is down"
    );
    assert!(
        attempts
            .iter()
            .all(|attempt| attempt["latency_ms"].is_number()),
        "{delivery}"
    );
    assert!(delivery["next_attempt_at"].is_null(), "{delivery}");
}

async fn a_delivery_fails_in_the_end_and_can_be_retried(world: &World) {
    let server = world.start_with(&QUICK).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    consumer.reply_always(Reply::status(503));
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    let delivery = settled(&publisher, "failed").await;
    assert_eq!(
        delivery["attempts"].as_array().unwrap().len(),
        3,
        "{delivery}"
    );
    assert_eq!(consumer.seen().len(), 3);

    consumer.reply_always(Reply::status(204));
    let retry = format!("/v1/deliveries/{}/retry", delivery["id"].as_str().unwrap());
    let answer = publisher.admin.post(&retry).answer().await;
    assert!((200..300).contains(&answer.status), "{answer}");
    let delivery = settled(&publisher, "succeeded").await;
    assert_eq!(
        delivery["attempts"].as_array().unwrap().len(),
        4,
        "{delivery}"
    );
    let actions = publisher.actions().await;
    assert!(
        actions.iter().any(|action| action == "delivery.retried"),
        "{actions:?}"
    );
}

async fn a_disabled_endpoint_gets_nothing(world: &World) {
    let server = world.start_with(&QUICK).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let (off, on) = (Consumer::start().await, Consumer::start().await);
    let endpoint = publisher.endpoint(&off, &["run.succeeded"]).await;
    let path = format!("/v1/webhook-endpoints/{endpoint}");
    publisher
        .admin
        .patch(&path)
        .json(&json!({"enabled": false}))
        .expect(200)
        .await;
    publisher.endpoint(&on, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    on.count(1).await;
    publisher
        .admin
        .patch(&path)
        .json(&json!({"enabled": true}))
        .expect(200)
        .await;
    publisher.finished_run("nightly").await;
    on.count(2).await;
    assert_eq!(
        off.count(1).await.len(),
        1,
        "only what came after it was enabled"
    );
    publisher.admin.delete(&path).expect(204).await;
    publisher.finished_run("nightly").await;
    on.count(3).await;
    assert_eq!(off.seen().len(), 1);
    let actions = publisher.actions().await;
    for wanted in [
        "endpoint.created",
        "endpoint.disabled",
        "endpoint.enabled",
        "endpoint.deleted",
    ] {
        assert!(
            actions.iter().any(|action| action == wanted),
            "{wanted}: {actions:?}"
        );
    }
}

async fn an_endpoint_gets_what_its_filters_let_through(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("one").await;
    publisher.pipeline("two").await;
    let all = Consumer::start().await;
    let some = Consumer::start().await;
    publisher.endpoint(&all, &["*"]).await;
    let body = json!({"url": some.url, "event_types": ["run.succeeded"], "pipelines": ["two"]});
    publisher
        .admin
        .post("/v1/webhook-endpoints")
        .json(&body)
        .expect(201)
        .await;
    publisher.finished_run("one").await;
    let wanted = publisher.finished_run("two").await;
    all.count(6).await;
    let got = some.count(1).await;
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].json()["data"]["run"]["id"], *wanted);
}

async fn a_slow_consumer_holds_nobody_up(world: &World) {
    let server = world.start().await;
    let (slow, fast) = (
        server.publisher("slow").await,
        server.publisher("fast").await,
    );
    let (stuck, prompt) = (Consumer::start().await, Consumer::start().await);
    stuck.hold_after(0);
    for (publisher, consumer) in [(&slow, &stuck), (&fast, &prompt)] {
        publisher.pipeline("nightly").await;
        publisher.endpoint(consumer, &["run.succeeded"]).await;
    }
    for _ in 0..5 {
        slow.finished_run("nightly").await;
    }
    stuck.count(1).await;
    // What is held ends by a deadline that is longer than this waits.
    fast.finished_run("nightly").await;
    prompt.count(1).await;
}

async fn deliveries_of_a_suspended_publisher_wait(world: &World) {
    let server = world.start_with(&QUICK).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    consumer.reply_next([Reply::status(500)]);
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    consumer.count(1).await;
    let operator = server.operator();
    let path = format!("/v1/publishers/{}", publisher.id);
    operator.post(&format!("{path}/suspend")).expect(200).await;
    // One try may have been under way.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = consumer.seen().len();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(consumer.seen().len(), before, "nothing goes out meanwhile");
    operator
        .post(&format!("{path}/resume"))
        .json(&json!({}))
        .expect(200)
        .await;
    settled(&publisher, "succeeded").await;
}

async fn a_destination_that_is_not_allowed_is_refused(world: &World) {
    let env = [
        ("STATIONMASTER_ALLOW_HTTP_DESTINATIONS", "false"),
        ("STATIONMASTER_ALLOWED_DESTINATIONS", ""),
    ];
    let server = world.start_with(&env).await;
    let publisher = server.publisher("acme").await;
    for url in [
        "http://example.com/hook",
        "https://127.0.0.1/hook",
        "https://[::1]/hook",
        "https://[::ffff:127.0.0.1]/hook",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/",
        "https://10.0.0.1/",
        "https://192.168.1.1/",
        "https://2130706433/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://[64:ff9b::7f00:1]/",
        "https://user:password@example.com/",
        "https://localhost/",
    ] {
        let body = json!({"url": url, "event_types": ["*"]});
        let answer = publisher
            .admin
            .post("/v1/webhook-endpoints")
            .json(&body)
            .answer()
            .await;
        assert_eq!(answer.status, 422, "{url}: {answer}");
        assert_eq!(answer["code"], "destination_refused", "{url}: {answer}");
    }
    assert!(
        publisher
            .admin
            .all("/v1/webhook-endpoints")
            .await
            .is_empty()
    );
}

async fn what_nobody_could_deliver_is_delivered_after_a_restart(world: &World) {
    let server = world.start_with(&QUICK).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    let mut reply = Reply::status(204);
    reply.delay = Duration::from_secs(30);
    consumer.reply_next([reply]);
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    consumer.count(1).await;
    // It dies while the consumer thinks: nobody knows whether it was delivered, so it goes again.
    server.kill().await;
    let _again = server.site().start(&QUICK).await;
    let limit = Duration::from_secs(20);
    eventually("a second try", limit, async || {
        (consumer.seen().len() > 1).then_some(())
    })
    .await;
    let seen = consumer.seen();
    assert_eq!(seen[0].id(), seen[1].id());
    settled(&publisher, "succeeded").await;
}

async fn what_waits_for_a_deleted_endpoint_is_called_off(world: &World) {
    let each_second = ("STATIONMASTER_CRON_DELIVERIES", "* * * * * *");
    let server = world.start_with(&[each_second]).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    let endpoint = publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    settled(&publisher, "succeeded").await;
    let path = format!("/v1/webhook-endpoints/{endpoint}");
    publisher.admin.delete(&path).expect(204).await;
    // As if its event had been written at the very moment of the deletion.
    let wait = "UPDATE deliveries SET status = 'pending', next_attempt_at = 1, finished_at = NULL";
    assert_eq!(server.site().execute(wait).await, 1);
    let delivery = settled(&publisher, "cancelled").await;
    assert!(delivery["next_attempt_at"].is_null(), "{delivery}");
    assert_eq!(consumer.seen().len(), 1, "nothing was sent to it");
}

/// A publisher whose consumer holds what comes, with more deliveries than go out at once.
async fn in_the_air(publisher: &Publisher, consumer: &Consumer) {
    consumer.hold_after(0);
    publisher.pipeline("nightly").await;
    publisher.endpoint(consumer, &["run.succeeded"]).await;
    for _ in 0..MANY {
        publisher.finished_run("nightly").await;
    }
    consumer.count(1).await;
}

async fn a_publisher_is_deleted_while_its_deliveries_fly(world: &World) {
    let server = world.start_with(&QUICK).await;
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let (slow, prompt) = (Consumer::start().await, Consumer::start().await);
    in_the_air(&publisher, &slow).await;
    let operator = server.operator();
    let path = format!("/v1/publishers/{}", publisher.id);
    let delete = format!("{path}?confirm=acme");
    operator.delete(&delete).expect(204).await;
    slow.release();
    // What is under way may end, and one more round may just have been claimed.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = slow.seen().len();
    other.pipeline("nightly").await;
    other.endpoint(&prompt, &["run.succeeded"]).await;
    other.finished_run("nightly").await;
    prompt.count(1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(slow.seen().len(), before, "nothing more goes out");
    assert!(before < MANY, "all were out before");

    // It comes back, and nothing was lost.
    let resume = operator.post(&format!("{path}/resume")).json(&json!({}));
    resume.expect(200).await;
    eventually("nothing waits", LIMIT, async || {
        let list = publisher.admin.get("/v1/deliveries?status=pending");
        let list = list.expect(200).await;
        list["items"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    let list = publisher.admin.all("/v1/deliveries").await;
    assert_eq!(list.len(), MANY);
    let sent: BTreeSet<String> = slow.seen().iter().map(|one| one.id().to_owned()).collect();
    for delivery in &list {
        assert_eq!(delivery["status"], "succeeded", "{delivery}");
        assert!(sent.contains(delivery["event_id"].as_str().unwrap()));
    }
    verified(&publisher, true).await;
}

async fn a_publisher_is_destroyed_while_its_deliveries_fly(world: &World) {
    let each_second = ("STATIONMASTER_CRON_PUBLISHERS", "* * * * * *");
    let server = world.start_with(&[QUICK[0], each_second]).await;
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let (slow, prompt) = (Consumer::start().await, Consumer::start().await);
    in_the_air(&publisher, &slow).await;
    let operator = server.operator();
    let path = format!("/v1/publishers/{}", publisher.id);
    let delete = format!("{path}?confirm=acme");
    operator.delete(&delete).expect(204).await;
    // A week passes.
    let pass = "UPDATE publishers SET deleted_at = 1 WHERE deleted_at IS NOT NULL";
    assert_eq!(server.site().execute(pass).await, 1);
    eventually("it is gone for good", LIMIT, async || {
        (operator.get(&path).answer().await.status == 404).then_some(())
    })
    .await;
    // What flew lands now, and finds nothing to be written down on.
    slow.release();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for table in ["deliveries", "delivery_attempts", "events", "runs"] {
        assert_eq!(server.site().count(table).await, 0, "{table}");
    }
    other.pipeline("nightly").await;
    other.endpoint(&prompt, &["run.succeeded"]).await;
    other.finished_run("nightly").await;
    prompt.count(1).await;
    server.anon().get("/readyz").expect(200).await;
    publisher.admin.get("/v1/runs").expect(401).await;
}
