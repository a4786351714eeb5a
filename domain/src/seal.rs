//! Sealing: authenticated encryption of secrets that must be readable again.
//!
//! XChaCha20-Poly1305 with a random 192-bit nonce (draft-irtf-cfrg-xchacha §2) and a data key per
//! owner. The data key is wrapped by a master key. The associated data binds owner, table, row
//! and column, so that a ciphertext can't be decrypted after it was moved elsewhere.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use uuid::Uuid;
use zeroize::{Zeroize as _, Zeroizing};

use crate::random;

/// The first byte of every sealed value: the version of the format.
const VERSION: u8 = 1;
const NONCE_LEN: usize = 24;
const KEY_LEN: usize = 32;
/// The bytes of an entry in a key file besides its identifier: a colon, the key, a comma.
const ENTRY_LEN: usize = 1 + KEY_LEN.div_ceil(3) * 4 + 1;

/// What a sealed value belongs to: the associated data. The value opens in this context alone.
#[derive(Clone, Copy, Debug)]
pub struct SealContext<'a> {
    /// The publisher, or nil for the operator.
    pub owner: Uuid,
    /// The table.
    pub table: &'static str,
    /// The key of the row, without the owner.
    pub row: &'a [u8],
    /// The column.
    pub column: &'static str,
}

impl SealContext<'_> {
    /// The associated data: length-prefixed parts, so that no two contexts give the same bytes.
    fn associated_data(&self) -> Vec<u8> {
        let mut out = b"stationmaster.seal.v1".to_vec();
        for part in [
            self.owner.as_bytes().as_slice(),
            self.table.as_bytes(),
            self.row,
            self.column.as_bytes(),
        ] {
            out.extend_from_slice(&(part.len() as u64).to_be_bytes());
            out.extend_from_slice(part);
        }
        out
    }
}

/// A sealed value does not open: wrong key, wrong context, or changed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a sealed value does not open with this key in this context")]
pub struct SealError;

/// A 256-bit key. It is wiped from memory when dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; KEY_LEN]>);

impl Key {
    /// Generates a random key.
    #[must_use]
    pub fn generate() -> Self {
        Self(Zeroizing::new(random::bytes()))
    }

    /// The key of 32 bytes that were derived.
    #[must_use]
    pub fn from_bytes(bytes: [u8; KEY_LEN]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    fn from_slice(bytes: &[u8]) -> Option<Self> {
        <[u8; KEY_LEN]>::try_from(bytes)
            .ok()
            .map(|key| Self(Zeroizing::new(key)))
    }

    /// Seals `plain` for `context`.
    ///
    /// # Panics
    /// Only if `plain` exceeds the cipher's limit of 256 GiB.
    #[must_use]
    pub fn seal(&self, context: &SealContext<'_>, plain: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = random::bytes();
        let aad = context.associated_data();
        let cipher = XChaCha20Poly1305::new((&*self.0).into());
        let text = cipher
            .encrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: plain,
                    aad: &aad,
                },
            )
            .expect("the plain text is far below the cipher's limit");
        let mut out = Vec::with_capacity(1 + NONCE_LEN + text.len());
        out.push(VERSION);
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&text);
        out
    }

    /// Opens what [`Key::seal`] made for the same context.
    ///
    /// # Errors
    /// [`SealError`] for any other key, context or bytes.
    pub fn open(
        &self,
        context: &SealContext<'_>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (version, rest) = sealed.split_first().ok_or(SealError)?;
        if *version != VERSION || rest.len() < NONCE_LEN {
            return Err(SealError);
        }
        let (nonce, text) = rest.split_at(NONCE_LEN);
        let nonce = <[u8; NONCE_LEN]>::try_from(nonce).map_err(|_| SealError)?;
        let aad = context.associated_data();
        XChaCha20Poly1305::new((&*self.0).into())
            .decrypt(
                &XNonce::from(nonce),
                Payload {
                    msg: text,
                    aad: &aad,
                },
            )
            .map(Zeroizing::new)
            .map_err(|_| SealError)
    }

    /// HMAC-SHA256 of length-prefixed `parts` under this key.
    #[must_use]
    pub fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = hmac_sha256(&*self.0);
        for part in parts {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

pub(crate) fn hmac_sha256(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length")
}

/// The master keys. Each can unwrap data keys; new ones are wrapped by the first.
#[derive(Clone, Debug)]
pub struct MasterKeys(Vec<(String, Key)>);

/// The text that holds master keys is not of the form `id:base64[,id:base64…]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// The text has no key.
    #[error("no master key is given")]
    Missing,
    /// The entry of this number has no `id:`, or an identifier outside `[A-Za-z0-9_-]{1,64}`.
    #[error("master key {0} needs the form id:base64, the id 1 to 64 of A-Z a-z 0-9 _ -")]
    Form(usize),
    /// The key of this number is not 32 bytes of base64.
    #[error("master key {0} is not 32 bytes of base64")]
    Length(usize),
    /// The entry of this number has the identifier of an earlier one.
    #[error("master key {0} has the id of an earlier key")]
    Duplicate(usize),
}

