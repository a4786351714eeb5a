//! Accounts and trains: credentials that come in and never go out, and who lends them in which
//! order.

use serde_json::{Value, json};
use tests::{Answer, Publisher, World, fingerprint, new_account, on_both_stores, tools};

use crate::audit::verified;

on_both_stores!(
    an_account_shows_all_but_its_credential,
    a_provider_that_is_known_says_where_and_how,
    what_does_not_fit_an_account_is_refused_where_it_stands,
    names_belong_to_their_publisher,
    an_account_changes_but_for_its_credential,
    a_replacement_takes_over_every_place,
    an_account_that_goes_says_which_trains_it_leaves_empty,
    a_train_tries_its_accounts_in_order,
    a_trains_accounts_are_set_as_a_whole,
    anothers_account_is_no_account,
    where_a_trains_people_read_is_not_shown,
    a_train_goes_and_its_slug_is_free,
    a_repeat_makes_nothing_twice,
);

fn word() -> String {
    format!("{}{}", tools::word(), tools::word())
}

/// The tokens of an account, good for a time.
fn oauth(name: &str, expires_in: u64) -> Value {
    json!({
        "name": name,
        "provider": "anthropic",
        "credential_type": "oauth",
        "oauth": {
            "access_token": format!("at-{}-wxyz", word()),
            "refresh_token": format!("rt-{}", word()),
            "expires_at": tools::in_seconds(expires_in),
            "token_url": "https://AUTH.example.com/token",
            "client_id": "gateway",
            "client_secret": format!("cs-{}", word()),
            "scopes": ["inference", "profile:read"],
        },
    })
}

async fn read(publisher: &Publisher, path: &str) -> Answer {
    publisher.admin.get(path).expect(200).await
}

fn at(account: &str) -> String {
    format!("/v1/accounts/{account}")
}

async fn accounts_of(publisher: &Publisher, train: &str) -> Vec<(String, u64)> {
    let train = read(publisher, &format!("/v1/trains/{train}")).await;
    let places = train["accounts"].as_array().unwrap().iter();
    let of = |place: &Value| {
        let id = place["account_id"].as_str().unwrap().to_owned();
        (id, place["priority"].as_u64().unwrap())
    };
    places.map(of).collect()
}

async fn an_account_shows_all_but_its_credential(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let body = oauth("tokens", 3600);
    let create = publisher.admin.post("/v1/accounts").json(&body);
    // The client of these tests knows what it sent, and refuses any answer that repeats it.
    let made = create.expect(201).await;
    let id = made.text("/id");
    assert!(id.starts_with("acc_"), "{made}");
    assert_eq!(made.header("location"), at(&id));
    for (member, value) in [
        ("name", json!("tokens")),
        ("provider", json!("anthropic")),
        ("base_url", json!("https://api.anthropic.com")),
        (
            "header",
            json!({"name": "authorization", "scheme": "Bearer"}),
        ),
        ("credential_type", json!("oauth")),
        ("last_four", json!("wxyz")),
        ("enabled", json!(true)),
        (
            "health",
            json!({"status": "ok", "reason": null, "failed_at": null, "lent_until": null}),
        ),
        ("expires_at", body["oauth"]["expires_at"].clone()),
        ("refreshed_at", json!(null)),
    ] {
        assert_eq!(made[member], value, "{member}: {made}");
    }
    let client = json!({
        "token_url": "https://auth.example.com/token",
        "client_id": "gateway",
        "scopes": ["inference", "profile:read"],
    });
    assert_eq!(made["oauth"], client, "{made}");
    let shown = read(&publisher, &at(&id)).await;
    assert_eq!(shown.json(), made.json());
    assert_eq!(shown.header("etag"), made.header("etag"));
    let key = publisher.account("key").await;
    let list = publisher.admin.all("/v1/accounts").await;
    assert_eq!(list[0], *read(&publisher, &at(&key)).await.json());
    assert_eq!(list[1], *made.json());
    assert_eq!(list[0]["expires_at"], json!(null));
    assert_eq!(list[0]["oauth"], json!(null));
    // Before anybody is refused: that is noted too, a moment later.
    assert_eq!(publisher.actions().await.last().unwrap(), "account.created");
    for user in [&publisher.runner, &server.operator()] {
        let refused = user.get(&at(&id)).refused(403, "wrong_token_kind");
        refused.await;
    }
    verified(&publisher, true).await;
}

