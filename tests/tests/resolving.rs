//! Gateways: which account a train's token gets, what reports change, and when a token is none.

mod forward;
mod tokens;

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Answer, Publisher, User, World, new_account, on_both_stores, tools};

use crate::audit::verified;

on_both_stores!(
    the_first_usable_account_is_lent,
    each_provider_gets_its_own_header,
    a_change_counts_at_once,
    a_report_lets_an_account_rest,
    a_report_may_be_about_one_model,
    only_the_trains_own_accounts_are_reported_of,
    an_exhausted_train_says_why_and_until_when,
    that_a_train_is_exhausted_is_told_once,
    a_client_keeps_its_account,
    reported_use_counts_against_soft_ceilings,
    an_expired_access_token_is_not_lent,
    a_disabled_train_lends_nothing,
);

/// Asks which account to use.
pub async fn resolve(gateway: &User, body: &Value) -> Answer {
    let call = gateway.post("/v1/resolve").json(body);
    call.repeats_a_secret().answer().await
}

/// The account that is lent; empty if there is none.
pub async fn lent(gateway: &User, body: &Value) -> String {
    let answer = resolve(gateway, body).await;
    assert!(matches!(answer.status, 200 | 429), "{answer}");
    answer["account_id"].as_str().unwrap_or_default().to_owned()
}

/// Reports how a request went.
pub async fn report(gateway: &User, account: &str, outcome: &str, more: Value) {
    let mut body = json!({"account_id": account, "outcome": outcome});
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let call = gateway.post("/v1/resolve/report").json(&body);
    call.expect(204).await;
}

/// A publisher whose train `chat` lends these accounts, the first one first, and its gateway.
pub async fn house(publisher: &Publisher, names: &[&str]) -> (Vec<String>, User) {
    let mut accounts = Vec::new();
    for name in names {
        accounts.push(publisher.account(name).await);
    }
    let order: Vec<&str> = accounts.iter().map(String::as_str).collect();
    publisher.train("chat", &order).await;
    (accounts, publisher.train_token("chat").await.1)
}

async fn the_first_usable_account_is_lent(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two", "three"]).await;
    let none = json!({});
    let answer = resolve(&gateway, &none).await;
    assert_eq!(answer["account_id"], accounts[0], "{answer}");
    assert_eq!(answer["provider"], "local");
    assert_eq!(answer["base_url"], "http://127.0.0.1:9");
    assert_eq!(answer["expires_at"], json!(null));
    assert_eq!(answer.header("cache-control"), "no-store");
    assert!(answer["ask_again_at"].is_string(), "{answer}");
    // Without a body it is asked for nothing in particular.
    let bare = gateway.post("/v1/resolve").repeats_a_secret();
    assert_eq!(bare.expect(200).await["account_id"], accounts[0]);
    let exclude = json!({"exclude": [accounts[0], "acc_x", "other"]});
    assert_eq!(lent(&gateway, &exclude).await, accounts[1]);
    let all = json!({"exclude": accounts});
    let answer = resolve(&gateway, &all).await;
    assert_eq!(answer["code"], "train_exhausted", "{answer}");
    assert_eq!(answer["errors"][0]["code"], "excluded", "{answer}");
}

async fn each_provider_gets_its_own_header(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let key = |name: &str, provider: &str, more: &Value| {
        let mut body = new_account(name);
        body["provider"] = json!(provider);
        for (member, value) in more.as_object().unwrap() {
            body[member] = value.clone();
        }
        body
    };
    let own = json!({"header": {"name": "api-key"}});
    for (provider, more, header, scheme) in [
        ("anthropic", &json!({}), "x-api-key", ""),
        ("openai", &json!({}), "authorization", "Bearer "),
        ("azure", &own, "api-key", ""),
    ] {
        let body = key(provider, provider, more);
        let made = publisher.admin.post("/v1/accounts").json(&body);
        let id = made.expect(201).await.text("/id");
        publisher.train(provider, &[&id]).await;
        let (_, gateway) = publisher.train_token(provider).await;
        let answer = resolve(&gateway, &json!({})).await;
        let value = format!("{scheme}{}", body["api_key"].as_str().unwrap());
        assert_eq!(answer["headers"], json!({header: value}), "{provider}");
    }
}

