//! The service: its settings and keys, and what all of its parts use.

use std::time::Duration;

use domain::{
    Code, Problem,
    people::{ReturnTo, SignInMethod},
    seal::Key,
    token::{self, Prefix, TokenHash},
};
use persistence::{NewSession, Refusal, Store, StoreError, TokenFault};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::{issuers::Issuer, passkeys::RelyingParty, passwords::Hasher};

/// Who may become a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registration {
    /// Those who are invited, and those whom the operator makes.
    Closed,
    /// Everybody who receives mail.
    Open,
}

/// How the service behaves.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of the operator's, and none follows from another"
)]
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether people can sign in at all. If not, there is no session, and nothing of a person's is
    /// answered.
    pub enabled: bool,
    /// The origin under which browsers reach the server, without a slash at its end. Links in mails
    /// are made from it alone. Empty if people are off.
    pub public_origin: String,
    /// Whether mails reach people. If not, nobody can ask for one.
    pub mail: bool,
    /// Who may become a user.
    pub registration: Registration,
    /// Whether people may have passwords.
    pub passwords: bool,
    /// Whether whoever registers gets a publisher of their own.
    pub provision_publisher: bool,
    /// How long a mailed sign-in link is good.
    pub link_lasts: Duration,
    /// How long a session may be idle.
    pub idle: Duration,
    /// How long a session lasts, however much it is used.
    pub lasts: Duration,
    /// How long somebody who has proved who they are may do what needs a recent sign-in.
    pub recent: Duration,
    /// The least time that an answer takes which must not tell whether there is a user.
    pub floor: Duration,
    /// What sessions are keyed by besides the store's own key. Another one ends all sessions.
    pub session_key: Option<SecretString>,
}

impl Settings {
    /// The defaults for a server at `public_origin`.
    #[must_use]
    pub fn new(public_origin: impl Into<String>) -> Self {
        Self {
            enabled: true,
            public_origin: public_origin.into(),
            mail: true,
            registration: Registration::Closed,
            passwords: false,
            provision_publisher: false,
            link_lasts: Duration::from_mins(10),
            idle: Duration::from_hours(1),
            lasts: Duration::from_hours(7 * 24),
            recent: Duration::from_mins(5),
            floor: Duration::from_millis(250),
            session_key: None,
        }
    }

    /// For a server that has no public address: people can't sign in.
    #[must_use]
    pub fn off() -> Self {
        Self {
            enabled: false,
            mail: false,
            ..Self::new("")
        }
    }
}

/// How people get in. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    pub(crate) hasher: Hasher,
    /// What passkeys are for; `None` where browsers have none.
    pub(crate) relying_party: Option<RelyingParty>,
    /// Where else people may sign in.
    pub(crate) issuers: std::sync::Arc<Vec<Issuer>>,
    key: std::sync::Arc<Key>,
}

/// A session that is about to begin: what the browser will hold, and what is stored.
#[derive(Debug)]
pub struct BeginSession {
    /// What the browser will hold.
    pub(crate) cookie: SecretString,
    pub(crate) new: NewSession,
}

