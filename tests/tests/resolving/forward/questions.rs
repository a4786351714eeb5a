//! What a proxy says in its question: which upstream it serves, and which account has just failed.

use serde_json::{Value, json};
use tests::{Answer, Publisher, User, World, new_account, on_both_stores, tools};

use super::{PATH, told};
use crate::resolving::{house, lent, report, resolve};

on_both_stores!(
    a_gateway_gets_accounts_of_its_upstream_alone,
    a_train_without_such_an_account_says_so,
    a_refused_account_rests_and_the_next_one_is_lent,
    a_report_in_a_question_reaches_the_trains_accounts_alone,
    a_long_problem_leaves_its_errors_out_of_the_header,
);

const ANTHROPIC: &str = "https://api.anthropic.com";
const OPENAI: &str = "https://api.openai.com/v1";

async fn account(publisher: &Publisher, name: &str, provider: &str, url: &str) -> String {
    let mut body = new_account(name);
    body["provider"] = json!(provider);
    body["base_url"] = json!(url);
    let made = publisher.admin.post("/v1/accounts").json(&body);
    made.expect(201).await.text("/id")
}

/// A train with two accounts of one provider and one of another behind them.
async fn mixed(publisher: &Publisher) -> (Vec<String>, User) {
    let accounts = vec![
        account(publisher, "o1", "openai", OPENAI).await,
        account(publisher, "o2", "openai", OPENAI).await,
        account(publisher, "a1", "anthropic", ANTHROPIC).await,
    ];
    let order: Vec<&str> = accounts.iter().map(String::as_str).collect();
    publisher.train("chat", &order).await;
    (accounts, publisher.train_token("chat").await.1)
}

async fn ask(gateway: &User, query: &str) -> Answer {
    let call = gateway.get(&format!("{PATH}?{query}"));
    call.repeats_a_secret().answer().await
}

fn account_of(answer: &Answer) -> &str {
    assert_eq!(answer.status, 200, "{answer}");
    answer.header("x-stationmaster-account")
}

async fn a_gateway_gets_accounts_of_its_upstream_alone(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = mixed(&publisher).await;
    for (query, index) in [
        ("provider=openai", 0),
        ("provider=anthropic", 2),
        ("base_url=https://api.openai.com/v1", 0),
        ("base_url=https%3A%2F%2FAPI.openai.com%2Fv1%2F", 0),
        ("base_url=https://api.anthropic.com&provider=anthropic", 2),
    ] {
        let answer = ask(&gateway, query).await;
        assert_eq!(account_of(&answer), accounts[index], "{query}");
    }
    // Who has one upstream and does not say which might send a credential to another.
    let answer = ask(&gateway, "").await;
    assert_eq!(
        (answer.status, &answer["code"]),
        (403, &json!("several_upstreams")),
        "{answer}"
    );
    let answer = ask(&gateway, "deny=403").await;
    assert_eq!(told(&answer)["code"], "several_upstreams", "{answer}");
    // One whose accounts all rest is not helped out by the other.
    for index in [0, 1] {
        let wait = json!({"retry_after": 100});
        report(&gateway, &accounts[index], "rate_limited", wait).await;
    }
    let answer = ask(&gateway, "provider=openai").await;
    assert_eq!(
        (answer.status, &answer["code"]),
        (429, &json!("train_exhausted")),
        "{answer}"
    );
    assert_eq!(answer.pointers().len(), 2, "{answer}");
    assert_eq!(
        account_of(&ask(&gateway, "provider=anthropic").await),
        accounts[2]
    );
    // `resolve` says where its credential may go, so it needs no such word, but takes it.
    assert_eq!(lent(&gateway, &json!({})).await, accounts[2]);
    let openai = json!({"provider": "openai"});
    assert_eq!(lent(&gateway, &openai).await, "");
    report(&gateway, &accounts[1], "ok", json!({})).await;
    assert_eq!(lent(&gateway, &openai).await, accounts[1]);
    let url = json!({"base_url": "https://api.anthropic.com/"});
    assert_eq!(lent(&gateway, &url).await, accounts[2]);
    // One provider's name does not make two upstreams one.
    let third = account(&publisher, "o3", "openai", "https://llm.example/v1").await;
    publisher.train("two", &[&accounts[1], &third]).await;
    let (_, two) = publisher.train_token("two").await;
    let answer = ask(&two, "provider=openai").await;
    assert_eq!(answer["code"], "several_upstreams", "{answer}");
    let answer = ask(&two, "base_url=https://llm.example/v1").await;
    assert_eq!(account_of(&answer), third);
    // A disabled account counts: else a gateway's right would depend on it.
    let path = format!("/v1/accounts/{third}");
    let off = json!({"enabled": false});
    publisher.admin.patch(&path).json(&off).expect(200).await;
    let answer = ask(&two, "provider=openai").await;
    assert_eq!(answer["code"], "several_upstreams", "{answer}");
}

