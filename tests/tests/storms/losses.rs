//! Thousands of events, and a server that is killed ten times while they are published and
//! delivered: every acknowledged one arrives, and only what was under way arrives twice.
//!
//! Each death finds deliveries under way on purpose: before it the receiver holds what comes in, and
//! the process is killed when something is held.
//!
//! `STATIONMASTER_TEST_STORM_KILLS` sets how often; every life has its own five hundred events.

use std::collections::VecDeque;

use tests::{Site, World, on_both_stores, tools::Dice};

use super::*;

on_both_stores!(every_acknowledged_event_arrives);

/// Events that a life begins with, and those that are published while the receiver holds.
const PER_LIFE: usize = 460;
const LAST: usize = 40;
const WRITERS: usize = 6;
/// The longest that a server is left alone, counted from its first answer.
const LIFE_MAX_MS: u64 = 1200;
/// How much longer it lives once it has something under way.
const LAST_MAX_MS: u64 = 30;
/// After every so many kills the server is left alone until it has sent again what was under way.
const WATCHED: usize = 5;
/// How soon after a restart what was under way must come again. On a quiet machine it takes ten
/// seconds at most, PostgreSQL's eight until the dead process counts as dead among them; the rest is
/// for one that builds something else meanwhile.
const AGAIN_WITHIN: Duration = Duration::from_secs(20);

fn kills() -> usize {
    let given = std::env::var("STATIONMASTER_TEST_STORM_KILLS");
    given.map_or(10, |text| text.parse().unwrap())
}

/// In which life of the server an event is published first. Each has an endpoint of its own: one
/// that a dead process held is not free at once on PostgreSQL.
fn life_of(number: usize) -> usize {
    number / (PER_LIFE + LAST)
}

/// Whether it is one of those that are published while the receiver holds.
fn is_last(number: usize) -> bool {
    number % (PER_LIFE + LAST) >= PER_LIFE
}

fn type_of(number: usize) -> String {
    format!("load.n{}", life_of(number))
}

/// Requests of one life: one event each for a while, then a list, again and again. Those of the end
/// are single ones.
fn requests(dice: &mut Dice, life: usize) -> Vec<Vec<usize>> {
    let first = life * (PER_LIFE + LAST);
    let (mut all, mut next) = (Vec::new(), first);
    let end = first + PER_LIFE;
    while next < end {
        for _ in 0..dice.below(60) {
            all.push(vec![next]);
            next += 1;
        }
        // Many short lists, and some that are as long as the rest.
        let top = [10, 100, 1000][usize::try_from(dice.below(3)).unwrap()];
        let long = usize::try_from(2 + dice.below(top - 1)).unwrap();
        all.push((next..next + long).collect());
        next += long;
    }
    for request in &mut all {
        request.retain(|number| *number < end);
    }
    all.retain(|request| !request.is_empty());
    all.extend((end..end + LAST).map(|number| vec![number]));
    all
}

/// What the writers share.
struct Plan {
    source: Arc<Source>,
    requests: Mutex<VecDeque<Vec<usize>>>,
    /// Which life the server is in.
    life: AtomicUsize,
    /// For how many lives the receiver has begun to hold.
    holding: AtomicUsize,
}

impl Plan {
    fn may(&self, number: usize) -> bool {
        let life = life_of(number);
        let held = self.holding.load(Ordering::Relaxed) > life;
        life <= self.life.load(Ordering::Relaxed) && (held || !is_last(number))
    }

    async fn write(&self) {
        loop {
            let Some(request) = self.requests.lock().unwrap().pop_front() else {
                return;
            };
            while !self.may(request[0]) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            self.source.publish(0, &request, type_of).await;
        }
    }
}

struct Restart {
    death: Death,
    answered: Instant,
}

async fn kill_and_restart(
    server: &mut Server,
    site: &Arc<Site>,
    env: &[(&str, &str)],
    tally: &Tally,
) -> Restart {
    server.kill().await;
    tally.caught_up().await;
    let pending = pending(server).await;
    let over = Instant::now();
    *server = site.start(env).await;
    Restart {
        death: Death { over, pending },
        answered: Instant::now(),
    }
}

/// Deliveries that were under way at a death, and how long after the restart each came again;
/// nothing for those that had not before `until`.
fn under_way(
    restart: &Restart,
    arrivals: &[Arrival],
    until: Option<Instant>,
) -> Vec<Option<Duration>> {
    let mut again: HashMap<String, Option<Duration>> = HashMap::new();
    for arrival in arrivals {
        let delivery = delivery_of(arrival);
        if arrival.at < restart.death.over {
            if restart.death.pending.contains(&delivery) {
                again.insert(delivery, None);
            }
        } else if until.is_none_or(|until| arrival.at < until)
            && let Some(slot @ None) = again.get_mut(&delivery)
        {
            *slot = Some(arrival.at.saturating_duration_since(restart.answered));
        }
    }
    again.into_values().collect()
}

