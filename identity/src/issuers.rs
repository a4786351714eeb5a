//! Sign-in elsewhere: at any issuer of OpenID Connect, and at GitHub.
//!
//! An [`Issuer`] sends a person to its page, and turns the answer into who the person is there. What
//! is remembered in between is the caller's: it must bind the state to the browser, use it once, and
//! forget it after minutes.
//!
//! A person is known by issuer and subject alone ([`SignedIn`]). An e-mail address may be given to
//! somebody else, and a login name may change.
//!
//! Requests go through `outbound`, so no redirect is followed. Nothing that an issuer wrote gets into
//! an error or a log.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::{Slug, Timestamp, random, upstream::LoginRequest};
use secrecy::{ExposeSecret as _, SecretString};
use url::{Host, Url};

use github::GitHub;
use http::Http;
use openid::OpenId;

mod cached;
mod github;
mod http;
mod openid;

/// The longest code that is passed on, in bytes.
const CODE_LEN_MAX: usize = 4096;
/// The longest e-mail address that is taken over, in bytes.
const EMAIL_LEN_MAX: usize = 320;
/// The longest name of a person that is taken over, in characters.
const NAME_CHARS_MAX: usize = 200;

/// Why a sign-in elsewhere failed. The list is closed; a reason is one of a closed list of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssuerError {
    /// The person said no.
    #[error("the sign-in was denied")]
    Denied,
    /// The issuer failed or did not answer in time: another try may succeed.
    #[error("the issuer can't be used at the moment ({0})")]
    Passing(&'static str),
    /// The issuer refused, or its answer can't be trusted.
    #[error("the issuer's answer is not accepted ({0})")]
    Refused(&'static str),
}

impl IssuerError {
    /// The reason, for logs and audit rows.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Passing(reason) | Self::Refused(reason) => reason,
        }
    }
}

/// Settings of an issuer that can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// A URL is not one of `https`, or of `http` on this machine.
    #[error("the URL must begin with https:// and have neither query nor fragment")]
    Url,
    /// The client identifier is empty.
    #[error("the client identifier is missing")]
    ClientId,
    /// The scopes of an OpenID Connect issuer lack `openid`.
    #[error("the scopes must contain openid")]
    Scopes,
}

/// The settings of an OpenID Connect issuer.
#[derive(Clone, Debug)]
pub struct OpenIdSettings {
    /// The name in paths and identities.
    pub name: Slug,
    /// The issuer, exactly as it writes itself.
    pub issuer: String,
    /// The client identifier.
    pub client_id: String,
    /// The client secret; `None` for a public client.
    pub client_secret: Option<SecretString>,
    /// The scopes to ask for, with spaces between them.
    pub scopes: String,
}

/// The settings of GitHub, or of a GitHub Enterprise Server.
#[derive(Clone, Debug)]
pub struct GitHubSettings {
    /// The name in paths and identities.
    pub name: Slug,
    /// The site: `https://github.com`. It is the issuer of the identities.
    pub web_url: String,
    /// The API: `https://api.github.com`, or `https://HOST/api/v3`.
    pub api_url: String,
    /// The client identifier.
    pub client_id: String,
    /// The client secret.
    pub client_secret: SecretString,
}

/// A sign-in that was begun. All but the URL is to be kept until the browser comes back. There is no
/// `Debug`, since the URL has secrets in it.
pub struct Started {
    /// Where to send the browser.
    pub url: String,
    /// What comes back with the code; 256 random bits.
    pub state: SecretString,
    /// What comes back in the ID token.
    pub nonce: SecretString,
    /// What proves that whoever presents the code began the sign-in (RFC 7636).
    pub pkce_verifier: SecretString,
}

/// What was kept of a sign-in that was begun, found by the state that came back.
#[derive(Clone, Copy, Debug)]
pub struct Pending<'a> {
    /// The name of the issuer at which it was begun.
    pub provider: &'a str,
    /// The redirect URI that was passed to [`Issuer::begin`].
    pub redirect_uri: &'a str,
    /// [`Started::nonce`].
    pub nonce: &'a SecretString,
    /// [`Started::pkce_verifier`].
    pub pkce_verifier: &'a SecretString,
}

/// The parameters with which the browser came back, apart from the state.
#[derive(Clone, Copy, Default)]
pub struct Callback<'a> {
    /// The code.
    pub code: Option<&'a str>,
    /// The issuer (RFC 9207).
    pub iss: Option<&'a str>,
    /// The error.
    pub error: Option<&'a str>,
}

/// Who a person is at an issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedIn {
    /// The name of the issuer in the settings.
    pub provider: String,
    /// The issuer.
    pub issuer: String,
    /// The person there. Together with the issuer, this is the identity.
    pub subject: String,
    /// An e-mail address, if the issuer tells one.
    pub email: Option<Email>,
    /// A name to greet the person by.
    pub name: Option<String>,
}

/// An e-mail address that an issuer tells, which is not checked for its form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Email {
    /// The address.
    pub address: String,
    /// Whether the issuer says that it is the person's.
    pub verified: bool,
}

/// How long requests may take, and how long answers are kept.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// For a request, from its start to the end of the answer.
    request_timeout: Duration,
    /// An issuer's configuration and keys are used for this long without a look.
    fresh_for: Duration,
    /// If they can't be fetched again, the old ones are used for this long.
    stale_for: Duration,
    /// The shortest time between two fetches of the same.
    cool_down: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(10),
            fresh_for: Duration::from_hours(1),
            stale_for: Duration::from_hours(24),
            cool_down: Duration::from_secs(10),
        }
    }
}

/// An issuer at which people sign in. Create one for the whole process: it keeps the issuer's
/// configuration and keys.
pub struct Issuer {
    name: Slug,
    kind: Kind,
}

