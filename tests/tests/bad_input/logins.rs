//! Wrong requests about refreshes and logins.

use serde_json::{Value, json};

use super::table::{Body, Case, Who, absent, invalid, refused};

const START: &str = "/v1/accounts/oauth/start";
const FINISH: &str = "/v1/accounts/oauth/finish";
const ALL: &str = "/v1/accounts/refresh";

/// A good login, but for one member; null takes it away.
fn login(member: &str, value: Value) -> Value {
    let mut body = json!({
        "name": "new",
        "provider": "local",
        "base_url": "https://models.example.com",
        "authorize_url": "https://id.example.com/authorize",
        "token_url": "https://id.example.com/token",
        "client_id": "me",
        "scopes": "a b",
        "redirect_uri": "http://127.0.0.1:1/callback",
    });
    if value.is_null() {
        body.as_object_mut().unwrap().remove(member);
    } else {
        body[member] = value;
    }
    body
}

pub fn all() -> Vec<Case> {
    let mut all = starts();
    all.extend(finishes());
    all.extend(refreshes());
    all
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn starts() -> Vec<Case> {
    let new = |what, member: &str, value, pointer| {
        invalid(what, "POST", START, login(member, value), pointer)
    };
    let inside = |what, member: &str, pointer| {
        let body = Body::Json(login(member, json!("https://10.1.2.3/x")));
        refused(
            what,
            "POST",
            START,
            body,
            (422, "destination_refused", pointer),
        )
    };
    vec![
        new("no name", "name", json!(null), "/name"),
        new(
            "a provider in capitals",
            "provider",
            json!("Local"),
            "/provider",
        ),
        new(
            "no base URL of an unknown provider",
            "base_url",
            json!(null),
            "/base_url",
        ),
        new(
            "a connection's header",
            "header",
            json!({"name": "host"}),
            "/header/name",
        ),
        new(
            "nowhere to log in",
            "authorize_url",
            json!(null),
            "/authorize_url",
        ),
        new("no token endpoint", "token_url", json!(null), "/token_url"),
        new("no client", "client_id", json!(null), "/client_id"),
        new(
            "a line break in a client",
            "client_id",
            json!("a\nb"),
            "/client_id",
        ),
        new(
            "an empty secret",
            "client_secret",
            json!(""),
            "/client_secret",
        ),
        new(
            "a secret with a space",
            "client_secret",
            json!("a b"),
            "/client_secret",
        ),
        new(
            "two spaces between scopes",
            "scopes",
            json!("a  b"),
            "/scopes",
        ),
        new("a quote in a scope", "scopes", json!("a\"b"), "/scopes"),
        new("a list of scopes", "scopes", json!(["a"]), "/scopes"),
        new(
            "nowhere to come back to",
            "redirect_uri",
            json!(null),
            "/redirect_uri",
        ),
        new(
            "a way back that is none",
            "redirect_uri",
            json!("here"),
            "/redirect_uri",
        ),
        new(
            "a way back in the clear",
            "redirect_uri",
            json!("http://app.example.com/"),
            "/redirect_uri",
        ),
        new(
            "a way back with a fragment",
            "redirect_uri",
            json!("https://app.example.com/#x"),
            "/redirect_uri",
        ),
        new("an unknown field", "state", json!("mine"), "/state"),
        inside("a token endpoint inside", "token_url", "/token_url"),
        inside("a login inside", "authorize_url", "/authorize_url"),
        inside("an upstream inside", "base_url", "/base_url"),
        refused(
            "an account to replace that is none",
            "POST",
            START,
            Body::Json(login("replaces", json!("acc_x"))),
            (404, "not_found", "-"),
        ),
        refused(
            "a login by a runner",
            "POST",
            START,
            Body::Json(login("name", json!("x"))),
            (403, "wrong_token_kind", "-"),
        )
        .by(Who::Runner),
    ]
}

fn finishes() -> Vec<Case> {
    let new = |what, body, pointer| invalid(what, "POST", FINISH, body, pointer);
    vec![
        new("no state", json!({"code": "c"}), "/state"),
        new("no code", json!({"state": "s"}), "/code"),
        new(
            "a state with a space",
            json!({"state": "s s", "code": "c"}),
            "/state",
        ),
        new(
            "a long state",
            json!({"state": "s".repeat(101), "code": "c"}),
            "/state",
        ),
        new(
            "a long code",
            json!({"state": "s", "code": "c".repeat(4097)}),
            "/code",
        ),
        new(
            "an unknown field",
            json!({"state": "s", "code": "c", "iss": "x"}),
            "/iss",
        ),
        refused(
            "a state that nobody began",
            "POST",
            FINISH,
            Body::Json(json!({"state": "s", "code": "c"})),
            (404, "not_found", "-"),
        ),
    ]
}

fn refreshes() -> Vec<Case> {
    vec![
        invalid(
            "a dry run that is a word",
            "POST",
            ALL,
            json!({"dry_run": "yes"}),
            "/dry_run",
        ),
        invalid(
            "an unknown field",
            "POST",
            ALL,
            json!({"all": true}),
            "/all",
        ),
        absent(
            "an account that is none",
            "POST",
            "/v1/accounts/acc_x/refresh",
        ),
        refused(
            "an API key that is to be refreshed",
            "POST",
            "/v1/accounts/{account}/refresh",
            Body::None,
            (409, "wrong_credential_type", "-"),
        ),
    ]
}
