use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use domain::{
    Clock as _,
    clock::SystemClock,
    id::{EndpointId, EventId},
    retry::Schedule,
    seal::MasterKeys,
    signature,
    slug::Slug,
    token::TokenHash,
};
use outbound::{Client, ClientLimits, Policy};
use persistence::{
    Answer, Attempt, Context, CreatedPublisher, Delivery, DeliveryFilter, NewEndpoint,
    NewPublisher, PageRequest, Scoped, Sending, Store, StoreOptions,
};
use secrecy::ExposeSecret as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::CancellationToken;

use crate::{Dispatcher, Outgoing, Settings};
use receiver::{Closed, Receiver, Reply, reply};

/// A store with one publisher, and the settings of the dispatcher.
struct World {
    store: Store,
    scoped: Scoped,
    created: CreatedPublisher,
    settings: Settings,
    dir: tempfile::TempDir,
}

fn policy() -> Policy {
    Policy {
        allow_http: true,
        allowed: vec!["127.0.0.0/8".parse().unwrap()],
        ..Policy::default()
    }
}

fn limits() -> ClientLimits {
    ClientLimits {
        total_timeout: Duration::from_secs(5),
        ..ClientLimits::default()
    }
}

fn no_content() -> Answer {
    Answer::new(204, String::new())
}

/// Runs a change, and returns what it rendered.
macro_rules! made {
    (|$keep:ident| $call:expr) => {{
        let slot = Mutex::new(None);
        let $keep = |value: &_| {
            let value = Clone::clone(value);
            *slot.lock().unwrap() = Some(value);
            no_content()
        };
        $call.await.unwrap();
        slot.into_inner().unwrap().unwrap()
    }};
}

// Declared after the macro, which these modules use.
mod changes;
mod handed;
mod hostile;
mod mails;
mod notices;
mod receiver;

impl World {
    async fn new(schedule: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            database_url: format!("sqlite://{}", dir.path().join("store.db").display()),
            master_keys: MasterKeys::parse(&MasterKeys::generate_text("test")).unwrap(),
            clock: Arc::new(SystemClock),
            max_connections: 2,
            sqlite_synchronous_full: false,
            write_batch_max: 256,
            database_timeout: Duration::from_secs(10),
            migrate: true,
        };
        let store = Store::open(options).await.unwrap();
        let slug = Slug::parse("acme").unwrap();
        let context = Context::system("test");
        let new = NewPublisher {
            slug,
            display_name: "Acme".into(),
        };
        let system = store.system();
        let created: CreatedPublisher =
            made!(|keep| system.publishers().create_publisher(&context, new, keep));
        let token = TokenHash::of_secret(&created.admin.text);
        let principal = store.authenticate(token).await.unwrap().unwrap();
        let scoped = store.scoped(&principal.scope);
        let settings = Settings {
            schedule: Schedule::parse(schedule).unwrap(),
            // Long, so that only a notice can make a delivery arrive in time.
            poll: Duration::from_secs(20),
            ..Settings::default()
        };
        Self {
            store,
            scoped,
            created,
            settings,
            dir,
        }
    }

    fn start(&self) -> (Dispatcher, CancellationToken) {
        self.start_with(Client::new(policy(), limits()))
    }

    fn start_with(&self, client: Client) -> (Dispatcher, CancellationToken) {
        let stop = CancellationToken::new();
        let dispatcher = self.start_until(client, Outgoing::Off, stop.clone());
        (dispatcher, stop)
    }

    fn start_until(
        &self,
        client: Client,
        outgoing: Outgoing,
        stop: CancellationToken,
    ) -> Dispatcher {
        Dispatcher::start(&self.store, client, outgoing, self.settings.clone(), stop)
    }

    async fn endpoint(&self, url: String, send_bearer: bool) -> EndpointId {
        self.endpoint_with(url, send_bearer, Sending::default())
            .await
    }

    async fn endpoint_with(&self, url: String, send_bearer: bool, sending: Sending) -> EndpointId {
        let new = NewEndpoint {
            url,
            description: None,
            event_types: vec!["*".into()],
            pipelines: None,
            headers: BTreeMap::from([("x-own".to_owned(), "mine".to_owned())]),
            enabled: true,
            send_bearer: Some(send_bearer),
            signing: signature::Signing::Hmac,
            sending,
        };
        let context = Context::system("test");
        let made: persistence::Endpoint =
            made!(|keep| self.scoped.webhooks().create_endpoint(&context, new, keep));
        made.id
    }

    async fn event(&self, endpoint: EndpointId) -> EventId {
        let context = Context::system("test");
        let made: persistence::Event = made!(|keep| self
            .scoped
            .webhooks()
            .test_endpoint(&context, endpoint, keep));
        made.id
    }

    /// The endpoint's deliveries, newest first, once `done` accepts them; waits at most 10 s.
    async fn until(
        &self,
        endpoint: EndpointId,
        done: impl Fn(&[Delivery]) -> bool,
    ) -> Vec<Delivery> {
        let filter = DeliveryFilter {
            endpoint: Some(endpoint),
            ..DeliveryFilter::default()
        };
        let mut last = Vec::new();
        for _ in 0..1000 {
            let page = PageRequest {
                limit: 200,
                after: None,
            };
            last = self
                .scoped
                .webhooks()
                .deliveries(&filter, page)
                .await
                .unwrap()
                .items;
            if done(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the deliveries did not get there: {last:?}");
    }

    async fn until_status(&self, endpoint: EndpointId, status: &str) -> (Delivery, Vec<Attempt>) {
        let all = self
            .until(endpoint, |all| all.iter().all(|one| one.status == status))
            .await;
        self.scoped.webhooks().delivery(all[0].id).await.unwrap()
    }
}

/// Checks that `count` deliveries arrived, each once; names those that did not.
fn each_came_once(receiver: &Receiver, count: usize) {
    let mut tries: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in receiver.received() {
        let header = |name: &str| request.headers[name].clone();
        let of_delivery = tries.entry(header("x-stationmaster-delivery")).or_default();
        of_delivery.push(header("x-stationmaster-attempt"));
    }
    let again: Vec<_> = tries.iter().filter(|(_, all)| all.len() > 1).collect();
    assert!(again.is_empty(), "these came again, by attempt: {again:?}");
    assert_eq!(tries.len(), count, "deliveries that came");
}

async fn end(world: World, dispatcher: Dispatcher, stop: CancellationToken) {
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), dispatcher.drained())
        .await
        .unwrap();
    world.store.close().await;
    drop(world.dir);
}

