//! What a claim is worth while it holds, and afterwards.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{World, on_both_stores, tools::eventually};

use super::{Held, LEASE_OVER, define, look, queue, take, timeline, words};

on_both_stores!(
    a_heartbeat_extends_the_lease_and_keeps_progress,
    a_lost_lease_changes_nothing_any_more,
    a_release_uses_up_no_try,
    an_output_is_judged_by_the_runs_own_version,
    a_repeated_key_is_answered_again,
);

async fn a_heartbeat_extends_the_lease_and_keeps_progress(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "nightly", json!({"lease_seconds": 60})).await;
    queue(&publisher, "nightly", json!({})).await;
    let held = take(&publisher.runner, json!({})).await.remove(0);
    let first = held.run["lease_expires_at"].as_str().unwrap().to_owned();
    assert_eq!(held.run["claim"]["expires_at"], first);
    tokio::time::sleep(Duration::from_millis(20)).await;

    let progress = json!({"percent": 40, "file": "a.csv"});
    let call = held.heartbeat(&publisher.runner);
    let beat = call.json(&json!({"progress": progress})).expect(200).await;
    assert_eq!(beat["cancel_requested"], false, "{beat}");
    assert!(beat.text("/lease_expires_at") > first, "{beat}");
    let run = look(&publisher, &held.id).await;
    assert_eq!(run["progress"], progress, "{run}");
    assert_eq!(run["lease_expires_at"], beat["lease_expires_at"], "{run}");
    // One without progress keeps what was reported, and is no entry.
    held.heartbeat(&publisher.runner).expect(200).await;
    assert_eq!(look(&publisher, &held.id).await["progress"], progress);
    assert_eq!(
        words(&publisher, &held.id).await,
        ["created", "claimed", "progress"]
    );

    let long = "x".repeat(16 * 1024);
    let call = held.heartbeat(&publisher.runner);
    let answer = call.json(&json!({"progress": long}));
    let answer = answer.refused(422, "validation_failed").await;
    assert_eq!(answer.pointers(), ["/progress"]);
    held.complete(&publisher.runner).expect(200).await;
    held.heartbeat(&publisher.runner)
        .refused(409, "claim_lost")
        .await;
}

/// Everything of a run that must not change.
async fn state(publisher: &tests::Publisher, id: &str) -> (Value, Vec<Value>) {
    (look(publisher, id).await, timeline(publisher, id).await)
}

async fn every_late_word_is_refused(publisher: &tests::Publisher, late: &Held) {
    let before = state(publisher, &late.id).await;
    let beat = json!({"progress": {"from": "the dead"}});
    for call in [
        late.heartbeat(&publisher.runner).json(&beat),
        late.complete(&publisher.runner),
        late.complete(&publisher.runner).key("late"),
        late.fail(&publisher.runner, true),
        late.fail(&publisher.runner, false),
        late.release(&publisher.runner),
    ] {
        call.refused(409, "claim_lost").await;
    }
    assert_eq!(state(publisher, &late.id).await, before);
}

async fn a_lost_lease_changes_nothing_any_more(world: &World) {
    // Nobody but the claims themselves takes leases back here.
    let env = [("STATIONMASTER_CRON_LEASES", "0 0 0 1 1 *")];
    let server = world.start_with(&env).await;
    let publisher = server.publisher("acme").await;
    let brief = json!({"lease_seconds": 5, "max_attempts": 2});
    define(&publisher, "brief", brief).await;
    define(
        &publisher,
        "once",
        json!({"lease_seconds": 5, "max_attempts": 1}),
    )
    .await;
    define(&publisher, "kept", json!({"lease_seconds": 5})).await;
    let run = queue(&publisher, "brief", json!({})).await;
    let old = take(&publisher.runner, json!({})).await.remove(0);
    let (once, _) = publisher.claimed_run("once").await;
    let (called_off, _) = publisher.claimed_run("brief").await;
    let cancel = format!("/v1/runs/{called_off}/cancel");
    let asked = publisher.admin.post(&cancel).expect(200).await;
    assert_eq!(asked["status"], "running", "{asked}");
    queue(&publisher, "kept", json!({})).await;
    let named = json!({"pipelines": ["kept"]});
    let kept = take(&publisher.runner, named).await.remove(0);
    tokio::time::sleep(Duration::from_secs(2)).await;
    kept.heartbeat(&publisher.runner).expect(200).await;

    // A waiting claim gets the run as soon as its lease is over.
    let body = json!({"wait_seconds": 20, "pipelines": ["brief"]});
    let new = take(&publisher.runner, body).await.remove(0);
    assert_eq!((&new.id, &new.run["attempt"]), (&run, &json!(2)));
    every_late_word_is_refused(&publisher, &old).await;
    assert_eq!(
        words(&publisher, &run).await,
        ["created", "claimed", "lease_lost", "claimed"]
    );
    for (id, status) in [(&once, "expired"), (&called_off, "cancelled")] {
        // Theirs are over a moment later; any claim notices.
        eventually("the lease is over", LEASE_OVER, async || {
            let named = json!({"pipelines": ["once"]});
            assert!(take(&publisher.runner, named).await.is_empty());
            (look(&publisher, id).await["status"] != "running").then_some(())
        })
        .await;
        let entries = timeline(&publisher, id).await;
        let last = entries.last().unwrap();
        assert_eq!(look(&publisher, id).await["status"], status);
        assert_eq!(
            (&last["type"], &last["actor"]),
            (&json!(status), &json!(null))
        );
    }
    assert_eq!(look(&publisher, &kept.id).await["status"], "running");
    kept.complete(&publisher.runner).expect(200).await;
    let done = new.complete(&publisher.runner).expect(200).await;
    assert_eq!(
        (&done["status"], &done["attempt"]),
        (&json!("succeeded"), &json!(2))
    );
    every_late_word_is_refused(&publisher, &old).await;
}

