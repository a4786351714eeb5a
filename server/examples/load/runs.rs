//! Creates, claims and completes runs, as fast as answers come.

use std::{
    collections::VecDeque,
    io::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{Outcome, Plan, client::Client, percentile};

/// A run that a client holds: its identifier and its claim.
type Held = (String, String);

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    Create,
    Claim,
    Complete,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Create, Self::Claim, Self::Complete];

    const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Claim => "claim",
            Self::Complete => "complete",
        }
    }
}

/// One client's share of a phase: how long each answer took, in microseconds.
async fn work(
    mut client: Client,
    held: Arc<Mutex<VecDeque<Held>>>,
    phase: Phase,
    path: String,
    until: Instant,
) -> Outcome<(Client, Vec<u32>)> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let held = || held.lock().unwrap_or_else(PoisonError::into_inner);
    let mut took = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        match phase {
            Phase::Create => {
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                let body = format!(r#"{{"input":{{"number":{number},"day":"2026-01-31"}}}}"#);
                client.post(&path, None, body.into()).await?;
            }
            Phase::Claim => {
                let body = client.post(&path, None, Bytes::from_static(b"{}")).await?;
                let answer: Value = serde_json::from_slice(&body)?;
                let Some(item) = answer["items"].get(0) else {
                    break;
                };
                let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
                let (run, claim) = text("/id")
                    .zip(text("/claim/token"))
                    .ok_or("a claim without run or token")?;
                held().push_back((run.to_owned(), claim.to_owned()));
            }
            Phase::Complete => {
                let Some((run, claim)) = held().pop_front() else {
                    break;
                };
                let path = format!("/v1/runs/{run}/complete");
                let body = Bytes::from_static(br#"{"output":{"rows":1024}}"#);
                client.post(&path, Some(&claim), body).await?;
            }
        }
        took.push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok((client, took))
}

/// Creates, claims and completes runs of a pipeline.
pub(crate) async fn run(plan: &Plan, pipeline: &str) -> Outcome<()> {
    // One queue of held runs for each publisher, because claims belong to a publisher.
    let queues: Vec<_> = plan.tokens.iter().map(|_| Arc::default()).collect();
    let mut clients = Vec::new();
    for number in 0..plan.clients {
        let whose = number % plan.tokens.len().max(1);
        let token = plan.tokens.get(whose).ok_or("no tokens")?;
        clients.push((whose, Client::connect(&plan.address, token).await?));
    }
    for phase in Phase::ALL {
        let before = plan.spent();
        let began = Instant::now();
        let until = began + Duration::from_secs_f64(plan.seconds);
        let path = match phase {
            Phase::Claim => "/v1/runs/claim".to_owned(),
            _ => format!("/v1/pipelines/{pipeline}/runs"),
        };
        let mut working = JoinSet::new();
        for (whose, client) in clients.drain(..) {
            let held = Arc::clone(&queues[whose]);
            let path = path.clone();
            working.spawn(async move {
                let done = work(client, held, phase, path, until).await;
                done.map(|(client, took)| (whose, client, took))
            });
        }
        let mut all = Vec::new();
        while let Some(done) = working.join_next().await {
            let (whose, client, took) = done??;
            clients.push((whose, client));
            all.extend(took);
        }
        let seconds = began.elapsed().as_secs_f64();
        all.sort_unstable();
        let count = u32::try_from(all.len())?;
        let cpu = plan.cpu_since(&before, count)?;
        let line = json!({
            "phase": phase.name(),
            "requests": count,
            "per_s": f64::from(count) / seconds,
            "p50_ms": percentile(&all, 50),
            "p99_ms": percentile(&all, 99),
            "cpu_us": cpu,
        });
        writeln!(std::io::stdout(), "{line}")?;
    }
    Ok(())
}
