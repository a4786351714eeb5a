//! The states of a run, the possible changes of state, and who may cause each.

use std::time::Duration;

use crate::words;
use crate::{clock::Timestamp, random};

/// The wait after a run's first retryable failure. It doubles with each further failure.
const BACKOFF_FIRST: Duration = Duration::from_secs(5);
/// The longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_hours(1);
/// Each wait varies by this share to either side, so that runs which failed together are not tried
/// together.
const BACKOFF_JITTER: f64 = 0.2;

words! {
    /// The status of a run.
    pub enum RunStatus {
        /// The run waits for a runner.
        Queued = "queued",
        /// A runner holds the claim.
        Running = "running",
        /// The run is finished and succeeded.
        Succeeded = "succeeded",
        /// The run is finished and failed.
        Failed = "failed",
        /// The run was cancelled.
        Cancelled = "cancelled",
        /// The tries or the time to live ran out.
        Expired = "expired",
    }
}

impl RunStatus {
    /// Whether the run is finished, so that its status never changes again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The status after `change`; `None` if the change is not possible in this status.
    #[must_use]
    pub fn after(self, change: RunChange) -> Option<Self> {
        TRANSITIONS
            .iter()
            .find(|(from, by, _, _)| *from == self && *by == change)
            .map(|(_, _, _, to)| *to)
    }
}

/// Who causes a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunActor {
    /// A runner that does not hold the run.
    Runner,
    /// Whoever presents the run's present claim token.
    Holder,
    /// The publisher, with any token that may cancel.
    Publisher,
    /// The service, when a time has passed.
    Clock,
}

/// A change of a run. Each is also an entry of the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunChange {
    /// A runner claims the run.
    Claim,
    /// The holder extends the lease, and may report progress.
    Heartbeat,
    /// The holder completes the run.
    Complete,
    /// The holder reports a final failure.
    Fail,
    /// The holder reports a failure, and the run is tried again.
    Retry,
    /// The holder gives the run back without a result.
    Release,
    /// The holder stops because cancellation was requested.
    Stop,
    /// The publisher cancels the run while it is queued.
    Cancel,
    /// The publisher requests cancellation while the run is held.
    RequestCancel,
    /// The lease ran out, and tries are left.
    LoseLease,
    /// The lease ran out after cancellation was requested.
    Abandon,
    /// The lease of the last try ran out, or the time to live did.
    Expire,
}

/// The possible changes: the status before, the change, who causes it, and the status after.
pub const TRANSITIONS: &[(RunStatus, RunChange, RunActor, RunStatus)] = {
    use RunActor::{Clock, Holder, Publisher, Runner};
    use RunChange::{
        Abandon, Cancel, Claim, Complete, Expire, Fail, Heartbeat, LoseLease, Release,
        RequestCancel, Retry, Stop,
    };
    use RunStatus::{Cancelled, Expired, Failed, Queued, Running, Succeeded};
    &[
        (Queued, Claim, Runner, Running),
        (Queued, Cancel, Publisher, Cancelled),
        (Queued, Expire, Clock, Expired),
        (Running, Heartbeat, Holder, Running),
        (Running, Complete, Holder, Succeeded),
        (Running, Fail, Holder, Failed),
        (Running, Retry, Holder, Queued),
        (Running, Release, Holder, Queued),
        (Running, Stop, Holder, Cancelled),
        (Running, RequestCancel, Publisher, Running),
        (Running, LoseLease, Clock, Queued),
        (Running, Abandon, Clock, Cancelled),
        (Running, Expire, Clock, Expired),
    ]
};

/// What decides how a run continues when a try ends without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// The number of tries before this one that failed or lost their lease.
    pub failures: u32,
    /// How many tries may fail or lose their lease.
    pub max_attempts: u32,
    /// Whether cancellation was requested.
    pub cancel_requested: bool,
    /// When the time to live ends, after which the run may not be queued.
    pub expires_at: Option<Timestamp>,
}

impl Tries {
    fn used_up(self, now: Timestamp) -> bool {
        self.failures.saturating_add(1) >= self.max_attempts || self.outlived(now)
    }

