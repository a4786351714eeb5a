//! Black-box tests: each starts a real `stationmaster` process and sends it HTTP requests, on both
//! database engines.
//!
//! A test is an `async fn(&World)`. [`on_both_stores!`] runs it on SQLite and on PostgreSQL, each
//! time on an empty database of its own. After a test that passed, its world is checked: every
//! server must stop cleanly, must not have logged an error that the test did not announce
//! ([`Site::tolerate`]), and neither logs nor database may contain a secret that the test received.
//!
//! Nothing here uses the server's code, but for the topics that set it beside another program's
//! (passkeys, issuers). What is known about the server comes from the contract.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    clippy::print_stderr,
    reason = "a test harness: whatever is not as it should be ends the test, with words"
)]

pub mod authenticator;
mod browser;
mod client;
mod consumer;
mod person;
mod proxy;
mod publisher;
mod server;
mod smtp_sink;
mod store;
mod tally;
mod token_endpoint;
pub mod tools;
mod vault;
mod world;

pub use browser::{Browser, Look, Shown, Tab, node_modules};
pub use client::{Answer, Call, User, fingerprint, keeping_client};
pub use consumer::{Consumer, Delivery, Reply};
pub use person::{Person, SESSION_COOKIE, code_of, mails_to, people_settings};
pub use proxy::Proxy;
pub use publisher::{Publisher, claim_of, new_account};
pub use server::{Refused, Server, Site};
pub use smtp_sink::{CapturedMail, SmtpSink};
pub use store::{Database, OwnCluster, Store};
pub use tally::{Arrival, Tally};
pub use token_endpoint::{AnswerMode, Asked, TokenEndpoint};
pub use vault::Vault;
pub use world::{World, leave_out, run, skip};

/// Defines, for each named `async fn(&World)`, a module of that name with the tests `sqlite` and
/// `postgres`.
#[macro_export]
macro_rules! on_both_stores {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn sqlite() {
                $crate::run($crate::Store::Sqlite, module_path!(), super::$name);
            }

            #[test]
            fn postgres() {
                $crate::run($crate::Store::Postgres, module_path!(), super::$name);
            }
        }
    )+};
}

/// The same on SQLite only, for what exists only there.
#[macro_export]
macro_rules! on_sqlite {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn sqlite() {
                $crate::run($crate::Store::Sqlite, module_path!(), super::$name);
            }
        }
    )+};
}

/// The same on PostgreSQL only.
#[macro_export]
macro_rules! on_postgres {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn postgres() {
                $crate::run($crate::Store::Postgres, module_path!(), super::$name);
            }
        }
    )+};
}
