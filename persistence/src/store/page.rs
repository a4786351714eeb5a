//! Pages of lists. A page is limited by its number of rows and by their bytes.

use std::collections::HashMap;

use domain::limits::{PAGE_BYTES, PAGE_MAX};
use sea_orm::{
    ConnectionTrait, EntityTrait, FromQueryResult, QuerySelect as _, Select,
    sea_query::{Expr, Func, SimpleExpr},
};

use crate::store::error::Result;

/// Up to so many rows are read without reading their sizes first.
const UNSEEN: u64 = 8;

/// Which part of a list to return.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest<K> {
    /// At most this many rows, 1 to 200.
    pub limit: u64,
    /// The sort key of the last row of the previous page; `None` for the first page.
    pub after: Option<K>,
}

/// A page of a list.
#[derive(Clone, Debug)]
pub struct Page<T, K> {
    /// The rows, in the list's order.
    pub items: Vec<T>,
    /// The key after which the next page begins; `None` on the last page.
    pub next: Option<K>,
}

/// A page of keys, in the list's order.
#[derive(Debug)]
pub(crate) struct KeyPage<K> {
    pub(crate) keys: Vec<K>,
    /// The key after which the next page begins; `None` at the end of the list.
    pub(crate) next: Option<K>,
}

/// The number of bytes of a text column, computed by the database; 0 for NULL.
pub(crate) fn bytes_of(column: impl Into<SimpleExpr>) -> SimpleExpr {
    let bytes = Func::cust("octet_length").arg(column);
    Expr::expr(Func::coalesce([bytes.into(), Expr::val(0)]))
}

/// How many of these rows fit into a page of [`PAGE_BYTES`], and one at least.
pub(crate) fn fitting(sizes: impl IntoIterator<Item = usize>) -> usize {
    let mut sum = 0_usize;
    let fits = sizes.into_iter().take_while(|bytes| {
        sum = sum.saturating_add(*bytes);
        sum <= PAGE_BYTES
    });
    fits.count().max(1)
}

impl<K> PageRequest<K> {
    /// How many rows to read: one more than requested, to learn whether there is a next page.
    pub(crate) fn fetch(&self) -> u64 {
        self.limit.clamp(1, PAGE_MAX.into()) + 1
    }

    /// Cuts the rows that were read to the requested page.
    pub(crate) fn cut<M>(&self, mut rows: Vec<M>, key: impl Fn(&M) -> K) -> Page<M, K> {
        let limit = usize::try_from(self.limit.clamp(1, PAGE_MAX.into())).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = if more { rows.last().map(key) } else { None };
        Page { items: rows, next }
    }

    /// Reads the requested page of rows that may be large. `bytes` is an SQL expression for the
    /// size of a row, `size` the size of a row that was read. For a large page the sizes are read
    /// first, so that no more rows are read than are returned.
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

    /// Reads the rows of `found`, limited by bytes as in [`Self::read`]. `query` reads them in the
    /// keys' order.
    pub(crate) async fn read_key_page<E>(
        &self,
        found: KeyPage<K>,
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
        let KeyPage { keys, next } = found;
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
    /// Makes a page of `found`'s rows, in the keys' order. Rows that were removed meanwhile are
    /// left out.
    pub(crate) fn of_key_page(found: KeyPage<K>, rows: Vec<M>, key: impl Fn(&M) -> K) -> Self {
        let mut rows: HashMap<K, M> = rows.into_iter().map(|row| (key(&row), row)).collect();
        let KeyPage { keys, next } = found;
        let items = keys.iter().filter_map(|key| rows.remove(key)).collect();
        Self { items, next }
    }
}

impl<M, K> Page<M, K> {
    /// Converts the rows. The first error is returned.
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
