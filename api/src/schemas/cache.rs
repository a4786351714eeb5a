//! Compiled schemas at hand.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use moka::sync::Cache;
use serde_json::Value;

use domain::{FaultCode, FieldError, id::PublisherId};

use super::{
    Key,
    compile::{Compiled, compile},
    cost::KEPT,
};

/// Memory for compiled schemas, bytes.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;
/// Of these, one publisher's.
const SHARE_BYTES: u64 = CACHE_BYTES / 4;
/// What one that does not compile takes, bytes.
const REFUSED_BYTES: u64 = 1024;
/// Publishers whose share is watched.
const PUBLISHERS: u64 = 10_000;

/// A compiled schema; or the first fault of one that was registered under older rules and can't
/// be evaluated by those of today.
pub(super) type Cached = Result<Compiled, FieldError>;

fn bytes_of(cached: &Cached) -> u64 {
    cached
        .as_ref()
        .map_or(REFUSED_BYTES, |compiled| compiled.bytes)
}

/// What a publisher has in the cache, the oldest first. Some of it may be gone by now.
type Line = Arc<Mutex<VecDeque<(Key, u64)>>>;

/// Compiled schemas by version, which never changes.
pub(super) struct Known {
    compiled: Cache<Key, Arc<Cached>>,
    lines: Cache<PublisherId, Line>,
}

impl Known {
    pub(super) fn new() -> Self {
        let weight =
            |_: &_, cached: &Arc<Cached>| u32::try_from(bytes_of(cached)).unwrap_or(u32::MAX);
        Self {
            compiled: Cache::builder()
                .max_capacity(CACHE_BYTES)
                .weigher(weight)
                .build(),
            lines: Cache::new(PUBLISHERS),
        }
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Cached>> {
        self.compiled.get(key)
    }

    /// Takes long if the schema is not at hand.
    pub(super) fn get_or_compile(
        &self,
        publisher: PublisherId,
        key: Key,
        schema: &Value,
    ) -> Arc<Cached> {
        if let Some(known) = self.get(&key) {
            return known;
        }
        let fresh = compile(schema, KEPT).map_err(|faults| {
            let fault = faults.into_iter().next();
            let fault =
                fault.unwrap_or_else(|| FieldError::new("", FaultCode::Invalid, "It is invalid."));
            tracing::warn!(
                %publisher,
                version = ?key,
                fault = fault.detail,
                "a stored schema can't be evaluated"
            );
            fault
        });
        let fresh = Arc::new(fresh);
        self.compiled.insert(key, Arc::clone(&fresh));
        self.within_share(publisher, key, bytes_of(&fresh));
        fresh
    }

    /// A publisher's newest push its oldest out, not those of others.
    fn within_share(&self, publisher: PublisherId, key: Key, bytes: u64) {
        let line = self.lines.get_with(publisher, Line::default);
        let mut line = line.lock().unwrap_or_else(PoisonError::into_inner);
        line.push_back((key, bytes));
        let mut sum: u64 = line.iter().map(|(_, bytes)| bytes).sum();
        while sum > SHARE_BYTES && line.len() > 1 {
            let Some((oldest, bytes)) = line.pop_front() else {
                return;
            };
            sum -= bytes;
            if line.iter().all(|(key, _)| *key != oldest) {
                self.compiled.invalidate(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::id::Id as _;
    use serde_json::json;
    use uuid::Uuid;

    use super::{super::Side, *};

    fn key(version: i64) -> Key {
        (Uuid::nil(), version, Side::Input)
    }

    #[test]
    fn a_publisher_pushes_out_its_own() {
        let known = Known::new();
        let (mine, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (mine, other) = (PublisherId::from_uuid(mine), PublisherId::from_uuid(other));
        known.get_or_compile(other, key(0), &json!({"type": "string"}));
        for version in 1..=3 {
            known.within_share(mine, key(version), SHARE_BYTES / 2);
            known
                .compiled
                .insert(key(version), known.get(&key(0)).unwrap());
        }
        assert!(known.get(&key(0)).is_some() && known.get(&key(3)).is_some());
        known.within_share(mine, key(4), SHARE_BYTES);
        assert!(known.get(&key(2)).is_none() && known.get(&key(3)).is_none());
        assert!(known.get(&key(0)).is_some());
    }

    #[test]
    fn one_that_does_not_compile_is_remembered_too() {
        let known = Known::new();
        let owner = PublisherId::from_uuid(Uuid::nil());
        let circle = json!({"items": {"$ref": "#"}});
        let first = known.get_or_compile(owner, key(1), &circle);
        assert_eq!(
            first.as_ref().as_ref().err().unwrap().pointer,
            "/items/$ref"
        );
        assert!(Arc::ptr_eq(&first, &known.get(&key(1)).unwrap()));
    }
}
