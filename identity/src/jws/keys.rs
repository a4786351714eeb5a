//! Sets of public keys, as issuers publish them (RFC 7517).

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{JwsError, KID_BYTES_MAX, algorithm_named};
use crate::{
    json,
    public_key::{Algorithm, PublicKey},
};

/// Most keys of a set that are used.
const KEYS_MAX: usize = 100;

/// The usable keys of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet(Vec<Jwk>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Jwk {
    kid: Option<String>,
    key: PublicKey,
}

impl KeySet {
    /// Reads the JSON of a key set. Keys that are not for signatures, of other kinds, malformed, or
    /// weak are left out, and so are those that contain their private part. The caller limits the
    /// length.
    ///
    /// # Errors
    /// [`JwsError::Malformed`] unless the text is an object with a list of keys.
    pub fn parse(text: &[u8]) -> Result<Self, JwsError> {
        let members = json::object(text).ok_or(JwsError::Malformed)?;
        let Some(Value::Array(keys)) = members.get("keys") else {
            return Err(JwsError::Malformed);
        };
        let usable = keys.iter().filter_map(|key| Jwk::read(key.as_object()?));
        Ok(Self(usable.take(KEYS_MAX).collect()))
    }

    /// Whether no key is usable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key for a token: the first of this identifier and algorithm. Without an identifier, the
    /// only key of the algorithm.
    pub(super) fn find(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<&PublicKey, JwsError> {
        let named = |jwk: &&Jwk| kid.is_none() || jwk.kid.as_deref() == kid;
        let mut fitting = self
            .0
            .iter()
            .filter(named)
            .filter(|jwk| jwk.key.algorithm() == algorithm);
        match (fitting.next(), fitting.next()) {
            (Some(jwk), None) => Ok(&jwk.key),
            (Some(jwk), Some(_)) if kid.is_some() => Ok(&jwk.key),
            (None, _) if kid.is_some() && self.0.iter().any(|jwk| named(&jwk)) => {
                Err(JwsError::Algorithm)
            }
            _ => Err(JwsError::UnknownKey),
        }
    }
}

impl Jwk {
    fn read(members: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| members.get(name).and_then(Value::as_str);
        let number = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        if members.contains_key("d") || members.get("use").is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        if let Some(uses) = members.get("key_ops") {
            uses.as_array()?.iter().find(|one| *one == "verify")?;
        }
        let key = match (text("kty")?, text("crv")) {
            ("OKP", Some("Ed25519")) => PublicKey::ed25519(&number("x")?),
            ("EC", Some("P-256")) => PublicKey::p256(&number("x")?, &number("y")?),
            ("RSA", None) => PublicKey::rsa(&number("n")?, &number("e")?),
            _ => None,
        }?;
        if let Some(algorithm) = members.get("alg") {
            let algorithm = algorithm_named(algorithm.as_str()?)?;
            (algorithm == key.algorithm()).then_some(())?;
        }
        let kid = match members.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str().filter(|kid| kid.len() <= KID_BYTES_MAX)?),
        };
        Some(Self {
            kid: kid.map(str::to_owned),
            key,
        })
    }
}
