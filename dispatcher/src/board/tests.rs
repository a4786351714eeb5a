use std::collections::BTreeMap;

use domain::id::{EndpointId, EventId, Id as _};
use persistence::Handover;
use proptest::prelude::*;

use super::*;

mod handed;
mod late;

const LIMITS: Limits = Limits {
    quick: 32,
    slow: 16,
    all: 64,
    publisher: 12,
    endpoint: 8,
};

/// A board with a clock of its own, and its requests under way.
struct Game {
    board: Board,
    now: Instant,
    wall: Timestamp,
    flights: Vec<Start>,
    last_id: u128,
}

fn key(publisher: u128, endpoint: u128) -> EndpointKey {
    EndpointKey {
        publisher: PublisherId::from_uuid(uuid(publisher)),
        endpoint: EndpointId::from_uuid(uuid(publisher * 1000 + endpoint)),
    }
}

fn uuid(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}

fn target() -> DeliveryTarget {
    DeliveryTarget {
        url: "https://hooks.example/".into(),
        headers: BTreeMap::new(),
        bearer: None,
        secrets: Vec::new(),
        ordered: false,
        rate_limit_per_second: None,
        retry_schedule: None,
        max_in_flight: None,
        unreadable: false,
    }
}

fn ordered() -> DeliveryTarget {
    DeliveryTarget {
        ordered: true,
        ..target()
    }
}

impl Game {
    fn new() -> Self {
        Self {
            board: Board::new(LIMITS, Instant::now()),
            now: Instant::now(),
            wall: Timestamp::from_ms(1_800_000_000_000),
            flights: Vec::new(),
            last_id: 0,
        }
    }

    fn hold(&mut self, key: EndpointKey, target: DeliveryTarget) {
        let lease = Lease {
            key,
            fence: 1,
            state: Handover::default(),
        };
        self.board.hold(&lease, self.now, self.wall);
        self.read(key, Some(target));
    }

    fn read(&mut self, key: EndpointKey, target: Option<DeliveryTarget>) {
        let moment = (self.now, self.wall);
        self.board
            .set_target(key, target.map(Arc::new), self.now, moment);
    }

    fn due(&mut self, due: Timestamp) -> DueDelivery {
        self.last_id += 1;
        DueDelivery {
            id: DeliveryId::from_uuid(uuid(self.last_id)),
            event: EventId::from_uuid(uuid(self.last_id)),
            body: "{}".into(),
            attempt: 1,
            throttled: 0,
            due,
            created_at: due,
        }
    }

    /// Loads as much as the endpoints ask for, from an endless backlog.
    fn feed(&mut self) {
        loop {
            let loads = self.board.loads(10, self.now, Duration::ZERO);
            if loads.is_empty() {
                return;
            }
            for load in loads {
                let wall = self.wall;
                let due = (0..load.limit).map(|_| self.due(wall)).collect();
                self.board.loaded(load.key, due, true, self.now);
            }
        }
    }

    fn give(&mut self, key: EndpointKey, count: usize) {
        let wall = self.wall;
        let due = (0..count).map(|_| self.due(wall)).collect();
        self.board.loaded(key, due, false, self.now);
    }

    fn start_all(&mut self) -> usize {
        let mut count = 0;
        while let Some(start) = self.board.pick(self.now, self.wall) {
            self.flights.push(start);
            count += 1;
        }
        count
    }

    /// Ends a request, and records its outcome.
    fn end(&mut self, at: usize, success: bool) -> EndpointKey {
        let start = self.flights.swap_remove(at);
        let end = if success { End::Succeeded } else { End::Failed };
        self.board.ended(start.flight, end, self.now);
        let retried = !success;
        self.board.settled(start.key, start.due.id, retried, false);
        start.key
    }

    fn end_all_of(&mut self, key: EndpointKey, success: bool) {
        while let Some(at) = self.flights.iter().position(|one| one.key == key) {
            self.end(at, success);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.wall = self.wall.plus(time);
        self.board.age(self.now);
        self.board.wake(self.now);
    }

    fn under_way(&self, wanted: impl Fn(EndpointKey) -> bool) -> usize {
        self.flights.iter().filter(|one| wanted(one.key)).count()
    }
}

#[test]
fn an_endpoint_proves_itself_before_it_gets_its_whole_share() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.hold(one, target());
    game.feed();
    assert_eq!(game.start_all(), 4);
    game.end(0, true);
    assert_eq!(game.start_all(), 5, "up to its limit of 8");
    assert_eq!(game.under_way(|_| true), LIMITS.endpoint);
}

