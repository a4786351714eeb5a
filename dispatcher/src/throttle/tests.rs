use std::collections::VecDeque;

use super::*;

/// A receiver that accepts `limit` deliveries within each window, which begins with the first of
/// them, and asks for a pause of `retry_after` when it refuses.
struct Receiver {
    limit: usize,
    window: Duration,
    retry_after: Duration,
    taken: VecDeque<Instant>,
}

impl Receiver {
    fn new(limit: usize, window: u64, retry_after: u64) -> Self {
        Self {
            limit,
            window: Duration::from_secs(window),
            retry_after: Duration::from_secs(retry_after),
            taken: VecDeque::new(),
        }
    }

    fn takes(&mut self, now: Instant) -> bool {
        while self
            .taken
            .front()
            .is_some_and(|at| *at + self.window <= now)
        {
            self.taken.pop_front();
        }
        let takes = self.taken.len() < self.limit;
        if takes {
            self.taken.push_back(now);
        }
        takes
    }
}

/// Sends deliveries one after the other, each of which takes 5 ms, until `count` have arrived.
/// Returns the time that this took, and the number of refusals.
fn drain(receiver: &mut Receiver, count: usize) -> (Duration, usize) {
    let began = Instant::now();
    let mut throttle = Throttle::new(began);
    let (mut now, mut arrived, mut refused) = (began, 0, 0);
    while arrived < count {
        if let Err(later) = throttle.ready(now) {
            assert!(later > now);
            now = later;
            continue;
        }
        throttle.take();
        now += Duration::from_millis(5);
        if receiver.takes(now) {
            throttle.succeeded(now);
            arrived += 1;
        } else {
            throttle.refused(receiver.retry_after, now);
            refused += 1;
        }
    }
    (now - began, refused)
}

#[test]
fn a_receiver_is_sent_to_nearly_as_fast_as_it_takes_and_seldom_refuses() {
    for (limit, window, retry_after, count, best) in [
        (10, 1, 1, 300, 30),
        (100, 1, 1, 3000, 30),
        (3, 1, 1, 90, 30),
        (600, 60, 60, 3000, 300),
        (10, 1, 5, 300, 30),
    ] {
        let mut receiver = Receiver::new(limit, window, retry_after);
        let (took, refused) = drain(&mut receiver, count);
        println!("{limit} a {window} s, Retry-After {retry_after}: {took:?}, {refused} refused");
        let pauses = 1.0 + 0.1 * f64::from(u32::try_from(retry_after).unwrap());
        assert!(
            took.as_secs_f64() < 1.2 * pauses * f64::from(best),
            "{took:?}"
        );
        assert!(refused <= 8, "{refused}");
    }
}

#[test]
fn a_receiver_that_takes_nothing_is_asked_ever_more_seldom() {
    let began = Instant::now();
    let mut throttle = Throttle::new(began);
    let (mut now, mut asked) = (began, 0);
    while now < began + Duration::from_hours(1) {
        match throttle.ready(now) {
            Ok(()) => {
                throttle.take();
                throttle.refused(Duration::ZERO, now);
                asked += 1;
            }
            Err(later) => {
                assert!(later > now && later <= now + BACKOFF_MAX);
                now = later;
            }
        }
    }
    assert!((15..=30).contains(&asked), "{asked}");
}

#[test]
fn what_was_under_way_when_the_pause_began_changes_no_rate() {
    let now = Instant::now();
    let mut throttle = Throttle::new(now);
    for _ in 0..50 {
        throttle.succeeded(now);
    }
    for _ in 0..20 {
        throttle.refused(Duration::from_secs(2), now);
    }
    let later = now + Duration::from_secs(2);
    assert_eq!(throttle.ready(now), Err(later));
    assert_eq!(throttle.pause(now), Some(Duration::from_secs(2)));
    assert_eq!(throttle.ready(later), Ok(()));
    assert!((throttle.per_second().unwrap() - 47.5).abs() < 0.1);
    // A longer pause that the receiver asks for meanwhile counts.
    throttle.refused(Duration::from_secs(2), later);
    throttle.refused(Duration::from_hours(100), later);
    assert_eq!(throttle.pause(later), Some(PAUSE_MAX));
    throttle.reset(later);
    assert_eq!(throttle.ready(later), Ok(()));
}

#[test]
fn a_limit_is_forgotten_in_time() {
    let now = Instant::now();
    let mut throttle = Throttle::new(now);
    throttle.refused(Duration::from_secs(1), now);
    assert_eq!(throttle.per_second(), Some(1.0));
    let later = now + Duration::from_mins(2);
    assert_eq!(throttle.ready(later), Ok(()));
    assert_eq!(throttle.per_second(), None);
}
