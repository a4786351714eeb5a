//! What the authenticator says about itself and a passkey (WebAuthn §6.1).

use super::{PasskeyError, RelyingParty, cbor, equal};

/// The flags.
const USER_PRESENT: u8 = 1;
const USER_VERIFIED: u8 = 1 << 2;
const BACKUP_ELIGIBLE: u8 = 1 << 3;
const BACKED_UP: u8 = 1 << 4;
const ATTESTED: u8 = 1 << 6;
const EXTENSIONS: u8 = 1 << 7;

/// The authenticator's data, of which the values of extensions are left out: none is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct AuthenticatorData<'a> {
    party_hash: &'a [u8],
    flags: u8,
    pub(super) sign_count: u32,
    pub(super) attested: Option<Attested<'a>>,
}

/// A passkey that was just made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Attested<'a> {
    pub(super) aaguid: [u8; 16],
    pub(super) credential_id: &'a [u8],
    /// In COSE.
    pub(super) public_key: &'a [u8],
}

impl<'a> AuthenticatorData<'a> {
    /// Reads the data, which must end where its parts end.
    ///
    /// # Errors
    /// [`PasskeyError::Malformed`].
    pub(super) fn parse(data: &'a [u8]) -> Result<Self, PasskeyError> {
        Self::read(data).ok_or(PasskeyError::Malformed)
    }

    fn read(data: &'a [u8]) -> Option<Self> {
        let (party_hash, rest) = data.split_at_checked(32)?;
        let (&flags, rest) = rest.split_first()?;
        let (sign_count, mut rest) = rest.split_first_chunk::<4>()?;
        let has = |flag: u8| flags & flag != 0;
        let attested = if has(ATTESTED) {
            let (attested, after) = Attested::read(rest)?;
            rest = after;
            Some(attested)
        } else {
            None
        };
        if has(EXTENSIONS) {
            let (extensions, after) = cbor::parse_first(rest)?;
            extensions.as_map()?;
            rest = after;
        }
        rest.is_empty().then_some(Self {
            party_hash,
            flags,
            sign_count: u32::from_be_bytes(*sign_count),
            attested,
        })
    }

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) const fn backup_eligible(&self) -> bool {
        self.has(BACKUP_ELIGIBLE)
    }

    pub(super) const fn backed_up(&self) -> bool {
        self.has(BACKED_UP)
    }

    /// Checks what registration and sign-in have in common.
    pub(super) fn check(&self, party: &RelyingParty) -> Result<(), PasskeyError> {
        if !equal(self.party_hash, &party.id_hash) {
            return Err(PasskeyError::RelyingParty);
        }
        if !self.has(USER_PRESENT) {
            return Err(PasskeyError::UserAbsent);
        }
        if !self.has(USER_VERIFIED) {
            return Err(PasskeyError::UserUnverified);
        }
        if self.backed_up() && !self.backup_eligible() {
            return Err(PasskeyError::BackupState);
        }
        Ok(())
    }
}

impl<'a> Attested<'a> {
    /// Reads the passkey, and returns what comes after it.
    fn read(data: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (aaguid, rest) = data.split_first_chunk::<16>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (credential_id, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        let (_, after) = cbor::parse_first(rest)?;
        let public_key = &rest[..rest.len() - after.len()];
        let attested = Self {
            aaguid: *aaguid,
            credential_id,
            public_key,
        };
        Some((attested, after))
    }
}
