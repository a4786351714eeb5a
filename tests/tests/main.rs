//! All black-box tests, in one program: linking is what costs.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod access;
mod audit;
mod bad_input;
mod concurrency;
mod contract;
mod cursors;
mod deliveries;
mod dispatch;
mod endpoints;
mod ends;
mod events;
mod fan_outs;
mod first_minute;
mod gateways;
mod idempotency;
mod import;
mod isolation;
mod keys;
mod kill;
mod limits;
mod listen;
mod oauth;
mod outage;
mod payloads;
mod process;
mod publishers;
mod quotas;
mod receivers;
mod replicas;
mod resolving;
mod rotations;
mod runs;
mod schemas;
mod secrets;
mod shares;
mod silence;
mod slack;
mod stopping;
mod storms;
mod subcommands;
mod tokens;
mod trains;
mod trouble;
mod verifiers;
