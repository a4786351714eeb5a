//! A token endpoint that a test controls: it counts requests, can be slow or fail, rotates refresh
//! tokens, and treats a refresh token that comes twice as stolen (RFC 6819 §5.2.2.3).

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use poem::{
    Endpoint, IntoResponse, Request, Response, Server as Http, http::StatusCode,
    listener::TcpAcceptor,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{server::Server, tools::word, vault::Vault};

/// One request that the endpoint got.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The time of arrival.
    pub at: Instant,
    /// The form in its body.
    pub form: HashMap<String, String>,
    /// Its `Authorization`; empty without.
    pub authorization: String,
    /// The status of the answer.
    pub answered: u16,
}

/// How the endpoint answers.
#[derive(Clone, Debug)]
pub enum AnswerMode {
    /// With a grant.
    Granting,
    /// With this status and body.
    Saying(u16, String),
    /// With a grant, but with this status, with these members added or replaced, and with this text
    /// before the JSON.
    Oddly {
        /// The status.
        status: u16,
        /// Members of the answer.
        members: Value,
        /// The text before the JSON.
        before: &'static str,
    },
    /// With a grant in the form of a form.
    Form,
    /// With a grant if the secret is in the body; else with this status and body.
    SecretInBody(u16, String),
    /// With this status and body if the secret is in the header; else with 401 `invalid_client`.
    SecretInHeader(u16, String),
}

struct State {
    asked: Vec<Asked>,
    answer_mode: AnswerMode,
    delay: Duration,
    life: Duration,
    rotates: bool,
    /// The valid refresh token of each family.
    live: HashMap<String, String>,
    /// Families whose token came twice.
    revoked: HashSet<String>,
    /// When each access token expires.
    ends: HashMap<String, Instant>,
    under_way: usize,
    most_under_way: usize,
}

/// The endpoint. Gone when dropped.
pub struct TokenEndpoint {
    /// The URL at which it listens.
    pub url: String,
    state: Arc<Mutex<State>>,
    vault: Arc<Vault>,
    task: JoinHandle<()>,
}

impl TokenEndpoint {
    /// Starts an endpoint whose access tokens live for an hour and which rotates refresh tokens.
    /// The tokens are added to the secrets that must not be found.
    pub async fn start(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            asked: Vec::new(),
            answer_mode: AnswerMode::Granting,
            delay: Duration::ZERO,
            life: Duration::from_hours(1),
            rotates: true,
            live: HashMap::new(),
            revoked: HashSet::new(),
            ends: HashMap::new(),
            under_way: 0,
            most_under_way: 0,
        }));
        let vault = Arc::clone(&server.site().vault);
        let app = Receiver {
            state: Arc::clone(&state),
            vault: Arc::clone(&vault),
        };
        let acceptor = TcpAcceptor::from_tokio(listener).unwrap();
        let task = tokio::spawn(async move {
            Http::new_with_acceptor(acceptor).run(app).await.unwrap();
        });
        Self {
            url,
            state,
            vault,
            task,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A first access and refresh token, as from a login.
    #[must_use]
    pub fn login(&self, life: Duration) -> (String, String) {
        let family = word();
        let tokens = grant(&mut self.state(), &family, life);
        self.vault.add(&tokens.0);
        self.vault.add(&tokens.1);
        tokens
    }

    /// The body of an account that holds a first pair of tokens with `life` left.
    #[must_use]
    pub fn account(&self, name: &str, life: Duration) -> Value {
        let (access, refresh) = self.login(life);
        json!({
            "name": name,
            "provider": "acme",
            "base_url": "https://api.example.com",
            "credential_type": "oauth",
            "oauth": {
                "access_token": access,
                "refresh_token": refresh,
                "expires_at": crate::tools::in_seconds(life.as_secs()),
                "token_url": self.url,
                "client_id": "stationmaster",
            },
        })
    }

    /// The body that begins a login whose code is exchanged here.
    #[must_use]
    pub fn login_body(&self, name: &str) -> Value {
        json!({
            "name": name,
            "provider": "acme",
            "base_url": "https://api.example.com",
            "authorize_url": "https://id.example.com/authorize",
            "token_url": self.url,
            "client_id": "stationmaster",
            "scopes": "inference offline_access",
            "redirect_uri": "http://127.0.0.1:40404/callback",
        })
    }

    /// Answers like this from now on.
    pub fn answer_with(&self, answer_mode: AnswerMode) {
        self.state().answer_mode = answer_mode;
    }

    /// Answers after this long from now on.
    pub fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// Grants tokens with this life from now on.
    pub fn life(&self, life: Duration) {
        self.state().life = life;
    }

    /// Leaves refresh tokens as they are, and does not mention them in its answers.
    pub fn rotate_nothing(&self) {
        self.state().rotates = false;
    }

    /// All requests, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.state().asked.clone()
    }

    /// The most requests that were under way at the same time.
    #[must_use]
    pub fn most_under_way(&self) -> usize {
        self.state().most_under_way
    }

    /// How long an access token is still valid; `None` if it is expired or was never granted.
    #[must_use]
    pub fn left(&self, access_token: &str) -> Option<Duration> {
        let left = self
            .end(access_token)?
            .checked_duration_since(Instant::now());
        left.filter(|left| !left.is_zero())
    }

    /// When an access token expires; `None` if it was never granted.
    #[must_use]
    pub fn end(&self, access_token: &str) -> Option<Instant> {
        self.state().ends.get(access_token).copied()
    }

    /// Whether any refresh token came twice.
    #[must_use]
    pub fn saw_reuse(&self) -> bool {
        !self.state().revoked.is_empty()
    }
}

