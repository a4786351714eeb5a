//! Master keys: a new one comes, all owners' keys move to it, the old one goes, and servers serve
//! all the while.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use sqlx::{AssertSqlSafe, PgConnection};
use tests::{Publisher, Server, Site, World, on_both_stores, on_sqlite, tools::eventually};

use crate::audit::verified;

on_both_stores!(
    keys_move_while_a_server_serves,
    a_move_that_is_killed_goes_on_where_it_was,
    a_damaged_row_is_named_and_the_others_move,
    keys_without_a_file_are_written_elsewhere,
    a_removed_publisher_s_key_is_destroyed,
);
on_sqlite!(without_a_database_there_is_nothing_to_do);

const LIMIT: Duration = Duration::from_secs(30);

/// A site whose keys stand in a file, on either store.
struct Keys {
    site: Arc<Site>,
    file: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Keys {
    async fn on(world: &World) -> Self {
        let site = world.site().await;
        let mut keys = Self {
            file: site.data_dir.join("master-keys"),
            settings: Vec::new(),
            site,
        };
        if keys.site.database.is_some() {
            keys.file = keys.site.home().join("keys");
            std::fs::write(&keys.file, one_key("k1")).unwrap();
            keys.settings = vec![
                ("STATIONMASTER_MASTER_KEYS", String::new()),
                (
                    "STATIONMASTER_MASTER_KEYS_FILE",
                    keys.file.display().to_string(),
                ),
            ];
        }
        keys
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        let pairs = self.settings.iter();
        pairs.map(|(name, value)| (*name, value.as_str())).collect()
    }

    async fn start(&self) -> Server {
        let server = self.site.start(&self.settings()).await;
        self.ids();
        server
    }

    /// The identifiers in the file. Its keys are looked for in all that is written from now on.
    fn ids(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.file).unwrap();
        let entries = text.trim().split(',').map(|one| one.split_once(':'));
        let entries = entries.map(|entry| {
            let (id, key) = entry.unwrap();
            self.site.remember(key);
            id.to_owned()
        });
        entries.collect()
    }

    /// `stationmaster keys …`: its exit code, and what it wrote.
    async fn keys(&self, arguments: &[&str]) -> (Option<i32>, String) {
        keys(&self.site, &self.settings(), arguments).await
    }

    async fn ok(&self, arguments: &[&str]) -> String {
        let (code, words) = self.keys(arguments).await;
        assert_eq!(code, Some(0), "{arguments:?}: {words}");
        words
    }

    async fn wrapped_by(&self, id: &str) -> i64 {
        let from = format!("owner_keys WHERE master_key_id = '{id}'");
        self.site.count(&from).await
    }
}

fn one_key(id: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    format!("{id}:{}", STANDARD.encode(domain::random::bytes::<32>()))
}

async fn keys(site: &Site, settings: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = site.command(&[]);
    command.arg("keys").args(arguments);
    let output = command.envs(settings.iter().copied()).output().await;
    let Output {
        status,
        stdout,
        stderr,
    } = output.unwrap();
    for written in [&stdout, &stderr] {
        assert_eq!(site.found_in(written), [""; 0], "{arguments:?}");
    }
    let words = [stdout, stderr].concat();
    (status.code(), String::from_utf8(words).unwrap())
}

async fn publishers(server: &Server, count: usize) -> Vec<Publisher> {
    let mut all = Vec::new();
    for at in 0..count {
        let publisher = server.publisher(&format!("p{at}")).await;
        publisher.pipeline("nightly").await;
        all.push(publisher);
    }
    all
}

/// What needs the publisher's keys: sealing, opening, the audit log's chain. Each use makes the
/// server forget the keys that it has at hand, so the next one reads them anew.
async fn used(publisher: &Publisher) {
    let mint = publisher
        .admin
        .post("/v1/publishers/me/tokens/webhook_signing/rotate");
    let mint = mint.json(&json!({})).key(&tests::tools::word());
    mint.expect(200).await;
    publisher.run("nightly").await;
    publisher.admin.get("/v1/runs?limit=1").expect(200).await;
}

async fn told(server: &Server) -> u64 {
    let rows = server
        .operator()
        .all("/v1/audit?action=keys.rewrapped")
        .await;
    let owners = rows.iter().map(|row| {
        assert_eq!(row["actor"]["kind"], "system", "{row}");
        row["metadata"]["owners"].as_u64().unwrap()
    });
    owners.sum()
}

