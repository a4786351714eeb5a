//! The loop that makes all decisions: it gets notes of what happened, and starts what is to be done
//! next.
//!
//! The loop never waits for the store or for a receiver. Whatever waits for them runs in a task of
//! its own, which nothing cancels, and reports back with a note.

use std::{
    collections::{BTreeSet, HashMap},
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use domain::Timestamp;
use persistence::{
    AttemptOutcome, EndpointKey, Lease, Next, ProcessId, RecordResult, Store, StoreError,
    WaitingEndpoint, Written,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    LastRun, Settings, attempt,
    board::{Board, Limits, Start},
    endpoint::End,
    meters::{gauge, lost},
    note::{LoadResult, Note, Recorded, Targets, Tried},
    process::Alive,
};

mod load;

use load::load;

/// A target in use is read again after this.
const REFRESH: Duration = Duration::from_millis(400);
/// The lease of an endpoint that another process holds is not asked for again before this.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// The pause after the store failed.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How long an endpoint rests after a request to it could not be made because this process lacked a
/// resource of its own.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);
/// The shortest time between two searches of all endpoints.
const POLL_MIN: Duration = Duration::from_millis(100);
/// Most endpoints of one statement that leases or loads.
const BATCH: usize = 32;
/// Most loads under way at the same time.
const LOADING_MAX: usize = 2;
/// Most endpoints that a process holds.
const LEASES_MAX: usize = 20_000;
/// Most retries that are remembered; the searches of all endpoints find the others.
const TIMERS_MAX: usize = 100_000;
/// Most leases that one statement gives back.
const GIVE_BACK_MAX: usize = 500;

/// An endpoint that another process holds.
struct Elsewhere {
    until: Instant,
    /// Whether a notice of it came meanwhile.
    notified: bool,
}

/// The kinds of work with the store that run one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Job {
    Lease,
    Refresh,
    Poll,
    GiveBack,
}

/// The work with the store that is under way.
#[derive(Default)]
struct Busy {
    jobs: BTreeSet<Job>,
    loading: usize,
}

pub(crate) struct Control {
    store: Store,
    client: outbound::Client,
    settings: Settings,
    alive: Arc<Alive>,
    last_run: Arc<LastRun>,
    notes: mpsc::UnboundedSender<Note>,
    heard: mpsc::UnboundedReceiver<Note>,
    outcomes: mpsc::UnboundedSender<AttemptOutcome>,
    process: Option<ProcessId>,
    board: Board,
    /// Endpoints with work that this process does not hold.
    wanted: BTreeSet<EndpointKey>,
    elsewhere: HashMap<EndpointKey, Elsewhere>,
    timers: BTreeSet<(Timestamp, EndpointKey)>,
    busy: Busy,
    next_poll: Instant,
    last_poll: Instant,
    /// When another process counts as dead unless it renews. All endpoints are searched then, for
    /// those that it held.
    expiry: Option<Timestamp>,
    next_refresh: Instant,
    next_tick: Instant,
    store_after: Instant,
    failing: Arc<AtomicBool>,
}

impl Control {
    pub(crate) fn new(
        (store, client, settings): (Store, outbound::Client, Settings),
        alive: Arc<Alive>,
        last_run: Arc<LastRun>,
        (notes, heard): (mpsc::UnboundedSender<Note>, mpsc::UnboundedReceiver<Note>),
        outcomes: mpsc::UnboundedSender<AttemptOutcome>,
    ) -> Self {
        let now = Instant::now();
        let limits = Limits {
            quick: settings.in_flight_max,
            slow: settings.in_flight_max.div_ceil(2),
            all: 2 * settings.in_flight_max,
            publisher: settings.per_publisher_max,
            endpoint: settings.per_endpoint_max,
        };
        Self {
            store,
            client,
            settings,
            alive,
            last_run,
            notes,
            heard,
            outcomes,
            process: None,
            board: Board::new(limits, now),
            wanted: BTreeSet::new(),
            elsewhere: HashMap::new(),
            timers: BTreeSet::new(),
            busy: Busy::default(),
            next_poll: now,
            last_poll: now,
            expiry: None,
            next_refresh: now,
            next_tick: now,
            store_after: now,
            failing: Arc::default(),
        }
    }

