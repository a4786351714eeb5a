//! Trains' tokens: how they are made, and when they are none.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{World, fingerprint, on_both_stores, tools};

use super::{house, lent};
use crate::audit::verified;

on_both_stores!(
    a_trains_token_is_shown_once_and_listed_by_its_end,
    a_trains_token_opens_nothing_else,
    a_revoked_token_is_refused_at_once,
    a_trains_token_expires,
    a_repeat_mints_no_second_token,
    a_suspended_publishers_trains_lend_nothing,
    last_use_of_a_trains_token_is_noted,
);

const TOKENS: &str = "/v1/trains/chat/tokens";

async fn a_trains_token_is_shown_once_and_listed_by_its_end(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.train("chat", &[]).await;
    let admin = &publisher.admin;
    let body = json!({"name": "laptop", "expires_at": tools::in_seconds(600)});
    let made = admin.post(TOKENS).json(&body).expect(201).await;
    let text = made.text("/token");
    assert!(text.starts_with("ptk_") && text.len() == 53, "{made}");
    assert_eq!(made["expires_at"], body["expires_at"]);
    // The client of these tests fails when an answer repeats a credential.
    let list = admin.all(TOKENS).await;
    assert_eq!(list.len(), 1, "{list:?}");
    for (member, value) in [
        ("id", made["id"].clone()),
        ("name", json!("laptop")),
        ("last_four", json!(text[text.len() - 4..])),
        ("imported", json!(false)),
        ("revoked_at", json!(null)),
        ("last_used_at", json!(null)),
    ] {
        assert_eq!(list[0][member], value, "{member}");
    }
    let past = json!({"expires_at": tools::seconds_ago(5)});
    let past = admin.post(TOKENS).json(&past);
    let answer = past.refused(422, "validation_failed").await;
    assert_eq!(answer.pointers(), ["/expires_at"]);
    let call = admin.post("/v1/trains/other/tokens");
    call.refused(404, "not_found").await;
    let path = format!("{TOKENS}/{}", made.text("/id"));
    admin.delete(&path).expect(204).await;
    let list = admin.all(TOKENS).await;
    assert!(list[0]["revoked_at"].is_string(), "{list:?}");
    let actions = publisher.actions().await;
    let newest = ["train_token.minted", "train_token.revoked"];
    assert_eq!(actions[actions.len() - 2..], newest);
    verified(&publisher, true).await;
}

async fn a_trains_token_opens_nothing_else(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    for path in [
        "/v1/publishers/me",
        "/v1/publishers/me/audit",
        "/v1/pipelines",
        "/v1/runs",
        "/v1/events",
        "/v1/listen",
        "/v1/accounts",
        "/v1/trains/chat",
        TOKENS,
        "/v1/publishers",
        "/v1/audit",
    ] {
        let answer = gateway.get(path).refused(403, "wrong_token_kind").await;
        assert!(!answer.text("/detail").contains("train"), "{answer}");
    }
    let report = json!({"account_id": accounts[0], "outcome": "failed"});
    for user in [&publisher.admin, &publisher.runner, &server.operator()] {
        for call in [
            user.post("/v1/resolve"),
            user.post("/v1/resolve/report").json(&report),
            user.get("/v1/forward-auth/train"),
        ] {
            let answer = call.refused(403, "wrong_token_kind").await;
            assert!(answer.text("/detail").contains("train"), "{answer}");
        }
    }
    assert_eq!(lent(&gateway, &json!({})).await, accounts[0]);
    // The denial of a publisher's own token is on record, under the train's.
    let limit = Duration::from_secs(10);
    let denied = tools::eventually("it is on record", limit, async || {
        let log = publisher.admin.all("/v1/publishers/me/audit").await;
        let is = |one: &Value| one["action"] == "token.denied" && one["actor"]["kind"] == "train";
        log.into_iter().find(is)
    })
    .await;
    let list = publisher.admin.all(TOKENS).await;
    assert_eq!(denied["actor"]["id"], list[0]["id"], "{denied}");
}

async fn a_revoked_token_is_refused_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    house(&publisher, &["one"]).await;
    for _ in 0..5 {
        let (id, gateway) = publisher.train_token("chat").await;
        lent(&gateway, &json!({})).await;
        let path = format!("{TOKENS}/{id}");
        publisher.admin.delete(&path).expect(204).await;
        let same = |call: tests::Call| call.header("x-request-id", "same");
        let revoked = same(gateway.post("/v1/resolve")).answer().await;
        let unknown = gateway.with_token("ptk_x").post("/v1/resolve");
        let unknown = same(unknown).refused(401, "unauthenticated").await;
        assert_eq!(fingerprint(&revoked), fingerprint(&unknown));
        publisher
            .admin
            .delete(&path)
            .refused(404, "not_found")
            .await;
    }
}

async fn a_trains_token_expires(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    house(&publisher, &["one"]).await;
    let body = json!({"expires_at": tools::in_seconds(3)});
    let made = publisher.admin.post(TOKENS).json(&body).expect(201).await;
    let brief = server.user(&made.text("/token"));
    tools::eventually("it expires", Duration::from_secs(15), async || {
        let call = brief.post("/v1/resolve").repeats_a_secret();
        (call.answer().await.status == 401).then_some(())
    })
    .await;
}

async fn a_repeat_mints_no_second_token(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.train("chat", &[]).await;
    let mint = |name: &str| {
        let call = publisher.admin.post(TOKENS).key("once");
        call.json(&json!({"name": name}))
    };
    let first = mint("one").expect(201).await;
    let again = mint("one").repeats_a_secret().expect(201).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.json(), first.json());
    mint("two").refused(422, "idempotency_key_reused").await;
    assert_eq!(publisher.admin.all(TOKENS).await.len(), 1);
}

async fn a_suspended_publishers_trains_lend_nothing(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    assert_eq!(lent(&gateway, &json!({})).await, accounts[0]);
    let path = format!("/v1/publishers/{}", publisher.id);
    let operator = server.operator();
    operator.post(&format!("{path}/suspend")).expect(200).await;
    for call in [
        gateway.post("/v1/resolve"),
        gateway.get("/v1/forward-auth/train"),
        gateway.get("/v1/forward-auth/train?deny=403"),
    ] {
        call.refused(403, "publisher_suspended").await;
    }
    let resume = operator.post(&format!("{path}/resume")).json(&json!({}));
    resume.expect(200).await;
    assert_eq!(lent(&gateway, &json!({})).await, accounts[0]);
    let delete = format!("{path}?confirm=acme");
    operator.delete(&delete).expect(204).await;
    let call = gateway.post("/v1/resolve");
    call.refused(401, "unauthenticated").await;
}

async fn last_use_of_a_trains_token_is_noted(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (_, gateway) = house(&publisher, &["one"]).await;
    lent(&gateway, &json!({})).await;
    // Written in batches; a stop writes the last one.
    let _again = server.restart(&[]).await;
    let list = publisher.admin.all(TOKENS).await;
    assert!(list[0]["last_used_at"].is_string(), "{list:?}");
}
