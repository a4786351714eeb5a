//! `stationmaster listen`: receives the events that an endpoint would get, on a developer's
//! machine, and forwards them to a program there.

mod forward;
mod sse;

use std::{
    collections::{HashSet, VecDeque},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use domain::event::Filter;
use outbound::{Client, ClientLimits, Incoming, Method, Policy, Request};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use crate::{
    failure::Failure,
    files, signals,
    text::{say, shortened},
};

use forward::{Delivery, Forwarder};

/// The longest silence of the stream: the server sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// The first and the longest wait before another try to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// Most events that are remembered, because after a reconnect the server sends those of the last
/// minute again.
const REMEMBERED_MAX: usize = 100_000;
/// How much of an error answer is read, bytes.
const REFUSAL_BYTES: usize = 16 * 1024;

/// The options of `listen`.
#[derive(Debug, Args)]
pub struct ListenOptions {
    /// The URL to which deliveries are forwarded by POST; without it they are only printed
    #[arg(long, value_name = "URL")]
    forward: Option<String>,
    /// The server to listen to
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    server: String,
    /// The environment variable that holds an admin token
    #[arg(long, value_name = "NAME", default_value = "STATIONMASTER_TOKEN")]
    token_env: String,
    /// A file that holds an admin token, instead of the environment variable
    #[arg(long, value_name = "FILE", conflicts_with = "token_env")]
    token_file: Option<PathBuf>,
    /// Only these event types: `prefix.*` or types, separated by commas
    #[arg(long, value_name = "TYPES", default_value = "*")]
    event_types: String,
    /// Print the body of each event, too
    #[arg(long)]
    print: bool,
}

/// Listens until a signal comes.
///
/// # Errors
/// The usage is wrong; the server can't be reached at the start; the server refuses the token.
pub async fn run(options: ListenOptions) -> Result<(), Failure> {
    let mut listener = Listener::new(&options)?;
    let stop = signals::watch().map_err(|error| Failure::Failed(error.to_string()))?;
    let result = tokio::select! {
        result = listener.listen() => result,
        () = stop.cancelled() => Ok(()),
    };
    listener.forwarder.finish().await;
    result
}

/// Why a connection ended.
enum End {
    /// The server ended the stream; the next connection follows at once.
    Renew,
    /// The connection is lost, with the reason; the next one follows after a wait.
    Lost(String),
}

struct Listener {
    client: Client,
    url: String,
    server: String,
    token: SecretString,
    place: Option<String>,
    secret: Option<SecretString>,
    recent: Recent,
    forwarder: Forwarder,
}

impl Listener {
    fn new(options: &ListenOptions) -> Result<Self, Failure> {
        let words = options.event_types.split(',').map(Filter::parse);
        if words.into_iter().any(|filter| filter.is_none()) {
            let words = "--event-types takes `*`, `prefix.*` or event types, separated by commas";
            return Err(Failure::Usage(words.into()));
        }
        let policy = Policy::anywhere();
        let checked = |flag: &str, url: &str| {
            let checked = policy.check_url(url);
            checked.map_err(|refusal| Failure::Usage(format!("{flag}: {refusal}")))
        };
        let server = checked("--server", options.server.trim_end_matches('/'))?;
        let server = server.as_str().trim_end_matches('/').to_owned();
        if let Some(url) = &options.forward {
            checked("--forward", url)?;
        }
        let token = match &options.token_file {
            Some(path) => files::secret_of_file(path)?,
            None => files::secret_of_env(&options.token_env)?,
        };
        let client = Client::new(policy, ClientLimits::default());
        Ok(Self {
            url: format!("{server}/v1/listen?event_types={}", options.event_types),
            server,
            token,
            place: None,
            secret: None,
            recent: Recent::default(),
            forwarder: Forwarder::new(client.clone(), options.forward.clone(), options.print),
            client,
        })
    }

    /// Connects, and connects again after each end; returns only with an error.
    async fn listen(&mut self) -> Result<(), Failure> {
        let mut wait = BACKOFF.0;
        loop {
            let end = match self.connect().await {
                Ok(incoming) => {
                    wait = BACKOFF.0;
                    self.receive(incoming).await?
                }
                Err(Refusal::Final(words)) => return Err(Failure::Failed(words)),
                Err(Refusal::Passing(words)) if self.secret.is_none() => {
                    return Err(Failure::Failed(words));
                }
                Err(Refusal::Passing(words)) => End::Lost(words),
            };
            if let End::Lost(words) = end {
                let pause = wait.mul_f64(domain::random::jitter(0.2));
                eprintln!("{words}; trying again in {} ms", pause.as_millis());
                tokio::time::sleep(pause).await;
                wait = (wait * 2).min(BACKOFF.1);
            }
        }
    }

    async fn connect(&self) -> Result<Incoming, Refusal> {
        let mut request = Request::new(Method::GET, self.url.as_str(), Vec::new());
        let mut add = |name: &str, value: String| request.headers.push((name.to_owned(), value));
        let bearer = format!("Bearer {}", self.token.expose_secret());
        add("authorization", bearer);
        add("accept", "text/event-stream".to_owned());
        if let Some(place) = &self.place {
            add("last-event-id", place.clone());
        }
        let server = &self.server;
        let incoming = self.client.open(request, SILENCE_MAX).await;
        let incoming = incoming
            .map_err(|failure| Refusal::Passing(format!("{server} can't be reached: {failure}")))?;
        if incoming.status != 200 {
            return Err(Refusal::of(server, incoming).await);
        }
        let kind = incoming.content_type.as_deref().unwrap_or_default();
        if !kind.starts_with("text/event-stream") {
            let words =
                format!("what answers at {server} is no Stationmaster that can be listened to");
            return Err(Refusal::Final(words));
        }
        Ok(incoming)
    }

    /// Reads messages until the connection ends.
    async fn receive(&mut self, mut incoming: Incoming) -> Result<End, Failure> {
        let mut parser = sse::Parser::default();
        loop {
            let bytes = match incoming.chunk().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(End::Lost("the connection was closed".into())),
                Err(failure) => return Ok(End::Lost(format!("the connection is lost: {failure}"))),
            };
            if parser.push(&bytes).is_err() {
                let words = "the server sent a message that is too long";
                return Err(Failure::Failed(words.into()));
            }
            while let Some(message) = parser.next() {
                if let Some(end) = self.take(&message).await? {
                    return Ok(end);
                }
            }
        }
    }

    async fn take(&mut self, message: &sse::Message) -> Result<Option<End>, Failure> {
        let content: Value = serde_json::from_str(&message.data).unwrap_or_default();
        match message.event.as_str() {
            "listening" => self.begun(&content),
            "delivery" => {
                let delivery = Delivery::of(&content).ok_or_else(|| {
                    Failure::Failed("the server sent a message in an unknown form".into())
                })?;
                if self.recent.is_new(&delivery.id) {
                    self.forwarder.pass_on(delivery).await;
                }
            }
            "end" => {
                let detail = content["detail"].as_str().unwrap_or_default();
                return match content["reason"].as_str().unwrap_or_default() {
                    "token_refused" | "publisher_suspended" => Err(ended(detail)),
                    "time_over" => Ok(Some(End::Renew)),
                    _ => Ok(Some(End::Lost(shortened(detail.trim_end_matches('.'))))),
                };
            }
            _ => {}
        }
        if !message.id.is_empty() {
            self.place = Some(message.id.clone());
        }
        Ok(None)
    }

    fn begun(&mut self, content: &Value) {
        let secret = content["secret"].as_str().unwrap_or_default();
        let known = self.secret.as_ref().map(SecretString::expose_secret);
        if known != Some(secret) {
            say(&format!("signing secret: {secret}"));
        }
        if known.is_some() {
            eprintln!("connected again");
        } else {
            eprintln!("listening to {}; Ctrl-C ends it", self.server);
        }
        self.secret = Some(SecretString::from(secret));
    }
}

