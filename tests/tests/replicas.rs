//! Several processes on one database: what one does holds for the others.

use std::time::Duration;

use serde_json::json;
use tests::{Proxy, Publisher, Server, User, World, on_postgres, tools};
use tokio::time::Instant;

use crate::{
    audit::verified,
    quotas::{self, allow, twelve_at_once},
    rotations::{one_is_live, rotate_at_once},
    tokens::mint,
};

on_postgres!(
    a_token_taken_away_by_one_is_refused_by_the_other,
    a_process_that_hears_nothing_trusts_nothing,
    rotations_through_two_leave_one_live,
    quotas_hold_across_two,
    an_idempotency_key_holds_across_two,
    a_trains_token_taken_away_by_one_is_refused_by_the_other,
    what_a_train_lends_changes_for_the_other,
    a_cooldown_that_an_admin_ends_is_over_for_the_other,
);

const ME: &str = "/v1/publishers/me";
const TOKENS: &str = "/v1/publishers/me/tokens";
/// How long a process may still take a token that another has taken away.
const SECOND: Duration = Duration::from_secs(1);

async fn two(world: &World) -> (Server, Server) {
    let site = world.site().await;
    let one = site.start(&[]).await;
    let two = site.start_beside(&[]).await;
    (one, two)
}

/// The other process has the token in its cache.
async fn known(user: &User) {
    for _ in 0..10 {
        user.get(ME).expect(200).await;
    }
}

/// Asks without a pause; what is asked a second from now or later must be refused, and so must
/// everything after the first refusal.
async fn refused_within_a_second(user: &User, status: u16) {
    let since = Instant::now();
    loop {
        let begun = since.elapsed();
        let answer = user.get(ME).answer().await;
        if answer.status == status {
            break;
        }
        assert_eq!(answer.status, 200, "{answer}");
        assert!(begun < SECOND, "still taken after {begun:?}");
    }
    while since.elapsed() < 2 * SECOND {
        user.get(ME).expect(status).await;
    }
}

async fn a_token_taken_away_by_one_is_refused_by_the_other(world: &World) {
    let (one, two) = two(world).await;
    let publisher = one.publisher("acme").await;
    let there = |text: &str| two.user(text);

    let (id, text) = mint(&publisher.admin, "runner", &json!({"name": "ci"})).await;
    known(&there(&text)).await;
    let path = format!("{TOKENS}/runner/{id}");
    publisher.admin.delete(&path).expect(204).await;
    refused_within_a_second(&there(&text), 401).await;

    let runner = there(publisher.runner.token());
    known(&runner).await;
    let path = format!("{TOKENS}/runner/rotate");
    let rotate = publisher.admin.post(&path).json(&json!({}));
    let new = rotate.expect(200).await.text("/token");
    refused_within_a_second(&runner, 401).await;
    known(&there(&new)).await;

    let operator = one.operator();
    let path = format!("/v1/publishers/{}", publisher.id);
    operator.post(&format!("{path}/suspend")).expect(200).await;
    refused_within_a_second(&there(&new), 403).await;
    let resume = operator.post(&format!("{path}/resume")).json(&json!({}));
    resume.expect(200).await;
    // That something is allowed again need not be known at once.
    tools::eventually("the other has heard of it", 20 * SECOND, async || {
        (there(&new).get(ME).answer().await.status == 200).then_some(())
    })
    .await;
    known(&there(&new)).await;
    let delete = format!("{path}?confirm=acme");
    operator.delete(&delete).expect(204).await;
    refused_within_a_second(&there(&new), 401).await;
}

async fn a_process_that_hears_nothing_trusts_nothing(world: &World) {
    let site = world.site().await;
    site.tolerate("store");
    let one = site.start(&[]).await;
    let real = site.database.as_ref().unwrap().url.clone();
    let mut wire = Proxy::to(&real).await;
    let deaf = [("STATIONMASTER_DATABASE_URL", wire.url(&real))];
    let deaf = deaf.each_ref().map(|(name, url)| (*name, url.as_str()));
    let two = site.start_beside(&deaf).await;
    let publisher = one.publisher("acme").await;
    let (id, text) = mint(&publisher.admin, "runner", &json!({"name": "ci"})).await;
    let there = two.user(&text);
    known(&there).await;
    wire.cut().await;
    let path = format!("{TOKENS}/runner/{id}");
    publisher.admin.delete(&path).expect(204).await;
    // Whether the token is good can't be known there, which is not the same as that it is bad.
    refused_within_a_second(&there, 503).await;
    wire.mend().await;
    let limit = Duration::from_secs(30);
    tools::eventually("it hears again", limit, async || {
        let answer = there.get(ME).answer().await;
        assert_ne!(answer.status, 200, "{answer}");
        (answer.status == 401).then_some(())
    })
    .await;
    known(&two.user(publisher.admin.token())).await;
    // While the wire is there: it goes with the story, and a stop would wait for the database.
    assert!(two.stop().await.success());
}

async fn rotations_through_two_leave_one_live(world: &World) {
    let (one, two) = two(world).await;
    for kind in ["admin", "runner", "webhook_signing", "subcommand_bearer"] {
        let publisher = one.publisher(&format!("p-{}", tools::word())).await;
        known(&two.user(publisher.admin.token())).await;
        let tokens = [publisher.admin.token(); 6];
        let answers = rotate_at_once(&[&one, &two], kind, &tokens).await;
        // Each process hears of the other's rotations within a second.
        tokio::time::sleep(SECOND).await;
        for server in [&one, &two] {
            let here = Publisher {
                admin: server.user(publisher.admin.token()),
                ..publisher.clone()
            };
            one_is_live(server, &here, kind, &answers).await;
        }
    }
}

