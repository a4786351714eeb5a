//! Credentials are shown once and written nowhere.
//!
//! Every test of this program ends with the same search through logs and database, and its client
//! refuses every answer that repeats a credential. The story here mints all that there is to mint,
//! lets things go wrong too, and looks in the remaining places.

use serde_json::json;
use tests::{Consumer, Publisher, Reply, Server, World, on_both_stores, tools};

on_both_stores!(a_busy_day_leaves_no_secret_behind);

async fn a_busy_day_leaves_no_secret_behind(world: &World) {
    let env = [
        ("STATIONMASTER_RETRY_SCHEDULE", "200ms"),
        ("STATIONMASTER_LOG", "debug,sqlx=debug,sea_orm=debug"),
    ];
    let server = world.start_with(&env).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    consumer.reply_next([Reply::status(500)]);
    let body = json!({"url": consumer.url, "event_types": ["*"], "send_bearer": true});
    let endpoint = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    endpoint.expect(201).await;

    mint_all_there_is(&server, &publisher).await;
    store_upstream_credentials(&publisher).await;
    publisher.finished_run("nightly").await;
    call_a_subcommand(&publisher, &consumer).await;
    misplace_credentials(&server, &publisher).await;
    consumer.event("stationmaster.token.rotated").await;
    let repeated = |delivery: &tests::Delivery| delivery.answered == 204;
    consumer.find("the repeated try", repeated).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;

    read_everything(&publisher).await;
    let figures = server.metrics().await;
    assert!(figures.contains("stationmaster_build_info"), "{figures}");
    // While it runs there are files that a clean stop folds away, such as SQLite's journal.
    let site = server.site();
    let count = site.secrets();
    assert!(count >= 24, "the story minted {count} secrets");
    assert_eq!(site.found_in(figures.as_bytes()), [""; 0]);
    assert_eq!(site.leaks().await, [""; 0]);
}

async fn mint_all_there_is(server: &Server, publisher: &Publisher) {
    let admin = &publisher.admin;
    for kind in ["admin", "runner", "webhook_signing", "subcommand_bearer"] {
        let path = format!("/v1/publishers/me/tokens/{kind}");
        let mint = admin.post(&path).json(&json!({"name": "spare"}));
        let id = mint.expect(201).await.text("/id");
        let rotate = admin.post(&format!("{path}/{id}/rotate")).json(&json!({}));
        let call = rotate.key(&format!("rotate-{kind}")).repeats_a_secret();
        call.clone().expect(200).await;
        call.expect(200).await;
    }
    let path = format!("/v1/publishers/{}/tokens/admin", publisher.id);
    let mint = server.operator().post(&path).json(&json!({}));
    mint.expect(201).await;
}

/// What comes in for upstreams is known to the search by its requests, and stays as secret: in
/// answers, in their repeats, in refusals.
async fn store_upstream_credentials(publisher: &Publisher) {
    let admin = &publisher.admin;
    let secret = |form: &str| format!("{form}-{}{}", tools::word(), tools::word());
    let oauth = |name: &str| {
        json!({
            "name": name,
            "provider": "anthropic",
            "credential_type": "oauth",
            "oauth": {
                "access_token": secret("at"),
                "refresh_token": secret("rt"),
                "client_secret": secret("cs"),
                "expires_at": tools::in_seconds(3600),
                "token_url": "https://auth.example.com/token",
                "client_id": "gateway",
            },
        })
    };
    let key = publisher.account("key").await;
    let create = admin
        .post("/v1/accounts")
        .json(&oauth("tokens"))
        .key("store");
    create.clone().expect(201).await;
    create.expect(201).await;
    let taken = admin
        .post("/v1/accounts")
        .json(&oauth("tokens"))
        .key("again");
    taken.refused(409, "name_taken").await;
    let replace = admin.post(&format!("/v1/accounts/{key}/replace"));
    replace.json(&oauth("key")).expect(201).await;
    let mut wrong = oauth("wrong");
    wrong["oauth"]["expires_at"] = json!("tomorrow");
    wrong["api_key"] = json!(secret("sk"));
    admin.post("/v1/accounts").json(&wrong).expect(422).await;
    let patch = admin.patch(&format!("/v1/accounts/{key}"));
    patch
        .json(&json!({"api_key": secret("sk")}))
        .expect(422)
        .await;
    let url = format!("https://hooks.slack.com/services/T0/B0/{}", secret("x"));
    let slack = json!({"webhook_url": url, "events": ["train.exhausted"]});
    let train = admin
        .post("/v1/trains")
        .json(&json!({"slug": "night", "slack": slack}));
    train.expect(201).await;
    let url = format!("https://10.0.0.1/services/T0/B0/{}", secret("x"));
    let patch = admin.patch("/v1/trains/night");
    let patch = patch.json(&json!({"slack": {"webhook_url": url}}));
    patch.refused(422, "destination_refused").await;
}

/// The newest bearer goes out, and stands in no log on its way.
async fn call_a_subcommand(publisher: &Publisher, consumer: &Consumer) {
    let body = json!({"display_name": "Tools", "subcommands": {"archive": {"url": consumer.url}}});
    let put = publisher.admin.put("/v1/pipelines/tools").json(&body);
    put.expect(201).await;
    let (run, claim) = publisher.claimed_run("tools").await;
    let path = format!("/v1/runs/{run}/subcommands/archive");
    let call = publisher.runner.post(&path).claim(&claim);
    call.json(&json!({"type": "call"})).expect(200).await;
    publisher.complete(&run, &claim).await;
}

/// Credentials where they do not belong: in a path, a query, a name, a body that does not fit.
async fn misplace_credentials(server: &Server, publisher: &Publisher) {
    let (anon, admin) = (server.anon(), &publisher.admin);
    let token = admin.token();
    for path in [
        format!("/v1/publishers/me?token={token}"),
        format!("/v1/runs/{token}"),
        format!("/{token}"),
    ] {
        anon.get(&path).answer().await;
    }
    let (run, claim) = publisher.claimed_run("nightly").await;
    let complete = format!("/v1/runs/{run}/complete");
    let call = publisher.runner.post(&complete).claim(&claim);
    let body = json!({"output": {}, "claim": claim});
    call.json(&body).expect(422).await;
    let call = publisher.runner.post(&complete).claim(token);
    let body = json!({"output": {}});
    call.json(&body).refused(409, "claim_lost").await;
    let body = json!({"slug": token, "display_name": "x"});
    let create = server.operator().post("/v1/publishers").json(&body);
    create.expect(422).await;
    for (name, value) in [
        ("cookie", format!("session={token}")),
        ("referer", format!("http://x/?{token}")),
        ("authorization", format!("Bearer {token} x")),
        ("authorization", format!("Basic {token}")),
    ] {
        admin.get("/v1/runs").header(name, &value).answer().await;
    }
    let request = format!("GET /{token} HTTP/0.9\r\nhost: {token}\r\n\r\n");
    tools::raw(&server.url(), request.as_bytes()).await;
}

/// Every list, read once more: the client would notice.
async fn read_everything(publisher: &Publisher) {
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
        "/v1/accounts",
        "/v1/trains",
    ] {
        publisher.admin.get(path).expect(200).await;
    }
}
