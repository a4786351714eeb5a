//! Runs: who gets which, what a claim is worth, how they end, and what is told of it.

mod ending;
mod following;
mod history;
mod holding;
mod order;
mod samples;
mod storm;
mod waiting;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Answer, Publisher, User, claim_of};
use tokio::task::JoinHandle;

/// The shortest lease that the contract takes, and a little more.
const LEASE_OVER: Duration = Duration::from_secs(15);

/// A run that somebody holds.
#[derive(Clone, Debug)]
struct Held {
    id: String,
    token: String,
    run: Value,
}

impl Held {
    fn of(run: &Value) -> Self {
        Self {
            id: run["id"].as_str().unwrap().to_owned(),
            token: claim_of(run),
            run: run.clone(),
        }
    }

    fn call(&self, user: &User, verb: &str) -> tests::Call {
        let call = user.post(&format!("/v1/runs/{}/{verb}", self.id));
        call.claim(&self.token)
    }

    fn heartbeat(&self, user: &User) -> tests::Call {
        self.call(user, "heartbeat")
    }

    fn complete(&self, user: &User) -> tests::Call {
        self.call(user, "complete")
            .json(&json!({"output": {"rows": 42}}))
    }

    fn fail(&self, user: &User, retryable: bool) -> tests::Call {
        let body = json!({"error": {"message": "no disk"}, "retryable": retryable});
        self.call(user, "fail").json(&body)
    }

    fn release(&self, user: &User) -> tests::Call {
        self.call(user, "release")
    }
}

/// Registers a pipeline with these members beside its name.
async fn define(publisher: &Publisher, slug: &str, members: Value) -> Answer {
    let mut body = members;
    body["display_name"] = json!(format!("Pipeline {slug}"));
    let path = format!("/v1/pipelines/{slug}");
    publisher.admin.put(&path).json(&body).expect(201).await
}

/// Creates a run with these members beside its input; returns its identifier.
async fn queue(publisher: &Publisher, pipeline: &str, members: Value) -> String {
    let mut body = members;
    body["input"] = json!({});
    let path = format!("/v1/pipelines/{pipeline}/runs");
    let call = publisher.runner.post(&path).json(&body);
    call.expect(201).await.text("/id")
}

/// Creates many runs, some at a time.
async fn queue_many(publisher: &Publisher, pipeline: &str, count: usize) {
    let mut left = count;
    while left > 0 {
        let some = left.min(8);
        let tasks: Vec<_> = (0..some)
            .map(|_| {
                let (publisher, pipeline) = (publisher.clone(), pipeline.to_owned());
                tokio::spawn(async move { publisher.run(&pipeline).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        left -= some;
    }
}

/// Claims without waiting.
async fn take(user: &User, body: Value) -> Vec<Held> {
    let answer = user.post("/v1/runs/claim").json(&body).expect(200).await;
    held(&answer)
}

fn held(answer: &Answer) -> Vec<Held> {
    held_in(answer.json())
}

fn held_in(answer: &Value) -> Vec<Held> {
    let items = answer["items"].as_array().unwrap();
    items.iter().map(Held::of).collect()
}

/// A claim that is waiting by the time that this returns, as far as anybody can tell.
async fn waiting(user: &User, body: Value) -> JoinHandle<(Answer, Instant)> {
    let call = user.post("/v1/runs/claim").json(&body);
    let task = tokio::spawn(async move {
        let answer = call.answer().await;
        (answer, Instant::now())
    });
    tokio::time::sleep(Duration::from_millis(250)).await;
    assert!(!task.is_finished(), "the claim does not wait");
    task
}

/// A run as its publisher sees it.
async fn look(publisher: &Publisher, id: &str) -> Value {
    let answer = publisher.runner.get(&format!("/v1/runs/{id}"));
    answer.expect(200).await.json().clone()
}

/// A run's timeline.
async fn timeline(publisher: &Publisher, id: &str) -> Vec<Value> {
    publisher
        .runner
        .all(&format!("/v1/runs/{id}/timeline"))
        .await
}

/// The words of a run's timeline.
async fn words(publisher: &Publisher, id: &str) -> Vec<String> {
    let entries = timeline(publisher, id).await;
    let words = entries.iter().map(|entry| entry["type"].as_str().unwrap());
    words.map(str::to_owned).collect()
}

/// One more runner token; returns its user and its identifier.
async fn another_runner(publisher: &Publisher, members: Value) -> (User, String) {
    let mut body = members;
    body["name"] = json!("another");
    let call = publisher.admin.post("/v1/publishers/me/tokens/runner");
    let answer = call.json(&body).expect(201).await;
    let user = publisher.admin.with_token(&answer.text("/token"));
    (user, answer.text("/id"))
}
