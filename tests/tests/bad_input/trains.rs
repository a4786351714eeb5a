//! Wrong requests about accounts and trains.

use serde_json::{Value, json};

use super::table::{Body, Case, Who, absent, invalid, refused};

const ACCOUNTS: &str = "/v1/accounts";
const TRAINS: &str = "/v1/trains";
const NIGHT: &str = "/v1/trains/night";

pub fn all() -> Vec<Case> {
    let mut all = accounts();
    all.extend(oauth());
    all.extend(trains());
    all.extend(tokens_of_trains());
    all.extend(resolving());
    all
}

/// A good account, but for these members; null takes one away.
fn account(but: &Value) -> Value {
    let mut body = json!({
        "name": "new",
        "provider": "local",
        "base_url": "https://models.example.com",
        "credential_type": "api_key",
        "api_key": "sk-never-0123456789",
    });
    json_patch(&mut body, but);
    body
}

fn tokens(but: &Value) -> Value {
    let mut body = json!({
        "access_token": "at-never-0123456789",
        "refresh_token": "rt-never-0123456789",
        "expires_at": "2030-01-01T00:00:00Z",
        "token_url": "https://auth.example.com/token",
        "client_id": "me",
    });
    json_patch(&mut body, but);
    account(&json!({"api_key": null, "credential_type": "oauth", "oauth": body}))
}

