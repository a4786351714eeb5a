//! Upstream credentials: what an account holds, how it is sealed, and in which header it is sent.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::words;
use crate::{
    clock::Timestamp,
    id::{AccountId, Id as _, PublisherId},
    random,
    seal::{Key, SealContext, SealError},
    token,
};

words! {
    /// The type of an account's credential.
    pub enum CredentialType {
        /// A key that never changes.
        ApiKey = "api_key",
        /// An access token that is refreshed (RFC 6749 §6).
        Oauth = "oauth",
    }
}

/// The tokens of an `oauth` account. `Debug` does not show them; they are wiped when dropped.
#[derive(Clone, Debug)]
pub struct OauthTokens {
    /// The access token, which is sent to the upstream.
    pub access_token: SecretString,
    /// The refresh token (RFC 6749 §1.5).
    pub refresh_token: SecretString,
    /// The client's secret at the token endpoint, if there is one.
    pub client_secret: Option<SecretString>,
}

/// The credential of an account.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A key that never changes.
    ApiKey(SecretString),
    /// OAuth tokens.
    Oauth(OauthTokens),
}

/// The form that is sealed. It is used in this module only.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Plain<'a> {
    ApiKey(&'a str),
    Oauth {
        access_token: &'a str,
        refresh_token: &'a str,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_secret: Option<&'a str>,
    },
}

/// The form that is opened. It owns its texts, because JSON may escape them.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Opened {
    ApiKey(Zeroizing<String>),
    Oauth {
        access_token: Zeroizing<String>,
        refresh_token: Zeroizing<String>,
        #[serde(default)]
        client_secret: Option<Zeroizing<String>>,
    },
}

/// The account and the URLs for which a credential is sealed. It does not open with other URLs, so
/// that somebody who can write to the database can't have it sent elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct SealedFor<'a> {
    /// The publisher of the account.
    pub publisher: PublisherId,
    /// The account.
    pub account: AccountId,
    /// The base URL to which gateways send the credential.
    pub base_url: &'a str,
    /// The token endpoint; only of an OAuth account.
    pub token_url: Option<&'a str>,
}

impl SealedFor<'_> {
    /// The account and both URLs, each prefixed by its length.
    fn row(&self) -> Vec<u8> {
        let mut row = self.account.uuid().as_bytes().to_vec();
        for url in [Some(self.base_url), self.token_url].into_iter().flatten() {
            row.extend_from_slice(&(url.len() as u64).to_be_bytes());
            row.extend_from_slice(url.as_bytes());
        }
        row
    }

    fn seal_context<'a>(&self, row: &'a [u8]) -> SealContext<'a> {
        SealContext {
            owner: self.publisher.uuid(),
            table: "accounts",
            row,
            column: "sealed",
        }
    }
}

fn secret(text: &Zeroizing<String>) -> SecretString {
    SecretString::from(text.as_str().to_owned())
}

impl Credential {
    /// The type of the credential.
    #[must_use]
    pub const fn credential_type(&self) -> CredentialType {
        match self {
            Self::ApiKey(_) => CredentialType::ApiKey,
            Self::Oauth(_) => CredentialType::Oauth,
        }
    }

    /// The key or access token that is sent to the upstream.
    #[must_use]
    pub const fn bearer(&self) -> &SecretString {
        match self {
            Self::ApiKey(key) => key,
            Self::Oauth(tokens) => &tokens.access_token,
        }
    }

    /// The last four characters of the key or access token.
    #[must_use]
    pub fn last_four(&self) -> String {
        token::last_four(self.bearer().expose_secret())
    }

    /// Seals the credential with the publisher's data key, for one account and its URLs.
    ///
    /// # Panics
    /// Never: the sealed form can always be serialized.
    #[must_use]
    pub fn seal(&self, key: &Key, sealed_for: &SealedFor<'_>) -> Vec<u8> {
        let plain = match self {
            Self::ApiKey(key) => Plain::ApiKey(key.expose_secret()),
            Self::Oauth(tokens) => Plain::Oauth {
                access_token: tokens.access_token.expose_secret(),
                refresh_token: tokens.refresh_token.expose_secret(),
                client_secret: tokens
                    .client_secret
                    .as_ref()
                    .map(secrecy::ExposeSecret::expose_secret),
            },
        };
        let text = Zeroizing::new(serde_json::to_vec(&plain).expect("texts serialise"));
        key.seal(&sealed_for.seal_context(&sealed_for.row()), &text)
    }

    /// Opens what [`Credential::seal`] made for the same account and URLs. Also opens credentials
    /// of older versions, which were sealed for the account alone.
    ///
    /// # Errors
    /// [`SealError`] for another key, account or URL, or changed bytes.
    pub fn open(key: &Key, sealed_for: &SealedFor<'_>, sealed: &[u8]) -> Result<Self, SealError> {
        let account = sealed_for.account.uuid();
        let plain = key
            .open(&sealed_for.seal_context(&sealed_for.row()), sealed)
            .or_else(|_| key.open(&sealed_for.seal_context(account.as_bytes()), sealed))?;
        Ok(
            match serde_json::from_slice(&plain).map_err(|_| SealError)? {
                Opened::ApiKey(key) => Self::ApiKey(secret(&key)),
                Opened::Oauth {
                    access_token,
                    refresh_token,
                    client_secret,
                } => Self::Oauth(OauthTokens {
                    access_token: secret(&access_token),
                    refresh_token: secret(&refresh_token),
                    client_secret: client_secret.as_ref().map(secret),
                }),
            },
        )
    }

