//! Keeps PostgreSQL's statistics of young tables up to date.
//!
//! The planner uses what the last ANALYZE saw, and keeps the plan of a prepared statement until the
//! next one. Autovacuum runs once a minute (`autovacuum_naptime`). That is too late for a new
//! store, or for one that was restored or upgraded and has no statistics at all: in a new store a
//! burst was delivered at 270 a second for a minute, because each outcome read all deliveries of
//! its publisher (docs/adr/0023-young-tables-are-analysed.md).

use std::time::Duration;

use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio_util::sync::CancellationToken;

use crate::store::{Store, connections::Connections, error::Result};

/// How often the sizes of tables are read: one query of the catalog.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The pause after a failure. Autovacuum does the work meanwhile, and a second try might block it.
const AFTER_FAILURE: Duration = Duration::from_mins(5);

/// How long analysing one table may take.
const ANALYZE_MAX: Duration = Duration::from_mins(2);

/// Our tables that are more than eight times as large as when they were last analysed, or were
/// never analysed, and that this role may analyse. It also compares rows: if a table was analysed
/// while its first rows were not committed, the planner knows its pages but no rows.
const GROWN: &str = "SELECT format('%I', c.relname) AS name FROM pg_class c \
     WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r' \
     AND pg_has_role(c.relowner, 'USAGE') \
     AND (pg_relation_size(c.oid) > 8 * c.relpages::bigint * current_setting('block_size')::bigint \
     OR pg_stat_get_live_tuples(c.oid) > 8 * GREATEST(c.reltuples, 12))";

/// Analyses tables that have outgrown their statistics, and returns their names.
async fn analyze_grown(db: &Connections) -> Result<Vec<String>> {
    let grown = Statement::from_string(DbBackend::Postgres, GROWN);
    let rows = db.query_all_raw(grown).await?;
    let names = rows.iter().map(|row| row.try_get("", "name"));
    let names: Vec<String> = names.collect::<Result<_, _>>()?;
    for name in &names {
        // Another process, or autovacuum, may be analysing it.
        let analyze = format!("ANALYZE (SKIP_LOCKED) {name}");
        db.execute_long(&analyze, ANALYZE_MAX).await?;
    }
    Ok(names)
}

impl Store {
    /// Analyses grown tables of PostgreSQL until the store is closed.
    pub(crate) async fn analyze_loop(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let analyzed = tokio::select! {
                () = stop.cancelled() => return,
                analyzed = analyze_grown(self.read()) => analyzed,
            };
            match analyzed {
                Ok(names) if names.is_empty() => {}
                Ok(names) => tracing::debug!(?names, "tables were analysed"),
                Err(error) => {
                    tracing::debug!(%error, "tables could not be analysed");
                    tick.reset_after(AFTER_FAILURE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sea_orm::{ConnectionTrait as _, DbBackend};

    use super::analyze_grown;
    use crate::{
        fixture::engines,
        store::{connections::Connections, database_config::DatabaseConfig, pool::Pool},
    };

    /// One connection, so that all statements have the same session.
    fn one(url: &str) -> Connections {
        match DatabaseConfig::parse(url, 1, true).unwrap() {
            DatabaseConfig::Postgres { server, .. } => {
                Connections::Postgres(Pool::new(&server, 1, false))
            }
            DatabaseConfig::Sqlite { .. } => panic!("not PostgreSQL"),
        }
    }

    #[tokio::test]
    async fn a_table_is_analysed_when_it_is_new_and_when_it_has_grown() {
        for fixture in engines().await {
            if fixture.store.backend() != DbBackend::Postgres {
                continue;
            }
            // In a schema of its own, so that neither the store's loop nor autovacuum analyses this
            // table.
            let db = one(&fixture.url);
            run(
                &db,
                "CREATE SCHEMA apart; SET search_path = apart; \
                 CREATE TABLE young (filler TEXT) WITH (autovacuum_enabled = false)",
            )
            .await;
            assert!(analyze_grown(&db).await.unwrap().is_empty(), "it is empty");
            grow(&db, 10).await;
            assert_eq!(analyze_grown(&db).await.unwrap(), ["young"], "it is new");
            let known = "pg_class WHERE oid = 'apart.young'::regclass AND reltuples = 10";
            assert_eq!(fixture.count(known).await, 1);
            grow(&db, 10).await;
            let grown = analyze_grown(&db).await.unwrap();
            assert!(grown.is_empty(), "it has not grown much: {grown:?}");
            grow(&db, 1000).await;
            assert_eq!(analyze_grown(&db).await.unwrap(), ["young"], "it has grown");
            db.close().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_table_that_was_analysed_before_its_rows_were_committed_is_so_again() {
        for fixture in engines().await {
            if fixture.store.backend() != DbBackend::Postgres {
                continue;
            }
            let (db, other) = (one(&fixture.url), one(&fixture.url));
            run(&db, "CREATE SCHEMA apart").await;
            for each in [&db, &other] {
                run(each, "SET search_path = apart").await;
            }
            run(
                &db,
                "CREATE TABLE young (filler TEXT) WITH (autovacuum_enabled = false)",
            )
            .await;
            run(&db, "BEGIN").await;
            grow(&db, 1000).await;
            assert_eq!(analyze_grown(&other).await.unwrap(), ["young"]);
            run(&db, "COMMIT").await;
            // PostgreSQL updates its counts within a second or two after a commit.
            let known = "pg_class WHERE oid = 'apart.young'::regclass AND reltuples = 1000";
            let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
            while fixture.count(known).await == 0 {
                assert!(tokio::time::Instant::now() < end, "never");
                run(&db, "SELECT 1").await;
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                analyze_grown(&other).await.unwrap();
            }
            for one in [db, other] {
                one.close().await.unwrap();
            }
        }
    }

    async fn run(db: &Connections, sql: &str) {
        db.execute_unprepared(sql).await.unwrap();
    }

    /// Inserts `rows` rows of a kilobyte.
    async fn grow(db: &Connections, rows: u32) {
        let wide = format!("SELECT repeat('x', 1000) FROM generate_series(1, {rows})");
        run(db, &format!("INSERT INTO young {wide}")).await;
    }
}
