//! AI gateways: real proxies, with the configurations that docs/gateways ships, between clients
//! that hold a train token and an upstream that is to see an account's credential and nothing else.

mod failover;
mod house;
mod sdks;
mod shapes;

use std::{process::Stdio, time::Duration};

use serde_json::json;
use tests::{Publisher, Server, User, World, keeping_client, on_both_stores, skip, tools};
use tokio::process::Command;

use house::{API_KEY, Gateway, OTHER_KEY, Proxy, Upstream, account, ask, program};

on_both_stores!(
    nginx_lends_a_credential_and_never_shows_it,
    caddy_lends_a_credential_and_never_shows_it,
    envoy_lends_a_credential_and_never_shows_it,
    the_page_leads_from_an_api_key_to_a_gateway,
);

/// A train with one account that sends `x-api-key`; its token's text and identifier.
struct Line {
    admin: User,
    account: String,
    token: String,
    token_id: String,
}

async fn line(server: &Server) -> Line {
    let publisher = Publisher::create(&server.operator(), "acme").await;
    let admin = publisher.admin;
    let account = account(&admin, "anthropic", "one", API_KEY).await;
    let train = json!({"slug": "chat"});
    admin.post("/v1/trains").json(&train).expect(201).await;
    let mapping = json!([{"account_id": account, "priority": 0}]);
    let call = admin.put("/v1/trains/chat/accounts").json(&mapping);
    call.expect(200).await;
    let call = admin
        .post("/v1/trains/chat/tokens")
        .json(&json!({"name": "laptop"}));
    let token = call.expect(201).await;
    Line {
        admin,
        account,
        token: token.text("/token"),
        token_id: token.text("/id"),
    }
}

/// Events reach the client one by one, as the upstream sends them.
async fn streams(gateway: &Gateway, upstream: &Upstream, bearer: &str) {
    let url = format!("{}/stream", gateway.url);
    let request = keeping_client().get(url).header("authorization", bearer);
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let first = answer.chunk().await.unwrap().unwrap();
    assert_eq!(first, "data: one\n\n");
    upstream.go_on();
    let second = answer.chunk().await.unwrap().unwrap();
    assert_eq!(second, "data: two\n\n");
}

/// The train's only account is replaced by one with another header, and by another vendor's.
async fn credentials_keep_to_their_header_and_upstream(
    admin: &User,
    account: &str,
    upstream: &Upstream,
    url: &str,
    token: &str,
) {
    // A credential in the other header leaves nothing in the first one's.
    let replace = async |from: &str, to: &serde_json::Value| {
        let call = admin.post(&format!("/v1/accounts/{from}/replace"));
        call.json(to).expect(201).await.text("/id")
    };
    let mut other = json!({
        "name": "one", "provider": "anthropic", "header": {"name": "authorization", "scheme": "Bearer"},
        "credential_type": "api_key", "api_key": OTHER_KEY,
    });
    let account = replace(account, &other).await;
    assert_eq!(ask(url, &[("x-api-key", token)]).await.status, 200);
    assert_eq!(upstream.last("x-api-key"), Vec::<String>::new());
    let lent = format!("bearer {OTHER_KEY}");
    assert_eq!(upstream.last("authorization"), [lent.as_str()]);

    // Another vendor's key does not go to this upstream.
    let passed = upstream.heads().len();
    other["provider"] = json!("openai");
    let account = replace(&account, &other).await;
    let got = ask(url, &[("x-api-key", token)]).await;
    assert_eq!(got.status, 403, "{got:?}");
    assert_eq!(got.problem()["code"], "no_account_of_upstream", "{got:?}");
    assert_eq!(upstream.heads().len(), passed, "a credential went astray");
    other["provider"] = json!("anthropic");
    replace(&account, &other).await;
    assert_eq!(ask(url, &[("x-api-key", token)]).await.status, 200);
}

