use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proptest::prelude::*;
use serde_json::{Value, json};

use authenticator::{
    ATTESTED, Authenticator, BACKED_UP, BACKUP_ELIGIBLE, Draft, EXTENSIONS, Site, USER_PRESENT,
    USER_VERIFIED, bytes, cose, int, text,
};

use super::*;

#[path = "../../../tests/src/authenticator.rs"]
mod authenticator;

const CHALLENGE: Challenge = [7; 32];
const ALGORITHMS: [i64; 3] = [-8, -7, -257];

fn party() -> RelyingParty {
    let url = Url::parse("https://stationmaster.example/").unwrap();
    RelyingParty::new(&url, "Stationmaster").unwrap()
}

fn site() -> Site {
    Site {
        rp_id: "stationmaster.example".to_owned(),
        origin: "https://stationmaster.example".to_owned(),
    }
}

fn ed25519() -> Authenticator {
    Authenticator::new(-8, &site())
}

fn registered(answer: &Value) -> Result<NewPasskey, PasskeyError> {
    let response = serde_json::from_value(answer.clone()).unwrap();
    verify_registration(&party(), &CHALLENGE, &response)
}

fn signed_in(
    authenticator: &Authenticator,
    sign_count: u32,
    answer: &Value,
) -> Result<Verified, PasskeyError> {
    let response = serde_json::from_value(answer.clone()).unwrap();
    let passkey = StoredPasskey {
        credential_id: &authenticator.credential_id,
        public_key: &authenticator.key(),
        sign_count,
        user_handle: &authenticator.user_handle,
    };
    verify_assertion(&party(), &CHALLENGE, &passkey, &response)
}

/// Asserts that a registration and a sign-in with this change are both refused for this reason.
fn both_refused(expected: PasskeyError, change: impl Fn(&mut Draft)) {
    let authenticator = ed25519();
    let mut draft = authenticator.registration(&CHALLENGE);
    change(&mut draft);
    let outcome = registered(&authenticator.register(&draft));
    assert_eq!(outcome, Err(expected), "registration");
    let mut draft = authenticator.sign_in(&CHALLENGE, 1);
    change(&mut draft);
    let outcome = signed_in(&authenticator, 0, &authenticator.assert(&draft));
    assert_eq!(outcome, Err(expected), "sign-in");
}

/// Asserts what a registration with this key leads to.
fn key_leads_to(expected: Result<Algorithm, PasskeyError>, key: Vec<u8>) {
    let authenticator = ed25519();
    let mut draft = authenticator.registration(&CHALLENGE);
    draft.key = key;
    let outcome = registered(&authenticator.register(&draft));
    assert_eq!(outcome.map(|passkey| passkey.algorithm), expected);
}

#[test]
fn a_passkey_of_each_algorithm_registers_and_signs_in() {
    for algorithm in ALGORITHMS {
        let authenticator = Authenticator::new(algorithm, &site());
        let draft = authenticator.registration(&CHALLENGE);
        let passkey = registered(&authenticator.register(&draft)).unwrap();
        assert_eq!(passkey.algorithm.cose(), algorithm);
        assert_eq!(passkey.credential_id, authenticator.credential_id);
        assert_eq!(passkey.public_key, authenticator.key());
        assert_eq!((passkey.sign_count, passkey.aaguid), (0, [0; 16]));
        assert!(!passkey.backed_up && !passkey.backup_eligible);
        let transports = [Transport::Internal, Transport::Hybrid];
        assert_eq!(passkey.transports, transports);
        let mut draft = authenticator.sign_in(&CHALLENGE, 5);
        draft.flags |= BACKED_UP | BACKUP_ELIGIBLE;
        let verified = signed_in(&authenticator, 4, &authenticator.assert(&draft)).unwrap();
        assert_eq!(
            verified,
            Verified {
                sign_count: 5,
                backed_up: true,
                user_handle: Some(authenticator.user_handle.clone()),
            }
        );
    }
}

#[test]
fn an_answer_to_another_challenge_is_refused() {
    for other in [[8; 32].as_slice(), &[7; 31], &[7; 33], &[]] {
        both_refused(PasskeyError::Challenge, |draft| {
            draft.set("challenge", json!(URL_SAFE_NO_PAD.encode(other)));
        });
    }
    let padded = format!("{}=", URL_SAFE_NO_PAD.encode(CHALLENGE));
    both_refused(PasskeyError::Challenge, |draft| {
        draft.set("challenge", json!(padded));
    });
}

