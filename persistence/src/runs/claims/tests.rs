//! How SQLite would execute the statements of claims.

use super::*;
use crate::fixture::{START, engines};

/// SQLite's plan of a statement.
async fn plan(store: &Store, sql: Sql) -> String {
    let mut statement = sql.statement(store.backend());
    statement.sql.insert_str(0, "EXPLAIN QUERY PLAN ");
    let rows = store.read().query_all_raw(statement).await.unwrap();
    let details = rows.iter().map(|row| row.try_get("", "detail").unwrap());
    details.collect::<Vec<String>>().join("\n")
}

#[tokio::test]
async fn every_statement_of_a_claim_is_led_by_an_index() {
    let fixture = engines().await.remove(0);
    let (store, sqlite) = (&fixture.store, DbBackend::Sqlite);
    let nobody = BTreeSet::from([Uuid::nil()]);
    let open = Source {
        publisher_id: Uuid::nil(),
        id: Uuid::nil(),
        slug: "nightly".into(),
        version: 1,
        head: Some(0),
    };
    for (sql, index) in [
        (
            promote_sql(sqlite, START, &nobody),
            "runs_scheduled (publisher_id=? AND not_before<?)",
        ),
        (
            open_sql(&[], &nobody),
            "runs_ready (publisher_id=? AND pipeline_id=?)",
        ),
        (
            candidates_sql(sqlite, START, &[(&open, 1)]),
            "runs_ready (publisher_id=? AND pipeline_id=?)",
        ),
        (
            past_sql(sqlite, START, LEASED, Some(&nobody), 1),
            "runs_held (publisher_id=? AND lease_expires_at<?)",
        ),
        (
            past_sql(sqlite, START, LEASED, None, 1),
            "runs_leased (lease_expires_at<?)",
        ),
        (
            past_sql(sqlite, START, MORTAL, None, 1),
            "runs_to_expire (expires_at<?)",
        ),
    ] {
        let text = sql.text();
        let plan = plan(store, sql).await;
        assert!(plan.contains(index), "{text}\n{plan}");
        assert!(!plan.contains("SCAN r"), "{text}\n{plan}");
        assert!(!plan.contains("TEMP B-TREE FOR ORDER BY"), "{text}\n{plan}");
    }
}
