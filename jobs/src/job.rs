//! The schedule of a job: a cron expression in UTC.

use chrono::DateTime;
use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use domain::Timestamp;
use persistence::Job;

use crate::StartError;

/// The times at which a job is due.
#[derive(Clone, Debug)]
pub(crate) struct Schedule(Cron);

impl Schedule {
    /// Reads a cron expression in the way in which the scheduler does.
    ///
    /// # Errors
    /// [`StartError::Cron`] if it is malformed, or names no time after `now`.
    pub(crate) fn parse(job: Job, cron: &str, now: Timestamp) -> Result<Self, StartError> {
        let refused = |cause: String| StartError::Cron {
            job: job.as_str(),
            cron: cron.to_owned(),
            cause,
        };
        let parser = CronParser::builder()
            .seconds(Seconds::Required)
            .dom_and_dow(true)
            .build();
        let schedule = Self(
            parser
                .parse(cron)
                .map_err(|error| refused(error.to_string()))?,
        );
        if schedule.next(now).is_none() {
            return Err(refused("it names no time".to_owned()));
        }
        Ok(schedule)
    }

    /// The first time after `now`, in UTC; `None` if there is none.
    pub(crate) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        // Whole seconds: fractions of `now` would be carried over into the result.
        let now = DateTime::from_timestamp(now.seconds(), 0)?;
        let next = self.0.find_next_occurrence(&now, false).ok()?;
        Some(Timestamp::from_ms(next.timestamp_millis()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_in_utc_and_strictly_after_now() {
        let at = |text: &str| Timestamp::parse(text).unwrap();
        let parse = |cron: &str| Schedule::parse(Job::Runs, cron, at("2026-01-01T00:00:00Z"));
        for (cron, now, next) in [
            (
                "0 23 2 * * *",
                "2026-03-29T02:22:59.999Z",
                "2026-03-29T02:23:00Z",
            ),
            (
                "0 23 2 * * *",
                "2026-03-29T02:23:00Z",
                "2026-03-30T02:23:00Z",
            ),
            (
                "*/10 * * * * *",
                "2026-01-01T00:00:09.001Z",
                "2026-01-01T00:00:10Z",
            ),
        ] {
            assert_eq!(
                parse(cron).unwrap().next(at(now)),
                Some(at(next)),
                "{cron} {now}"
            );
        }
        assert!(parse("* * * * *").is_err());
        assert!(parse("0 0 0 30 2 *").is_err());
    }
}
