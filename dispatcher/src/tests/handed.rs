//! Deliveries that a commit hands over.

use super::*;

#[tokio::test]
async fn an_event_after_a_pause_goes_out_at_once() {
    let mut world = World::new("5s").await;
    // A delivery that waits for the next tick of the loop would not arrive in time.
    world.settings.tick = Duration::from_mins(1);
    let receiver = Receiver::start(vec![reply(204)]).await;
    let endpoint = world.endpoint(receiver.url(), false).await;
    let (dispatcher, stop) = world.start();
    world.event(endpoint).await;
    world.until_status(endpoint, "succeeded").await;
    for round in 0..3 {
        // The target that was read is too old by then.
        tokio::time::sleep(Duration::from_millis(1050)).await;
        world.event(endpoint).await;
        receiver.has(round + 2).await;
    }
    world.until_status(endpoint, "succeeded").await;
    each_came_once(&receiver, 4);
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
    each_came_once(&receiver, 300);
    end(world, dispatcher, stop).await;
}
