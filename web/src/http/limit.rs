//! Rate limits: token buckets in memory.
//!
//! They count **per process**: two servers over one database allow twice as much together. They
//! are keyed only on authenticated identifiers or on addresses (IPv6 by its /64, which is what one
//! subscriber has), so nobody can fill them with keys of their own making. Somebody must call
//! [`RateLimits::forget_idle`] on a timer, or they grow with every address ever seen.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use governor::{
    NotUntil, Quota, RateLimiter,
    clock::{Clock, DefaultClock, Reference as _},
    middleware::{StateInformationMiddleware, StateSnapshot},
    state::keyed::DashMapStateStore,
};
use poem::http::{HeaderName, HeaderValue};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use domain::{Code, Problem, random, token::TokenHash};

use super::address::network;

/// What is left of the policy's quota (draft-ietf-httpapi-ratelimit-headers).
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
/// The policy itself.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// How often [`RateLimits::forget_idle`] should run.
pub const FORGET_EVERY: Duration = Duration::from_mins(1);

/// How long a token's turn lasts: enough for a client that waited a whole number of seconds.
const TURN: Duration = Duration::from_secs(2);
/// How many turns there are before each token has had one.
const TURNS: u64 = 30;

/// How much is allowed; 0 is off, for each.
#[derive(Clone, Copy, Debug)]
pub struct RateSettings {
    /// Requests a second of one publisher; twice as many at once.
    pub publisher_per_second: u32,
    /// Failed authentications a minute from one address.
    pub auth_failures_per_minute: u32,
    /// Successful uses of bootstrap tokens a minute.
    pub bootstrap_per_minute: u32,
    /// Failed bootstrap attempts a minute from one address.
    pub bootstrap_failures_per_minute: u32,
    /// Requests a minute of people who are not signed in yet, from one network.
    pub visits_per_minute: u32,
}

impl Default for RateSettings {
    fn default() -> Self {
        Self {
            publisher_per_second: 1000,
            auth_failures_per_minute: 60,
            bootstrap_per_minute: 60,
            bootstrap_failures_per_minute: 5,
            visits_per_minute: 240,
        }
    }
}

/// What is left of an allowance after a request, for the answer's headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateState {
    name: &'static str,
    policy: HeaderValue,
    remaining: u32,
    reset_s: u64,
}

impl RateState {
    /// The values of `RateLimit-Policy` and `RateLimit`: structured fields with the quota `q`, its
    /// window `w` in seconds, what is left `r`, and the seconds `t` until all of it is back.
    #[must_use]
    pub fn headers(&self) -> [(HeaderName, HeaderValue); 2] {
        let limit = format!("\"{}\";r={};t={}", self.name, self.remaining, self.reset_s);
        let limit =
            HeaderValue::try_from(limit).unwrap_or(HeaderValue::from_static("\"limit\";r=0"));
        [
            (RATE_LIMIT_POLICY, self.policy.clone()),
            (RATE_LIMIT, limit),
        ]
    }
}

type Keyed<K, C> = RateLimiter<K, DashMapStateStore<K>, C, StateInformationMiddleware>;

/// One policy: a token bucket a key.
struct Bucket<K, C>
where
    K: std::hash::Hash + Eq + Clone,
    C: Clock + Clone,
{
    name: &'static str,
    policy: HeaderValue,
    refill: Duration,
    burst: NonZeroU32,
    limiter: Keyed<K, C>,
}

