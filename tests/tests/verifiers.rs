//! Whoever may be at the other end of a webhook: our samples, in four languages, and libraries
//! that others published.

use std::{path::PathBuf, process::Stdio};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tests::{Delivery, skip, tools};
use tokio::{io::AsyncWriteExt as _, process::Command};

#[path = "../../docs/samples/verify.rs"]
mod sample;

/// Verifies a delivery with the Rust sample.
pub fn verify(secret: &str, delivery: &Delivery) -> Result<(), &'static str> {
    let header = |name: &str| {
        let found = delivery.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    sample::verify_delivery(secret, header, &delivery.body, tools::now_s())
}

/// Verifies a call of a subcommand by the secret that is derived for calls, and that it is not
/// genuine as a webhook.
pub fn verify_call(secret: &str, call: &Delivery) -> Result<(), &'static str> {
    assert_eq!(verify(secret, call), Err("no_match"));
    verify(&sample::subcommand_secret(secret)?, call)
}

/// Verifies a delivery that a pair of keys signed, with the Node sample, and that the sample
/// refuses another body.
pub async fn verify_by_public_key(public_key: &str, delivery: &Delivery) {
    let mut case = case("", delivery);
    case["public_keys"] = json!([public_key]);
    let program = ("node".into(), &["verify-ed25519.mjs"][..]);
    assert_eq!(ask_program("Node", program.clone(), &case).await, "ok");
    let changed = with_a_changed_byte(&case);
    let said = ask_program("Node", program, &changed).await;
    assert_eq!(said, "refused: no_match");
}

/// Every verifier that is a program: a name, and the command line below docs/samples.
const PROGRAMS: [(&str, &[&str]); 7] = [
    ("Node", &["node", "verify.mjs"]),
    ("Python", &["python", "verify.py"]),
    ("shell", &["bash", "verify.sh"]),
    (
        "standardwebhooks for Node",
        &["node", "published/published.mjs", "standardwebhooks"],
    ),
    (
        "standardwebhooks for Python",
        &["python", "published/published.py", "standardwebhooks"],
    ),
    (
        "stripe for Node",
        &["node", "published/published.mjs", "stripe"],
    ),
    (
        "stripe for Python",
        &["python", "published/published.py", "stripe"],
    ),
];

/// The names of all verifiers that are programs.
pub fn names() -> impl Iterator<Item = &'static str> {
    PROGRAMS.iter().map(|(name, _)| *name)
}

/// The delivery as the samples' test interface takes it.
pub fn case(secret: &str, delivery: &Delivery) -> Value {
    let headers: serde_json::Map<String, Value> = delivery
        .headers
        .iter()
        .map(|(name, value)| (name.clone(), json!(value)))
        .collect();
    json!({
        "secret": secret,
        "headers": headers,
        "body_base64": STANDARD.encode(&delivery.body),
        "now": tools::now_s(),
    })
}

/// The same with the last byte of the body changed.
pub fn with_a_changed_byte(case: &Value) -> Value {
    let mut body = STANDARD
        .decode(case["body_base64"].as_str().unwrap())
        .unwrap();
    let last = body.len() - 1;
    body[last] ^= 1;
    let mut changed = case.clone();
    changed["body_base64"] = json!(STANDARD.encode(body));
    changed
}

/// The same with every time in it ten minutes back; the signatures no longer fit either.
pub fn with_a_stale_time(case: &Value) -> Value {
    let mut changed = case.clone();
    let then = tools::now_s() - 600;
    let headers = changed["headers"].as_object_mut().unwrap();
    headers["webhook-timestamp"] = json!(then.to_string());
    let signature = headers["x-stationmaster-signature"].as_str().unwrap();
    let (_, codes) = signature.split_once(',').unwrap();
    headers["x-stationmaster-signature"] = json!(format!("t={then},{codes}"));
    changed
}

/// What a verifier says: `ok`, or `refused: …`.
pub async fn ask(name: &str, case: &Value) -> String {
    let (_, arguments) = PROGRAMS.iter().find(|(known, _)| *known == name).unwrap();
    let program = match arguments[0] {
        "python" => tools::python(),
        other => other.into(),
    };
    ask_program(name, (program, &arguments[1..]), case).await
}

async fn ask_program(name: &str, (program, arguments): (PathBuf, &[&str]), case: &Value) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(tools::root().join("docs/samples"))
        .env("STATIONMASTER_TEST_NODE_PATH", node_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(case.to_string().as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        said == "ok" || said.starts_with("refused: "),
        "{name} failed: {said} {words}"
    );
    assert_eq!(
        output.status.success(),
        said == "ok",
        "{name}: {said} {words}"
    );
    said
}

pub fn node_path() -> PathBuf {
    let given = std::env::var_os("STATIONMASTER_TEST_NODE_PATH").map(PathBuf::from);
    given.unwrap_or_else(|| tools::root().join("target/npm/node_modules"))
}

/// Whether the test script has installed what the verifiers need; a skip otherwise.
pub fn installed(test: &str) -> bool {
    let missing: Vec<String> = [tools::python(), node_path()]
        .into_iter()
        .filter(|path| !path.exists())
        .map(|path| path.display().to_string())
        .collect();
    if !missing.is_empty() {
        skip(
            test,
            &format!(
                "{} missing; scripts/test installs it",
                missing.join(" and ")
            ),
        );
    }
    missing.is_empty()
}

#[test]
fn the_rust_sample_agrees_with_the_vectors() {
    let file = tools::root().join("docs/vectors/signatures.json");
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let header = |name: &str| {
            let headers = case["headers"].as_object().unwrap();
            let found = headers
                .iter()
                .find(|(known, _)| known.eq_ignore_ascii_case(name));
            found.and_then(|(_, value)| value.as_str())
        };
        let body = STANDARD
            .decode(case["body_base64"].as_str().unwrap())
            .unwrap();
        let secret = case["secret"].as_str().unwrap();
        let secret = if case["subcommand"] == true {
            sample::subcommand_secret(secret).unwrap()
        } else {
            secret.to_owned()
        };
        let found = sample::verify_delivery(&secret, header, &body, case["now"].as_i64().unwrap());
        assert_eq!(found.err(), case["refused"].as_str(), "{}", case["name"]);
    }
}

#[tokio::test]
async fn the_sample_for_pairs_of_keys_agrees_with_the_vectors() {
    let file = tools::root().join("docs/vectors/ed25519.json");
    let vectors: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    for case in vectors["cases"].as_array().unwrap() {
        let program = ("node".into(), &["verify-ed25519.mjs"][..]);
        assert_eq!(ask_program("Node", program, case).await, "ok", "{case}");
    }
}
