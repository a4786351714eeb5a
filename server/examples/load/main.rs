//! The load of `scripts/bench runs` and `scripts/bench webhooks`: creates, claims and completes
//! runs, or publishes events, over kept connections. It uses hyper on one thread, to leave the
//! machine to the server.
//!
//! Reads one JSON object from standard input (see [`Plan`]), and prints one for each phase.

mod client;
mod events;
mod runs;

use std::{fs, io::Read as _};

use serde_json::Value;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

/// The load to create.
struct Plan {
    /// `host:port`.
    address: String,
    clients: usize,
    /// How long to create or publish. Claiming and completing end with the runs, or after the same
    /// time.
    seconds: f64,
    /// Tokens of different publishers, dealt out to the clients in turn.
    tokens: Vec<String>,
    /// The pipeline of the runs; without one, events are published.
    pipeline: Option<String>,
    /// Events of one request.
    batch: usize,
    /// Requests a second of all clients together; without it, as many as are answered.
    rate: Option<f64>,
    /// The file for the times at which events were answered.
    answers: Option<String>,
    /// The processes whose CPU time is measured, with their children, by name.
    watched: Vec<(String, u32)>,
}

impl Plan {
    fn read() -> Outcome<Self> {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        let plan: Value = serde_json::from_str(&text)?;
        let word = |name: &str| plan[name].as_str().map(str::to_owned);
        let tokens = plan["tokens"].as_array().into_iter().flatten();
        let watched = plan["watched"].as_object().into_iter().flatten();
        Ok(Self {
            address: word("address").unwrap_or_default(),
            clients: usize::try_from(plan["clients"].as_u64().unwrap_or(64))?,
            seconds: plan["seconds"].as_f64().unwrap_or(5.0),
            tokens: tokens
                .filter_map(|token| Some(token.as_str()?.to_owned()))
                .collect(),
            pipeline: word("pipeline"),
            batch: usize::try_from(plan["batch"].as_u64().unwrap_or(1))?,
            rate: plan["rate"].as_f64(),
            answers: word("answers"),
            watched: watched
                .filter_map(|(name, pid)| Some((name.clone(), u32::try_from(pid.as_u64()?).ok()?)))
                .collect(),
        })
    }

    /// The CPU time so far of each measured process.
    fn spent(&self) -> Vec<u64> {
        self.watched.iter().map(|(_, pid)| ticks(*pid)).collect()
    }

    /// Microseconds of CPU time since `before`, for each of `count` items.
    fn cpu_since(&self, before: &[u64], count: u32) -> Outcome<serde_json::Map<String, Value>> {
        let mut cpu = serde_json::Map::new();
        for (((name, _), now), before) in self.watched.iter().zip(self.spent()).zip(before) {
            // A tick is 10 ms on Linux (USER_HZ).
            let spent = u32::try_from(now.saturating_sub(*before))?;
            let each = f64::from(spent) * 10_000.0 / f64::from(count.max(1));
            cpu.insert(name.clone(), each.into());
        }
        Ok(cpu)
    }
}

/// CPU time of a process and its children, user and system, in the kernel's ticks.
fn ticks(root: u32) -> u64 {
    let of = |stat: &str| -> Option<(u32, u64)> {
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let (user, system): (u64, u64) =
            (fields.get(11)?.parse().ok()?, fields.get(12)?.parse().ok()?);
        Some((fields.get(1)?.parse().ok()?, user + system))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (parent, ticks) = of(&stat)?;
            (pid == root || parent == root).then_some(ticks)
        })
        .sum()
}

fn percentile(sorted: &[u32], part: usize) -> f64 {
    let at = (sorted.len() * part / 100).min(sorted.len().saturating_sub(1));
    f64::from(sorted.get(at).copied().unwrap_or(0)) / 1000.0
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    let plan = Plan::read()?;
    match plan.pipeline.clone() {
        Some(pipeline) => runs::run(&plan, &pipeline).await,
        None => events::publish(&plan).await,
    }
}