    /// Runs until `stop`, and then until all that is under way is recorded. Then gives all leases
    /// back, and cancels `end`.
    pub(crate) async fn run(mut self, stop: CancellationToken, end: CancellationToken) {
        let store = self.store.clone();
        let alive = Arc::clone(&self.alive);
        let part = store.progress().part("dispatch");
        let _at_work = part.work();
        loop {
            let stopping = stop.is_cancelled();
            if stopping && self.board.awaited() == 0 && self.busy.is_quiet() {
                break;
            }
            self.advance(stopping);
            self.last_run.now();
            part.moved();
            let sleep = tokio::time::sleep_until(self.next_wake(stopping).into());
            tokio::select! {
                note = self.heard.recv() => if let Some(note) = note { self.take(note) },
                written = store.deliveries_written(), if !stopping => self.written(written),
                () = alive.changed.notified() => {}
                () = sleep => {}
                () = stop.cancelled(), if !stopping => {}
            }
            while let Ok(note) = self.heard.try_recv() {
                self.take(note);
            }
        }
        self.leave().await;
        end.cancel();
    }

    /// Gives all leases back. One that can't be given back is free once this process's registration
    /// ends.
    async fn leave(mut self) {
        let leases = self.board.all_leases(Instant::now(), self.store.now());
        let Some(process) = self.process else { return };
        for part in leases.chunks(GIVE_BACK_MAX) {
            if let Err(error) = self
                .store
                .system()
                .webhooks()
                .give_back_leases(process, part)
                .await
            {
                tracing::warn!(%error, "leases could not be given back");
            }
        }
    }

    fn next_wake(&mut self, stopping: bool) -> Instant {
        if stopping {
            return self.next_tick;
        }
        let now = Instant::now();
        let wall = self.store.now();
        let timer = self.timers.first().map(|(at, _)| now + at.since(wall));
        let wakes = [self.board.next_wake(), self.board.next_measurement(now)];
        let first = timer.into_iter().chain(wakes.into_iter().flatten()).min();
        first.map_or(self.next_tick, |first| first.min(self.next_tick))
    }

    /// Takes notices of written deliveries and changed endpoints. Deliveries that are handed over
    /// come last: an endpoint that was notified loads everything from the store anyway.
    fn written(&mut self, written: Written) {
        if !written.changed.is_empty() {
            self.board
                .invalidate_targets(&written.changed, Instant::now());
        }
        for key in written.endpoints {
            self.notify(key);
        }
        for key in written.resumed {
            self.board.resume(key, Instant::now());
        }
        let now = Instant::now();
        for handed in written.handed {
            let key = handed.key;
            if self.board.hand_over(handed, now) {
                metrics::counter!("stationmaster_deliveries_handed_over_total").increment(1);
            } else {
                self.notify(key);
            }
        }
        if written.stepped {
            self.timers.clear();
            self.board.read_anew();
            self.next_poll = self.last_poll;
        }
        if written.others {
            self.next_poll = self.next_poll.min(self.last_poll + POLL_MIN);
        }
    }

    fn notify(&mut self, key: EndpointKey) {
        if self.board.is_held(key) {
            self.board.notify(key);
        } else if let Some(other) = self.elsewhere.get_mut(&key) {
            other.notified = true;
        } else {
            self.wanted.insert(key);
        }
    }

    fn take(&mut self, note: Note) {
        match note {
            Note::Leased(process, asked, taken) => self.leased(process, &asked, taken),
            Note::Loaded(asked, read_at, found) => self.loaded(&asked, read_at, found),
            Note::Refreshed(asked, read_at, targets) => {
                self.busy.jobs.remove(&Job::Refresh);
                match targets {
                    Some(targets) => self.set_targets(&asked, read_at, targets),
                    None => self.pause(),
                }
            }
            Note::Polled(waiting) => self.polled(waiting),
            Note::GivenBack => {
                self.busy.jobs.remove(&Job::GiveBack);
            }
            Note::Ended(flight, tried) => self.ended(flight, tried),
            Note::Unsent(flight) => self.board.unsent(flight, Instant::now()),
            Note::Short(flight) => {
                let now = Instant::now();
                let pause = SHORTAGE_PAUSE.mul_f64(domain::random::jitter(0.2));
                self.board.short_of(flight, now + pause, now);
            }
            Note::Recorded(all) => all.iter().for_each(|one| self.recorded(one)),
        }
    }

