//! Where callers hand in commands, each within its publisher's share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use domain::permits::{Bounds, Permit, Permits};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::queue::SHARE;
use crate::{
    publishers::standing::Presented,
    runs::{
        changes::{Change, Create, What},
        claims::Claim,
        run::{Claimed, CreatedRun, Run},
    },
    store::{
        effects::Effects,
        error::{Result, StoreError},
        plane_state::PlaneState,
        shares,
    },
    webhooks::{
        fan_outs::CALL_MAX,
        own_events::{Publish, PublishedEvent},
    },
};

/// Callers whose changes may wait to be written: in all, and of one publisher. Further callers wait
/// for a permit.
const QUEUED: Bounds = Bounds {
    total: 4096,
    per_owner: 1024,
};
/// Claims that may wait for runs in this process: in all, and of one publisher.
const WAITING: Bounds = Bounds {
    total: 10_000,
    per_owner: domain::limits::WAITING_CLAIMS,
};
/// Large calls beside the lane: one of each publisher.
const LARGE: Bounds = Bounds {
    total: usize::MAX,
    per_owner: 1,
};
/// The assumed number of a publisher's endpoints before its first event.
const LISTENING: usize = 4;
/// Bytes of text that cost about as much as a usual row.
const BYTES_A_ROW: usize = 4096;
/// Publishers whose number of listening endpoints is remembered.
const REMEMBERED: usize = 20_000;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// How long a claim waits for runs, and what ends the wait early.
pub struct WaitOptions {
    /// The longest wait.
    pub wait: Duration,
    /// Cancelled when the caller is gone.
    pub gone: CancellationToken,
    /// What claims. It is checked again before runs are handed out.
    pub presented: Presented,
}

/// A claim that waits.
pub(super) struct WaitingClaim {
    pub(super) claim: Arc<Claim>,
    pub(super) until: Instant,
    pub(super) options: WaitOptions,
    pub(super) reply: Reply<Vec<Claimed>>,
    /// Released with the answer.
    _permit: Option<Permit<Uuid>>,
}

impl WaitingClaim {
    pub(super) fn is_gone(&self) -> bool {
        self.options.gone.is_cancelled() || self.reply.is_closed()
    }
}

pub(super) enum Command {
    Create(Arc<Create>, Reply<CreatedRun>),
    Change(Arc<Change>, Reply<Run>),
    /// With its number in the order of claims, and its permit for the queue.
    Claim(u64, Box<WaitingClaim>, Option<Permit<Uuid>>),
    Publish(Publish, Reply<Vec<PublishedEvent>>),
}

impl Command {
    pub(super) fn publisher(&self) -> Uuid {
        match self {
            Self::Create(create, _) => create.scope.uuid(),
            Self::Change(change, _) => change.scope.uuid(),
            Self::Claim(_, waiting, _) => waiting.claim.publisher,
            Self::Publish(publish, _) => publish.scope.uuid(),
        }
    }

    /// The text that the command writes, in bytes.
    fn text(&self) -> usize {
        match self {
            Self::Create(create, _) => create.new.input.as_str().len(),
            Self::Change(change, _) => match &change.what {
                What::Complete { output: text, .. } | What::Fail { error: text, .. } => {
                    text.as_str().len()
                }
                What::Heartbeat { progress, .. } => {
                    progress.as_ref().map_or(0, |text| text.as_str().len())
                }
                What::Release { .. } | What::Cancel => 0,
            },
            Self::Claim(..) => 0,
            Self::Publish(publish, _) => {
                let texts = publish.events.iter().map(|event| event.data.as_str().len());
                texts.sum()
            }
        }
    }

    /// The estimated number of rows that the command writes if `listening` endpoints listen. Long
    /// texts count as further rows.
    pub(super) fn rows(&self, listening: usize) -> usize {
        // If there are more deliveries, they are spread later.
        let heard = |events: usize| {
            let deliveries = events.saturating_mul(listening);
            events + if deliveries > CALL_MAX { 0 } else { deliveries }
        };
        let rows = match self {
            Self::Create(create, _) => 2 + heard(1) + usize::from(create.new.claim) * heard(1),
            Self::Change(..) => 2 + heard(1),
            // It often finds fewer runs.
            Self::Claim(_, waiting, _) => {
                let max = usize::try_from(waiting.claim.max()).unwrap_or(1);
                max.saturating_mul(2 + heard(1)).min(SHARE)
            }
            Self::Publish(publish, _) => heard(publish.events.len()),
        };
        rows + self.text() / BYTES_A_ROW
    }
}

/// Hands commands to the lane's worker.
pub(crate) struct Lane {
    commands: mpsc::UnboundedSender<Command>,
    queued: Permits<Uuid>,
    waiting: Permits<Uuid>,
    large: Permits<Uuid>,
    /// How many endpoints listened to each publisher at its last event.
    listening: Mutex<HashMap<Uuid, usize>>,
}

