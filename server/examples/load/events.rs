//! Publishes events, as fast as answers come or at a given rate.

use std::{
    fmt::Write as _,
    io::Write as _,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{Outcome, Plan, client::Client, percentile};

/// A medium event: some 300 bytes as delivered.
const EVENT: &str = r#"{"type":"order.paid","data":{"order":"A-1017","customer":"c-55102","currency":"EUR","total":"129.90","lines":[{"sku":"KB-104","quantity":1,"price":"79.90"},{"sku":"MS-220","quantity":2,"price":"25.00"}],"note":"leave at the door"}}"#;

/// One client's requests.
#[derive(Default)]
struct Published {
    events: u32,
    /// How long each answer took, microseconds.
    took: Vec<u32>,
    /// The events that were answered, with the time by the wall clock: lines `IDENTIFIER
    /// MICROSECONDS`.
    answers: String,
}

impl Published {
    #[expect(
        clippy::disallowed_methods,
        reason = "the receiver, another process, reads the same clock"
    )]
    fn note(&mut self, answer: &[u8]) {
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros());
        let text = String::from_utf8_lossy(answer);
        for part in text.split("\"id\":\"evt_").skip(1) {
            let id = part.split('"').next().unwrap_or_default();
            // Writing to a string can't fail.
            let _ = writeln!(self.answers, "evt_{id} {at}");
        }
    }
}

/// When a client's requests begin, if there is a rate.
#[derive(Clone, Copy)]
struct Pace {
    first: Instant,
    every: Duration,
}

async fn work(
    mut client: Client,
    body: Bytes,
    batch: u32,
    (pace, noted): (Option<Pace>, bool),
    until: Instant,
) -> Outcome<Published> {
    let mut done = Published::default();
    let mut next = pace.map(|pace| pace.first);
    while Instant::now() < until {
        if let (Some(at), Some(pace)) = (next, pace) {
            if at >= until {
                break;
            }
            tokio::time::sleep_until(at.into()).await;
            next = Some(at + pace.every);
        }
        let began = Instant::now();
        let answer = client.post("/v1/events", None, body.clone()).await?;
        done.took
            .push(u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX));
        done.events += batch;
        if noted {
            done.note(&answer);
        }
    }
    Ok(done)
}

/// Publishes events of as many publishers as there are tokens.
pub(crate) async fn publish(plan: &Plan) -> Outcome<()> {
    let batch = u32::try_from(plan.batch)?;
    let body = match plan.batch {
        1 => EVENT.to_owned(),
        many => format!("{{\"events\":[{}]}}", vec![EVENT; many].join(",")),
    };
    let body = Bytes::from(body);
    let mut clients = Vec::new();
    for number in 0..plan.clients {
        let token = &plan.tokens[number % plan.tokens.len().max(1)];
        clients.push(Client::connect(&plan.address, token).await?);
    }
    let before = plan.spent();
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(plan.seconds);
    let each = plan.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let all = u32::try_from(plan.clients)?;
    let mut working = JoinSet::new();
    for (number, client) in (0..).zip(clients) {
        let pace = each.map(|each| Pace {
            first: began + each * number,
            every: each * all,
        });
        let how = (pace, plan.answers.is_some());
        working.spawn(work(client, body.clone(), batch, how, until));
    }
    let (mut events, mut took, mut answers) = (0, Vec::new(), String::new());
    while let Some(done) = working.join_next().await {
        let done = done??;
        events += done.events;
        took.extend(done.took);
        answers.push_str(&done.answers);
    }
    let seconds = began.elapsed().as_secs_f64();
    took.sort_unstable();
    if let Some(path) = &plan.answers {
        std::fs::write(path, answers)?;
    }
    let line = json!({
        "phase": "publish",
        "events": events,
        "per_s": f64::from(events) / seconds,
        "p50_ms": percentile(&took, 50),
        "p99_ms": percentile(&took, 99),
        "cpu_us": plan.cpu_since(&before, events)?,
    });
    writeln!(std::io::stdout(), "{line}")?;
    Ok(())
}
