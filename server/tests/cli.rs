//! The command line, tested with the built program.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Settings for a server that must not collide with another one.
const QUIET: [(&str, &str); 2] = [
    ("STATIONMASTER_LISTEN", "127.0.0.1:0"),
    ("STATIONMASTER_METRICS_LISTEN", ""),
];

/// The program with only these variables in its environment.
fn stationmaster(home: &Path, arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stationmaster"))
        .args(arguments)
        .env_clear()
        .envs(settings.iter().copied())
        .current_dir(home)
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

/// Runs the program, which must fail; returns its messages.
fn refusal(home: &Path, arguments: &[&str], settings: &[(&str, &str)], code: i32) -> String {
    let output = stationmaster(home, arguments, settings);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(text(&output.stdout), "", "{said}");
    said
}

#[test]
fn an_unknown_setting_is_refused_with_the_nearest_name() {
    let home = tempfile::tempdir().unwrap();
    let settings = [
        ("STATIONMASTER_LISTNE", "127.0.0.1:0"),
        ("STATIONMASTER_TEST_ANY", "x"),
        ("STATIONMASTER_TOKEN", "x"),
    ];
    for arguments in [&["serve"][..], &[], &["serve", "--print-config"]] {
        let said = refusal(home.path(), arguments, &settings, 2);
        assert!(
            said.contains("did you mean STATIONMASTER_LISTEN?"),
            "{said}"
        );
        assert!(!said.contains("STATIONMASTER_TEST_ANY"), "{said}");
    }
    assert_eq!(
        std::fs::read_dir(home.path()).unwrap().count(),
        0,
        "nothing was made"
    );
}

#[test]
fn bad_values_are_listed_together() {
    let home = tempfile::tempdir().unwrap();
    let settings = [
        ("STATIONMASTER_LISTEN", "here"),
        ("STATIONMASTER_CRON_EVENTS", "0 0 99 * * *"),
        ("STATIONMASTER_BOOTSTRAP_TOKEN", "hunter2"),
    ];
    let said = refusal(home.path(), &["serve"], &settings, 2);
    assert!(
        said.starts_with("error: the configuration has 3 faults:"),
        "{said}"
    );
    for (name, _) in settings {
        assert!(said.contains(&format!("  {name}: ")), "{said}");
    }
    assert!(said.contains("it takes an IP address and a port"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn print_config_masks_secrets_and_names_sources() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("stationmaster.toml");
    std::fs::write(&file, "STATIONMASTER_LOG = \"debug\"\n").unwrap();
    let token = "hunter2-hunter2-hunter2-hunter2-hunter2";
    let settings = [
        ("STATIONMASTER_BOOTSTRAP_TOKEN", token),
        (
            "STATIONMASTER_DATABASE_URL",
            "postgres://u:hunter2@127.0.0.1/d",
        ),
    ];
    let arguments = ["serve", "--print-config", "--config", "stationmaster.toml"];
    let output = stationmaster(home.path(), &arguments, &settings);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(!shown.contains("hunter2"), "{shown}");
    for line in [
        "STATIONMASTER_BOOTSTRAP_TOKEN = \"********\" # environment",
        "STATIONMASTER_DATABASE_URL = \"postgres://u:********@127.0.0.1/d\" # environment",
        "STATIONMASTER_LOG = \"debug\" # file",
        "STATIONMASTER_LISTEN = \"127.0.0.1:8080\" # default",
    ] {
        assert!(
            shown.lines().any(|shown| shown == line),
            "{line} is missing in\n{shown}"
        );
    }
}

#[test]
fn wrong_usage_exits_with_2_and_help_with_0() {
    let home = tempfile::tempdir().unwrap();
    refusal(home.path(), &["fly"], &[], 2);
    refusal(home.path(), &["config"], &[], 2);
    refusal(home.path(), &["config", "--docs", "--env-example"], &[], 2);
    refusal(home.path(), &["keys"], &[], 2);
    for size in ["0", "1001"] {
        let arguments = ["keys", "rewrap", "--batch-size", size];
        refusal(home.path(), &arguments, &[], 2);
    }
    for arguments in [["--help"], ["--version"]] {
        let output = stationmaster(home.path(), &arguments, &[]);
        assert!(output.status.success());
        assert!(
            text(&output.stdout).starts_with(if arguments == ["--version"] {
                "stationmaster "
            } else {
                "A control plane"
            })
        );
    }
}

/// The help texts. `INSTA_UPDATE=always cargo test -p server` updates them.
#[test]
fn the_help_of_accounts_is_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    for name in ["", "login", "status", "refresh", "refresh-all"] {
        let words = ["accounts", name, "--help"];
        let arguments: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let output = stationmaster(home.path(), &arguments, &[]);
        assert!(output.status.success());
        insta::assert_snapshot!(format!("accounts {name}").trim(), text(&output.stdout));
    }
    for arguments in [
        &["accounts"][..],
        &["accounts", "refresh"],
        &["accounts", "login", "x"],
        &["accounts", "refresh-all", "--token", "stm_admin_x"],
    ] {
        refusal(home.path(), arguments, &[], 2);
    }
    let said = refusal(home.path(), &["accounts", "status"], &[], 2);
    assert!(said.contains("STATIONMASTER_TOKEN"), "{said}");
}

#[test]
fn the_help_of_users_is_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    for name in [
        "",
        "create",
        "list",
        "show",
        "disable",
        "enable",
        "delete",
        "sign-in-link",
        "reset-link",
        "sessions",
        "staff",
    ] {
        let words = ["users", name, "--help"];
        let arguments: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let output = stationmaster(home.path(), &arguments, &[]);
        assert!(output.status.success());
        insta::assert_snapshot!(format!("users {name}").trim(), text(&output.stdout));
    }
    for arguments in [
        &["users"][..],
        &["users", "create"],
        &["users", "create", "ada"],
        &["users", "staff", "ada@example.com"],
    ] {
        refusal(home.path(), arguments, &[], 2);
    }
    let said = refusal(home.path(), &["users", "list"], &[], 1);
    assert!(said.contains("start the server once"), "{said}");
}

/// The files that are generated and checked in, and the command that writes each.
#[test]
fn generated_files_are_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (name, flag) in [
        ("docs/configuration.md", "--docs"),
        (".env.example", "--env-example"),
    ] {
        let output = stationmaster(&root, &["config", flag], &[]);
        let checked_in = std::fs::read_to_string(root.join(name)).unwrap_or_default();
        assert!(
            text(&output.stdout) == checked_in,
            "{name} has drifted; update it with: target/debug/stationmaster config {flag} > {name}"
        );
    }
}