    fn outlived(self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// The change when the holder reports a failure.
    #[must_use]
    pub fn at_failure(self, retryable: bool, now: Timestamp) -> RunChange {
        if self.cancel_requested {
            RunChange::Stop
        } else if retryable && !self.used_up(now) {
            RunChange::Retry
        } else {
            RunChange::Fail
        }
    }

    /// The change when the holder gives the run back, which uses up no try.
    #[must_use]
    pub const fn at_release(self) -> RunChange {
        if self.cancel_requested {
            RunChange::Stop
        } else {
            RunChange::Release
        }
    }

    /// The change when the lease ends.
    #[must_use]
    pub fn at_lease_end(self, now: Timestamp) -> RunChange {
        if self.cancel_requested {
            RunChange::Abandon
        } else if self.used_up(now) {
            RunChange::Expire
        } else {
            RunChange::LoseLease
        }
    }
}

/// The wait after the `failures`-th retryable failure of a run, counted from 1: 5 s, doubled with
/// each failure up to an hour, ±20 %.
#[must_use]
pub fn backoff(failures: u32) -> Duration {
    let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
    let wait = doubled.map_or(BACKOFF_MAX, |factor| BACKOFF_FIRST.saturating_mul(factor));
    wait.min(BACKOFF_MAX)
        .mul_f64(random::jitter(BACKOFF_JITTER))
}

words! {
    /// The kind of an entry in a run's timeline. The list is closed.
    pub enum TimelineEntryKind {
        /// The run was created.
        Created = "created",
        /// A runner claimed the run.
        Claimed = "claimed",
        /// The holder reported progress.
        Progress = "progress",
        /// A subcommand was called for the run.
        Subcommand = "subcommand",
        /// The run succeeded.
        Succeeded = "succeeded",
        /// The run failed.
        Failed = "failed",
        /// A try failed, and another follows.
        AttemptFailed = "attempt_failed",
        /// The holder gave the run back.
        Released = "released",
        /// The lease ran out, and another try follows.
        LeaseLost = "lease_lost",
        /// Cancellation was requested.
        CancelRequested = "cancel_requested",
        /// The run was cancelled.
        Cancelled = "cancelled",
        /// The tries or the time to live ran out.
        Expired = "expired",
    }
}

impl TimelineEntryKind {
    /// The kind of the entry for a change. A heartbeat has an entry only if it reports progress.
    #[must_use]
    pub const fn of(change: RunChange) -> Self {
        match change {
            RunChange::Claim => Self::Claimed,
            RunChange::Heartbeat => Self::Progress,
            RunChange::Complete => Self::Succeeded,
            RunChange::Fail => Self::Failed,
            RunChange::Retry => Self::AttemptFailed,
            RunChange::Release => Self::Released,
            RunChange::Stop | RunChange::Cancel | RunChange::Abandon => Self::Cancelled,
            RunChange::RequestCancel => Self::CancelRequested,
            RunChange::LoseLease => Self::LeaseLost,
            RunChange::Expire => Self::Expired,
        }
    }

    /// Whether this is the last entry of a timeline.
    #[must_use]
    pub const fn is_last(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::Expired
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_ms(ms)
    }

    proptest! {
        #[test]
        fn no_history_leaves_a_final_state(picks in prop::collection::vec(0_usize..12, 0..60)) {
            let mut status = RunStatus::Queued;
            let mut ends = 0;
            for change in picks.into_iter().map(|at| CHANGES[at]) {
                if let Some(next) = status.after(change) {
                    prop_assert!(!status.is_final());
                    prop_assert_eq!(TimelineEntryKind::of(change).is_last(), next.is_final());
                    ends += usize::from(next.is_final());
                    status = next;
                }
            }
            prop_assert!(ends <= 1);
        }

        /// Whatever ends a try without a result is a change that a running run can take, by the
        /// actor that it belongs to.
        #[test]
        fn a_try_always_ends_somewhere(
            failures in 0_u32..6, max_attempts in 1_u32..6, cancel_requested: bool,
            expires in prop::option::of(0_i64..20), now in 0_i64..20, retryable: bool,
        ) {
            let tries = Tries {
                failures, max_attempts, cancel_requested, expires_at: expires.map(at),
            };
            let by_holder = [tries.at_failure(retryable, at(now)), tries.at_release()];
            for (change, actor) in by_holder.into_iter().map(|change| (change, RunActor::Holder))
                .chain([(tries.at_lease_end(at(now)), RunActor::Clock)])
            {
                let listed = TRANSITIONS.iter().any(|(from, by, who, _)| {
                    (*from, *by, *who) == (RunStatus::Running, change, actor)
                });
                prop_assert!(listed, "{change:?}");
            }
            if cancel_requested {
                let to = RunStatus::Running.after(tries.at_lease_end(at(now)));
                prop_assert_eq!(to, Some(RunStatus::Cancelled));
            }
        }

        #[test]
        fn tries_run_out(max_attempts in 1_u32..20) {
            let mut tries = Tries {
                failures: 0, max_attempts, cancel_requested: false, expires_at: None,
            };
            let mut made = 1;
            while tries.at_failure(true, at(0)) == RunChange::Retry {
                tries.failures += 1;
                made += 1;
            }
            prop_assert_eq!(made, max_attempts);
            prop_assert_eq!(tries.at_lease_end(at(0)), RunChange::Expire);
        }
    }

    #[test]
    fn a_change_is_listed_once_for_each_state_and_has_one_actor() {
        for (at, (from, change, actor, _)) in TRANSITIONS.iter().enumerate() {
            for (other_from, other_change, other_actor, _) in &TRANSITIONS[at + 1..] {
                assert!((from, change) != (other_from, other_change), "{change:?}");
                assert!(change != other_change || actor == other_actor, "{change:?}");
            }
            assert!(!from.is_final());
        }
        for change in CHANGES {
            assert!(
                TRANSITIONS
                    .iter()
                    .any(|(_, listed, _, _)| *listed == change)
            );
        }
    }

    #[test]
    fn the_wait_doubles_up_to_an_hour() {
        for (failures, seconds) in [(1, 5.0), (2, 10.0), (5, 80.0), (10, 2560.0), (40, 3600.0)] {
            let wait = backoff(failures).as_secs_f64();
            assert!(
                (seconds * 0.8..=seconds * 1.2).contains(&wait),
                "{failures}: {wait}"
            );
        }
    }

    #[test]
    fn words_parse_back() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::parse(status.as_str()), Some(status));
        }
        for kind in TimelineEntryKind::ALL {
            assert_eq!(TimelineEntryKind::parse(kind.as_str()), Some(kind));
        }
    }
}
