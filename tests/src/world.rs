//! The world of a test: its sites, servers and secrets.

use std::{
    io::Write as _,
    sync::{Arc, Mutex},
};

use crate::{
    server::{Server, Site},
    store::{Cluster, Database, OwnCluster, Store},
};

/// Everything that one test creates: sites, servers, secrets.
pub struct World {
    /// The database engine of its servers.
    pub store: Store,
    cluster: Option<Arc<Cluster>>,
    sites: Mutex<Vec<Arc<Site>>>,
}

impl World {
    /// A new site, with an empty database of the current schema.
    pub async fn site(&self) -> Arc<Site> {
        let home = tempfile::Builder::new()
            .prefix("stationmaster-test-")
            .tempdir()
            .unwrap();
        let database = match &self.cluster {
            None => None,
            Some(cluster) => {
                let data_dir = home.path().join("data");
                Some(Database::migrated(cluster, &data_dir).await)
            }
        };
        self.add(Site::new(home, database, Arc::default()))
    }

    /// A new site, with a database that has no schema yet.
    pub async fn bare_site(&self) -> Arc<Site> {
        let home = tempfile::Builder::new()
            .prefix("stationmaster-test-")
            .tempdir()
            .unwrap();
        let database = match &self.cluster {
            None => None,
            Some(cluster) => Some(Database::bare(cluster).await),
        };
        self.add(Site::new(home, database, Arc::default()))
    }

    /// A new site on a PostgreSQL cluster of its own, which the test may stop.
    ///
    /// # Errors
    /// The reason why no cluster can be started here.
    pub async fn site_with_cluster(&self) -> Result<(Arc<Site>, OwnCluster), String> {
        let home = tempfile::Builder::new()
            .prefix("stationmaster-test-")
            .tempdir()
            .unwrap();
        let own = OwnCluster::start()?;
        let data_dir = home.path().join("data");
        let database = Database::migrated(own.cluster(), &data_dir).await;
        let site = self.add(Site::new(home, Some(database), Arc::default()));
        Ok((site, own))
    }

    fn add(&self, site: Site) -> Arc<Site> {
        let site = Arc::new(site);
        self.sites.lock().unwrap().push(Arc::clone(&site));
        site
    }

    /// A server on a new site.
    pub async fn start(&self) -> Server {
        self.start_with(&[]).await
    }

    /// A server on a new site, with these settings.
    pub async fn start_with(&self, env: &[(&str, &str)]) -> Server {
        self.site().await.start(env).await
    }

    async fn finish(&self) {
        let sites: Vec<_> = self.sites.lock().unwrap().iter().cloned().collect();
        for site in sites {
            site.finish().await;
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for site in self.sites.lock().unwrap().iter() {
                site.abandon();
            }
        }
    }
}

/// Runs one test in a world of its own, and checks the world afterwards.
pub fn run(store: Store, name: &str, body: impl AsyncFnOnce(&World)) {
    let cluster = match store {
        Store::Sqlite => None,
        Store::Postgres => match Cluster::get() {
            Ok(cluster) => Some(cluster),
            Err(reason) => return skip(name, &reason),
        },
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World {
            store,
            cluster,
            sites: Mutex::default(),
        };
        body(&world).await;
        world.finish().await;
    });
}

/// Skips a test, and reports that to the test script. Fails if the script allows no skipped tests.
pub fn skip(name: &str, reason: &str) {
    assert!(
        std::env::var_os("STATIONMASTER_TEST_STRICT").is_none(),
        "{name} can't run: {reason}"
    );
    leave_out(name, reason);
}

/// Skips a test for want of something that no script can install. Never fails.
pub fn leave_out(name: &str, reason: &str) {
    eprintln!("{name} is skipped: {reason}");
    if let Some(path) = std::env::var_os("STATIONMASTER_TEST_SKIPS") {
        let mut file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        writeln!(file, "{name}: {reason}").unwrap();
    }
}
