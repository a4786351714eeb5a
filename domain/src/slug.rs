//! Slugs: names that are part of URL paths.

use std::fmt;

/// `[a-z0-9][a-z0-9-]{0,62}`: 1 to 63 characters. Only ASCII, so that no two slugs look alike.
pub const PATTERN: &str = "^[a-z0-9][a-z0-9-]{0,62}$";

/// A text that matches [`PATTERN`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slug(String);

impl Slug {
    /// Takes a text; `None` unless it matches [`PATTERN`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let fits = (1..=63).contains(&bytes.len())
            && plain(&bytes[0])
            && bytes.iter().all(|b| plain(b) || *b == b'-');
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Slug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Slug> for String {
    fn from(slug: Slug) -> Self {
        slug.0
    }
}

#[cfg(test)]
mod tests {
    use super::Slug;

    #[test]
    fn takes_what_the_pattern_takes() {
        for good in ["a", "0", "nightly-import", "a-", &"x".repeat(63)] {
            assert!(Slug::parse(good).is_some(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "A",
            "a_b",
            "a/b",
            "а",
            "a b",
            "a\n",
            &"x".repeat(64),
        ] {
            assert!(Slug::parse(bad).is_none(), "{bad}");
        }
    }
}
