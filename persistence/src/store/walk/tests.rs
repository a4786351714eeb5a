//! Every filter of every list, in every combination, returns the right rows for a bounded amount of
//! work.

use domain::{
    Timestamp,
    audit::Action,
    credential::CredentialKind,
    id::{EndpointId, EventId, Id as _},
    run::RunStatus,
    slug::Slug,
};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use uuid::Uuid;

use super::*;
use crate::{
    AuditFilter, DeliveryFilter, RunFilter, Scope, Scoped,
    fixture::{Fixture, START, engines},
    runs,
    store::database_config::DatabaseConfig,
};

/// Rows of each table that a list might read.
const MANY: u64 = 12_000;
/// Rows that one page may examine along each of its paths, including those that are read to be
/// returned.
const BOUND: u64 = 3 * (EXAMINED_MAX as u64 + 2 * STEP as u64);

/// Numbers from 1 to `count`, as a table of one column `n`.
fn numbers(count: u64) -> String {
    format!(
        "(WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers \
         WHERE n < {count}) SELECT n FROM numbers) AS numbers"
    )
}

/// An SQL expression for an identifier made of a time and a number.
fn id_of(backend: DbBackend, moment: &str, number: &str) -> String {
    match backend {
        DbBackend::Sqlite => format!(
            "unhex(printf('%012x', {moment}) || '7000' || '8' || printf('%015x', {number}))"
        ),
        _ => format!(
            "(lpad(to_hex({moment}), 12, '0') || '7000' || '8' || lpad(to_hex({number}), 15, '0'))::uuid"
        ),
    }
}

fn constant(backend: DbBackend, id: Uuid) -> String {
    match backend {
        DbBackend::Sqlite => format!("x'{}'", id.simple()),
        _ => format!("'{id}'::uuid"),
    }
}

const fn bytes(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Sqlite => "x'00'",
        _ => "'\\x00'::bytea",
    }
}

struct House {
    fixture: Fixture,
    /// A publisher with many rows of each kind, hardly any of which is of pipeline `q`.
    mine: Scoped,
    limited: Scoped,
    endpoint: EndpointId,
}

/// The columns of each table, and their values for the number `n`.
fn rows_of(id: &str, pipeline: &str, endpoint: &str) -> [(&'static str, &'static str, String); 6] {
    let start = START.ms();
    [
        (
            "pipelines",
            "id, slug, version, revision, created_at, updated_at",
            format!("{id}, 'gone', 1, 1, 1, 1"),
        ),
        (
            "runs",
            "id, pipeline_id, pipeline_version, pipeline_slug, status, input, priority, not_before, \
             attempt, max_attempts, lease_seconds, retention_days, created_by_id, created_by_kind, \
             revision, created_at, ready",
            format!(
                "{id}, {pipeline}, 1, 'p', 'queued', '1', 5, 0, 0, 1, 60, 1, 'x', 'admin', 1, \
                 {start} + n, TRUE"
            ),
        ),
        (
            "events",
            "id, event_type, body, created_at, pipeline_slug",
            format!("{id}, 'a.b', '1', {start} + n, 'p'"),
        ),
        (
            "deliveries",
            "id, event_id, endpoint_id, status, attempts, created_at, finished_at",
            format!("{id}, {id}, {endpoint}, 'succeeded', 1, {start} + n, 5"),
        ),
        (
            "credentials",
            "id, kind, grants_admin, grants_runner, last_four, source, created_at, revoked_at",
            format!("{id}, 'runner', FALSE, TRUE, 'abcd', 'api', 1, 2"),
        ),
        (
            "webhook_endpoints",
            "id, url, event_types, headers, enabled, send_bearer, revision, created_at, \
             updated_at, deleted_at, ordered, signing",
            format!("{id}, 'x', '[]', '{{}}', FALSE, FALSE, 1, 1, 1, 2, FALSE, 'hmac'"),
        ),
    ]
}

