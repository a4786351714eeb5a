use proptest::prelude::*;
use ring::hmac;
use serde_json::json;

use super::{signer::Signer, *};

const NOW: i64 = 1_800_000_000;

fn keys(jwks: &[Value]) -> KeySet {
    KeySet::parse(json!({"keys": jwks}).to_string().as_bytes()).unwrap()
}

fn good_claims() -> Value {
    json!({"iss": "https://issuer.example", "aud": "us", "exp": NOW, "iat": NOW, "sub": "1"})
}

fn judge(token: &str, keys: &KeySet) -> Result<Claims, JwsError> {
    verify(token, keys, &Algorithm::ALL)
}

fn check(claims: &Value) -> Result<(), JwsError> {
    let signer = Signer::ed25519();
    let claims = judge(&signer.token("k", claims), &keys(&[signer.jwk("k")])).unwrap();
    claims.check(&Expected {
        issuer: "https://issuer.example",
        audience: "us",
        now: Timestamp::from_ms(NOW * 1000),
        leeway: Duration::from_secs(30),
    })
}

#[test]
fn a_token_of_each_algorithm_is_verified_by_its_key_alone() {
    let signers = Signer::all();
    let all: Vec<Value> = signers.iter().map(|one| one.jwk(one.algorithm())).collect();
    let all = keys(&all);
    for signer in &signers {
        let name = signer.algorithm();
        let token = signer.token(name, &good_claims());
        let claims = judge(&token, &all).unwrap();
        assert_eq!(claims.text("sub"), Some("1"));
        assert_eq!(claims.get("iat"), Some(&json!(NOW)));
        let only = [Algorithm::parse(name).unwrap()];
        assert!(verify(&token, &all, &only).is_ok());
        let others: Vec<Algorithm> = Algorithm::ALL
            .into_iter()
            .filter(|one| *one != only[0])
            .collect();
        assert_eq!(verify(&token, &all, &others), Err(JwsError::Algorithm));
        // The key of another pair, under the same identifier.
        let stranger = match signer {
            Signer::Ed25519(_) => Signer::ed25519(),
            Signer::P256(_) => Signer::p256(),
            Signer::Rsa(_) => continue,
        };
        let strangers = keys(&[stranger.jwk(name)]);
        assert_eq!(judge(&token, &strangers), Err(JwsError::Signature));
    }
}

#[test]
fn every_changed_byte_of_a_signature_is_noticed() {
    for signer in Signer::all() {
        let set = keys(&[signer.jwk("k")]);
        let token = signer.token("k", &good_claims());
        let (input, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        for at in (0..signature.len()).step_by(7) {
            let mut changed = signature.clone();
            changed[at] ^= 0x10;
            let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(changed));
            assert_eq!(judge(&token, &set), Err(JwsError::Signature), "byte {at}");
        }
        for other in [&[][..], &[0; 64], &signature[1..]] {
            let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(other));
            assert_eq!(judge(&token, &set), Err(JwsError::Signature));
        }
        let other = signer.token("k", &json!({"sub": "2"}));
        let payload = other.split('.').nth(1).unwrap();
        let mut parts: Vec<&str> = token.split('.').collect();
        parts[1] = payload;
        assert_eq!(judge(&parts.join("."), &set), Err(JwsError::Signature));
    }
}

#[test]
fn es256_takes_the_fixed_form_alone() {
    let signer = Signer::p256();
    let token = signer.token("k", &good_claims());
    let (input, signature) = token.rsplit_once('.').unwrap();
    let raw = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let mut der = vec![0x30, 0];
    for half in raw.chunks(32) {
        der.extend([0x02, 33, 0]);
        der.extend(half);
    }
    der[1] = u8::try_from(der.len() - 2).unwrap();
    let token = format!("{input}.{}", URL_SAFE_NO_PAD.encode(der));
    let set = keys(&[signer.jwk("k")]);
    assert_eq!(judge(&token, &set), Err(JwsError::Signature));
}

#[test]
fn an_algorithm_that_is_not_the_keys_is_refused() {
    let signer = Signer::rsa();
    let set = keys(&[signer.jwk("k")]);
    let payload = good_claims().to_string();
    for algorithm in [
        "none", "NONE", "HS256", "RS384", "PS256", "ES384", "Ed448", "EdDSA", "ES256", "rs256", "",
    ] {
        let header = json!({"alg": algorithm, "kid": "k"}).to_string();
        let token = signer.token_of(&header, payload.as_bytes());
        assert_eq!(judge(&token, &set), Err(JwsError::Algorithm), "{algorithm}");
    }
    // The public key as the secret of an HMAC.
    let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","kid":"k"}"#);
    let input = format!("{header}.{}", URL_SAFE_NO_PAD.encode(&payload));
    let secret = hmac::Key::new(
        hmac::HMAC_SHA256,
        signer.jwk("k")["n"].to_string().as_bytes(),
    );
    let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&secret, input.as_bytes()));
    assert_eq!(
        judge(&format!("{input}.{tag}"), &set),
        Err(JwsError::Algorithm)
    );
    for header in [
        r#"{"kid":"k"}"#,
        r#"{"alg":null,"kid":"k"}"#,
        r#"{"alg":["RS256"]}"#,
    ] {
        let token = signer.token_of(header, payload.as_bytes());
        assert_eq!(judge(&token, &set), Err(JwsError::Malformed), "{header}");
    }
}

