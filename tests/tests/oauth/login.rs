//! Logins at an upstream, over HTTP.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::{Answer, AnswerMode, Publisher, TokenEndpoint, World, on_both_stores, tools};
use url::Url;

use crate::{audit::verified, resolving::resolve};

use super::{BY_HAND, hold, lent_token, read, refresh};

on_both_stores!(
    a_login_makes_an_account,
    a_login_may_take_the_places_of_an_account,
    a_state_counts_once_and_for_its_publisher,
    a_login_that_the_upstream_refuses_makes_nothing,
    what_would_be_refused_in_the_end_is_refused_at_the_start,
    logins_that_wait_are_counted_and_swept,
);

const START: &str = "/v1/accounts/oauth/start";
const FINISH: &str = "/v1/accounts/oauth/finish";

async fn start(publisher: &Publisher, body: &Value) -> Answer {
    publisher.admin.post(START).json(body).expect(200).await
}

async fn finish(publisher: &Publisher, state: &str, code: &str) -> Answer {
    let body = json!({"state": state, "code": code});
    publisher.admin.post(FINISH).json(&body).answer().await
}

/// What the address of a login asks for.
fn query(begun: &Answer) -> Value {
    let url = Url::parse(&begun.text("/url")).unwrap();
    let pairs = url.query_pairs().into_owned();
    pairs.map(|(name, value)| (name, json!(value))).collect()
}

async fn a_login_makes_an_account(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let mut body = endpoint.login_body("mine");
    body["client_secret"] = json!("client-secret/0123456789");
    body["authorize_url"] = json!("https://id.example.com/authorize?tenant=a");
    let begun = start(&publisher, &body).await;
    assert!(
        begun
            .text("/url")
            .starts_with("https://id.example.com/authorize?tenant=a&")
    );
    let asked = query(&begun);
    for (name, value) in [
        ("response_type", "code"),
        ("client_id", "stationmaster"),
        ("redirect_uri", "http://127.0.0.1:40404/callback"),
        ("scope", "inference offline_access"),
        ("code_challenge_method", "S256"),
        ("state", begun.text("/state").as_str()),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }
    assert_eq!(publisher.admin.all("/v1/accounts").await.len(), 0);

    let made = finish(&publisher, &begun.text("/state"), "good").await;
    assert_eq!(made.status, 201, "{made}");
    let id = made.text("/id");
    assert_eq!(made.header("location"), format!("/v1/accounts/{id}"));
    assert_eq!(read(&publisher, &id).await.json(), made.json());
    assert_eq!(made["name"], "mine");
    assert_eq!(made["credential_type"], "oauth");
    assert_eq!(
        made["header"],
        json!({"name": "authorization", "scheme": "Bearer"})
    );

    let one = endpoint.asked().remove(0);
    let verifier = one.form["code_verifier"].clone();
    server.site().remember(&verifier);
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(&verifier));
    assert_eq!(asked["code_challenge"], challenge);
    assert_eq!(one.form["redirect_uri"], "http://127.0.0.1:40404/callback");
    assert!(one.authorization.starts_with("Basic "), "{one:?}");

    publisher.train("chat", &[&id]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    let lent = lent_token(&resolve(&gateway, &json!({})).await);
    assert!(endpoint.left(&lent).is_some());
    assert_eq!(refresh(&publisher, &id).await.status, 200);
    let actions = publisher.actions().await;
    let ours = actions.iter().filter(|one| one.starts_with("account."));
    assert!(
        ours.eq(["account.created", "account.refreshed"]),
        "{actions:?}"
    );
    assert_eq!(server.site().count("oauth_logins").await, 0);
    verified(&publisher, true).await;
}

async fn a_login_may_take_the_places_of_an_account(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let old = hold(&publisher, &endpoint.account("mine", super::HOUR)).await;
    publisher.train("chat", &[&old]).await;
    let mut body = endpoint.login_body("mine");
    publisher
        .admin
        .post(START)
        .json(&body)
        .refused(409, "name_taken")
        .await;
    body["replaces"] = json!(old);
    let begun = start(&publisher, &body).await;
    let made = finish(&publisher, &begun.text("/state"), "good").await;
    assert_eq!(made.status, 201, "{made}");
    let train = publisher.admin.get("/v1/trains/chat").expect(200).await;
    assert_eq!(train["accounts"][0]["account_id"], made["id"], "{train}");
    let gone = publisher.admin.get(&format!("/v1/accounts/{old}"));
    gone.refused(404, "not_found").await;
}

