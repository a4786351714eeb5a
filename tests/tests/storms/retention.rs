//! Finished deliveries past their time go in bounded batches, while others come and go as before.

use tests::{Site, Store, World, on_both_stores};

use super::*;

on_both_stores!(what_is_old_goes_while_the_rest_goes_on);

const OLD: i64 = 30_000;
/// Deliveries of each old event.
const ENDPOINTS: i64 = 10;
/// What one transaction removes is a whole number of these.
const BATCH: i64 = 10;
const PACE: Duration = Duration::from_millis(40);
/// Before the sweep, and during it if it is over sooner.
const LASTS: Duration = Duration::from_secs(5);
/// No live delivery waits for the sweep as a whole, only for a batch or two.
const WORST_MAX: Duration = Duration::from_secs(5);

/// Old events of the publisher's, each delivered to every endpoint by one try.
async fn grow_old(world: &World, site: &Site) {
    let id = match world.store {
        Store::Sqlite => "randomblob(16)",
        Store::Postgres => "gen_random_uuid()",
    };
    let old = (tools::now_s() - 3 * 86_400) * 1000;
    let events = format!(
        "INSERT INTO events (publisher_id, id, event_type, body, created_at) \
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) \
         SELECT p.id, {id}, 'old.event', '{{}}', {old} FROM publishers p, n",
        OLD / ENDPOINTS,
    );
    let deliveries = format!(
        "INSERT INTO deliveries \
         (publisher_id, id, event_id, endpoint_id, status, attempts, created_at, finished_at) \
         SELECT v.publisher_id, {id}, v.id, e.id, 'succeeded', 1, {old}, {old} \
         FROM events v JOIN webhook_endpoints e ON e.publisher_id = v.publisher_id \
         WHERE v.event_type = 'old.event' AND e.description = 'old'",
    );
    let attempts = format!(
        "INSERT INTO delivery_attempts (publisher_id, delivery_id, number, at, status_code, latency_ms) \
         SELECT d.publisher_id, d.id, 1, {old}, 204, 3 FROM deliveries d WHERE d.created_at = {old}",
    );
    assert_eq!(
        site.execute(&events).await,
        OLD.unsigned_abs() / ENDPOINTS.unsigned_abs()
    );
    assert_eq!(site.execute(&deliveries).await, OLD.unsigned_abs());
    // The server may have analysed the table before these rows were committed; then each try's
    // foreign key would be looked up among all of them.
    site.execute("ANALYZE deliveries").await;
    assert_eq!(site.execute(&attempts).await, OLD.unsigned_abs());
}

const OLD_DELIVERIES: &str = "deliveries d JOIN events v ON v.publisher_id = d.publisher_id AND v.id = d.event_id \
     WHERE v.event_type = 'old.event'";

/// How many old deliveries there are, again and again, until there are none.
async fn watch(site: &Site) -> Vec<i64> {
    let mut counts = vec![OLD];
    let end = Instant::now() + Duration::from_mins(2);
    while *counts.last().unwrap() > 0 {
        assert!(Instant::now() < end, "{counts:?}");
        counts.push(site.count(OLD_DELIVERIES).await);
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    counts
}

async fn what_is_old_goes_while_the_rest_goes_on(world: &World) {
    let server = world
        .start_with(&[("STATIONMASTER_CRON_DELIVERIES", "0 0 0 1 1 *")])
        .await;
    let site = Arc::clone(server.site());
    let publisher = server.publisher("acme").await;
    for _ in 0..ENDPOINTS {
        let body = json!({"url": "http://127.0.0.1:9/", "description": "old", "enabled": false});
        let call = publisher.admin.post("/v1/webhook-endpoints").json(&body);
        call.expect(201).await;
    }
    grow_old(world, &site).await;
    let tally = Tally::start(Duration::ZERO).await;
    endpoint(&publisher, &tally.url, &["*"]).await;
    let sources = [Source::new(&publisher, &[&server])];
    latencies(&sources, &tally, 0, PACE, Duration::from_secs(1)).await;
    let before = latencies(&sources, &tally, 10_000, PACE, LASTS).await;
    drained(&server, WAIT_MAX).await;
    let live = site.count("deliveries WHERE status = 'succeeded'").await - OLD;

    let swept = [
        ("STATIONMASTER_CRON_DELIVERIES", "* * * * * *"),
        ("STATIONMASTER_CRON_EVENTS", "* * * * * *"),
        ("STATIONMASTER_RETENTION_DELIVERIES_DAYS", "1"),
        ("STATIONMASTER_RETENTION_EVENTS_DAYS", "1"),
    ];
    let server = server.restart(&swept).await;
    let sources = [Source::new(&publisher, &[&server])];
    let began = Instant::now();
    let sweep = async {
        let counts = watch(&site).await;
        (counts, began.elapsed())
    };
    let (during, (counts, took)) =
        tokio::join!(latencies(&sources, &tally, 20_000, PACE, LASTS), sweep);
    eprintln!(
        "before: {}\nduring: {}\n{OLD} deliveries were swept in {:.1} s, {} states seen of it",
        shown(&before),
        shown(&during),
        took.as_secs_f64(),
        counts.len(),
    );
    went_in_batches(&counts);
    assert!(
        *during.iter().max().unwrap() < WORST_MAX,
        "{}",
        shown(&during)
    );
    all_old_is_gone(&site).await;
    drained(&server, WAIT_MAX).await;
    let kept = site.count("deliveries WHERE status = 'succeeded'").await;
    let new = i64::try_from(during.len()).unwrap();
    assert_eq!(kept, live + new, "nothing else went");
}

/// Every state that was seen is a whole number of batches away from the first.
fn went_in_batches(counts: &[i64]) {
    for pair in counts.windows(2) {
        let whole = (OLD - pair[1]) % BATCH == 0;
        assert!(pair[1] <= pair[0] && whole, "{counts:?}");
    }
    // It takes thirty of the largest batches, with rests between them.
    let seen: HashSet<i64> = counts.iter().copied().collect();
    assert!(seen.len() > 5, "it went nearly at once: {counts:?}");
}

/// The tries went with their deliveries; the events go by a sweep of their own.
async fn all_old_is_gone(site: &Site) {
    let day_ago = (tools::now_s() - 86_400) * 1000;
    let tries = format!("delivery_attempts WHERE at < {day_ago}");
    assert_eq!(site.count(&tries).await, 0);
    tools::eventually("old events go too", WAIT_MAX, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let left = site.count("events WHERE event_type = 'old.event'").await;
        (left == 0).then_some(())
    })
    .await;
}
