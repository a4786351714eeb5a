//! Lists along indexes: the cost of a page depends on what it shows, not on how much is stored
//! (docs/adr/0030-reads-by-index.md).
//!
//! A [`Path`] is an index whose last column is the list's order, with all columns before it fixed.
//! If one path expresses the whole filter, its keys are the result. Otherwise the rows of the best
//! path are examined one by one, and a page ends after a fixed number of them, however few were
//! found; the next page continues there.

use std::collections::{HashMap, HashSet};

use sea_orm::{ConnectionTrait, DbBackend, QueryResult, TryGetable, Value};
use uuid::Uuid;

use crate::store::{
    error::Result,
    page::{KeyPage, PageRequest},
    sql::{Sql, by_primary_key},
};

/// Rows that are examined in one step.
const STEP: usize = 256;
/// Rows that one page examines at most before it ends with fewer rows than requested.
pub(crate) const EXAMINED_MAX: usize = 2048;

/// The key by which a list is ordered.
pub(crate) trait Key:
    Copy + Ord + std::hash::Hash + Into<Value> + TryGetable + Send
{
    /// The column.
    const COLUMN: &'static str;
    const LOWEST: Self;
    const HIGHEST: Self;
}

impl Key for Uuid {
    const COLUMN: &'static str = "id";
    const LOWEST: Self = Self::nil();
    const HIGHEST: Self = Self::max();
}

impl Key for i64 {
    const COLUMN: &'static str = "seq";
    const LOWEST: Self = Self::MIN;
    const HIGHEST: Self = Self::MAX;
}

/// The smallest identifier that an object of this time can have (`UUIDv7`, RFC 9562 §5.7).
pub(crate) fn first_id_at(ms: i64) -> Uuid {
    let ms = u64::try_from(ms).unwrap_or(0).min((1 << 48) - 1);
    Uuid::from_u128(u128::from(ms) << 80)
}

/// An index, and the values of the columns before the key: one range for each entry.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// The index's name; `None` for the primary key.
    pub(crate) index: Option<&'static str>,
    pub(crate) columns: &'static [&'static str],
    /// The condition of a partial index, exactly as declared.
    pub(crate) only: Option<&'static str>,
    /// The values of each range. A value may be NULL if the range has one column.
    pub(crate) ranges: Vec<Vec<Value>>,
}

impl Path {
    /// All rows of an owner.
    pub(crate) fn primary() -> Self {
        Self {
            index: None,
            columns: &[],
            only: None,
            ranges: vec![Vec::new()],
        }
    }

    /// The rows in which one column has one of these values.
    pub(crate) fn by(
        index: &'static str,
        column: &'static [&'static str],
        values: impl IntoIterator<Item = Value>,
    ) -> Self {
        Self {
            index: Some(index),
            columns: column,
            only: None,
            ranges: values.into_iter().map(|value| vec![value]).collect(),
        }
    }

    /// Marks the index as partial, with this condition.
    pub(crate) const fn only(mut self, condition: &'static str) -> Self {
        self.only = Some(condition);
        self
    }
}

/// A range of keys, and a direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span<K> {
    /// The lowest key, included.
    pub(crate) from: K,
    /// The upper bound, excluded.
    pub(crate) to: K,
    pub(crate) newest_first: bool,
}

impl<K: Key> Span<K> {
    /// The rest of a list, newest first, after a row.
    pub(crate) fn after(after: Option<K>) -> Self {
        Self {
            from: K::LOWEST,
            to: after.unwrap_or(K::HIGHEST),
            newest_first: true,
        }
    }

    /// Limits the range to keys from this one on.
    pub(crate) fn from(mut self, key: Option<K>) -> Self {
        self.from = self.from.max(key.unwrap_or(self.from));
        self
    }

    /// Limits the range to keys below this one.
    pub(crate) fn to(mut self, key: Option<K>) -> Self {
        self.to = self.to.min(key.unwrap_or(self.to));
        self
    }