#[test]
fn own_limits_and_publishers_limits_hold() {
    let mut game = Game::new();
    let own = DeliveryTarget {
        max_in_flight: Some(2),
        ..target()
    };
    game.hold(key(1, 1), own);
    for endpoint in 2..8 {
        game.hold(key(1, endpoint), target());
    }
    game.feed();
    game.start_all();
    assert_eq!(game.under_way(|_| true), LIMITS.publisher);
    assert_eq!(game.under_way(|at| at == key(1, 1)), 2);
    // The limits of other endpoints stay the same.
    game.hold(key(2, 1), target());
    game.feed();
    assert_eq!(game.start_all(), 4);
}

#[test]
fn a_deep_backlog_takes_no_more_than_its_turn() {
    let mut game = Game::new();
    game.hold(key(1, 1), target());
    game.feed();
    game.start_all();
    game.end_all_of(key(1, 1), true);
    for publisher in 2..=20 {
        game.hold(key(publisher, 1), target());
        game.give(key(publisher, 1), 1);
    }
    game.feed();
    let mut order = Vec::new();
    while let Some(start) = game.board.pick(game.now, game.wall) {
        order.push(start.key);
        game.flights.push(start);
    }
    let first: BTreeSet<EndpointKey> = order[..20].iter().copied().collect();
    assert_eq!(
        first.len(),
        20,
        "each of the twenty once before anybody twice"
    );
}

#[test]
fn receivers_that_hang_leave_the_common_places_to_others() {
    let mut game = Game::new();
    // More requests hang than may be under way.
    for publisher in 1..=20 {
        game.hold(key(publisher, 1), target());
    }
    game.feed();
    game.start_all();
    assert_eq!(game.under_way(|_| true), LIMITS.quick);
    game.hold(key(50, 1), target());
    game.feed();
    assert_eq!(game.start_all(), 0, "all places are taken");
    game.pass(SLOW);
    for publisher in 1..=20 {
        game.read(key(publisher, 1), Some(target()));
    }
    game.read(key(50, 1), Some(target()));
    game.start_all();
    assert!(game.under_way(|at| at == key(50, 1)) > 0);
    assert!(game.flights.len() <= LIMITS.all);
    // An endpoint that answers has its full limit from then on.
    for _ in 0..100 {
        game.end_all_of(key(50, 1), true);
        game.feed();
        game.start_all();
        assert!(game.under_way(|at| at == key(50, 1)) >= 1);
    }
}

#[test]
fn what_was_read_under_an_earlier_lease_does_not_go_out() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.hold(one, target());
    assert_eq!(game.board.loads(10, game.now, Duration::ZERO).len(), 1);
    // Another process may have held the lease in between, and sent the deliveries of the page.
    game.board.lose_all();
    game.hold(one, target());
    game.give(one, 3);
    assert_eq!(game.start_all(), 0);
    assert_eq!(game.board.loads(10, game.now, Duration::ZERO).len(), 1);
    game.give(one, 3);
    assert_eq!(game.start_all(), 3, "it is read anew");
}

#[test]
fn what_was_not_sent_after_all_comes_first_again() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.hold(one, ordered());
    game.give(one, 3);
    assert_eq!(game.start_all(), 1);
    let first = game.flights.remove(0);
    game.board.unsent(first.flight, game.now);
    assert_eq!(game.board.awaited(), 0);
    assert_eq!(game.start_all(), 0, "the second does not overtake it");
    let load = game.board.loads(10, game.now, Duration::ZERO).remove(0);
    assert!(load.known.is_empty(), "it is read anew");
    game.board
        .loaded(one, vec![first.due.clone()], false, game.now);
    assert_eq!(game.start_all(), 1);
    assert_eq!(game.flights[0].due.id, first.due.id);
}

#[test]
fn an_order_sends_one_and_waits_for_its_record_and_its_retry() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.hold(one, ordered());
    game.give(one, 3);
    assert_eq!(game.start_all(), 1);
    let first = game.flights.remove(0);
    game.board.ended(first.flight, End::Succeeded, game.now);
    assert_eq!(game.start_all(), 0, "its outcome is not recorded yet");
    game.board.settled(one, first.due.id, false, false);
    assert_eq!(game.start_all(), 1);
    let second = game.flights.remove(0);
    game.board.ended(second.flight, End::Failed, game.now);
    game.board.settled(one, second.due.id, true, false);
    assert_eq!(game.start_all(), 0, "the third waits for the second");
    // The store returns it again, with its retry first.
    let later = game.wall.plus(Duration::from_millis(700));
    let page = vec![
        DueDelivery {
            due: later,
            attempt: 2,
            ..second.due.clone()
        },
        game.due(game.wall),
    ];
    game.board.loaded(one, page, false, game.now);
    assert_eq!(game.start_all(), 0);
    game.pass(Duration::from_millis(699));
    assert_eq!(game.start_all(), 0);
    game.pass(Duration::from_millis(1));
    assert_eq!(game.start_all(), 1);
    assert_eq!(game.flights[0].due.id, second.due.id);
}

