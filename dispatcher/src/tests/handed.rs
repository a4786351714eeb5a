//! What a commit hands over.

use super::*;

#[tokio::test]
async fn an_event_after_a_pause_goes_out_at_once() {
    let world = World::new("5s").await;
    let receiver = Receiver::start(vec![reply(204)]).await;
    let endpoint = world.endpoint(receiver.url(), false).await;
    let (dispatcher, stop) = world.start();
    world.event(endpoint).await;
    world.until_status(endpoint, "succeeded").await;
    let mut took = Vec::new();
    for round in 0..7 {
        // What was read of the endpoint is too old by then.
        tokio::time::sleep(Duration::from_millis(1050)).await;
        world.event(endpoint).await;
        let began = Instant::now();
        while receiver.received().len() < round + 2 {
            assert!(began.elapsed() < Duration::from_secs(5), "it does not come");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        took.push(began.elapsed());
    }
    took.sort();
    // One that waits for the next turn of the loop waits for an eighth of a second.
    assert!(took[3] < Duration::from_millis(60), "{took:?}");
    world.until_status(endpoint, "succeeded").await;
    assert_eq!(receiver.received().len(), 8, "each came once");
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn what_is_published_while_a_backlog_is_loaded_comes_once() {
    let world = World::new("5s").await;
    let receiver = Receiver::start(vec![reply(204)]).await;
    let endpoint = world.endpoint(receiver.url(), false).await;
    for _ in 0..150 {
        world.event(endpoint).await;
    }
    let (dispatcher, stop) = world.start();
    for _ in 0..150 {
        world.event(endpoint).await;
    }
    let done = |all: &[Delivery]| all.iter().all(|one| one.status == "succeeded");
    world.until(endpoint, done).await;
    let all = receiver.received();
    let ids = all
        .iter()
        .map(|one| &one.headers["x-stationmaster-delivery"]);
    let once: std::collections::BTreeSet<_> = ids.collect();
    assert_eq!((once.len(), all.len()), (300, 300));
    end(world, dispatcher, stop).await;
}