async fn a_release_uses_up_no_try(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "nightly", json!({"max_attempts": 1})).await;
    let run = queue(&publisher, "nightly", json!({})).await;
    for attempt in 1..=3 {
        let held = take(&publisher.runner, json!({})).await.remove(0);
        assert_eq!((&held.id, &held.run["attempt"]), (&run, &json!(attempt)));
        let released = held.release(&publisher.runner).expect(200).await;
        assert_eq!(released["status"], "queued", "{released}");
        assert!(released["lease_expires_at"].is_null(), "{released}");
        held.complete(&publisher.runner)
            .refused(409, "claim_lost")
            .await;
    }
    let held = take(&publisher.runner, json!({})).await.remove(0);
    // The only try that counts.
    let failed = held.fail(&publisher.runner, true).expect(200).await;
    assert_eq!(failed["status"], "failed", "{failed}");
}

async fn an_output_is_judged_by_the_runs_own_version(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let schema = json!({
        "type": "object",
        "required": ["rows"],
        "properties": {
            "rows": {"type": "integer"},
            "files": {"type": "array", "items": {"type": "string"}},
        },
    });
    define(&publisher, "nightly", json!({"output_schema": schema})).await;
    let (id, token) = publisher.claimed_run("nightly").await;
    let looser = json!({"display_name": "Looser"});
    let path = "/v1/pipelines/nightly";
    publisher.admin.put(path).json(&looser).expect(200).await;
    let held = Held {
        run: json!(null),
        id,
        token,
    };
    let complete = |output: Value| {
        let call = held.call(&publisher.runner, "complete");
        call.json(&json!({"output": output}))
    };
    for (output, pointers) in [
        (json!({}), vec!["/output/rows"]),
        (
            json!({"rows": "many", "files": ["a", 1]}),
            vec!["/output/files/1", "/output/rows"],
        ),
        (json!(7), vec!["/output"]),
    ] {
        let answer = complete(output).refused(422, "validation_failed").await;
        let mut found = answer.pointers();
        found.sort();
        assert_eq!(found, pointers, "{answer}");
    }
    // The claim holds all the while: the runner may do better.
    let done = complete(json!({"rows": 3, "more": true})).expect(200).await;
    assert_eq!(done["output"], json!({"rows": 3, "more": true}), "{done}");
}

async fn a_repeated_key_is_answered_again(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let mut held = Vec::new();
    for n in 0..3 {
        let body = json!({"input": {"n": n}, "claim": true});
        let call = publisher.runner.post("/v1/pipelines/nightly/runs");
        let call = call.json(&body).key(&format!("create-{n}"));
        let first = call.clone().expect(201).await;
        let again = call.repeats_a_secret().expect(201).await;
        assert_eq!(again.body, first.body);
        held.push(Held::of(first.json()));
    }
    let runner = &publisher.runner;
    for (call, status) in [
        (held[0].complete(runner).key("a"), "succeeded"),
        (held[1].fail(runner, true).key("b"), "queued"),
        (held[2].release(runner).key("c"), "queued"),
    ] {
        let first = call.clone().expect(200).await;
        assert_eq!(first["status"], status, "{first}");
        let again = call.expect(200).await;
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("idempotent-replayed"), "true");
    }
    // Without a key the claim is simply gone.
    held[0].complete(runner).refused(409, "claim_lost").await;
    assert_eq!(publisher.admin.all("/v1/runs").await.len(), 3);
    for (at, last) in [(0, "succeeded"), (1, "attempt_failed"), (2, "released")] {
        assert_eq!(
            words(&publisher, &held[at].id).await,
            ["created", "claimed", last]
        );
    }
}