#[test]
fn a_page_that_was_overtaken_does_not_change_an_order() {
    // The first delivery fails, or its outcome could not be recorded, while a page is being loaded.
    for (retried, again) in [(true, false), (false, true)] {
        let mut game = Game::new();
        let one = key(1, 1);
        game.hold(one, ordered());
        let all: Vec<DueDelivery> = (0..6).map(|_| game.due(game.wall)).collect();
        game.board.loaded(one, all[..3].to_vec(), true, game.now);
        assert_eq!(game.start_all(), 1);
        let first = game.flights.remove(0);
        let loads = game.board.loads(1, game.now, Duration::ZERO);
        assert_eq!(loads[0].known.len(), 3);
        game.board.ended(first.flight, End::Failed, game.now);
        game.board.settled(one, first.due.id, retried, again);
        // The page continues after the deliveries that were known when it was requested.
        game.board.loaded(one, all[3..].to_vec(), false, game.now);
        assert_eq!(game.start_all(), 0);
        let loads = game.board.loads(1, game.now, Duration::ZERO);
        assert!(loads[0].known.is_empty(), "all of it is asked for again");
        game.board.loaded(one, all.clone(), false, game.now);
        for wanted in &all {
            assert_eq!(game.start_all(), 1);
            assert_eq!(game.flights[0].due.id, wanted.id);
            game.end(0, true);
        }
    }
}

#[test]
fn a_rate_limit_spreads_what_waits() {
    let mut game = Game::new();
    let limited = DeliveryTarget {
        rate_limit_per_second: Some(5),
        ..target()
    };
    game.hold(key(1, 1), limited.clone());
    game.feed();
    let mut sent = 0;
    for _ in 0..300 {
        game.read(key(1, 1), Some(limited.clone()));
        game.feed();
        sent += game.start_all();
        game.end_all_of(key(1, 1), true);
        game.pass(Duration::from_millis(10));
    }
    assert!((14..=16).contains(&sent), "{sent} in three seconds");
}

#[test]
fn a_dead_endpoint_costs_a_probe_now_and_then() {
    let mut game = Game::new();
    game.hold(key(1, 1), target());
    let mut sent = 0;
    for _ in 0..6000 {
        game.read(key(1, 1), Some(target()));
        game.feed();
        sent += game.start_all();
        game.end_all_of(key(1, 1), false);
        game.pass(Duration::from_millis(10));
    }
    assert!((10..=20).contains(&sent), "{sent} in a minute");
    assert_eq!(game.board.figures().open, 1);
    // The first success closes the breaker again.
    game.pass(Duration::from_mins(6));
    game.read(key(1, 1), Some(target()));
    assert_eq!(game.start_all(), 1, "a probe goes alone");
    game.end_all_of(key(1, 1), true);
    game.feed();
    assert!(game.start_all() > 1);
}

#[test]
fn nothing_goes_out_by_an_old_target_or_without_a_lease() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.hold(one, target());
    game.give(one, 20);
    game.pass(Duration::from_millis(1001));
    assert_eq!(game.start_all(), 0);
    assert!(game.board.has_stale());
    assert_eq!(game.board.stale(game.now, Duration::ZERO), [one]);
    game.read(one, Some(target()));
    assert_eq!(game.start_all(), 4);
    // Disabled meanwhile: loaded deliveries are dropped, and requests under way end.
    game.end(0, true);
    game.read(one, None);
    assert_eq!(game.start_all(), 0);
    assert_eq!(game.board.figures().queued, 0);
    game.end_all_of(one, true);
    let given = game.board.idle(game.now, game.wall, 10);
    assert_eq!(given.len(), 1);
    assert_eq!(game.board.leases(), 0, "it is off the board");

    game.hold(one, target());
    game.give(one, 20);
    assert_eq!(game.start_all(), 4);
    assert!(!game.board.lose_numbered(one, 9), "another's number");
    assert!(game.board.lose_numbered(one, 1));
    game.end(0, true);
    assert_eq!(game.start_all(), 0);
    game.end_all_of(one, true);
    assert_eq!(game.board.leases(), 0);
}

