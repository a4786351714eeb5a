//! Endpoints, and the deliveries that events start, on both engines.

use std::time::Duration;

use domain::id::{DeliveryId, EventId};

use super::*;
use crate::{
    Delivery, DeliveryFilter, Expected, PublisherPatch, QuotasPatch,
    fixture::{Fixture, context, engines, no_content},
    operations::audit::AuditFilter,
    runs::tests::{PAGE, Slot, at_once, code, create, house, new_run, slug},
};

fn new_endpoint(event_types: &[&str]) -> NewEndpoint {
    NewEndpoint {
        url: "https://hooks.example/in".into(),
        description: None,
        event_types: event_types.iter().map(|&text| text.to_owned()).collect(),
        pipelines: None,
        headers: BTreeMap::from([("x-own".to_owned(), "1".to_owned())]),
        enabled: true,
        send_bearer: None,
        signing: Signing::Hmac,
        sending: Sending::default(),
    }
}

async fn make(scoped: &Scoped, new: NewEndpoint) -> Result<Endpoint> {
    let slot = Slot::new();
    scoped
        .webhooks()
        .create_endpoint(&context(), new, |endpoint| slot.keep(endpoint))
        .await?;
    Ok(slot.take())
}

async fn patch(scoped: &Scoped, id: EndpointId, patch: EndpointPatch) -> Result<Endpoint> {
    let slot = Slot::new();
    scoped
        .webhooks()
        .update_endpoint(
            &context(),
            id,
            None,
            |_| Ok(patch.clone()),
            |endpoint| slot.keep(endpoint),
        )
        .await?;
    Ok(slot.take())
}

async fn retry(scoped: &Scoped, id: DeliveryId) -> Result<Delivery> {
    let slot = Slot::new();
    scoped
        .webhooks()
        .retry_delivery(&context(), id, |delivery| slot.keep(delivery))
        .await?;
    Ok(slot.take())
}

async fn test(scoped: &Scoped, id: EndpointId) -> Result<Event> {
    let slot = Slot::new();
    scoped
        .webhooks()
        .test_endpoint(&context(), id, |event| slot.keep(event))
        .await?;
    Ok(slot.take())
}

async fn delete(scoped: &Scoped, id: EndpointId) -> Result<Answer> {
    scoped
        .webhooks()
        .delete_endpoint(&context(), id, None, |()| no_content())
        .await
}

async fn to(scoped: &Scoped, endpoint: &Endpoint) -> Vec<Delivery> {
    let filter = DeliveryFilter {
        endpoint: Some(endpoint.id),
        ..DeliveryFilter::default()
    };
    scoped
        .webhooks()
        .deliveries(&filter, PAGE)
        .await
        .unwrap()
        .items
}

async fn types_to(scoped: &Scoped, endpoint: &Endpoint) -> Vec<String> {
    let mut all: Vec<String> = to(scoped, endpoint)
        .await
        .into_iter()
        .map(|one| one.event_type)
        .collect();
    all.sort_unstable();
    all
}

/// The entries of the audit log about endpoints and deliveries.
async fn logged(scoped: &Scoped) -> Vec<String> {
    let page = PageRequest {
        limit: 200,
        after: None,
    };
    let rows = scoped
        .operations()
        .audit(&AuditFilter::default(), page)
        .await
        .unwrap()
        .items;
    let ours = ["endpoint", "delivery"];
    rows.into_iter()
        .rev()
        .filter(|row| ours.contains(&row.target_kind.as_str()))
        .map(|row| row.action)
        .collect()
}

async fn finish(fixture: &Fixture, status: &str) {
    let sql = format!(
        "UPDATE deliveries SET status = '{status}', finished_at = created_at, \
         next_attempt_at = NULL, attempts = 1"
    );
    fixture.execute(&sql).await;
}

