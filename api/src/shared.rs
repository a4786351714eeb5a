//! What stands below authentication and below every resource.

mod app;
pub mod common;
pub mod cursor;
pub(crate) mod destination;
mod examples;
pub mod idempotency;
mod notices;
mod own_value;
pub mod page;
pub mod path;
mod sent;
mod verbatim;
mod words;

pub use app::App;
pub(crate) use app::{OUTSIDE, context};
pub use common::{
    Accepted, Created, IfMatch, NoContent, Ok, OkOrCreated, Tag, Time, answer, answer_text,
    created, no_content,
};
pub(crate) use common::{change, described, respond, text_header};
pub use cursor::Listed;
pub(crate) use examples::{EXAMPLE_AT, EXAMPLE_DAY_BEFORE, EXAMPLE_ID, EXAMPLE_SOON, nil_id};
pub use idempotency::Idempotency;
pub(crate) use notices::Notices;
pub(crate) use own_value::own_value;
pub use page::PageQuery;
pub use path::{Path, PathValue, Text};
pub(crate) use sent::Sent;
pub(crate) use verbatim::Verbatim;
pub(crate) use words::{Word, Words, schemas_of_words};
