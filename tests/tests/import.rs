//! What another service held comes in from files: once, completely, and without a trace of what it
//! was anywhere but sealed or hashed.

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tests::{
    Publisher, Site, World, on_both_stores, on_sqlite,
    tools::{eventually, root, word},
};

on_both_stores!(
    the_sample_is_imported_and_again_changes_nothing,
    a_dry_run_changes_nothing,
    what_can_not_be_fails_alone,
    faults_are_listed_at_once_and_nothing_is_written,
    other_settings_are_updated_and_other_credentials_replaced,
    a_running_server_hears_of_an_import_within_a_second,
    quotas_hold_in_a_dry_run_too,
    clients_keep_their_keys_until_they_are_revoked,
);
on_sqlite!(
    a_database_that_is_not_there_is_not_made,
    files_that_others_may_read_draw_a_warning,
);

/// A directory of files to import.
struct Files(PathBuf);

impl Files {
    fn new(site: &Site) -> Self {
        let directory = site.home().join(format!("import-{}", word()));
        std::fs::create_dir(&directory).unwrap();
        Self(directory)
    }

    fn put(&self, name: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn accounts(&self, accounts: &Value) {
        self.put(
            "accounts.json",
            &json!({ "accounts": accounts }).to_string(),
        );
    }

    fn trains(&self, trains: &Value) {
        self.put("trains.json", &json!({ "trains": trains }).to_string());
    }

    fn keys(&self, keys: &Value) {
        self.put(
            "client-keys.json",
            &json!({ "client_keys": keys }).to_string(),
        );
    }
}

/// Runs the program; it may not say any secret.
async fn import(site: &Site, arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = site.command(&[]);
    command.args(["import", "credentials"]).args(arguments);
    command.envs(env.iter().copied());
    let output = command.output().await.unwrap();
    for said in [&output.stdout, &output.stderr] {
        let found = site.found_in(said);
        assert!(found.is_empty(), "the import says {found:?}");
    }
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Imports a directory; answers the report, having seen the exit code that it was to have.
async fn report(site: &Site, directory: &Path, publisher: &Publisher, code: i32) -> Value {
    report_with(site, directory, publisher, &[], code).await
}

async fn report_with(
    site: &Site,
    directory: &Path,
    publisher: &Publisher,
    options: &[&str],
    code: i32,
) -> Value {
    let directory = directory.to_str().unwrap();
    let arguments = [
        &[directory, "--publisher", &publisher.slug, "--json", "-"],
        options,
    ]
    .concat();
    let output = import(site, &arguments, &[]).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// Imports what must be refused as a whole; answers what is said.
async fn refused(site: &Site, directory: &Path, publisher: &str) -> String {
    let directory = directory.to_str().unwrap();
    let output = import(site, &[directory, "--publisher", publisher], &[]).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(text(&output.stdout), "", "{said}");
    said
}

/// The outcomes of a report, by name.
fn outcomes(report: &Value) -> Vec<(String, String)> {
    let items = report["items"].as_array().unwrap().iter();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    items
        .map(|item| (word(&item["name"]), word(&item["outcome"])))
        .collect()
}

fn outcome_of(report: &Value, name: &str) -> String {
    let found = outcomes(report)
        .into_iter()
        .find(|(there, _)| there == name);
    found.unwrap_or_else(|| panic!("no {name} in {report}")).1
}

fn note_of(report: &Value, name: &str) -> String {
    let items = report["items"].as_array().unwrap();
    let item = items.iter().find(|item| item["name"] == name).unwrap();
    item["note"].as_str().unwrap_or_default().to_owned()
}

/// A secret that the test looks for everywhere afterwards.
fn secret(site: &Site, start: &str) -> String {
    let text = format!("{start}{}{}", word(), word());
    site.remember(&text);
    text
}

fn account(name: &str, key: &str) -> Value {
    json!({
        "name": name,
        "provider": "anthropic",
        "credential_type": "api_key",
        "api_key": key,
    })
}

/// Everything that an import may write, counted.
async fn rows(site: &Site) -> Vec<i64> {
    let mut counts = Vec::new();
    for table in [
        "accounts",
        "trains",
        "train_accounts",
        "train_tokens",
        "train_token_hashes",
        // That the operator's token was used is written beside the request, and perhaps later.
        "audit_events WHERE action <> 'bootstrap.used'",
        "credential_changes",
    ] {
        counts.push(site.count(table).await);
    }
    counts
}

async fn the_sample_is_imported_and_again_changes_nothing(world: &World) {
    let server = world.start().await;
    let (site, publisher) = (server.site(), server.publisher("acme").await);
    let sample = root().join("docs/samples/import");
    let (from_environment, of_editor) = (secret(site, "sk-"), secret(site, "editor "));
    let of_editor = of_editor.replace(' ', "-");
    for written in [
        "sk-sample-openai-0123456789abcdef",
        "sample-in-house-0123456789abcdef",
        "sample-access-token-0123456789abcdef",
        "sample-refresh-token-0123456789abcdef",
        "/T000/B000/sample0123456789",
        "sample/OLD=gateway+key~0123456789",
        "sample-of-a-key-that-is-known-by-its-hash",
        of_editor.as_str(),
    ] {
        site.remember(written);
    }
    let env = [
        ("SAMPLE_ANTHROPIC_KEY", from_environment.as_str()),
        ("SAMPLE_EDITOR_KEY", of_editor.as_str()),
    ];
    let directory = sample.to_str().unwrap();
    let arguments = [directory, "--publisher", &publisher.id];

    let first = import(site, &arguments, &env).await;
    assert!(first.status.success(), "{}", text(&first.stderr));
    let table = text(&first.stdout);
    assert!(table.ends_with("publisher acme: 9 created\n"), "{table}");
    assert_eq!(table.lines().count(), 10, "{table}");

    let accounts = publisher.admin.all("/v1/accounts").await;
    assert_eq!(accounts.len(), 4, "{accounts:?}");
    let subscription = accounts.iter().find(|one| one["name"] == "Subscription");
    let subscription = subscription.unwrap();
    assert_eq!(subscription["credential_type"], "oauth");
    assert_eq!(subscription["last_four"], "cdef");
    let train = publisher
        .admin
        .get("/v1/trains/night-shift")
        .expect(200)
        .await;
    let lends: Vec<_> = train["accounts"].as_array().unwrap().iter().collect();
    assert_eq!(lends[0]["account_id"], subscription["id"], "{lends:?}");
    assert_eq!(lends.len(), 3, "{lends:?}");
    let slack = json!(["train.exhausted", "account.refresh_failed"]);
    assert_eq!(train["slack"]["events"], slack);
    let actions = publisher.actions().await;
    for (action, times) in [
        ("account.created", 4),
        ("train.created", 2),
        ("train.accounts_set", 2),
        ("train_token.minted", 3),
    ] {
        let count = actions.iter().filter(|done| *done == action).count();
        assert_eq!(count, times, "{action} in {actions:?}");
    }
    let log = publisher
        .admin
        .all("/v1/publishers/me/audit?actor=import")
        .await;
    assert_eq!(log.len(), 11, "{log:?}");

    let before = rows(site).await;
    let again = import(site, &arguments, &env).await;
    assert!(again.status.success(), "{}", text(&again.stderr));
    let table = text(&again.stdout);
    let last = "nothing to change at publisher acme: 9 unchanged\n";
    assert!(table.ends_with(last), "{table}");
    assert_eq!(rows(site).await, before, "nothing was written");
}

async fn a_dry_run_changes_nothing(world: &World) {
    let server = world.start().await;
    let (site, publisher) = (server.site(), server.publisher("acme").await);
    let files = Files::new(site);
    let key = secret(site, "sk-");
    files.accounts(&json!([account("a", &key)]));
    let lends = json!([{"account": "a", "priority": 0}]);
    files.trains(&json!([{"slug": "t", "accounts": lends}]));
    files.keys(&json!([{"train": "t", "key": secret(site, "old-")}]));
    let before = rows(site).await;
    let plan = report_with(site, &files.0, &publisher, &["--dry-run"], 0).await;
    assert_eq!(plan["counts"]["created"], 3, "{plan}");
    assert_eq!(plan["dry_run"], true);
    assert_eq!(rows(site).await, before);

    let done = report(site, &files.0, &publisher, 0).await;
    assert_eq!(outcomes(&done), outcomes(&plan), "as it was planned");
    assert_ne!(rows(site).await, before);
    let before = rows(site).await;
    files.accounts(&json!([account("a", &secret(site, "sk-"))]));
    let plan = report_with(site, &files.0, &publisher, &["--dry-run"], 0).await;
    assert_eq!(outcome_of(&plan, "a"), "replaced");
    assert_eq!(outcome_of(&plan, "t"), "unchanged");
    assert_eq!(rows(site).await, before);
}

async fn what_can_not_be_fails_alone(world: &World) {
    let server = world.start().await;
    let site = server.site();
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("rival").await,
    );
    let (theirs, ours) = (secret(site, "their-key-"), secret(site, "our-key-"));
    let files = Files::new(site);
    files.trains(&json!([{"slug": "t"}]));
    files.keys(&json!([{"train": "t", "key": theirs}]));
    report(site, &files.0, &other, 0).await;

    let files = Files::new(site);
    files.accounts(&json!([account("a", &secret(site, "sk-"))]));
    files.trains(&json!([
        {"slug": "good", "accounts": [{"account": "a", "priority": 0}]},
        {"slug": "bad", "accounts": [
            {"account": "a", "priority": 0},
            {"account": "nobody's", "priority": 1},
        ]},
    ]));
    files.keys(&json!([
        {"train": "good", "name": "fine", "key": ours},
        {"train": "good", "name": "theirs", "key": theirs},
        {"train": "bad", "name": "no train", "key": secret(site, "third-")},
        {"train": "good", "name": "an admin's", "sha256":
            hex::encode(Sha256::digest(publisher.admin.token()))},
        {"train": "good", "name": "the operator's", "sha256":
            hex::encode(Sha256::digest(server.operator().token()))},
    ]));
    let done = report(site, &files.0, &publisher, 1).await;
    assert_eq!(done["counts"]["created"], 3, "{done}");
    assert_eq!(done["counts"]["failed"], 5, "{done}");
    assert_eq!(outcome_of(&done, "good fine"), "created");
    assert!(note_of(&done, "bad").contains("nobody's"), "{done}");
    for name in ["good theirs", "good an admin's", "good the operator's"] {
        let note = note_of(&done, name);
        assert_eq!(note, "The key is in use already, for something else.");
    }
    assert!(!done.to_string().contains("rival"));
    // The same key for another train of one's own is no other case.
    files.keys(&json!([{"train": "other", "name": "moved", "key": ours}]));
    files.trains(&json!([{"slug": "other"}]));
    let done = report(site, &files.0, &publisher, 1).await;
    assert_eq!(outcome_of(&done, "other moved"), "failed");
}

async fn faults_are_listed_at_once_and_nothing_is_written(world: &World) {
    let server = world.start().await;
    let (site, publisher) = (server.site(), server.publisher("acme").await);
    let files = Files::new(site);
    let (key, name) = (secret(site, "sk-"), secret(site, "a-key-as-a-name-"));
    files.accounts(&json!([
        account("a", &key),
        {"name": "b", "provider": "anthropic", "credential_type": "api_key", "api_key": key,
         "base_uri": "https://example.com"},
        {"name": "c", "provider": "in-house", "credential_type": "api_key", "api_key": key,
         "base_url": "https://169.254.169.254/latest"},
        account("a", &key),
        {"name": "d", "provider": "anthropic", "credential_type": "api_key",
         "api_key": {"env": "STM_TEST_NO_SUCH_VARIABLE"}},
    ]));
    let mut odd = json!([{"train": "t", "key": "short"}, {"train": "t"}, {"train": "t", "key": "stm_admin_0123456789abcdef"}]);
    odd[0][&name] = json!(true);
    files.keys(&odd);
    files.put("trains.json", "{\"trains\": [}");
    let before = rows(site).await;
    let said = refused(site, &files.0, "acme").await;
    for place in [
        "accounts.json /accounts/1/base_uri: ",
        "accounts.json /accounts/2/base_url: ",
        "accounts.json /accounts/3/name: ",
        "accounts.json /accounts/4/api_key: ",
        "trains.json: Line 1, column 13: ",
        "client-keys.json /client_keys/0/key: ",
        "client-keys.json /client_keys/0: A member with a name of 48 characters is not known here.",
        "client-keys.json /client_keys/1/key: ",
        "client-keys.json /client_keys/2/key: ",
    ] {
        assert!(said.contains(place), "{place} is missing in {said}");
    }
    assert!(said.contains("9 faults"), "{said}");
    assert_eq!(rows(site).await, before);

    let good = Files::new(site);
    good.trains(&json!([{"slug": "t"}]));
    for nobody in ["nobody", "pub_01jm000000e5yv7nj8zg4j7v3c", ""] {
        let said = refused(site, &good.0, nobody).await;
        assert!(said.contains("there is no publisher"), "{said}");
    }
    let path = format!("/v1/publishers/{}?confirm=acme", publisher.id);
    server.operator().delete(&path).expect(204).await;
    for gone in ["acme", &publisher.id] {
        let said = refused(site, &good.0, gone).await;
        assert!(said.contains("there is no publisher"), "{said}");
    }
}

async fn other_settings_are_updated_and_other_credentials_replaced(world: &World) {
    let server = world.start().await;
    let (site, publisher) = (server.site(), server.publisher("acme").await);
    let files = Files::new(site);
    let (first, second) = (secret(site, "sk-"), secret(site, "sk-"));
    files.accounts(&json!([account("a", &first), account("b", &second)]));
    let lends = json!([{"account": "a", "priority": 3}, {"account": "b", "priority": 4}]);
    files.trains(&json!([{"slug": "t", "description": "first", "accounts": lends}]));
    report(site, &files.0, &publisher, 0).await;
    let before = publisher.admin.get("/v1/trains/t").expect(200).await;

    // Another setting, another credential; what is not mentioned stays.
    let mut updated = account("a", &first);
    updated["enabled"] = json!(false);
    updated["ceilings"] = json!({"requests_5h": 7});
    files.accounts(&json!([updated, account("b", &secret(site, "sk-"))]));
    files.trains(&json!([{"slug": "t", "sticky": true}]));
    let done = report(site, &files.0, &publisher, 0).await;
    assert_eq!(outcome_of(&done, "a"), "updated");
    assert_eq!(outcome_of(&done, "b"), "replaced");
    assert_eq!(outcome_of(&done, "t"), "updated");
    let after = publisher.admin.get("/v1/trains/t").expect(200).await;
    assert_eq!(after["description"], "first");
    assert_eq!(after["sticky"], true);
    let ids = |train: &Value| {
        let places = train["accounts"].as_array().unwrap().iter();
        places
            .map(|place| (place["account_id"].clone(), place["priority"].clone()))
            .collect::<Vec<_>>()
    };
    let (was, is) = (ids(before.json()), ids(after.json()));
    assert_eq!(is[0], was[0], "the same account");
    assert_ne!(is[1].0, was[1].0, "another account");
    assert_eq!(is[1].1, was[1].1, "in the same place");

    // Where it goes can't be changed either; and neither file says that it is enabled.
    let mut moved = account("a", &first);
    moved["base_url"] = json!("https://proxy.example.com");
    files.accounts(&json!([moved]));
    files.trains(&json!([{"slug": "t", "description": null, "accounts": []}]));
    let done = report(site, &files.0, &publisher, 0).await;
    assert_eq!(outcome_of(&done, "a"), "replaced");
    let accounts = publisher.admin.all("/v1/accounts").await;
    assert_eq!(accounts.len(), 2, "{accounts:?}");
    let a = accounts.iter().find(|one| one["name"] == "a").unwrap();
    assert_eq!(a["enabled"], false, "as it was");
    assert_eq!(a["ceilings"]["requests_5h"], 7, "as it was");
    assert_eq!(a["base_url"], "https://proxy.example.com");
    let after = publisher.admin.get("/v1/trains/t").expect(200).await;
    assert_eq!(after["description"], Value::Null);
    assert_eq!(after["accounts"], json!([]));
    let done = report(site, &files.0, &publisher, 0).await;
    assert_eq!(done["counts"]["unchanged"], 2, "{done}");
}

async fn quotas_hold_in_a_dry_run_too(world: &World) {
    let server = world.start().await;
    let (site, publisher) = (server.site(), server.publisher("acme").await);
    let path = format!("/v1/publishers/{}", publisher.id);
    let quotas = json!({"quotas": {"accounts": 1, "trains": 2, "train_tokens_per_train": 1, "train_tokens": 2}});
    server
        .operator()
        .patch(&path)
        .json(&quotas)
        .expect(200)
        .await;
    let files = Files::new(site);
    files.accounts(&json!([
        account("a", &secret(site, "sk-")),
        account("b", &secret(site, "sk-"))
    ]));
    files.trains(&json!([{"slug": "t"}, {"slug": "u"}, {"slug": "v"}]));
    files.keys(&json!([
        {"train": "t", "name": "1", "key": secret(site, "k-")},
        {"train": "t", "name": "2", "key": secret(site, "k-")},
        {"train": "u", "name": "1", "key": secret(site, "k-")},
        {"train": "v", "name": "1", "key": secret(site, "k-")},
    ]));
    let plan = report_with(site, &files.0, &publisher, &["--dry-run"], 1).await;
    let done = report(site, &files.0, &publisher, 1).await;
    assert_eq!(plan["items"], done["items"]);
    let failed: Vec<String> = outcomes(&done)
        .into_iter()
        .filter(|(_, outcome)| outcome == "failed")
        .map(|(name, _)| name)
        .collect();
    assert_eq!(failed, ["b", "v", "t 2", "v 1"]);
    assert_eq!(note_of(&done, "b"), "The publisher may have 1 accounts.");
}

async fn a_database_that_is_not_there_is_not_made(world: &World) {
    let site = world.site().await;
    let files = Files::new(&site);
    files.trains(&json!([{"slug": "t"}]));
    let said = refused(&site, &files.0, "acme").await;
    assert!(said.contains("there is no database here yet"), "{said}");
    assert!(!site.data_dir.exists());
    // Without a server it works as well as beside one.
    let server = site.start(&[]).await;
    let publisher = server.publisher("acme").await;
    assert!(server.stop().await.success());
    let done = report(&site, &files.0, &publisher, 0).await;
    assert_eq!(outcome_of(&done, "t"), "created");
    site.start(&[]).await;
    publisher.admin.get("/v1/trains/t").expect(200).await;
}

async fn files_that_others_may_read_draw_a_warning(world: &World) {
    use std::os::unix::fs::PermissionsExt as _;
    let server = world.start().await;
    let site = server.site();
    server.publisher("acme").await;
    let files = Files::new(site);
    files.trains(&json!([{"slug": "t"}]));
    let path = files.0.join("trains.json");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let written = site.home().join("report.json");
    std::fs::write(&written, "x".repeat(10_000)).unwrap();
    let arguments = [
        files.0.to_str().unwrap(),
        "--publisher",
        "acme",
        "--json",
        written.to_str().unwrap(),
    ];
    let output = import(site, &arguments, &[]).await;
    assert!(output.status.success());
    let said = text(&output.stderr);
    assert!(
        said.contains("can be read or written by others (mode 0644)"),
        "{said}"
    );
    assert!(
        text(&output.stdout).contains("created"),
        "people read it too"
    );
    let report: Value = serde_json::from_slice(&std::fs::read(&written).unwrap()).unwrap();
    assert_eq!(outcome_of(&report, "t"), "created");

    let arguments = [
        files.0.to_str().unwrap(),
        "--publisher",
        "acme",
        "--json",
        "/absent/report",
    ];
    let output = import(site, &arguments, &[]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("/absent/report can't be written"));
}

/// Asks which credential to use, with a key as it is.
async fn resolve(server: &tests::Server, key: &str, status: u16) -> Value {
    let call = server.user(key).post("/v1/resolve").json(&json!({}));
    call.repeats_a_secret().expect(status).await.json().clone()
}

async fn clients_keep_their_keys_until_they_are_revoked(world: &World) {
    let server = world.start().await;
    let (site, publisher) = (server.site(), server.publisher("acme").await);
    let upstream = secret(site, "sk-");
    let keys = [
        secret(site, "sk-litellm-"),
        secret(site, "%odd/key=+~!"),
        secret(site, "ptk_of_another_make_"),
        secret(site, "0123456789ab"),
    ];
    for key in &keys {
        resolve(&server, key, 401).await;
    }
    let files = Files::new(site);
    files.accounts(&json!([account("a", &upstream)]));
    let lends = json!([{"account": "a", "priority": 0}]);
    files.trains(&json!([{"slug": "t", "accounts": lends}]));
    let hash = hex::encode_upper(Sha256::digest(&keys[3]));
    files.keys(&json!([
        {"train": "t", "key": keys[0], "name": "first"},
        {"train": "t", "key": keys[1], "name": "second"},
        {"train": "t", "key": keys[2], "name": "third"},
        {"train": "t", "sha256": hash, "name": "hashed"},
    ]));
    report(site, &files.0, &publisher, 0).await;
    for key in &keys {
        let lent = eventually(
            "an imported key works",
            Duration::from_secs(10),
            async || {
                let call = server.user(key).post("/v1/resolve").json(&json!({}));
                let answer = call.repeats_a_secret().answer().await;
                (answer.status == 200).then(|| answer.json().clone())
            },
        );
        assert_eq!(lent.await["headers"]["x-api-key"], upstream);
        // In either header, whatever the other one holds.
        for (bearer, beside) in [(key.as_str(), "sk-other"), ("sk-other", key.as_str())] {
            let call = server.user(bearer).get("/v1/forward-auth/train");
            let call = call.header("x-api-key", beside).repeats_a_secret();
            assert_eq!(call.expect(200).await.header("x-api-key"), upstream);
        }
    }

    // Revoked is revoked, whatever the files say.
    let tokens = publisher.admin.all("/v1/trains/t/tokens").await;
    assert_eq!(tokens.len(), 4, "{tokens:?}");
    let first = tokens.iter().find(|one| one["name"] == "first").unwrap();
    let path = format!("/v1/trains/t/tokens/{}", first["id"].as_str().unwrap());
    publisher.admin.delete(&path).expect(204).await;
    resolve(&server, &keys[0], 401).await;
    let done = report(site, &files.0, &publisher, 0).await;
    assert_eq!(outcome_of(&done, "t first"), "unchanged");
    assert_eq!(note_of(&done, "t first"), "It was revoked, and stays so.");
    tokio::time::sleep(Duration::from_secs(1)).await;
    resolve(&server, &keys[0], 401).await;
    resolve(&server, &keys[1], 200).await;
    // And the database knows none of them.
    assert_eq!(site.leaks().await, Vec::<String>::new());
}

async fn a_running_server_hears_of_an_import_within_a_second(world: &World) {
    let server = world.start().await;
    let (site, publisher) = (server.site(), server.publisher("acme").await);
    let (first, second, key) = (
        secret(site, "sk-"),
        secret(site, "sk-"),
        secret(site, "old-key-"),
    );
    let files = Files::new(site);
    files.accounts(&json!([account("a", &first)]));
    let lends = json!([{"account": "a", "priority": 0}]);
    files.trains(&json!([{"slug": "t", "accounts": lends}]));
    files.keys(&json!([{"train": "t", "key": key}]));
    report(site, &files.0, &publisher, 0).await;
    eventually("the key works", Duration::from_secs(10), async || {
        let call = server.user(&key).post("/v1/resolve").json(&json!({}));
        (call.repeats_a_secret().answer().await.status == 200).then_some(())
    })
    .await;
    files.accounts(&json!([account("a", &second)]));
    report(site, &files.0, &publisher, 0).await;
    eventually(
        "another credential is lent",
        Duration::from_secs(1),
        async || {
            let lent = resolve(&server, &key, 200).await;
            (lent["headers"]["x-api-key"] == second.as_str()).then_some(())
        },
    )
    .await;
    files.trains(&json!([{"slug": "t", "enabled": false}]));
    report(site, &files.0, &publisher, 0).await;
    eventually(
        "nothing is lent any more",
        Duration::from_secs(1),
        async || {
            let call = server.user(&key).post("/v1/resolve").json(&json!({}));
            (call.repeats_a_secret().answer().await.status == 403).then_some(())
        },
    )
    .await;
}
