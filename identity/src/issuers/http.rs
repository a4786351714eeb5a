//! Requests to issuers.

use std::time::Duration;

use outbound::{Client, Failure, Method, Request};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{IssuerError, bearer, is_token};
use crate::json;

/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// The longest access token, in bytes.
const ACCESS_TOKEN_LEN_MAX: usize = 16 * 1024;

/// The client for one issuer.
pub(super) struct Http {
    client: Client,
    timeout: Duration,
}

/// A complete answer with a status that is neither a redirect nor a failure of the issuer.
pub(super) struct Answer {
    status: u16,
    body: Zeroizing<Vec<u8>>,
}

impl Http {
    pub(super) const fn new(client: Client, timeout: Duration) -> Self {
        Self { client, timeout }
    }

    /// Gets a document, with an access token if there is one.
    pub(super) async fn get(
        &self,
        url: &str,
        accept: &str,
        token: Option<&SecretString>,
    ) -> Result<Answer, IssuerError> {
        let mut request = Request::new(Method::GET, url, Vec::new());
        request
            .headers
            .push(("accept".to_owned(), accept.to_owned()));
        if let Some(token) = token {
            request
                .headers
                .push(("authorization".to_owned(), bearer(token)));
        }
        self.send(request).await
    }

    /// Posts a form to a token endpoint.
    pub(super) async fn post_form(
        &self,
        url: &str,
        (form, authorization): (Zeroizing<String>, Option<SecretString>),
    ) -> Result<Answer, IssuerError> {
        let mut request = Request::post(url, form.as_bytes().to_vec());
        let mut add = |name: &str, value: &str| {
            request.headers.push((name.to_owned(), value.to_owned()));
        };
        add("content-type", "application/x-www-form-urlencoded");
        // Without this, GitHub answers with a form.
        add("accept", "application/json");
        if let Some(authorization) = authorization {
            add("authorization", authorization.expose_secret());
        }
        self.send(request).await
    }

    async fn send(&self, mut request: Request) -> Result<Answer, IssuerError> {
        // Compressed answers are not unpacked.
        let identity = ("accept-encoding".to_owned(), "identity".to_owned());
        request.headers.push(identity);
        request.keep_bytes = ANSWER_BYTES_MAX;
        request.headers_timeout = Some(self.timeout);
        request.total_timeout = Some(self.timeout);
        let response = self.client.send(request).await.map_err(|failure| {
            // Only another setting helps against these.
            let lasts = matches!(
                failure,
                Failure::DestinationRefused(_) | Failure::RequestInvalid
            );
            if lasts {
                IssuerError::Refused(failure.code())
            } else {
                IssuerError::Passing(failure.code())
            }
        })?;
        match response.status {
            300..400 => Err(IssuerError::Passing("redirect")),
            429 => Err(IssuerError::Passing("rate_limited")),
            500.. => Err(IssuerError::Passing("unavailable")),
            _ if response.truncated => Err(IssuerError::Passing("answer_too_long")),
            status => Ok(Answer {
                status,
                body: Zeroizing::new(response.body_excerpt),
            }),
        }
    }
}

impl Answer {
    /// The body of a success.
    pub(super) fn success(&self, refused: &'static str) -> Result<&[u8], IssuerError> {
        match self.status {
            200 => Ok(&self.body),
            _ => Err(IssuerError::Refused(refused)),
        }
    }

    /// The JSON object in the body of a success.
    pub(super) fn object(&self, refused: &'static str) -> Result<Map<String, Value>, IssuerError> {
        json::object(self.success(refused)?).ok_or(IssuerError::Refused("malformed_answer"))
    }

    /// The members of a token endpoint's grant. GitHub answers errors with the status of a success.
    pub(super) fn grant(&self) -> Result<Map<String, Value>, IssuerError> {
        let members = self.object("code_refused")?;
        if members.contains_key("error") {
            return Err(IssuerError::Refused("code_refused"));
        }
        Ok(members)
    }
}

/// The access token of a grant.
pub(super) fn access_token(grant: &Map<String, Value>) -> Result<SecretString, IssuerError> {
    let token = grant.get("access_token").and_then(Value::as_str);
    let token = token.filter(|token| is_token(token, ACCESS_TOKEN_LEN_MAX));
    let token = token.ok_or(IssuerError::Refused("no_access_token"))?;
    Ok(SecretString::from(token))
}
