//! A consumer of webhooks, which keeps all requests and answers as the test says.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use poem::{
    Endpoint, IntoResponse, Request, Response, Server, http::StatusCode, listener::TcpAcceptor,
};
use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::tools::{eventually, now_s};

/// How long an undisturbed delivery may take.
const PROMPT: Duration = Duration::from_secs(10);

/// One request that the consumer got.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The time of arrival in Unix seconds.
    pub at_s: i64,
    /// Its path and query.
    pub path: String,
    /// Its headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The exact bytes.
    pub body: Bytes,
    /// The status of the answer.
    pub answered: u16,
}

impl Delivery {
    /// A header's value; empty when it is missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// The event's identifier, by which consumers recognize duplicates.
    #[must_use]
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The body.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The event's type.
    #[must_use]
    pub fn event_type(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }
}

/// How to answer a delivery.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
    /// The time before the answer.
    pub delay: Duration,
}

impl Reply {
    /// An answer with a status only.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: String::new(),
            delay: Duration::ZERO,
        }
    }
}

struct State {
    seen: Vec<Delivery>,
    next: VecDeque<Reply>,
    otherwise: Reply,
    /// The first delivery, counted from 0, that is held.
    held_from: usize,
    /// The most deliveries that are accepted within a second, and the times of the last ones.
    limit: Option<(usize, VecDeque<Instant>)>,
}

impl State {
    /// Whether another delivery exceeds the limit.
    fn is_over(&mut self) -> bool {
        let Some((limit, taken)) = &mut self.limit else {
            return false;
        };
        let now = Instant::now();
        let gone = |at: &Instant| now.duration_since(*at) >= Duration::from_secs(1);
        while taken.front().is_some_and(gone) {
            taken.pop_front();
        }
        let over = taken.len() >= *limit;
        if !over {
            taken.push_back(now);
        }
        over
    }
}

/// The consumer. Gone when dropped.
pub struct Consumer {
    /// The URL at which it listens, with a path.
    pub url: String,
    state: Arc<Mutex<State>>,
    /// How often held deliveries were released.
    releases: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Consumer {
    /// Starts a consumer that answers 204.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            seen: Vec::new(),
            next: VecDeque::new(),
            otherwise: Reply::status(204),
            held_from: usize::MAX,
            limit: None,
        }));
        let releases = watch::channel(0).0;
        let app = Receiver(Arc::clone(&state), releases.clone());
        let acceptor = TcpAcceptor::from_tokio(listener).unwrap();
        let task = tokio::spawn(async move {
            Server::new_with_acceptor(acceptor).run(app).await.unwrap();
        });
        Self {
            url,
            state,
            releases,
            task,
        }
    }

    /// Answers the next deliveries like this, one each, and then as before.
    pub fn reply_next(&self, replies: impl IntoIterator<Item = Reply>) {
        self.state.lock().unwrap().next.extend(replies);
    }

    /// Answers like this from now on.
    pub fn reply_always(&self, reply: Reply) {
        self.state.lock().unwrap().otherwise = reply;
    }

    /// Accepts at most `limit` deliveries a second from now on. Others are answered 429, with a
    /// `Retry-After` of one second.
    pub fn take_a_second(&self, limit: usize) {
        self.state.lock().unwrap().limit = Some((limit, VecDeque::new()));
    }

    /// Answers `count` more deliveries, and holds those after them until [`Self::release`].
    pub fn hold_after(&self, count: usize) {
        let mut state = self.state.lock().unwrap();
        state.held_from = state.seen.len() + count;
    }

    /// Answers all held deliveries, and holds no more.
    pub fn release(&self) {
        self.state.lock().unwrap().held_from = usize::MAX;
        self.releases.send_modify(|count| *count += 1);
    }

    /// All deliveries, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<Delivery> {
        self.state.lock().unwrap().seen.clone()
    }

    /// The first delivery that `wanted` accepts, waiting for it.
    pub async fn find(&self, what: &str, wanted: impl Fn(&Delivery) -> bool) -> Delivery {
        eventually(what, PROMPT, async || {
            self.seen().into_iter().find(|delivery| wanted(delivery))
        })
        .await
    }

    /// The first delivery of an event type, waiting for it.
    pub async fn event(&self, event_type: &str) -> Delivery {
        self.find(event_type, |delivery| delivery.event_type() == event_type)
            .await
    }

    /// All deliveries, once there are as many.
    pub async fn count(&self, count: usize) -> Vec<Delivery> {
        eventually(&format!("{count} deliveries"), PROMPT, async || {
            let seen = self.seen();
            (seen.len() >= count).then_some(seen)
        })
        .await
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Receiver(Arc<Mutex<State>>, watch::Sender<u64>);

impl Endpoint for Receiver {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let body = request.take_body().into_bytes().await?;
        let headers = request.headers().iter();
        let headers = headers
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.as_str().to_owned(), value)
            })
            .collect();
        let mut released = self.1.subscribe();
        let (reply, held) = {
            let mut state = self.0.lock().unwrap();
            let held = state.seen.len() >= state.held_from;
            let otherwise = state.otherwise.clone();
            let reply = if state.is_over() {
                let wait = ("retry-after", "1".to_owned());
                Reply {
                    headers: vec![wait],
                    ..Reply::status(429)
                }
            } else {
                state.next.pop_front().unwrap_or(otherwise)
            };
            state.seen.push(Delivery {
                at_s: now_s(),
                path: request.uri().to_string(),
                headers,
                body,
                answered: reply.status,
            });
            (reply, held)
        };
        if held {
            // An error means that the consumer was dropped.
            let _ = released.changed().await;
        }
        tokio::time::sleep(reply.delay).await;
        let mut response = Response::builder().status(StatusCode::from_u16(reply.status).unwrap());
        for (name, value) in &reply.headers {
            response = response.header(*name, value);
        }
        Ok(response.body(reply.body).into_response())
    }
}
