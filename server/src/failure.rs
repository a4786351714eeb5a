//! How a command fails: the one type that all of them answer with.

/// Why a command did not do its work, in sentences that say what to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// Wrong usage or configuration.
    Usage(String),
    /// It went wrong.
    Failed(String),
    /// It was not done, by a command that fails too when it is done and finds something wrong.
    Fatal(String),
}
