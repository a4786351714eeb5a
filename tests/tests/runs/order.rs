//! Which runs a claim gets, and which nobody gets.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tests::{World, on_both_stores, on_postgres, tools, tools::eventually};

use super::{Held, another_runner, define, look, queue, queue_many, take, waiting};

on_both_stores!(
    claims_go_by_priority_then_time_then_age,
    pipelines_take_turns,
    a_paused_pipeline_hands_out_nothing,
    no_more_are_held_than_may_be,
    what_waits_too_long_expires,
    an_external_id_names_one_run,
    a_limited_runner_knows_its_pipelines_alone,
);
on_postgres!(two_processes_keep_one_limit);

fn ids(held: &[Held]) -> Vec<&str> {
    held.iter().map(|one| one.id.as_str()).collect()
}

async fn claims_go_by_priority_then_time_then_age(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let (early, late) = (tools::seconds_ago(60), tools::seconds_ago(30));
    let mut made = Vec::new();
    for (priority, not_before) in [(9, &early), (5, &late), (5, &early), (0, &late), (5, &late)] {
        let body = json!({"priority": priority, "not_before": not_before});
        made.push(queue(&publisher, "nightly", body).await);
    }
    // The most urgent of all, but not yet.
    let future = json!({"priority": 0, "not_before": tools::in_seconds(3)});
    let future = queue(&publisher, "nightly", future).await;

    let mut taken = take(&publisher.runner, json!({"max": 2})).await;
    taken.extend(take(&publisher.runner, json!({"max": 100})).await);
    let wanted = [&made[3], &made[2], &made[1], &made[4], &made[0]];
    assert_eq!(ids(&taken), wanted, "{made:?}");
    // Its time wakes whoever waits for it.
    let body = json!({"wait_seconds": 20});
    let (answer, _) = waiting(&publisher.runner, body).await.await.unwrap();
    assert_eq!(answer["items"][0]["id"], future, "{answer}");
}

async fn pipelines_take_turns(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("deep").await;
    publisher.pipeline("shallow").await;
    queue_many(&publisher, "deep", 200).await;
    let lonely = queue(&publisher, "shallow", json!({})).await;

    let first = take(&publisher.runner, json!({})).await;
    assert_eq!(first[0].run["pipeline"], "deep", "the oldest goes first");
    let second = take(&publisher.runner, json!({})).await;
    assert_eq!(ids(&second), [&lonely], "199 older ones do not come first");
    let more = queue(&publisher, "shallow", json!({})).await;
    let several = take(&publisher.runner, json!({"max": 4})).await;
    assert!(ids(&several).contains(&more.as_str()), "{several:?}");
    assert_eq!(several.len(), 4);
    // Priority comes before turns.
    let urgent = queue(&publisher, "shallow", json!({"priority": 0})).await;
    let next = queue(&publisher, "shallow", json!({"priority": 0})).await;
    let both = take(&publisher.runner, json!({"max": 2})).await;
    assert_eq!(ids(&both), [&urgent, &next]);
    // Whoever names a pipeline gets that one's.
    let named = take(
        &publisher.runner,
        json!({"pipelines": ["shallow"], "max": 9}),
    )
    .await;
    assert_eq!(ids(&named), [""; 0]);
}

async fn a_paused_pipeline_hands_out_nothing(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let pause = publisher.admin.post("/v1/pipelines/nightly/pause");
    let paused = pause.clone().expect(200).await;
    assert!(paused["paused_at"].is_string(), "{paused}");
    let again = pause.expect(200).await;
    assert_eq!(again["paused_at"], paused["paused_at"], "{again}");
    publisher
        .runner
        .post("/v1/pipelines/nightly/pause")
        .refused(403, "wrong_token_kind")
        .await;

    let run = queue(&publisher, "nightly", json!({})).await;
    assert!(take(&publisher.runner, json!({})).await.is_empty());
    let at_once = publisher.runner.post("/v1/pipelines/nightly/runs");
    at_once
        .json(&json!({"input": {}, "claim": true}))
        .refused(409, "pipeline_paused")
        .await;
    let waiting = waiting(&publisher.runner, json!({"wait_seconds": 20})).await;
    let resume = publisher.admin.post("/v1/pipelines/nightly/resume");
    let resumed = resume.expect(200).await;
    assert!(resumed["paused_at"].is_null(), "{resumed}");
    let asked = std::time::Instant::now();
    let (answer, _) = waiting.await.unwrap();
    assert_eq!(answer["items"][0]["id"], run, "{answer}");
    assert!(
        asked.elapsed() < Duration::from_secs(10),
        "{:?}",
        asked.elapsed()
    );
    let actions = publisher.actions().await;
    for wanted in ["pipeline.paused", "pipeline.resumed"] {
        let told = actions.iter().filter(|action| *action == wanted);
        assert_eq!(told.count(), 1, "{wanted}: {actions:?}");
    }
}