#[test]
fn an_answer_of_the_other_ceremony_is_refused() {
    let authenticator = ed25519();
    let mut draft = authenticator.registration(&CHALLENGE);
    draft.set("type", json!("webauthn.get"));
    let outcome = registered(&authenticator.register(&draft));
    assert_eq!(outcome, Err(PasskeyError::Ceremony));
    let mut draft = authenticator.sign_in(&CHALLENGE, 1);
    draft.set("type", json!("webauthn.create"));
    let outcome = signed_in(&authenticator, 0, &authenticator.assert(&draft));
    assert_eq!(outcome, Err(PasskeyError::Ceremony));
    both_refused(PasskeyError::Ceremony, |draft| {
        draft.set("type", json!("payment.get"));
    });
}

#[test]
fn another_origin_is_refused() {
    for origin in [
        "http://stationmaster.example",
        "https://stationmaster.example/",
        "https://stationmaster.example:8443",
        "https://evil.stationmaster.example",
        "https://STATIONMASTER.example",
        "https://evil.example",
        "null",
        "",
    ] {
        both_refused(PasskeyError::Origin, |draft| {
            draft.set("origin", json!(origin));
        });
    }
}

#[test]
fn a_page_inside_another_one_is_refused() {
    both_refused(PasskeyError::CrossOrigin, |draft| {
        draft.set("crossOrigin", json!(true));
    });
    both_refused(PasskeyError::CrossOrigin, |draft| {
        draft.set("topOrigin", json!("https://evil.example"));
    });
    both_refused(PasskeyError::Malformed, |draft| {
        draft.set("crossOrigin", json!("false"));
    });
    let authenticator = ed25519();
    let mut draft = authenticator.registration(&CHALLENGE);
    draft.set("crossOrigin", json!(null));
    assert!(registered(&authenticator.register(&draft)).is_ok());
}

#[test]
fn a_passkey_for_another_site_is_refused() {
    for rp_id in ["example", "evil.example", ""] {
        both_refused(PasskeyError::RelyingParty, |draft| {
            rp_id.clone_into(&mut draft.rp_id);
        });
    }
}

#[test]
fn the_person_must_be_there_and_be_checked() {
    both_refused(PasskeyError::UserAbsent, |draft| {
        draft.flags &= !USER_PRESENT;
    });
    both_refused(PasskeyError::UserUnverified, |draft| {
        draft.flags &= !USER_VERIFIED;
    });
}

#[test]
fn a_passkey_that_can_not_be_backed_up_is_not() {
    both_refused(PasskeyError::BackupState, |draft| draft.flags |= BACKED_UP);
}

#[test]
fn the_counter_grows_or_stays_zero() {
    let authenticator = ed25519();
    for (stored, sent, accepted) in [
        (0, 0, true),
        (0, 1, true),
        (1, 2, true),
        (5, u32::MAX, true),
        (1, 1, false),
        (2, 1, false),
        (1, 0, false),
        (u32::MAX, 0, false),
    ] {
        let draft = authenticator.sign_in(&CHALLENGE, sent);
        let outcome = signed_in(&authenticator, stored, &authenticator.assert(&draft));
        let expected = if accepted {
            Ok(sent)
        } else {
            Err(PasskeyError::Counter)
        };
        assert_eq!(outcome.map(|found| found.sign_count), expected);
    }
}

#[test]
fn every_changed_byte_of_what_is_signed_is_noticed() {
    for algorithm in ALGORITHMS {
        let authenticator = Authenticator::new(algorithm, &site());
        let good = authenticator.assert(&authenticator.sign_in(&CHALLENGE, 9));
        for member in ["authenticatorData", "signature", "clientDataJSON"] {
            let text = good["response"][member].as_str().unwrap();
            let original = URL_SAFE_NO_PAD.decode(text).unwrap();
            for at in 0..original.len() {
                let mut changed = original.clone();
                changed[at] ^= 1;
                let mut answer = good.clone();
                answer["response"][member] = json!(URL_SAFE_NO_PAD.encode(changed));
                let outcome = signed_in(&authenticator, 0, &answer);
                assert!(outcome.is_err(), "{algorithm} {member} {at}");
            }
        }
    }
}

