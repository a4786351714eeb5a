//! What a train's people are told in Slack, and what becomes of it when Slack does not answer.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{
    Consumer, Delivery, Publisher, Reply, Site, World, on_both_stores, on_postgres, tools,
};

on_both_stores!(
    an_exhausted_train_is_told_of,
    only_what_was_asked_for_is_told,
    a_receiver_that_fails_is_tried_again_when_it_asks_to_be,
    a_webhook_that_is_gone_is_given_up_at_once,
    what_the_guard_refuses_is_a_failure_on_record,
    a_message_survives_a_kill,
);

on_postgres!(two_processes_send_each_message_once);

const LIMIT: Duration = Duration::from_secs(30);
const SENT: &str = "train_notices WHERE finished_at IS NOT NULL AND last_error IS NULL";

/// Where a train is told of: a URL that nobody else has, on the consumer's machine.
fn webhook(consumer: &Consumer) -> String {
    format!("{}/{}{}", consumer.url, tools::word(), tools::word())
}

/// A train without accounts, so that it is exhausted whenever it is asked.
async fn train(publisher: &Publisher, slug: &str, slack: Value) {
    let body = json!({"slug": slug, "slack": slack});
    let call = publisher.admin.post("/v1/trains").json(&body);
    call.expect(201).await;
}

async fn told(publisher: &Publisher, slug: &str, consumer: &Consumer) -> String {
    let url = webhook(consumer);
    let slack = json!({"webhook_url": url, "channel": "#ops", "events": ["train.exhausted"]});
    train(publisher, slug, slack).await;
    url
}

/// Asks a train for an account until it has none.
async fn exhaust(publisher: &Publisher, slug: &str) {
    let path = format!("/v1/trains/{slug}/tokens");
    let minted = publisher
        .admin
        .post(&path)
        .json(&json!({}))
        .expect(201)
        .await;
    let gateway = publisher.admin.with_token(&minted.text("/token"));
    let refused = gateway
        .post("/v1/resolve")
        .json(&json!({}))
        .expect(429)
        .await;
    assert_eq!(refused["code"], "train_exhausted");
}