async fn story(server: &Server, upstream: &Upstream, gateway: &Gateway) {
    let Line {
        admin,
        account,
        token,
        token_id,
    } = line(server).await;
    let url = format!("{}/v1/messages", gateway.url);
    let bearer = format!("Bearer {token}");

    let got = ask(&url, &[("authorization", &bearer)]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "{\"ok\":true}"));
    assert_eq!(upstream.last("x-api-key"), [API_KEY]);
    assert_eq!(upstream.last("authorization"), Vec::<String>::new());
    // The form in which Anthropic's own clients send it.
    assert_eq!(ask(&url, &[("x-api-key", &token)]).await.status, 200);
    assert_eq!(upstream.last("x-api-key"), [API_KEY]);
    streams(gateway, upstream, &bearer).await;
    for head in upstream.heads() {
        assert!(!head.contains(&token.to_lowercase()), "the token went on");
    }

    let passed = upstream.heads().len();
    assert_eq!(ask(&url, &[]).await.status, 401);
    assert_eq!(
        ask(&url, &[("authorization", "Bearer ptk_x")]).await.status,
        401
    );
    // No account is left: the client is told when to come again.
    let report = json!({"account_id": account, "outcome": "rate_limited", "retry_after": 120});
    let client = admin.with_token(&token);
    client
        .post("/v1/resolve/report")
        .json(&report)
        .expect(204)
        .await;
    let got = ask(&url, &[("authorization", &bearer)]).await;
    assert_eq!(got.status, 429, "{got:?}");
    assert_eq!(got.problem()["code"], "train_exhausted", "{got:?}");
    let seconds: u64 = got.retry_after.unwrap().parse().unwrap();
    assert!((1..=120).contains(&seconds), "{seconds}");
    let report = json!({"account_id": account, "outcome": "ok"});
    client
        .post("/v1/resolve/report")
        .json(&report)
        .expect(204)
        .await;
    assert_eq!(upstream.heads().len(), passed, "a refused request went on");
    assert_eq!(ask(&url, &[("authorization", &bearer)]).await.status, 200);

    credentials_keep_to_their_header_and_upstream(&admin, &account, upstream, &url, &token).await;

    let passed = upstream.heads().len();
    let path = format!("/v1/trains/chat/tokens/{token_id}");
    admin.delete(&path).expect(204).await;
    assert_eq!(ask(&url, &[("authorization", &bearer)]).await.status, 401);
    assert_eq!(
        upstream.heads().len(),
        passed,
        "a revoked token got through"
    );
}

async fn nginx_lends_a_credential_and_never_shows_it(world: &World) {
    let house = Proxy::Nginx.house("nginx_lends_a_credential", world).await;
    if let Some((server, upstream, gateway)) = house {
        story(&server, &upstream, &gateway).await;
    }
}

async fn caddy_lends_a_credential_and_never_shows_it(world: &World) {
    let house = Proxy::Caddy.house("caddy_lends_a_credential", world).await;
    if let Some((server, upstream, gateway)) = house {
        story(&server, &upstream, &gateway).await;
    }
}

async fn envoy_lends_a_credential_and_never_shows_it(world: &World) {
    let house = Proxy::Envoy.house("envoy_lends_a_credential", world).await;
    if let Some((server, upstream, gateway)) = house {
        story(&server, &upstream, &gateway).await;
    }
}

/// The shell of docs/trains.md, from its first heading to the next, as one script.
fn page() -> String {
    let text = std::fs::read_to_string(tools::root().join("docs/trains.md")).unwrap();
    let (_, section) = text
        .split_once("## From an API key to a gateway\n")
        .unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let blocks = section.split("```sh\n").skip(1);
    let script: String = blocks
        .map(|block| block.split_once("```\n").unwrap().0)
        .collect();
    assert!(script.lines().count() > 20, "{script}");
    script
}

async fn the_page_leads_from_an_api_key_to_a_gateway(world: &World) {
    let program = match program("STATIONMASTER_TEST_NGINX") {
        Ok(program) => program,
        Err(reason) => return skip("the_page_leads_from_an_api_key", &reason),
    };
    let (server, upstream) = (world.start().await, Upstream::start().await);
    let publisher = server.publisher("acme").await;
    let listen = tools::lasting_address();
    let here = server.url().trim_start_matches("http://").to_owned();
    // Where the page is read: a place with docs/gateways below it, and nginx on the path.
    let home = server.site().home().join("reader");
    std::fs::create_dir_all(home.join("docs/gateways")).unwrap();
    std::fs::create_dir_all(home.join("bin")).unwrap();
    std::os::unix::fs::symlink(program, home.join("bin/nginx")).unwrap();
    let config = Proxy::Nginx.config(&server, &upstream, &listen);
    std::fs::write(home.join("docs/gateways/nginx.conf"), config).unwrap();
    let script = page()
        .replace("127.0.0.1:8080", &here)
        .replace("127.0.0.1:8088", &listen);
    let path = std::env::var("PATH").unwrap();
    let mut command = Command::new("bash");
    command
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(&home)
        .env("PATH", format!("{}:{path}", home.join("bin").display()))
        .env("ADMIN", publisher.admin.token())
        .env("ANTHROPIC_API_KEY", API_KEY)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let limit = Duration::from_mins(1);
    let done = tokio::time::timeout(limit, command.output()).await;
    let done = done.expect("the page takes too long").unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert!(done.status.success(), "{out}\n{err}");
    assert!(out.ends_with("{\"ok\":true}401\n"), "{out}\n{err}");
    assert!(!format!("{out}{err}").contains(API_KEY), "{out}\n{err}");
    assert_eq!(upstream.last("x-api-key"), [API_KEY]);
    assert_eq!(upstream.heads().len(), 1);
}
