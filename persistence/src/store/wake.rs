//! Notifies those that wait for a commit: the dispatcher, waiting claims, and watchers of runs and
//! of publishers' events, in this process and, on PostgreSQL, in the others.
//!
//! Other processes are notified with `NOTIFY`, sent after the commit on a connection of its own:
//! inside the transaction it would serialize all commits. A notification only speeds up what a slow
//! poll would find, so a lost one does no harm.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use domain::{
    id::{Id as _, PublisherId},
    progress::{Part, Progress},
};
use sea_orm::{
    ConnectionTrait as _, DbBackend, Statement,
    sqlx::{
        self, Executor as _, Row as _,
        postgres::{PgListener, PgPoolOptions},
    },
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::store::{
    connections::Connections,
    effects::{Deliveries, Effects, EndpointKey, Handed, HandedOver},
    pool::{Pool, Server, read_only},
};

/// The channel of all notifications.
const CHANNEL: &str = "stationmaster";
/// The shortest time between two notifications of a process.
const NOTIFY_EVERY: Duration = Duration::from_millis(5);
/// The pause before a lost connection is opened again.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);
/// After so long without a notification, the listening connection is checked.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// Most identifiers in a notification. PostgreSQL limits it to less than 8000 bytes.
const NAMES_MAX: usize = 200;
/// Most endpoints in a notification that resume although their receivers failed before. The process
/// that holds another endpoint does not learn of it before the pause ends by itself.
const RESUMED_MAX: usize = 16;
/// Most endpoints that are remembered for the dispatcher. If there are more, it is told to look for
/// any.
const WRITTEN_MAX: usize = 10_000;

/// What the dispatcher is notified of: endpoints with new deliveries, and publishers whose
/// endpoints changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Endpoints with new deliveries.
    pub endpoints: BTreeSet<EndpointKey>,
    /// Whether further endpoints may have new deliveries, which only the database can tell.
    pub others: bool,
    /// Endpoints to which deliveries are sent even if the receiver failed before.
    pub resumed: BTreeSet<EndpointKey>,
    /// New deliveries of this process, with their bodies.
    pub handed: Vec<HandedOver>,
    /// Publishers whose endpoints or secrets this process changed: what was read of them before is
    /// out of date.
    pub changed: BTreeSet<PublisherId>,
    /// Whether the clock was set: due times that were read before are out of date.
    pub stepped: bool,
}

/// What the dispatcher has yet to be notified of.
#[derive(Default)]
struct DispatcherNotifications {
    written: Written,
    handed: Handed<HandedOver>,
    /// Whether a dispatcher has ever asked. Before that, no deliveries are handed over.
    asked: bool,
}

impl DispatcherNotifications {
    fn is_empty(&self) -> bool {
        let Written {
            endpoints,
            others,
            changed,
            resumed,
            stepped,
            handed: _,
        } = &self.written;
        let named = endpoints.is_empty() && resumed.is_empty() && changed.is_empty();
        !stepped && !others && named && self.handed.is_empty()
    }

    fn look_for(&mut self, endpoints: impl Iterator<Item = EndpointKey>) {
        let known = &mut self.written.endpoints;
        known.extend(endpoints);
        if known.len() > WRITTEN_MAX {
            known.clear();
            self.written.others = true;
        }
    }

    fn resume(&mut self, endpoints: impl Iterator<Item = EndpointKey>) {
        let room = WRITTEN_MAX.saturating_sub(self.written.resumed.len());
        self.written.resumed.extend(endpoints.take(room));
    }

    /// Adds deliveries of a commit. Those without room are looked up later.
    fn wrote(&mut self, deliveries: Deliveries, since: std::time::Instant) {
        let keys = |some: BTreeSet<(Uuid, Uuid)>| {
            let some = some.into_iter();
            some.map(|(owner, id)| EndpointKey::of_uuids(owner, id))
        };
        self.resume(keys(deliveries.resumed));
        if !self.asked {
            self.look_for(keys(deliveries.endpoints));
            return;
        }
        self.look_for(keys(deliveries.looked_for));
        for (key, due) in deliveries.handed.into_all() {
            let bytes = due.body.len();
            if !self.handed.push(HandedOver { key, due, since }, bytes) {
                self.look_for(std::iter::once(key));
            }
        }
    }

