//! Claims that wait, by publisher and pipeline, in the order in which they came.
//!
//! Who is to be served is found from the pipelines that have runs to hand out, so that a change
//! costs the same however many wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use domain::slug::Slug;
use tokio::time::Instant;
use uuid::Uuid;

use super::entry::WaitingClaim;
use crate::runs::waiting::Open;

/// Of a publisher: who waits for any pipeline, and who for which.
#[derive(Default)]
struct PublisherWaiters {
    any: BTreeSet<u64>,
    named: HashMap<Slug, BTreeSet<u64>>,
}

impl PublisherWaiters {
    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.named.is_empty()
    }

    /// Who came first of those that want one of these pipelines.
    fn first(&self, open: &Open) -> Option<u64> {
        let named = open.keys().filter_map(|slug| self.named.get(slug)?.first());
        named.chain(self.any.first()).min().copied()
    }
}

/// A claim that is to be tried, and the pipelines that have runs for it.
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

    /// A place behind all that have one.
    pub(super) const fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Lets a claim wait, in this place.
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

    /// When the first one gives up.
    pub(super) fn first_end(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// Those that give up by now.
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

    /// All of them.
    pub(super) fn take_all(&mut self) -> Vec<WaitingClaim> {
        self.lines.clear();
        self.ends.clear();
        self.all.drain().map(|(_, waiting)| waiting).collect()
    }

    /// Forgets those whose callers have left.
    pub(super) fn forget_gone(&mut self) {
        let gone = self.all.iter().filter(|(_, waiting)| waiting.is_gone());
        let gone: Vec<u64> = gone.map(|(number, _)| *number).collect();
        for number in gone {
            self.remove(number);
        }
    }

    /// Whose claims wait.
    pub(super) fn publishers(&self) -> impl Iterator<Item = Uuid> {
        self.lines.keys().copied()
    }

    pub(super) fn has(&self, publisher: Uuid) -> bool {
        self.lines.contains_key(&publisher)
    }

    /// Which pipelines are waited for; `None` if some wait for any.
    pub(super) fn named(&self, publisher: Uuid) -> Option<Vec<Slug>> {
        let lines = self.lines.get(&publisher)?;
        let some = lines.any.is_empty();
        some.then(|| lines.named.keys().cloned().collect())
    }

    /// Whether somebody waits already for what this claim wants.
    pub(super) fn is_behind(&self, claim: &WaitingClaim) -> bool {
        let Some(lines) = self.lines.get(&claim.claim.publisher) else {
            return false;
        };
        let named = claim.claim.pipelines.as_ref();
        !lines.any.is_empty()
            || named.is_none_or(|some| some.iter().any(|slug| lines.named.contains_key(slug)))
    }

    /// Takes out those that are to be tried: in the order in which they came, for as long as runs
    /// are left, and until these are for so many runs.
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
