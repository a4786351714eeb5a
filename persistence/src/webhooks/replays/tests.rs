//! Replays, on both engines.

use std::time::Duration;

use super::*;
use crate::{
    fixture::{Fixture, context, engines},
    runs::tests::{PAGE, Slot, code, house},
};

const HOUR: Duration = Duration::from_hours(1);

async fn start(scoped: &Scoped, to: EndpointId, new: NewReplay) -> Result<(Replay, bool)> {
    let slot = Slot::new();
    scoped
        .webhooks()
        .start_replay(&context(), to, new, |started| slot.keep(started))
        .await?;
    Ok(slot.take())
}

async fn cancel(scoped: &Scoped, to: EndpointId, id: ReplayId) -> Replay {
    let slot = Slot::new();
    scoped
        .webhooks()
        .cancel_replay(&context(), to, id, |replay| slot.keep(replay))
        .await
        .unwrap();
    slot.take()
}

fn since(fixture: &Fixture, ago: Duration) -> NewReplay {
    NewReplay {
        since: fixture.store.now().minus(ago),
        until: None,
        only_failed: false,
        include_pending: false,
        event_types: None,
    }
}

/// Runs rounds until no replay progresses. Returns how many deliveries were written.
async fn work(fixture: &Fixture) -> u64 {
    let mut queued = 0;
    loop {
        let worked = fixture
            .store
            .system()
            .webhooks()
            .work_replays()
            .await
            .unwrap();
        queued += worked.queued;
        if !worked.moved {
            return queued;
        }
    }
}

/// Ends all pending deliveries with this status.
async fn end_all(fixture: &Fixture, status: &str) {
    let sql = format!(
        "UPDATE deliveries SET status = '{status}', next_attempt_at = NULL, finished_at = 1 \
         WHERE status = 'pending'"
    );
    fixture.execute(&sql).await;
}

#[tokio::test]
async fn events_since_a_time_are_delivered_again() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let of = acme.scope.publisher();
        fixture.event(of).await;
        fixture.clock.advance(2 * HOUR);
        let events = [fixture.event(of).await, fixture.event(of).await];
        fixture.clock.advance(HOUR);
        let endpoint = fixture.endpoint(of, false).await;
        let (replay, existed) = start(&acme, endpoint, since(&fixture, HOUR)).await.unwrap();
        assert!(!existed);
        let (same, existed) = start(&acme, endpoint, since(&fixture, HOUR)).await.unwrap();
        assert_eq!((same.id, existed), (replay.id, true));
        assert_eq!(work(&fixture).await, 2);
        let now = acme.webhooks().replay(endpoint, replay.id).await.unwrap();
        assert_eq!((now.matched, now.queued, now.done), (2, 2, 0));
        assert_eq!(now.status, "running", "until its deliveries have ended");
        let filter = crate::DeliveryFilter::default();
        let sent = acme
            .webhooks()
            .deliveries(&filter, PAGE)
            .await
            .unwrap()
            .items;
        assert!(
            sent.iter()
                .all(|delivery| events.contains(&delivery.event_id))
        );
        assert_eq!(fixture.count("deliveries WHERE precedence = 1").await, 2);
        end_all(&fixture, "succeeded").await;
        work(&fixture).await;
        let now = acme.webhooks().replay(endpoint, replay.id).await.unwrap();
        assert_eq!((now.status.as_str(), now.done), ("succeeded", 2));
        // After the end, the same filter starts a new replay.
        let (_, existed) = start(&acme, endpoint, since(&fixture, HOUR)).await.unwrap();
        assert!(!existed);
        assert_eq!(
            acme.webhooks()
                .replays(endpoint, PAGE)
                .await
                .unwrap()
                .items
                .len(),
            2
        );
    }
}

