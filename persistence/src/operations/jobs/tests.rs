use std::time::Duration;

use serde_json::json;

use crate::fixture::{START, engines};

const LEASE: Duration = Duration::from_mins(5);
const HOUR: Duration = Duration::from_hours(1);

#[tokio::test]
async fn a_job_goes_to_one_process_when_it_is_due() {
    for fixture in engines().await {
        let (system, clock) = (fixture.store.system().operations(), &fixture.clock);
        let first = START.plus(HOUR);
        assert!(
            !system.take_job("events", "a", LEASE, first).await.unwrap(),
            "not due yet"
        );
        clock.advance(HOUR);
        let second = first.plus(HOUR);
        assert!(system.take_job("events", "a", LEASE, second).await.unwrap());
        assert!(
            !system.take_job("events", "b", LEASE, second).await.unwrap(),
            "it is leased"
        );
        assert!(!system.keep_job("events", "b", LEASE).await.unwrap());

        clock.advance(LEASE / 2);
        assert!(system.keep_job("events", "a", LEASE).await.unwrap());
        clock.advance(LEASE / 2);
        assert!(
            !system.take_job("events", "b", LEASE, second).await.unwrap(),
            "it was kept"
        );
        clock.advance(LEASE / 2);
        assert!(
            system.take_job("events", "b", LEASE, second).await.unwrap(),
            "it was lost"
        );

        let counts = json!({ "removed": 3 });
        system
            .finish_job("events", "a", second, &counts, None)
            .await
            .unwrap();
        assert_eq!(
            system.jobs().await.unwrap()[0].finished_at,
            None,
            "it was b's"
        );
        system
            .finish_job("events", "b", second, &counts, None)
            .await
            .unwrap();
        let row = system.jobs().await.unwrap().remove(0);
        assert_eq!((row.due_at, row.counts), (second, Some(counts)));
        assert_eq!(row.finished_at, Some(fixture.store.now()));
        assert!(!system.take_job("events", "a", LEASE, second).await.unwrap());
    }
}

#[tokio::test]
async fn a_failure_keeps_the_last_good_run_and_a_denser_schedule_counts_at_once() {
    for fixture in engines().await {
        let system = fixture.store.system().operations();
        assert!(system.take_job("runs", "a", LEASE, START).await.unwrap());
        let day = START.plus(24 * HOUR);
        system
            .finish_job("runs", "a", START, &json!({ "removed": 1 }), None)
            .await
            .unwrap();
        assert!(system.take_job("runs", "a", LEASE, START).await.unwrap());
        system
            .finish_job("runs", "a", day, &json!({}), Some("the disk is full"))
            .await
            .unwrap();
        let row = system.jobs().await.unwrap().remove(0);
        assert_eq!(row.error.as_deref(), Some("the disk is full"));
        assert_eq!(row.counts, Some(json!({ "removed": 1 })));
        assert_eq!((row.finished_at, row.due_at), (Some(START), day));

        let hour = START.plus(HOUR);
        assert!(!system.take_job("runs", "a", LEASE, hour).await.unwrap());
        assert_eq!(system.jobs().await.unwrap()[0].due_at, hour);
    }
}
