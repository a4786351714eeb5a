//! A person who sends JSON: the cookies that their browser keeps, and the address that it comes from.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};

use crate::{
    client::{Answer, Call, User},
    server::{Server, Site},
    smtp_sink::{CapturedMail, SmtpSink},
    tools,
};

/// The cookie of a session, by http on a loopback address.
pub const SESSION_COOKIE: &str = "stm-dev";

/// The settings with which people sign in: mails go to `sink`, everybody may register, and the
/// address of a request is that in `X-Forwarded-For`, so that each browser has its own.
#[must_use]
pub fn people_settings(sink: &SmtpSink) -> Vec<(&'static str, String)> {
    vec![
        ("STATIONMASTER_SMTP_URL", sink.plain.to_string()),
        ("STATIONMASTER_MAIL_FROM", "mail@example.com".to_owned()),
        ("STATIONMASTER_REGISTRATION", "open".to_owned()),
        ("STATIONMASTER_PASSWORDS", "on".to_owned()),
        ("STATIONMASTER_TRUSTED_PROXIES", "127.0.0.0/8".to_owned()),
    ]
}

/// What a browser holds.
#[derive(Clone, Default)]
struct Held {
    cookies: BTreeMap<String, String>,
    csrf_token: Option<String>,
    publisher: Option<String>,
}

/// A person with a browser. Clones share nothing: a clone is what a thief of the cookies has.
pub struct Person {
    user: User,
    site: Arc<Site>,
    address: String,
    held: Mutex<Held>,
}

impl Clone for Person {
    fn clone(&self) -> Self {
        Self {
            user: self.user.clone(),
            site: Arc::clone(&self.site),
            address: self.address.clone(),
            held: Mutex::new(self.held.lock().unwrap().clone()),
        }
    }
}

impl Person {
    /// A new browser, at an address of its own.
    #[must_use]
    pub fn new(server: &Server) -> Self {
        let [a, b, c] = domain::random::bytes::<3>();
        Self {
            user: server.anon(),
            site: Arc::clone(server.site()),
            address: format!("10.{a}.{b}.{c}"),
            held: Mutex::default(),
        }
    }

    /// The same browser at another server of the same site.
    #[must_use]
    pub fn at(&self, server: &Server) -> Self {
        Self {
            user: server.anon(),
            ..self.clone()
        }
    }

    /// The address that it comes from.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Names the publisher that requests from now on are about.
    pub fn works_for(&self, slug: &str) {
        self.held.lock().unwrap().publisher = Some(slug.to_owned());
    }

    /// The value of a cookie; empty if there is none.
    #[must_use]
    pub fn cookie(&self, name: &str) -> String {
        let held = self.held.lock().unwrap();
        held.cookies.get(name).cloned().unwrap_or_default()
    }

    /// Puts a cookie into the browser.
    pub fn plant(&self, name: &str, value: &str) {
        let mut held = self.held.lock().unwrap();
        held.cookies.insert(name.to_owned(), value.to_owned());
    }

    /// The token of the session's changes.
    #[must_use]
    pub fn csrf_token(&self) -> String {
        let held = self.held.lock().unwrap();
        held.csrf_token.clone().unwrap_or_default()
    }

    /// A request with all that a page of ours would send.
    #[must_use]
    pub fn call(&self, method: &str, path: &str) -> Call {
        let held = self.held.lock().unwrap();
        let call = self.user.call(method, path);
        let mut call = call.header("x-forwarded-for", &self.address);
        if !held.cookies.is_empty() {
            let pairs = held
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            call = call.header("cookie", &pairs.collect::<Vec<_>>().join("; "));
        }
        if let Some(token) = &held.csrf_token {
            call = call.header("x-csrf-token", token);
        }
        match &held.publisher {
            Some(slug) => call.header("stationmaster-publisher", slug),
            None => call,
        }
    }

    /// Sends a request, and keeps the cookies of the answer.
    pub async fn send(&self, call: Call) -> Answer {
        let answer = call.answer().await;
        self.keep(&answer);
        answer
    }

