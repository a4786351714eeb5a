//! Tokens: bearer credentials that callers present. Only their SHA-256 is stored.
//!
//! Form: `<prefix>_<43 base64url characters = 32 random bytes><6 base62 characters>`, where the
//! last six are the CRC-32 of everything before them. With the checksum, malformed tokens are
//! refused without a query, and a scanner for leaked credentials can check a find offline. The
//! checksum does not protect against forgery; the 256 random bits do.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::random;

/// The longest bearer that is hashed, in bytes. A longer one is refused without hashing.
pub const MAX_BEARER_LEN: usize = 512;
/// The shortest bootstrap or legacy token that an operator may choose, in bytes.
pub const MIN_FOREIGN_LEN: usize = 32;

const RANDOM_CHARS: usize = 43;
const CHECK_CHARS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The purpose of a generated bearer, which its prefix names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prefix {
    /// A publisher's admin token.
    Admin,
    /// A publisher's runner token.
    Runner,
    /// The operator's bootstrap token, if this program generates it.
    Boot,
    /// A subcommand bearer: a secret of the same form, which this service presents.
    SubcommandBearer,
    /// The claim token that a runner presents to prove that it holds a run.
    Claim,
    /// A train's token, which its clients present to an AI gateway.
    Train,
    /// A session: what a browser's cookie holds.
    Session,
    /// A single-use token: what a mailed link holds.
    Link,
    /// An invitation: what its mailed link holds.
    Invitation,
}

impl Prefix {
    const ALL: [Self; 9] = [
        Self::Admin,
        Self::Runner,
        Self::Boot,
        Self::SubcommandBearer,
        Self::Claim,
        Self::Train,
        Self::Session,
        Self::Link,
        Self::Invitation,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Admin => "stm_admin_",
            Self::Runner => "stm_runner_",
            Self::Boot => "stm_boot_",
            Self::SubcommandBearer => "stm_sub_",
            Self::Claim => "stm_claim_",
            Self::Train => "ptk_",
            Self::Session => "stm_session_",
            Self::Link => "stm_link_",
            Self::Invitation => "stm_invite_",
        }
    }
}

fn checksum(text: &str) -> [u8; CHECK_CHARS] {
    let mut rest = crc32fast::hash(text.as_bytes());
    let mut out = [0_u8; CHECK_CHARS];
    for slot in out.iter_mut().rev() {
        *slot = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    out
}

/// Generates a bearer from 32 random bytes.
#[must_use]
pub fn generate(prefix: Prefix) -> SecretString {
    let mut text = String::with_capacity(64);
    text.push_str(prefix.text());
    URL_SAFE_NO_PAD.encode_string(random::bytes::<32>(), &mut text);
    let check = checksum(&text);
    text.extend(check.iter().map(|b| char::from(*b)));
    SecretString::from(text)
}

/// The purpose of a bearer; `None` if the text does not have the form above or the checksum is
/// wrong.
#[must_use]
pub fn recognise(text: &str) -> Option<Prefix> {
    let prefix = Prefix::ALL
        .into_iter()
        .find(|p| text.starts_with(p.text()))?;
    let rest = &text.as_bytes()[prefix.text().len()..];
    if rest.len() != RANDOM_CHARS + CHECK_CHARS || !text.is_ascii() {
        return None;
    }
    let (body, check) = text.split_at(text.len() - CHECK_CHARS);
    let canonical = URL_SAFE_NO_PAD.decode(&body[prefix.text().len()..]).is_ok();
    (canonical && checksum(body) == check.as_bytes()).then_some(prefix)
}

/// The SHA-256 of a whole bearer, the only form in which one is stored or compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Hashes a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// Hashes a secret text.
    #[must_use]
    pub fn of_secret(text: &SecretString) -> Self {
        Self::of(text.expose_secret())
    }

    /// The hash from its stored bytes; `None` unless there are 32.
    #[must_use]
    pub fn from_stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// The last four characters, so that people can tell credentials apart.
#[must_use]
pub fn last_four(text: &str) -> String {
    let start = text.char_indices().rev().nth(3).map_or(0, |(at, _)| at);
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn generated_bearers_are_recognised_and_differ() {
        for prefix in Prefix::ALL {
            let one = generate(prefix);
            assert_eq!(recognise(one.expose_secret()), Some(prefix));
            assert_ne!(one.expose_secret(), generate(prefix).expose_secret());
        }
    }

    #[test]
    fn the_form_is_fixed() {
        // Computed with Python's zlib.crc32, so that scanners can rely on the form.
        let body = format!("stm_admin_{}", "A".repeat(43));
        assert_eq!(recognise(&format!("{body}27ivWu")), Some(Prefix::Admin));
        assert_eq!(recognise(&format!("{body}000000")), None);
    }

    proptest! {
        #[test]
        fn any_single_changed_character_is_refused(at in 0_usize..59, to in "[A-Za-z0-9_-]") {
            let token = generate(Prefix::Admin);
            let mut text = token.expose_secret().to_owned();
            let at = at.min(text.len() - 1);
            prop_assume!(text[at..=at] != to);
            text.replace_range(at..=at, &to);
            prop_assert_eq!(recognise(&text), None);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,80}") {
            let _ = recognise(&text);
            let _ = last_four(&text);
        }
    }
}
