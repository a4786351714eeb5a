//! Verifies deliveries, as a consumer does, by the rules of `docs/webhooks.md`.

use base64::Engine as _;
use hmac::Mac as _;
use ring::signature::{ED25519, KeyPair as _, UnparsedPublicKey};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::{LENIENT, PRIVATE, PUBLIC, pair_of};
use crate::seal::hmac_sha256;

/// The prefix of a shared secret.
const SHARED: &str = "whsec_";
/// Most digits of a time in Unix seconds that are accepted.
const TIME_DIGITS_MAX: usize = 12;
/// Fewest bytes of a shared secret (Standard Webhooks 1.0.0, "Signature scheme": 24 to 64).
const SHARED_BYTES_MIN: usize = 24;
/// The points of small order on edwards25519 by their y coordinates, in every encoding that fits
/// into 255 bits (RFC 8032 §5.1.2, and those with y + p, which it does not allow). With such a
/// public key, anybody can make a signature that is valid for one message in eight, or for all.
const SMALL_ORDER: [&str; 7] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
];

/// Why a delivery is refused. The list is closed; the samples and vectors use the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The delivery has no signature that this key could verify.
    #[error("no_signature")]
    NoSignature,
    /// A header is missing, or does not have the documented form.
    #[error("malformed")]
    Malformed,
    /// The delivery was signed longer ago than the tolerance.
    #[error("too_old")]
    TooOld,
    /// The time of signing is in the future by more than the tolerance.
    #[error("too_new")]
    TooNew,
    /// No signature matches this key and these bytes.
    #[error("no_match")]
    NoMatch,
    /// The key itself does not have the documented form.
    #[error("bad_secret")]
    BadSecret,
}

/// A key that verifies deliveries.
pub enum Verifier {
    /// A shared secret: its whole text, and the bytes that it encodes.
    Shared(SecretString, Zeroizing<Vec<u8>>),
    /// The public key of a key pair.
    Public(Vec<u8>),
}

impl Verifier {
    /// Reads a secret (`whsec_…`), a public key (`whpk_…`), or a private key (`whsk_…`), whose
    /// public key then verifies.
    ///
    /// # Errors
    /// [`Refused::BadSecret`] for another form, a secret of fewer than 24 bytes, or a public key of
    /// small order, for which anybody can sign.
    pub fn of(text: &SecretString) -> Result<Self, Refused> {
        let shown = text.expose_secret();
        let decode = |encoded: &str| LENIENT.decode(encoded).map_err(|_| Refused::BadSecret);
        if let Some(encoded) = shown.strip_prefix(SHARED) {
            let key = Zeroizing::new(decode(encoded)?);
            let long = key.len() >= SHARED_BYTES_MIN;
            return long
                .then(|| Self::Shared(text.clone(), key))
                .ok_or(Refused::BadSecret);
        }
        if shown.starts_with(PRIVATE) {
            let pair = pair_of(text).ok_or(Refused::BadSecret)?;
            return Ok(Self::Public(pair.public_key().as_ref().to_vec()));
        }
        let encoded = shown.strip_prefix(PUBLIC).ok_or(Refused::BadSecret)?;
        let key = decode(encoded)?;
        let fits = key.len() == ring::signature::ED25519_PUBLIC_KEY_LEN && !is_small_order(&key);
        fits.then_some(Self::Public(key)).ok_or(Refused::BadSecret)
    }

