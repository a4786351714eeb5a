//! Prints the demo's numbered steps and their requests, with shortened tokens.

use std::time::Duration;

use outbound::{Client, ClientLimits, Method, Policy, Request};
use serde_json::Value;

use crate::text::say;

/// The longest answer that is read, bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Prints the steps and sends the requests.
pub(super) struct Story {
    client: Client,
    url: String,
    step: usize,
}

impl Story {
    /// A story about the server at `url`, which is on this machine.
    pub(super) fn new(url: String) -> Self {
        let loopback = "127.0.0.0/8".parse().expect("a constant network");
        let policy = Policy {
            allow_http: true,
            allowed: vec![loopback],
            ..Policy::default()
        };
        let limits = ClientLimits {
            total_timeout: REQUEST_TIMEOUT,
            ..ClientLimits::default()
        };
        Self {
            client: Client::new(policy, limits),
            url,
            step: 0,
        }
    }

    /// Prints the beginning of a step.
    pub(super) fn step(&mut self, words: &str) {
        self.step += 1;
        say(&format!("\n{}. {words}", self.step));
    }

    pub(super) fn get(&self, path: &str, token: &str) -> Call<'_> {
        self.call(Method::GET, path, token)
    }

    pub(super) fn post(&self, path: &str, token: &str) -> Call<'_> {
        self.call(Method::POST, path, token)
    }

    pub(super) fn put(&self, path: &str, token: &str) -> Call<'_> {
        self.call(Method::PUT, path, token)
    }

    fn call(&self, method: Method, path: &str, token: &str) -> Call<'_> {
        say(&format!("   {method} {path}"));
        say(&format!("   Authorization: Bearer {}", shortened(token)));
        let mut request = Request::new(method, format!("{}{path}", self.url), "");
        request
            .headers
            .push(("authorization".into(), format!("Bearer {token}")));
        request.keep_bytes = ANSWER_BYTES_MAX;
        Call {
            client: &self.client,
            request,
        }
    }
}

/// A request that is being built.
pub(super) struct Call<'a> {
    client: &'a Client,
    request: Request,
}

impl Call<'_> {
    /// Adds a header with a credential.
    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        say(&format!("   {name}: {}", shortened(value)));
        self.request
            .headers
            .push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// Sets the body.
    pub(super) fn json(mut self, body: &Value) -> Self {
        say(&format!("   {body}"));
        self.request
            .headers
            .push(("content-type".into(), "application/json".into()));
        self.request.body = body.to_string().into();
        self
    }

    /// Sends the request, and returns the JSON answer, or null if there is none.
    ///
    /// # Errors
    /// There is no answer, or its status is another one.
    pub(super) async fn expect(self, status: u16) -> Result<Value, String> {
        let answer = self
            .client
            .send(self.request)
            .await
            .map_err(|error| error.to_string())?;
        let body = serde_json::from_slice(&answer.body_excerpt).unwrap_or(Value::Null);
        let code = body.get("code").and_then(Value::as_str).unwrap_or_default();
        say(format!("   → {} {code}", answer.status).trim_end());
        if answer.status == status {
            return Ok(body);
        }
        Err(format!(
            "the server answered {} instead of {status}: {body}",
            answer.status
        ))
    }
}

/// A credential as it is printed: its prefix and its last four characters.
fn shortened(token: &str) -> String {
    let kind = ["stm_admin_", "stm_runner_", "stm_boot_"]
        .into_iter()
        .find(|k| token.starts_with(k));
    format!(
        "{}…{}",
        kind.unwrap_or_default(),
        domain::token::last_four(token)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_shown_by_kind_and_last_four() {
        assert_eq!(shortened("stm_admin_0123456789abcdef"), "stm_admin_…cdef");
        assert_eq!(shortened("0123456789abcdef"), "…cdef");
    }
}
