use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::jws::signer::Signer;

const CONFIGURATION: &str = "/.well-known/openid-configuration";
const CLIENT_ID: &str = "stationmaster";
const SECRET: &str = "a secret/with+signs";

/// An issuer that works, and ourselves as its client.
struct Idp {
    fake: Fake,
    signer: Signer,
    issuer: Issuer,
}

impl Idp {
    async fn start() -> Self {
        Self::at(Pace::default()).await
    }

    async fn at(pace: Pace) -> Self {
        let fake = Fake::start().await;
        let signer = Signer::p256();
        let settings = settings(&fake.url);
        let issuer = Issuer::openid_at(settings, client(), pace).unwrap();
        let idp = Self {
            fake,
            signer,
            issuer,
        };
        idp.configure(|_| ());
        idp.publish(&[idp.signer.jwk("first")]);
        idp.tell(
            json!({"sub": "248289761001", "email": "told@example.com", "email_verified": true}),
        );
        idp
    }

    /// Changes its configuration.
    fn configure(&self, change: impl Fn(&mut Value)) {
        let url = &self.fake.url;
        let mut configuration = json!({
            "issuer": url,
            "authorization_endpoint": format!("{url}/authorize?tenant=a"),
            "token_endpoint": format!("{url}/token"),
            "userinfo_endpoint": format!("{url}/userinfo"),
            "jwks_uri": format!("{url}/jwks"),
        });
        change(&mut configuration);
        self.fake
            .reply(CONFIGURATION, Reply::Json(200, configuration));
    }

    fn publish(&self, keys: &[Value]) {
        let keys = json!({"keys": keys});
        self.fake.reply("/jwks", Reply::Json(200, keys));
    }

    /// Sets the answer of its userinfo endpoint.
    fn tell(&self, claims: Value) {
        self.fake.reply("/userinfo", Reply::Json(200, claims));
    }

    fn grant(&self, id_token: &str) {
        let grant = json!({
            "access_token": "the-access-token",
            "token_type": "Bearer",
            "expires_in": 60,
            "id_token": id_token,
        });
        self.fake.reply("/token", Reply::Json(200, grant));
    }

    fn claims(&self, started: &Started) -> Value {
        json!({
            "iss": self.fake.url,
            "aud": CLIENT_ID,
            "sub": "248289761001",
            "exp": NOW + 600,
            "iat": NOW,
            "nonce": started.nonce.expose_secret(),
            "email": "ada@example.com",
            "email_verified": true,
            "name": "Ada Lovelace",
        })
    }

    async fn finish(&self, started: &Started) -> Result<SignedIn, IssuerError> {
        let pending = pending("idp", started);
        self.issuer.finish(code(), pending, now()).await
    }

    /// Signs in with an ID token whose claims were changed.
    async fn sign_in(&self, change: impl Fn(&mut Value)) -> Result<SignedIn, IssuerError> {
        let started = self.issuer.begin(REDIRECT_URI).await?;
        let mut claims = self.claims(&started);
        change(&mut claims);
        self.grant(&self.signer.token("first", &claims));
        self.finish(&started).await
    }
}

fn settings(issuer: &str) -> OpenIdSettings {
    OpenIdSettings {
        name: slug("idp"),
        issuer: issuer.to_owned(),
        client_id: CLIENT_ID.to_owned(),
        client_secret: Some(secret(SECRET)),
        scopes: "openid email profile".to_owned(),
    }
}

fn removed(name: &str) -> impl Fn(&mut Value) {
    move |claims| {
        claims.as_object_mut().unwrap().remove(name).unwrap();
    }
}

