//! Streams that are open: so many a publisher, in each process.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use domain::id::PublisherId;

/// How many seats each publisher has taken.
pub(crate) struct Seats {
    most: usize,
    taken: Mutex<HashMap<PublisherId, usize>>,
}

impl Seats {
    /// At most so many for each publisher.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            taken: Mutex::default(),
        })
    }

    /// A seat, if there is one left.
    pub(crate) fn take(self: &Arc<Self>, publisher: PublisherId) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(publisher).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        let seats = Arc::clone(self);
        Some(Seat { seats, publisher })
    }
}

/// One stream's seat, free again when it is dropped.
pub(crate) struct Seat {
    seats: Arc<Seats>,
    publisher: PublisherId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let taken = self.seats.taken.lock();
        let mut taken = taken.unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.publisher) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.publisher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::id::Id as _;

    use super::*;

    #[test]
    fn seats_are_counted_and_given_back() {
        let seats = Seats::new(3);
        let publisher = PublisherId::from_uuid(uuid::Uuid::nil());
        let mut taken: Vec<Seat> = (0..3).filter_map(|_| seats.take(publisher)).collect();
        assert_eq!(taken.len(), 3);
        assert!(seats.take(publisher).is_none());
        taken.pop();
        assert!(seats.take(publisher).is_some());
        drop(taken);
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
