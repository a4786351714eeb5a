//! `stationmaster demo`: shows the first minute of a new deployment.
//!
//! Everything is real. The server is this program, started as usual. Every step is an HTTP request
//! that a reader could send. The webhook arrives in another process, which verifies it by the
//! published rules alone.

mod child;
pub mod consumer;
mod story;

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{failure::Failure, signals, text::say};
use child::{Consumer, Server};
use story::Story;

/// How long the webhook may take to arrive after the end of the run.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the claim of the demo's runner waits for a run.
const CLAIM_WAIT_S: u32 = 5;
/// How long the runner waits before the demo creates a run.
const HEAD_START: Duration = Duration::from_millis(300);
const CLAIM_HEADER: &str = "X-Stationmaster-Claim";
const PUBLISHER: &str = "acme";
const PIPELINE: &str = "nightly-report";
const SUBCOMMAND: &str = "archive";
/// The person who owns the publisher, if the server keeps running.
const OWNER: (&str, &str) = ("ada@acme.example", "Ada");

/// Runs the demo. With `keep`, the server runs until a signal comes.
///
/// # Errors
/// The first step that failed, and the server's answer to it.
pub async fn run(keep: bool) -> Result<(), Failure> {
    let stop = signals::watch().map_err(|e| Failure::Failed(format!("signals: {e}")))?;
    let home = tempfile::Builder::new()
        .prefix("stationmaster-demo-")
        .tempdir()
        .map_err(|e| Failure::Failed(format!("making a temporary directory failed: {e}")))?;
    let outcome = tokio::select! {
        outcome = first_minute(home.path(), keep, &stop) => outcome,
        () = interrupted(keep, &stop) => Err("it was interrupted".to_owned()),
    };
    outcome.map_err(|reason| {
        let log = std::fs::read_to_string(home.path().join(child::LOG_FILE)).unwrap_or_default();
        Failure::Failed(format!("the demo stopped: {reason}{}", tail(&log)))
    })
}

/// Waits for a signal, unless `keep` is set: then a signal is the regular end.
async fn interrupted(keep: bool, stop: &CancellationToken) {
    stop.cancelled().await;
    if keep {
        std::future::pending::<()>().await;
    }
}

/// The last lines of the server's log, which usually name the cause.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = &lines[lines.len().saturating_sub(20)..];
    if last.is_empty() {
        return String::new();
    }
    format!("\nThe server's last log lines:\n  {}", last.join("\n  "))
}

/// The tokens that later steps need.
struct Tokens {
    admin: String,
    runner: String,
    signing_secret: String,
    subcommand_bearer: String,
}

async fn first_minute(home: &Path, keep: bool, stop: &CancellationToken) -> Result<(), String> {
    let server = Server::start(home).await?;
    let mut story = Story::new(server.url.clone());
    say(&format!(
        "A server runs at {} on an empty directory.",
        server.url
    ));

    let tokens = create_publisher(&mut story, home).await?;
    let mut consumer = Consumer::start(&tokens.signing_secret, &tokens.subcommand_bearer).await?;
    register_pipeline(&mut story, &tokens, &consumer.url).await?;
    register_endpoint(&mut story, &tokens, &consumer.url).await?;
    let held = wait_for_work(&mut story, &tokens).await?;
    report_progress(&mut story, &tokens, &held).await?;
    call_subcommand(&mut story, &tokens, &held).await?;
    complete(&mut story, &tokens, &held).await?;
    await_webhook(&mut story, &mut consumer, &held.run).await?;
    let admin = rotate(&mut story, &tokens).await?;

    if keep {
        let link = child::create_owner(&server, home, OWNER, PUBLISHER).await?;
        let tokens = Tokens { admin, ..tokens };
        keep_running(&server, &mut consumer, (&tokens, &link), stop).await?;
    }
    consumer.stop().await?;
    server.stop().await?;
    say("\nThe server stopped cleanly. That was the first minute.");
    Ok(())
}