    fn take(&mut self) -> Option<Written> {
        self.asked = true;
        if self.is_empty() {
            return None;
        }
        let handed = std::mem::take(&mut self.handed).into_all();
        Some(Written {
            handed,
            ..std::mem::take(&mut self.written)
        })
    }
}

/// What other processes have yet to be notified of.
#[derive(Default)]
struct PendingNotifications {
    deliveries: BTreeSet<(Uuid, Uuid)>,
    /// Endpoints to which deliveries are sent even if the receiver failed before.
    resumed: BTreeSet<(Uuid, Uuid)>,
    ready: BTreeSet<Uuid>,
    /// Runs that changed, and publishers with new events.
    changed: BTreeSet<Uuid>,
    /// Whether there are new fan-outs to spread.
    fan_outs: bool,
}

impl PendingNotifications {
    fn is_empty(&self) -> bool {
        let named = [&self.ready, &self.changed];
        let endpoints = [&self.deliveries, &self.resumed];
        !self.fan_outs
            && endpoints.iter().all(|some| some.is_empty())
            && named.iter().all(|some| some.is_empty())
    }
}

/// The notifications of this process.
pub(crate) struct Wake {
    process: Uuid,
    dispatcher: Mutex<DispatcherNotifications>,
    /// Notified when there may be deliveries to send.
    written_notify: Notify,
    ready: Mutex<BTreeSet<Uuid>>,
    /// Notified when a publisher may have runs to hand out.
    ready_notify: Notify,
    /// Notified when there are messages about trains to send. Other processes are not notified: the
    /// process that writes messages sends them, and the others find the rest by polling.
    notices_notify: Notify,
    mails_notify: Notify,
    /// Notified when there are fan-outs to spread.
    fan_outs_notify: Notify,
    watched: Mutex<HashMap<Uuid, watch::Sender<u64>>>,
    /// What other processes have yet to be notified of; `None` if there are no other processes.
    outbox: Option<Mutex<PendingNotifications>>,
    outbox_notify: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wake {
    pub(crate) fn new(others: bool) -> Self {
        Self {
            process: Uuid::from_bytes(domain::random::bytes()),
            dispatcher: Mutex::default(),
            written_notify: Notify::new(),
            ready: Mutex::default(),
            ready_notify: Notify::new(),
            notices_notify: Notify::new(),
            mails_notify: Notify::new(),
            fan_outs_notify: Notify::new(),
            watched: Mutex::default(),
            outbox: others.then(Mutex::default),
            outbox_notify: Notify::new(),
        }
    }

    /// Notifies everybody whom a commit concerns. It began after `since`.
    pub(crate) fn after(&self, effects: Effects, since: std::time::Instant) {
        if let Some(outbox) = &self.outbox {
            let mut outbox = lock(outbox);
            outbox.deliveries.extend(&effects.deliveries.endpoints);
            outbox.resumed.extend(&effects.deliveries.resumed);
        }
        // Changed publishers go together with deliveries, so that a delivery after a change is sent
        // with the change known.
        let retargeted = effects.targets_of.iter().copied();
        self.notify_dispatcher(|dispatcher| {
            let changed = &mut dispatcher.written.changed;
            changed.extend(retargeted.map(PublisherId::from_uuid));
            dispatcher.wrote(effects.deliveries, since);
        });
        self.readied(effects.runs_ready.iter().copied());
        self.changed(effects.changed.iter());
        if effects.notices {
            self.notices_notify.notify_one();
        }
        if effects.mails {
            self.mails_notify.notify_one();
        }
        if effects.fan_outs {
            self.fan_outs_notify.notify_one();
        }
        let Some(outbox) = &self.outbox else { return };
        let mut outbox = lock(outbox);
        outbox.ready.extend(&effects.runs_ready);
        outbox.changed.extend(&effects.changed);
        outbox.fan_outs |= effects.fan_outs;
        if !outbox.is_empty() {
            self.outbox_notify.notify_one();
        }
    }

    /// Notifies the dispatcher if `what` leaves something to tell.
    fn notify_dispatcher(&self, what: impl FnOnce(&mut DispatcherNotifications)) {
        let mut dispatcher = lock(&self.dispatcher);
        what(&mut dispatcher);
        if !dispatcher.is_empty() {
            self.written_notify.notify_one();
        }
    }

    /// Notifies the dispatcher that the clock was set.
    pub(crate) fn stepped(&self) {
        self.notify_dispatcher(|dispatcher| dispatcher.written.stepped = true);
    }

    fn wrote(
        &self,
        endpoints: impl Iterator<Item = (Uuid, Uuid)>,
        resumed: impl Iterator<Item = (Uuid, Uuid)>,
    ) {
        let key = |(owner, id)| EndpointKey::of_uuids(owner, id);
        self.notify_dispatcher(|dispatcher| {
            dispatcher.look_for(endpoints.map(key));
            dispatcher.resume(resumed.map(key));
        });
    }

    /// Waits until deliveries were written or endpoints changed, and returns them. From the first
    /// call on, deliveries of this process are handed over.
    pub(crate) async fn written(&self) -> Written {
        loop {
            let taken = lock(&self.dispatcher).take();
            if let Some(written) = taken {
                return written;
            }
            self.written_notify.notified().await;
        }
    }

    /// Waits until messages about trains were written.
    pub(crate) async fn noticed(&self) {
        self.notices_notify.notified().await;
    }

    /// Waits until a commit of this process wrote mails.
    pub(crate) async fn mailed(&self) {
        self.mails_notify.notified().await;
    }

    /// Waits until there are fan-outs to spread.
    pub(crate) async fn fanned_out(&self) {
        self.fan_outs_notify.notified().await;
    }

    fn readied(&self, publishers: impl Iterator<Item = Uuid>) {
        let mut ready = lock(&self.ready);
        ready.extend(publishers);
        if !ready.is_empty() {
            self.ready_notify.notify_one();
        }
    }

    fn changed<'a>(&self, runs: impl Iterator<Item = &'a Uuid>) {
        let mut watched = lock(&self.watched);
        if watched.is_empty() {
            return;
        }
        for run in runs {
            if let Some(sender) = watched.get(run) {
                sender.send_modify(|count| *count += 1);
                if sender.receiver_count() == 0 {
                    watched.remove(run);
                }
            }
        }
    }

