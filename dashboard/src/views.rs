//! What each page shows: a plain struct for each template. A view holds what is to be read and
//! nothing that decides; the templates escape every text.

use askama::Template;

use domain::Timestamp;

pub(crate) mod account;
pub(crate) mod join;
pub(crate) mod publisher;
pub(crate) mod sign_in;

/// What every page has around its own content.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frame {
    /// The page's title, also its first heading.
    pub(crate) title: String,
    /// Who is signed in: the name, or the address of somebody without one.
    pub(crate) person: Option<String>,
    /// The token that every form of this page sends back.
    pub(crate) csrf: String,
    /// What was just done, in a sentence.
    pub(crate) done: Option<&'static str>,
    /// What is wrong with the form as a whole, in a sentence.
    pub(crate) fault: Option<String>,
}

impl Frame {
    /// The address of the style sheet.
    #[expect(clippy::unused_self, reason = "templates call it by the frame")]
    pub(crate) fn style(&self) -> &'static str {
        crate::assets::STYLE.path()
    }

    /// The address of the icon.
    #[expect(clippy::unused_self, reason = "templates call it by the frame")]
    pub(crate) fn icon(&self) -> &'static str {
        crate::assets::ICON.path()
    }

    /// The address of the script for passkeys.
    #[expect(clippy::unused_self, reason = "templates call it by the frame")]
    pub(crate) fn passkeys(&self) -> &'static str {
        crate::assets::PASSKEYS.path()
    }
}

/// A field of a form: what was typed stays in it, passwords excepted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Field {
    /// What was typed before, or what is to be changed.
    pub(crate) value: String,
    /// What is wrong with it, in a sentence.
    pub(crate) error: Option<String>,
}

impl Field {
    /// A field with a value.
    pub(crate) fn of(value: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            error: None,
        }
    }
}

/// A moment, for machines and for people.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    /// RFC 3339, in UTC.
    pub(crate) exact: String,
    /// The same to the minute, in words that people read.
    pub(crate) words: String,
}

impl Moment {
    /// Of a time.
    pub(crate) fn of(at: Timestamp) -> Self {
        const MONTHS: [&str; 12] = [
            "January",
            "February",
            "March",
            "April",
            "May",
            "June",
            "July",
            "August",
            "September",
            "October",
            "November",
            "December",
        ];
        let exact = at.to_string();
        let number = |from: usize| exact.get(from..from + 2).unwrap_or_default();
        let month = number(5).parse::<usize>().ok();
        let month = month.and_then(|month| MONTHS.get(month.checked_sub(1)?));
        let words = format!(
            "{} {} {}, {}:{} UTC",
            number(8).trim_start_matches('0'),
            month.copied().unwrap_or_default(),
            exact.get(..4).unwrap_or_default(),
            number(11),
            number(14),
        );
        Self { exact, words }
    }
}

/// A page that says something and leads on: what was done, or what is to be done elsewhere.
#[derive(Debug, Template)]
#[template(path = "message.html")]
pub(crate) struct Message {
    pub(crate) frame: Frame,
    /// What there is to say, a paragraph each.
    pub(crate) paragraphs: Vec<String>,
    /// Where to go on: the address and the words of the link.
    pub(crate) onward: Option<(String, &'static str)>,
}

/// A page that asks once more before something is done.
#[derive(Debug, Template)]
#[template(path = "confirm.html")]
pub(crate) struct Confirm {
    pub(crate) frame: Frame,
    /// What will happen, a paragraph each.
    pub(crate) paragraphs: Vec<String>,
    /// What else is affected, by name.
    pub(crate) list: Vec<String>,
    /// Where the form is sent.
    pub(crate) action: String,
    /// Fields that nobody types: names and values.
    pub(crate) hidden: Vec<(&'static str, String)>,
    /// A choice that may be made along with it: the name and the words of a checkbox.
    pub(crate) choice: Option<(&'static str, String)>,
    /// The words on the button.
    pub(crate) button: String,
    /// Whether something is lost by it.
    pub(crate) destructive: bool,
    /// Where to go instead; `None` if there is nothing but to close the page.
    pub(crate) cancel: Option<String>,
}

/// Whatever went wrong.
#[derive(Debug, Template)]
#[template(path = "problem.html")]
pub(crate) struct Problem<'a> {
    pub(crate) frame: Frame,
    pub(crate) status: u16,
    /// What happened and what to do, a paragraph each.
    pub(crate) paragraphs: Vec<String>,
    /// The request's identifier, for the operator.
    pub(crate) request_id: &'a str,
}
