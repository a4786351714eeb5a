//! `stationmaster sign` and `verify`, tested by their files, messages and exit codes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tempfile::TempDir;

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PRIVATE: &str = "whsk_7GVPrJWZ9i554nBqvvI9+3wHwIGFqobbTYaV8LcY0bM=";
const PUBLIC: &str = "whpk_SNyyCO7345B3iTPRPd3gTLmwJQnCB6dWOjHbH8wBbMM=";
const AT: &str = "1614265330";

/// A directory with files, in which the program runs.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.put("secret", SECRET.as_bytes());
        desk.put("body", br#"{"test": 2432232314}"#);
        desk
    }

    fn put(&self, name: &str, bytes: &[u8]) -> &Self {
        std::fs::write(self.0.path().join(name), bytes).unwrap();
        self
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_stationmaster"))
            .args(arguments)
            .current_dir(self.0.path())
            .env("SIGNING_SECRET", SECRET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program may have ended without reading.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout.clone(), output.stderr.clone()].concat();
        let said = String::from_utf8_lossy(&said);
        assert!(!said.contains(SECRET) && !said.contains(PRIVATE), "{said}");
        output
    }

    fn sign(&self, arguments: &[&str]) -> String {
        let output = self.run(&[&["sign"], arguments].concat(), b"");
        assert!(output.status.success(), "{}", words(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn verify(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = self.run(&[&["verify"], arguments].concat(), b"");
        (output.status.code(), words(&output))
    }
}

fn words(output: &Output) -> String {
    let both = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8_lossy(&both).trim().to_owned()
}

/// The headers of a test vector, as a dump of a request shows them.
fn dump_of(case: &Value) -> String {
    let headers = case["headers"].as_object().unwrap().iter();
    let lines = headers.map(|(name, value)| format!("{name}: {}\r\n", value.as_str().unwrap()));
    format!(
        "POST /hook HTTP/1.1\r\nHost: x\r\n{}\r\n",
        lines.collect::<String>()
    )
}

fn cases(name: &str) -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../docs/vectors")
        .join(name);
    let vectors: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    vectors["cases"].as_array().unwrap().clone()
}

#[test]
fn the_vectors_are_judged_as_they_say() {
    let desk = Desk::new();
    let text = |case: &Value, name: &str| case[name].as_str().unwrap().to_owned();
    let judge = |case: &Value, key: &str| {
        desk.put("key", key.as_bytes())
            .put("headers", dump_of(case).as_bytes())
            .put(
                "bytes",
                &STANDARD.decode(text(case, "body_base64")).unwrap(),
            );
        let now = case["now"].to_string();
        let mut files = vec![
            "--secret-file",
            "key",
            "--headers",
            "headers",
            "--at",
            &now,
            "bytes",
        ];
        if case["subcommand"] == true {
            files.push("--subcommand");
        }
        desk.verify(&files)
    };
    for case in cases("signatures.json") {
        let (code, said) = judge(&case, &text(&case, "secret"));
        match case["refused"].as_str() {
            None => assert_eq!(
                (code, said.as_str()),
                (Some(0), "genuine"),
                "{}",
                case["name"]
            ),
            Some(reason) => {
                assert_eq!(code, Some(1), "{}: {said}", case["name"]);
                let begins = format!("error: {reason}: ");
                assert!(said.starts_with(&begins), "{}: {said}", case["name"]);
            }
        }
    }
    for case in cases("ed25519.json") {
        for key in [
            &text(&case, "private_key"),
            case["public_keys"][0].as_str().unwrap(),
        ] {
            assert_eq!(
                judge(&case, key),
                (Some(0), "genuine".into()),
                "{}",
                case["name"]
            );
        }
    }
}

#[test]
fn what_is_signed_is_genuine_and_nothing_else() {
    let desk = Desk::new();
    let id = ["--id", "msg_p5jXN8AQM9LWM0D4loKWxJek", "--timestamp", AT];
    let headers = desk.sign(&[&["--secret-file", "secret"], &id[..], &["body"]].concat());
    assert_eq!(
        headers,
        "content-type: application/json\nwebhook-id: msg_p5jXN8AQM9LWM0D4loKWxJek\n\
         webhook-timestamp: 1614265330\n\
         webhook-signature: v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=\n\
         x-stationmaster-signature: t=1614265330,\
         v1=2e37df5d4a028c51a7f3133d64ae1e300d2c2c900f1b1d49d4369ad2530f8964\n"
    );
    desk.put("headers", headers.as_bytes());
    let judge = |more: &[&str], body: &str| {
        let files = ["--secret-env", "SIGNING_SECRET", "--headers", "headers"];
        desk.verify(&[&files[..], more, &[body]].concat())
    };
    assert_eq!(judge(&["--at", "1614265630"], "body").0, Some(0));
    let (code, said) = judge(&["--at", "1614265631"], "body");
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "error: too_old: it was signed more than 300 s ago")
    );
    let far = ["--at", "1614265631", "--tolerance-seconds", "301"];
    assert_eq!(judge(&far, "body").0, Some(0));
    assert_eq!(judge(&["--at", "1614265029"], "body").0, Some(1));
    assert!(judge(&[], "body").1.contains("too_old"), "now is later");
    desk.put("other", b"{\"test\": 2432232314}\n");
    assert!(judge(&["--at", AT], "other").1.contains("no_match"));

    // Now, with a fresh identifier, and the body from standard input.
    let output = desk.run(&["sign", "--secret-file", "secret", "-"], b"{}");
    let fresh = String::from_utf8(output.stdout).unwrap();
    assert!(fresh.contains("webhook-id: evt_"), "{fresh}");
    desk.put("headers", fresh.as_bytes()).put("body", b"{}");
    assert_eq!(judge(&[], "body"), (Some(0), "genuine".into()));
    let without: Vec<String> = fresh
        .lines()
        .skip(2)
        .map(|line| format!("> {line}"))
        .collect();
    let without = without.join("\r\n");
    desk.put("headers", without.as_bytes());
    let (code, said) = judge(&[], "body");
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "error: malformed: missing: webhook-id")
    );
}

