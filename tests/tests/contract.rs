//! The contract against the server, by a tool that knows nothing but the contract.

use std::{path::PathBuf, process::Stdio};

use serde_json::json;
use tests::{Consumer, Publisher, Server, World, on_both_stores, skip, tools};
use tokio::process::Command;

on_both_stores!(
    schemathesis_finds_nothing_as_admin,
    schemathesis_finds_nothing_as_runner
);

async fn schemathesis_finds_nothing_as_admin(world: &World) {
    let server = world.start().await;
    let publisher = populated(&server).await;
    examine(
        &server,
        publisher.admin.token(),
        "schemathesis_finds_nothing_as_admin",
    )
    .await;
}

async fn schemathesis_finds_nothing_as_runner(world: &World) {
    let server = world.start().await;
    let publisher = populated(&server).await;
    examine(
        &server,
        publisher.runner.token(),
        "schemathesis_finds_nothing_as_runner",
    )
    .await;
}

async fn populated(server: &Server) -> Publisher {
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly-import").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["*"]).await;
    publisher.finished_run("nightly-import").await;
    publisher.run("nightly-import").await;
    publisher
}

/// Lets schemathesis try every operation that the token may reach.
async fn examine(server: &Server, token: &str, test: &str) {
    let given = std::env::var_os("STATIONMASTER_TEST_SCHEMATHESIS").map(PathBuf::from);
    let program = given.unwrap_or_else(|| tools::root().join("target/venv/bin/schemathesis"));
    if !program.exists() {
        return skip(test, "schemathesis is missing; scripts/test installs it");
    }
    let home = server.site().home();
    let settings = home.join("schemathesis.toml");
    // The token goes through a file that only we can read, not through the list of processes.
    std::fs::write(&settings, settings_with(token)).unwrap();
    let output = Command::new(program)
        .args(["--config-file", settings.to_str().unwrap(), "run"])
        .arg(format!("{}/openapi.json", server.url()))
        .current_dir(home)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}\n{errors}");
    assert!(
        words.contains("passed") || words.contains("No issues"),
        "{words}"
    );
    let alive = server.anon().get("/readyz").expect(200).await;
    assert_eq!(
        alive.json(),
        &json!({"status": "ready", "checks": alive["checks"]}),
        "{alive}"
    );
}

fn settings_with(token: &str) -> String {
    // Rotating or deleting the very token that asks would end the examination early.
    format!(
        r#"
headers = {{ Authorization = "Bearer {token}" }}
workers = 2
request-timeout = 20.0

[generation]
max-examples = 8
deterministic = true
database = "none"

[phases.stateful]
enabled = false

[phases.coverage]
enabled = true

[checks]
enabled = false
not_a_server_error.enabled = true
status_code_conformance.enabled = true
content_type_conformance.enabled = true
response_headers_conformance.enabled = true
response_schema_conformance.enabled = true

[[operations]]
include-operation-id = ["rotate_credentials", "rotate_credential", "delete_credential"]
enabled = false
"#
    )
}
