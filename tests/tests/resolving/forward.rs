//! What reverse proxies ask.

use serde_json::{Value, json};
use tests::{Answer, World, new_account, on_both_stores};

use super::{house, lent, report};

mod questions;

on_both_stores!(
    a_proxy_gets_headers_to_put_in_place_of_the_clients,
    a_train_token_counts_in_either_header,
    a_proxy_that_knows_no_429_gets_a_403,
);

const PATH: &str = "/v1/forward-auth/train";
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

fn both(answer: &Answer) -> (String, String) {
    let header = |name: &str| {
        let value = answer.headers.get(name);
        let value = value.unwrap_or_else(|| panic!("no {name}: {answer}"));
        value.to_str().unwrap().to_owned()
    };
    (header("authorization"), header("x-api-key"))
}

/// The problem in a refusal's header.
fn told(answer: &Answer) -> Value {
    serde_json::from_str(answer.header("x-stationmaster-problem")).unwrap()
}

async fn a_proxy_gets_headers_to_put_in_place_of_the_clients(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let own = json!({"header": {"name": "api-key"}});
    for (provider, more) in [
        ("anthropic", &json!({})),
        ("openai", &json!({})),
        ("azure", &own),
    ] {
        let mut body = new_account(provider);
        body["provider"] = json!(provider);
        for (member, value) in more.as_object().unwrap() {
            body[member] = value.clone();
        }
        let key = body["api_key"].as_str().unwrap().to_owned();
        let made = publisher.admin.post("/v1/accounts").json(&body);
        let id = made.expect(201).await.text("/id");
        publisher.train(provider, &[&id]).await;
        let (_, gateway) = publisher.train_token(provider).await;
        for method in METHODS {
            let call = gateway.call(method, PATH).repeats_a_secret();
            let answer = call.expect(200).await;
            let (bearer, empty) = (format!("Bearer {key}"), String::new());
            let (wanted, name, value, unused) = match provider {
                "anthropic" => ((empty, key.clone()), "x-api-key", &key, "authorization"),
                "openai" => (
                    (bearer.clone(), empty),
                    "authorization",
                    &bearer,
                    "x-api-key",
                ),
                _ => {
                    let unused = "authorization, x-api-key";
                    ((empty.clone(), empty), "api-key", &key, unused)
                }
            };
            assert_eq!(both(&answer), wanted, "{method} {provider}");
            for (header, value) in [
                (name, value.as_str()),
                ("x-stationmaster-account", &id),
                ("x-stationmaster-provider", provider),
                ("x-stationmaster-base-url", "http://127.0.0.1:9"),
                ("x-stationmaster-credential-header", name),
                ("x-stationmaster-credential", value),
                ("x-envoy-auth-headers-to-remove", unused),
                ("cache-control", "no-store"),
            ] {
                assert_eq!(answer.header(header), value, "{method} {provider}");
            }
            assert!(answer.body.is_empty(), "{answer}");
        }
    }
}

async fn a_train_token_counts_in_either_header(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    let anon = server.anon();
    let by_key = |key: &str| anon.get(PATH).header("x-api-key", key).repeats_a_secret();
    let answer = by_key(gateway.token()).expect(200).await;
    assert_eq!(answer.header("x-stationmaster-account"), accounts[0]);
    // What stands beside it is meant for somebody else, or is nothing.
    let admin = format!("Bearer {}", publisher.admin.token());
    for foreign in [
        "Bearer sk-ant-own",
        "Bearer ptk_x",
        "",
        "Bearer",
        "Basic YTpi",
        &admin,
    ] {
        let beside = by_key(gateway.token()).authorization(Some(foreign));
        let answer = beside.expect(200).await;
        assert_eq!(
            both(&answer),
            both(&by_key(gateway.token()).expect(200).await)
        );
    }
    for foreign in ["sk-own", "", "ptk_x", publisher.admin.token()] {
        let beside = gateway.get(PATH).header("x-api-key", foreign);
        beside.repeats_a_secret().expect(200).await;
    }
    // The same token twice is one; two tokens of trains are one too many, live or not.
    let same = gateway.get(PATH).header("x-api-key", gateway.token());
    same.repeats_a_secret().expect(200).await;
    let (_, other) = publisher.train_token("chat").await;
    let two = || {
        gateway
            .get(PATH)
            .header("x-api-key", other.token())
            .repeats_a_secret()
    };
    two().refused(400, "two_tokens").await;
    let id = publisher
        .admin
        .get("/v1/trains/chat/tokens")
        .expect(200)
        .await;
    let id = id["items"][0]["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/trains/chat/tokens/{id}");
    publisher.admin.delete(&path).expect(204).await;
    two().refused(400, "two_tokens").await;
    let neither = by_key("ptk_x").authorization(Some("Bearer sk-own"));
    neither.refused(401, "unauthenticated").await;
    by_key("ptk_x").refused(401, "unauthenticated").await;
    let admin = publisher.admin.token();
    by_key(admin).refused(403, "wrong_token_kind").await;
    // Nowhere else.
    for path in ["/v1/resolve", "/v1/resolve/report"] {
        let call = anon.post(path).header("x-api-key", gateway.token());
        call.refused(401, "unauthenticated").await;
    }
    let me = anon.get("/v1/publishers/me").header("x-api-key", admin);
    me.refused(401, "unauthenticated").await;
}

async fn a_proxy_that_knows_no_429_gets_a_403(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (accounts, gateway) = house(&publisher, &["one"]).await;
    let large = json!({"model": "large", "retry_after": 100});
    report(&gateway, &accounts[0], "rate_limited", large).await;
    let get = |query: &str| gateway.get(&format!("{PATH}?{query}")).repeats_a_secret();
    get("model=small&deny=403").expect(200).await;
    get("model=large").refused(429, "train_exhausted").await;
    let answer = get("model=large&deny=403").refused(403, "nothing_to_lend");
    let answer = answer.await;
    assert_eq!(answer.header("x-stationmaster-status"), "429");
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=100).contains(&wait), "{wait}");
    assert_eq!(answer["errors"][0]["code"], "cooling_down", "{answer}");
    for (query, pointer) in [
        ("deny=401", "/query/deny"),
        ("model=", "/query/model"),
        ("client_key=", "/query/client_key"),
    ] {
        let answer = get(query).refused(400, "invalid_parameter").await;
        assert_eq!(answer.pointers(), [pointer]);
    }
    // A refusal of the token stays what it is.
    let wrong = gateway.with_token("ptk_x").get(&format!("{PATH}?deny=403"));
    let answer = wrong.refused(401, "unauthenticated").await;
    assert_eq!(told(&answer), *answer.json());
    assert_eq!(lent(&gateway, &json!({})).await, accounts[0]);
    // A proxy that throws a refusal's body away has the problem in a header.
    let answer = get("model=large&deny=403").expect(403).await;
    let problem = told(&answer);
    assert_eq!(problem["status"], 429, "{problem}");
    assert_eq!(problem["code"], "train_exhausted", "{problem}");
    assert_eq!(problem["errors"], answer["errors"], "{problem}");
    assert_eq!(problem["request_id"], answer["request_id"], "{problem}");
    let two = get("deny=403").header("x-api-key", publisher.train_token("chat").await.1.token());
    let answer = two.refused(403, "nothing_to_lend").await;
    assert_eq!(answer.header("x-stationmaster-status"), "400");
    assert_eq!(told(&answer)["code"], "two_tokens");
    let plain = get("model=large").expect(429).await;
    assert_eq!(plain.header("x-stationmaster-problem"), "");
}
