//! The four kinds of credential: rotation, revocation, expiry.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{User, World, on_both_stores, tools};

on_both_stores!(
    a_rotated_token_is_refused_at_once,
    a_rotation_may_overlap,
    rotating_one_kind_leaves_the_others_alone,
    one_token_can_be_rotated_alone,
    a_token_is_revoked_only_through_its_own_kind,
    the_last_admin_token_stays,
    the_last_secret_of_a_kind_stays,
    a_token_expires,
    secrets_are_shown_once,
    last_use_is_noted,
);

const ME: &str = "/v1/publishers/me";
const TOKENS: &str = "/v1/publishers/me/tokens";

pub async fn mint(user: &User, kind: &str, body: &Value) -> (String, String) {
    let path = format!("{TOKENS}/{kind}");
    let answer = user.post(&path).json(body).expect(201).await;
    let text = answer["token"].as_str().or(answer["secret"].as_str());
    (answer.text("/id"), text.unwrap().to_owned())
}

pub async fn refused(user: &User) {
    user.get(ME).refused(401, "unauthenticated").await;
}

async fn a_rotated_token_is_refused_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let old = &publisher.admin;
    old.get(ME).expect(200).await;
    let (second_id, second) = mint(old, "admin", &json!({"name": "second"})).await;
    let second = server.user(&second);
    second.get(ME).expect(200).await;

    let answer = old
        .post(&format!("{TOKENS}/admin/rotate"))
        .json(&json!({}))
        .expect(200)
        .await;
    let mut replaced: Vec<&str> = answer["replaced"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    replaced.sort_unstable();
    let first_id = publisher.credential("admin");
    let mut expected = [first_id.as_str(), second_id.as_str()];
    expected.sort_unstable();
    assert_eq!(replaced, expected, "{answer}");

    let new = server.user(&answer.text("/token"));
    refused(old).await;
    refused(&second).await;
    new.get(ME).expect(200).await;
    publisher.runner.get(ME).expect(200).await;
}

async fn a_rotation_may_overlap(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let rotate = format!("{TOKENS}/runner/rotate");
    let too_long = json!({"overlap_seconds": 604_801});
    publisher
        .admin
        .post(&rotate)
        .json(&too_long)
        .refused(422, "validation_failed")
        .await;

    let body = json!({"overlap_seconds": 5});
    let answer = publisher.admin.post(&rotate).json(&body).expect(200).await;
    let new = server.user(&answer.text("/token"));
    assert_eq!(
        answer["replaced"][0]["id"],
        publisher.credential("runner"),
        "{answer}"
    );
    assert!(answer["replaced"][0]["valid_until"].is_string(), "{answer}");
    publisher.runner.get(ME).expect(200).await;
    new.get(ME).expect(200).await;

    tools::eventually("the overlap ends", Duration::from_secs(20), async || {
        let answer = publisher.runner.get(ME).answer().await;
        (answer.status == 401).then_some(())
    })
    .await;
    new.get(ME).expect(200).await;
}

async fn rotating_one_kind_leaves_the_others_alone(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let mut admin = publisher.admin.clone();
    let mut runner = publisher.runner.clone();
    for kind in ["runner", "webhook_signing", "subcommand_bearer", "admin"] {
        let answer = admin
            .post(&format!("{TOKENS}/{kind}/rotate"))
            .json(&json!({}))
            .expect(200)
            .await;
        assert_eq!(answer["kind"], kind, "{answer}");
        match kind {
            "runner" => runner = server.user(&answer.text("/token")),
            "admin" => admin = server.user(&answer.text("/token")),
            _ => assert!(answer["secret"].is_string(), "{answer}"),
        }
        admin.get(ME).expect(200).await;
        runner.get(ME).expect(200).await;
        let list = admin.all(TOKENS).await;
        let live = |kind: &str| {
            list.iter()
                .filter(|one| one["kind"] == kind && is_live(one))
                .count()
        };
        for kind in ["admin", "runner", "webhook_signing", "subcommand_bearer"] {
            assert_eq!(live(kind), 1, "{kind}: {list:?}");
        }
    }
}

/// Whether a listed credential may still be used. Ended ones may stay listed for a while.
pub fn is_live(one: &Value) -> bool {
    // The server's clock may be ahead of ours a little; no overlap in the stories is that short.
    let now = tools::in_seconds(1);
    let past = |name: &str| one[name].as_str().is_some_and(|at| *at <= *now);
    !past("expires_at")
        && !past("superseded_at")
        && one.get("revoked_at").is_none_or(Value::is_null)
}