#[tokio::test]
async fn a_commit_sends_a_signed_request_at_once() {
    let world = World::new("5s").await;
    let receiver = Receiver::start(vec![Reply {
        body: "thanks",
        ..reply(200)
    }])
    .await;
    let (dispatcher, stop) = world.start();
    assert!(dispatcher.healthy());
    let endpoint = world.endpoint(receiver.url(), true).await;
    // The loop has run once and sleeps.
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.event(endpoint).await;
    let (delivery, attempts) = world.until_status(endpoint, "succeeded").await;
    assert_eq!(delivery.attempts, 1);
    assert_eq!(attempts[0].status_code, Some(200));
    assert_eq!(attempts[0].error, None);
    assert_eq!(attempts[0].response_excerpt.as_deref(), Some("thanks"));

    let all = receiver.received();
    let [request] = all.as_slice() else {
        panic!("{all:?}")
    };
    let header = |name: &str| request.headers[name].as_str();
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("webhook-id"), delivery.event_id.to_string());
    assert_eq!(header("x-stationmaster-delivery"), delivery.id.to_string());
    assert_eq!(header("x-stationmaster-attempt"), "1");
    assert_eq!(header("x-own"), "mine");
    let bearer = world.created.subcommand_bearer.text.expose_secret();
    assert_eq!(header("authorization"), format!("Bearer {bearer}"));
    let at: i64 = header("webhook-timestamp").parse().unwrap();
    assert!((SystemClock.now().seconds() - at).abs() < 10);
    let (secrets, body) = (
        [world.created.webhook_signing.text.clone()],
        request.body.as_bytes(),
    );
    let own = signature::stationmaster(&secrets, at, body);
    assert_eq!(header("x-stationmaster-signature"), own);
    let standard = signature::standard(&secrets, header("webhook-id"), at, body);
    assert_eq!(header("webhook-signature"), standard);
    assert!(
        request.body.contains(r#""type":"stationmaster.test""#),
        "{}",
        request.body
    );
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn a_failure_is_tried_again_with_a_signature_of_its_own() {
    let world = World::new("50ms,100ms,1h").await;
    let receiver = Receiver::start(vec![reply(500), reply(302), reply(204)]).await;
    let (dispatcher, stop) = world.start();
    let endpoint = world.endpoint(receiver.url(), false).await;
    world.event(endpoint).await;
    let (_, attempts) = world.until_status(endpoint, "succeeded").await;
    let codes: Vec<_> = attempts.iter().map(|a| (a.number, a.status_code)).collect();
    assert_eq!(codes, [(1, Some(500)), (2, Some(302)), (3, Some(204))]);
    assert_eq!(attempts[0].error.as_deref(), Some("status"));
    assert_eq!(
        attempts[1].error.as_deref(),
        Some("status"),
        "redirects are not followed"
    );
    let all = receiver.received();
    assert_eq!(all.len(), 3);
    for (at, request) in all.iter().enumerate() {
        assert_eq!(request.headers["webhook-id"], all[0].headers["webhook-id"]);
        assert_eq!(
            request.headers["x-stationmaster-attempt"],
            (at + 1).to_string()
        );
        assert!(!request.headers.contains_key("authorization"));
        assert_eq!(request.body, all[0].body);
    }
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn the_last_failure_is_the_end_and_each_has_its_class() {
    let world = World::new("20ms").await;
    let absent = Receiver::start(vec![reply(404)]).await;
    let closed = Closed::new();
    let refused = "http://10.1.2.3/".to_owned();
    let slow = Receiver::start(vec![Reply {
        after: Duration::from_mins(1),
        ..reply(200)
    }])
    .await;
    let (dispatcher, stop) = world.start();
    let mut cases = Vec::new();
    for (url, status, error) in [
        (absent.url(), Some(404), "status"),
        (format!("http://{}/", closed.address), None, "connect"),
        (refused, None, "destination_refused"),
    ] {
        let endpoint = world.endpoint(url, false).await;
        world.event(endpoint).await;
        cases.push((endpoint, status, error));
    }
    for (endpoint, status, error) in cases {
        let (delivery, attempts) = world.until_status(endpoint, "failed").await;
        assert_eq!(delivery.attempts, 2, "{error}");
        assert_eq!(delivery.next_attempt_at, None);
        for attempt in attempts {
            assert_eq!(attempt.status_code, status);
            assert_eq!(attempt.error.as_deref(), Some(error));
        }
    }
    let endpoint = world.endpoint(slow.url(), false).await;
    world.event(endpoint).await;
    let tried = |all: &[Delivery]| all.iter().all(|one| one.attempts > 0);
    let all = world.until(endpoint, tried).await;
    let (_, attempts) = world.scoped.webhooks().delivery(all[0].id).await.unwrap();
    assert_eq!(attempts[0].error.as_deref(), Some("timeout"));
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn one_that_is_gone_for_good_is_not_tried_again() {
    let world = World::new("20ms,20ms").await;
    let gone = Receiver::start(vec![reply(410)]).await;
    let (dispatcher, stop) = world.start();
    let endpoint = world.endpoint(gone.url(), false).await;
    world.event(endpoint).await;
    let (delivery, attempts) = world.until_status(endpoint, "failed").await;
    assert_eq!((delivery.attempts, attempts.len()), (1, 1));
    assert_eq!(attempts[0].status_code, Some(410));
    assert_eq!(attempts[0].error.as_deref(), Some("status"));
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn an_endpoint_may_have_its_own_schedule() {
    let world = World::new("1h").await;
    let failing = Receiver::start(vec![reply(500)]).await;
    let (dispatcher, stop) = world.start();
    let sending = Sending {
        retry_schedule: Schedule::parse("20ms,20ms,20ms").ok(),
        ..Sending::default()
    };
    let endpoint = world.endpoint_with(failing.url(), false, sending).await;
    world.event(endpoint).await;
    let (delivery, _) = world.until_status(endpoint, "failed").await;
    assert_eq!(delivery.attempts, 4);
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn an_order_holds_although_its_head_fails() {
    let world = World::new("200ms,200ms").await;
    // The second event fails once, the fourth finally.
    let replies = [204, 500, 204, 204, 500, 500, 500, 204];
    let receiver = Receiver::start(replies.into_iter().map(reply).collect()).await;
    let sending = Sending {
        ordered: true,
        ..Sending::default()
    };
    let endpoint = world.endpoint_with(receiver.url(), false, sending).await;
    let mut events = Vec::new();
    let (dispatcher, stop) = world.start();
    for _ in 0..6 {
        events.push(world.event(endpoint).await.to_string());
    }
    let ended = |all: &[Delivery]| all.iter().all(|one| one.finished_at.is_some());
    let all = world.until(endpoint, ended).await;
    let failed = all.iter().filter(|one| one.status == "failed");
    let failed: Vec<String> = failed.map(|one| one.event_id.to_string()).collect();
    assert_eq!(failed, [events[3].clone()]);
    let came: Vec<String> = receiver
        .received()
        .iter()
        .map(|one| one.headers["webhook-id"].clone())
        .collect();
    let wanted = [0, 1, 1, 2, 3, 3, 3, 4, 5].map(|at: usize| events[at].clone());
    assert_eq!(came, wanted);
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn a_rate_limit_holds_and_others_are_not_slowed_by_it() {
    let world = World::new("5s").await;
    let (limited, free) = (
        Receiver::start(vec![reply(204)]).await,
        Receiver::start(vec![reply(204)]).await,
    );
    let sending = Sending {
        rate_limit_per_second: Some(10),
        ..Sending::default()
    };
    let slow = world.endpoint_with(limited.url(), false, sending).await;
    let quick = world.endpoint(free.url(), false).await;
    for _ in 0..20 {
        world.event(slow).await;
        world.event(quick).await;
    }
    let began = Instant::now();
    let (dispatcher, stop) = world.start();
    world.until_status(quick, "succeeded").await;
    let meanwhile = limited.received().len();
    world.until_status(slow, "succeeded").await;
    let spread = began.elapsed();
    assert!(spread >= Duration::from_millis(1850), "{spread:?}");
    assert!(meanwhile < 20, "the others waited for the limited one");
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn two_processes_share_the_work_and_one_goes_on_when_the_other_ends() {
    let mut world = World::new("5s").await;
    world.settings.poll = Duration::from_millis(500);
    let receiver = Receiver::start(vec![reply(204)]).await;
    let endpoint = world.endpoint(receiver.url(), false).await;
    let (one, stop_one) = world.start();
    let (two, stop_two) = world.start();
    for _ in 0..20 {
        world.event(endpoint).await;
    }
    world.until_status(endpoint, "succeeded").await;
    stop_one.cancel();
    one.drained().await;
    for _ in 0..20 {
        world.event(endpoint).await;
    }
    world.until_status(endpoint, "succeeded").await;
    each_came_once(&receiver, 40);
    end(world, two, stop_two).await;
}

#[tokio::test]
async fn a_receiver_may_ask_for_a_longer_wait() {
    let world = World::new("20ms").await;
    let busy = Reply {
        headers: "retry-after: 3600\r\n",
        ..reply(429)
    };
    let receiver = Receiver::start(vec![busy]).await;
    let (dispatcher, stop) = world.start();
    let endpoint = world.endpoint(receiver.url(), false).await;
    world.event(endpoint).await;
    let tried = |all: &[Delivery]| all.iter().all(|one| one.attempts > 0);
    let delivery = world.until(endpoint, tried).await.remove(0);
    let wait = delivery
        .next_attempt_at
        .unwrap()
        .since(delivery.created_at)
        .as_secs();
    assert!((3600..3700).contains(&wait), "{wait}");
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn a_stop_waits_for_what_is_under_way_and_takes_nothing_new() {
    let world = World::new("5s").await;
    let receiver = Receiver::holding(vec![reply(200)]).await;
    let (dispatcher, stop) = world.start();
    let endpoint = world.endpoint(receiver.url(), false).await;
    world.event(endpoint).await;
    receiver.has(1).await;
    stop.cancel();
    world.event(endpoint).await;
    receiver.answer();
    dispatcher.drained().await;
    assert!(!dispatcher.healthy());
    let mut all = world.until(endpoint, |_| true).await;
    all.sort_by_key(|one| one.attempts);
    assert_eq!((all[0].status.as_str(), all[0].attempts), ("pending", 0));
    assert_eq!((all[1].status.as_str(), all[1].attempts), ("succeeded", 1));
    assert_eq!(receiver.received().len(), 1);

    let (dispatcher, stop) = world.start();
    world.until_status(endpoint, "succeeded").await;
    end(world, dispatcher, stop).await;
}

#[tokio::test]
async fn a_slow_endpoint_does_not_hold_up_another_one() {
    let mut world = World::new("5s").await;
    world.settings.in_flight_max = 4;
    world.settings.per_endpoint_max = 2;
    let (slow, quick) = (
        Receiver::holding(vec![reply(200)]).await,
        Receiver::start(vec![reply(200)]).await,
    );
    let stuck = world.endpoint(slow.url(), false).await;
    let free = world.endpoint(quick.url(), false).await;
    for _ in 0..12 {
        world.event(stuck).await;
    }
    for _ in 0..6 {
        world.event(free).await;
    }
    let (dispatcher, stop) = world.start();
    world.until_status(free, "succeeded").await;
    slow.has(2).await;
    assert_eq!(slow.received().len(), 2, "its places, and no more");
    slow.answer();
    world.until_status(stuck, "succeeded").await;
    assert_eq!(slow.received().len(), 12);
    assert_eq!(quick.received().len(), 6);
    end(world, dispatcher, stop).await;
}