    /// The store failed: nothing is asked of it for [`STORE_PAUSE`].
    fn pause(&mut self) {
        self.store_after = Instant::now() + STORE_PAUSE;
    }

    fn leased(&mut self, process: ProcessId, asked: &[EndpointKey], taken: Option<Vec<Lease>>) {
        self.busy.jobs.remove(&Job::Lease);
        if taken.is_none() {
            self.pause();
        }
        // Leases of an earlier registration may belong to another process by now.
        let Some(taken) = taken.filter(|_| self.alive.process() == Some(process)) else {
            self.wanted.extend(asked);
            return;
        };
        let (now, wall) = (Instant::now(), self.store.now());
        for lease in &taken {
            self.board.hold(lease, now, wall);
        }
        for key in asked {
            if !self.board.is_held(*key) {
                let until = now + ELSEWHERE;
                self.elsewhere.insert(
                    *key,
                    Elsewhere {
                        until,
                        notified: false,
                    },
                );
            }
        }
    }

    fn set_targets(&mut self, asked: &[EndpointKey], read_at: Instant, mut targets: Targets) {
        let moment = (Instant::now(), self.store.now());
        for key in asked {
            self.board
                .set_target(*key, targets.remove(key), read_at, moment);
        }
    }

    fn loaded(&mut self, asked: &[EndpointKey], read_at: Instant, found: Option<LoadResult>) {
        self.busy.loading -= 1;
        let Some(found) = found else {
            self.pause();
            for key in asked {
                self.board.load_failed(*key);
            }
            return;
        };
        self.set_targets(&found.read, read_at, found.targets);
        let now = Instant::now();
        for page in found.pages {
            self.board.loaded(page.key, page.due, page.more, now);
        }
    }

    fn polled(&mut self, waiting: Option<Vec<WaitingEndpoint>>) {
        self.busy.jobs.remove(&Job::Poll);
        let Some(waiting) = waiting else {
            self.pause();
            return;
        };
        let wall = self.store.now();
        let mut oldest = Duration::ZERO;
        for one in waiting {
            if one.due > wall {
                // Perhaps no process has a timer for this retry: the one that had may be gone.
                self.timer(one.due, one.key);
                continue;
            }
            oldest = oldest.max(wall.since(one.due));
            self.elsewhere.remove(&one.key);
            self.notify(one.key);
        }
        metrics::gauge!("stationmaster_delivery_oldest_due_seconds").set(oldest.as_secs_f64());
    }

    fn timer(&mut self, at: Timestamp, key: EndpointKey) {
        if self.timers.len() < TIMERS_MAX {
            self.timers.insert((at, key));
        }
    }

    fn ended(&mut self, flight: u64, tried: Option<Tried>) {
        let end = match &tried {
            Some(tried) if tried.outcome.error.is_none() => End::Succeeded,
            Some(Tried {
                pause: Some(pause), ..
            }) => End::Throttled(*pause),
            _ => End::Failed,
        };
        let ended = self.board.ended(flight, end, Instant::now());
        match (tried, ended) {
            (Some(tried), _) => {
                // The recorder runs for as long as there is a sender, so this does not fail.
                let _ = self.outcomes.send(tried.outcome);
            }
            // The task panicked; the delivery is still due, and is loaded again.
            (None, Some((key, id))) => self.board.settled(key, id, false, true),
            (None, None) => {}
        }
    }

    fn recorded(&mut self, one: &Recorded) {
        let counted = one.verdict == Some(RecordResult::Recorded);
        let retried = matches!(one.next, Next::RetryAt(_) | Next::Throttled(_));
        let again = matches!(one.verdict, None | Some(RecordResult::LeaseLost));
        self.board
            .settled(one.key, one.id, counted && retried, again);
        match (one.verdict, one.next) {
            (Some(RecordResult::Recorded), Next::RetryAt(at) | Next::Throttled(at)) => {
                self.timer(at, one.key);
            }
            (Some(RecordResult::Recorded), Next::Gone) => self.board.forget_target(one.key),
            (Some(RecordResult::Recorded), _) => {}
            (Some(RecordResult::LeaseLost), _) => {
                lost("lease");
                if self.board.lose_numbered(one.key, one.fence) {
                    self.wanted.insert(one.key);
                }
            }
            (Some(RecordResult::Settled), _) => lost("settled"),
            (None, _) => lost("refused"),
        }
    }

