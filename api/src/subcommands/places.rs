//! How many calls are under way: so many in all, and so many of one publisher, that endpoints
//! which are slow take neither the whole process nor another publisher's share.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use domain::{
    Code, Problem,
    id::PublisherId,
    limits::{SUBCOMMAND_CALLS, SUBCOMMAND_CALLS_IN_ALL},
};

/// What whoever finds no place is told to wait, seconds.
const RETRY_AFTER_S: u64 = 1;

#[derive(Debug, Default)]
struct Taken {
    in_all: usize,
    of: HashMap<PublisherId, usize>,
}

/// The places of one process.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

impl Places {
    /// Takes a place, which is given back when it is dropped.
    ///
    /// # Errors
    /// `rate_limited` when the publisher has all of its own, `overloaded` when there are no more.
    pub(super) fn take(&self, publisher: PublisherId) -> Result<Place, Problem> {
        let mut taken = self.locked();
        if taken.in_all >= SUBCOMMAND_CALLS_IN_ALL {
            let detail = "Too many subcommand calls are under way; this one was not made.";
            return Err(Problem::new(Code::Overloaded, detail).retry_after(RETRY_AFTER_S));
        }
        let own = taken.of.entry(publisher).or_default();
        if *own >= SUBCOMMAND_CALLS {
            let detail = format!(
                "{SUBCOMMAND_CALLS} subcommand calls are under way; this one was not made."
            );
            return Err(Problem::new(Code::RateLimited, detail).retry_after(RETRY_AFTER_S));
        }
        *own += 1;
        taken.in_all += 1;
        metrics::gauge!("stationmaster_subcommand_calls_in_flight").increment(1.0);
        Ok(Place {
            places: self.clone(),
            publisher,
        })
    }

    fn locked(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the calls under way.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    publisher: PublisherId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.locked();
        taken.in_all -= 1;
        if let Some(own) = taken.of.get_mut(&self.publisher) {
            *own -= 1;
            if *own == 0 {
                taken.of.remove(&self.publisher);
            }
        }
        metrics::gauge!("stationmaster_subcommand_calls_in_flight").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use domain::id::Id as _;
    use uuid::Uuid;

    use super::*;

    fn publisher(number: u128) -> PublisherId {
        PublisherId::from_uuid(Uuid::from_u128(number))
    }

    #[test]
    fn a_publisher_has_a_share_of_its_own() {
        let places = Places::default();
        let mut held: Vec<Place> = (0..SUBCOMMAND_CALLS)
            .map(|_| places.take(publisher(1)).unwrap())
            .collect();
        let problem = places.take(publisher(1)).unwrap_err();
        assert_eq!(
            (problem.code, problem.retry_after_s),
            (Code::RateLimited, Some(1))
        );
        assert!(places.take(publisher(2)).is_ok());
        held.pop();
        assert!(places.take(publisher(1)).is_ok());
    }

    #[test]
    fn there_are_so_many_in_all() {
        let places = Places::default();
        let held: Vec<Place> = (0..SUBCOMMAND_CALLS_IN_ALL)
            .map(|n| places.take(publisher(n as u128)).unwrap())
            .collect();
        let problem = places.take(publisher(u128::MAX)).unwrap_err();
        assert_eq!(
            (problem.code, problem.retry_after_s),
            (Code::Overloaded, Some(1))
        );
        drop(held);
        assert_eq!(places.locked().in_all, 0);
        assert!(places.locked().of.is_empty(), "nothing is left behind");
    }
}
