//! Checkpoints SQLite's WAL on a connection of its own, not on the writer's.
//!
//! By default, the commit that fills a thousand pages of the WAL copies them into the database and
//! waits for the disk, and every commit behind it waits too: 7 ms at the 99th percentile where a
//! commit takes 0.1 (docs/adr/0024-clean-up-in-lulls.md). A passive checkpoint on another
//! connection takes no lock that a writer needs
//! ([wal_checkpoint](https://sqlite.org/pragma.html#pragma_wal_checkpoint)).

use std::time::Duration;

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::store::{Store, error::Result};

/// Pages of the WAL (4 MiB) for which a checkpoint waits, as many as SQLite's default. The first
/// commit after a checkpoint restarts the WAL and flushes its header.
const PAGES: u64 = 1000;
/// A commit is checkpointed after this time at the latest.
const AT_LATEST: Duration = Duration::from_secs(5);
/// How often the loop counts commits.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Estimates when the next checkpoint is due. Only a checkpoint learns the length of the WAL.
struct Pace {
    /// Commits to wait for before the next checkpoint.
    commits: u64,
    /// The WAL's length at the last checkpoint, in pages.
    log: u64,
}

impl Pace {
    /// Takes in that a checkpoint after `commits` commits found a WAL of `log` pages.
    fn found(&mut self, commits: u64, log: u64) {
        // A shorter WAL was restarted.
        let pages = log.checked_sub(self.log).unwrap_or(log);
        self.log = log;
        // Without commits, there is nothing to learn about their size.
        if commits > 0 {
            self.commits = (PAGES * commits / pages.max(1)).clamp(1, PAGES);
        }
    }
}

impl Store {
    /// Checkpoints SQLite's WAL on a connection of its own until the store is closed. After that
    /// SQLite does it by itself.
    pub(crate) async fn checkpoint_loop(self, db: DatabaseConnection, stop: CancellationToken) {
        let made = self.checkpoints(&db);
        tokio::select! {
            () = stop.cancelled() => {}
            () = made => {}
        }
        if let Err(error) = db.close().await {
            tracing::debug!(%error, "the connection for checkpoints did not close cleanly");
        }
    }

    async fn checkpoints(&self, db: &DatabaseConnection) {
        let commits = || self.inner.db.commits();
        let (mut seen, mut failing) = (commits(), false);
        let part = self.progress().part("checkpoints");
        let mut pace = Pace {
            commits: PAGES / 10,
            log: 0,
        };
        loop {
            self.inner.db.committed().await;
            let end = Instant::now() + AT_LATEST;
            while commits() - seen < pace.commits && Instant::now() < end {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let now = commits();
            let under_way = part.work();
            let made = checkpoint(db).await;
            part.went(made.is_ok());
            drop(under_way);
            match made {
                Ok(log) => {
                    pace.found(now - seen, log);
                    failing = false;
                }
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "SQLite's WAL can't be checkpointed, and grows");
                }
                Err(_) => {}
            }
            seen = now;
        }
    }
}

/// Checkpoints what no reader blocks, and returns the length of the WAL in pages.
async fn checkpoint(db: &DatabaseConnection) -> Result<u64> {
    let passive = Statement::from_string(DbBackend::Sqlite, "PRAGMA wal_checkpoint(PASSIVE)");
    let row = db.query_one_raw(passive).await?;
    let log: Option<i64> = row.map(|row| row.try_get("", "log")).transpose()?;
    // SQLite answers -1 if there is no WAL.
    Ok(log.and_then(|log| u64::try_from(log).ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sea_orm::DbBackend;

    use super::*;
    use crate::{
        fixture::{Fixture, engines},
        store::database_config::DatabaseConfig,
    };

    async fn sqlite() -> Fixture {
        let mut all = engines().await.into_iter();
        all.find(|fixture| fixture.store.backend() == DbBackend::Sqlite)
            .unwrap()
    }

    fn database(fixture: &Fixture) -> PathBuf {
        PathBuf::from(fixture.url.strip_prefix("sqlite://").unwrap())
    }

    /// Whether the database file contains table `t` without its WAL.
    async fn written_back(fixture: &Fixture) -> bool {
        let copy = database(fixture).with_file_name("copy.db");
        std::fs::copy(database(fixture), &copy).unwrap();
        let config =
            DatabaseConfig::parse(&format!("sqlite://{}", copy.display()), 1, true).unwrap();
        let db = config.connect_one().await.unwrap();
        let known = "SELECT 1 FROM sqlite_schema WHERE name = 't'";
        let known = Statement::from_string(DbBackend::Sqlite, known);
        // A copy that was taken during a checkpoint may be unreadable.
        let row = db.query_one_raw(known).await;
        db.close().await.unwrap();
        row.is_ok_and(|row| row.is_some())
    }

    #[tokio::test]
    async fn what_is_committed_is_soon_written_back_without_a_thousand_pages() {
        let fixture = sqlite().await;
        fixture.execute("CREATE TABLE t (x BLOB)").await;
        let end = Instant::now() + Duration::from_secs(20);
        while !written_back(&fixture).await {
            assert!(Instant::now() < end, "never");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        fixture.store.close().await;
        let log = database(&fixture).with_file_name("store.db-wal");
        assert!(!log.exists(), "a closed store leaves no log");
    }

    #[tokio::test]
    async fn the_log_starts_anew_under_a_writer_that_never_pauses() {
        let fixture = sqlite().await;
        fixture.execute("CREATE TABLE t (x BLOB)").await;
        let mut largest = 0;
        // 300 MiB in all.
        for _ in 0..600 {
            fixture
                .execute("INSERT INTO t VALUES (zeroblob(524288)); DELETE FROM t")
                .await;
            let log = database(&fixture).with_file_name("store.db-wal");
            largest = largest.max(std::fs::metadata(log).unwrap().len());
        }
        assert!(largest < 150 << 20, "{} MiB", largest >> 20);
    }

    #[test]
    fn a_checkpoint_is_due_after_a_thousand_pages() {
        let mut pace = Pace { commits: 1, log: 0 };
        for (commits, log, next) in [
            (100, 800, 125), // 8 pages a commit
            (125, 1800, 125),
            (10, 500, 20), // anew, 50 a commit
            (1, 5500, 1),  // 5000 a commit
            (0, 5500, 1),
            (900, 5500, PAGES),
            (0, 5500, PAGES), // nothing learnt
        ] {
            pace.found(commits, log);
            assert_eq!(pace.commits, next, "{commits} {log}");
        }
    }
}