    /// Whether both credentials are the same, compared in constant time.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let same = |a: &SecretString, b: &SecretString| {
            token::TokenHash::of_secret(a).matches(&token::TokenHash::of_secret(b))
        };
        match (self, other) {
            (Self::ApiKey(a), Self::ApiKey(b)) => same(a, b),
            (Self::Oauth(a), Self::Oauth(b)) => {
                let secrets = match (&a.client_secret, &b.client_secret) {
                    (Some(a), Some(b)) => same(a, b),
                    (None, None) => true,
                    _ => false,
                };
                let access = same(&a.access_token, &b.access_token);
                let refresh = same(&a.refresh_token, &b.refresh_token);
                secrets & access & refresh
            }
            _ => false,
        }
    }
}

/// The header that carries a credential to an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamHeader {
    /// The name, in lower case.
    pub name: String,
    /// The word before the credential, such as `Bearer`; `None` if there is none.
    pub scheme: Option<String>,
}

impl UpstreamHeader {
    /// `authorization: Bearer …` (RFC 6750 §2.1).
    #[must_use]
    pub fn bearer() -> Self {
        Self {
            name: "authorization".to_owned(),
            scheme: Some("Bearer".to_owned()),
        }
    }

    /// The header's value for a credential.
    #[must_use]
    pub fn value(&self, credential: &SecretString) -> SecretString {
        let text = credential.expose_secret();
        SecretString::from(match &self.scheme {
            Some(scheme) => format!("{scheme} {text}"),
            None => text.to_owned(),
        })
    }
}

/// The base URL of a known provider, and the header from which it reads a credential; `None` for an
/// unknown name.
///
/// Anthropic reads API keys from `x-api-key` and OAuth tokens from `authorization`; `OpenAI` reads
/// both from `authorization` (their API references).
#[must_use]
pub fn known_provider(name: &str, of: CredentialType) -> Option<(&'static str, UpstreamHeader)> {
    match (name, of) {
        ("anthropic", CredentialType::ApiKey) => {
            let header = UpstreamHeader {
                name: "x-api-key".to_owned(),
                scheme: None,
            };
            Some(("https://api.anthropic.com", header))
        }
        ("anthropic", CredentialType::Oauth) => {
            Some(("https://api.anthropic.com", UpstreamHeader::bearer()))
        }
        ("openai", _) => Some(("https://api.openai.com/v1", UpstreamHeader::bearer())),
        _ => None,
    }
}

/// Soft ceilings of an account's use. An account near one is lent only if no other is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ceilings {
    /// Requests in 5 hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_5h: Option<u64>,
    /// Tokens of a model in 5 hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_5h: Option<u64>,
    /// Requests in 7 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_7d: Option<u64>,
    /// Tokens of a model in 7 days.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_7d: Option<u64>,
}

/// An access token is refreshed this long before it expires, if not earlier.
pub const REFRESH_AHEAD: Duration = Duration::from_mins(10);
/// How much earlier a refresh may be, at random, so that not all of them come at once.
pub const REFRESH_JITTER_MAX: Duration = Duration::from_mins(2);

/// When an access token is to be refreshed: 10 minutes or a tenth of its remaining life before it
/// expires, whichever is earlier, and earlier by `jitter`. But never before half of that life is
/// over, or a token that lives for minutes would be refreshed all the time.
#[must_use]
pub fn refresh_due(now: Timestamp, expires_at: Timestamp, jitter: Duration) -> Timestamp {
    let life = expires_at.since(now);
    let ahead = REFRESH_AHEAD.max(life / 10).saturating_add(jitter);
    expires_at.minus(ahead.min(life / 2))
}

