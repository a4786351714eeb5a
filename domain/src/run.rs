//! A run's states, and which change of state is possible.

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
    /// Its last lease ran out.
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
    pub const fn after(self, change: RunChange) -> Option<Self> {
        match (self, change) {
            (Self::Queued, RunChange::Claim) => Some(Self::Running),
            (Self::Running, RunChange::Complete) => Some(Self::Succeeded),
            (Self::Running, RunChange::Fail) => Some(Self::Failed),
            (Self::Running, RunChange::Requeue) => Some(Self::Queued),
            (Self::Running, RunChange::Expire) => Some(Self::Expired),
            (Self::Queued | Self::Running, RunChange::Cancel) => Some(Self::Cancelled),
            _ => None,
        }
    }
}

/// What can happen to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunChange {
    /// A runner takes it.
    Claim,
    /// Its claim's holder finished it.
    Complete,
    /// Its claim's holder gave it up.
    Fail,
    /// Its lease ran out and tries are left.
    Requeue,
    /// Its lease ran out and no try is left.
    Expire,
    /// The publisher called it off.
    Cancel,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CHANGES: [RunChange; 6] = [
        RunChange::Claim,
        RunChange::Complete,
        RunChange::Fail,
        RunChange::Requeue,
        RunChange::Expire,
        RunChange::Cancel,
    ];

    proptest! {
        #[test]
        fn no_history_leaves_a_final_state(picks in prop::collection::vec(0_usize..6, 0..40)) {
            let mut status = RunStatus::Queued;
            let mut ends = 0;
            for change in picks.into_iter().map(|at| CHANGES[at]) {
                if let Some(next) = status.after(change) {
                    prop_assert!(!status.is_final());
                    ends += usize::from(next.is_final());
                    status = next;
                }
            }
            prop_assert!(ends <= 1);
        }
    }

    #[test]
    fn words_parse_back() {
        for status in RunStatus::ALL {
            assert_eq!(RunStatus::parse(status.as_str()), Some(status));
        }
    }
}
