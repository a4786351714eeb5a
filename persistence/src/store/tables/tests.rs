use std::{collections::BTreeSet, time::Duration};

use domain::id::{Id as _, PublisherId};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

use super::*;
use crate::{
    fixture::{Fixture, engines},
    operations::sweeps::tests::{furnish, literal},
    store::{ends::Retention, job::Job},
};

const DAY: Duration = Duration::from_hours(24);
const RETENTION: Retention = Retention {
    credentials: Duration::from_hours(10 * 24),
    events: Duration::from_hours(10 * 24),
    deliveries: Duration::from_hours(10 * 24),
    runs: Duration::from_hours(10 * 24),
    notices: Duration::from_hours(10 * 24),
};

/// The assignments that end a row, for each table whose rows a job removes. `NOW` is the time of
/// the end. Empty if the row was inserted with the time of its end.
fn ended(table: &str) -> &'static str {
    match table {
        "deliveries" => "status = 'succeeded', next_attempt_at = NULL, finished_at = NOW",
        "replays" => "status = 'succeeded', finished_at = NOW",
        "endpoint_secrets" | "train_tokens" | "credentials" => "revoked_at = NOW",
        "webhook_endpoints" => "enabled = FALSE, deleted_at = NOW",
        "runs" => "status = 'succeeded', finished_at = NOW, sweep_at = NOW",
        "pipelines" => "live_slug = NULL, updated_at = NOW",
        "train_notices" | "mails" => "next_attempt_at = NULL, finished_at = NOW",
        "endpoint_stats" | "events" | "pipeline_versions" | "oauth_logins"
        | "account_cooldowns" | "account_usage" | "idempotency_keys" | "credential_changes"
        | "sessions" | "single_use_tokens" | "invitations" | "sign_in_throttles" => "",
        other => panic!("say here what ends a row of {other}"),
    }
}

async fn names(fixture: &Fixture, sql: &str) -> BTreeSet<String> {
    let statement = Statement::from_string(fixture.store.backend(), sql);
    let rows = fixture.store.read().query_all_raw(statement).await.unwrap();
    let names = rows.iter().map(|row| row.try_get("", "name").unwrap());
    names.collect()
}

/// Runs every job's sweeps until none finds anything. Returns how many rows were removed.
async fn sweep_all(fixture: &Fixture) -> u64 {
    let mut all = 0;
    loop {
        let mut removed = 0;
        for job in Job::ALL {
            let swept = fixture
                .store
                .system()
                .operations()
                .sweep(*job, &RETENTION, 2)
                .await;
            removed += swept.unwrap().counts.iter().map(|(_, n)| n).sum::<u64>();
        }
        if removed == 0 {
            return all;
        }
        all += removed;
    }
}

/// How many rows a publisher has in a table; how many there are, if they belong to none.
async fn count(fixture: &Fixture, table: &Table, of: PublisherId, only: &str) -> i64 {
    let Some(owner) = table.owner else {
        return fixture.count(table.name).await;
    };
    let of = literal(fixture, of.uuid());
    let from = format!("{} WHERE {owner} = {of}{only}", table.name);
    fixture.count(&from).await
}

#[tokio::test]
async fn every_table_says_how_its_rows_end() {
    let known: BTreeSet<String> = TABLES.iter().map(|table| table.name.to_owned()).collect();
    assert_eq!(known.len(), TABLES.len());
    for fixture in engines().await {
        let sql = match fixture.store.backend() {
            DbBackend::Sqlite => {
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            }
            _ => {
                "SELECT table_name AS name FROM information_schema.tables \
                 WHERE table_schema = current_schema()"
            }
        };
        let mut real = names(&fixture, sql).await;
        assert!(real.remove("seaql_migrations"));
        assert_eq!(real, known, "a table without an end");
    }
    for table in &TABLES {
        assert!(!table.ends.is_empty(), "{} has no end", table.name);
        for end in table.ends {
            if let End::With(other) = end {
                assert!(known.contains(*other), "{}: {other}", table.name);
            }
            if let End::By(what) | End::Few(what) = end {
                assert!(!what.is_empty(), "{}", table.name);
            }
        }
        // A table is removed along with a row exactly if it declares so.
        for swept in table.sweeps().filter(|swept| !swept.along.is_empty()) {
            let along: BTreeSet<&str> = swept.along.iter().map(|(name, _)| *name).collect();
            let with_it = |end: &End| matches!(end, End::With(other) if *other == table.name);
            let declared = TABLES.iter().filter(|other| other.ends.iter().any(with_it));
            assert_eq!(
                along,
                declared.map(|other| other.name).collect(),
                "{}",
                table.name
            );
        }
        // All rows of a publisher are removed with it, directly or with the rows that they belong
        // to.
        let goes = |end: &End| {
            matches!(end, End::WithPublisher | End::With(_)) || table.name == "publishers"
        };
        let with_it = table.ends.iter().any(goes);
        let log = table.name == "credential_changes";
        assert_eq!(with_it, table.owner.is_some() && !log, "{}", table.name);
    }
}

