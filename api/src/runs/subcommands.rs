//! Subcommands: a run's holder calls an endpoint of its publisher through this service, which adds
//! the bearer and the signatures and tells what came of it.
//!
//! A problem says that the call was not made. Once it may be made the answer is 200 with an
//! envelope, whatever the endpoint does: its 500 is never ours, and neither a proxy nor a client
//! that repeats 502 and 504 makes a second call of one.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use poem::http::HeaderMap;
use poem_openapi::{OpenApi, param::Header};
use secrecy::{ExposeSecret as _, SecretString};

use domain::{
    Code, Problem, Timestamp,
    id::{CallId, Id as _, PublisherId, RunId},
    limits::{SUBCOMMAND_ANSWER_BYTES, SUBCOMMAND_CALLS, SUBCOMMAND_CALLS_IN_ALL},
    permission::RunsClaim,
    permits::{Bounds, Full, Permit, Permits},
    signature,
};
use outbound::{Client, ClientLimits, Failure, Request};
use persistence::{Answer, SubcommandCall};

use crate::{
    auth::Caller,
    shared::{App, Ok, Path, Tag, Text},
};
use web::http::{AnyBody, ApiError};

mod envelope;
mod headers;

use envelope::{CallError, SubcommandAnswer};

/// Connections to one endpoint that are kept for the next calls.
const IDLE_PER_HOST_MAX: usize = 16;

/// Calls under way.
const CALLS: Bounds = Bounds {
    total: SUBCOMMAND_CALLS_IN_ALL,
    per_owner: SUBCOMMAND_CALLS,
};

/// The operation on subcommands.
pub struct Subcommands {
    app: Arc<App>,
    client: Client,
    calls: Permits<PublisherId>,
}

impl Subcommands {
    /// The operation over the application's parts, with connections of its own: what waits here
    /// holds up no delivery.
    pub(crate) fn new(app: Arc<App>) -> Self {
        let limits = ClientLimits {
            read_bytes_max: SUBCOMMAND_ANSWER_BYTES,
            idle_per_host_max: IDLE_PER_HOST_MAX,
            ..ClientLimits::default()
        };
        Self {
            client: Client::new(app.policy.clone(), limits),
            app,
            calls: Permits::new(CALLS),
        }
    }

    /// A permit for a call. Who has none is told at once: a call that waited here would be made at a
    /// time at which its caller no longer expects it.
    fn permit(&self, publisher: PublisherId) -> Result<Permit<PublisherId>, Problem> {
        self.calls.try_acquire(publisher, 1).map_err(|full| {
            let (code, detail) = match full {
                Full::Owner => (
                    Code::RateLimited,
                    format!(
                        "{SUBCOMMAND_CALLS} subcommand calls are under way; this one was not made."
                    ),
                ),
                Full::Total => (
                    Code::Overloaded,
                    "Too many subcommand calls are under way; this one was not made.".to_owned(),
                ),
            };
            Problem::new(code, detail).retry_after(1)
        })
    }

    fn count_in_flight(&self) {
        let count = u32::try_from(self.calls.in_use()).unwrap_or(u32::MAX);
        metrics::gauge!("stationmaster_subcommand_calls_in_flight").set(f64::from(count));
    }

    /// Makes the call. Whatever happens is what came of it; it fails only where nothing was sent
    /// since this process is short of something of its own.
    async fn make(
        &self,
        call: &SubcommandCall,
        id: CallId,
        sent: Sent<'_>,
    ) -> Result<SubcommandAnswer, Problem> {
        let began = Instant::now();
        let made = match &call.bearer {
            None => Err(CallError::NoSubcommandBearer),
            Some(_) if call.signing.is_empty() => Err(CallError::NoSigningSecret),
            Some(bearer) => {
                let signed = Signed::of(call, id, &sent);
                let request = request(call, bearer, &signed, sent);
                let sent = self.client.send(request).await;
                if sent.as_ref().err() == Some(&Failure::OwnShortage) {
                    let detail =
                        "The call was not made: this server is short of something of its own.";
                    return Err(Problem::new(Code::Overloaded, detail).retry_after(1));
                }
                sent.map(|response| (response, bearer, signed))
                    .map_err(CallError::from)
            }
        };
        let took = began.elapsed();
        let answer = match made {
            Ok((response, bearer, signed)) => {
                let mut secrets = vec![bearer.expose_secret()];
                secrets.extend(signed.codes());
                SubcommandAnswer::of_publisher(id, response, &secrets)
            }
            Err(error) => {
                let latency_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                SubcommandAnswer::of_failure(id, error, latency_ms)
            }
        };
        let outcome = answer.outcome();
        metrics::counter!("stationmaster_subcommand_calls_total", "outcome" => outcome)
            .increment(1);
        metrics::histogram!("stationmaster_subcommand_call_seconds").record(took.as_secs_f64());
        Ok(answer)
    }
}

