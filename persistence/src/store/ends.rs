//! How the rows of each table end.
//!
//! A table says it where it is declared (`entity.rs`), and what removes rows follows from that: the
//! sweeps of each job, the order in which a publisher's rows go, and the test that walks every table.
//! No row may stay for ever because nobody thought of its end.

use std::time::Duration;

use domain::Timestamp;
use sea_orm::{EntityTrait, IdenStatic as _, Iterable as _};

use crate::store::job::Job;

/// Rows to which others belong that are removed at a time.
const WITH_OTHERS: u64 = 100;

/// How long the log of credential changes reaches back. A process that was out of touch for
/// longer forgets its whole cache instead.
pub(crate) const CHANGES_KEPT: Duration = Duration::from_hours(1);

/// The log's end must stay known.
pub(crate) const NOT_THE_NEWEST: &str =
    "epoch < (SELECT max(newest.epoch) FROM credential_changes newest)";

/// How long tries at endpoints stay counted: a day is shown, in spans of five minutes.
pub(crate) const STATS_KEPT: Duration = Duration::from_hours(25);

/// How long the use of accounts stays counted: ceilings look back 7 days.
pub(crate) const USAGE_KEPT: Duration = Duration::from_hours(7 * 24 + 1);

/// How long a cooldown stays after its end: what other processes hear of is looked for among rows.
pub(crate) const COOLDOWNS_KEPT: Duration = Duration::from_hours(1);

/// Of an event no delivery is left, nor one to be written.
pub(crate) const WITHOUT_DELIVERIES: &str = "NOT EXISTS (SELECT 1 FROM deliveries d \
     WHERE d.publisher_id = events.publisher_id AND d.event_id = events.id) \
     AND NOT EXISTS (SELECT 1 FROM fan_outs f \
     WHERE f.publisher_id = events.publisher_id AND f.created_at = events.created_at)";

/// No delivery names the endpoint any more.
pub(crate) const UNUSED: &str = "NOT EXISTS (SELECT 1 FROM deliveries d \
     WHERE d.publisher_id = webhook_endpoints.publisher_id \
     AND d.endpoint_id = webhook_endpoints.id)";

/// What belongs to an endpoint beside its deliveries.
pub(crate) const OF_AN_ENDPOINT: &[(&str, &str)] = &[
    ("replays", "endpoint_id"),
    ("endpoint_health", "endpoint_id"),
    ("endpoint_stats", "endpoint_id"),
    ("endpoint_secrets", "endpoint_id"),
    ("dispatch_leases", "endpoint_id"),
    ("endpoint_sequences", "endpoint_id"),
];

/// A pipeline is deleted, and no run names it any more.
pub(crate) const DELETED_WITHOUT_RUNS: &str = "live_slug IS NULL \
     AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.publisher_id = pipelines.publisher_id \
     AND r.pipeline_id = pipelines.id)";

/// What belongs to a pipeline beside its runs.
pub(crate) const OF_A_PIPELINE: &[(&str, &str)] = &[("pipeline_versions", "pipeline_id")];

/// A newer version was there at the cutoff, and no run that is still there was made of this one. (A
/// run that is being made may still take a version that has just been superseded.)
pub(crate) const SUPERSEDED_WITHOUT_RUNS: &str = "EXISTS (SELECT 1 FROM pipeline_versions n \
     WHERE n.publisher_id = pipeline_versions.publisher_id \
     AND n.pipeline_id = pipeline_versions.pipeline_id \
     AND n.version > pipeline_versions.version AND n.created_at <= CUTOFF) \
     AND NOT EXISTS (SELECT 1 FROM runs r \
     WHERE r.publisher_id = pipeline_versions.publisher_id \
     AND r.pipeline_id = pipeline_versions.pipeline_id \
     AND r.pipeline_version = pipeline_versions.version)";

/// How long what has ended stays, as the operator sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Credentials, train tokens and endpoint secrets, after they were revoked or expired.
    pub credentials: Duration,
    /// Events, after they were written.
    pub events: Duration,
    /// Deliveries and replays after they finished, endpoints after they were deleted.
    pub deliveries: Duration,
    /// Runs after they finished, at most; pipelines after they were deleted, and versions of them.
    pub runs: Duration,
    /// Messages about trains, after they were sent or given up.
    pub notices: Duration,
}

