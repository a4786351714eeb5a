//! Claims that wait.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::{World, on_both_stores, on_postgres, tools};

use super::{another_runner, held, look, queue, take, waiting};

on_both_stores!(
    a_new_run_wakes_a_claim,
    a_claim_ends_empty_after_its_time,
    whoever_hangs_up_takes_nothing,
    a_stop_ends_waiting_claims_at_once,
    a_revoked_token_gets_nothing_more,
    a_suspended_publisher_gets_nothing_more,
    many_claims_share_what_comes,
);
on_postgres!(a_run_made_on_one_process_wakes_a_claim_on_another);

async fn a_new_run_wakes_a_claim(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.pipeline("other").await;
    let body = json!({"wait_seconds": 20, "pipelines": ["nightly"]});
    let claim = waiting(&publisher.runner, body).await;
    // Another pipeline's run is not what it waits for.
    queue(&publisher, "other", json!({})).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!claim.is_finished());
    let began = Instant::now();
    let run = queue(&publisher, "nightly", json!({})).await;
    let (answer, at) = claim.await.unwrap();
    assert_eq!(answer["items"][0]["id"], run, "{answer}");
    let mut times = vec![at.duration_since(began)];
    for _ in 0..6 {
        let body = json!({"wait_seconds": 20, "pipelines": ["nightly"]});
        let claim = waiting(&publisher.runner, body).await;
        let began = Instant::now();
        queue(&publisher, "nightly", json!({})).await;
        times.push(claim.await.unwrap().1.duration_since(began));
    }
    times.sort_unstable();
    // What nobody woke would be found by a look at all that wait, one second later in the middle.
    assert!(times[3] < Duration::from_millis(700), "{times:?}");
}

async fn a_claim_ends_empty_after_its_time(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let began = Instant::now();
    let body = json!({"wait_seconds": 1});
    assert!(take(&publisher.runner, body).await.is_empty());
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(950), "{took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let began = Instant::now();
    assert!(take(&publisher.runner, json!({})).await.is_empty());
    assert!(began.elapsed() < Duration::from_secs(10));
    let long = publisher.runner.post("/v1/runs/claim");
    let answer = long.json(&json!({"wait_seconds": 61}));
    let answer = answer.refused(422, "validation_failed").await;
    assert_eq!(answer.pointers(), ["/wait_seconds"]);
}

async fn whoever_hangs_up_takes_nothing(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    for _ in 0..3 {
        let claim = waiting(&publisher.runner, json!({"wait_seconds": 30})).await;
        claim.abort();
        assert!(claim.await.unwrap_err().is_cancelled());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let run = queue(&publisher, "nightly", json!({})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(look(&publisher, &run).await["status"], "queued");
    let taken = take(&publisher.runner, json!({})).await;
    assert_eq!(taken[0].id, run);
    assert_eq!(taken[0].run["attempt"], 1, "{:?}", taken[0].run);
}

async fn a_stop_ends_waiting_claims_at_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let claims = [
        waiting(&publisher.runner, json!({"wait_seconds": 60})).await,
        waiting(&publisher.runner, json!({"wait_seconds": 60})).await,
    ];
    let began = Instant::now();
    server.terminate();
    for claim in claims {
        let (answer, at) = claim.await.unwrap();
        assert_eq!(answer.status, 200, "{answer}");
        assert!(held(&answer).is_empty(), "{answer}");
        let took = at.duration_since(began);
        assert!(took < Duration::from_secs(20), "{took:?}");
    }
    let status = server.wait().await;
    assert!(status.success(), "{status}");
    assert!(began.elapsed() < Duration::from_secs(30));
}

async fn a_revoked_token_gets_nothing_more(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let (doomed, id) = another_runner(&publisher, json!({})).await;
    let path = format!("/v1/publishers/me/tokens/runner/{id}");
    let claim = waiting(&doomed, json!({"wait_seconds": 20})).await;
    publisher.admin.delete(&path).expect(204).await;
    let run = queue(&publisher, "nightly", json!({})).await;
    let (answer, _) = claim.await.unwrap();
    assert_eq!(answer["code"], "unauthenticated", "{answer}");
    let run = look(&publisher, &run).await;
    assert_eq!(
        (&run["status"], &run["attempt"]),
        (&json!("queued"), &json!(0))
    );
}

async fn a_suspended_publisher_gets_nothing_more(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let soon = json!({"not_before": tools::in_seconds(5)});
    let run = queue(&publisher, "nightly", soon).await;
    let claim = waiting(&publisher.runner, json!({"wait_seconds": 25})).await;
    let path = format!("/v1/publishers/{}", publisher.id);
    let operator = server.operator();
    operator.post(&format!("{path}/suspend")).expect(200).await;
    // When the run's time comes, its publisher is no longer active.
    let (answer, _) = claim.await.unwrap();
    assert_eq!(answer["code"], "publisher_suspended", "{answer}");
    operator.post(&format!("{path}/resume")).expect(200).await;
    let taken = take(&publisher.runner, json!({"wait_seconds": 10})).await;
    assert_eq!(taken[0].id, run);
    assert_eq!(taken[0].run["attempt"], 1);
}

async fn many_claims_share_what_comes(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let mut claims = Vec::new();
    for _ in 0..6 {
        let body = json!({"wait_seconds": 6});
        let call = publisher.runner.post("/v1/runs/claim").json(&body);
        claims.push(tokio::spawn(call.expect(200)));
    }
    tokio::time::sleep(Duration::from_millis(250)).await;
    let mut made = vec![
        queue(&publisher, "nightly", json!({})).await,
        queue(&publisher, "nightly", json!({})).await,
        queue(&publisher, "nightly", json!({})).await,
    ];
    let mut got = Vec::new();
    for claim in claims {
        let answer = claim.await.unwrap();
        got.extend(held(&answer).into_iter().map(|one| one.id));
    }
    got.sort();
    made.sort();
    assert_eq!(got, made, "each run once, and nobody two");
}

async fn a_run_made_on_one_process_wakes_a_claim_on_another(world: &World) {
    let server = world.start().await;
    let beside = server.site().start_beside(&[]).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let there = beside.user(publisher.runner.token());
    let mut times = Vec::new();
    for _ in 0..11 {
        let claim = waiting(&there, json!({"wait_seconds": 10})).await;
        // From before the request that makes it to the claim's answer.
        let began = Instant::now();
        let run = queue(&publisher, "nightly", json!({})).await;
        let (answer, at) = claim.await.unwrap();
        assert_eq!(answer["items"][0]["id"], run, "{answer}");
        times.push(at.duration_since(began));
    }
    times.sort_unstable();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("woken on another process: median {median:?}, worst {worst:?}");
    // Without the notification it would be the poll of two seconds that finds the run. How long it
    // takes on a machine that does nothing else is for the benches to say.
    assert!(median < Duration::from_secs(1), "{times:?}");
}
