//! A database that says nothing: the path to it swallows bytes or stalls, it takes no writes, or it
//! grants too few connections. Every wait ends, `/readyz` tells of it, and nothing acknowledged is
//! lost.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use tests::{
    Consumer, Proxy, Publisher, Server, Site, World, on_postgres,
    tools::{eventually, word},
};
use tokio::time::Instant;

on_postgres!(
    busy_connections_that_go_silent_are_given_up,
    idle_connections_that_go_silent_are_given_up,
    a_path_that_swallows_everything_is_seen_and_does_not_hold_the_process,
    a_path_that_stalls_is_waited_for,
    a_store_that_takes_no_writes_is_not_ready,
    too_few_connections_are_told_at_the_start,
);

/// For an answer of the database, in these stories.
const TIMEOUT_S: &str = "2";
/// How soon all goes on after the cure.
const LIMIT: Duration = Duration::from_secs(20);
/// How soon a process ends after SIGTERM.
pub(crate) const END: Duration = Duration::from_secs(31);

pub(crate) struct House {
    pub(crate) wire: Proxy,
    pub(crate) server: Server,
    pub(crate) publisher: Publisher,
    consumer: Consumer,
}

/// A server with a wire to its database, a publisher with a pipeline, and one who hears of runs.
pub(crate) async fn house(world: &World) -> House {
    let site = world.site().await;
    site.tolerate("store");
    let real = site.database.as_ref().unwrap().url.clone();
    let wire = Proxy::to(&real).await;
    let server = start(&site, &wire.url(&real)).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["run.created"]).await;
    House {
        wire,
        server,
        publisher,
        consumer,
    }
}

/// Starts a server where the last one has ended.
pub(crate) async fn start_again(house: &House) -> Server {
    let site = house.server.site();
    let real = &site.database.as_ref().unwrap().url;
    start(site, &house.wire.url(real)).await
}

async fn start(site: &Arc<Site>, url: &str) -> Server {
    site.start(&[
        ("STATIONMASTER_DATABASE_URL", url),
        ("STATIONMASTER_DATABASE_TIMEOUT_SECONDS", TIMEOUT_S),
    ])
    .await
}

