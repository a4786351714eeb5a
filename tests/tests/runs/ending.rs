//! How runs end: failed after their tries, or called off.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{World, on_both_stores};

use super::{Held, define, look, queue, queue_many, take, timeline, waiting, words};

on_both_stores!(
    a_failed_try_waits_longer_each_time,
    a_run_that_succeeds_keeps_no_earlier_error,
    a_run_is_called_off_wherever_it_stands,
    many_are_called_off_at_once,
);

/// Milliseconds between two of a run's times.
fn between(run: &Value, from: &str, to: &str) -> i64 {
    let ms = |name: &str| {
        let text = run[name].as_str().unwrap();
        domain::Timestamp::parse(text).unwrap().ms()
    };
    ms(to) - ms(from)
}

async fn a_failed_try_waits_longer_each_time(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "nightly", json!({"max_attempts": 2})).await;
    queue(&publisher, "nightly", json!({})).await;
    let first = take(&publisher.runner, json!({})).await.remove(0);
    let failed = first.fail(&publisher.runner, true).expect(200).await;
    assert_eq!(failed["status"], "queued", "{failed}");
    assert_eq!(failed["error"]["message"], "no disk", "{failed}");
    assert!(failed["finished_at"].is_null(), "{failed}");
    // 5 s after the failure, which came a moment after the claim, ±20 %.
    let wait = between(failed.json(), "started_at", "not_before");
    assert!((4000..=8000).contains(&wait), "{wait}");
    assert!(take(&publisher.runner, json!({})).await.is_empty());
    let again = take(&publisher.runner, json!({"wait_seconds": 20})).await;
    assert_eq!(
        (&again[0].id, &again[0].run["attempt"]),
        (&first.id, &json!(2))
    );
    let over = again[0].fail(&publisher.runner, true).expect(200).await;
    assert_eq!(over["status"], "failed", "{over}");
    assert_eq!(
        words(&publisher, &first.id).await,
        ["created", "claimed", "attempt_failed", "claimed", "failed"]
    );

    // The waits grow; nobody has the time to see it happen, so the first two are compared.
    define(&publisher, "patient", json!({"max_attempts": 9})).await;
    queue(&publisher, "patient", json!({})).await;
    let one = take(&publisher.runner, json!({})).await.remove(0);
    one.fail(&publisher.runner, true).expect(200).await;
    let two = take(&publisher.runner, json!({"wait_seconds": 20}))
        .await
        .remove(0);
    let failed = two.fail(&publisher.runner, true).expect(200).await;
    let lease = &two.run["lease_expires_at"];
    let mut run = failed.json().clone();
    run["lease_began"] = lease.clone();
    let wait = between(&run, "lease_began", "not_before") + 300_000;
    assert!((8000..=14_000).contains(&wait), "{wait}");

    // What another try can't mend ends at once.
    define(&publisher, "hopeless", json!({"max_attempts": 9})).await;
    let (id, token) = publisher.claimed_run("hopeless").await;
    let held = Held {
        run: json!(null),
        id,
        token,
    };
    let over = held.fail(&publisher.runner, false).expect(200).await;
    assert_eq!(over["status"], "failed", "{over}");
    assert!(over["finished_at"].is_string(), "{over}");
}

async fn a_run_that_succeeds_keeps_no_earlier_error(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "nightly", json!({"max_attempts": 2})).await;
    queue(&publisher, "nightly", json!({})).await;
    let first = take(&publisher.runner, json!({})).await.remove(0);
    first.fail(&publisher.runner, true).expect(200).await;
    let again = take(&publisher.runner, json!({"wait_seconds": 20})).await;
    let over = again[0].complete(&publisher.runner).expect(200).await;
    assert!(over["error"].is_null(), "{over}");
    assert!(look(&publisher, &first.id).await["error"].is_null());
    let entries = timeline(&publisher, &first.id).await;
    let told = entries.iter().find(|one| one["type"] == "attempt_failed");
    let told = told.unwrap_or_else(|| panic!("{entries:?}"));
    assert_eq!(told["data"]["error"]["message"], "no disk", "{told}");
}