async fn a_provider_that_is_known_says_where_and_how(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let make = async |name: &str, more: Value| {
        let mut body = json!({
            "name": name,
            "provider": "anthropic",
            "credential_type": "api_key",
            "api_key": format!("sk-{}", word()),
        });
        for (member, value) in more.as_object().unwrap() {
            body[member] = value.clone();
        }
        publisher
            .admin
            .post("/v1/accounts")
            .json(&body)
            .answer()
            .await
    };
    let known = make("anthropic", json!({})).await;
    assert_eq!(known["base_url"], "https://api.anthropic.com", "{known}");
    assert_eq!(
        known["header"],
        json!({"name": "x-api-key", "scheme": null})
    );
    let openai = make("openai", json!({"provider": "openai"})).await;
    assert_eq!(openai["base_url"], "https://api.openai.com/v1", "{openai}");
    let bearer = json!({"name": "authorization", "scheme": "Bearer"});
    assert_eq!(openai["header"], bearer);
    let own = json!({
        "provider": "azure",
        "base_url": "https://Models.example.com:443/v1/",
        "header": {"name": "Api-Key"},
        "enabled": false,
        "ceilings": {"requests_5h": 100, "tokens_7d": 5_000_000},
    });
    let own = make("own", own).await;
    assert_eq!(own["base_url"], "https://models.example.com/v1", "{own}");
    assert_eq!(own["header"], json!({"name": "api-key", "scheme": null}));
    assert_eq!(own["enabled"], false);
    let ceilings = json!({
        "requests_5h": 100, "tokens_5h": null, "requests_7d": null, "tokens_7d": 5_000_000,
    });
    assert_eq!(own["ceilings"], ceilings);
    let unknown = make("unknown", json!({"provider": "azure"})).await;
    assert_eq!(
        (unknown.status, unknown.pointers()),
        (422, vec!["/base_url".to_owned()])
    );
}

async fn what_does_not_fit_an_account_is_refused_where_it_stands(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let both = {
        let mut body = oauth("both", 60);
        body["api_key"] = json!(format!("sk-{}", word()));
        body
    };
    let as_key = {
        let mut body = oauth("as key", 60);
        body["credential_type"] = json!("api_key");
        body
    };
    let mut inside = oauth("inside", 60);
    inside["oauth"]["token_url"] = json!("https://169.254.169.254/token");
    for (body, code, pointers) in [
        (both, "validation_failed", &["/api_key"][..]),
        (as_key, "validation_failed", &["/oauth", "/api_key"]),
        (inside, "destination_refused", &["/oauth/token_url"]),
    ] {
        let call = publisher.admin.post("/v1/accounts").json(&body);
        let refused = call.refused(422, code).await;
        assert_eq!(refused.pointers(), pointers, "{refused}");
    }
    assert_eq!(publisher.admin.all("/v1/accounts").await, [json!(null); 0]);
    assert_eq!(publisher.actions().await, ["publisher.created"]);
}