/// Waits until as many rows are there.
async fn until(site: &Site, from: &str, count: i64) {
    tools::eventually(&format!("{count} {from}"), LIMIT, async || {
        if site.count(from).await == count {
            return Some(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        None
    })
    .await;
}

/// The train's last message, once one ended.
async fn ended(publisher: &Publisher, slug: &str) -> Value {
    let path = format!("/v1/trains/{slug}");
    tools::eventually("a message that ended", LIMIT, async || {
        let train = publisher.admin.get(&path).expect(200).await;
        let last = train["last_notice"].clone();
        if last["finished_at"].is_string() {
            return Some(last);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        None
    })
    .await
}

fn to<'a>(url: &'a str, all: &'a [Delivery]) -> Vec<&'a Delivery> {
    all.iter().filter(|one| url.ends_with(&one.path)).collect()
}

async fn an_exhausted_train_is_told_of(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let url = told(&publisher, "nightly", &consumer).await;
    let path = "/v1/trains/nightly";
    let train = publisher.admin.get(path).expect(200).await;
    assert_eq!(train["last_notice"], Value::Null, "{train}");
    exhaust(&publisher, "nightly").await;
    let came = consumer.count(1).await.remove(0);
    assert!(url.ends_with(&came.path), "{}", came.path);
    assert_eq!(came.header("content-type"), "application/json");
    assert_eq!(came.header("authorization"), "");
    let body = came.json();
    let mut members: Vec<&String> = body.as_object().unwrap().keys().collect();
    members.sort_unstable();
    assert_eq!(members, ["channel", "text"]);
    assert_eq!(body["channel"], "#ops");
    let text = body["text"].as_str().unwrap();
    assert!(
        text.contains("`nightly`") && text.contains("exhausted"),
        "{text}"
    );

    let last = ended(&publisher, "nightly").await;
    assert_eq!(last["event_type"], "stationmaster.train.exhausted");
    assert_eq!(
        (&last["attempts"], &last["error"]),
        (&json!(1), &Value::Null)
    );
    until(server.site(), SENT, 1).await;
    // The next refusal follows too soon to be worth a message.
    exhaust(&publisher, "nightly").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(consumer.seen().len(), 1);
    let figures = server.metrics().await;
    let sent = "stationmaster_notice_attempts_total{outcome=\"sent\"} 1";
    assert!(figures.contains(sent), "{figures}");
    assert!(!format!("{:?}", server.log()).contains(&url));
}

async fn only_what_was_asked_for_is_told(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let other = server.publisher("other").await;
    let consumer = Consumer::start().await;
    let slack = json!({"webhook_url": webhook(&consumer), "events": ["account.refresh_failed"]});
    train(&publisher, "failing", slack).await;
    train(&publisher, "silent", Value::Null).await;
    told(&other, "asked", &consumer).await;
    let url = webhook(&consumer);
    let slack = json!({"webhook_url": url, "events": ["train.exhausted"]});
    train(&publisher, "asked", slack).await;
    for slug in ["failing", "silent", "asked"] {
        exhaust(&publisher, slug).await;
    }
    consumer.count(1).await;
    until(server.site(), SENT, 1).await;
    assert_eq!(server.site().count("train_notices").await, 1);
    let all = consumer.seen();
    assert_eq!((all.len(), to(&url, &all).len()), (1, 1));
    // Nobody named a channel: the webhook's own it is.
    assert_eq!(all[0].json().get("channel"), None);
}

async fn a_receiver_that_fails_is_tried_again_when_it_asks_to_be(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    told(&publisher, "nightly", &consumer).await;
    let mut busy = Reply::status(429);
    busy.headers = vec![("retry-after", "3600".to_owned())];
    consumer.reply_next([busy]);
    exhaust(&publisher, "nightly").await;
    let site = server.site();
    let waits = "train_notices WHERE last_error = 'status' AND attempts = 1 \
                 AND next_attempt_at - created_at BETWEEN 3500000 AND 3700000";
    until(site, waits, 1).await;
    let train = publisher.admin.get("/v1/trains/nightly").expect(200).await;
    let last = &train["last_notice"];
    assert_eq!(
        (&last["error"], &last["finished_at"]),
        (&json!("status"), &Value::Null)
    );
    // The hour passes.
    site.execute("UPDATE train_notices SET next_attempt_at = 1")
        .await;
    assert_eq!(consumer.count(2).await.len(), 2);
    let last = ended(&publisher, "nightly").await;
    assert_eq!(
        (&last["attempts"], &last["error"]),
        (&json!(2), &Value::Null)
    );
}

async fn a_webhook_that_is_gone_is_given_up_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    for (slug, status) in [("revoked", 404), ("archived", 410)] {
        consumer.reply_always(Reply::status(status));
        told(&publisher, slug, &consumer).await;
        exhaust(&publisher, slug).await;
        let last = ended(&publisher, slug).await;
        assert_eq!(
            (&last["attempts"], &last["error"]),
            (&json!(1), &json!("status"))
        );
    }
    assert_eq!(consumer.seen().len(), 2);
    let figures = server.metrics().await;
    assert!(
        figures.contains("stationmaster_notices_given_up_total 2"),
        "{figures}"
    );
    let log = server.log();
    let given_up = |line: &&Value| line.to_string().contains("given up");
    assert_eq!(log.iter().filter(given_up).count(), 2, "{log:?}");
}

async fn what_the_guard_refuses_is_a_failure_on_record(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let url = told(&publisher, "nightly", &consumer).await;
    // The operator no longer allows what it allowed when the URL was stored.
    let strict = [("STATIONMASTER_ALLOWED_DESTINATIONS", "")];
    let server = server.restart(&strict).await;
    let body =
        json!({"slug": "late", "slack": {"webhook_url": url, "events": ["train.exhausted"]}});
    let refused = publisher
        .admin
        .post("/v1/trains")
        .json(&body)
        .expect(422)
        .await;
    assert!(!refused.to_string().contains(&url), "{refused}");
    exhaust(&publisher, "nightly").await;
    let refused = "train_notices WHERE last_error = 'destination_refused' AND attempts = 1 \
                   AND finished_at IS NULL";
    until(server.site(), refused, 1).await;
    assert!(consumer.seen().is_empty());
    let train = publisher.admin.get("/v1/trains/nightly").expect(200).await;
    assert_eq!(train["last_notice"]["error"], "destination_refused");
    assert!(!train.to_string().contains(&url), "{train}");
}

async fn a_message_survives_a_kill(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    told(&publisher, "nightly", &consumer).await;
    let mut slow = Reply::status(200);
    slow.delay = Duration::from_mins(1);
    consumer.reply_next([slow]);
    exhaust(&publisher, "nightly").await;
    let site = server.site();
    until(site, "train_notices WHERE finished_at IS NULL", 1).await;
    // Committed, and not known to have arrived.
    server.kill().await;
    let before = consumer.seen().len();
    // The claim that the process may have had runs out.
    site.execute("UPDATE train_notices SET next_attempt_at = 1")
        .await;
    consumer.reply_always(Reply::status(200));
    let _server = site.start(&[]).await;
    if before == 0 {
        // It was killed before it sent: this is the one that gets the slow reply.
        consumer.count(1).await;
        return;
    }
    assert_eq!(consumer.count(2).await.len(), 2);
    until(site, SENT, 1).await;
}

async fn two_processes_send_each_message_once(world: &World) {
    let site = world.site().await;
    let one = site.start(&[]).await;
    let _two = site.start_beside(&[]).await;
    let publisher = one.publisher("acme").await;
    let consumer = Consumer::start().await;
    for at in 0..12 {
        let slug = format!("train-{at}");
        told(&publisher, &slug, &consumer).await;
        exhaust(&publisher, &slug).await;
    }
    until(&site, SENT, 12).await;
    assert_eq!(consumer.seen().len(), 12);
    assert_eq!(site.count("train_notices WHERE attempts = 1").await, 12);
}
