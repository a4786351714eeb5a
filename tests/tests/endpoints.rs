//! Endpoints over time: how they fare, replays, secrets of their own.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tests::{
    Consumer, Delivery, Publisher, Reply, World, on_both_stores,
    tools::{eventually, in_seconds, now_s, seconds_ago},
};

use crate::verifiers::{verify, verify_by_public_key};

on_both_stores!(
    an_endpoint_that_says_it_is_gone_is_disabled_and_enabled_with_a_replay,
    all_that_fail_for_days_are_disabled_in_one_look,
    an_endpoint_shows_how_it_fares,
    what_failed_is_replayed_once,
    a_replay_can_be_cancelled,
    an_endpoint_signs_with_secrets_of_its_own,
    an_endpoint_signs_with_a_pair_of_keys,
);

const ONCE: [(&str, &str); 1] = [("STATIONMASTER_RETRY_SCHEDULE", "1h")];
const LIMIT: Duration = Duration::from_secs(20);
const MANY: u32 = 25;

async fn publish(publisher: &Publisher, event_type: &str) -> String {
    let body = json!({"type": event_type, "data": {}});
    let call = publisher.runner.post("/v1/events").json(&body);
    call.expect(202).await.text("/id")
}

async fn until_endpoint(
    publisher: &Publisher,
    id: &str,
    what: &str,
    done: impl Fn(&Value) -> bool,
) -> Value {
    let path = format!("/v1/webhook-endpoints/{id}");
    eventually(what, LIMIT, async || {
        let endpoint = publisher.admin.get(&path).expect(200).await;
        done(endpoint.json()).then(|| endpoint.json().clone())
    })
    .await
}

async fn until_replay(publisher: &Publisher, path: &str, status: &str) -> Value {
    eventually(&format!("the replay is {status}"), LIMIT, async || {
        let replay = publisher.admin.get(path).expect(200).await;
        (replay["status"] == status).then(|| replay.json().clone())
    })
    .await
}

fn earlier() -> String {
    seconds_ago(60)
}

async fn an_endpoint_that_says_it_is_gone_is_disabled_and_enabled_with_a_replay(world: &World) {
    let server = world.start_with(&ONCE).await;
    let publisher = server.publisher("acme").await;
    let (consumer, other) = (Consumer::start().await, Consumer::start().await);
    consumer.reply_next([Reply::status(410)]);
    let id = publisher.endpoint(&consumer, &["order.*"]).await;
    publisher
        .endpoint(&other, &["stationmaster.endpoint.*"])
        .await;
    let event = publish(&publisher, "order.paid").await;
    let told = other.event("stationmaster.endpoint.disabled").await.json();
    assert_eq!(told["data"]["endpoint_id"], id);
    assert_eq!(told["data"]["reason"], "gone");
    let endpoint =
        until_endpoint(&publisher, &id, "it is disabled", |e| e["enabled"] == false).await;
    assert_eq!(endpoint["disabled_reason"], "gone");
    assert!(
        publisher
            .actions()
            .await
            .contains(&"endpoint.disabled".to_owned())
    );
    let path = format!("/v1/webhook-endpoints/{id}");
    let replays = format!("{path}/replays");
    let refused = publisher
        .admin
        .post(&replays)
        .json(&json!({"since": earlier()}));
    refused.refused(409, "endpoint_disabled").await;

    let missed = publish(&publisher, "order.paid").await;
    let enable = publisher.admin.post(&format!("{path}/enable"));
    let enabled = enable
        .json(&json!({"replay_since": earlier()}))
        .expect(200)
        .await;
    assert_eq!(
        (&enabled["enabled"], &enabled["replay"]["status"]),
        (&json!(true), &json!("running"))
    );
    consumer
        .find("what it missed", |delivery| delivery.id() == missed)
        .await;
    let _ = event;
    let actions = publisher.actions().await;
    assert!(
        actions.ends_with(&["endpoint.enabled".into(), "replay.started".into()]),
        "{actions:?}"
    );
}

/// More than one batch of them.
async fn all_that_fail_for_days_are_disabled_in_one_look(world: &World) {
    let never = [("STATIONMASTER_CRON_ENDPOINTS", "0 0 0 1 1 *")];
    let server = world.start_with(&never).await;
    let site = Arc::clone(server.site());
    let publisher = server.publisher("acme").await;
    for _ in 0..MANY {
        let body = json!({"url": "https://hooks.example/", "event_types": ["order.*"]});
        let call = publisher.admin.post("/v1/webhook-endpoints").json(&body);
        call.expect(201).await;
    }
    let six_days_ago = (now_s() - 6 * 86_400) * 1000;
    let failing = format!(
        "INSERT INTO endpoint_health (publisher_id, endpoint_id, consecutive_failures, failing_since) \
         SELECT publisher_id, id, 9, {six_days_ago} FROM webhook_endpoints"
    );
    assert_eq!(site.execute(&failing).await, u64::from(MANY));
    // Once in the next minute, and not again today.
    let at = (now_s() + 10).rem_euclid(86_400);
    let (hour, minute, second) = (at / 3600, at / 60 % 60, at % 60);
    let once = format!("{second} {minute} {hour} * * *");
    let server = server
        .restart(&[("STATIONMASTER_CRON_ENDPOINTS", once.as_str())])
        .await;
    let disabled = "webhook_endpoints WHERE NOT enabled AND disabled_reason = 'failing'";
    eventually("all are disabled", 2 * LIMIT, async || {
        (site.count(disabled).await == i64::from(MANY)).then_some(())
    })
    .await;
    drop(server);
}

