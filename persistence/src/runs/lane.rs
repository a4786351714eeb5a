//! The write lane: changes of runs and published events, gathered from many callers and committed
//! together.
//!
//! Each commit costs one flush to the disk, so callers that arrive during a commit share the next
//! one (ADR 0016). Each is answered after the commit of its change. If a change is refused, the
//! others of the batch are still made. If a whole batch fails, its changes are tried one by one.
//! Publishers take turns, measured in rows to write, and each has a share of the lane's queue (ADR
//! 0029).
//!
//! Claims that find no run wait here. They are served by the transaction that makes a run ready, or
//! after a search for runs, which tries as many claims as there are runs. The lane itself never
//! waits for a connection for reads: reads run in tasks of their own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
    sync::Arc,
    time::Duration,
};

use domain::{Code, Timestamp, permission::Permission, slug::Slug};
use sea_orm::DbBackend;
use tokio::{sync::mpsc, time::Instant};
use uuid::Uuid;

use crate::{
    publishers::auth::Principal,
    runs::{
        batch::{Batch, BatchResults, apply},
        changes::{Change, Create},
        claims::Claim,
        run::{CreatedRun, Run},
        waiting::{Open, bring, open_runs},
    },
    store::{
        Store,
        error::{Result, StoreError},
    },
    webhooks::own_events::{Publish, PublishedEvent},
};

mod beside;
mod entry;
mod queue;
mod waiters;

pub use entry::WaitOptions;
use entry::{Command, Reply, WaitingClaim, answer};
pub(crate) use entry::{Inlet, Lane};
use queue::{Queue, SHARE};
use waiters::{Picked, Waiters};

/// Most changes of one transaction, whatever the setting says.
const BATCH_MAX: usize = 256;
/// How long a batch waits for further changes at most.
const GATHER: Duration = Duration::from_millis(2);
/// How often the lane searches runs that became available by time, for waiting claims.
const LOOK: Duration = Duration::from_millis(500);
/// Every so many of these searches cover all publishers, whatever notifications said.
const LOOK_AT_ALL: u32 = 4;
/// Publishers that one search covers.
const LOOK_MAX: usize = 64;
/// Runs of one publisher for which waiting claims are tried in one batch.
const PICKED_MAX: u32 = 64;
/// A claim in a batch: its number in the order of arrival, and the pipelines that are tried.
struct Tried {
    number: u64,
    waiting: WaitingClaim,
    claim: Arc<Claim>,
}

impl Tried {
    /// Tries all pipelines that the claim wants.
    fn whole(number: u64, waiting: WaitingClaim) -> Self {
        let claim = Arc::clone(&waiting.claim);
        Self {
            number,
            waiting,
            claim,
        }
    }

    /// Tries only the pipelines that have runs for it.
    fn narrowed(picked: Picked) -> Self {
        let claim = Arc::new(picked.waiting.claim.within(picked.pipelines));
        Self {
            number: picked.number,
            waiting: picked.waiting,
            claim,
        }
    }
}

/// A batch, and the callers to answer.
#[derive(Default)]
struct Gathered {
    creates: Vec<(Arc<Create>, Reply<CreatedRun>)>,
    changes: Vec<(Arc<Change>, Reply<Run>)>,
    claims: Vec<Tried>,
    publishes: Vec<(Publish, Reply<Vec<PublishedEvent>>)>,
}

impl Gathered {
    fn len(&self) -> usize {
        self.creates.len() + self.changes.len() + self.claims.len() + self.publishes.len()
    }

    fn add(&mut self, command: Command) {
        match command {
            Command::Create(create, reply) => self.creates.push((create, reply)),
            Command::Change(change, reply) => self.changes.push((change, reply)),
            Command::Claim(number, waiting, _) => {
                self.claims.push(Tried::whole(number, *waiting));
            }
            Command::Publish(publish, reply) => self.publishes.push((publish, reply)),
        }
    }

