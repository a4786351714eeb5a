//! Usage of accounts that was counted in this process and is not written yet.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use uuid::Uuid;

/// Most spans that wait to be written. Usage of further accounts is not counted until then.
const PENDING_MAX: usize = 100_000;
/// Publisher, account, and the beginning of the span of time.
pub(super) type Span = (Uuid, Uuid, i64);

/// Requests and tokens that are not written yet.
#[derive(Default)]
pub(super) struct Pending(Mutex<BTreeMap<Span, (i64, i64)>>);

impl Pending {
    pub(super) fn spans(&self) -> MutexGuard<'_, BTreeMap<Span, (i64, i64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, span: Span, (requests, tokens): (i64, i64)) {
        let mut spans = self.spans();
        if spans.len() < PENDING_MAX || spans.contains_key(&span) {
            let sums = spans.entry(span).or_default();
            *sums = (
                sums.0.saturating_add(requests),
                sums.1.saturating_add(tokens),
            );
        }
    }

    /// The unwritten usage of one account.
    pub(super) fn of(&self, publisher: Uuid, account: Uuid) -> (u64, u64) {
        let spans = self.spans();
        let own = spans.range((publisher, account, i64::MIN)..=(publisher, account, i64::MAX));
        own.fold((0, 0), |sums: (u64, u64), (_, (requests, tokens))| {
            (
                sums.0.saturating_add_signed(*requests),
                sums.1.saturating_add_signed(*tokens),
            )
        })
    }
}
