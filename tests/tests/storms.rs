//! Webhooks under load, while things break: what was acknowledged arrives, whoever dies; nobody is
//! held up by others; what is old goes while the rest goes on.
//!
//! Each of these keeps the machine busy by itself (see `.config/nextest.toml`).

mod fairness;
mod losses;
mod replicas;
mod retention;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use domain::id::{DeliveryId, Id as _};
use serde_json::{Value, json};
use tests::{Arrival, Publisher, Server, Tally, keeping_client, tools};

/// How long a server may be away before a caller gives up on the test.
const WAIT_MAX: Duration = Duration::from_mins(1);
/// How many requests one process has under way at most: 256, and as many again to slow receivers.
/// The receivers of these stories are none, and what is not recorded yet counts as under way.
const UNDER_WAY_MAX: usize = 256;

/// Somebody who publishes, and asks again until there is an answer.
struct Source {
    client: reqwest::Client,
    /// Where the servers are at present.
    urls: Vec<RwLock<String>>,
    token: String,
    /// Identifiers of the events that were acknowledged, by number.
    acknowledged: Mutex<BTreeMap<usize, String>>,
    unanswered: AtomicUsize,
}

impl Source {
    fn new(publisher: &Publisher, servers: &[&Server]) -> Arc<Self> {
        let urls = servers.iter().map(|server| RwLock::new(server.url()));
        Arc::new(Self {
            client: keeping_client(),
            urls: urls.collect(),
            token: publisher.runner.token().to_owned(),
            acknowledged: Mutex::default(),
            unanswered: AtomicUsize::new(0),
        })
    }

    /// Asks once. Nothing if there was no answer, or one that says that the store is away.
    async fn ask(&self, at: usize, body: &str) -> Option<(u16, Value)> {
        let url = self.urls[at % self.urls.len()].read().unwrap().clone();
        let request = self
            .client
            .post(format!("{url}/v1/events"))
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {}", self.token))
            .body(body.to_owned());
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        let bytes = response.bytes().await.ok()?;
        (status != 503).then(|| (status, serde_json::from_slice(&bytes).unwrap()))
    }

    /// Publishes one event of this type for each number, by one request, until it is answered.
    /// Whether an earlier request was done does not matter: the events have names.
    async fn publish(&self, at: usize, numbers: &[usize], event_type: impl Fn(usize) -> String) {
        let event = |number: &usize| {
            json!({
                "type": event_type(*number),
                "data": {"number": number},
                "external_id": format!("event-{number}"),
            })
        };
        let one = numbers.len() == 1;
        let body = if one {
            event(&numbers[0])
        } else {
            json!({"events": numbers.iter().map(event).collect::<Vec<_>>()})
        };
        let body = body.to_string();
        let end = Instant::now() + WAIT_MAX;
        let (status, answer) = loop {
            if let Some(answer) = self.ask(at, &body).await {
                break answer;
            }
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            assert!(Instant::now() < end, "nobody takes the events");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(matches!(status, 200 | 202), "{status} {answer}");
        let events = if one {
            vec![answer]
        } else {
            answer["items"].as_array().unwrap().clone()
        };
        assert_eq!(events.len(), numbers.len());
        let mut acknowledged = self.acknowledged.lock().unwrap();
        for (number, event) in numbers.iter().zip(events) {
            assert_eq!(event["data"]["number"], *number);
            let id = event["id"].as_str().unwrap().to_owned();
            assert_eq!(acknowledged.insert(*number, id), None);
        }
    }

    fn acknowledged(&self) -> BTreeMap<usize, String> {
        self.acknowledged.lock().unwrap().clone()
    }
}

/// Registers an endpoint for these types.
async fn endpoint(publisher: &Publisher, url: &str, types: &[&str]) -> String {
    let body = json!({"url": url, "event_types": types});
    let call = publisher.admin.post("/v1/webhook-endpoints").json(&body);
    call.expect(201).await.text("/id")
}

/// Which deliveries wait in the store, as 32 hexadecimal digits each.
async fn pending(server: &Server) -> HashSet<String> {
    let ids = server.site().ids("deliveries WHERE status = 'pending'");
    ids.await.into_iter().collect()
}

/// The same form, of what a request said of itself.
fn delivery_of(arrival: &Arrival) -> String {
    let id = DeliveryId::parse(&arrival.delivery).unwrap();
    id.uuid().simple().to_string()
}

/// Waits until nothing waits in the store.
async fn drained(server: &Server, limit: Duration) {
    tools::eventually("nothing waits", limit, async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        (server
            .site()
            .count("deliveries WHERE status = 'pending'")
            .await
            == 0)
            .then_some(())
    })
    .await;
}

