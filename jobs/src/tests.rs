use std::{sync::Arc, time::Duration};

use domain::{Timestamp, clock::ManualClock, seal::MasterKeys};
use persistence::{Job, JobRow, Retention, Store, StoreOptions};
use tokio_util::sync::CancellationToken;
use upstream::Refresher;

use crate::{Settings, StartError, start};

const DAILY: &str = "0 0 0 * * *";

fn settings(leases: &str) -> Settings {
    let cron = |job: &Job| {
        let cron = if *job == Job::Leases { leases } else { DAILY };
        (*job, cron.to_owned())
    };
    let month = Duration::from_hours(30 * 24);
    Settings {
        crons: Job::ALL.iter().map(cron).collect(),
        disable_endpoint_after_days: 5,
        retention: Retention {
            credentials: month,
            events: month,
            deliveries: month,
            runs: month,
            notices: month,
        },
    }
}

fn refresher(store: &Store) -> Refresher {
    let limits = outbound::ClientLimits::default();
    let client = outbound::Client::new(outbound::Policy::default(), limits);
    Refresher::new(store.clone(), client)
}

async fn open(dir: &tempfile::TempDir, clock: Arc<ManualClock>) -> Store {
    let options = StoreOptions {
        database_url: format!("sqlite://{}", dir.path().join("store.db").display()),
        master_keys: MasterKeys::parse(&MasterKeys::generate_text("test")).unwrap(),
        clock,
        max_connections: 2,
        sqlite_synchronous_full: false,
        write_batch_max: 256,
        database_timeout: Duration::from_secs(10),
        migrate: true,
    };
    Store::open(options).await.unwrap()
}

/// Reads the table of jobs until `done` accepts it; waits at most 10 s.
async fn until(store: &Store, done: impl Fn(&[JobRow]) -> bool) -> Vec<JobRow> {
    for _ in 0..1000 {
        let rows = store.system().operations().jobs().await.unwrap();
        if done(&rows) {
            return rows;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the jobs did not get there");
}

#[tokio::test]
async fn a_start_learns_the_schedule_and_a_later_one_catches_up() {
    let dir = tempfile::tempdir().unwrap();
    let now = Timestamp::parse("2027-05-05T12:00:00Z").unwrap();
    let midnight = Timestamp::parse("2027-05-06T00:00:00Z").unwrap();
    let clock = Arc::new(ManualClock::at(now));
    let store = open(&dir, Arc::clone(&clock)).await;

    let stop = CancellationToken::new();
    let jobs = start(
        store.clone(),
        refresher(&store),
        settings(DAILY),
        stop.clone(),
    )
    .await
    .unwrap();
    let rows = until(&store, |rows| rows.len() == Job::ALL.len()).await;
    assert!(
        rows.iter()
            .all(|row| row.due_at == midnight && row.finished_at.is_none())
    );
    stop.cancel();
    jobs.stopped().await;

    // The scheduled time passed while no process ran.
    clock.advance(Duration::from_hours(24));
    let stop = CancellationToken::new();
    let jobs = start(
        store.clone(),
        refresher(&store),
        settings(DAILY),
        stop.clone(),
    )
    .await
    .unwrap();
    let ended = |rows: &[JobRow]| rows.iter().all(|row| row.finished_at.is_some());
    for row in until(&store, ended).await {
        assert_eq!(row.finished_at, Some(store.now()), "{}", row.name);
        assert_eq!(
            row.due_at,
            midnight.plus(Duration::from_hours(24)),
            "{}",
            row.name
        );
        assert_eq!(row.error, None);
        let counts = row.counts.unwrap();
        assert!(
            counts.as_object().unwrap().values().all(|count| count == 0),
            "{counts}"
        );
    }
    stop.cancel();
    jobs.stopped().await;
    store.close().await;
}

#[tokio::test]
async fn ticks_make_a_job_run() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(
        Timestamp::parse("2027-05-05T12:00:00Z").unwrap(),
    ));
    let store = open(&dir, Arc::clone(&clock)).await;
    let stop = CancellationToken::new();
    let jobs = start(
        store.clone(),
        refresher(&store),
        settings("* * * * * *"),
        stop.clone(),
    )
    .await
    .unwrap();
    until(&store, |rows| rows.len() == Job::ALL.len()).await;
    let leases = |rows: &[JobRow]| {
        rows.iter()
            .find(|row| row.name == "leases")
            .cloned()
            .unwrap()
    };
    let mut last = None;
    for _ in 0..2 {
        clock.advance(Duration::from_secs(1));
        let rows = until(&store, |rows| leases(rows).finished_at > last).await;
        last = leases(&rows).finished_at;
        let others = rows.iter().filter(|row| row.name != "leases");
        assert!(others.into_iter().all(|row| row.finished_at.is_none()));
    }
    stop.cancel();
    jobs.stopped().await;
    store.close().await;
}

#[tokio::test]
async fn a_schedule_that_is_none_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(Timestamp::from_ms(1_800_000_000_000)));
    let store = open(&dir, clock).await;
    let refused = start(
        store.clone(),
        refresher(&store),
        settings("soon"),
        CancellationToken::new(),
    )
    .await;
    assert!(matches!(
        refused,
        Err(StartError::Cron { job: "leases", .. })
    ));
    store.close().await;
}
