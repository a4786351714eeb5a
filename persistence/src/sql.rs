//! SQL that the query builder can't write, in the spelling that both engines read.

use std::fmt::Write as _;

use sea_orm::{DbBackend, Statement, Value};

/// A statement under construction: text, and the values of its numbered parameters.
pub(crate) struct Sql {
    text: String,
    values: Vec<Value>,
}

impl Sql {
    pub(crate) fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            values: Vec::new(),
        }
    }

    /// Adds text; never anything that came from outside.
    pub(crate) fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Adds a parameter. SQLite's driver reads `$1` too.
    pub(crate) fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        // Writing to a string can't fail.
        let _ = write!(self.text, "${}", self.values.len());
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

    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn statement(self, backend: DbBackend) -> Statement {
        Statement::from_sql_and_values(backend, self.text, self.values)
    }
}