/// Claims from all sides at once; returns everything that was handed out.
async fn grab(users: &[tests::User]) -> Vec<Held> {
    let asked: Vec<_> = users
        .iter()
        .cloned()
        .map(|user| tokio::spawn(async move { take(&user, json!({"max": 5})).await }))
        .collect();
    let mut all = Vec::new();
    for one in asked {
        all.extend(one.await.unwrap());
    }
    all
}

async fn no_more_are_held_than_may_be(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "narrow", json!({"max_concurrent_runs": 3})).await;
    queue_many(&publisher, "narrow", 12).await;
    let users: Vec<_> = (0..8).map(|_| publisher.runner.clone()).collect();
    let held = grab(&users).await;
    assert_eq!(held.len(), 3);
    let at_once = publisher.runner.post("/v1/pipelines/narrow/runs");
    at_once
        .json(&json!({"input": {}, "claim": true}))
        .refused(409, "concurrency_limit")
        .await;

    // A place that falls free wakes whoever waits for it, and is one place.
    let waiting = waiting(&publisher.runner, json!({"max": 9, "wait_seconds": 20})).await;
    held[0].complete(&publisher.runner).expect(200).await;
    let (answer, _) = waiting.await.unwrap();
    assert_eq!(super::held(&answer).len(), 1, "{answer}");
    held[1].release(&publisher.runner).expect(200).await;
    assert_eq!(grab(&users).await.len(), 1);
}

async fn two_processes_keep_one_limit(world: &World) {
    let server = world.start().await;
    let beside = server.site().start_beside(&[]).await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "narrow", json!({"max_concurrent_runs": 3})).await;
    queue_many(&publisher, "narrow", 30).await;
    let there = beside.user(publisher.runner.token());
    let users: Vec<_> = (0..12)
        .map(|at| [&publisher.runner, &there][at % 2].clone())
        .collect();
    for _ in 0..4 {
        let mut held = grab(&users).await;
        assert!(held.len() <= 3, "{} at once", held.len());
        // Under contention one process may pass over what the other has just let go.
        held.extend(take(&there, json!({"max": 9})).await);
        assert_eq!(held.len(), 3);
        let distinct: BTreeSet<&str> = ids(&held).into_iter().collect();
        assert_eq!(distinct.len(), 3);
        for one in held {
            one.complete(&publisher.runner).expect(200).await;
        }
    }
}

async fn what_waits_too_long_expires(world: &World) {
    let env = [("STATIONMASTER_CRON_LEASES", "* * * * * *")];
    let server = world.start_with(&env).await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "brief", json!({"time_to_live_seconds": 1})).await;
    define(&publisher, "steady", json!({"time_to_live_seconds": 60})).await;
    let run = queue(&publisher, "brief", json!({})).await;
    let steady = queue(&publisher, "steady", json!({})).await;
    // The job does it: nobody claims here.
    eventually("the run expires", Duration::from_secs(15), async || {
        let run = look(&publisher, &run).await;
        (run["status"] == "expired").then_some(())
    })
    .await;
    assert_eq!(look(&publisher, &steady).await["status"], "queued");
    let entries = super::timeline(&publisher, &run).await;
    assert_eq!(entries[1]["type"], "expired");
    assert!(entries[1]["actor"].is_null(), "{entries:?}");
    let list = eventually("the job counts it", Duration::from_secs(10), async || {
        let list = server.operator().get("/v1/jobs").expect(200).await;
        let jobs = list["items"].as_array().unwrap().clone();
        let job = jobs.into_iter().find(|job| job["name"] == "leases")?;
        job["finished_at"].is_string().then_some(job)
    })
    .await;
    assert!(list["error"].is_null(), "{list}");
    let counted = server.metrics().await;
    let line = counted
        .lines()
        .find(|line| line.contains("leases") && line.contains("expired") && !line.starts_with('#'));
    assert!(line.is_some_and(|line| line.ends_with(" 1")), "{line:?}");
}

