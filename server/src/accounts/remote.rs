//! A client of the API of a running server.

use std::time::Duration;

use domain::id::{AccountId, Id as _};
use outbound::{Client, ClientLimits, Method, Policy, Request};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;

use crate::{failure::Failure, files, text::shortened};

use super::ServerArgs;

/// The time limit of a request: longer than the server takes for any answer.
const TIMEOUT: Duration = Duration::from_secs(100);
/// The largest answer that is read, bytes. A page of 200 accounts is far smaller.
const ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// A server, and the token to present there.
pub(super) struct Remote {
    client: Client,
    server: String,
    token: SecretString,
}

fn failed(words: impl Into<String>) -> Failure {
    Failure::Failed(words.into())
}

impl Remote {
    pub(super) fn new(args: &ServerArgs) -> Result<Self, Failure> {
        let policy = Policy::anywhere();
        let server = policy
            .check_url(args.server.trim_end_matches('/'))
            .map_err(|refusal| Failure::Usage(format!("--server: {refusal}")))?;
        let server = server.as_str().trim_end_matches('/').to_owned();
        let token = match &args.token_file {
            Some(path) => files::secret_of_file(path)?,
            None => files::secret_of_env(&args.token_env)?,
        };
        let client = Client::new(policy, ClientLimits::default());
        Ok(Self {
            client,
            server,
            token,
        })
    }

    /// The account with this id or name.
    pub(super) async fn account(&self, named: &str) -> Result<Value, Failure> {
        if AccountId::parse(named).is_some() {
            return self
                .ask(Method::GET, &format!("/v1/accounts/{named}"), None)
                .await;
        }
        let all = self.accounts().await?;
        let found = all.into_iter().find(|account| account["name"] == named);
        found.ok_or_else(|| failed(format!("there is no account {:?}", shortened(named))))
    }

    /// All accounts.
    pub(super) async fn accounts(&self) -> Result<Vec<Value>, Failure> {
        let mut all = Vec::new();
        let mut path = "/v1/accounts?limit=200".to_owned();
        loop {
            let mut page = self.ask(Method::GET, &path, None).await?;
            if let Value::Array(items) = page["items"].take() {
                all.extend(items);
            }
            let Some(cursor) = page["next_cursor"].as_str() else {
                return Ok(all);
            };
            path = format!("/v1/accounts?limit=200&cursor={cursor}");
        }
    }

    /// Sends a POST request, and returns its answer.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        self.ask(Method::POST, path, body).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, Failure> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let mut request = Request::new(method, format!("{}{path}", self.server), text);
        request.keep_bytes = ANSWER_BYTES;
        request.headers_timeout = Some(TIMEOUT);
        request.total_timeout = Some(TIMEOUT);
        let bearer = format!("Bearer {}", self.token.expose_secret());
        request.headers.push(("authorization".to_owned(), bearer));
        if body.is_some() {
            let json = "application/json".to_owned();
            request.headers.push(("content-type".to_owned(), json));
        }
        let server = &self.server;
        let response = self.client.send(request).await;
        let response =
            response.map_err(|failure| failed(format!("{server} can't be reached: {failure}")))?;
        let answer: Value = serde_json::from_slice(&response.body_excerpt).unwrap_or_default();
        if (200..300).contains(&response.status) && !response.truncated && answer.is_object() {
            return Ok(answer);
        }
        let status = response.status;
        // Not shortened: the detail says what to do.
        let detail = answer["detail"].as_str().unwrap_or("no reason given");
        let detail: String = detail
            .chars()
            .filter(|c| !c.is_control())
            .take(500)
            .collect();
        Err(failed(match answer["code"].as_str() {
            Some(code) => format!("{server} refused ({status} {}): {detail}", shortened(code)),
            None => format!("{server} answered {status}: is it a Stationmaster, of this version?"),
        }))
    }
}
