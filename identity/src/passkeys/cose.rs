//! Public keys of passkeys, in COSE (RFC 9052 §7, RFC 9053 §7, RFC 8230 §4).

use super::{PasskeyError, cbor};
use crate::public_key::{Algorithm, PublicKey};

/// The labels of a key's parameters.
const KIND: i64 = 1;
const ALGORITHM: i64 = 3;
const CURVE: i64 = -1;
const X: i64 = -2;
const Y: i64 = -3;
const MODULUS: i64 = -1;
const EXPONENT: i64 = -2;

/// Reads a key whose algorithm is one of those that were asked for.
///
/// # Errors
/// [`PasskeyError::Malformed`], [`PasskeyError::Algorithm`] or [`PasskeyError::PublicKey`].
pub(super) fn parse(text: &[u8]) -> Result<PublicKey, PasskeyError> {
    let key = cbor::parse(text).ok_or(PasskeyError::Malformed)?;
    let number = |label| key.labelled(label).and_then(cbor::Value::as_int);
    let bytes = |label| key.labelled(label).and_then(cbor::Value::as_bytes);
    let algorithm = number(ALGORITHM).and_then(Algorithm::of_cose);
    let algorithm = algorithm.ok_or(PasskeyError::Algorithm)?;
    // The kinds and curves of the COSE registry.
    let read = || match (algorithm, number(KIND)?) {
        (Algorithm::EdDsa, 1) if number(CURVE)? == 6 => PublicKey::ed25519(bytes(X)?),
        (Algorithm::Es256, 2) if number(CURVE)? == 1 => PublicKey::p256(bytes(X)?, bytes(Y)?),
        (Algorithm::Rs256, 3) => PublicKey::rsa(bytes(MODULUS)?, bytes(EXPONENT)?),
        _ => None,
    };
    read().ok_or(PasskeyError::PublicKey)
}