async fn create_publisher(story: &mut Story, home: &Path) -> Result<Tokens, String> {
    story.step("Create a publisher, with the bootstrap token that the first start left in a file.");
    let path = home.join("data").join(crate::data_dir::TOKEN_FILE);
    let bootstrap = std::fs::read_to_string(&path)
        .map_err(|error| format!("the bootstrap token is not in {}: {error}", path.display()))?;
    let body = json!({"slug": PUBLISHER, "display_name": "Acme Corporation"});
    let answer = story
        .post("/v1/publishers", bootstrap.trim())
        .json(&body)
        .expect(201)
        .await?;
    let tokens = Tokens {
        admin: text_at(&answer, "/tokens/admin/token")?,
        runner: text_at(&answer, "/tokens/runner/token")?,
        signing_secret: text_at(&answer, "/secrets/webhook_signing/secret")?,
        subcommand_bearer: text_at(&answer, "/secrets/subcommand_bearer/secret")?,
    };
    say("   It answers with an admin token, a runner token and two secrets, this one time.");
    Ok(tokens)
}

async fn register_pipeline(story: &mut Story, tokens: &Tokens, url: &str) -> Result<(), String> {
    story
        .step("Register a pipeline, with the publisher's admin token and a subcommand of its own.");
    let archive = json!({"url": format!("{url}{SUBCOMMAND}"), "timeout_ms": 5000});
    let body = json!({"display_name": "Nightly report", "subcommands": {SUBCOMMAND: archive}});
    let path = format!("/v1/pipelines/{PIPELINE}");
    story
        .put(&path, &tokens.admin)
        .json(&body)
        .expect(201)
        .await?;
    Ok(())
}

async fn register_endpoint(story: &mut Story, tokens: &Tokens, url: &str) -> Result<(), String> {
    story.step("Register a webhook endpoint: a consumer that runs in a process of its own.");
    let body = json!({"url": url, "event_types": ["run.succeeded"]});
    story
        .post("/v1/webhook-endpoints", &tokens.admin)
        .json(&body)
        .expect(201)
        .await?;
    Ok(())
}

/// A run that the demo's runner holds.
struct ClaimedRun {
    run: String,
    claim: String,
}

async fn wait_for_work(story: &mut Story, tokens: &Tokens) -> Result<ClaimedRun, String> {
    story.step("A runner asks for a run and waits. Then one is created, which wakes it.");
    let body = json!({"pipelines": [PIPELINE], "wait_seconds": CLAIM_WAIT_S});
    let claim = story.post("/v1/runs/claim", &tokens.runner).json(&body);
    let create = async {
        tokio::time::sleep(HEAD_START).await;
        let path = format!("/v1/pipelines/{PIPELINE}/runs");
        let body = json!({"input": {"day": "today"}});
        let create = story.post(&path, &tokens.runner).json(&body);
        create.expect(201).await
    };
    let (claimed, created) = tokio::join!(claim.expect(200), create);
    let (claimed, created) = (claimed?, created?);
    let held = ClaimedRun {
        run: text_at(&claimed, "/items/0/id")?,
        claim: text_at(&claimed, "/items/0/claim/token")?,
    };
    if text_at(&created, "/id")? != held.run {
        return Err("the runner got another run than the one that was created".into());
    }
    say(&format!("   The runner holds {}.", held.run));
    Ok(held)
}

async fn report_progress(
    story: &mut Story,
    tokens: &Tokens,
    held: &ClaimedRun,
) -> Result<(), String> {
    story.step("The runner keeps its claim with a heartbeat, and says how far it is.");
    let path = format!("/v1/runs/{}/heartbeat", held.run);
    let beat = story
        .post(&path, &tokens.runner)
        .header(CLAIM_HEADER, &held.claim);
    let body = json!({"progress": {"percent": 50}});
    let answer = beat.json(&body).expect(200).await?;
    match answer.pointer("/cancel_requested") {
        Some(Value::Bool(false)) => Ok(()),
        _ => Err(format!("nobody cancelled the run, but: {answer}")),
    }
}

async fn call_subcommand(
    story: &mut Story,
    tokens: &Tokens,
    held: &ClaimedRun,
) -> Result<(), String> {
    story.step(
        "It calls a subcommand: the control plane adds the publisher's bearer, which the runner \
         never sees, and the publisher's server checks it.",
    );
    let path = format!("/v1/runs/{}/subcommands/{SUBCOMMAND}", held.run);
    let call = story
        .post(&path, &tokens.runner)
        .header(CLAIM_HEADER, &held.claim);
    let answer = call.json(&json!({"rows": 42})).expect(200).await?;
    say(&format!("   {answer}"));
    let done = answer["status_code"] == 200 && answer["body"]["for"] == held.run;
    if !done {
        return Err(format!("the subcommand was not done: {answer}"));
    }
    Ok(())
}

