//! How deliveries go out: in order, at a rate, from one process at a time, and from another one
//! when that one dies.

use std::{collections::BTreeMap, time::Duration};

use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{Consumer, Publisher, Reply, Server, Tally, World, on_both_stores, on_postgres, tools};
use tokio::{task::JoinSet, time::Instant};

on_both_stores!(
    an_order_holds_whatever_fails,
    a_rate_limit_holds,
    an_endpoint_is_sent_to_as_it_wishes,
    receivers_that_hang_hold_nobody_up,
    one_that_is_gone_is_not_tried_again,
    a_disabled_endpoint_gets_nothing_more_within_a_second,
    the_figures_tell_of_deliveries,
    what_is_handed_over_comes_once,
);

on_postgres!(
    two_processes_deliver_each_event_once,
    a_rate_limit_holds_across_two,
    an_order_holds_across_two_and_a_death,
    what_a_killed_process_held_is_taken_over,
    a_process_that_stalled_sends_nothing_that_is_anothers_now,
);

const LIMIT: Duration = Duration::from_secs(30);

/// A publisher with a pipeline and one endpoint for created runs, set up like this.
async fn house(server: &Server, consumer: &Consumer, what: Value) -> (Publisher, String) {
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let endpoint = publisher.endpoint(consumer, &["run.created"]).await;
    let path = format!("/v1/webhook-endpoints/{endpoint}");
    let changed = publisher.admin.patch(&path).json(&what).expect(200).await;
    for (name, value) in what.as_object().unwrap() {
        assert_eq!(&changed[name.as_str()], value);
    }
    (publisher, endpoint)
}

/// Nothing waits any more.
async fn drained(publisher: &Publisher) {
    tools::eventually("nothing waits", LIMIT, async || {
        let list = publisher
            .admin
            .get("/v1/deliveries?status=pending&limit=1")
            .expect(200)
            .await;
        if list["items"].as_array().unwrap().is_empty() {
            return Some(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        None
    })
    .await;
}

/// The runs that the consumer heard of, each once, in the order in which it first did.
fn heard(consumer: &Consumer) -> Vec<String> {
    let mut runs: Vec<String> = Vec::new();
    for delivery in consumer.seen() {
        let run = delivery.json()["data"]["run"]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        if !runs.contains(&run) {
            runs.push(run);
        }
    }
    runs
}

fn failing(count: usize) -> Vec<Reply> {
    vec![Reply::status(500); count]
}

async fn an_order_holds_whatever_fails(world: &World) {
    let server = world
        .start_with(&[("STATIONMASTER_RETRY_SCHEDULE", "150ms,150ms")])
        .await;
    let consumer = Consumer::start().await;
    // The first comes at its third try. The second, third and fourth come at once; the fifth never.
    let mut replies = failing(2);
    replies.extend(vec![Reply::status(204); 4]);
    replies.extend(failing(3));
    consumer.reply_next(replies);
    let (publisher, _) = house(&server, &consumer, json!({"ordered": true})).await;
    let mut runs = Vec::new();
    for _ in 0..30 {
        runs.push(publisher.run("nightly").await);
    }
    drained(&publisher).await;
    assert_eq!(heard(&consumer), runs);
    let seen = consumer.seen();
    assert_eq!(seen.len(), 30 + 2 + 2);
    for window in seen.windows(2) {
        let first: u32 = window[0].header("x-stationmaster-attempt").parse().unwrap();
        let again = window[1].id() == window[0].id();
        let number: u32 = window[1].header("x-stationmaster-attempt").parse().unwrap();
        assert_eq!(number, if again { first + 1 } else { 1 });
    }
    let failed = publisher.admin.all("/v1/deliveries?status=failed").await;
    assert_eq!(failed.len(), 1, "it was skipped after its last try");
}

async fn a_rate_limit_holds(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let (publisher, _) = house(&server, &consumer, json!({"rate_limit_per_second": 5})).await;
    let began = Instant::now();
    for _ in 0..16 {
        publisher.run("nightly").await;
    }
    drained(&publisher).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(2900), "16 took {took:?}");
    assert_eq!(consumer.seen().len(), 16);
}

async fn an_endpoint_is_sent_to_as_it_wishes(world: &World) {
    let server = world
        .start_with(&[("STATIONMASTER_RETRY_SCHEDULE", "1h")])
        .await;
    let publisher = server.publisher("acme").await;
    let consumer = Consumer::start().await;
    consumer.reply_always(Reply {
        delay: Duration::from_millis(300),
        ..Reply::status(204)
    });
    let wishes = json!({
        "url": consumer.url,
        "event_types": ["order.*"],
        "retry_schedule_seconds": [1, 1],
        "max_in_flight": 1,
    });
    let made = publisher.admin.post("/v1/webhook-endpoints").json(&wishes);
    let made = made.expect(201).await;
    assert_eq!(made["ordered"], false);
    assert!(made["rate_limit_per_second"].is_null());
    let path = format!("/v1/webhook-endpoints/{}", made.text("/id"));
    let publish = async |count: usize| {
        let events = vec![json!({"type": "order.paid", "data": {}}); count];
        let body = json!({ "events": events });
        let call = publisher.runner.post("/v1/events").json(&body);
        call.expect(202).await;
    };

    let began = Instant::now();
    publish(5).await;
    drained(&publisher).await;
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(1490),
        "one at a time: {took:?}"
    );

    consumer.reply_always(Reply::status(500));
    publish(1).await;
    drained(&publisher).await;
    let failed = publisher.admin.all("/v1/deliveries?status=failed").await;
    let tries: Vec<_> = failed.iter().map(|one| &one["attempt_count"]).collect();
    assert_eq!(tries, [&json!(3)], "its own waits count");

    // Null gives the operator's ways back.
    let plain = json!({"retry_schedule_seconds": null, "max_in_flight": null});
    let changed = publisher.admin.patch(&path).json(&plain).expect(200).await;
    assert!(changed["retry_schedule_seconds"].is_null() && changed["max_in_flight"].is_null());
    publish(1).await;
    tools::eventually("it waits as is usual", LIMIT, async || {
        let all = publisher.admin.all("/v1/deliveries?status=pending").await;
        let waits = all.iter().all(|one| one["attempt_count"] == 1);
        (all.len() == 1 && waits).then_some(())
    })
    .await;
}

