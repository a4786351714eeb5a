//! The two database engines. On PostgreSQL every site gets a database of its own, copied from one
//! that was migrated once.

use std::{
    path::Path,
    process::Command,
    sync::{Arc, LazyLock, Mutex, Weak},
    time::{Duration, UNIX_EPOCH},
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use url::Url;

use crate::{
    server::{binary, command},
    tools::{root, word},
};

/// The number of the lock under which the template is created; the same in every process.
const TEMPLATE_LOCK: i64 = 0x73_74_6d_31;

/// The database engine of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file in its data directory.
    Sqlite,
    /// A database of a cluster.
    Postgres,
}

/// A PostgreSQL cluster, which the environment named or this process started.
pub(crate) struct Cluster {
    url: String,
    ours: bool,
}

/// The cluster that this process started, for as long as any test needs it.
static STARTED: LazyLock<Mutex<Weak<Cluster>>> = LazyLock::new(Mutex::default);

impl Cluster {
    /// The cluster to use.
    ///
    /// # Errors
    /// The reason why there is none and none can be started.
    pub(crate) fn get() -> Result<Arc<Self>, String> {
        if let Ok(url) = std::env::var("STATIONMASTER_TEST_POSTGRES_URL") {
            return Ok(Arc::new(Self { url, ours: false }));
        }
        let mut started = STARTED.lock().unwrap();
        if let Some(cluster) = started.upgrade() {
            return Ok(cluster);
        }
        let cluster = Arc::new(Self::start(&["--fast"])?);
        *started = Arc::downgrade(&cluster);
        Ok(cluster)
    }

    fn start(options: &[&str]) -> Result<Self, String> {
        let output = Command::new("scripts/postgres")
            .args(options)
            .current_dir(root())
            .output()
            .map_err(|error| format!("scripts/postgres: {error}"))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(format!(
                "scripts/postgres: {}",
                words.trim().replace('\n', "; ")
            ));
        }
        let url = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { url, ours: true })
    }

    /// The URL of one of its databases.
    pub(crate) fn url_of(&self, database: &str) -> String {
        let mut url = Url::parse(&self.url).unwrap();
        url.set_path(database);
        url.into()
    }

    async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.ours {
            let stopped = Command::new("scripts/postgres")
                .args(["stop", &self.url])
                .current_dir(root())
                .output();
            if let Err(error) = stopped {
                eprintln!("the cluster was not stopped: {error}");
            }
        }
    }
}

/// A cluster for one test, which the test may stop. Its commits are durable.
pub struct OwnCluster(Arc<Cluster>);

impl OwnCluster {
    /// Starts a cluster.
    ///
    /// # Errors
    /// The reason why none can be started.
    pub(crate) fn start() -> Result<Self, String> {
        Ok(Self(Arc::new(Cluster::start(&[])?)))
    }

    pub(crate) const fn cluster(&self) -> &Arc<Cluster> {
        &self.0
    }

    /// Ends all its processes at once.
    pub async fn halt(&self) {
        self.script("halt").await;
    }

    /// Starts it again at the same address.
    pub async fn resume(&self) {
        self.script("resume").await;
    }

    async fn script(&self, verb: &str) {
        let output = tokio::process::Command::new("scripts/postgres")
            .args([verb, &self.0.url])
            .current_dir(root())
            .output()
            .await
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/postgres {verb}: {words}");
    }
}

/// One site's PostgreSQL database.
pub struct Database {
    cluster: Arc<Cluster>,
    name: String,
    /// Its URL.
    pub url: String,
}

impl Database {
    /// An empty database with the current schema.
    pub(crate) async fn migrated(cluster: &Arc<Cluster>, data_dir: &Path) -> Self {
        let template = template(cluster, data_dir).await;
        Self::create(cluster, &format!("TEMPLATE {template}")).await
    }

    /// An empty database without any schema.
    pub(crate) async fn bare(cluster: &Arc<Cluster>) -> Self {
        Self::create(cluster, "").await
    }

    async fn create(cluster: &Arc<Cluster>, options: &str) -> Self {
        let name = format!("stm_{}", word());
        let mut connection = cluster.connect().await;
        let statement = format!("CREATE DATABASE {name} {options}");
        // A template can't be copied while another process copies it.
        for attempt in 1.. {
            match sqlx::raw_sql(AssertSqlSafe(statement.clone()))
                .execute(&mut connection)
                .await
            {
                Ok(_) => break,
                Err(error) => assert!(attempt < 50, "{statement}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Self {
            url: cluster.url_of(&name),
            cluster: Arc::clone(cluster),
            name,
        }
    }

    /// Removes it.
    pub(crate) async fn remove(&self) {
        let mut connection = self.cluster.connect().await;
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut connection)
            .await
            .unwrap();
    }

    /// A connection to it.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// All its rows as text, with bytes in hexadecimal.
    pub async fn dump(&self) -> Vec<u8> {
        let mut connection = self.connect().await;
        let tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1";
        let rows = sqlx::query(tables)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        let mut dump = Vec::new();
        for row in rows {
            let table: String = row.get(0);
            let select = format!("SELECT to_jsonb(t)::text FROM \"{table}\" t");
            let rows = sqlx::query(AssertSqlSafe(select))
                .fetch_all(&mut connection)
                .await
                .unwrap();
            for row in rows {
                let line: String = row.get(0);
                dump.extend_from_slice(format!("{table} {line}\n").as_bytes());
                dump.extend_from_slice(&bytes_in(&line));
            }
        }
        dump
    }
}

/// The bytes in a row's text, written as `\x…`, so that secrets in them are found, too.
fn bytes_in(line: &str) -> Vec<u8> {
    let mut all = Vec::new();
    for part in line.split("\\\\x").skip(1) {
        let digits: String = part.chars().take_while(char::is_ascii_hexdigit).collect();
        all.extend(hex::decode(digits).unwrap_or_default());
        all.push(b'\n');
    }
    all
}

/// The name of the template database, which the program under test has migrated. The first process
/// creates it.
async fn template(cluster: &Cluster, data_dir: &Path) -> String {
    let meta = std::fs::metadata(binary()).unwrap();
    let age = meta.modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    let name = format!("stm_template_{}_{}", age.as_millis(), meta.len());
    let mut connection = cluster.connect().await;
    let lock = format!("SELECT pg_advisory_lock({TEMPLATE_LOCK})");
    sqlx::raw_sql(AssertSqlSafe(lock))
        .execute(&mut connection)
        .await
        .unwrap();
    // Marked as a template only once it is complete.
    let query = "SELECT datistemplate FROM pg_database WHERE datname = $1";
    let found = sqlx::query(query)
        .bind(&name)
        .fetch_optional(&mut connection)
        .await
        .unwrap();
    if !found.is_some_and(|row| row.get::<bool, _>(0)) {
        make_template(cluster, &mut connection, &name, data_dir).await;
    }
    name
}

async fn make_template(
    cluster: &Cluster,
    connection: &mut PgConnection,
    name: &str,
    data_dir: &Path,
) {
    for statement in [
        format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"),
        format!("CREATE DATABASE {name}"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(&mut *connection)
            .await
            .unwrap();
    }
    let output = command(data_dir, &[])
        .arg("migrate")
        .env("STATIONMASTER_DATABASE_URL", cluster.url_of(name))
        .output()
        .await
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "`stationmaster migrate` failed: {words}"
    );
    let statement = format!("ALTER DATABASE {name} IS_TEMPLATE true");
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(connection)
        .await
        .unwrap();
}
