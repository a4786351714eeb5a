//! Texts of people, made safe for a mail.

use lettre::Address;

use crate::excerpt::is_bidirectional;

/// How many bytes an address has at most (RFC 5321 §4.5.3.1.3, without the brackets).
const ADDRESS_LEN_MAX: usize = 254;

/// The text as one line of at most `chars_max` characters.
///
/// Every line break, tab and run of white space becomes one space. Other control characters are
/// taken away, and so are characters that change the direction of text, that start a line or a
/// paragraph, or that are invisible marks of order. A text that was cut ends in `…`.
#[must_use]
pub fn one_line(text: &str, chars_max: usize) -> String {
    let kept: String = text
        .chars()
        .filter(|c| c.is_whitespace() || !is_dropped(*c))
        .collect();
    let words: Vec<&str> = kept.split_whitespace().collect();
    let line = words.join(" ");
    if line.chars().count() <= chars_max {
        return line;
    }
    let cut: String = line.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{}…", cut.trim_end())
}

/// The text of a part: lines and tabs stay, and what [`one_line`] takes away is taken away.
pub(super) fn lines(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    text.chars()
        .filter(|c| matches!(c, '\n' | '\t') || !is_dropped(*c))
        .collect()
}

fn is_dropped(c: char) -> bool {
    c.is_control() || is_bidirectional(c) || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// An address, if it is one that can stand in a header and in a command without quotes.
pub(super) fn address(text: &str) -> Option<Address> {
    const SYNTAX: &str = "\"<>(),;:\\";
    let unsafe_in_header = |c: char| c.is_whitespace() || is_dropped(c) || SYNTAX.contains(c);
    // An address literal, `[IPv6:…]`, is the one place for a colon, and nobody's address.
    if text.len() > ADDRESS_LEN_MAX || text.contains(unsafe_in_header) {
        return None;
    }
    text.parse().ok()
}