async fn a_run_is_called_off_wherever_it_stands(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let cancel = |id: &str| publisher.admin.post(&format!("/v1/runs/{id}/cancel"));
    let queued = queue(&publisher, "nightly", json!({})).await;
    let gone = cancel(&queued).expect(200).await;
    assert_eq!(gone["status"], "cancelled", "{gone}");
    cancel(&queued).refused(409, "run_finished").await;
    assert!(take(&publisher.runner, json!({})).await.is_empty());

    queue_many(&publisher, "nightly", 4).await;
    let held = take(&publisher.runner, json!({"max": 4})).await;
    for one in &held {
        let asked = cancel(&one.id).expect(200).await;
        assert_eq!(asked["status"], "running", "{asked}");
        assert_eq!(asked["cancel_requested"], true, "{asked}");
        // Asking twice is asking once.
        cancel(&one.id).expect(200).await;
        let beat = one.heartbeat(&publisher.runner).expect(200).await;
        assert_eq!(beat["cancel_requested"], true, "{beat}");
    }
    let runner = &publisher.runner;
    for (call, status) in [
        (held[0].release(runner), "cancelled"),
        (held[1].fail(runner, true), "cancelled"),
        (held[2].fail(runner, false), "cancelled"),
        (held[3].complete(runner), "succeeded"),
    ] {
        let ended = call.expect(200).await;
        assert_eq!(ended["status"], status, "{ended}");
        assert!(ended["finished_at"].is_string(), "{ended}");
    }
    for (one, last) in held
        .iter()
        .zip(["cancelled", "cancelled", "cancelled", "succeeded"])
    {
        assert_eq!(
            words(&publisher, &one.id).await,
            ["created", "claimed", "cancel_requested", last]
        );
        cancel(&one.id).refused(409, "run_finished").await;
    }
}

async fn many_are_called_off_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.pipeline("other").await;
    let early = queue(&publisher, "nightly", json!({"external_id": "early"})).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    queue_many(&publisher, "nightly", 5).await;
    // By the server's clock, which may differ from ours a little.
    let runs = publisher.admin.all("/v1/runs?pipeline=nightly").await;
    let later = runs.iter().filter(|run| run["id"] != early.as_str());
    let moment = later.map(|run| run["created_at"].as_str().unwrap()).min();
    let moment = moment.unwrap().to_owned();
    let named = json!({"pipelines": ["nightly"], "max": 1});
    let held = take(&publisher.runner, named).await.remove(0);
    assert_eq!(held.id, early, "the oldest");
    let other = queue(&publisher, "other", json!({})).await;

    let bulk = |body: Value| publisher.admin.post("/v1/runs/cancel").json(&body);
    let counts = |cancelled: u32, requested: u32| json!({"cancelled": cancelled, "requested": requested, "more": false});
    let none = bulk(json!({"external_id": "late"})).expect(200).await;
    assert_eq!(none.json(), &counts(0, 0));
    let call = bulk(json!({"pipeline": "nightly", "since": moment})).key("once");
    let done = call.clone().expect(200).await;
    assert_eq!(done.json(), &counts(5, 0));
    assert_eq!(
        call.expect(200).await.json(),
        &counts(5, 0),
        "the answer kept"
    );
    let done = bulk(json!({"pipeline": "nightly"})).expect(200).await;
    assert_eq!(done.json(), &counts(0, 1));
    // Asked for already: nothing is left to do.
    let done = bulk(json!({"pipeline": "nightly", "status": "running"}));
    assert_eq!(done.expect(200).await.json(), &counts(0, 0));
    assert_eq!(look(&publisher, &other).await["status"], "queued");
    let beat = held.heartbeat(&publisher.runner).expect(200).await;
    assert_eq!(beat["cancel_requested"], true, "{beat}");
    let waiting = waiting(
        &publisher.runner,
        json!({"wait_seconds": 2, "pipelines": ["nightly"]}),
    );
    let (empty, _) = waiting.await.await.unwrap();
    assert_eq!(empty["items"], json!([]));
    let wrong = bulk(json!({"status": "succeeded"}));
    wrong.refused(422, "validation_failed").await;
    let actions = publisher.actions().await;
    let told = actions.iter().filter(|action| *action == "runs.cancelled");
    assert_eq!(told.count(), 2, "{actions:?}");
}
