//! An authenticator made by hand, with the browser in front of it: it makes passkeys, signs in by
//! them, and breaks any rule of WebAuthn that a test wants broken.

use base64::{
    Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD,
};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
    },
};
use serde_json::{Value, json};

/// An RSA key of 2048 bits, for tests alone: `ring` makes none.
const RSA_KEY: &str = include_str!("authenticator/rsa_key.txt");

/// The flags of an authenticator that saw and checked the person.
pub const USER_PRESENT: u8 = 1;
/// The authenticator checked who the person is.
pub const USER_VERIFIED: u8 = 1 << 2;
/// The passkey may be backed up.
pub const BACKUP_ELIGIBLE: u8 = 1 << 3;
/// The passkey is backed up.
pub const BACKED_UP: u8 = 1 << 4;
/// A passkey comes with the data.
pub const ATTESTED: u8 = 1 << 6;
/// Extensions come with the data.
pub const EXTENSIONS: u8 = 1 << 7;

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

/// An authenticator with one passkey.
pub struct Authenticator {
    pair: Pair,
    site: Site,
    /// The passkey's identifier.
    pub credential_id: Vec<u8>,
    /// The user handle that it keeps.
    pub user_handle: Vec<u8>,
}

/// The site that a passkey is for.
#[derive(Clone)]
pub struct Site {
    /// Its identifier.
    pub rp_id: String,
    /// Its origin.
    pub origin: String,
}

/// An answer before it is signed and encoded. A test may change what it likes.
#[derive(Clone)]
pub struct Draft {
    /// The browser's JSON.
    pub client_data: String,
    /// The identifier of the site whose hash is signed.
    pub rp_id: String,
    /// The flags.
    pub flags: u8,
    /// The counter.
    pub count: u32,
    /// The passkey's identifier within the authenticator's data.
    pub credential_id: Vec<u8>,
    /// The public key in COSE.
    pub key: Vec<u8>,
    /// What comes last in the authenticator's data, such as extensions.
    pub last: Vec<u8>,
    /// The format of the attestation statement.
    pub format: String,
    /// The attestation statement in CBOR.
    pub statement: Vec<u8>,
}

impl Draft {
    /// Sets a member of the browser's JSON; `null` takes it away.
    pub fn set(&mut self, name: &str, value: Value) {
        let mut members: Value = serde_json::from_str(&self.client_data).unwrap();
        if value.is_null() {
            members.as_object_mut().unwrap().remove(name);
        } else {
            members[name] = value;
        }
        self.client_data = members.to_string();
    }

    /// The authenticator's data.
    #[must_use]
    pub fn data(&self) -> Vec<u8> {
        let mut data = digest(&SHA256, self.rp_id.as_bytes()).as_ref().to_vec();
        data.push(self.flags);
        data.extend(self.count.to_be_bytes());
        if self.flags & ATTESTED != 0 {
            data.extend([0; 16]);
            let length = u16::try_from(self.credential_id.len()).unwrap();
            data.extend(length.to_be_bytes());
            data.extend(&self.credential_id);
            data.extend(&self.key);
        }
        data.extend(&self.last);
        data
    }
}

