//! Subcommands: what a call needs, looked up before it is made. No transaction is open and no
//! connection is held while the publisher's endpoint is asked.

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
    runs::{batch::check_held, versions::Definitions},
    store::{
        Scoped,
        change::Context,
        entity::runs,
        error::{Result, StoreError, damaged},
    },
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

/// What came of a call, for the run's timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallRecord<'a> {
    /// Which call.
    pub id: CallId,
    /// The subcommand's name.
    pub name: &'a str,
    /// Which of the run's claims made it.
    pub attempt: i32,
    /// The endpoint's status, if it answered.
    pub status_code: Option<u16>,
    /// The class of error; `None` if there was none between us and the endpoint.
    pub error: Option<&'static str>,
    /// From the start to the end of the call.
    pub latency_ms: u64,
}

/// Of a run, what decides whether a call may be made, and where to. Its input stays where it is.
#[derive(FromQueryResult)]
struct Held {
    pipeline_id: Uuid,
    pipeline_version: i64,
    pipeline_slug: String,
    attempt: i32,
    claim_hash: Option<Vec<u8>>,
    lease_expires_at: Option<i64>,
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
        let claimed = (held.claim_hash.as_deref(), held.lease_expires_at);
        check_held(claimed, &TokenHash::of(claim), self.store.now())?;
        let key = (owner, held.pipeline_id, held.pipeline_version);
        let definitions = self.store.state::<Definitions>();
        let definitions = definitions.of(self.store.read(), [key]).await?;
        let definition = definitions.get(&key);
        let subcommands = &definition
            .ok_or_else(|| damaged("pipeline version"))?
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

    /// Writes down in the run's timeline what came of a call.
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

    async fn held(&self, run: RunId) -> Result<Held> {
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
