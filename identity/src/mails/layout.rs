//! A mail from its paragraphs: the text part and the HTML part are written from one list, so that
//! they cannot differ, and so that there is one place that escapes. Templates would need a second
//! file for each mail.

use outbound::mail::one_line;

/// How many characters a name, a host or an address is shown with at most.
const NAME_CHARS_MAX: usize = 64;
/// How many characters of an inviter's message are shown at most.
const MESSAGE_CHARS_MAX: usize = 500;
/// How many lines of it are shown at most.
const MESSAGE_LINES_MAX: usize = 10;

/// A mail's words. Without `Debug`: its link lets people in.
#[derive(Clone, PartialEq, Eq)]
pub struct MailText {
    /// The subject, one line.
    pub subject: String,
    /// The text part, complete without the other one.
    pub text: String,
    /// The HTML part.
    pub html: String,
}

enum Block {
    Paragraph(String),
    Link { label: &'static str, url: String },
    Code(String),
    Quote(Vec<String>),
}

/// A mail that is being written.
pub(super) struct Letter {
    subject: String,
    blocks: Vec<Block>,
}

impl Letter {
    pub(super) fn new(subject: String) -> Self {
        let blocks = Vec::new();
        Self { subject, blocks }
    }

    pub(super) fn says(mut self, paragraph: String) -> Self {
        self.blocks.push(Block::Paragraph(paragraph));
        self
    }

    pub(super) fn link(mut self, label: &'static str, url: &str) -> Self {
        let url = url.to_owned();
        self.blocks.push(Block::Link { label, url });
        self
    }

    pub(super) fn code(mut self, code: &str) -> Self {
        self.blocks.push(Block::Code(name(code)));
        self
    }

    /// A stranger's words, after a line that says whose they are. An empty message is left out.
    pub(super) fn quote(mut self, whose: &str, message: &str) -> Self {
        let short: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
        let lines: Vec<String> = short
            .split(['\n', '\r'])
            .map(|line| without_links(&one_line(line, MESSAGE_CHARS_MAX)))
            .filter(|line| !line.is_empty())
            .take(MESSAGE_LINES_MAX)
            .collect();
        if !lines.is_empty() {
            self.blocks.push(Block::Paragraph(whose.to_owned()));
            self.blocks.push(Block::Quote(lines));
        }
        self
    }

    pub(super) fn finish(self) -> MailText {
        let texts: Vec<String> = self.blocks.iter().map(Block::text).collect();
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{}</title></head>\n<body>\n",
            escape(&self.subject)
        );
        for block in &self.blocks {
            html.push_str(&block.html());
            html.push('\n');
        }
        html.push_str("</body>\n</html>\n");
        MailText {
            subject: self.subject,
            text: format!("{}\n", texts.join("\n\n")),
            html,
        }
    }
}

impl Block {
    fn text(&self) -> String {
        match self {
            Self::Paragraph(text) => text.clone(),
            Self::Link { label, url } => format!("{label}:\n{url}"),
            Self::Code(code) => format!("    {code}"),
            Self::Quote(lines) => {
                let quoted: Vec<String> = lines.iter().map(|line| format!("> {line}")).collect();
                quoted.join("\n")
            }
        }
    }

    fn html(&self) -> String {
        match self {
            Self::Paragraph(text) => format!("<p>{}</p>", escape(text)),
            Self::Link { label, url } => {
                format!("<p><a href=\"{}\">{label}</a></p>", escape(url))
            }
            Self::Code(code) => format!("<p><strong>{}</strong></p>", escape(code)),
            Self::Quote(lines) => {
                let lines: Vec<String> = lines.iter().map(|line| escape(line)).collect();
                format!("<blockquote>{}</blockquote>", lines.join("<br>\n"))
            }
        }
    }
}

/// A name that a stranger may have chosen, for the middle of a sentence: one short line that cannot
/// end the quotation marks around it.
pub(super) fn name(text: &str) -> String {
    without_links(&one_line(text, NAME_CHARS_MAX)).replace('"', "'")
}

/// Breaks up what a mail program would turn into a link: the one link of a mail is ours.
fn without_links(text: &str) -> String {
    text.replace("://", ": //")
}

/// The text for HTML, between tags and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}