#[tokio::test]
async fn what_has_ended_goes_when_its_time_is_over() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        let other = fixture.publisher("other").await.publisher.id;
        furnish(&fixture, acme).await;
        furnish(&fixture, other).await;
        sweep_all(&fixture).await;
        let lasting = |table: &&Table| !matches!(ended(table.name), "");
        let swept = TABLES
            .iter()
            .filter(|table| table.sweeps().next().is_some());
        let swept: Vec<&Table> = swept.collect();
        for table in swept.iter().filter(|table| lasting(table)) {
            assert!(count(&fixture, table, acme, "").await > 0, "{}", table.name);
        }
        let (owner, now) = (literal(&fixture, acme.uuid()), fixture.store.now().ms());
        for table in swept.iter().filter(|table| lasting(table)) {
            let set = ended(table.name).replace("NOW", &now.to_string());
            let whose = match table.owner {
                Some(_) => format!(" WHERE publisher_id = {owner}"),
                None => String::new(),
            };
            let sql = format!("UPDATE {} SET {set}{whose}", table.name);
            fixture.execute(&sql).await;
        }
        fixture.clock.advance(9 * DAY);
        for _ in 0..2 {
            sweep_all(&fixture).await;
        }
        for table in swept
            .iter()
            .filter(|table| lasting(table) && table.name != "runs")
        {
            assert!(count(&fixture, table, acme, "").await > 0, "{}", table.name);
        }
        fixture.clock.advance(2 * DAY);
        sweep_all(&fixture).await;
        for table in &TABLES {
            let goes = |end: &End| match end {
                End::Swept(_) => true,
                End::With(other) => swept.iter().any(|table| table.name == *other),
                _ => false,
            };
            if table.name == "credential_changes" || !table.ends.iter().any(goes) {
                continue;
            }
            // Tokens of the boot seed stay known for ever.
            let seeded = table.name == "credentials" || table.name == "token_hashes";
            let only = if seeded && table.name == "credentials" {
                " AND source <> 'seed'"
            } else {
                ""
            };
            let left = count(&fixture, table, acme, only).await;
            assert_eq!(left, 0, "{} has rows without an end", table.name);
        }
        assert_eq!(sweep_all(&fixture).await, 0);
        // Rows of another publisher that are as old have not ended.
        let of_owner = |table: &&&Table| lasting(table) && table.owner.is_some();
        for table in swept.iter().filter(of_owner) {
            assert!(
                count(&fixture, table, other, "").await > 0,
                "{}",
                table.name
            );
        }
    }
}

#[tokio::test]
async fn a_version_ends_when_the_next_one_comes() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        furnish(&fixture, acme).await;
        fixture.execute("DELETE FROM run_timeline").await;
        fixture.execute("DELETE FROM runs").await;
        fixture.clock.advance(1000 * DAY);
        let now = fixture.store.now().ms();
        for sql in [
            format!(
                "INSERT INTO pipeline_versions SELECT publisher_id, pipeline_id, 2, definition, {now} \
                 FROM pipeline_versions"
            ),
            "UPDATE pipelines SET version = 2".to_owned(),
        ] {
            fixture.execute(&sql).await;
        }
        // Old, and superseded just now: a run of this version may be about to be created.
        for (days, left) in [(0, 2), (9, 2), (2, 1)] {
            fixture.clock.advance(days * DAY);
            sweep_all(&fixture).await;
            assert_eq!(fixture.count("pipeline_versions").await, left, "{days}");
        }
        assert_eq!(
            fixture.count("pipeline_versions WHERE version = 2").await,
            1
        );
    }
}

#[tokio::test]
async fn what_something_still_names_stays() {
    for fixture in engines().await {
        let acme = fixture.publisher("acme").await.publisher.id;
        furnish(&fixture, acme).await;
        let (owner, now) = (literal(&fixture, acme.uuid()), fixture.store.now().ms());
        for sql in [
            // A second version; there is a run of the first.
            format!(
                "INSERT INTO pipeline_versions SELECT publisher_id, pipeline_id, 2, definition, {now} \
                 FROM pipeline_versions"
            ),
            format!(
                "INSERT INTO pipeline_versions SELECT publisher_id, pipeline_id, 3, definition, {now} \
                 FROM pipeline_versions WHERE version = 1"
            ),
            "UPDATE pipelines SET version = 3".to_owned(),
            // An endpoint with a pending delivery.
            format!(
                "UPDATE webhook_endpoints SET enabled = FALSE, deleted_at = {now} \
                 WHERE publisher_id = {owner}"
            ),
        ] {
            fixture.execute(&sql).await;
        }
        fixture.clock.advance(1000 * DAY);
        sweep_all(&fixture).await;
        assert_eq!(
            names(
                &fixture,
                "SELECT CAST(version AS TEXT) AS name FROM pipeline_versions"
            )
            .await,
            BTreeSet::from(["1".to_owned(), "3".to_owned()])
        );
        for table in [
            "webhook_endpoints",
            "endpoint_secrets",
            "endpoint_health",
            "pipelines",
        ] {
            assert_eq!(fixture.count(table).await, 1, "{table}");
        }
        // Nothing refers to them any more.
        for table in ["run_timeline", "runs", "deliveries"] {
            fixture.execute(&format!("DELETE FROM {table}")).await;
        }
        sweep_all(&fixture).await;
        for (table, left) in [
            ("webhook_endpoints", 0),
            ("endpoint_secrets", 0),
            ("endpoint_health", 0),
            ("pipelines", 1),
            ("pipeline_versions WHERE version = 3", 1),
            ("pipeline_versions", 1),
        ] {
            assert_eq!(fixture.count(table).await, left, "{table}");
        }
    }
}
