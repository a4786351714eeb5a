//! When the upstream refuses an account, the next one takes its place.

use serde_json::json;
use tests::{Publisher, Server, User, World, on_both_stores};

use super::house::{Got, Proxy, account, ask, send};
use crate::resolving::lent;

on_both_stores!(
    nginx_goes_on_with_the_next_account,
    nginx_tries_four_accounts_at_most,
    caddy_lets_the_client_go_on_with_the_next_account,
    envoy_lets_the_client_go_on_with_the_next_account,
    a_fault_of_the_request_rests_no_account,
);

/// Only the gateways see these.
const BODY_BYTES: usize = 100_000;

/// A train `chat` with so many accounts, and its token.
struct Train {
    keys: Vec<String>,
    accounts: Vec<String>,
    gateway: User,
}

async fn train(server: &Server, count: usize) -> Train {
    let publisher = Publisher::create(&server.operator(), "acme").await;
    let keys: Vec<String> = (0..count)
        .map(|at| format!("sk-upstream-{at}{}", tests::tools::word()))
        .collect();
    let mut accounts = Vec::new();
    for (at, key) in keys.iter().enumerate() {
        let name = format!("account {at}");
        accounts.push(account(&publisher.admin, "anthropic", &name, key).await);
    }
    let order: Vec<&str> = accounts.iter().map(String::as_str).collect();
    publisher.train("chat", &order).await;
    let (_, gateway) = publisher.train_token("chat").await;
    Train {
        keys,
        accounts,
        gateway,
    }
}

impl Train {
    async fn post(&self, url: &str) -> Got {
        let url = format!("{url}/v1/messages?beta=true");
        let headers = [("x-api-key", self.gateway.token())];
        send(&url, &headers, vec![b'x'; BODY_BYTES]).await
    }

    /// The credentials, as the upstream is to have seen them.
    fn seen(&self, order: &[usize]) -> Vec<Vec<String>> {
        order
            .iter()
            .map(|at| vec![self.keys[*at].clone()])
            .collect()
    }
}

async fn nginx_goes_on_with_the_next_account(world: &World) {
    let name = "nginx_goes_on_with_the_next_account";
    let Some((server, upstream, proxy)) = Proxy::Nginx.house(name, world).await else {
        return;
    };
    let train = train(&server, 2).await;
    upstream.refuse(&train.keys[0], 429, "retry-after: 100\r\n");
    let got = train.post(&proxy.url).await;
    assert_eq!(
        (got.status, got.body.as_str()),
        (200, "{\"ok\":true}"),
        "{got:?}"
    );
    // The second account gets the whole request.
    assert_eq!(upstream.all("x-api-key"), train.seen(&[0, 1]));
    assert_eq!(
        upstream.all("body-bytes"),
        [[BODY_BYTES.to_string()], [BODY_BYTES.to_string()]]
    );
    for head in upstream.heads() {
        assert!(head.starts_with("post /v1/messages?beta=true "), "{head}");
        assert!(
            !head.contains(&train.gateway.token().to_lowercase()),
            "{head}"
        );
    }
    // The first one rests as long as the upstream said.
    for _ in 0..20 {
        assert_eq!(train.post(&proxy.url).await.status, 200);
    }
    assert_eq!(upstream.heads().len(), 22);
    assert_eq!(lent(&train.gateway, &json!({})).await, train.accounts[1]);
    // The last one is refused in another way: the client hears when to come again.
    upstream.refuse(&train.keys[1], 401, "www-authenticate: Bearer\r\n");
    let got = train.post(&proxy.url).await;
    assert_eq!(
        (got.status, &got.problem()["code"]),
        (429, &json!("train_exhausted")),
        "{got:?}"
    );
    assert_eq!(
        got.problem()["errors"].as_array().unwrap().len(),
        2,
        "{got:?}"
    );
    let wait: u64 = got.retry_after.unwrap().parse().unwrap();
    assert!((50..=100).contains(&wait), "{wait}");
    // A refusal of the credential goes on to the next account too.
    let report = json!({"account_id": train.accounts[0], "outcome": "ok"});
    let report = train.gateway.post("/v1/resolve/report").json(&report);
    report.expect(204).await;
    upstream.take_all();
    upstream.refuse(&train.keys[0], 529, "");
    let report = json!({"account_id": train.accounts[1], "outcome": "ok"});
    let report = train.gateway.post("/v1/resolve/report").json(&report);
    report.expect(204).await;
    let passed = upstream.heads().len();
    assert_eq!(train.post(&proxy.url).await.status, 200);
    assert_eq!(upstream.all("x-api-key")[passed..], train.seen(&[0, 1]));
}

