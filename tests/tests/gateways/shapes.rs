//! What clients send in all its shapes, and upstreams whose address changes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tests::{Publisher, World, on_both_stores, tools};
use tokio::{net::UdpSocket, task::JoinHandle};

use super::house::{API_KEY, Gateway, Proxy, Upstream, account, ask, send};

on_both_stores!(
    large_requests_and_credentials_pass,
    the_clients_query_is_no_part_of_the_question,
    whatever_name_a_client_asks_for_it_needs_a_token,
    refusals_keep_their_problems,
    nginx_looks_the_upstream_up_again,
);

const MIB: usize = 1024 * 1024;

async fn one_account(publisher: &Publisher, slug: &str, key: &str) -> String {
    let id = account(&publisher.admin, "anthropic", slug, key).await;
    publisher.train(slug, &[&id]).await;
    publisher.train_token(slug).await.1.token().to_owned()
}

async fn large_requests_and_credentials_pass(world: &World) {
    for proxy in Proxy::ALL {
        let name = "large_requests_and_credentials_pass";
        let Some((server, upstream, gateway)) = proxy.house(name, world).await else {
            return;
        };
        let publisher = server.publisher("acme").await;
        let token = one_account(&publisher, "chat", API_KEY).await;
        let url = format!("{}/v1/messages", gateway.url);
        for bytes in [MIB * 6 / 5, 30 * MIB] {
            let got = send(&url, &[("x-api-key", &token)], vec![b'x'; bytes]).await;
            assert_eq!(got.status, 200, "{proxy:?} {bytes}: {got:?}");
            assert_eq!(upstream.last("body-bytes"), [bytes.to_string()]);
        }
        let part = "m".repeat(6000);
        let more = ["x-a", "x-b", "x-c", "x-d"].map(|name| (name, part.as_str()));
        let headers = [&[("x-api-key", token.as_str())], &more[..]].concat();
        let got = ask(&url, &headers).await;
        assert!(matches!(got.status, 200 | 431), "{proxy:?} {got:?}");
        for bytes in [2000, 8192] {
            let access = format!("ey{}", tools::word().repeat(bytes / 16));
            let access = &access[..bytes];
            let name = format!("o{bytes}");
            let body = json!({
                "name": name, "provider": "anthropic", "credential_type": "oauth",
                "oauth": {
                    "access_token": access, "refresh_token": format!("rt-{}", tools::word()),
                    "expires_at": tools::in_seconds(3600), "client_id": "gateway",
                    "token_url": "https://auth.example.com/token",
                },
            });
            let made = publisher.admin.post("/v1/accounts").json(&body);
            let id = made.expect(201).await.text("/id");
            publisher.train(&name, &[&id]).await;
            let (_, token) = publisher.train_token(&name).await;
            let got = ask(&url, &[("x-api-key", token.token())]).await;
            assert_eq!(got.status, 200, "{proxy:?} {bytes}: {got:?}");
            assert_eq!(upstream.last("authorization"), [format!("bearer {access}")]);
        }
    }
}

