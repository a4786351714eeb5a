//! Receivers that take every delivery, and whose connections end at the worst moment.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tests::{World, on_both_stores, tools};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

on_both_stores!(
    a_close_that_crosses_a_delivery_costs_no_event,
    a_status_counts_whatever_becomes_of_the_body,
);

const EVENTS: usize = 10;

/// Reads one request to its end; answers its head in small letters, `None` if there is none.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut seen = Vec::new();
    loop {
        let head = seen.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(head) = head.map(|at| String::from_utf8_lossy(&seen[..at]).to_lowercase()) {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().unwrap());
            if seen.len() >= head.len() + 4 + length {
                return Some(head);
            }
        }
        if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

/// A receiver that answers the first request of each connection with `answer`.
struct Once {
    url: String,
    /// Which events it took.
    taken: Arc<Mutex<BTreeSet<String>>>,
    task: JoinHandle<()>,
}

impl Once {
    /// Ends the connection when the next request comes, if it `waits` for that, else at once.
    async fn start(answer: &'static str, waits: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let taken: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let all = Arc::clone(&taken);
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let all = Arc::clone(&all);
                tokio::spawn(async move {
                    let Some(head) = request(&mut stream).await else {
                        return;
                    };
                    let id = head
                        .lines()
                        .find_map(|line| line.strip_prefix("webhook-id: "));
                    all.lock().unwrap().insert(id.unwrap().to_owned());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    if waits {
                        let _ = stream.read_u8().await;
                    }
                });
            }
        });
        Self { url, taken, task }
    }
}

impl Drop for Once {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Publishes events one after the other to an endpoint that gets one try each, and answers its
/// deliveries once they have ended.
async fn deliver(world: &World, receiver: &Once) -> Vec<serde_json::Value> {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    let body = json!({
        "url": receiver.url, "event_types": ["own.*"], "retry_schedule_seconds": [],
    });
    let made = admin.post("/v1/webhook-endpoints").json(&body);
    made.expect(201).await;
    for number in 0..EVENTS {
        let event = json!({"type": "own.event", "data": number});
        admin.post("/v1/events").json(&event).expect(202).await;
        // The connection is idle by then.
        tools::eventually("it is taken", Duration::from_secs(20), async || {
            (receiver.taken.lock().unwrap().len() > number).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tools::eventually("all have ended", Duration::from_secs(20), async || {
        let all = admin.all("/v1/deliveries").await;
        let ended = all.iter().all(|delivery| delivery["status"] != "pending");
        (all.len() == EVENTS && ended).then_some(all)
    })
    .await
}

async fn a_close_that_crosses_a_delivery_costs_no_event(world: &World) {
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let receiver = Once::start(answer, true).await;
    for delivery in deliver(world, &receiver).await {
        assert_eq!(delivery["status"], "succeeded", "{delivery}");
        assert_eq!(delivery["attempt_count"], 1, "{delivery}");
    }
}

async fn a_status_counts_whatever_becomes_of_the_body(world: &World) {
    let answer = "HTTP/1.1 200 OK\r\nx-folded: a\r\n b\r\ncontent-length: 100\r\n\r\nhalf";
    let receiver = Once::start(answer, false).await;
    for delivery in deliver(world, &receiver).await {
        assert_eq!(delivery["status"], "succeeded", "{delivery}");
        assert_eq!(delivery["attempt_count"], 1, "{delivery}");
    }
    assert_eq!(receiver.taken.lock().unwrap().len(), EVENTS);
}
