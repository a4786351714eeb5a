//! Publishers, and the credentials that they have here.

pub mod credentials;
pub mod publisher;