#[test]
fn the_signature_of_another_passkey_is_refused() {
    for algorithm in [-8, -7] {
        let authenticator = Authenticator::new(algorithm, &site());
        let mut other = Authenticator::new(algorithm, &site());
        other.credential_id = authenticator.credential_id.clone();
        other.user_handle = authenticator.user_handle.clone();
        let answer = other.assert(&other.sign_in(&CHALLENGE, 1));
        let outcome = signed_in(&authenticator, 0, &answer);
        assert_eq!(outcome, Err(PasskeyError::Signature));
    }
}

#[test]
fn the_answer_is_of_the_passkey_that_is_asked_and_of_its_user() {
    let authenticator = ed25519();
    let good = authenticator.assert(&authenticator.sign_in(&CHALLENGE, 1));
    let other = URL_SAFE_NO_PAD.encode([1; 32]);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut answer = good.clone();
        change(&mut answer);
        signed_in(&authenticator, 0, &answer).map(|found| found.user_handle)
    };
    let own = Some(authenticator.user_handle.clone());
    assert_eq!(with(&|_| ()), Ok(own));
    let both = with(&|answer| {
        answer["id"] = json!(other);
        answer["rawId"] = json!(other);
    });
    assert_eq!(both, Err(PasskeyError::CredentialId));
    let one = with(&|answer| answer["rawId"] = json!(other));
    assert_eq!(one, Err(PasskeyError::CredentialId));
    let user = with(&|answer| answer["response"]["userHandle"] = json!(other));
    assert_eq!(user, Err(PasskeyError::UserHandle));
    for nothing in [json!(null), json!("")] {
        let none = with(&|answer| answer["response"]["userHandle"] = nothing.clone());
        assert_eq!(none, Ok(None));
    }
    let kind = with(&|answer| answer["type"] = json!("password"));
    assert_eq!(kind, Err(PasskeyError::Malformed));
    let draft = authenticator.registration(&CHALLENGE);
    let mut answer = authenticator.register(&draft);
    answer["id"] = json!(other);
    answer["rawId"] = json!(other);
    assert_eq!(registered(&answer), Err(PasskeyError::CredentialId));
}

#[test]
fn identifiers_have_16_to_1023_bytes() {
    for (length, expected) in [
        (0, Err(PasskeyError::CredentialIdLength)),
        (15, Err(PasskeyError::CredentialIdLength)),
        (16, Ok(())),
        (1023, Ok(())),
        (1024, Err(PasskeyError::CredentialIdLength)),
    ] {
        let mut authenticator = ed25519();
        authenticator.credential_id = vec![3; length];
        let draft = authenticator.registration(&CHALLENGE);
        let outcome = registered(&authenticator.register(&draft));
        assert_eq!(outcome.map(|_| ()), expected, "{length}");
    }
}

#[test]
fn only_keys_of_the_algorithms_asked_for_are_accepted() {
    let (x, y) = ([9; 32], [8; 32]);
    let okp = |algorithm, curve, x: &[u8]| {
        cose(&[
            (1, int(1)),
            (3, int(algorithm)),
            (-1, int(curve)),
            (-2, bytes(x)),
        ])
    };
    let ec2 = |algorithm, curve, y: Vec<u8>| {
        cose(&[
            (1, int(2)),
            (3, int(algorithm)),
            (-1, int(curve)),
            (-2, bytes(&x)),
            (-3, y),
        ])
    };
    let rsa = |algorithm, n: &[u8]| {
        cose(&[
            (1, int(3)),
            (3, int(algorithm)),
            (-1, bytes(n)),
            (-2, bytes(&[1, 0, 1])),
        ])
    };
    key_leads_to(Ok(Algorithm::EdDsa), okp(-8, 6, &x));
    key_leads_to(Ok(Algorithm::Es256), ec2(-7, 1, bytes(&y)));
    key_leads_to(Ok(Algorithm::Rs256), rsa(-257, &[0xff; 256]));
    for key in [
        ec2(-35, 2, bytes(&[8; 48])),
        ec2(-47, 8, bytes(&y)),
        rsa(-37, &[0xff; 256]),
        rsa(-65535, &[0xff; 256]),
        okp(7, 6, &x),
        cose(&[(1, int(1)), (-1, int(6)), (-2, bytes(&x))]),
        cose(&[]),
        int(1),
    ] {
        key_leads_to(Err(PasskeyError::Algorithm), key);
    }
    for key in [
        okp(-7, 6, &x),
        okp(-257, 6, &x),
        okp(-8, 7, &x),
        okp(-8, 6, &x[1..]),
        okp(-8, 6, &[0; 32]),
        ec2(-8, 1, bytes(&y)),
        ec2(-7, 2, bytes(&y)),
        ec2(-7, 1, bytes(&y[1..])),
        // The compressed form.
        ec2(-7, 1, vec![0xf5]),
        rsa(-257, &[0xff; 255]),
        rsa(-257, &[0xff; 513]),
        rsa(-7, &[0xff; 256]),
    ] {
        key_leads_to(Err(PasskeyError::PublicKey), key);
    }
    let twice = cose(&[
        (1, int(1)),
        (3, int(-8)),
        (-1, int(6)),
        (-2, bytes(&x)),
        (-2, bytes(&y)),
    ]);
    key_leads_to(Err(PasskeyError::Malformed), twice);
}