async fn an_endpoint_shows_how_it_fares(world: &World) {
    let server = world.start_with(&ONCE).await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let id = publisher.endpoint(&consumer, &["order.*"]).await;
    let path = format!("/v1/webhook-endpoints/{id}");
    let fresh = publisher.admin.get(&path).expect(200).await;
    assert_eq!(fresh["health"]["state"], "untried");
    assert!(fresh["health"]["success_rate"].is_null());
    publish(&publisher, "order.paid").await;
    until_endpoint(&publisher, &id, "it works", |e| {
        e["health"]["state"] == "healthy"
    })
    .await;
    consumer.reply_always(Reply::status(500));
    publish(&publisher, "order.paid").await;
    let failing = until_endpoint(&publisher, &id, "it fails", |e| {
        e["health"]["state"] == "failing"
    })
    .await;
    let health = &failing["health"];
    assert_eq!(
        (&health["last_error"], &health["last_status_code"]),
        (&json!("status"), &json!(500))
    );
    assert_eq!(
        (&health["consecutive_failures"], &health["success_rate"]),
        (&json!(1), &json!(0.5))
    );
    assert!(health["failing_since"].is_string());
    let list = publisher.admin.all("/v1/webhook-endpoints").await;
    assert_eq!(list[0]["health"], *health);
    let stats = publisher
        .admin
        .get(&format!("{path}/stats"))
        .expect(200)
        .await;
    let buckets = stats["items"].as_array().unwrap();
    let sum = |name: &str| {
        buckets
            .iter()
            .map(|b| b[name].as_i64().unwrap())
            .sum::<i64>()
    };
    assert_eq!(
        (buckets.len(), sum("succeeded"), sum("failed")),
        (288, 1, 1)
    );
}