fn json_patch(body: &mut Value, but: &Value) {
    for (member, value) in but.as_object().unwrap() {
        if value.is_null() {
            body.as_object_mut().unwrap().remove(member);
        } else {
            body[member] = value.clone();
        }
    }
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn accounts() -> Vec<Case> {
    let new = |what, but: Value, pointer| invalid(what, "POST", ACCOUNTS, account(&but), pointer);
    let header = |what, name: &str| new(what, json!({"header": {"name": name}}), "/header/name");
    let patch =
        |what, body, pointer| invalid(what, "PATCH", "/v1/accounts/{account}", body, pointer);
    let end = |what, body, pointer| {
        invalid(
            what,
            "POST",
            "/v1/accounts/{account}/end-cooldown",
            body,
            pointer,
        )
    };
    let inside = Body::Json(account(&json!({"base_url": "https://10.1.2.3/v1"})));
    let to = (422, "destination_refused", "/base_url");
    vec![
        new("no name", json!({"name": null}), "/name"),
        new("an empty name of an account", json!({"name": ""}), "/name"),
        new(
            "a provider in capitals",
            json!({"provider": "OpenAI"}),
            "/provider",
        ),
        new(
            "no type of credential",
            json!({"credential_type": null}),
            "/credential_type",
        ),
        new(
            "an unknown type",
            json!({"credential_type": "password"}),
            "/credential_type",
        ),
        new("no key", json!({"api_key": null}), "/api_key"),
        new(
            "a key of few characters",
            json!({"api_key": "sk-1"}),
            "/api_key",
        ),
        new(
            "a key with a line break",
            json!({"api_key": "sk-0123456789\r\nx: y"}),
            "/api_key",
        ),
        new(
            "a key too long",
            json!({"api_key": "k".repeat(8193)}),
            "/api_key",
        ),
        new(
            "a key that is a number",
            json!({"api_key": 12_345_678}),
            "/api_key",
        ),
        new(
            "no URL of an unknown provider",
            json!({"base_url": null}),
            "/base_url",
        ),
        new(
            "an unknown member of an account",
            json!({"apikey": "x"}),
            "/apikey",
        ),
        new(
            "no room at all",
            json!({"ceilings": {"tokens_5h": 0}}),
            "/ceilings/tokens_5h",
        ),
        new(
            "an unknown ceiling",
            json!({"ceilings": {"tokens_1h": 1}}),
            "/ceilings/tokens_1h",
        ),
        header("the host as a credential's header", "Host"),
        header("a length as a credential's header", "Content-Length"),
        header("a hop as a credential's header", "Transfer-Encoding"),
        header("a header with a line break", "x-key\r\nhost"),
        new(
            "a scheme of two words",
            json!({"header": {"name": "authorization", "scheme": "Bearer x"}}),
            "/header/scheme",
        ),
        refused("a base URL within", "POST", ACCOUNTS, inside, to),
        refused(
            "a base URL with a query",
            "POST",
            ACCOUNTS,
            Body::Json(account(
                &json!({"base_url": "https://models.example.com/?k=v"}),
            )),
            to,
        ),
        patch(
            "a new key",
            json!({"api_key": "sk-never-0123456789"}),
            "/api_key",
        ),
        patch(
            "another type",
            json!({"credential_type": "oauth"}),
            "/credential_type",
        ),
        patch("no name at all", json!({"name": null}), "/name"),
        invalid(
            "a replacement without a credential",
            "POST",
            "/v1/accounts/{account}/replace",
            account(&json!({"api_key": null})),
            "/api_key",
        ),
        refused(
            "a replacement of nothing",
            "POST",
            "/v1/accounts/acc_01h455vb4pex5vsknk084sn02q/replace",
            Body::Json(account(&json!({}))),
            (404, "not_found", "-"),
        ),
        end("a model that is empty", json!({"model": ""}), "/model"),
        end(
            "a model of 201 characters",
            json!({"model": "x".repeat(201)}),
            "/model",
        ),
        end("a model that is a number", json!({"model": 7}), "/model"),
        end("a model that is null", json!({"model": null}), "/model"),
        end("a cooldown's time", json!({"until": "now"}), "/until"),
        refused(
            "a cooldown of nothing",
            "POST",
            "/v1/accounts/acc_01h455vb4pex5vsknk084sn02q/end-cooldown",
            Body::Json(json!({})),
            (404, "not_found", "-"),
        ),
        absent(
            "an account that is not there",
            "GET",
            "/v1/accounts/acc_01h455vb4pex5vsknk084sn02q",
        ),
        absent("no account's identifier", "DELETE", "/v1/accounts/1"),
    ]
}

fn oauth() -> Vec<Case> {
    let new = |what, but: Value, pointer| invalid(what, "POST", ACCOUNTS, tokens(&but), pointer);
    let mut with_key = tokens(&json!({}));
    with_key["api_key"] = json!("sk-never-0123456789");
    let mut as_key = tokens(&json!({}));
    as_key["credential_type"] = json!("api_key");
    let inside = tokens(&json!({"token_url": "https://[::1]/token"}));
    vec![
        new(
            "no access token",
            json!({"access_token": null}),
            "/oauth/access_token",
        ),
        new(
            "no refresh token",
            json!({"refresh_token": null}),
            "/oauth/refresh_token",
        ),
        new(
            "no end of a token",
            json!({"expires_at": null}),
            "/oauth/expires_at",
        ),
        new(
            "no token endpoint",
            json!({"token_url": null}),
            "/oauth/token_url",
        ),
        new("no client", json!({"client_id": null}), "/oauth/client_id"),
        new(
            "a scope of two words",
            json!({"scopes": ["a b"]}),
            "/oauth/scopes/0",
        ),
        new(
            "an unknown member of tokens",
            json!({"id_token": "x"}),
            "/oauth/id_token",
        ),
        invalid(
            "a key beside tokens",
            "POST",
            ACCOUNTS,
            with_key,
            "/api_key",
        ),
        invalid(
            "tokens in place of a key",
            "POST",
            ACCOUNTS,
            as_key,
            "/oauth",
        ),
        refused(
            "a token endpoint within",
            "POST",
            ACCOUNTS,
            Body::Json(inside),
            (422, "destination_refused", "/oauth/token_url"),
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn trains() -> Vec<Case> {
    let new = |what, body, pointer| invalid(what, "POST", TRAINS, body, pointer);
    let slack =
        |what, slack: Value, pointer| new(what, json!({"slug": "x", "slack": slack}), pointer);
    let patch = |what, body, pointer| invalid(what, "PATCH", NIGHT, body, pointer);
    let set =
        |what, body, pointer| invalid(what, "PUT", "/v1/trains/night/accounts", body, pointer);
    let url = "https://hooks.slack.com/services/T0/B0/never-0123456789";
    let place = json!({"account_id": "{account}", "priority": 0});
    vec![
        new("no slug of a train", json!({}), "/slug"),
        new("no slug's form", json!({"slug": "Night"}), "/slug"),
        new(
            "an unknown member of a train",
            json!({"slug": "x", "accounts": []}),
            "/accounts",
        ),
        slack(
            "no URL for Slack",
            json!({"events": ["train.exhausted"]}),
            "/slack/webhook_url",
        ),
        slack(
            "nothing to tell",
            json!({"webhook_url": url, "events": []}),
            "/slack/events",
        ),
        slack(
            "an unknown thing to tell",
            json!({"webhook_url": url, "events": ["run.failed"]}),
            "/slack/events/0",
        ),
        refused(
            "a Slack within",
            "POST",
            TRAINS,
            Body::Json(json!({"slug": "x", "slack": {
                "webhook_url": "https://10.1.2.3/never-0123456789", "events": ["train.exhausted"],
            }})),
            (422, "destination_refused", "/slack/webhook_url"),
        ),
        patch("another slug", json!({"slug": "day"}), "/slug"),
        patch(
            "Slack without a URL",
            json!({"slack": {"channel": "#x"}}),
            "/slack/webhook_url",
        ),
        set("places that are no list", json!({"accounts": []}), ""),
        set(
            "a place without a priority",
            json!([{"account_id": "{account}"}]),
            "/0/priority",
        ),
        set(
            "a priority below the first",
            json!([{"account_id": "{account}", "priority": -1}]),
            "/0/priority",
        ),
        set(
            "a priority after the last",
            json!([{"account_id": "{account}", "priority": 1000}]),
            "/0/priority",
        ),
        set("an account twice", json!([place, place]), "/1/account_id"),
        set("more places than there may be", json!(vec![place; 101]), ""),
        refused(
            "an account in a place that is not there",
            "PUT",
            "/v1/trains/night/accounts",
            Body::Json(json!([{"account_id": "acc_01h455vb4pex5vsknk084sn02q", "priority": 0}])),
            (404, "not_found", "-"),
        ),
        refused(
            "no account's identifier in a place",
            "PUT",
            "/v1/trains/night/accounts",
            Body::Json(json!([{"account_id": "1", "priority": 0}])),
            (404, "not_found", "-"),
        ),
        absent("a train that is not there", "GET", "/v1/trains/day"),
        absent("no slug in a path", "DELETE", "/v1/trains/Night"),
    ]
}

fn tokens_of_trains() -> Vec<Case> {
    const TOKENS: &str = "/v1/trains/night/tokens";
    let new = |what, body, pointer| invalid(what, "POST", TOKENS, body, pointer);
    vec![
        new("a train token's empty name", json!({"name": ""}), "/name"),
        new(
            "a train token's name too long",
            json!({"name": "n".repeat(121)}),
            "/name",
        ),
        new(
            "a train token that is over",
            json!({"expires_at": "2020-01-01T00:00:00Z"}),
            "/expires_at",
        ),
        new(
            "an unknown member of a train token",
            json!({"pipelines": ["nightly"]}),
            "/pipelines",
        ),
        absent("tokens of no train", "GET", "/v1/trains/none/tokens"),
        absent("a token of no train", "POST", "/v1/trains/Night/tokens"),
        absent(
            "no token of a train",
            "DELETE",
            "/v1/trains/night/tokens/tok_01h455vb4pex5vsknk084sn02q",
        ),
        absent(
            "an admin token as a train's",
            "DELETE",
            "/v1/trains/night/tokens/{admin}",
        ),
        absent(
            "no identifier of a token",
            "DELETE",
            "/v1/trains/night/tokens/x",
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn resolving() -> Vec<Case> {
    let ask = |what, body, pointer| invalid(what, "POST", "/v1/resolve", body, pointer);
    let report = |what, but: Value, pointer| {
        let mut body = json!({"account_id": "{account}", "outcome": "rate_limited"});
        json_patch(&mut body, &but);
        invalid(what, "POST", "/v1/resolve/report", body, pointer)
    };
    let cases = vec![
        ask("an empty model", json!({"model": ""}), "/model"),
        ask(
            "a model too long",
            json!({"model": "m".repeat(201)}),
            "/model",
        ),
        ask(
            "too much excluded",
            json!({"exclude": vec!["acc_x"; 101]}),
            "/exclude",
        ),
        ask(
            "an account that is none",
            json!({"exclude": [7]}),
            "/exclude/0",
        ),
        ask(
            "a client without a key",
            json!({"client_key": ""}),
            "/client_key",
        ),
        ask(
            "an unknown member of a wish",
            json!({"account": "x"}),
            "/account",
        ),
        report("no account", json!({"account_id": null}), "/account_id"),
        report("no outcome", json!({"outcome": null}), "/outcome"),
        report("another outcome", json!({"outcome": "slow"}), "/outcome"),
        report(
            "a wait below nothing",
            json!({"retry_after": -1}),
            "/retry_after",
        ),
        report(
            "a wait of more than a week",
            json!({"retry_after": 604_801}),
            "/retry_after",
        ),
        report(
            "a wait after what went well",
            json!({"outcome": "ok", "retry_after": 1}),
            "/retry_after",
        ),
        report(
            "less than no requests",
            json!({"usage": {"requests": -1}}),
            "/usage/requests",
        ),
        report(
            "too many tokens",
            json!({"usage": {"tokens": 1_000_000_001}}),
            "/usage/tokens",
        ),
        report(
            "an unknown use",
            json!({"usage": {"money": 1}}),
            "/usage/money",
        ),
        report(
            "an unknown member of a report",
            json!({"status": 429}),
            "/status",
        ),
    ];
    cases.into_iter().map(|case| case.by(Who::Train)).collect()
}