#[tokio::test]
async fn an_event_goes_to_those_who_want_it() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly", "hourly"]).await;
        let theirs = house(&fixture, "b", &["nightly"]).await;
        let (my_webhooks, their_webhooks) = (mine.webhooks(), theirs.webhooks());
        let nightly = Some(vec![slug("nightly")]);
        let every = make(&mine, new_endpoint(&["*"])).await.unwrap();
        let started = make(&mine, new_endpoint(&["run.started", "run.failed"]))
            .await
            .unwrap();
        let of_runs = NewEndpoint {
            pipelines: nightly,
            ..new_endpoint(&["run.*"])
        };
        let of_nightly = make(&mine, of_runs).await.unwrap();
        let off = NewEndpoint {
            enabled: false,
            ..new_endpoint(&["*"])
        };
        let off = make(&mine, off).await.unwrap();
        assert_eq!(off.disabled_reason.as_deref(), Some("requested"));
        let foreign = make(&theirs, new_endpoint(&["*"])).await.unwrap();

        create(&mine, new_run("nightly")).await.unwrap();
        create(&mine, new_run("hourly")).await.unwrap();
        let runs = mine.runs();
        let claimed = runs.claim_runs(&context(), None, 9, at_once()).await;
        assert_eq!(claimed.unwrap().len(), 2);

        let both = ["run.created", "run.created", "run.started", "run.started"];
        assert_eq!(types_to(&mine, &every).await, both);
        assert_eq!(
            types_to(&mine, &started).await,
            ["run.started", "run.started"]
        );
        assert_eq!(
            types_to(&mine, &of_nightly).await,
            ["run.created", "run.started"]
        );
        assert!(to(&mine, &off).await.is_empty());
        assert!(to(&theirs, &foreign).await.is_empty());
        assert!(to(&theirs, &every).await.is_empty());

        let all = to(&mine, &of_nightly).await;
        let one = all
            .into_iter()
            .find(|one| one.event_type == "run.started")
            .unwrap();
        assert_eq!((one.status.as_str(), one.attempts), ("pending", 0));
        assert_eq!(one.next_attempt_at, Some(mine.store.now()));
        assert_eq!(
            my_webhooks.delivery(one.id).await.unwrap(),
            (one.clone(), vec![])
        );
        assert_eq!(code(their_webhooks.delivery(one.id).await), Code::NotFound);
        assert_eq!(code(retry(&theirs, one.id).await), Code::NotFound);
        let event = my_webhooks.event(one.event_id).await.unwrap();
        assert_eq!(event.event_type, one.event_type);
        let filter = DeliveryFilter {
            event: Some(event.id),
            ..DeliveryFilter::default()
        };
        let mine = my_webhooks.deliveries(&filter, PAGE).await.unwrap();
        assert_eq!(mine.items.len(), 3);
        let theirs = their_webhooks.deliveries(&filter, PAGE).await.unwrap();
        assert!(theirs.items.is_empty());
    }
}

#[tokio::test]
async fn events_of_one_moment_keep_their_order() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &[]).await;
        let types: Vec<String> = (0..600).map(|at| format!("x.n{at:03}")).collect();
        let (owner, types) = (mine.scope.uuid(), &types);
        mine.store
            .write(|tx| async move {
                let news: Vec<crate::webhooks::events::NewEvent<'_>> = types
                    .iter()
                    .map(|event_type| crate::webhooks::events::NewEvent {
                        event_type,
                        data: "{}",
                        pipeline: None,
                    })
                    .collect();
                crate::webhooks::events::emit_all(&tx, owner, &news).await
            })
            .await
            .unwrap();
        let mut seen = Vec::new();
        let mut page = PAGE;
        loop {
            let part = mine.webhooks().events(None, page).await.unwrap();
            seen.extend(part.items.into_iter().map(|event| event.event_type));
            let Some(next) = part.next else { break };
            page.after = Some(next);
        }
        seen.reverse();
        assert_eq!(seen, *types);
    }
}

#[tokio::test]
async fn an_endpoint_changes_and_says_so() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let made = make(&mine, new_endpoint(&["*"])).await.unwrap();
        assert!(!made.send_bearer);
        assert_eq!(mine.webhooks().endpoint(made.id).await.unwrap(), made);
        let same = EndpointPatch {
            url: Some(made.url.clone()),
            ..EndpointPatch::default()
        };
        assert_eq!(patch(&mine, made.id, same).await.unwrap(), made);
        let more = EndpointPatch {
            description: Some(Some("CI".into())),
            pipelines: Some(Some(vec![slug("nightly")])),
            event_types: Some(vec!["run.*".into()]),
            headers: Some(BTreeMap::new()),
            enabled: Some(false),
            send_bearer: Some(true),
            ..EndpointPatch::default()
        };
        let changed = patch(&mine, made.id, more).await.unwrap();
        assert_eq!(changed.revision, 2);
        assert_eq!(changed.pipelines, Some(vec![slug("nightly")]));
        assert!(!changed.enabled && changed.send_bearer && changed.headers.is_empty());
        assert_eq!(changed.disabled_reason.as_deref(), Some("requested"));
        let back = EndpointPatch {
            description: Some(None),
            pipelines: Some(None),
            enabled: Some(true),
            ..EndpointPatch::default()
        };
        let back = patch(&mine, made.id, back).await.unwrap();
        assert_eq!((&back.description, &back.pipelines), (&None, &None));
        assert_eq!((back.enabled, &back.disabled_reason), (true, &None));
        assert_eq!(
            mine.webhooks().endpoints(PAGE).await.unwrap().items,
            std::slice::from_ref(&back)
        );
        let lines = [
            "endpoint.created",
            "endpoint.updated",
            "endpoint.disabled",
            "endpoint.updated",
            "endpoint.enabled",
        ];
        assert_eq!(logged(&mine).await, lines);

        let stale = mine
            .webhooks()
            .update_endpoint(
                &context(),
                made.id,
                Some(Expected::Revision(1)),
                |_| Ok(EndpointPatch::default()),
                |_| no_content(),
            )
            .await;
        assert_eq!(code(stale), Code::PreconditionFailed);
        let theirs = house(&fixture, "b", &["hourly"]).await;
        let none = EndpointPatch::default();
        assert_eq!(code(patch(&theirs, made.id, none).await), Code::NotFound);
        assert_eq!(
            code(theirs.webhooks().endpoint(made.id).await),
            Code::NotFound
        );
        assert_eq!(code(delete(&theirs, made.id).await), Code::NotFound);
        assert_eq!(code(test(&theirs, made.id).await), Code::NotFound);
    }
}