async fn what_failed_is_replayed_once(world: &World) {
    let server = world.start_with(&ONCE).await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let id = publisher.endpoint(&consumer, &["order.*"]).await;
    let arrived = publish(&publisher, "order.paid").await;
    consumer.count(1).await;
    // Written while nobody listens: there is nothing to fail, but all to replay.
    let path = format!("/v1/webhook-endpoints/{id}");
    publisher
        .admin
        .patch(&path)
        .json(&json!({"enabled": false}))
        .expect(200)
        .await;
    let missed = publish(&publisher, "order.sent").await;
    publisher
        .admin
        .patch(&path)
        .json(&json!({"enabled": true}))
        .expect(200)
        .await;
    let replays = format!("{path}/replays");
    let ask = json!({"since": earlier(), "event_types": ["order.sent"]});
    let started = publisher.admin.post(&replays).json(&ask).expect(202).await;
    let one = format!("{replays}/{}", started.text("/id"));
    let done = until_replay(&publisher, &one, "succeeded").await;
    assert_eq!(
        (&done["matched"], &done["queued"], &done["done"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let seen: Vec<String> = consumer.seen().iter().map(|d| d.id().to_owned()).collect();
    assert_eq!(seen, [arrived, missed]);
    let secret = publisher.secret("webhook_signing");
    verify(&secret, &consumer.seen()[1]).unwrap();
    let failed = json!({"since": earlier(), "only_failed": true});
    let started = publisher
        .admin
        .post(&replays)
        .json(&failed)
        .expect(202)
        .await;
    let two = format!("{replays}/{}", started.text("/id"));
    let done = until_replay(&publisher, &two, "succeeded").await;
    assert_eq!(done["queued"], 0, "nothing failed");
    assert_eq!(publisher.admin.all(&replays).await.len(), 2);
    let answer = publisher
        .admin
        .post(&replays)
        .json(&json!({"since": in_seconds(60)}));
    assert_eq!(answer.expect(422).await.pointers(), ["/since"]);
}

async fn a_replay_can_be_cancelled(world: &World) {
    let server = world.start_with(&ONCE).await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    consumer.reply_always(Reply::status(500));
    let id = publisher.endpoint(&consumer, &["none.such"]).await;
    publish(&publisher, "order.paid").await;
    let path = format!("/v1/webhook-endpoints/{id}");
    publisher
        .admin
        .patch(&path)
        .json(&json!({"event_types": ["*"]}))
        .expect(200)
        .await;
    let replays = format!("{path}/replays");
    let ask = json!({"since": earlier()});
    let started = publisher.admin.post(&replays).json(&ask).expect(202).await;
    let again = publisher.admin.post(&replays).json(&ask).expect(202).await;
    assert_eq!(started["id"], again["id"], "the one that runs");
    consumer.count(1).await;
    let one = format!("{replays}/{}", started.text("/id"));
    let cancel = || publisher.admin.post(&format!("{one}/cancel"));
    let cancelled = cancel().expect(200).await;
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(cancel().expect(200).await.json(), cancelled.json());
    let list = publisher.admin.all("/v1/deliveries").await;
    assert_eq!(list[0]["status"], "cancelled");
    let actions = publisher.actions().await;
    assert!(
        actions.ends_with(&["replay.started".into(), "replay.cancelled".into()]),
        "{actions:?}"
    );
}

async fn next(consumer: &Consumer, publisher: &Publisher) -> Delivery {
    let event = publish(publisher, "order.paid").await;
    consumer
        .find("the event", |delivery| delivery.id() == event)
        .await
}

async fn an_endpoint_signs_with_secrets_of_its_own(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let id = publisher.endpoint(&consumer, &["order.*"]).await;
    let shared = publisher.secret("webhook_signing");
    verify(&shared, &next(&consumer, &publisher).await).unwrap();
    let path = format!("/v1/webhook-endpoints/{id}/secrets");
    let first = publisher.admin.post(&path).expect(201).await;
    let delivery = next(&consumer, &publisher).await;
    verify(&first.text("/secret"), &delivery).unwrap();
    verify(&shared, &delivery).unwrap_err();
    let rotate = publisher.admin.post(&format!("{path}/rotate"));
    let second = rotate
        .json(&json!({"overlap_seconds": 60}))
        .expect(200)
        .await;
    assert_eq!(second["replaced"][0]["id"], first["id"]);
    let delivery = next(&consumer, &publisher).await;
    verify(&first.text("/secret"), &delivery).unwrap();
    verify(&second.text("/secret"), &delivery).unwrap();
    let list = publisher.admin.get(&path).expect(200).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    for secret in [&first, &second] {
        let one = format!("{path}/{}", secret.text("/id"));
        publisher.admin.delete(&one).expect(204).await;
        publisher.admin.delete(&one).expect(404).await;
    }
    let delivery = next(&consumer, &publisher).await;
    verify(&shared, &delivery).unwrap();
    verify(&second.text("/secret"), &delivery).unwrap_err();
    let actions = publisher.actions().await;
    let of_secrets = actions
        .iter()
        .filter(|action| action.starts_with("secret."));
    let expected = ["minted", "rotated", "revoked", "revoked"].map(|word| format!("secret.{word}"));
    assert!(of_secrets.eq(&expected), "{actions:?}");
}

async fn an_endpoint_signs_with_a_pair_of_keys(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let body = json!({"url": consumer.url, "event_types": ["order.*"], "signing": "ed25519"});
    let made = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    let made = made.expect(201).await;
    let keys = async || {
        let answer = server
            .anon()
            .get(&made.text("/public_keys"))
            .expect(200)
            .await;
        let items = answer["items"].as_array().unwrap().clone();
        let keys = items
            .iter()
            .map(|key| key["public_key"].as_str().unwrap().to_owned());
        keys.collect::<Vec<_>>()
    };
    let first = keys().await;
    assert_eq!(first.len(), 1);
    let encoded = first[0].strip_prefix("whpk_").unwrap();
    assert_eq!(STANDARD.decode(encoded).unwrap().len(), 32);
    let delivery = next(&consumer, &publisher).await;
    assert_eq!(delivery.header("x-stationmaster-signature"), "");
    assert!(delivery.header("webhook-signature").starts_with("v1a,"));
    verify_by_public_key(&first[0], &delivery).await;
    let path = format!("/v1/webhook-endpoints/{}/secrets", made.text("/id"));
    let rotate = publisher.admin.post(&format!("{path}/rotate"));
    let second = rotate
        .json(&json!({"overlap_seconds": 60}))
        .expect(200)
        .await;
    assert!(second["secret"].is_null(), "nobody sees a private key");
    assert_eq!(keys().await, [second.text("/public_key"), first[0].clone()]);
    let delivery = next(&consumer, &publisher).await;
    verify_by_public_key(&first[0], &delivery).await;
    verify_by_public_key(&second.text("/public_key"), &delivery).await;
    let newest = format!("{path}/{}", second.text("/id"));
    publisher
        .admin
        .delete(&newest)
        .refused(409, "last_secret")
        .await;
    let unknown = "/v1/webhook-keys/wks_01h455vb4pex5vsknk084sn02q";
    server.anon().get(unknown).refused(404, "not_found").await;
    let endpoint = format!("/v1/webhook-endpoints/{}", made.text("/id"));
    publisher
        .admin
        .patch(&endpoint)
        .json(&json!({"signing": "hmac"}))
        .expect(200)
        .await;
    verify(
        &publisher.secret("webhook_signing"),
        &next(&consumer, &publisher).await,
    )
    .unwrap();
    publisher.admin.delete(&endpoint).expect(204).await;
    server
        .anon()
        .get(&made.text("/public_keys"))
        .expect(404)
        .await;
}
