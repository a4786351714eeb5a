//! Feeds of events, on both engines.

use std::{sync::Arc, time::Duration};

use domain::slug::Slug;
use sea_orm::ActiveValue::Set;

use super::*;
use crate::{
    Scope,
    fixture::{Fixture, engines},
    runs::tests::house,
};

fn every() -> Vec<Filter> {
    vec![Filter::parse("*").unwrap()]
}

/// An event that was made `ago` before now and is committed now.
async fn event_of(fixture: &Fixture, scoped: &Scoped, event_type: &str, ago: Duration) -> EventId {
    let id = EventId::generate(fixture.store.now().minus(ago));
    fixture
        .insert(events::ActiveModel {
            publisher_id: Set(scoped.scope.uuid()),
            id: Set(id.uuid()),
            event_type: Set(event_type.to_owned()),
            body: Set(format!(r#"{{"id":"{id}"}}"#)),
            created_at: Set(fixture.store.now().ms()),
            pipeline_slug: Set(None),
            external_id: Set(None),
        })
        .await;
    id
}

async fn event(fixture: &Fixture, scoped: &Scoped, event_type: &str) -> EventId {
    fixture.clock.advance(Duration::from_millis(5));
    event_of(fixture, scoped, event_type, Duration::ZERO).await
}

/// All events that the feed returns now.
async fn all(feed: &mut Feed) -> Vec<EventId> {
    let mut found = Vec::new();
    loop {
        let some = feed.next().await.unwrap();
        found.extend(some.iter().map(|event| event.id));
        if some.is_empty() && !feed.is_behind() {
            return found;
        }
    }
}

#[tokio::test]
async fn a_feed_hands_out_what_an_endpoint_would_be_sent() {
    for fixture in engines().await {
        let (acme, other) = (
            house(&fixture, "acme", &[]).await,
            house(&fixture, "other", &[]).await,
        );
        event(&fixture, &acme, "order.paid").await;
        let filters = ["order.*", "stationmaster.*"];
        let filters = filters.map(|text| Filter::parse(text).unwrap()).to_vec();
        let mut feed = acme.webhooks().feed(filters, None).await.unwrap();
        assert_eq!(all(&mut feed).await, [], "nothing from before");
        let mut wanted = Vec::new();
        for _ in 0..3 {
            wanted.push(event(&fixture, &acme, "order.paid").await);
            event(&fixture, &acme, "stock.low").await;
            event(&fixture, &acme, "stationmaster.test").await;
            event(&fixture, &other, "order.paid").await;
        }
        wanted.push(event(&fixture, &acme, "stationmaster.token.rotated").await);
        assert_eq!(all(&mut feed).await, wanted);
        assert_eq!(all(&mut feed).await, []);
    }
}

#[tokio::test]
async fn what_commits_late_is_not_passed_over() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let mut feed = acme.webhooks().feed(every(), None).await.unwrap();
        for _ in 0..3 {
            event(&fixture, &acme, "a").await;
        }
        assert_eq!(all(&mut feed).await.len(), 3);
        // Slightly late: found at the next look.
        let late = event_of(&fixture, &acme, "a", Duration::from_millis(12)).await;
        assert_eq!(all(&mut feed).await, [late]);
        // Very late: found by counting.
        fixture.clock.advance(Duration::from_secs(50));
        let next = event(&fixture, &acme, "a").await;
        assert_eq!(all(&mut feed).await, [next]);
        let late = event_of(&fixture, &acme, "a", Duration::from_secs(49)).await;
        fixture.clock.advance(Duration::from_secs(1));
        assert_eq!(all(&mut feed).await, [late]);
        assert_eq!(all(&mut feed).await, []);
    }
}

#[tokio::test]
async fn what_is_settled_is_forgotten() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let mut feed = acme.webhooks().feed(every(), None).await.unwrap();
        for _ in 0..10 {
            event(&fixture, &acme, "a").await;
        }
        assert_eq!(all(&mut feed).await.len(), 10);
        assert_eq!(feed.seen.len(), 10);
        fixture.clock.advance(Duration::from_secs(61));
        let last = event(&fixture, &acme, "a").await;
        assert_eq!(all(&mut feed).await, [last]);
        assert_eq!(feed.seen.len(), 1);
        fixture.clock.advance(Duration::from_secs(61));
        assert_eq!(all(&mut feed).await, []);
        assert_eq!(feed.seen.len(), 0);
    }
}

