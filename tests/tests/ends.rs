//! Rows end: what was deleted, revoked or finished is gone from the store after its time, with the
//! secrets in it.

use std::time::Duration;

use serde_json::json;
use tests::{Consumer, Publisher, Site, World, on_both_stores, tools};

use crate::tokens::mint;

on_both_stores!(
    what_is_gone_leaves_nothing_behind,
    what_is_deleted_keeps_no_header,
);

/// As if all of it had happened so long ago that nothing of it is kept.
const AGED: [&str; 6] = [
    "UPDATE endpoint_secrets SET revoked_at = 1, created_at = 1 WHERE revoked_at IS NOT NULL",
    "UPDATE credentials SET revoked_at = 1, created_at = 1 WHERE revoked_at IS NOT NULL",
    "UPDATE replays SET finished_at = 1, created_at = 1",
    "UPDATE webhook_endpoints SET deleted_at = 1, created_at = 1 WHERE deleted_at IS NOT NULL",
    "UPDATE pipelines SET updated_at = 1, created_at = 1",
    "UPDATE pipeline_versions SET created_at = 1",
];

/// What must go, and what must stay.
const GONE: [&str; 5] = [
    "endpoint_secrets WHERE revoked_at IS NOT NULL",
    "credentials WHERE revoked_at IS NOT NULL",
    "replays",
    "webhook_endpoints WHERE deleted_at IS NOT NULL",
    "pipelines WHERE live_slug IS NULL",
];

fn every_second() -> Vec<(&'static str, &'static str)> {
    let names = [
        "STATIONMASTER_CRON_CREDENTIALS",
        "STATIONMASTER_CRON_DELIVERIES",
        "STATIONMASTER_CRON_RUNS",
    ];
    names.map(|name| (name, "* * * * * *")).to_vec()
}

async fn counts(site: &Site) -> Vec<i64> {
    let mut counts = Vec::new();
    for rows in GONE {
        counts.push(site.count(rows).await);
    }
    counts
}

/// Has something of each kind revoked, deleted or finished; answers an endpoint that stays.
async fn retire(publisher: &Publisher, consumer: &Consumer) -> String {
    let admin = &publisher.admin;
    let kept = publisher.endpoint(consumer, &["*"]).await;
    let secrets = format!("/v1/webhook-endpoints/{kept}/secrets");
    admin.post(&secrets).json(&json!({})).expect(201).await;
    let secret = admin.post(&secrets).json(&json!({})).expect(201).await;
    let secret = format!("{secrets}/{}", secret.text("/id"));
    admin.delete(&secret).expect(204).await;
    let (token, _) = mint(admin, "runner", &json!({"name": "x"})).await;
    let token = format!("/v1/publishers/me/tokens/runner/{token}");
    admin.delete(&token).expect(204).await;
    let replays = format!("/v1/webhook-endpoints/{kept}/replays");
    let since = json!({"since": "2026-01-01T00:00:00Z"});
    let replay = admin.post(&replays).json(&since).expect(202).await;
    let replay = format!("{replays}/{}", replay.text("/id"));
    tools::eventually("the replay ends", Duration::from_secs(20), async || {
        let replay = admin.get(&replay).expect(200).await;
        (replay.text("/status") != "running").then_some(())
    })
    .await;
    for number in 0..5 {
        let gone = publisher.endpoint(consumer, &["*"]).await;
        let gone = format!("/v1/webhook-endpoints/{gone}");
        admin.delete(&gone).expect(204).await;
        let slug = format!("gone-{number}");
        publisher.pipeline(&slug).await;
        let gone = format!("/v1/pipelines/{slug}");
        admin.delete(&gone).expect(204).await;
    }
    kept
}

async fn what_is_gone_leaves_nothing_behind(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    let consumer = Consumer::start().await;
    let kept = retire(&publisher, &consumer).await;
    // One that goes through three versions, and has a run of the second.
    publisher.pipeline("nightly").await;
    let put = async |name: &str| {
        let body = json!({ "display_name": name });
        admin
            .put("/v1/pipelines/nightly")
            .json(&body)
            .expect(200)
            .await;
    };
    put("second").await;
    publisher.finished_run("nightly").await;
    put("third").await;
    assert!(server.stop().await.success());

    let site = server.site();
    assert!(counts(site).await.iter().all(|count| *count > 0));
    for statement in AGED {
        site.execute(statement).await;
    }
    let again = site.start(&every_second()).await;
    tools::eventually("all of it is gone", Duration::from_secs(30), async || {
        counts(site)
            .await
            .iter()
            .all(|count| *count == 0)
            .then_some(())
    })
    .await;
    tools::eventually(
        "old versions are gone",
        Duration::from_secs(30),
        async || (site.count("pipeline_versions").await == 2).then_some(()),
    )
    .await;
    // What is alive is as it was.
    let admin = again.user(admin.token());
    admin
        .get(&format!("/v1/webhook-endpoints/{kept}"))
        .expect(200)
        .await;
    let secrets = format!("/v1/webhook-endpoints/{kept}/secrets");
    let secrets = admin.get(&secrets).expect(200).await;
    assert_eq!(secrets["items"].as_array().unwrap().len(), 1, "{secrets}");
    let pipeline = admin.get("/v1/pipelines/nightly").expect(200).await;
    assert_eq!(pipeline.text("/display_name"), "third");
    assert_eq!(admin.all("/v1/runs").await.len(), 1);
}

async fn what_is_deleted_keeps_no_header(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    let body = json!({
        "url": "http://127.0.0.1:9/hook", "event_types": ["*"], "headers": {"x-key": "s3cret"},
    });
    let made = admin
        .post("/v1/webhook-endpoints")
        .json(&body)
        .expect(201)
        .await;
    let id = made.text("/id");
    let with_it = "webhook_endpoints WHERE headers LIKE '%s3cret%'";
    assert_eq!(server.site().count(with_it).await, 1);
    admin
        .delete(&format!("/v1/webhook-endpoints/{id}"))
        .expect(204)
        .await;
    assert_eq!(server.site().count(with_it).await, 0);
}