#[test]
fn attestation_statements_of_any_format_are_not_read() {
    let authenticator = ed25519();
    let mut statement = vec![0xa3];
    statement.extend(text("alg"));
    statement.extend(int(-7));
    statement.extend(text("sig"));
    statement.extend(bytes(&[1; 70]));
    statement.extend(text("x5c"));
    statement.push(0x81);
    statement.extend(bytes(&[2; 700]));
    let mut draft = authenticator.registration(&CHALLENGE);
    "packed".clone_into(&mut draft.format);
    draft.statement = statement;
    assert!(registered(&authenticator.register(&draft)).is_ok());
    draft.statement = int(1);
    let outcome = registered(&authenticator.register(&draft));
    assert_eq!(outcome, Err(PasskeyError::Malformed));
}

#[test]
fn the_authenticators_data_end_where_their_parts_end() {
    let extensions = {
        let mut map = vec![0xa1];
        map.extend(text("credProtect"));
        map.extend(int(2));
        map
    };
    let authenticator = ed25519();
    let with = |flags: u8, last: &[u8]| {
        let mut draft = authenticator.registration(&CHALLENGE);
        draft.flags |= flags;
        draft.last = last.to_vec();
        let registered = registered(&authenticator.register(&draft)).map(|_| ());
        let mut draft = authenticator.sign_in(&CHALLENGE, 1);
        draft.flags |= flags;
        draft.last = last.to_vec();
        let signed_in = signed_in(&authenticator, 0, &authenticator.assert(&draft));
        assert_eq!(signed_in.map(|_| ()), registered);
        registered
    };
    assert_eq!(with(EXTENSIONS, &extensions), Ok(()));
    let more = [extensions.clone(), vec![0]].concat();
    for (flags, last) in [
        (0, extensions.as_slice()),
        (0, &[0]),
        (EXTENSIONS, &[]),
        (EXTENSIONS, &int(1)),
        (EXTENSIONS, &extensions[1..]),
        (EXTENSIONS, &more),
    ] {
        assert_eq!(with(flags, last), Err(PasskeyError::Malformed));
    }
}

#[test]
fn a_registration_has_a_passkey_and_a_sign_in_has_none() {
    let authenticator = ed25519();
    let mut draft = authenticator.registration(&CHALLENGE);
    draft.flags &= !ATTESTED;
    let outcome = registered(&authenticator.register(&draft));
    assert_eq!(outcome, Err(PasskeyError::Malformed));
    let mut draft = authenticator.sign_in(&CHALLENGE, 1);
    draft.flags |= ATTESTED;
    let outcome = signed_in(&authenticator, 0, &authenticator.assert(&draft));
    assert_eq!(outcome, Err(PasskeyError::Malformed));
}

