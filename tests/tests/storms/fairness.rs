//! One publisher's receiver hangs, another's has a deep backlog: the others' deliveries go out as
//! before. The full figures are the bench's; here is what must hold on any machine.

use tests::{World, on_both_stores};

use super::*;

on_both_stores!(others_are_not_held_up);

const OTHERS: usize = 18;
const HANGING: usize = 1500;
/// Longer than a request may last: every try at it ends by its deadline, fifteen seconds.
const HANGS: Duration = Duration::from_secs(30);
const DEEP: usize = 8000;
/// Slow enough that the backlog is still deep when everything was measured: it lasts fifty seconds.
const TAKES: Duration = Duration::from_millis(100);
const LASTS: Duration = Duration::from_secs(8);
const PACE: Duration = Duration::from_millis(60);
/// Half of the others' events come sooner than this; the design's figure is a few milliseconds.
/// This one holds on a machine whose every core is taken, and nothing that waits for a receiver or
/// a backlog keeps it.
const USUAL_MAX: Duration = Duration::from_secs(1);
/// None of them takes longer. A request to the one that hangs takes fifteen seconds.
const WORST_MAX: Duration = Duration::from_secs(5);

/// Publishes so many events by lists of a thousand.
async fn pile_up(source: &Source, count: usize) {
    let numbers: Vec<usize> = (0..count).collect();
    for part in numbers.chunks(1000) {
        source.publish(0, part, |_| "heap.event".to_owned()).await;
    }
}

async fn others_are_not_held_up(world: &World) {
    let server = world.start().await;
    let (prompt, hanging, deep) = (
        Tally::start(Duration::ZERO).await,
        Tally::start(HANGS).await,
        Tally::start(TAKES).await,
    );
    let mut sources = Vec::new();
    for other in 0..OTHERS {
        let publisher = server.publisher(&format!("other-{other}")).await;
        endpoint(&publisher, &prompt.url, &["*"]).await;
        sources.push(Source::new(&publisher, &[&server]));
    }
    // The first delivery to an endpoint opens its lease and its connection.
    latencies(&sources, &prompt, 0, Duration::ZERO, Duration::from_secs(2)).await;
    let before = latencies(&sources, &prompt, 10_000, PACE, LASTS).await;
    for (slug, tally, count) in [("hangs", &hanging, HANGING), ("deep", &deep, DEEP)] {
        let publisher = server.publisher(slug).await;
        endpoint(&publisher, &tally.url, &["*"]).await;
        pile_up(&Source::new(&publisher, &[&server]), count).await;
    }
    let taken = deep.len();
    let during = latencies(&sources, &prompt, 20_000, PACE, LASTS).await;
    let (meanwhile, tried) = (deep.len() - taken, hanging.len());
    eprintln!(
        "before: {}\nduring: {}\n{} of {DEEP} were left of the backlog, {meanwhile} went out \
         meanwhile; {tried} of {HANGING} were tried at the one that hangs, {} at a time",
        shown(&before),
        shown(&during),
        DEEP - deep.len(),
        hanging.peak(),
    );
    let waiting = pending(&server).await.len();
    assert!(waiting > HANGING + 1000, "only {waiting} waited meanwhile");
    assert!(meanwhile > 0, "the backlog stood still");
    assert!(
        hanging.peak() <= 16 && deep.peak() <= 16,
        "an endpoint's places"
    );
    assert!(
        tools::percentile(&during, 0.5) < USUAL_MAX,
        "{}",
        shown(&during)
    );
    assert!(
        *during.iter().max().unwrap() < WORST_MAX,
        "{}",
        shown(&during)
    );
    for tally in [hanging, deep] {
        // What is under way there ends with it, and the server's stop need not wait.
        drop(tally);
    }
}
