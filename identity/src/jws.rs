//! Signed tokens: JSON Web Signatures in the compact form (RFC 7515), and their claims (RFC 7519).
//!
//! The keys come from the caller. Nothing in a token leads to a key: a header that carries one, or
//! the address of one, is refused.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use domain::Timestamp;
use serde_json::{Map, Value};

use crate::{
    json,
    public_key::{Algorithm, EcdsaForm},
};

pub use keys::KeySet;

mod keys;
#[cfg(test)]
pub(crate) mod signer;

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// The longest identifier of a key, in bytes.
const KID_BYTES_MAX: usize = 128;
/// Members of a header that would name a key, or change what is signed. All are refused, in whatever
/// form. Thumbprints (`x5t`) lead to no key and are ignored.
const REFUSED_MEMBERS: [&str; 7] = ["crit", "b64", "zip", "jwk", "jku", "x5u", "x5c"];

/// Why a token is refused. The list is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum JwsError {
    /// The text is no compact JWS of the accepted form.
    #[error("the token is malformed")]
    Malformed,
    /// The algorithm is not accepted, or is not the key's.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// No key has the token's key identifier.
    #[error("the token's key is not known")]
    UnknownKey,
    /// The signature is not the key's signature of this token.
    #[error("the token's signature is not valid")]
    Signature,
    /// A claim is missing, malformed, or not what was expected.
    #[error("a claim of the token is not as expected")]
    Claim,
    /// The token has expired.
    #[error("the token has expired")]
    Expired,
}

impl JwsError {
    /// The stable code, for logs and audit rows.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "alg",
            Self::UnknownKey => "kid",
            Self::Signature => "signature",
            Self::Claim => "claim",
            Self::Expired => "expired",
        }
    }
}

/// Verifies the signature of a token by one of `keys`, with one of the `accepted` algorithms, and
/// returns its claims, which are not checked yet: see [`Claims::check`].
///
/// A token without a key identifier is accepted if exactly one key has its algorithm.
///
/// # Errors
/// [`JwsError::Malformed`], [`JwsError::Algorithm`], [`JwsError::UnknownKey`] or
/// [`JwsError::Signature`].
pub fn verify(token: &str, keys: &KeySet, accepted: &[Algorithm]) -> Result<Claims, JwsError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(JwsError::Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwsError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(JwsError::Malformed)?;
    let header = Header::parse(&decoded(header)?)?;
    // A further dot is refused here, since it is no character of base64url.
    let payload = decoded(payload)?;
    let signature = decoded(signature)?;
    if !accepted.contains(&header.algorithm) {
        return Err(JwsError::Algorithm);
    }
    let key = keys.find(header.kid.as_deref(), header.algorithm)?;
    if !key.verifies(signed.as_bytes(), &signature, EcdsaForm::Fixed) {
        return Err(JwsError::Signature);
    }
    json::object(&payload)
        .map(Claims)
        .ok_or(JwsError::Malformed)
}

/// Decodes base64url in its one canonical form: no padding, no line breaks, no stray bits.
fn decoded(text: &str) -> Result<Vec<u8>, JwsError> {
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| JwsError::Malformed)
}

struct Header {
    algorithm: Algorithm,
    kid: Option<String>,
}

impl Header {
    fn parse(text: &[u8]) -> Result<Self, JwsError> {
        let members = json::object(text).ok_or(JwsError::Malformed)?;
        if REFUSED_MEMBERS
            .iter()
            .any(|name| members.contains_key(*name))
        {
            return Err(JwsError::Malformed);
        }
        // Other types, such as `at+jwt`, are of tokens with another purpose (RFC 8725 §3.11).
        match members.get("typ") {
            None => {}
            Some(Value::String(kind)) if kind.eq_ignore_ascii_case("JWT") => {}
            Some(_) => return Err(JwsError::Malformed),
        }
        let kid = match members.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= KID_BYTES_MAX => Some(kid.clone()),
            Some(_) => return Err(JwsError::Malformed),
        };
        let algorithm = members.get("alg").and_then(Value::as_str);
        let algorithm = algorithm.ok_or(JwsError::Malformed)?;
        let algorithm = algorithm_named(algorithm).ok_or(JwsError::Algorithm)?;
        Ok(Self { algorithm, kid })
    }
}

/// The algorithm with a name of RFC 7518, RFC 8037 or RFC 9864.
fn algorithm_named(name: &str) -> Option<Algorithm> {
    match name {
        "Ed25519" => Some(Algorithm::EdDsa),
        name => Algorithm::parse(name),
    }
}

/// The claims of a token whose signature was verified.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims(Map<String, Value>);

/// What the claims of a token must say.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The issuer (`iss`), equal byte for byte.
    pub issuer: &'a str,
    /// The audience (`aud`): the token may have others beside it.
    pub audience: &'a str,
    /// The present time.
    pub now: Timestamp,
    /// By how much the clocks of issuer and verifier may differ.
    pub leeway: Duration,
}

impl Claims {
    /// Checks `iss`, `aud` and `exp`, which must be there, and `nbf` and `iat` if they are there.
    ///
    /// # Errors
    /// [`JwsError::Expired`] for a past `exp`; [`JwsError::Claim`] otherwise.
    pub fn check(&self, expected: &Expected<'_>) -> Result<(), JwsError> {
        if self.text("iss") != Some(expected.issuer) {
            return Err(JwsError::Claim);
        }
        if !self.audiences()?.contains(&expected.audience) {
            return Err(JwsError::Claim);
        }
        let now = expected.now.seconds();
        let leeway = i64::try_from(expected.leeway.as_secs()).unwrap_or(i64::MAX);
        for name in ["nbf", "iat"] {
            let from = self.seconds(name)?;
            if from.is_some_and(|from| from > now.saturating_add(leeway)) {
                return Err(JwsError::Claim);
            }
        }
        let until = self.seconds("exp")?.ok_or(JwsError::Claim)?;
        if now > until.saturating_add(leeway) {
            return Err(JwsError::Expired);
        }
        Ok(())
    }

    /// A claim, whatever its type.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    /// A claim that is a text; `None` for one of another type.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// A claim that is a time, in whole seconds since the Unix epoch; `None` if it is missing.
    ///
    /// # Errors
    /// [`JwsError::Claim`] for a claim that is no whole number from 0 on.
    pub fn seconds(&self, name: &str) -> Result<Option<i64>, JwsError> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => {
                let seconds = value.as_i64().filter(|seconds| *seconds >= 0);
                seconds.map(Some).ok_or(JwsError::Claim)
            }
        }
    }

    /// The audiences: one text, or a list of texts.
    ///
    /// # Errors
    /// [`JwsError::Claim`] for a claim that is missing or has another form.
    pub fn audiences(&self) -> Result<Vec<&str>, JwsError> {
        match self.0.get("aud") {
            Some(Value::String(one)) => Ok(vec![one]),
            Some(Value::Array(several)) => {
                let texts: Option<Vec<&str>> = several.iter().map(Value::as_str).collect();
                texts.ok_or(JwsError::Claim)
            }
            _ => Err(JwsError::Claim),
        }
    }
}

#[cfg(test)]
mod tests;