impl Authenticator {
    /// An authenticator with a passkey of this algorithm: -8, -7 or -257.
    #[must_use]
    pub fn new(algorithm: i64, site: &Site) -> Self {
        let random = SystemRandom::new();
        let pair = match algorithm {
            -8 => {
                let document = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
                Pair::Ed25519(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
            }
            -7 => {
                let kind = &ECDSA_P256_SHA256_ASN1_SIGNING;
                let document = EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
                let pair = EcdsaKeyPair::from_pkcs8(kind, document.as_ref(), &random).unwrap();
                Pair::P256(Box::new(pair))
            }
            -257 => {
                let document = STANDARD.decode(RSA_KEY.replace('\n', "")).unwrap();
                Pair::Rsa(Box::new(RsaKeyPair::from_pkcs8(&document).unwrap()))
            }
            other => panic!("no authenticator for {other}"),
        };
        let mut ids = [0; 64];
        random.fill(&mut ids).unwrap();
        Self {
            pair,
            site: site.clone(),
            credential_id: ids[..32].to_vec(),
            user_handle: ids[32..].to_vec(),
        }
    }

    /// The public key in COSE.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        match &self.pair {
            Pair::Ed25519(pair) => cose(&[
                (1, int(1)),
                (3, int(-8)),
                (-1, int(6)),
                (-2, bytes(pair.public_key().as_ref())),
            ]),
            Pair::P256(pair) => {
                let point = pair.public_key().as_ref();
                cose(&[
                    (1, int(2)),
                    (3, int(-7)),
                    (-1, int(1)),
                    (-2, bytes(&point[1..33])),
                    (-3, bytes(&point[33..])),
                ])
            }
            Pair::Rsa(pair) => {
                let RsaPublicKeyComponents { n, e } =
                    RsaPublicKeyComponents::<Vec<u8>>::from(pair.public());
                cose(&[
                    (1, int(3)),
                    (3, int(-257)),
                    (-1, bytes(&n)),
                    (-2, bytes(&e)),
                ])
            }
        }
    }

    fn draft(&self, ceremony: &str, challenge: &[u8], flags: u8, count: u32) -> Draft {
        let client_data = json!({
            "type": ceremony,
            "challenge": URL_SAFE_NO_PAD.encode(challenge),
            "origin": self.site.origin,
            "crossOrigin": false,
        });
        Draft {
            client_data: client_data.to_string(),
            rp_id: self.site.rp_id.clone(),
            flags,
            count,
            credential_id: self.credential_id.clone(),
            key: self.key(),
            last: Vec::new(),
            format: "none".to_owned(),
            statement: vec![0xa0],
        }
    }

    /// A good registration.
    #[must_use]
    pub fn registration(&self, challenge: &[u8]) -> Draft {
        let flags = USER_PRESENT | USER_VERIFIED | ATTESTED;
        self.draft("webauthn.create", challenge, flags, 0)
    }

    /// A good sign-in.
    #[must_use]
    pub fn sign_in(&self, challenge: &[u8], count: u32) -> Draft {
        let flags = USER_PRESENT | USER_VERIFIED;
        self.draft("webauthn.get", challenge, flags, count)
    }

    /// The registration as `PublicKeyCredential.toJSON` gives it.
    #[must_use]
    pub fn register(&self, draft: &Draft) -> Value {
        let mut object = vec![0xa3];
        object.extend(text("fmt"));
        object.extend(text(&draft.format));
        object.extend(text("attStmt"));
        object.extend(&draft.statement);
        object.extend(text("authData"));
        object.extend(bytes(&draft.data()));
        json!({
            "id": URL_SAFE_NO_PAD.encode(&self.credential_id),
            "rawId": URL_SAFE_NO_PAD.encode(&self.credential_id),
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": {
                "clientDataJSON": URL_SAFE_NO_PAD.encode(&draft.client_data),
                "attestationObject": URL_SAFE_NO_PAD.encode(object),
                "authenticatorData": URL_SAFE_NO_PAD.encode(draft.data()),
                "transports": ["internal", "hybrid", "internal", "of-tomorrow"],
            },
        })
    }

    /// The sign-in as `PublicKeyCredential.toJSON` gives it.
    #[must_use]
    pub fn assert(&self, draft: &Draft) -> Value {
        let data = draft.data();
        let mut signed = data.clone();
        signed.extend(digest(&SHA256, draft.client_data.as_bytes()).as_ref());
        json!({
            "id": URL_SAFE_NO_PAD.encode(&self.credential_id),
            "rawId": URL_SAFE_NO_PAD.encode(&self.credential_id),
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": {
                "clientDataJSON": URL_SAFE_NO_PAD.encode(&draft.client_data),
                "authenticatorData": URL_SAFE_NO_PAD.encode(data),
                "signature": URL_SAFE_NO_PAD.encode(self.signature(&signed)),
                "userHandle": URL_SAFE_NO_PAD.encode(&self.user_handle),
            },
        })
    }

    fn signature(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Pair::P256(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                    .unwrap();
                signature
            }
        }
    }
}

/// A key in COSE of these parameters, the values being CBOR already.
#[must_use]
pub fn cose(parameters: &[(i64, Vec<u8>)]) -> Vec<u8> {
    let mut key = head(5, parameters.len());
    for (label, value) in parameters {
        key.extend(int(*label));
        key.extend(value);
    }
    key
}

/// A number in CBOR.
#[must_use]
pub fn int(number: i64) -> Vec<u8> {
    if number < 0 {
        head(1, usize::try_from(-1 - number).unwrap())
    } else {
        head(0, usize::try_from(number).unwrap())
    }
}

/// Bytes in CBOR.
#[must_use]
pub fn bytes(value: &[u8]) -> Vec<u8> {
    let mut out = head(2, value.len());
    out.extend(value);
    out
}

/// A text in CBOR.
#[must_use]
pub fn text(value: &str) -> Vec<u8> {
    let mut out = head(3, value.len());
    out.extend(value.as_bytes());
    out
}

fn head(kind: u8, number: usize) -> Vec<u8> {
    let kind = kind << 5;
    match u16::try_from(number).unwrap().to_be_bytes() {
        [0, low @ 0..0x18] => vec![kind | low],
        [0, low] => vec![kind | 0x18, low],
        [high, low] => vec![kind | 0x19, high, low],
    }
}
