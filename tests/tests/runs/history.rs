//! A run's timeline against the table of what may happen to a run.

use domain::run::{RunActor, RunChange, RunStatus, TRANSITIONS, TimelineEntryKind};
use serde_json::Value;

/// What a timeline amounts to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Where the run stands after it.
    pub status: RunStatus,
    /// How often it was claimed.
    pub claims: i64,
    /// How often nobody heard of its holder in time.
    pub lost: usize,
}

const CHANGES: [RunChange; 12] = [
    RunChange::Claim,
    RunChange::Heartbeat,
    RunChange::Complete,
    RunChange::Fail,
    RunChange::Retry,
    RunChange::Release,
    RunChange::Stop,
    RunChange::Cancel,
    RunChange::RequestCancel,
    RunChange::LoseLease,
    RunChange::Abandon,
    RunChange::Expire,
];

/// The one change that an entry can mean for a run that stands here; `by_somebody` tells whether
/// a credential did it or the service.
fn change_of(from: RunStatus, kind: TimelineEntryKind, by_somebody: bool) -> Option<RunStatus> {
    let fits = |change: &RunChange| TimelineEntryKind::of(*change) == kind;
    let mut listed = CHANGES.into_iter().filter(fits).flat_map(|change| {
        let rows = TRANSITIONS.iter();
        rows.filter(move |(at, by, actor, _)| {
            (*at, *by) == (from, change) && (*actor == RunActor::Clock) != by_somebody
        })
    });
    let found = listed.next().map(|(_, _, _, to)| *to);
    assert!(listed.next().is_none(), "{kind:?} is ambiguous");
    found
}

/// Reads a timeline from its beginning.
///
/// # Errors
/// What can't have happened so, in words.
pub fn read(entries: &[Value]) -> Result<History, String> {
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap_or_default().to_owned();
    let number = |entry: &Value, name: &str| entry[name].as_i64().unwrap_or(-1);
    let first = entries.first().ok_or("it is empty")?;
    if text(first, "type") != "created" || number(first, "attempt") != 0 {
        return Err(format!("it begins with {first}"));
    }
    let mut history = History {
        status: RunStatus::Queued,
        claims: 0,
        lost: 0,
    };
    for pair in entries.windows(2) {
        let (before, entry) = (&pair[0], &pair[1]);
        if history.status.is_final() {
            return Err(format!("{entry} comes after the end"));
        }
        if number(entry, "seq") <= number(before, "seq") {
            return Err(format!("{entry} stands after {before}"));
        }
        let kind = TimelineEntryKind::parse(&text(entry, "type"));
        let kind = kind.ok_or_else(|| format!("{entry} has no known type"))?;
        history.claims += i64::from(kind == TimelineEntryKind::Claimed);
        history.lost += usize::from(kind == TimelineEntryKind::LeaseLost);
        if number(entry, "attempt") != history.claims {
            return Err(format!("{entry} is not of claim {}", history.claims));
        }
        let by_somebody = !entry["actor"].is_null();
        let next = change_of(history.status, kind, by_somebody);
        history.status = next.ok_or_else(|| format!("{entry} can't follow {before}"))?;
    }
    let ends = entries.iter().filter(|entry| {
        TimelineEntryKind::parse(&text(entry, "type")).is_some_and(TimelineEntryKind::is_last)
    });
    match ends.count() {
        1 => Ok(history),
        ends => Err(format!("it ends {ends} times")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entries(told: &[(&str, i64, bool)]) -> Vec<Value> {
        let told = told.iter().enumerate();
        told.map(|(at, (word, attempt, by_somebody))| {
            let actor = by_somebody.then(|| json!({"id": "tok_1", "kind": "runner"}));
            json!({"seq": at, "type": word, "attempt": attempt, "actor": actor})
        })
        .collect()
    }

    #[test]
    fn a_good_history_is_read() {
        let read = read(&entries(&[
            ("created", 0, true),
            ("claimed", 1, true),
            ("progress", 1, true),
            ("lease_lost", 1, false),
            ("claimed", 2, true),
            ("succeeded", 2, true),
        ]));
        let history = read.unwrap();
        assert_eq!((history.claims, history.lost), (2, 1));
        assert_eq!(history.status, RunStatus::Succeeded);
    }

    #[test]
    fn what_can_not_be_is_noticed() {
        let bad: [&[(&str, i64, bool)]; 8] = [
            &[],
            &[("created", 0, true), ("succeeded", 0, true)],
            &[
                ("created", 0, true),
                ("claimed", 2, true),
                ("succeeded", 2, true),
            ],
            &[("created", 0, true), ("claimed", 1, true)],
            &[
                ("created", 0, true),
                ("claimed", 1, true),
                ("claimed", 2, true),
            ],
            &[
                ("created", 0, true),
                ("claimed", 1, true),
                ("lease_lost", 1, true),
            ],
            &[
                ("created", 0, true),
                ("claimed", 1, true),
                ("succeeded", 1, true),
                ("succeeded", 1, true),
            ],
            &[("created", 0, true), ("cancelled", 0, false)],
        ];
        for told in bad {
            assert!(read(&entries(told)).is_err(), "{told:?}");
        }
    }
}
