//! One request to a token endpoint.

use std::time::{Duration, Instant};

use domain::upstream::{
    ANSWER_BYTES, ClientAuth, ClientCredentials, ErrorKind, Grant, TokenError, TokenRequest,
    read_answer,
};
use outbound::{Failure, Request};
use secrecy::ExposeSecret as _;

use crate::Refresher;

/// The time limits of a request: to the last header of the answer, and to the answer's end.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
pub(crate) const TOTAL_TIMEOUT: Duration = Duration::from_secs(15);

/// Why the token endpoint gave no grant.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    /// The endpoint refused or failed.
    #[error("{}", .0.reason)]
    Endpoint(TokenError),
    /// The endpoint was not asked: this process lacks a resource of its own.
    #[error("this server lacks a resource of its own; try again in a moment")]
    OwnShortage,
}

impl AskError {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Endpoint(error) => error.reason,
            Self::OwnShortage => "own_shortage",
        }
    }
}

impl From<TokenError> for AskError {
    fn from(error: TokenError) -> Self {
        Self::Endpoint(error)
    }
}

/// Asks for a grant with the client's secret in the `Authorization` header. If the endpoint
/// refuses, asks again with the secret in the body: RFC 6749 §2.3.1 leaves it to endpoints whether
/// they take the secret there, and some take it there alone. No standard says by which error they
/// refuse, so any error that may be about the client leads to the second request. An endpoint that
/// does not recognize the client does not use up its refresh token, so the second request is safe.
///
/// # Errors
/// [`AskError`], whose texts contain nothing that the endpoint wrote.
pub(crate) async fn ask(
    refresher: &Refresher,
    url: &str,
    client: ClientCredentials<'_>,
    ask: TokenRequest<'_>,
) -> Result<Grant, AskError> {
    let began = Instant::now();
    let answer = match once(refresher, url, client, ask, ClientAuth::Basic).await {
        Err(AskError::Endpoint(first)) if asks_again(client, &first) => {
            match once(refresher, url, client, ask, ClientAuth::Body).await {
                Err(AskError::Endpoint(second)) => Err(first.or(second).into()),
                // The first answer said that the grant is dead, and that stands.
                Err(AskError::OwnShortage) if first.kind == ErrorKind::Spent => Err(first.into()),
                other => other,
            }
        }
        other => other,
    };
    let outcome = answer.as_ref().map_or_else(AskError::reason, |_| "granted");
    metrics::histogram!("stationmaster_token_endpoint_seconds", "outcome" => outcome)
        .record(began.elapsed().as_secs_f64());
    answer
}

/// Whether a second request may help. An endpoint that asks for a pause gets none.
fn asks_again(client: ClientCredentials<'_>, first: &TokenError) -> bool {
    client.secret.is_some() && first.other_place && first.retry_after.is_none()
}

async fn once(
    refresher: &Refresher,
    url: &str,
    client: ClientCredentials<'_>,
    ask: TokenRequest<'_>,
    auth: ClientAuth,
) -> Result<Grant, AskError> {
    let (form, header) = client.request(ask, auth);
    let mut request = Request::post(url, form.as_bytes().to_vec());
    request.keep_bytes = ANSWER_BYTES;
    request.headers_timeout = Some(HEADERS_TIMEOUT);
    request.total_timeout = Some(TOTAL_TIMEOUT);
    let mut add = |name: &str, value: &str| {
        request.headers.push((name.to_owned(), value.to_owned()));
    };
    add("content-type", "application/x-www-form-urlencoded");
    add("accept", "application/json");
    // Compressed answers are not unpacked.
    add("accept-encoding", "identity");
    if let Some(header) = header {
        add("authorization", header.expose_secret());
    }
    let response = refresher.http().send(request).await;
    let response = response.map_err(|failure| match failure {
        Failure::OwnShortage => AskError::OwnShortage,
        failure => TokenError::passing(failure.code()).into(),
    })?;
    if response.truncated {
        return Err(TokenError::passing("answer_too_long").into());
    }
    read_answer(response.status, &response.body_excerpt).map_err(|error| {
        let retry_after = response.asked_wait(refresher.now().ms());
        AskError::Endpoint(TokenError {
            retry_after,
            ..error
        })
    })
}