impl Service {
    /// Opens the service over a store.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn open(store: Store, settings: Settings) -> Result<Self, StoreError> {
        let own = store.derived_key(None, "sessions").await?;
        let given = settings.session_key.as_ref();
        let given = given.map_or("", |key| key.expose_secret());
        let mixed = Sha256::new()
            .chain_update(own)
            .chain_update(given.as_bytes())
            .finalize();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            hasher: Hasher::new(cores)?,
            key: std::sync::Arc::new(Key::from_bytes(mixed.into())),
            relying_party: url::Url::parse(&settings.public_origin)
                .ok()
                .and_then(|url| RelyingParty::new(&url, "Stationmaster")),
            issuers: std::sync::Arc::default(),
            store,
            settings,
        })
    }

    /// The settings.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Refuses where people can't sign in.
    ///
    /// # Errors
    /// `not_found`.
    pub fn need_people(&self) -> Result<(), Problem> {
        if self.settings.enabled {
            Ok(())
        } else {
            let detail = "People can't sign in here: the server has no public URL.";
            Err(Problem::new(Code::NotFound, detail))
        }
    }

    /// Refuses what only a mail can finish where no mail is sent.
    ///
    /// # Errors
    /// `not_found`.
    pub fn need_mail(&self) -> Result<(), Problem> {
        self.need_people()?;
        if self.settings.mail {
            Ok(())
        } else {
            let detail = "This server sends no mails. Sign in another way, or ask the operator for \
                          a link.";
            Err(Problem::new(Code::NotFound, detail))
        }
    }

    /// A keyed hash over parts, each kind of which has a name of its own.
    pub(crate) fn keyed(&self, kind: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut all = vec![b"stationmaster.people.v1".as_slice(), kind.as_bytes()];
        all.extend_from_slice(parts);
        self.key.mac(&all)
    }

    fn keyed_hash(&self, kind: &str, text: &str) -> TokenHash {
        // 32 bytes are always a hash.
        TokenHash::from_stored(&self.keyed(kind, &[text.as_bytes()]))
            .unwrap_or_else(|| TokenHash::of(text))
    }

    /// The hash by which the store finds a session; `None` unless the text has the form of one, or
    /// if people can't sign in.
    #[must_use]
    pub fn session_hash(&self, cookie: &str) -> Option<TokenHash> {
        let form = self.settings.enabled && token::recognise(cookie) == Some(Prefix::Session);
        form.then(|| self.keyed_hash("session", cookie))
    }

    /// The hash of what a browser that asked for something holds.
    pub(crate) fn browser_hash(&self, visit: &str) -> TokenHash {
        self.keyed_hash("browser", visit)
    }

    /// The hash of the code beside a mailed link, which is good in one browser.
    pub(crate) fn code_hash(&self, browser: &TokenHash, code: &str) -> TokenHash {
        let mac = self.keyed("code", &[browser.as_bytes(), code.as_bytes()]);
        TokenHash::from_stored(&mac).unwrap_or_else(|| TokenHash::of(code))
    }

    /// The token that a page's forms send back, for the browser that holds this cookie: a session,
    /// or a visit.
    #[must_use]
    pub fn csrf_token(&self, cookie: &str) -> String {
        hex::encode(self.keyed("csrf", &[cookie.as_bytes()]))
    }

    /// Whether a form sent the token that belongs to the cookie. Compares in constant time.
    #[must_use]
    pub fn is_csrf_token(&self, cookie: &str, sent: &str) -> bool {
        use subtle::ConstantTimeEq as _;
        self.csrf_token(cookie)
            .as_bytes()
            .ct_eq(sent.as_bytes())
            .into()
    }

    /// Who holds a session's cookie; `None` if the session has ended or never was.
    ///
    /// # Errors
    /// The store can't be read.
    pub async fn signed_in(
        &self,
        cookie: &str,
    ) -> Result<Option<std::sync::Arc<persistence::SignedIn>>, StoreError> {
        match self.session_hash(cookie) {
            Some(hash) => self.store.signed_in(hash, self.settings.idle).await,
            None => Ok(None),
        }
    }

    /// Whether a person has proved who they are recently enough for what needs it.
    #[must_use]
    pub fn is_recent(&self, authenticated_at: domain::Timestamp) -> bool {
        self.store.now().since(authenticated_at) < self.settings.recent
    }

    pub(crate) fn begin_session(
        &self,
        method: SignInMethod,
        provider: Option<&str>,
    ) -> BeginSession {
        let cookie = token::generate(Prefix::Session);
        BeginSession {
            new: NewSession {
                hash: self.keyed_hash("session", cookie.expose_secret()),
                method,
                provider: provider.map(str::to_owned),
                lasts: self.settings.lasts,
            },
            cookie,
        }
    }

    /// The host under which browsers reach the server, as mails name it.
    pub(crate) fn site(&self) -> &str {
        let origin = self.settings.public_origin.as_str();
        origin.split_once("://").map_or(origin, |(_, host)| host)
    }

    /// A URL of ours.
    pub(crate) fn page(&self, path: &str) -> String {
        format!("{}{path}", self.settings.public_origin)
    }

    /// A URL of ours with a secret text in its query. Pages that such a URL opens tell no other
    /// site of it (`Referrer-Policy`), and the access log holds no queries.
    pub(crate) fn link(&self, path: &str, text: &SecretString) -> String {
        let origin = &self.settings.public_origin;
        format!("{origin}{path}?token={}", text.expose_secret())
    }
}

/// The problem that a person is shown for a refusal.
pub(crate) fn problem_of(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::Token(TokenFault::Unknown) => Code::LinkInvalid,
        Refusal::Token(TokenFault::Used) => Code::LinkUsed,
        // The user was removed, or got another address, since the mail was written.
        Refusal::Token(TokenFault::Expired) | Refusal::NoUser => Code::LinkExpired,
        Refusal::OtherBrowser => Code::OtherBrowser,
        Refusal::Disabled => Code::UserDisabled,
        Refusal::Unverified => Code::EmailUnverified,
    }
    .into()
}

/// What a sign-in that was begun remembers until it is finished.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Remembered {
    /// Where the person wanted to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) return_to: Option<String>,
}

impl Remembered {
    pub(crate) fn to_payload(&self) -> zeroize::Zeroizing<Vec<u8>> {
        zeroize::Zeroizing::new(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Where the person goes. Judged again: what is stored may be older than the rule.
    pub(crate) fn return_to(payload: Option<&[u8]>) -> ReturnTo {
        payload
            .and_then(|payload| serde_json::from_slice::<Self>(payload).ok())
            .and_then(|remembered| ReturnTo::parse(&remembered.return_to?))
            .unwrap_or_default()
    }
}
