//! What is told of a run: its timeline, and its stream.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{User, World, on_both_stores, on_postgres};

use super::{another_runner, define, queue, take, timeline, words};

on_both_stores!(
    a_timeline_tells_everything_in_order,
    a_stream_ends_with_its_run_and_can_be_resumed,
    a_stream_ends_with_its_token,
);
on_postgres!(a_stream_tells_what_happens_on_another_process);

async fn a_timeline_tells_everything_in_order(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "nightly", json!({"max_attempts": 2})).await;
    let run = queue(&publisher, "nightly", json!({})).await;
    let (second, second_id) = another_runner(&publisher, json!({})).await;
    let held = take(&second, json!({})).await.remove(0);
    let beat = held.heartbeat(&second).json(&json!({"progress": 50}));
    beat.expect(200).await;
    held.release(&second).expect(200).await;
    let held = take(&publisher.runner, json!({})).await.remove(0);
    held.fail(&publisher.runner, true).expect(200).await;
    let body = json!({"wait_seconds": 20});
    let held = take(&publisher.runner, body).await.remove(0);
    let cancel = format!("/v1/runs/{run}/cancel");
    publisher.admin.post(&cancel).expect(200).await;
    held.complete(&publisher.runner).expect(200).await;

    let (runner, admin) = (
        publisher.credential("runner"),
        publisher.credential("admin"),
    );
    let by = |id: &str, kind: &str| json!({"id": id, "kind": kind});
    let (first, other, owner) = (
        by(&runner, "runner"),
        by(&second_id, "runner"),
        by(&admin, "admin"),
    );
    let error = json!({"error": {"message": "no disk"}});
    let wanted = [
        ("created", 0, &first, json!(null)),
        ("claimed", 1, &other, json!(null)),
        ("progress", 1, &other, json!({"progress": 50})),
        ("released", 1, &other, json!(null)),
        ("claimed", 2, &first, json!(null)),
        ("attempt_failed", 2, &first, error),
        ("claimed", 3, &first, json!(null)),
        ("cancel_requested", 3, &owner, json!(null)),
        ("succeeded", 3, &first, json!(null)),
    ];
    let entries = timeline(&publisher, &run).await;
    assert_eq!(entries.len(), wanted.len(), "{entries:?}");
    for (entry, (word, attempt, actor, data)) in entries.iter().zip(wanted) {
        let found = (
            &entry["type"],
            &entry["attempt"],
            &entry["actor"],
            &entry["data"],
        );
        assert_eq!(
            found,
            (&json!(word), &json!(attempt), actor, &data),
            "{entry}"
        );
    }
    let seqs: Vec<i64> = entries
        .iter()
        .map(|one| one["seq"].as_i64().unwrap())
        .collect();
    assert!(seqs.is_sorted_by(|a, b| a < b), "{seqs:?}");

    // The same in parts.
    let path = format!("/v1/runs/{run}/timeline");
    let part = publisher.runner.get(&format!("{path}?limit=4"));
    let part = part.expect(200).await;
    let rest = format!("{path}?limit=4&cursor={}", part.text("/next_cursor"));
    let rest = publisher.runner.get(&rest).expect(200).await;
    assert_eq!(part["items"].as_array().unwrap(), &entries[..4]);
    assert_eq!(rest["items"].as_array().unwrap(), &entries[4..8]);
}

/// A stream that is being read.
struct Stream {
    response: reqwest::Response,
    text: String,
    ended: bool,
}

impl Stream {
    async fn open(user: &User, run: &str, after: Option<i64>) -> Self {
        let mut call = user.get(&format!("/v1/runs/{run}/stream"));
        if let Some(after) = after {
            call = call.header("last-event-id", &after.to_string());
        }
        let response = call.open().await;
        assert_eq!(response.status(), 200);
        let kind = response.headers()["content-type"].to_str().unwrap();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Self {
            response,
            text: String::new(),
            ended: false,
        }
    }

    /// The next event, or `None` at the end; neither may take longer than 10 s.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = parsed(event);
                let rest = rest.to_owned();
                self.text = rest;
                if event.is_some() {
                    return event;
                }
                continue;
            }
            if self.ended {
                return None;
            }
            let limit = Duration::from_secs(10);
            let chunk = tokio::time::timeout(limit, self.response.chunk()).await;
            match chunk.expect("the stream is silent").unwrap() {
                Some(bytes) => self.text.push_str(std::str::from_utf8(&bytes).unwrap()),
                None => self.ended = true,
            }
        }
    }

    async fn word(&mut self) -> Option<String> {
        let event = self.next().await?;
        Some(event["type"].as_str().unwrap().to_owned())
    }
}

