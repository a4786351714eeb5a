//! A consumer that only counts, for tests with thousands of deliveries. It has a thread of its own,
//! so that it records when requests arrive, not when the test has time for them. It can hold
//! requests, so that a test knows what is under way.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
};

const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";
/// The path of the requests of [`Tally::caught_up`], which do not count.
const CAUGHT_UP: &str = "/caught-up";

/// A complete request.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The time of arrival.
    pub at: Instant,
    /// The path.
    pub path: String,
    /// `webhook-id`.
    pub event: String,
    /// `x-stationmaster-delivery`.
    pub delivery: String,
    /// `x-stationmaster-attempt`.
    pub attempt: u32,
}

/// Decides which requests are held.
type Rule = Box<dyn FnMut(&Arrival) -> bool + Send>;

struct Counts {
    arrivals: Mutex<Vec<Arrival>>,
    open: AtomicUsize,
    peak: AtomicUsize,
    held: AtomicUsize,
    rule: Mutex<Option<Rule>>,
    /// How often held requests were released.
    releases: watch::Sender<u64>,
}

/// Adds one to a counter until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The consumer. Gone, with all its connections, when dropped.
pub struct Tally {
    /// The URL at which it listens; every path works.
    pub url: String,
    counts: Arc<Counts>,
    _alive: oneshot::Sender<()>,
}

impl Tally {
    /// Starts a consumer that answers 204 after `delay`.
    pub async fn start(delay: Duration) -> Self {
        let counts = Arc::new(Counts {
            arrivals: Mutex::default(),
            open: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            rule: Mutex::default(),
            releases: watch::channel(0).0,
        });
        let (alive, over) = oneshot::channel();
        let (tell, told) = oneshot::channel();
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = accept(listener, shared, delay) => {}
                    _ = over => {}
                }
            });
        });
        let address = told.await.unwrap();
        Self {
            url: format!("http://{address}"),
            counts,
            _alive: alive,
        }
    }

    /// Holds the requests that `rule` accepts from now on: they are answered after
    /// [`Tally::release`].
    pub fn hold(&self, rule: impl FnMut(&Arrival) -> bool + Send + 'static) {
        *self.counts.rule.lock().unwrap() = Some(Box::new(rule));
    }

    /// Answers all held requests, and holds no more.
    pub fn release(&self) {
        *self.counts.rule.lock().unwrap() = None;
        self.counts.releases.send_modify(|count| *count += 1);
    }

    /// How many requests are held whose senders are still there.
    #[must_use]
    pub fn held(&self) -> usize {
        self.counts.held.load(Ordering::Relaxed)
    }

    /// Waits until all requests that were sent before are counted, including those of dead
    /// processes.
    pub async fn caught_up(&self) {
        let address = self.url.trim_start_matches("http://");
        // Connections are accepted in their order, and read in turns: after the first answer all
        // are accepted, and after the second all were read.
        for _ in 0..2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let request = format!("POST {CAUGHT_UP} HTTP/1.1\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = [0; NO_CONTENT.len()];
            stream.read_exact(&mut answer).await.unwrap();
        }
    }

    /// All requests that arrived, in order.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.counts.arrivals.lock().unwrap().clone()
    }

    /// The number of requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.arrivals.lock().unwrap().len()
    }

    /// Whether no request arrived.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of different events.
    #[must_use]
    pub fn events(&self) -> usize {
        let arrivals = self.counts.arrivals.lock().unwrap();
        let events: HashSet<&str> = arrivals.iter().map(|one| one.event.as_str()).collect();
        events.len()
    }

    /// Most requests that were under way at the same time.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.counts.peak.load(Ordering::Relaxed)
    }
}

async fn accept(listener: TcpListener, counts: Arc<Counts>, delay: Duration) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let counts = Arc::clone(&counts);
        tokio::spawn(async move {
            // A killed sender can end the connection anywhere, so errors are ignored.
            let _ = serve(stream, &counts, delay).await;
        });
    }
}

async fn serve(mut stream: TcpStream, counts: &Counts, delay: Duration) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    loop {
        let (arrival, end) = loop {
            if let Some(found) = whole(&bytes) {
                break found;
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        };
        bytes.drain(..end);
        if arrival.path != CAUGHT_UP {
            let mut released = counts.releases.subscribe();
            let rule = |rule: &mut Rule| rule(&arrival);
            let hold = counts.rule.lock().unwrap().as_mut().is_some_and(rule);
            counts.arrivals.lock().unwrap().push(arrival);
            let _open = Counted::new(&counts.open);
            let open = counts.open.load(Ordering::Relaxed);
            counts.peak.fetch_max(open, Ordering::Relaxed);
            if hold {
                let _held = Counted::new(&counts.held);
                let done = async { drop(released.changed().await) };
                unless_gone(&stream, done).await;
            } else if !delay.is_zero() {
                unless_gone(&stream, tokio::time::sleep(delay)).await;
            }
        }
        stream.write_all(NO_CONTENT).await?;
    }
}

/// Waits for `done`, but no longer than the sender is there.
async fn unless_gone(stream: &TcpStream, done: impl Future<Output = ()>) {
    let mut gone = [0];
    tokio::select! {
        () = done => {}
        _ = stream.peek(&mut gone) => {}
    }
}

/// The complete request at the beginning of these bytes, and where it ends.
fn whole(bytes: &[u8]) -> Option<(Arrival, usize)> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let text = std::str::from_utf8(&bytes[..head]).unwrap();
    let mut lines = text.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap();
    let mut length = 0;
    let mut found = Arrival {
        at: Instant::now(),
        path: path.to_owned(),
        event: String::new(),
        delivery: String::new(),
        attempt: 0,
    };
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        match name {
            "content-length" => length = value.parse().unwrap(),
            "webhook-id" => value.clone_into(&mut found.event),
            "x-stationmaster-delivery" => value.clone_into(&mut found.delivery),
            "x-stationmaster-attempt" => found.attempt = value.parse().unwrap(),
            _ => {}
        }
    }
    let end = head + 4 + length;
    (bytes.len() >= end).then_some((found, end))
}