async fn a_state_counts_once_and_for_its_publisher(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let (publisher, stranger) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let endpoint = TokenEndpoint::start(&server).await;
    let begun = start(&publisher, &endpoint.login_body("mine")).await;
    let state = begun.text("/state");
    let theirs = finish(&stranger, &state, "good").await;
    assert_eq!((theirs.status, &theirs["code"]), (404, &json!("not_found")));
    // Of those who come at the same time, one counts.
    let mut finishing = Vec::new();
    for _ in 0..8 {
        let (publisher, state) = (publisher.clone(), state.clone());
        finishing.push(tokio::spawn(async move {
            finish(&publisher, &state, "good").await.status
        }));
    }
    let mut statuses = Vec::new();
    for one in finishing {
        statuses.push(one.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 404, 404, 404, 404, 404, 404, 404]);
    assert_eq!(endpoint.asked().len(), 1);

    let begun = start(&publisher, &endpoint.login_body("late")).await;
    let past = "UPDATE oauth_logins SET expires_at = created_at";
    assert_eq!(server.site().execute(past).await, 1);
    let late = finish(&publisher, &begun.text("/state"), "good").await;
    assert_eq!(late.status, 404, "{late}");
    assert_eq!(endpoint.asked().len(), 1);
}

async fn a_login_that_the_upstream_refuses_makes_nothing(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let bare = json!({"access_token": "at-without-the-other-0123"});
    server.site().remember("at-without-the-other-0123");
    for (answer_mode, code, reason) in [
        (AnswerMode::Granting, "bad", "invalid_grant"),
        (
            AnswerMode::Saying(503, String::new()),
            "good",
            "unavailable",
        ),
        (
            AnswerMode::Saying(200, bare.to_string()),
            "good",
            "no refresh token",
        ),
    ] {
        endpoint.answer_with(answer_mode);
        let begun = start(&publisher, &endpoint.login_body("mine")).await;
        let state = begun.text("/state");
        let refused = finish(&publisher, &state, code).await;
        assert_eq!(refused["code"], "login_failed", "{refused}");
        assert!(refused.text("/detail").contains(reason), "{refused}");
        endpoint.answer_with(AnswerMode::Granting);
        let again = finish(&publisher, &state, "good").await;
        assert_eq!(again.status, 404, "{again}");
    }
    assert_eq!(publisher.admin.all("/v1/accounts").await.len(), 0);
}

async fn what_would_be_refused_in_the_end_is_refused_at_the_start(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    for (member, value, status, code) in [
        (
            "token_url",
            "https://169.254.169.254/t",
            422,
            "destination_refused",
        ),
        (
            "authorize_url",
            "https://10.0.0.1/a",
            422,
            "destination_refused",
        ),
        ("base_url", "https://[::1]/", 422, "destination_refused"),
        (
            "redirect_uri",
            "http://app.example.com/cb",
            422,
            "validation_failed",
        ),
        (
            "redirect_uri",
            "javascript:alert(1)",
            422,
            "validation_failed",
        ),
        ("replaces", &tools::absent("acc"), 404, "not_found"),
        ("replaces", "acc_x", 404, "not_found"),
    ] {
        let mut body = endpoint.login_body("mine");
        body[member] = json!(value);
        let refused = publisher
            .admin
            .post(START)
            .json(&body)
            .refused(status, code)
            .await;
        if status == 422 {
            assert_eq!(refused.pointers(), [format!("/{member}")]);
        }
    }
    assert_eq!(server.site().count("oauth_logins").await, 0);
}

async fn logins_that_wait_are_counted_and_swept(world: &World) {
    let server = world.start_with(&super::BY_CLOCK).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    for number in 0..20 {
        start(
            &publisher,
            &endpoint.login_body(&format!("number {number}")),
        )
        .await;
    }
    let more = endpoint.login_body("more");
    publisher
        .admin
        .post(START)
        .json(&more)
        .refused(409, "quota_exceeded")
        .await;
    // Another publisher has its own.
    let other = server.publisher("other").await;
    start(&other, &endpoint.login_body("mine")).await;
    let past = "UPDATE oauth_logins SET expires_at = created_at";
    assert_eq!(server.site().execute(past).await, 21);
    tools::eventually(
        "they are swept",
        std::time::Duration::from_secs(20),
        async || (server.site().count("oauth_logins").await == 0).then_some(()),
    )
    .await;
    start(&publisher, &more).await;
}
