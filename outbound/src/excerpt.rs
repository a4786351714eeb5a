//! The start of an answer as text that is safe to store and to show.

/// How many bytes of an answer an excerpt covers.
pub const EXCERPT_BYTES_MAX: usize = 1024;

const MASK: &str = "[masked]";
/// The prefixes of the secrets that this service issues. What follows one, up to a delimiter, is
/// masked.
const SECRET_PREFIXES: &[&str] = &["stm_", "whsec_", "ptk_"];

/// The first [`EXCERPT_BYTES_MAX`] bytes of an answer as text.
///
/// Bytes that are not UTF-8, control characters (except line feed and tab) and characters that
/// change the direction of text become U+FFFD. CR LF becomes LF. A character that is cut at the end
/// is dropped. Whatever looks like a secret of this service is masked, because some receivers echo
/// the request. Each byte becomes at most three bytes of text; a mask adds a few.
#[must_use]
pub fn safe_excerpt(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(EXCERPT_BYTES_MAX)];
    let text = decode(cut).replace("\r\n", "\n");
    let clean: String = text
        .chars()
        .map(|c| if is_unsafe(c) { '\u{fffd}' } else { c })
        .collect();
    mask_secrets(&clean)
}

/// Decodes UTF-8 with replacement characters, but drops an incomplete character at the end.
fn decode(bytes: &[u8]) -> String {
    let whole = match std::str::from_utf8(bytes) {
        // `None` means that the text ends within a character, not that the bytes are wrong.
        Err(error) if error.error_len().is_none() => &bytes[..error.valid_up_to()],
        _ => bytes,
    };
    String::from_utf8_lossy(whole).into_owned()
}

fn is_unsafe(c: char) -> bool {
    is_bidirectional(c) || (c.is_control() && c != '\n' && c != '\t')
}

/// Whether the character changes the direction of the text around it.
pub(crate) fn is_bidirectional(c: char) -> bool {
    matches!(
        c,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Masks whatever looks like a token or secret of this service, or a bearer token.
///
/// A secret reaches to the next white space, quote, comma or bracket, so that an escaped or encoded
/// one is masked completely. Masking too much is better than masking too little.
#[must_use]
pub fn mask_secrets(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, lead, after)) = next_secret(rest) {
        masked.push_str(before);
        masked.push_str(lead);
        masked.push_str(MASK);
        rest = after.trim_start_matches(|c| !is_delimiter(c));
    }
    masked.push_str(rest);
    masked
}

/// Splits the text at its first secret: the text before it, the lead of the secret, which stays
/// visible, and everything after the lead.
fn next_secret(text: &str) -> Option<(&str, &str, &str)> {
    text.char_indices().find_map(|(at, _)| {
        let lead_len = lead_len(&text[at..])?;
        Some((
            &text[..at],
            &text[at..at + lead_len],
            &text[at + lead_len..],
        ))
    })
}

/// The length of the lead, if a secret begins here.
fn lead_len(text: &str) -> Option<usize> {
    let prefix = SECRET_PREFIXES.iter().find(|p| text.starts_with(**p));
    if let Some(prefix) = prefix {
        return Some(prefix.len());
    }
    let word = text.get(.."bearer".len())?;
    let after = &text[word.len()..];
    let token = after.trim_start_matches([' ', '\t']);
    let is_bearer = word.eq_ignore_ascii_case("bearer")
        && token.len() < after.len()
        && !token.starts_with(is_delimiter)
        && !token.is_empty();
    is_bearer.then_some(text.len() - token.len())
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace() || "\"'`<>,()[]{}".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{EXCERPT_BYTES_MAX, is_unsafe, mask_secrets, safe_excerpt};

    #[test]
    fn plain_text_stays() {
        assert_eq!(
            safe_excerpt("ok: größer\n\t1".as_bytes()),
            "ok: größer\n\t1"
        );
        assert_eq!(safe_excerpt(b""), "");
    }

    #[test]
    fn control_and_direction_characters_are_replaced() {
        let raw = b"a\0b\x1b[31mc\r\nd\re\x7f\xc2\x85\xe2\x80\xaef";
        let text = safe_excerpt(raw);
        assert_eq!(
            text,
            "a\u{fffd}b\u{fffd}[31mc\nd\u{fffd}e\u{fffd}\u{fffd}\u{fffd}f"
        );
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        assert_eq!(safe_excerpt(b"a\xff\xfeb"), "a\u{fffd}\u{fffd}b");
    }

    #[test]
    fn a_character_cut_at_the_end_is_dropped() {
        let mut raw = vec![b'a'; EXCERPT_BYTES_MAX - 1];
        raw.extend_from_slice("é and more".as_bytes());
        assert_eq!(safe_excerpt(&raw), "a".repeat(EXCERPT_BYTES_MAX - 1));
    }

    #[test]
    fn secrets_are_masked_in_every_dress() {
        for (raw, safe) in [
            ("stm_admin_AbC-_9xyz", "stm_[masked]"),
            (
                r#"{"k":"stm_sub_abc","n":1}"#,
                r#"{"k":"stm_[masked]","n":1}"#,
            ),
            ("whsec_ab+/cd== rest", "whsec_[masked] rest"),
            (r#""whsec_ab\/cd\/ef""#, r#""whsec_[masked]""#),
            ("?t=ptk_a%2Bb&x=1", "?t=ptk_[masked]"),
            (
                "Authorization: Bearer abc.def",
                "Authorization: Bearer [masked]",
            ),
            ("bearer  xyz, next", "bearer  [masked], next"),
            ("BEARER stm_boot_q", "BEARER [masked]"),
            ("stm_a stm_b", "stm_[masked] stm_[masked]"),
            ("tail stm_", "tail stm_[masked]"),
            ("the bearer", "the bearer"),
            ("Bearer ", "Bearer "),
            ("system_error", "system_error"),
        ] {
            assert_eq!(mask_secrets(raw), safe, "{raw}");
        }
    }

    #[test]
    fn a_secret_cut_by_the_limit_is_masked_too() {
        let raw = format!("{}stm_admin_secret", " ".repeat(EXCERPT_BYTES_MAX - 8));
        let text = safe_excerpt(raw.as_bytes());
        assert!(text.ends_with("stm_[masked]"), "{text}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_safe_text(raw in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(!safe_excerpt(&raw).chars().any(is_unsafe));
        }

        #[test]
        fn no_secret_survives(before in "[ -~]{0,20}", secret in "[A-Za-z0-9_-]{12,60}", after in "[ -~]{0,20}") {
            let masked = mask_secrets(&format!("{before}stm_admin_{secret}{after}"));
            prop_assert!(!masked.contains(&secret));
        }
    }
}