#[tokio::test]
async fn a_person_signs_in_with_state_nonce_and_proof_of_the_code() {
    let idp = Idp::start().await;
    let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    assert!(
        started
            .url
            .starts_with(&format!("{}/authorize?tenant=a&", idp.fake.url))
    );
    let asked = query_of(&started.url);
    let verifier = started.pkce_verifier.expose_secret();
    let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
    for (name, value) in [
        ("tenant", "a"),
        ("response_type", "code"),
        ("client_id", CLIENT_ID),
        ("redirect_uri", REDIRECT_URI),
        ("scope", "openid email profile"),
        ("state", started.state.expose_secret()),
        ("nonce", started.nonce.expose_secret()),
        ("code_challenge", &challenge),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(asked[name], value, "{name}");
    }
    assert_eq!(asked.len(), 9);
    let secrets = [&started.state, &started.nonce, &started.pkce_verifier];
    assert!(secrets.iter().all(|one| one.expose_secret().len() == 43));
    let again = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    assert_ne!(again.state.expose_secret(), started.state.expose_secret());

    idp.grant(&idp.signer.token("first", &idp.claims(&started)));
    let person = idp.finish(&started).await.unwrap();
    let expected = SignedIn {
        provider: "idp".to_owned(),
        issuer: idp.fake.url.clone(),
        subject: "248289761001".to_owned(),
        email: Some(Email {
            address: "ada@example.com".to_owned(),
            verified: true,
        }),
        name: Some("Ada Lovelace".to_owned()),
    };
    assert_eq!(person, expected);
    let token = &idp.fake.asked("/token")[0];
    let form = parameters(&token.body);
    for (name, value) in [
        ("grant_type", "authorization_code"),
        ("code", "the-code"),
        ("redirect_uri", REDIRECT_URI),
        ("code_verifier", verifier),
    ] {
        assert_eq!(form[name], value, "{name}");
    }
    assert_eq!(form.len(), 4);
    assert!(token.headers["authorization"].starts_with("Basic "));
    assert!(idp.fake.asked("/userinfo").is_empty());
    assert_eq!(idp.fake.asked(CONFIGURATION).len(), 1);
    assert_eq!(idp.fake.asked("/jwks").len(), 1);
}

#[tokio::test]
async fn the_secret_goes_where_the_issuer_takes_it() {
    let idp = Idp::start().await;
    idp.configure(|configuration| {
        configuration["token_endpoint_auth_methods_supported"] =
            json!(["private_key_jwt", "client_secret_post"]);
    });
    idp.sign_in(|_| ()).await.unwrap();
    let token = &idp.fake.asked("/token")[0];
    assert!(!token.headers.contains_key("authorization"));
    assert_eq!(parameters(&token.body)["client_secret"], SECRET);
    let public = OpenIdSettings {
        client_secret: None,
        ..settings(&idp.fake.url)
    };
    let idp = Idp {
        issuer: Issuer::openid(public, client()).unwrap(),
        ..idp
    };
    idp.sign_in(|_| ()).await.unwrap();
    let token = &idp.fake.asked("/token")[1];
    assert!(!token.headers.contains_key("authorization"));
    let form = parameters(&token.body);
    assert_eq!(form["client_id"], CLIENT_ID);
    assert!(!form.contains_key("client_secret"));
}

#[tokio::test]
async fn an_id_token_that_is_not_for_this_sign_in_is_refused() {
    let idp = Idp::start().await;
    let other = [
        ("iss", json!("https://evil.example"), "claim"),
        ("iss", json!(format!("{}/", idp.fake.url)), "claim"),
        ("aud", json!("another client"), "claim"),
        ("aud", json!([CLIENT_ID, "another client"]), "azp"),
        ("azp", json!("another client"), "azp"),
        ("azp", json!(1), "azp"),
        ("nonce", json!("another nonce"), "nonce"),
        ("nonce", json!(""), "nonce"),
        ("nonce", json!(null), "nonce"),
        ("exp", json!(NOW - 61), "expired"),
        ("iat", json!(NOW + 61), "claim"),
        ("sub", json!(""), "sub"),
        ("sub", json!(7), "sub"),
        ("sub", json!("x".repeat(256)), "sub"),
        ("sub", json!("a\nb"), "sub"),
    ];
    for (name, value, reason) in other {
        let outcome = idp.sign_in(|claims| claims[name] = value.clone()).await;
        assert_eq!(outcome, Err(IssuerError::Refused(reason)), "{name} {value}");
    }
    for (name, reason) in [
        ("iss", "claim"),
        ("aud", "claim"),
        ("exp", "claim"),
        ("iat", "claim"),
        ("nonce", "nonce"),
        ("sub", "sub"),
    ] {
        let outcome = idp.sign_in(removed(name)).await;
        assert_eq!(outcome, Err(IssuerError::Refused(reason)), "no {name}");
    }
    let shared = idp.sign_in(|claims| {
        claims["aud"] = json!(["another client", CLIENT_ID]);
        claims["azp"] = json!(CLIENT_ID);
    });
    assert!(shared.await.is_ok());
}

