//! Sums equal the size of the rows, more than the quota is refused, and removals reduce the sum.

use std::time::Duration;

use domain::{Code, Timestamp};
use serde_json::json;

use super::*;
use crate::{
    NewOwnEvent, Scoped,
    fixture::{Fixture, context, engines, no_content},
    operations::recount::COUNTED_FOR,
    runs::tests::{at_once, code, create, house, new_run},
};

async fn publish(scoped: &Scoped, count: usize) -> Result<()> {
    let event = NewOwnEvent {
        event_type: "a.b".into(),
        data: json!({ "text": "é".repeat(500) }).into(),
        external_id: None,
        pipeline: None,
    };
    let events = vec![event; count];
    scoped
        .webhooks()
        .publish(&context(), events, true, |_| no_content())
        .await
        .map(drop)
}

async fn written_down(scoped: &Scoped) -> i64 {
    scoped.store.flush_storage().await.unwrap();
    let owner = scoped.scope.uuid();
    scoped.store.read_storage([owner]).await.unwrap()[&owner].0
}

/// The stored sum, which a count of the rows must not change.
async fn confirmed(fixture: &Fixture, scoped: &Scoped) -> i64 {
    let bytes = written_down(scoped).await;
    fixture.clock.advance(COUNTED_FOR * 2);
    let owner = scoped.scope.uuid();
    scoped.store.recount_storage(owner).await.unwrap();
    assert_eq!(written_down(scoped).await, bytes, "what the rows come to");
    bytes
}

async fn finish(scoped: &Scoped) -> Result<()> {
    let claimed = scoped
        .runs()
        .claim_runs(&context(), None, 1, at_once())
        .await?;
    let (run, token) = (&claimed[0].run, &claimed[0].token);
    let output = json!({ "rows": 7 }).into();
    let token = secrecy::ExposeSecret::expose_secret(token);
    scoped
        .runs()
        .complete_run(&context(), run.id, token, output, |_| no_content())
        .await
        .map(drop)
}

#[tokio::test]
async fn sums_say_what_the_rows_come_to() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        fixture.endpoint(mine.scope.publisher(), false).await;
        for _ in 0..5 {
            create(&mine, new_run("nightly")).await.unwrap();
        }
        publish(&mine, 7).await.unwrap();
        finish(&mine).await.unwrap();
        let full = confirmed(&fixture, &mine).await;
        assert!(full > 7 * 1000, "{full}");
        // A wrong sum is corrected.
        let owner = mine.scope.uuid();
        fixture
            .execute("UPDATE storage_usage SET bytes = bytes + 12345")
            .await;
        fixture.clock.advance(COUNTED_FOR * 2);
        fixture.store.recount_storage(owner).await.unwrap();
        assert_eq!(written_down(&mine).await, full);
        // Removed rows are subtracted.
        fixture
            .execute("UPDATE deliveries SET status = 'succeeded', next_attempt_at = NULL, finished_at = 1")
            .await;
        let (system, now) = (fixture.store.system(), fixture.store.now());
        assert!(
            system
                .operations()
                .sweep_table("deliveries", now, 1000)
                .await
                .unwrap()
                > 7
        );
        confirmed(&fixture, &mine).await;
        assert!(
            system
                .operations()
                .sweep_table("events", now, 1000)
                .await
                .unwrap()
                > 7
        );
        fixture.clock.advance(Duration::from_hours(24 * 400));
        assert_eq!(
            system
                .operations()
                .sweep_table("runs", Timestamp::from_ms(0), 1000)
                .await
                .unwrap(),
            1
        );
        let less = confirmed(&fixture, &mine).await;
        assert!(0 < less && less < full / 2, "{less} of {full}");
    }
}

#[tokio::test]
async fn who_stores_as_much_as_it_may_is_refused_until_rows_are_gone() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let theirs = house(&fixture, "b", &["nightly"]).await;
        create(&mine, new_run("nightly")).await.unwrap();
        fixture
            .execute("UPDATE publishers SET quotas = '{\"storage_bytes\": 20000}' WHERE slug = 'a'")
            .await;
        fixture
            .store
            .state::<Storage>()
            .look_again(mine.scope.uuid());
        let mut published = 0;
        let refused = loop {
            match publish(&mine, 1).await {
                Ok(()) => published += 1,
                Err(error) => break error,
            }
            assert!(published < 20, "nothing refuses it");
        };
        assert_eq!(code::<()>(Err(refused)), Code::QuotaExceeded);
        assert!(published > 5, "{published}");
        let run = create(&mine, new_run("nightly")).await.map(drop);
        assert_eq!(code(run), Code::QuotaExceeded);
        // Another process knows the sum once it is written.
        written_down(&mine).await;
        let beside = fixture.beside(&fixture.keys).await;
        let there = beside.scoped(&mine.scope);
        assert_eq!(code(publish(&there, 1).await), Code::QuotaExceeded);
        finish(&mine).await.unwrap();
        publish(&theirs, 1).await.unwrap();
        // Removing rows makes room again.
        fixture.clock.advance(Duration::from_hours(1));
        let now = fixture.store.now();
        assert!(
            fixture
                .store
                .system()
                .operations()
                .sweep_table("events", now, 1000)
                .await
                .unwrap()
                > 5
        );
        publish(&mine, 1).await.unwrap();
        // What another process removed counts at once, however old this process's sum is.
        written_down(&mine).await;
        publish(&there, 1).await.unwrap();
        beside.close().await;
    }
}