async fn a_change_counts_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let admin = &publisher.admin;
    let first = async || lent(&gateway, &json!({})).await;
    assert_eq!(first().await, accounts[0]);
    let path = format!("/v1/accounts/{}", accounts[0]);
    let off = json!({"enabled": false});
    admin.patch(&path).json(&off).expect(200).await;
    assert_eq!(first().await, accounts[1]);
    let on = json!({"enabled": true});
    admin.patch(&path).json(&on).expect(200).await;
    assert_eq!(first().await, accounts[0]);
    let body = new_account("another");
    let replace = format!("{path}/replace");
    admin.post(&replace).json(&body).expect(201).await;
    let answer = resolve(&gateway, &json!({})).await;
    let value = format!("Bearer {}", body["api_key"].as_str().unwrap());
    assert_eq!(answer["headers"]["authorization"], value);
    let path = "/v1/trains/chat/accounts";
    let one = json!([{"account_id": accounts[1], "priority": 7}]);
    admin.put(path).json(&one).expect(200).await;
    assert_eq!(first().await, accounts[1]);
    admin.put(path).json(&json!([])).expect(200).await;
    assert_eq!(first().await, "");
    admin.delete("/v1/trains/chat").expect(204).await;
    gateway
        .post("/v1/resolve")
        .refused(401, "unauthenticated")
        .await;
}

async fn a_report_lets_an_account_rest(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let first = async || lent(&gateway, &json!({})).await;
    let wait = json!({"retry_after": 2});
    report(&gateway, &accounts[0], "rate_limited", wait).await;
    assert_eq!(first().await, accounts[1]);
    let limit = Duration::from_secs(10);
    tools::eventually("it is back", limit, async || {
        (first().await == accounts[0]).then_some(())
    })
    .await;
    for outcome in ["rate_limited", "unauthorized", "failed"] {
        report(&gateway, &accounts[0], outcome, json!({})).await;
        assert_eq!(first().await, accounts[1], "{outcome}");
        report(&gateway, &accounts[0], "ok", json!({})).await;
        assert_eq!(first().await, accounts[0], "{outcome}");
    }
    // It outlives the process.
    report(&gateway, &accounts[0], "unauthorized", json!({})).await;
    let _again = server.restart(&[]).await;
    assert_eq!(first().await, accounts[1]);
    // Reports are no change of configuration.
    let actions = publisher.actions().await;
    let reported = actions.iter().any(|one| one.contains("report"));
    assert!(!reported, "{actions:?}");
    verified(&publisher, true).await;
}

async fn a_report_may_be_about_one_model(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let large = json!({"model": "large"});
    report(&gateway, &accounts[0], "rate_limited", large.clone()).await;
    assert_eq!(lent(&gateway, &large).await, accounts[1]);
    assert_eq!(
        lent(&gateway, &json!({"model": "small"})).await,
        accounts[0]
    );
    assert_eq!(lent(&gateway, &json!({})).await, accounts[0]);
    report(&gateway, &accounts[0], "ok", large.clone()).await;
    assert_eq!(lent(&gateway, &large).await, accounts[0]);
}

async fn only_the_trains_own_accounts_are_reported_of(world: &World) {
    let server = world.start().await;
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    let (foreign, _) = house(&other, &["one"]).await;
    let spare = publisher.account("spare").await;
    let report = |id: &str| {
        let body = json!({"account_id": id, "outcome": "failed"});
        gateway.post("/v1/resolve/report").json(&body)
    };
    for id in [spare.as_str(), &foreign[0], &tools::absent("acc"), "acc_x"] {
        report(id).refused(404, "not_found").await;
    }
    report(&accounts[0]).expect(204).await;
}

async fn an_exhausted_train_says_why_and_until_when(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let path = format!("/v1/accounts/{}", accounts[0]);
    let off = json!({"enabled": false});
    publisher.admin.patch(&path).json(&off).expect(200).await;
    let answer = resolve(&gateway, &json!({"exclude": [accounts[1]]})).await;
    assert_eq!(answer.header("retry-after"), "60", "nobody comes back");
    let wait = json!({"retry_after": 1000});
    report(&gateway, &accounts[1], "rate_limited", wait).await;
    let answer = resolve(&gateway, &json!({})).await;
    assert_eq!(answer.status, 429, "{answer}");
    assert_eq!(answer["code"], "train_exhausted");
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((900..=1000).contains(&wait), "{wait}");
    let of = |at: usize| format!("/accounts/{}", accounts[at]);
    assert_eq!(answer.pointers(), [of(0), of(1)]);
    assert_eq!(answer["errors"][0]["code"], "disabled");
    assert_eq!(answer["errors"][1]["code"], "cooling_down");
}

