//! Pipelines, their runs, and the subcommands that runs answer.

pub(crate) mod pipelines;
pub(crate) mod run;
pub(crate) mod subcommands;
