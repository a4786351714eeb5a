//! `ETag` and `If-Match`: nobody overwrites what he has not seen.

use serde_json::json;
use tests::{Consumer, User, World, on_both_stores};

on_both_stores!(
    a_stale_change_is_refused,
    changes_of_different_parts_all_last,
    the_contract_names_every_entity_tag,
    claims_hold_a_run_for_one_runner,
    an_expired_claim_is_lost,
);

/// Reads, changes twice with the first state's tag, and then with the right one.
async fn guarded(user: &User, path: &str, method: &str, body: &serde_json::Value) {
    let first = user.get(path).expect(200).await;
    let tag = first.header("etag").to_owned();
    assert_ne!(tag, "", "{path} has no ETag");
    let changed = user
        .call(method, path)
        .header("if-match", &tag)
        .json(body)
        .expect(200)
        .await;
    assert_ne!(changed.header("etag"), tag, "{path}");
    let other = json!({"display_name": "Too late", "description": "Too late"});
    let mut late = body.clone();
    for (name, value) in other.as_object().unwrap() {
        if late.get(name).is_some() {
            late[name] = value.clone();
        }
    }
    let call = user.call(method, path).header("if-match", &tag).json(&late);
    call.refused(412, "precondition_failed").await;
    let now = user.get(path).expect(200).await;
    assert_eq!(now.body, changed.body, "{path} changed all the same");
    assert_eq!(now.header("etag"), changed.header("etag"), "{path}");
}

async fn a_stale_change_is_refused(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    let consumer = Consumer::start().await;
    publisher.pipeline("nightly").await;
    let endpoint = publisher.endpoint(&consumer, &["*"]).await;
    let endpoint = format!("/v1/webhook-endpoints/{endpoint}");
    let of_publisher = format!("/v1/publishers/{}", publisher.id);

    let name = json!({"display_name": "Another name"});
    guarded(admin, "/v1/pipelines/nightly", "PUT", &name).await;
    guarded(admin, &endpoint, "PATCH", &json!({"description": "Mine"})).await;
    let account = publisher.account("main").await;
    publisher.train("night", &[&account]).await;
    let account = format!("/v1/accounts/{account}");
    guarded(admin, &account, "PATCH", &json!({"enabled": false})).await;
    let described = json!({"description": "Mine"});
    guarded(admin, "/v1/trains/night", "PATCH", &described).await;
    guarded(&server.operator(), &of_publisher, "PATCH", &name).await;

    let put = |path| admin.put(path).header("if-match", "*").json(&name);
    put("/v1/pipelines/nightly").expect(200).await;
    let absent = put("/v1/pipelines/absent");
    absent.refused(412, "precondition_failed").await;

    for path in [endpoint.as_str(), "/v1/pipelines/nightly"] {
        let stale = admin.delete(path).header("if-match", "\"1\"");
        stale.refused(412, "precondition_failed").await;
        let tag = admin.get(path).expect(200).await.header("etag").to_owned();
        admin
            .delete(path)
            .header("if-match", &tag)
            .expect(204)
            .await;
    }
    // What is not there can't match anything, and answers as it always does.
    let gone = admin.delete(&endpoint).header("if-match", "\"1\"");
    gone.refused(404, "not_found").await;
    let call = admin
        .patch("/v1/publishers/me")
        .header("if-match", "no tag");
    let answer = call.json(&name).refused(400, "invalid_parameter").await;
    assert_eq!(answer.pointers(), ["/header/If-Match"], "{answer}");
}

async fn changes_of_different_parts_all_last(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    let endpoint = publisher.endpoint(&consumer, &["*"]).await;
    let endpoint = format!("/v1/webhook-endpoints/{endpoint}");
    let of_publisher = format!("/v1/publishers/{}", publisher.id);
    let operator = server.operator();
    let quotas = ["credentials_per_kind", "pipelines", "webhook_endpoints"];
    let mut asked = Vec::new();
    for n in 0..15 {
        let headers = json!({"headers": {format!("X-Part-{n}"): "here"}});
        let call = publisher.admin.patch(&endpoint).json(&headers);
        asked.push(tokio::spawn(call.expect(200)));
        let quota = json!({"quotas": {quotas[n % 3]: 77}});
        let call = operator.patch(&of_publisher).json(&quota);
        asked.push(tokio::spawn(call.expect(200)));
    }
    for one in asked {
        one.await.unwrap();
    }
    let headers = publisher.admin.get(&endpoint).expect(200).await["headers"].clone();
    assert_eq!(headers.as_object().unwrap().len(), 15, "{headers}");
    let now = operator.get(&of_publisher).expect(200).await;
    for name in quotas {
        assert_eq!(now["quotas"][name], 77, "{now}");
    }
}

