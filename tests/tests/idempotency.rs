//! `Idempotency-Key`: a change is made once, and its answer can be had again.

use std::time::Duration;

use serde_json::json;
use tests::{User, World, on_both_stores, tools};

on_both_stores!(
    the_first_answer_comes_again,
    another_body_under_the_same_key_is_refused,
    two_at_once_make_one_change,
    a_key_belongs_to_its_publisher,
    a_key_belongs_to_its_operation,
    a_refusal_is_kept_too,
    a_credential_is_answered_again_for_a_while,
    a_credential_is_wiped_once_nobody_can_have_it_again,
    a_repeat_is_authorised_anew,
    a_kept_answer_goes_to_nobody_whom_it_does_not_concern,
    a_claim_is_answered_again_to_its_holder_alone,
);

const RUNS: &str = "/v1/pipelines/nightly/runs";

async fn the_first_answer_comes_again(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let call = publisher
        .runner
        .post(RUNS)
        .json(&json!({"input": {"n": 1}}))
        .key("one");
    let first = call.clone().expect(201).await;
    assert_eq!(first.header("idempotent-replayed"), "");
    // Members in another order and other white space are the same request or another one: never a
    // second run.
    let again = call.clone().expect(201).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.header("etag"), first.header("etag"));
    assert_eq!(publisher.admin.all("/v1/runs").await.len(), 1);
    // The key survives the process.
    let _again = server.restart(&[]).await;
    let later = call.expect(201).await;
    assert_eq!(later.body, first.body);
    assert_eq!(publisher.admin.all("/v1/runs").await.len(), 1);
}

async fn another_body_under_the_same_key_is_refused(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let call = publisher.runner.post(RUNS).key("one");
    call.clone()
        .json(&json!({"input": {"n": 1}}))
        .expect(201)
        .await;
    call.json(&json!({"input": {"n": 2}}))
        .refused(422, "idempotency_key_reused")
        .await;
    assert_eq!(publisher.admin.all("/v1/runs").await.len(), 1);
}

async fn two_at_once_make_one_change(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    for round in 0..5 {
        let call = publisher
            .runner
            .post(RUNS)
            .json(&json!({"input": {"n": round}}));
        let call = call.key(&format!("round-{round}"));
        let ask = || tokio::spawn(call.clone().expect(201));
        let (one, two, three) = (ask(), ask(), ask());
        let bodies = [one.await.unwrap(), two.await.unwrap(), three.await.unwrap()];
        assert!(bodies.iter().all(|answer| answer.body == bodies[0].body));
        let replayed = bodies
            .iter()
            .filter(|answer| answer.header("idempotent-replayed") == "true");
        assert_eq!(replayed.count(), 2);
    }
    assert_eq!(publisher.admin.all("/v1/runs").await.len(), 5);
}

async fn a_key_belongs_to_its_publisher(world: &World) {
    let server = world.start().await;
    let (one, two) = (server.publisher("one").await, server.publisher("two").await);
    let mut ids = Vec::new();
    for publisher in [&one, &two] {
        publisher.pipeline("nightly").await;
        let call = publisher
            .runner
            .post(RUNS)
            .json(&json!({"input": {"n": 1}}))
            .key("same");
        let answer = call.expect(201).await;
        assert_eq!(answer.header("idempotent-replayed"), "");
        ids.push(answer.text("/id"));
    }
    assert_ne!(ids[0], ids[1]);
}

async fn a_key_belongs_to_its_operation(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let run = publisher.run("nightly").await;
    let other = publisher.run("nightly").await;
    publisher
        .runner
        .post(RUNS)
        .json(&json!({"input": {}}))
        .key("k")
        .expect(201)
        .await;
    let cancel = format!("/v1/runs/{run}/cancel");
    publisher.runner.post(&cancel).key("k").expect(200).await;
    // The path belongs to the request: the same key for another run is another request.
    let cancel = format!("/v1/runs/{other}/cancel");
    publisher
        .runner
        .post(&cancel)
        .key("k")
        .refused(422, "idempotency_key_reused")
        .await;
}