async fn the_clients_query_is_no_part_of_the_question(world: &World) {
    for proxy in Proxy::ALL {
        let name = "the_clients_query_is_no_part_of_the_question";
        let Some((server, upstream, gateway)) = proxy.house(name, world).await else {
            return;
        };
        let publisher = server.publisher("acme").await;
        let mut accounts = Vec::new();
        for name in ["a", "b"] {
            let key = format!("sk-upstream-{name}{}", tools::word());
            accounts.push(account(&publisher.admin, "anthropic", name, &key).await);
        }
        let train = json!({"slug": "chat", "sticky": true});
        publisher
            .admin
            .post("/v1/trains")
            .json(&train)
            .expect(201)
            .await;
        let place = |id: &String| json!({"account_id": id, "priority": 0});
        let places: Vec<_> = accounts.iter().map(place).collect();
        let put = publisher.admin.put("/v1/trains/chat/accounts");
        put.json(&json!(places)).expect(200).await;
        let (_, user) = publisher.train_token("chat").await;
        let token = [("x-api-key", user.token())];
        let long = format!("model={}", "m".repeat(300));
        for query in [
            "beta=true",
            "model=",
            "model=a&model=b",
            &long,
            "deny=1",
            "deny=403",
            "provider=openai",
            "base_url=x",
            "x=%zz",
        ] {
            let url = format!("{}/v1/messages?{query}", gateway.url);
            let got = ask(&url, &token).await;
            assert_eq!(got.status, 200, "{proxy:?} {query}: {got:?}");
            let head = upstream.heads().pop().unwrap();
            assert!(
                head.starts_with(&format!("post /v1/messages?{query} ")),
                "{head}"
            );
        }
        let first = upstream.last("x-api-key");
        for client in 0..20 {
            let url = format!("{}/v1/messages?client_key={client}", gateway.url);
            assert_eq!(ask(&url, &token).await.status, 200);
            assert_eq!(
                upstream.last("x-api-key"),
                first,
                "{proxy:?}: the client chose"
            );
        }
        for id in &accounts {
            let report = json!({"account_id": id, "outcome": "rate_limited"});
            user.post("/v1/resolve/report")
                .json(&report)
                .expect(204)
                .await;
        }
        let url = format!("{}/v1/messages?deny=403", gateway.url);
        let got = ask(&url, &token).await;
        assert_eq!(got.status, 429, "{proxy:?} {got:?}");
        assert_eq!(got.problem()["code"], "train_exhausted", "{proxy:?}");
    }
}

async fn whatever_name_a_client_asks_for_it_needs_a_token(world: &World) {
    for proxy in Proxy::ALL {
        let name = "whatever_name_a_client_asks_for_it_needs_a_token";
        let Some((server, upstream, gateway)) = proxy.house(name, world).await else {
            return;
        };
        let publisher = server.publisher("acme").await;
        let token = one_account(&publisher, "chat", API_KEY).await;
        let url = format!("{}/v1/messages", gateway.url);
        for host in ["localhost", "gateway.example:8088", "127.0.0.1"] {
            let got = ask(&url, &[("host", host)]).await;
            assert_eq!(got.problem()["code"], "unauthenticated", "{proxy:?} {host}");
            let got = ask(&url, &[("host", host), ("x-api-key", &token)]).await;
            assert_eq!(
                (got.status, got.body.as_str()),
                (200, "{\"ok\":true}"),
                "{proxy:?} {host}"
            );
            assert_eq!(upstream.last("host"), [upstream.address.as_str()]);
        }
    }
}

