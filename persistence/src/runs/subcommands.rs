//! Subcommands: reads what a call needs before the call is made. During the call no transaction is
//! open and no connection is in use.

use std::{fmt, time::Duration};

use domain::{
    Code, Problem,
    id::{CallId, Id as _, RunId},
    run::TimelineEntryKind,
    token::TokenHash,
};
use sea_orm::{EntityTrait as _, FromQueryResult, QuerySelect as _};
use secrecy::SecretString;
use serde_json::json;
use uuid::Uuid;

use crate::{
    runs::Runs,
    runs::{batch::check_held, versions::Definitions},
    store::{
        Scoped,
        change::Context,
        entity::runs,
        error::{Result, StoreError, corrupt_row},
    },
};

/// What a call by the holder of a claim needs.
#[derive(Clone)]
pub struct SubcommandCall {
    /// The run that the call is for.
    pub run: RunId,
    /// The number of the run's claim that makes the call, from 1.
    pub attempt: i32,
    /// The URL of the publisher's endpoint.
    pub url: String,
    /// The longest wait for the whole answer.
    pub timeout: Duration,
    /// The publisher's newest live subcommand bearer; `None` if all have expired.
    pub bearer: Option<SecretString>,
    /// The publisher's live signing secrets, newest first; empty if all have expired.
    pub signing: Vec<SecretString>,
}

impl fmt::Debug for SubcommandCall {
    /// Without the URL, since its path may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SubcommandCall")
            .field("run", &self.run)
            .field("attempt", &self.attempt)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// The result of a call, for the run's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord<'a> {
    /// The call's identifier.
    pub id: CallId,
    /// The subcommand's name.
    pub name: &'a str,
    /// The number of the run's claim that made the call.
    pub attempt: i32,
    /// The status of the endpoint's answer, if there was one.
    pub status_code: Option<u16>,
    /// The class of error; `None` if the endpoint answered.
    pub error: Option<&'static str>,
    /// Duration of the call, in milliseconds.
    pub latency_ms: u64,
}

/// The columns of a run that decide whether a call is allowed, and its URL. The input is not read.
#[derive(FromQueryResult)]
struct ClaimRow {
    pipeline_id: Uuid,
    pipeline_version: i64,
    pipeline_slug: String,
    attempt: i32,
    claim_hash: Option<Vec<u8>>,
    lease_expires_at: Option<i64>,
}

impl Runs<Scoped> {
    /// What calling a subcommand needs. `claim` must be the run's current claim.
    ///
    /// # Errors
    /// In this order: `not_found` if the run does not exist, is another publisher's, or is of a
    /// pipeline out of reach; `claim_lost` if the claim does not hold the run; `unknown_subcommand`
    /// if the run's version of the pipeline has no such name. So only the holder learns the names.
    pub async fn subcommand_call(
        &self,
        run: RunId,
        claim: &str,
        name: &str,
    ) -> Result<SubcommandCall, StoreError> {
        let owner = self.scope.uuid();
        let held = self.held(run).await?;
        let claimed = (held.claim_hash.as_deref(), held.lease_expires_at);
        check_held(claimed, &TokenHash::of(claim), self.store.now())?;
        let key = (owner, held.pipeline_id, held.pipeline_version);
        let definitions = self.store.state::<Definitions>();
        let definitions = definitions.of(self.store.read(), [key]).await?;
        let definition = definitions.get(&key);
        let subcommands = &definition
            .ok_or_else(|| corrupt_row("pipeline version"))?
            .subcommands;
        let Some(found) = subcommands.get(name) else {
            return Err(unknown(subcommands.keys()).into());
        };
        let secrets = self.store.secrets_of(owner).await?;
        Ok(SubcommandCall {
            run,
            attempt: held.attempt,
            url: found.url.clone(),
            timeout: Duration::from_millis(found.timeout_ms.into()),
            bearer: secrets.bearer,
            signing: secrets.signing,
        })
    }

    /// Records the result of a call in the run's timeline.
    pub async fn record_call(
        &self,
        context: &Context,
        run: RunId,
        call: &CallRecord<'_>,
    ) -> Result<(), StoreError> {
        let data = json!({
            "id": call.id.to_string(),
            "name": call.name,
            "attempt": call.attempt,
            "status_code": call.status_code,
            "error": call.error,
            "latency_ms": call.latency_ms,
        });
        self.add_to_timeline(context, run, TimelineEntryKind::Subcommand, &data)
            .await
    }

    async fn held(&self, run: RunId) -> Result<ClaimRow> {
        use runs::Column;
        runs::Entity::find_by_id((self.scope.uuid(), run.uuid()))
            .select_only()
            .columns([
                Column::PipelineId,
                Column::PipelineVersion,
                Column::PipelineSlug,
                Column::Attempt,
                Column::ClaimHash,
                Column::LeaseExpiresAt,
            ])
            .into_model::<ClaimRow>()
            .one(self.store.read())
            .await?
            .filter(|held| self.scope.reaches(&held.pipeline_slug))
            .ok_or_else(|| Problem::not_found().into())
    }
}

/// Lists the existing names in order, and never the requested one.
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
