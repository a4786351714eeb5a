use super::*;

fn pairs(given: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    given
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn faults_of(given: &[(&str, &str)]) -> Vec<String> {
    let faults = load(pairs(given), None)
        .err()
        .expect("the configuration must be refused");
    faults.0.iter().map(SettingError::to_string).collect()
}

#[test]
fn an_empty_environment_is_a_whole_configuration() {
    let config = load(
        pairs(&[("PATH", "/bin"), ("STATIONMASTER_TEST_X", "1")]),
        None,
    )
    .unwrap()
    .config;
    assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
    assert_eq!(
        config.sqlite_path(),
        Some(PathBuf::from("./data/stationmaster.db"))
    );
    assert_eq!(config.retry_schedule.tries(), 8);
    assert!(config.sqlite_synchronous_full);
}

#[test]
fn every_default_passes_its_own_check_and_every_name_is_unique() {
    for setting in SETTINGS {
        assert!(setting.name.starts_with(PREFIX), "{}", setting.name);
        assert_eq!(
            setting.default.is_empty(),
            !setting.default_words.is_empty(),
            "{}",
            setting.name
        );
        assert!(setting.meaning.ends_with('.'), "{}", setting.name);
        assert_eq!(
            SETTINGS
                .iter()
                .filter(|other| other.name == setting.name)
                .count(),
            1
        );
    }
}

#[test]
fn all_faults_are_reported_at_once_with_what_would_be_right() {
    let faults = faults_of(&[
        ("STATIONMASTER_LISTEN", "localhost"),
        ("STATIONMASTER_LISTNE", "x"),
        ("STATIONMASTER_MAX_CONNECTIONS", "0"),
        ("STATIONMASTER_CRON_RUNS", "at midnight"),
        ("STATIONMASTER_RETRY_SCHEDULE", "5s,soon"),
    ]);
    assert_eq!(faults.len(), 5, "{faults:#?}");
    let all = faults.join("\n");
    for part in [
        "STATIONMASTER_LISTEN: `localhost` is not understood; it takes an IP address and a port",
        "did you mean STATIONMASTER_LISTEN?",
        "STATIONMASTER_MAX_CONNECTIONS: 0 is out of range; it takes a whole number from 1 to",
        "STATIONMASTER_CRON_RUNS: `at midnight` is not understood",
        "STATIONMASTER_RETRY_SCHEDULE: wait 2",
    ] {
        assert!(all.contains(part), "{part:?} is missing in\n{all}");
    }
}

#[test]
fn a_wrong_secret_is_not_repeated() {
    let secret = "hunter2-hunter2";
    let faults = faults_of(&[
        ("STATIONMASTER_BOOTSTRAP_TOKEN", secret),
        ("STATIONMASTER_LEGACY_TOKEN", secret),
        ("STATIONMASTER_MASTER_KEYS", secret),
        (
            "STATIONMASTER_DATABASE_URL",
            "mysql://u:hunter2-hunter2@h/d",
        ),
        ("STATIONMASTER_SESSION_KEY", secret),
        ("STATIONMASTER_SMTP_URL", "smtp://u:hunter2/hunter2@h"),
        ("STATIONMASTER_PUBLIC_URL", "https://u:hunter2@h"),
    ]);
    assert_eq!(faults.len(), 7, "{faults:#?}");
    assert!(!faults.join("\n").contains("hunter2"), "{faults:#?}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stationmaster.toml");
    let text = "STATIONMASTER_LISTEN = \"127.0.0.1:1\"\nSTATIONMASTER_MAX_CONNECTIONS = 7\n\
                STATIONMASTER_ALLOW_HTTP_DESTINATIONS = true\n\
                STATIONMASTER_ALLOWED_DESTINATIONS = [\"127.0.0.0/8\", \"::1\"]\n";
    std::fs::write(&path, text).unwrap();
    let given = pairs(&[("STATIONMASTER_LISTEN", "127.0.0.1:2")]);
    let loaded = load(given, Some(&path)).unwrap();
    assert_eq!(loaded.config.listen.port(), 2);
    assert_eq!(loaded.config.max_connections, 7);
    assert!(loaded.config.allow_http_destinations);
    assert_eq!(loaded.config.allowed_destinations.len(), 2);
    assert_eq!(
        loaded.values.source("STATIONMASTER_LISTEN"),
        Some(SettingSource::Environment)
    );
    assert_eq!(
        loaded.values.source("STATIONMASTER_MAX_CONNECTIONS"),
        Some(SettingSource::File)
    );
    assert_eq!(loaded.values.source("STATIONMASTER_LOG"), None);
}

#[test]
fn a_file_is_held_to_the_same_rules() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stationmaster.toml");
    let fault = |text: &str| {
        std::fs::write(&path, text).unwrap();
        load(pairs(&[]), Some(&path))
            .err()
            .expect("refused")
            .to_string()
    };
    assert!(fault("STATIONMASTER_LOGG = 'x'").contains("did you mean STATIONMASTER_LOG?"));
    assert!(fault("STATIONMASTER_TEST_X = 'x'").contains("no such setting"));
    assert!(fault("listen = 'x'").contains("no such setting"));
    assert!(fault("STATIONMASTER_LOG = 1.5").contains("neither a string"));
    let broken = fault("\nSTATIONMASTER_BOOTSTRAP_TOKEN = \"hunter2\n");
    assert!(
        broken.contains("line 2") && !broken.contains("hunter2"),
        "{broken}"
    );
    let missing = load(pairs(&[]), Some(&dir.path().join("absent.toml")))
        .err()
        .unwrap();
    assert!(missing.to_string().contains("can't be read"), "{missing}");
}