    /// Verifies a delivery. It must carry at least one scheme that this key can verify, and each
    /// such scheme must match. `header` returns a value by its lower-case name. `body` is the exact
    /// body. `now_s` is the present time in Unix seconds, and `tolerance_s` how far the time of
    /// signing may be from it.
    ///
    /// # Errors
    /// The first rule that the delivery breaks.
    pub fn verify<'a>(
        &self,
        header: impl Fn(&str) -> Option<&'a str>,
        body: &[u8],
        now_s: i64,
        tolerance_s: u32,
    ) -> Result<(), Refused> {
        let clock = Clock { now_s, tolerance_s };
        let own = header("x-stationmaster-signature").filter(|_| self.is_shared());
        let standard = ["webhook-id", "webhook-timestamp", "webhook-signature"].map(header);
        if own.is_none() && standard.iter().all(Option::is_none) {
            return Err(Refused::NoSignature);
        }
        if let Some(value) = own {
            self.stationmaster(value, body, &clock)?;
        }
        if standard.iter().any(Option::is_some) {
            let [Some(id), Some(time), Some(codes)] = standard else {
                return Err(Refused::Malformed);
            };
            self.standard((id, time, codes), body, &clock)?;
        }
        Ok(())
    }

    const fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(..))
    }

    /// Verifies `t=<unix>,v1=<hex>[,v1=<hex>…]`, whose key is the secret's whole text.
    fn stationmaster(&self, value: &str, body: &[u8], clock: &Clock) -> Result<(), Refused> {
        let Self::Shared(text, _) = self else {
            return Err(Refused::NoSignature);
        };
        let parts = || value.split(',');
        let mut times = parts().filter_map(|part| part.strip_prefix("t="));
        let (Some(time), None) = (times.next(), times.next()) else {
            return Err(Refused::Malformed);
        };
        let codes = parts().filter_map(|part| part.strip_prefix("v1="));
        let codes: Vec<_> = codes.map(|code| hex::decode(code).ok()).collect();
        let signed = [time.as_bytes(), b".", body];
        clock.check(time, codes.len())?;
        any_of(&codes, |code| {
            same_code(text.expose_secret().as_bytes(), &signed, code)
        })
    }

    /// Verifies `v1,<base64>` or `v1a,<base64>`, separated by spaces (Standard Webhooks 1.0.0).
    fn standard(
        &self,
        (id, time, codes): (&str, &str, &str),
        body: &[u8],
        clock: &Clock,
    ) -> Result<(), Refused> {
        let version = if self.is_shared() { "v1," } else { "v1a," };
        let codes = codes.split(' ').filter_map(|one| one.strip_prefix(version));
        let codes: Vec<_> = codes.map(|code| LENIENT.decode(code).ok()).collect();
        // Dots join the parts that are signed. With a dot in the identifier, the real time could be
        // read as part of the identifier, and the beginning of the body as the time.
        if id.contains('.') {
            return Err(Refused::Malformed);
        }
        let signed = [id.as_bytes(), b".", time.as_bytes(), b".", body];
        clock.check(time, codes.len())?;
        any_of(&codes, |code| match self {
            Self::Shared(_, key) => same_code(key, &signed, code),
            Self::Public(key) => UnparsedPublicKey::new(&ED25519, key)
                .verify(&signed.concat(), code)
                .is_ok(),
        })
    }
}

struct Clock {
    now_s: i64,
    tolerance_s: u32,
}

impl Clock {
    /// Checks the time of signing, and that there is a signature at all.
    fn check(&self, time: &str, codes: usize) -> Result<(), Refused> {
        let digits = (1..=TIME_DIGITS_MAX).contains(&time.len())
            && time.bytes().all(|byte| byte.is_ascii_digit());
        let time: i64 = match time.parse() {
            Ok(time) if digits && codes > 0 => time,
            _ => return Err(Refused::Malformed),
        };
        let tolerance = i64::from(self.tolerance_s);
        if time < self.now_s - tolerance {
            return Err(Refused::TooOld);
        }
        if time > self.now_s + tolerance {
            return Err(Refused::TooNew);
        }
        Ok(())
    }
}

/// Whether any signature matches: during a rotation there is one of the old secret and one of the
/// new.
fn any_of(codes: &[Option<Vec<u8>>], genuine: impl Fn(&[u8]) -> bool) -> Result<(), Refused> {
    let found = codes.iter().flatten().any(|code| genuine(code));
    found.then_some(()).ok_or(Refused::NoMatch)
}

/// Whether a public key is one of the eight points of small order, with either sign of x.
fn is_small_order(key: &[u8]) -> bool {
    let mut y = key.to_vec();
    if let Some(last) = y.last_mut() {
        *last &= 0x7f;
    }
    SMALL_ORDER.contains(&hex::encode(y).as_str())
}

