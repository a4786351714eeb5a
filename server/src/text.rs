//! Helpers for messages to people.

use std::io::{self, Write as _};

/// The longest part of an input that a message repeats, characters.
const QUOTE_CHARS: usize = 60;

/// `text` without control characters, cut to a length that fits into a message.
#[must_use]
pub fn shortened(text: &str) -> String {
    let clean: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if clean.chars().count() <= QUOTE_CHARS {
        return clean;
    }
    clean.chars().take(QUOTE_CHARS).chain(['…']).collect()
}

/// The candidate that differs least from `text`; `None` if none is similar enough.
#[must_use]
pub fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if text.len() > 100 {
        return None;
    }
    candidates
        .map(|candidate| (distance(text, candidate), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 5).max(2))
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance in bytes: insertions, deletions and replacements.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Writes a line to standard output and flushes it. Errors are ignored: the reader may be gone.
pub fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Writes a text to standard output, without a line feed. Errors are ignored.
pub fn put(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints rows as a table, each column as wide as its longest text.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let cells = row.iter().zip(widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        say(line.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshtein_s() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("same", "same"), 0);
    }

    #[test]
    fn only_a_near_name_is_suggested() {
        let names = ["STATIONMASTER_LISTEN", "STATIONMASTER_LOG"];
        assert_eq!(
            nearest("STATIONMASTER_LISTNE", names.into_iter()),
            Some(names[0])
        );
        assert_eq!(
            nearest("STATIONMASTER_COMPLETELY_OTHER", names.into_iter()),
            None
        );
    }

    #[test]
    fn quotes_stay_on_one_line() {
        assert_eq!(shortened("a\nb"), "a b");
        assert_eq!(shortened(&"x".repeat(500)).chars().count(), 61);
    }
}
