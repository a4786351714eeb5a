//! Nothing that was acknowledged is lost, at whatever moment the process dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tests::{Consumer, Publisher, World, claim_of, on_both_stores, tools};

on_both_stores!(killed_at_random_moments);

/// What the server said of each run, the last word.
type Acknowledged = Arc<Mutex<BTreeMap<String, &'static str>>>;

/// Creates, claims and completes runs until the server is gone.
async fn load(publisher: Publisher, acknowledged: Acknowledged) {
    let note = |run: &str, status| {
        acknowledged.lock().unwrap().insert(run.to_owned(), status);
    };
    loop {
        let claim = tools::below(2) == 0;
        let body = json!({"input": {"word": tools::word()}, "claim": claim});
        let call = publisher
            .runner
            .post("/v1/pipelines/nightly/runs")
            .json(&body);
        let Ok(created) = call.send().await else {
            return;
        };
        if created.status != 201 {
            return;
        }
        let run = created.text("/id");
        note(&run, if claim { "running" } else { "queued" });
        if !claim {
            continue;
        }
        let path = format!("/v1/runs/{run}/complete");
        let call = publisher
            .runner
            .post(&path)
            .claim(&claim_of(created.json()));
        // From here on the answer may be lost on its way: then either state is right.
        note(&run, "");
        let Ok(done) = call.json(&json!({"output": {}})).send().await else {
            return;
        };
        if done.status != 200 {
            return;
        }
        note(&run, "succeeded");
    }
}

async fn killed_at_random_moments(world: &World) {
    let env = [("STATIONMASTER_RETRY_SCHEDULE", "200ms,200ms,1s,1s,1s")];
    let server = world.start_with(&env).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["run.*"]).await;
    let acknowledged = Acknowledged::default();
    let mut running = server;
    for _ in 0..4 {
        let load = || tokio::spawn(load(publisher.clone(), Arc::clone(&acknowledged)));
        let before = acknowledged.lock().unwrap().len();
        let workers = [load(), load(), load(), load()];
        tools::eventually("work is done", Duration::from_secs(30), async || {
            (acknowledged.lock().unwrap().len() > before + 8).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(tools::below(800))).await;
        running.kill().await;
        for worker in workers {
            worker.await.unwrap();
        }
        running = running.site().start(&env).await;
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    runs_are_there(&publisher, &acknowledged).await;
    deliveries_are_made(&publisher, &consumer, &acknowledged).await;
}

async fn runs_are_there(publisher: &Publisher, acknowledged: &BTreeMap<String, &'static str>) {
    let runs = publisher.runner.all("/v1/runs").await;
    let found: BTreeMap<&str, &str> = runs
        .iter()
        .map(|run| (run["id"].as_str().unwrap(), run["status"].as_str().unwrap()))
        .collect();
    for (run, status) in acknowledged {
        let found = found
            .get(run.as_str())
            .unwrap_or_else(|| panic!("{run} is lost"));
        let fits = status.is_empty() || found == status;
        assert!(fits, "{run} is {found}, but was answered as {status}");
    }
    let actions = publisher.actions().await;
    assert!(
        actions.iter().any(|action| action == "endpoint.created"),
        "{actions:?}"
    );
    let answer = publisher
        .admin
        .get("/v1/publishers/me/audit/verify")
        .expect(200)
        .await;
    assert_eq!(answer["ok"], true, "{answer}");
}

async fn deliveries_are_made(
    publisher: &Publisher,
    consumer: &Consumer,
    acknowledged: &BTreeMap<String, &'static str>,
) {
    let limit = Duration::from_mins(2);
    tools::eventually("nothing is pending", limit, async || {
        let list = publisher
            .admin
            .get("/v1/deliveries?status=pending&limit=1")
            .expect(200)
            .await;
        if list["items"].as_array().unwrap().is_empty() {
            return Some(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        None
    })
    .await;
    let events = publisher.admin.all("/v1/events").await;
    let of_runs = |event: &&Value| event["type"].as_str().unwrap().starts_with("run.");
    let committed: BTreeSet<String> = events
        .iter()
        .filter(of_runs)
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect();
    let delivered: BTreeSet<String> = consumer
        .seen()
        .iter()
        .map(|delivery| delivery.id().to_owned())
        .collect();
    assert_eq!(delivered, committed, "each event, and no other");
    let told: BTreeSet<(String, String)> = events
        .iter()
        .map(|event| {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&event["data"]["run"]["id"]), text(&event["type"]))
        })
        .collect();
    for (run, status) in acknowledged {
        let types: &[&str] = match *status {
            "queued" => &["run.created"],
            "succeeded" => &["run.created", "run.started", "run.succeeded"],
            _ => &["run.created", "run.started"],
        };
        for event_type in types {
            let wanted = (run.clone(), (*event_type).to_owned());
            assert!(told.contains(&wanted), "{event_type} of {run} is missing");
        }
    }
}