async fn every_acknowledged_event_arrives(world: &World) {
    let began = Instant::now();
    let mut dice = Dice::roll("every acknowledged event arrives");
    let address = tools::lasting_address();
    let env = [("STATIONMASTER_LISTEN", address.as_str())];
    let mut server = world.start_with(&env).await;
    let site = Arc::clone(server.site());
    let publisher = server.publisher("acme").await;
    let tally = Tally::start(Duration::ZERO).await;
    let kills = kills();
    let events = (kills + 1) * (PER_LIFE + LAST);
    for life in 0..=kills {
        let (url, wanted) = (format!("{}/{life}", tally.url), format!("load.n{life}"));
        endpoint(&publisher, &url, &[&wanted]).await;
    }
    let source = Source::new(&publisher, &[&server]);
    let requests = (0..=kills).flat_map(|life| requests(&mut dice, life));
    let plan = Arc::new(Plan {
        source: Arc::clone(&source),
        requests: Mutex::new(requests.collect()),
        life: AtomicUsize::new(0),
        holding: AtomicUsize::new(0),
    });
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let plan = Arc::clone(&plan);
        writers.spawn(async move { plan.write().await });
    }
    let mut restarts = Vec::new();
    for kill in 1..=kills {
        tokio::time::sleep(Duration::from_millis(dice.below(LIFE_MAX_MS))).await;
        let path = format!("/{}", kill - 1);
        tally.hold(move |arrival| arrival.path == path);
        plan.holding.store(kill, Ordering::Relaxed);
        tools::eventually("something is under way", WAIT_MAX, async || {
            (tally.held() > 0).then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_millis(dice.below(LAST_MAX_MS))).await;
        let restart = kill_and_restart(&mut server, &site, &env, &tally).await;
        tally.release();
        plan.life.store(kill, Ordering::Relaxed);
        if kill.is_multiple_of(WATCHED) {
            tools::eventually("what was under way comes again", AGAIN_WITHIN, async || {
                tokio::time::sleep(Duration::from_millis(30)).await;
                let again = under_way(&restart, &tally.arrivals(), None);
                again.iter().all(Option::is_some).then_some(())
            })
            .await;
        }
        restarts.push(restart);
    }
    let stormed = began.elapsed();
    plan.holding.store(kills + 1, Ordering::Relaxed);
    writers.join_all().await;
    drained(&server, Duration::from_mins(2)).await;
    let drained = began.elapsed();
    let arrivals = tally.arrivals();
    nothing_is_lost(&source, &publisher, &arrivals).await;
    assert_eq!(source.acknowledged().len(), events);
    judge(&restarts, &arrivals);
    eprintln!(
        "{events} events, {kills} kills: {:.1} s of storm, drained after {:.1} s, {:.1} s with \
         the checks; {} requests were not answered",
        stormed.as_secs_f64(),
        drained.as_secs_f64(),
        began.elapsed().as_secs_f64(),
        source.unanswered.load(Ordering::Relaxed),
    );
}

fn judge(restarts: &[Restart], arrivals: &[Arrival]) {
    let ends = restarts.iter().skip(1).map(|next| Some(next.death.over));
    let ends = ends.chain([None]);
    let again: Vec<Vec<Option<Duration>>> = restarts
        .iter()
        .zip(ends)
        .map(|(restart, until)| under_way(restart, arrivals, until))
        .collect();
    let found = again.iter().filter(|one| !one.is_empty()).count();
    let most = again.iter().map(Vec::len).max().unwrap();
    let slowest = again.iter().flatten().flatten().max().unwrap();
    let deaths: Vec<Death> = restarts
        .iter()
        .map(|restart| Death {
            over: restart.death.over,
            pending: restart.death.pending.clone(),
        })
        .collect();
    let repeats = repeats(arrivals, &deaths);
    eprintln!(
        "{repeats} deliveries came once more; {found} of {} kills met deliveries under way, \
         {most} at most; the last of them came again {:.1} s after its restart",
        restarts.len(),
        slowest.as_secs_f64(),
    );
    assert!(*slowest < AGAIN_WITHIN, "{slowest:?}");
    assert_eq!(found, restarts.len(), "every kill met deliveries under way");
    assert!(
        repeats <= restarts.len() * UNDER_WAY_MAX,
        "{repeats} came again"
    );
}