/// The entry of one event, whose other fields say the same; `None` for a comment.
fn parsed(event: &str) -> Option<Value> {
    let field = |name: &str| {
        let mut lines = event.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let entry: Value = serde_json::from_str(field("data")?).unwrap();
    assert_eq!(field("id").unwrap(), entry["seq"].to_string(), "{event}");
    assert_eq!(
        field("event").unwrap(),
        entry["type"].as_str().unwrap(),
        "{event}"
    );
    Some(entry)
}

/// Most of these were told of by whoever changed something. What a stream finds by its own look, one
/// every two seconds, takes a second in the middle; on a busy machine a few may take as long.
fn woken(mut times: Vec<Duration>) {
    times.sort_unstable();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(700), "{times:?}");
}

async fn a_stream_ends_with_its_run_and_can_be_resumed(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let run = queue(&publisher, "nightly", json!({})).await;
    let mut live = Stream::open(&publisher.admin, &run, None).await;
    assert_eq!(live.word().await.unwrap(), "created");
    let held = take(&publisher.runner, json!({})).await.remove(0);
    assert_eq!(live.word().await.unwrap(), "claimed");
    let mut late = Stream::open(&publisher.runner, &run, None).await;
    assert_eq!(late.word().await.unwrap(), "created");
    assert_eq!(late.word().await.unwrap(), "claimed");
    let mut last = 0;
    let mut times = Vec::new();
    for percent in 1..10 {
        let began = Instant::now();
        let beat = held.heartbeat(&publisher.runner);
        let progress = json!({"progress": {"percent": percent}});
        beat.json(&progress).expect(200).await;
        for stream in [&mut live, &mut late] {
            let entry = stream.next().await.unwrap();
            assert_eq!(entry["data"], progress, "{entry}");
            last = entry["seq"].as_i64().unwrap();
        }
        times.push(began.elapsed());
    }
    woken(times);
    let mut resumed = Stream::open(&publisher.admin, &run, Some(last)).await;
    held.complete(&publisher.runner).expect(200).await;
    for stream in [&mut live, &mut late, &mut resumed] {
        assert_eq!(stream.word().await.unwrap(), "succeeded");
        assert!(stream.next().await.is_none(), "the run is over");
    }

    // Afterwards it is the timeline, and ends at once.
    let mut all = Stream::open(&publisher.admin, &run, None).await;
    let mut told = Vec::new();
    while let Some(entry) = all.next().await {
        told.push(entry);
    }
    assert_eq!(told, timeline(&publisher, &run).await);
    let end = told.last().unwrap()["seq"].as_i64();
    let mut nothing = Stream::open(&publisher.admin, &run, end).await;
    assert!(nothing.next().await.is_none());
    let wrong = publisher.admin.get(&format!("/v1/runs/{run}/stream"));
    let wrong = wrong.header("last-event-id", "x");
    wrong.refused(400, "invalid_parameter").await;
}

async fn a_stream_ends_with_its_token(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let run = queue(&publisher, "nightly", json!({})).await;
    let (doomed, id) = another_runner(&publisher, json!({})).await;
    let mut stream = Stream::open(&doomed, &run, None).await;
    let mut other = Stream::open(&publisher.runner, &run, None).await;
    assert_eq!(stream.word().await.unwrap(), "created");
    assert_eq!(other.word().await.unwrap(), "created");
    let path = format!("/v1/publishers/me/tokens/runner/{id}");
    publisher.admin.delete(&path).expect(204).await;
    take(&publisher.runner, json!({})).await;
    assert!(stream.next().await.is_none(), "nothing more is told");
    assert_eq!(other.word().await.unwrap(), "claimed");

    // A stop ends streams too; whoever wants more connects again.
    server.terminate();
    assert!(other.next().await.is_none());
    assert!(server.wait().await.success());
}

async fn a_stream_tells_what_happens_on_another_process(world: &World) {
    let server = world.start().await;
    let beside = server.site().start_beside(&[]).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let run = queue(&publisher, "nightly", json!({})).await;
    let there = beside.user(publisher.runner.token());
    let mut stream = Stream::open(&there, &run, None).await;
    assert_eq!(stream.word().await.unwrap(), "created");
    let held = take(&publisher.runner, json!({})).await.remove(0);
    assert_eq!(stream.word().await.unwrap(), "claimed");
    let mut times = Vec::new();
    for percent in 1..10 {
        let began = Instant::now();
        let beat = held.heartbeat(&publisher.runner);
        let progress = json!({"progress": {"percent": percent}});
        beat.json(&progress).expect(200).await;
        assert_eq!(stream.next().await.unwrap()["data"], progress);
        times.push(began.elapsed());
    }
    woken(times);
    held.complete(&publisher.runner).expect(200).await;
    assert_eq!(stream.word().await.unwrap(), "succeeded");
    assert!(stream.next().await.is_none());
    let all = words(&publisher, &run).await;
    assert_eq!(all.iter().filter(|word| *word == "progress").count(), 9);
    let steps: Vec<&String> = all.iter().filter(|word| *word != "progress").collect();
    assert_eq!(steps, ["created", "claimed", "succeeded"]);
}
