//! What stands below authentication and below every resource.

mod notices;

pub(crate) use notices::Notices;
