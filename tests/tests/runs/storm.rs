//! Sixty-four runners, thousands of runs, and everything that can break, breaking: runners die
//! with runs in their hands, and servers are killed. Afterwards every run must have ended once,
//! and as it was answered.
//!
//! `STATIONMASTER_TEST_STORM_RUNS` sets how many runs; 1000 if it is not set.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{Publisher, Server, World, keeping_client, on_both_stores, on_postgres, tools};
use tokio::task::JoinSet;

use super::{Held, define, held_in, history};

on_both_stores!(every_run_ends_once);
on_postgres!(every_run_ends_once_on_two_processes);

const RUNNERS: usize = 64;
const CREATORS: usize = 64;
const READERS: usize = 16;
const PIPELINES: [&str; 3] = ["nightly", "hourly", "weekly"];
const KILLS: usize = 3;
/// Runs that somebody holds while a server is killed, so that every death meets some, and the
/// pipeline that they are in: their claims outlive any restart.
const KEPT: usize = 4;
const KEPT_IN: &str = "kept";
/// How long a server may be away before a caller gives up on the test.
const WAIT_MAX: Duration = Duration::from_mins(1);

fn how_many() -> usize {
    let given = std::env::var("STATIONMASTER_TEST_STORM_RUNS");
    given.map_or(1000, |text| text.parse().unwrap())
}

/// What everybody in the storm shares.
struct Storm {
    client: reqwest::Client,
    /// Where the servers are at present.
    urls: Vec<RwLock<String>>,
    runner: String,
    admin: String,
    over: AtomicBool,
    /// Which part of the runs may be created: each but the first begins just before a death.
    part: AtomicUsize,
    /// Outputs whose completion was acknowledged, by run.
    done: Mutex<HashMap<String, Value>>,
    /// Failures and cancellations that were acknowledged, by run.
    ended: Mutex<HashMap<String, String>>,
    deaths: AtomicU64,
    late: AtomicU64,
}

/// An answer, or the knowledge that there may have been one.
enum Said {
    Answer(u16, Value),
    Nothing,
}

impl Storm {
    fn new(publisher: &Publisher, servers: &[Server]) -> Arc<Self> {
        let urls = servers.iter().map(|server| RwLock::new(server.url()));
        Arc::new(Self {
            client: keeping_client(),
            urls: urls.collect(),
            runner: publisher.runner.token().to_owned(),
            admin: publisher.admin.token().to_owned(),
            over: AtomicBool::new(false),
            part: AtomicUsize::new(0),
            done: Mutex::default(),
            ended: Mutex::default(),
            deaths: AtomicU64::new(0),
            late: AtomicU64::new(0),
        })
    }

    /// Asks once.
    async fn try_once(
        &self,
        at: usize,
        token: &str,
        path: &str,
        claim: &str,
        body: &Value,
    ) -> Said {
        let url = self.urls[at % self.urls.len()].read().unwrap().clone();
        let request = match body {
            Value::Null => self.client.get(format!("{url}{path}")),
            body => self
                .client
                .post(format!("{url}{path}"))
                .header("content-type", "application/json")
                .header("x-stationmaster-claim", claim)
                .body(body.to_string()),
        };
        let request = request.header("authorization", format!("Bearer {token}"));
        let Ok(response) = request.send().await else {
            return Said::Nothing;
        };
        let status = response.status().as_u16();
        let Ok(bytes) = response.bytes().await else {
            return Said::Nothing;
        };
        if status == 503 {
            return Said::Nothing;
        }
        Said::Answer(
            status,
            serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        )
    }