impl Lane {
    pub(crate) fn new() -> (Self, Inlet) {
        let (commands, inlet) = mpsc::unbounded_channel();
        let lane = Self {
            commands,
            queued: Permits::new(QUEUED),
            waiting: Permits::new(WAITING),
            large: Permits::new(LARGE),
            listening: Mutex::default(),
        };
        (lane, Inlet(inlet))
    }

    async fn queue_permit(&self, publisher: Uuid) -> Result<Permit<Uuid>> {
        shares::one_of(&self.queued, publisher, "changes that wait to be written").await
    }

    /// A permit for a large call beside the lane.
    pub(super) async fn large_turn(&self, publisher: Uuid) -> Result<Permit<Uuid>> {
        shares::one_of(&self.large, publisher, "large calls at work").await
    }

    async fn hand_in<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let closed = || StoreError::Unavailable("the store is closing".into());
        let (reply, answer) = oneshot::channel();
        let handed = self.commands.send(command(reply));
        handed.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    async fn ask<T>(
        &self,
        publisher: Uuid,
        command: impl FnOnce(Reply<T>) -> Command,
    ) -> Result<T> {
        let _permit = self.queue_permit(publisher).await?;
        self.hand_in(command).await
    }

    pub(crate) async fn create(&self, create: Arc<Create>) -> Result<CreatedRun> {
        let publisher = create.scope.uuid();
        let command = |reply| Command::Create(create, reply);
        self.ask(publisher, command).await
    }

    pub(crate) async fn change(&self, change: Arc<Change>) -> Result<Run> {
        let publisher = change.scope.uuid();
        let command = |reply| Command::Change(change, reply);
        self.ask(publisher, command).await
    }

    pub(crate) async fn publish(&self, publish: Publish) -> Result<Vec<PublishedEvent>> {
        let publisher = publish.scope.uuid();
        let command = |reply| Command::Publish(publish, reply);
        self.ask(publisher, command).await
    }

    /// Hands in a claim.
    ///
    /// # Errors
    /// 429 at once if the publisher has too many waiting claims.
    pub(crate) async fn claim(&self, claim: Claim, options: WaitOptions) -> Result<Vec<Claimed>> {
        let until = Instant::now() + options.wait;
        let permit = if options.wait.is_zero() {
            None
        } else {
            let permit = self.waiting.try_acquire(claim.publisher, 1);
            Some(permit.map_err(|full| full.problem("waiting claims"))?)
        };
        let queue_permit = self.queue_permit(claim.publisher).await?;
        self.hand_in(|reply| {
            let waiting = WaitingClaim {
                claim: Arc::new(claim),
                until,
                options,
                reply,
                _permit: permit,
            };
            Command::Claim(0, Box::new(waiting), Some(queue_permit))
        })
        .await
    }

    /// How many claims of a publisher wait, or may have to wait.
    #[cfg(test)]
    pub(crate) fn waiting_of(&self, publisher: Uuid) -> usize {
        self.waiting.in_use_by(&publisher)
    }

    /// How many endpoints listened to a publisher at its last event.
    pub(crate) fn listening_to(&self, publisher: Uuid) -> usize {
        let known = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.get(&publisher).copied().unwrap_or(LISTENING)
    }
}

impl PlaneState for Lane {
    /// Remembers how many endpoints listen.
    fn committed(&self, effects: &Effects) {
        let counts = &effects.listening;
        if counts.is_empty() {
            return;
        }
        let mut known = self
            .listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.len() > REMEMBERED {
            known.clear();
        }
        known.extend(counts);
    }
}

/// Sends an answer. If the caller is gone, the answer is dropped; what was committed stays.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T>) {
    drop(reply.send(result));
}

/// The worker's end of the lane.
pub(crate) struct Inlet(pub(super) mpsc::UnboundedReceiver<Command>);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{store::scope::Scope, webhooks::own_events::NewOwnEvent};

    fn rows(events: usize, bytes: usize) -> usize {
        let event = NewOwnEvent {
            event_type: "order.paid".into(),
            data: json!("x".repeat(bytes)).into(),
            external_id: None,
            pipeline: None,
        };
        let publish = Publish {
            scope: Scope::of_row(Uuid::from_u128(1), None),
            events: vec![event; events].into(),
            listed: true,
        };
        Command::Publish(publish, oneshot::channel().0).rows(1)
    }

    #[test]
    fn long_texts_cost_rows() {
        assert_eq!(rows(1, 10), 2, "an event and a delivery");
        assert_eq!(rows(100, 10), 200);
        assert_eq!(rows(1, 64 * 1024), 2 + 16);
        assert!(rows(17, 240 * 1024) > SHARE, "as one that goes alone");
    }
}