#[test]
fn ed25519_goes_by_its_newer_name_too() {
    let signer = Signer::ed25519();
    let header = r#"{"alg":"Ed25519","kid":"k","x5t":"thumbprint"}"#;
    let token = signer.token_of(header, good_claims().to_string().as_bytes());
    assert!(judge(&token, &keys(&[signer.jwk("k")])).is_ok());
}

#[test]
fn headers_that_name_a_key_or_change_what_is_signed_are_refused() {
    let signer = Signer::ed25519();
    let set = keys(&[signer.jwk("k")]);
    for (name, value) in [
        ("crit", json!(["exp"])),
        ("b64", json!(false)),
        ("b64", json!(true)),
        ("zip", json!("DEF")),
        ("jwk", signer.jwk("k")),
        ("jku", json!("https://issuer.example/jwks")),
        ("x5u", json!("https://issuer.example/certificate")),
        ("x5c", json!(["MIIB"])),
        ("typ", json!("at+jwt")),
        ("typ", json!(1)),
        ("kid", json!(["k"])),
        ("kid", json!("k".repeat(129))),
        ("kid", json!(null)),
    ] {
        let mut header = json!({"alg": "EdDSA", "kid": "k"});
        header[name] = value;
        let token = signer.token_of(&header.to_string(), good_claims().to_string().as_bytes());
        assert_eq!(judge(&token, &set), Err(JwsError::Malformed), "{header}");
    }
}

