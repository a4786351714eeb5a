//! Opens the store: connects, checks or migrates the schema, and checks the master key.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use domain::{Clock, seal::MasterKeys};
use migration::Migrator;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, EntityTrait as _};
use sea_orm_migration::MigratorTrait as _;
use tokio::time::timeout;

use crate::{
    identity::sessions::SessionCache,
    publishers::{auth::AuthCache, standing::MemberCache},
    runs::{
        claims::RoundRobin,
        lane::{self, Lane},
        versions::Definitions,
    },
    store::{
        Store, certificates,
        database_config::DatabaseConfig,
        db::Db,
        entity::owner_keys,
        error::{Result, StoreError},
        lines::{OWN as OWN_CONNECTIONS, Own, TooFew, open_all},
        plane_state::PlaneStates,
        pool::Pool,
        scope::OPERATOR,
        storage::Storage,
    },
    trains::lending::PoolCache,
    webhooks::{dispatch::SecretCache, event_types::TypeSchemas},
};

/// A lock that is held while migrations run on PostgreSQL, so that replicas wait for each other.
/// The number is arbitrary: "stm" followed by the purpose's number.
const MIGRATION_LOCK: i64 = 0x0073_746d_0001;

/// How to open the store.
pub struct StoreOptions {
    /// `sqlite://FILE` or `postgres://…`.
    pub database_url: String,
    /// The master keys, which wrap the owners' keys.
    pub master_keys: MasterKeys,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// PostgreSQL: the most connections of the pool.
    pub max_connections: u32,
    /// SQLite: whether every commit reaches the disk before it is acknowledged.
    pub sqlite_synchronous_full: bool,
    /// Most changes of runs in one transaction; from 1 to 256.
    pub write_batch_max: u32,
    /// The limit for each answer of the database.
    pub database_timeout: Duration,
    /// Whether to migrate an old schema.
    pub migrate: bool,
}

/// Why the store did not open. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL is neither SQLite's nor PostgreSQL's.
    #[error("the database URL can't be read: {0}")]
    Url(String),
    /// A certificate file cannot be used.
    #[error("the database can't be verified: {0}. Correct the file, or leave it out of the URL")]
    Certificates(String),
    /// The database cannot be reached.
    #[error(
        "the database can't be reached: {0}. Check STATIONMASTER_DATABASE_URL and that the database runs"
    )]
    Unreachable(String),
    /// The server allows fewer connections than a process needs.
    #[error(
        "the database grants too few connections: one process needs {needed}, and had {had} when the next was refused ({why}). Raise the limit of the role, the database or the server (max_connections), or set STATIONMASTER_DATABASE_CONNECTIONS to {spare} or less; {own} more are needed for deliveries, notifications and jobs"
    )]
    TooFewConnections {
        /// How many connections are needed.
        needed: u32,
        /// How many connections could be opened.
        had: u32,
        /// The error of the next connection.
        why: String,
        /// How many of them are not for requests.
        own: u32,
        /// How many remain for requests.
        spare: u32,
    },
    /// Migrations are missing, and migrating was not requested.
    #[error(
        "the database's schema is {pending} step(s) behind this program. Run `stationmaster migrate` with this program's version first (or start with --migrate)"
    )]
    OldSchema {
        /// How many migrations are missing.
        pending: usize,
    },
    /// A migration failed and was rolled back.
    #[error(
        "the schema could not be migrated: {0}. The failed step changed nothing; remove the cause and start again"
    )]
    Migration(String),
    /// The database was sealed with other master keys.
    #[error(
        "the master keys given do not open this database: it was sealed with master key {id:?}. Give that key too (STATIONMASTER_MASTER_KEYS, or the file `master-keys` in the data directory); a key that is lost can't be replaced"
    )]
    WrongMasterKey {
        /// The identifier of the missing key.
        id: String,
    },
    /// Any other error.
    #[error("the store could not be opened: {0}")]
    Store(#[from] StoreError),
}

impl From<TooFew> for OpenError {
    fn from(few: TooFew) -> Self {
        let TooFew { needed, had, why } = few;
        if had == 0 {
            return Self::Unreachable(why);
        }
        let spare = had.saturating_sub(OWN_CONNECTIONS);
        Self::TooFewConnections {
            needed,
            had,
            why,
            own: OWN_CONNECTIONS,
            spare,
        }
    }
}

/// How the schema of a database compares with this program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaState {
    /// Migrations that this program knows and the database has.
    pub applied: usize,
    /// Migrations that this program knows and the database lacks.
    pub pending: usize,
    /// Migrations of a newer program; an older one can work with them.
    pub newer: usize,
}

