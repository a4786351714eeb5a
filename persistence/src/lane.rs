//! The hot write lane: changes of runs and published events, gathered from many callers and committed together.
//!
//! A commit costs a flush to the disk whatever is in it, so callers that come while one is under
//! way share the next (ADR 0016). Each is answered after the commit that holds its change. One
//! that is refused does not touch its neighbours; a batch that fails as a whole is taken apart and
//! tried one by one.
//!
//! Claims that find nothing wait here, and are served by the very transaction that makes a run
//! ready.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use domain::{Code, run::RunStatus, token::TokenHash};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, ExprTrait as _},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    Store,
    entity::runs,
    error::{Result, StoreError},
    publish::{Publish, PublishedEvent},
    runs::{
        Claimed, CreatedRun, Run,
        batch::{Batch, Change, Create, Done, apply},
        claims::Claim,
    },
};

/// Callers that may wait for a place in a batch; more wait to be let in.
const QUEUE: usize = 4096;
/// Most changes of one transaction, whatever is set.
const BATCH_MAX: usize = 256;
/// Longest wait for more to come, once a batch has begun.
const GATHER: Duration = Duration::from_millis(2);
/// How often waiting claims are looked at for what only time brings.
const LOOK: Duration = Duration::from_millis(500);
/// Every how many looks all of them are tried, whatever was heard.
const TRY_EVERY: u32 = 4;

type Reply<T> = oneshot::Sender<Result<T>>;

/// How long a claim waits for runs, and what ends it early.
pub struct Patience {
    /// How long.
    pub wait: Duration,
    /// Cancelled when nobody is there any more to take the runs.
    pub gone: CancellationToken,
    /// The token that asks; it must be good still when runs are handed out.
    pub token: TokenHash,
}

/// A claim that waits.
struct Waiting {
    claim: Arc<Claim>,
    until: Instant,
    patience: Patience,
    reply: Reply<Vec<Claimed>>,
}

enum Command {
    Create(Arc<Create>, Reply<CreatedRun>),
    Change(Arc<Change>, Reply<Run>),
    Claim(Box<Waiting>),
    Publish(Publish, Reply<Vec<PublishedEvent>>),
}

/// Where callers hand in what they want done.
pub(crate) struct Lane {
    commands: mpsc::Sender<Command>,
}

impl Lane {
    pub(crate) fn new() -> (Self, Inlet) {
        let (commands, inlet) = mpsc::channel(QUEUE);
        (Self { commands }, Inlet(inlet))
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let closed = || StoreError::Unavailable("the store is closing".into());
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    pub(crate) async fn create(&self, create: Arc<Create>) -> Result<CreatedRun> {
        self.ask(|reply| Command::Create(create, reply)).await
    }

    pub(crate) async fn change(&self, change: Arc<Change>) -> Result<Run> {
        self.ask(|reply| Command::Change(change, reply)).await
    }

    pub(crate) async fn publish(&self, publish: Publish) -> Result<Vec<PublishedEvent>> {
        self.ask(|reply| Command::Publish(publish, reply)).await
    }

    pub(crate) async fn claim(&self, claim: Claim, patience: Patience) -> Result<Vec<Claimed>> {
        let until = Instant::now() + patience.wait;
        self.ask(|reply| {
            Command::Claim(Box::new(Waiting {
                claim: Arc::new(claim),
                until,
                patience,
                reply,
            }))
        })
        .await
    }
}

/// The lane's other end.
pub(crate) struct Inlet(mpsc::Receiver<Command>);

/// A batch, and whom to answer.
#[derive(Default)]
struct Gathered {
    creates: Vec<(Arc<Create>, Reply<CreatedRun>)>,
    changes: Vec<(Arc<Change>, Reply<Run>)>,
    claims: Vec<Waiting>,
    publishes: Vec<(Publish, Reply<Vec<PublishedEvent>>)>,
}

impl Gathered {
    /// How much there is to write. Each event counts, however many came in one call.
    fn len(&self) -> usize {
        let publishes = self.publishes.iter();
        let events: usize = publishes.map(|(publish, _)| publish.events.len()).sum();
        self.creates.len() + self.changes.len() + self.claims.len() + events
    }

    fn add(&mut self, command: Command) {
        match command {
            Command::Create(create, reply) => self.creates.push((create, reply)),
            Command::Change(change, reply) => self.changes.push((change, reply)),
            Command::Claim(waiting) => self.claims.push(*waiting),
            Command::Publish(publish, reply) => self.publishes.push((publish, reply)),
        }
    }