async fn keys_move_while_a_server_serves(world: &World) {
    let keys = Keys::on(world).await;
    let server = keys.start().await;
    let all = publishers(&server, 6).await;
    let old = keys.ids().remove(0);
    let stop = AtomicBool::new(false);
    let work = async {
        let mut rounds = 0;
        while !stop.load(Ordering::SeqCst) || rounds < 2 {
            for publisher in &all {
                used(publisher).await;
            }
            server.publisher(&format!("new{rounds}")).await;
            rounds += 1;
        }
    };
    let change = async {
        let id = rotated(&keys, &old).await;
        let before = keys.wrapped_by(&old).await;
        let words = keys.ok(&["rewrap", "--dry-run"]).await;
        assert!(words.contains("nothing was changed"), "{words}");
        assert_eq!(keys.wrapped_by(&id).await, 0, "a dry run, after {before}");
        let (code, words) = keys.keys(&["rotate", "--retire", &old]).await;
        assert_eq!(code, Some(1), "{words}");
        assert!(words.contains("still wraps the keys of"), "{words}");

        let words = keys.ok(&["rewrap", "--batch-size", "2"]).await;
        assert!(words.contains(&id), "{words}");
        assert_eq!(keys.wrapped_by(&old).await, 0);
        let words = keys.ok(&["rewrap"]).await;
        assert!(words.contains("nothing to do"), "{words}");
        stop.store(true, Ordering::SeqCst);
        id
    };
    let ((), id) = tokio::join!(work, change);

    let owners = keys.site.count("owner_keys").await;
    assert_eq!(keys.wrapped_by(&id).await, owners, "new ones follow");
    let words = keys.ok(&["status"]).await;
    let expected = format!("ok      {id}: wraps {owners} owners; in force for new ones");
    assert!(words.contains(&expected), "{words}");
    let read = server.log().iter().any(|line| line["master_key"] == *id);
    assert!(read, "the server says that it read the new key");
    let moved = told(&server).await;
    assert!((7..=owners.cast_unsigned()).contains(&moved), "{moved}");

    keys.ok(&["rotate", "--retire", &old]).await;
    assert_eq!(keys.ids(), std::slice::from_ref(&id));
    let (code, words) = keys.keys(&["rotate", "--retire", &id]).await;
    assert_eq!(code, Some(1), "{words}");
    let server = server.restart(&keys.settings()).await;
    for publisher in &all {
        used(publisher).await;
        verified(publisher, true).await;
    }
    assert!(server.stop().await.success());
    let mut verify = keys.site.command(&[]);
    let verify = verify.args(["audit", "verify"]).envs(keys.settings());
    assert!(verify.status().await.unwrap().success());
}

/// Makes a new key; the old one stays, and everything is as private as it was.
async fn rotated(keys: &Keys, old: &str) -> String {
    let mode = || std::fs::metadata(&keys.file).unwrap().permissions().mode();
    let before = mode();
    let words = keys.ok(&["rotate"]).await;
    let ids = keys.ids();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[1], old);
    assert_ne!(ids[0], old);
    assert!(words.contains(&ids[0]), "{words}");
    assert_eq!(mode(), before);
    let words = keys.ok(&["status"]).await;
    assert!(words.contains(&format!("ok      {old}: wraps")), "{words}");
    let first = format!("ok      {}: wraps 0 owners; first in the list", ids[0]);
    assert!(words.contains(&first), "{words}");
    ids[0].clone()
}

/// Holds up whoever is about to move the seventh owner, in the middle of a transaction.
enum Obstacle {
    Lock(PgConnection),
    Trigger,
}

impl Obstacle {
    async fn lay(site: &Site, old: &str) -> Self {
        if let Some(database) = &site.database {
            let mut connection = database.connect().await;
            run(&mut connection, "BEGIN").await;
            let lock = "SELECT 1 FROM owner_keys WHERE owner_id = \
                 (SELECT owner_id FROM owner_keys ORDER BY owner_id OFFSET 7 LIMIT 1) FOR UPDATE";
            run(&mut connection, lock).await;
            return Self::Lock(connection);
        }
        // There are no locks of rows: the statement is kept busy.
        let trigger = format!(
            "CREATE TRIGGER obstacle AFTER UPDATE ON owner_keys \
             WHEN (SELECT count(*) FROM owner_keys WHERE master_key_id <> '{old}') > 6 BEGIN \
             SELECT max(n) FROM (WITH RECURSIVE c(n) AS \
             (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 100000000000) SELECT n FROM c); END"
        );
        site.execute(&trigger).await;
        Self::Trigger
    }

