//! Subcommands: what a call needs, looked up before it is made. No transaction is open and no
//! connection is held while the publisher's endpoint is asked.

use std::{collections::BTreeMap, fmt, time::Duration};

use domain::{
    Code, Problem, Timestamp,
    id::{Id as _, RunId},
    pipeline::Subcommand,
    run::RunStatus,
    token::TokenHash,
};
use sea_orm::{EntityTrait as _, FromQueryResult, QuerySelect as _};
use secrecy::SecretString;
use serde::Deserialize;
use uuid::Uuid;

use crate::{
    entity::{pipeline_versions, runs},
    error::{Result, StoreError, damaged},
    scope::Scoped,
};

/// A call that the claim's holder may make, with everything that its request needs.
#[derive(Clone)]
pub struct SubcommandCall {
    /// For which run.
    pub run: RunId,
    /// Which of the run's claims makes it, from 1.
    pub attempt: i32,
    /// Where to.
    pub url: String,
    /// The longest wait for the whole answer.
    pub timeout: Duration,
    /// The publisher's newest live subcommand bearer; `None` if all have expired.
    pub bearer: Option<SecretString>,
    /// Its live signing secrets, newest first; none if all have expired.
    pub signing: Vec<SecretString>,
}

impl fmt::Debug for SubcommandCall {
    /// Without the URL, whose path may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubcommandCall")
            .field("run", &self.run)
            .field("attempt", &self.attempt)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Of a run, what decides whether a call may be made, and where to. Its input stays where it is.
#[derive(FromQueryResult)]
struct Held {
    pipeline_id: Uuid,
    pipeline_version: i64,
    pipeline_slug: String,
    status: String,
    attempt: i32,
    claim_hash: Option<Vec<u8>>,
    lease_expires_at: Option<i64>,
}

impl Held {
    /// The rule of every operation that takes a claim: the run is running, the claim is its
    /// present one, the lease has not run out.
    fn check(&self, claim: &str, now: Timestamp) -> Result<()> {
        let stored = self.claim_hash.as_deref().and_then(TokenHash::from_stored);
        let matches = stored.is_some_and(|hash| hash.matches(&TokenHash::of(claim)));
        let holds = self.lease_expires_at.is_some_and(|until| until > now.ms());
        if matches && holds && self.status == RunStatus::Running.as_str() {
            Ok(())
        } else {
            Err(Code::ClaimLost.into())
        }
    }
}

/// The one part of a stored definition that a call reads; its schemas are skipped.
#[derive(Deserialize)]
struct Subcommands {
    subcommands: BTreeMap<String, Subcommand>,
}

impl Scoped {
    /// What calling a subcommand takes, for whoever shows the run's present claim.
    ///
    /// Refused are, in this order: a run that is absent, foreign or of a pipeline out of reach
    /// (`not_found`), a claim that does not hold it (`claim_lost`), and a name that its version of
    /// the pipeline has not (`unknown_subcommand`), so that only the holder is told the names.
    pub async fn subcommand_call(
        &self,
        run: RunId,
        claim: &str,
        name: &str,
    ) -> Result<SubcommandCall, StoreError> {
        let owner = self.scope.uuid();
        let held = self.held(run).await?;
        held.check(claim, self.store.now())?;
        let version = (owner, held.pipeline_id, held.pipeline_version);
        let row = pipeline_versions::Entity::find_by_id(version)
            .one(self.store.read())
            .await?
            .ok_or_else(|| damaged("pipeline version"))?;
        let Subcommands { mut subcommands } =
            serde_json::from_str(&row.definition).map_err(|_| damaged("pipeline definition"))?;
        let Some(found) = subcommands.remove(name) else {
            return Err(unknown(subcommands.keys()).into());
        };
        let secrets = self.store.secrets_of(owner).await?;
        Ok(SubcommandCall {
            run,
            attempt: held.attempt,
            url: found.url,
            timeout: Duration::from_millis(found.timeout_ms.into()),
            bearer: secrets.bearer,
            signing: secrets.signing,
        })
    }

    async fn held(&self, run: RunId) -> Result<Held> {
        use runs::Column;
        runs::Entity::find_by_id((self.scope.uuid(), run.uuid()))
            .select_only()
            .columns([
                Column::PipelineId,
                Column::PipelineVersion,
                Column::PipelineSlug,
                Column::Status,
                Column::Attempt,
                Column::ClaimHash,
                Column::LeaseExpiresAt,
            ])
            .into_model::<Held>()
            .one(self.store.read())
            .await?
            .filter(|held| self.scope.reaches(&held.pipeline_slug))
            .ok_or_else(|| Problem::not_found().into())
    }
}

/// Names what there is, in order; never what was asked for.
fn unknown<'a>(names: impl Iterator<Item = &'a String>) -> Problem {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    let detail = if names.is_empty() {
        "The run's version of its pipeline has no subcommands.".to_owned()
    } else {
        format!(
            "The run's version of its pipeline has these: {}.",
            names.join(", ")
        )
    };
    Problem::new(Code::UnknownSubcommand, detail)
}

#[cfg(test)]
mod tests;
