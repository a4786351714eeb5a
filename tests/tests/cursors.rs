//! Lists: pages that join without a gap, and cursors that open nothing else.

use serde_json::json;
use tests::{World, on_both_stores};

on_both_stores!(
    pages_join_without_gap_or_repeat,
    a_cursor_opens_only_its_own_list,
    runs_can_be_filtered,
);

async fn pages_join_without_gap_or_repeat(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let mut made = Vec::new();
    for _ in 0..7 {
        made.push(publisher.run("nightly").await);
    }
    let mut seen = Vec::new();
    let mut path = "/v1/runs?limit=3".to_owned();
    loop {
        let page = publisher.runner.get(&path).expect(200).await;
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 3);
        seen.extend(
            items
                .iter()
                .map(|run| run["id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = page["next_cursor"].as_str() else {
            assert_eq!(page.header("link"), "");
            break;
        };
        let link = page.header("link");
        assert!(
            link.contains("rel=\"next\"") && link.contains(next),
            "{link}"
        );
        // What came meanwhile belongs before the first page.
        publisher.run("nightly").await;
        path = format!("/v1/runs?limit=3&cursor={next}");
    }
    made.reverse();
    assert_eq!(seen, made, "newest first");
}

async fn a_cursor_opens_only_its_own_list(world: &World) {
    let server = world.start().await;
    let (one, two) = (server.publisher("one").await, server.publisher("two").await);
    for publisher in [&one, &two] {
        publisher.pipeline("nightly").await;
        for _ in 0..3 {
            publisher.run("nightly").await;
        }
    }
    let page = one.runner.get("/v1/runs?limit=1").expect(200).await;
    let cursor = page.text("/next_cursor");
    let with = |path: &str, cursor: &str| format!("{path}{cursor}");

    one.runner
        .get(&with("/v1/runs?limit=1&cursor=", &cursor))
        .expect(200)
        .await;
    one.admin
        .get(&with("/v1/runs?limit=2&cursor=", &cursor))
        .expect(200)
        .await;
    for (what, user, path) in [
        ("another publisher", &two.runner, "/v1/runs?limit=1&cursor="),
        ("another list", &one.runner, "/v1/events?limit=1&cursor="),
        (
            "another filter",
            &one.runner,
            "/v1/runs?limit=1&status=queued&cursor=",
        ),
    ] {
        let answer = user.get(&with(path, &cursor)).answer().await;
        assert_eq!(answer["code"], "invalid_cursor", "{what}: {answer}");
    }
    for at in 0..cursor.len() {
        let mut edited = cursor.clone().into_bytes();
        edited[at] = if edited[at] == b'A' { b'B' } else { b'A' };
        let edited = String::from_utf8(edited).unwrap();
        let call = one.runner.get(&with("/v1/runs?limit=1&cursor=", &edited));
        call.refused(400, "invalid_cursor").await;
    }
    for odd in [
        "x",
        "AAAA",
        &cursor[..cursor.len() - 1],
        &format!("{cursor}A"),
    ] {
        let call = one.runner.get(&with("/v1/runs?limit=1&cursor=", odd));
        call.refused(400, "invalid_cursor").await;
    }
    // Its key is not made at every start.
    let _again = server.restart(&[]).await;
    one.runner
        .get(&with("/v1/runs?limit=1&cursor=", &cursor))
        .expect(200)
        .await;
}

async fn runs_can_be_filtered(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("one").await;
    publisher.pipeline("two").await;
    publisher.run("one").await;
    let done = publisher.finished_run("two").await;
    let body = json!({"input": {}, "external_id": "50%_off", "priority": 0});
    let named = publisher
        .runner
        .post("/v1/pipelines/one/runs")
        .json(&body)
        .expect(201)
        .await;
    // The same external identifier is the same run.
    let call = publisher.runner.post("/v1/pipelines/one/runs").json(&body);
    let again = call.answer().await;
    assert_eq!(again["id"], named["id"], "{again}");

    let count = async |query: &str| {
        publisher
            .runner
            .all(&format!("/v1/runs?{query}"))
            .await
            .len()
    };
    assert_eq!(count("pipeline=one").await, 2);
    assert_eq!(count("pipeline=two").await, 1);
    assert_eq!(count("pipeline=three").await, 0);
    assert_eq!(count("status=succeeded").await, 1);
    assert_eq!(count("external_id=50%25_off").await, 1);
    // Nothing in a filter is a pattern.
    assert_eq!(count("external_id=50%25").await, 0);
    assert_eq!(count("external_id=%25").await, 0);
    assert_eq!(count("pipeline=o%25").await, 0);
    let items = publisher
        .runner
        .all("/v1/runs?pipeline=two&status=succeeded")
        .await;
    assert_eq!(items[0]["id"], done);
    // The most urgent run is claimed first.
    let claimed = publisher
        .runner
        .post("/v1/runs/claim")
        .json(&json!({"max": 1}))
        .expect(200)
        .await;
    assert_eq!(claimed["items"][0]["id"], named["id"], "{claimed}");
}