/// What the runner gave.
struct Sent<'a> {
    name: &'a str,
    headers: Vec<(String, String)>,
    body: Bytes,
    request_id: &'a str,
    at: Timestamp,
}

/// A call's signatures for this moment, in the two schemes of a delivery, by secrets that sign
/// nothing but calls.
struct Signed {
    id: String,
    seconds: i64,
    standard: String,
    own: String,
}

impl Signed {
    fn of(call: &SubcommandCall, id: CallId, sent: &Sent<'_>) -> Self {
        let secrets = call.signing.iter().map(signature::subcommand_secret);
        let secrets: Vec<SecretString> = secrets.collect();
        let (id, seconds) = (id.to_string(), sent.at.seconds());
        Self {
            standard: signature::standard(&secrets, &id, seconds, &sent.body),
            own: signature::stationmaster(&secrets, seconds, &sent.body),
            id,
            seconds,
        }
    }

    /// Each signature without what stands before it.
    fn codes(&self) -> impl Iterator<Item = &str> {
        let standard = self.standard.split(' ');
        let standard = standard.filter_map(|one| one.split_once(',').map(|(_, code)| code));
        let own = self.own.split(',');
        standard.chain(own.filter_map(|one| one.strip_prefix("v1=")))
    }
}

/// The request with its credentials.
fn request(
    call: &SubcommandCall,
    bearer: &SecretString,
    signed: &Signed,
    sent: Sent<'_>,
) -> Request {
    let mut request = Request::post(call.url.as_str(), sent.body);
    request.keep_bytes = SUBCOMMAND_ANSWER_BYTES;
    request.headers_timeout = Some(call.timeout);
    request.total_timeout = Some(call.timeout);
    request.headers = sent.headers;
    let mut add = |name: &str, value: String| request.headers.push((name.to_owned(), value));
    // An answer in a coding would reach the runner as bytes that nobody has unpacked.
    add("accept-encoding", "identity".to_owned());
    add(
        "authorization",
        format!("Bearer {}", bearer.expose_secret()),
    );
    add("webhook-id", signed.id.clone());
    add("webhook-timestamp", signed.seconds.to_string());
    add("webhook-signature", signed.standard.clone());
    add("x-stationmaster-signature", signed.own.clone());
    add("x-stationmaster-run", call.run.to_string());
    add("x-stationmaster-subcommand", sent.name.to_owned());
    add("x-stationmaster-attempt", call.attempt.to_string());
    add("x-request-id", sent.request_id.to_owned());
    request
}

#[OpenApi(prefix_path = "/v1/runs", tag = "Tag::Runs")]
impl Subcommands {
    /// Call a subcommand
    ///
    /// Sends the body, byte for byte and with its `Content-Type`, to the URL that the run's version
    /// of its pipeline gives the subcommand, adding the publisher's bearer, both signatures and the
    /// run's identifier. 200 tells what came of it: the endpoint's status, be it 200, 404 or 500,
    /// stands in the envelope, and so does the reason when it gave no answer. A 4xx of ours means
    /// that the call was not made. It is made once: an `Idempotency-Key` is passed on to the
    /// endpoint and means nothing here.
    #[oai(
        path = "/:id/subcommands/:name",
        method = "post",
        operation_id = "call_subcommand"
    )]
    async fn call(
        &self,
        who: Caller<RunsClaim>,
        headers: &HeaderMap,
        Path(id): Path<RunId>,
        /// The subcommand's name.
        Path(name): Path<Text<63>>,
        /// The claim's token.
        #[oai(name = "X-Stationmaster-Claim", validator(max_length = 200))]
        claim: Header<String>,
        body: AnyBody,
    ) -> Result<Ok<SubcommandAnswer>, ApiError> {
        let headers = headers::passed(headers, body.0.len())?;
        let scope = who.scope();
        let runs = who.scoped().runs();
        let call = runs.subcommand_call(id, &claim.0, &name.0).await?;
        let permit = self.permit(scope.publisher())?;
        // From here on the endpoint is waited for.
        who.request.leave_place();
        let at = self.app.store.now();
        let sent = Sent {
            name: &name.0,
            headers,
            body: body.0,
            request_id: who.request.request_id(),
            at,
        };
        let call_id = CallId::generate(at);
        self.count_in_flight();
        let answer = self.make(&call, call_id, sent).await;
        drop(permit);
        self.count_in_flight();
        let answer = answer?;
        let context = who.context();
        let record = answer.record((call_id, call.attempt), &name.0);
        if let Err(error) = runs.record_call(&context, id, &record).await {
            // The endpoint has acted: what it said goes to the runner all the same.
            tracing::warn!(call = %call_id, %error, "a call could not be added to its run's timeline");
        }
        Ok(shown(&answer))
    }
}

fn shown(answer: &SubcommandAnswer) -> Ok<SubcommandAnswer> {
    Ok::from(Answer::new(200, answer.text()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_leaves_calls_to_the_others() {
        const { assert!(4 * CALLS.per_owner <= CALLS.total) };
    }
}