async fn receivers_that_hang_hold_nobody_up(world: &World) {
    let server = world.start().await;
    let hanging = Tally::start(Duration::from_mins(1)).await;
    let stuck = server.publisher("stuck").await;
    stuck.pipeline("nightly").await;
    for _ in 0..10 {
        let body = json!({"url": hanging.url, "event_types": ["run.created"]});
        let call = stuck.admin.post("/v1/webhook-endpoints").json(&body);
        call.expect(201).await;
    }
    for _ in 0..30 {
        stuck.run("nightly").await;
    }
    tools::eventually("many hang", LIMIT, async || {
        (hanging.len() >= 10).then_some(())
    })
    .await;
    let free = server.publisher("free").await;
    free.pipeline("nightly").await;
    let prompt = Consumer::start().await;
    free.endpoint(&prompt, &["run.created"]).await;
    let mut slowest = Duration::ZERO;
    for at in 1..=20 {
        let asked = Instant::now();
        free.run("nightly").await;
        prompt.count(at).await;
        slowest = slowest.max(asked.elapsed());
    }
    // Whoever waits for one that hangs waits for its deadline, fifteen seconds.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
    let peak = hanging.peak();
    assert!(peak <= 64, "{peak} places of one publisher");
}

async fn one_that_is_gone_is_not_tried_again(world: &World) {
    let server = world
        .start_with(&[("STATIONMASTER_RETRY_SCHEDULE", "100ms,100ms")])
        .await;
    let consumer = Consumer::start().await;
    consumer.reply_always(Reply::status(410));
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.endpoint(&consumer, &["run.created"]).await;
    publisher.run("nightly").await;
    drained(&publisher).await;
    let all = publisher.admin.all("/v1/deliveries").await;
    let counts: Vec<_> = all
        .iter()
        .map(|one| (&one["status"], &one["attempt_count"]))
        .collect();
    assert_eq!(counts, [(&json!("failed"), &json!(1))]);
}