/// A publisher with many runs, events, deliveries and audit rows, all alike.
async fn house(fixture: Fixture) -> House {
    let publisher = runs::tests::house(&fixture, "many", &["p"]).await;
    let publisher = publisher.scope.publisher();
    let endpoint = fixture.endpoint(publisher, false).await;
    let backend = fixture.store.backend();
    let owner = constant(backend, publisher.uuid());
    let pipeline = "(SELECT id FROM pipelines WHERE slug = 'p')";
    let start = START.ms();
    let id = id_of(backend, &format!("({start} + n)"), "n");
    let to = constant(backend, endpoint.uuid());
    for (table, columns, values) in rows_of(&id, pipeline, &to) {
        fixture
            .execute(&format!(
                "INSERT INTO {table} (publisher_id, {columns}) SELECT {owner}, {values} FROM {}",
                numbers(MANY)
            ))
            .await;
    }
    let bytes = bytes(backend);
    fixture
        .execute(&format!(
            "INSERT INTO audit_events (owner_id, seq, id, at, actor_kind, actor_id, action, \
             target_kind, target_id, metadata, mac) SELECT {owner}, n + 100, {id}, \
             {start} + n * 60000, 'admin', 'a', 'token.denied', 'token', 't', '{{}}', {bytes} FROM {}",
            numbers(MANY)
        ))
        .await;
    fixture
        .execute(&format!("UPDATE audit_heads SET seq = {}", MANY + 100))
        .await;
    let slugs = [Slug::parse("q").unwrap()];
    let mine = fixture.store.scoped(&Scope::of_row(publisher.uuid(), None));
    let limited = fixture
        .store
        .scoped(&Scope::of_row(publisher.uuid(), Some(slugs.into())));
    if backend == DbBackend::Postgres {
        fixture.execute("ANALYZE").await;
    }
    House {
        fixture,
        mine,
        limited,
        endpoint,
    }
}

/// Rows of tables and indexes that PostgreSQL has read in this database.
async fn rows_read(url: &str) -> u64 {
    let db = DatabaseConfig::parse(url, 1, true).unwrap();
    let db = db.connect_one().await.unwrap();
    let sql = "SELECT ((SELECT sum(seq_tup_read) FROM pg_stat_user_tables) \
               + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes))::bigint AS n";
    let row = db
        .query_one_raw(Statement::from_string(DbBackend::Postgres, sql))
        .await
        .unwrap()
        .unwrap();
    let read: i64 = row.try_get("", "n").unwrap();
    db.close().await.unwrap();
    u64::try_from(read).unwrap()
}

fn every_run_filter() -> Vec<RunFilter> {
    let (old, new) = (Timestamp::from_ms(1), Timestamp::from_ms(2 * START.ms()));
    let middle = Timestamp::from_ms(START.ms() + i64::try_from(MANY).unwrap() / 2);
    let mut all = Vec::new();
    for pipeline in [None, Some("p"), Some("q")] {
        for status in std::iter::once(None).chain(RunStatus::ALL.into_iter().map(Some)) {
            for external_id in [None, Some("no")] {
                for (since, until) in [
                    (None, None),
                    (Some(new), None),
                    (None, Some(old)),
                    (Some(old), Some(middle)),
                ] {
                    all.push(RunFilter {
                        pipeline: pipeline.map(str::to_owned),
                        status,
                        external_id: external_id.map(str::to_owned),
                        since,
                        until,
                    });
                }
            }
        }
    }
    all
}

fn every_audit_filter() -> Vec<AuditFilter> {
    let (old, new) = (Timestamp::from_ms(1), Timestamp::from_ms(2 * START.ms()));
    let mut all = Vec::new();
    for action in [None, Some(Action::TokenDenied), Some(Action::RunsCancelled)] {
        for actor in [None, Some("a"), Some("no")] {
            for target in [None, Some("t"), Some("no")] {
                for (since, until) in [(None, None), (Some(new), None), (None, Some(old))] {
                    all.push(AuditFilter {
                        action,
                        actor: actor.map(str::to_owned),
                        target: target.map(str::to_owned),
                        since,
                        until,
                    });
                }
            }
        }
    }
    all
}

fn page<K>() -> PageRequest<K> {
    PageRequest {
        limit: 50,
        after: None,
    }
}

