//! How the rows of each table end.
//!
//! Each table declares it in `entity.rs`. The sweeps of each job, the order in which a deleted
//! publisher's rows are removed, and a test that checks every table follow from these declarations.
//! So no row stays for ever because nobody thought of its end.

use std::time::Duration;

use domain::Timestamp;
use sea_orm::{EntityTrait, IdenStatic as _, Iterable as _};

use crate::store::job::Job;

/// Rows that are removed at a time if other rows go with them.
const WITH_OTHERS: u64 = 100;

/// How far back the log of credential changes reaches. A process that was disconnected for longer
/// clears its whole cache instead.
pub(crate) const CHANGES_KEPT: Duration = Duration::from_hours(1);

/// The newest row of that log stays, since its number is the current epoch.
pub(crate) const NOT_THE_NEWEST: &str =
    "epoch < (SELECT max(newest.epoch) FROM credential_changes newest)";

/// How long counts of attempts stay: a day is shown, in spans of five minutes.
pub(crate) const STATS_KEPT: Duration = Duration::from_hours(25);

/// How long the usage of accounts stays: ceilings look back 7 days.
pub(crate) const USAGE_KEPT: Duration = Duration::from_hours(7 * 24 + 1);

/// How long a cooldown stays after its end: other processes learn of changes from these rows.
pub(crate) const COOLDOWNS_KEPT: Duration = Duration::from_hours(1);

/// The event has no deliveries, and none are to be written.
pub(crate) const WITHOUT_DELIVERIES: &str = "NOT EXISTS (SELECT 1 FROM deliveries d \
     WHERE d.publisher_id = events.publisher_id AND d.event_id = events.id) \
     AND NOT EXISTS (SELECT 1 FROM fan_outs f \
     WHERE f.publisher_id = events.publisher_id AND f.created_at = events.created_at)";

/// No delivery refers to the endpoint any more.
pub(crate) const UNUSED: &str = "NOT EXISTS (SELECT 1 FROM deliveries d \
     WHERE d.publisher_id = webhook_endpoints.publisher_id \
     AND d.endpoint_id = webhook_endpoints.id)";

/// Tables with rows of an endpoint, besides deliveries.
pub(crate) const OF_AN_ENDPOINT: &[(&str, &str)] = &[
    ("replays", "endpoint_id"),
    ("endpoint_health", "endpoint_id"),
    ("endpoint_stats", "endpoint_id"),
    ("endpoint_secrets", "endpoint_id"),
    ("dispatch_leases", "endpoint_id"),
    ("endpoint_sequences", "endpoint_id"),
];

/// The pipeline is deleted, and no run refers to it any more.
pub(crate) const DELETED_WITHOUT_RUNS: &str = "live_slug IS NULL \
     AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.publisher_id = pipelines.publisher_id \
     AND r.pipeline_id = pipelines.id)";

/// Tables with rows of a pipeline, besides runs.
pub(crate) const OF_A_PIPELINE: &[(&str, &str)] = &[("pipeline_versions", "pipeline_id")];

/// A newer version existed at the cutoff, and no remaining run was created from this version. (A
/// run that is being created may still use a version that has just been superseded.)
pub(crate) const SUPERSEDED_WITHOUT_RUNS: &str = "EXISTS (SELECT 1 FROM pipeline_versions n \
     WHERE n.publisher_id = pipeline_versions.publisher_id \
     AND n.pipeline_id = pipeline_versions.pipeline_id \
     AND n.version > pipeline_versions.version AND n.created_at <= CUTOFF) \
     AND NOT EXISTS (SELECT 1 FROM runs r \
     WHERE r.publisher_id = pipeline_versions.publisher_id \
     AND r.pipeline_id = pipeline_versions.pipeline_id \
     AND r.pipeline_version = pipeline_versions.version)";

/// How long ended rows stay. The operator sets these times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Credentials, train tokens and endpoint secrets, after they were revoked or expired.
    pub credentials: Duration,
    /// Events, after they were written.
    pub events: Duration,
    /// Deliveries and replays after they finished, endpoints after they were deleted.
    pub deliveries: Duration,
    /// Runs after they finished, at most; pipelines and their versions after the pipeline was
    /// deleted or the version superseded.
    pub runs: Duration,
    /// Messages about trains, after they were sent or given up.
    pub notices: Duration,
}

/// How long a row stays after the time in a column.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RetentionPeriod {
    /// Not at all: the column holds the time at which the row ends.
    Until,
    /// A fixed time.
    For(Duration),
    /// As the operator sets it; see [`Retention`].
    Credentials,
    Events,
    Deliveries,
    Runs,
    Notices,
}

impl RetentionPeriod {
    /// The newest time in the column with which a row has ended.
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
    /// The name of these rows in the job's counts.
    pub(crate) counted: &'static str,
    /// The column with the time, which must be the first of an index. Rows without a time do not
    /// end.
    pub(crate) at: &'static str,
    pub(crate) kept: RetentionPeriod,
    /// The column by which rows are ordered when they are looked up: `at`, or another that grows
    /// with it.
    pub(crate) order: &'static str,
    /// A further condition in SQL. `CUTOFF` in it stands for the newest time with which a row has
    /// ended.
    pub(crate) only: Option<&'static str>,
    /// Tables whose rows are removed first, in this order. The second text is the column that
    /// refers to the row, besides the publisher.
    pub(crate) along: &'static [(&'static str, &'static str)],
}

impl Swept {
    /// How many rows are removed at a time if `limit` are wanted: fewer if each may have many
    /// others removed with it.
    pub(crate) fn at_a_time(&self, limit: u64) -> u64 {
        if self.along.is_empty() {
            limit
        } else {
            limit.min(WITH_OTHERS)
        }
    }
}

/// One way in which rows of a table end. The texts in the variants are for readers and tests.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "readers and tests use the texts")
)]
pub(crate) enum End {
    /// A job removes them.
    Swept(Swept),
    /// They are removed together with the row of another table.
    With(&'static str),
    /// They are removed together with all rows of a deleted publisher.
    WithPublisher,
    /// They are removed together with a deleted user, whose identifier is in the column `user_id`.
    WithUser,
    /// An operation removes them; this is its name.
    By(&'static str),
    /// There is never more than a fixed number of them; this is the reason.
    Few(&'static str),
}

/// A short name for the declarations.
pub(crate) const WITH_PUBLISHER: End = End::WithPublisher;

/// What removing a table's rows needs to know about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The column with the publisher; `None` if the rows belong to no publisher.
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

/// Rows that a job removes once the time in the column `at` is longer ago than `kept`.
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
    /// The same, for rows that meet a condition in SQL.
    pub(crate) const fn only(self, condition: &'static str) -> Self {
        match self {
            Self::Swept(swept) => Self::Swept(Swept {
                only: Some(condition),
                ..swept
            }),
            other => other,
        }
    }

    /// The same, with rows looked up in the order of another column, which must have an index.
    pub(crate) const fn ordered_by(self, column: &'static str) -> Self {
        match self {
            Self::Swept(swept) => Self::Swept(Swept {
                order: column,
                ..swept
            }),
            other => other,
        }
    }

    /// The same, after the rows of other tables that refer to them.
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

/// An entity that declares how its rows end.
pub(crate) trait Declared {
    const TABLE: Table;
}
