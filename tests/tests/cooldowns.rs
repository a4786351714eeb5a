//! Cooldowns as admins see them: until when, why and by whose report; and how an admin ends one.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Answer, Publisher, TokenEndpoint, User, World, on_both_stores, tools};

use crate::{
    audit::verified,
    oauth::{BY_HAND, HOUR, hold, refresh},
    resolving::{house, lent, report},
};

on_both_stores!(
    an_admin_sees_until_when_why_and_by_whom,
    what_is_over_or_void_is_not_shown,
    an_admin_ends_every_cooldown_of_an_account,
    an_admin_ends_the_cooldown_for_one_model,
    a_repeated_request_ends_no_later_cooldown,
);

async fn read(publisher: &Publisher, account: &str) -> Answer {
    let path = format!("/v1/accounts/{account}");
    publisher.admin.get(&path).expect(200).await
}

/// The cooldown of the first account that `chat` lends, as the train shows it.
async fn in_train(publisher: &Publisher) -> Value {
    let train = publisher.admin.get("/v1/trains/chat").expect(200).await;
    let listed = publisher.admin.all("/v1/trains").await;
    let is_chat = |train: &&Value| train["slug"] == "chat";
    let listed = listed.iter().find(is_chat).unwrap();
    assert_eq!(listed["accounts"], train["accounts"]);
    train["accounts"][0]["cooldown"].clone()
}

async fn end(publisher: &Publisher, account: &str, body: &Value) -> Answer {
    let path = format!("/v1/accounts/{account}/end-cooldown");
    let call = publisher.admin.post(&path).json(body);
    call.expect(200).await
}

/// A token of `chat` with this name.
async fn named_token(publisher: &Publisher, name: &str) -> (String, User) {
    let body = json!({"name": name});
    let call = publisher.admin.post("/v1/trains/chat/tokens").json(&body);
    let made = call.expect(201).await;
    let user = publisher.admin.with_token(&made.text("/token"));
    (made.text("/id"), user)
}

async fn ended(publisher: &Publisher) -> Vec<Value> {
    let path = "/v1/publishers/me/audit?action=account.cooldown_ended";
    publisher.admin.all(path).await
}

async fn an_admin_sees_until_when_why_and_by_whom(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, _) = house(&publisher, &["one", "two"]).await;
    let (first, second) = (accounts[0].as_str(), accounts[1].as_str());
    let (laptop_id, laptop) = named_token(&publisher, "laptop").await;
    let (nameless_id, nameless) = publisher.train_token("chat").await;
    assert_eq!(read(&publisher, first).await["cooldown"], Value::Null);
    assert_eq!(in_train(&publisher).await, Value::Null);

    // The server's clock may differ from ours a little.
    let (began, soon) = (tools::seconds_ago(5), tools::in_seconds(595));
    report(&laptop, first, "rate_limited", json!({"retry_after": 600})).await;
    let by = |model: &str| json!({"model": model, "retry_after": 900});
    report(&nameless, first, "rate_limited", by("large")).await;
    let shown = read(&publisher, first).await;
    let cooldown = shown["cooldown"].clone();
    let reporter = json!({"token_id": laptop_id, "token_name": "laptop", "train": "chat"});
    assert_eq!(cooldown["reported_by"], reporter, "{shown}");
    assert_eq!(cooldown["reason"], "rate_limited", "{shown}");
    assert_eq!(cooldown["model"], Value::Null, "{shown}");
    let (until, at) = (
        shown.text("/cooldown/until"),
        shown.text("/cooldown/reported_at"),
    );
    assert!(until >= soon && until <= tools::in_seconds(605), "{shown}");
    assert!(at >= began && at <= tools::in_seconds(5), "{shown}");
    let models = shown["model_cooldowns"].as_array().unwrap();
    assert_eq!(models.len(), 1, "{shown}");
    assert_eq!(models[0]["model"], "large", "{shown}");
    let reporter = json!({"token_id": nameless_id, "token_name": null, "train": "chat"});
    assert_eq!(models[0]["reported_by"], reporter, "{shown}");

    // A list shows what holds for the account as a whole.
    let list = publisher.admin.all("/v1/accounts").await;
    let in_list = |id: &str| list.iter().find(|one| one["id"] == id).unwrap();
    assert_eq!(in_list(first)["cooldown"], cooldown);
    assert_eq!(in_list(first)["model_cooldowns"], Value::Null);
    assert_eq!(in_list(second)["cooldown"], Value::Null);
    assert_eq!(in_train(&publisher).await, cooldown);
    // What another report makes longer is that one's.
    report(
        &nameless,
        first,
        "rate_limited",
        json!({"retry_after": 700}),
    )
    .await;
    let shown = read(&publisher, first).await;
    assert_eq!(shown["cooldown"]["reported_by"], reporter, "{shown}");
    assert!(shown.text("/cooldown/until") > until, "{shown}");
    // A change of the account shows it as well, and is no other revision for it.
    let patch = publisher.admin.patch(&format!("/v1/accounts/{first}"));
    let patched = patch.json(&json!({"name": "first"})).expect(200).await;
    assert_eq!(patched["cooldown"], shown["cooldown"], "{patched}");
    let etag = patched.header("etag").to_owned();
    report(&laptop, first, "rate_limited", json!({"retry_after": 800})).await;
    assert_eq!(read(&publisher, first).await.header("etag"), etag);
    // It outlives the process, and the train whose token reported it.
    let _again = server.restart(&[]).await;
    publisher.admin.delete("/v1/trains/chat").expect(204).await;
    let shown = read(&publisher, first).await;
    let gone = json!({"token_id": laptop_id, "token_name": null, "train": null});
    assert_eq!(shown["cooldown"]["reported_by"], gone, "{shown}");
}