async fn a_disabled_endpoint_gets_nothing_more_within_a_second(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let (publisher, endpoint) = house(&server, &consumer, json!({})).await;
    consumer.hold_after(0);
    for _ in 0..40 {
        publisher.run("nightly").await;
    }
    consumer.count(1).await;
    let path = format!("/v1/webhook-endpoints/{endpoint}");
    let switch = async |enabled: bool| {
        let body = json!({"enabled": enabled});
        publisher.admin.patch(&path).json(&body).expect(200).await;
    };
    switch(false).await;
    consumer.release();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = consumer.seen().len();
    assert!(before < 40, "all were out already");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(consumer.seen().len(), before);
    switch(true).await;
    drained(&publisher).await;
    assert_eq!(consumer.seen().len(), 40, "each came once");
}

fn figure(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with([' ', '{']))
    });
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

async fn the_figures_tell_of_deliveries(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.endpoint(&consumer, &["run.created"]).await;
    for _ in 0..12 {
        publisher.run("nightly").await;
    }
    drained(&publisher).await;
    consumer.reply_always(Reply::status(500));
    for _ in 0..12 {
        publisher.run("nightly").await;
    }
    let text = tools::eventually("an open breaker", LIMIT, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let text = server.metrics().await;
        let open = "stationmaster_dispatch_breakers{state=\"open\"} 1";
        text.contains(open).then_some(text)
    })
    .await;
    let attempts = |outcome: &str| {
        let name = format!("stationmaster_delivery_attempts_total{{outcome=\"{outcome}\"}}");
        figure(&text, &name)
    };
    assert!((attempts("succeeded") - 12.0).abs() < 0.5);
    // After ten failures in a row the others wait for a probe.
    assert!(attempts("status") >= 10.0);
    assert!(figure(&text, "stationmaster_delivery_attempt_seconds_count") >= 22.0);
    assert!(figure(&text, "stationmaster_delivery_lag_seconds_count") >= 22.0);
    assert!((figure(&text, "stationmaster_dispatch_leases") - 1.0).abs() < 0.5);
    assert!(figure(&text, "stationmaster_deliveries_in_flight") >= 0.0);
    assert!(!text.contains(&publisher.id), "no figure is a publisher's");
}

async fn what_is_handed_over_comes_once(world: &World) {
    let server = world.start().await;
    let consumer = Consumer::start().await;
    let (publisher, _) = house(&server, &consumer, json!({})).await;
    // The first opens the lease; the others come after pauses, each when nothing else waits.
    let mut number = 0;
    tools::eventually("some are handed over", LIMIT, async || {
        number += 1;
        publisher.run("nightly").await;
        consumer.count(number).await;
        drained(&publisher).await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let text = server.metrics().await;
        // There is no such figure before the first.
        let name = "stationmaster_deliveries_handed_over_total";
        (text.contains(name) && figure(&text, name) >= 3.0).then_some(())
    })
    .await;
    // And then all at once.
    let mut burst = JoinSet::new();
    for _ in 0..60 {
        let publisher = publisher.clone();
        burst.spawn(async move { publisher.run("nightly").await });
    }
    burst.join_all().await;
    drained(&publisher).await;
    // A look at all endpoints finds nothing more to send.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let all = number + 60;
    assert_eq!(consumer.seen().len(), all, "each came, and came once");
    assert_eq!(heard(&consumer).len(), all);
}

async fn two(world: &World, env: &[(&str, &str)]) -> (Server, Server) {
    let site = world.site().await;
    let one = site.start(env).await;
    let two = site.start_beside(env).await;
    (one, two)
}

/// The same publisher, spoken to through another process.
fn through(server: &Server, publisher: &Publisher) -> Publisher {
    Publisher {
        admin: server.user(publisher.admin.token()),
        runner: server.user(publisher.runner.token()),
        ..publisher.clone()
    }
}

async fn two_processes_deliver_each_event_once(world: &World) {
    let (one, two) = two(world, &[]).await;
    let mut made = Vec::new();
    for slug in ["first", "second", "third"] {
        let publisher = one.publisher(slug).await;
        publisher.pipeline("nightly").await;
        let consumer = Consumer::start().await;
        publisher.endpoint(&consumer, &["run.created"]).await;
        made.push((through(&two, &publisher), publisher, consumer));
    }
    let loads = made.iter().map(|(there, here, _)| async {
        for _ in 0..25 {
            here.run("nightly").await;
            there.run("nightly").await;
        }
    });
    for load in loads {
        load.await;
    }
    for (_, publisher, consumer) in &made {
        drained(publisher).await;
        let seen = consumer.seen();
        assert_eq!(seen.len(), 50, "each came, and came once");
        assert_eq!(heard(consumer).len(), 50);
    }
}