#[test]
fn what_was_read_before_a_change_says_nothing_after_it() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.hold(one, target());
    game.read(one, None);
    // It is enabled while a read that began before is still under way.
    let before = game.now;
    game.pass(Duration::from_millis(1));
    let publishers = BTreeSet::from([one.publisher]);
    game.board.invalidate_targets(&publishers, game.now);
    let moment = (game.now, game.wall);
    game.board.set_target(one, None, before, moment);
    game.pass(Duration::from_millis(1));
    let loads = game.board.loads(1, game.now, Duration::ZERO);
    assert_eq!(loads.len(), 1, "it is looked at again");
    game.read(one, Some(target()));
    game.give(one, 1);
    assert_eq!(game.start_all(), 1);
}

#[test]
fn what_was_dealt_with_during_a_load_is_not_loaded_again() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.hold(one, target());
    let mine = game.due(game.wall);
    game.board.loaded(one, vec![mine.clone()], true, game.now);
    assert_eq!(game.start_all(), 1);
    let loads = game.board.loads(1, game.now, Duration::ZERO);
    assert!(loads[0].known.contains(&mine.id));
    game.end(0, true);
    // The page was read before the outcome was recorded.
    game.board.loaded(one, vec![mine], false, game.now);
    assert_eq!(game.start_all(), 0);
}

#[test]
fn an_idle_endpoint_is_given_back_with_its_state() {
    let mut game = Game::new();
    let one = key(1, 1);
    let limited = DeliveryTarget {
        rate_limit_per_second: Some(1),
        ..target()
    };
    game.hold(one, limited.clone());
    game.give(one, 1);
    assert_eq!(game.start_all(), 1);
    assert_eq!(game.board.loads(1, game.now, Duration::ZERO).len(), 1);
    game.board.loaded(one, Vec::new(), false, game.now);
    game.end_all_of(one, false);
    assert!(game.board.idle(game.now, game.wall, 10).is_empty());
    game.pass(Duration::from_secs(10));
    let given = game.board.idle(game.now, game.wall, 10);
    assert_eq!(given.len(), 1);
    assert_eq!(given[0].state.failures, 1);
    assert_eq!(given[0].state.tokens, Some((1000, game.wall)));
}

proptest! {
    /// Whatever happens, the limits hold, and no delivery that may be sent waits for ever.
    #[test]
    fn bounds_hold_and_all_come_to_their_turn(
        moves in prop::collection::vec((0_u8..6, 0_usize..64, any::<bool>()), 1..300),
    ) {
        let mut game = Game::new();
        let keys: Vec<EndpointKey> = (0..12).map(|at| key(at / 3, at % 3)).collect();
        for at in &keys {
            game.hold(*at, target());
        }
        for (what, which, success) in moves {
            match what {
                0 if !game.flights.is_empty() => {
                    game.end(which % game.flights.len(), success);
                }
                1 => game.pass(Duration::from_millis(which as u64 * 20)),
                2 => {
                    let at = keys[which % keys.len()];
                    game.board.lose_numbered(at, 1);
                    if success {
                        game.hold(at, target());
                    }
                }
                3 => game.read(keys[which % keys.len()], Some(target())),
                _ => game.feed(),
            }
            game.start_all();
            let figures = game.board.figures();
            prop_assert_eq!(figures.in_flight, game.flights.len());
            prop_assert!(figures.in_flight <= LIMITS.all);
            prop_assert!(figures.in_flight - figures.slow <= LIMITS.quick);
            for at in &keys {
                prop_assert!(game.under_way(|one| one == *at) <= LIMITS.endpoint);
                let own = |one: EndpointKey| one.publisher == at.publisher;
                prop_assert!(game.under_way(own) <= LIMITS.publisher);
            }
        }
        // In the end everything works again, and all deliveries are sent.
        while !game.flights.is_empty() {
            game.end(0, true);
        }
        game.pass(Duration::from_mins(10));
        for at in &keys {
            game.board.lose_numbered(*at, 1);
            game.hold(*at, target());
        }
        let mut served = BTreeSet::new();
        for _ in 0..keys.len() {
            game.feed();
            game.start_all();
            while !game.flights.is_empty() {
                served.insert(game.end(0, true));
            }
        }
        prop_assert_eq!(served.len(), keys.len());
    }
}
