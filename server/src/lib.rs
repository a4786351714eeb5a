//! The program `stationmaster`: configuration, the command line, and the wiring of all crates.
//!
//! The only crate that uses all others. The rules of the product are in `domain`, and the work with
//! stored data is in `persistence`.

#![cfg_attr(
    test,
    allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")
)]

pub mod accounts;
pub mod cli;
pub mod config;
pub mod core_dumps;
pub mod data_dir;
pub mod demo;
mod descriptors;
pub mod doctor;
pub mod failure;
mod files;
pub mod import;
pub mod key_file;
pub mod keys;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod operate;
mod people;
mod progress;
pub mod secret_file;
pub mod serve;
pub mod sign;
pub mod signals;
mod text;
pub mod users;