async fn that_a_train_is_exhausted_is_told_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    let told = async || {
        let all = publisher.admin.all("/v1/events").await;
        let is = |one: &Value| one["type"] == "stationmaster.train.exhausted";
        all.into_iter().filter(is).collect::<Vec<_>>()
    };
    // Who excludes accounts has exhausted nothing.
    lent(&gateway, &json!({"exclude": accounts})).await;
    report(&gateway, &accounts[0], "rate_limited", json!({})).await;
    for _ in 0..5 {
        assert_eq!(lent(&gateway, &json!({})).await, "");
    }
    let limit = Duration::from_secs(10);
    let first = tools::eventually("it is told", limit, async || {
        told().await.into_iter().next()
    })
    .await;
    assert_eq!(first["data"]["train"], "chat", "{first}");
    assert!(first["data"]["available_at"].is_string(), "{first}");
    let _again = server.restart(&[]).await;
    lent(&gateway, &json!({})).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(told().await.len(), 1);
}

async fn a_client_keeps_its_account(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two", "three"]).await;
    let places: Vec<Value> = accounts
        .iter()
        .map(|id| json!({"account_id": id, "priority": 0}))
        .collect();
    let path = "/v1/trains/chat/accounts";
    let put = publisher.admin.put(path).json(&json!(places));
    put.expect(200).await;
    let of = async |client: usize| {
        let key = format!("client-{client}");
        lent(&gateway, &json!({"client_key": key})).await
    };
    let mut first = accounts.clone();
    first.sort();
    assert_eq!(of(1).await, first[0], "only a sticky train minds");
    let sticky = json!({"sticky": true});
    let call = publisher.admin.patch("/v1/trains/chat").json(&sticky);
    call.expect(200).await;
    let mut before = Vec::new();
    for client in 0..30 {
        before.push(of(client).await);
        assert_eq!(of(client).await, before[client]);
    }
    for id in &accounts {
        assert!(before.contains(id), "nobody has {id}");
    }
    report(&gateway, &accounts[0], "failed", json!({})).await;
    for (client, kept) in before.iter().enumerate() {
        let now = of(client).await;
        assert!(now != accounts[0] && (now == *kept || *kept == accounts[0]));
    }
    assert_eq!(lent(&gateway, &json!({})).await, {
        first.retain(|id| *id != accounts[0]);
        first[0].clone()
    });
}

async fn reported_use_counts_against_soft_ceilings(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let path = format!("/v1/accounts/{}", accounts[0]);
    let body = json!({"ceilings": {"tokens_5h": 1000}});
    publisher.admin.patch(&path).json(&body).expect(200).await;
    let usage = json!({"usage": {"requests": 1, "tokens": 890}});
    report(&gateway, &accounts[0], "ok", usage).await;
    assert_eq!(lent(&gateway, &json!({})).await, accounts[0]);
    report(
        &gateway,
        &accounts[0],
        "ok",
        json!({"usage": {"tokens": 10}}),
    )
    .await;
    assert_eq!(lent(&gateway, &json!({})).await, accounts[1]);
    // It is the last resort, not out; and it is written down when the server stops.
    let _again = server.restart(&[]).await;
    assert_eq!(lent(&gateway, &json!({})).await, accounts[1]);
    let other = json!({"exclude": [accounts[1]]});
    assert_eq!(lent(&gateway, &other).await, accounts[0]);
}

async fn an_expired_access_token_is_not_lent(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let secret = || format!("{}{}", tools::word(), tools::word());
    let body = json!({
        "name": "tokens",
        "provider": "anthropic",
        "credential_type": "oauth",
        "oauth": {
            "access_token": format!("at-{}", secret()),
            "refresh_token": format!("rt-{}", secret()),
            "expires_at": tools::in_seconds(4),
            "token_url": "https://auth.example.com/token",
            "client_id": "gateway",
        },
    });
    let made = publisher.admin.post("/v1/accounts").json(&body);
    let id = made.expect(201).await.text("/id");
    publisher.train("chat", &[&id]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    let answer = resolve(&gateway, &json!({})).await;
    if answer.status == 200 {
        assert_eq!(answer["expires_at"], body["oauth"]["expires_at"]);
        assert_eq!(answer["ask_again_at"], answer["expires_at"], "{answer}");
    }
    let limit = Duration::from_secs(15);
    let answer = tools::eventually("it expires", limit, async || {
        let answer = resolve(&gateway, &json!({})).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert_eq!(answer["errors"][0]["code"], "expired", "{answer}");
}

async fn a_disabled_train_lends_nothing(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    let off = json!({"enabled": false});
    let patch = publisher.admin.patch("/v1/trains/chat").json(&off);
    patch.expect(200).await;
    let asks = [
        gateway.post("/v1/resolve"),
        gateway
            .post("/v1/resolve/report")
            .json(&json!({"account_id": accounts[0], "outcome": "ok"})),
        gateway.get("/v1/forward-auth/train"),
        gateway.get("/v1/forward-auth/train?deny=403"),
    ];
    for ask in asks {
        ask.refused(403, "train_disabled").await;
    }
}