impl MasterKeys {
    /// Parses `id:base64,…`.
    ///
    /// # Errors
    /// [`MasterKeyError`] with the number of the wrong entry, counted from 1; never its content.
    pub fn parse(text: &str) -> Result<Self, MasterKeyError> {
        let mut keys: Vec<(String, Key)> = Vec::new();
        let entries = text
            .trim()
            .split(',')
            .map(str::trim)
            .filter(|e| !e.is_empty());
        for (at, entry) in entries.enumerate().map(|(at, e)| (at + 1, e)) {
            let (id, encoded) = entry.split_once(':').ok_or(MasterKeyError::Form(at))?;
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
            if id.is_empty() || id.len() > 64 || !id.bytes().all(plain) {
                return Err(MasterKeyError::Form(at));
            }
            if keys.iter().any(|(known, _)| known == id) {
                return Err(MasterKeyError::Duplicate(at));
            }
            let mut bytes = STANDARD
                .decode(encoded)
                .map_err(|_| MasterKeyError::Length(at))?;
            let key = Key::from_slice(&bytes).ok_or(MasterKeyError::Length(at));
            bytes.zeroize();
            keys.push((id.to_owned(), key?));
        }
        if keys.is_empty() {
            Err(MasterKeyError::Missing)
        } else {
            Ok(Self(keys))
        }
    }

    /// Generates a master key, and returns its text for a key file.
    #[must_use]
    pub fn generate_text(id: &str) -> Zeroizing<String> {
        let mut bytes: [u8; KEY_LEN] = random::bytes();
        let text = Zeroizing::new(format!("{id}:{}", STANDARD.encode(bytes)));
        bytes.zeroize();
        text
    }

    /// All keys as text that [`MasterKeys::parse`] reads, in their order.
    #[must_use]
    pub fn text(&self) -> Zeroizing<String> {
        // Allocated at its final size: a growing string leaves copies in memory that are not wiped.
        let size = self.0.iter().map(|(id, _)| id.len() + ENTRY_LEN).sum();
        let mut text = Zeroizing::new(String::with_capacity(size));
        for (id, key) in &self.0 {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(id);
            text.push(':');
            text.push_str(&Zeroizing::new(STANDARD.encode(key.0.as_slice())));
        }
        text
    }

