//! A consumer that only counts, for stories of thousands of deliveries: a thread of its own, so
//! that what it notes is when requests came and not when the test had time for them.

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
    sync::oneshot,
};

const NO_CONTENT: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// A request that came in full.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// Where to.
    pub path: String,
    /// `webhook-id`.
    pub event: String,
    /// `x-stationmaster-delivery`.
    pub delivery: String,
    /// `x-stationmaster-attempt`.
    pub attempt: u32,
}

#[derive(Default)]
struct Counts {
    arrivals: Mutex<Vec<Arrival>>,
    open: AtomicUsize,
    peak: AtomicUsize,
}

/// The consumer. Gone, with all its connections, when dropped.
pub struct Tally {
    /// Where it listens; any path will do.
    pub url: String,
    counts: Arc<Counts>,
    _alive: oneshot::Sender<()>,
}

impl Tally {
    /// Starts one that answers 204 after this long.
    pub async fn start(delay: Duration) -> Self {
        let counts = Arc::new(Counts::default());
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

    /// Everything that came, in order.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.counts.arrivals.lock().unwrap().clone()
    }

    /// How many requests came.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.arrivals.lock().unwrap().len()
    }

    /// Whether none came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many events came, however often.
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
            // Whoever is killed breaks off anywhere.
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
        counts.arrivals.lock().unwrap().push(arrival);
        let open = counts.open.fetch_add(1, Ordering::Relaxed) + 1;
        counts.peak.fetch_max(open, Ordering::Relaxed);
        if !delay.is_zero() {
            // Nobody waits for an answer that nobody hears any more.
            let mut gone = [0];
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                _ = stream.peek(&mut gone) => {}
            }
        }
        counts.open.fetch_sub(1, Ordering::Relaxed);
        stream.write_all(NO_CONTENT).await?;
    }
}

/// The request at the beginning of these bytes, and where it ends.
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
