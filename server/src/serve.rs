//! `stationmaster serve`: opens everything in order, serves until a signal comes, and closes
//! everything in the opposite order.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use domain::token::TokenHash;
use outbound::{Client, ClientLimits, Policy};
use persistence::{Job, Retention, Store};
use tokio::{
    net::{TcpListener, TcpSocket},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use upstream::Refresher;
use web::{
    contract::Contract,
    http::{ConnectionLimits, PublicOrigin, RateSettings},
};

use crate::{
    config::{Config, Loaded},
    data_dir::{Credentials, Database},
    descriptors,
    failure::Failure,
    key_file::KeyFile,
    logging, metrics, operate,
    people::People,
    signals::{self, Unfinished},
    text,
};

/// How long after the signal the process ends, even if something hangs.
const END: Duration = Duration::from_secs(29);
/// How long after the signal connections are closed, even with requests on them.
const CONNECTIONS_END: Duration = Duration::from_secs(20);
/// How long after the signal other work may go on.
const DRAIN_END: Duration = Duration::from_secs(25);
/// How long after the signal the store is closed at the latest.
const STORE_END: Duration = Duration::from_secs(28);
/// How many connections the system queues until they are accepted, if its limits allow it. If one
/// client opens many at once, those of others must not be dropped: they would be tried again only
/// after a second.
const BACKLOG: u32 = 4096;
/// How many requests with a wrong bootstrap token each address may make in a minute.
const BOOTSTRAP_FAILURES_PER_MINUTE: u32 = 5;
/// How many requests a network may send in a minute to sign people in, for each failed
/// authentication that it may make. A sign-in takes up to three, and many people share an address.
const VISITS_PER_FAILURE: u32 = 4;

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }?;
    // After a restart, connections of the last process may still be closing.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Runs the server until the first SIGTERM or SIGINT. With SQLite the start applies missing
/// migrations; with PostgreSQL only if `migrate` is set.
///
/// # Errors
/// The first step of the start that failed, with a text that says what to do.
pub async fn run(loaded: Loaded, migrate: bool) -> Result<(), Failure> {
    let config = &loaded.config;
    logging::start(config).map_err(Failure::Failed)?;
    descriptors::raise();
    let unfinished = Unfinished::default();
    let stop = signals::watch_within(END, unfinished.clone()).map_err(failed)?;
    let stopped_at = moment_of(stop.clone());
    // Runs while the store is opened.
    let contract = tokio::task::spawn_blocking(api::compiled_contract);
    let database = Database::prepare(config).map_err(failed)?;
    let credentials = Credentials::prepare(config, &database).map_err(failed)?;
    tell_token_file(&credentials);
    let recorder = metrics::record().map_err(Failure::Failed)?;
    let metrics_port = metrics::bind(config, &loaded.values)
        .await
        .map_err(Failure::Failed)?;
    let listener = listen(config.listen).map_err(|error| {
        failed(format!(
            "{} can't be listened on: {error}. Choose another STATIONMASTER_LISTEN",
            config.listen
        ))
    })?;

    let migrate = migrate || database.file.is_some();
    let keys = credentials.master_keys.clone();
    let options = operate::store_options(config, &database, keys, migrate);
    let store = Store::open(options).await.map_err(failed)?;
    if let Some(file) = KeyFile::of(config) {
        let source = move || file.read().map_err(|error| error.to_string());
        store
            .system()
            .operations()
            .reread_master_keys_from(Arc::new(source));
    }
    if let Some(token) = &config.legacy_token {
        store
            .system()
            .publishers()
            .apply_seed(token)
            .await
            .map_err(failed)?;
    }
    tokio::spawn(metrics::follow(store.progress().clone(), stop.clone()));
    let metrics_server = tokio::spawn(metrics::serve(metrics_port, recorder, stop.clone()));
    let contract = contract.await.map_err(failed)?.map_err(failed)?;
    let result = answer(
        config,
        &credentials,
        (&store, &database),
        (listener, contract),
        stop.clone(),
        (&unfinished, &stopped_at),
    )
    .await;
    stop.cancel();
    let rest = async {
        unfinished.until("the store", store.close()).await;
        if let Ok(Err(error)) = metrics_server.await {
            tracing::warn!(%error, "The metrics port failed");
        }
    };
    let closed = timeout_at(stopped_at.get_or_now() + STORE_END, rest).await;
    result?;
    let cut = unfinished.list();
    if closed.is_err() || !cut.is_empty() {
        return Err(failed(format!(
            "stopped before this had ended: {cut}. What was acknowledged is kept; the rest is taken up again at the next start"
        )));
    }
    Ok(())
}

/// The time of the signal.
#[derive(Clone, Default)]
struct StoppedAt(Arc<OnceLock<Instant>>);

impl StoppedAt {
    fn get_or_now(&self) -> Instant {
        self.0.get().copied().unwrap_or_else(Instant::now)
    }
}

fn moment_of(stop: CancellationToken) -> StoppedAt {
    let at = StoppedAt::default();
    let set = at.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        set.0.get_or_init(Instant::now);
    });
    at
}

fn tell_token_file(credentials: &Credentials) {
    if let Some((path, made)) = &credentials.token_file {
        let path = path.display();
        if *made {
            tracing::info!(%path, "A bootstrap token was created. It is in this file");
        } else {
            tracing::info!(%path, "The bootstrap token is in this file");
        }
    }
}

/// Frees the leases of earlier processes, if this process has the database for itself.
async fn free_leases(store: &Store, database: &Database) -> Result<(), Failure> {
    if database.file.is_none() {
        return Ok(());
    }
    let webhooks = store.system().webhooks();
    webhooks.release_leases().await.map_err(failed)
}

