//! Publishing, on both engines.

use std::sync::Arc;

use domain::{Code, slug::Slug};
use serde_json::json;

use super::*;
use crate::{
    DeliveryFilter, Scope, Store,
    fixture::{context, engines},
    runs::tests::{PAGE, Slot, code, house},
};

fn order(name: Option<&str>, pipeline: Option<&str>) -> NewOwnEvent {
    NewOwnEvent {
        event_type: "order.paid".into(),
        data: json!({ "n": 1 }).into(),
        external_id: name.map(str::to_owned),
        pipeline: pipeline.map(str::to_owned),
    }
}

async fn publish(scoped: &Scoped, events: Vec<NewOwnEvent>) -> Result<Vec<PublishedEvent>> {
    let slot = Slot::new();
    scoped
        .webhooks()
        .publish(&context(), events, true, |published| slot.keep(published))
        .await?;
    Ok(slot.take())
}

fn limited(all: &Scoped, pipeline: &str) -> Scoped {
    let slugs: Arc<[Slug]> = [Slug::parse(pipeline).unwrap()].into();
    Scoped {
        store: all.store.clone(),
        scope: Scope::of_row(all.scope.uuid(), Some(slugs)),
    }
}

async fn events_kept(store: &Store, scoped: &Scoped) -> usize {
    assert_eq!(store.now(), scoped.store.now());
    scoped
        .webhooks()
        .events(None, PAGE)
        .await
        .unwrap()
        .items
        .len()
}

#[tokio::test]
async fn only_what_somebody_wants_costs_a_delivery() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &["nightly"]).await;
        let endpoint = fixture.endpoint(acme.scope.publisher(), false).await;
        fixture
            .execute(r#"UPDATE webhook_endpoints SET event_types = '["order.*"]'"#)
            .await;
        let other = NewOwnEvent {
            event_type: "stock.low".into(),
            ..order(None, None)
        };
        let published = publish(
            &acme,
            vec![order(None, None), other, order(None, Some("nightly"))],
        )
        .await
        .unwrap();
        assert!(published.iter().all(|one| !one.existed));
        let ids: Vec<_> = published.iter().map(|one| one.event.id).collect();
        assert!(ids.is_sorted(), "in the order given");
        let filter = DeliveryFilter {
            endpoint: Some(endpoint),
            ..DeliveryFilter::default()
        };
        let deliveries = acme
            .webhooks()
            .deliveries(&filter, PAGE)
            .await
            .unwrap()
            .items;
        assert_eq!(deliveries.len(), 2);
        assert_eq!(events_kept(&fixture.store, &acme).await, 3);
        let event = acme.webhooks().event(ids[0]).await.unwrap();
        assert_eq!(event, published[0].event);
        assert!(event.body.contains(r#""data":{"n":1}"#), "{}", event.body);
    }
}

#[tokio::test]
async fn a_name_belongs_to_one_event_of_a_publisher() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let zeta = house(&fixture, "zeta", &[]).await;
        fixture.endpoint(acme.scope.publisher(), false).await;
        let twice = vec![order(Some("a"), None), order(Some("a"), None)];
        let first = publish(&acme, twice).await.unwrap();
        assert_eq!(first[0].event, first[1].event);
        assert_eq!((first[0].existed, first[1].existed), (false, true));
        let mixed = vec![order(Some("b"), None), order(Some("a"), None)];
        let second = publish(&acme, mixed).await.unwrap();
        assert_eq!(second[1].event, first[0].event);
        assert_eq!((second[0].existed, second[1].existed), (false, true));
        let theirs = publish(&zeta, vec![order(Some("a"), None)]).await.unwrap();
        assert!(!theirs[0].existed);
        assert_eq!(events_kept(&fixture.store, &acme).await, 2);
        assert_eq!(fixture.count("deliveries").await, 2);
    }
}

#[tokio::test]
async fn a_call_is_done_as_a_whole_or_not_at_all() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &["nightly"]).await;
        let bad = vec![order(Some("a"), None), order(Some("b"), Some("none-such"))];
        let problem = match publish(&acme, bad).await {
            Err(StoreError::Refused(problem)) => problem,
            other => panic!("{other:?}"),
        };
        assert_eq!(problem.errors[0].pointer, "/events/1/pipeline");
        assert_eq!(events_kept(&fixture.store, &acme).await, 0);
        // The external identifier is still free.
        assert!(!publish(&acme, vec![order(Some("a"), None)]).await.unwrap()[0].existed);
    }
}

#[tokio::test]
async fn a_limited_token_publishes_in_its_own_pipelines_or_in_none() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &["nightly", "weekly"]).await;
        let nightly = limited(&acme, "nightly");
        publish(
            &nightly,
            vec![order(None, Some("nightly")), order(None, None)],
        )
        .await
        .unwrap();
        let elsewhere = publish(&nightly, vec![order(None, Some("weekly"))]).await;
        assert_eq!(code(elsewhere), Code::ValidationFailed);
        publish(&acme, vec![order(Some("w"), Some("weekly"))])
            .await
            .unwrap();
        let unseen = publish(&nightly, vec![order(Some("w"), None)]).await;
        assert_eq!(code(unseen), Code::ValidationFailed);
        assert_eq!(events_kept(&fixture.store, &acme).await, 3);
    }
}

#[tokio::test]
async fn many_callers_share_a_commit_and_none_of_their_events_is_lost() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        fixture.endpoint(acme.scope.publisher(), false).await;
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..40 {
            let acme = acme.clone();
            callers.spawn(async move {
                // Every fourth caller uses the same external identifier as the one before.
                let name = format!("n{}", caller / 4);
                let events = vec![order(Some(&name), None), order(None, None)];
                let refused = vec![order(None, None), order(None, Some("none-such"))];
                assert!(publish(&acme, refused).await.is_err());
                publish(&acme, events).await.unwrap()
            });
        }
        let all = callers.join_all().await;
        let fresh = all.iter().flatten().filter(|one| !one.existed).count();
        assert_eq!(fresh, 50);
        assert_eq!(fixture.count("events").await, 50);
        assert_eq!(fixture.count("deliveries").await, 50);
    }
}
