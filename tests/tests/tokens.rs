//! The four kinds of credential: who may what, rotation, revocation, expiry.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{User, World, on_both_stores, on_sqlite, tools};

on_both_stores!(
    each_kind_opens_its_own_routes,
    a_rotated_token_is_refused_at_once,
    a_rotation_may_overlap,
    rotating_one_kind_leaves_the_others_alone,
    one_token_can_be_rotated_alone,
    a_token_is_revoked_only_through_its_own_kind,
    the_last_admin_token_stays,
    the_last_secret_of_a_kind_stays,
    a_token_expires,
    a_token_may_be_limited_to_pipelines,
    a_suspended_publisher_is_refused_until_it_resumes,
    a_deleted_publisher_can_come_back,
    the_operator_replaces_a_lost_admin_token,
    a_token_in_the_query_string_counts_for_nothing,
    secrets_are_shown_once,
    failed_attempts_are_limited,
    last_use_is_noted,
    a_legacy_token_has_both_rights_and_loses_them_one_by_one,
);
on_sqlite!(two_bootstrap_tokens_overlap);

const ME: &str = "/v1/publishers/me";
const TOKENS: &str = "/v1/publishers/me/tokens";

pub async fn mint(user: &User, kind: &str, body: &Value) -> (String, String) {
    let path = format!("{TOKENS}/{kind}");
    let answer = user.post(&path).json(body).expect(201).await;
    let text = answer["token"].as_str().or(answer["secret"].as_str());
    (answer.text("/id"), text.unwrap().to_owned())
}

async fn refused(user: &User) {
    user.get(ME).refused(401, "unauthenticated").await;
}

