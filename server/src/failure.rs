//! The error of all commands.

/// Why a command failed, in sentences that say what to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// The usage or the configuration is wrong. Exit code 2.
    Usage(String),
    /// The command failed. Exit code 1.
    Failed(String),
    /// The command did not finish its work. For commands that use [`Failure::Failed`] if they
    /// finish and find something wrong. Exit code 2.
    Fatal(String),
}
