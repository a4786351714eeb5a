//! OpenID Connect: the authorization code flow with PKCE (OpenID Connect Core 1.0 §3.1, RFC 7636).

use std::{sync::Arc, time::Duration};

use domain::{
    Timestamp,
    upstream::{ClientAuth, ClientCredentials, TokenRequest},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value};
use subtle::ConstantTimeEq as _;

use super::{
    Callback, Email, InvalidSettings, IssuerError, OpenIdSettings, Pace, Pending, Person, Started,
    cached::Cached,
    check_base,
    http::{Http, access_token},
    started, trusted_url,
};
use crate::{
    Algorithm,
    jws::{self, Claims, Expected, JwsError, KeySet},
};

/// By how much the clocks of the issuer and of this server may differ.
const LEEWAY: Duration = Duration::from_mins(1);
/// The longest subject, in bytes (OpenID Connect Core 1.0 §2).
const SUBJECT_LEN_MAX: usize = 255;
const JSON: &str = "application/json";

/// An issuer of OpenID Connect.
pub(super) struct OpenId {
    settings: OpenIdSettings,
    http: Http,
    metadata: Cached<Metadata>,
    keys: Cached<KeySet>,
}

/// What is used of an issuer's configuration (OpenID Connect Discovery 1.0 §3).
struct Metadata {
    authorization_endpoint: String,
    token_endpoint: String,
    userinfo_endpoint: Option<String>,
    jwks_uri: String,
    /// Where the token endpoint takes the client's secret.
    client_auth: ClientAuth,
    /// Whether the issuer names itself when the browser comes back (RFC 9207).
    tells_iss: bool,
}

impl OpenId {
    pub(super) fn new(
        settings: OpenIdSettings,
        http: Http,
        pace: Pace,
    ) -> Result<Self, InvalidSettings> {
        check_base(&settings.issuer, &settings.client_id)?;
        if !settings.scopes.split(' ').any(|scope| scope == "openid") {
            return Err(InvalidSettings::Scopes);
        }
        Ok(Self {
            settings,
            http,
            metadata: Cached::new(pace),
            keys: Cached::new(pace),
        })
    }

    pub(super) async fn begin(&self, redirect_uri: &str) -> Result<Started, IssuerError> {
        let metadata = self.metadata().await?;
        let mut started = started(
            &metadata.authorization_endpoint,
            &self.settings.client_id,
            redirect_uri,
            &self.settings.scopes,
        );
        started.url.push_str("&nonce=");
        started.url.push_str(started.nonce.expose_secret());
        Ok(started)
    }

    pub(super) async fn finish(
        &self,
        callback: Callback<'_>,
        pending: Pending<'_>,
        now: Timestamp,
    ) -> Result<Person, IssuerError> {
        let metadata = self.metadata().await?;
        let told = match callback.iss {
            Some(iss) => iss == self.settings.issuer,
            None => !metadata.tells_iss,
        };
        if !told {
            return Err(IssuerError::Refused("iss"));
        }
        let code = callback.into_code()?;
        let client = ClientCredentials {
            id: &self.settings.client_id,
            secret: self.settings.client_secret.as_ref(),
        };
        let request = TokenRequest::Code {
            code: &code,
            redirect_uri: pending.redirect_uri,
            verifier: pending.pkce_verifier,
        };
        let form = client.request(request, metadata.client_auth);
        let answer = self.http.post_form(&metadata.token_endpoint, form).await?;
        let grant = answer.grant()?;
        let id_token = grant.get("id_token").and_then(Value::as_str);
        let id_token = id_token.ok_or(IssuerError::Refused("no_id_token"))?;
        let claims = self.verify(id_token, &metadata.jwks_uri).await?;
        let subject = self.check(&claims, pending.nonce, now)?;
        let (mut email, mut name) = profile(|name| claims.get(name));
        if email.is_none()
            && let Some(url) = &metadata.userinfo_endpoint
        {
            let more = self.userinfo(url, &access_token(&grant)?, subject).await?;
            let (told, called) = profile(|name| more.get(name));
            email = told;
            name = name.or(called);
        }
        Ok(Person {
            issuer: self.settings.issuer.clone(),
            subject: subject.to_owned(),
            email,
            name,
        })
    }

    async fn metadata(&self) -> Result<Arc<Metadata>, IssuerError> {
        let fetch = async {
            let issuer = &self.settings.issuer;
            let base = issuer.strip_suffix('/').unwrap_or(issuer);
            let url = format!("{base}/.well-known/openid-configuration");
            let answer = self.http.get(&url, JSON, None).await?;
            let members = answer.object("no_configuration")?;
            // Otherwise one issuer could name the endpoints of another.
            if members.get("issuer").and_then(Value::as_str) != Some(issuer) {
                return Err(IssuerError::Refused("other_issuer"));
            }
            Metadata::read(&members).ok_or(IssuerError::Refused("configuration"))
        };
        self.metadata.get(None, fetch).await
    }

