//! What statements about deliveries bind.

use sea_orm::Value;

use crate::store::{effects::EndpointKey, sql::padded};

/// The keys for an `IN (…)`.
pub(super) fn rows_of(keys: &[EndpointKey]) -> impl Iterator<Item = Vec<Value>> {
    let keys = padded(keys.iter().copied()).into_iter();
    keys.map(|key| key.values().to_vec())
}

pub(super) fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