    /// Asks until there is an answer. Also tells whether an earlier one may have been lost.
    async fn ask(
        &self,
        at: usize,
        token: &str,
        path: &str,
        claim: &str,
        body: &Value,
    ) -> (u16, Value, bool) {
        let end = Instant::now() + WAIT_MAX;
        let mut lost = false;
        loop {
            if let Said::Answer(status, value) = self.try_once(at, token, path, claim, body).await {
                return (status, value, lost);
            }
            lost = true;
            assert!(Instant::now() < end, "{path}: nobody answers");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn read(&self, at: usize, path: &str) -> Value {
        let (status, value, _) = self.ask(at, &self.admin, path, "", &Value::Null).await;
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    /// Creates runs that are claimed at once, by somebody who keeps them.
    async fn keep(&self, kill: usize) -> Vec<Held> {
        let mut all = Vec::new();
        for number in 0..KEPT {
            let path = format!("/v1/pipelines/{KEPT_IN}/runs");
            let name = format!("kept-{kill}-{number}");
            let body = json!({"input": {}, "external_id": name, "claim": true});
            let (status, run, _) = self.ask(kill, &self.runner, &path, "", &body).await;
            assert_eq!(status, 201, "{run}");
            all.push(Held::of(&run));
        }
        all
    }

    /// Creates a run until it is there, whatever happens to the answers.
    async fn create(&self, number: usize, part: usize) {
        while part > self.part.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let pipeline = PIPELINES[number % PIPELINES.len()];
        let path = format!("/v1/pipelines/{pipeline}/runs");
        let body = json!({
            "input": {"number": number},
            "external_id": format!("run-{number}"),
            "priority": number % 10,
        });
        let (status, value, lost) = self.ask(number, &self.runner, &path, "", &body).await;
        assert!(status == 201 || (lost && status == 200), "{status} {value}");
    }

    /// A runner, and its successors when it dies.
    async fn work(&self, at: usize) {
        while !self.over.load(Ordering::Relaxed) {
            let body = json!({"max": 1 + tools::below(6), "wait_seconds": 2});
            let said = self.try_once(at, &self.runner, "/v1/runs/claim", "", &body);
            let Said::Answer(status, value) = said.await else {
                // Whatever was handed out is lost with the answer: its lease will tell.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            assert_eq!(status, 200, "{value}");
            for held in held_in(&value) {
                if tools::below(100) < 2 {
                    // It dies, and everything that it still holds is left lying.
                    self.deaths.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                self.treat(at, &held).await;
            }
        }
    }

    async fn holder(&self, at: usize, held: &Held, verb: &str, body: &Value) -> (u16, Value, bool) {
        let path = format!("/v1/runs/{}/{verb}", held.id);
        let said = self.ask(at, &self.runner, &path, &held.token, body).await;
        let (status, value, _) = &said;
        assert!(
            *status == 200 || (*status == 409 && value["code"] == "claim_lost"),
            "{verb}: {status} {value}"
        );
        self.late
            .fetch_add(u64::from(*status == 409), Ordering::Relaxed);
        said
    }

    /// What a runner does with a run: mostly the work.
    async fn treat(&self, at: usize, held: &Held) {
        let first = held.run["attempt"] == 1;
        match tools::below(100) {
            0 if first => {
                let body = json!({"error": {"message": "once more"}, "retryable": true});
                self.holder(at, held, "fail", &body).await;
            }
            1 => {
                let body = json!({"error": {"message": "no"}});
                let (status, value, _) = self.holder(at, held, "fail", &body).await;
                self.note_end(held, status, &value);
            }
            2 | 3 if first => {
                self.holder(at, held, "release", &json!({})).await;
            }
            4 if first => {
                let path = format!("/v1/runs/{}/cancel", held.id);
                self.ask(at, &self.admin, &path, "", &json!({})).await;
                let (status, beat, _) = self.holder(at, held, "heartbeat", &json!({})).await;
                if status == 200 {
                    assert_eq!(beat["cancel_requested"], true, "{beat}");
                    let (status, value, _) = self.holder(at, held, "release", &json!({})).await;
                    self.note_end(held, status, &value);
                }
            }
            5..10 => {
                let body = json!({"progress": {"percent": 50}});
                self.holder(at, held, "heartbeat", &body).await;
                self.complete(at, held).await;
            }
            _ => self.complete(at, held).await,
        }
    }

    fn note_end(&self, held: &Held, status: u16, run: &Value) {
        if status == 200 {
            let word = run["status"].as_str().unwrap().to_owned();
            let before = self.ended.lock().unwrap().insert(held.id.clone(), word);
            assert!(before.is_none(), "{} ended twice", held.id);
        }
    }

    async fn complete(&self, at: usize, held: &Held) {
        let output = json!({"attempt": held.run["attempt"], "word": tools::word()});
        let body = json!({"output": output});
        let (status, run, _) = self.holder(at, held, "complete", &body).await;
        if status == 200 {
            assert_eq!(run["output"], output, "{run}");
            let before = self.done.lock().unwrap().insert(held.id.clone(), output);
            assert!(before.is_none(), "{} was completed twice", held.id);
        }
    }
}

/// Runs the same work for many numbers, some at a time.
async fn each<F: Future<Output = ()> + Send + 'static>(
    count: usize,
    hands: usize,
    work: impl Fn(usize) -> F + Clone + Send + 'static,
) {
    let mut tasks = JoinSet::new();
    for hand in 0..hands {
        let work = work.clone();
        tasks.spawn(async move {
            for number in (hand..count).step_by(hands) {
                work(number).await;
            }
        });
    }
    tasks.join_all().await;
}

async fn every_run_ends_once(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    storm(vec![server], &publisher).await;
}

async fn every_run_ends_once_on_two_processes(world: &World) {
    let server = world.start().await;
    let beside = server.site().start_beside(&[]).await;
    let publisher = server.publisher("acme").await;
    storm(vec![server, beside], &publisher).await;
}

#[expect(
    clippy::too_many_lines,
    reason = "one story from the first run to the last"
)]
async fn storm(mut servers: Vec<Server>, publisher: &Publisher) {
    let began = Instant::now();
    for pipeline in PIPELINES {
        let brief = json!({"lease_seconds": 5, "max_attempts": 50});
        define(publisher, pipeline, brief).await;
    }
    define(publisher, KEPT_IN, json!({"lease_seconds": 300})).await;
    let storm = Storm::new(publisher, &servers);
    let count = how_many();
    let mut runners = JoinSet::new();
    for at in 0..RUNNERS {
        let storm = Arc::clone(&storm);
        runners.spawn(async move { storm.work(at).await });
    }
    let creating = {
        let storm = Arc::clone(&storm);
        tokio::spawn(each(count, CREATORS, move |number| {
            let storm = Arc::clone(&storm);
            async move { storm.create(number, number * (KILLS + 1) / count).await }
        }))
    };
    for kill in 0..KILLS {
        let share = count * (kill + 1) / (KILLS + 1);
        tools::eventually("work is done", Duration::from_mins(2), async || {
            let done = storm.done.lock().unwrap().len();
            tokio::time::sleep(Duration::from_millis(30)).await;
            (done >= share * 4 / 5).then_some(())
        })
        .await;
        let at = kill % servers.len();
        let site = Arc::clone(servers[at].site());
        let kept = storm.keep(kill).await;
        storm.part.store(kill + 1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(30)).await;
        servers[at].kill().await;
        servers[at] = site.start_beside(&[]).await;
        servers[at]
            .url()
            .clone_into(&mut storm.urls[at].write().unwrap());
        for held in kept {
            storm.complete(at, &held).await;
            let done = storm.done.lock().unwrap().contains_key(&held.id);
            assert!(done, "a claim did not outlive the death");
        }
    }
    creating.await.unwrap();
    let created = began.elapsed();
    tools::eventually("every run ends", Duration::from_mins(3), async || {
        tokio::time::sleep(Duration::from_millis(150)).await;
        for status in ["queued", "running"] {
            let path = format!("/v1/runs?status={status}&limit=1");
            if storm.read(0, &path).await["items"][0].is_object() {
                return None;
            }
        }
        Some(())
    })
    .await;
    storm.over.store(true, Ordering::Relaxed);
    runners.join_all().await;
    let ended = began.elapsed();
    judge(&storm, count + KILLS * KEPT).await;
    eprintln!(
        "{count} runs in {:.1} s (all created after {:.1} s), {:.1} s with the checks; {} runners \
         died, {} late words were refused",
        ended.as_secs_f64(),
        created.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        storm.deaths.load(Ordering::Relaxed),
        storm.late.load(Ordering::Relaxed),
    );
}

/// Every item of a list.
async fn all(storm: &Storm, path: &str) -> Vec<Value> {
    let (mut items, mut page) = (Vec::new(), format!("{path}?limit=200"));
    loop {
        let part = storm.read(items.len(), &page).await;
        items.extend(part["items"].as_array().unwrap().iter().cloned());
        match part["next_cursor"].as_str() {
            Some(next) => page = format!("{path}?limit=200&cursor={next}"),
            None => return items,
        }
    }
}

async fn judge(storm: &Arc<Storm>, count: usize) {
    let runs = all(storm, "/v1/runs").await;
    let names: BTreeSet<&str> = runs
        .iter()
        .map(|run| run["external_id"].as_str().unwrap())
        .collect();
    assert_eq!(
        (runs.len(), names.len()),
        (count, count),
        "none is lost, none is there twice"
    );
    let (done, ended) = (
        storm.done.lock().unwrap().clone(),
        storm.ended.lock().unwrap().clone(),
    );
    for run in &runs {
        let id = run["id"].as_str().unwrap();
        if let Some(output) = done.get(id) {
            assert!(
                !ended.contains_key(id),
                "{run} was answered to end in two ways"
            );
            assert_eq!(run["status"], "succeeded", "{run}");
            assert_eq!(&run["output"], output, "{run}");
        }
        if let Some(status) = ended.get(id) {
            assert_eq!(run["status"], *status, "{run}");
        }
    }
    // What nobody was told of ended all the same, since nothing is unfinished.
    assert!(
        done.len() * 10 > count * 8,
        "only {} were completed",
        done.len()
    );
    let told = {
        let storm = Arc::clone(storm);
        tokio::spawn(async move { events(&storm).await })
    };
    let runs = Arc::new(runs);
    let mut claims = 0;
    let mut tasks = JoinSet::new();
    for hand in 0..READERS {
        let (storm, runs) = (Arc::clone(storm), Arc::clone(&runs));
        tasks.spawn(async move {
            let mut read = Vec::new();
            for run in runs.iter().skip(hand).step_by(READERS) {
                read.push(read_history(&storm, hand, run).await);
            }
            read
        });
    }
    let histories = tasks.join_all().await;
    let told = told.await.unwrap();
    for (id, history) in histories.into_iter().flatten() {
        claims += history.claims;
        let word = history.status.as_str();
        let mut wanted =
            BTreeMap::from([("run.created".to_owned(), 1), (format!("run.{word}"), 1)]);
        if history.claims > 0 {
            wanted.insert("run.started".to_owned(), history.claims);
        }
        assert_eq!(told.get(&id), Some(&wanted), "{id}: {history:?}");
    }
    let count = i64::try_from(count).unwrap();
    assert!(claims > count, "{claims} claims: nothing broke");
}

/// A run's timeline, which must fit the run.
async fn read_history(storm: &Storm, at: usize, run: &Value) -> (String, history::History) {
    let id = run["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/runs/{id}/timeline?limit=200");
    let answer = storm.read(at, &path).await;
    assert!(
        answer["next_cursor"].is_null(),
        "{run} has a very long history"
    );
    let entries = answer["items"].as_array().unwrap();
    let history = history::read(entries).unwrap_or_else(|why| panic!("{id}: {why}\n{entries:#?}"));
    assert_eq!(run["status"], history.status.as_str(), "{run}");
    assert_eq!(run["attempt"], history.claims, "{run}");
    (id, history)
}

/// How many events of each type there are of each run.
async fn events(storm: &Storm) -> HashMap<String, BTreeMap<String, i64>> {
    let mut told: HashMap<String, BTreeMap<String, i64>> = HashMap::new();
    for event in all(storm, "/v1/events").await {
        let Some(run) = event.pointer("/data/run/id").and_then(Value::as_str) else {
            continue;
        };
        let word = event["type"].as_str().unwrap().to_owned();
        let of_run = told.entry(run.to_owned()).or_default();
        *of_run.entry(word).or_default() += 1;
    }
    told
}
