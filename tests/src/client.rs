//! A small JSON client that checks every answer.

use std::{
    ops::Index,
    sync::{Arc, LazyLock, RwLock},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde_json::Value;

use crate::vault::Vault;

/// The URL of a server. It changes when the server is started again.
pub(crate) type BaseUrl = Arc<RwLock<String>>;

/// The time limit of a request, for a server that has stopped or hangs.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The headers that may differ between two answers to the same request.
const CHANGING: [&str; 4] = ["date", "ratelimit", "ratelimit-policy", "retry-after"];

/// Without kept connections, which would outlive the server that they belong to.
static HTTP: LazyLock<reqwest::Client> =
    LazyLock::new(|| builder().pool_max_idle_per_host(0).build().unwrap());

/// A bare client that keeps its connections, for a test that sends very many requests.
#[must_use]
pub fn keeping_client() -> reqwest::Client {
    builder().build().unwrap()
}

fn builder() -> reqwest::ClientBuilder {
    // Only plain HTTP is used, but the client needs a list of certificate authorities.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(TIMEOUT)
}

/// A sender of requests, with or without a token.
#[derive(Clone)]
pub struct User {
    base_url: BaseUrl,
    token: Option<String>,
    vault: Arc<Vault>,
}

impl User {
    pub(crate) fn new(base_url: BaseUrl, token: Option<String>, vault: Arc<Vault>) -> Self {
        Self {
            base_url,
            token,
            vault,
        }
    }

    /// The same server, another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// The same server, no token.
    #[must_use]
    pub fn anonymous(&self) -> Self {
        Self {
            token: None,
            ..self.clone()
        }
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// A request with any method.
    #[must_use]
    pub fn call(&self, method: &str, path: &str) -> Call {
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
            headers.insert("authorization", value);
        }
        Call {
            user: self.clone(),
            method: method.parse().unwrap(),
            path: path.to_owned(),
            headers,
            body: None,
            may_repeat_secret: false,
        }
    }

    /// GET.
    #[must_use]
    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    /// POST.
    #[must_use]
    pub fn post(&self, path: &str) -> Call {
        self.call("POST", path)
    }

    /// PUT.
    #[must_use]
    pub fn put(&self, path: &str) -> Call {
        self.call("PUT", path)
    }

    /// PATCH.
    #[must_use]
    pub fn patch(&self, path: &str) -> Call {
        self.call("PATCH", path)
    }

    /// DELETE.
    #[must_use]
    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }

    /// Every item of a list, over all its pages.
    pub async fn all(&self, path: &str) -> Vec<Value> {
        let mut items = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let join = if path.contains('?') { '&' } else { '?' };
            let page = match &cursor {
                None => format!("{path}{join}limit=200"),
                Some(cursor) => format!("{path}{join}limit=200&cursor={cursor}"),
            };
            let answer = self.get(&page).expect(200).await;
            items.extend(answer["items"].as_array().unwrap().iter().cloned());
            match answer["next_cursor"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return items,
            }
        }
    }
}

/// A request that is being built.
#[derive(Clone)]
pub struct Call {
    user: User,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
    may_repeat_secret: bool,
}

impl Call {
    /// With a JSON body.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.text("application/json", body.to_string())
    }

    /// With any body.
    #[must_use]
    pub fn text(mut self, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        if content_type.is_empty() {
            return self;
        }
        self.header("content-type", content_type)
    }

    /// With this header, in place of one with the same name.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers
            .insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        self
    }

    /// With an `Idempotency-Key`.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header("idempotency-key", key)
    }

    /// With the claim of a run.
    #[must_use]
    pub fn claim(self, token: &str) -> Self {
        self.header("x-stationmaster-claim", token)
    }

    /// Without the `Authorization` header, or with this text in it.
    #[must_use]
    pub fn authorization(mut self, value: Option<&str>) -> Self {
        self.headers.remove("authorization");
        match value {
            Some(value) => self.header("authorization", value),
            None => self,
        }
    }

    /// Allows the answer to repeat a secret of an earlier answer.
    #[must_use]
    pub fn repeats_a_secret(mut self) -> Self {
        self.may_repeat_secret = true;
        self
    }

    /// Sends it.
    ///
    /// # Errors
    /// No answer came.
    pub async fn send(self) -> Result<Answer, reqwest::Error> {
        let asked = format!("{} {}", self.method, self.path);
        let head = self.method == Method::HEAD;
        let response = self.request().send().await?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = response.bytes().await?;
        let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let answer = Answer {
            asked,
            status,
            headers,
            body,
            value,
        };
        answer.check(head);
        if !self.may_repeat_secret {
            let leaks = self.user.vault.found_in(&answer.bytes());
            assert!(leaks.is_empty(), "{} answers {leaks:?}", answer.asked);
        }
        self.user.vault.take_from(&answer.value);
        Ok(answer)
    }

    fn request(&self) -> reqwest::RequestBuilder {
        let url = format!("{}{}", self.user.base_url.read().unwrap(), self.path);
        let request = HTTP.request(self.method.clone(), url);
        let request = request.headers(self.headers.clone());
        match &self.body {
            Some(body) => {
                self.user.vault.take_sent(&sent(body));
                request.body(body.clone())
            }
            None => request,
        }
    }

    /// Sends it; the caller reads the body of the answer piece by piece.
    pub async fn open(self) -> reqwest::Response {
        let asked = format!("{} {}", self.method, self.path);
        let response = self.request().send().await;
        response.unwrap_or_else(|error| panic!("{asked}: {error:?}"))
    }

    /// Sends it; there must be an answer.
    pub async fn answer(self) -> Answer {
        let asked = format!("{} {}", self.method, self.path);
        self.send()
            .await
            .unwrap_or_else(|error| panic!("{asked}: {error:?}"))
    }

    /// Sends it; the answer must have this status.
    pub async fn expect(self, status: u16) -> Answer {
        let answer = self.answer().await;
        assert_eq!(answer.status, status, "{answer}");
        answer
    }

    /// Sends it; the answer must be this problem.
    pub async fn refused(self, status: u16, code: &str) -> Answer {
        let answer = self.expect(status).await;
        assert_eq!(answer["code"], code, "{answer}");
        answer
    }
}

