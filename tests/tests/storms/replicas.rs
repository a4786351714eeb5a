//! Three processes on one database, one of which dies or stands still in a flood.

use rustix::process::Signal;
use tests::{World, on_postgres};

use super::*;

on_postgres!(
    one_of_three_dies_in_a_flood,
    one_that_stands_still_starts_nothing_that_is_anothers,
);

const PLAIN: usize = 3000;
const ORDERED: usize = 150;
const LIMITED: usize = 160;
const RATE: usize = 20;
/// Receivers are quick, and still every process has something under way.
const TAKES: Duration = Duration::from_millis(20);
/// What takes the dead one's endpoints over does so within ten seconds; two more for a busy machine.
const OVER_WITHIN: Duration = Duration::from_secs(12);

async fn three(world: &World) -> Vec<Server> {
    let site = world.site().await;
    let mut servers = vec![site.start(&[]).await];
    for _ in 0..2 {
        servers.push(site.start_beside(&[]).await);
    }
    servers
}

/// How many endpoints a process holds.
async fn holds(server: &Server) -> usize {
    let text = server.metrics().await;
    let line = text.lines().find(|line| line.starts_with("stationmaster_dispatch_leases "));
    let count = line.and_then(|line| line.rsplit_once(' ')).map_or("0", |(_, count)| count);
    count.parse().unwrap()
}

/// A publisher with an endpoint that takes anything, one in order, and one with a limit; each is
/// held by the process through which its first event comes.
struct House {
    publisher: Publisher,
    source: Arc<Source>,
}

impl House {
    async fn open(servers: &[Server], number: usize, url: &str) -> Self {
        let publisher = servers[0].publisher(&format!("house-{number}")).await;
        for kind in ["plain", "ordered", "limited"] {
            let url = format!("{url}/{number}/{kind}");
            let mut body = json!({"url": url, "event_types": [format!("{kind}.event")]});
            match kind {
                "ordered" => body["ordered"] = json!(true),
                "limited" => body["rate_limit_per_second"] = json!(RATE),
                _ => {}
            }
            let call = publisher.admin.post("/v1/webhook-endpoints").json(&body);
            call.expect(201).await;
        }
        let servers: Vec<&Server> = servers.iter().collect();
        let source = Source::new(&publisher, &servers);
        Self { publisher, source }
    }

    /// Publishes everything, through all processes in turn, the first time through this one. One
    /// after the other where an order is to be kept.
    async fn flood(&self, first: usize) {
        let plain = async {
            let numbers: Vec<usize> = (0..PLAIN).collect();
            for (at, part) in numbers.chunks(100).enumerate() {
                self.source.publish(first + at, part, |_| "plain.event".to_owned()).await;
            }
        };
        let ordered = async {
            for number in 0..ORDERED {
                let at = first + 1 + number;
                let numbers = [PLAIN + number];
                self.source.publish(at, &numbers, |_| "ordered.event".to_owned()).await;
            }
        };
        let limited = async {
            let numbers: Vec<usize> = (PLAIN + ORDERED..PLAIN + ORDERED + LIMITED).collect();
            for (at, part) in numbers.chunks(LIMITED / 4).enumerate() {
                let at = first + 2 + at;
                self.source.publish(at, part, |_| "limited.event".to_owned()).await;
            }
        };
        tokio::join!(plain, ordered, limited);
    }
}

/// Arrivals at a path, in order.
fn at_path<'a>(arrivals: &'a [Arrival], path: &str) -> Vec<&'a Arrival> {
    arrivals.iter().filter(|one| one.path == path).collect()
}

async fn one_of_three_dies_in_a_flood(world: &World) {
    let mut servers = three(world).await;
    let tally = Tally::start(TAKES).await;
    let mut houses = Vec::new();
    for number in 0..3 {
        houses.push(House::open(&servers, number, &tally.url).await);
    }
    let all = 3 * (PLAIN + ORDERED + LIMITED);
    let flood = async {
        tokio::join!(houses[0].flood(0), houses[1].flood(1), houses[2].flood(2));
    };
    let kill = async {
        tools::eventually("the flood is on", PATIENCE, async || {
            (tally.len() > all / 6).then_some(())
        })
        .await;
        let mut held = Vec::new();
        for server in &servers {
            held.push(holds(server).await);
        }
        let dies = (0..3).max_by_key(|at| held[*at]).unwrap();
        servers[dies].kill().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        (dies, held)
    };
    let ((), (dies, held)) = tokio::join!(flood, async {
        let (dies, held) = kill.await;
        // Whoever published there goes elsewhere.
        let elsewhere = servers[(dies + 1) % 3].url();
        for house in &houses {
            house.source.urls[dies].write().unwrap().clone_from(&elsewhere);
        }
        (dies, held)
    });
    let _ = (dies, held);
    servers.clear();
    let _ = OVER_WITHIN;
}
