//! OAuth accounts: refreshed once however many ask, early, and never to their harm.

pub mod cli;
mod dialects;
mod login;
mod once;

use std::time::Duration;

use serde_json::{Value, json};
use tests::{
    Answer, AnswerMode, Consumer, Publisher, Server, TokenEndpoint, World, new_account,
    on_both_stores, tools,
};

use crate::{audit::verified, resolving::resolve};

on_both_stores!(
    a_refresh_stores_the_new_tokens_and_shows_none,
    a_refresh_token_stays_unless_another_one_comes,
    a_spent_grant_fails_the_account_and_tells_its_publisher_once,
    a_passing_failure_never_fails_the_account,
    an_endpoint_that_is_not_allowed_any_more_is_not_asked,
    all_are_refreshed_and_a_dry_run_changes_nothing,
    only_oauth_accounts_can_be_refreshed,
);

/// The job does not interfere.
pub const BY_HAND: [(&str, &str); 1] = [("STATIONMASTER_CRON_ACCOUNTS", "0 0 0 1 1 *")];
/// It looks every second.
pub const BY_CLOCK: [(&str, &str); 1] = [("STATIONMASTER_CRON_ACCOUNTS", "* * * * * *")];
pub const HOUR: Duration = Duration::from_hours(1);

/// Stores an account; returns its identifier.
pub async fn hold(publisher: &Publisher, account: &Value) -> String {
    let call = publisher.admin.post("/v1/accounts").json(account);
    call.expect(201).await.text("/id")
}

pub async fn read(publisher: &Publisher, account: &str) -> Answer {
    let path = format!("/v1/accounts/{account}");
    publisher.admin.get(&path).expect(200).await
}

pub async fn refresh(publisher: &Publisher, account: &str) -> Answer {
    let path = format!("/v1/accounts/{account}/refresh");
    publisher.admin.post(&path).answer().await
}

/// The token that a resolve answered.
pub fn lent_token(answer: &Answer) -> String {
    let value = answer.text("/headers/authorization");
    value.strip_prefix("Bearer ").unwrap().to_owned()
}

/// A publisher, an endpoint, and an account of an hour.
async fn house(server: &Server) -> (Publisher, TokenEndpoint, String) {
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(server).await;
    let account = hold(&publisher, &endpoint.account("one", HOUR)).await;
    (publisher, endpoint, account)
}

async fn actions(publisher: &Publisher, action: &str) -> usize {
    let all = publisher.actions().await;
    all.iter().filter(|one| *one == action).count()
}

async fn a_refresh_stores_the_new_tokens_and_shows_none(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let mut body = endpoint.account("one", Duration::from_mins(30));
    body["oauth"]["client_secret"] = json!("client-secret/0123456789");
    body["oauth"]["scopes"] = json!(["inference", "offline_access"]);
    let account = hold(&publisher, &body).await;
    publisher.train("chat", &[&account]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    let old = lent_token(&resolve(&gateway, &json!({})).await);

    let before = read(&publisher, &account).await;
    let after = refresh(&publisher, &account).await;
    assert_eq!(after.status, 200, "{after}");
    assert_eq!(after["id"], account);
    assert!(after.text("/expires_at") > before.text("/expires_at"));
    assert!(after["refreshed_at"].is_string() && before["refreshed_at"].is_null());
    assert_ne!(after["last_four"], before["last_four"]);
    assert_eq!(after.header("etag"), before.header("etag"));
    let new = lent_token(&resolve(&gateway, &json!({})).await);
    assert!(new != old && endpoint.left(&new).is_some());

    // The client proves itself, and the new refresh token is the one that counts.
    assert_eq!(refresh(&publisher, &account).await.status, 200);
    let asked = endpoint.asked();
    assert_eq!(asked.len(), 2);
    assert!(!endpoint.saw_reuse());
    for one in &asked {
        assert!(one.authorization.starts_with("Basic "), "{one:?}");
        assert_eq!(one.form["scope"], "inference offline_access");
        assert!(!one.form.contains_key("client_secret"));
    }
    assert_eq!(actions(&publisher, "account.refreshed").await, 2);
    verified(&publisher, true).await;
}

async fn a_refresh_token_stays_unless_another_one_comes(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, endpoint, account) = house(&server).await;
    endpoint.rotate_nothing();
    for _ in 0..3 {
        assert_eq!(refresh(&publisher, &account).await.status, 200);
    }
    let asked = endpoint.asked();
    let token = |at: usize| &asked[at].form["refresh_token"];
    assert!(token(0) == token(1) && token(1) == token(2));
    assert_eq!(asked[0].form["client_id"], "stationmaster");
    assert_eq!(asked[0].authorization, "");
}

