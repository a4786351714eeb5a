//! One try of one delivery: signs it, sends it, and decides what follows from the answer.

use std::time::{Duration, Instant};

use domain::{Timestamp, retry::Schedule, signature};
use outbound::{Client, Failure, Request, Response, safe_excerpt};
use persistence::{AttemptOutcome, DeliveryTarget, DueDelivery, Next, Store};
use secrecy::ExposeSecret as _;

use crate::{board::Start, note::Tried, throttle::PAUSE_MAX};

/// For this long after a delivery was written, a try that the receiver answers by asking for a
/// pause uses up none of the schedule's tries. If the schedule takes longer, its length counts.
const THROTTLED_FREE: Duration = Duration::from_hours(1);

/// The answer that an endpoint is gone for good (RFC 9110 §15.5.11).
const GONE: u16 = 410;

/// The error class of an answer that is no success.
pub(crate) const STATUS: &str = "status";
/// The error class of a delivery that is not sent because its endpoint has no signing secret.
const UNSIGNED: &str = "no_signing_secret";
/// The error classes of a delivery that is not sent because a stored part of its endpoint, or its
/// stored event, can't be read.
const UNREADABLE: (&str, &str) = ("endpoint_unreadable", "event_unreadable");

/// Makes one try. Everything that happens is an outcome, with one exception: `None` if this process
/// lacked a resource of its own, such as a file descriptor, which says nothing about the receiver.
pub(crate) async fn make(
    store: &Store,
    client: &Client,
    schedule: &Schedule,
    start: Start,
) -> Option<Tried> {
    let at = store.now();
    let began = Instant::now();
    let Start {
        key,
        fence,
        target,
        due,
        ..
    } = start;
    let (id, attempt) = (due.id, due.attempt);
    let sent = if target.unreadable {
        Err(UNREADABLE.0)
    } else if due.body.is_empty() {
        Err(UNREADABLE.1)
    } else if target.secrets.is_empty() {
        Err(UNSIGNED)
    } else {
        client
            .send(request(&target, &due, at))
            .await
            .map_err(Failure::code)
    };
    if sent.as_ref().err() == Some(&Failure::OwnShortage.code()) {
        return None;
    }
    let latency = began.elapsed();
    let error = match &sent {
        Ok(response) if (200..=299).contains(&response.status) => None,
        Ok(_) => Some(STATUS),
        Err(class) => Some(*class),
    };
    measure(error, latency);
    let response = sent.ok();
    let now = store.now();
    let schedule = target.retry_schedule.as_ref().unwrap_or(schedule);
    let pause = response
        .as_ref()
        .and_then(|response| asked_pause(response, now));
    let next = match pause {
        _ if error.is_none() => Next::Succeeded,
        Some(pause) if now.since(due.created_at) < schedule.total().max(THROTTLED_FREE) => {
            Next::Throttled(now.plus(pause))
        }
        _ => {
            let made = attempt.saturating_sub(due.throttled);
            let made = u32::try_from(made).unwrap_or(0);
            after_failure(schedule, made, response.as_ref(), now)
        }
    };
    let excerpt = response
        .as_ref()
        .map(|response| safe_excerpt(&response.body_excerpt));
    let outcome = AttemptOutcome {
        key,
        fence,
        id,
        attempt,
        at,
        status_code: response.map(|response| response.status),
        error,
        latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
        excerpt: excerpt.filter(|text| !text.is_empty()),
        next,
    };
    Some(Tried { outcome, pause })
}

/// The request, signed for the time `at`.
fn request(target: &DeliveryTarget, due: &DueDelivery, at: Timestamp) -> Request {
    let (id, seconds, body) = (due.event.to_string(), at.seconds(), due.body.as_bytes());
    let standard = signature::standard(&target.secrets, &id, seconds, body);
    let shared = target
        .secrets
        .iter()
        .any(|secret| !signature::is_private_key(secret));
    let own = shared.then(|| signature::stationmaster(&target.secrets, seconds, body));
    let mut request = Request::notice(target.url.as_str(), body.to_vec());
    let mut add = |name: &str, value: String| request.headers.push((name.to_owned(), value));
    add("content-type", "application/json".to_owned());
    add("webhook-id", id);
    add("webhook-timestamp", seconds.to_string());
    add("webhook-signature", standard);
    if let Some(own) = own {
        add("x-stationmaster-signature", own);
    }
    add("x-stationmaster-delivery", due.id.to_string());
    add("x-stationmaster-attempt", due.attempt.to_string());
    // Names that would collide with those above are refused when an endpoint is stored.
    for (name, value) in &target.headers {
        add(name, value.clone());
    }
    if let Some(bearer) = &target.bearer {
        add(
            "authorization",
            format!("Bearer {}", bearer.expose_secret()),
        );
    }
    request
}

/// What follows after the `attempt`-th try failed, counted from 1.
pub(crate) fn after_failure(
    schedule: &Schedule,
    attempt: u32,
    response: Option<&Response>,
    now: Timestamp,
) -> Next {
    if response.is_some_and(|response| response.status == GONE) {
        return Next::Gone;
    }
    let Some(wait) = schedule.wait_after(attempt) else {
        return Next::Failed;
    };
    let asked = response.and_then(|response| asked_pause(response, now));
    Next::RetryAt(now.plus(wait.max(asked.unwrap_or_default())))
}

/// The pause that an overloaded receiver asks for (429 or 503 with `Retry-After`), at most a day.
fn asked_pause(response: &Response, now: Timestamp) -> Option<Duration> {
    let overloaded = matches!(response.status, 429 | 503);
    let asked = overloaded.then(|| response.asked_wait(now.ms()))?;
    Some(asked?.min(PAUSE_MAX))
}

fn measure(error: Option<&'static str>, latency: Duration) {
    let outcome = error.unwrap_or("succeeded");
    metrics::counter!("stationmaster_delivery_attempts_total", "outcome" => outcome).increment(1);
    metrics::histogram!("stationmaster_delivery_attempt_seconds").record(latency.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: &str) -> Response {
        Response {
            status,
            retry_after: Some(retry_after.to_owned()),
            content_type: None,
            body_excerpt: Vec::new(),
            truncated: false,
            latency_ms: 1,
        }
    }

    #[test]
    fn the_longer_wait_counts_and_the_last_try_is_the_last() {
        let now = Timestamp::from_ms(0);
        let schedule = Schedule::parse("10s").unwrap();
        let wait = |response: Response, attempt| match after_failure(
            &schedule,
            attempt,
            Some(&response),
            now,
        ) {
            Next::RetryAt(at) => Some(at.seconds()),
            _ => None,
        };
        assert_eq!(wait(answer(429, "600"), 1), Some(600));
        assert_eq!(wait(answer(503, "600"), 1), Some(600));
        let date = "Thu, 01 Jan 1970 00:10:00 GMT";
        assert_eq!(wait(answer(429, date), 1), Some(600));
        assert_eq!(wait(answer(429, "86401"), 1), Some(86_400));
        assert!(wait(answer(429, "1"), 1).unwrap() >= 8);
        assert!(wait(answer(500, "600"), 1).unwrap() <= 12);
        assert_eq!(wait(answer(503, "600"), 2), None);
        assert_eq!(after_failure(&schedule, 0, None, now), Next::Failed);
        let gone = answer(410, "1");
        assert_eq!(after_failure(&schedule, 1, Some(&gone), now), Next::Gone);
    }
}
