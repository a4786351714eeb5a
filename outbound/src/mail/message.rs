//! A mail as the bytes that are handed to the server.

use std::fmt;

use lettre::{
    Message,
    address::Envelope,
    message::{
        Mailbox, MultiPart,
        header::{HeaderName, HeaderValue},
    },
    transport::smtp::extension::ClientId,
};

use super::{
    MailError, MailFrom,
    text::{address, lines, one_line},
};

/// How many characters a subject has at most.
const SUBJECT_CHARS_MAX: usize = 150;
/// How many characters the left part of a Message-ID has at most.
const MESSAGE_ID_CHARS_MAX: usize = 64;
/// How many bytes the two parts have together at most.
const PARTS_LEN_MAX: usize = 256 * 1024;

/// One mail to one person.
#[derive(Clone, PartialEq, Eq)]
pub struct Mail {
    /// The address. A mail names nobody: a name is chosen by people, an address is verified.
    pub to: String,
    /// The subject; it is made one line of at most 150 characters.
    pub subject: String,
    /// The text part, complete without the other one.
    pub text: String,
    /// The HTML part.
    pub html: String,
    /// The left part of the Message-ID: letters, digits, `-`, `_` and `.`, at most 64. Whoever
    /// sends a mail again uses the same one, so that the receiver can see that it has it already.
    pub message_id: String,
}

/// Without what it says and to whom: its links let people in.
impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mail")
            .field("message_id", &self.message_id)
            .finish_non_exhaustive()
    }
}

/// The envelope and the bytes of a mail.
pub(super) struct Sendable {
    pub envelope: Envelope,
    pub bytes: Vec<u8>,
}

/// Makes the bytes of a mail. What the library must not see is taken away before: it panics on a
/// line break in a name.
pub(super) fn build(mail: &Mail, from: &MailFrom, site: &ClientId) -> Result<Sendable, MailError> {
    let refused = |reason: &str| MailError::Permanent(reason.to_owned());
    let to = address(&mail.to).ok_or_else(|| refused("the mail's address is malformed"))?;
    if !is_message_id(&mail.message_id) {
        return Err(refused("the mail's id is malformed"));
    }
    if mail.text.len() + mail.html.len() > PARTS_LEN_MAX {
        return Err(refused("the mail is too long"));
    }
    let envelope = Envelope::new(Some(from.address.clone()), vec![to.clone()]);
    let envelope = envelope.map_err(|_| refused("the mail has no receiver"))?;
    // RFC 3834: no holiday notice comes back.
    let automatic = HeaderValue::new(
        HeaderName::new_from_ascii_str("Auto-Submitted"),
        "auto-generated".to_owned(),
    );
    let parts = MultiPart::alternative_plain_html(lines(&mail.text), lines(&mail.html));
    let message = Message::builder()
        .from(from.mailbox())
        .to(Mailbox::new(None, to))
        .subject(one_line(&mail.subject, SUBJECT_CHARS_MAX))
        .message_id(Some(format!("<{}@{site}>", mail.message_id)))
        .raw_header(automatic)
        .envelope(envelope.clone())
        .multipart(parts);
    let message = message.map_err(|_| refused("the mail can't be built"))?;
    Ok(Sendable {
        envelope,
        bytes: message.formatted(),
    })
}

/// Whether the text is a dot-atom of RFC 5322 that needs no quotes.
fn is_message_id(text: &str) -> bool {
    let is_atom = |atom: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        !atom.is_empty() && atom.chars().all(plain)
    };
    text.len() <= MESSAGE_ID_CHARS_MAX && text.split('.').all(is_atom)
}
