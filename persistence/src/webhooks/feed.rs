//! A publisher's events as they are committed, for whoever follows them.
//!
//! An identifier contains the time at which its transaction began, not the time of its commit: a
//! later commit may bring a lower identifier. So a feed remembers the identifiers of the last
//! minute, counts once a second whether there are more by now, and if so reads that minute again.
//! Nothing is written for a feed, and no producer knows of it.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use domain::{
    Timestamp,
    event::{Filter, OwnType},
    id::{EventId, Id as _},
};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _,
    QuerySelect as _, Select,
};
use tokio::sync::watch;
use uuid::Uuid;

use crate::{
    store::{
        Scoped,
        entity::events,
        error::{Result, StoreError},
    },
    webhooks::Webhooks,
    webhooks::events::Event,
};

/// How long after its begin a transaction may still commit events, in milliseconds, including the
/// difference between processes' clocks. PostgreSQL ends a statement after 30 s and an idle
/// transaction after 5 s.
const SETTLED_AFTER_MS: i64 = 60_000;
/// How much further a resumed feed goes back, in milliseconds: for events that the last feed was
/// about to find.
const RESUME_MARGIN_MS: i64 = 5_000;
/// Events may be older than the feed by this time, in milliseconds, if they were committed after it
/// began.
const STRADDLE_MS: i64 = 5_000;
/// What each look reads again, in milliseconds: most transactions that overtake each other are this
/// close.
const RECENT_MS: i64 = 1_000;
/// How often a feed counts whether an event came late, in milliseconds.
const COUNT_EVERY_MS: i64 = 1_000;
/// If the clock shows so much less than at the last look, it was set back.
const SET_BACK: Duration = Duration::from_secs(2);
/// A feed looks within this time after the clock was set back. The next constant covers what may
/// have been written meanwhile.
const LOOKED_BY: Duration = Duration::from_secs(1);
const REWIND: Duration = Duration::from_secs(10);
/// Most identifiers that are remembered. If there are more, the oldest are taken as settled.
const SEEN_MAX: usize = 100_000;
/// Identifiers that one statement reads.
const KEYS: u64 = 1_000;
/// Events that one statement reads; each may have 256 KiB.
const READ: usize = 16;

/// The state of a feed, from which another feed can continue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedCursor {
    /// The last event that was handed out.
    pub event: EventId,
    /// When the first feed began.
    pub since: Timestamp,
}

/// A running search for new events.
struct Scan {
    at: Uuid,
    /// Whether the search covers everything from its start, so that what it passes below the
    /// horizon is settled.
    full: bool,
    /// Below this identifier, every transaction has committed or never will.
    horizon: Uuid,
}

/// Returns a publisher's events as they appear, each once. A feed that continues another one also
/// returns again some events from just before its cursor.
pub struct Feed {
    scoped: Scoped,
    filters: Vec<Filter>,
    since: Timestamp,
    /// Up to this identifier everything was read, and no further event appears.
    floor: Uuid,
    /// The highest identifier that was read.
    head: Uuid,
    /// Identifiers above the floor that were read.
    seen: BTreeSet<Uuid>,
    /// Identifiers of events to return.
    wanted: VecDeque<Uuid>,
    scan: Option<Scan>,
    counted_at: Option<Timestamp>,
    /// When the feed last looked.
    looked_at: Timestamp,
}

/// The lowest identifier of a time.
fn first_of(ms: i64) -> Uuid {
    let ms = u64::try_from(ms).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &[0; 10]).into_uuid()
}

/// The time in an identifier, in milliseconds.
fn ms_of(id: Uuid) -> i64 {
    i64::try_from(id.as_u128() >> 80).unwrap_or(i64::MAX)
}

impl Webhooks<Scoped> {
    /// A counter that changes whenever events of the publisher were committed, in any process. It
    /// may also change without a reason.
    #[must_use]
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.store.inner.wake.watch(self.scope.uuid())
    }

    /// Follows the events that the scope reaches, that one of the filters matches and that
    /// endpoints are sent. Without `from`, the feed returns events that are committed from now on.
    /// With `from`, it returns those that appeared after the cursor, and some from before again.
    pub async fn feed(
        &self,
        filters: Vec<Filter>,
        from: Option<FeedCursor>,
    ) -> Result<Feed, StoreError> {
        let now = self.store.now();
        let start = from.map_or(now.ms() - SETTLED_AFTER_MS, |cursor| {
            let back = ms_of(cursor.event.uuid()) - SETTLED_AFTER_MS - RESUME_MARGIN_MS;
            let back = back.max(cursor.since.ms() - STRADDLE_MS);
            // A cursor in the future is from before the clock was set back.
            if back > now.ms() {
                now.ms() - SETTLED_AFTER_MS
            } else {
                back
            }
        });
        let mut feed = Feed {
            scoped: self.0.clone(),
            filters,
            since: from.map_or(now, |cursor| cursor.since),
            floor: first_of(start),
            head: first_of(start),
            seen: BTreeSet::new(),
            wanted: VecDeque::new(),
            scan: None,
            counted_at: None,
            looked_at: now,
        };
        if from.is_none() {
            // Events that exist already are not new.
            while feed.look().await? {}
            feed.wanted.clear();
        }
        Ok(feed)
    }
}

impl Feed {
    /// The cursor of a feed that began with this one and returned everything up to now.
    #[must_use]
    pub fn beginning(&self) -> FeedCursor {
        let event = EventId::from_uuid(first_of(self.scoped.store.now().ms()));
        self.after(event)
    }