    fn all_changed(&self) {
        let mut watched = lock(&self.watched);
        watched.retain(|_, sender| {
            sender.send_modify(|count| *count += 1);
            sender.receiver_count() > 0
        });
    }

    /// A counter that changes whenever the run changes, or the publisher has new events.
    pub(crate) fn watch(&self, of: Uuid) -> watch::Receiver<u64> {
        let mut watched = lock(&self.watched);
        // Removes entries without watchers. Runs that never change again are removed here only.
        if watched.len() >= 1024 && watched.len().is_power_of_two() {
            watched.retain(|_, sender| sender.receiver_count() > 0);
        }
        watched
            .entry(of)
            .or_insert_with(|| watch::channel(0).0)
            .subscribe()
    }

    /// Waits until publishers may have runs to hand out, and returns the publishers.
    pub(crate) async fn ready(&self) -> BTreeSet<Uuid> {
        loop {
            let taken = std::mem::take(&mut *lock(&self.ready));
            if !taken.is_empty() {
                return taken;
            }
            self.ready_notify.notified().await;
        }
    }

    /// Forgets which publishers have runs to hand out, since nobody waits.
    pub(crate) fn forget_ready(&self) {
        lock(&self.ready).clear();
    }

    /// Waits until there is something to send, and returns the next notification.
    async fn outgoing(&self, outbox: &Mutex<PendingNotifications>) -> String {
        loop {
            let pending = std::mem::take(&mut *lock(outbox));
            if !pending.is_empty() {
                return written(self.process, &pending);
            }
            self.outbox_notify.notified().await;
        }
    }