/// For how long a row stays after the time in a column.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RetentionPeriod {
    /// The column holds the time of the end itself.
    Until,
    /// The same time everywhere.
    For(Duration),
    /// As the operator sets it, for each of these.
    Credentials,
    Events,
    Deliveries,
    Runs,
    Notices,
}

impl RetentionPeriod {
    /// Rows with this time in the column, or an earlier one, are past their end.
    pub(crate) fn cutoff(self, now: Timestamp, retention: &Retention) -> Timestamp {
        let kept = match self {
            Self::Until => Duration::ZERO,
            Self::For(time) => time,
            Self::Credentials => retention.credentials,
            Self::Events => retention.events,
            Self::Deliveries => retention.deliveries,
            Self::Runs => retention.runs,
            Self::Notices => retention.notices,
        };
        now.minus(kept)
    }
}

/// Rows that a job removes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Swept {
    pub(crate) job: Job,
    /// What the job's counts call them.
    pub(crate) counted: &'static str,
    /// The column whose time counts: the first of an index. No time is no end.
    pub(crate) at: &'static str,
    pub(crate) kept: RetentionPeriod,
    /// The column in whose order rows are looked for: that one, or another that grows with it.
    pub(crate) order: &'static str,
    /// A further condition that a row must meet, in SQL; `CUTOFF` stands for the time up to which rows
    /// have ended.
    pub(crate) only: Option<&'static str>,
    /// Tables whose rows go first, in this order, and their columns that name the row beside its
    /// publisher.
    pub(crate) along: &'static [(&'static str, &'static str)],
}

impl Swept {
    /// How many rows are removed at a time where `limit` are wanted: each may take many along.
    pub(crate) fn at_a_time(&self, limit: u64) -> u64 {
        if self.along.is_empty() {
            limit
        } else {
            limit.min(WITH_OTHERS)
        }
    }
}

/// One way in which rows of a table end. The texts in its variants are for readers and tests.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "readers and tests use the texts")
)]
pub(crate) enum End {
    /// A job removes them.
    Swept(Swept),
    /// The row of another table takes them along when it is removed.
    With(&'static str),
    /// A job removes them with all that their publisher had, once that is deleted.
    WithPublisher,
    /// The operation that this names removes them.
    By(&'static str),
    /// There is never more than a fixed number of them: why.
    Few(&'static str),
}

/// Shorter, where tables are declared.
pub(crate) const WITH_PUBLISHER: End = End::WithPublisher;

/// A table, as far as removing its rows is concerned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The column with the publisher; `None` where rows belong to none.
    pub(crate) owner: Option<&'static str>,
    /// The columns of the primary key.
    pub(crate) key: fn() -> Vec<&'static str>,
    pub(crate) ends: &'static [End],
}

impl Table {
    /// The sweeps that remove its rows.
    pub(crate) fn sweeps(&self) -> impl Iterator<Item = Swept> {
        self.ends.iter().filter_map(|end| match end {
            End::Swept(swept) => Some(*swept),
            _ => None,
        })
    }
}

/// Rows that a job removes once the time in the column `at` is past by what `kept` says.
pub(crate) const fn swept(
    job: Job,
    counted: &'static str,
    at: &'static str,
    kept: RetentionPeriod,
) -> End {
    End::Swept(Swept {
        job,
        counted,
        at,
        kept,
        order: at,
        only: None,
        along: &[],
    })
}

impl End {
    /// The same, of rows alone that meet a condition in SQL.
    pub(crate) const fn only(self, condition: &'static str) -> Self {
        match self {
            Self::Swept(swept) => Self::Swept(Swept {
                only: Some(condition),
                ..swept
            }),
            other => other,
        }
    }

    /// The same, looked for in the order of another column, that of an index.
    pub(crate) const fn ordered_by(self, column: &'static str) -> Self {
        match self {
            Self::Swept(swept) => Self::Swept(Swept {
                order: column,
                ..swept
            }),
            other => other,
        }
    }

    /// The same, with the rows of other tables that belong to them.
    pub(crate) const fn along(self, tables: &'static [(&'static str, &'static str)]) -> Self {
        match self {
            Self::Swept(swept) => Self::Swept(Swept {
                along: tables,
                ..swept
            }),
            other => other,
        }
    }
}

/// The primary key's columns, as the entity declares them.
pub(crate) fn key_of<E: EntityTrait>() -> Vec<&'static str> {
    E::PrimaryKey::iter()
        .map(|column| column.as_str())
        .collect()
}

/// An entity's table.
pub(crate) trait Declared {
    const TABLE: Table;
}