enum Kind {
    OpenId(Box<OpenId>),
    GitHub(Box<GitHub>),
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({})", self.name.as_str())
    }
}

impl Issuer {
    /// An issuer of OpenID Connect. Nothing is fetched before the first sign-in.
    ///
    /// # Errors
    /// [`InvalidSettings`].
    pub fn openid(
        settings: OpenIdSettings,
        client: outbound::Client,
    ) -> Result<Self, InvalidSettings> {
        Self::openid_at(settings, client, Pace::default())
    }

    fn openid_at(
        settings: OpenIdSettings,
        client: outbound::Client,
        pace: Pace,
    ) -> Result<Self, InvalidSettings> {
        let name = settings.name.clone();
        let openid = OpenId::new(settings, Http::new(client, pace.request_timeout), pace)?;
        let kind = Kind::OpenId(Box::new(openid));
        Ok(Self { name, kind })
    }

    /// GitHub, or a GitHub Enterprise Server.
    ///
    /// # Errors
    /// [`InvalidSettings`].
    pub fn github(
        settings: GitHubSettings,
        client: outbound::Client,
    ) -> Result<Self, InvalidSettings> {
        Self::github_at(settings, client, Pace::default())
    }

    fn github_at(
        settings: GitHubSettings,
        client: outbound::Client,
        pace: Pace,
    ) -> Result<Self, InvalidSettings> {
        let name = settings.name.clone();
        let github = GitHub::new(settings, Http::new(client, pace.request_timeout))?;
        let kind = Kind::GitHub(Box::new(github));
        Ok(Self { name, kind })
    }

    /// The name in the settings.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Begins a sign-in that ends at `redirect_uri`. The state is to be bound to the browser.
    ///
    /// # Errors
    /// [`IssuerError`], if the issuer's configuration can't be fetched or used.
    pub async fn begin(&self, redirect_uri: &str) -> Result<Started, IssuerError> {
        match &self.kind {
            Kind::OpenId(openid) => openid.begin(redirect_uri).await,
            Kind::GitHub(github) => Ok(github.begin(redirect_uri)),
        }
    }

    /// Ends a sign-in: exchanges the code, and verifies who the person is.
    ///
    /// # Errors
    /// [`IssuerError`].
    pub async fn finish(
        &self,
        callback: Callback<'_>,
        pending: Pending<'_>,
        now: Timestamp,
    ) -> Result<SignedIn, IssuerError> {
        // A state of one issuer at the redirect URI of another: somebody mixes them up.
        if pending.provider != self.name() {
            return Err(IssuerError::Refused("other_provider"));
        }
        let person = match &self.kind {
            Kind::OpenId(openid) => openid.finish(callback, pending, now).await?,
            Kind::GitHub(github) => github.finish(callback, pending).await?,
        };
        Ok(SignedIn {
            provider: self.name().to_owned(),
            issuer: person.issuer,
            subject: person.subject,
            email: person
                .email
                .filter(|email| email.address.len() <= EMAIL_LEN_MAX),
            name: person
                .name
                .map(|name| name.chars().take(NAME_CHARS_MAX).collect()),
        })
    }
}

/// What an issuer says of a person.
struct Person {
    issuer: String,
    subject: String,
    email: Option<Email>,
    name: Option<String>,
}

impl Callback<'_> {
    /// The code, or why there is none.
    fn into_code(self) -> Result<SecretString, IssuerError> {
        match self.error {
            None => {}
            Some("access_denied") => return Err(IssuerError::Denied),
            Some("server_error" | "temporarily_unavailable") => {
                return Err(IssuerError::Passing("unavailable"));
            }
            Some(_) => return Err(IssuerError::Refused("error_in_callback")),
        }
        let code = self.code.filter(|code| is_token(code, CODE_LEN_MAX));
        let code = code.ok_or(IssuerError::Refused("no_code"))?;
        Ok(SecretString::from(code))
    }
}

/// Whether the text has visible ASCII characters alone, and a sane length.
fn is_token(text: &str, len_max: usize) -> bool {
    (1..=len_max).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Begins a sign-in at an authorization endpoint.
fn started(authorize_url: &str, client_id: &str, redirect_uri: &str, scopes: &str) -> Started {
    let request = LoginRequest::new(authorize_url, client_id, redirect_uri, scopes);
    let nonce = SecretString::from(URL_SAFE_NO_PAD.encode(random::bytes::<32>()));
    Started {
        url: request.url,
        state: request.state,
        nonce,
        pkce_verifier: request.verifier,
    }
}

/// A URL whose answers can be trusted: `https`, or `http` on this machine; without a user name and
/// fragment.
fn trusted_url(text: &str) -> Option<Url> {
    let url = Url::parse(text).ok()?;
    let is_local = match url.host()? {
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => address.is_loopback(),
        Host::Domain(name) => name == "localhost" || name.ends_with(".localhost"),
    };
    let is_safe = url.scheme() == "https" || url.scheme() == "http" && is_local;
    let is_plain =
        url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
    (is_safe && is_plain).then_some(url)
}

/// Checks a URL of the settings, to which paths are added.
fn check_base(text: &str, client_id: &str) -> Result<(), InvalidSettings> {
    let url = trusted_url(text).ok_or(InvalidSettings::Url)?;
    if url.query().is_some() {
        return Err(InvalidSettings::Url);
    }
    if client_id.is_empty() {
        return Err(InvalidSettings::ClientId);
    }
    Ok(())
}

/// The value of an `Authorization` header.
fn bearer(token: &SecretString) -> String {
    format!("Bearer {}", token.expose_secret())
}

#[cfg(test)]
mod tests;