    fn batch(&self) -> Batch {
        let creates = self.creates.iter().map(|(create, _)| Arc::clone(create));
        let changes = self.changes.iter().map(|(change, _)| Arc::clone(change));
        let claims = self.claims.iter().map(|tried| Arc::clone(&tried.claim));
        Batch {
            creates: creates.collect(),
            changes: changes.collect(),
            claims: claims.collect(),
            publishes: self.publishes.iter().map(|(p, _)| p.clone()).collect(),
        }
    }

    /// How many runs the batch makes available to others, by publisher and pipeline.
    fn fresh(&self, now: Timestamp) -> BTreeMap<Uuid, Open> {
        let mut fresh: BTreeMap<Uuid, Open> = BTreeMap::new();
        let waiting = self
            .creates
            .iter()
            .map(|(create, _)| create)
            .filter(|create| {
                let new = &create.new;
                !new.claim && new.not_before.is_none_or(|at| at <= now)
            });
        for create in waiting {
            if let Some(slug) = Slug::parse(&create.new.pipeline) {
                let open = fresh.entry(create.scope.uuid()).or_default();
                *open.entry(slug).or_default() += 1;
            }
        }
        fresh
    }
}

fn copy_of(error: &StoreError) -> StoreError {
    match error {
        StoreError::Refused(_) | StoreError::VersionChanged(_) => error.clone(),
        StoreError::Unavailable(text) | StoreError::Conflict(text) => {
            StoreError::Unavailable(text.clone())
        }
        StoreError::Uncertain(text) => StoreError::Uncertain(text.clone()),
        StoreError::Internal(text) => StoreError::Internal(text.clone()),
    }
}

/// The result of a task of the lane.
enum Note {
    /// The runs that can be handed out to waiting claims.
    Looked(Result<Vec<(Uuid, Open)>>),
    /// For each picked claim, whether its token may still claim.
    Checked(Vec<(Picked, Result<()>)>),
    /// Runs that became available by time were made ready.
    Brought(Result<()>),
}

/// The worker of the lane.
struct Worker {
    store: Store,
    inlet: mpsc::UnboundedReceiver<Command>,
    notes: mpsc::UnboundedSender<Note>,
    queue: Queue<Command>,
    waiters: Waiters,
    /// Waiting claims that are tried in the next batch.
    picked: Vec<Picked>,
    /// For each publisher, how many of its claims are being checked or tried.
    out: HashMap<Uuid, usize>,
    /// Publishers whose runs have to be searched.
    to_look_at: BTreeSet<Uuid>,
    /// The publisher that was searched last.
    looked_at: Uuid,
    looking: bool,
    bringing: bool,
    /// Most changes of one transaction.
    most: usize,
    /// The number of changes in the last batch: the next one waits for as many.
    last: usize,
    looks: u32,
}

