//! What a publisher registers as a pipeline.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Everything of a pipeline that has versions; a run keeps the version that it was created with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// For people.
    pub display_name: String,
    /// For people.
    pub description: Option<String>,
    /// JSON Schema of a run's input.
    pub input_schema: Option<Value>,
    /// JSON Schema of a run's output.
    pub output_schema: Option<Value>,
    /// Endpoints of the publisher that a run may call through the control plane.
    pub subcommands: BTreeMap<String, Subcommand>,
    /// How long a claim holds without a heartbeat, seconds.
    pub lease_seconds: u32,
    /// How many tries of a run may fail, or lose their lease.
    pub max_attempts: u32,
    /// How many of its runs may be held at once; any number if absent.
    #[serde(default)]
    pub max_concurrent_runs: Option<u32>,
    /// How long after its creation a run may still be queued, seconds; for ever if absent.
    #[serde(default)]
    pub time_to_live_seconds: Option<u32>,
    /// How long finished runs are kept, days.
    pub retention_days: u32,
}

/// One subcommand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subcommand {
    /// Where it is called.
    pub url: String,
    /// Longest wait for the whole answer, milliseconds.
    pub timeout_ms: u32,
}
