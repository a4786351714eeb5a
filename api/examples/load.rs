//! The load of `scripts/bench runs`: creates, claims and completes runs over kept connections, as
//! fast as answers come. One thread and bare hyper, so that the machine is left to the server.
//!
//! Reads one JSON object from standard input (see [`Plan`]) and prints one a phase.

use std::{
    collections::VecDeque,
    fs,
    io::{Read as _, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpStream, task::JoinSet};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

/// What to do.
struct Plan {
    /// `host:port`.
    address: String,
    clients: usize,
    /// How long creating goes on; claiming and completing end with the runs, or after as long.
    seconds: f64,
    /// Runner tokens of different publishers, dealt out to the clients in turn.
    tokens: Vec<String>,
    pipeline: String,
    /// Process groups by name whose CPU time is noted: a process and its children.
    watched: Vec<(String, u32)>,
}

impl Plan {
    fn read() -> Outcome<Self> {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        let plan: Value = serde_json::from_str(&text)?;
        let word = |name: &str| plan[name].as_str().unwrap_or_default().to_owned();
        let tokens = plan["tokens"].as_array().into_iter().flatten();
        let watched = plan["watched"].as_object().into_iter().flatten();
        Ok(Self {
            address: word("address"),
            clients: usize::try_from(plan["clients"].as_u64().unwrap_or(64))?,
            seconds: plan["seconds"].as_f64().unwrap_or(5.0),
            tokens: tokens
                .filter_map(|token| Some(token.as_str()?.to_owned()))
                .collect(),
            pipeline: word("pipeline"),
            watched: watched
                .filter_map(|(name, pid)| Some((name.clone(), u32::try_from(pid.as_u64()?).ok()?)))
                .collect(),
        })
    }
}

/// A kept connection of one runner.
struct Client {
    address: String,
    authorization: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    async fn connect(address: &str, token: &str) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            address: address.to_owned(),
            authorization: format!("Bearer {token}"),
            sender,
        })
    }

    /// Posts, and answers the body of a 2xx.
    async fn post(&mut self, path: &str, claim: Option<&str>, body: Bytes) -> Outcome<Bytes> {
        let mut request = Request::post(path)
            .header("host", &self.address)
            .header("authorization", &self.authorization)
            .header("content-type", "application/json");
        if let Some(claim) = claim {
            request = request.header("x-stationmaster-claim", claim);
        }
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.body(Full::new(body))?);
        let answer = answer.await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&body)).into())
        }
    }
}

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
    // One queue of held runs a publisher: claims are its own.
    let queues: Vec<_> = plan.tokens.iter().map(|_| Arc::default()).collect();
    let mut clients = Vec::new();
    for number in 0..plan.clients {
        let whose = number % plan.tokens.len().max(1);
        let token = plan.tokens.get(whose).ok_or("no tokens")?;
        clients.push((whose, Client::connect(&plan.address, token).await?));
    }
    for phase in Phase::ALL {
        let before: Vec<u64> = plan.watched.iter().map(|(_, pid)| ticks(*pid)).collect();
        let began = Instant::now();
        let until = began + Duration::from_secs_f64(plan.seconds);
        let path = match phase {
            Phase::Claim => "/v1/runs/claim".to_owned(),
            _ => format!("/v1/pipelines/{}/runs", plan.pipeline),
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
        let mut cpu = serde_json::Map::new();
        for ((name, pid), before) in plan.watched.iter().zip(before) {
            // A tick is 10 ms wherever Linux runs programs (USER_HZ).
            let spent = u32::try_from(ticks(*pid).saturating_sub(before))?;
            let each = f64::from(spent) * 10_000.0 / f64::from(count.max(1));
            cpu.insert(name.clone(), json!(each));
        }
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