    /// The rest of the range after this key was examined; `None` if nothing is left.
    fn beyond(mut self, key: K) -> Option<Self> {
        if self.newest_first {
            self.to = key;
        } else {
            // The range includes its lowest key, and the next higher key is unknown: the caller
            // skips the key that it has seen.
            self.from = key;
        }
        (self.from < self.to).then_some(self)
    }
}

/// Decides whether a row is in the list.
pub(crate) struct Check<'a> {
    /// The columns that the check reads; none that is long.
    pub(crate) columns: &'static [&'static str],
    pub(crate) wants: &'a (dyn Fn(&QueryResult) -> Result<bool> + Sync),
}

/// A list to read.
pub(crate) struct Walk<'a> {
    pub(crate) table: &'static str,
    /// The column with the owner.
    pub(crate) owner: &'static str,
    pub(crate) of: Uuid,
    /// Paths, each of which contains all wanted rows, and maybe others.
    pub(crate) paths: Vec<Path>,
    /// The part of the filter that the paths do not express.
    pub(crate) check: Option<Check<'a>>,
    /// Two literal conditions, each of an index with few rows. If few rows match, only those are
    /// examined.
    pub(crate) few: Option<(&'static str, &'static str)>,
}

/// Adds conditions that columns have these values.
fn equal<'v>(sql: &mut Sql, named: impl Iterator<Item = (&'v &'static str, &'v Value)>) {
    for (column, value) in named {
        sql.push(" AND ").push(column);
        if is_null(value) {
            sql.push(" IS NULL");
        } else {
            sql.push(" = ").bind(value.clone());
        }
    }
}