    /// Takes in another process's notification.
    fn incoming(&self, payload: &str) {
        let mut parts = payload.split(' ');
        if parts.next() == Some(self.process.simple().to_string().as_str()) {
            return;
        }
        let (mut ready, mut written, mut resumed) = (Vec::new(), Vec::new(), Vec::new());
        for part in parts {
            let (kind, rest) = part.split_at_checked(1).unwrap_or((part, ""));
            let id = Uuid::try_parse(rest).ok();
            let pair = rest.split_once(':').and_then(|(owner, id)| {
                Some((Uuid::try_parse(owner).ok()?, Uuid::try_parse(id).ok()?))
            });
            if let Some(endpoint) = pair.filter(|_| matches!(kind, "d" | "n")) {
                written.push(endpoint);
                resumed.extend((kind == "n").then_some(endpoint));
                continue;
            }
            match (kind, id) {
                ("f", _) => self.fan_outs_notify.notify_one(),
                ("w", Some(publisher)) => ready.push(publisher),
                ("r", Some(run)) => self.changed([run].iter()),
                _ => self.everything(),
            }
        }
        self.readied(ready.into_iter());
        self.wrote(written.into_iter(), resumed.into_iter());
    }

    /// Notifies everybody, after notifications may have been lost.
    fn everything(&self) {
        self.notify_dispatcher(|dispatcher| dispatcher.written.others = true);
        self.all_changed();
        self.readied([Uuid::nil()].into_iter());
        self.fan_outs_notify.notify_one();
    }

    /// Sends notifications to other processes and receives theirs until `stop`.
    pub(crate) async fn exchange(
        &self,
        server: Server,
        progress: &Progress,
        stop: CancellationToken,
    ) {
        let Some(outbox) = &self.outbox else { return };
        let (notifying, listening) = (progress.part("notifying"), progress.part("listening"));
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.send(outbox, &server, &notifying) => {}
            () = self.receive(&server, &listening) => {}
        }
    }

    async fn send(&self, outbox: &Mutex<PendingNotifications>, server: &Server, part: &Part) {
        let line = Connections::Postgres(Pool::new(server, 1, false));
        loop {
            let payload = self.outgoing(outbox).await;
            let sent = Instant::now();
            let notify = Statement::from_sql_and_values(
                DbBackend::Postgres,
                "SELECT pg_notify($1, $2)",
                [CHANNEL.into(), payload.into()],
            );
            let under_way = part.work();
            // Repeated until it succeeds: nothing else may follow that would show that the
            // connection works again.
            while let Err(error) = line.execute_raw(notify.clone()).await {
                part.failed();
                tracing::debug!(%error, "other processes can't be notified; they find changes by polling");
                tokio::time::sleep(RECONNECT_AFTER).await;
            }
            part.moved();
            drop(under_way);
            tokio::time::sleep_until(sent + NOTIFY_EVERY).await;
        }
    }

    async fn receive(&self, server: &Server, part: &Part) {
        let _at_work = part.work();
        loop {
            if let Err(error) = self.listen(server, part).await {
                part.failed();
                tracing::debug!(%error, "notifications of other processes can't be received; this process polls");
            }
            self.everything();
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }

    async fn listen(&self, server: &Server, part: &Part) -> Result<(), sqlx::Error> {
        let limit = server.limit();
        let within = || sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
        // sqlx closes a connection that is given up in a task of its own, for as long as the system
        // retransmits. There is one such task for each loss of the network.
        let greeter = server.clone();
        let line = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(limit)
            .after_connect(move |connection, _| {
                let server = greeter.clone();
                // sqlx would log a refusal here as an error. The check follows below.
                Box::pin(async move { server.set_up(connection).await.map(|_| ()) })
            })
            .connect_lazy_with(server.options().clone());
        let mut listener = PgListener::connect_with(&line).await?;
        let asked = timeout(limit, writes(&mut listener)).await;
        asked.unwrap_or_else(|_| Err(within()))?;
        let listening = timeout(limit, listener.listen(CHANNEL)).await;
        listening.unwrap_or_else(|_| Err(within()))?;
        // Commits before the listening began.
        self.everything();
        loop {
            part.moved();
            // May be dropped: a partly received notification stays in the connection's buffer.
            match timeout(ASK_AFTER, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => self.incoming(notification.payload()),
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    let asked = timeout(limit, writes(&mut listener)).await;
                    asked.unwrap_or_else(|_| Err(within()))?;
                }
            }
        }
    }
}