/// A random time up to [`REFRESH_JITTER_MAX`].
#[must_use]
pub fn refresh_jitter() -> Duration {
    REFRESH_JITTER_MAX.mul_f64(random::jitter(1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (PublisherId, AccountId) {
        let now = Timestamp::from_ms(1);
        (PublisherId::generate(now), AccountId::generate(now))
    }

    fn tokens() -> Credential {
        Credential::Oauth(OauthTokens {
            access_token: SecretString::from("at-\"quoted\"-1234".to_owned()),
            refresh_token: SecretString::from("rt".to_owned()),
            client_secret: None,
        })
    }

    #[test]
    fn credentials_are_the_same_when_all_their_parts_are() {
        let key = |text: &str| Credential::ApiKey(SecretString::from(text));
        assert!(key("sk-1").is(&key("sk-1")));
        assert!(!key("sk-1").is(&key("sk-2")));
        let other = SecretString::from("another");
        let parts = OauthTokens {
            access_token: SecretString::from("at"),
            refresh_token: SecretString::from("rt"),
            client_secret: Some(SecretString::from("cs")),
        };
        let held = Credential::Oauth(parts.clone());
        assert!(held.is(&held.clone()));
        assert!(!held.is(&key("at")));
        for changed in [
            OauthTokens {
                access_token: other.clone(),
                ..parts.clone()
            },
            OauthTokens {
                refresh_token: other.clone(),
                ..parts.clone()
            },
            OauthTokens {
                client_secret: Some(other),
                ..parts.clone()
            },
            OauthTokens {
                client_secret: None,
                ..parts
            },
        ] {
            assert!(!held.is(&Credential::Oauth(changed)));
        }
    }

    #[test]
    fn a_credential_opens_for_its_own_account_alone() {
        let (publisher, account) = ids();
        let (foreign, other) = ids();
        let key = Key::generate();
        for credential in [
            tokens(),
            Credential::ApiKey(SecretString::from("sk-ant-abcd".to_owned())),
        ] {
            let here = SealedFor {
                publisher,
                account,
                base_url: "https://api.example",
                token_url: Some("https://auth.example/token"),
            };
            let sealed = credential.seal(&key, &here);
            let opened = Credential::open(&key, &here, &sealed).unwrap();
            assert_eq!(
                opened.bearer().expose_secret(),
                credential.bearer().expose_secret()
            );
            assert_eq!(opened.credential_type(), credential.credential_type());
            let elsewhere = [
                SealedFor {
                    publisher: foreign,
                    ..here
                },
                SealedFor {
                    account: other,
                    ..here
                },
                SealedFor {
                    base_url: "https://evil.example",
                    ..here
                },
                SealedFor {
                    token_url: Some("https://evil.example"),
                    ..here
                },
                SealedFor {
                    token_url: None,
                    ..here
                },
            ];
            for context in elsewhere {
                assert!(
                    Credential::open(&key, &context, &sealed).is_err(),
                    "{context:?}"
                );
            }
        }
    }

    #[test]
    fn what_was_sealed_before_urls_were_bound_opens() {
        let (publisher, account) = ids();
        let key = Key::generate();
        let here = SealedFor {
            publisher,
            account,
            base_url: "https://api.example",
            token_url: None,
        };
        let row = account.uuid();
        let sealed = key.seal(&here.seal_context(row.as_bytes()), br#"{"api_key":"sk-1"}"#);
        let opened = Credential::open(&key, &here, &sealed).unwrap();
        assert_eq!(opened.bearer().expose_secret(), "sk-1");
    }

    #[test]
    fn a_refresh_is_due_well_before_the_token_expires() {
        let now = Timestamp::from_ms(1_000_000_000);
        let minutes = Duration::from_mins;
        let ahead = |life: Duration, jitter: Duration| {
            let expires_at = now.plus(life);
            expires_at.since(refresh_due(now, expires_at, jitter))
        };
        let none = Duration::ZERO;
        assert_eq!(ahead(minutes(60), none), minutes(10));
        assert_eq!(ahead(minutes(60), minutes(1)), minutes(11));
        assert_eq!(ahead(minutes(1000), none), minutes(100));
        assert_eq!(ahead(minutes(100), none), minutes(10));
        assert_eq!(ahead(minutes(4), none), minutes(2), "half of its life");
        assert_eq!(ahead(minutes(20), minutes(2)), minutes(10));
        let past = now.minus(minutes(1));
        assert_eq!(refresh_due(now, past, minutes(1)), past, "due at once");
    }

    #[test]
    fn jitter_is_bounded_and_differs() {
        let many: Vec<Duration> = (0..100).map(|_| refresh_jitter()).collect();
        assert!(many.iter().all(|one| *one <= REFRESH_JITTER_MAX));
        assert!(many.iter().any(|one| *one != many[0]));
    }

    #[test]
    fn ceilings_that_are_not_set_are_not_written() {
        let ceilings = Ceilings {
            tokens_5h: Some(7),
            ..Ceilings::default()
        };
        let text = serde_json::to_string(&ceilings).unwrap();
        assert_eq!(text, r#"{"tokens_5h":7}"#);
        assert_eq!(serde_json::from_str::<Ceilings>(&text).unwrap(), ceilings);
    }

    #[test]
    fn debug_shows_no_credential() {
        let text = format!("{:?}", tokens());
        assert!(!text.contains("1234") && !text.contains("\"rt\""), "{text}");
    }

    #[test]
    fn headers_carry_what_their_provider_reads() {
        let key = SecretString::from("k".to_owned());
        let (_, header) = known_provider("anthropic", CredentialType::ApiKey).unwrap();
        assert_eq!(header.value(&key).expose_secret(), "k");
        let (_, header) = known_provider("openai", CredentialType::ApiKey).unwrap();
        assert_eq!(header.value(&key).expose_secret(), "Bearer k");
        assert!(known_provider("other", CredentialType::ApiKey).is_none());
    }
}
