//! Webhook signatures, in both schemes that a delivery carries.
//!
//! One secret serves both. The key of `X-Stationmaster-Signature` is the secret's whole text with
//! `whsec_`, as Stripe's libraries expect it. The key of Standard Webhooks 1.0.0 is the decoded
//! base64 after the prefix.
//!
//! Calls of subcommands are signed by a secret of their own ([`subcommand_secret`]).
//!
//! An endpoint may have a key pair instead (`whsk_`, `whpk_`: Ed25519, RFC 8032). Then a delivery
//! carries only Standard Webhooks' `v1a`, which a receiver can verify but not create.

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose},
};
use hmac::Mac as _;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use ring::signature::{Ed25519KeyPair, KeyPair as _};

use crate::words;
use crate::{random, seal::hmac_sha256};

mod verify;

pub use verify::{Refused, Verifier};

/// The prefixes of private and of public keys.
const PRIVATE: &str = "whsk_";
const PUBLIC: &str = "whpk_";

words! {
    /// The kind of signature of an endpoint's deliveries.
    #[derive(Default)]
    pub enum Signing {
        /// By a secret that the receiver has, too.
        #[default]
        Hmac = "hmac",
        /// By a private key; the receiver has the public one.
        Ed25519 = "ed25519",
    }
}

/// Whether a secret's text is a private key.
#[must_use]
pub fn is_private_key(secret: &SecretString) -> bool {
    secret.expose_secret().starts_with(PRIVATE)
}

fn pair_of(secret: &SecretString) -> Option<Ed25519KeyPair> {
    let encoded = secret.expose_secret().strip_prefix(PRIVATE)?;
    let seed = Zeroizing::new(LENIENT.decode(encoded).ok()?);
    Ed25519KeyPair::from_seed_unchecked(&seed).ok()
}

/// Generates a key pair: the private key (`whsk_` and the base64 of the 32 bytes of RFC 8032
/// §5.1.5), and the public key (`whpk_` and the base64 of its 32 bytes).
#[must_use]
pub fn generate_pair() -> (SecretString, String) {
    let seed = Zeroizing::new(random::bytes::<32>());
    let encode = |bytes: &[u8]| general_purpose::STANDARD.encode(bytes);
    let private = SecretString::from(format!("{PRIVATE}{}", encode(&*seed)));
    let public = pair_of(&private).map_or_else(String::new, |pair| {
        format!("{PUBLIC}{}", encode(pair.public_key().as_ref()))
    });
    (private, public)
}

