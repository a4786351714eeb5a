use serde_json::{Value, json};

use super::*;

const TOKEN: &str = "/login/oauth/access_token";
const USER: &str = "/api/user";
const EMAILS: &str = "/api/user/emails";

/// A GitHub that works, and ourselves as its client.
struct GitHubFake {
    fake: Fake,
    issuer: Issuer,
}

impl GitHubFake {
    async fn start() -> Self {
        Self::at(Pace::default()).await
    }

    async fn at(pace: Pace) -> Self {
        let fake = Fake::start().await;
        let settings = GitHubSettings {
            name: slug("github"),
            web_url: format!("{}/", fake.url),
            api_url: format!("{}/api", fake.url),
            client_id: "stationmaster".to_owned(),
            client_secret: secret("the-secret"),
        };
        let issuer = Issuer::github_at(settings, client(), pace).unwrap();
        let grant = json!({
            "access_token": "gho_token",
            "token_type": "bearer",
            "scope": "read:user,user:email",
        });
        fake.reply(TOKEN, Reply::Json(200, grant));
        fake.reply(USER, Reply::Json(200, user("ada")));
        let emails = json!([
            {"email": "old@example.com", "primary": false, "verified": true},
            {"email": "ada@example.com", "primary": true, "verified": true, "visibility": null},
        ]);
        fake.reply(EMAILS, Reply::Json(200, emails));
        Self { fake, issuer }
    }

    async fn finish(&self, callback: Callback<'_>) -> Result<SignedIn, IssuerError> {
        let started = self.issuer.begin(REDIRECT_URI).await.unwrap();
        let pending = pending("github", &started);
        self.issuer.finish(callback, pending, now()).await
    }

    async fn sign_in(&self) -> Result<SignedIn, IssuerError> {
        self.finish(code()).await
    }
}

fn user(login: &str) -> Value {
    json!({"id": 583_231, "login": login, "name": "Ada Lovelace", "email": "public@example.com"})
}

#[tokio::test]
async fn a_person_signs_in_by_number_and_primary_address() {
    let github = GitHubFake::start().await;
    let started = github.issuer.begin(REDIRECT_URI).await.unwrap();
    let address = format!("{}/login/oauth/authorize?", github.fake.url);
    assert!(started.url.starts_with(&address));
    let asked = query_of(&started.url);
    assert_eq!(asked["scope"], "read:user user:email");
    assert_eq!(asked["code_challenge_method"], "S256");
    assert_eq!(asked["state"], started.state.expose_secret());

    let pending = pending("github", &started);
    let person = github.issuer.finish(code(), pending, now()).await.unwrap();
    let expected = SignedIn {
        provider: "github".to_owned(),
        issuer: github.fake.url.clone(),
        subject: "583231".to_owned(),
        email: Some(Email {
            address: "ada@example.com".to_owned(),
            verified: true,
        }),
        name: Some("Ada Lovelace".to_owned()),
    };
    assert_eq!(person, expected);
    let token = &github.fake.asked(TOKEN)[0];
    assert_eq!(token.headers["accept"], "application/json");
    let form = parameters(&token.body);
    assert_eq!(form["client_secret"], "the-secret");
    assert_eq!(form["code_verifier"], started.pkce_verifier.expose_secret());
    for path in [USER, EMAILS] {
        let asked = &github.fake.asked(path)[0];
        assert_eq!(asked.headers["authorization"], "Bearer gho_token");
        assert!(!asked.headers["user-agent"].is_empty());
    }
}

#[tokio::test]
async fn another_login_name_is_the_same_person() {
    let github = GitHubFake::start().await;
    let before = github.sign_in().await.unwrap();
    let mut renamed = user("countess");
    renamed["name"] = json!(null);
    github.fake.reply(USER, Reply::Json(200, renamed));
    let after = github.sign_in().await.unwrap();
    assert_eq!(
        (before.issuer, before.subject),
        (after.issuer, after.subject)
    );
    assert_eq!(after.name.as_deref(), Some("countess"));
}

#[tokio::test]
async fn an_address_counts_as_verified_only_if_github_says_so() {
    let github = GitHubFake::start().await;
    for (email, expected) in [
        (json!({"primary": true, "verified": false}), Some(false)),
        (json!({"primary": true}), Some(false)),
        (json!({"primary": true, "verified": "true"}), Some(false)),
        (json!({"primary": true, "verified": true}), Some(true)),
        (json!({"primary": false, "verified": true}), None),
        (json!({"verified": true}), None),
    ] {
        let mut email = email;
        email["email"] = json!("ada@example.com");
        github.fake.reply(EMAILS, Reply::Json(200, json!([email])));
        let found = github.sign_in().await.unwrap().email;
        assert_eq!(found.map(|email| email.verified), expected, "{email}");
    }
    github.fake.reply(EMAILS, Reply::Json(200, json!([])));
    assert_eq!(github.sign_in().await.unwrap().email, None);
}

