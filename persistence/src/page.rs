//! Pages of lists.

use std::collections::HashMap;

use domain::limits::PAGE_MAX;

use crate::walk::Found;

/// Which part of a list. `after` is the sort key of the last row of the page before.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest<K> {
    /// At most this many rows, 1 to 200.
    pub limit: u64,
    /// Where to go on.
    pub after: Option<K>,
}

/// A part of a list.
#[derive(Clone, Debug)]
pub struct Page<T, K> {
    /// The rows, in the list's order.
    pub items: Vec<T>,
    /// Where the next page goes on; `None` on the last one.
    pub next: Option<K>,
}

impl<K> PageRequest<K> {
    /// One row more than asked for, which tells whether there is a next page.
    pub(crate) fn fetch(&self) -> u64 {
        self.limit.clamp(1, PAGE_MAX) + 1
    }

    /// Cuts the rows fetched to the page asked for.
    pub(crate) fn cut<M>(&self, mut rows: Vec<M>, key: impl Fn(&M) -> K) -> Page<M, K> {
        let limit = usize::try_from(self.limit.clamp(1, PAGE_MAX)).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more { rows.last().map(key) } else { None };
        Page { items: rows, next }
    }
}

impl<M, K: Copy + Eq + std::hash::Hash> Page<M, K> {
    /// The rows of keys that were found, in the keys' order. What is gone by now is left out.
    pub(crate) fn of_found(found: Found<K>, rows: Vec<M>, key: impl Fn(&M) -> K) -> Self {
        let mut rows: HashMap<K, M> = rows.into_iter().map(|row| (key(&row), row)).collect();
        let items = found.keys.iter().filter_map(|key| rows.remove(key));
        Self {
            items: items.collect(),
            next: found.next,
        }
    }
}

impl<M, K> Page<M, K> {
    /// Converts the rows; an error in one is the page's.
    pub(crate) fn try_map<T, E>(self, f: impl Fn(M) -> Result<T, E>) -> Result<Page<T, K>, E> {
        let items = self.items.into_iter().map(f).collect::<Result<_, _>>()?;
        Ok(Page {
            items,
            next: self.next,
        })
    }
}