async fn names_belong_to_their_publisher(world: &World) {
    let server = world.start().await;
    let (acme, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    acme.account("main").await;
    other.account("main").await;
    let again = acme.admin.post("/v1/accounts").json(&new_account("main"));
    again.refused(409, "name_taken").await;
    let spare = acme.account("spare").await;
    let rename = acme.admin.patch(&at(&spare)).json(&json!({"name": "main"}));
    rename.refused(409, "name_taken").await;
    acme.train("night", &[]).await;
    other.train("night", &[]).await;
    let again = acme
        .admin
        .post("/v1/trains")
        .json(&json!({"slug": "night"}));
    again.refused(409, "slug_taken").await;
}

async fn an_account_changes_but_for_its_credential(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let id = publisher.account("one").await;
    let first = read(&publisher, &at(&id)).await;
    let patch = |body: Value| publisher.admin.patch(&at(&id)).json(&body);
    for body in [
        json!({"api_key": format!("sk-{}", word())}),
        json!({"credential_type": "oauth"}),
        json!({"oauth": {"access_token": format!("at-{}", word())}}),
        json!({"base_url": "https://example.com"}),
    ] {
        let pointer = format!("/{}", body.as_object().unwrap().keys().next().unwrap());
        let refused = patch(body).refused(422, "validation_failed").await;
        assert_eq!(refused.pointers(), [pointer], "{refused}");
    }
    let same = patch(json!({"name": "one", "enabled": true}))
        .expect(200)
        .await;
    assert_eq!(same.json(), first.json());
    assert_eq!(same.header("etag"), first.header("etag"));
    let wish = json!({"name": "two", "enabled": false, "ceilings": {"tokens_5h": 7}});
    let stale = patch(wish.clone()).header("if-match", "\"0\"");
    stale.refused(412, "precondition_failed").await;
    let changed = patch(wish).header("if-match", first.header("etag"));
    let changed = changed.expect(200).await;
    assert_eq!(
        (&changed["name"], &changed["enabled"]),
        (&json!("two"), &json!(false))
    );
    assert_eq!(changed["ceilings"]["tokens_5h"], 7);
    assert_eq!(changed["last_four"], first["last_four"]);
    assert_ne!(changed.header("etag"), first.header("etag"));
    let less = patch(json!({"ceilings": {"requests_5h": 1, "tokens_5h": null}}));
    let less = less.expect(200).await;
    assert_eq!(less["ceilings"]["requests_5h"], 1);
    assert_eq!(less["ceilings"]["tokens_5h"], json!(null));
    let none = patch(json!({"ceilings": null})).expect(200).await;
    assert_eq!(none["ceilings"]["requests_5h"], json!(null));
    let actions = publisher.actions().await;
    let updates = actions.iter().filter(|one| *one == "account.updated");
    assert_eq!(updates.count(), 3, "{actions:?}");
}

async fn a_replacement_takes_over_every_place(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (old, spare) = (
        publisher.account("main").await,
        publisher.account("spare").await,
    );
    publisher.train("night", &[&spare, &old]).await;
    let day = publisher.train("day", &[&old]).await;
    publisher.train("idle", &[&spare]).await;
    let path = format!("{}/replace", at(&old));
    let body = oauth("main", 3600);
    let replace = publisher.admin.post(&path).json(&body).key("once");
    let new = replace.clone().expect(201).await;
    let id = new.text("/id");
    assert_ne!(id, old);
    assert_eq!(
        (&new["name"], &new["credential_type"]),
        (&json!("main"), &json!("oauth"))
    );
    assert_eq!(new.header("location"), at(&id));
    assert_eq!(
        replace.expect(201).await.body,
        new.body,
        "the first answer again"
    );
    publisher
        .admin
        .get(&at(&old))
        .refused(404, "not_found")
        .await;
    let night = accounts_of(&publisher, "night").await;
    assert_eq!(night, [(spare.clone(), 0), (id.clone(), 1)]);
    assert_eq!(accounts_of(&publisher, "day").await, [(id.clone(), 0)]);
    assert_eq!(accounts_of(&publisher, "idle").await, [(spare.clone(), 0)]);
    let tag = read(&publisher, "/v1/trains/day")
        .await
        .header("etag")
        .to_owned();
    assert_ne!(tag, day.header("etag"), "what it lends is another");
    let gone = publisher.admin.post(&path).json(&oauth("main", 3600));
    gone.refused(404, "not_found").await;
    let path = format!("{}/replace", at(&id));
    let taken = publisher.admin.post(&path).json(&new_account("spare"));
    taken.refused(409, "name_taken").await;
    assert_eq!(accounts_of(&publisher, "day").await, [(id, 0)]);
    assert_eq!(
        publisher.actions().await.last().unwrap(),
        "account.replaced"
    );
    verified(&publisher, true).await;
}

async fn an_account_that_goes_says_which_trains_it_leaves_empty(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (one, two) = (
        publisher.account("one").await,
        publisher.account("two").await,
    );
    publisher.train("both", &[&one, &two]).await;
    for slug in ["b-only", "a-only"] {
        publisher.train(slug, &[&one]).await;
    }
    publisher.train("never", &[]).await;
    let stale = publisher
        .admin
        .delete(&at(&one))
        .header("if-match", "\"9\"");
    stale.refused(412, "precondition_failed").await;
    let gone = publisher.admin.delete(&at(&one)).expect(200).await;
    assert_eq!(
        gone.json(),
        &json!({"trains_left_empty": ["a-only", "b-only"]})
    );
    publisher
        .admin
        .delete(&at(&one))
        .refused(404, "not_found")
        .await;
    assert_eq!(accounts_of(&publisher, "both").await, [(two.clone(), 1)]);
    assert_eq!(accounts_of(&publisher, "a-only").await, []);
    let last = publisher.admin.delete(&at(&two)).expect(200).await;
    assert_eq!(last.json(), &json!({"trains_left_empty": ["both"]}));
    let usage = read(&publisher, "/v1/publishers/me/usage").await;
    assert_eq!(
        (&usage["accounts"], &usage["trains"]),
        (&json!(0), &json!(4))
    );
    assert_eq!(publisher.actions().await.last().unwrap(), "account.deleted");
}

async fn a_train_tries_its_accounts_in_order(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(publisher.account(&format!("n{n}")).await);
    }
    ids.sort();
    publisher.train("night", &[]).await;
    let body = json!([
        {"account_id": ids[4], "priority": 7},
        {"account_id": ids[2], "priority": 0},
        {"account_id": ids[0], "priority": 7},
        {"account_id": ids[3], "priority": 0},
        {"account_id": ids[1], "priority": 999},
    ]);
    let put = publisher.admin.put("/v1/trains/night/accounts").json(&body);
    let train = put.expect(200).await;
    let order: Vec<&str> = train["accounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|place| place["account_id"].as_str().unwrap())
        .collect();
    // 0 first, ties by identifier.
    assert_eq!(order, [&ids[2], &ids[3], &ids[0], &ids[4], &ids[1]]);
    assert_eq!(read(&publisher, "/v1/trains/night").await.body, train.body);
    let list = publisher.admin.all("/v1/trains").await;
    assert_eq!(list, [train.json().clone()]);
}

async fn a_trains_accounts_are_set_as_a_whole(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let (one, two) = (
        publisher.account("one").await,
        publisher.account("two").await,
    );
    let first = publisher.train("night", &[&one, &two]).await;
    let put = |body: Value| publisher.admin.put("/v1/trains/night/accounts").json(&body);
    let place = |id: &str, priority: u64| json!({"account_id": id, "priority": priority});
    let same = put(json!([place(&two, 1), place(&one, 0)]))
        .expect(200)
        .await;
    assert_eq!(
        (same.header("etag"), &same.body),
        (first.header("etag"), &first.body)
    );
    let twice = put(json!([place(&one, 0), place(&two, 0), place(&one, 1)]));
    let twice = twice.refused(422, "validation_failed").await;
    assert_eq!(twice.pointers(), ["/2/account_id"], "{twice}");
    let many: Vec<Value> = (0..101).map(|_| place(&one, 0)).collect();
    put(json!(many)).refused(422, "validation_failed").await;
    let late = put(json!([place(&one, 1000)]))
        .refused(422, "validation_failed")
        .await;
    assert_eq!(late.pointers(), ["/0/priority"], "{late}");
    let stale = put(json!([])).header("if-match", "\"0\"");
    stale.refused(412, "precondition_failed").await;
    assert_eq!(read(&publisher, "/v1/trains/night").await.body, first.body);
    let none = put(json!([])).header("if-match", first.header("etag"));
    assert_eq!(none.expect(200).await["accounts"], json!([]));
    let absent = publisher.admin.put("/v1/trains/absent/accounts");
    absent.json(&json!([])).refused(404, "not_found").await;
    let actions = publisher.actions().await;
    let set = actions.iter().filter(|one| *one == "train.accounts_set");
    assert_eq!(set.count(), 2, "{actions:?}");
}

async fn anothers_account_is_no_account(world: &World) {
    let server = world.start().await;
    let (acme, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let (mine, theirs) = (acme.account("mine").await, other.account("theirs").await);
    let before = acme.train("night", &[&mine]).await;
    let mut answers = Vec::new();
    for account in [theirs.clone(), tools::absent("acc")] {
        let body = json!([
            {"account_id": mine, "priority": 3},
            {"account_id": account, "priority": 0},
        ]);
        let put = acme.admin.put("/v1/trains/night/accounts").json(&body);
        let put = put.header("x-request-id", "same");
        answers.push(put.refused(404, "not_found").await);
    }
    assert_eq!(fingerprint(&answers[0]), fingerprint(&answers[1]));
    assert_eq!(read(&acme, "/v1/trains/night").await.body, before.body);
    assert_eq!(
        other.admin.get(&at(&theirs)).expect(200).await["name"],
        "theirs"
    );
}

async fn where_a_trains_people_read_is_not_shown(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let url = || format!("https://hooks.slack.com/services/T0/B0/{}", word());
    let slack = json!({
        "webhook_url": url(),
        "channel": "#gateway",
        "events": ["train.exhausted", "account.refresh_failed"],
    });
    let body = json!({
        "slug": "night", "description": "The nightly jobs.", "sticky": true, "slack": slack,
    });
    let made = publisher
        .admin
        .post("/v1/trains")
        .json(&body)
        .expect(201)
        .await;
    assert!(made.text("/id").starts_with("trn_"), "{made}");
    assert_eq!(made.header("location"), "/v1/trains/night");
    let shown = json!({
        "channel": "#gateway", "events": ["train.exhausted", "account.refresh_failed"],
    });
    assert_eq!(made["slack"], shown, "{made}");
    assert_eq!(
        (&made["sticky"], &made["enabled"]),
        (&json!(true), &json!(true))
    );
    let patch = |body: Value| publisher.admin.patch("/v1/trains/night").json(&body);
    let inside = json!({"slack": {"webhook_url": "https://10.0.0.1/services/T0/B0/x"}});
    let refused = patch(inside).refused(422, "destination_refused").await;
    assert_eq!(refused.pointers(), ["/slack/webhook_url"], "{refused}");
    assert!(!refused.text("/detail").contains("10.0.0.1"), "{refused}");
    let merged = json!({"slack": {"channel": null, "events": ["train.exhausted"]}});
    let merged = patch(merged).header("if-match", made.header("etag"));
    let merged = merged.expect(200).await;
    let less = json!({"channel": null, "events": ["train.exhausted"]});
    assert_eq!(merged["slack"], less, "{merged}");
    patch(json!({"slack": {"webhook_url": url()}}))
        .expect(200)
        .await;
    let none = patch(json!({"slack": null, "description": null}))
        .expect(200)
        .await;
    assert_eq!(
        (&none["slack"], &none["description"]),
        (&json!(null), &json!(null))
    );
    let alone = json!({"slack": {"channel": "#gateway"}});
    let alone = patch(alone).refused(422, "validation_failed").await;
    assert_eq!(alone.pointers(), ["/slack/webhook_url"], "{alone}");
    let log = publisher.admin.all("/v1/publishers/me/audit").await;
    let facts: Vec<&Value> = log.iter().map(|line| &line["metadata"]).collect();
    let changed = json!({"changed": ["description", "slack"]});
    assert_eq!(*facts[0], changed, "{log:?}");
}

async fn a_train_goes_and_its_slug_is_free(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let account = publisher.account("one").await;
    publisher.train("night", &[&account]).await;
    let delete = || publisher.admin.delete("/v1/trains/night");
    let stale = delete().header("if-match", "\"9\"");
    stale.refused(412, "precondition_failed").await;
    delete().expect(204).await;
    delete().refused(404, "not_found").await;
    let get = publisher.admin.get("/v1/trains/night");
    get.refused(404, "not_found").await;
    assert_eq!(read(&publisher, &at(&account)).await["name"], "one");
    let gone = publisher.admin.delete(&at(&account)).expect(200).await;
    assert_eq!(
        gone["trains_left_empty"],
        json!([]),
        "it stood nowhere any more"
    );
    publisher.train("night", &[]).await;
    verified(&publisher, true).await;
}

async fn a_repeat_makes_nothing_twice(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let slack = json!({
        "webhook_url": format!("https://hooks.slack.com/services/T0/B0/{}", word()),
        "events": ["train.exhausted"],
    });
    for (path, body, other) in [
        ("/v1/accounts", oauth("one", 60), oauth("one", 60)),
        (
            "/v1/trains",
            json!({"slug": "night", "slack": slack}),
            json!({"slug": "night"}),
        ),
    ] {
        let call = publisher.admin.post(path).key("same");
        let first = call.clone().json(&body).expect(201).await;
        let again = call.clone().json(&body).expect(201).await;
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.body, first.body);
        let other = call.json(&other);
        other.refused(422, "idempotency_key_reused").await;
        assert_eq!(publisher.admin.all(path).await.len(), 1);
    }
}