impl Walk<'_> {
    /// A list of a publisher's rows whose paths express the whole filter.
    pub(crate) fn over(table: &'static str, of: Uuid, paths: Vec<Path>) -> Self {
        Self {
            table,
            owner: "publisher_id",
            of,
            paths,
            check: None,
            few: None,
        }
    }

    fn range<K: Key>(
        &self,
        sql: &mut Sql,
        path: &Path,
        values: &[Value],
        span: Span<K>,
        limit: usize,
        backend: DbBackend,
    ) {
        let direction = if span.newest_first { " DESC" } else { "" };
        sql.push("SELECT ").push(K::COLUMN).push(" FROM ");
        sql.push(self.table);
        if let Some(index) = path.index.filter(|_| backend == DbBackend::Sqlite) {
            sql.push(" INDEXED BY ").push(index);
        }
        sql.push(" WHERE ").push(self.owner).push(" = ");
        sql.bind(self.of);
        let named = path.columns.iter().zip(values);
        if backend == DbBackend::Sqlite || values.iter().any(is_null) {
            equal(sql, named);
        } else if let Some((last, value)) = path.columns.last().zip(values.last()) {
            // The last column is not compared for equality. Otherwise the planner believes that the
            // primary key has the same order, and if it believes that most rows match, it reads all
            // of the owner's. As written, only this index has the order.
            equal(sql, named.take(values.len() - 1));
            let (column, key) = (*last, K::COLUMN);
            // A scan starts at the values of all columns, but when it runs backwards, only the
            // first column ends it. So the first column is compared separately, and the caller
            // leaves out keys outside the range.
            let (start, end, from) = if span.newest_first {
                (") < (", " >= ", span.to)
            } else {
                (") >= (", " <= ", span.from)
            };
            sql.push(" AND (").push(column).push(", ").push(key);
            sql.push(start).bind(value.clone()).push(", ").bind(from);
            sql.push(") AND ").push(column).push(end);
            sql.bind(value.clone());
        }
        if backend == DbBackend::Sqlite || path.columns.is_empty() || values.iter().any(is_null) {
            for (bound, key) in [(" >= ", span.from), (" < ", span.to)] {
                sql.push(" AND ").push(K::COLUMN).push(bound).bind(key);
            }
        }
        if let Some(only) = path.only {
            sql.push(" AND ").push(only);
        }
        sql.push(" ORDER BY ");
        if backend != DbBackend::Sqlite {
            sql.push(self.owner).push(direction).push(", ");
            for column in path.columns {
                sql.push(column).push(direction).push(", ");
            }
        }
        sql.push(K::COLUMN).push(direction);
        // Written into the text: if the planner does not know the limit, it expects a tenth of all
        // rows to be read.
        sql.push(" LIMIT ").push(&limit.to_string());
    }

    /// The statement that reads the first keys along a path.
    fn statement<K: Key>(
        &self,
        path: &Path,
        span: Span<K>,
        limit: usize,
        backend: DbBackend,
    ) -> Sql {
        let limit = limit.next_power_of_two();
        let mut sql = Sql::new("");
        if let [values] = path.ranges.as_slice() {
            self.range(&mut sql, path, values, span, limit, backend);
            return sql;
        }
        for (at, values) in path.ranges.iter().enumerate() {
            if at > 0 {
                sql.push(" UNION ALL ");
            }
            sql.push("SELECT ").push(K::COLUMN).push(" FROM (");
            self.range(&mut sql, path, values, span, limit, backend);
            sql.push(") AS r").push(&at.to_string());
        }
        sql.push(" ORDER BY ").push(K::COLUMN);
        sql.push(if span.newest_first { " DESC" } else { "" });
        sql.push(" LIMIT ").push(&limit.to_string());
        sql
    }

    async fn keys_along<K: Key>(
        &self,
        db: &impl ConnectionTrait,
        path: &Path,
        span: Span<K>,
        limit: usize,
    ) -> Result<Vec<K>> {
        if path.ranges.is_empty() {
            return Ok(Vec::new());
        }
        let backend = db.get_database_backend();
        let sql = self.statement(path, span, limit, backend);
        let rows = db.query_all_raw(sql.statement(backend)).await?;
        let keys = rows.iter().map(|row| row.try_get("", K::COLUMN));
        let mut keys: Vec<K> = keys.collect::<Result<_, _>>()?;
        // The keys are in order, so those outside the range are at the end.
        keys.retain(|key| span.from <= *key && *key < span.to);
        keys.truncate(limit);
        Ok(keys)
    }

    /// Those of these keys whose rows are in the list, in the same order.
    async fn check<K: Key>(
        &self,
        db: &impl ConnectionTrait,
        check: &Check<'_>,
        keys: &[K],
    ) -> Result<Vec<K>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = Sql::new("SELECT ");
        sql.push(K::COLUMN);
        for column in check.columns {
            sql.push(", ").push(column);
        }
        let backend = db.get_database_backend();
        sql.push(" FROM ").push(self.table);
        sql.push(&by_primary_key(self.table, backend));
        sql.push(" WHERE ")
            .push(self.owner)
            .push(" = ")
            .bind(self.of);
        sql.push(" AND ").push(K::COLUMN).push(" IN (");
        sql.bind_list(crate::store::sql::padded(keys.iter().copied()));
        sql.push(")");
        let statement = sql.statement(backend);
        let mut wanted: HashMap<K, bool> = HashMap::with_capacity(keys.len());
        for row in db.query_all_raw(statement).await? {
            wanted.insert(row.try_get("", K::COLUMN)?, (check.wants)(&row)?);
        }
        let wants = |key: &K| wanted.get(key).copied().unwrap_or(false);
        Ok(keys.iter().copied().filter(wants).collect())
    }

    /// All keys of the index with few rows, in the list's order; `None` if there are too many.
    async fn few<K: Key>(
        &self,
        db: &impl ConnectionTrait,
        span: Span<K>,
    ) -> Result<Option<Vec<K>>> {
        let Some((index, only)) = self.few else {
            return Ok(None);
        };
        let backend = db.get_database_backend();
        let mut sql = Sql::new("SELECT ");
        sql.push(K::COLUMN).push(" FROM ").push(self.table);
        if backend == DbBackend::Sqlite {
            sql.push(" INDEXED BY ").push(index);
        }
        sql.push(" WHERE ").push(self.owner).push(" = ");
        sql.bind(self.of).push(" AND ").push(only);
        sql.push(" LIMIT ").push(&EXAMINED_MAX.to_string());
        let rows = db.query_all_raw(sql.statement(backend)).await?;
        if rows.len() >= EXAMINED_MAX {
            return Ok(None);
        }
        let keys = rows.iter().map(|row| row.try_get("", K::COLUMN));
        let mut keys: Vec<K> = keys.collect::<Result<_, _>>()?;
        keys.retain(|key| span.from <= *key && *key < span.to);
        keys.sort_unstable();
        if span.newest_first {
            keys.reverse();
        }
        Ok(Some(keys))
    }

    /// The first wanted keys of a range: at most `limit`.
    pub(crate) async fn keys<K: Key>(
        &self,
        db: &impl ConnectionTrait,
        span: Span<K>,
        limit: usize,
    ) -> Result<KeyPage<K>> {
        let cut = |mut keys: Vec<K>, end: Option<K>| {
            if keys.len() <= limit {
                return KeyPage { keys, next: end };
            }
            keys.truncate(limit);
            let next = keys.last().copied();
            KeyPage { keys, next }
        };
        if span.from >= span.to {
            return Ok(cut(Vec::new(), None));
        }
        let Some(check) = &self.check else {
            let keys = match self.paths.first() {
                Some(path) => self.keys_along(db, path, span, limit + 1).await?,
                None => Vec::new(),
            };
            return Ok(cut(keys, None));
        };
        let mut found = Vec::new();
        if let Some(few) = self.few(db, span).await? {
            for part in few.chunks(STEP) {
                found.extend(self.check(db, check, part).await?);
                if found.len() > limit {
                    break;
                }
            }
            return Ok(cut(found, None));
        }
        let (mut left, mut examined, mut seen) = (span, 0, None);
        loop {
            let mut best: Option<Vec<K>> = None;
            for path in &self.paths {
                let keys = self.keys_along(db, path, left, STEP).await?;
                if best
                    .as_ref()
                    .is_none_or(|best| further(&keys, best, left.newest_first))
                {
                    best = Some(keys);
                }
            }
            let mut keys = best.unwrap_or_default();
            let whole = keys.len() < STEP;
            keys.retain(|key| Some(*key) != seen);
            found.extend(self.check(db, check, &keys).await?);
            examined += keys.len();
            seen = keys.last().copied().or(seen);
            let rest = seen.and_then(|seen| left.beyond(seen));
            match rest {
                Some(rest) if !whole && found.len() <= limit => left = rest,
                _ => return Ok(cut(found, None)),
            }
            if examined >= EXAMINED_MAX {
                return Ok(cut(found, seen));
            }
        }
    }

    /// A page of a list, newest first.
    pub(crate) async fn part<K: Key>(
        &self,
        db: &impl ConnectionTrait,
        page: &PageRequest<K>,
        span: Span<K>,
    ) -> Result<KeyPage<K>> {
        let limit = usize::try_from(page.fetch() - 1).unwrap_or(usize::MAX);
        self.keys(db, span, limit).await
    }
}

/// Whether these keys of one path reach further than those of another. Fewer keys than a whole step
/// reach to the end of the range.
fn further<K: Key>(keys: &[K], best: &[K], newest_first: bool) -> bool {
    match (keys.len() < STEP, best.len() < STEP) {
        (true, true) => keys.len() < best.len(),
        (whole, false) if whole => true,
        (false, true) => false,
        _ => match (keys.last(), best.last()) {
            (Some(one), Some(other)) if newest_first => one < other,
            (Some(one), Some(other)) => one > other,
            _ => false,
        },
    }
}

/// The distinct values of a path: a duplicate range would return its keys twice.
pub(crate) fn distinct(values: impl IntoIterator<Item = String>) -> Vec<Value> {
    let mut seen = HashSet::new();
    values
        .into_iter()
        .filter(|value| seen.insert(value.clone()))
        .map(Value::from)
        .collect()
}

fn is_null(value: &Value) -> bool {
    *value == value.as_null()
}

#[cfg(test)]
mod tests;
