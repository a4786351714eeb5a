//! What a page gets from `navigator.credentials`, in the JSON of `PublicKeyCredential.toJSON`.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::PasskeyError;

/// The longest binary value of an answer, in base64url.
const VALUE_LEN_MAX: usize = 64 * 1024;
/// Most ways to reach an authenticator that are read.
const TRANSPORTS_MAX: usize = 16;

domain::words! {
    /// A way for a browser to reach an authenticator (WebAuthn §5.8.4).
    pub enum Transport {
        /// Bluetooth.
        Ble = "ble",
        /// Another device nearby, such as a phone.
        Hybrid = "hybrid",
        /// The device itself.
        Internal = "internal",
        /// Near-field communication.
        Nfc = "nfc",
        /// A smart card.
        SmartCard = "smart-card",
        /// A plug.
        Usb = "usb",
    }
}

/// The answer to [`super::CreationOptions`]. Members that are not needed are ignored, since
/// browsers add some from time to time.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationResponse {
    /// The identifier of the passkey, in base64url.
    pub id: String,
    /// The same.
    pub raw_id: String,
    /// `public-key`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The answer.
    pub response: RegistrationAnswer,
}

/// The part of a [`RegistrationResponse`] that the authenticator and the browser made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistrationAnswer {
    /// What the browser says, in base64url.
    #[serde(rename = "clientDataJSON")]
    pub client_data_json: String,
    /// What the authenticator says, in base64url.
    pub attestation_object: String,
    /// The ways to reach the authenticator; unknown ones are ignored.
    #[serde(default)]
    pub transports: Vec<String>,
}

/// The answer to [`super::RequestOptions`]. Members that are not needed are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssertionResponse {
    /// The identifier of the passkey, in base64url.
    pub id: String,
    /// The same.
    pub raw_id: String,
    /// `public-key`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The answer.
    pub response: AssertionAnswer,
}

/// The part of an [`AssertionResponse`] that the authenticator and the browser made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssertionAnswer {
    /// What the browser says, in base64url.
    #[serde(rename = "clientDataJSON")]
    pub client_data_json: String,
    /// What the authenticator says, in base64url.
    pub authenticator_data: String,
    /// The signature of both, in base64url.
    pub signature: String,
    /// The user handle, in base64url, if the authenticator keeps one.
    #[serde(default)]
    pub user_handle: Option<String>,
}

impl RegistrationAnswer {
    pub(super) fn known_transports(&self) -> Vec<Transport> {
        let mut known = Vec::new();
        for text in self.transports.iter().take(TRANSPORTS_MAX) {
            if let Some(transport) = Transport::parse(text)
                && !known.contains(&transport)
            {
                known.push(transport);
            }
        }
        known
    }
}

impl AssertionResponse {
    /// The identifier of the passkey, by which the caller finds it in the store.
    ///
    /// # Errors
    /// [`PasskeyError::Malformed`] or [`PasskeyError::CredentialId`].
    pub fn credential_id(&self) -> Result<Vec<u8>, PasskeyError> {
        credential_id(&self.kind, &self.id, &self.raw_id)
    }
}

pub(super) fn credential_id(kind: &str, id: &str, raw_id: &str) -> Result<Vec<u8>, PasskeyError> {
    if kind != "public-key" {
        return Err(PasskeyError::Malformed);
    }
    if id != raw_id {
        return Err(PasskeyError::CredentialId);
    }
    decoded(id)
}

/// Decodes base64url without padding, of a limited length.
pub(super) fn decoded(text: &str) -> Result<Vec<u8>, PasskeyError> {
    if text.len() > VALUE_LEN_MAX {
        return Err(PasskeyError::Malformed);
    }
    URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| PasskeyError::Malformed)
}