#[tokio::test]
async fn another_feed_goes_on_where_one_ended() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        event(&fixture, &acme, "a").await;
        fixture.clock.advance(Duration::from_secs(30));
        let mut first = acme.webhooks().feed(every(), None).await.unwrap();
        let beginning = first.beginning();
        let one = event(&fixture, &acme, "a").await;
        assert_eq!(all(&mut first).await, [one]);
        fixture.clock.advance(Duration::from_hours(1));
        let (two, three) = (
            event(&fixture, &acme, "a").await,
            event(&fixture, &acme, "a").await,
        );
        for (cursor, missed) in [
            (beginning, vec![one, two, three]),
            (first.after(one), vec![one, two, three]),
            (first.after(three), vec![two, three]),
        ] {
            let mut next = acme.webhooks().feed(every(), Some(cursor)).await.unwrap();
            assert_eq!(all(&mut next).await, missed, "not what came before it all");
        }
    }
}

#[tokio::test]
async fn much_is_read_in_parts() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let mut feed = acme.webhooks().feed(every(), None).await.unwrap();
        let cursor = feed.beginning();
        let mut rows = Vec::new();
        for _ in 0..2500_u32 {
            fixture.clock.advance(Duration::from_millis(100));
            let id = EventId::generate(fixture.store.now());
            rows.push(events::Model {
                publisher_id: acme.scope.uuid(),
                id: id.uuid(),
                event_type: "a".into(),
                body: "{}".into(),
                created_at: fixture.store.now().ms(),
                pipeline_slug: None,
                external_id: None,
            });
        }
        let ids: Vec<EventId> = rows.iter().map(|row| EventId::from_uuid(row.id)).collect();
        let rows = &rows;
        fixture
            .store
            .write(|tx| async move {
                crate::store::sql::insert(tx.db(), rows.clone(), "")
                    .await
                    .map(drop)
            })
            .await
            .unwrap();
        assert_eq!(all(&mut feed).await, ids);
        assert!(feed.seen.len() < 700, "{}", feed.seen.len());
        let mut again = acme.webhooks().feed(every(), Some(cursor)).await.unwrap();
        let first = again.next().await.unwrap();
        assert!(first.len() == READ && again.is_behind());
        assert_eq!(all(&mut again).await, ids[READ..]);
    }
}

#[tokio::test]
async fn a_limited_token_follows_what_it_may_read() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &["nightly", "weekly"]).await;
        let slugs: Arc<[Slug]> = [Slug::parse("nightly").unwrap()].into();
        let limited = Scoped {
            store: acme.store.clone(),
            scope: Scope::of_row(acme.scope.uuid(), Some(slugs)),
        };
        let mut feed = limited.webhooks().feed(every(), None).await.unwrap();
        let (plain, here) = (
            event(&fixture, &acme, "a").await,
            event(&fixture, &acme, "b").await,
        );
        event(&fixture, &acme, "c").await;
        for (name, pipeline) in [("b", "nightly"), ("c", "weekly")] {
            let sql = format!(
                "UPDATE events SET pipeline_slug = '{pipeline}' WHERE event_type = '{name}'"
            );
            fixture.execute(&sql).await;
        }
        assert_eq!(all(&mut feed).await, [plain, here]);
    }
}

#[tokio::test]
async fn whoever_follows_is_woken() {
    for fixture in engines().await {
        let (acme, other) = (
            house(&fixture, "acme", &["nightly"]).await,
            house(&fixture, "other", &["nightly"]).await,
        );
        let mut changes = acme.webhooks().watch_events();
        crate::runs::tests::create(&other, crate::runs::tests::new_run("nightly"))
            .await
            .unwrap();
        changes.mark_unchanged();
        crate::runs::tests::create(&acme, crate::runs::tests::new_run("nightly"))
            .await
            .unwrap();
        let woken = tokio::time::timeout(Duration::from_secs(5), changes.changed()).await;
        woken.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_hides_nothing() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let mut feed = acme.webhooks().feed(every(), None).await.unwrap();
        let before = event(&fixture, &acme, "order.paid").await;
        assert_eq!(all(&mut feed).await, [before]);
        let back = Duration::from_hours(1);
        domain::Clock::steer(&*fixture.clock, fixture.store.now().minus(back));
        let after = event(&fixture, &acme, "order.paid").await;
        assert_eq!(all(&mut feed).await, [after]);
        // A feed with a cursor in the future finds it, too.
        let cursor = feed.after(before);
        let mut resumed = acme.webhooks().feed(every(), Some(cursor)).await.unwrap();
        assert!(all(&mut resumed).await.contains(&after));
        fixture.store.close().await;
    }
}