    /// Starts everything that can be started now.
    fn advance(&mut self, stopping: bool) {
        let now = Instant::now();
        self.board.woke(now);
        self.follow_process();
        if now >= self.next_tick {
            self.tick(now, stopping);
        }
        if !stopping {
            self.wake(now);
            self.look(now);
        }
        let mut started = 0;
        // Checked before each start: the process may be suspended between any two.
        while !stopping && self.alive.sure(Instant::now()) {
            let Some(start) = self.board.pick(now, self.store.now()) else {
                break;
            };
            self.start(start);
            started += 1;
        }
        if !stopping {
            // Picking has shown which deliveries need their target read first.
            self.refresh_stale(now);
        }
        // What was sent may have made room to load more.
        if started > 0 {
            self.load(now);
        }
    }

    /// Drops all leases if the registration has changed: the new one holds none of them.
    fn follow_process(&mut self) {
        let process = self.alive.process();
        if process == self.process {
            return;
        }
        let lost = self.board.lose_all();
        if self.process.is_some() {
            self.wanted.extend(lost);
        }
        self.process = process;
        self.next_poll = Instant::now();
    }

    /// Does what depends on time alone.
    fn tick(&mut self, now: Instant, stopping: bool) {
        self.next_tick = now + self.settings.tick;
        self.board.age(now);
        let (board, wanted) = (&self.board, &mut self.wanted);
        self.elsewhere.retain(|key, other| {
            if other.until <= now && other.notified && !board.is_held(*key) {
                wanted.insert(*key);
            }
            other.until > now
        });
        if !stopping && !self.busy.with(Job::GiveBack) {
            self.give_back(now);
        }
        let figures = self.board.figures();
        gauge("stationmaster_deliveries_in_flight", figures.in_flight);
        gauge("stationmaster_deliveries_slow_in_flight", figures.slow);
        gauge("stationmaster_deliveries_loaded", figures.queued);
        gauge("stationmaster_dispatch_leases", figures.leases);
        for (state, count) in [("open", figures.open), ("probing", figures.probing)] {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            metrics::gauge!("stationmaster_dispatch_breakers", "state" => state).set(count);
        }
    }

    fn give_back(&mut self, now: Instant) {
        let Some(process) = self.process else { return };
        let leases = self.board.idle(now, self.store.now(), GIVE_BACK_MAX);
        if leases.is_empty() {
            return;
        }
        self.busy.jobs.insert(Job::GiveBack);
        let store = self.store.clone();
        self.work(
            async move {
                store
                    .system()
                    .webhooks()
                    .give_back_leases(process, &leases)
                    .await
            },
            |_| Note::GivenBack,
        );
    }

    /// Notifies endpoints whose retry is due, and wakes those that may go on.
    fn wake(&mut self, now: Instant) {
        let wall = self.store.now();
        while let Some((at, key)) = self.timers.first().copied()
            && at <= wall
        {
            self.timers.pop_first();
            self.notify(key);
        }
        self.board.wake(now);
    }

    /// Starts the work with the store that is due.
    fn look(&mut self, now: Instant) {
        let Some(process) = self.process else { return };
        if now < self.store_after {
            return;
        }
        self.poll(process, now);
        if !self.busy.with(Job::Lease)
            && !self.wanted.is_empty()
            && self.board.leases() < LEASES_MAX
        {
            self.lease(process);
        }
        if !self.busy.with(Job::Refresh) && now >= self.next_refresh {
            self.refresh(now);
        }
        self.load(now);
    }

    /// Reads at once the targets for which deliveries wait.
    fn refresh_stale(&mut self, now: Instant) {
        let may = self.process.is_some() && now >= self.store_after;
        if may && self.board.has_stale() && !self.busy.with(Job::Refresh) {
            self.refresh(now);
        }
    }

    fn poll(&mut self, process: ProcessId, now: Instant) {
        let wall = self.store.now();
        let expired = self.expiry.is_some_and(|at| at <= wall);
        // Replaced only after a search for the last one, or a later expiry would hide it.
        let next = self.alive.next_expiry().filter(|at| *at > wall);
        if self.busy.with(Job::Poll) || (now < self.next_poll && !expired) {
            self.expiry = self.expiry.filter(|_| expired).or(next);
            return;
        }
        self.expiry = next;
        self.busy.jobs.insert(Job::Poll);
        self.last_poll = now;
        self.next_poll = now + self.settings.poll.mul_f64(domain::random::jitter(0.1));
        let store = self.store.clone();
        self.work(
            async move { store.system().webhooks().waiting_endpoints(process).await },
            Note::Polled,
        );
    }