    /// The identifiers of the keys, in their order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(id, _)| id.as_str())
    }

    /// The identifier of the first key.
    #[must_use]
    pub fn first_id(&self) -> &str {
        &self.0[0].0
    }

    /// Whether there is a key with this identifier.
    #[must_use]
    pub fn knows(&self, id: &str) -> bool {
        self.ids().any(|known| known == id)
    }

    /// The same keys with a new random key in front.
    ///
    /// # Errors
    /// [`MasterKeyError::Duplicate`] if a key has this identifier already, [`MasterKeyError::Form`]
    /// if the identifier is malformed.
    pub fn with_fresh_first(&self, id: &str) -> Result<Self, MasterKeyError> {
        if self.knows(id) {
            return Err(MasterKeyError::Duplicate(1));
        }
        let mut keys = Self::parse(&Self::generate_text(id))?;
        keys.0.extend(self.0.iter().cloned());
        Ok(keys)
    }

    /// The same keys without the one with this identifier; `None` if it is the first, or there is
    /// none.
    #[must_use]
    pub fn without(&self, id: &str) -> Option<Self> {
        if !self.knows(id) || self.first_id() == id {
            return None;
        }
        let others = self.0.iter().filter(|(known, _)| known != id);
        Some(Self(others.cloned().collect()))
    }

    /// These keys, and behind them those of `others` with new identifiers. A known key is never
    /// replaced, because the data keys that it has wrapped must still open.
    #[must_use]
    pub fn and(&self, others: &Self) -> Self {
        let mut keys = self.clone();
        for (id, key) in &others.0 {
            if !keys.knows(id) {
                keys.0.push((id.clone(), key.clone()));
            }
        }
        keys
    }

    fn find(&self, id: &str) -> Result<&Key, SealError> {
        let found = self.0.iter().find(|(known, _)| known == id);
        found.map(|(_, key)| key).ok_or(SealError)
    }

    /// Wraps `key` for `context` with the master key of this identifier.
    ///
    /// # Errors
    /// [`SealError`] if there is no such master key.
    pub fn wrap(
        &self,
        id: &str,
        context: &SealContext<'_>,
        key: &Key,
    ) -> Result<Vec<u8>, SealError> {
        Ok(self.find(id)?.seal(context, &*key.0))
    }

    /// Unwraps a data key with the master key of this identifier.
    ///
    /// # Errors
    /// [`SealError`] if there is no such master key, or the data key does not open with it.
    pub fn unwrap(
        &self,
        id: &str,
        context: &SealContext<'_>,
        wrapped: &[u8],
    ) -> Result<Key, SealError> {
        Key::from_slice(&self.find(id)?.open(context, wrapped)?).ok_or(SealError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context(row: &[u8]) -> SealContext<'_> {
        SealContext {
            owner: Uuid::from_u128(7),
            table: "credentials",
            row,
            column: "sealed",
        }
    }

    proptest! {
        #[test]
        fn opens_where_it_was_sealed_and_nowhere_else(plain: Vec<u8>, a: [u8; 16], b: [u8; 16]) {
            prop_assume!(a != b);
            let key = Key::generate();
            let sealed = key.seal(&context(&a), &plain);
            prop_assert_eq!(&*key.open(&context(&a), &sealed).unwrap(), &plain);
            prop_assert!(key.open(&context(&b), &sealed).is_err());
            let other_owner = SealContext { owner: Uuid::from_u128(8), ..context(&a) };
            prop_assert!(key.open(&other_owner, &sealed).is_err());
            let other_column = SealContext { column: "other", ..context(&a) };
            prop_assert!(key.open(&other_column, &sealed).is_err());
            prop_assert!(Key::generate().open(&context(&a), &sealed).is_err());
        }

        #[test]
        fn a_changed_byte_does_not_open(plain: Vec<u8>, at: prop::sample::Index, flip in 1_u8..) {
            let key = Key::generate();
            let mut sealed = key.seal(&context(b"row"), &plain);
            let at = at.index(sealed.len());
            sealed[at] ^= flip;
            prop_assert!(key.open(&context(b"row"), &sealed).is_err());
        }

        #[test]
        fn arbitrary_envelopes_and_key_texts_never_panic(bytes: Vec<u8>, text in ".{0,100}") {
            let _ = Key::generate().open(&context(b"row"), &bytes);
            let _ = MasterKeys::parse(&text);
        }
    }

    fn same(a: &Key, b: &Key) -> bool {
        a.mac(&[b"x"]) == b.mac(&[b"x"])
    }

    #[test]
    fn each_master_key_opens_what_it_wrapped_and_no_other_does() {
        let old = MasterKeys::parse(&MasterKeys::generate_text("2025")).unwrap();
        let both = old.with_fresh_first("2026").unwrap();
        assert_eq!(both.ids().collect::<Vec<_>>(), ["2026", "2025"]);
        assert_eq!(both.first_id(), "2026");
        let key = Key::generate();
        let wrapped = old.wrap("2025", &context(b"k"), &key).unwrap();
        let again = both.unwrap("2025", &context(b"k"), &wrapped).unwrap();
        assert!(same(&key, &again));
        assert!(both.unwrap("2026", &context(b"k"), &wrapped).is_err());
        let only_new = both.without("2025").unwrap();
        assert!(only_new.unwrap("2025", &context(b"k"), &wrapped).is_err());
        assert!(old.wrap("2026", &context(b"k"), &key).is_err());
    }

    #[test]
    fn keys_are_written_as_they_are_read() {
        let keys = MasterKeys::parse(&MasterKeys::generate_text("a")).unwrap();
        let keys = keys.with_fresh_first("b").unwrap();
        let text = keys.text();
        assert!(text.len() <= text.capacity() && text.starts_with("b:"));
        let again = MasterKeys::parse(&text).unwrap();
        assert_eq!(*again.text(), *text);
        assert!(again.ids().eq(keys.ids()));
    }

    #[test]
    fn the_first_key_and_unknown_ones_are_not_taken_out() {
        let keys = MasterKeys::parse(&MasterKeys::generate_text("a")).unwrap();
        assert!(keys.without("a").is_none() && keys.without("b").is_none());
        let twice = keys.with_fresh_first("a").unwrap_err();
        assert_eq!(twice, MasterKeyError::Duplicate(1));
        let odd = keys.with_fresh_first("a b").unwrap_err();
        assert_eq!(odd, MasterKeyError::Form(1));
    }

    #[test]
    fn keys_that_are_learnt_replace_none() {
        let ours = MasterKeys::parse(&MasterKeys::generate_text("a")).unwrap();
        let theirs = MasterKeys::parse(&MasterKeys::generate_text("a")).unwrap();
        let theirs = theirs.with_fresh_first("b").unwrap();
        let all = ours.and(&theirs);
        assert_eq!(all.ids().collect::<Vec<_>>(), ["a", "b"]);
        let wrapped = ours.wrap("a", &context(b"k"), &Key::generate()).unwrap();
        assert!(all.unwrap("a", &context(b"k"), &wrapped).is_ok());
    }

    #[test]
    fn key_texts_are_refused_with_the_entry_at_fault() {
        let good = MasterKeys::generate_text("a");
        assert_eq!(MasterKeys::parse("").unwrap_err(), MasterKeyError::Missing);
        assert_eq!(
            MasterKeys::parse("abc").unwrap_err(),
            MasterKeyError::Form(1)
        );
        assert_eq!(
            MasterKeys::parse("a:AAAA").unwrap_err(),
            MasterKeyError::Length(1)
        );
        let twice = format!("{},{}", *good, *good);
        assert_eq!(
            MasterKeys::parse(&twice).unwrap_err(),
            MasterKeyError::Duplicate(2)
        );
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", Key::generate()), "Key(…)");
    }
}
