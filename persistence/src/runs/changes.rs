//! Changes of runs that callers request.

use std::sync::Arc;

use domain::{
    JsonText, Problem,
    audit::Actor,
    id::{PipelineId, RunId},
    token::TokenHash,
};

use super::run::NewRun;
use crate::{
    runs::pipelines::Pipeline,
    store::{
        error::{PipelineVersion, Result, StoreError},
        scope::Scope,
    },
};

/// The result of validating an input by a version of a pipeline. It is made before the transaction,
/// so that no transaction waits for validation.
#[derive(Clone, Debug)]
pub struct ValidatedInput {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The version that validated the input.
    pub version: i64,
    /// Whether the input is valid.
    pub result: Result<(), Problem>,
}

/// A run to create.
pub(crate) struct Create {
    pub(crate) scope: Scope,
    pub(crate) actor: Actor,
    pub(crate) new: Arc<NewRun>,
    pub(crate) validated: Option<ValidatedInput>,
}

impl Create {
    /// Fails unless the input is valid for the version that the run is to keep.
    pub(super) fn check_input(&self, pipeline: &Pipeline) -> Result<()> {
        match &self.validated {
            Some(validated)
                if (validated.pipeline, validated.version) == (pipeline.id, pipeline.version) =>
            {
                Ok(validated.result.clone()?)
            }
            _ if pipeline.definition.input_schema.is_none() => Ok(()),
            _ => Err(StoreError::VersionChanged(Box::new(PipelineVersion::of(
                pipeline,
            )))),
        }
    }
}

/// A change of an existing run.
pub(crate) struct Change {
    pub(crate) scope: Scope,
    pub(crate) actor: Actor,
    pub(crate) run: RunId,
    pub(crate) what: What,
}

/// The kind of a change.
pub(crate) enum What {
    /// The holder completed the run.
    Complete { claim: TokenHash, output: JsonText },
    /// The holder could not complete the run.
    Fail {
        claim: TokenHash,
        error: JsonText,
        retryable: bool,
    },
    /// The holder releases the run for others.
    Release { claim: TokenHash },
    /// The holder extends its lease.
    Heartbeat {
        claim: TokenHash,
        progress: Option<JsonText>,
    },
    /// The publisher cancels the run.
    Cancel,
}

impl What {
    /// The claim that authorizes the change; `None` for a change by the publisher.
    pub(super) const fn claim(&self) -> Option<&TokenHash> {
        match self {
            Self::Complete { claim, .. }
            | Self::Fail { claim, .. }
            | Self::Release { claim }
            | Self::Heartbeat { claim, .. } => Some(claim),
            Self::Cancel => None,
        }
    }
}