#[test]
fn the_browsers_text_is_one_strict_json_object() {
    let authenticator = ed25519();
    let good = authenticator.sign_in(&CHALLENGE, 1).client_data;
    let twice = good.replacen('{', r#"{"origin":"https://evil.example","#, 1);
    let long = good.replacen('{', &format!(r#"{{"more":"{}","#, "x".repeat(8192)), 1);
    let list = format!("[{good}]");
    let more = format!("{good}x");
    for text in [&twice, &long, &list, &more, "", "null"] {
        both_refused(PasskeyError::Malformed, |draft| {
            text.clone_into(&mut draft.client_data);
        });
    }
    for name in ["type", "challenge", "origin"] {
        for value in [json!(null), json!(1), json!([])] {
            both_refused(PasskeyError::Malformed, |draft| {
                draft.set(name, value.clone());
            });
        }
    }
    // Browsers add members to teach that.
    let mut draft = authenticator.sign_in(&CHALLENGE, 1);
    draft.set("other_keys_can_be_added_here", json!("do not compare"));
    assert!(signed_in(&authenticator, 0, &authenticator.assert(&draft)).is_ok());
}

#[test]
fn values_that_are_not_canonical_base64url_are_refused() {
    let authenticator = ed25519();
    let good = authenticator.assert(&authenticator.sign_in(&CHALLENGE, 1));
    for member in [
        "authenticatorData",
        "signature",
        "clientDataJSON",
        "userHandle",
    ] {
        let text = good["response"][member].as_str().unwrap();
        for bad in [
            format!("{text}="),
            format!("{text}\n"),
            format!("+{text}"),
            "A".repeat(64 * 1024 + 1),
        ] {
            let mut answer = good.clone();
            answer["response"][member] = json!(bad);
            let outcome = signed_in(&authenticator, 0, &answer);
            assert_eq!(outcome, Err(PasskeyError::Malformed), "{member}");
        }
    }
}

#[test]
fn options_are_what_browsers_parse() {
    let existing = [Choice {
        credential_id: &[1, 2, 3],
        transports: &[Transport::Usb, Transport::SmartCard],
    }];
    let owner = Owner {
        handle: &[4, 5],
        email: "ada@example.com",
        name: "Ada",
    };
    let challenge = URL_SAFE_NO_PAD.encode(CHALLENGE);
    let descriptor =
        json!({"type": "public-key", "id": "AQID", "transports": ["usb", "smart-card"]});
    let options = CreationOptions::new(&party(), &CHALLENGE, &owner, &existing);
    assert_eq!(
        serde_json::to_value(options).unwrap(),
        json!({
            "rp": {"id": "stationmaster.example", "name": "Stationmaster"},
            "user": {"id": "BAU", "name": "ada@example.com", "displayName": "Ada"},
            "challenge": challenge,
            "pubKeyCredParams": [
                {"type": "public-key", "alg": -8},
                {"type": "public-key", "alg": -7},
                {"type": "public-key", "alg": -257},
            ],
            "timeout": 300_000,
            "excludeCredentials": [descriptor],
            "authenticatorSelection": {
                "residentKey": "required",
                "requireResidentKey": true,
                "userVerification": "required",
            },
            "attestation": "none",
        })
    );
    let options = RequestOptions::new(&party(), &CHALLENGE, &existing);
    assert_eq!(
        serde_json::to_value(options).unwrap(),
        json!({
            "challenge": challenge,
            "timeout": 300_000,
            "rpId": "stationmaster.example",
            "allowCredentials": [descriptor],
            "userVerification": "required",
        })
    );
}

#[test]
fn a_site_has_passkeys_if_browsers_have_them_for_its_url() {
    let of = |url: &str| RelyingParty::new(&Url::parse(url).unwrap(), "x");
    for (url, id, origin) in [
        ("https://a.example", "a.example", "https://a.example"),
        ("https://a.example:443/x", "a.example", "https://a.example"),
        (
            "https://a.example:8443",
            "a.example",
            "https://a.example:8443",
        ),
        (
            "http://localhost:3000",
            "localhost",
            "http://localhost:3000",
        ),
        ("http://a.localhost", "a.localhost", "http://a.localhost"),
    ] {
        let party = of(url).unwrap();
        assert_eq!((party.id(), party.origin.as_str()), (id, origin));
    }
    for url in [
        "http://a.example",
        "http://127.0.0.1:3000",
        "https://127.0.0.1",
        "https://[::1]",
        "http://localhost.example",
        "ftp://localhost",
    ] {
        assert_eq!(of(url), None, "{url}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_a_parser_panic(
        data in prop::collection::vec(any::<u8>(), 0..120),
        flags: u8,
    ) {
        let _ = AuthenticatorData::parse(&data);
        let _ = cose::parse(&data);
        let _ = client_data::check(&data, Ceremony::SignIn, &party(), &CHALLENGE);
        // Far enough in that the parts behind the flags are read.
        let mut long = vec![0; 32];
        long.push(flags);
        long.extend([0; 4]);
        long.extend(&data);
        let _ = AuthenticatorData::parse(&long);
        let mut passkey = vec![0; 32];
        passkey.push(flags | ATTESTED);
        passkey.extend([0; 21]);
        passkey.push(1);
        passkey.push(9);
        passkey.extend(&data);
        let _ = AuthenticatorData::parse(&passkey);
        let mut answer = ed25519().register(&ed25519().registration(&CHALLENGE));
        answer["response"]["attestationObject"] = json!(URL_SAFE_NO_PAD.encode(&data));
        prop_assert!(registered(&answer).is_err());
    }
}