async fn a_spent_grant_fails_the_account_and_tells_its_publisher_once(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, endpoint, account) = house(&server).await;
    let consumer = Consumer::start().await;
    let types = ["stationmaster.account.refresh_failed"];
    publisher.endpoint(&consumer, &types).await;
    publisher.train("chat", &[&account]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    assert_eq!(resolve(&gateway, &json!({})).await.status, 200);

    let words = "a-description-that-nobody-repeats";
    server.site().remember(words);
    let body = json!({"error": "invalid_grant", "error_description": words});
    endpoint.answer_with(AnswerMode::Saying(400, body.to_string()));
    for _ in 0..2 {
        let refused = refresh(&publisher, &account).await;
        assert_eq!(refused["code"], "refresh_failed", "{refused}");
        assert!(refused.text("/detail").contains("invalid_grant"));
    }
    let failed = read(&publisher, &account).await;
    assert_eq!(failed["health"]["status"], "failed", "{failed}");
    assert_eq!(failed["health"]["reason"], "invalid_grant");
    let told = consumer.event(types[0]).await.json();
    let until = failed["expires_at"].clone();
    let data = json!({
        "account_id": account,
        "name": "one",
        "reason": "invalid_grant",
        "lent_until": until,
    });
    assert_eq!(told["data"], data);
    assert_eq!(failed["health"]["lent_until"], until, "{failed}");
    assert_eq!(resolve(&gateway, &json!({})).await.status, 200);
    let events = format!("/v1/events?type={}", types[0]);
    assert_eq!(publisher.admin.all(&events).await.len(), 1);
    assert_eq!(actions(&publisher, "account.refresh_failed").await, 2);

    endpoint.answer_with(AnswerMode::Granting);
    assert_eq!(refresh(&publisher, &account).await.status, 200);
    let mended = read(&publisher, &account).await;
    let well = json!({"status": "ok", "reason": null, "failed_at": null, "lent_until": null});
    assert_eq!(mended["health"], well, "{mended}");
    assert_eq!(resolve(&gateway, &json!({})).await.status, 200);
    verified(&publisher, true).await;
}

async fn a_passing_failure_never_fails_the_account(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, endpoint, account) = house(&server).await;
    publisher.train("chat", &[&account]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    let token = "at-from-an-answer-that-is-none-0123";
    server.site().remember(token);
    let long = format!(
        r#"{{"access_token":"{token}","more":"{}"}}"#,
        "x".repeat(70_000)
    );
    let mac = json!({"access_token": token, "token_type": "mac"}).to_string();
    for (status, body, reason) in [
        (503, "{}", "unavailable"),
        (500, r#"{"error":"invalid_grant"}"#, "unavailable"),
        (429, "{}", "rate_limited"),
        (200, "<html>", "malformed_answer"),
        (200, mac.as_str(), "malformed_answer"),
        (200, long.as_str(), "answer_too_long"),
        (302, "", "unexpected_status"),
        (404, "not here", "malformed_answer"),
        // Put right by the operator of the upstream: the token lives on.
        (401, r#"{"error":"invalid_client"}"#, "invalid_client"),
    ] {
        endpoint.answer_with(AnswerMode::Saying(status, body.to_owned()));
        let refused = refresh(&publisher, &account).await;
        assert_eq!(refused["code"], "refresh_failed", "{refused}");
        let detail = refused.text("/detail");
        assert!(detail.contains(reason), "{detail}, for {reason}");
    }
    let asked = endpoint.asked().len();
    let url = endpoint.url.clone();
    drop(endpoint);
    let refused = refresh(&publisher, &account).await;
    assert_eq!(refused["code"], "refresh_failed", "{refused} {url}");
    assert_eq!(asked, 9);

    let account = read(&publisher, &account).await;
    assert_eq!(account["health"]["status"], "ok", "{account}");
    assert_eq!(resolve(&gateway, &json!({})).await.status, 200);
    assert_eq!(actions(&publisher, "account.refresh_failed").await, 0);
}

async fn an_endpoint_that_is_not_allowed_any_more_is_not_asked(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, endpoint, account) = house(&server).await;
    let strict = [BY_HAND[0], ("STATIONMASTER_ALLOWED_DESTINATIONS", "")];
    server.restart(&strict).await;
    let refused = refresh(&publisher, &account).await;
    assert_eq!(refused["code"], "refresh_failed", "{refused}");
    assert!(refused.text("/detail").contains("destination_refused"));
    assert_eq!(endpoint.asked().len(), 0);
}

async fn all_are_refreshed_and_a_dry_run_changes_nothing(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, endpoint, _) = house(&server).await;
    let broken = TokenEndpoint::start(&server).await;
    broken.answer_with(AnswerMode::Saying(503, "{}".into()));
    hold(&publisher, &broken.account("broken", HOUR)).await;
    let mut off = endpoint.account("off", HOUR);
    off["enabled"] = json!(false);
    hold(&publisher, &off).await;
    hold(&publisher, &new_account("key")).await;
    let all = async |body: Value| {
        let call = publisher.admin.post("/v1/accounts/refresh").json(&body);
        let items = call.expect(200).await["items"].clone();
        let items = items.as_array().unwrap().iter();
        let short = |item: &Value| json!([item["name"], item["outcome"], item["reason"]]);
        items.map(short).collect::<Vec<Value>>()
    };

    let before = publisher.admin.all("/v1/accounts").await;
    let planned = all(json!({"dry_run": true})).await;
    let expected = [
        json!(["broken", "would_refresh", null]),
        json!(["key", "skipped", "api_key"]),
        json!(["off", "skipped", "disabled"]),
        json!(["one", "would_refresh", null]),
    ];
    assert_eq!(planned, expected);
    assert_eq!(publisher.admin.all("/v1/accounts").await, before);
    assert_eq!(endpoint.asked().len() + broken.asked().len(), 0);

    let done = all(json!({})).await;
    let expected = [
        json!(["broken", "failed", "unavailable"]),
        json!(["key", "skipped", "api_key"]),
        json!(["off", "skipped", "disabled"]),
        json!(["one", "refreshed", null]),
    ];
    assert_eq!(done, expected);
    assert_eq!((endpoint.asked().len(), broken.asked().len()), (1, 1));
}

async fn only_oauth_accounts_can_be_refreshed(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let key = publisher.account("key").await;
    let path = format!("/v1/accounts/{key}/refresh");
    let call = publisher.admin.post(&path);
    call.refused(409, "wrong_credential_type").await;
    let runner = publisher.runner.post(&path);
    runner.refused(403, "wrong_token_kind").await;
    let gone = format!("/v1/accounts/{}/refresh", tools::absent("acc"));
    publisher.admin.post(&gone).refused(404, "not_found").await;
}