async fn complete(story: &mut Story, tokens: &Tokens, held: &ClaimedRun) -> Result<(), String> {
    story.step("It completes the run.");
    let path = format!("/v1/runs/{}/complete", held.run);
    let request = story
        .post(&path, &tokens.runner)
        .header(CLAIM_HEADER, &held.claim);
    let body = json!({"output": {"rows": 42}});
    let answer = request.json(&body).expect(200).await?;
    match text_at(&answer, "/status")?.as_str() {
        "succeeded" => Ok(()),
        other => Err(format!("the completed run is {other}")),
    }
}

async fn await_webhook(
    story: &mut Story,
    consumer: &mut Consumer,
    run: &str,
) -> Result<(), String> {
    story.step("Wait for the webhook in the consumer's process.");
    let delivery = tokio::time::timeout(DELIVERY_TIMEOUT, consumer.next())
        .await
        .map_err(|_| format!("no webhook arrived within {} s", DELIVERY_TIMEOUT.as_secs()))??;
    check(&delivery)?;
    if text_at(&delivery, "/type")? != "run.succeeded" || text_at(&delivery, "/run")? != run {
        return Err(format!(
            "another webhook arrived than the run's: {delivery}"
        ));
    }
    say(&format!(
        "   {} {} arrived. Verified, from the bytes received and the secret alone:",
        text_at(&delivery, "/type")?,
        text_at(&delivery, "/id")?
    ));
    say("   X-Stationmaster-Signature is genuine, webhook-signature (Standard Webhooks) too.");
    Ok(())
}

/// Whether the consumer found both signatures genuine.
fn check(delivery: &Value) -> Result<(), String> {
    match delivery.get("problems").and_then(Value::as_array) {
        Some(problems) if problems.is_empty() => Ok(()),
        _ => Err(format!("the webhook did not pass verification: {delivery}")),
    }
}

/// Returns the new admin token.
async fn rotate(story: &mut Story, tokens: &Tokens) -> Result<String, String> {
    story.step("Rotate the admin token.");
    let path = "/v1/publishers/me/tokens/admin/rotate";
    let answer = story
        .post(path, &tokens.admin)
        .json(&json!({}))
        .expect(200)
        .await?;
    let new = text_at(&answer, "/token")?;

    story.step("The old admin token is refused at once.");
    story
        .get("/v1/publishers/me", &tokens.admin)
        .expect(401)
        .await?;

    story.step("The new one works.");
    let answer = story.get("/v1/publishers/me", &new).expect(200).await?;
    let found = answer
        .pointer("/slug")
        .or_else(|| answer.pointer("/publisher/slug"));
    if found.and_then(Value::as_str) != Some(PUBLISHER) {
        return Err("the new token belongs to another publisher".into());
    }
    Ok(new)
}

async fn keep_running(
    server: &Server,
    consumer: &mut Consumer,
    (tokens, link): (&Tokens, &str),
    stop: &CancellationToken,
) -> Result<(), String> {
    say(&format!(
        "\nThe server keeps running. Its documentation: {}/docs",
        server.url
    ));
    say(&format!("  admin token   {}", tokens.admin));
    say(&format!("  runner token  {}", tokens.runner));
    say(&format!(
        "  bootstrap     in {}",
        server.token_file.display()
    ));
    say(&format!(
        "  webhooks      go to {} and are shown here",
        consumer.url
    ));
    say(&format!("  sign in       {link}"));
    say(&format!(
        "                (once, as {}, who owns the publisher)",
        OWNER.0
    ));
    say("Everything is removed when you stop it with Ctrl-C.\n");
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            delivery = consumer.next() => say(&format!("webhook: {}", delivery?)),
        }
    }
}

fn text_at(answer: &Value, pointer: &str) -> Result<String, String> {
    let found = answer
        .pointer(pointer)
        .and_then(Value::as_str)
        .map(str::to_owned);
    found.ok_or_else(|| format!("the answer has no text at {pointer}"))
}
