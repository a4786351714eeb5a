//! What a page hands to `navigator.credentials`, in the JSON of
//! `PublicKeyCredential.parseCreationOptionsFromJSON` and `parseRequestOptionsFromJSON`.

use serde::Serialize;

use super::{Challenge, RelyingParty, Transport, encoded};
use crate::public_key::Algorithm;

/// How long a browser may wait for the person, in milliseconds.
const TIMEOUT_MS: u32 = 300_000;
const PUBLIC_KEY: &str = "public-key";
/// What is asked for, since a passkey alone signs its owner in.
const REQUIRED: &str = "required";

/// Options to make a passkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreationOptions {
    /// The site.
    pub rp: Party,
    /// The user to whom the passkey will belong.
    pub user: User,
    /// The challenge, in base64url.
    pub challenge: String,
    /// The algorithms that are accepted, the preferred one first.
    pub pub_key_cred_params: Vec<Parameter>,
    /// How long the browser may wait for the person, in milliseconds.
    pub timeout: u32,
    /// The passkeys of the user: their authenticators make no second one.
    pub exclude_credentials: Vec<Descriptor>,
    /// Which authenticators will do.
    pub authenticator_selection: Authenticators,
    /// `none`: no proof of the authenticator's model is asked for.
    pub attestation: &'static str,
}

/// Options to sign in by a passkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestOptions {
    /// The challenge, in base64url.
    pub challenge: String,
    /// How long the browser may wait for the person, in milliseconds.
    pub timeout: u32,
    /// The identifier of the site.
    pub rp_id: String,
    /// The passkeys that will do; if empty, any for this site.
    pub allow_credentials: Vec<Descriptor>,
    /// `required`: the authenticator checks who touches it.
    pub user_verification: &'static str,
}

/// The site, in options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    /// Its identifier.
    pub id: String,
    /// Its name, as browsers show it.
    pub name: String,
}

/// The user, in options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// The user handle, in base64url.
    pub id: String,
    /// What tells the user from others of the same person: the e-mail address.
    pub name: String,
    /// The name of the person.
    pub display_name: String,
}

/// An algorithm, in options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameter {
    /// `public-key`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The algorithm's number in COSE.
    pub alg: i64,
}

/// A passkey, in options.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Descriptor {
    /// `public-key`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The identifier, in base64url.
    pub id: String,
    /// The ways to reach it.
    pub transports: Vec<&'static str>,
}

/// Which authenticators will do, in options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Authenticators {
    /// `required`: the authenticator finds the passkey without its identifier.
    pub resident_key: &'static str,
    /// The same for older browsers.
    pub require_resident_key: bool,
    /// `required`: the authenticator checks who touches it.
    pub user_verification: &'static str,
}

/// A passkey that exists, for options: its identifier and the ways to reach it.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The identifier.
    pub credential_id: &'a [u8],
    /// The ways to reach it.
    pub transports: &'a [Transport],
}

/// The user to whom a passkey will belong.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// The user handle: 1 to 64 bytes, random, and the same for all passkeys of the user.
    /// Authenticators keep it and send it; it is no secret.
    pub handle: &'a [u8],
    /// An e-mail address, which tells the user from others of the same person.
    pub email: &'a str,
    /// The person's name.
    pub name: &'a str,
}

impl CreationOptions {
    /// Options to make a passkey for a user. `existing` are the passkeys that the user has.
    #[must_use]
    pub fn new(
        party: &RelyingParty,
        challenge: &Challenge,
        owner: &Owner<'_>,
        existing: &[Choice<'_>],
    ) -> Self {
        let parameters = Algorithm::ALL.map(|algorithm| Parameter {
            kind: PUBLIC_KEY,
            alg: algorithm.cose(),
        });
        Self {
            rp: Party {
                id: party.id.clone(),
                name: party.name.clone(),
            },
            user: User {
                id: encoded(owner.handle),
                name: owner.email.to_owned(),
                display_name: owner.name.to_owned(),
            },
            challenge: encoded(challenge),
            pub_key_cred_params: parameters.to_vec(),
            timeout: TIMEOUT_MS,
            exclude_credentials: existing.iter().map(Descriptor::of).collect(),
            authenticator_selection: Authenticators {
                resident_key: REQUIRED,
                require_resident_key: true,
                user_verification: REQUIRED,
            },
            attestation: "none",
        }
    }
}

impl RequestOptions {
    /// Options to sign in by one of the `allowed` passkeys; if there are none, by any passkey for
    /// this site, of which the person chooses one.
    #[must_use]
    pub fn new(party: &RelyingParty, challenge: &Challenge, allowed: &[Choice<'_>]) -> Self {
        Self {
            challenge: encoded(challenge),
            timeout: TIMEOUT_MS,
            rp_id: party.id.clone(),
            allow_credentials: allowed.iter().map(Descriptor::of).collect(),
            user_verification: REQUIRED,
        }
    }
}

impl Descriptor {
    fn of(choice: &Choice<'_>) -> Self {
        Self {
            kind: PUBLIC_KEY,
            id: encoded(choice.credential_id),
            transports: choice.transports.iter().map(|one| one.as_str()).collect(),
        }
    }
}
