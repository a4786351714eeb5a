//! The loop that claims what is due and sends it on its way.
//!
//! Who gets how many slots is decided in one place, [`Claims::claim`]: fairness between
//! publishers, rate limits, breakers and ordered endpoints belong there and into the store's
//! claiming statement.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use domain::id::EndpointId;
use persistence::{Store, StoreError};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::{Settings, attempt, recorder::Finished, shared::Shared};

/// Most deliveries that one claim takes.
const CLAIM_MAX: u64 = 64;
/// The shortest pause between two looks. What is due but held by another process at this moment
/// would otherwise be asked for without pause.
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// What a turn of the loop came to.
struct Turn {
    /// Until when to sleep unless something rings.
    sleep: Duration,
    /// Whether slots were short, so that one given back is a reason to wake.
    short: bool,
}

pub(crate) struct Claims {
    store: Store,
    client: outbound::Client,
    settings: Settings,
    shared: Arc<Shared>,
    outcomes: mpsc::Sender<Finished>,
    failing: bool,
    lag_read: Instant,
}

/// Forgets a ring that came before now.
fn clear(bell: &Notify) {
    let rung = bell.notified();
    let mut rung = std::pin::pin!(rung);
    rung.as_mut().enable();
}

impl Claims {
    pub(crate) fn new(
        store: Store,
        client: outbound::Client,
        settings: Settings,
        shared: Arc<Shared>,
        outcomes: mpsc::Sender<Finished>,
    ) -> Self {
        Self {
            store,
            client,
            settings,
            shared,
            outcomes,
            failing: false,
            lag_read: Instant::now(),
        }
    }

    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let bell = self.store.bell();
        while !stop.is_cancelled() {
            // What rings from here on may tell of something that this turn does not see.
            clear(&bell);
            clear(&self.shared.freed);
            clear(&self.shared.sooner);
            let turn = self.turn(&stop).await;
            self.shared.turn();
            tokio::select! {
                () = stop.cancelled() => {}
                () = bell.notified() => {}
                () = self.shared.sooner.notified() => {}
                () = self.shared.freed.notified(), if turn.short => {}
                () = tokio::time::sleep(turn.sleep) => {}
            }
        }
    }

    async fn turn(&mut self, stop: &CancellationToken) -> Turn {
        match self.claim(stop).await {
            Ok(turn) => {
                if self.failing {
                    tracing::info!("deliveries are claimed again");
                }
                self.failing = false;
                turn
            }
            Err(error) => {
                if !self.failing {
                    tracing::warn!(%error, "deliveries can't be claimed");
                }
                self.failing = true;
                Turn {
                    sleep: self.settings.poll,
                    short: false,
                }
            }
        }
    }

    /// Claims until nothing is due or no slot is left.
    async fn claim(&mut self, stop: &CancellationToken) -> Result<Turn, StoreError> {
        let system = self.store.system();
        let all = count(self.settings.in_flight_max);
        let per_endpoint = count(self.settings.per_endpoint_max);
        loop {
            let busy = self.shared.busy();
            let room = all.saturating_sub(busy.iter().map(|(_, n)| n).sum());
            if room == 0 || stop.is_cancelled() {
                self.note_lag(true).await?;
                return Ok(Turn {
                    sleep: self.settings.poll,
                    short: true,
                });
            }
            let limit = room.min(CLAIM_MAX);
            let lease = self.settings.lease;
            // From before the claim, so that we never think a lease longer than it is.
            let lease_ends = Instant::now() + lease;
            let claimed = system
                .claim_deliveries(limit, lease, per_endpoint, &busy)
                .await?;
            let came = count(claimed.len());
            for due in claimed {
                let slot = self.shared.enter(due.endpoint);
                self.send(due, slot, lease_ends);
            }
            let full = self.full(per_endpoint);
            // Short of the limit, everything is claimed but what full endpoints hold back; behind
            // theirs there may be others' that the store has not looked at.
            if came == 0 || (came < limit && full.is_empty()) {
                return self.rest(&full).await;
            }
        }
    }

    fn full(&self, per_endpoint: u64) -> Vec<EndpointId> {
        let busy = self.shared.busy().into_iter();
        busy.filter(|(_, n)| *n >= per_endpoint)
            .map(|(id, _)| id)
            .collect()
    }

    /// How long there is nothing to do, but for endpoints that are full.
    async fn rest(&mut self, full: &[EndpointId]) -> Result<Turn, StoreError> {
        self.note_lag(!full.is_empty()).await?;
        let next = self.store.system().next_due(full).await?;
        let wait = next.map_or(self.settings.poll, |at| at.since(self.store.now()));
        let sleep = wait.min(self.settings.poll).max(PAUSE_MIN);
        Ok(Turn {
            sleep,
            short: !full.is_empty(),
        })
    }

    /// Measures how long the longest-waiting delivery is overdue, at most once in a poll.
    async fn note_lag(&mut self, behind: bool) -> Result<(), StoreError> {
        let mut lag = Duration::ZERO;
        if behind {
            if self.lag_read.elapsed() < self.settings.poll {
                return Ok(());
            }
            self.lag_read = Instant::now();
            let oldest = self.store.system().next_due(&[]).await?;
            lag = oldest.map_or(Duration::ZERO, |at| self.store.now().since(at));
        }
        metrics::gauge!("stationmaster_delivery_lag_seconds").set(lag.as_secs_f64());
        Ok(())
    }

    fn send(&self, due: persistence::DueDelivery, slot: crate::shared::Slot, lease_ends: Instant) {
        let (store, client) = (self.store.clone(), self.client.clone());
        let (schedule, outcomes) = (self.settings.schedule.clone(), self.outcomes.clone());
        tokio::spawn(async move {
            let outcome = attempt::make(&store, &client, &schedule, due).await;
            // The recorder lives for as long as there is a sender.
            let _ = outcomes
                .send(Finished {
                    outcome,
                    lease_ends,
                    slot,
                })
                .await;
        });
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