async fn a_train_without_such_an_account_says_so(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (_, gateway) = mixed(&publisher).await;
    for query in [
        "provider=azure",
        "base_url=https://api.anthropic.com/v1",
        "provider=anthropic&base_url=https://api.openai.com/v1",
    ] {
        let answer = ask(&gateway, query).await;
        assert_eq!(answer.status, 403, "{query}: {answer}");
        assert_eq!(answer["code"], "no_account_of_upstream", "{query}");
        let answer = ask(&gateway, &format!("{query}&deny=403")).await;
        assert_eq!(told(&answer), *answer.json(), "{query}");
        assert_eq!(answer.header("x-stationmaster-status"), "403");
    }
    let azure = json!({"provider": "azure"});
    let answer = resolve(&gateway, &azure).await;
    assert_eq!(answer["code"], "no_account_of_upstream", "{answer}");
    let call = gateway.post("/v1/resolve").json(&json!({"base_url": "x"}));
    let answer = call.refused(422, "validation_failed").await;
    assert_eq!(answer.pointers(), ["/base_url"]);
    for (query, pointer) in [
        ("provider=", "/query/provider"),
        ("provider=Open%20AI", "/query/provider"),
        ("base_url=", "/query/base_url"),
        ("base_url=api.openai.com", "/query/base_url"),
    ] {
        let answer = ask(&gateway, query).await;
        assert_eq!(answer["code"], "invalid_parameter", "{query}: {answer}");
        assert_eq!(answer.pointers(), [pointer]);
    }
}

/// The account that is lent after the proxy has said how another one did.
async fn after(gateway: &User, failed: &str) -> Answer {
    let call = gateway.get(PATH).header("x-stationmaster-failed", failed);
    call.repeats_a_secret().answer().await
}

/// For how many seconds a train's only account rests; none if it does not.
async fn rest(gateway: &User, others: &[&String]) -> Option<u64> {
    let answer = resolve(gateway, &json!({"exclude": others})).await;
    let wait = || answer.header("retry-after").parse().unwrap();
    (answer.status == 429).then(wait)
}

async fn a_refused_account_rests_and_the_next_one_is_lent(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one", "two"]).await;
    let (one, two) = (&accounts[0], &accounts[1]);
    let date = "Fri, 31 Dec 1999 23:59:59 GMT";
    for (said, at_least, at_most) in [
        ("429 200", 150, 200),
        ("429", 30, 60),
        ("429 soon", 30, 60),
        (&format!("429 {date}"), 1, 1),
        ("529 99999999", 604_000, 604_800),
        ("401", 200, 300),
        ("401 Wed, 21 Oct 2037 07:28:00 GMT", 200, 300),
        ("403", 200, 300),
        ("500", 10, 30),
    ] {
        let answer = after(&gateway, &format!("{one} {said}")).await;
        assert_eq!(account_of(&answer), two, "{said}");
        if at_most > 1 {
            let rest = rest(&gateway, &[two]).await.unwrap();
            assert!((at_least..=at_most).contains(&rest), "{said}: {rest}");
        }
        report(&gateway, one, "ok", json!({})).await;
    }
    // Other answers say nothing of the account, which is left out this once.
    for said in ["200", "404", "400 100"] {
        let answer = after(&gateway, &format!("{one} {said}")).await;
        assert_eq!(account_of(&answer), two, "{said}");
        assert_eq!(rest(&gateway, &[two]).await, None, "{said}");
    }
    // With the model, the account rests for that alone.
    let call = gateway.get(&format!("{PATH}?model=large"));
    let call = call.header("x-stationmaster-failed", &format!("{one} 429 200"));
    assert_eq!(account_of(&call.repeats_a_secret().answer().await), two);
    assert_eq!(lent(&gateway, &json!({"model": "large"})).await, *two);
    assert_eq!(lent(&gateway, &json!({})).await, *one);
    report(&gateway, one, "ok", json!({"model": "large"})).await;
    // Once the last one is refused, the train is exhausted, and says until when.
    assert_eq!(
        account_of(&after(&gateway, &format!("{one} 429 200")).await),
        two
    );
    let answer = after(&gateway, &format!("{two} 429 100")).await;
    assert_eq!(
        (answer.status, &answer["code"]),
        (429, &json!("train_exhausted")),
        "{answer}"
    );
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((50..=100).contains(&wait), "{wait}");
}