impl House {
    /// Reads every list with every filter once. Returns the number of calls.
    async fn ask_everything(&self, asked: &mut impl AsyncFnMut(String)) {
        for of in [&self.mine, &self.limited] {
            let limited = of.scope.pipelines().is_some();
            for filter in every_run_filter() {
                of.runs().runs(&filter, page()).await.unwrap();
                asked(format!("{limited} {filter:?}")).await;
            }
            for event_type in [None, Some("a.b"), Some("no.such")] {
                of.webhooks().events(event_type, page()).await.unwrap();
                asked(format!("{limited} events {event_type:?}")).await;
            }
            of.runs().pipelines(page()).await.unwrap();
            asked(format!("{limited} pipelines")).await;
        }
        let unknown = (
            EndpointId::from_uuid(Uuid::max()),
            EventId::from_uuid(Uuid::max()),
        );
        for endpoint in [None, Some(self.endpoint), Some(unknown.0)] {
            for event in [None, Some(unknown.1)] {
                for status in [
                    None,
                    Some("pending"),
                    Some("succeeded"),
                    Some("failed"),
                    Some("cancelled"),
                ] {
                    let filter = DeliveryFilter {
                        endpoint,
                        event,
                        status: status.map(str::to_owned),
                    };
                    self.mine
                        .webhooks()
                        .deliveries(&filter, page())
                        .await
                        .unwrap();
                    asked(format!("{filter:?}")).await;
                }
            }
        }
        for filter in every_audit_filter() {
            self.mine.operations().audit(&filter, page()).await.unwrap();
            asked(format!("{filter:?}")).await;
        }
        for kind in std::iter::once(None).chain(CredentialKind::ALL.into_iter().map(Some)) {
            self.mine
                .credentials()
                .credentials(kind, page())
                .await
                .unwrap();
            asked(format!("credentials {kind:?}")).await;
        }
        self.mine.webhooks().endpoints(page()).await.unwrap();
        asked("endpoints".to_owned()).await;
        self.mine
            .webhooks()
            .replays(self.endpoint, page())
            .await
            .unwrap();
        asked("replays".to_owned()).await;
    }
}

#[tokio::test]
async fn no_filter_of_any_list_looks_through_what_it_does_not_show() {
    for fixture in engines().await {
        let house = house(fixture).await;
        let db = &house.fixture.store.inner.db;
        if db.backend() == DbBackend::Sqlite {
            // Examining a row takes some ten steps.
            let (mut before, mut count) = (db.scan_steps(), 0);
            house
                .ask_everything(&mut async |what| {
                    let now = db.scan_steps();
                    let rows = (now - before) / 10;
                    assert!(rows <= BOUND + 100, "{rows} rows for {what}");
                    (before, count) = (now, count + 1);
                })
                .await;
            assert!(count > 400, "{count}");
            continue;
        }
        // PostgreSQL counts by session and reports at its end, so each table's lists are counted
        // together.
        let mut count = 0;
        house.fixture.store.close().await;
        let before = rows_read(&house.fixture.url).await;
        let reopened = house.fixture.beside(&house.fixture.keys).await;
        let house = House {
            mine: reopened.scoped(&house.mine.scope),
            limited: reopened.scoped(&house.limited.scope),
            ..house
        };
        house.ask_everything(&mut async |_| count += 1).await;
        reopened.close().await;
        let rows = rows_read(&house.fixture.url).await - before;
        assert!(count > 400, "{count}");
        assert!(rows / count <= MANY / 4, "{rows} rows for {count} lists");
    }
}