#[test]
fn a_name_that_stands_twice_is_refused_in_header_and_claims() {
    let signer = Signer::ed25519();
    let set = keys(&[signer.jwk("k")]);
    let good = r#"{"alg":"EdDSA","kid":"k"}"#;
    for (header, payload) in [
        (r#"{"alg":"EdDSA","kid":"j","kid":"k"}"#, r#"{"sub":"1"}"#),
        (good, r#"{"sub":"1","sub":"2"}"#),
        (good, r#"["sub"]"#),
        (good, ""),
        (r#""EdDSA""#, "{}"),
    ] {
        let token = signer.token_of(header, payload.as_bytes());
        assert_eq!(
            judge(&token, &set),
            Err(JwsError::Malformed),
            "{header} {payload}"
        );
    }
    let token = signer.token_of(good, b"{\"sub\":\"\xff\"}");
    assert_eq!(judge(&token, &set), Err(JwsError::Malformed));
}

#[test]
fn only_the_compact_canonical_form_is_read() {
    let signer = Signer::ed25519();
    let set = keys(&[signer.jwk("k")]);
    let token = signer.token("k", &good_claims());
    let (input, signature) = token.rsplit_once('.').unwrap();
    // 64 bytes end in a character of which two bits count: its neighbour decodes alike elsewhere.
    let last = signature.chars().last().unwrap();
    let stray = match last {
        'A' => 'B',
        'Q' => 'R',
        'g' => 'h',
        _ => 'x',
    };
    let stray = format!("{input}.{}{stray}", &signature[..signature.len() - 1]);
    for bad in [
        stray,
        format!("{token}="),
        format!("{token}=="),
        format!("{token}\n"),
        format!(" {token}"),
        format!("{token}."),
        format!("{token}.x"),
        format!(".{token}"),
        input.to_owned(),
        signature.to_owned(),
        String::new(),
        "..".to_owned(),
        token.replace('.', "+"),
        json!({"payload": "e30", "signatures": []}).to_string(),
    ] {
        assert_eq!(judge(&bad, &set), Err(JwsError::Malformed), "{bad}");
    }
    assert!(judge(&token, &set).is_ok());
}

#[test]
fn a_token_over_16_kib_is_refused_unread() {
    let signer = Signer::ed25519();
    let set = keys(&[signer.jwk("k")]);
    let of = |padding: usize| signer.token("k", &json!({"sub": "x".repeat(padding)}));
    assert!(judge(&of(12_000), &set).is_ok());
    assert_eq!(judge(&of(12_400), &set), Err(JwsError::Malformed));
}

#[test]
fn keys_are_found_by_identifier() {
    let (old, new) = (Signer::ed25519(), Signer::ed25519());
    let set = keys(&[old.jwk("old"), new.jwk("new")]);
    assert!(judge(&old.token("old", &json!({})), &set).is_ok());
    let found = |token: &str| judge(token, &set).map(|_| ());
    assert_eq!(
        found(&old.token("new", &json!({}))),
        Err(JwsError::Signature)
    );
    for kid in ["OLD", "", "../../etc", "' OR 1=1", "\0"] {
        assert_eq!(
            found(&old.token(kid, &json!({}))),
            Err(JwsError::UnknownKey)
        );
    }
    // Without an identifier, only one key of the algorithm leaves no choice.
    let nameless = old.token_of(r#"{"alg":"EdDSA"}"#, b"{}");
    assert_eq!(found(&nameless), Err(JwsError::UnknownKey));
    let only = keys(&[old.jwk("old"), Signer::rsa().jwk("other")]);
    assert!(judge(&nameless, &only).is_ok());
    // Of two keys with one identifier, the first counts.
    let twins = keys(&[old.jwk("k"), new.jwk("k")]);
    assert!(judge(&old.token("k", &json!({})), &twins).is_ok());
    let second = judge(&new.token("k", &json!({})), &twins);
    assert_eq!(second, Err(JwsError::Signature));
}

#[test]
fn unusable_keys_are_left_out() {
    let signer = Signer::ed25519();
    let low_order = URL_SAFE_NO_PAD.encode([0; 32]);
    let with = |name: &str, value: Value| {
        let mut jwk = signer.jwk("k");
        jwk[name] = value;
        jwk
    };
    for bad in [
        with("use", json!("enc")),
        with("key_ops", json!(["sign"])),
        with("crv", json!("Ed448")),
        with("crv", json!("X25519")),
        with("kty", json!("oct")),
        with("kty", json!("EC")),
        with("alg", json!("RS256")),
        with("alg", json!("HS256")),
        with("d", json!("AAAA")),
        with("x", json!(low_order)),
        with("x", json!("AAAA")),
        with("x", json!(1)),
        with("kid", json!("k".repeat(129))),
        with("kid", json!(7)),
        json!("a key"),
        json!({}),
    ] {
        assert!(keys(std::slice::from_ref(&bad)).is_empty(), "{bad}");
        // The others of the set are usable all the same.
        let set = keys(&[bad, signer.jwk("k")]);
        assert!(judge(&signer.token("k", &json!({})), &set).is_ok());
    }
    for good in [
        with("use", json!("sig")),
        with("key_ops", json!(["verify"])),
        with("alg", json!("EdDSA")),
        with("alg", json!("Ed25519")),
        with("x5c", json!(["MIIB"])),
    ] {
        assert!(!keys(std::slice::from_ref(&good)).is_empty(), "{good}");
    }
    for text in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#] {
        assert_eq!(KeySet::parse(text.as_bytes()), Err(JwsError::Malformed));
    }
}

#[test]
fn claims_are_checked() {
    assert_eq!(check(&good_claims()), Ok(()));
    let cases = [
        ("exp", json!(NOW - 30), Ok(())),
        ("exp", json!(NOW - 31), Err(JwsError::Expired)),
        ("exp", json!(NOW.to_string()), Err(JwsError::Claim)),
        ("exp", json!(1e300), Err(JwsError::Claim)),
        ("exp", json!(-1), Err(JwsError::Claim)),
        ("exp", json!(null), Err(JwsError::Claim)),
        ("exp", json!(u64::MAX), Err(JwsError::Claim)),
        ("exp", json!(i64::MAX), Ok(())),
        ("nbf", json!(NOW + 30), Ok(())),
        ("nbf", json!(NOW + 31), Err(JwsError::Claim)),
        ("nbf", json!("soon"), Err(JwsError::Claim)),
        ("iat", json!(NOW + 30), Ok(())),
        ("iat", json!(NOW + 31), Err(JwsError::Claim)),
        (
            "iss",
            json!("https://issuer.example/"),
            Err(JwsError::Claim),
        ),
        ("iss", json!("https://Issuer.example"), Err(JwsError::Claim)),
        (
            "iss",
            json!(["https://issuer.example"]),
            Err(JwsError::Claim),
        ),
        ("aud", json!(["them", "us"]), Ok(())),
        ("aud", json!(["them"]), Err(JwsError::Claim)),
        ("aud", json!(["us", 1]), Err(JwsError::Claim)),
        ("aud", json!([]), Err(JwsError::Claim)),
        ("aud", json!("US"), Err(JwsError::Claim)),
        ("aud", json!({"us": 1}), Err(JwsError::Claim)),
    ];
    for (name, value, expected) in cases {
        let mut claims = good_claims();
        claims[name] = value;
        assert_eq!(check(&claims), expected, "{claims}");
    }
    for (name, expected) in [
        ("iss", Err(JwsError::Claim)),
        ("aud", Err(JwsError::Claim)),
        ("exp", Err(JwsError::Claim)),
        ("iat", Ok(())),
    ] {
        let mut claims = good_claims();
        claims.as_object_mut().unwrap().remove(name);
        assert_eq!(check(&claims), expected, "without {name}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic(token in "\\PC{0,80}", jwks in "\\PC{0,80}") {
        prop_assert!(judge(&token, &KeySet::default()).is_err());
        let _ = KeySet::parse(jwks.as_bytes());
    }

    #[test]
    fn no_signed_bytes_make_the_reader_panic(
        header in prop::collection::vec(any::<u8>(), 0..60),
        payload in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let signer = Signer::ed25519();
        let set = keys(&[signer.jwk("k")]);
        let header = String::from_utf8_lossy(&header);
        prop_assert!(judge(&signer.token_of(&header, &payload), &set).is_err());
        let good = r#"{"alg":"EdDSA","kid":"k"}"#;
        let _ = judge(&signer.token_of(good, &payload), &set);
    }
}
