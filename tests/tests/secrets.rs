//! Credentials are shown once and written nowhere.
//!
//! Every test of this program ends with the same search through logs and database, and its client
//! refuses every answer that repeats a credential. The story here mints all that there is to mint,
//! lets things go wrong too, and looks in the remaining places.

use serde_json::json;
use tests::{Consumer, Reply, World, on_both_stores, tools};

on_both_stores!(a_busy_day_leaves_no_secret_behind);

async fn a_busy_day_leaves_no_secret_behind(world: &World) {
    let env = [
        ("STATIONMASTER_RETRY_SCHEDULE", "200ms"),
        ("STATIONMASTER_LOG", "debug,sqlx=debug,sea_orm=debug"),
    ];
    let server = world.start_with(&env).await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    consumer.reply_next([Reply::status(500)]);
    let body = json!({"url": consumer.url, "event_types": ["*"], "send_bearer": true});
    admin
        .post("/v1/webhook-endpoints")
        .json(&body)
        .expect(201)
        .await;

    for kind in ["admin", "runner", "webhook_signing", "subcommand_bearer"] {
        let path = format!("/v1/publishers/me/tokens/{kind}");
        let minted = admin
            .post(&path)
            .json(&json!({"name": "spare"}))
            .expect(201)
            .await;
        let id = minted.text("/id");
        let rotate = admin.post(&format!("{path}/{id}/rotate")).json(&json!({}));
        let call = rotate.key(&format!("rotate-{kind}")).repeats_a_secret();
        call.clone().expect(200).await;
        call.expect(200).await;
    }
    let path = format!("/v1/publishers/{}/tokens/admin", publisher.id);
    server
        .operator()
        .post(&path)
        .json(&json!({}))
        .expect(201)
        .await;

    publisher.finished_run("nightly").await;
    let (run, claim) = publisher.claimed_run("nightly").await;
    // Credentials where they do not belong: in a path, a query, a name, a body that does not fit.
    let token = admin.token().to_owned();
    server
        .anon()
        .get(&format!("/v1/publishers/me?token={token}"))
        .answer()
        .await;
    server
        .anon()
        .get(&format!("/v1/runs/{token}"))
        .answer()
        .await;
    server.anon().get(&format!("/{token}")).answer().await;
    let call = publisher
        .runner
        .post(&format!("/v1/runs/{run}/complete"))
        .claim(&claim);
    call.json(&json!({"output": {}, "claim": claim}))
        .expect(422)
        .await;
    let call = publisher
        .runner
        .post(&format!("/v1/runs/{run}/complete"))
        .claim(&token);
    call.json(&json!({"output": {}}))
        .refused(409, "claim_lost")
        .await;
    let body = json!({"slug": token, "display_name": "x"});
    server
        .operator()
        .post("/v1/publishers")
        .json(&body)
        .expect(422)
        .await;
    admin
        .get("/v1/runs")
        .header("cookie", &format!("session={token}"))
        .answer()
        .await;
    admin
        .get("/v1/runs")
        .header("referer", &format!("http://x/?{token}"))
        .answer()
        .await;
    let raw =
        format!("GET /v1/runs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token} x\r\n\r\n");
    tools::raw(
        &server.url(),
        raw.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")
            .as_bytes(),
    )
    .await;
    consumer.event("stationmaster.token.rotated").await;
    consumer
        .find("the repeated try", |delivery| delivery.answered == 204)
        .await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;

    let figures = server.metrics().await;
    assert!(figures.contains("stationmaster_build_info"), "{figures}");
    // Every list, read once more: the client would notice.
    for path in [
        "/v1/publishers/me",
        "/v1/publishers/me/tokens",
        "/v1/publishers/me/audit",
        "/v1/publishers/me/audit/export",
        "/v1/pipelines",
        "/v1/runs",
        "/v1/events",
        "/v1/webhook-endpoints",
        "/v1/deliveries",
    ] {
        admin.get(path).expect(200).await;
    }
    // While it runs there are files that a clean stop folds away, such as SQLite's journal.
    let site = server.site();
    assert!(
        site.secrets() >= 16,
        "the story minted {} secrets",
        site.secrets()
    );
    assert_eq!(site.found_in(figures.as_bytes()), [""; 0]);
    assert_eq!(site.leaks().await, [""; 0]);
}
