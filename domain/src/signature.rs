//! Webhook signatures, in both schemes that every delivery carries.
//!
//! One secret serves both. `X-Stationmaster-Signature` is keyed with the secret's whole text,
//! `whsec_` included, which is what Stripe's libraries expect; Standard Webhooks 1.0.0 is keyed
//! with the decoded base64 after the prefix.

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose},
};
use hmac::Mac as _;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::seal::hmac_sha256;

/// Standard base64 that takes padding or none.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The value of `X-Stationmaster-Signature`: `t=<unix>,v1=<hex>`, one `v1` for each live secret.
///
/// `timestamp_s` is the attempt's time in whole seconds; `body` the exact bytes sent.
#[must_use]
pub fn stationmaster(secrets: &[SecretString], timestamp_s: i64, body: &[u8]) -> String {
    let mut out = format!("t={timestamp_s}");
    for secret in secrets {
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
/// secret, separated by spaces. A secret that is not base64 is keyed by its text.
#[must_use]
pub fn standard(secrets: &[SecretString], id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let signed: Vec<String> = secrets
        .iter()
        .map(|secret| {
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
    fn signs_once_for_each_live_secret() {
        let two = [published_secret(), SecretString::from("whsec_AAAA")];
        assert_eq!(stationmaster(&two, 1, b"x").matches(",v1=").count(), 2);
        assert_eq!(standard(&two, "evt", 1, b"x").split(' ').count(), 2);
    }
}
