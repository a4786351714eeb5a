//! Who may what: kinds of token, limits to pipelines, and what counts as a token at all.

use serde_json::json;
use tests::{World, on_both_stores, on_sqlite};

use crate::tokens::{mint, refused};

on_both_stores!(
    each_kind_opens_its_own_routes,
    a_token_may_be_limited_to_pipelines,
    a_token_in_the_query_string_counts_for_nothing,
    failed_attempts_are_limited,
    a_legacy_token_has_both_rights_and_loses_them_one_by_one,
);
on_sqlite!(two_bootstrap_tokens_overlap);

const ME: &str = "/v1/publishers/me";
const TOKENS: &str = "/v1/publishers/me/tokens";

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
