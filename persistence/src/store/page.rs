//! Pages of lists. They end by rows, and by the bytes of what their rows hold.

use std::collections::HashMap;

use domain::limits::{PAGE_BYTES, PAGE_MAX};
use sea_orm::{
    ConnectionTrait, EntityTrait, FromQueryResult, QuerySelect as _, Select,
    sea_query::{Expr, Func, SimpleExpr},
};

use crate::store::error::Result;

/// So many rows are read without a look at their sizes first.
const UNSEEN: u64 = 8;

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

/// Keys in the list's order.
#[derive(Debug)]
pub(crate) struct Found<K> {
    pub(crate) keys: Vec<K>,
    /// Where to go on; `None` at the list's end.
    pub(crate) next: Option<K>,
}

/// The bytes of a text column, without reading the text: nothing counts as none.
pub(crate) fn bytes_of(column: impl Into<SimpleExpr>) -> SimpleExpr {
    let bytes = Func::cust("octet_length").arg(column);
    Expr::expr(Func::coalesce([bytes.into(), Expr::val(0)]))
}

/// How many of these rows make up a page: as many as have [`PAGE_BYTES`] together, and one at
/// least.
pub(crate) fn fitting(sizes: impl IntoIterator<Item = usize>) -> usize {
    let mut sum = 0_usize;
    let fits = sizes.into_iter().take_while(|bytes| {
        sum = sum.saturating_add(*bytes);
        sum <= PAGE_BYTES
    });
    fits.count().max(1)
}

impl<K> PageRequest<K> {
    /// One row more than asked for, which tells whether there is a next page.
    pub(crate) fn fetch(&self) -> u64 {
        self.limit.clamp(1, PAGE_MAX.into()) + 1
    }

    /// Cuts the rows fetched to the page asked for.
    pub(crate) fn cut<M>(&self, mut rows: Vec<M>, key: impl Fn(&M) -> K) -> Page<M, K> {
        let limit = usize::try_from(self.limit.clamp(1, PAGE_MAX.into())).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more { rows.last().map(key) } else { None };
        Page { items: rows, next }
    }

    /// Reads the page asked for of rows that may be large. `bytes` is what the database says of a
    /// row's size, `size` what is said of one that was read; a large page's sizes are read first,
    /// so that no more rows are than go out.
    pub(crate) async fn read<E>(
        &self,
        query: Select<E>,
        db: &impl ConnectionTrait,
        bytes: SimpleExpr,
        size: impl Fn(&E::Model) -> usize,
        key: impl Fn(&E::Model) -> K,
    ) -> Result<Page<E::Model, K>>
    where
        E: EntityTrait,
        E::Model: FromQueryResult + Send + Sync,
    {
        let (mut fetch, mut cut) = (self.fetch(), false);
        if fetch > UNSEEN {
            let sizes = query.clone().select_only().expr_as(bytes, "bytes");
            let sizes: Vec<i32> = sizes.limit(fetch).into_tuple().all(db).await?;
            let all = sizes.len();
            let sizes = sizes
                .into_iter()
                .map(|bytes| usize::try_from(bytes).unwrap_or(0));
            let fits = fitting(sizes);
            if fits < all {
                cut = true;
                fetch = u64::try_from(fits).unwrap_or(1);
            }
        }
        let rows = query.limit(fetch).all(db).await?;
        let mut page = self.cut(rows, &key);
        let fits = fitting(page.items.iter().map(size));
        if fits < page.items.len() {
            cut = true;
            page.items.truncate(fits);
        }
        if cut {
            page.next = page.items.last().map(key);
        }
        Ok(page)
    }

    /// The rows of keys that were found, which `query` reads in the keys' order: as many as make
    /// up a page by their bytes ([`Self::read`]).
    pub(crate) async fn read_found<E>(
        &self,
        found: Found<K>,
        query: Select<E>,
        db: &impl ConnectionTrait,
        bytes: SimpleExpr,
        size: impl Fn(&E::Model) -> usize,
        key: impl Fn(&E::Model) -> K,
    ) -> Result<Page<E::Model, K>>
    where
        E: EntityTrait,
        E::Model: FromQueryResult + Send + Sync,
    {
        let Found { keys, next } = found;
        if keys.is_empty() {
            let items = Vec::new();
            return Ok(Page { items, next });
        }
        let mut page = self.read(query, db, bytes, size, key).await?;
        page.next = page.next.or(next);
        Ok(page)
    }
}

impl<M, K: Copy + Eq + std::hash::Hash> Page<M, K> {
    /// The rows of keys that were found, in the keys' order. What is gone by now is left out.
    pub(crate) fn of_found(found: Found<K>, rows: Vec<M>, key: impl Fn(&M) -> K) -> Self {
        let mut rows: HashMap<K, M> = rows.into_iter().map(|row| (key(&row), row)).collect();
        let Found { keys, next } = found;
        let items = keys.iter().filter_map(|key| rows.remove(key)).collect();
        Self { items, next }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_by_bytes_and_has_a_row() {
        let third = PAGE_BYTES / 3;
        assert_eq!(fitting([third; 5]), 3);
        assert_eq!(fitting([third, third, third + 2]), 2);
        assert_eq!(fitting([PAGE_BYTES + 1, 1]), 1);
        assert_eq!(fitting([10; 200]), 200);
        assert_eq!(fitting([]), 1);
    }
}