/// A body as JSON; null if it is none.
fn sent(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    asked: String,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    value: Value,
}

impl Answer {
    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.value
    }

    /// The text at a JSON pointer.
    #[must_use]
    pub fn text(&self, pointer: &str) -> String {
        let found = self.value.pointer(pointer).and_then(Value::as_str);
        found
            .unwrap_or_else(|| panic!("no text at {pointer}: {self}"))
            .to_owned()
    }

    /// A header's text; empty when it is missing.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap_or_default())
    }

    /// The pointers of a problem's `errors`.
    #[must_use]
    pub fn pointers(&self) -> Vec<String> {
        let errors = self.value["errors"].as_array().into_iter().flatten();
        errors
            .map(|error| error["pointer"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Headers and body, as one text to search.
    fn bytes(&self) -> Vec<u8> {
        let mut all = self.body.to_vec();
        for (name, value) in &self.headers {
            all.extend_from_slice(b"\n");
            all.extend_from_slice(name.as_ref());
            all.extend_from_slice(b": ");
            all.extend_from_slice(value.as_bytes());
        }
        all
    }

    /// Checks what must hold for every answer.
    fn check(&self, head: bool) {
        assert_ne!(self.header("x-request-id"), "", "no request id: {self}");
        assert_eq!(self.header("x-content-type-options"), "nosniff", "{self}");
        // `/readyz` answers with a report of its own, for load balancers.
        if self.status < 400 || head || self.asked.ends_with(" /readyz") {
            return;
        }
        let member = |name: &str| self.value[name].as_str().unwrap_or_default();
        assert_eq!(
            self.header("content-type"),
            "application/problem+json",
            "{self}"
        );
        assert_eq!(self.value["status"], self.status, "{self}");
        assert_eq!(member("request_id"), self.header("x-request-id"), "{self}");
        let code = domain::Code::parse(member("code"));
        assert_eq!(code.map(domain::Code::status), Some(self.status), "{self}");
        assert_eq!(
            member("type"),
            format!("/docs/problems#{}", member("code")),
            "{self}"
        );
        assert!(
            !member("title").is_empty() && !member("detail").is_empty(),
            "{self}"
        );
        if matches!(self.status, 429 | 503) {
            let wait: u64 = self.header("retry-after").parse().unwrap_or(0);
            assert!(wait > 0, "no Retry-After: {self}");
        }
    }
}

/// The part of an answer that must be the same for another publisher's object and for one that does
/// not exist: all but the time, the rate limit's state and the texts of the request.
#[must_use]
pub fn fingerprint(answer: &Answer) -> (u16, Vec<(String, String)>, Bytes) {
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .filter(|(name, _)| !CHANGING.contains(&name.as_str()))
        .map(|(name, value)| (name.to_string(), format!("{value:?}")))
        .collect();
    headers.sort();
    (answer.status, headers, answer.body.clone())
}

impl Index<&str> for Answer {
    type Output = Value;

    fn index(&self, name: &str) -> &Value {
        &self.value[name]
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let shown: String = body.chars().take(2000).collect();
        write!(f, "{} → {} {shown}", self.asked, self.status)
    }
}
