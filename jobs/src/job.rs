//! The jobs by name, and when each is due.

use chrono::DateTime;
use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use domain::Timestamp;

use crate::StartError;

/// What is done on a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Credentials,
    IdempotencyKeys,
    Deliveries,
    Events,
    Runs,
    Publishers,
    Leases,
    Endpoints,
    Notices,
    Accounts,
}

impl Kind {
    pub(crate) const ALL: [Self; 10] = [
        Self::Credentials,
        Self::IdempotencyKeys,
        Self::Deliveries,
        Self::Events,
        Self::Runs,
        Self::Publishers,
        Self::Leases,
        Self::Endpoints,
        Self::Notices,
        Self::Accounts,
    ];

    /// The name in the store, in logs and in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::IdempotencyKeys => "idempotency_keys",
            Self::Deliveries => "deliveries",
            Self::Events => "events",
            Self::Runs => "runs",
            Self::Publishers => "publishers",
            Self::Leases => "leases",
            Self::Endpoints => "endpoints",
            Self::Notices => "notices",
            Self::Accounts => "accounts",
        }
    }

    /// The name of its part in the process's progress. Refreshes of accounts are none: they wait for
    /// others' token endpoints, each within a limit of its own.
    pub(crate) const fn part(self) -> Option<&'static str> {
        Some(match self {
            Self::Credentials => "job_credentials",
            Self::IdempotencyKeys => "job_idempotency_keys",
            Self::Deliveries => "job_deliveries",
            Self::Events => "job_events",
            Self::Runs => "job_runs",
            Self::Publishers => "job_publishers",
            Self::Leases => "job_leases",
            Self::Endpoints => "job_endpoints",
            Self::Notices => "job_notices",
            Self::Accounts => return None,
        })
    }
}

/// When a job is due.
#[derive(Clone, Debug)]
pub(crate) struct Schedule(Cron);

impl Schedule {
    /// Reads an expression as the scheduler does, and makes sure that it names a time after `now`.
    pub(crate) fn parse(kind: Kind, cron: &str, now: Timestamp) -> Result<Self, StartError> {
        let refused = |cause: String| StartError::Cron {
            job: kind.as_str(),
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

    /// The first moment after `now`, in UTC; `None` if there is none.
    pub(crate) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        // Whole seconds: what is finer would be carried over into the answer.
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
        let parse = |cron: &str| Schedule::parse(Kind::Runs, cron, at("2026-01-01T00:00:00Z"));
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