async fn a_rate_limit_holds_across_two(world: &World) {
    let (one, two) = two(world, &[]).await;
    let consumer = Consumer::start().await;
    let (publisher, _) = house(&one, &consumer, json!({"rate_limit_per_second": 5})).await;
    let there = through(&two, &publisher);
    let began = Instant::now();
    for _ in 0..10 {
        publisher.run("nightly").await;
        there.run("nightly").await;
    }
    drained(&publisher).await;
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(3700), "20 took {took:?}");
    assert_eq!(consumer.seen().len(), 20);
}

/// Which of the two holds an endpoint, by its figures.
async fn holder(one: &Server, two: &Server) -> bool {
    tools::eventually("one of them holds it", LIMIT, async || {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let holds = async |server: &Server| {
            let text = server.metrics().await;
            figure(&text, "stationmaster_dispatch_leases") > 0.5
        };
        match (holds(one).await, holds(two).await) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    })
    .await
}

async fn an_order_holds_across_two_and_a_death(world: &World) {
    let (one, two) = two(world, &[]).await;
    let consumer = Consumer::start().await;
    // The sixth is under way when its sender dies.
    consumer.hold_after(5);
    let (publisher, _) = house(&one, &consumer, json!({"ordered": true})).await;
    let there = through(&two, &publisher);
    let mut runs = Vec::new();
    for _ in 0..30 {
        runs.push(publisher.run("nightly").await);
        runs.push(there.run("nightly").await);
    }
    consumer.count(6).await;
    let (dies, left) = if holder(&one, &two).await {
        (&one, there)
    } else {
        (&two, publisher)
    };
    dies.kill().await;
    consumer.release();
    for _ in 0..5 {
        runs.push(left.run("nightly").await);
    }
    drained(&left).await;
    assert_eq!(heard(&consumer), runs);
    let mut times: BTreeMap<String, u32> = BTreeMap::new();
    for delivery in consumer.seen() {
        *times.entry(delivery.id().to_owned()).or_default() += 1;
    }
    let twice = times.values().filter(|count| **count > 1).count();
    assert_eq!(twice, 1, "what was under way comes twice: {times:?}");
}

async fn a_process_that_stalled_sends_nothing_that_is_anothers_now(world: &World) {
    let (one, two) = two(world, &[]).await;
    let consumer = Consumer::start().await;
    let publisher = one.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.endpoint(&consumer, &["run.created"]).await;
    publisher.run("nightly").await;
    let (stalls, left) = if holder(&one, &two).await {
        (&one, through(&two, &publisher))
    } else {
        (&two, through(&one, &publisher))
    };
    drained(&left).await;
    stalls.signal(Signal::STOP);
    for _ in 0..20 {
        left.run("nightly").await;
    }
    drained(&left).await;
    assert_eq!(consumer.seen().len(), 21);
    stalls.signal(Signal::CONT);
    for _ in 0..20 {
        left.run("nightly").await;
    }
    drained(&left).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(consumer.seen().len(), 41, "each came once");
    assert_eq!(heard(&consumer).len(), 41);
}

async fn what_a_killed_process_held_is_taken_over(world: &World) {
    let (one, two) = two(world, &[]).await;
    let consumer = Consumer::start().await;
    consumer.reply_next([Reply {
        delay: Duration::from_mins(1),
        ..Reply::status(204)
    }]);
    let publisher = one.publisher("acme").await;
    publisher.pipeline("nightly").await;
    publisher.endpoint(&consumer, &["run.created"]).await;
    publisher.run("nightly").await;
    consumer.count(1).await;
    let (dies, left) = if holder(&one, &two).await {
        (&one, through(&two, &publisher))
    } else {
        (&two, through(&one, &publisher))
    };
    dies.kill().await;
    let since = Instant::now();
    left.run("nightly").await;
    tools::eventually("it is tried again, and so is the next", LIMIT, async || {
        (consumer.seen().len() >= 3).then_some(())
    })
    .await;
    // Ten on a quiet machine, eight of which are until the dead one counts as dead.
    let took = since.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    drained(&left).await;
    let ids: Vec<Value> = consumer.seen().iter().map(|one| json!(one.id())).collect();
    assert_eq!(ids.iter().filter(|id| **id == ids[0]).count(), 2);
}