    /// GET.
    #[must_use]
    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    /// Posts a body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(self.call("POST", path).json(body)).await
    }

    /// Posts a body; the answer must have this status.
    pub async fn posted(&self, path: &str, body: &Value, status: u16) -> Answer {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, status, "{answer}");
        answer
    }

    /// Posts a body; the answer must be this problem.
    pub async fn refused(&self, path: &str, body: &Value, (status, code): (u16, &str)) -> Answer {
        let answer = self.posted(path, body, status).await;
        assert_eq!(answer["code"], code, "{answer}");
        answer
    }

    /// Keeps the cookies of an answer, and the token of changes.
    pub fn keep(&self, answer: &Answer) {
        let mut held = self.held.lock().unwrap();
        for set in answer.headers.get_all("set-cookie") {
            let (pair, attributes) = set.to_str().unwrap().split_once(';').unwrap();
            let (name, value) = pair.split_once('=').unwrap();
            if attributes.contains("Max-Age=0") {
                held.cookies.remove(name);
                continue;
            }
            if name == SESSION_COOKIE {
                self.site.remember(value);
            }
            held.cookies.insert(name.to_owned(), value.to_owned());
        }
        if let Some(token) = answer["csrf_token"].as_str() {
            held.csrf_token = Some(token.to_owned());
        }
    }

    /// Whether somebody is signed in.
    pub async fn is_signed_in(&self) -> bool {
        let answer = self.get("/v1/me").answer().await;
        assert!(matches!(answer.status, 200 | 401), "{answer}");
        answer.status == 200
    }

    /// Asks for a link and a code, and waits for the mail: the text of the link, and the code.
    pub async fn asks_for_a_link(&self, sink: &SmtpSink, email: &str) -> (String, String) {
        let before = mails_to(sink, email).len();
        let body = json!({"email": email});
        self.posted("/v1/auth/link", &body, 202).await;
        let mail = sink.mail_to(email, before).await;
        (self.token_of(&mail), code_of(&mail))
    }

    /// Signs in by a code, and becomes a user where everybody may.
    pub async fn signs_in(&self, sink: &SmtpSink, email: &str) -> Answer {
        let (_, code) = self.asks_for_a_link(sink, email).await;
        self.posted("/v1/auth/code", &json!({"code": code}), 200)
            .await
    }

    /// The secret text of a mail's link. From now on it must not be found anywhere else.
    #[must_use]
    pub fn token_of(&self, mail: &CapturedMail) -> String {
        let (_, token) = mail.link().split_once("?token=").unwrap();
        self.site.remember(token);
        token.to_owned()
    }

    /// Becomes a member of a publisher that `inviter` invites to, and signs in by that.
    pub async fn joins(
        server: &Server,
        sink: &SmtpSink,
        (inviter, slug): (&User, &str),
        role: &str,
    ) -> Self {
        let browser = Self::new(server);
        let email = format!("{role}-{}@example.org", tools::word());
        let body = json!({"email": email, "role": role});
        inviter
            .post("/v1/invitations")
            .json(&body)
            .expect(201)
            .await;
        let token = browser.token_of(&sink.mail_to(&email, 0).await);
        let body = json!({"token": token});
        browser
            .posted("/v1/auth/accept-invitation", &body, 200)
            .await;
        browser.works_for(slug);
        browser
    }
}

/// The mails to an address so far.
#[must_use]
pub fn mails_to(sink: &SmtpSink, email: &str) -> Vec<CapturedMail> {
    let to_it = |mail: &CapturedMail| mail.to.iter().any(|to| to == email);
    sink.mails().into_iter().filter(to_it).collect()
}

/// The six digits in a mail.
#[must_use]
pub fn code_of(mail: &CapturedMail) -> String {
    let is_code = |word: &&str| word.len() == 6 && word.bytes().all(|b| b.is_ascii_digit());
    let codes: Vec<&str> = mail.text.split_whitespace().filter(is_code).collect();
    assert_eq!(codes.len(), 1, "{}", mail.text);
    codes[0].to_owned()
}