pub(crate) async fn state_of(db: &DatabaseConnection) -> Result<SchemaState, DbErr> {
    let known: BTreeSet<String> = Migrator::migrations()
        .iter()
        .map(|step| step.name().to_owned())
        .collect();
    // The migrator's own list fails if the database has newer migrations, so the names are read
    // here.
    let exists = match db.get_database_backend() {
        DbBackend::Sqlite => {
            "SELECT name AS version FROM sqlite_master WHERE type = 'table' AND name = 'seaql_migrations'"
        }
        _ => {
            "SELECT table_name::text AS version FROM information_schema.tables \
             WHERE table_schema = current_schema() AND table_name = 'seaql_migrations'"
        }
    };
    let mut found = BTreeSet::new();
    if !names(db, exists).await?.is_empty() {
        found = names(db, "SELECT version FROM seaql_migrations").await?;
    }
    Ok(SchemaState {
        applied: known.intersection(&found).count(),
        pending: known.difference(&found).count(),
        newer: found.difference(&known).count(),
    })
}

async fn names(db: &DatabaseConnection, sql: &str) -> Result<BTreeSet<String>, DbErr> {
    let rows = db.query_all_raw(sea_orm::Statement::from_string(
        db.get_database_backend(),
        sql,
    ));
    rows.await?
        .iter()
        .map(|row| row.try_get("", "version"))
        .collect()
}

async fn bring_up(db: &DatabaseConnection) -> Result<usize, DbErr> {
    let before = state_of(db).await?;
    if before.pending > 0 {
        Migrator::up(db, None).await?;
    }
    Ok(before.pending)
}

/// Parses the URL, and checks that its certificate files can be used.
pub(crate) fn config_of(
    url: &str,
    connections: u32,
    full: bool,
) -> Result<DatabaseConfig, OpenError> {
    let config =
        DatabaseConfig::parse(url, connections, full).map_err(|e| OpenError::Url(e.to_string()))?;
    if let DatabaseConfig::Postgres { server, .. } = &config {
        let environment = |name: &str| std::env::var(name).ok();
        let mode = server.options().get_ssl_mode();
        let unused =
            certificates::check(url, mode, environment).map_err(OpenError::Certificates)?;
        if let Some(named) = unused {
            tracing::warn!(
                named,
                ?mode,
                "The database's certificate is not verified: that takes sslmode=verify-full or verify-ca"
            );
        }
    }
    Ok(config)
}

/// Opens all connections that a process needs, and closes them again. Returns how many there are;
/// none on SQLite.
///
/// # Errors
/// [`OpenError`] with the number of connections that could be opened.
pub async fn try_connections(
    url: &str,
    connections: u32,
    limit: Duration,
) -> Result<u32, OpenError> {
    let config = config_of(url, connections, true)?.within(limit);
    let DatabaseConfig::Postgres { server, .. } = config else {
        return Ok(0);
    };
    let (_, own) = Own::new(&server);
    let pool = Pool::new(&server, connections, false);
    let opened = open_all(&server, own.clone(), &pool).await;
    for one in own.iter().chain([&pool]) {
        one.close().await;
    }
    opened?;
    Ok(OWN_CONNECTIONS + connections)
}

/// Runs every missing migration, in one process at a time. Returns how many. A failed one is rolled
/// back.
///
/// # Errors
/// [`OpenError`] with what to do.
pub async fn migrate(url: &str) -> Result<usize, OpenError> {
    let config = config_of(url, 1, true)?;
    migrate_with(&config).await
}

/// The text of an error. If only a pooler in transaction mode causes it, because prepared
/// statements belong to another session, the text says so.
fn or_a_pooler(error: &DbErr) -> String {
    let text = error.to_string();
    if text.contains("prepared statement \"sqlx_") {
        format!(
            "{text} (a connection pooler in transaction mode, such as PgBouncer, can't be used: set pool_mode to session)"
        )
    } else {
        text
    }
}

async fn migrate_with(config: &DatabaseConfig) -> Result<usize, OpenError> {
    let failed = |error: DbErr| OpenError::Migration(or_a_pooler(&error));
    // One connection, to which the lock and the transactions of all migrations belong.
    let db = connect(config).await?;
    let postgres = db.get_database_backend() == DbBackend::Postgres;
    if postgres {
        // Another process's migrations may take longer than the limit for a statement.
        let lock = format!("SELECT pg_advisory_lock({MIGRATION_LOCK})");
        db.execute_unprepared("SET statement_timeout = 0")
            .await
            .map_err(failed)?;
        db.execute_unprepared(&lock).await.map_err(failed)?;
    }
    let result = bring_up(&db).await.map_err(failed);
    // Closing the connection releases the lock.
    db.close().await.map_err(failed)?;
    result
}

/// Compares a database's schema with this program's, without changing anything.
///
/// # Errors
/// [`OpenError`] with what to do.
pub async fn schema_state(url: &str) -> Result<SchemaState, OpenError> {
    let config = config_of(url, 1, true)?;
    state_within(&config).await
}