/// Compares a code in constant time.
fn same_code(key: &[u8], parts: &[&[u8]], code: &[u8]) -> bool {
    let mut mac = hmac_sha256(key);
    for part in parts {
        mac.update(part);
    }
    mac.verify_slice(code).is_ok()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::signature::{generate_pair, standard, stationmaster, subcommand_secret};

    fn judge(key: &str, case: &Value, body: &[u8]) -> Result<(), Refused> {
        let headers = case["headers"].as_object().unwrap();
        let header = |name: &str| {
            let mut all = headers.iter();
            let found = all.find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.and_then(|(_, value)| value.as_str())
        };
        let now = case["now"].as_i64().unwrap();
        Verifier::of(&SecretString::from(key))?.verify(header, body, now, 300)
    }

    fn body_of(case: &Value) -> Vec<u8> {
        LENIENT
            .decode(case["body_base64"].as_str().unwrap())
            .unwrap()
    }

    #[test]
    fn agrees_with_the_vectors() {
        let text = include_str!("../../../docs/vectors/signatures.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let key = case["secret"].as_str().unwrap();
            let derived = subcommand_secret(&key.into());
            let of_call = case["subcommand"] == true;
            let key = if of_call {
                derived.expose_secret()
            } else {
                key
            };
            let found = judge(key, case, &body_of(case)).map_err(|refused| refused.to_string());
            let wanted = case["refused"].as_str();
            assert_eq!(found.err().as_deref(), wanted, "{}", case["name"]);
        }
    }

    #[test]
    fn agrees_with_the_vectors_of_pairs() {
        let text = include_str!("../../../docs/vectors/ed25519.json");
        let vectors: Value = serde_json::from_str(text).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let public = case["public_keys"][0].as_str().unwrap();
            let mut body = body_of(case);
            for key in [public, case["private_key"].as_str().unwrap()] {
                assert_eq!(judge(key, case, &body), Ok(()));
            }
            let stranger = generate_pair().1;
            assert_eq!(judge(&stranger, case, &body), Err(Refused::NoMatch));
            body.push(b'\n');
            assert_eq!(judge(public, case, &body), Err(Refused::NoMatch));
        }
    }

    #[test]
    fn a_public_key_judges_what_a_pair_signed_and_nothing_else() {
        let (private, public) = generate_pair();
        let shared = SecretString::from(format!("whsec_{}", "A".repeat(32)));
        let verifier = Verifier::of(&public.into()).unwrap();
        let own = stationmaster(std::slice::from_ref(&shared), 7, b"{}");
        let both = standard(&[shared.clone(), private], "evt", 7, b"{}");
        let header = |codes: &str, name: &str| match name {
            "x-stationmaster-signature" => Some(own.clone()),
            "webhook-id" => Some("evt".to_owned()),
            "webhook-timestamp" => Some("7".to_owned()),
            _ => Some(codes.to_owned()),
        };
        let judge = |codes: &str| {
            let all = [
                "x-stationmaster-signature",
                "webhook-id",
                "webhook-timestamp",
                "webhook-signature",
            ]
            .map(|name| (name, header(codes, name).unwrap()));
            let found = |name: &str| {
                let mut all = all.iter();
                all.find(|(known, _)| *known == name)
                    .map(|(_, value)| value.as_str())
            };
            verifier.verify(found, b"{}", 7, 300)
        };
        assert_eq!(judge(&both), Ok(()));
        let alone = standard(&[shared], "evt", 7, b"{}");
        assert_eq!(judge(&alone), Err(Refused::Malformed));
        let own_alone = |name: &str| (name == "x-stationmaster-signature").then_some("t=7,v1=00");
        let found = verifier.verify(own_alone, b"{}", 7, 300);
        assert_eq!(found, Err(Refused::NoSignature));
    }

    #[test]
    fn what_is_no_key_is_said_to_be_none() {
        for bad in ["", "whsec_?", "whpk_AAAA", "whsk_AAAA", "abc", "stm_sub_x"] {
            let found = Verifier::of(&SecretString::from(bad));
            assert_eq!(found.err(), Some(Refused::BadSecret), "{bad}");
        }
    }

    #[test]
    fn a_secret_has_at_least_24_bytes() {
        for (bytes, taken) in [(0, false), (1, false), (16, false), (23, false), (24, true)] {
            let text = LENIENT.encode(vec![7; bytes]);
            let found = Verifier::of(&format!("whsec_{text}").into());
            assert_eq!(found.is_ok(), taken, "{bytes}");
        }
    }

    #[test]
    fn a_key_that_anybody_can_sign_for_is_none() {
        for y in SMALL_ORDER {
            for sign in [0, 0x80] {
                let mut key = hex::decode(y).unwrap();
                key[31] |= sign;
                let found = Verifier::of(&format!("whpk_{}", LENIENT.encode(key)).into());
                assert_eq!(found.err(), Some(Refused::BadSecret), "{y}");
            }
        }
    }

    #[test]
    fn an_identifier_has_no_dot() {
        let secret = SecretString::from(format!("whsec_{}", "A".repeat(32)));
        let codes = standard(std::slice::from_ref(&secret), "call_1", 7, b"9.{}");
        let header = |name: &str| match name {
            "webhook-id" => Some("call_1.7"),
            "webhook-timestamp" => Some("9"),
            "webhook-signature" => Some(codes.as_str()),
            _ => None,
        };
        let found = Verifier::of(&secret).unwrap().verify(header, b"{}", 9, 300);
        assert_eq!(found, Err(Refused::Malformed));
    }
}
