//! Parses texts that columns hold.

use domain::slug::Slug;

use crate::store::error::{Result, corrupt_row};

/// Parses a stored JSON list of slugs.
pub(crate) fn slugs_of(text: &str) -> Result<Vec<Slug>> {
    let words: Vec<String> =
        serde_json::from_str(text).map_err(|_| corrupt_row("list of slugs"))?;
    words
        .iter()
        .map(|word| Slug::parse(word).ok_or_else(|| corrupt_row("slug")))
        .collect()
}
