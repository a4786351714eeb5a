//! The definition of a pipeline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The versioned part of a pipeline. A run keeps the version with which it was created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// A name for people.
    pub display_name: String,
    /// A description for people.
    pub description: Option<String>,
    /// JSON Schema of a run's input.
    pub input_schema: Option<Value>,
    /// JSON Schema of a run's output.
    pub output_schema: Option<Value>,
    /// The services of the publisher that a run may call through this one.
    pub subcommands: BTreeMap<String, Subcommand>,
    /// How long a claim holds without a heartbeat, seconds.
    pub lease_seconds: u32,
    /// How many tries of a run may fail or lose their lease.
    pub max_attempts: u32,
    /// How many runs may be claimed at the same time; any number if absent.
    #[serde(default)]
    pub max_concurrent_runs: Option<u32>,
    /// How long a run may be queued after its creation, seconds; for ever if absent.
    #[serde(default)]
    pub time_to_live_seconds: Option<u32>,
    /// How long finished runs are kept, days.
    pub retention_days: u32,
}

/// A service of the publisher that a run calls by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subcommand {
    /// The URL of the service.
    pub url: String,
    /// The longest wait for the complete answer, milliseconds.
    pub timeout_ms: u32,
}