async fn what_is_over_or_void_is_not_shown(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let account = hold(&publisher, &endpoint.account("one", HOUR)).await;
    publisher.train("chat", &[&account]).await;
    let (_, gateway) = publisher.train_token("chat").await;
    report(
        &gateway,
        &account,
        "rate_limited",
        json!({"retry_after": 1}),
    )
    .await;
    let limit = Duration::from_secs(10);
    tools::eventually("it is over", limit, async || {
        (read(&publisher, &account).await["cooldown"] == Value::Null).then_some(())
    })
    .await;
    assert_eq!(lent(&gateway, &json!({})).await, account);
    // A credential that was refused has been replaced.
    report(&gateway, &account, "unauthorized", json!({})).await;
    let shown = read(&publisher, &account).await;
    assert_eq!(shown["cooldown"]["reason"], "unauthorized", "{shown}");
    assert_eq!(in_train(&publisher).await, shown["cooldown"]);
    let refreshed = refresh(&publisher, &account).await;
    assert_eq!(refreshed["cooldown"], Value::Null, "{refreshed}");
    assert_eq!(in_train(&publisher).await, Value::Null);
    end(&publisher, &account, &json!({})).await;
    assert_eq!(ended(&publisher).await, [Value::Null; 0]);
}

async fn an_admin_ends_every_cooldown_of_an_account(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let (first, second) = (accounts[0].as_str(), accounts[1].as_str());
    let long = json!({"retry_after": 3600});
    report(&gateway, first, "rate_limited", long.clone()).await;
    let large = json!({"model": "large", "retry_after": 7200});
    report(&gateway, first, "rate_limited", large.clone()).await;
    assert_eq!(lent(&gateway, &json!({})).await, second);

    let path = format!("/v1/accounts/{first}/end-cooldown");
    let runner = publisher.runner.post(&path);
    runner.refused(403, "wrong_token_kind").await;
    gateway.post(&path).refused(403, "wrong_token_kind").await;
    let before = read(&publisher, first).await;
    // No body is needed.
    let answer = publisher.admin.post(&path).expect(200).await;
    assert_eq!(answer["id"], first, "{answer}");
    assert_eq!(answer["cooldown"], Value::Null, "{answer}");
    assert_eq!(answer["model_cooldowns"], Value::Null, "{answer}");
    assert_eq!(answer.header("etag"), before.header("etag"));
    assert_eq!(lent(&gateway, &json!({})).await, first);
    assert_eq!(lent(&gateway, &json!({"model": "large"})).await, first);
    assert_eq!(read(&publisher, first).await.json(), answer.json());

    let rows = ended(&publisher).await;
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(rows[0]["target"]["id"], first, "{rows:?}");
    assert_eq!(rows[0]["actor"]["kind"], "admin", "{rows:?}");
    let until = before["model_cooldowns"][0]["until"].clone();
    let facts = json!({"model": null, "ended": 2, "until": until});
    assert_eq!(rows[0]["metadata"], facts, "{rows:?}");
    // What does not cool down is no change.
    end(&publisher, first, &json!({})).await;
    end(&publisher, second, &json!({})).await;
    assert_eq!(ended(&publisher).await.len(), 1);
    verified(&publisher, true).await;
    // It stays ended, and the next report counts as ever.
    let _again = server.restart(&[]).await;
    assert_eq!(lent(&gateway, &json!({})).await, first);
    report(&gateway, first, "failed", json!({})).await;
    assert_eq!(lent(&gateway, &json!({})).await, second);
}

async fn an_admin_ends_the_cooldown_for_one_model(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let (first, second) = (accounts[0].as_str(), accounts[1].as_str());
    for model in ["large", "small"] {
        report(&gateway, first, "rate_limited", json!({"model": model})).await;
    }
    let of = async |model: &str| lent(&gateway, &json!({"model": model})).await;
    end(&publisher, first, &json!({"model": "middle"})).await;
    assert_eq!(ended(&publisher).await.len(), 0);
    let answer = end(&publisher, first, &json!({"model": "large"})).await;
    let models = answer["model_cooldowns"].as_array().unwrap();
    assert_eq!(models.len(), 1, "{answer}");
    assert_eq!(models[0]["model"], "small", "{answer}");
    assert_eq!(of("large").await, first);
    assert_eq!(of("small").await, second);
    let rows = ended(&publisher).await;
    assert_eq!(rows[0]["metadata"]["model"], "large", "{rows:?}");
    // As long as it cools down as a whole, no model helps it.
    report(&gateway, first, "rate_limited", json!({})).await;
    end(&publisher, first, &json!({"model": "small"})).await;
    assert_eq!(of("small").await, second);
    end(&publisher, first, &json!({})).await;
    assert_eq!(of("small").await, first);
}

async fn a_repeated_request_ends_no_later_cooldown(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let (first, second) = (accounts[0].as_str(), accounts[1].as_str());
    let ask = |body: Value| {
        let path = format!("/v1/accounts/{first}/end-cooldown");
        publisher.admin.post(&path).json(&body).key("monday")
    };
    report(&gateway, first, "rate_limited", json!({})).await;
    let answer = ask(json!({})).expect(200).await;
    assert_eq!(lent(&gateway, &json!({})).await, first);
    report(&gateway, first, "rate_limited", json!({})).await;
    let again = ask(json!({})).expect(200).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.json(), answer.json());
    assert_eq!(lent(&gateway, &json!({})).await, second);
    assert_eq!(ended(&publisher).await.len(), 1);
    let other = ask(json!({"model": "large"}));
    other.refused(422, "idempotency_key_reused").await;
}