async fn a_refusal_is_kept_too(world: &World) {
    let server = world.start().await;
    let operator = server.operator();
    let other = server.publisher("acme").await;
    let body = json!({"slug": "acme", "display_name": "Another Acme"});
    let call = operator.post("/v1/publishers").json(&body);
    call.clone().key("k").refused(409, "slug_taken").await;
    let path = format!("/v1/publishers/{}?confirm=acme", other.id);
    operator.delete(&path).expect(204).await;
    // The first answer stands, so that whoever repeats can rely on it.
    call.clone().key("k").refused(409, "slug_taken").await;
    call.key("l").expect(201).await;
}

async fn a_credential_is_answered_again_for_a_while(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let path = "/v1/publishers/me/tokens/runner/rotate";
    let call = publisher
        .admin
        .post(path)
        .json(&json!({}))
        .key("rotate")
        .repeats_a_secret();
    let first = call.clone().expect(200).await;
    let again = call.clone().expect(200).await;
    assert_eq!(again.body, first.body);
    assert_eq!(again.header("idempotent-replayed"), "true");
    server
        .user(&first.text("/token"))
        .get("/v1/publishers/me")
        .expect(200)
        .await;
    let rotated = publisher.actions().await;
    let rotated = rotated
        .iter()
        .filter(|action| *action == "token.rotated")
        .count();
    assert_eq!(rotated, 1);

    let body = json!({"slug": "new", "display_name": "New"});
    let call = server
        .operator()
        .post("/v1/publishers")
        .json(&body)
        .key("new")
        .repeats_a_secret();
    let first = call.clone().expect(201).await;
    assert_eq!(call.expect(201).await.body, first.body);
}

async fn a_credential_is_wiped_once_nobody_can_have_it_again(world: &World) {
    let each_second = ("STATIONMASTER_CRON_IDEMPOTENCY_KEYS", "* * * * * *");
    let server = world.start_with(&[each_second]).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let rotate = publisher
        .admin
        .post("/v1/publishers/me/tokens/runner/rotate")
        .json(&json!({}))
        .key("rotate");
    let run = publisher.admin.post(RUNS).json(&json!({"input": {}}));
    let run = run.key("run");
    rotate.clone().expect(200).await;
    run.clone().expect(201).await;
    let site = server.site();
    let kept = "idempotency_keys WHERE answer IS NOT NULL";
    assert_eq!(site.count(kept).await, 2);
    // Ten minutes pass.
    let pass = "UPDATE idempotency_keys SET answer_until = 1 WHERE answer_until IS NOT NULL";
    assert_eq!(site.execute(pass).await, 1);
    tools::eventually("it is wiped", Duration::from_secs(10), async || {
        (site.count(kept).await == 1).then_some(())
    })
    .await;
    let gone = "secret_no_longer_available";
    rotate.clone().refused(409, gone).await;
    rotate.refused(409, gone).await;
    let again = run.expect(201).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    let actions = publisher.actions().await;
    let rotated = actions.iter().filter(|one| *one == "token.rotated");
    assert_eq!(rotated.count(), 1, "{actions:?}");
}

async fn a_repeat_is_authorised_anew(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let call = publisher
        .runner
        .post(RUNS)
        .json(&json!({"input": {}}))
        .key("k");
    call.clone().expect(201).await;
    let runner = format!(
        "/v1/publishers/me/tokens/runner/{}",
        publisher.credential("runner")
    );
    publisher.admin.delete(&runner).expect(204).await;
    call.refused(401, "unauthenticated").await;
}

