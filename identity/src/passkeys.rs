//! Passkeys: WebAuthn as a relying party, for registration and for sign-in.
//!
//! Plain data in, plain data out: the caller keeps challenges and passkeys. A challenge must be
//! used once, and only by the browser that it was made for.
//!
//! Options ask for no attestation. A browser may still send a statement of any format, for example
//! that of a key about itself (WebAuthn §5.1.3). It is accepted and not read: nothing that it says
//! is trusted, so a passkey with one is worth as much as a passkey without. For the same reason
//! [`NewPasskey::aaguid`], the model of the authenticator, is a hint for names in lists only.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use url::{Host, Url};

use crate::public_key::{Algorithm, EcdsaForm};

use authenticator_data::AuthenticatorData;
use client_data::Ceremony;

pub use options::{
    Authenticators, Choice, CreationOptions, Descriptor, Owner, Parameter, Party, RequestOptions,
    User,
};
pub use response::{
    AssertionAnswer, AssertionResponse, RegistrationAnswer, RegistrationResponse, Transport,
};

mod authenticator_data;
mod cbor;
mod client_data;
mod cose;
mod options;
mod response;

/// The random text that a browser has the authenticator sign: `domain::random::bytes()`.
pub type Challenge = [u8; 32];

/// The longest and the shortest identifier of a passkey, in bytes (WebAuthn §4).
pub const CREDENTIAL_ID_LEN_MAX: usize = 1023;
const CREDENTIAL_ID_LEN_MIN: usize = 16;

/// Why a passkey, or a sign-in by one, is refused. The list is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum PasskeyError {
    /// The answer can't be read.
    #[error("the answer is malformed")]
    Malformed,
    /// The answer is one of a registration instead of a sign-in, or the other way round.
    #[error("the answer belongs to another kind of request")]
    Ceremony,
    /// The answer is to another challenge.
    #[error("the answer belongs to another challenge")]
    Challenge,
    /// The browser was at another origin.
    #[error("the answer comes from another origin")]
    Origin,
    /// The browser was asked by a page inside a page of another origin.
    #[error("the answer comes from a page inside another one")]
    CrossOrigin,
    /// The passkey is for another site.
    #[error("the passkey belongs to another site")]
    RelyingParty,
    /// Nobody touched the authenticator.
    #[error("the authenticator saw nobody")]
    UserAbsent,
    /// The authenticator did not check who touches it.
    #[error("the authenticator did not check the person")]
    UserUnverified,
    /// The authenticator says that the passkey is backed up and that it can't be.
    #[error("the authenticator contradicts itself about backups")]
    BackupState,
    /// The identifier of the passkey is too short or too long.
    #[error("the passkey's identifier has a length that is not accepted")]
    CredentialIdLength,
    /// The identifiers in the answer differ, or the answer comes from another passkey.
    #[error("the answer comes from another passkey")]
    CredentialId,
    /// The key has an algorithm that was not asked for.
    #[error("the passkey's algorithm is not accepted")]
    Algorithm,
    /// The public key is malformed, weak, or of another kind than its algorithm.
    #[error("the passkey's public key is not accepted")]
    PublicKey,
    /// The passkey belongs to another user.
    #[error("the passkey belongs to another user")]
    UserHandle,
    /// The passkey did not make the signature.
    #[error("the signature is not valid")]
    Signature,
    /// The counter did not grow, so there may be a copy of the passkey.
    #[error("the passkey's counter did not grow")]
    Counter,
}

impl PasskeyError {
    /// The stable code, for logs and audit rows.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Ceremony => "ceremony",
            Self::Challenge => "challenge",
            Self::Origin => "origin",
            Self::CrossOrigin => "cross_origin",
            Self::RelyingParty => "relying_party",
            Self::UserAbsent => "user_absent",
            Self::UserUnverified => "user_unverified",
            Self::BackupState => "backup_state",
            Self::CredentialIdLength => "credential_id_length",
            Self::CredentialId => "credential_id",
            Self::Algorithm => "algorithm",
            Self::PublicKey => "public_key",
            Self::UserHandle => "user_handle",
            Self::Signature => "signature",
            Self::Counter => "counter",
        }
    }
}

/// The site that passkeys are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelyingParty {
    id: String,
    origin: String,
    name: String,
    id_hash: [u8; 32],
}

impl RelyingParty {
    /// The site with this public URL; `name` is what browsers show. `None` if browsers have no
    /// passkeys for such a URL: its host is an IP address, or it is plain `http` and its host is not
    /// `localhost`.
    #[must_use]
    pub fn new(public_url: &Url, name: &str) -> Option<Self> {
        let Some(Host::Domain(id)) = public_url.host() else {
            return None;
        };
        let is_local = id == "localhost" || id.ends_with(".localhost");
        match public_url.scheme() {
            "https" => {}
            "http" if is_local => {}
            _ => return None,
        }
        Some(Self {
            id: id.to_owned(),
            origin: public_url.origin().ascii_serialization(),
            name: name.to_owned(),
            id_hash: Sha256::digest(id).into(),
        })
    }

