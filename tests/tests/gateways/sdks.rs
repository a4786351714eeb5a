//! The SDKs that applications use, each through a gateway to a train with two accounts of which the
//! upstream limits the first: every call succeeds.

use std::{process::Stdio, time::Duration};

use tests::{Publisher, World, on_both_stores, tools};
use tokio::process::Command;

use super::house::{Proxy, Upstream, account};
use crate::verifiers::installed;

on_both_stores!(
    every_call_of_an_sdk_succeeds_behind_nginx,
    every_call_of_an_sdk_succeeds_behind_caddy,
    every_call_of_an_sdk_succeeds_behind_envoy,
);

const CALLS: usize = 20;

/// Calls with an SDK, from a train of its own.
async fn every_call_succeeds(world: &World, proxy: Proxy, sdk: &str, retries: u32) {
    let test = "every_call_of_an_sdk_succeeds";
    if !installed(test) {
        return;
    }
    let provider = if sdk.ends_with("openai") {
        "openai"
    } else {
        "anthropic"
    };
    let (server, upstream) = (world.start().await, Upstream::start().await);
    let change = |text: String| {
        let named = "provider=anthropic";
        assert!(text.contains(named));
        text.replace(named, &format!("provider={provider}"))
    };
    let Some(gateway) = proxy.start(test, &server, &upstream, change).await else {
        return;
    };
    let publisher = Publisher::create(&server.operator(), "acme").await;
    let keys = ["a", "b"].map(|name| format!("sk-upstream-{name}{}", tools::word()));
    let mut accounts = Vec::new();
    for (name, key) in ["limited", "other"].iter().zip(&keys) {
        accounts.push(account(&publisher.admin, provider, name, key).await);
    }
    publisher.train("chat", &[&accounts[0], &accounts[1]]).await;
    let (_, user) = publisher.train_token("chat").await;
    upstream.speak();
    upstream.refuse(&keys[0], 429, "retry-after: 600\r\n");
    let mut command = Command::new(tools::python());
    command
        .arg(tools::root().join("tests/tests/gateways/sdks.py"))
        .args([sdk, &gateway.url, user.token()])
        .args([retries.to_string(), CALLS.to_string()])
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let done = tokio::time::timeout(Duration::from_mins(3), command.output()).await;
    let done = done.expect("the SDK takes too long").unwrap();
    let (said, words) = (
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr),
    );
    assert_eq!(said.trim(), CALLS.to_string(), "{proxy:?} {sdk}: {words}");
    let tried = upstream.heads();
    let by = |key: &str| tried.iter().filter(|head| head.contains(key)).count();
    assert_eq!((by(&keys[0]), by(&keys[1])), (1, CALLS), "{proxy:?} {sdk}");
}

/// Without a try of their own.
async fn every_call_of_an_sdk_succeeds_behind_nginx(world: &World) {
    for sdk in ["anthropic", "openai", "litellm-anthropic"] {
        every_call_succeeds(world, Proxy::Nginx, sdk, 0).await;
    }
}

/// With the two tries more that these SDKs have by default.
async fn every_call_of_an_sdk_succeeds_behind_caddy(world: &World) {
    for sdk in ["anthropic", "openai", "litellm-openai"] {
        every_call_succeeds(world, Proxy::Caddy, sdk, 2).await;
    }
}

async fn every_call_of_an_sdk_succeeds_behind_envoy(world: &World) {
    for sdk in ["anthropic", "openai"] {
        every_call_succeeds(world, Proxy::Envoy, sdk, 2).await;
    }
}
