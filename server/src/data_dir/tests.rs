use std::{ffi::OsString, fs::Permissions, os::unix::fs::PermissionsExt as _};

use super::*;
use crate::key_file::KEYS_FILE;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("deep/data")
    }

    fn config(&self, given: &[(&str, &str)]) -> Config {
        let data: OsString = self.data().into();
        let mut pairs = vec![(OsString::from("STATIONMASTER_DATA_DIR"), data)];
        pairs.extend(
            given
                .iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        config::load(pairs, None).unwrap().config
    }

    fn start(&self, given: &[(&str, &str)]) -> Result<(Database, Credentials)> {
        let config = self.config(given);
        let database = Database::prepare(&config)?;
        let credentials = Credentials::prepare(&config, &database)?;
        Ok((database, credentials))
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn text_of(credentials: &Credentials) -> Vec<&str> {
    credentials
        .bootstrap_tokens
        .iter()
        .map(secrecy::ExposeSecret::expose_secret)
        .collect()
}

#[test]
fn the_first_start_makes_private_files_and_the_next_one_reads_them() {
    let home = Home::new();
    let (database, first) = home.start(&[]).unwrap();
    let data = home.data();
    assert_eq!(mode(&data), 0o700);
    for name in [KEYS_FILE, TOKEN_FILE, LOCK_FILE, "stationmaster.db"] {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
    assert_eq!(first.token_file, Some((data.join(TOKEN_FILE), true)));
    assert_eq!(token::recognise(text_of(&first)[0]), Some(Prefix::Boot));
    drop(database);
    let (_database, second) = home.start(&[]).unwrap();
    assert_eq!(text_of(&first), text_of(&second));
    assert_eq!(second.token_file, Some((data.join(TOKEN_FILE), false)));
    let left_over = fs::read_dir(&data).unwrap().filter(|entry| {
        entry
            .as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .contains("new")
    });
    assert_eq!(left_over.count(), 0);
}

#[test]
fn a_second_process_is_refused_and_told_who_has_the_lock() {
    let home = Home::new();
    let first = home.start(&[]).unwrap();
    let refused = home.start(&[]).unwrap_err().to_string();
    assert!(
        refused.contains(&format!("process {}", std::process::id())),
        "{refused}"
    );
    assert!(refused.contains("/lock"), "{refused}");
    drop(first);
    home.start(&[]).unwrap();
}

#[test]
fn one_database_file_is_locked_through_two_data_directories() {
    let (one, two) = (Home::new(), Home::new());
    let elsewhere = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/shared.db", elsewhere.path().display());
    let _first = one.start(&[("STATIONMASTER_DATABASE_URL", &url)]).unwrap();
    let link = elsewhere.path().join("link.db");
    std::os::unix::fs::symlink(elsewhere.path().join("shared.db"), &link).unwrap();
    let by_link = format!("sqlite://{}", link.display());
    for url in [url, by_link] {
        let refused = two
            .start(&[("STATIONMASTER_DATABASE_URL", &url)])
            .unwrap_err();
        assert!(matches!(refused, DataDirError::Locked { .. }), "{refused}");
    }
}

#[test]
fn files_that_others_may_read_are_refused_with_the_remedy() {
    for name in [KEYS_FILE, TOKEN_FILE] {
        let home = Home::new();
        drop(home.start(&[]).unwrap());
        let path = home.data().join(name);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let refused = home.start(&[]).unwrap_err().to_string();
        assert!(
            refused.contains("0640") && refused.contains("chmod 600"),
            "{refused}"
        );
    }
}

#[test]
fn lost_keys_are_never_replaced_in_silence() {
    let home = Home::new();
    let (database, _) = home.start(&[]).unwrap();
    fs::write(database.file.as_ref().unwrap(), b"SQLite format 3\0").unwrap();
    drop(database);
    fs::remove_file(home.data().join(KEYS_FILE)).unwrap();
    let refused = home.start(&[]).unwrap_err();
    assert!(
        matches!(refused, DataDirError::KeysLost { .. }),
        "{refused}"
    );
    assert!(!home.data().join(KEYS_FILE).exists());
    // With the keys from elsewhere it starts, and keeps them out of the directory.
    let keys = MasterKeys::generate_text("k1");
    home.start(&[("STATIONMASTER_MASTER_KEYS", &keys)]).unwrap();
    assert!(!home.data().join(KEYS_FILE).exists());
}

#[test]
fn damaged_files_are_named_and_not_repeated() {
    for name in [KEYS_FILE, TOKEN_FILE] {
        let home = Home::new();
        drop(home.start(&[]).unwrap());
        fs::write(home.data().join(name), "hunter2").unwrap();
        let refused = home.start(&[]).unwrap_err().to_string();
        assert!(
            refused.contains(name) && !refused.contains("hunter2"),
            "{refused}"
        );
    }
}

#[test]
fn keys_may_come_from_a_file_of_the_operator_s_choice() {
    let home = Home::new();
    let path = home.0.path().join("mounted");
    fs::write(&path, format!("{}\n", &*MasterKeys::generate_text("k1"))).unwrap();
    let given = [("STATIONMASTER_MASTER_KEYS_FILE", path.to_str().unwrap())];
    home.start(&given).unwrap();
    assert!(!home.data().join(KEYS_FILE).exists());
}

#[test]
fn postgres_requires_both_and_touches_no_directory() {
    let home = Home::new();
    let url = ("STATIONMASTER_DATABASE_URL", "postgres://u@h/d");
    let keys = MasterKeys::generate_text("k1");
    let missing = home.start(&[url]).unwrap_err().to_string();
    assert!(missing.contains("STATIONMASTER_MASTER_KEYS"), "{missing}");
    let missing = home
        .start(&[url, ("STATIONMASTER_MASTER_KEYS", &keys)])
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains("STATIONMASTER_BOOTSTRAP_TOKEN"),
        "{missing}"
    );
    let token = "t".repeat(32);
    let all = [
        url,
        ("STATIONMASTER_MASTER_KEYS", &keys),
        ("STATIONMASTER_BOOTSTRAP_TOKEN", &token),
    ];
    let (database, credentials) = home.start(&all).unwrap();
    assert_eq!(database.file, None);
    assert_eq!(credentials.token_file, None);
    assert!(!home.data().exists());
}

#[test]
fn a_survey_makes_nothing_and_sees_who_runs() {
    let home = Home::new();
    let config = home.config(&[]);
    let survey = Survey::of(&config).unwrap();
    Credentials::check(&config, &survey.database).unwrap();
    assert!(survey.fresh && survey.holder.is_none());
    assert!(!home.data().exists());

    let running = home.start(&[]).unwrap();
    let holder = Survey::of(&config).unwrap().holder;
    assert_eq!(holder, Some(format!("process {}", std::process::id())));
    drop(running);
    assert_eq!(Survey::of(&config).unwrap().holder, None);
}

#[test]
fn the_url_escapes_what_would_change_the_path() {
    let url = sqlite_url(Path::new("/a%b/c?d#e.db")).unwrap();
    assert_eq!(url, "sqlite:///a%25b/c%3Fd%23e.db");
}