    async fn clear(self, site: &Site) {
        match self {
            Self::Lock(mut connection) => run(&mut connection, "ROLLBACK").await,
            Self::Trigger => {
                site.execute("DROP TRIGGER obstacle").await;
            }
        }
    }
}

async fn run(connection: &mut PgConnection, statement: &str) {
    let statement = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
    statement.execute(connection).await.unwrap();
}

async fn a_move_that_is_killed_goes_on_where_it_was(world: &World) {
    let keys = Keys::on(world).await;
    let server = keys.start().await;
    let all = publishers(&server, 12).await;
    let old = keys.ids().remove(0);
    let id = rotated(&keys, &old).await;
    let obstacle = Obstacle::lay(&keys.site, &old).await;

    let mut command = keys.site.command(&[]);
    command.args(["keys", "rewrap", "--batch-size", "2"]);
    command.envs(keys.settings()).stdout(Stdio::piped());
    let mut moving = command.spawn().unwrap();
    eventually("six have moved", LIMIT, async || {
        (keys.wrapped_by(&id).await == 6).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(moving.try_wait().unwrap().is_none(), "it is held up");
    // Nobody takes the key away under its hands.
    let (code, words) = keys.keys(&["rotate", "--retire", &old]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("is using the master keys"), "{words}");
    moving.kill().await.unwrap();
    obstacle.clear(&keys.site).await;

    assert_eq!(keys.wrapped_by(&id).await, 6, "whole steps, or none");
    let words = keys.ok(&["status"]).await;
    assert!(words.contains(&format!("{id}: wraps 6 owners")), "{words}");
    assert!(words.contains(&format!("{old}: wraps 7 owners")), "{words}");
    // With half of them moved, everything works.
    for publisher in &all {
        used(publisher).await;
    }
    assert_eq!(told(&server).await, 6, "what was done is in the log");
    let words = keys.ok(&["rewrap", "--batch-size", "2"]).await;
    assert!(words.contains("the keys of 7 owners are"), "{words}");
    assert!(words.contains("6 of 7\n"), "its progress: {words}");
    assert_eq!(keys.wrapped_by(&id).await, 13);
    assert_eq!(told(&server).await, 13);
    for publisher in &all {
        used(publisher).await;
        verified(publisher, true).await;
    }
}

async fn a_damaged_row_is_named_and_the_others_move(world: &World) {
    let keys = Keys::on(world).await;
    let server = keys.start().await;
    let all = publishers(&server, 4).await;
    let old = keys.ids().remove(0);
    let owner = keys
        .site
        .ids("publishers WHERE slug = 'p1'")
        .await
        .remove(0);
    let owner = match world.store {
        tests::Store::Sqlite => format!("x'{owner}'"),
        tests::Store::Postgres => format!("'{owner}'::uuid"),
    };
    let damage = format!("UPDATE owner_keys SET chain_key = data_key WHERE owner_id = {owner}");
    assert_eq!(keys.site.execute(&damage).await, 1);
    let named = format!("FAILED  the keys of {} do not open", all[1].id);

    let (code, words) = keys.keys(&["status"]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(&named), "{words}");
    let id = rotated_beside_damage(&keys).await;
    for moved in ["4 owners", "0 owners"] {
        let (code, words) = keys.keys(&["rewrap", "--batch-size", "1"]).await;
        assert_eq!(code, Some(1), "{words}");
        assert!(words.contains(&named), "{words}");
        assert!(
            words.contains(&format!("the keys of {moved} are")),
            "{words}"
        );
    }
    assert_eq!(keys.wrapped_by(&id).await, 4);
    assert_eq!(keys.wrapped_by(&old).await, 1);
    for publisher in [&all[0], &all[2], &all[3]] {
        used(publisher).await;
    }
    let (code, words) = keys.keys(&["rotate", "--retire", &old]).await;
    assert_eq!(code, Some(1), "{words}");

    // Without the key in force nothing can be done, and that is another code.
    let ids = keys.ids();
    assert_eq!(ids, [id.clone(), old]);
    let text = std::fs::read_to_string(&keys.file).unwrap();
    std::fs::write(&keys.file, text.split_once(',').unwrap().1).unwrap();
    let (code, words) = keys.keys(&["rewrap"]).await;
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains(&id), "{words}");
    let (code, words) = keys.keys(&["status"]).await;
    assert_eq!(code, Some(1), "{words}");
    let missing = format!("FAILED  {id}: wraps 4 owners; not given");
    assert!(words.contains(&missing), "{words}");
    std::fs::write(&keys.file, text).unwrap();
}

async fn rotated_beside_damage(keys: &Keys) -> String {
    keys.ok(&["rotate"]).await;
    keys.ids().remove(0)
}

async fn keys_without_a_file_are_written_elsewhere(world: &World) {
    let site = world.site().await;
    let first = one_key("k1");
    site.remember(first.split_once(':').unwrap().1);
    let given = [("STATIONMASTER_MASTER_KEYS", first.as_str())];
    let server = site.start(&given).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;

    let (code, words) = keys(&site, &given, &["rotate"]).await;
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("--out FILE"), "{words}");
    let out = site.home().join("new-keys");
    let to = ["rotate", "--out", out.to_str().unwrap()];
    let (code, words) = keys(&site, &given, &to).await;
    assert_eq!(code, Some(0), "{words}");
    let mode = std::fs::metadata(&out).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let (code, words) = keys(&site, &given, &to).await;
    assert_eq!(code, Some(1), "it is not written over: {words}");

    let both = std::fs::read_to_string(&out).unwrap();
    let new = both.trim().split_once(',').unwrap().0.to_owned();
    let (id, key) = new.split_once(':').unwrap();
    site.remember(key);
    let both = [("STATIONMASTER_MASTER_KEYS", both.trim())];
    // The server has neither the new key nor a file to find it in.
    let (code, words) = keys(&site, &both, &["rewrap"]).await;
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("--restarted"), "{words}");
    let moved = format!("owner_keys WHERE master_key_id = '{id}'");
    assert_eq!(site.count(&moved).await, 0);
    let server = server.restart(&both).await;
    let (code, words) = keys(&site, &both, &["rewrap", "--restarted"]).await;
    assert_eq!(code, Some(0), "{words}");
    assert_eq!(site.count(&moved).await, 2);
    used(&publisher).await;

    let left = site.home().join("left");
    let retire = ["rotate", "--retire", "k1", "--out", left.to_str().unwrap()];
    let (code, words) = keys(&site, &both, &retire).await;
    assert_eq!(code, Some(0), "{words}");
    let left = std::fs::read_to_string(&left).unwrap();
    assert!(left.trim() == new, "only the new key is left");
    server
        .restart(&[("STATIONMASTER_MASTER_KEYS", left.trim())])
        .await;
    used(&publisher).await;
}

