//! Changes of runs that callers ask for.

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
        error::{KeptVersion, Result, StoreError},
        scope::Scope,
    },
};

/// What a version of a pipeline says of an input. Nothing is judged while a transaction waits.
#[derive(Clone, Debug)]
pub struct ValidatedInput {
    /// Of which pipeline.
    pub pipeline: PipelineId,
    /// Which version.
    pub version: i64,
    /// Whether it takes the input.
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
    /// Whether the version that the run is to keep takes its input.
    pub(super) fn check_input(&self, pipeline: &Pipeline) -> Result<()> {
        match &self.validated {
            Some(validated)
                if (validated.pipeline, validated.version) == (pipeline.id, pipeline.version) =>
            {
                Ok(validated.result.clone()?)
            }
            _ if pipeline.definition.input_schema.is_none() => Ok(()),
            _ => Err(StoreError::VersionChanged(Box::new(KeptVersion::of(
                pipeline,
            )))),
        }
    }
}

/// Something to do to a run.
pub(crate) struct Change {
    pub(crate) scope: Scope,
    pub(crate) actor: Actor,
    pub(crate) run: RunId,
    pub(crate) what: What,
}

/// What is to be done to a run.
pub(crate) enum What {
    /// By the holder: it is done.
    Complete { claim: TokenHash, output: JsonText },
    /// By the holder: it could not be done.
    Fail {
        claim: TokenHash,
        error: JsonText,
        retryable: bool,
    },
    /// By the holder: somebody else may do it.
    Release { claim: TokenHash },
    /// By the holder: it is at work.
    Heartbeat {
        claim: TokenHash,
        progress: Option<JsonText>,
    },
    /// By the publisher: it need not be done.
    Cancel,
}

impl What {
    /// The claim by which it is done, if it is done by the run's holder.
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