/// Creates runs, some at a time, until told to end.
pub(crate) struct Load {
    end: Arc<AtomicBool>,
    /// Whether the server may be gone.
    gone: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<String>>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    pub(crate) fn start(publisher: &Publisher) -> Self {
        let (end, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let gone: Arc<AtomicBool> = Arc::default();
        let tasks = (0..4).map(|_| {
            let (runner, end) = (publisher.runner.clone(), Arc::clone(&end));
            let acknowledged: Arc<Mutex<Vec<String>>> = Arc::clone(&acknowledged);
            let gone = Arc::clone(&gone);
            tokio::spawn(async move {
                while !end.load(Ordering::SeqCst) {
                    let call = runner.post("/v1/pipelines/nightly/runs");
                    let answer = match call.json(&json!({"input": {}})).send().await {
                        Ok(answer) => answer,
                        Err(_) if gone.load(Ordering::SeqCst) => return,
                        Err(error) => panic!("{error}"),
                    };
                    if answer.status == 201 {
                        acknowledged.lock().unwrap().push(answer.text("/id"));
                    } else {
                        assert_eq!(answer.status, 503, "{answer}");
                        assert_eq!(answer["code"], "store_unavailable", "{answer}");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            })
        });
        Self {
            tasks: tasks.collect(),
            end,
            gone,
            acknowledged,
        }
    }

    /// The server is about to end: who is not answered any more is done.
    pub(crate) fn server_ends(&self) {
        self.gone.store(true, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    pub(crate) async fn end(self) -> Vec<String> {
        self.end.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        let acknowledged = self.acknowledged.lock().unwrap();
        acknowledged.clone()
    }
}

async fn create(publisher: &Publisher) -> Option<String> {
    let call = publisher.runner.post("/v1/pipelines/nightly/runs");
    let answer = call.json(&json!({"input": {}})).answer().await;
    (answer.status == 201).then(|| answer.text("/id"))
}

/// Each kind of call works, and what is created now is delivered; all of `before` is there and
/// delivered, too.
pub(crate) async fn all_goes_on(house: &House, before: &[String]) {
    let publisher = &house.publisher;
    let since = Instant::now();
    let left = || LIMIT.saturating_sub(since.elapsed());
    let path = format!("/v1/pipelines/p-{}", word());
    eventually("a general write", left(), async || {
        let call = publisher
            .admin
            .put(&path)
            .json(&json!({"display_name": "N"}));
        (call.answer().await.status == 201).then_some(())
    })
    .await;
    let last = eventually("a run", left(), async || create(publisher).await).await;
    eventually("ready", left(), async || {
        (house.server.anon().get("/readyz").answer().await.status == 200).then_some(())
    })
    .await;
    let runs = publisher.runner.all("/v1/runs").await;
    let wanted: Vec<&String> = before.iter().chain([&last]).collect();
    for id in &wanted {
        let there = runs.iter().any(|run| run["id"] == **id);
        assert!(there, "{id} was acknowledged and is lost");
    }
    eventually("all is delivered", left(), async || {
        let seen = house.consumer.seen();
        let bodies: String = seen
            .iter()
            .map(|one| String::from_utf8_lossy(&one.body))
            .collect();
        wanted
            .iter()
            .all(|id| bodies.contains(id.as_str()))
            .then_some(())
    })
    .await;
}

/// SIGTERM ends it soon, whatever the database does.
async fn ends(server: &Server) {
    let since = Instant::now();
    server.terminate();
    server.wait().await;
    assert!(since.elapsed() < END, "after {:?}", since.elapsed());
}

async fn busy_connections_that_go_silent_are_given_up(world: &World) {
    let house = house(world).await;
    let load = Load::start(&house.publisher);
    eventually("it is busy", LIMIT, async || {
        (load.count() > 20).then_some(())
    })
    .await;
    assert!(house.wire.silence() > 10);
    let count = load.count();
    // New connections work at once, and are found.
    eventually("runs are created", LIMIT, async || {
        (load.count() > count + 20).then_some(())
    })
    .await;
    let acknowledged = load.end().await;
    all_goes_on(&house, &acknowledged).await;
    ends(&house.server).await;
}

async fn idle_connections_that_go_silent_are_given_up(world: &World) {
    let house = house(world).await;
    let first = create(&house.publisher).await.unwrap();
    house.consumer.count(1).await;
    assert!(house.wire.silence() > 10);
    all_goes_on(&house, &[first]).await;
    ends(&house.server).await;
}

/// Asks until it is not ready; each answer has to come at once.
pub(crate) async fn is_seen(server: &Server) {
    eventually("not ready", LIMIT, async || {
        let asked = Instant::now();
        let answer = server.anon().get("/readyz").answer().await;
        // A second is promised; the rest is for a machine that is busy with other stories.
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
        if answer.status == 503 {
            assert_eq!(answer["status"], "not_ready", "{answer}");
            assert_eq!(answer["checks"]["store"], "failing", "{answer}");
        }
        (answer.status == 503).then_some(())
    })
    .await;
}

async fn a_path_that_swallows_everything_is_seen_and_does_not_hold_the_process(world: &World) {
    let house = house(world).await;
    let load = Load::start(&house.publisher);
    eventually("it is busy", LIMIT, async || {
        (load.count() > 20).then_some(())
    })
    .await;
    house.wire.swallow();
    is_seen(&house.server).await;
    // A request is answered, too.
    assert_eq!(create(&house.publisher).await, None);
    house.wire.pass();
    eventually("it goes on", LIMIT, async || create(&house.publisher).await).await;
    let acknowledged = load.end().await;
    all_goes_on(&house, &acknowledged).await;
    let metrics = house.server.metrics().await;
    for part in ["lane", "heartbeat", "changes", "listening", "dispatch"] {
        let line = format!("stationmaster_progress_age_seconds{{part=\"{part}\"}}");
        assert!(metrics.contains(&line), "{part}");
    }
    house.wire.swallow();
    ends(&house.server).await;
}

async fn a_path_that_stalls_is_waited_for(world: &World) {
    let house = house(world).await;
    let load = Load::start(&house.publisher);
    eventually("it is busy", LIMIT, async || {
        (load.count() > 20).then_some(())
    })
    .await;
    house.wire.stall();
    is_seen(&house.server).await;
    house.wire.pass();
    let count = load.count();
    eventually("runs are created", LIMIT, async || {
        (load.count() > count + 20).then_some(())
    })
    .await;
    let acknowledged = load.end().await;
    all_goes_on(&house, &acknowledged).await;
    ends(&house.server).await;
}

/// Has the database take no writes, as when a failover leads every session elsewhere; or take some
/// again, in new sessions.
pub(crate) async fn take_no_writes(house: &House, on: bool) {
    let database = house.server.site().database.as_ref().unwrap();
    let name = url::Url::parse(&database.url).unwrap();
    let name = name.path().trim_start_matches('/').to_owned();
    let mut connection = database.connect().await;
    let mut run = async |statement: &str| {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    };
    // This one session may write still.
    run("SET default_transaction_read_only = off").await;
    run(&format!(
        "ALTER DATABASE {name} SET default_transaction_read_only = {on}"
    ))
    .await;
    if on {
        run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = current_database() AND pid <> pg_backend_pid()")
        .await;
    }
}

async fn a_store_that_takes_no_writes_is_not_ready(world: &World) {
    let house = house(world).await;
    let first = create(&house.publisher).await.unwrap();
    take_no_writes(&house, true).await;
    is_seen(&house.server).await;
    assert_eq!(create(&house.publisher).await, None);
    // The server's own sessions are closed, and new ones may write.
    take_no_writes(&house, false).await;
    all_goes_on(&house, &[first]).await;
    ends(&house.server).await;
}

async fn too_few_connections_are_told_at_the_start(world: &World) {
    let site = world.site().await;
    let database = site.database.as_ref().unwrap();
    let mut connection = database.connect().await;
    let role = format!("few_{}", word());
    let password = word();
    for statement in [
        format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{password}'"),
        format!("ALTER ROLE {role} NOSUPERUSER CONNECTION LIMIT 12"),
        format!("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}"),
    ] {
        let query = sqlx::query(sqlx::AssertSqlSafe(statement));
        query.execute(&mut connection).await.unwrap();
    }
    let mut url = url::Url::parse(&database.url).unwrap();
    url.set_username(&role).unwrap();
    url.set_password(Some(&password)).unwrap();
    let env = [("STATIONMASTER_DATABASE_URL", url.as_str())];
    let refused = site.refused(&env).await;
    assert!(
        refused.words.contains("one process needs 18"),
        "{refused:?}"
    );
    assert!(refused.words.contains("had 12"), "{refused:?}");
    let mut doctor = site.command(&[]);
    let told = doctor.arg("doctor").envs(env).output().await.unwrap();
    let words = String::from_utf8_lossy(&told.stdout);
    assert!(!told.status.success(), "{words}");
    assert!(words.contains("FAILED  connections: "), "{words}");
    assert!(
        words.contains("one process needs 18, and had 12"),
        "{words}"
    );
    let enough = [env[0], ("STATIONMASTER_DATABASE_CONNECTIONS", "2")];
    let server = site.start(&enough).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.finished_run("nightly").await;
    server.stop().await;
    let gone = format!("DROP OWNED BY {role}; DROP ROLE {role}");
    let query = sqlx::raw_sql(sqlx::AssertSqlSafe(gone));
    query.execute(&mut connection).await.unwrap();
}