impl<K, C> Bucket<K, C>
where
    K: std::hash::Hash + Eq + Clone,
    C: Clock + Clone,
{
    /// `None` when `burst` is 0, which switches the policy off.
    fn new(name: &'static str, burst: u32, refill: Duration, clock: C) -> Option<Self> {
        let burst = NonZeroU32::new(burst)?;
        let quota = Quota::with_period(refill)?.allow_burst(burst);
        let window_s = (refill * burst.get()).as_secs().max(1);
        let policy = HeaderValue::try_from(format!("\"{name}\";q={burst};w={window_s}")).ok()?;
        let limiter = RateLimiter::new(quota, DashMapStateStore::default(), clock);
        Some(Self {
            name,
            policy,
            refill,
            burst,
            limiter,
        })
    }

    fn take(&self, key: &K) -> Result<RateState, Refusal> {
        match self.limiter.check_key(key) {
            Ok(snapshot) => Ok(self.state(&snapshot)),
            Err(until) => Err(self.refusal(&until)),
        }
    }

    fn state(&self, snapshot: &StateSnapshot) -> RateState {
        let remaining = snapshot.remaining_burst_capacity();
        let missing = self.burst.get().saturating_sub(remaining);
        RateState {
            name: self.name,
            policy: self.policy.clone(),
            remaining,
            reset_s: seconds_up(self.refill * missing),
        }
    }

    fn refusal(&self, until: &NotUntil<C::Instant>) -> Refusal {
        let wait_s = seconds_up(until.wait_time_from(self.limiter.clock().now()));
        count_refusal(self.name);
        Refusal {
            state: RateState {
                name: self.name,
                policy: self.policy.clone(),
                remaining: 0,
                reset_s: wait_s,
            },
            problem: Box::new(
                Problem::new(
                    Code::RateLimited,
                    format!(
                        "The rate limit \"{}\" is used up; wait {wait_s} s.",
                        self.name
                    ),
                )
                .retry_after(wait_s),
            ),
        }
    }

    fn forget_idle(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

fn seconds_up(duration: Duration) -> u64 {
    let partial = u64::from(duration.subsec_nanos() > 0);
    (duration.as_secs() + partial).max(1)
}

/// A refusal by a rate limit: the problem to answer, and the state to note for the headers.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What the answer's `RateLimit` headers say.
    pub state: RateState,
    /// 429 with `Retry-After`.
    pub problem: Box<Problem>,
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        *refusal.problem
    }
}

/// All rate limits of one process.
pub struct RateLimits<C: Clock + Clone = DefaultClock> {
    publishers: Option<Bucket<Uuid, C>>,
    operators: Option<Bucket<(), C>>,
    auth_failures: Option<Failures<C>>,
    bootstrap_failures: Option<Failures<C>>,
    visits: Option<Bucket<IpAddr, C>>,
    turns: Turns<C>,
}

impl RateLimits {
    /// Limits as `settings` say, on the machine's clock.
    #[must_use]
    pub fn new(settings: RateSettings) -> Self {
        Self::with_clock(settings, &DefaultClock::default())
    }
}

impl<C: Clock + Clone> RateLimits<C> {
    /// The same on a clock that tests drive.
    #[must_use]
    pub fn with_clock(settings: RateSettings, clock: &C) -> Self {
        let every = |count: u32, period: Duration| period / count.max(1);
        let second = Duration::from_secs(1);
        let minute = Duration::from_mins(1);
        let per_second = settings.publisher_per_second;
        let bootstrap = settings.bootstrap_per_minute;
        Self {
            publishers: Bucket::new(
                "publisher",
                per_second.saturating_mul(2),
                every(per_second, second),
                clock.clone(),
            ),
            operators: Bucket::new(
                "operator",
                bootstrap,
                every(bootstrap, minute),
                clock.clone(),
            ),
            auth_failures: Failures::new(
                "failed-authentication",
                settings.auth_failures_per_minute,
                clock,
            ),
            bootstrap_failures: Failures::new(
                "failed-bootstrap",
                settings.bootstrap_failures_per_minute,
                clock,
            ),
            visits: Bucket::new(
                "visitor",
                settings.visits_per_minute,
                every(settings.visits_per_minute, minute),
                clock.clone(),
            ),
            turns: Turns::new(clock.clone()),
        }
    }

    /// Counts a request of a publisher. `None`: there is no limit.
    ///
    /// # Errors
    /// 429 when its share is used up.
    pub fn check_publisher(&self, publisher: Uuid) -> Result<Option<RateState>, Refusal> {
        self.publishers
            .as_ref()
            .map(|bucket| bucket.take(&publisher))
            .transpose()
    }