impl Drop for TokenEndpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn grant(state: &mut State, family: &str, life: Duration) -> (String, String) {
    let access = format!("at-{family}-{}", word());
    let refresh = format!("rt-{family}-{}", word());
    state.live.insert(family.to_owned(), refresh.clone());
    state.ends.insert(access.clone(), Instant::now() + life);
    (access, refresh)
}

struct Receiver {
    state: Arc<Mutex<State>>,
    vault: Arc<Vault>,
}

impl Receiver {
    /// Status and body.
    fn judge(&self, form: &HashMap<String, String>) -> (u16, String) {
        let answer_mode = self.state.lock().unwrap().answer_mode.clone();
        match answer_mode {
            AnswerMode::Saying(status, body) => (status, body),
            AnswerMode::SecretInBody(status, body) if !form.contains_key("client_secret") => {
                (status, body)
            }
            AnswerMode::SecretInHeader(status, body) if !form.contains_key("client_id") => {
                (status, body)
            }
            AnswerMode::SecretInHeader(..) => (401, json!({"error": "invalid_client"}).to_string()),
            AnswerMode::Granting | AnswerMode::SecretInBody(..) => {
                let (status, answer) = self.properly(form);
                (status, answer.to_string())
            }
            AnswerMode::Oddly {
                status,
                members,
                before,
            } => {
                let (granted, mut answer) = self.properly(form);
                for (name, value) in members.as_object().unwrap() {
                    answer[name] = value.clone();
                }
                let status = if granted == 200 { status } else { granted };
                (status, format!("{before}{answer}"))
            }
            AnswerMode::Form => {
                let (status, answer) = self.properly(form);
                let mut form = url::form_urlencoded::Serializer::new(String::new());
                for (name, value) in answer.as_object().unwrap() {
                    let text = value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned);
                    form.append_pair(name, &text);
                }
                (status, form.finish())
            }
        }
    }

    /// The answer that RFC 6749 defines for the request.
    fn properly(&self, form: &HashMap<String, String>) -> (u16, Value) {
        let mut state = self.state.lock().unwrap();
        let refused = |error: &str| (400, json!({"error": error}));
        let family = match form.get("grant_type").map(String::as_str) {
            Some("refresh_token") => {
                let token = form.get("refresh_token").cloned().unwrap_or_default();
                let family = token.split('-').nth(1).unwrap_or_default().to_owned();
                if state.live.get(&family) != Some(&token) || state.revoked.contains(&family) {
                    state.revoked.insert(family);
                    return refused("invalid_grant");
                }
                family
            }
            Some("authorization_code") if form.get("code").is_some_and(|c| c == "good") => word(),
            _ => return refused("invalid_grant"),
        };
        let life = state.life;
        let kept = state.live.get(&family).cloned();
        let (access, refresh) = grant(&mut state, &family, life);
        self.vault.add(&access);
        let mut answer = json!({
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": life.as_secs(),
        });
        if let Some(kept) = kept.filter(|_| !state.rotates) {
            state.live.insert(family, kept);
        } else {
            self.vault.add(&refresh);
            answer["refresh_token"] = json!(refresh);
        }
        (200, answer)
    }
}

impl Endpoint for Receiver {
    type Output = Response;

    async fn call(&self, mut request: Request) -> poem::Result<Response> {
        let at = Instant::now();
        let authorization = request
            .header("authorization")
            .unwrap_or_default()
            .to_owned();
        let body = request.take_body().into_vec().await.unwrap_or_default();
        let form: HashMap<String, String> =
            url::form_urlencoded::parse(&body).into_owned().collect();
        let delay = {
            let mut state = self.state.lock().unwrap();
            state.under_way += 1;
            state.most_under_way = state.most_under_way.max(state.under_way);
            state.delay
        };
        tokio::time::sleep(delay).await;
        let (status, body) = self.judge(&form);
        let mut state = self.state.lock().unwrap();
        state.under_way -= 1;
        state.asked.push(Asked {
            at,
            form,
            authorization,
            answered: status,
        });
        let response = Response::builder()
            .status(StatusCode::from_u16(status).unwrap())
            .content_type("application/json");
        Ok(response.body(body).into_response())
    }
}
