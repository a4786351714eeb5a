//! Public keys of the three kinds that are accepted, of passkeys and of signers of tokens.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RsaPublicKeyComponents, UnparsedPublicKey,
};

domain::words! {
    /// An algorithm of signatures. The key alone decides which one is used.
    pub enum Algorithm {
        /// Ed25519 (RFC 8032).
        EdDsa = "EdDSA",
        /// ECDSA over P-256 with SHA-256.
        Es256 = "ES256",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        Rs256 = "RS256",
    }
}

impl Algorithm {
    /// The number in COSE keys and in the options of WebAuthn (RFC 9053, RFC 8812).
    #[must_use]
    pub const fn cose(self) -> i64 {
        match self {
            Self::EdDsa => -8,
            Self::Es256 => -7,
            Self::Rs256 => -257,
        }
    }

    /// The algorithm with this number in COSE; `None` for any that is not accepted.
    #[must_use]
    pub fn of_cose(number: i64) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.cose() == number)
    }
}

/// How the two numbers of an ECDSA signature are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EcdsaForm {
    /// As ASN.1, in WebAuthn.
    Asn1,
    /// One after the other, in JWS (RFC 7518 §3.4).
    Fixed,
}

/// A public key whose form was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PublicKey {
    Ed25519([u8; 32]),
    /// The uncompressed point. Whether it is on the curve is checked with each signature.
    P256([u8; 65]),
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
}

/// The sizes of RSA keys, in bits.
const RSA_BITS_MIN: usize = 2048;
const RSA_BITS_MAX: usize = 4096;
/// The longest public exponent of RSA, in bytes.
const EXPONENT_LEN_MAX: usize = 4;

/// The y coordinates of the points of low order, each with the sign bit cleared; among them are
/// those that are not below the prime. With such a key some signatures are valid for every message,
/// and `ring` accepts them.
const LOW_ORDER: [[u8; 32]; 7] = {
    const fn near_the_prime(lowest: u8) -> [u8; 32] {
        let mut y = [0xff; 32];
        y[0] = lowest;
        y[31] = 0x7f;
        y
    }
    let mut one = [0; 32];
    one[0] = 1;
    [
        [0; 32],
        one,
        [
            0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef,
            0x98, 0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88,
            0x6d, 0x53, 0xfc, 0x05,
        ],
        [
            0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10,
            0x67, 0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77,
            0x92, 0xac, 0x03, 0x7a,
        ],
        near_the_prime(0xec),
        near_the_prime(0xed),
        near_the_prime(0xee),
    ]
};

impl PublicKey {
    /// An Ed25519 key; `None` for another length and for a point of low order.
    pub(crate) fn ed25519(x: &[u8]) -> Option<Self> {
        let key: [u8; 32] = x.try_into().ok()?;
        let mut y = key;
        y[31] &= 0x7f;
        (!LOW_ORDER.contains(&y)).then_some(Self::Ed25519(key))
    }

    /// A P-256 key; `None` unless both coordinates have 32 bytes.
    pub(crate) fn p256(x: &[u8], y: &[u8]) -> Option<Self> {
        if x.len() != 32 || y.len() != 32 {
            return None;
        }
        let mut point = [4; 65];
        point[1..33].copy_from_slice(x);
        point[33..].copy_from_slice(y);
        Some(Self::P256(point))
    }

    /// An RSA key of 2048 to 4096 bits; both numbers are big-endian without leading zeros.
    pub(crate) fn rsa(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let leading = modulus.first()?.leading_zeros() as usize;
        let bits = modulus.len() * 8 - leading;
        let is_minimal = leading < 8 && *exponent.first()? != 0;
        let is_odd = modulus.last()? & exponent.last()? & 1 == 1;
        let sized = (RSA_BITS_MIN..=RSA_BITS_MAX).contains(&bits)
            && exponent.len() <= EXPONENT_LEN_MAX
            && exponent != [1];
        (is_minimal && is_odd && sized).then(|| Self::Rsa {
            modulus: modulus.to_vec(),
            exponent: exponent.to_vec(),
        })
    }

    /// The algorithm of the key's signatures.
    pub(crate) const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed25519(_) => Algorithm::EdDsa,
            Self::P256(_) => Algorithm::Es256,
            Self::Rsa { .. } => Algorithm::Rs256,
        }
    }

    /// Whether this key made the signature of the message.
    #[must_use]
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8], form: EcdsaForm) -> bool {
        let verified = match self {
            Self::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature),
            Self::P256(point) => {
                let algorithm = match form {
                    EcdsaForm::Asn1 => &ECDSA_P256_SHA256_ASN1,
                    EcdsaForm::Fixed => &ECDSA_P256_SHA256_FIXED,
                };
                UnparsedPublicKey::new(algorithm, point).verify(message, signature)
            }
            Self::Rsa { modulus, exponent } => RsaPublicKeyComponents {
                n: modulus,
                e: exponent,
            }
            .verify(&RSA_PKCS1_2048_8192_SHA256, message, signature),
        };
        verified.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_signs_everything_is_refused_in_all_14_encodings() {
        // The neutral element as key and as R, and S = 0: valid for any message.
        let mut forged = [0; 64];
        forged[0] = 1;
        let mut neutral = [0; 32];
        neutral[0] = 1;
        let unchecked = UnparsedPublicKey::new(&ED25519, neutral);
        assert!(unchecked.verify(b"anything", &forged).is_ok());
        for mut key in LOW_ORDER {
            assert_eq!(PublicKey::ed25519(&key), None);
            key[31] |= 0x80;
            assert_eq!(PublicKey::ed25519(&key), None);
        }
        let base_point = {
            let mut y = [0x66; 32];
            y[0] = 0x58;
            y
        };
        assert!(PublicKey::ed25519(&base_point).is_some());
        assert_eq!(PublicKey::ed25519(&base_point[..31]), None);
    }

    #[test]
    fn rsa_keys_have_2048_to_4096_bits_and_an_odd_exponent() {
        let modulus = |len: usize, first: u8| {
            let mut n = vec![0xff; len];
            n[0] = first;
            n
        };
        let f4 = [1, 0, 1];
        for (n, e) in [
            (modulus(256, 0x80), f4.as_slice()),
            (modulus(512, 0xff), &[3]),
        ] {
            assert!(PublicKey::rsa(&n, e).is_some());
        }
        let mut even = modulus(256, 0x80);
        even[255] = 2;
        for (n, e) in [
            (modulus(256, 0x7f), f4.as_slice()),
            (modulus(513, 1), &f4),
            (modulus(257, 0), &f4),
            (even, &f4),
            (modulus(256, 0x80), &[0, 1, 1]),
            (modulus(256, 0x80), &[1]),
            (modulus(256, 0x80), &[2]),
            (modulus(256, 0x80), &[1, 0, 0, 0, 1]),
            (modulus(256, 0x80), &[]),
            (Vec::new(), &f4),
        ] {
            assert_eq!(PublicKey::rsa(&n, e), None, "{} {e:?}", n.len());
        }
    }
}