#[tokio::test]
async fn an_id_token_that_the_issuer_did_not_sign_is_refused() {
    let idp = Idp::start().await;
    let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    let claims = idp.claims(&started);
    let none = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let good = idp.signer.token("first", &claims);
    for (token, reason) in [
        (Signer::p256().token("first", &claims), "signature"),
        (Signer::rsa().token("first", &claims), "alg"),
        (Signer::p256().token("other", &claims), "kid"),
        (none, "alg"),
        (String::new(), "malformed"),
        (format!("{good}A"), "signature"),
        (good.replace('.', ".."), "malformed"),
    ] {
        idp.grant(&token);
        let outcome = idp.finish(&started).await;
        assert_eq!(outcome, Err(IssuerError::Refused(reason)), "{token}");
    }
    idp.grant(&good);
    assert!(idp.finish(&started).await.is_ok());
}

#[tokio::test]
async fn a_callback_of_another_issuer_is_refused_before_the_code_is_sent() {
    let idp = Idp::at(hasty()).await;
    let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    let finish = async |provider: &str, iss: Option<&str>| {
        let callback = Callback { iss, ..code() };
        let pending = pending(provider, &started);
        idp.issuer.finish(callback, pending, now()).await
    };
    let other = finish("github", None).await;
    assert_eq!(other, Err(IssuerError::Refused("other_provider")));
    let slash = format!("{}/", idp.fake.url);
    for iss in ["https://evil.example", "", slash.as_str()] {
        let outcome = finish("idp", Some(iss)).await;
        assert_eq!(outcome, Err(IssuerError::Refused("iss")), "{iss}");
    }
    assert!(idp.fake.asked("/token").is_empty());
    idp.grant(&idp.signer.token("first", &idp.claims(&started)));
    assert!(finish("idp", None).await.is_ok());
    assert!(finish("idp", Some(&idp.fake.url)).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_says_that_it_names_itself_must_do_so() {
    let idp = Idp::start().await;
    idp.configure(|configuration| {
        configuration["authorization_response_iss_parameter_supported"] = json!(true);
    });
    let outcome = idp.sign_in(|_| ()).await;
    assert_eq!(outcome, Err(IssuerError::Refused("iss")));
    assert!(idp.fake.asked("/token").is_empty());
}

#[tokio::test]
async fn a_callback_without_a_code_is_no_sign_in() {
    let idp = Idp::start().await;
    let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    let long = "c".repeat(4097);
    for (error, code, expected) in [
        (Some("access_denied"), None, IssuerError::Denied),
        (Some("access_denied"), Some("c"), IssuerError::Denied),
        (
            Some("server_error"),
            None,
            IssuerError::Passing("unavailable"),
        ),
        (
            Some("temporarily_unavailable"),
            None,
            IssuerError::Passing("unavailable"),
        ),
        (
            Some("invalid_scope"),
            None,
            IssuerError::Refused("error_in_callback"),
        ),
        (Some(""), None, IssuerError::Refused("error_in_callback")),
        (None, None, IssuerError::Refused("no_code")),
        (None, Some(""), IssuerError::Refused("no_code")),
        (None, Some("a b"), IssuerError::Refused("no_code")),
        (None, Some(long.as_str()), IssuerError::Refused("no_code")),
    ] {
        let callback = Callback {
            code,
            iss: None,
            error,
        };
        let pending = pending("idp", &started);
        let outcome = idp.issuer.finish(callback, pending, now()).await;
        assert_eq!(outcome, Err(expected), "{error:?} {code:?}");
    }
    assert!(idp.fake.asked("/token").is_empty());
}

#[tokio::test]
async fn an_issuer_in_trouble_can_be_tried_again() {
    for path in [CONFIGURATION, "/token", "/jwks", "/userinfo"] {
        let idp = Idp::at(hasty()).await;
        for trouble in troubles(&format!("{}/elsewhere", idp.fake.url)) {
            let idp = Idp::at(hasty()).await;
            let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
            let mut claims = idp.claims(&started);
            removed("email")(&mut claims);
            idp.grant(&idp.signer.token("first", &claims));
            idp.fake.reply(path, trouble);
            // Of what was known already, the configuration serves on.
            let outcome = if path == CONFIGURATION {
                let fresh = Issuer::openid(settings(&idp.fake.url), client()).unwrap();
                fresh.begin(REDIRECT_URI).await.map(|_| ())
            } else {
                idp.finish(&started).await.map(|_| ())
            };
            assert!(
                matches!(outcome, Err(IssuerError::Passing(_))),
                "{path} {outcome:?}"
            );
        }
        assert!(idp.fake.asked("/elsewhere").is_empty());
    }
}

#[tokio::test]
async fn an_issuer_that_is_silent_can_be_tried_again() {
    for path in [CONFIGURATION, "/token", "/jwks", "/userinfo"] {
        let idp = Idp::start().await;
        let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
        let mut claims = idp.claims(&started);
        removed("email")(&mut claims);
        idp.grant(&idp.signer.token("first", &claims));
        idp.fake.reply(path, Reply::Never);
        let settings = settings(&idp.fake.url);
        let issuer = Issuer::openid_at(settings, client(), impatient()).unwrap();
        let pending = pending("idp", &started);
        let outcome = issuer.finish(code(), pending, now()).await;
        assert_eq!(outcome, Err(IssuerError::Passing("timeout")), "{path}");
    }
}

#[tokio::test]
async fn an_issuer_that_is_gone_can_be_tried_again() {
    let url = Fake::start().await.url.clone();
    let issuer = Issuer::openid(settings(&url), client()).unwrap();
    let outcome = issuer.begin(REDIRECT_URI).await.map(|_| ());
    assert!(
        matches!(outcome, Err(IssuerError::Passing(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_configuration_that_can_not_be_trusted_is_refused() {
    let idp = Idp::at(hasty()).await;
    let set = |name: &'static str, value: Value| {
        idp.configure(|configuration| configuration[name] = value.clone());
    };
    let url = idp.fake.url.as_str();
    for (name, value, reason) in [
        ("issuer", json!("https://evil.example"), "other_issuer"),
        ("issuer", json!(format!("{url}/")), "other_issuer"),
        ("issuer", json!(null), "other_issuer"),
        (
            "authorization_endpoint",
            json!("http://evil.example/a"),
            "configuration",
        ),
        (
            "authorization_endpoint",
            json!("javascript:alert(1)"),
            "configuration",
        ),
        (
            "token_endpoint",
            json!("http://evil.example/t"),
            "configuration",
        ),
        ("token_endpoint", json!(null), "configuration"),
        ("jwks_uri", json!("http://evil.example/k"), "configuration"),
        (
            "jwks_uri",
            json!(["https://evil.example/k"]),
            "configuration",
        ),
    ] {
        set(name, value.clone());
        let outcome = idp.issuer.begin(REDIRECT_URI).await.map(|_| ());
        assert_eq!(outcome, Err(IssuerError::Refused(reason)), "{name} {value}");
    }
    for (status, body, reason) in [
        (404, json!({}), "no_configuration"),
        (401, json!({}), "no_configuration"),
        (200, json!([]), "malformed_answer"),
    ] {
        idp.fake.reply(CONFIGURATION, Reply::Json(status, body));
        let outcome = idp.issuer.begin(REDIRECT_URI).await.map(|_| ());
        assert_eq!(outcome, Err(IssuerError::Refused(reason)));
    }
    idp.configure(|_| ());
    assert!(idp.issuer.begin(REDIRECT_URI).await.is_ok());
}

#[tokio::test]
async fn answers_that_are_no_grant_or_no_keys_are_refused() {
    let idp = Idp::at(hasty()).await;
    let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    let invalid = json!({"error": "invalid_grant"});
    for (status, body, reason) in [
        (400, invalid.clone(), "code_refused"),
        (401, json!({}), "code_refused"),
        (200, invalid, "code_refused"),
        (201, json!({"id_token": "x"}), "code_refused"),
        (200, json!({"access_token": "x"}), "no_id_token"),
        (200, json!({"id_token": {}}), "no_id_token"),
        (200, json!("id_token"), "malformed_answer"),
    ] {
        idp.fake.reply("/token", Reply::Json(status, body.clone()));
        let outcome = idp.finish(&started).await;
        assert_eq!(
            outcome,
            Err(IssuerError::Refused(reason)),
            "{status} {body}"
        );
    }
    idp.grant(&idp.signer.token("first", &idp.claims(&started)));
    for (status, body) in [
        (404, json!({})),
        (200, json!({"keys": []})),
        (200, json!({"keys": [{"kty": "oct", "k": "AAAA"}]})),
        (200, json!([])),
    ] {
        idp.fake.reply("/jwks", Reply::Json(status, body));
        let outcome = idp.finish(&started).await;
        assert_eq!(outcome, Err(IssuerError::Refused("no_keys")));
    }
}

#[tokio::test]
async fn userinfo_is_asked_only_for_an_address_that_the_token_lacks() {
    let idp = Idp::start().await;
    let email = |address: &str, verified| {
        let address = address.to_owned();
        Some(Email { address, verified })
    };
    let person = idp.sign_in(removed("email_verified")).await.unwrap();
    assert_eq!(person.email, email("ada@example.com", false));
    for (value, verified) in [
        (json!("true"), true),
        (json!("false"), false),
        (json!(1), false),
        (json!(false), false),
    ] {
        let person = idp.sign_in(|claims| claims["email_verified"] = value.clone());
        assert_eq!(
            person.await.unwrap().email,
            email("ada@example.com", verified)
        );
    }
    assert!(idp.fake.asked("/userinfo").is_empty());
    let person = idp.sign_in(removed("email")).await.unwrap();
    assert_eq!(person.email, email("told@example.com", true));
    assert_eq!(person.name.as_deref(), Some("Ada Lovelace"));
    let asked = &idp.fake.asked("/userinfo")[0];
    assert_eq!(asked.headers["authorization"], "Bearer the-access-token");
    idp.tell(json!({"sub": "somebody else", "email": "eve@example.com", "email_verified": true}));
    let outcome = idp.sign_in(removed("email")).await;
    assert_eq!(outcome, Err(IssuerError::Refused("userinfo_sub")));
    idp.fake.reply("/userinfo", Reply::Json(401, json!({})));
    let outcome = idp.sign_in(removed("email")).await;
    assert_eq!(outcome, Err(IssuerError::Refused("userinfo_refused")));
    idp.tell(json!({"sub": "248289761001"}));
    let person = idp.sign_in(removed("email")).await.unwrap();
    assert_eq!(person.email, None);
    let long = format!("{}@example.com", "x".repeat(320));
    let person = idp.sign_in(|claims| {
        claims["email"] = json!(long);
        claims["name"] = json!("ä".repeat(500));
    });
    let person = person.await.unwrap();
    assert_eq!(person.email, None);
    assert_eq!(person.name, Some("ä".repeat(200)));
}

#[tokio::test]
async fn a_new_key_is_fetched_and_an_old_one_no_longer_counts() {
    let idp = Idp::at(hasty()).await;
    idp.sign_in(|_| ()).await.unwrap();
    let second = Signer::ed25519();
    idp.publish(&[second.jwk("second")]);
    let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    idp.grant(&second.token("second", &idp.claims(&started)));
    assert!(idp.finish(&started).await.is_ok());
    assert_eq!(idp.fake.asked("/jwks").len(), 2);
    let outcome = idp.sign_in(|_| ()).await;
    assert_eq!(outcome, Err(IssuerError::Refused("kid")));
}

#[tokio::test]
async fn unknown_keys_lead_to_one_fetch_in_a_while() {
    let minute = Duration::from_mins(1);
    let idp = Idp::at(Pace {
        cool_down: 10 * minute,
        ..Pace::default()
    })
    .await;
    let started = idp.issuer.begin(REDIRECT_URI).await.unwrap();
    for at in 0..20 {
        let kid = format!("key {at}");
        idp.grant(&idp.signer.token(&kid, &idp.claims(&started)));
        let outcome = idp.finish(&started).await;
        assert_eq!(outcome, Err(IssuerError::Refused("kid")));
    }
    assert_eq!(idp.fake.asked("/jwks").len(), 1);
    // The keys that are known serve on.
    assert!(idp.sign_in(|_| ()).await.is_ok());
    assert_eq!(idp.fake.asked("/jwks").len(), 1);
}

#[tokio::test]
async fn many_at_once_lead_to_one_fetch() {
    let idp = Idp::start().await;
    let begun = futures_util::future::join_all((0..10).map(|_| idp.issuer.begin(REDIRECT_URI)));
    let begun = begun.await;
    assert_eq!(idp.fake.asked(CONFIGURATION).len(), 1);
    let started = begun.into_iter().next().unwrap().unwrap();
    idp.grant(&idp.signer.token("first", &idp.claims(&started)));
    let ended = futures_util::future::join_all((0..10).map(|_| idp.finish(&started))).await;
    assert!(ended.iter().all(Result::is_ok));
    assert_eq!(idp.fake.asked("/jwks").len(), 1);
    assert_eq!(idp.fake.asked("/token").len(), 10);
}

#[tokio::test]
async fn what_is_old_serves_while_the_issuer_is_in_trouble() {
    let idp = Idp::at(Pace {
        fresh_for: Duration::ZERO,
        ..hasty()
    })
    .await;
    idp.sign_in(|_| ()).await.unwrap();
    let before = idp.fake.asked("/jwks").len();
    for path in [CONFIGURATION, "/jwks"] {
        idp.fake.reply(path, Reply::Json(500, json!({})));
    }
    assert!(idp.sign_in(|_| ()).await.is_ok());
    assert!(idp.fake.asked("/jwks").len() > before);
}

#[tokio::test]
async fn what_failed_is_not_asked_again_at_once() {
    let idp = Idp::at(Pace {
        cool_down: Duration::from_mins(10),
        ..Pace::default()
    })
    .await;
    idp.fake.reply(CONFIGURATION, Reply::Json(500, json!({})));
    for _ in 0..5 {
        let outcome = idp.issuer.begin(REDIRECT_URI).await.map(|_| ());
        assert_eq!(outcome, Err(IssuerError::Passing("unavailable")));
    }
    assert_eq!(idp.fake.asked(CONFIGURATION).len(), 1);
}

#[test]
fn settings_that_can_not_work_are_refused() {
    let judged = |settings| Issuer::openid(settings, client()).map(|_| ());
    assert_eq!(judged(settings("https://issuer.example/realms/a")), Ok(()));
    for issuer in [
        "http://issuer.example",
        "https://issuer.example?a=b",
        "issuer",
    ] {
        assert_eq!(judged(settings(issuer)), Err(InvalidSettings::Url));
    }
    let good = || settings("https://issuer.example");
    let nobody = OpenIdSettings {
        client_id: String::new(),
        ..good()
    };
    assert_eq!(judged(nobody), Err(InvalidSettings::ClientId));
    let scopes = OpenIdSettings {
        scopes: "email openid2".to_owned(),
        ..good()
    };
    assert_eq!(judged(scopes), Err(InvalidSettings::Scopes));
}