/// A token that is limited to other pipelines meets no key of others: it is answered as without
/// one, and what it is answered is not kept for them.
async fn a_kept_answer_goes_to_nobody_whom_it_does_not_concern(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.pipeline("other").await;
    let token = "/v1/publishers/me/tokens/runner";
    let minted = publisher.admin.post(token);
    let minted = minted.json(&json!({"pipelines": ["other"]})).expect(201);
    let limited = server.user(&minted.await.text("/token"));
    let secret = json!({"very": "secret"});

    let create = |by: &User, key: &str| by.post(RUNS).json(&json!({"input": secret})).key(key);
    create(&limited, "a").refused(404, "not_found").await;
    let run = create(&publisher.runner, "a").expect(201).await.text("/id");
    create(&limited, "a").refused(404, "not_found").await;
    let other = limited.post(RUNS).json(&json!({"input": 2})).key("a");
    other.refused(404, "not_found").await;

    let path = format!("/v1/runs/{run}/cancel");
    publisher.admin.post(&path).key("b").expect(200).await;
    limited.post(&path).key("b").refused(404, "not_found").await;

    let event = json!({"type": "a.b", "data": secret, "pipeline": "nightly", "external_id": "x"});
    let publish = |by: &User| by.post("/v1/events").json(&event).key("c");
    publish(&publisher.admin).expect(202).await;
    let refused = publish(&limited).refused(422, "validation_failed").await;
    assert!(!String::from_utf8_lossy(&refused.body).contains("secret"));
    let own = json!({"type": "a.b", "data": 1, "pipeline": "other", "external_id": "x"});
    let own = limited.post("/v1/events").json(&own);
    let refused = own.refused(422, "validation_failed").await;
    assert!(!String::from_utf8_lossy(&refused.body).contains("reach"));

    let all = json!({"until": "2999-01-01T00:00:00Z"});
    let bulk = |by: &User| by.post("/v1/runs/cancel").json(&all).key("d").expect(200);
    create(&publisher.runner, "e").expect(201).await;
    assert_eq!(bulk(&publisher.runner).await.json()["cancelled"], 1);
    let answer = bulk(&limited).await;
    assert_eq!(answer.json()["cancelled"], 0);
    assert_eq!(answer.header("idempotent-replayed"), "");
}

/// What a holder did with its claim is answered again to who shows the claim, and the claim itself
/// to the credential that it was given to.
async fn a_claim_is_answered_again_to_its_holder_alone(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let minted = publisher.admin.post("/v1/publishers/me/tokens/runner");
    let minted = minted.json(&json!({})).expect(201).await;
    let colleague = server.user(&minted.text("/token"));
    let create = |by: &User, key: &str| {
        let body = json!({"input": {"in": "secret"}, "claim": true});
        by.post(RUNS).json(&body).key(key)
    };
    for (step, body) in [
        ("complete", Some(json!({"output": {"o": "secret"}}))),
        ("fail", Some(json!({"error": {"message": "secret"}}))),
        ("release", None),
    ] {
        let first = create(&publisher.runner, step).repeats_a_secret();
        let first = first.expect(201).await;
        let again = create(&publisher.runner, step).repeats_a_secret();
        assert_eq!(again.expect(201).await.body, first.body);
        create(&colleague, step)
            .refused(409, "secret_no_longer_available")
            .await;
        let path = format!("/v1/runs/{}/{step}", first.text("/id"));
        let finish = |by: &User, claim: &str| {
            let call = by.post(&path).header("x-stationmaster-claim", claim);
            let call = call.key("finish");
            match &body {
                Some(body) => call.json(body),
                None => call,
            }
        };
        let claim = first.text("/claim/token");
        finish(&publisher.runner, &claim).expect(200).await;
        let again = finish(&publisher.runner, &claim).expect(200).await;
        assert_eq!(again.header("idempotent-replayed"), "true");
        for by in [&publisher.runner, &colleague] {
            finish(by, "stm_claim_wrong")
                .refused(409, "claim_lost")
                .await;
        }
    }
}