    /// Counts a successful use of a bootstrap token. `None`: there is no limit.
    ///
    /// # Errors
    /// 429 when the operator's allowance is used up.
    pub fn check_operator(&self) -> Result<Option<RateState>, Refusal> {
        self.operators
            .as_ref()
            .map(|bucket| bucket.take(&()))
            .transpose()
    }

    /// Counts a request of somebody who wants in, for the network that it comes from. `None`: there
    /// is no limit.
    ///
    /// # Errors
    /// 429 when the network's allowance is used up.
    pub fn check_visitor(&self, address: IpAddr) -> Result<Option<RateState>, Refusal> {
        self.visits
            .as_ref()
            .map(|bucket| bucket.take(&network(address)))
            .transpose()
    }

    /// To be asked before a token that this process has not verified yet is looked up in the
    /// store.
    ///
    /// # Errors
    /// 429 while the address has used up its failures, unless it is the token's turn: somebody
    /// else behind the same address may guess for ever, so each token has one every minute.
    pub fn may_authenticate(&self, address: IpAddr, token: &TokenHash) -> Result<(), Refusal> {
        let Some(failures) = &self.auth_failures else {
            return Ok(());
        };
        let allowed = failures.may_try(address);
        if allowed.is_err() && self.turns.has(token) {
            return Ok(());
        }
        allowed
    }

    /// Counts a failed authentication.
    ///
    /// # Errors
    /// 429 when this one was too many; the answer is 401 otherwise.
    pub fn authentication_failed(&self, address: IpAddr) -> Result<(), Refusal> {
        self.auth_failures
            .as_ref()
            .map_or(Ok(()), |failures| failures.count(address))
    }

    /// To be asked before a token is compared with the bootstrap tokens.
    ///
    /// # Errors
    /// 429 while the address has used up its failures.
    pub fn may_bootstrap(&self, address: IpAddr) -> Result<(), Refusal> {
        self.bootstrap_failures
            .as_ref()
            .map_or(Ok(()), |failures| failures.may_try(address))
    }

    /// Counts a failed bootstrap attempt.
    ///
    /// # Errors
    /// 429 when this one was too many; the answer is 401 otherwise.
    pub fn bootstrap_failed(&self, address: IpAddr) -> Result<(), Refusal> {
        self.bootstrap_failures
            .as_ref()
            .map_or(Ok(()), |failures| failures.count(address))
    }

    /// Drops the counters of whoever has been quiet long enough to be at full allowance.
    pub fn forget_idle(&self) {
        if let Some(bucket) = &self.publishers {
            bucket.forget_idle();
        }
        if let Some(bucket) = &self.visits {
            bucket.forget_idle();
        }
        for failures in [&self.auth_failures, &self.bootstrap_failures]
            .into_iter()
            .flatten()
        {
            failures.forget_idle();
        }
    }
}

impl RateLimits {
    /// Calls [`forget_idle`](Self::forget_idle) every [`FORGET_EVERY`], for ever.
    pub async fn keep_small(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(FORGET_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.forget_idle();
        }
    }
}

/// Lets one token in [`TURNS`] through, and within [`TURNS`] × [`TURN`] each of them. Which one has
/// its turn when nobody outside can tell, and it is another one each time round, so whoever sends
/// tokens at random gets that share of them looked up, and a live token its own turn all the same.
///
/// Without turns, a live token behind the address of somebody who sends 1 000 wrong ones a second
/// is let in after 570 s, and in the worst cases not within an hour. With turns it takes 25 s, and 89
/// at most; at 100 a second it is 149 s without and 19 s with. These are medians of 101 simulated
/// callers who ask once a second, at the default limit of 60 failures a minute.
struct Turns<C: Clock> {
    key: [u8; 32],
    clock: C,
    began: C::Instant,
}

impl<C: Clock> Turns<C> {
    fn new(clock: C) -> Self {
        Self {
            key: random::bytes(),
            began: clock.now(),
            clock,
        }
    }

    fn has(&self, token: &TokenHash) -> bool {
        let passed: Duration = self.clock.now().duration_since(self.began).into();
        let turn = passed.as_secs() / TURN.as_secs();
        let digest = Sha256::new()
            .chain_update(self.key)
            .chain_update((turn / TURNS).to_be_bytes())
            .chain_update(token.as_bytes())
            .finalize();
        let own = digest
            .iter()
            .take(7)
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
        own % TURNS == turn % TURNS
    }
}

