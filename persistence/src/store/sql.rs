//! SQL that the query builder can't write, in the spelling that both engines read.

use std::fmt::Write as _;

use sea_orm::{ConnectionTrait, DbBackend, Statement, Value};

use crate::store::error::Result;

/// Most rows of one statement. Thirty-odd columns each stay far below what either engine takes as
/// parameters (SQLite 32 766, PostgreSQL 65 535).
const ROWS_MAX: usize = 256;

/// A row that can be written without the query builder, which costs more than the engine does
/// where there are many.
pub(crate) trait Row {
    const TABLE: &'static str;
    const COLUMNS: &'static [&'static str];

    /// In the order of the columns.
    fn values(self) -> Vec<Value>;
}

/// Cuts rows into parts whose lengths are powers of two. A statement's text depends on how many
/// rows it has; with every number of them, the connections' caches of prepared statements would
/// hardly ever hold the one that is wanted.
pub(crate) fn parts<T>(mut rows: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = Vec::new();
    while !rows.is_empty() {
        let length = (1 << rows.len().ilog2()).min(ROWS_MAX);
        let rest = rows.split_off(length);
        parts.push(std::mem::replace(&mut rows, rest));
    }
    parts
}

/// Keys for an `IN (…)`, the last one repeated until their number is a power of two, for the same
/// reason.
pub(crate) fn padded<T: Clone>(keys: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut keys: Vec<T> = keys.into_iter().collect();
    if let Some(last) = keys.last().cloned() {
        keys.resize(keys.len().next_power_of_two(), last);
    }
    keys
}

/// What follows a table's name where its rows are read by their primary keys: SQLite would rather
/// look through all of an owner's rows in another index, where that has every column asked for.
pub(crate) fn by_primary_key(table: &str, backend: DbBackend) -> String {
    match backend {
        DbBackend::Sqlite => format!(" INDEXED BY sqlite_autoindex_{table}_1"),
        _ => String::new(),
    }
}

/// The length of the statement that takes so many rows: a power of two, or three quarters of one.
fn room(rows: usize) -> usize {
    let power = rows.next_power_of_two();
    if power >= 4 && rows <= power / 4 * 3 {
        power / 4 * 3
    } else {
        power
    }
}

/// What fills a statement up is of the same types as a row, and carries nothing: texts may be large.
fn filler(row: &[Value]) -> Vec<Value> {
    let empty = row.iter().map(|value| match value {
        Value::String(Some(_)) => Value::String(Some(String::new())),
        Value::Bytes(Some(_)) => Value::Bytes(Some(Vec::new())),
        other => other.clone(),
    });
    empty.collect()
}

/// Inserts rows, with the text `suffix` after them, and returns how many were inserted. One
/// statement takes up to [`ROWS_MAX`]. Empty rows fill up its text, and a limit keeps them from
/// being inserted. Several smaller statements would each cost a round trip.
///
/// Batches of 1 to 200 rows of twelve columns took 11.2 µs of processor time a row on PostgreSQL,
/// the server's and the database's, and 17.4 without the empty rows: every number of rows is then a
/// statement of its own, which has to be prepared. Cut by [`parts`] they took 12.0 µs, and 3.7 times
/// as many statements. On SQLite the three took 28.1, 28.0 and 26.6 µs, so there nothing is lost
/// (medians of seven rounds each, in turn).
pub(crate) async fn insert<R: Row>(
    db: &impl ConnectionTrait,
    rows: Vec<R>,
    suffix: &str,
) -> Result<u64> {
    let backend = db.get_database_backend();
    let mut inserted = 0;
    let mut rows = rows.into_iter().map(R::values).peekable();
    while rows.peek().is_some() {
        let mut part: Vec<_> = rows.by_ref().take(ROWS_MAX).collect();
        let count = part.len();
        if room(count) > count {
            part.resize(room(count), filler(&part[count - 1]));
        }
        let mut sql = Sql::new("INSERT INTO ");
        sql.push(R::TABLE).push(" (\"");
        sql.push(&R::COLUMNS.join("\", \""))
            .push("\") SELECT * FROM (");
        sql.values(part).push(") AS filled LIMIT ");
        sql.bind(i64::try_from(count).unwrap_or(i64::MAX))
            .push(suffix);
        inserted += db
            .execute_raw(sql.statement(backend))
            .await?
            .rows_affected();
    }
    Ok(inserted)
}

/// A statement under construction: text, and the values of its parameters.
pub(crate) struct Sql {
    /// Without the parameters.
    text: String,
    values: Vec<Value>,
    /// How much of the text is before each parameter, bytes.
    places: Vec<usize>,
}