#[tokio::test]
async fn only_what_failed_and_never_arrived_is_sent_if_that_is_wished() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let of = acme.scope.publisher();
        let endpoint = fixture.endpoint(of, false).await;
        let now = fixture.store.now();
        for statuses in [
            &["failed"][..],
            &["succeeded"],
            &["failed", "succeeded"],
            &[],
            &["pending"],
        ] {
            let event = fixture.event(of).await;
            for status in statuses {
                fixture.delivery(of, event, endpoint, now).await;
                if *status != "pending" {
                    end_all(&fixture, status).await;
                }
            }
        }
        fixture.clock.advance(HOUR);
        let failed = NewReplay {
            only_failed: true,
            include_pending: false,
            ..since(&fixture, 2 * HOUR)
        };
        start(&acme, endpoint, failed).await.unwrap();
        assert_eq!(work(&fixture).await, 1);
        // Deliveries that are pending now are left out of the next replay.
        start(&acme, endpoint, since(&fixture, 2 * HOUR))
            .await
            .unwrap();
        assert_eq!(work(&fixture).await, 3);
        let types = NewReplay {
            event_types: Some(vec!["order.*".into()]),
            ..since(&fixture, 2 * HOUR)
        };
        start(&acme, endpoint, types).await.unwrap();
        assert_eq!(work(&fixture).await, 0);
    }
}

#[tokio::test]
async fn only_so_many_deliveries_of_a_replay_wait_at_a_time() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let of = acme.scope.publisher();
        let endpoint = fixture.endpoint(of, false).await;
        let count = usize::try_from(REPLAY_PENDING).unwrap() + 130;
        let events = (0..count).map(|_| crate::NewOwnEvent {
            event_type: "order.paid".into(),
            data: json!(1).into(),
            external_id: None,
            pipeline: None,
        });
        acme.webhooks()
            .publish(&context(), events.collect(), true, |_| {
                crate::store::change::nothing()
            })
            .await
            .unwrap();
        // There are so many deliveries that they have to be spread first.
        while fixture
            .store
            .system()
            .webhooks()
            .spread(of, 256)
            .await
            .unwrap()
            > 0
        {}
        end_all(&fixture, "failed").await;
        let (replay, _) = start(&acme, endpoint, since(&fixture, HOUR)).await.unwrap();
        let limit = u64::try_from(REPLAY_PENDING).unwrap();
        assert_eq!(work(&fixture).await, limit);
        end_all(&fixture, "succeeded").await;
        assert_eq!(
            work(&fixture).await,
            130,
            "no event is left out, none comes twice"
        );
        let half = acme.webhooks().replay(endpoint, replay.id).await.unwrap();
        assert_eq!((half.queued, half.done), (630, 500));
        let ended = cancel(&acme, endpoint, replay.id).await;
        assert_eq!((ended.status.as_str(), ended.done), ("cancelled", 630));
        assert_eq!(
            fixture.count("deliveries WHERE status = 'pending'").await,
            0
        );
        assert_eq!(cancel(&acme, endpoint, replay.id).await, ended);
        assert_eq!(
            fixture
                .store
                .system()
                .webhooks()
                .work_replays()
                .await
                .unwrap()
                .running,
            0
        );
    }
}

#[tokio::test]
async fn a_replay_waits_for_its_endpoint_and_is_nobody_elses() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &[]).await;
        let zeta = house(&fixture, "zeta", &[]).await;
        let of = acme.scope.publisher();
        let endpoint = fixture.endpoint(of, false).await;
        fixture.event(of).await;
        let theirs = start(&zeta, endpoint, since(&fixture, HOUR)).await;
        assert_eq!(code(theirs), Code::NotFound);
        let future = NewReplay {
            since: fixture.store.now().plus(HOUR),
            ..since(&fixture, HOUR)
        };
        assert_eq!(
            code(start(&acme, endpoint, future).await),
            Code::ValidationFailed
        );
        let (replay, _) = start(&acme, endpoint, since(&fixture, HOUR)).await.unwrap();
        assert_eq!(
            code(zeta.webhooks().replay(endpoint, replay.id).await),
            Code::NotFound
        );
        fixture
            .execute("UPDATE webhook_endpoints SET enabled = FALSE")
            .await;
        assert_eq!(work(&fixture).await, 0);
        assert_eq!(
            code(start(&acme, endpoint, since(&fixture, 2 * HOUR)).await),
            Code::EndpointDisabled
        );
        fixture
            .execute("UPDATE webhook_endpoints SET enabled = TRUE")
            .await;
        assert_eq!(work(&fixture).await, 1);
        acme.webhooks()
            .delete_endpoint(&context(), endpoint, None, |()| {
                crate::store::change::nothing()
            })
            .await
            .unwrap();
        assert_eq!(fixture.count("replays WHERE status = 'running'").await, 0);
    }
}