async fn quotas_hold_across_two(world: &World) {
    let (one, two) = two(world).await;
    for limited in quotas::ALL {
        let publisher = one.publisher(&format!("p-{}", tools::word())).await;
        limited.prepare(&publisher.admin).await;
        allow(&one.operator(), &publisher, &json!({limited.quota: 4})).await;
        let users = [publisher.admin.clone(), two.user(publisher.admin.token())];
        let made = twelve_at_once(&users, limited).await;
        assert_eq!(made + limited.at_first, 4, "{}", limited.list);
        let list = users[1].all(limited.list).await;
        assert_eq!(list.len(), 4, "{}", limited.list);
        verified(&publisher, true).await;
    }
}

async fn an_idempotency_key_holds_across_two(world: &World) {
    let (one, two) = two(world).await;
    let publisher = one.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let users = [publisher.runner.clone(), two.user(publisher.runner.token())];
    for round in 0..5 {
        let asked: Vec<_> = (0..6)
            .map(|at| {
                let call = users[at % 2].post("/v1/pipelines/nightly/runs");
                let call = call.json(&json!({"input": {"round": round}}));
                tokio::spawn(call.key(&format!("round-{round}")).expect(201))
            })
            .collect();
        let mut ids = Vec::new();
        for answer in asked {
            ids.push(answer.await.unwrap().text("/id"));
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "one run, however often it is asked for");
    }
    assert_eq!(publisher.admin.all("/v1/runs").await.len(), 5);
}

/// Resolves without a pause; a second from now or later the answer must be the new one.
async fn resolves_otherwise_within_a_second(gateway: &User, old: &str, new: &str) {
    let since = Instant::now();
    loop {
        let begun = since.elapsed();
        let lent = crate::resolving::lent(gateway, &json!({})).await;
        if lent == new {
            break;
        }
        assert_eq!(lent, old);
        assert!(begun < SECOND, "still lent after {begun:?}");
    }
    while since.elapsed() < 2 * SECOND {
        assert_eq!(crate::resolving::lent(gateway, &json!({})).await, new);
    }
}

async fn a_trains_token_taken_away_by_one_is_refused_by_the_other(world: &World) {
    let (one, two) = two(world).await;
    let publisher = one.publisher("acme").await;
    let (accounts, _) = crate::resolving::house(&publisher, &["one"]).await;
    let (id, gateway) = publisher.train_token("chat").await;
    let there = two.user(gateway.token());
    for _ in 0..10 {
        let lent = crate::resolving::lent(&there, &json!({})).await;
        assert_eq!(lent, accounts[0]);
    }
    let path = format!("/v1/trains/chat/tokens/{id}");
    publisher.admin.delete(&path).expect(204).await;
    let since = Instant::now();
    loop {
        let begun = since.elapsed();
        let answer = crate::resolving::resolve(&there, &json!({})).await;
        if answer.status == 401 {
            break;
        }
        assert_eq!(answer.status, 200, "{answer}");
        assert!(begun < SECOND, "still taken after {begun:?}");
    }
    while since.elapsed() < 2 * SECOND {
        there.post("/v1/resolve").expect(401).await;
    }
}

async fn what_a_train_lends_changes_for_the_other(world: &World) {
    let (one, two) = two(world).await;
    let publisher = one.publisher("acme").await;
    let (accounts, gateway) = crate::resolving::house(&publisher, &["one", "two"]).await;
    let (first, second) = (accounts[0].as_str(), accounts[1].as_str());
    let there = two.user(gateway.token());
    resolves_otherwise_within_a_second(&there, first, first).await;
    // A change of configuration.
    let path = format!("/v1/accounts/{first}");
    let call = publisher.admin.patch(&path);
    call.json(&json!({"enabled": false})).expect(200).await;
    resolves_otherwise_within_a_second(&there, first, second).await;
    let call = publisher.admin.patch(&path);
    call.json(&json!({"enabled": true})).expect(200).await;
    resolves_otherwise_within_a_second(&there, second, first).await;
    // A report, and that it is over.
    crate::resolving::report(&gateway, first, "unauthorized", json!({})).await;
    resolves_otherwise_within_a_second(&there, first, second).await;
    crate::resolving::report(&gateway, first, "ok", json!({})).await;
    resolves_otherwise_within_a_second(&there, second, first).await;
}

async fn a_cooldown_that_an_admin_ends_is_over_for_the_other(world: &World) {
    let (one, two) = two(world).await;
    let publisher = one.publisher("acme").await;
    let (accounts, gateway) = crate::resolving::house(&publisher, &["one", "two"]).await;
    let (first, second) = (accounts[0].as_str(), accounts[1].as_str());
    let there = two.user(gateway.token());
    let admins = [publisher.admin.clone(), two.user(publisher.admin.token())];
    resolves_otherwise_within_a_second(&there, first, first).await;
    // Whoever ends it may be who heard the report, or not.
    for admin in &admins {
        let more = json!({"retry_after": 3600});
        crate::resolving::report(&gateway, first, "rate_limited", more).await;
        resolves_otherwise_within_a_second(&there, first, second).await;
        let path = format!("/v1/accounts/{first}");
        let shown = two.user(publisher.admin.token()).get(&path);
        let shown = shown.expect(200).await;
        assert_eq!(shown["cooldown"]["reason"], "rate_limited", "{shown}");
        let end = admin.post(&format!("{path}/end-cooldown"));
        end.expect(200).await;
        for user in [&there, &gateway] {
            resolves_otherwise_within_a_second(user, second, first).await;
        }
    }
}