/// Standard base64 with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The value of `X-Stationmaster-Signature`: `t=<unix>,v1=<hex>`, one `v1` for each live secret.
/// Private keys can't create it, so at least one other secret is needed.
///
/// `timestamp_s` is the attempt's time in whole seconds; `body` the exact bytes sent.
#[must_use]
pub fn stationmaster(secrets: &[SecretString], timestamp_s: i64, body: &[u8]) -> String {
    let mut out = format!("t={timestamp_s}");
    for secret in secrets.iter().filter(|secret| !is_private_key(secret)) {
        let mut mac = hmac_sha256(secret.expose_secret().as_bytes());
        mac.update(timestamp_s.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        out.push_str(",v1=");
        out.push_str(&hex::encode(mac.finalize().into_bytes()));
    }
    out
}

/// The value of `webhook-signature` (Standard Webhooks 1.0.0): `v1,<base64>` for each live
/// secret, or `v1a,<base64>` for a private key, separated by spaces. If a secret is not base64, the
/// key is its text.
#[must_use]
pub fn standard(secrets: &[SecretString], id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let signed: Vec<String> = secrets
        .iter()
        .map(|secret| {
            if let Some(pair) = pair_of(secret) {
                let signed = [format!("{id}.{timestamp_s}.").as_bytes(), body].concat();
                let code = general_purpose::STANDARD.encode(pair.sign(&signed));
                return format!("v1a,{code}");
            }
            let text = secret.expose_secret();
            let encoded = text.strip_prefix("whsec_").unwrap_or(text);
            let key = Zeroizing::new(
                LENIENT
                    .decode(encoded)
                    .unwrap_or_else(|_| text.as_bytes().to_vec()),
            );
            let mut mac = hmac_sha256(&key);
            mac.update(id.as_bytes());
            mac.update(b".");
            mac.update(timestamp_s.to_string().as_bytes());
            mac.update(b".");
            mac.update(body);
            let code = general_purpose::STANDARD.encode(mac.finalize().into_bytes());
            format!("v1,{code}")
        })
        .collect();
    signed.join(" ")
}

/// The secret that signs calls of subcommands, derived from one that signs webhooks:
/// `whsec_` and the base64 of HMAC-SHA256 over `stationmaster.subcommand.v1`, keyed by the
/// secret's whole text.
///
/// A runner chooses the body of a call. If calls were signed by the webhook secret, a runner could
/// get a signature for any body, and send it as a webhook.
#[must_use]
pub fn subcommand_secret(webhook_secret: &SecretString) -> SecretString {
    let mut mac = hmac_sha256(webhook_secret.expose_secret().as_bytes());
    mac.update(b"stationmaster.subcommand.v1");
    let key = Zeroizing::new(mac.finalize().into_bytes().to_vec());
    SecretString::from(format!("whsec_{}", general_purpose::STANDARD.encode(&*key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published_secret() -> SecretString {
        SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    }

    #[test]
    fn agrees_with_the_published_standard_webhooks_vector() {
        let code = standard(
            &[published_secret()],
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(code, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn agrees_with_a_published_key_pair() {
        // RFC 8032 §7.1, test 1.
        let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
        let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let private = general_purpose::STANDARD.encode(hex::decode(seed).unwrap());
        let pair = pair_of(&SecretString::from(format!("{PRIVATE}{private}"))).unwrap();
        assert_eq!(hex::encode(pair.public_key().as_ref()), public);
        let code = hex::encode(pair.sign(b""));
        assert!(code.starts_with("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e0652249"));
    }

    #[test]
    fn agrees_with_the_vectors_of_pairs() {
        let text = include_str!("../../docs/vectors/ed25519.json");
        let vectors: serde_json::Value = serde_json::from_str(text).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let key = SecretString::from(text(&case["private_key"]));
            let body = LENIENT.decode(text(&case["body_base64"])).unwrap();
            let (id, at) = (
                text(&case["headers"]["webhook-id"]),
                case["now"].as_i64().unwrap(),
            );
            let signed = standard(&[key], &id, at, &body);
            assert_eq!(signed, text(&case["headers"]["webhook-signature"]));
        }
    }

    #[test]
    fn a_private_key_signs_for_whoever_has_the_public_one() {
        let (private, public) = generate_pair();
        assert!(is_private_key(&private) && public.starts_with(PUBLIC));
        let one = std::slice::from_ref(&private);
        let header = standard(one, "evt", 7, b"{}");
        let code = LENIENT
            .decode(header.strip_prefix("v1a,").unwrap())
            .unwrap();
        let key = LENIENT
            .decode(public.strip_prefix(PUBLIC).unwrap())
            .unwrap();
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key);
        assert!(key.verify(b"evt.7.{}", &code).is_ok());
        assert!(key.verify(b"evt.8.{}", &code).is_err());
        assert_eq!(stationmaster(one, 7, b"{}"), "t=7");
    }

    #[test]
    fn calls_are_signed_by_a_secret_of_their_own() {
        let derived = subcommand_secret(&published_secret());
        // printf stationmaster.subcommand.v1 | openssl dgst -sha256 -hmac SECRET -binary | base64
        assert_eq!(
            derived.expose_secret(),
            "whsec_+vS5gDSiEXaa38N3lFmdJcHbDvk0zb40YeNVVEjB5o4="
        );
        assert!(Verifier::of(&derived).is_ok());
    }

    #[test]
    fn signs_once_for_each_live_secret() {
        let two = [published_secret(), SecretString::from("whsec_AAAA")];
        assert_eq!(stationmaster(&two, 1, b"x").matches(",v1=").count(), 2);
        assert_eq!(standard(&two, "evt", 1, b"x").split(' ').count(), 2);
    }
}
