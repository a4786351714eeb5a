//! Late deliveries beside deliveries on time.

use super::*;

const MS: Duration = Duration::from_millis(1);
const LATE: Duration = Duration::from_secs(10);

impl Game {
    /// Loads late deliveries for an endpoint.
    fn give_late(&mut self, key: EndpointKey, count: usize) {
        let since = self.wall.minus(LATE);
        let due = (0..count).map(|_| self.due(since)).collect();
        self.board.loaded(key, due, false, self.now);
    }

    /// An endpoint that answers promptly.
    fn quick(&mut self, key: EndpointKey) {
        self.hold(key, target());
        self.give(key, 1);
        assert!(self.start_all() > 0);
        self.end_all_of(key, true);
    }

    fn late(&self) -> usize {
        let since = self.wall.minus(LATE / 2);
        self.flights
            .iter()
            .filter(|one| one.due.due < since)
            .count()
    }
}

/// Sends for a second: one delivery on time every ten milliseconds, and as many late ones as
/// allowed. The loop wakes up by `later` later than planned. Returns how many late deliveries were
/// sent.
fn a_second(game: &mut Game, late: &[EndpointKey], other: EndpointKey, later: Duration) -> usize {
    let end = game.now + Duration::from_secs(1);
    let (mut count, mut on_time) = (0, game.now);
    while game.now < end {
        for key in late {
            game.read(*key, Some(target()));
            game.give_late(*key, 2);
        }
        game.read(other, Some(target()));
        if game.now >= on_time {
            game.give(other, 1);
            on_time += 10 * MS;
        }
        game.start_all();
        count += game.late();
        while !game.flights.is_empty() {
            game.end(0, true);
        }
        match game.board.next_measurement(game.now) {
            Some(look) if look <= game.now + MS => game.pass(look + later - game.now),
            _ => game.pass(MS),
        }
        game.board.woke(game.now);
    }
    count
}

#[test]
fn alone_a_backlog_goes_as_fast_as_it_can() {
    let mut game = Game::new();
    let one = key(1, 1);
    game.quick(one);
    game.pass(Duration::from_secs(1));
    let mut count = 0;
    for _ in 0..1000 {
        game.read(one, Some(target()));
        game.give_late(one, 8);
        count += game.start_all();
        game.end_all_of(one, true);
        game.pass(MS);
    }
    assert_eq!(count, 8000);
    assert_eq!(game.board.next_measurement(game.now), None);
    // What was sent alone does not count against the rate afterwards.
    let other = key(2, 1);
    game.quick(other);
    let count = a_second(&mut game, &[one], other, Duration::ZERO);
    assert!(count > 500, "{count}");
}

#[test]
fn beside_others_it_goes_by_how_taken_the_processors_are() {
    let mut game = Game::new();
    let (one, other) = (key(1, 1), key(2, 1));
    game.quick(one);
    game.quick(other);
    for _ in 0..3 {
        a_second(&mut game, &[one], other, Duration::ZERO);
    }
    let fast = a_second(&mut game, &[one], other, Duration::ZERO);
    assert!(fast > 1200, "{fast}");
    a_second(&mut game, &[one], other, 3 * MS);
    let slow = a_second(&mut game, &[one], other, 3 * MS);
    assert!((250..350).contains(&slow), "{slow}");
}

#[test]
fn what_is_on_time_goes_first_and_late_publishers_take_turns() {
    let mut game = Game::new();
    let late = [key(1, 1), key(1, 2), key(1, 3), key(2, 1)];
    let other = key(3, 1);
    for one in late.iter().chain([&other]) {
        game.quick(*one);
    }
    game.give_late(late[0], 2);
    game.give(other, 2);
    game.pass(MS);
    let first = game.board.pick(game.now, game.wall).unwrap();
    assert_eq!(first.key, other);
    game.flights.push(first);
    game.start_all();
    while !game.flights.is_empty() {
        game.end(0, true);
    }
    let mut turns = [0, 0];
    for _ in 0..1000 {
        for one in late {
            game.read(one, Some(target()));
            game.give_late(one, 2);
        }
        game.read(other, Some(target()));
        game.give(other, 1);
        game.start_all();
        for start in &game.flights {
            if start.key != other {
                turns[usize::from(start.key == late[3])] += 1;
            }
        }
        while !game.flights.is_empty() {
            game.end(0, true);
        }
        game.pass(MS);
    }
    let [three, one] = turns;
    assert!(three > 200 && one > 200, "{turns:?}");
    assert!(
        i32::abs_diff(three, one) < 20,
        "each publisher the same: {turns:?}"
    );
}

#[test]
fn it_gets_on_even_where_others_fill_every_place() {
    let mut game = Game::new();
    let one = key(1, 1);
    let others: Vec<EndpointKey> = (2..10).map(|at| key(at, 1)).collect();
    for at in others.iter().chain([&one]) {
        game.quick(*at);
    }
    let mut late = 0;
    for _ in 0..1000 {
        game.read(one, Some(target()));
        game.give_late(one, 1);
        for at in &others {
            game.read(*at, Some(target()));
            game.give(*at, 8);
        }
        game.start_all();
        assert_eq!(game.flights.len(), LIMITS.quick, "all places are taken");
        late += game.late();
        while !game.flights.is_empty() {
            game.end(0, true);
        }
        game.pass(MS);
    }
    assert!(late >= 200, "{late} in a second");
}

#[test]
fn what_is_held_back_wakes_the_loop_and_what_has_no_place_does_not() {
    let mut game = Game::new();
    let (one, other) = (key(1, 1), key(2, 1));
    game.quick(one);
    game.quick(other);
    game.pass(10 * MS);
    game.give_late(one, 100);
    game.start_all();
    let wake = game.board.next_wake().unwrap();
    assert!(wake > game.now && wake <= game.now + 4 * MS);
    game.pass(4 * MS);
    assert!(game.start_all() > 0, "it goes on");
    while game.under_way(|at| at == one) < LIMITS.endpoint {
        game.pass(4 * MS);
        game.start_all();
    }
    game.pass(4 * MS);
    assert_eq!(game.start_all(), 0);
    assert_eq!(game.board.next_wake(), None, "a place is what it waits for");
}