async fn each_kind_opens_its_own_routes(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let operator = server.operator();

    // Nobody, and a secret that is no token, get in nowhere.
    let bearer = publisher.secret("subcommand_bearer");
    for user in [
        &server.anon(),
        &server.user(&bearer),
        &server.user("stm_admin_x"),
    ] {
        for path in [ME, TOKENS, "/v1/runs", "/v1/publishers"] {
            let answer = user.get(path).refused(401, "unauthenticated").await;
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
    }
    // The operator's token is for the operator's routes alone, and nobody else's is.
    for path in [ME, TOKENS, "/v1/runs", "/v1/pipelines"] {
        operator.get(path).refused(403, "wrong_token_kind").await;
    }
    for user in [&publisher.admin, &publisher.runner] {
        user.get("/v1/publishers")
            .refused(403, "wrong_token_kind")
            .await;
        let body = json!({"slug": "mine", "display_name": "Mine"});
        user.post("/v1/publishers")
            .json(&body)
            .refused(403, "wrong_token_kind")
            .await;
        user.get("/v1/audit").refused(403, "wrong_token_kind").await;
    }
    // A runner has no admin right, an admin does not do a runner's work.
    for path in [
        TOKENS,
        "/v1/publishers/me/audit",
        "/v1/webhook-endpoints",
        "/v1/deliveries",
    ] {
        publisher.admin.get(path).expect(200).await;
        let answer = publisher
            .runner
            .get(path)
            .refused(403, "wrong_token_kind")
            .await;
        assert!(answer.text("/detail").contains("admin"), "{answer}");
    }
    let claim = publisher.admin.post("/v1/runs/claim").json(&json!({}));
    let answer = claim.refused(403, "wrong_token_kind").await;
    assert!(answer.text("/detail").contains("runner"), "{answer}");
    for user in [&publisher.admin, &publisher.runner] {
        for path in [
            ME,
            "/v1/pipelines",
            "/v1/pipelines/nightly",
            "/v1/runs",
            "/v1/events",
        ] {
            user.get(path).expect(200).await;
        }
    }
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

    let body = json!({"overlap_seconds": 2});
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

    tools::eventually("the overlap ends", Duration::from_secs(6), async || {
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
fn is_live(one: &Value) -> bool {
    let past = |name: &str| {
        one[name]
            .as_str()
            .is_some_and(|at| *at <= *tools::in_seconds(0))
    };
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

    let body = json!({"expires_at": tools::in_seconds(2)});
    let (_, text) = mint(&publisher.admin, "runner", &body).await;
    let brief = server.user(&text);
    brief.get(ME).expect(200).await;
    tools::eventually("it expires", Duration::from_secs(5), async || {
        (brief.get(ME).answer().await.status == 401).then_some(())
    })
    .await;
    // It says no more than to any other stranger.
    let expired = brief.get(ME).header("x-request-id", "same").answer().await;
    let garbage = server.user("stm_runner_garbage").get(ME);
    let garbage = garbage.header("x-request-id", "same").answer().await;
    assert_eq!(tests::fingerprint(&expired), tests::fingerprint(&garbage));
}

async fn a_token_may_be_limited_to_pipelines(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("open").await;
    publisher.pipeline("closed").await;
    let (_, text) = mint(&publisher.admin, "runner", &json!({"pipelines": ["open"]})).await;
    let limited = server.user(&text);
    let hidden = publisher.run("closed").await;
    let body = json!({"input": {}});

    limited
        .post("/v1/pipelines/open/runs")
        .json(&body)
        .expect(201)
        .await;
    limited
        .post("/v1/pipelines/closed/runs")
        .json(&body)
        .refused(404, "not_found")
        .await;
    limited
        .get("/v1/pipelines/closed")
        .refused(404, "not_found")
        .await;
    limited
        .get(&format!("/v1/runs/{hidden}"))
        .refused(404, "not_found")
        .await;
    limited
        .post(&format!("/v1/runs/{hidden}/cancel"))
        .refused(404, "not_found")
        .await;
    let seen = limited.all("/v1/pipelines").await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let seen = limited.all("/v1/runs").await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    let claimed = limited
        .post("/v1/runs/claim")
        .json(&json!({"max": 10}))
        .expect(200)
        .await;
    let items = claimed["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{claimed}");
    assert_eq!(items[0]["pipeline"], "open", "{claimed}");
    for event in limited.all("/v1/events").await {
        assert_ne!(event["data"]["run"]["pipeline"], "closed", "{event}");
    }
}

async fn a_suspended_publisher_is_refused_until_it_resumes(world: &World) {
    let server = world.start().await;
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let operator = server.operator();
    publisher.admin.get(ME).expect(200).await;
    let suspend = format!("/v1/publishers/{}/suspend", publisher.id);
    let answer = operator.post(&suspend).expect(200).await;
    assert_eq!(answer["status"], "suspended", "{answer}");
    for user in [&publisher.admin, &publisher.runner] {
        user.get(ME).refused(403, "publisher_suspended").await;
    }
    other.admin.get(ME).expect(200).await;
    let resume = format!("/v1/publishers/{}/resume", publisher.id);
    operator.post(&resume).json(&json!({})).expect(200).await;
    publisher.admin.get(ME).expect(200).await;
    let actions = publisher.actions().await;
    for action in [
        "publisher.created",
        "publisher.suspended",
        "publisher.resumed",
    ] {
        assert!(
            actions.iter().any(|known| known == action),
            "{action}: {actions:?}"
        );
    }
}

async fn a_deleted_publisher_can_come_back(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let operator = server.operator();
    let path = format!("/v1/publishers/{}", publisher.id);
    operator.delete(&path).answer().await;
    publisher.admin.get(ME).expect(200).await;
    operator
        .delete(&format!("{path}?confirm=other"))
        .answer()
        .await;
    publisher.admin.get(ME).expect(200).await;
    operator
        .delete(&format!("{path}?confirm=acme"))
        .expect(204)
        .await;
    let refusal = publisher.admin.get(ME).answer().await;
    assert!(matches!(refusal.status, 401 | 403), "{refusal}");
    // Its slug is free at once.
    let successor = server.publisher("acme").await;
    assert_ne!(successor.id, publisher.id);
    let resume = format!("/v1/publishers/{}/resume", publisher.id);
    operator
        .post(&resume)
        .json(&json!({}))
        .refused(409, "slug_taken")
        .await;
    operator
        .post(&resume)
        .json(&json!({"slug": "acme-2"}))
        .expect(200)
        .await;
    let me = publisher.admin.get(ME).expect(200).await;
    assert_eq!(me["slug"], "acme-2", "{me}");
    successor.admin.get(ME).expect(200).await;
}

async fn the_operator_replaces_a_lost_admin_token(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let path = format!("/v1/publishers/{}/tokens/admin", publisher.id);
    let answer = server
        .operator()
        .post(&path)
        .json(&json!({"name": "found"}))
        .expect(201)
        .await;
    let found = server.user(&answer.text("/token"));
    found.get(ME).expect(200).await;
    publisher.admin.get(ME).expect(200).await;
    let actions = publisher.actions().await;
    assert!(
        actions.iter().any(|action| action == "token.minted"),
        "{actions:?}"
    );
}

async fn a_token_in_the_query_string_counts_for_nothing(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let token = publisher.admin.token();
    let anon = server.anon();
    for name in [
        "token",
        "access_token",
        "authorization",
        "bearer",
        "api_key",
    ] {
        let answer = anon.get(&format!("{ME}?{name}={token}")).answer().await;
        assert!(matches!(answer.status, 400 | 401), "{answer}");
    }
    for scheme in ["Basic", "Token", "bearer2", ""] {
        let header = format!("{scheme} {token}");
        let call = anon.get(ME).authorization(Some(header.trim()));
        call.refused(401, "unauthenticated").await;
    }
    // RFC 9110 §11.1: the scheme's case does not matter.
    let header = format!("bearer {token}");
    anon.get(ME).authorization(Some(&header)).expect(200).await;
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

async fn failed_attempts_are_limited(world: &World) {
    let env = [
        ("STATIONMASTER_AUTH_FAILURES_PER_MINUTE", "5"),
        ("STATIONMASTER_BOOTSTRAP_RATE_PER_MINUTE", "60"),
        ("STATIONMASTER_RATE_LIMIT_PER_SECOND", "1000"),
    ];
    let server = world.start_with(&env).await;
    let publisher = server.publisher("acme").await;
    let me = publisher.admin.get(ME).expect(200).await;
    assert_ne!(me.header("ratelimit"), "", "{:?}", me.headers);
    let stranger = server.user("stm_admin_nobody");
    let mut statuses = Vec::new();
    for _ in 0..8 {
        statuses.push(stranger.get(ME).answer().await.status);
    }
    assert_eq!(statuses[..5], [401; 5], "{statuses:?}");
    assert_eq!(statuses[5..], [429; 3], "{statuses:?}");
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

async fn a_legacy_token_has_both_rights_and_loses_them_one_by_one(world: &World) {
    let legacy = "the-token-that-everybody-shared-until-now";
    let env = [("STATIONMASTER_LEGACY_TOKEN", legacy)];
    let server = world.start_with(&env).await;
    server.site().remember(legacy);
    let shared = server.user(legacy);
    shared.get(ME).expect(200).await;
    shared.get(TOKENS).expect(200).await;
    shared
        .post("/v1/runs/claim")
        .json(&json!({}))
        .expect(200)
        .await;
    let list = shared.all(TOKENS).await;
    let row = list
        .iter()
        .find(|one| one["source"] == "seed" && one["kind"] == "admin")
        .unwrap();
    assert_eq!(row["kinds"], json!(["admin", "runner"]), "{row}");

    // Rotating the runner kind takes only that right.
    let rotate = format!("{TOKENS}/runner/rotate");
    let answer = shared.post(&rotate).json(&json!({})).expect(200).await;
    let runner = server.user(&answer.text("/token"));
    runner
        .post("/v1/runs/claim")
        .json(&json!({}))
        .expect(200)
        .await;
    shared.get(TOKENS).expect(200).await;
    shared
        .post("/v1/runs/claim")
        .json(&json!({}))
        .refused(403, "wrong_token_kind")
        .await;

    // Neither does booting with the same value bring it back, nor does it change anything.
    let again = server.restart(&env).await;
    shared.get(TOKENS).expect(200).await;
    shared
        .post("/v1/runs/claim")
        .json(&json!({}))
        .refused(403, "wrong_token_kind")
        .await;
    let rotate = format!("{TOKENS}/admin/rotate");
    let admin = again.user(
        &shared
            .post(&rotate)
            .json(&json!({}))
            .expect(200)
            .await
            .text("/token"),
    );
    refused(&shared).await;
    let _third = again.restart(&env).await;
    refused(&shared).await;
    admin.get(TOKENS).expect(200).await;
}

async fn two_bootstrap_tokens_overlap(world: &World) {
    let (old, new) = (
        "the-old-bootstrap-token-of-40-characters",
        "the-new-bootstrap-token-of-40-characters",
    );
    let site = world.site().await;
    let both = format!("{new},{old}");
    site.remember(old);
    site.remember(new);
    let server = site.start(&[]).await;
    let made = server.operator();
    made.get("/v1/publishers").expect(200).await;
    let server = server
        .restart(&[("STATIONMASTER_BOOTSTRAP_TOKEN", &both)])
        .await;
    for token in [old, new] {
        server.user(token).get("/v1/publishers").expect(200).await;
    }
    let server = server
        .restart(&[("STATIONMASTER_BOOTSTRAP_TOKEN", new)])
        .await;
    server
        .user(old)
        .get("/v1/publishers")
        .refused(401, "unauthenticated")
        .await;
    made.get("/v1/publishers")
        .refused(401, "unauthenticated")
        .await;
    server.user(new).get("/v1/publishers").expect(200).await;
}
