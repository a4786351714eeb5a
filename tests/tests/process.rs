//! The process: how it stops, what it refuses to start on, and how it stands a store that fails.

use std::{path::PathBuf, time::Duration};

use migration::Migrator;
use sea_orm_migration::{MigratorTrait as _, sea_orm::Database};
use serde_json::json;
use tests::{
    Consumer, Proxy, Publisher, Server, Site, World, on_both_stores, on_postgres, on_sqlite,
    tools::eventually,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

on_both_stores!(
    a_stop_lets_everything_finish,
    a_wrong_master_key_is_refused,
    an_unknown_setting_is_refused,
    an_old_program_runs_on_the_next_schema,
);
on_sqlite!(
    a_second_process_on_one_file_is_refused,
    a_lost_key_file_is_not_replaced,
    an_old_schema_is_migrated,
    a_file_that_may_not_grow_loses_nothing,
    a_full_disk_loses_nothing,
);
on_postgres!(
    what_only_the_environment_can_say_must_be_given,
    an_old_schema_is_explained,
    an_authority_that_cannot_be_read_is_told_at_the_start,
    what_a_process_needs_is_counted_and_told,
    a_lost_database_is_answered_and_found_again,
    a_database_that_ends_its_sessions_is_found_again,
);

const LIMIT: Duration = Duration::from_secs(30);

async fn a_stop_lets_everything_finish(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    consumer.hold_after(0);
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    consumer.count(1).await;

    // One request is half there, one delivery is under way.
    let body = json!({"input": {"late": true}}).to_string();
    let head = format!(
        "POST /v1/pipelines/nightly/runs HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         authorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        publisher.runner.token(),
        body.len()
    );
    let address = server.url();
    let address = address.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (first, second) = body.split_at(5);
    stream
        .write_all(format!("{head}{first}").as_bytes())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.terminate();
    eventually("it takes no more connections", LIMIT, async || {
        TcpStream::connect(address).await.is_err().then_some(())
    })
    .await;
    stream.write_all(second.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    consumer.release();
    let status = server.wait().await;
    assert!(status.success(), "{status}");

    let _again = server.site().start(&[]).await;
    let runs = publisher.runner.all("/v1/runs").await;
    assert!(
        runs.iter().any(|run| run["input"] == json!({"late": true})),
        "{runs:?}"
    );
    let deliveries = publisher.admin.all("/v1/deliveries").await;
    assert_eq!(deliveries[0]["status"], "succeeded", "{deliveries:?}");
    assert_eq!(consumer.seen().len(), 1, "it was not sent again");
}

async fn a_wrong_master_key_is_refused(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    assert!(server.stop().await.success());
    let wrong = format!("k1:{}", "A".repeat(43) + "=");
    let site = server.site();
    for keys in [wrong.clone(), wrong.replace("k1", "k2")] {
        let refused = site.refused(&[("STATIONMASTER_MASTER_KEYS", &keys)]).await;
        assert_eq!(refused.code, Some(1), "{refused:?}");
        assert!(refused.words.contains("master key"), "{refused:?}");
    }
    let _again = site.start(&[]).await;
    publisher.admin.get("/v1/publishers/me").expect(200).await;
}

async fn an_unknown_setting_is_refused(world: &World) {
    let site = world.site().await;
    let refused = site
        .refused(&[("STATIONMASTER_LISTENS", "127.0.0.1:0")])
        .await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(
        refused.words.contains("did you mean STATIONMASTER_LISTEN?"),
        "{refused:?}"
    );
    let refused = site
        .refused(&[("STATIONMASTER_RETRY_SCHEDULE", "soon")])
        .await;
    assert_eq!(refused.code, Some(2), "{refused:?}");
    site.start(&[]).await;
}

async fn a_second_process_on_one_file_is_refused(world: &World) {
    let server = world.start().await;
    let refused = server.site().refused(&[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.words.contains("is in use by"), "{refused:?}");
    assert!(
        refused.words.contains(&server.pid().to_string()),
        "{refused:?}"
    );
    server.anon().get("/readyz").expect(200).await;
    // A kill leaves no lock behind.
    server.kill().await;
    server.site().start(&[]).await;
}

async fn a_lost_key_file_is_not_replaced(world: &World) {
    let server = world.start().await;
    server.publisher("acme").await;
    assert!(server.stop().await.success());
    let site = server.site();
    let keys = site.data_dir.join("master-keys");
    let aside = site.home().join("master-keys");
    std::fs::rename(&keys, &aside).unwrap();
    let refused = site.refused(&[]).await;
    assert!(
        refused.words.contains("Restore the key file"),
        "{refused:?}"
    );
    assert!(!keys.exists(), "a new key file opens nothing");
    std::fs::rename(&aside, &keys).unwrap();
    site.start(&[]).await;
}

async fn what_only_the_environment_can_say_must_be_given(world: &World) {
    let site = world.site().await;
    for name in ["STATIONMASTER_MASTER_KEYS", "STATIONMASTER_BOOTSTRAP_TOKEN"] {
        let refused = site.refused(&[(name, "")]).await;
        assert!(refused.words.contains(name), "{refused:?}");
    }
}

/// Takes the schema back to the fourth step: before runs had timelines.
async fn take_back(site: &Site) {
    let later = Migrator::migrations().len() - 4;
    let steps = u32::try_from(later).unwrap();
    let database = Database::connect(site.url()).await.unwrap();
    Migrator::down(&database, Some(steps)).await.unwrap();
    database.close().await.unwrap();
}

async fn an_old_schema_is_migrated(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    assert!(server.stop().await.success());
    take_back(server.site()).await;
    let _again = server.site().start(&[]).await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    consumer.count(1).await;
}

async fn an_old_schema_is_explained(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    assert!(server.stop().await.success());
    let site = server.site();
    take_back(site).await;
    let refused = site.refused(&[]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.words.contains("stationmaster migrate"),
        "{refused:?}"
    );
    migrate(site).await;
    let _again = site.start(&[]).await;
    publisher.pipeline("nightly").await;
    publisher.finished_run("nightly").await;
    // The same for a database that has no schema at all.
    let bare = world.bare_site().await;
    let refused = bare.refused(&[]).await;
    assert!(
        refused.words.contains("stationmaster migrate"),
        "{refused:?}"
    );
    migrate(&bare).await;
    bare.start(&[]).await.publisher("acme").await;
}

/// The authority of the database's certificate is never another than was asked for.
async fn an_authority_that_cannot_be_read_is_told_at_the_start(world: &World) {
    let site = world.site().await;
    let real = &site.database.as_ref().unwrap().url;
    let empty = site.home().join("empty.pem");
    std::fs::write(&empty, "nothing of the kind\n").unwrap();
    for (file, why) in [
        (site.home().join("none.pem"), "No such file"),
        (empty, "holds no certificate"),
    ] {
        let file = file.to_str().unwrap();
        let url = format!("{real}?sslmode=verify-full&sslrootcert={file}");
        let by_url = [("STATIONMASTER_DATABASE_URL", url.as_str())];
        let strict = format!("{real}?sslmode=verify-ca");
        let by_environment = [
            ("STATIONMASTER_DATABASE_URL", strict.as_str()),
            ("PGSSLROOTCERT", file),
        ];
        for (env, name) in [
            (&by_url[..], "sslrootcert"),
            (&by_environment[..], "PGSSLROOTCERT"),
        ] {
            let refused = site.refused(env).await;
            assert_eq!(refused.code, Some(1), "{refused:?}");
            for words in [name, file, why] {
                assert!(refused.words.contains(words), "{words}: {refused:?}");
            }
        }
    }
}

/// Descriptors for the store's own connections too, which are ten beside those for requests.
async fn what_a_process_needs_is_counted_and_told(world: &World) {
    let site = world.site().await;
    let limit = ["prlimit", "--nofile=4096:4096"];
    let server = site.start_within(&limit, &[]).await;
    let log = server.log();
    let taken = log.iter().find_map(|line| line["connections"].as_u64());
    assert_eq!(taken, Some(4096 - 1024 - (8 + 10)));
    let output = site.command(&limit).arg("doctor").output().await.unwrap();
    let words = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{words}");
    for wanted in [
        "ok      connections: a process needs 18 to the database (8 for requests, 10 of its own), and had 18",
        "ok      open files: 4096 may be open, of 11042 that are wanted",
    ] {
        assert!(words.contains(wanted), "{words}");
    }
}

async fn migrate(site: &Site) {
    let output = site.command(&[]).arg("migrate").output().await.unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
}

/// Replicas are replaced one by one, and a replacement can be taken back: the schema is only ever
/// extended under a running program.
async fn an_old_program_runs_on_the_next_schema(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    assert!(server.stop().await.success());
    let site = server.site();
    let next = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m9999_next', 1)";
    site.execute(next).await;
    site.start(&[]).await;
    publisher.pipeline("nightly").await;
    publisher.finished_run("nightly").await;
}

/// The server answers everything that needs the store with 503 and stays alive.
pub async fn everything_waits(server: &Server, publisher: &Publisher) {
    eventually("not ready", LIMIT, async || {
        (server.anon().get("/readyz").answer().await.status == 503).then_some(())
    })
    .await;
    server.anon().get("/healthz").expect(200).await;
    let body = json!({"input": {"lost": true}});
    let run = publisher
        .runner
        .post("/v1/pipelines/nightly/runs")
        .json(&body);
    run.refused(503, "store_unavailable").await;
    publisher
        .admin
        .get("/v1/runs")
        .refused(503, "store_unavailable")
        .await;
    // Nobody knows whether this token is good: that is no reason to call it bad.
    let stranger = server.user("stm_admin_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA27ivWu");
    stranger
        .get("/v1/runs")
        .refused(503, "store_unavailable")
        .await;
}

pub async fn everything_works_again(server: &Server, publisher: &Publisher) {
    eventually("ready", LIMIT, async || {
        (server.anon().get("/readyz").answer().await.status == 200).then_some(())
    })
    .await;
    let runs = publisher.runner.all("/v1/runs").await;
    assert!(
        runs.iter().all(|run| run["input"] != json!({"lost": true})),
        "{runs:?}"
    );
    publisher.finished_run("nightly").await;
}

async fn a_lost_database_is_answered_and_found_again(world: &World) {
    let site = world.site().await;
    let real = site.database.as_ref().unwrap().url.clone();
    let mut wire = Proxy::to(&real).await;
    let server = site
        .start(&[("STATIONMASTER_DATABASE_URL", &wire.url(&real))])
        .await;
    site.tolerate("store");
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    for round in 1..=2 {
        wire.cut().await;
        everything_waits(&server, &publisher).await;
        wire.mend().await;
        everything_works_again(&server, &publisher).await;
        consumer.count(round).await;
    }
    // While its path is there: it writes down how deliveries went.
    assert!(server.stop().await.success());
}

async fn a_database_that_ends_its_sessions_is_found_again(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let mut connection = server.site().database.as_ref().unwrap().connect().await;
    for _ in 0..3 {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        sqlx::query(end).execute(&mut connection).await.unwrap();
        everything_works_again(&server, &publisher).await;
    }
}

/// Creates runs until one is refused; returns those that were acknowledged.
async fn until_it_is_full(publisher: &Publisher) -> Vec<String> {
    let body = json!({"input": {"padding": "x".repeat(100_000)}});
    let mut acknowledged = Vec::new();
    for _ in 0..2000 {
        let call = publisher
            .runner
            .post("/v1/pipelines/nightly/runs")
            .json(&body);
        let answer = call.answer().await;
        if answer.status == 503 {
            assert_eq!(answer["code"], "store_unavailable", "{answer}");
            return acknowledged;
        }
        assert_eq!(answer.status, 201, "{answer}");
        acknowledged.push(answer.text("/id"));
    }
    panic!("it never became full");
}

async fn all_there(publisher: &Publisher, acknowledged: &[String]) {
    let mut found: Vec<String> = publisher
        .runner
        .all("/v1/runs")
        .await
        .iter()
        .map(|run| run["id"].as_str().unwrap().to_owned())
        .collect();
    found.sort();
    assert_eq!(found, acknowledged, "exactly what was acknowledged");
}

/// A file-size limit, which needs no rights: writes fail with EFBIG.
async fn a_file_that_may_not_grow_loses_nothing(world: &World) {
    let site = world.site().await;
    let server = site.start(&[]).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    assert!(server.stop().await.success());
    let wrapper = [
        "env",
        "--ignore-signal=XFSZ",
        "prlimit",
        "--fsize=6000000",
        "--",
    ];
    let limited = site.start_within(&wrapper, &[]).await;
    site.tolerate("store");
    let acknowledged = until_it_is_full(&publisher).await;
    limited.anon().get("/readyz").expect(503).await;
    limited.anon().get("/healthz").expect(200).await;
    all_there(&publisher, &acknowledged).await;
    limited.kill().await;
    site.start(&[]).await;
    all_there(&publisher, &acknowledged).await;
    publisher.finished_run("nightly").await;
}

/// A small file system of the test's own; gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path) -> Option<Self> {
        std::fs::create_dir(at).unwrap();
        let mounted = run(
            "mount",
            &["-t", "tmpfs", "-o", "size=6m,mode=0700", "none", path(at)],
        );
        mounted.then(|| Self(at.to_owned()))
    }

    fn grow(&self) {
        assert!(run("mount", &["-o", "remount,size=64m", path(&self.0)]));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that is about to be killed may still hold a file.
        run("umount", &["-l", path(&self.0)]);
    }
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let output = std::process::Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

async fn a_full_disk_loses_nothing(world: &World) {
    let site = world.site().await;
    let Some(disk) = SmallDisk::mount(&site.data_dir) else {
        // Needs the right to mount, which not even root has in every container; the file-size
        // limit above covers the same code.
        tests::leave_out(
            "a_full_disk_loses_nothing",
            "this account may not mount a file system",
        );
        return;
    };
    let server = site.start(&[]).await;
    site.tolerate("store");
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let acknowledged = until_it_is_full(&publisher).await;
    server.anon().get("/readyz").expect(503).await;
    all_there(&publisher, &acknowledged).await;
    // It works again as soon as there is room, without a restart.
    disk.grow();
    eventually("there is room", LIMIT, async || {
        let call = publisher.runner.get("/v1/runs?limit=1").answer().await;
        let ready = server.anon().get("/readyz").answer().await;
        (call.status == 200 && ready.status == 200).then_some(())
    })
    .await;
    let more = publisher.run("nightly").await;
    server.kill().await;
    let again = site.start(&[]).await;
    let all = [acknowledged, vec![more]].concat();
    all_there(&publisher, &all).await;
    assert!(again.stop().await.success());
    assert_eq!(site.leaks().await, [""; 0]);
    drop(disk);
}
