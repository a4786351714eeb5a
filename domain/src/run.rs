//! A run's states, which change of state is possible, and who may bring it about.

use std::time::Duration;

use crate::{clock::Timestamp, random};

/// Wait after a run's first retryable failure; it doubles with each one.
const BACKOFF_FIRST: Duration = Duration::from_secs(5);
/// The longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_hours(1);
/// Spread of a wait to either side, so that what failed together is not tried together.
const BACKOFF_JITTER: f64 = 0.2;

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunStatus {
    /// Waits for a runner.
    Queued,
    /// A runner holds its claim.
    Running,
    /// Finished well.
    Succeeded,
    /// Finished badly.
    Failed,
    /// Somebody called it off.
    Cancelled,
    /// Its tries or its time to live ran out.
    Expired,
}

impl RunStatus {
    /// Every status.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The word in answers and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The status that a word names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether nothing can change any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The status after `change`, or `None` if a run that stands here can't take it.
    #[must_use]
    pub fn after(self, change: RunChange) -> Option<Self> {
        TRANSITIONS
            .iter()
            .find(|(from, by, _, _)| *from == self && *by == change)
            .map(|(_, _, _, to)| *to)
    }
}

/// Who brings a change about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunActor {
    /// A runner that holds nothing yet.
    Runner,
    /// Whoever shows the run's present claim.
    Holder,
    /// The publisher, by any token that may cancel.
    Publisher,
    /// The service, when a time has come.
    Clock,
}

/// What can happen to a run. Each is also an entry of its timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunChange {
    /// A runner takes it.
    Claim,
    /// Its holder extends its lease, and may report progress.
    Heartbeat,
    /// Its holder finished it.
    Complete,
    /// Its holder gave it up for good.
    Fail,
    /// Its holder's try failed, and another one may do better.
    Retry,
    /// Its holder gives it back untried.
    Release,
    /// Its holder stops because somebody wants it cancelled.
    Stop,
    /// Somebody calls it off while nobody holds it.
    Cancel,
    /// Somebody wants it called off while it is held.
    RequestCancel,
    /// Its lease ran out and tries are left.
    LoseLease,
    /// Its lease ran out after somebody wanted it cancelled.
    Abandon,
    /// Its last lease ran out, or its time to live did.
    Expire,
}

/// From where, what, by whom, to where. What is not listed can't happen.
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

/// What decides how a run goes on when a try of it ends without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Tries that failed or lost their lease, before this one.
    pub failures: u32,
    /// How many may.
    pub max_attempts: u32,
    /// Whether somebody wants the run cancelled.
    pub cancel_requested: bool,
    /// When it may not be queued any more.
    pub expires_at: Option<Timestamp>,
}

impl Tries {
    fn used_up(self, now: Timestamp) -> bool {
        self.failures.saturating_add(1) >= self.max_attempts || self.outlived(now)
    }

    fn outlived(self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// What the holder's report of a failure is.
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

    /// What giving the run back is. It uses up no try.
    #[must_use]
    pub const fn at_release(self) -> RunChange {
        if self.cancel_requested {
            RunChange::Stop
        } else {
            RunChange::Release
        }
    }

    /// What the end of the lease is.
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

/// How long a run waits after its `failures`-th retryable failure (from 1): 5 s, doubled each
/// time up to an hour, ±20 %.
#[must_use]
pub fn backoff(failures: u32) -> Duration {
    let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
    let wait = doubled.map_or(BACKOFF_MAX, |factor| BACKOFF_FIRST.saturating_mul(factor));
    wait.min(BACKOFF_MAX)
        .mul_f64(random::jitter(BACKOFF_JITTER))
}

macro_rules! timeline_entry_kinds {
    ($($(#[$doc:meta])* $variant:ident = $word:literal;)*) => {
        /// An entry of a run's timeline: a closed vocabulary.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum TimelineEntryKind { $($(#[$doc])* $variant,)* }

        impl TimelineEntryKind {
            /// Every kind of entry.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in answers and the store.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// The entry that a word names.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($word => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

timeline_entry_kinds! {
    /// It was created.
    Created = "created";
    /// A runner took it.
    Claimed = "claimed";
    /// Its holder reported progress.
    Progress = "progress";
    /// A subcommand was called for it.
    Subcommand = "subcommand";
    /// It finished well.
    Succeeded = "succeeded";
    /// It finished badly.
    Failed = "failed";
    /// A try failed; another follows.
    AttemptFailed = "attempt_failed";
    /// Its holder gave it back.
    Released = "released";
    /// Its lease ran out; another try follows.
    LeaseLost = "lease_lost";
    /// Somebody wants it cancelled.
    CancelRequested = "cancel_requested";
    /// It was called off.
    Cancelled = "cancelled";
    /// Its tries or its time to live ran out.
    Expired = "expired";
}

impl TimelineEntryKind {
    /// How a timeline tells of a change. A heartbeat is told of only if it reports progress.
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

    /// Whether the timeline ends here.
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
            assert_eq!(TimelineEntryKind::parse(kind.as_str()), Some(*kind));
        }
    }
}
