//! Where a person goes after signing in: a page of this service, never another site's.

/// Longest path with its query.
const MAX: usize = 1024;

/// A path of this service, with its query, to which a browser is sent after a sign-in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnTo(String);

impl ReturnTo {
    /// Takes a path; `None` unless every browser takes it for one of the same origin.
    ///
    /// It begins with one slash and goes on with neither a slash nor a backslash, which browsers
    /// take for one: `//host` is another site. Only printable ASCII without backslashes is taken,
    /// since browsers drop tabs and line breaks from URLs (WHATWG URL, "basic URL parser"). A part
    /// `.` or `..`, also percent-encoded, is refused, so that nothing is left to be resolved.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let path = text.split(['?', '#']).next().unwrap_or_default();
        let second = text.as_bytes().get(1);
        let fits = text.starts_with('/')
            && second != Some(&b'/')
            && text.len() <= MAX
            && text
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'\\')
            && !path.to_ascii_lowercase().contains("%5c")
            && !path.to_ascii_lowercase().contains("%2f")
            && !path.contains("//")
            && path.split('/').all(|part| !is_dots(part));
        fits.then(|| Self(text.to_owned()))
    }

    /// The path with its query.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_dots(part: &str) -> bool {
    let plain = part.to_ascii_lowercase().replace("%2e", ".");
    plain == "." || plain == ".."
}

impl Default for ReturnTo {
    /// The first page.
    fn default() -> Self {
        Self("/".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_of_this_service_are_taken() {
        for text in [
            "/",
            "/account",
            "/p/acme/runs?status=failed&x=/a//b",
            "/a#b",
        ] {
            assert_eq!(ReturnTo::parse(text).unwrap().as_str(), text);
        }
    }

    /// Section 5.6 of the list of attacks on sign-in.
    #[test]
    fn what_may_lead_elsewhere_is_refused() {
        let long = format!("/{}", "a".repeat(4096));
        for text in [
            "",
            "a",
            "//evil",
            "/\\evil",
            "\\/evil",
            "/%5Cevil",
            "/%5cevil",
            "/\t/evil",
            "\t//evil",
            "\\/\\/evil",
            "https:evil",
            "https://evil",
            "HTTP://evil",
            "javascript:alert(1)",
            "data:,x",
            "/..//evil",
            "/../evil",
            "/%2e%2e/evil",
            "/a/./b",
            "/a//evil",
            "/%2Fevil",
            ".evil.com",
            "@evil",
            "/a\r\nLocation: //evil",
            "/a b",
            "/ä",
            "/\u{2f}\u{2f}evil",
            "///evil",
            &long,
            "/a\0",
        ] {
            assert_eq!(ReturnTo::parse(text), None, "{text:?}");
        }
        // Part of a path, not of an authority.
        assert!(ReturnTo::parse("/@evil").is_some());
    }

    proptest! {
        #[test]
        fn what_is_taken_begins_with_one_slash(text in "[/\\\\%.a-z2f5ce@:?#\t\n]{0,12}") {
            if let Some(path) = ReturnTo::parse(&text) {
                prop_assert!(path.as_str().starts_with('/'));
                prop_assert!(!path.as_str().starts_with("//") && !path.as_str().contains('\\'));
            }
        }
    }
}
