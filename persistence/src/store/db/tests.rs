use domain::clock::SystemClock;
use sea_orm::Statement;

use super::*;

async fn open(dir: &tempfile::TempDir) -> Db {
    let url = format!("sqlite://{}/test.db", dir.path().display());
    let config = DatabaseConfig::parse(&url, 1, true).expect("a good URL");
    let connected = Db::connect(config, Arc::new(SystemClock)).await;
    connected.expect("an empty directory").expect("no limit")
}

async fn run(db: &Db, sql: &str) -> Result<()> {
    db.write(Line::Requests, |tx| async move {
        tx.db().execute_unprepared(sql).await?;
        Ok(())
    })
    .await
    .map(|_| ())
}

async fn count(db: &Db) -> i64 {
    let sql = Statement::from_string(DbBackend::Sqlite, "SELECT COUNT(*) AS n FROM t");
    let row = db
        .line(Line::Requests)
        .query_one_raw(sql)
        .await
        .expect("a table")
        .expect("a row");
    row.try_get("", "n").expect("a number")
}

/// sqlx 0.9.0 reports success for a commit after `SQLITE_FULL` although nothing was stored.
#[tokio::test]
async fn what_is_acknowledged_after_a_full_disk_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let db = open(&dir).await;
    run(&db, "CREATE TABLE t (x BLOB)")
        .await
        .expect("a new table");
    // The limit concerns the writing connection; a full disk concerns all.
    run(&db, "PRAGMA max_page_count = 8")
        .await
        .expect("a pragma");
    let full = run(&db, "INSERT INTO t VALUES (zeroblob(1000000))").await;
    assert!(matches!(full, Err(StoreError::Unavailable(_))), "{full:?}");
    assert_eq!(count(&db).await, 0);
    // A change that is refused and rolled back, then one that is acknowledged.
    let refused: Result<Committed<()>> = db
        .write(Line::Requests, |tx| async move {
            tx.db()
                .execute_unprepared("INSERT INTO t VALUES (x'00')")
                .await?;
            Err(domain::Problem::not_found().into())
        })
        .await;
    assert!(matches!(refused, Err(StoreError::Refused(_))));
    run(&db, "INSERT INTO t VALUES (x'01')")
        .await
        .expect("room again on a new connection");
    assert_eq!(count(&db).await, 1);
}

#[tokio::test]
async fn a_transaction_that_was_cut_off_does_not_leak_into_the_next() {
    let dir = tempfile::tempdir().expect("a directory");
    let db = open(&dir).await;
    run(&db, "CREATE TABLE t (x BLOB)")
        .await
        .expect("a new table");
    let cut = db.write(Line::Requests, |tx| async move {
        tx.db()
            .execute_unprepared("INSERT INTO t VALUES (x'00')")
            .await?;
        std::future::pending::<()>().await;
        Ok(())
    });
    let waited = timeout(Duration::from_millis(50), cut).await;
    assert!(waited.is_err());
    run(&db, "INSERT INTO t VALUES (x'01')")
        .await
        .expect("the writer is free");
    assert_eq!(count(&db).await, 1);
}

#[tokio::test]
async fn concurrent_read_then_write_transactions_all_commit() {
    let dir = tempfile::tempdir().expect("a directory");
    let db = Arc::new(open(&dir).await);
    run(&db, "CREATE TABLE t (x BLOB)")
        .await
        .expect("a new table");
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let db = Arc::clone(&db);
            tokio::spawn(async move {
                run(&db, "INSERT INTO t SELECT zeroblob(1 + COUNT(*)) FROM t").await
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic").expect("no lost race");
    }
    assert_eq!(count(&db).await, 50);
}

/// The engine's setting for flushing commits, as a transaction sees it.
async fn flushes(db: &Db, later: bool) -> String {
    let show = match db.backend() {
        DbBackend::Postgres => "SELECT current_setting('synchronous_commit') AS flush",
        _ => "SELECT CAST(synchronous AS TEXT) AS flush FROM pragma_synchronous",
    };
    let work = |tx: Tx| async move {
        let show = Statement::from_string(tx.db().get_database_backend(), show);
        let row = tx.db().query_one_raw(show).await?.expect("a row");
        Ok(row.try_get("", "flush")?)
    };
    let committed = if later {
        db.write_unflushed(Line::Requests, work).await
    } else {
        db.write(Line::Requests, work).await
    };
    committed.expect("a commit").value
}

#[tokio::test]
async fn a_commit_that_need_not_be_flushed_leaves_the_next_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let sqlite = open(&dir).await;
    assert_eq!(flushes(&sqlite, false).await, "2", "FULL");
    assert_eq!(flushes(&sqlite, true).await, "1", "NORMAL");
    assert_eq!(flushes(&sqlite, false).await, "2");
    let refused: Result<Committed<()>> = sqlite
        .write_unflushed(Line::Requests, |_| async {
            Err(domain::Problem::not_found().into())
        })
        .await;
    assert!(matches!(refused, Err(StoreError::Refused(_))));
    assert_eq!(flushes(&sqlite, false).await, "2");
    let cut = sqlite.write_unflushed(Line::Requests, |_| std::future::pending::<Result<()>>());
    let waited = timeout(Duration::from_millis(50), cut).await;
    assert!(waited.is_err());
    assert_eq!(flushes(&sqlite, false).await, "2");

    for fixture in crate::fixture::engines().await {
        let db = &fixture.store.inner.db;
        if db.backend() == DbBackend::Postgres {
            let set = flushes(db, false).await;
            assert_eq!(flushes(db, true).await, "off");
            assert_eq!(flushes(db, false).await, set);
        }
    }
}
