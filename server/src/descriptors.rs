//! The limit of open files, and how many client connections fit under it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// File descriptors besides client connections and database connections: deliveries, subcommands,
/// token endpoints, connections that wait to be accepted, files of the database, the runtime.
const OTHERS: u64 = 1024;
/// Client connections get at least this part of a small limit: one half.
const LEAST_SHARE: u64 = 2;

/// Raises the soft limit of open files to the hard limit, and logs the result.
///
/// The usual soft limit of 1024 is meant for programs that use `select`; this one does not.
pub(crate) fn raise() {
    let before = getrlimit(Resource::Nofile);
    if before.current == before.maximum {
        tracing::info!(limit = shown(before.current), "The limit of open files");
        return;
    }
    let wanted = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    let (before, after) = (shown(before.current), shown(before.maximum));
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => tracing::info!(before, after, "The limit of open files was raised"),
        Err(error) => tracing::warn!(before, %error, "The limit of open files can't be raised"),
    }
}

fn shown(limit: Option<u64>) -> String {
    limit.map_or_else(|| "none".to_owned(), |limit| limit.to_string())
}

/// How many of the `wanted` client connections fit under the limit of open files, besides
/// `database` connections to the database.
pub(crate) fn connections(wanted: u64, database: u64) -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    let fit = fitting(limit, wanted, database);
    if fit < wanted {
        let limit = shown(limit);
        tracing::warn!(
            wanted,
            connections = fit,
            limit,
            "The limit of open files allows fewer connections than STATIONMASTER_MAX_CONNECTIONS; raise `ulimit -n`"
        );
    } else {
        tracing::info!(
            connections = fit,
            "The most client connections at the same time"
        );
    }
    usize::try_from(fit).unwrap_or(usize::MAX)
}

/// In words, how many open files are wanted and may be, of the hard limit: a start takes all that
/// it may.
pub(crate) fn told(wanted: u64, database: u64) -> String {
    let limit = getrlimit(Resource::Nofile).maximum;
    let (fit, all) = (fitting(limit, wanted, database), wanted + database + OTHERS);
    let of = format!(
        "{all} that are wanted: {wanted} for connections, {database} for the database, {OTHERS} for all else"
    );
    match limit {
        Some(limit) if fit < wanted => format!(
            "{limit} may be open, of {of}. {fit} connections are taken; raise `ulimit -n` for more"
        ),
        limit => format!("{} may be open, of {of}", shown(limit)),
    }
}

fn fitting(limit: Option<u64>, wanted: u64, database: u64) -> u64 {
    let Some(limit) = limit else { return wanted };
    let least = limit / LEAST_SHARE;
    let fit = limit.saturating_sub(OTHERS + database).max(least);
    wanted.min(fit).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_to_everything_else() {
        assert_eq!(fitting(None, 10_000, 20), 10_000);
        assert_eq!(fitting(Some(20_000), 10_000, 20), 10_000);
        assert_eq!(fitting(Some(4096), 10_000, 20), 3052);
        assert_eq!(fitting(Some(1024), 10_000, 20), 512);
        assert_eq!(fitting(Some(1024), 100, 20), 100);
        assert_eq!(fitting(Some(1), 100, 20), 1);
    }
}