    fn batch(&self) -> Batch {
        let creates = self.creates.iter().map(|(create, _)| Arc::clone(create));
        let changes = self.changes.iter().map(|(change, _)| Arc::clone(change));
        let claims = self.claims.iter().map(|waiting| Arc::clone(&waiting.claim));
        Batch {
            creates: creates.collect(),
            changes: changes.collect(),
            claims: claims.collect(),
            publishes: self.publishes.iter().map(|(p, _)| p.clone()).collect(),
        }
    }
}

/// An answer whose caller has left is nobody's loss but the caller's: what was committed stays.
fn answer<T>(reply: Reply<T>, result: Result<T>) {
    drop(reply.send(result));
}

fn copy_of(error: &StoreError) -> StoreError {
    match error {
        StoreError::Refused(problem) => StoreError::Refused(problem.clone()),
        StoreError::Unavailable(text) | StoreError::Conflict(text) => {
            StoreError::Unavailable(text.clone())
        }
        StoreError::Internal(text) => StoreError::Internal(text.clone()),
    }
}

/// The worker of the lane.
struct Worker {
    store: Store,
    inlet: mpsc::Receiver<Command>,
    waiting: Vec<Waiting>,
    /// Most changes of one transaction.
    most: usize,
    /// How many changes the last batch held: so many are expected again.
    last: usize,
    looks: u32,
}

/// Works until the store closes; what was handed in before is done.
pub(crate) async fn work(store: Store, inlet: Inlet, most: u32) {
    let most = usize::try_from(most).map_or(BATCH_MAX, |most| most.clamp(1, BATCH_MAX));
    let stop = store.inner.stop.clone();
    let inner = Arc::clone(&store.inner);
    let mut worker = Worker {
        store,
        inlet: inlet.0,
        waiting: Vec::new(),
        most,
        last: 0,
        looks: 0,
    };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut gathered = Gathered::default();
        let mut ready = BTreeSet::new();
        let waits = !worker.waiting.is_empty();
        let given_up = worker.first_to_give_up();
        tokio::select! {
            biased;
            command = worker.inlet.recv() => match command {
                Some(command) => gathered.add(command),
                None => return,
            },
            some = inner.wake.ready(), if waits => ready = some,
            () = sleep_until(given_up), if waits => {}
            _ = look.tick(), if waits => ready = worker.look().await,
            () = inner.quiet.cancelled(), if waits => {}
            () = stop.cancelled() => {
                worker.inlet.close();
                while let Ok(command) = worker.inlet.try_recv() {
                    gathered.add(command);
                }
                worker.serve(gathered, &BTreeSet::new()).await;
                return;
            }
        }
        worker.gather(&mut gathered).await;
        worker.serve(gathered, &ready).await;
        if worker.waiting.is_empty() {
            inner.wake.forget_ready();
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Worker {
    fn first_to_give_up(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }

    /// Takes what is there, and waits a moment for as much as came last time.
    async fn gather(&mut self, gathered: &mut Gathered) {
        if gathered.len() == 0 {
            return;
        }
        let until = Instant::now() + GATHER;
        while gathered.len() < self.most {
            if let Ok(command) = self.inlet.try_recv() {
                gathered.add(command);
                continue;
            }
            if gathered.len() >= self.last {
                break;
            }
            match tokio::time::timeout_at(until, self.inlet.recv()).await {
                Ok(Some(command)) => gathered.add(command),
                _ => break,
            }
        }
        self.last = gathered.len();
    }

    /// Who has runs to hand out because a time came; now and then everybody.
    async fn look(&mut self) -> BTreeSet<Uuid> {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(TRY_EVERY) {
            return BTreeSet::from([Uuid::nil()]);
        }
        let publishers: BTreeSet<Uuid> = self.waiting.iter().map(|w| w.claim.publisher).collect();
        let found = due(&self.store, publishers).await;
        found.unwrap_or_else(|error| {
            tracing::debug!(%error, "waiting claims can't be looked at");
            BTreeSet::new()
        })
    }

    /// Commits a batch, together with the waiting claims that it may serve, and answers.
    async fn serve(&mut self, mut gathered: Gathered, ready: &BTreeSet<Uuid>) {
        let now = Instant::now();
        let ended = self.store.inner.quiet.is_cancelled();
        let anybody = ready.contains(&Uuid::nil());
        let fresh: BTreeSet<Uuid> = gathered
            .creates
            .iter()
            .map(|(create, _)| create.scope.uuid())
            .collect();
        for waiting in std::mem::take(&mut self.waiting) {
            let publisher = waiting.claim.publisher;
            if waiting.patience.gone.is_cancelled() || waiting.reply.is_closed() {
                continue;
            }
            if ended || waiting.until <= now {
                answer(waiting.reply, Ok(Vec::new()));
            } else if anybody || ready.contains(&publisher) || fresh.contains(&publisher) {
                match self.still_good(&waiting).await {
                    Ok(()) => gathered.claims.push(waiting),
                    Err(error) => answer(waiting.reply, Err(error)),
                }
            } else {
                self.waiting.push(waiting);
            }
        }
        if gathered.len() > 0 {
            self.commit(gathered).await;
        }
    }

    /// A token may have been revoked, or its publisher suspended, while its claim waited.
    async fn still_good(&self, waiting: &Waiting) -> Result<()> {
        let principal = self.store.authenticate(waiting.patience.token).await?;
        let Some(principal) = principal.filter(|p| p.grants.runner) else {
            return Err(Code::Unauthenticated.into());
        };
        if !principal.publisher.is_active() {
            return Err(Code::PublisherSuspended.into());
        }
        Ok(())
    }

    async fn commit(&mut self, gathered: Gathered) {
        let several = gathered.len() > 1;
        match self.run(gathered.batch()).await {
            Ok(done) => self.answer_all(gathered, done),
            Err(StoreError::Internal(text)) if several => {
                tracing::warn!(
                    error = text,
                    "a batch failed; its changes are made one by one"
                );
                self.one_by_one(gathered).await;
            }
            Err(error) => refuse_all(gathered, &error),
        }
    }

    /// In a task of its own, so that a defect ends the batch and not the lane.
    async fn run(&self, batch: Batch) -> Result<Done> {
        let (store, batch) = (self.store.clone(), Arc::new(batch));
        let task = tokio::spawn(async move {
            let (lane, batch) = (&store, &batch);
            store
                .write_batch(|tx| async move { apply(lane, &tx, batch).await })
                .await
        });
        task.await
            .unwrap_or_else(|failed| Err(StoreError::Internal(failed.to_string())))
    }

    fn answer_all(&mut self, gathered: Gathered, done: Done) {
        for ((_, reply), result) in gathered.creates.into_iter().zip(done.creates) {
            answer(reply, result.map_err(StoreError::from));
        }
        for ((_, reply), result) in gathered.changes.into_iter().zip(done.changes) {
            answer(reply, result.map_err(StoreError::from));
        }
        for ((_, reply), result) in gathered.publishes.into_iter().zip(done.publishes) {
            answer(reply, result.map_err(StoreError::from));
        }
        let now = Instant::now();
        for (waiting, claimed) in gathered.claims.into_iter().zip(done.claims) {
            if !claimed.is_empty() || waiting.until <= now {
                answer(waiting.reply, Ok(claimed));
            } else {
                self.waiting.push(waiting);
            }
        }
    }

    async fn one_by_one(&mut self, gathered: Gathered) {
        let mut alone = Vec::new();
        for create in gathered.creates {
            alone.push(Gathered {
                creates: vec![create],
                ..Gathered::default()
            });
        }
        for change in gathered.changes {
            alone.push(Gathered {
                changes: vec![change],
                ..Gathered::default()
            });
        }
        for claim in gathered.claims {
            alone.push(Gathered {
                claims: vec![claim],
                ..Gathered::default()
            });
        }
        for publish in gathered.publishes {
            alone.push(Gathered {
                publishes: vec![publish],
                ..Gathered::default()
            });
        }
        for one in alone {
            match self.run(one.batch()).await {
                Ok(done) => self.answer_all(one, done),
                Err(error) => refuse_all(one, &error),
            }
        }
    }
}

fn refuse_all(gathered: Gathered, error: &StoreError) {
    for (_, reply) in gathered.creates {
        answer(reply, Err(copy_of(error)));
    }
    for (_, reply) in gathered.changes {
        answer(reply, Err(copy_of(error)));
    }
    for waiting in gathered.claims {
        answer(waiting.reply, Err(copy_of(error)));
    }
    for (_, reply) in gathered.publishes {
        answer(reply, Err(copy_of(error)));
    }
}

/// Which of the publishers have runs whose time has come: to start, or to be taken back.
async fn due(store: &Store, publishers: BTreeSet<Uuid>) -> Result<BTreeSet<Uuid>> {
    use runs::Column;
    let now = store.now().ms();
    let scheduled = Column::Status
        .eq(RunStatus::Queued.as_str())
        .and(Expr::col(Column::Ready).not())
        .and(Column::NotBefore.lte(now));
    let lost = Column::Status
        .eq(RunStatus::Running.as_str())
        .and(Column::LeaseExpiresAt.lte(now));
    let mut found = BTreeSet::new();
    for past in [scheduled, lost] {
        let some: Vec<Uuid> = runs::Entity::find()
            .select_only()
            .column(Column::PublisherId)
            .distinct()
            .filter(past)
            .filter(Column::PublisherId.is_in(publishers.iter().copied()))
            .into_tuple()
            .all(store.read())
            .await?;
        found.extend(some);
    }
    Ok(found)
}
