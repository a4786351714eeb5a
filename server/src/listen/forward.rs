//! Forwards deliveries to a program on this machine, and prints its answers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::clock::{Clock as _, SystemClock};
use outbound::{Client, Request};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::text::say;

/// Most deliveries under way. With as many, nothing more is read from the server.
const IN_FLIGHT_MAX: u32 = 8;
/// How long an answer may take: longer than for a real delivery, so that a debugger can be used.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(2);
/// How long to wait at the end for deliveries under way.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// A delivery as the server sent it.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event's identifier.
    pub id: String,
    event_type: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Delivery {
    /// Reads the data of a message; `None` if it has another form.
    pub fn of(content: &Value) -> Option<Self> {
        let text = |name: &str| content[name].as_str().map(str::to_owned);
        let headers = content["headers"].as_object()?.iter();
        let headers = headers
            .map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
            .collect::<Option<_>>()?;
        Some(Self {
            id: text("id")?,
            event_type: text("type")?,
            headers,
            body: text("body")?,
        })
    }
}

/// Forwards deliveries, several at a time, and prints a line for each.
pub struct Forwarder {
    client: Client,
    url: Option<String>,
    print: bool,
    places: Arc<Semaphore>,
}

impl Forwarder {
    /// A forwarder to `url`; without it, deliveries are only printed. `print` prints bodies, too.
    pub fn new(client: Client, url: Option<String>, print: bool) -> Self {
        let places = usize::try_from(IN_FLIGHT_MAX).unwrap_or(1);
        Self {
            client,
            url,
            print,
            places: Arc::new(Semaphore::new(places)),
        }
    }

    /// Starts to forward a delivery, once fewer than eight are under way.
    pub async fn pass_on(&self, delivery: Delivery) {
        let print = self.print;
        let Some(url) = self.url.clone() else {
            return tell(&delivery, "", print);
        };
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
            return;
        };
        let client = self.client.clone();
        tokio::spawn(async move {
            let outcome = send(&client, &url, &delivery).await;
            tell(&delivery, &outcome, print);
            drop(place);
        });
    }

    /// Waits for the deliveries under way, at most five seconds.
    pub async fn finish(&self) {
        let all = self.places.acquire_many(IN_FLIGHT_MAX);
        let _ = tokio::time::timeout(FINISH_TIMEOUT, all).await;
    }
}

/// Sends the same bytes and headers; returns the result as text.
async fn send(client: &Client, url: &str, delivery: &Delivery) -> String {
    let mut request = Request::notice(url, delivery.body.clone());
    request.headers = delivery.headers.clone().into_iter().collect();
    request.headers_timeout = Some(ANSWER_TIMEOUT);
    request.total_timeout = Some(ANSWER_TIMEOUT);
    match client.send(request).await {
        Ok(answer) => format!("  {} in {} ms", answer.status, answer.latency_ms),
        Err(failure) => format!("  failed: {failure}"),
    }
}

fn tell(delivery: &Delivery, outcome: &str, print: bool) {
    let now = SystemClock.now();
    let mut line = format!("{now}  {}  {}{outcome}", delivery.event_type, delivery.id);
    if print {
        line.push('\n');
        line.push_str(&delivery.body);
    }
    say(&line);
}