/// Who asks for what, in the contract's words but for `{run}`, `{other}`, `{endpoint}` and `{new}`.
const ASKED: [&str; 24] = [
    "operator POST /v1/publishers",
    "operator GET /v1/publishers",
    "operator GET /v1/publishers/{id}",
    "operator PATCH /v1/publishers/{id}",
    "operator POST /v1/publishers/{id}/suspend",
    "operator POST /v1/publishers/{id}/resume",
    "admin GET /v1/publishers/me",
    "admin PATCH /v1/publishers/me",
    "admin GET /v1/publishers/me/usage",
    "admin PUT /v1/pipelines/{new}",
    "admin PUT /v1/pipelines/{slug}",
    "admin GET /v1/pipelines/{slug}",
    "admin POST /v1/pipelines/{slug}/pause",
    "admin POST /v1/pipelines/{slug}/resume",
    "admin POST /v1/webhook-endpoints",
    "admin GET /v1/webhook-endpoints/{endpoint}",
    "admin PATCH /v1/webhook-endpoints/{endpoint}",
    "admin DELETE /v1/webhook-endpoints/{endpoint}",
    "runner POST /v1/pipelines/{slug}/runs",
    "runner GET /v1/runs/{run}",
    "runner POST /v1/runs/{run}/heartbeat",
    "runner POST /v1/runs/{run}/complete",
    "runner POST /v1/runs/{other}/cancel",
    "runner GET /v1/runs",
];