#[tokio::test]
async fn filters_that_name_nothing_are_refused() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        house(&fixture, "b", &["theirs"]).await;
        for bad in ["run*", "", "Run.*"] {
            let refused = make(&mine, new_endpoint(&["*", bad])).await;
            assert_eq!(code(refused), Code::ValidationFailed);
        }
        let made = make(&mine, new_endpoint(&["*"])).await.unwrap();
        for name in ["theirs", "absent"] {
            let pipelines = Some(vec![slug("nightly"), slug(name)]);
            let new = NewEndpoint {
                pipelines: pipelines.clone(),
                ..new_endpoint(&["*"])
            };
            let Err(StoreError::Refused(problem)) = make(&mine, new).await else {
                panic!()
            };
            assert_eq!(problem.errors[0].pointer, "/pipelines/1");
            let change = EndpointPatch {
                pipelines: Some(pipelines),
                ..EndpointPatch::default()
            };
            assert_eq!(
                code(patch(&mine, made.id, change).await),
                Code::ValidationFailed
            );
        }
    }
}

#[tokio::test]
async fn the_quota_of_endpoints_holds() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &[]).await;
        let change = PublisherPatch {
            quotas: QuotasPatch {
                webhook_endpoints: Some(1),
                ..QuotasPatch::default()
            },
            ..PublisherPatch::default()
        };
        let (system, id) = (fixture.store.system(), mine.scope.publisher());
        system
            .publishers()
            .update_publisher(&context(), id, change, None, |_| no_content())
            .await
            .unwrap();
        let first = make(&mine, new_endpoint(&["*"])).await.unwrap();
        assert_eq!(
            code(make(&mine, new_endpoint(&["*"])).await),
            Code::QuotaExceeded
        );
        delete(&mine, first.id).await.unwrap();
        make(&mine, new_endpoint(&["*"])).await.unwrap();
    }
}

#[tokio::test]
async fn a_seeded_publishers_endpoints_send_the_bearer_by_default() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &[]).await;
        fixture
            .execute("UPDATE credentials SET source = 'seed' WHERE kind = 'admin'")
            .await;
        assert!(make(&mine, new_endpoint(&["*"])).await.unwrap().send_bearer);
        let new = NewEndpoint {
            send_bearer: Some(false),
            ..new_endpoint(&["*"])
        };
        assert!(!make(&mine, new).await.unwrap().send_bearer);
    }
}

#[tokio::test]
async fn a_deleted_endpoint_takes_its_pending_deliveries_along() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let kept = make(&mine, new_endpoint(&["*"])).await.unwrap();
        let gone = make(&mine, new_endpoint(&["*"])).await.unwrap();
        create(&mine, new_run("nightly")).await.unwrap();
        finish(&fixture, "succeeded").await;
        create(&mine, new_run("nightly")).await.unwrap();
        delete(&mine, gone.id).await.unwrap();
        let mut statuses: Vec<String> = to(&mine, &gone)
            .await
            .into_iter()
            .map(|one| one.status)
            .collect();
        statuses.sort_unstable();
        assert_eq!(statuses, ["cancelled", "succeeded"]);
        let pending = DeliveryFilter {
            status: Some("pending".into()),
            ..DeliveryFilter::default()
        };
        let left = mine
            .webhooks()
            .deliveries(&pending, PAGE)
            .await
            .unwrap()
            .items;
        assert_eq!(
            left.iter().map(|one| one.endpoint_id).collect::<Vec<_>>(),
            [kept.id]
        );
        assert_eq!(
            fixture.count("deliveries WHERE status = 'cancelled'").await,
            1
        );
        assert_eq!(
            code(mine.webhooks().endpoint(gone.id).await),
            Code::NotFound
        );
        assert_eq!(code(delete(&mine, gone.id).await), Code::NotFound);
        create(&mine, new_run("nightly")).await.unwrap();
        assert_eq!(to(&mine, &gone).await.len(), 2);
        let cancelled = to(&mine, &gone).await.remove(0).id;
        assert_eq!(code(retry(&mine, cancelled).await), Code::EndpointDisabled);
    }
}