/// Runs the lane until the store closes. Commands that were handed in before are carried out.
pub(crate) async fn work(store: Store, inlet: Inlet, most: u32) {
    let most = usize::try_from(most).map_or(BATCH_MAX, |most| most.clamp(1, BATCH_MAX));
    let stop = store.inner.stop.clone();
    let inner = Arc::clone(&store.inner);
    let (notes, mut heard) = mpsc::unbounded_channel();
    let mut worker = Worker {
        store,
        inlet: inlet.0,
        notes,
        queue: Queue::new(),
        waiters: Waiters::default(),
        picked: Vec::new(),
        out: HashMap::new(),
        to_look_at: BTreeSet::new(),
        looked_at: Uuid::nil(),
        looking: false,
        bringing: false,
        most,
        last: 0,
        looks: 0,
    };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (waits, idle) = (worker.waits(), worker.is_idle());
        let rested = worker.rests_until();
        let end = worker.waiters.first_end();
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                worker.finish().await;
                return;
            }
            Some(note) = heard.recv() => worker.take(note),
            some = inner.wake.ready(), if waits => worker.readied(&some),
            () = sleep_until(end), if end.is_some() => {}
            _ = look.tick(), if waits => worker.tick(),
            () = inner.stopping.cancelled(), if end.is_some() => {}
            command = worker.inlet.recv() => match command {
                Some(command) => worker.hand_in(command),
                None => return,
            },
            () = sleep_until(rested), if rested.is_some() => {}
            () = std::future::ready(()), if !idle && rested.is_none() => {}
        }
        worker.end_waiting();
        worker.look();
        worker.gather().await;
        worker.serve().await;
        if !worker.waits() {
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
    /// Whether any claim waits for runs.
    fn waits(&self) -> bool {
        !self.waiters.is_empty() || !self.out.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.queue.len() == 0 && self.picked.is_empty()
    }

    /// When to continue if all remaining changes belong to resting publishers.
    fn rests_until(&self) -> Option<Instant> {
        let rested = self.queue.rests_until();
        rested.filter(|_| self.picked.is_empty())
    }

    /// Queues a command. A claim waits behind earlier claims for the same pipelines.
    fn hand_in(&mut self, command: Command) {
        let now = Instant::now();
        let command = match command {
            Command::Claim(_, waiting, permit) => {
                let number = self.waiters.number();
                if self.lines_up(&waiting, now) {
                    self.line_up(number, *waiting);
                    return;
                }
                Command::Claim(number, waiting, permit)
            }
            other => other,
        };
        let publisher = command.publisher();
        self.store.inner.db.activity.note_request(publisher);
        let rows = command.rows(self.store.state::<Lane>().listening_to(publisher));
        match command {
            // PostgreSQL has several writers, so nobody has to wait for a large call.
            Command::Publish(publish, reply)
                if rows > SHARE && self.store.backend() == DbBackend::Postgres =>
            {
                beside::publish(&self.store, publish, reply);
            }
            other => self.queue.push(publisher, other, rows, now),
        }
    }

    /// Whether a claim may wait, and earlier claims wait for the same pipelines.
    fn lines_up(&self, waiting: &WaitingClaim, now: Instant) -> bool {
        waiting.until > now && self.waiters.is_behind(waiting)
    }

    /// Adds a claim to the waiting ones. There may be runs that the earlier claims do not want.
    fn line_up(&mut self, number: u64, waiting: WaitingClaim) {
        self.to_look_at.insert(waiting.claim.publisher);
        self.waiters.insert(number, waiting);
    }

    /// Takes the commands that have arrived, and waits briefly for as many as last time.
    async fn gather(&mut self) {
        if self.queue.len() == 0 {
            return;
        }
        let until = Instant::now() + GATHER;
        loop {
            while let Ok(command) = self.inlet.try_recv() {
                self.hand_in(command);
            }
            if self.queue.len() >= self.last {
                return;
            }
            match tokio::time::timeout_at(until, self.inlet.recv()).await {
                Ok(Some(command)) => self.hand_in(command),
                _ => return,
            }
        }
    }

    /// Carries out the commands that were handed in before the end.
    async fn finish(&mut self) {
        self.inlet.close();
        while let Ok(command) = self.inlet.try_recv() {
            self.hand_in(command);
        }
        while !self.is_idle() {
            self.queue.wake_all();
            self.serve().await;
        }
    }

    /// Answers claims whose wait is over, and all claims once the process stops.
    fn end_waiting(&mut self) {
        let ended = if self.store.inner.stopping.is_cancelled() {
            self.waiters.take_all()
        } else {
            self.waiters.ended(Instant::now())
        };
        for waiting in ended {
            answer(waiting.reply, Ok(Vec::new()));
        }
    }

    /// Takes in a notification that these publishers may have runs to hand out. Nil stands for any
    /// publisher.
    fn readied(&mut self, publishers: &BTreeSet<Uuid>) {
        if publishers.contains(&Uuid::nil()) {
            self.to_look_at.extend(self.waiters.publishers());
            self.to_look_at.extend(self.out.keys());
        }
        let (waiters, out) = (&self.waiters, &self.out);
        let waiting = publishers.iter().copied();
        let waiting = waiting.filter(|one| waiters.has(*one) || out.contains_key(one));
        self.to_look_at.extend(waiting);
    }

    /// Searches for runs that became available by time: whose start has come, or whose lease
    /// expired. Now and then it covers all publishers.
    fn tick(&mut self) {
        self.waiters.forget_gone();
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(LOOK_AT_ALL) {
            self.to_look_at.extend(self.waiters.publishers());
        }
        if self.bringing {
            return;
        }
        self.bringing = true;
        let publishers: Vec<Uuid> = self.waiters.publishers().collect();
        let store = self.store.clone();
        let work = async move { bring(&store, &publishers).await };
        self.spawn(work, |done| Note::Brought(done.and_then(|done| done)));
    }

    /// Runs a task beside the lane, which is told the result. A panic counts as an error.
    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
        tell: impl FnOnce(Result<T>) -> Note + Send + 'static,
    ) {
        let notes = self.notes.clone();
        let work = tokio::spawn(work);
        tokio::spawn(async move {
            let done = work.await;
            let done = done.map_err(|failed| StoreError::Internal(failed.to_string()));
            // Fails if the lane has ended.
            let _ = notes.send(tell(done));
        });
    }

    /// Starts a search for runs to hand out, unless one is running.
    fn look(&mut self) {
        if self.looking || self.to_look_at.is_empty() {
            return;
        }
        let (waiters, out) = (&self.waiters, &self.out);
        self.to_look_at
            .retain(|one| waiters.has(*one) || out.contains_key(one));
        // Publishers take turns: those after the one that was searched last come first.
        let (before, after): (Vec<Uuid>, Vec<Uuid>) = self
            .to_look_at
            .iter()
            .copied()
            .filter(|one| waiters.has(*one))
            .partition(|one| *one <= self.looked_at);
        let some = after.into_iter().chain(before).take(LOOK_MAX);
        let wanted: BTreeMap<Uuid, _> = some.map(|one| (one, waiters.named(one))).collect();
        for publisher in wanted.keys() {
            self.to_look_at.remove(publisher);
        }
        let Some(last) = wanted.keys().last() else {
            return;
        };
        self.looked_at = *last;
        self.looking = true;
        let store = self.store.clone();
        let work = async move { open_runs(&store, wanted).await };
        self.spawn(work, |done| Note::Looked(done.and_then(|done| done)));
    }

    fn take(&mut self, note: Note) {
        match note {
            Note::Looked(found) => {
                self.looking = false;
                match found {
                    Ok(found) => self.pick(found),
                    Err(error) => {
                        tracing::debug!(%error, "runs for waiting claims can't be read");
                    }
                }
            }
            Note::Checked(all) => {
                for (picked, checked) in all {
                    match checked {
                        Ok(()) => self.picked.push(picked),
                        Err(error) => {
                            self.came_back(picked.waiting.claim.publisher);
                            answer(picked.waiting.reply, Err(error));
                        }
                    }
                }
            }
            Note::Brought(done) => {
                self.bringing = false;
                if let Err(error) = done {
                    tracing::debug!(%error, "due runs for waiting claims can't be made ready");
                }
            }
        }
    }

    /// Checks and tries the waiting claims for which there are runs.
    fn pick(&mut self, found: Vec<(Uuid, Open)>) {
        let mut unknown = Vec::new();
        for (publisher, mut open) in found {
            for picked in self.waiters.pick(publisher, &mut open, PICKED_MAX) {
                self.goes_out(publisher);
                match self.known_good(&picked.waiting) {
                    Some(Ok(())) => self.picked.push(picked),
                    _ => unknown.push(picked),
                }
            }
        }
        if unknown.is_empty() {
            return;
        }
        let store = self.store.clone();
        let work = async move {
            let mut all = Vec::with_capacity(unknown.len());
            for picked in unknown {
                let checked = still_good(&store, &picked.waiting).await;
                all.push((picked, checked));
            }
            all
        };
        self.spawn(work, |done| Note::Checked(done.unwrap_or_default()));
    }

    /// Like [`still_good`], if the answer is known without the database.
    fn known_good(&self, waiting: &WaitingClaim) -> Option<Result<()>> {
        let principal = self.store.known_standing(&waiting.options.presented)?;
        Some(may_claim(Some(&principal)))
    }

    /// Counts a claim that is being checked or tried.
    fn goes_out(&mut self, publisher: Uuid) {
        *self.out.entry(publisher).or_default() += 1;
    }

    /// Ends [`Worker::goes_out`] for one claim.
    fn came_back(&mut self, publisher: Uuid) {
        if let Some(count) = self.out.get_mut(&publisher) {
            *count -= 1;
            if *count == 0 {
                self.out.remove(&publisher);
            }
        }
    }

    /// Commits a batch, together with the waiting claims that it may serve, and answers.
    async fn serve(&mut self) {
        let _under_way = self.store.progress().part("lane").work();
        let mut gathered = Gathered::default();
        let now = Instant::now();
        for command in self.queue.next_batch(self.most, now) {
            match command {
                Command::Claim(number, waiting, _) if self.lines_up(&waiting, now) => {
                    self.line_up(number, *waiting);
                }
                other => gathered.add(other),
            }
        }
        self.last = gathered.len();
        for tried in &gathered.claims {
            self.goes_out(tried.claim.publisher);
        }
        for picked in std::mem::take(&mut self.picked) {
            if picked.waiting.is_gone() {
                self.came_back(picked.waiting.claim.publisher);
            } else {
                gathered.claims.push(Tried::narrowed(picked));
            }
        }
        for (publisher, mut open) in gathered.fresh(self.store.now()) {
            for picked in self.waiters.pick(publisher, &mut open, PICKED_MAX) {
                match self.known_good(&picked.waiting) {
                    Some(Ok(())) => {
                        self.goes_out(publisher);
                        gathered.claims.push(Tried::narrowed(picked));
                    }
                    // It is tried again after the commit.
                    _ => self.waiters.insert(picked.number, picked.waiting),
                }
            }
        }
        gathered.claims.sort_by_key(|tried| tried.number);
        if gathered.len() > 0 {
            let began = Instant::now();
            self.commit(gathered).await;
            let now = Instant::now();
            self.queue.took(now - began, now);
        }
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
            Err(error) => self.refuse_all(gathered, &error),
        }
    }

    /// Runs a batch in a task of its own, so that a panic ends the batch and not the lane.
    async fn run(&self, batch: Batch) -> Result<BatchResults> {
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

    fn answer_all(&mut self, gathered: Gathered, done: BatchResults) {
        for ((_, reply), result) in gathered.creates.into_iter().zip(done.creates) {
            answer(reply, result);
        }
        for ((_, reply), result) in gathered.changes.into_iter().zip(done.changes) {
            answer(reply, result.map_err(StoreError::from));
        }
        for ((_, reply), result) in gathered.publishes.into_iter().zip(done.publishes) {
            answer(reply, result.map_err(StoreError::from));
        }
        let now = Instant::now();
        for (tried, claimed) in gathered.claims.into_iter().zip(done.claims) {
            let publisher = tried.claim.publisher;
            self.came_back(publisher);
            if claimed.is_empty() && tried.waiting.until > now {
                self.waiters.insert(tried.number, tried.waiting);
                continue;
            }
            if !claimed.is_empty() {
                // There may be more runs than claims were tried for.
                self.to_look_at.insert(publisher);
            }
            answer(tried.waiting.reply, Ok(claimed));
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
                Err(error) => self.refuse_all(one, &error),
            }
        }
    }

    fn refuse_all(&mut self, gathered: Gathered, error: &StoreError) {
        for (_, reply) in gathered.creates {
            answer(reply, Err(copy_of(error)));
        }
        for (_, reply) in gathered.changes {
            answer(reply, Err(copy_of(error)));
        }
        for tried in gathered.claims {
            self.came_back(tried.claim.publisher);
            answer(tried.waiting.reply, Err(copy_of(error)));
        }
        for (_, reply) in gathered.publishes {
            answer(reply, Err(copy_of(error)));
        }
    }
}

/// Whether what claimed may still claim. While the claim waited, the token may have been revoked,
/// the session ended, or the publisher suspended.
async fn still_good(store: &Store, waiting: &WaitingClaim) -> Result<()> {
    let principal = store.standing(&waiting.options.presented).await?;
    may_claim(principal.as_deref())
}

fn may_claim(principal: Option<&Principal>) -> Result<()> {
    let Some(principal) = principal.filter(|p| p.holds(Permission::RunsClaim)) else {
        return Err(Code::Unauthenticated.into());
    };
    if !principal.publisher.is_active() {
        return Err(Code::PublisherSuspended.into());
    }
    Ok(())
}