async fn a_report_in_a_question_reaches_the_trains_accounts_alone(world: &World) {
    let server = world.start().await;
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    let (foreign, their_gateway) = house(&other, &["one"]).await;
    let spare = publisher.account("spare").await;
    for id in [spare.as_str(), &foreign[0], &tools::absent("acc")] {
        let answer = after(&gateway, &format!("{id} 429 100")).await;
        assert_eq!(account_of(&answer), accounts[0], "{id}");
    }
    assert_eq!(lent(&their_gateway, &json!({})).await, foreign[0]);
    publisher.train("spare", &[&spare]).await;
    let (_, spares) = publisher.train_token("spare").await;
    assert_eq!(lent(&spares, &json!({})).await, spare);
    for odd in [
        "acc_x 429",
        "429",
        &accounts[0],
        &format!("{} 42", accounts[0]),
    ] {
        let answer = after(&gateway, odd).await;
        assert_eq!(answer["code"], "invalid_parameter", "{odd}: {answer}");
        assert_eq!(answer.pointers(), ["/header/X-Stationmaster-Failed"]);
    }
    assert_eq!(account_of(&after(&gateway, "").await), accounts[0]);
    // Who may not ask may not report.
    let wrong = gateway.with_token("ptk_x").get(PATH);
    let wrong = wrong.header(
        "x-stationmaster-failed",
        &format!("{} 429 100", accounts[0]),
    );
    wrong.refused(401, "unauthenticated").await;
    let off = json!({"enabled": false});
    publisher
        .admin
        .patch("/v1/trains/chat")
        .json(&off)
        .expect(200)
        .await;
    let answer = after(&gateway, &format!("{} 429 100", accounts[0])).await;
    assert_eq!(answer["code"], "train_disabled", "{answer}");
    let on = json!({"enabled": true});
    publisher
        .admin
        .patch("/v1/trains/chat")
        .json(&on)
        .expect(200)
        .await;
    let lent: Value = json!(lent(&gateway, &json!({})).await);
    assert_eq!(lent, accounts[0]);
}

async fn a_long_problem_leaves_its_errors_out_of_the_header(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let mut accounts = Vec::new();
    for at in 0..50 {
        let mut body = new_account(&format!("account {at}"));
        body["enabled"] = json!(false);
        let made = publisher.admin.post("/v1/accounts").json(&body);
        accounts.push(made.expect(201).await.text("/id"));
    }
    let order: Vec<&str> = accounts.iter().map(String::as_str).collect();
    publisher.train("chat", &order).await;
    let (_, gateway) = publisher.train_token("chat").await;
    let answer = ask(&gateway, "deny=403").await;
    assert_eq!(answer.status, 403, "{answer}");
    assert_eq!(answer.pointers().len(), accounts.len());
    // A proxy has little room for a head.
    let problem = told(&answer);
    assert_eq!(problem["code"], "train_exhausted", "{problem}");
    assert_eq!(problem["detail"], answer["detail"], "{problem}");
    assert_eq!(problem["errors"], json!(null), "{problem}");
}
