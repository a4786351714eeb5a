//! The runners of docs/samples, doing runs.

use std::{fs::File, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tests::{Publisher, Server, World, on_sqlite, tools, tools::eventually};
use tokio::process::{Child, Command};

use super::{define, look, queue, timeline, words};

// What a runner sees is the same on both stores.
on_sqlite!(the_runner_in_python, the_runner_in_shell);

const LIMIT: Duration = Duration::from_secs(30);

/// What the shell's runner calls: the same work as the one in Python has.
const WORK: &str = r#"
run=$(cat)
steps=$(jq '.input.steps // 1' <<<"$run") fault=$(jq -r '.input.fault // ""' <<<"$run")
for ((step = 0; step < steps; step++)); do
  jq -n "{step: $step}" >"$PROGRESS_FILE"
  sleep "$(jq '.input.seconds // 0' <<<"$run")"
done
case $fault in
  '') jq -n "{steps: $steps}" ;;
  passing) echo "the disk is full" >&2; exit 75 ;;
  *) echo "$fault" >&2; exit 1 ;;
esac
"#;

async fn the_runner_in_python(world: &World) {
    let mut command = Command::new("python3");
    command.arg("runner.py");
    does_everything(world, command).await;
}

async fn the_runner_in_shell(world: &World) {
    let mut command = Command::new("bash");
    command.args(["runner.sh", "bash", "-c", WORK]);
    does_everything(world, command).await;
}

fn start(command: &mut Command, server: &Server, publisher: &Publisher) -> Child {
    let log = server.site().home().join("runner.log");
    let log = File::options().append(true).create(true).open(log).unwrap();
    command
        .current_dir(tools::root().join("docs/samples"))
        .env("STATIONMASTER_URL", server.url())
        .env("STATIONMASTER_TOKEN", publisher.runner.token())
        .env("STATIONMASTER_PIPELINES", "nightly,strict")
        .stdin(Stdio::null())
        .stderr(log.try_clone().unwrap())
        .stdout(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn ended(publisher: &Publisher, id: &str, status: &str) -> Value {
    eventually(&format!("{id} is {status}"), LIMIT, async || {
        let run = look(publisher, id).await;
        (run["status"] == status).then_some(run)
    })
    .await
}

async fn told(publisher: &Publisher, id: &str, word: &str) {
    eventually(&format!("{id} tells of {word}"), LIMIT, async || {
        words(publisher, id)
            .await
            .iter()
            .any(|told| told == word)
            .then_some(())
    })
    .await;
}

async fn with_input(publisher: &Publisher, pipeline: &str, input: Value) -> String {
    let path = format!("/v1/pipelines/{pipeline}/runs");
    let call = publisher.runner.post(&path).json(&json!({"input": input}));
    call.expect(201).await.text("/id")
}

async fn does_everything(world: &World, mut command: Command) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    define(&publisher, "nightly", json!({"lease_seconds": 6})).await;
    let strict = json!({"output_schema": {"required": ["rows"]}});
    define(&publisher, "strict", strict).await;
    publisher.pipeline("other").await;
    let other = queue(&publisher, "other", json!({})).await;
    let mut runner = start(&mut command, &server, &publisher);

    // Longer than its lease, which the heartbeats keep alive.
    let input = json!({"steps": 15, "seconds": 0.5});
    let long = with_input(&publisher, "nightly", input).await;
    let run = ended(&publisher, &long, "succeeded").await;
    assert_eq!(
        (&run["attempt"], &run["output"]["steps"]),
        (&json!(1), &json!(15))
    );
    told(&publisher, &long, "progress").await;

    let bad = with_input(&publisher, "nightly", json!({"fault": "no such day"})).await;
    let run = ended(&publisher, &bad, "failed").await;
    assert_eq!(run["error"]["message"], "no such day", "{run}");
    let passing = with_input(&publisher, "nightly", json!({"fault": "passing"})).await;
    told(&publisher, &passing, "attempt_failed").await;
    let cancel = format!("/v1/runs/{passing}/cancel");
    publisher.admin.post(&cancel).expect(200).await;
    let strict = with_input(&publisher, "strict", json!({})).await;
    let run = ended(&publisher, &strict, "failed").await;
    assert_eq!(
        run["error"]["message"], "the output is not as promised",
        "{run}"
    );

    let input = json!({"steps": 60, "seconds": 0.5});
    let doomed = with_input(&publisher, "nightly", input.clone()).await;
    told(&publisher, &doomed, "claimed").await;
    let cancel = format!("/v1/runs/{doomed}/cancel");
    publisher.admin.post(&cancel).expect(200).await;
    ended(&publisher, &doomed, "cancelled").await;
    let last = timeline(&publisher, &doomed).await.pop().unwrap();
    assert!(last["actor"].is_object(), "by its holder, in time: {last}");

    // A stop gives back what is at hand.
    let left = with_input(&publisher, "nightly", input).await;
    told(&publisher, &left, "progress").await;
    stop(&mut runner).await;
    told(&publisher, &left, "released").await;
    publisher
        .admin
        .post(&format!("/v1/runs/{left}/cancel"))
        .expect(200)
        .await;

    // One that only waits ends at once, and takes nothing with it.
    let mut idle = start(&mut command, &server, &publisher);
    let brief = with_input(&publisher, "nightly", json!({})).await;
    ended(&publisher, &brief, "succeeded").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop(&mut idle).await;
    let after = queue(&publisher, "nightly", json!({})).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for id in [&after, &other] {
        assert_eq!(look(&publisher, id).await["status"], "queued");
    }
}

/// SIGTERM, and a clean end soon after.
async fn stop(runner: &mut Child) {
    let pid = i32::try_from(runner.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(10), runner.wait()).await;
    let status = ended.expect("the runner goes on").unwrap();
    assert!(status.success(), "{status}");
}
