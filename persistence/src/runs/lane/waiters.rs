//! Waiting claims, by publisher and pipeline, in the order of their arrival.
//!
//! They are found from the pipelines that have runs to hand out, so the cost of a change does not
//! depend on how many claims wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use domain::slug::Slug;
use tokio::time::Instant;
use uuid::Uuid;

use super::entry::WaitingClaim;
use crate::runs::waiting::Open;

/// The waiting claims of one publisher: those for any pipeline, and those for named ones.
#[derive(Default)]
struct PublisherWaiters {
    any: BTreeSet<u64>,
    named: HashMap<Slug, BTreeSet<u64>>,
}

impl PublisherWaiters {
    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.named.is_empty()
    }

    /// The oldest claim that wants one of these pipelines.
    fn first(&self, open: &Open) -> Option<u64> {
        let named = open.keys().filter_map(|slug| self.named.get(slug)?.first());
        named.chain(self.any.first()).min().copied()
    }
}

/// A claim to try, and the pipelines that have runs for it.
pub(super) struct Picked {
    pub(super) number: u64,
    pub(super) waiting: WaitingClaim,
    pub(super) pipelines: Vec<Slug>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Waiters {
    last: u64,
    all: HashMap<u64, WaitingClaim>,
    lines: BTreeMap<Uuid, PublisherWaiters>,
    ends: BTreeSet<(Instant, u64)>,
}

impl Waiters {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The next number in the order of arrival.
    pub(super) const fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Adds a claim with its number in the order of arrival.
    pub(super) fn insert(&mut self, number: u64, waiting: WaitingClaim) {
        let lines = self.lines.entry(waiting.claim.publisher).or_default();
        match &waiting.claim.pipelines {
            None => drop(lines.any.insert(number)),
            Some(slugs) => {
                for slug in slugs {
                    lines.named.entry(slug.clone()).or_default().insert(number);
                }
            }
        }
        self.ends.insert((waiting.until, number));
        self.all.insert(number, waiting);
    }

    fn remove(&mut self, number: u64) -> Option<WaitingClaim> {
        let waiting = self.all.remove(&number)?;
        self.ends.remove(&(waiting.until, number));
        let publisher = waiting.claim.publisher;
        if let Some(lines) = self.lines.get_mut(&publisher) {
            lines.any.remove(&number);
            for slug in waiting.claim.pipelines.iter().flatten() {
                if let Some(line) = lines.named.get_mut(slug) {
                    line.remove(&number);
                    if line.is_empty() {
                        lines.named.remove(slug);
                    }
                }
            }
            if lines.is_empty() {
                self.lines.remove(&publisher);
            }
        }
        Some(waiting)
    }

    /// When the first wait ends.
    pub(super) fn first_end(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Takes out the claims whose wait is over.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<WaitingClaim> {
        let mut ended = Vec::new();
        while let Some((until, number)) = self.ends.first().copied() {
            if until > now {
                break;
            }
            ended.extend(self.remove(number));
        }
        ended
    }

    /// Takes out all claims.
    pub(super) fn take_all(&mut self) -> Vec<WaitingClaim> {
        self.lines.clear();
        self.ends.clear();
        self.all.drain().map(|(_, waiting)| waiting).collect()
    }

    /// Drops claims whose callers are gone.
    pub(super) fn forget_gone(&mut self) {
        let gone = self.all.iter().filter(|(_, waiting)| waiting.is_gone());
        let gone: Vec<u64> = gone.map(|(number, _)| *number).collect();
        for number in gone {
            self.remove(number);
        }
    }

    /// The publishers with waiting claims.
    pub(super) fn publishers(&self) -> impl Iterator<Item = Uuid> {
        self.lines.keys().copied()
    }

    pub(super) fn has(&self, publisher: Uuid) -> bool {
        self.lines.contains_key(&publisher)
    }

    /// The pipelines that are waited for; `None` if a claim waits for any.
    pub(super) fn named(&self, publisher: Uuid) -> Option<Vec<Slug>> {
        let lines = self.lines.get(&publisher)?;
        let some = lines.any.is_empty();
        some.then(|| lines.named.keys().cloned().collect())
    }

    /// Whether an earlier claim waits for the same pipelines.
    pub(super) fn is_behind(&self, claim: &WaitingClaim) -> bool {
        let Some(lines) = self.lines.get(&claim.claim.publisher) else {
            return false;
        };
        let named = claim.claim.pipelines.as_ref();
        !lines.any.is_empty()
            || named.is_none_or(|some| some.iter().any(|slug| lines.named.contains_key(slug)))
    }

    /// Takes out the claims to try, in the order of arrival, while runs are left and until the
    /// claims want `most` runs.
    pub(super) fn pick(&mut self, publisher: Uuid, open: &mut Open, most: u32) -> Vec<Picked> {
        let (mut picked, mut all) = (Vec::new(), 0);
        while all < most {
            open.retain(|_, left| *left > 0);
            let first = self
                .lines
                .get(&publisher)
                .and_then(|lines| lines.first(open));
            let Some(number) = first.filter(|_| !open.is_empty()) else {
                break;
            };
            let Some(waiting) = self.remove(number) else {
                break;
            };
            if waiting.is_gone() {
                continue;
            }
            let wants = |slug: &Slug| {
                let named = waiting.claim.pipelines.as_ref();
                named.is_none_or(|some| some.contains(slug))
            };
            let pipelines: Vec<Slug> = open.keys().filter(|slug| wants(slug)).cloned().collect();
            let mut wanted = waiting.claim.max();
            for slug in &pipelines {
                let Some(left) = open.get_mut(slug) else {
                    continue;
                };
                let some = wanted.min(*left);
                *left -= some;
                wanted -= some;
                all += some;
            }
            picked.push(Picked {
                number,
                waiting,
                pipelines,
            });
        }
        picked
    }
}