/// Failures of an address: counted when they happen, and refused in advance once there are too
/// many. The bucket alone can't be asked without counting, so what it refused is remembered.
struct Failures<C: Clock + Clone> {
    bucket: Bucket<IpAddr, C>,
    refused: std::sync::Mutex<std::collections::HashMap<IpAddr, C::Instant>>,
}

impl<C: Clock + Clone> Failures<C> {
    fn new(name: &'static str, per_minute: u32, clock: &C) -> Option<Self> {
        let refill = Duration::from_mins(1) / per_minute.max(1);
        let bucket = Bucket::new(name, per_minute, refill, clock.clone())?;
        Some(Self {
            bucket,
            refused: std::sync::Mutex::default(),
        })
    }

    fn count(&self, address: IpAddr) -> Result<(), Refusal> {
        let network = network(address);
        match self.bucket.limiter.check_key(&network) {
            Ok(_) => Ok(()),
            Err(until) => {
                self.refused().insert(network, until.earliest_possible());
                Err(self.bucket.refusal(&until))
            }
        }
    }

    fn may_try(&self, address: IpAddr) -> Result<(), Refusal> {
        let network = network(address);
        let now = self.bucket.limiter.clock().now();
        let over = self
            .refused()
            .get(&network)
            .is_none_or(|until| *until <= now);
        // Asking the bucket while it refuses takes nothing from it.
        if over { Ok(()) } else { self.count(address) }
    }

    fn forget_idle(&self) {
        let now = self.bucket.limiter.clock().now();
        self.refused().retain(|_, until| *until > now);
        self.bucket.forget_idle();
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<IpAddr, C::Instant>> {
        self.refused
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Counts a refusal by the rate limit called `name`.
fn count_refusal(name: &'static str) {
    metrics::counter!("http_rate_limited_total", "limit" => name).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use governor::clock::FakeRelativeClock;

    const ALICE: Uuid = Uuid::from_u128(1);
    const BOB: Uuid = Uuid::from_u128(2);

    fn limits(clock: &FakeRelativeClock) -> RateLimits<FakeRelativeClock> {
        let settings = RateSettings {
            publisher_per_second: 2,
            auth_failures_per_minute: 3,
            bootstrap_per_minute: 2,
            bootstrap_failures_per_minute: 1,
            visits_per_minute: 2,
        };
        RateLimits::with_clock(settings, clock)
    }

    fn token(text: &str) -> TokenHash {
        TokenHash::of(text)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_publisher_has_a_burst_of_twice_its_rate_and_a_share_of_its_own() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        for left in [3, 2, 1, 0] {
            let state = limits.check_publisher(ALICE).unwrap().unwrap();
            assert_eq!(state.remaining, left);
        }
        let refusal = limits.check_publisher(ALICE).unwrap_err();
        assert_eq!(refusal.problem.code, Code::RateLimited);
        assert_eq!(refusal.problem.retry_after_s, Some(1));
        assert!(
            limits.check_publisher(BOB).is_ok(),
            "another publisher is not affected"
        );
        clock.advance(Duration::from_millis(500));
        assert!(limits.check_publisher(ALICE).is_ok());
        assert!(limits.check_publisher(ALICE).is_err());
    }

    #[test]
    fn headers_follow_the_draft() {
        let limits = limits(&FakeRelativeClock::default());
        let state = limits.check_publisher(ALICE).unwrap().unwrap();
        let [(policy, q), (limit, r)] = state.headers();
        assert_eq!(
            (policy.as_str(), q.to_str().unwrap()),
            ("ratelimit-policy", "\"publisher\";q=4;w=2")
        );
        assert_eq!(
            (limit.as_str(), r.to_str().unwrap()),
            ("ratelimit", "\"publisher\";r=3;t=1")
        );
    }

    #[test]
    fn the_operator_may_use_its_token_so_often() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        assert!(limits.check_operator().is_ok() && limits.check_operator().is_ok());
        assert_eq!(
            limits.check_operator().unwrap_err().problem.retry_after_s,
            Some(30)
        );
    }

    /// How many of a hundred tokens may be looked up for an address.
    fn looked_up(limits: &RateLimits<FakeRelativeClock>, address: IpAddr) -> usize {
        let may = |n: &u32| {
            let token = token(&n.to_string());
            limits.may_authenticate(address, &token).is_ok()
        };
        (0..100).filter(may).count()
    }

    #[test]
    fn failures_close_the_door_before_the_next_look_up() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        let (one, neighbour, other) = (ip("2001:db8::1"), ip("2001:db8::2"), ip("2001:db8:0:1::1"));
        for _ in 0..3 {
            assert_eq!(looked_up(&limits, one), 100);
            assert!(limits.authentication_failed(one).is_ok());
        }
        assert!(limits.authentication_failed(one).is_err());
        assert!(looked_up(&limits, one) < 20);
        assert!(looked_up(&limits, neighbour) < 20, "the same /64");
        assert_eq!(looked_up(&limits, other), 100);
        clock.advance(Duration::from_secs(21));
        assert_eq!(looked_up(&limits, one), 100, "one failure is allowed again");
        assert!(limits.authentication_failed(one).is_ok());
        assert!(limits.authentication_failed(one).is_err());
    }

    #[test]
    fn a_token_has_its_turn_however_many_others_are_tried_from_its_address() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        let (shared, live) = (ip("203.0.113.9"), token("live"));
        let mut turns = Vec::new();
        for second in 0..120 {
            while limits.authentication_failed(shared).is_ok() {}
            if limits.may_authenticate(shared, &live).is_ok() {
                turns.push(second);
            }
            clock.advance(Duration::from_secs(1));
        }
        let (first, second): (Vec<i32>, Vec<i32>) = turns.iter().partition(|at| **at < 60);
        assert_eq!((first.len(), second.len()), (2, 2), "{turns:?}");
    }

