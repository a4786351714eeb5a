//! Sends Slack messages about trains: claims those that are due, sends them, and records the
//! outcomes.
//!
//! This loop is separate from deliveries, which must not wait for messages. It keeps the same
//! rules: no database connection is held during HTTP, every request passes the guard, and store
//! work is never cancelled. One loop claims; each message is sent by a task of its own. Few
//! messages of one publisher are under way at a time, so that its slow receiver does not delay
//! others.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use domain::{
    Timestamp,
    id::PublisherId,
    notice::{self, STALE_AFTER},
    retry::Schedule,
};
use outbound::{Client, Failure, Request, Response};
use persistence::{DueNotice, Next, NoticeOutcome, Notices, Store};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::attempt::{STATUS, after_failure};

/// Most messages under way in this process, and most of one publisher.
const IN_FLIGHT_MAX: u32 = 64;
const PER_PUBLISHER_MAX: u32 = 4;
/// How long a claim holds.
const LEASE: Duration = Duration::from_secs(30);
/// A message that is not begun within this after its claim is left for the next claim.
const BEGIN_WITHIN: Duration = Duration::from_secs(10);
/// The time limit of one request. Slack answers within a second or two.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The shortest pause before the next claim, and the pause before an outcome is recorded again,
/// after the store failed or another process was first.
const PAUSE: Duration = Duration::from_millis(250);

/// How long a message waits that could not be sent because this process lacked a resource of its
/// own.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(2);

/// The error class of a message whose train has no webhook any more, or one that can't be
/// decrypted.
const NO_WEBHOOK: &str = "no_webhook";
/// The error class of a message that is not sent because it is too old to be of use.
const STALE: &str = "stale";

/// The loop that claims messages and starts their tasks.
pub(crate) struct Sender {
    store: Store,
    client: Client,
    schedule: Schedule,
    poll: Duration,
    under_way: JoinSet<()>,
    /// The publisher of each task.
    of: HashMap<Id, PublisherId>,
    /// Whether the store failed at the last claim.
    failing: bool,
}

impl Sender {
    pub(crate) fn new(store: Store, client: Client, schedule: Schedule, poll: Duration) -> Self {
        Self {
            store,
            client,
            schedule,
            poll,
            under_way: JoinSet::new(),
            of: HashMap::new(),
            failing: false,
        }
    }

    /// Runs until `stop`, and then until the messages under way are recorded.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let pause = self.look().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.store.notices_written() => {}
                Some(ended) = self.under_way.join_next_with_id() => self.ended(ended),
                () = tokio::time::sleep(pause) => {}
            }
        }
        while let Some(ended) = self.under_way.join_next_with_id().await {
            self.ended(ended);
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                tracing::error!(%error, "a message about a train panicked");
                error.id()
            }
        };
        self.of.remove(&id);
    }

    /// Claims the due messages and starts them; returns how long to wait before the next claim.
    async fn look(&mut self) -> Duration {
        let under_way = u32::try_from(self.under_way.len()).unwrap_or(u32::MAX);
        let room = IN_FLIGHT_MAX.saturating_sub(under_way);
        if room == 0 {
            return self.poll;
        }
        let mut busy: Vec<PublisherId> = self.of.values().copied().collect();
        busy.sort_unstable();
        busy.dedup();
        let (began, system) = (Instant::now(), self.store.system());
        // In a task of its own, so that a panic ends this claim and not the loop.
        let look = async move {
            let bounds = (room, PER_PUBLISHER_MAX);
            system.trains().claim_notices(&busy, bounds, LEASE).await
        };
        match tokio::spawn(look).await {
            Ok(Ok(found)) => {
                self.failing = false;
                self.start(found, began)
            }
            Ok(Err(error)) => {
                if !self.failing {
                    tracing::warn!(%error, "messages about trains wait for the store");
                }
                self.failing = true;
                self.poll.max(PAUSE)
            }
            Err(error) => {
                tracing::error!(%error, "the search for messages about trains panicked");
                self.poll.max(PAUSE)
            }
        }
    }

    fn start(&mut self, found: Notices, began: Instant) -> Duration {
        let none = found.claimed.is_empty();
        for due in found.claimed {
            let publisher = due.publisher;
            let (store, client) = (self.store.clone(), self.client.clone());
            let send = send(store, client, self.schedule.clone(), due, began);
            let task = self.under_way.spawn(send);
            self.of.insert(task.id(), publisher);
        }
        match found.next {
            // Other publishers may have more.
            _ if !none => Duration::ZERO,
            Some(at) => at
                .since(self.store.now())
                .clamp(PAUSE, self.poll.max(PAUSE)),
            None => self.poll,
        }
    }
}

