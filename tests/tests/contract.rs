//! The contract against the server, by a tool that knows nothing but the contract.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tests::{Consumer, Publisher, Server, World, on_both_stores, on_sqlite, skip, tools};
use tokio::process::Command;

on_both_stores!(schemathesis_as_admin, schemathesis_as_two_publishers);
// What a runner may do goes through the same code as what an admin may.
on_sqlite!(schemathesis_as_runner);

/// A claim that waits as long as it may outlasts the examination's patience.
const IMPATIENT: [(&str, &str); 1] = [("STATIONMASTER_CLAIM_WAIT_MAX_SECONDS", "0")];

async fn schemathesis_as_admin(world: &World) {
    let server = world.start().await;
    let publisher = populated(&server, "acme").await;
    let users = [("admin", publisher.admin.token())];
    examine(&server, &users, &every_input(), "schemathesis_as_admin").await;
}

async fn schemathesis_as_runner(world: &World) {
    let server = world.start_with(&IMPATIENT).await;
    let publisher = populated(&server, "acme").await;
    let users = [("runner", publisher.runner.token())];
    examine(&server, &users, &every_input(), "schemathesis_as_runner").await;
}

async fn schemathesis_as_two_publishers(world: &World) {
    let server = world.start().await;
    let (one, two) = (
        populated(&server, "one").await,
        populated(&server, "two").await,
    );
    let users = [("one", one.admin.token()), ("two", two.admin.token())];
    examine(&server, &users, OBJECTS, "schemathesis_as_two_publishers").await;
}

async fn populated(server: &Server, slug: &str) -> Publisher {
    let publisher = server.publisher(slug).await;
    publisher.pipeline("nightly-import").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["*"]).await;
    publisher.finished_run("nightly-import").await;
    publisher.run("nightly-import").await;
    publisher
}

/// The answers themselves: every kind of input that the contract allows or forbids.
fn every_input() -> String {
    format!(
        "{CHECKS}content_type_conformance.enabled = true\n\
         response_headers_conformance.enabled = true\n\
         [generation]\nmax-examples = 5\ndeterministic = true\ndatabase = \"none\"\n\
         [phases.stateful]\nenabled = false\n"
    )
}

/// Whose things they are: what one makes, the other reads; what is deleted, nobody does.
const OBJECTS: &str = "\
[auth.wfc]
path = \"users.json\"
peers = [\"one\", \"two\"]
[checks]
enabled = false
not_a_server_error.enabled = true
status_code_conformance.enabled = true
response_schema_conformance.enabled = true
use_after_free.enabled = true
ignored_auth.enabled = true
object_level_authorization.enabled = true
[generation]
max-examples = 5
deterministic = true
database = \"none\"
[phases.coverage]
enabled = false
[phases.stateful]
enabled = true
";

const CHECKS: &str = "\
[auth.wfc]
path = \"users.json\"
[checks]
enabled = false
not_a_server_error.enabled = true
status_code_conformance.enabled = true
response_schema_conformance.enabled = true
";

/// Rotating or deleting the very token that asks would end the examination early, and streams
/// do not end by themselves: they have stories of their own.
const SPARED: &str = "\
[[operations]]
include-operation-id = [\"rotate_credentials\", \"rotate_credential\", \"delete_credential\", \"stream_run\", \"listen\"]
enabled = false
";

/// Lets schemathesis try every operation that the users may reach.
async fn examine(server: &Server, users: &[(&str, &str)], settings: &str, test: &str) {
    let given = std::env::var_os("STATIONMASTER_TEST_SCHEMATHESIS").map(PathBuf::from);
    let program = given.unwrap_or_else(|| tools::root().join("target/venv/bin/schemathesis"));
    if !program.exists() {
        return skip(test, "schemathesis is missing; scripts/test installs it");
    }
    let home = server.site().home();
    prepare(home, users, settings);
    let output = Command::new(program)
        .args(["--config-file", "schemathesis.toml", "run"])
        .arg(format!("{}/openapi.json", server.url()))
        .current_dir(home)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}\n{errors}");
    assert!(words.contains(" passed"), "nothing was tried: {words}");
    server.anon().get("/readyz").expect(200).await;
}

/// The tokens go through a file: the list of processes is for all to read.
fn prepare(home: &Path, users: &[(&str, &str)], settings: &str) {
    let users: Vec<String> = users
        .iter()
        .map(|(name, token)| {
            format!(
                r#"{{"name": "{name}", "fixedHeaders":
                    [{{"name": "Authorization", "value": "Bearer {token}"}}]}}"#
            )
        })
        .collect();
    let users = format!(r#"{{"auth": [{}]}}"#, users.join(","));
    std::fs::write(home.join("users.json"), users).unwrap();
    // One worker: they are threads, each sets the recursion limit of all, and CPython 3.11 breaks off
    // whoever compiles at that moment ("AST constructor recursion depth mismatch").
    let all = format!("workers = 1\nrequest-timeout = 20.0\n{settings}{SPARED}");
    std::fs::write(home.join("schemathesis.toml"), all).unwrap();
}
