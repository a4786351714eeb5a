//! Endpoints that do not speak as RFC 6749 has it: no grant is lost, no dead one asked for again.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{AnswerMode, Consumer, TokenEndpoint, World, on_both_stores, tools};

use crate::resolving::resolve;

use super::{BY_CLOCK, BY_HAND, HOUR, actions, hold, house, lent_token, read, refresh};

on_both_stores!(
    a_dead_grant_is_asked_for_once_whatever_it_is_called,
    a_dead_grant_tried_by_hand_is_not_asked_for_again,
    a_token_without_its_grant_is_lent_until_it_ends,
    a_new_refresh_token_is_kept_whatever_else_is_odd,
    a_refresh_token_without_a_usable_access_token_is_kept,
    a_clients_secret_goes_where_the_endpoint_takes_it,
);

const LIMIT: Duration = Duration::from_secs(30);
/// The database's clock is not this process's.
const CLOCKS_DIFFER: Duration = Duration::from_secs(1);
const REFRESH_FAILED: &str = "stationmaster.account.refresh_failed";

/// Answers that all say that the grant is dead, and what is told of it.
const DEAD: [(u16, &str, &str); 9] = [
    (400, r#"{"error": "invalid_grant"}"#, "invalid_grant"),
    (200, r#"{"error": "invalid_grant"}"#, "invalid_grant"),
    (
        200,
        "error=invalid_grant&error_description=x",
        "invalid_grant",
    ),
    (
        400,
        r#"{"errors": [{"errorType": "invalid_grant"}]}"#,
        "invalid_grant",
    ),
    (
        200,
        r#"{"error": "bad_refresh_token"}"#,
        "invalid_refresh_token",
    ),
    (
        400,
        r#"{"status": "BAD_REFRESH_TOKEN"}"#,
        "invalid_refresh_token",
    ),
    (
        200,
        r#"{"ok": false, "error": "invalid_refresh_token"}"#,
        "invalid_refresh_token",
    ),
    (
        400,
        r#"{"error": {"code": "refresh_token_expired"}}"#,
        "invalid_refresh_token",
    ),
    (
        401,
        r#"{"error": {"type": "invalid_request_error", "code": "refresh_token_reused"}}"#,
        "refresh_token_reused",
    ),
];

async fn a_dead_grant_is_asked_for_once_whatever_it_is_called(world: &World) {
    let server = world.start_with(&BY_CLOCK).await;
    let publisher = server.publisher("acme").await;
    let mut all = Vec::new();
    for (number, (status, body, reason)) in DEAD.into_iter().enumerate() {
        let endpoint = TokenEndpoint::start(&server).await;
        endpoint.answer_with(AnswerMode::Saying(status, body.to_owned()));
        // It is due after the first half of its life.
        let account = endpoint.account(&format!("number {number}"), Duration::from_secs(4));
        let account = hold(&publisher, &account).await;
        all.push((endpoint, account, body, reason));
    }
    for (_, account, body, reason) in &all {
        tools::eventually(body, LIMIT, async || {
            let account = read(&publisher, account).await;
            (account["health"]["status"] == "failed").then_some(())
        })
        .await;
        let account = read(&publisher, account).await;
        assert_eq!(account["health"]["reason"], *reason, "{body}");
    }
    // The job goes on looking every second, also past the tokens' ends.
    tokio::time::sleep(Duration::from_secs(4)).await;
    for (endpoint, _, body, _) in &all {
        assert_eq!(endpoint.asked().len(), 1, "{body}");
    }
    assert_eq!(
        actions(&publisher, "account.refresh_failed").await,
        all.len()
    );
}

async fn a_dead_grant_tried_by_hand_is_not_asked_for_again(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, endpoint, account) = house(&server).await;
    let due = "accounts WHERE refresh_due_at IS NOT NULL";
    assert_eq!(server.site().count(due).await, 1);
    // What may pass is tried again of itself, but not where that can't help.
    for (status, body) in [(400, r#"{"error": "invalid_grant"}"#), (503, "")] {
        endpoint.answer_with(AnswerMode::Saying(status, body.to_owned()));
        assert_eq!(refresh(&publisher, &account).await.status, 409);
        assert_eq!(server.site().count(due).await, 0, "{status}");
    }
    let account = read(&publisher, &account).await;
    assert_eq!(account["health"]["reason"], "invalid_grant", "{account}");
}

async fn a_token_without_its_grant_is_lent_until_it_ends(world: &World) {
    const LIFE: Duration = Duration::from_secs(12);
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &[REFRESH_FAILED]).await;
    let body = endpoint.account("one", LIFE);
    let token = body["oauth"]["access_token"].as_str().unwrap().to_owned();
    let account = hold(&publisher, &body).await;
    publisher.train("chat", &[&account]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    endpoint.answer_with(AnswerMode::Saying(
        400,
        r#"{"error": "invalid_grant"}"#.into(),
    ));
    assert_eq!(refresh(&publisher, &account).await.status, 409);

    let state = read(&publisher, &account).await;
    let health = &state["health"];
    assert_eq!(health["status"], "failed", "{state}");
    assert_eq!(health["lent_until"], state["expires_at"], "{state}");
    let told = consumer.event(REFRESH_FAILED).await.json();
    assert_eq!(told["data"]["lent_until"], state["expires_at"], "{told}");
    let ends = endpoint.end(&token).unwrap();
    let mut count = 0;
    let out = tools::eventually("its token ends", LIMIT, async || {
        let asked_at = Instant::now();
        let answer = resolve(&gateway, &json!({})).await;
        if answer.status == 200 {
            assert_eq!(lent_token(&answer), token);
            assert!(asked_at < ends + CLOCKS_DIFFER, "{answer}");
            count += 1;
            return None;
        }
        Some(answer)
    })
    .await;
    assert!(count > 3, "only {count}");
    assert!(Instant::now() + CLOCKS_DIFFER > ends, "{out}");
    assert_eq!(out["errors"][0]["code"], "failed", "{out}");
    assert_eq!(endpoint.asked().len(), 1, "it is not asked for that");
    // One that has ended already is not said to be lent.
    let over = hold(&publisher, &endpoint.account("over", Duration::ZERO)).await;
    assert_eq!(refresh(&publisher, &over).await.status, 409);
    let state = read(&publisher, &over).await;
    assert_eq!(state["health"]["status"], "failed", "{state}");
    assert_eq!(state["health"]["lent_until"], Value::Null, "{state}");
}

async fn a_new_refresh_token_is_kept_whatever_else_is_odd(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let odd = |status: u16, members: Value| AnswerMode::Oddly {
        status,
        members,
        before: "",
    };
    for (number, answer_mode) in [
        odd(201, json!({})),
        odd(200, json!({"expires_in": 0})),
        odd(200, json!({"expires_in": -1})),
        odd(200, json!({"expires_in": ""})),
        odd(200, json!({"expires_in": "never"})),
        odd(200, json!({"token_type": "BearerToken"})),
        odd(200, json!({"token_type": null, "error": null})),
        odd(200, json!({"token_type": 7, "scope": {"a": []}})),
        AnswerMode::Oddly {
            status: 200,
            members: json!({}),
            before: "\u{feff}\r\n",
        },
        AnswerMode::Form,
    ]
    .into_iter()
    .enumerate()
    {
        let endpoint = TokenEndpoint::start(&server).await;
        let body = endpoint.account(&format!("number {number}"), HOUR / 2);
        let account = hold(&publisher, &body).await;
        let before = read(&publisher, &account).await;
        endpoint.answer_with(answer_mode.clone());
        for _ in 0..2 {
            let after = refresh(&publisher, &account).await;
            assert_eq!(after.status, 200, "{answer_mode:?} {after}");
            // What is not said, or makes no sense, is an hour.
            assert!(
                after.text("/expires_at") > before.text("/expires_at"),
                "{answer_mode:?} {after}"
            );
        }
        assert!(!endpoint.saw_reuse(), "{answer_mode:?}");
    }
}

async fn a_refresh_token_without_a_usable_access_token_is_kept(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, endpoint, account) = house(&server).await;
    publisher.train("chat", &[&account]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    let token = lent_token(&resolve(&gateway, &json!({})).await);
    for members in [
        json!({"access_token": "short"}),
        json!({"access_token": null}),
        json!({"token_type": "DPoP"}),
    ] {
        endpoint.answer_with(AnswerMode::Oddly {
            status: 200,
            members: members.clone(),
            before: "",
        });
        let refused = refresh(&publisher, &account).await;
        assert_eq!(refused["code"], "refresh_failed", "{members} {refused}");
        assert!(
            refused.text("/detail").contains("malformed_answer"),
            "{refused}"
        );
        assert_eq!(lent_token(&resolve(&gateway, &json!({})).await), token);
        let state = read(&publisher, &account).await;
        assert_eq!(state["health"]["status"], "ok", "{state}");
    }
    endpoint.answer_with(AnswerMode::Granting);
    assert_eq!(refresh(&publisher, &account).await.status, 200);
    assert!(!endpoint.saw_reuse());
}

async fn a_clients_secret_goes_where_the_endpoint_takes_it(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let secret = "client-secret-0123456789";
    for (number, (status, body)) in [
        (401, r#"{"error": "invalid_client"}"#),
        (401, r#"{"error": "access_denied"}"#),
        (400, r#"{"error": "invalid_request"}"#),
        (400, r#"{"error": "unauthorized_client"}"#),
        (400, r#"{"error": "invalid_grant"}"#),
        (200, r#"{"error": "incorrect_client_credentials"}"#),
        (400, r#"{"error": {"type": "invalid_request_error"}}"#),
        (401, "<html>"),
        (403, ""),
    ]
    .into_iter()
    .enumerate()
    {
        let endpoint = TokenEndpoint::start(&server).await;
        endpoint.answer_with(AnswerMode::SecretInBody(status, body.to_owned()));
        let mut account = endpoint.account(&format!("number {number}"), HOUR);
        account["oauth"]["client_secret"] = json!(secret);
        let account = hold(&publisher, &account).await;
        let answer = refresh(&publisher, &account).await;
        assert_eq!(answer.status, 200, "{status} {body} {answer}");
        let asked = endpoint.asked();
        assert_eq!(asked.len(), 2, "{status} {body}");
        assert!(asked[0].authorization.starts_with("Basic "));
        assert!(!asked[0].form.contains_key("client_secret"));
        assert_eq!(asked[1].authorization, "");
        assert_eq!(asked[1].form["client_secret"], secret);
        assert!(!endpoint.saw_reuse(), "{status} {body}");
    }
    // A dead grant stays one, also where only one place of the secret is right.
    let endpoint = TokenEndpoint::start(&server).await;
    endpoint.answer_with(AnswerMode::SecretInHeader(
        400,
        r#"{"error": "invalid_grant"}"#.into(),
    ));
    let mut account = endpoint.account("dead", HOUR);
    account["oauth"]["client_secret"] = json!(secret);
    let account = hold(&publisher, &account).await;
    assert_eq!(refresh(&publisher, &account).await.status, 409);
    let state = read(&publisher, &account).await;
    assert_eq!(state["health"]["reason"], "invalid_grant", "{state}");
    assert_eq!(state["health"]["status"], "failed", "{state}");
    // Who asks to be left alone is.
    for body in [
        r#"{"error": "refresh_token_reused"}"#,
        r#"{"error": "slow_down"}"#,
    ] {
        let endpoint = TokenEndpoint::start(&server).await;
        endpoint.answer_with(AnswerMode::Saying(400, body.to_owned()));
        let mut account = endpoint.account(body, HOUR);
        account["oauth"]["client_secret"] = json!(secret);
        let account = hold(&publisher, &account).await;
        assert_eq!(refresh(&publisher, &account).await.status, 409);
        assert_eq!(endpoint.asked().len(), 1, "{body}");
    }
}