/// The pages for people, unless people are off.
fn pages_of(people: &identity::Service, store: &Store) -> Option<web::http::Pages> {
    people.settings().enabled.then(|| {
        let origin = PublicOrigin::new(people.settings().public_origin.clone());
        dashboard::pages(people.clone(), store.clone(), origin)
    })
}

/// Runs dispatcher, jobs and API on an open store, until all work has ended or its time is over.
async fn answer(
    config: &Config,
    credentials: &Credentials,
    (store, database): (&Store, &Database),
    (listener, contract): (TcpListener, Contract),
    stop: CancellationToken,
    (unfinished, stopped_at): (&Unfinished, &StoppedAt),
) -> Result<(), Failure> {
    let policy = policy(config);
    let address = listener.local_addr().map_err(failed)?;
    let people = People::of(config, address);
    people.tell(database.is_new());
    let outgoing = people.outgoing(config).map_err(Failure::Failed)?;
    free_leases(store, database).await?;
    let client = Client::new(policy.clone(), ClientLimits::default());
    let settings = dispatcher::Settings {
        schedule: config.retry_schedule.clone(),
        ..dispatcher::Settings::default()
    };
    let refresher = Refresher::new(store.clone(), client.clone());
    let dispatcher = dispatcher::Dispatcher::start(store, client, outgoing, settings, stop.clone());
    let dispatcher = Arc::new(dispatcher);
    let settings = job_settings(config);
    let jobs = jobs::start(store.clone(), refresher.clone(), settings, stop.clone());
    let jobs = jobs.await.map_err(failed)?;

    let people = identity::Service::open(store.clone(), people.settings(config))
        .await
        .map_err(failed)?;
    let pages = pages_of(&people, store);
    let tasks = TaskTracker::new();
    let health = Arc::clone(&dispatcher);
    let app = api::app(api::Deps {
        contract,
        store: store.clone(),
        people,
        policy,
        refresher: refresher.clone(),
        claim_wait_max: Duration::from_secs(u64::from(config.claim_wait_max_seconds)),
        bootstrap: credentials
            .bootstrap_tokens
            .iter()
            .map(TokenHash::of_secret)
            .collect(),
        rates: rates(config),
        trusted_proxies: config.trusted_proxies.clone(),
        tasks: tasks.clone(),
        dispatcher_healthy: Arc::new(move || health.healthy()),
        pages,
    });
    let limits = connection_limits(config, database);
    let (waiters, stopping) = (store.clone(), stop.clone());
    tokio::spawn(async move {
        stopping.cancelled().await;
        waiters.stop_waiters();
    });
    text::say(&format!("listening on http://{address}"));
    tracing::info!(%address, "Ready");
    web::http::serve(listener, app, limits, stop)
        .await
        .map_err(failed)?;

    tracing::info!("Stopping: finishing what is under way");
    tasks.close();
    let drain = async {
        tokio::join!(
            unfinished.until("requests", tasks.wait()),
            unfinished.until("deliveries", dispatcher.drained()),
            unfinished.until("jobs", jobs.stopped()),
        );
        unfinished
            .until("refreshes of accounts", refresher.drained())
            .await;
    };
    // `unfinished` lists what did not end.
    let _ = timeout_at(stopped_at.get_or_now() + DRAIN_END, drain).await;
    Ok(())
}

fn policy(config: &Config) -> Policy {
    Policy {
        allow_http: config.allow_http_destinations,
        allowed: config.allowed_destinations.clone(),
        ..Policy::default()
    }
}

fn connection_limits(config: &Config, database: &Database) -> ConnectionLimits {
    let wanted = config.max_connections;
    let database = operate::database_connections(config, database);
    ConnectionLimits {
        trusted_proxies: config.trusted_proxies.clone(),
        drain_timeout: CONNECTIONS_END,
        ..ConnectionLimits::of(descriptors::connections(wanted.into(), database.into()))
    }
}

fn rates(config: &Config) -> RateSettings {
    let bootstrap = config.bootstrap_rate_per_minute;
    RateSettings {
        publisher_per_second: config.rate_limit_per_second,
        auth_failures_per_minute: config.auth_failures_per_minute,
        bootstrap_per_minute: bootstrap,
        bootstrap_failures_per_minute: if bootstrap == 0 {
            0
        } else {
            BOOTSTRAP_FAILURES_PER_MINUTE
        },
        visits_per_minute: VISITS_PER_FAILURE * config.auth_failures_per_minute,
    }
}

fn job_settings(config: &Config) -> jobs::Settings {
    let cron = |job: &Job| {
        let cron = match job {
            Job::Credentials => &config.cron_credentials,
            Job::IdempotencyKeys => &config.cron_idempotency_keys,
            Job::Deliveries => &config.cron_deliveries,
            Job::Events => &config.cron_events,
            Job::Runs => &config.cron_runs,
            Job::Publishers => &config.cron_publishers,
            Job::Leases => &config.cron_leases,
            Job::Endpoints => &config.cron_endpoints,
            Job::Notices => &config.cron_notices,
            Job::Accounts => &config.cron_accounts,
            Job::People => &config.cron_people,
        };
        (*job, cron.0.clone())
    };
    let days = |days: u32| Duration::from_hours(u64::from(days) * 24);
    jobs::Settings {
        crons: Job::ALL.iter().map(cron).collect(),
        disable_endpoint_after_days: config.disable_endpoint_after_days,
        retention: Retention {
            credentials: days(config.retention_credentials_days),
            events: days(config.retention_events_days),
            deliveries: days(config.retention_deliveries_days),
            runs: days(config.retention_runs_days),
            notices: days(config.retention_notices_days),
        },
    }
}
