//! What an address that has guessed too often may still do.

use serde_json::json;
use tests::{User, World, on_both_stores};

on_both_stores!(whoever_guesses_locks_nobody_out_who_is_known);

/// One failure a minute, so that none is allowed anew while the test runs.
const STRICT: [(&str, &str); 1] = [("STATIONMASTER_AUTH_FAILURES_PER_MINUTE", "1")];
const ME: &str = "/v1/publishers/me";

async fn minted(admin: &User) -> User {
    let call = admin.post("/v1/publishers/me/tokens/runner");
    let answer = call.json(&json!({})).expect(201).await;
    admin.with_token(&answer.text("/token"))
}

async fn whoever_guesses_locks_nobody_out_who_is_known(world: &World) {
    let server = world.start_with(&STRICT).await;
    let publisher = server.publisher("acme").await;
    let known = minted(&publisher.admin).await;
    known.get(ME).expect(200).await;
    let mut fresh = Vec::new();
    for _ in 0..12 {
        fresh.push(minted(&publisher.admin).await);
    }

    let guess = || server.user("stm_runner_guess").get(ME);
    guess().refused(401, "unauthenticated").await;
    let over = guess().refused(429, "rate_limited").await;
    assert!(over.header("retry-after").parse::<u64>().unwrap() >= 1);

    // Who was here before goes on, also when all that is remembered of it was called into doubt.
    known.get(ME).expect(200).await;
    let name = json!({"display_name": "Another name"});
    publisher.admin.patch(ME).json(&name).expect(200).await;
    known.get(ME).expect(200).await;

    // Who was not is taken for one more guess, but for the few whose turn it is.
    let mut refused = 0;
    for user in &fresh {
        let status = user.get(ME).answer().await.status;
        assert!(status == 200 || status == 429, "{status}");
        refused += usize::from(status == 429);
    }
    assert!(refused >= 6, "only {refused} of {}", fresh.len());

    // A token that ends is forgotten, and then counts as a guess.
    let rotate = "/v1/publishers/me/tokens/runner/rotate";
    publisher
        .admin
        .post(rotate)
        .json(&json!({}))
        .expect(200)
        .await;
    known.get(ME).refused(429, "rate_limited").await;
    publisher.admin.get(ME).expect(200).await;
}