fn ended(detail: &str) -> Failure {
    Failure::Failed(format!(
        "the server ended the stream: {}",
        shortened(detail)
    ))
}

/// Why no stream was opened.
enum Refusal {
    /// Another try would give the same.
    Final(String),
    /// Another try may succeed.
    Passing(String),
}

impl Refusal {
    async fn of(server: &str, incoming: Incoming) -> Self {
        let status = incoming.status;
        let body = incoming.excerpt(REFUSAL_BYTES).await.unwrap_or_default();
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        let detail = shortened(problem["detail"].as_str().unwrap_or("no reason given"));
        match (status, problem["code"].as_str()) {
            (401, _) => Self::Final(format!("{server} refused the token (401): {detail}")),
            (404, _) => Self::Final(format!(
                "{server} has nothing to listen to (404): is it a Stationmaster, of this version?"
            )),
            (409 | 429 | 500.., _) => {
                Self::Passing(format!("{server} answered {status}: {detail}"))
            }
            _ => Self::Final(format!("{server} refused ({status}): {detail}")),
        }
    }
}

/// The events that were forwarded lately.
#[derive(Default)]
struct Recent {
    known: HashSet<String>,
    order: VecDeque<String>,
}

impl Recent {
    /// Adds an event; returns whether it is new.
    fn is_new(&mut self, id: &str) -> bool {
        if !self.known.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_lately_is_known_and_the_rest_forgotten() {
        let mut recent = Recent::default();
        assert!(recent.is_new("a") && !recent.is_new("a"));
        for number in 0..REMEMBERED_MAX {
            assert!(recent.is_new(&number.to_string()));
        }
        assert!(recent.known.len() == REMEMBERED_MAX && recent.is_new("a"));
    }
}