#[tokio::test]
async fn an_error_with_the_status_of_a_success_is_an_error() {
    let github = GitHubFake::start().await;
    for error in ["bad_verification_code", "incorrect_client_credentials"] {
        let answer = json!({"error": error, "access_token": "gho_token"});
        github.fake.reply(TOKEN, Reply::Json(200, answer));
        let outcome = github.sign_in().await;
        assert_eq!(outcome, Err(IssuerError::Refused("code_refused")));
    }
    for token in [json!(null), json!(""), json!("two words"), json!(["x"])] {
        let answer = json!({"access_token": token});
        github.fake.reply(TOKEN, Reply::Json(200, answer));
        let outcome = github.sign_in().await;
        assert_eq!(outcome, Err(IssuerError::Refused("no_access_token")));
    }
    assert!(github.fake.asked(USER).is_empty());
}

#[tokio::test]
async fn a_person_without_a_number_is_refused() {
    let github = GitHubFake::start().await;
    for id in [json!(null), json!("583231"), json!(-1), json!(1.5)] {
        let mut user = user("ada");
        user["id"] = id;
        github.fake.reply(USER, Reply::Json(200, user));
        assert_eq!(github.sign_in().await, Err(IssuerError::Refused("sub")));
    }
    github.fake.reply(USER, Reply::Json(401, json!({})));
    let outcome = github.sign_in().await;
    assert_eq!(outcome, Err(IssuerError::Refused("api_refused")));
}

#[tokio::test]
async fn a_github_in_trouble_can_be_tried_again() {
    for path in [TOKEN, USER, EMAILS] {
        let github = GitHubFake::start().await;
        for trouble in troubles(&format!("{}/elsewhere", github.fake.url)) {
            github.fake.reply(path, trouble);
            let outcome = github.sign_in().await;
            assert!(
                matches!(outcome, Err(IssuerError::Passing(_))),
                "{path} {outcome:?}"
            );
        }
        assert!(github.fake.asked("/elsewhere").is_empty());
        let github = GitHubFake::at(impatient()).await;
        github.fake.reply(path, Reply::Never);
        let outcome = github.sign_in().await;
        assert_eq!(outcome, Err(IssuerError::Passing("timeout")), "{path}");
    }
}

#[tokio::test]
async fn a_denial_and_an_issuer_of_another_name_reach_nobody() {
    let github = GitHubFake::start().await;
    let denied = Callback {
        error: Some("access_denied"),
        ..Callback::default()
    };
    assert_eq!(github.finish(denied).await, Err(IssuerError::Denied));
    for iss in ["https://idp.example", "", "https://github.com.evil.example"] {
        let callback = Callback {
            iss: Some(iss),
            ..code()
        };
        let outcome = github.finish(callback).await;
        assert_eq!(outcome, Err(IssuerError::Refused("iss")), "{iss}");
    }
    let started = github.issuer.begin(REDIRECT_URI).await.unwrap();
    let pending = pending("idp", &started);
    let outcome = github.issuer.finish(code(), pending, now()).await;
    assert_eq!(outcome, Err(IssuerError::Refused("other_provider")));
    assert!(github.fake.asked(TOKEN).is_empty());
    let own = format!("{}/login/oauth", github.fake.url);
    for iss in [github.fake.url.as_str(), &own] {
        let callback = Callback {
            iss: Some(iss),
            ..code()
        };
        assert!(github.finish(callback).await.is_ok());
    }
}

#[test]
fn what_is_under_way_may_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let settings = GitHubSettings {
        name: slug("github"),
        web_url: "https://github.com".to_owned(),
        api_url: "https://api.github.com".to_owned(),
        client_id: "stationmaster".to_owned(),
        client_secret: secret("the-secret"),
    };
    let issuer = Issuer::github(settings.clone(), client()).unwrap();
    is_send(issuer.begin(REDIRECT_URI));
    let text = secret("x");
    let pending = Pending {
        provider: "github",
        redirect_uri: REDIRECT_URI,
        nonce: &text,
        pkce_verifier: &text,
    };
    is_send(issuer.finish(code(), pending, now()));
    for (web_url, api_url) in [
        ("http://github.example", "https://api.github.com"),
        ("https://github.com", "http://api.github.example"),
    ] {
        let settings = GitHubSettings {
            web_url: web_url.to_owned(),
            api_url: api_url.to_owned(),
            ..settings.clone()
        };
        let judged = Issuer::github(settings, client()).map(|_| ());
        assert_eq!(judged, Err(InvalidSettings::Url));
    }
}
