//! A PostgreSQL cluster that stops: the server says so, waits, and goes on where it was.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tests::{Consumer, Publisher, World, on_postgres, skip, tools};
use tokio::task::JoinSet;

use crate::{
    audit::verified,
    process::{everything_waits, everything_works_again},
};

on_postgres!(a_stopped_cluster_is_waited_for);

/// Creates runs until the store is gone, and notes those that are acknowledged.
async fn create_until_it_stops(publisher: Publisher, acknowledged: Arc<Mutex<Vec<String>>>) {
    loop {
        let call = publisher.runner.post("/v1/pipelines/nightly/runs");
        let answer = call.json(&json!({"input": {}})).answer().await;
        if answer.status != 201 {
            assert_eq!(answer.status, 503, "{answer}");
            assert_eq!(answer["code"], "store_unavailable", "{answer}");
            // Whoever is told to come back is told when.
            assert_ne!(answer.header("retry-after"), "", "{answer}");
            return;
        }
        acknowledged.lock().unwrap().push(answer.text("/id"));
    }
}

async fn a_stopped_cluster_is_waited_for(world: &World) {
    let (site, cluster) = match world.site_with_cluster().await {
        Ok(made) => made,
        Err(reason) => return skip("a_stopped_cluster_is_waited_for", &reason),
    };
    site.tolerate("store");
    let server = site.start(&[]).await;
    let publisher = server.publisher("acme").await;
    publisher.pipeline("nightly").await;
    let consumer = Consumer::start().await;
    publisher.endpoint(&consumer, &["run.succeeded"]).await;
    publisher.finished_run("nightly").await;
    consumer.count(1).await;
    let mut finished = 1;
    for _ in 0..2 {
        let (held, claim) = publisher.claimed_run("nightly").await;
        let acknowledged: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut busy = JoinSet::new();
        for _ in 0..4 {
            busy.spawn(create_until_it_stops(
                publisher.clone(),
                Arc::clone(&acknowledged),
            ));
        }
        tools::eventually("runs are created", Duration::from_secs(30), async || {
            (acknowledged.lock().unwrap().len() > 4).then_some(())
        })
        .await;
        cluster.halt().await;
        busy.join_all().await;
        let acknowledged = acknowledged.lock().unwrap().clone();
        // This takes longer than anything cached is trusted, and than a connection is tried for.
        everything_waits(&server, &publisher).await;
        cluster.resume().await;
        everything_works_again(&server, &publisher).await;
        let runs = publisher.runner.all("/v1/runs").await;
        for id in &acknowledged {
            let there = runs.iter().any(|run| run["id"] == *id);
            assert!(there, "{id} was acknowledged and is lost");
        }
        // A claim outlives the outage, and so does what is to be delivered.
        publisher.complete(&held, &claim).await;
        finished += 2;
        tools::eventually("all is delivered", Duration::from_secs(30), async || {
            (consumer.seen().len() >= finished).then_some(())
        })
        .await;
        verified(&publisher, true).await;
    }
}