#[test]
fn a_private_key_signs_for_its_public_half_alone() {
    let desk = Desk::new();
    desk.put("private", PRIVATE.as_bytes())
        .put("public", PUBLIC.as_bytes());
    let headers = desk.sign(&["--secret-file", "private", "body"]);
    assert!(headers.contains("webhook-signature: v1a,"), "{headers}");
    assert!(!headers.contains("x-stationmaster-signature"), "{headers}");
    desk.put("headers", headers.as_bytes());
    let files = ["--secret-file", "public", "--headers", "headers", "body"];
    assert_eq!(desk.verify(&files), (Some(0), "genuine".into()));
    let files = ["--secret-file", "secret", "--headers", "headers", "body"];
    assert_eq!(desk.verify(&files).0, Some(1));
}

#[test]
fn wrong_usage_is_told_from_a_refusal() {
    let desk = Desk::new();
    desk.put("headers", b"").put("public", PUBLIC.as_bytes());
    for line in [
        "verify --secret-file gone --headers headers body",
        "verify --secret-file secret --headers gone body",
        "verify --secret-file secret --headers headers gone",
        "verify --secret-file - --headers - body",
        "verify --headers headers body",
        "verify --secret-file headers --headers headers body",
        "sign --secret-env NO_SUCH_NAME body",
        "sign --secret-file public body",
        "sign --secret-file body body",
        "sign --secret-file secret --id ä body",
        "sign --secret-file secret --timestamp -1 body",
        "sign --secret-file secret --secret-env SIGNING_SECRET body",
    ] {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = desk.run(&arguments, b"");
        assert_eq!(output.status.code(), Some(2), "{line}: {}", words(&output));
    }
    let line = "verify --secret-file secret --headers headers body";
    let arguments: Vec<&str> = line.split(' ').collect();
    let output = desk.run(&arguments, b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words(&output).contains("no_signature"),
        "{}",
        words(&output)
    );
}