/// The demo's consumer is a process of its own, which verifies signatures with code of its own.
#[test]
fn the_demo_s_consumer_tells_a_genuine_delivery_from_a_changed_one() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stationmaster"))
        .arg("demo-consumer")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let mut stdin = child.stdin.take().unwrap();
    writeln!(stdin, "{secret}\na-bearer").unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line =
        || -> serde_json::Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let listening = line();
    let url = listening["listening"].as_str().unwrap();
    let address = url.strip_prefix("http://").unwrap().trim_end_matches('/');

    let body = br#"{"id":"evt_1","type":"run.succeeded","data":{"run":{"id":"run_1"}}}"#;
    let now = domain::clock::Clock::now(&domain::clock::SystemClock).seconds();
    let secrets = [secrecy::SecretString::from(secret)];
    let head = format!(
        "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\
         webhook-id: evt_1\r\nwebhook-timestamp: {now}\r\nwebhook-signature: {}\r\n\
         x-stationmaster-signature: {}\r\n\r\n",
        body.len(),
        domain::signature::standard(&secrets, "evt_1", now, body),
        domain::signature::stationmaster(&secrets, now, body),
    );
    let send = |body: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body))
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(send(body).starts_with("HTTP/1.1 204"));
    let taken = line();
    assert_eq!(taken["problems"], serde_json::json!([]), "{taken}");
    assert_eq!(taken["run"], "run_1");
    let changed = String::from_utf8_lossy(body).replace("run_1", "run_2");
    assert!(send(changed.as_bytes()).starts_with("HTTP/1.1 400"));
    assert_eq!(line()["problems"].as_array().map(Vec::len), Some(2));

    drop(stdin);
    assert!(
        child.wait().unwrap().success(),
        "it stops when its input closes"
    );
}

#[test]
fn a_key_file_that_others_may_read_is_refused_with_the_remedy() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let keys = data.join("master-keys");
    std::fs::write(&keys, &*domain::seal::MasterKeys::generate_text("k1")).unwrap();
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o644)).unwrap();
    let said = refusal(home.path(), &["serve"], &QUIET, 1);
    assert!(
        said.contains("master-keys") && said.contains("mode 0644"),
        "{said}"
    );
    assert!(said.contains("chmod 600"), "{said}");
}

#[test]
fn a_database_without_its_keys_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("stationmaster.db"), "SQLite format 3\0").unwrap();
    let said = refusal(home.path(), &["serve"], &QUIET, 1);
    assert!(said.contains("Restore the key file"), "{said}");
    assert!(!data.join("master-keys").exists());
}

#[test]
fn a_lost_key_file_is_named_and_not_replaced_by_a_new_one() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("stationmaster.db"), "SQLite format 3\0").unwrap();
    for (arguments, code) in [
        (&["keys", "status"][..], 2),
        (&["keys", "rewrap"], 2),
        (&["keys", "rotate"], 1),
        (&["keys", "rotate", "--retire", "k1"], 1),
    ] {
        let said = refusal(home.path(), arguments, &[], code);
        assert!(said.contains("Restore the key file"), "{said}");
    }
    assert!(!data.join("master-keys").exists());
    let keys = ("STATIONMASTER_MASTER_KEYS", "k1:hunter2");
    let said = refusal(home.path(), &["keys", "status"], &[keys], 2);
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn the_doctor_tells_a_line_for_each_check_and_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let output = stationmaster(home.path(), &["doctor"], &[]);
    let found = text(&output.stdout);
    assert!(output.status.success(), "{found}");
    for what in ["configuration", "data directory", "keys"] {
        assert!(found.contains(&format!("ok      {what}: ")), "{found}");
    }
    assert_eq!(
        std::fs::read_dir(home.path()).unwrap().count(),
        0,
        "nothing was made"
    );

    let output = stationmaster(home.path(), &["doctor"], &[("STATIONMASTER_LISTEN", "x")]);
    let found = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(found.contains("FAILED  configuration: "), "{found}");
    assert!(found.contains("STATIONMASTER_LISTEN"), "{found}");
}