    async fn key_set(
        &self,
        url: &str,
        unfit: Option<&Arc<KeySet>>,
    ) -> Result<Arc<KeySet>, IssuerError> {
        let fetch = async {
            let answer = self.http.get(url, JSON, None).await?;
            let keys = KeySet::parse(answer.success("no_keys")?);
            let keys = keys.ok().filter(|keys| !keys.is_empty());
            keys.ok_or(IssuerError::Refused("no_keys"))
        };
        self.keys.get(unfit, fetch).await
    }

    /// Verifies the signature of an ID token. A key that is not known may be new: then the keys are
    /// fetched again, though not more often than once in a while.
    async fn verify(&self, token: &str, jwks_uri: &str) -> Result<Claims, IssuerError> {
        let keys = self.key_set(jwks_uri, None).await?;
        let verified = match jws::verify(token, &keys, &Algorithm::ALL) {
            Err(JwsError::UnknownKey) => {
                let newer = self.key_set(jwks_uri, Some(&keys)).await?;
                jws::verify(token, &newer, &Algorithm::ALL)
            }
            verified => verified,
        };
        verified.map_err(|error| IssuerError::Refused(error.code()))
    }

    /// Checks the claims of an ID token (OpenID Connect Core 1.0 §3.1.3.7), and returns the subject.
    fn check<'c>(
        &self,
        claims: &'c Claims,
        nonce: &SecretString,
        now: Timestamp,
    ) -> Result<&'c str, IssuerError> {
        let refused = |error: JwsError| IssuerError::Refused(error.code());
        let client_id = &self.settings.client_id;
        let expected = Expected {
            issuer: &self.settings.issuer,
            audience: client_id,
            now,
            leeway: LEEWAY,
        };
        claims.check(&expected).map_err(refused)?;
        if claims.seconds("iat").map_err(refused)?.is_none() {
            return Err(IssuerError::Refused("claim"));
        }
        // A token with other audiences must say that it was issued to this client.
        let alone = claims.audiences().map_err(refused)?.len() == 1;
        let issued_to_us = match claims.get("azp") {
            None => alone,
            Some(party) => party.as_str() == Some(client_id),
        };
        if !issued_to_us {
            return Err(IssuerError::Refused("azp"));
        }
        let told = claims.text("nonce").unwrap_or_default();
        if !bool::from(told.as_bytes().ct_eq(nonce.expose_secret().as_bytes())) {
            return Err(IssuerError::Refused("nonce"));
        }
        let subject = claims.text("sub").filter(|subject| {
            (1..=SUBJECT_LEN_MAX).contains(&subject.len()) && !subject.contains(char::is_control)
        });
        subject.ok_or(IssuerError::Refused("sub"))
    }

    async fn userinfo(
        &self,
        url: &str,
        token: &SecretString,
        subject: &str,
    ) -> Result<Map<String, Value>, IssuerError> {
        let answer = self.http.get(url, JSON, Some(token)).await?;
        let members = answer.object("userinfo_refused")?;
        // An answer about somebody else (OpenID Connect Core 1.0 §5.3.2).
        if members.get("sub").and_then(Value::as_str) != Some(subject) {
            return Err(IssuerError::Refused("userinfo_sub"));
        }
        Ok(members)
    }
}

/// The e-mail address and the name among the claims about a person.
fn profile<'c>(claim: impl Fn(&str) -> Option<&'c Value>) -> (Option<Email>, Option<String>) {
    let text = |name: &str| {
        let text = claim(name).and_then(Value::as_str);
        text.filter(|text| !text.is_empty()).map(str::to_owned)
    };
    // Some issuers write this one as a text.
    let verified = match claim("email_verified") {
        Some(Value::Bool(verified)) => *verified,
        Some(Value::String(verified)) => verified == "true",
        _ => false,
    };
    let email = text("email").map(|address| Email { address, verified });
    (email, text("name"))
}

impl Metadata {
    fn read(members: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let url = |name: &str| {
            let text = text(name)?;
            trusted_url(text).map(|_| text.to_owned())
        };
        // Without a list, the header (OpenID Connect Discovery 1.0 §3).
        let takes_secret = |place: &str| {
            let places = members.get("token_endpoint_auth_methods_supported");
            let places = places.and_then(Value::as_array);
            places.is_some_and(|places| places.iter().any(|one| one == place))
        };
        let body = !takes_secret("client_secret_basic") && takes_secret("client_secret_post");
        let tells_iss = members.get("authorization_response_iss_parameter_supported");
        Some(Self {
            authorization_endpoint: url("authorization_endpoint")?,
            token_endpoint: url("token_endpoint")?,
            userinfo_endpoint: url("userinfo_endpoint"),
            jwks_uri: url("jwks_uri")?,
            client_auth: if body {
                ClientAuth::Body
            } else {
                ClientAuth::Basic
            },
            tells_iss: tells_iss == Some(&Value::Bool(true)),
        })
    }
}
