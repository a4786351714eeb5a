//! E-mail addresses, in one form.

use std::fmt;

/// Longest address (RFC 5321 §4.5.3.1.3, without the brackets).
const MAX: usize = 254;
/// Longest part before the `@` (RFC 5321 §4.5.3.1.1).
const LOCAL_MAX: usize = 64;
/// Longest label of a domain (RFC 1035 §2.3.4).
const LABEL_MAX: usize = 63;

/// An e-mail address: a dot-atom, `@`, and a domain of at least two labels (RFC 5321 §4.1.2 without
/// quoted strings and address literals), in lower case.
///
/// Only ASCII is taken, so that no two addresses look alike; a domain in another script is written
/// in its `xn--` form. Lower case is not what RFC 5321 says of the part before the `@`, but what
/// every large mail service does; two users who differ by case alone would be one person's mistake.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EmailAddress(String);

impl EmailAddress {
    /// Takes an address; `None` unless it has the form above.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (local, domain) = text.rsplit_once('@')?;
        let fits = text.len() <= MAX && is_local(local) && is_domain(domain);
        fits.then(|| Self(text.to_ascii_lowercase()))
    }

    /// The address, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_local(text: &str) -> bool {
    (1..=LOCAL_MAX).contains(&text.len())
        && text
            .split('.')
            .all(|atom| !atom.is_empty() && atom.bytes().all(is_atom))
}

/// RFC 5322 §3.2.3, `atext`.
fn is_atom(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&byte)
}

fn is_domain(text: &str) -> bool {
    let labels = || text.split('.');
    let is_label = |label: &str| {
        (1..=LABEL_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    // A last label of digits alone would be an IPv4 address.
    labels().count() >= 2 && labels().all(is_label) && !labels().next_back().is_some_and(numeric)
}

impl fmt::Display for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for EmailAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl From<EmailAddress> for String {
    fn from(address: EmailAddress) -> Self {
        address.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_have_one_form() {
        for (text, canonical) in [
            ("ada@example.com", "ada@example.com"),
            (
                "Ada.Lovelace+tag@Example.COM",
                "ada.lovelace+tag@example.com",
            ),
            ("a@xn--bcher-kva.example", "a@xn--bcher-kva.example"),
            ("o'neil@mail.example", "o'neil@mail.example"),
        ] {
            assert_eq!(EmailAddress::parse(text).unwrap().as_str(), canonical);
        }
    }

    /// Case M9 of the list of attacks on sign-in.
    #[test]
    fn what_is_no_plain_address_is_refused() {
        let long = format!("{}@example.com", "a".repeat(65));
        let longer = format!("a@{}.com", "a.".repeat(160));
        for text in [
            "",
            "a",
            "@example.com",
            "a@",
            "a@example",
            "a@b,c@d.example",
            "<a@b.example>",
            "\"a b\"@example.com",
            "a@[127.0.0.1]",
            "a@127.0.0.1",
            "a@example.com ",
            " a@example.com",
            "a@example.com\n",
            "a@b@example.com",
            "a..b@example.com",
            ".a@example.com",
            "a.@example.com",
            "a@-example.com",
            "a@example-.com",
            "a@exa_mple.com",
            "a@example..com",
            "a@example.com.",
            "ä@example.com",
            "a@exämple.com",
            "а@example.com",
            "a@example.com\0",
            "a,b@example.com",
            "a@example.com>\r\nBcc: b@example.com",
            "a\u{202e}@example.com",
            &long,
            &longer,
        ] {
            assert_eq!(EmailAddress::parse(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_its_own_form(text in "\\PC{0,40}|[a-zA-Z.+]{1,9}@[a-zA-Z.-]{1,20}") {
            if let Some(address) = EmailAddress::parse(&text) {
                let again = EmailAddress::parse(address.as_str()).unwrap();
                prop_assert_eq!(&again, &address);
                prop_assert!(address.as_str().is_ascii() && address.as_str().matches('@').count() == 1);
            }
        }
    }
}
