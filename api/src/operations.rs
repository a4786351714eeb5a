//! What an operator and an auditor look at: the log, jobs, health, and the import of a set-up.

pub mod audit;
pub mod health;
pub mod import;
pub mod jobs;