/// A moment at which a process was taken away from its work.
struct Death {
    /// From here on another one may be at work.
    over: Instant,
    /// What waited in the store then.
    pending: HashSet<String>,
}

/// Looks at everything that came more than once: it must have come before a death, must have been
/// waiting in the store then (so its outcome was not recorded), and came again afterwards. Answers
/// how often that was.
fn repeats(arrivals: &[Arrival], deaths: &[Death]) -> usize {
    let mut last: HashMap<&str, Instant> = HashMap::new();
    let mut repeats = 0;
    for arrival in arrivals {
        let Some(before) = last.insert(&arrival.delivery, arrival.at) else {
            continue;
        };
        repeats += 1;
        let delivery = delivery_of(arrival);
        let explained = deaths.iter().any(|death| {
            before < death.over && death.over <= arrival.at && death.pending.contains(&delivery)
        });
        assert!(explained, "{arrival:?} came again for no reason");
    }
    repeats
}

/// What came is what was acknowledged, and what the API lists: nothing else, nothing less.
async fn nothing_is_lost(source: &Source, publisher: &Publisher, arrivals: &[Arrival]) {
    let acknowledged: BTreeSet<String> = source.acknowledged().into_values().collect();
    let listed = publisher.admin.all("/v1/events").await;
    let numbers: BTreeSet<u64> = listed
        .iter()
        .map(|event| event["data"]["number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers.len(), listed.len(), "one event is there twice");
    let listed: BTreeSet<String> = listed
        .iter()
        .map(|event| event["id"].as_str().unwrap().to_owned())
        .collect();
    let arrived: BTreeSet<String> = arrivals.iter().map(|one| one.event.clone()).collect();
    let lost: Vec<_> = acknowledged.difference(&arrived).collect();
    assert!(lost.is_empty(), "acknowledged, and never sent: {lost:?}");
    let unknown: Vec<_> = arrived.difference(&listed).collect();
    assert!(unknown.is_empty(), "sent, and never committed: {unknown:?}");
    assert_eq!(listed, acknowledged, "all were answered in the end");
}

/// How long it took from the publishing of each event until it came, published one by one at this
/// pace by everybody in turn, for so long. Every one must come.
async fn latencies(
    sources: &[Arc<Source>],
    tally: &Tally,
    first: usize,
    pace: Duration,
    lasts: Duration,
) -> Vec<Duration> {
    let end = Instant::now() + lasts;
    let mut asked: Vec<(usize, usize, Instant)> = Vec::new();
    while Instant::now() < end {
        let number = first + asked.len();
        let whose = number % sources.len();
        let now = Instant::now();
        asked.push((whose, number, now));
        sources[whose]
            .publish(0, &[number], |_| "live.event".to_owned())
            .await;
        tokio::time::sleep(pace.saturating_sub(now.elapsed())).await;
    }
    let events: HashMap<String, Instant> = asked
        .into_iter()
        .map(|(whose, number, at)| (sources[whose].acknowledged()[&number].clone(), at))
        .collect();
    tools::eventually("every live event comes", WAIT_MAX, async || {
        tokio::time::sleep(Duration::from_millis(80)).await;
        let arrivals = tally.arrivals();
        let came = arrivals.iter().filter_map(|arrival| {
            let at = events.get(&arrival.event)?;
            Some(arrival.at.saturating_duration_since(*at))
        });
        let came: Vec<Duration> = came.collect();
        (came.len() == events.len()).then_some(came)
    })
    .await
}

/// p50, p99 and the worst, in milliseconds.
fn shown(took: &[Duration]) -> String {
    format!(
        "p50 {} ms, p99 {} ms, at most {} ms of {}",
        tools::percentile(took, 0.5).as_millis(),
        tools::percentile(took, 0.99).as_millis(),
        took.iter().max().unwrap().as_millis(),
        took.len(),
    )
}