async fn nginx_tries_four_accounts_at_most(world: &World) {
    let name = "nginx_tries_four_accounts_at_most";
    let Some((server, upstream, proxy)) = Proxy::Nginx.house(name, world).await else {
        return;
    };
    let train = train(&server, 6).await;
    for key in &train.keys[..5] {
        upstream.refuse(key, 429, "retry-after: 100\r\n");
    }
    let got = train.post(&proxy.url).await;
    assert_eq!(got.problem()["status"], 503, "{got:?}");
    assert_eq!(got.retry_after.as_deref(), Some("1"), "{got:?}");
    assert_eq!(upstream.all("x-api-key"), train.seen(&[0, 1, 2, 3]));
    // The client's next try finds the rest.
    assert_eq!(train.post(&proxy.url).await.status, 200);
    assert_eq!(upstream.all("x-api-key")[4..], train.seen(&[3, 4, 5]));
}

async fn caddy_lets_the_client_go_on_with_the_next_account(world: &World) {
    the_client_goes_on_with_the_next_account(world, Proxy::Caddy).await;
}

async fn envoy_lets_the_client_go_on_with_the_next_account(world: &World) {
    the_client_goes_on_with_the_next_account(world, Proxy::Envoy).await;
}

async fn the_client_goes_on_with_the_next_account(world: &World, proxy: Proxy) {
    let name = "the_client_goes_on_with_the_next_account";
    let Some((server, upstream, proxy)) = proxy.house(name, world).await else {
        return;
    };
    let train = train(&server, 3).await;
    upstream.refuse(&train.keys[0], 429, "retry-after: 100\r\n");
    upstream.refuse(&train.keys[1], 401, "");
    for _ in 0..2 {
        let got = train.post(&proxy.url).await;
        assert_eq!(got.problem()["status"], 503, "{got:?}");
        assert_eq!(got.retry_after.as_deref(), Some("0"), "{got:?}");
    }
    for _ in 0..20 {
        assert_eq!(train.post(&proxy.url).await.status, 200);
    }
    assert_eq!(upstream.all("x-api-key")[..3], train.seen(&[0, 1, 2]));
    assert_eq!(upstream.heads().len(), 22);
    assert_eq!(upstream.last("body-bytes"), [BODY_BYTES.to_string()]);
    upstream.refuse(&train.keys[2], 529, "retry-after: 50\r\n");
    let got = train.post(&proxy.url).await;
    assert_eq!(
        (got.status, &got.problem()["code"]),
        (429, &json!("train_exhausted")),
        "{got:?}"
    );
    let wait: u64 = got.retry_after.unwrap().parse().unwrap();
    assert!((1..=50).contains(&wait), "{wait}");
    for head in upstream.heads() {
        assert!(
            !head.contains(&train.gateway.token().to_lowercase()),
            "{head}"
        );
    }
}

async fn a_fault_of_the_request_rests_no_account(world: &World) {
    for proxy in Proxy::ALL {
        let name = "a_fault_of_the_request_rests_no_account";
        let Some((server, upstream, running)) = proxy.house(name, world).await else {
            return;
        };
        let train = train(&server, 2).await;
        for status in [400, 403, 404, 413, 500, 503] {
            upstream.refuse(&train.keys[0], status, "");
            let got = train.post(&running.url).await;
            assert_eq!(got.status, status, "{proxy:?} {got:?}");
            // The upstream's own words.
            assert!(got.body.contains("\"refused\""), "{proxy:?} {got:?}");
        }
        assert_eq!(lent(&train.gateway, &json!({})).await, train.accounts[0]);
        // A client can't report through the gateway.
        upstream.take_all();
        let url = format!("{}/v1/messages", running.url);
        let failed = format!("{} 429 1000", train.accounts[0]);
        let token = train.gateway.token();
        let headers = [("x-api-key", token), ("x-stationmaster-failed", &failed)];
        assert_eq!(ask(&url, &headers).await.status, 200, "{proxy:?}");
        assert_eq!(upstream.last("x-api-key"), [train.keys[0].clone()]);
        assert_eq!(lent(&train.gateway, &json!({})).await, train.accounts[0]);
    }
}