#[tokio::test]
async fn a_finished_delivery_can_be_tried_once_more() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let endpoint = make(&mine, new_endpoint(&["*"])).await.unwrap();
        create(&mine, new_run("nightly")).await.unwrap();
        let first = to(&mine, &endpoint).await.remove(0);
        fixture.clock.advance(Duration::from_secs(5));
        let hastened = retry(&mine, first.id).await.unwrap();
        assert_eq!(hastened.next_attempt_at, Some(mine.store.now()));
        assert_eq!((hastened.status, hastened.attempts), (first.status, 0));
        finish(&fixture, "failed").await;
        let again = retry(&mine, first.id).await.unwrap();
        assert_eq!((again.status.as_str(), again.attempts), ("pending", 1));
        assert_eq!(again.next_attempt_at, Some(mine.store.now()));
        assert_eq!(
            (again.finished_at, again.event_type.as_str()),
            (None, "run.created")
        );
        assert_eq!(to(&mine, &endpoint).await, [again]);
        assert_eq!(
            logged(&mine).await,
            ["endpoint.created", "delivery.retried", "delivery.retried"]
        );

        finish(&fixture, "succeeded").await;
        let off = EndpointPatch {
            enabled: Some(false),
            ..EndpointPatch::default()
        };
        patch(&mine, endpoint.id, off).await.unwrap();
        assert_eq!(code(retry(&mine, first.id).await), Code::EndpointDisabled);
        let nobody = DeliveryId::generate(mine.store.now());
        assert_eq!(code(retry(&mine, nobody).await), Code::NotFound);
    }
}

#[tokio::test]
async fn attempts_are_shown_oldest_first() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let endpoint = make(&mine, new_endpoint(&["*"])).await.unwrap();
        create(&mine, new_run("nightly")).await.unwrap();
        let delivery = to(&mine, &endpoint).await.remove(0);
        fixture
            .execute(
                "INSERT INTO delivery_attempts \
                 (publisher_id, delivery_id, number, at, status_code, error, latency_ms) \
                 SELECT publisher_id, id, n, 1000 * n, 500, NULL, 7 FROM deliveries \
                 CROSS JOIN (SELECT 2 AS n UNION ALL SELECT 1) numbers",
            )
            .await;
        let (_, attempts) = mine.webhooks().delivery(delivery.id).await.unwrap();
        let seen: Vec<_> = attempts
            .iter()
            .map(|one| (one.number, one.at.ms(), one.status_code))
            .collect();
        assert_eq!(seen, [(1, 1000, Some(500)), (2, 2000, Some(500))]);
    }
}

#[tokio::test]
async fn a_test_event_goes_to_one_endpoint_past_its_filters() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let other = make(&mine, new_endpoint(&["*"])).await.unwrap();
        let narrow = make(&mine, new_endpoint(&["run.failed"])).await.unwrap();
        let event = test(&mine, narrow.id).await.unwrap();
        let heard = tokio::time::timeout(Duration::from_secs(5), mine.store.deliveries_written());
        let told: Vec<_> = heard.await.unwrap().endpoints.into_iter().collect();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].endpoint, narrow.id);
        assert_eq!(event.event_type, "stationmaster.test");
        assert!(event.body.contains(&narrow.id.to_string()));
        assert_eq!(mine.webhooks().event(event.id).await.unwrap(), event);
        let sent: Vec<EventId> = to(&mine, &narrow)
            .await
            .iter()
            .map(|one| one.event_id)
            .collect();
        assert_eq!(sent, [event.id]);
        assert!(to(&mine, &other).await.is_empty());
        let off = EndpointPatch {
            enabled: Some(false),
            ..EndpointPatch::default()
        };
        patch(&mine, narrow.id, off).await.unwrap();
        assert_eq!(code(test(&mine, narrow.id).await), Code::EndpointDisabled);
    }
}