async fn state_within(config: &DatabaseConfig) -> Result<SchemaState, OpenError> {
    let late = |_| OpenError::Unreachable("it does not answer".to_owned());
    let db = connect(config).await?;
    let state = timeout(config.limit(), state_of(&db)).await.map_err(late)?;
    let closed = timeout(config.limit(), db.close()).await.map_err(late)?;
    closed.map_err(|e| OpenError::Store(e.into()))?;
    state.map_err(|e| OpenError::Store(e.into()))
}

pub(crate) async fn connect(config: &DatabaseConfig) -> Result<DatabaseConnection, OpenError> {
    config
        .connect_one()
        .await
        .map_err(|e| OpenError::Unreachable(e.to_string()))
}

impl Store {
    /// Connects, checks or migrates the schema, and checks that the master keys open the operator's
    /// keys, which the very first start creates. Then follows the log of credential changes until
    /// [`Store::close`].
    ///
    /// # Errors
    /// [`OpenError`] with what to do.
    pub async fn open(options: StoreOptions) -> Result<Self, OpenError> {
        let config = config_of(
            &options.database_url,
            options.max_connections,
            options.sqlite_synchronous_full,
        )?
        .within(options.database_timeout);
        if options.migrate {
            let steps = migrate_with(&config).await?;
            if steps > 0 {
                tracing::info!(steps, "the schema was migrated");
            }
        } else {
            let state = state_within(&config).await?;
            if state.pending > 0 {
                return Err(OpenError::OldSchema {
                    pending: state.pending,
                });
            }
        }
        let db = Db::connect(config, options.clock)
            .await
            .map_err(|e| OpenError::Unreachable(e.to_string()))?
            .map_err(OpenError::from)?;
        let (lane, inlet) = Lane::new();
        let planes = PlaneStates::default()
            .with(AuthCache::new())
            .with(SessionCache::new())
            .with(MemberCache::new())
            .with(Definitions::new())
            .with(RoundRobin::new())
            .with(lane)
            .with(SecretCache::default())
            .with(TypeSchemas::new())
            .with(PoolCache::new())
            .with(Storage::default());
        let store = Self::assemble(db, options.master_keys, planes);
        store.start_time().await?;
        store.check_master_key().await?;
        store.start_at_current_epoch().await?;
        // Before any task is spawned that would outlive a failure.
        let aside = match store.backend() {
            DbBackend::Sqlite => Some(store.inner.db.connect_aside().await?),
            _ => None,
        };
        let stop = store.inner.stop.clone();
        let tasks = &store.inner.tasks;
        tasks.spawn(store.watching().poll_loop(stop.clone()));
        tasks.spawn(store.working().time_loop(stop.clone()));
        tasks.spawn(store.working().storage_loop(stop.clone()));
        tasks.spawn(lane::work(store.clone(), inlet, options.write_batch_max));
        if let Some(server) = store.inner.db.notifies() {
            let (inner, stop) = (Arc::clone(&store.inner), stop.clone());
            tasks.spawn(async move { inner.wake.exchange(server, &inner.progress, stop).await });
        }
        match aside {
            Some(db) => tasks.spawn(store.clone().checkpoint_loop(db, stop)),
            None => tasks.spawn(store.clone().analyze_loop(stop)),
        };
        Ok(store)
    }

    /// Stops background work, waits for its end, and closes the connections.
    pub async fn close(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        if let Err(error) = self.flush_uses().await {
            tracing::warn!(%error, "the last uses of tokens could not be written");
        }
        if let Err(error) = self.flush_usage().await {
            tracing::warn!(%error, "the last usage of accounts could not be written");
        }
        if let Err(error) = self.flush_storage().await {
            tracing::warn!(%error, "the last sums of stored bytes could not be written");
        }
        self.inner.db.close().await;
    }

    async fn check_master_key(&self) -> Result<(), OpenError> {
        let row = owner_keys::Entity::find_by_id(OPERATOR)
            .one(self.read())
            .await
            .map_err(StoreError::from)?;
        match row {
            Some(row) => {
                let opened = self.inner.keys.of(self.read(), OPERATOR).await;
                opened.map(|_| ()).map_err(|_| OpenError::WrongMasterKey {
                    id: row.master_key_id,
                })
            }
            None => Ok(self.make_operator().await?),
        }
    }

    /// Creates the operator's keys. Two replicas may start on an empty database at once: then the
    /// second one's insert fails, and the first one's keys are used.
    async fn make_operator(&self) -> Result<()> {
        let made = self
            .write(|tx| async move {
                self.inner.keys.create(tx.db(), OPERATOR, tx.now).await?;
                self.start_audit(tx.db(), OPERATOR).await
            })
            .await;
        match made {
            Ok(()) => Ok(()),
            Err(error) => match self.inner.keys.find(self.read(), OPERATOR).await? {
                Some(_) => Ok(()),
                None => Err(error),
            },
        }
    }
}
