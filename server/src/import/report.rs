//! The report of an import, as text and as JSON.

use persistence::{ImportOutcome, ImportResult, Publisher};
use serde_json::{Value, json};

use crate::text;

/// The kind of an imported item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An upstream credential.
    Account,
    /// A train with the accounts that it lends.
    Train,
    /// A key that a client of a train has already.
    ClientKey,
}

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Train => "train",
            Self::ClientKey => "client_key",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::ClientKey => "client key",
            other => other.as_str(),
        }
    }
}

struct Item {
    kind: Kind,
    name: String,
    done: ImportResult,
}

/// The outcome of each item. Contains no credential.
pub struct Report {
    publisher: Publisher,
    dry_run: bool,
    items: Vec<Item>,
}

impl Report {
    /// A report without items.
    #[must_use]
    pub const fn new(publisher: Publisher, dry_run: bool) -> Self {
        Self {
            publisher,
            dry_run,
            items: Vec::new(),
        }
    }

    /// Adds the outcome of one item.
    pub fn add(&mut self, kind: Kind, name: &str, done: ImportResult) {
        let name = text::shortened(name);
        self.items.push(Item { kind, name, done });
    }

    /// How many items had this outcome.
    #[must_use]
    pub fn count(&self, outcome: ImportOutcome) -> usize {
        let ended = self
            .items
            .iter()
            .filter(|item| item.done.outcome == outcome);
        ended.count()
    }

    /// One line for each item, and a summary.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.items.iter().map(|item| item.name.chars().count());
        let width = width.max().unwrap_or(0);
        let mut table = String::new();
        for item in &self.items {
            let outcome = item.done.outcome.as_str();
            let kind = item.kind.words();
            let note = item.done.note.as_deref().unwrap_or_default();
            let line = format!("{outcome:<9}  {kind:<10}  {:<width$}  {note}", item.name);
            table.push_str(line.trim_end());
            table.push('\n');
        }
        table.push_str(&self.summary());
        table.push('\n');
        table
    }

    fn summary(&self) -> String {
        let counts: Vec<String> = ImportOutcome::ALL
            .into_iter()
            .map(|outcome| (outcome.as_str(), self.count(outcome)))
            .filter(|(_, count)| *count > 0)
            .map(|(word, count)| format!("{count} {word}"))
            .collect();
        let counts = match counts.as_slice() {
            [] => "the files describe nothing".to_owned(),
            counts => counts.join(", "),
        };
        let unchanged = self.count(ImportOutcome::Unchanged) == self.items.len();
        let slug = &self.publisher.slug;
        match (self.dry_run, unchanged) {
            (_, true) => format!("nothing to change at publisher {slug}: {counts}"),
            (true, false) => format!("dry run, nothing was written to publisher {slug}: {counts}"),
            (false, false) => format!("publisher {slug}: {counts}"),
        }
    }

    /// The report as JSON.
    #[must_use]
    pub fn json(&self) -> String {
        let items = self.items.iter().map(|item| {
            let mut line = json!({
                "kind": item.kind.as_str(),
                "name": item.name,
                "outcome": item.done.outcome.as_str(),
            });
            if let Some(note) = &item.done.note {
                line["note"] = json!(note);
            }
            line
        });
        let items: Vec<Value> = items.collect();
        let counts: serde_json::Map<String, Value> = ImportOutcome::ALL
            .into_iter()
            .map(|outcome| (outcome.as_str().to_owned(), json!(self.count(outcome))))
            .collect();
        let report = json!({
            "publisher": {"id": self.publisher.id.to_string(), "slug": self.publisher.slug},
            "dry_run": self.dry_run,
            "counts": counts,
            "items": items,
        });
        format!("{report:#}\n")
    }
}

#[cfg(test)]
mod tests {
    use domain::{
        Timestamp,
        id::{Id as _, PublisherId},
        limits::Quotas,
    };
    use persistence::PublisherStatus;

    use super::*;

    fn report(dry_run: bool, outcomes: &[ImportOutcome]) -> Report {
        let at = Timestamp::from_ms(1);
        let publisher = Publisher {
            id: PublisherId::generate(at),
            slug: "acme".into(),
            display_name: "Acme".into(),
            status: PublisherStatus::Active,
            quotas: Quotas::default(),
            revision: 1,
            created_at: at,
            updated_at: at,
            deleted_at: None,
        };
        let mut report = Report::new(publisher, dry_run);
        for outcome in outcomes {
            let note = (*outcome == ImportOutcome::Failed).then(|| "Why.".to_owned());
            let done = ImportResult {
                outcome: *outcome,
                note,
            };
            report.add(Kind::ClientKey, "t\nname", done);
        }
        report
    }

    #[test]
    fn a_table_has_a_line_for_each_and_one_for_all() {
        let table = report(false, &[ImportOutcome::Created, ImportOutcome::Failed]).table();
        let lines: Vec<&str> = table.lines().collect();
        let expected = [
            "created    client key  t name",
            "failed     client key  t name  Why.",
            "publisher acme: 1 created, 1 failed",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_last_line_says_what_was_written() {
        let last = |dry_run, outcomes: &[ImportOutcome]| {
            let table = report(dry_run, outcomes).table();
            table.lines().last().unwrap().to_owned()
        };
        let words = last(true, &[ImportOutcome::Replaced]);
        assert_eq!(
            words,
            "dry run, nothing was written to publisher acme: 1 replaced"
        );
        for dry_run in [false, true] {
            let words = last(dry_run, &[ImportOutcome::Unchanged]);
            assert_eq!(words, "nothing to change at publisher acme: 1 unchanged");
            let words = last(dry_run, &[]);
            assert_eq!(
                words,
                "nothing to change at publisher acme: the files describe nothing"
            );
        }
    }

    #[test]
    fn programs_get_the_same() {
        let text = report(true, &[ImportOutcome::Unchanged, ImportOutcome::Failed]).json();
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["publisher"]["slug"], "acme");
        assert_eq!(report["dry_run"], true);
        assert_eq!(report["counts"]["failed"], 1);
        assert_eq!(report["counts"]["created"], 0);
        let second = json!({
            "kind": "client_key", "name": "t name", "outcome": "failed", "note": "Why.",
        });
        assert_eq!(report["items"][1], second);
    }
}