/// A parameter as SQL text.
fn text_of(value: &Value) -> String {
    match value {
        Value::Uuid(Some(id)) => format!("'{id}'"),
        Value::String(Some(text)) => format!("'{text}'"),
        Value::Bool(Some(yes)) => yes.to_string(),
        Value::BigInt(Some(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

/// The pages that PostgreSQL reads for a statement with a generic plan, as that of a statement that
/// was prepared long ago. The number of returned rows says nothing about the rows that it skips.
async fn pages(fixture: &Fixture, statement: Statement) -> u64 {
    let db = DatabaseConfig::parse(&fixture.url, 1, true).unwrap();
    let db = db.connect_one().await.unwrap();
    let values: Vec<String> = statement
        .values
        .iter()
        .flat_map(|all| &all.0)
        .map(text_of)
        .collect();
    db.execute_unprepared("SET plan_cache_mode = force_generic_plan")
        .await
        .unwrap();
    let prepare = format!("PREPARE asked AS {}", statement.sql);
    db.execute_unprepared(&prepare).await.unwrap();
    // The second time nothing has to be read from the catalog.
    let mut pages = 0;
    for _ in 0..2 {
        let sql = format!(
            "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE asked({})",
            values.join(", ")
        );
        let row = db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql));
        let plan: serde_json::Value = row.await.unwrap().unwrap().try_get_by_index(0).unwrap();
        let plan = &plan[0]["Plan"];
        let of = |name: &str| plan[name].as_u64().unwrap();
        pages = of("Shared Hit Blocks") + of("Shared Read Blocks");
    }
    db.close().await.unwrap();
    pages
}

#[tokio::test]
async fn a_way_passes_by_nothing_that_it_does_not_show() {
    for fixture in engines().await {
        if fixture.store.backend() != DbBackend::Postgres {
            // On SQLite the steps are counted, including those for skipped rows.
            continue;
        }
        let house = house(fixture).await;
        let owner = house.mine.scope.uuid();
        let text = |text: &str| -> Value { text.into() };
        let span = Span::<Uuid>::after(None);
        let last = START.ms() + i64::try_from(MANY).unwrap();
        let newest = Some(first_id_at(last - 5));
        let oldest = Some(first_id_at(START.ms() + 6));
        let runs = [
            Path::primary(),
            Path::by("runs_by_slug", &["pipeline_slug"], [text("p")]),
            Path::by("runs_by_slug", &["pipeline_slug"], [text("a")]),
            Path::by("runs_by_slug", &["pipeline_slug"], [text("q")]),
        ];
        let events = [
            Path::by("events_by_type", &["event_type"], [text("a.b")]),
            Path::by("events_by_type", &["event_type"], [text("a.a")]),
            Path::by("events_by_type", &["event_type"], [text("no.such")]),
            Path::by(
                "events_by_pipeline",
                &["pipeline_slug"],
                [text("a"), text("q")],
            ),
        ];
        let all = runs
            .map(|path| ("runs", path))
            .into_iter()
            .chain(events.map(|path| ("events", path)));
        for (table, path) in all {
            // The whole list, the newest few rows, and the oldest few.
            for span in [span, span.from(newest), span.to(oldest)] {
                for newest_first in [true, false] {
                    let span = Span {
                        newest_first,
                        ..span
                    };
                    let walk = Walk::over(table, owner, Vec::new());
                    let sql = walk.statement(&path, span, 16, DbBackend::Postgres);
                    let pages = pages(&house.fixture, sql.statement(DbBackend::Postgres)).await;
                    // The keys of a part of 16 rows are on a few pages of an index. Each row may be
                    // on a page of its own.
                    assert!(
                        pages <= 40,
                        "{pages} pages for {table} by {path:?}, {span:?}"
                    );
                }
            }
        }
    }
}

/// All rows of a list, over all its pages, and how many pages were not full.
async fn all_of<T, K: Copy>(
    limit: u64,
    part: impl AsyncFn(PageRequest<K>) -> crate::Page<T, K>,
) -> (Vec<T>, usize) {
    let (mut all, mut short) = (Vec::new(), 0);
    let mut page = PageRequest { limit, after: None };
    loop {
        let found = part(page).await;
        assert!(found.items.len() as u64 <= limit);
        short += usize::from((found.items.len() as u64) < limit);
        all.extend(found.items);
        let Some(next) = found.next else {
            return (all, short);
        };
        page.after = Some(next);
    }
}

/// Changes that make some rows differ from the others.
const VARIETY: &[(&str, &str)] = &[
    (
        "runs",
        "pipeline_slug = 'q' WHERE pipeline_slug = 'p' AND created_at % 3000 = 7",
    ),
    (
        "runs",
        "status = 'running', claim_hash = {bytes}, lease_expires_at = 9 WHERE created_at % 2 = 1",
    ),
    (
        "runs",
        "status = 'failed', lease_expires_at = NULL, finished_at = 9, sweep_at = 9 WHERE created_at % 500 = 7",
    ),
    (
        "runs",
        "external_id = 'x' || created_at WHERE created_at % 100 = 7",
    ),
    ("events", "pipeline_slug = 'q' WHERE created_at % 4000 = 7"),
    ("events", "event_type = 'c.d' WHERE created_at % 2000 = 7"),
    (
        "events",
        "pipeline_slug = NULL, event_type = 'run.created' WHERE created_at % 5 = 1",
    ),
    ("events", "pipeline_slug = NULL WHERE created_at % 3000 = 9"),
    (
        "deliveries",
        "status = 'pending', finished_at = NULL, next_attempt_at = 9 WHERE created_at % 900 = 7",
    ),
];

fn count_of<T>(found: &[T]) -> i64 {
    i64::try_from(found.len()).unwrap()
}

impl House {
    async fn lists_are_whole(&self) {
        let house = self;
        let middle = Timestamp::from_ms(START.ms() + i64::try_from(MANY).unwrap() / 2);
        for of in [&house.mine, &house.limited] {
            let reach = of
                .scope
                .pipelines()
                .map_or("TRUE", |_| "pipeline_slug = 'q'");
            let pipelines = [(None, "TRUE"), (Some("q"), "pipeline_slug = 'q'")];
            let statuses = [
                (None, "TRUE"),
                (Some(RunStatus::Failed), "status = 'failed'"),
                (Some(RunStatus::Running), "status = 'running'"),
                (Some(RunStatus::Queued), "status = 'queued'"),
            ];
            for (pipeline, here) in pipelines {
                for (status, so) in statuses {
                    for (until, then) in [
                        (None, "TRUE".to_owned()),
                        (Some(middle), format!("created_at < {}", middle.ms())),
                    ] {
                        let filter = RunFilter {
                            pipeline: pipeline.map(str::to_owned),
                            status,
                            until,
                            ..RunFilter::default()
                        };
                        let list = async |page| of.runs().runs(&filter, page).await.unwrap();
                        let (found, _) = all_of(200, list).await;
                        let sorted = found.windows(2).all(|pair| pair[0].id > pair[1].id);
                        assert!(sorted, "{filter:?}");
                        let from = format!("runs WHERE {reach} AND {here} AND {so} AND {then}");
                        let expected = house.fixture.count(&from).await;
                        assert_eq!(count_of(&found), expected, "{filter:?} {reach}");
                    }
                }
            }
            let reach = of.scope.pipelines().map_or("TRUE", |_| {
                "(pipeline_slug = 'q' OR (pipeline_slug IS NULL AND event_type <> 'run.created'))"
            });
            for event_type in [None, Some("c.d"), Some("a.b")] {
                let list = async |page| of.webhooks().events(event_type, page).await.unwrap();
                let (found, _) = all_of(200, list).await;
                assert!(found.windows(2).all(|pair| pair[0].id > pair[1].id));
                let so = event_type.map_or("TRUE".to_owned(), |t| format!("event_type = '{t}'"));
                let from = format!("events WHERE {reach} AND {so} AND publisher_id IS NOT NULL");
                let expected = house.fixture.count(&from).await;
                let told = house
                    .fixture
                    .count("events WHERE event_type LIKE 'stationmaster.%'")
                    .await;
                assert!(
                    count_of(&found) >= expected - told,
                    "{event_type:?} {reach}"
                );
                assert!(count_of(&found) <= expected, "{event_type:?} {reach}");
            }
        }
    }

    async fn common_filters_end_early(&self) {
        let house = self;
        // Two filters that each match many rows, but no row together, end early.
        house
            .fixture
            .execute(
                "UPDATE runs SET status = 'succeeded', lease_expires_at = NULL, finished_at = 9, sweep_at = 9 WHERE pipeline_slug = 'p'",
            )
            .await;
        house
            .fixture
            .execute(
                "UPDATE runs SET pipeline_slug = 'q', status = 'queued', lease_expires_at = NULL, finished_at = NULL, sweep_at = NULL WHERE created_at % 2 = 0",
            )
            .await;
        let filter = RunFilter {
            pipeline: Some("q".into()),
            status: Some(RunStatus::Succeeded),
            ..RunFilter::default()
        };
        let list = async |page| house.mine.runs().runs(&filter, page).await.unwrap();
        let (found, short) = all_of(50, list).await;
        assert!(found.is_empty());
        assert!(short > 1, "it looked through everything in one part");
        for status in ["pending", "succeeded"] {
            let filter = DeliveryFilter {
                status: Some(status.to_owned()),
                ..DeliveryFilter::default()
            };
            let list = async |page| {
                house
                    .mine
                    .webhooks()
                    .deliveries(&filter, page)
                    .await
                    .unwrap()
            };
            let (found, _) = all_of(200, list).await;
            let from = format!("deliveries WHERE status = '{status}'");
            assert_eq!(count_of(&found), house.fixture.count(&from).await);
        }
    }
}

#[tokio::test]
async fn parts_that_end_early_lose_and_repeat_nothing() {
    for fixture in engines().await {
        let house = house(fixture).await;
        let bytes = bytes(house.fixture.store.backend());
        for (table, change) in VARIETY {
            let change = change.replace("{bytes}", bytes);
            house
                .fixture
                .execute(&format!("UPDATE {table} SET {change}"))
                .await;
        }
        house.lists_are_whole().await;
        house.common_filters_end_early().await;
    }
}
