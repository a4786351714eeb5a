//! Records the outcomes of tries. Those that end within a few milliseconds share a transaction.

use std::time::Duration;

use persistence::{AttemptOutcome, RecordResult, Store};
use tokio::{sync::mpsc, time::Instant};

use crate::note::{Note, Recorded};

/// How long a batch waits until it has as many outcomes as the last one had.
const GATHER: Duration = Duration::from_millis(5);
/// Most outcomes of one batch.
const BATCH_MAX: usize = 256;
/// The first and the longest pause before a batch is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Records until all senders are gone.
pub(crate) async fn run(
    store: Store,
    mut outcomes: mpsc::UnboundedReceiver<AttemptOutcome>,
    notes: mpsc::UnboundedSender<Note>,
) {
    let mut last = 0;
    while let Some(first) = outcomes.recv().await {
        let mut batch = vec![first];
        let until = Instant::now() + GATHER;
        while batch.len() < BATCH_MAX {
            if let Ok(next) = outcomes.try_recv() {
                batch.push(next);
            } else if batch.len() >= last {
                break;
            } else {
                match tokio::time::timeout_at(until, outcomes.recv()).await {
                    Ok(Some(next)) => batch.push(next),
                    Ok(None) | Err(_) => break,
                }
            }
        }
        last = batch.len();
        let verdicts = record(&store, &batch).await;
        let recorded = batch.into_iter().zip(verdicts);
        let recorded = recorded.map(|(outcome, verdict)| Recorded {
            key: outcome.key,
            fence: outcome.fence,
            id: outcome.id,
            next: outcome.next,
            verdict,
        });
        // The loop is gone only when the process ends.
        let _ = notes.send(Note::Recorded(recorded.collect()));
    }
}

/// Tries until the store takes the batch or refuses it. Leases may be lost meanwhile; the store
/// compares their numbers, so that no outcome overwrites that of another holder.
async fn record(store: &Store, batch: &[AttemptOutcome]) -> Vec<Option<RecordResult>> {
    let mut pause = PAUSE.0;
    let _under_way = store.progress().part("outcomes").work();
    loop {
        match store.system().webhooks().record_outcomes(batch).await {
            Ok((verdicts, gone)) => {
                if gone {
                    settle(store).await;
                }
                return verdicts.into_iter().map(Some).collect();
            }
            Err(error) if error.may_pass() => {
                tracing::warn!(%error, outcomes = batch.len(), "outcomes wait for the store");
            }
            // One of the outcomes may be the cause; the others must not be lost with it.
            Err(error) if batch.len() > 1 => {
                tracing::error!(%error, "outcomes are recorded one by one");
                let mut verdicts = Vec::with_capacity(batch.len());
                for one in batch {
                    verdicts.extend(Box::pin(record(store, std::slice::from_ref(one))).await);
                }
                return verdicts;
            }
            Err(error) => {
                tracing::error!(%error, delivery = %batch[0].id, "an outcome is given up");
                return vec![None];
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Disables endpoints whose receivers answered that they are gone. If that fails, the job that
/// looks at all endpoints does it later.
async fn settle(store: &Store) {
    if let Err(error) = store.system().webhooks().disable_gone_endpoints().await {
        tracing::warn!(%error, "an endpoint that is gone could not be disabled yet");
    }
}