    /// The identifier, which is the host of the URL.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}

/// A passkey that was just made, to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPasskey {
    /// Its identifier. The store must refuse one that it has already, whoever has it.
    pub credential_id: Vec<u8>,
    /// Its public key in COSE, as the authenticator sent it.
    pub public_key: Vec<u8>,
    /// The algorithm of its signatures.
    pub algorithm: Algorithm,
    /// Its first counter; 0 if it does not count.
    pub sign_count: u32,
    /// Whether it can be backed up or synchronized to other devices.
    pub backup_eligible: bool,
    /// Whether it is backed up now.
    pub backed_up: bool,
    /// The model of the authenticator, which may be untrue; zeros if it is not told.
    pub aaguid: [u8; 16],
    /// The ways to reach it that the browser knows.
    pub transports: Vec<Transport>,
}

/// A passkey as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct StoredPasskey<'a> {
    /// [`NewPasskey::credential_id`].
    pub credential_id: &'a [u8],
    /// [`NewPasskey::public_key`].
    pub public_key: &'a [u8],
    /// The counter of the last sign-in, or of the registration.
    pub sign_count: u32,
    /// The handle of the user to whom the passkey belongs.
    pub user_handle: &'a [u8],
}

/// What a sign-in by a passkey proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The counter, to be stored.
    pub sign_count: u32,
    /// Whether the passkey is backed up now, to be stored.
    pub backed_up: bool,
    /// The user handle that the authenticator keeps, if it sent one: it is that of the stored
    /// passkey.
    pub user_handle: Option<Vec<u8>>,
}

/// Verifies the answer to [`CreationOptions`] with this challenge (WebAuthn §7.1).
///
/// # Errors
/// The first rule that the answer breaks.
pub fn verify_registration(
    party: &RelyingParty,
    challenge: &Challenge,
    response: &RegistrationResponse,
) -> Result<NewPasskey, PasskeyError> {
    let id = response::credential_id(&response.kind, &response.id, &response.raw_id)?;
    let answer = &response.response;
    let client_data = response::decoded(&answer.client_data_json)?;
    client_data::check(&client_data, Ceremony::Registration, party, challenge)?;
    let object = response::decoded(&answer.attestation_object)?;
    let object = cbor::parse(&object).ok_or(PasskeyError::Malformed)?;
    let (Some(_), Some(_), Some(data)) = (
        object.member("fmt").and_then(cbor::Value::as_text),
        object.member("attStmt").and_then(cbor::Value::as_map),
        object.member("authData").and_then(cbor::Value::as_bytes),
    ) else {
        return Err(PasskeyError::Malformed);
    };
    let data = AuthenticatorData::parse(data)?;
    data.check(party)?;
    let attested = data.attested.as_ref().ok_or(PasskeyError::Malformed)?;
    let length = CREDENTIAL_ID_LEN_MIN..=CREDENTIAL_ID_LEN_MAX;
    if !length.contains(&attested.credential_id.len()) {
        return Err(PasskeyError::CredentialIdLength);
    }
    if attested.credential_id != id {
        return Err(PasskeyError::CredentialId);
    }
    let key = cose::parse(attested.public_key)?;
    Ok(NewPasskey {
        credential_id: id,
        public_key: attested.public_key.to_vec(),
        algorithm: key.algorithm(),
        sign_count: data.sign_count,
        backup_eligible: data.backup_eligible(),
        backed_up: data.backed_up(),
        aaguid: attested.aaguid,
        transports: answer.known_transports(),
    })
}

/// Verifies the answer to [`RequestOptions`] with this challenge, by the stored passkey with the
/// answer's identifier ([`AssertionResponse::credential_id`]) (WebAuthn §7.2).
///
/// # Errors
/// The first rule that the answer breaks.
pub fn verify_assertion(
    party: &RelyingParty,
    challenge: &Challenge,
    passkey: &StoredPasskey<'_>,
    response: &AssertionResponse,
) -> Result<Verified, PasskeyError> {
    if response.credential_id()? != passkey.credential_id {
        return Err(PasskeyError::CredentialId);
    }
    let answer = &response.response;
    let user_handle = answer
        .user_handle
        .as_deref()
        .filter(|text| !text.is_empty());
    let user_handle = user_handle.map(response::decoded).transpose()?;
    if user_handle
        .as_deref()
        .is_some_and(|handle| handle != passkey.user_handle)
    {
        return Err(PasskeyError::UserHandle);
    }
    let client_data = response::decoded(&answer.client_data_json)?;
    client_data::check(&client_data, Ceremony::SignIn, party, challenge)?;
    let mut signed = response::decoded(&answer.authenticator_data)?;
    let data = AuthenticatorData::parse(&signed)?;
    data.check(party)?;
    if data.attested.is_some() {
        return Err(PasskeyError::Malformed);
    }
    let (sign_count, backed_up) = (data.sign_count, data.backed_up());
    let key = cose::parse(passkey.public_key)?;
    let signature = response::decoded(&answer.signature)?;
    signed.extend_from_slice(&Sha256::digest(&client_data));
    if !key.verifies(&signed, &signature, EcdsaForm::Asn1) {
        return Err(PasskeyError::Signature);
    }
    // An authenticator that does not count sends 0 always.
    let counts = sign_count != 0 || passkey.sign_count != 0;
    if counts && sign_count <= passkey.sign_count {
        return Err(PasskeyError::Counter);
    }
    Ok(Verified {
        sign_count,
        backed_up,
        user_handle,
    })
}

fn encoded(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Compares without telling by the time taken where the two differ.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests;