async fn an_external_id_names_one_run(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.pipeline("hourly").await;
    let path = "/v1/pipelines/nightly/runs";
    let named = |n: u32| {
        let body = json!({"input": {"n": n}, "external_id": "order-1", "claim": true});
        publisher.runner.post(path).json(&body)
    };
    let first = named(1).expect(201).await;
    let again = named(2).expect(200).await;
    assert_eq!(again["id"], first["id"]);
    assert_eq!(again["input"], json!({"n": 1}), "{again}");
    assert!(
        again["claim"].is_null(),
        "nobody else gets a claim: {again}"
    );
    let id = first.text("/id");
    publisher.complete(&id, &first.text("/claim/token")).await;
    assert_eq!(named(3).expect(200).await["status"], "succeeded");
    // Twins that come together are one run, too.
    let twins: Vec<_> = (0..6)
        .map(|n| {
            let body = json!({"input": {"n": n}, "external_id": "order-2"});
            tokio::spawn(publisher.runner.post(path).json(&body).answer())
        })
        .collect();
    let (mut found, mut created) = (BTreeSet::new(), 0);
    for twin in twins {
        let answer = twin.await.unwrap();
        created += u32::from(answer.status == 201);
        found.insert(answer.text("/id"));
    }
    assert_eq!((found.len(), created), (1, 1));
    let other = queue(&publisher, "hourly", json!({"external_id": "order-1"})).await;
    assert_ne!(other, id, "another pipeline's name is another name");
}

async fn a_limited_runner_knows_its_pipelines_alone(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("mine").await;
    publisher.pipeline("other").await;
    let (some, _) = another_runner(&publisher, json!({"pipelines": ["mine"]})).await;
    let (other, claim) = publisher.claimed_run("other").await;
    let hidden = queue(&publisher, "other", json!({})).await;
    let mine = queue(&publisher, "mine", json!({})).await;

    let absent = tools::absent("run");
    for verb in ["heartbeat", "complete", "fail", "release", "cancel"] {
        let ask = |id: &str| {
            let call = some.post(&format!("/v1/runs/{id}/{verb}")).claim(&claim);
            match verb {
                "complete" => call.json(&json!({"output": {}})),
                "fail" => call.json(&json!({"error": {"message": "no"}})),
                _ => call,
            }
            .header("x-request-id", "same")
        };
        let (there, none) = (
            ask(&other).expect(404).await,
            ask(&absent).expect(404).await,
        );
        assert_eq!(
            tests::fingerprint(&there),
            tests::fingerprint(&none),
            "{verb}"
        );
    }
    for path in ["", "/timeline", "/stream"] {
        let path = format!("/v1/runs/{other}{path}");
        some.get(&path).refused(404, "not_found").await;
    }
    let held = take(&some, json!({"max": 9})).await;
    assert_eq!(ids(&held), [&mine]);
    let named = take(&some, json!({"pipelines": ["other"], "max": 9})).await;
    assert!(named.is_empty());
    let bulk = some.post("/v1/runs/cancel").json(&json!({}));
    let bulk = bulk.expect(200).await;
    assert_eq!(
        (&bulk["cancelled"], &bulk["requested"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(look(&publisher, &hidden).await["status"], "queued");
    for event in some.all("/v1/events").await {
        assert_eq!(event["data"]["run"]["pipeline"], "mine", "{event}");
    }
    // A claim on one run is none on another.
    let wrong = Held {
        id: mine,
        token: claim,
        run: json!(null),
    };
    for call in [
        wrong.heartbeat(&some),
        wrong.complete(&some),
        wrong.fail(&some, true),
        wrong.release(&some),
    ] {
        call.refused(409, "claim_lost").await;
    }
}