/// The code of the problem that a client gets.
async fn code(gateway: &Gateway, status: u16, headers: &[(&str, &str)]) -> String {
    let got = ask(&format!("{}/v1/messages", gateway.url), headers).await;
    assert_eq!(got.status, status, "{got:?}");
    got.problem()["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

async fn refusals_keep_their_problems(world: &World) {
    for proxy in Proxy::ALL {
        let name = "refusals_keep_their_problems";
        let Some((server, upstream, gateway)) = proxy.house(name, world).await else {
            return;
        };
        let publisher = server.publisher("acme").await;
        let token = one_account(&publisher, "chat", API_KEY).await;
        let key = ("x-api-key", token.as_str());
        assert_eq!(
            code(&gateway, 401, &[("x-api-key", "ptk_x")]).await,
            "unauthenticated"
        );
        let admin = publisher.admin.token();
        assert_eq!(
            code(&gateway, 403, &[("x-api-key", admin)]).await,
            "wrong_token_kind"
        );
        let (_, other) = publisher.train_token("chat").await;
        let bearer = format!("Bearer {}", other.token());
        let two = [key, ("authorization", bearer.as_str())];
        assert_eq!(code(&gateway, 400, &two).await, "two_tokens");
        // Another service's token beside the train's stays here.
        for foreign in ["Bearer sk-ant-of-another", "", "Basic YTpi"] {
            let both = [key, ("authorization", foreign)];
            let got = ask(&format!("{}/v1/messages", gateway.url), &both).await;
            assert_eq!(got.status, 200, "{proxy:?} {foreign}: {got:?}");
            assert_eq!(upstream.last("authorization"), Vec::<String>::new());
            assert_eq!(upstream.last("x-api-key"), [API_KEY]);
        }
        let off = json!({"enabled": false});
        publisher
            .admin
            .patch("/v1/trains/chat")
            .json(&off)
            .expect(200)
            .await;
        assert_eq!(code(&gateway, 403, &[key]).await, "train_disabled");
        // Without an answer nothing goes on.
        let passed = upstream.heads().len();
        server.stop().await;
        let got = ask(&format!("{}/v1/messages", gateway.url), &[key]).await;
        assert!(matches!(got.status, 502 | 503), "{proxy:?} {got:?}");
        // Envoy says no more than the status.
        assert!(proxy == Proxy::Envoy || got.problem()["title"].is_string());
        assert_eq!(upstream.heads().len(), passed);
        let log = gateway.log();
        assert!(!log.contains(&token) && !log.contains(API_KEY), "{log}");
    }
}

/// A name server that knows one address for every name, for a second at a time.
struct Names {
    address: SocketAddr,
    says: Arc<Mutex<Ipv4Addr>>,
    task: JoinHandle<()>,
}

impl Drop for Names {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Names {
    async fn start(first: Ipv4Addr) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let says = Arc::new(Mutex::new(first));
        let told = Arc::clone(&says);
        let task = tokio::spawn(async move {
            let mut question = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut question).await {
                let found = *told.lock().unwrap();
                let answer = name_answer(&question[..length], found);
                let _ = socket.send_to(&answer, peer).await;
            }
        });
        Self {
            address,
            says,
            task,
        }
    }
}

/// An answer to a question for addresses (RFC 1035 §4.1); for those of version 6 there are none.
fn name_answer(question: &[u8], found: Ipv4Addr) -> Vec<u8> {
    // The name ends with an empty label; its type and class follow.
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let is_v4 = question[end - 4..end - 2] == [0, 1];
    let counts = [0, 1, 0, u8::from(is_v4), 0, 0, 0, 0];
    let mut answer = [&question[..2], &[0x81, 0x80], &counts, &question[12..end]].concat();
    if is_v4 {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(found.octets());
    }
    answer
}

async fn nginx_looks_the_upstream_up_again(world: &World) {
    let name = "nginx_looks_the_upstream_up_again";
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let token = one_account(&publisher, "chat", API_KEY).await;
    let first = Upstream::start().await;
    let (_, port) = first.address.rsplit_once(':').unwrap();
    let second = Upstream::at(&format!("127.0.0.2:{port}")).await.unwrap();
    let names = Names::start(Ipv4Addr::LOCALHOST).await;
    let change = |text: String| {
        let resolver = "resolver 127.0.0.53;";
        assert!(text.contains(resolver));
        let text = text.replace(resolver, &format!("resolver {};", names.address));
        let by_name = format!("http://upstream.example:{port}");
        text.replace(&format!("http://{}", first.address), &by_name)
    };
    let Some(gateway) = Proxy::Nginx.start(name, &server, &first, change).await else {
        return;
    };
    let url = format!("{}/v1/messages", gateway.url);
    let got = ask(&url, &[("x-api-key", &token)]).await;
    assert_eq!(got.status, 200, "{got:?} {}", gateway.log());
    assert_eq!(first.last("host"), [format!("upstream.example:{port}")]);
    *names.says.lock().unwrap() = Ipv4Addr::new(127, 0, 0, 2);
    let limit = Duration::from_secs(30);
    tools::eventually("the new address is used", limit, async || {
        assert_eq!(ask(&url, &[("x-api-key", &token)]).await.status, 200);
        (!second.heads().is_empty()).then_some(())
    })
    .await;
}
