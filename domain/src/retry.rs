//! Retry schedules: when a failed delivery is tried again.

use std::{fmt, time::Duration};

use crate::random;

/// Each wait varies by this share to either side, so that a recovered consumer does not get all
/// retries at once.
pub const JITTER: f64 = 0.2;

/// The longest wait, and the most waits, of a schedule.
const MAX_WAIT: Duration = Duration::from_hours(7 * 24);
const MAX_WAITS: usize = 32;

/// The waits before the second, third, … try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Vec<Duration>);

/// The text of a schedule does not have the form `5s,5m,2h`. Contains the number of the wrong wait,
/// counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "wait {0} is not a whole number with ms, s, m, h or d, at most 7d, in a list of at most 32"
)]
pub struct ScheduleError(usize);

impl Schedule {
    /// Parses waits such as `5s,5m,30m,2h`. An empty text means that there is no second try.
    ///
    /// # Errors
    /// [`ScheduleError`] with the number of the wrong wait.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let mut waits = Vec::new();
        for (at, part) in text
            .split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .enumerate()
        {
            let wait = parse_wait(part).filter(|wait| *wait <= MAX_WAIT && at < MAX_WAITS);
            waits.push(wait.ok_or(ScheduleError(at + 1))?);
        }
        Ok(Self(waits))
    }

    /// A schedule of waits in whole seconds.
    ///
    /// # Errors
    /// [`ScheduleError`] with the number of the wrong wait.
    pub fn of_seconds(waits: &[u32]) -> Result<Self, ScheduleError> {
        let waits = waits.iter().map(|wait| Duration::from_secs((*wait).into()));
        let waits: Vec<Duration> = waits.collect();
        let fits = |(at, wait): (usize, &Duration)| *wait <= MAX_WAIT && at < MAX_WAITS;
        match waits.iter().enumerate().position(|one| !fits(one)) {
            Some(at) => Err(ScheduleError(at + 1)),
            None => Ok(Self(waits)),
        }
    }

    /// The waits in seconds, each rounded up.
    #[must_use]
    pub fn seconds(&self) -> Vec<u32> {
        let whole = |wait: &Duration| u32::try_from(wait.as_millis().div_ceil(1000));
        self.0
            .iter()
            .map(|wait| whole(wait).unwrap_or(u32::MAX))
            .collect()
    }

    /// How long to wait after the `made`-th try (from 1), with jitter; `None` when it was the last.
    #[must_use]
    pub fn wait_after(&self, made: u32) -> Option<Duration> {
        let index = usize::try_from(made.checked_sub(1)?).ok()?;
        self.0
            .get(index)
            .map(|wait| wait.mul_f64(random::jitter(JITTER)))
    }

    /// All waits together, without jitter.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// How many tries there are in all.
    #[must_use]
    pub fn tries(&self) -> u32 {
        u32::try_from(self.0.len())
            .unwrap_or(u32::MAX)
            .saturating_add(1)
    }
}

impl fmt::Display for Schedule {
    /// The text that [`Schedule::parse`] reads, each wait in the largest unit without a fraction.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u128, &str); 4] = [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1000, "s"),
        ];
        for (at, wait) in self.0.iter().enumerate() {
            let ms = wait.as_millis();
            let fits = UNITS.iter().find(|(unit, _)| ms > 0 && ms % unit == 0);
            let (unit, name) = fits.copied().unwrap_or((1, "ms"));
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{}{name}", ms / unit)?;
        }
        Ok(())
    }
}

fn parse_wait(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let unit_ms = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit_ms).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_schedule_has_eight_tries() {
        let schedule = Schedule::parse("5s,5m,30m,2h,5h,10h,10h").unwrap();
        assert_eq!(schedule.tries(), 8);
        assert!(schedule.wait_after(7).is_some());
        assert_eq!(schedule.wait_after(8), None);
        assert_eq!(schedule.wait_after(0), None);
    }

    #[test]
    fn a_wrong_wait_is_named() {
        assert_eq!(Schedule::parse("5s,x"), Err(ScheduleError(2)));
        assert_eq!(Schedule::parse("8d"), Err(ScheduleError(1)));
        assert_eq!(Schedule::parse("5"), Err(ScheduleError(1)));
        assert_eq!(Schedule::parse("").unwrap().tries(), 1);
    }

    #[test]
    fn whole_seconds_make_a_schedule_and_come_back() {
        for waits in [vec![], vec![0, 5, 604_800], vec![1; 32]] {
            assert_eq!(Schedule::of_seconds(&waits).unwrap().seconds(), waits);
        }
        assert_eq!(Schedule::of_seconds(&[1, 604_801]), Err(ScheduleError(2)));
        assert_eq!(Schedule::of_seconds(&[1; 33]), Err(ScheduleError(33)));
        let finer = Schedule::parse("50ms,1s").unwrap();
        assert_eq!(finer.seconds(), [1, 1]);
    }

    #[test]
    fn a_schedule_is_written_as_it_is_read() {
        for text in ["5s,5m,30m,2h,5h,10h,10h", "200ms,1500ms,1d", "0ms", ""] {
            assert_eq!(Schedule::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Schedule::parse("60s, 24h").unwrap().to_string(), "1m,1d");
    }

    proptest! {
        #[test]
        fn jitter_stays_within_a_fifth(wait_s in 1_u64..100_000) {
            let schedule = Schedule(vec![Duration::from_secs(wait_s)]);
            let wait = schedule.wait_after(1).unwrap().as_secs_f64();
            let exact = Duration::from_secs(wait_s).as_secs_f64();
            prop_assert!((exact * 0.799..=exact * 1.201).contains(&wait));
        }
    }
}