async fn one_token_can_be_rotated_alone(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let body =
        json!({"name": "ci", "pipelines": ["nightly"], "expires_at": tools::in_seconds(600)});
    let (id, text) = mint(&publisher.admin, "runner", &body).await;
    let ci = server.user(&text);
    ci.get(ME).expect(200).await;
    let path = format!("{TOKENS}/runner/{id}/rotate");
    let answer = publisher
        .admin
        .post(&path)
        .json(&json!({}))
        .expect(200)
        .await;
    assert_eq!(answer["name"], "ci", "{answer}");
    assert_eq!(answer["expires_at"], body["expires_at"], "{answer}");
    refused(&ci).await;
    server
        .user(&answer.text("/token"))
        .get(ME)
        .expect(200)
        .await;
    publisher.runner.get(ME).expect(200).await;
    // Through the wrong kind there is no such token.
    let new = answer.text("/id");
    let wrong = format!("{TOKENS}/admin/{new}/rotate");
    publisher
        .admin
        .post(&wrong)
        .json(&json!({}))
        .refused(404, "not_found")
        .await;
}

async fn a_token_is_revoked_only_through_its_own_kind(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    for kind in ["admin", "runner", "webhook_signing", "subcommand_bearer"] {
        let (id, text) = mint(&publisher.admin, kind, &json!({"name": "spare"})).await;
        for wrong in ["admin", "runner", "webhook_signing", "subcommand_bearer"] {
            if wrong != kind {
                let path = format!("{TOKENS}/{wrong}/{id}");
                publisher
                    .admin
                    .delete(&path)
                    .refused(404, "not_found")
                    .await;
            }
        }
        let is_token = matches!(kind, "admin" | "runner");
        if is_token {
            server.user(&text).get(ME).expect(200).await;
        }
        let path = format!("{TOKENS}/{kind}/{id}");
        let answer = publisher.admin.delete(&path).expect(204).await;
        assert!(answer.body.is_empty());
        if is_token {
            refused(&server.user(&text)).await;
        }
        publisher
            .admin
            .delete(&path)
            .refused(404, "not_found")
            .await;
    }
}

async fn the_last_admin_token_stays(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let last = format!("{TOKENS}/admin/{}", publisher.credential("admin"));
    publisher
        .admin
        .delete(&last)
        .refused(409, "last_admin_token")
        .await;
    publisher.admin.get(ME).expect(200).await;
    // A second one that will soon be over can't be what is left.
    let (_, second) = mint(&publisher.admin, "admin", &json!({"name": "second"})).await;
    publisher.admin.delete(&last).expect(204).await;
    refused(&publisher.admin).await;
    server.user(&second).get(ME).expect(200).await;
    // The last runner token may go: the publisher is not locked out by that.
    let runner = format!("{TOKENS}/runner/{}", publisher.credential("runner"));
    server.user(&second).delete(&runner).expect(204).await;
    refused(&publisher.runner).await;
}

async fn the_last_secret_of_a_kind_stays(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    for kind in ["webhook_signing", "subcommand_bearer"] {
        let last = format!("{TOKENS}/{kind}/{}", publisher.credential(kind));
        publisher
            .admin
            .delete(&last)
            .refused(409, "last_secret")
            .await;
        mint(&publisher.admin, kind, &json!({})).await;
        publisher.admin.delete(&last).expect(204).await;
    }
}

async fn a_token_expires(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let past = json!({"expires_at": tools::seconds_ago(5)});
    let path = format!("{TOKENS}/runner");
    publisher
        .admin
        .post(&path)
        .json(&past)
        .refused(422, "validation_failed")
        .await;

    let body = json!({"expires_at": tools::in_seconds(5)});
    let (_, text) = mint(&publisher.admin, "runner", &body).await;
    let brief = server.user(&text);
    brief.get(ME).expect(200).await;
    tools::eventually("it expires", Duration::from_secs(20), async || {
        (brief.get(ME).answer().await.status == 401).then_some(())
    })
    .await;
    // It says no more than to any other stranger.
    let expired = brief.get(ME).header("x-request-id", "same").answer().await;
    let garbage = server.user("stm_runner_garbage").get(ME);
    let garbage = garbage.header("x-request-id", "same").answer().await;
    assert_eq!(tests::fingerprint(&expired), tests::fingerprint(&garbage));
}

async fn secrets_are_shown_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    for kind in ["admin", "runner", "webhook_signing", "subcommand_bearer"] {
        mint(&publisher.admin, kind, &json!({"name": kind})).await;
    }
    // The client itself fails when an answer repeats a credential.
    let list = publisher.admin.all(TOKENS).await;
    assert_eq!(list.len(), 8, "{list:?}");
    for one in &list {
        assert!(
            one.get("token").is_none() && one.get("secret").is_none(),
            "{one}"
        );
        assert_eq!(
            one["last_four"].as_str().unwrap().chars().count(),
            4,
            "{one}"
        );
    }
    let only = publisher.admin.all(&format!("{TOKENS}?kind=runner")).await;
    assert_eq!(only.len(), 2, "{only:?}");
}

async fn last_use_is_noted(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.runner.get(ME).expect(200).await;
    // Written in batches; a stop writes the last one.
    let _again = server.restart(&[]).await;
    let list = publisher.admin.all(&format!("{TOKENS}?kind=runner")).await;
    assert!(list[0]["last_used_at"].is_string(), "{list:?}");
}