    /// The cursor after this event was returned.
    #[must_use]
    pub const fn after(&self, event: EventId) -> FeedCursor {
        FeedCursor {
            event,
            since: self.since,
        }
    }

    /// Whether there may be more events to return at once.
    #[must_use]
    pub fn is_behind(&self) -> bool {
        self.scan.is_some() || !self.wanted.is_empty()
    }

    /// Some of the next events. None if there are none now, or if the search found none so far and
    /// the feed [is behind](Self::is_behind).
    pub async fn next(&mut self) -> Result<Vec<Event>, StoreError> {
        if self.wanted.is_empty() {
            self.look().await?;
        }
        let count = self.wanted.len().min(READ);
        if count == 0 {
            return Ok(Vec::new());
        }
        let ids = self.wanted.iter().take(count).copied();
        let rows = self
            .scoped
            .webhooks()
            .visible_events()
            .filter(events::Column::Id.is_in(ids))
            .order_by_asc(events::Column::Id)
            .all(self.scoped.store.read())
            .await?;
        self.wanted.drain(..count);
        Ok(rows.into_iter().map(Event::of_row).collect())
    }

    /// Whether an endpoint with these filters would get the event. A test event is for one endpoint
    /// only.
    fn wants(&self, event_type: &str) -> bool {
        event_type != OwnType::Test.as_str()
            && self.filters.iter().any(|filter| filter.matches(event_type))
    }

    /// Includes events that the scope does not reach: those are left out after they were read.
    fn above(&self, id: Uuid) -> Select<events::Entity> {
        let owner = self.scoped.scope.uuid();
        events::Entity::find()
            .filter(events::Column::PublisherId.eq(owner))
            .filter(events::Column::Id.gt(id))
    }

    /// Reads one part. Returns whether there is more.
    async fn look(&mut self) -> Result<bool> {
        let now = self.scoped.store.now();
        if now.plus(SET_BACK) < self.looked_at {
            self.rewind(now).await?;
        }
        self.looked_at = now;
        let mut scan = match self.scan.take() {
            Some(scan) => scan,
            None => self.begin(now).await?,
        };
        let rows: Vec<(Uuid, String, Option<String>)> = self
            .above(scan.at)
            .select_only()
            .columns([
                events::Column::Id,
                events::Column::EventType,
                events::Column::PipelineSlug,
            ])
            .order_by_asc(events::Column::Id)
            .limit(KEYS)
            .into_tuple()
            .all(self.scoped.store.read())
            .await?;
        let more = u64::try_from(rows.len()).is_ok_and(|found| found >= KEYS);
        for (id, event_type, pipeline) in rows {
            scan.at = id;
            self.head = self.head.max(id);
            let in_reach = self
                .scoped
                .webhooks()
                .sees_event(&event_type, pipeline.as_deref());
            if self.seen.insert(id) && in_reach && self.wants(&event_type) {
                self.wanted.push_back(id);
            }
        }
        if scan.full {
            let passed = if more { scan.at } else { scan.horizon };
            self.settle(passed.min(scan.horizon));
        }
        while self.seen.len() > SEEN_MAX {
            if let Some(oldest) = self.seen.pop_first() {
                self.floor = oldest;
            }
        }
        if more {
            self.scan = Some(scan);
        } else if scan.full {
            self.counted_at = Some(now);
        }
        Ok(more)
    }

    /// Handles a clock that was set back: new events get lower identifiers than those that were
    /// read. Events with a time in the future are from before, and count as read.
    async fn rewind(&mut self, now: Timestamp) -> Result<()> {
        let ahead = first_of(now.plus(LOOKED_BY).ms());
        let before: Vec<Uuid> = self
            .above(ahead)
            .select_only()
            .column(events::Column::Id)
            .order_by_desc(events::Column::Id)
            .limit(u64::try_from(SEEN_MAX).unwrap_or(u64::MAX))
            .into_tuple()
            .all(self.scoped.store.read())
            .await?;
        self.seen.extend(before);
        self.floor = self.floor.min(first_of(now.minus(REWIND).ms()));
        self.scan = None;
        self.counted_at = None;
        Ok(())
    }

    async fn begin(&mut self, now: Timestamp) -> Result<Scan> {
        let horizon = first_of(now.ms() - SETTLED_AFTER_MS);
        let due = self
            .counted_at
            .is_none_or(|at| (now.ms() - at.ms()).abs() >= COUNT_EVERY_MS);
        if due {
            let known = self.above(self.floor);
            let known = known.filter(events::Column::Id.lte(self.head));
            let count = known.count(self.scoped.store.read()).await?;
            let nothing_late = usize::try_from(count).is_ok_and(|count| count == self.seen.len());
            if self.counted_at.is_none() || !nothing_late {
                return Ok(Scan {
                    at: self.floor,
                    full: true,
                    horizon,
                });
            }
            self.counted_at = Some(now);
            self.settle(horizon.min(self.head));
        }
        let recent = first_of(ms_of(self.head) - RECENT_MS);
        Ok(Scan {
            at: recent.max(self.floor),
            full: due,
            horizon,
        })
    }

    fn settle(&mut self, floor: Uuid) {
        if floor > self.floor {
            self.floor = floor;
            let above = self.seen.split_off(&floor);
            self.seen = above;
            self.seen.remove(&floor);
        }
    }
}

#[cfg(test)]
mod tests;