/// Every answer with an `ETag` is documented to have one, and the other way round.
async fn the_contract_names_every_entity_tag(world: &World) {
    let server = world.start().await;
    let contract = server.anon().get("/openapi.json").expect(200).await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    publisher.pipeline("nightly").await;
    let (run, claim) = publisher.claimed_run("nightly").await;
    let names = [
        ("{id}", publisher.id.clone()),
        ("{slug}", "nightly".to_owned()),
        ("{new}", "hourly".to_owned()),
        ("{endpoint}", publisher.endpoint(&consumer, &["*"]).await),
        ("{run}", run),
        ("{other}", publisher.run("nightly").await),
    ];
    let mut wrong = Vec::new();
    for asked in ASKED {
        let mut words = asked.split(' ');
        let (who, method, path) = (words.next(), words.next().unwrap(), words.next().unwrap());
        let user = match who {
            Some("operator") => server.operator(),
            Some("admin") => publisher.admin.clone(),
            _ => publisher.runner.clone(),
        };
        let filled = names.iter().fold(path.to_owned(), |path, (name, value)| {
            path.replace(name, value)
        });
        let body = match (method, path) {
            ("POST", "/v1/publishers") => json!({"slug": "new", "display_name": "New"}),
            ("POST", "/v1/webhook-endpoints") => json!({"url": consumer.url}),
            ("POST", "/v1/pipelines/{slug}/runs") => json!({"input": 1}),
            ("POST", "/v1/runs/{run}/complete") => json!({"output": 1}),
            ("PUT", _) => json!({"display_name": "Another name"}),
            _ => json!({}),
        };
        let call = user.call(method, &filled).claim(&claim);
        let answer = match method {
            "GET" | "DELETE" => call.answer().await,
            _ => call.json(&body).answer().await,
        };
        let plain = ["{run}", "{other}", "{endpoint}"];
        let path = plain
            .iter()
            .fold(path.replace("{new}", "{slug}"), |path, name| {
                path.replace(name, "{id}")
            });
        let operation = &contract["paths"][&path][method.to_lowercase()];
        let documented = &operation["responses"][answer.status.to_string()]["headers"];
        let tagged = !answer.header("etag").is_empty();
        if answer.status >= 300 || documented.get("ETag").is_some() != tagged {
            wrong.push(format!("{asked}: ETag {tagged}: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn claims_hold_a_run_for_one_runner(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let mut wanted = Vec::new();
    for _ in 0..20 {
        wanted.push(publisher.run("nightly").await);
    }
    let ask = || {
        let call = publisher
            .runner
            .post("/v1/runs/claim")
            .json(&json!({"max": 3}));
        tokio::spawn(call.expect(200))
    };
    let asked: Vec<_> = (0..10).map(|_| ask()).collect();
    let mut got = Vec::new();
    for one in asked {
        let answer = one.await.unwrap();
        for run in answer["items"].as_array().unwrap() {
            assert_eq!(run["status"], "running", "{run}");
            got.push((run["id"].as_str().unwrap().to_owned(), tests::claim_of(run)));
        }
    }
    let mut ids: Vec<String> = got.iter().map(|(id, _)| id.clone()).collect();
    ids.sort();
    wanted.sort();
    assert_eq!(ids, wanted, "each run once");

    // Another run's claim, a made-up one and none are all refused.
    let ((run, claim), (_, foreign)) = (&got[0], &got[1]);
    let complete = format!("/v1/runs/{run}/complete");
    let body = json!({"output": {}});
    let call = || publisher.runner.post(&complete).json(&body);
    call().claim(foreign).refused(409, "claim_lost").await;
    call()
        .claim("stm_claim_nothing")
        .refused(409, "claim_lost")
        .await;
    let none = call().answer().await;
    assert!((400..500).contains(&none.status), "{none}");
    publisher.complete(run, claim).await;
    call().claim(claim).refused(409, "claim_lost").await;
    let cancel = format!("/v1/runs/{run}/cancel");
    publisher
        .runner
        .post(&cancel)
        .refused(409, "run_finished")
        .await;

    let (run, claim) = &got[2];
    let fail = publisher
        .runner
        .post(&format!("/v1/runs/{run}/fail"))
        .claim(claim);
    let failed = fail
        .json(&json!({"error": {"message": "no disk"}}))
        .expect(200)
        .await;
    assert_eq!(failed["status"], "failed", "{failed}");
    let (run, claim) = &got[3];
    let path = format!("/v1/runs/{run}/release");
    let call = publisher.runner.post(&path).claim(claim);
    let released = call.expect(200).await;
    assert_eq!(released["status"], "queued", "{released}");
    let complete = publisher
        .runner
        .post(&format!("/v1/runs/{run}/complete"))
        .claim(claim);
    complete.json(&body).refused(409, "claim_lost").await;
}

async fn an_expired_claim_is_lost(world: &World) {
    let server = world
        .start_with(&[("STATIONMASTER_CRON_LEASES", "* * * * * *")])
        .await;
    let publisher = server.publisher("acme").await;
    // The shortest lease that the contract takes.
    let body = json!({"display_name": "Brief", "lease_seconds": 5, "max_attempts": 2});
    publisher
        .admin
        .put("/v1/pipelines/brief")
        .json(&body)
        .expect(201)
        .await;
    let (run, claim) = publisher.claimed_run("brief").await;
    let path = format!("/v1/runs/{run}");
    let limit = std::time::Duration::from_secs(20);
    tests::tools::eventually("the run is queued again", limit, async || {
        let run = publisher.runner.get(&path).expect(200).await;
        (run["status"] == "queued").then_some(())
    })
    .await;
    let complete = publisher
        .runner
        .post(&format!("{path}/complete"))
        .claim(&claim);
    complete
        .json(&json!({"output": {}}))
        .refused(409, "claim_lost")
        .await;
    let claimed = publisher
        .runner
        .post("/v1/runs/claim")
        .json(&json!({}))
        .expect(200)
        .await;
    assert_eq!(claimed["items"][0]["id"], run, "{claimed}");
    assert_eq!(claimed["items"][0]["attempt"], 2, "{claimed}");
    tests::tools::eventually("the run expires", limit, async || {
        let run = publisher.runner.get(&path).expect(200).await;
        (run["status"] == "expired").then_some(())
    })
    .await;
}