    fn lease(&mut self, process: ProcessId) {
        let mut asked = Vec::new();
        while asked.len() < BATCH
            && let Some(key) = self.wanted.pop_first()
        {
            if self.board.is_held(key) {
                self.board.notify(key);
            } else {
                asked.push(key);
            }
        }
        if asked.is_empty() {
            return;
        }
        self.busy.jobs.insert(Job::Lease);
        let (store, keys) = (self.store.clone(), asked.clone());
        self.work(
            async move { store.system().webhooks().take_leases(process, &keys).await },
            move |taken| Note::Leased(process, asked, taken),
        );
    }

    fn refresh(&mut self, now: Instant) {
        self.next_refresh = now + REFRESH;
        let keys = self.board.stale(now, REFRESH / 2);
        if keys.is_empty() {
            return;
        }
        self.busy.jobs.insert(Job::Refresh);
        let (store, asked) = (self.store.clone(), keys.clone());
        let read = async move {
            let mut all = Targets::new();
            for part in keys.chunks(GIVE_BACK_MAX) {
                all.extend(store.system().webhooks().targets(part).await?);
            }
            Ok(all)
        };
        self.work(read, move |targets| Note::Refreshed(asked, now, targets));
    }

    fn load(&mut self, now: Instant) {
        while self.busy.loading < LOADING_MAX && now >= self.store_after {
            let loads = self.board.loads(BATCH, now, REFRESH / 2);
            if loads.is_empty() {
                return;
            }
            self.busy.loading += 1;
            let asked: Vec<EndpointKey> = loads.iter().map(|load| load.key).collect();
            let store = self.store.clone();
            let read_at = Instant::now();
            self.work(load(store, loads), move |found| {
                Note::Loaded(asked, read_at, found)
            });
        }
    }

    /// Runs work with the store in a task of its own, which reports with a note. The note gets
    /// `None` if the work failed.
    fn work<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        note: impl FnOnce(Option<T>) -> Note + Send + 'static,
    ) {
        let (notes, failing) = (self.notes.clone(), Arc::clone(&self.failing));
        let part = self.store.progress().part("loading");
        tokio::spawn(async move {
            let _under_way = part.work();
            // A task within the task, so that the note is sent even if the work panics.
            let done = match tokio::spawn(work).await {
                Ok(Ok(value)) => {
                    part.moved();
                    if failing.swap(false, Ordering::Relaxed) {
                        tracing::info!("the store answers the dispatcher again");
                    }
                    Some(value)
                }
                Ok(Err(error)) => {
                    part.failed();
                    if !failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "deliveries wait for the store");
                    }
                    None
                }
                Err(error) => {
                    tracing::error!(%error, "deliveries wait: work with the store panicked");
                    None
                }
            };
            // The loop is gone only when the process ends.
            let _ = notes.send(note(done));
        });
    }

    fn start(&self, start: Start) {
        let (store, client) = (self.store.clone(), self.client.clone());
        let (schedule, notes) = (self.settings.schedule.clone(), self.notes.clone());
        let lag = store.now().since(start.due.due);
        metrics::histogram!("stationmaster_delivery_lag_seconds").record(lag.as_secs_f64());
        let (flight, alive) = (start.flight, Arc::clone(&self.alive));
        let make = async move {
            // The process may have been suspended since this was decided.
            if !alive.sure(Instant::now()) {
                return None;
            }
            Some(attempt::make(&store, &client, &schedule, start).await)
        };
        tokio::spawn(async move {
            let note = match tokio::spawn(make).await {
                Ok(Some(Some(tried))) => Note::Ended(flight, Some(tried)),
                Ok(Some(None)) => Note::Short(flight),
                Ok(None) => Note::Unsent(flight),
                Err(error) => {
                    tracing::error!(%error, "a delivery panicked");
                    Note::Ended(flight, None)
                }
            };
            let _ = notes.send(note);
        });
    }
}

impl Busy {
    fn with(&self, job: Job) -> bool {
        self.jobs.contains(&job)
    }

    fn is_quiet(&self) -> bool {
        self.jobs.is_empty() && self.loading == 0
    }
}