impl Sql {
    pub(crate) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            values: Vec::new(),
            places: Vec::new(),
        }
    }

    /// Adds text; never anything that came from outside.
    pub(crate) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a parameter.
    pub(crate) fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        self.places.push(self.text.len());
        self
    }

    /// Adds parameters with commas between.
    pub(crate) fn bind_list<V: Into<Value>>(
        &mut self,
        values: impl IntoIterator<Item = V>,
    ) -> &mut Self {
        for (at, value) in values.into_iter().enumerate() {
            if at > 0 {
                self.push(", ");
            }
            self.bind(value);
        }
        self
    }

    /// Adds `VALUES (…), (…)`, which must have a row.
    pub(crate) fn values(&mut self, rows: impl IntoIterator<Item = Vec<Value>>) -> &mut Self {
        self.push("VALUES ");
        for (at, row) in rows.into_iter().enumerate() {
            self.push(if at > 0 { ", (" } else { "(" })
                .bind_list(row)
                .push(")");
        }
        self
    }

    /// The text with its parameters: numbered for PostgreSQL, and for SQLite without a name. It
    /// takes numbers, too, but its driver asks for the name of each, which takes a walk over all of
    /// them: a quarter of the writer's time under load.
    fn spelled(&self, backend: DbBackend) -> String {
        let mut text = String::with_capacity(self.text.len() + 5 * self.places.len());
        let mut from = 0;
        for (at, place) in self.places.iter().enumerate() {
            text.push_str(&self.text[from..*place]);
            from = *place;
            if backend == DbBackend::Sqlite {
                text.push('?');
            } else {
                // Writing to a string can't fail.
                let _ = write!(text, "${}", at + 1);
            }
        }
        text.push_str(&self.text[from..]);
        text
    }

    /// As SQLite reads it.
    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        self.spelled(DbBackend::Sqlite)
    }

    pub(crate) fn statement(self, backend: DbBackend) -> Statement {
        Statement::from_sql_and_values(backend, self.spelled(backend), self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_has_its_own_spelling() {
        let mut sql = Sql::new("SELECT ");
        sql.bind(1)
            .push(" WHERE é IN (")
            .bind_list([2, 3])
            .push(")");
        assert_eq!(
            sql.spelled(DbBackend::Postgres),
            "SELECT $1 WHERE é IN ($2, $3)"
        );
        assert_eq!(sql.text(), "SELECT ? WHERE é IN (?, ?)");
        let statement = sql.statement(DbBackend::Sqlite);
        assert_eq!(statement.values.map(|values| values.0.len()), Some(3));
    }

    #[test]
    fn few_lengths_recur() {
        let lengths = |count: usize| -> Vec<usize> {
            let parts = parts((0..count).collect());
            assert_eq!(parts.concat(), (0..count).collect::<Vec<_>>());
            parts.iter().map(Vec::len).collect()
        };
        assert_eq!(lengths(0), [0_usize; 0]);
        assert_eq!(lengths(1), [1]);
        assert_eq!(lengths(43), [32, 8, 2, 1]);
        assert_eq!(lengths(600), [256, 256, 64, 16, 8]);
    }

    #[test]
    fn a_statement_has_room_for_its_rows_and_few_lengths() {
        let mut lengths: Vec<usize> = (1..=ROWS_MAX).map(room).collect();
        for (at, length) in lengths.iter().enumerate() {
            let rows = at + 1;
            assert!((rows..=rows * 3 / 2).contains(length), "{rows}: {length}");
        }
        lengths.dedup();
        assert_eq!(lengths[..7], [1, 2, 3, 4, 6, 8, 12]);
        assert_eq!(lengths.len(), 16);
    }

    #[test]
    fn what_fills_a_statement_up_is_no_copy_of_large_texts() {
        let row: Vec<Value> = vec!["x".repeat(1000).into(), 7.into(), vec![1_u8; 1000].into()];
        let filler = filler(&row);
        assert_eq!(filler, [Value::from(""), 7.into(), Vec::<u8>::new().into()]);
        let none: Vec<Value> = vec![None::<String>.into()];
        assert_eq!(super::filler(&none), none);
    }

    #[test]
    fn keys_are_repeated_and_never_made_up() {
        assert_eq!(padded([1, 2, 3]), [1, 2, 3, 3]);
        assert_eq!(padded([7]), [7]);
        assert_eq!(padded(Vec::<i32>::new()), [0; 0]);
    }
}
