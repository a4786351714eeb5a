//! Writes down how tries ended: what finishes within moments goes into one transaction.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use persistence::{Next, Outcome, Store, StoreError};
use tokio::sync::mpsc;

use crate::shared::{Shared, Slot};

/// How long the first outcome of a batch waits for others.
const GATHER: Duration = Duration::from_millis(5);
/// Most outcomes of a batch.
const BATCH_MAX: usize = 64;
/// The first and the longest pause before a batch is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A try that has ended.
pub(crate) struct Finished {
    pub(crate) outcome: Outcome,
    /// From then on the delivery may be another process's.
    pub(crate) lease_ends: Instant,
    /// Given back when the outcome is recorded: a slow store slows the claims down.
    pub(crate) slot: Slot,
}

/// Records until every sender is gone.
pub(crate) async fn run(
    store: Store,
    shared: Arc<Shared>,
    poll: Duration,
    mut finished: mpsc::Receiver<Finished>,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while let Some(first) = finished.recv().await {
        batch.push(first);
        let until = tokio::time::Instant::now() + GATHER;
        while batch.len() < BATCH_MAX {
            match tokio::time::timeout_at(until, finished.recv()).await {
                Ok(Some(next)) => batch.push(next),
                Ok(None) | Err(_) => break,
            }
        }
        record(&store, &mut batch).await;
        let soon = store.now().plus(poll);
        let retried = |at: &Finished| matches!(at.outcome.next, Next::RetryAt(at) if at < soon);
        if batch.iter().any(retried) {
            shared.sooner.notify_one();
        }
        for one in batch.drain(..) {
            drop(one.slot);
        }
    }
}

/// Tries until the store takes the batch; outcomes whose lease ends meanwhile are given up.
async fn record(store: &Store, batch: &mut Vec<Finished>) {
    let mut pause = PAUSE.0;
    while !batch.is_empty() {
        let outcomes = batch.iter().map(|one| one.outcome.clone()).collect();
        match store.system().record_outcomes(outcomes).await {
            Ok(gone) => {
                if gone {
                    settle(store).await;
                }
                return;
            }
            Err(error @ StoreError::Unavailable(_)) => {
                tracing::warn!(%error, outcomes = batch.len(), "outcomes wait for the store");
            }
            // One of them may be the cause; it must not take the others along.
            Err(error) if batch.len() > 1 => {
                tracing::error!(%error, "outcomes are recorded one by one");
                one_by_one(store, batch).await;
                return;
            }
            Err(error) => {
                tracing::error!(%error, delivery = %batch[0].outcome.id, "an outcome is given up");
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        let now = Instant::now();
        batch.retain(|one| {
            let held = now < one.lease_ends;
            if !held {
                tracing::warn!(delivery = %one.outcome.id, "an outcome is given up: its lease ended");
            }
            held
        });
    }
}

/// Disables endpoints that said that they are gone. What fails here is made up for by the job
/// that looks at all endpoints.
async fn settle(store: &Store) {
    if let Err(error) = store.system().disable_gone_endpoints().await {
        tracing::warn!(%error, "an endpoint that is gone could not be disabled yet");
    }
}

async fn one_by_one(store: &Store, batch: &[Finished]) {
    for one in batch {
        if let Err(error) = store
            .system()
            .record_outcomes(vec![one.outcome.clone()])
            .await
        {
            tracing::error!(%error, delivery = %one.outcome.id, "an outcome is given up");
        }
    }
}
