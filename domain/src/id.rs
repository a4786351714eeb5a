//! Identifiers: a prefix that names the kind and a UUIDv7 in Crockford's base32 (TypeID 0.3).
//!
//! Only the canonical spelling parses. So a misspelt identifier gets the same answer as one that
//! does not exist.

use std::fmt;

use uuid::Uuid;

use crate::clock::Timestamp;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SUFFIX_LEN: usize = 26;

fn encode(id: Uuid) -> [u8; SUFFIX_LEN] {
    let mut rest = id.as_u128();
    let mut out = [0_u8; SUFFIX_LEN];
    for slot in out.iter_mut().rev() {
        *slot = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    out
}

fn decode(text: &str) -> Option<Uuid> {
    let bytes = text.as_bytes();
    // 26 characters hold 130 bits: the first may not exceed 7 (TypeID 0.3, "UUID encoding").
    if bytes.len() != SUFFIX_LEN || bytes[0] > b'7' {
        return None;
    }
    bytes
        .iter()
        .try_fold(0_u128, |acc, byte| {
            let digit = ALPHABET.iter().position(|c| c == byte)?;
            Some((acc << 5) | digit as u128)
        })
        .map(Uuid::from_u128)
}

/// A new UUIDv7 for `now` (RFC 9562 §5.7): 48 bits of milliseconds, then 74 random bits.
fn fresh(now: Timestamp) -> Uuid {
    let random: [u8; 10] = crate::random::bytes();
    let ms = u64::try_from(now.ms()).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
}

/// The trait of all identifier types.
pub trait Id: Copy + Eq + Ord + fmt::Display + Send + Sync + 'static {
    /// The text before the underscore.
    const PREFIX: &'static str;
    /// The UUID alone, for the store.
    fn uuid(self) -> Uuid;
    /// The identifier with a UUID from the store.
    fn from_uuid(id: Uuid) -> Self;
    /// A new identifier. One of a later millisecond sorts after those before.
    #[must_use]
    fn generate(now: Timestamp) -> Self {
        Self::from_uuid(fresh(now))
    }
    /// Parses the canonical spelling only; `None` for everything else.
    fn parse(text: &str) -> Option<Self> {
        let suffix = text.strip_prefix(Self::PREFIX)?.strip_prefix('_')?;
        decode(suffix).map(Self::from_uuid)
    }
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl Id for $name {
            const PREFIX: &'static str = $prefix;
            fn uuid(self) -> Uuid { self.0 }
            fn from_uuid(id: Uuid) -> Self { Self(id) }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Self::PREFIX)?;
                f.write_str("_")?;
                f.write_str(std::str::from_utf8(&encode(self.0)).map_err(|_| fmt::Error)?)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    )*};
}

ids! {
    /// A publisher, the unit of isolation.
    PublisherId = "pub";
    /// A token, which callers present to this service.
    TokenId = "tok";
    /// A secret, with which this service signs or authenticates its requests.
    SecretId = "sec";
    /// A pipeline.
    PipelineId = "pl";
    /// A run.
    RunId = "run";
    /// An event; also the `webhook-id` of its deliveries.
    EventId = "evt";
    /// A webhook endpoint.
    EndpointId = "ep";
    /// A delivery of one event to one endpoint.
    DeliveryId = "dlv";
    /// One HTTP try of a delivery.
    AttemptId = "att";
    /// A replay of events to an endpoint.
    ReplayId = "rpl";
    /// The public keys of an endpoint. Random, so that it reveals nothing and can't be guessed.
    KeySetId = "wks";
    /// An entry of an audit log.
    AuditId = "aud";
    /// One call of a subcommand; also its `webhook-id`.
    CallId = "call";
    /// A train.
    TrainId = "trn";
    /// An upstream credential.
    AccountId = "acc";
    /// A message about a train.
    NoticeId = "ntc";
    /// A person.
    UserId = "usr";
    /// A browser's sign-in.
    SessionId = "ses";
    /// An offer of membership.
    InvitationId = "inv";
    /// A person's passkey.
    PasskeyId = "pky";
    /// A mail.
    MailId = "mail";
}

/// The identifier of a token or a secret. Both kinds share one table and one API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CredentialId {
    /// `tok_…`
    Token(TokenId),
    /// `sec_…`
    Secret(SecretId),
}

impl CredentialId {
    /// Parses either form; `None` for everything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        TokenId::parse(text)
            .map(Self::Token)
            .or_else(|| SecretId::parse(text).map(Self::Secret))
    }

    /// The UUID alone, for the store.
    #[must_use]
    pub fn uuid(self) -> Uuid {
        match self {
            Self::Token(id) => id.uuid(),
            Self::Secret(id) => id.uuid(),
        }
    }
}

impl fmt::Display for CredentialId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => id.fmt(f),
            Self::Secret(id) => id.fmt(f),
        }
    }
}

impl From<CredentialId> for String {
    fn from(id: CredentialId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn matches_the_published_typeid_example() {
        let id: Uuid = "01890a5d-ac96-774b-bcce-b302099a8057".parse().unwrap();
        assert_eq!(
            RunId::from_uuid(id).to_string(),
            "run_01h455vb4pex5vsknk084sn02q"
        );
    }

    #[test]
    fn only_the_canonical_spelling_parses() {
        let good = "run_01h455vb4pex5vsknk084sn02q";
        assert!(RunId::parse(good).is_some());
        for bad in [
            "run_01H455VB4PEX5VSKNK084SN02Q",
            "run_81h455vb4pex5vsknk084sn02q",
            "run_01h455vb4pex5vsknk084sn02",
            "run_01h455vb4pex5vsknk084sn02qq",
            "run_01h455vb4pex5vsknk084sn0lq",
            "pub_01h455vb4pex5vsknk084sn02q",
            "01h455vb4pex5vsknk084sn02q",
            "run-01h455vb4pex5vsknk084sn02q",
            "",
        ] {
            assert!(RunId::parse(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_uuid_survives_the_round_trip(bits: u128) {
            let id = EventId::from_uuid(Uuid::from_u128(bits));
            prop_assert_eq!(EventId::parse(&id.to_string()), Some(id));
        }

        #[test]
        fn what_parses_prints_the_same(text in "run_[0-9a-z]{26}") {
            if let Some(id) = RunId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn later_identifiers_sort_later(a in 0_i64..4_000_000_000_000, gap in 1_i64..1_000_000) {
            let first = RunId::generate(Timestamp::from_ms(a));
            let second = RunId::generate(Timestamp::from_ms(a + gap));
            prop_assert!(first < second && first.to_string() < second.to_string());
        }
    }
}
