//! SQLite's log is written back beside the writer, not by it.
//!
//! Left to itself, SQLite has the commit that fills a thousand pages of the log copy them into the
//! database and wait for the disk, and every commit behind it waits too: 7 ms at the 99th
//! percentile where a commit takes 0.1 (docs/adr/0024-clean-up-in-lulls.md). A
//! passive checkpoint of another connection takes no lock that a writer needs
//! ([wal_checkpoint](https://sqlite.org/pragma.html#pragma_wal_checkpoint)).

use std::time::Duration;

use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement};
use tokio_util::sync::CancellationToken;

use crate::{Store, error::Result};

/// From a commit to the checkpoint that follows it.
const AFTER: Duration = Duration::from_millis(250);
/// Pages in the log (32 MiB) at which the commit itself writes them back: a writer that never
/// pauses leaves no moment in which all is written back and the log can start anew.
pub(crate) const PAGES_MAX: &str = "8000";

impl Store {
    /// Writes back what was committed until the store is closed, when SQLite does so itself.
    pub(crate) async fn checkpoint_loop(self, db: DatabaseConnection, stop: CancellationToken) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.inner.db.committed() => {}
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(AFTER) => {}
            }
            match checkpoint(&db).await {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "SQLite's log can't be written back: it grows");
                }
                Err(_) => {}
            }
        }
        if let Err(error) = db.close().await {
            tracing::debug!(%error, "the connection for checkpoints did not close cleanly");
        }
    }
}

async fn checkpoint(db: &DatabaseConnection) -> Result<()> {
    let passive = Statement::from_string(DbBackend::Sqlite, "PRAGMA wal_checkpoint(PASSIVE)");
    db.query_one_raw(passive).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sea_orm::DbBackend;

    use super::*;
    use crate::{
        db::Target,
        fixture::{Fixture, engines},
    };

    async fn sqlite() -> Fixture {
        let mut all = engines().await.into_iter();
        all.find(|fixture| fixture.store.backend() == DbBackend::Sqlite)
            .unwrap()
    }

    fn database(fixture: &Fixture) -> PathBuf {
        PathBuf::from(fixture.url.strip_prefix("sqlite://").unwrap())
    }

    /// Whether the database's file knows table `t` by itself, without its log.
    async fn written_back(fixture: &Fixture) -> bool {
        let copy = database(fixture).with_file_name("copy.db");
        std::fs::copy(database(fixture), &copy).unwrap();
        let target = Target::parse(&format!("sqlite://{}", copy.display()), 1, true).unwrap();
        let db = target.connect_one().await.unwrap();
        let known = "SELECT 1 FROM sqlite_schema WHERE name = 't'";
        let known = Statement::from_string(DbBackend::Sqlite, known);
        let row = db.query_one_raw(known).await.unwrap();
        db.close().await.unwrap();
        row.is_some()
    }

    #[tokio::test]
    async fn what_is_committed_is_soon_written_back_without_a_thousand_pages() {
        let fixture = sqlite().await;
        fixture.execute("CREATE TABLE t (x BLOB)").await;
        let end = tokio::time::Instant::now() + Duration::from_secs(20);
        while !written_back(&fixture).await {
            assert!(tokio::time::Instant::now() < end, "never");
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
        // 200 MiB in all.
        for _ in 0..400 {
            fixture
                .execute("INSERT INTO t VALUES (zeroblob(524288)); DELETE FROM t")
                .await;
            let log = database(&fixture).with_file_name("store.db-wal");
            largest = largest.max(std::fs::metadata(log).unwrap().len());
        }
        assert!(largest < 64 << 20, "{} MiB", largest >> 20);
    }
}