/// Whether the listening session is alive and may write: a standby receives no notifications.
async fn writes(listener: &mut PgListener) -> Result<(), sqlx::Error> {
    let row = listener.fetch_one("SHOW transaction_read_only").await?;
    let answer: String = row.try_get(0)?;
    if answer == "on" {
        return Err(read_only());
    }
    Ok(())
}

/// The text of a notification: `<process> [f] [n<publisher>:<endpoint>…] [d<publisher>:<endpoint>…]
/// [w<publisher>…] [r<run or publisher>…]`, or `*` for more than fits.
fn written(process: Uuid, pending: &PendingNotifications) -> String {
    use std::fmt::Write as _;
    // Writing to a string can't fail.
    let mut text = process.simple().to_string();
    if pending.fan_outs {
        text.push_str(" f");
    }
    // Resumed endpoints come first and are always listed: no poll finds them.
    for (publisher, endpoint) in pending.resumed.iter().take(RESUMED_MAX) {
        let _ = write!(text, " n{}:{}", publisher.simple(), endpoint.simple());
    }
    // An endpoint takes two identifiers.
    if 2 * pending.deliveries.len() + pending.ready.len() + pending.changed.len() > NAMES_MAX {
        text.push_str(" *");
        return text;
    }
    for (publisher, endpoint) in &pending.deliveries {
        let _ = write!(text, " d{}:{}", publisher.simple(), endpoint.simple());
    }
    for publisher in &pending.ready {
        let _ = write!(text, " w{}", publisher.simple());
    }
    for run in &pending.changed {
        let _ = write!(text, " r{}", run.simple());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[tokio::test]
    async fn what_one_process_writes_another_reads() {
        let (here, there) = (Wake::new(true), Wake::new(true));
        let mut watching = there.watch(id(7));
        let pending = PendingNotifications {
            deliveries: BTreeSet::from([(id(3), id(4))]),
            resumed: BTreeSet::from([(id(5), id(6))]),
            ready: BTreeSet::from([id(1), id(2)]),
            changed: BTreeSet::from([id(7)]),
            fan_outs: true,
        };
        let payload = written(here.process, &pending);
        there.incoming(&payload);
        assert_eq!(there.ready().await, pending.ready);
        assert!(watching.has_changed().unwrap());
        watching.mark_unchanged();
        let written = there.written().await;
        let endpoint = EndpointKey::of_uuids(id(3), id(4));
        let resumed = EndpointKey::of_uuids(id(5), id(6));
        assert_eq!(written.endpoints, BTreeSet::from([endpoint, resumed]));
        assert_eq!(written.resumed, BTreeSet::from([resumed]));
        assert!(!written.others);
        there.fanned_out().await;
        // A process ignores its own notifications.
        here.incoming(&payload);
        assert!(lock(&here.ready).is_empty());
    }

    #[tokio::test]
    async fn too_much_to_name_is_told_as_everything() {
        let (here, there) = (Wake::new(true), Wake::new(true));
        let pending = PendingNotifications {
            changed: (0..1000).map(id).collect(),
            ..PendingNotifications::default()
        };
        let payload = written(here.process, &pending);
        assert!(payload.len() < 8000);
        let watching = there.watch(id(5000));
        there.incoming(&payload);
        assert!(watching.has_changed().unwrap());
        assert_eq!(there.ready().await, BTreeSet::from([Uuid::nil()]));
        assert!(there.written().await.others);
    }

    /// A connection to PostgreSQL that is blocked at first.
    struct Gate {
        open: std::sync::atomic::AtomicBool,
        from: tokio::net::TcpListener,
        to: String,
    }

    impl Gate {
        async fn serve(&self) {
            loop {
                let (mut here, _) = self.from.accept().await.unwrap();
                if self.open.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut there = tokio::net::TcpStream::connect(&self.to).await.unwrap();
                    tokio::spawn(async move {
                        tokio::io::copy_bidirectional(&mut here, &mut there).await
                    });
                }
            }
        }
    }

    #[tokio::test]
    async fn what_could_not_be_told_is_told_later() {
        use sea_orm::sqlx::postgres::PgConnectOptions;
        for fixture in crate::fixture::engines().await {
            if fixture.store.backend() != DbBackend::Postgres {
                continue;
            }
            let options: PgConnectOptions = fixture.url.parse().unwrap();
            let gate = std::sync::Arc::new(Gate {
                open: false.into(),
                from: tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(),
                to: format!("{}:{}", options.get_host(), options.get_port()),
            });
            let port = gate.from.local_addr().unwrap().port();
            let options = options.host("127.0.0.1").port(port);
            let server = Server::new(options, Duration::from_secs(5));
            let serving = std::sync::Arc::clone(&gate);
            tokio::spawn(async move { serving.serve().await });
            let wake = std::sync::Arc::new(Wake::new(true));
            let (progress, telling) = (Progress::default(), std::sync::Arc::clone(&wake));
            let notifying = progress.part("notifying");
            tokio::spawn(async move {
                let stop = CancellationToken::new();
                telling.exchange(server, &progress, stop).await;
            });
            lock(wake.outbox.as_ref().unwrap()).changed.insert(id(7));
            wake.outbox_notify.notify_one();
            let until = async |failing: bool| {
                while notifying.standing().failing != failing {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(Duration::from_secs(20), until(true)).await.unwrap();
            gate.open.store(true, std::sync::atomic::Ordering::Relaxed);
            // There is nothing else to send, and the failure must not stay recorded.
            timeout(Duration::from_secs(20), until(false))
                .await
                .unwrap();
        }
    }

    #[test]
    fn the_longest_payload_fits() {
        let runs = PendingNotifications {
            changed: (0..NAMES_MAX as u128).map(id).collect(),
            ..PendingNotifications::default()
        };
        let endpoints = (0..NAMES_MAX as u128 / 2).map(|at| (id(1), id(at)));
        let deliveries = PendingNotifications {
            deliveries: endpoints.collect(),
            resumed: (0..100).map(|at| (id(1), id(at))).collect(),
            ..PendingNotifications::default()
        };
        for pending in [runs, deliveries] {
            let text = written(id(1), &pending);
            assert!(text.len() < 8000 && !text.ends_with('*'), "{text}");
        }
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_bounded() {
        let wake = Wake::new(false);
        let endpoints = (0..=WRITTEN_MAX as u128).map(|at| (id(1), id(at)));
        wake.wrote(endpoints, std::iter::empty());
        let written = wake.written().await;
        assert!(written.others && written.endpoints.is_empty());
    }

    #[test]
    fn nobody_is_remembered_for_ever() {
        let wake = Wake::new(false);
        drop(wake.watch(id(1)));
        wake.changed([id(1)].iter());
        assert!(lock(&wake.watched).is_empty());
    }
}