    #[test]
    fn bootstrap_failures_are_counted_apart() {
        let limits = limits(&FakeRelativeClock::default());
        let address = ip("203.0.113.9");
        assert!(limits.bootstrap_failed(address).is_ok());
        assert!(limits.bootstrap_failed(address).is_err());
        assert!(limits.may_bootstrap(address).is_err());
        assert_eq!(looked_up(&limits, address), 100);
    }

    #[test]
    fn visitors_of_one_network_share_an_allowance() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        let (one, neighbour, other) = (ip("2001:db8::1"), ip("2001:db8::2"), ip("203.0.113.9"));
        assert!(limits.check_visitor(one).is_ok() && limits.check_visitor(neighbour).is_ok());
        let refusal = limits.check_visitor(one).unwrap_err();
        assert_eq!(refusal.problem.retry_after_s, Some(30));
        assert!(limits.check_visitor(other).is_ok());
    }

    #[test]
    fn zero_is_off() {
        let off = RateSettings {
            publisher_per_second: 0,
            auth_failures_per_minute: 0,
            bootstrap_per_minute: 0,
            bootstrap_failures_per_minute: 0,
            visits_per_minute: 0,
        };
        let limits = RateLimits::with_clock(off, &FakeRelativeClock::default());
        for _ in 0..10_000 {
            assert_eq!(limits.check_publisher(ALICE).unwrap(), None);
            assert_eq!(limits.check_visitor(ip("203.0.113.9")).unwrap(), None);
            assert!(limits.authentication_failed(ip("203.0.113.9")).is_ok());
        }
    }

    #[test]
    fn whoever_is_quiet_is_forgotten() {
        let clock = FakeRelativeClock::default();
        let limits = limits(&clock);
        for n in 0..100 {
            limits.check_publisher(Uuid::from_u128(n)).unwrap();
            let _ = limits.bootstrap_failed(ip("203.0.113.9"));
        }
        clock.advance(Duration::from_hours(1));
        limits.forget_idle();
        assert_eq!(limits.publishers.as_ref().unwrap().limiter.len(), 0);
        assert!(
            limits
                .bootstrap_failures
                .as_ref()
                .unwrap()
                .refused()
                .is_empty()
        );
    }
}