#[test]
fn the_result_shows_no_secret() {
    let token = "hunter2-hunter2-hunter2-hunter2-hunter2";
    let keys = domain::seal::MasterKeys::generate_text("k1");
    let loaded = load(
        pairs(&[
            ("STATIONMASTER_BOOTSTRAP_TOKEN", token),
            ("STATIONMASTER_LEGACY_TOKEN", &token.to_uppercase()),
            ("STATIONMASTER_MASTER_KEYS", &keys),
            ("STATIONMASTER_DATABASE_URL", "postgres://u:hunter2@h/d"),
            ("STATIONMASTER_SESSION_KEY", token),
            (
                "STATIONMASTER_SMTP_URL",
                "smtp://u:hunter2@mail.example.com",
            ),
            ("STATIONMASTER_MAIL_FROM", "mail@example.com"),
        ]),
        None,
    )
    .unwrap();
    let shown = print(&loaded);
    let debug = format!("{:?}", loaded.config);
    for text in [&shown, &debug] {
        assert!(!text.to_lowercase().contains("hunter2"), "{text}");
        assert!(!text.contains(&keys[3..]), "{text}");
    }
    assert!(
        shown.contains("STATIONMASTER_BOOTSTRAP_TOKEN = \"********\" # environment"),
        "{shown}"
    );
    let table: toml::Table = shown.parse().unwrap();
    assert_eq!(table.len(), SETTINGS.len());
}

#[test]
fn contradictions_are_refused() {
    let token = "0123456789abcdef0123456789abcdef";
    let keys = domain::seal::MasterKeys::generate_text("k1");
    let faults = faults_of(&[
        ("STATIONMASTER_BOOTSTRAP_TOKEN", token),
        ("STATIONMASTER_LEGACY_TOKEN", token),
        ("STATIONMASTER_MASTER_KEYS", &keys),
        ("STATIONMASTER_MASTER_KEYS_FILE", "/run/keys"),
        ("STATIONMASTER_SMTP_URL", "smtps://mail.example.com"),
    ]);
    assert_eq!(faults.len(), 3, "{faults:#?}");
}

#[test]
fn two_bootstrap_tokens_are_taken_and_three_are_not() {
    let (one, two) = ("a".repeat(32), "b".repeat(32));
    let count = |text: &str| {
        let given = pairs(&[("STATIONMASTER_BOOTSTRAP_TOKEN", text)]);
        load(given, None)
            .ok()
            .and_then(|loaded| loaded.config.bootstrap_tokens)
            .map(|t| t.len())
    };
    assert_eq!(count(&one), Some(1));
    assert_eq!(count(&format!("{one},{two}")), Some(2));
    assert_eq!(count(&format!("{one},{one}")), None);
    assert_eq!(count(&format!("{one},{two},{one}x")), None);
    assert_eq!(count(&"c".repeat(31)), None);
    assert_eq!(count(&format!("{one} {two}")), None);
}

#[test]
fn a_public_url_is_an_origin_as_browsers_write_it() {
    let read = |text: &str| {
        let given = pairs(&[("STATIONMASTER_PUBLIC_URL", text)]);
        let loaded = load(given, None).ok()?;
        let url = loaded.config.public_url?;
        Some((url.origin, url.is_loopback, url.was_trimmed))
    };
    for (text, origin, is_loopback, was_trimmed) in [
        (
            "https://sm.example.com",
            "https://sm.example.com",
            false,
            false,
        ),
        (
            "HTTPS://SM.Example.com:443/",
            "https://sm.example.com",
            false,
            true,
        ),
        (
            "https://sm.example.com:8443",
            "https://sm.example.com:8443",
            false,
            false,
        ),
        (
            "http://localhost:8080",
            "http://localhost:8080",
            true,
            false,
        ),
        ("http://127.0.0.2", "http://127.0.0.2", true, false),
        ("http://[::1]:8080/", "http://[::1]:8080", true, true),
    ] {
        let found = read(text).unwrap_or_else(|| panic!("{text} is refused"));
        assert_eq!(found, (origin.to_owned(), is_loopback, was_trimmed));
    }
    for text in [
        "sm.example.com",
        "https:sm.example.com",
        "https:\\\\sm.example.com",
        "http://sm.example.com",
        "http://192.0.2.1",
        "ftp://sm.example.com",
        "https://sm.example.com/base",
        "https://sm.example.com/?",
        "https://sm.example.com/#",
        "https://u@sm.example.com",
        "https://",
    ] {
        assert!(read(text).is_none(), "{text} is taken");
    }
}
