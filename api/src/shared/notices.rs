//! How often what guards notice is written down.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use domain::Timestamp;

/// What is written down at most once in so long.
const NOTICE_EVERY_MS: i64 = 60_000;
/// Most tokens whose notices are remembered; beyond, old ones go first.
const NOTICES_MAX: usize = 10_000;

type Noticed = HashMap<([u8; 32], &'static str), Timestamp>;

/// When which notice was last written.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<Noticed>);

impl Notices {
    /// Whether the notice of `reason` about `who` is due; then it counts as written.
    pub(crate) fn due(&self, who: [u8; 32], reason: &'static str, now: Timestamp) -> bool {
        let mut noticed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: Timestamp| now.ms() - at.ms() < NOTICE_EVERY_MS;
        if noticed.get(&(who, reason)).is_some_and(|at| fresh(*at)) {
            return false;
        }
        if noticed.len() >= NOTICES_MAX {
            noticed.retain(|_, at| fresh(*at));
            if noticed.len() >= NOTICES_MAX {
                return false;
            }
        }
        noticed.insert((who, reason), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notice_is_due_once_a_minute() {
        let notices = Notices::default();
        let at = Timestamp::from_ms;
        assert!(notices.due([1; 32], "a", at(0)));
        assert!(!notices.due([1; 32], "a", at(59_999)));
        assert!(notices.due([1; 32], "b", at(1)) && notices.due([2; 32], "a", at(1)));
        assert!(notices.due([1; 32], "a", at(60_000)));
    }
}