/// Sends one message and records the outcome.
async fn send(store: Store, client: Client, schedule: Schedule, due: DueNotice, claimed: Instant) {
    // The process may have been suspended since.
    if claimed.elapsed() > BEGIN_WITHIN {
        return;
    }
    let Some((error, retry_at)) = attempt(&store, &client, &schedule, &due).await else {
        if let Err(error) = store
            .system()
            .trains()
            .return_notice(&due, SHORTAGE_PAUSE)
            .await
        {
            tracing::warn!(notice = %due.id, %error, "a message that could not be sent is not due again before its lease ends");
        }
        return;
    };
    let outcome = NoticeOutcome {
        publisher: due.publisher,
        id: due.id,
        attempt: due.attempt,
        error,
        retry_at,
    };
    measure(&due, &outcome);
    while let Err(error) = store.system().trains().record_notice(outcome).await {
        let waits = error.may_pass() && claimed.elapsed() < LEASE;
        if !waits {
            tracing::warn!(notice = %due.id, %error, "the outcome of a message could not be recorded; the message is sent again");
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The error class, if the message failed, and when the next try is due, if there is one.
type SendResult = (Option<&'static str>, Option<Timestamp>);

/// Makes one try; `None` if this process lacked a resource of its own.
async fn attempt(
    store: &Store,
    client: &Client,
    schedule: &Schedule,
    due: &DueNotice,
) -> Option<SendResult> {
    if store.now().since(due.created_at) > STALE_AFTER {
        return Some((Some(STALE), None));
    }
    let Some(webhook) = &due.webhook else {
        return Some((Some(NO_WEBHOOK), None));
    };
    let sent = client.send(request(webhook, due)).await;
    if sent.as_ref().err() == Some(&Failure::OwnShortage) {
        return None;
    }
    Some(ended(&sent, schedule, due.attempt, store.now()))
}

fn ended(
    sent: &Result<Response, Failure>,
    schedule: &Schedule,
    attempt: u32,
    now: Timestamp,
) -> SendResult {
    let (error, response) = match sent {
        Ok(response) if (200..=299).contains(&response.status) => return (None, None),
        Ok(response) if notice::is_final(response.status) => return (Some(STATUS), None),
        Ok(response) => (STATUS, Some(response)),
        Err(failure) => (failure.code(), None),
    };
    let retry_at = match after_failure(schedule, attempt, response, now) {
        Next::RetryAt(at) => Some(at),
        Next::Throttled(_) | Next::Succeeded | Next::Failed | Next::Gone => None,
    };
    (Some(error), retry_at)
}

fn request(webhook: &SecretString, due: &DueNotice) -> Request {
    let body = notice::payload(&due.message, due.channel.as_deref());
    let mut request = Request::notice(webhook.expose_secret(), body);
    let json = ("content-type".to_owned(), "application/json".to_owned());
    request.headers.push(json);
    request.keep_bytes = 0;
    request.headers_timeout = Some(TIMEOUT);
    request.total_timeout = Some(TIMEOUT);
    request
}

fn measure(due: &DueNotice, outcome: &NoticeOutcome) {
    let word = outcome.error.unwrap_or("sent");
    metrics::counter!("stationmaster_notice_attempts_total", "outcome" => word).increment(1);
    if let (Some(error), None) = (outcome.error, outcome.retry_at) {
        metrics::counter!("stationmaster_notices_given_up_total").increment(1);
        let (publisher, train, notice) = (due.publisher, due.train, due.id);
        let tries = due.attempt;
        tracing::warn!(%publisher, %train, %notice, error, tries, "a message about a train is given up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    fn answer(status: u16, retry_after: Option<&str>) -> Response {
        Response {
            status,
            retry_after: retry_after.map(str::to_owned),
            content_type: None,
            body_excerpt: Vec::new(),
            truncated: false,
            latency_ms: 1,
        }
    }

    #[test]
    fn five_tries_within_an_hour_or_so() {
        let schedule = Settings::default().notices;
        assert_eq!(schedule.tries(), 5);
        let seconds: u32 = schedule.seconds().iter().sum();
        assert!((3000..=3600).contains(&seconds), "{seconds}");
    }

    #[test]
    fn what_can_still_arrive_is_tried_again() {
        let (schedule, now) = (Settings::default().notices, Timestamp::from_ms(0));
        let of = |sent: &Result<Response, Failure>, attempt| ended(sent, &schedule, attempt, now);
        assert_eq!(of(&Ok(answer(200, None)), 1), (None, None));
        for (status, waits) in [(302, true), (404, false), (410, false), (500, true)] {
            let (error, retry_at) = of(&Ok(answer(status, None)), 1);
            assert_eq!(
                (error, retry_at.is_some()),
                (Some(STATUS), waits),
                "{status}"
            );
        }
        let (error, retry_at) = of(&Err(Failure::Dns), 4);
        assert_eq!(error, Some("dns"));
        assert!(retry_at.unwrap().seconds() >= 36 * 60);
        // The fifth try is the last. One more is made if a process ended before it recorded one.
        for attempt in [5, 6] {
            assert_eq!(of(&Err(Failure::Dns), attempt), (Some("dns"), None));
        }
        let asked = of(&Ok(answer(429, Some("7200"))), 1).1.unwrap();
        assert_eq!(asked.seconds(), 7200);
    }
}