async fn a_removed_publisher_s_key_is_destroyed(world: &World) {
    let site = world.site().await;
    let each_second = ("STATIONMASTER_CRON_PUBLISHERS", "* * * * * *");
    let server = site.start(&[each_second]).await;
    let (gone, stays) = (
        server.publisher("gone").await,
        server.publisher("stays").await,
    );
    stays.pipeline("nightly").await;
    let path = format!("/v1/publishers/{}?confirm=gone", gone.id);
    server.operator().delete(&path).expect(204).await;
    assert_eq!(site.count("owner_keys").await, 3, "it can still come back");
    site.execute("UPDATE publishers SET deleted_at = 1 WHERE slug = 'gone'")
        .await;
    eventually("its key is destroyed", LIMIT, async || {
        (site.count("owner_keys").await == 2).then_some(())
    })
    .await;
    used(&stays).await;
    let (code, words) = keys(&site, &[], &["status"]).await;
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("wraps 2 owners"), "{words}");
}

async fn without_a_database_there_is_nothing_to_do(world: &World) {
    let site = world.site().await;
    for (arguments, code) in [("status", 2), ("rewrap", 2), ("rotate", 1)] {
        let (found, words) = keys(&site, &[], &[arguments]).await;
        assert_eq!(found, Some(code), "{words}");
        assert!(words.contains("no database here yet"), "{words}");
    }
    assert!(!site.data_dir.exists(), "nothing was made");
}
