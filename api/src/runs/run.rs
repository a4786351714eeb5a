//! Runs: created, claimed, kept alive, finished, given back and called off.

use std::{sync::Arc, time::Duration};

use poem_openapi::{
    OpenApi,
    param::{Header, Query},
};

use domain::{
    Code, FaultCode, JsonText, Problem,
    id::RunId,
    limits::PROGRESS_BYTES,
    permission::{Permission, RunsCancel, RunsClaim, RunsCreate, RunsRead},
    run::RunStatus,
    slug::Slug,
};
use persistence::{
    Answer, Context, CreatedRun, NewRun, PipelineVersion, Run, RunFilter, Scope, StoreError,
    ValidatedInput, WaitOptions,
};

use crate::{
    auth::Caller,
    runs::pipelines::slugs,
    schemas::{Item, Side, check_payload_bytes},
    shared::{
        App, Idempotency, Listed, Ok, OkOrCreated, PageQuery, Path, Tag, Time, Word, answer,
        answer_text, created, destination,
    },
};
use web::http::{ApiError, Body, OptionalBody, RequestContext};

pub(crate) mod timeline;
mod views;

pub(crate) use views::sample;
use views::{
    CancelBody, CancelledRuns, ClaimBody, ClaimedRun, ClaimedRuns, CompleteBody, CreatedRunView,
    FailBody, HeartbeatBody, HeartbeatView, NewRunBody, RunView,
};

/// How often an input is judged by a pipeline that changes meanwhile.
const VERSIONS_TRIED: u32 = 5;

/// The operations on runs.
pub struct Runs {
    pub(crate) app: Arc<App>,
}

impl Runs {
    /// What a version of a pipeline says of an input.
    ///
    /// # Errors
    /// When it could not be judged.
    async fn judged(
        &self,
        scope: &Scope,
        found: &PipelineVersion,
        input: &JsonText,
    ) -> Result<ValidatedInput, Problem> {
        let mut verdict = Ok(());
        if let Some(schema) = &found.definition.input_schema {
            let version = (found.pipeline, found.version);
            let item = Item::of_run(version, Side::Input, schema, input);
            verdict = self.app.schemas.check(scope.publisher(), &[item]).await;
        }
        match verdict {
            Err(problem) if problem.code != Code::ValidationFailed => Err(problem),
            verdict => Ok(ValidatedInput {
                pipeline: found.pipeline,
                version: found.version,
                result: verdict,
            }),
        }
    }

    /// Creates a run whose input was judged by the very version that it keeps. Nothing is judged
    /// while a transaction waits: if the pipeline has changed by then, the transaction is given up
    /// and the input judged once more.
    async fn create_judged<A>(
        &self,
        (request, scope): (&RequestContext, &Scope),
        context: &Context,
        (slug, new): (&Slug, NewRun),
        render: A,
    ) -> Result<Answer, ApiError>
    where
        A: Fn(&CreatedRun) -> Answer + Send + Sync,
    {
        let scoped = self.app.store.scoped(scope);
        check_payload_bytes("input", &new.input)?;
        let new = Arc::new(new);
        let mut version = match scoped.runs().likely_version(slug).await {
            // Left to the transaction, which may have an answer kept from when it existed.
            Err(StoreError::Refused(_)) => None,
            found => Some(found?),
        };
        for _ in 0..VERSIONS_TRIED {
            let judged = match &version {
                Some(version) => {
                    let judged = self.judged(scope, version, &new.input);
                    Some(request.aside(judged).await??)
                }
                None => None,
            };
            let runs = scoped.runs();
            let created = runs.create_run(context, Arc::clone(&new), judged, &render);
            match created.await {
                Err(StoreError::VersionChanged(now)) => version = Some(*now),
                answered => return Ok(answered?),
            }
        }
        let detail = "The pipeline changes faster than the input can be checked.";
        let problem = Problem::new(Code::Overloaded, detail).retry_after(1);
        Err(problem.into())
    }

    /// The output of a run, judged by the version that the run was created with.
    async fn judged_output(
        &self,
        (request, scope): (&RequestContext, &Scope),
        run: RunId,
        output: JsonText,
    ) -> Result<JsonText, ApiError> {
        let kept = self
            .app
            .store
            .scoped(scope)
            .runs()
            .version_of_run(run)
            .await?;
        check_payload_bytes("output", &output)?;
        if let Some(schema) = &kept.definition.output_schema {
            let version = (kept.pipeline, kept.version);
            let item = Item::of_run(version, Side::Output, schema, &output);
            let items = [item];
            let check = self.app.schemas.check(scope.publisher(), &items);
            request.aside(check).await??;
        }
        Ok(output)
    }
}

/// A claim at once makes its holder a runner.
fn check_may_claim(wanted: bool, may: bool) -> Result<(), Problem> {
    if wanted && !may {
        let detail = "Only a runner token can claim: leave `claim` out, or use one.";
        return Err(Problem::field("/claim", FaultCode::NotAllowed, detail));
    }
    Ok(())
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Runs")]
impl Runs {
    /// Create a run
    ///
    /// Whoever does the work itself sends `claim: true` and gets run and claim in one answer. An
    /// `external_id` that the pipeline has already answers 200 with the run that has it, unchanged
    /// and without a claim.
    #[oai(
        path = "/pipelines/:slug/runs",
        method = "post",
        operation_id = "create_run"
    )]
    async fn create(
        &self,
        who: Caller<RunsCreate>,
        /// The pipeline's slug.
        Path(slug): Path<Slug>,
        key: Idempotency,
        body: Body<NewRunBody>,
    ) -> Result<OkOrCreated<CreatedRunView>, ApiError> {
        check_may_claim(body.0.claim, who.principal.holds(Permission::RunsClaim))?;
        let new = NewRun {
            pipeline: slug.to_string(),
            input: body.0.input.0,
            external_id: body.0.external_id,
            priority: body.0.priority,
            not_before: body.0.not_before.map(|at| at.0),
            claim: body.0.claim,
        };
        let context = who.context_with(key);
        let render = |new: &CreatedRun| {
            let view = CreatedRunView::from(new);
            let shown = answer_text(200, &view).revision(new.run.revision);
            if new.existed {
                return shown;
            }
            let location = format!("/v1/runs/{}", new.run.id);
            created(shown, location).holds_secret(new.claim.is_some())
        };
        let answer = self
            .create_judged((&who.request, who.scope()), &context, (&slug, new), render)
            .await?;
        Ok(answer.into())
    }

    /// List runs
    ///
    /// Newest first. A token that is limited to some pipelines sees only their runs. A part also ends
    /// at about 4 MiB.
    #[oai(path = "/runs", method = "get", operation_id = "list_runs")]
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a parameter of the request"
    )]
    async fn list(
        &self,
        who: Caller<RunsRead>,
        /// Only runs of this pipeline.
        #[oai(validator(max_length = 63))]
        pipeline: Query<Option<String>>,
        /// Only runs with this status.
        status: Query<Option<Word<RunStatus>>>,
        /// Only runs of this external identifier.
        #[oai(validator(max_length = 200))]
        external_id: Query<Option<String>>,
        /// Only runs created at or after this time.
        since: Query<Option<Time>>,
        /// Only runs created before this time.
        until: Query<Option<Time>>,
        page: PageQuery,
    ) -> Result<Listed<RunView>, ApiError> {
        let list = who.list(page).await?;
        let filter = RunFilter {
            pipeline: pipeline.0,
            status: status.0.map(|status| status.0),
            external_id: external_id.0,
            since: since.0.map(|at| at.0),
            until: until.0.map(|at| at.0),
        };
        let page = who.scoped().runs().runs(&filter, list.page()?).await?;
        Ok(list.answer_text(page, RunView::from))
    }

    /// Get a run
    #[oai(path = "/runs/:id", method = "get", operation_id = "get_run")]
    async fn get(
        &self,
        who: Caller<RunsRead>,
        Path(id): Path<RunId>,
    ) -> Result<Ok<RunView>, ApiError> {
        let run = who.scoped().runs().run(id).await?;
        let revision = Some(run.revision);
        Ok(Ok::text(&RunView::from(run), revision))
    }

    /// Cancel a run
    ///
    /// At once while it waits. While a runner holds it, `cancel_requested` is set and the runner
    /// learns of it with its next heartbeat; the run is cancelled when it gives the run back, when
    /// its try fails, or when its lease runs out. A run that it completes all the same succeeded.
    #[oai(
        path = "/runs/:id/cancel",
        method = "post",
        operation_id = "cancel_run"
    )]
    async fn cancel(
        &self,
        who: Caller<RunsCancel>,
        Path(id): Path<RunId>,
        key: Idempotency,
    ) -> Result<Ok<RunView>, ApiError> {
        let context = who.context_with(key);
        let runs = who.scoped().runs();
        Ok(runs.cancel_run(&context, id, shown).await?.into())
    }

    /// Cancel runs
    ///
    /// Up to 1000 unfinished runs that pass the filter, oldest first, as [cancelling
    /// one](#cancel_run) does. `more` tells whether to send it again.
    #[oai(path = "/runs/cancel", method = "post", operation_id = "cancel_runs")]
    async fn cancel_all(
        &self,
        who: Caller<RunsCancel>,
        key: Idempotency,
        body: Body<CancelBody>,
    ) -> Result<Ok<CancelledRuns>, ApiError> {
        let filter = RunFilter::from(body.0);
        let context = who.context_with(key);
        let runs = who.scoped().runs();
        let answered = runs.cancel_runs(&context, &filter, |done| {
            answer(200, &CancelledRuns::from(done))
        });
        Ok(answered.await?.into())
    }

    /// Claim runs
    ///
    /// Hands out due runs: by priority, then in turns between pipelines, then by when they may
    /// start and by age. Each comes with a claim that holds for its pipeline's `lease_seconds`;
    /// heartbeats extend it, and finishing the run takes it. Of large runs fewer than `max` are handed
    /// out: about 4 MiB. With `wait_seconds` the answer comes
    /// as soon as there is a run, or empty after that time (or after the operator's
    /// limit, if that is less). Those that wait for the same pipeline are served in the order in
    /// which they came. At most 1000 of a publisher wait at once in each process; one more is
    /// answered 429 `share_exceeded`.
    #[oai(path = "/runs/claim", method = "post", operation_id = "claim_runs")]
    async fn claim(
        &self,
        who: Caller<RunsClaim>,
        body: OptionalBody<ClaimBody>,
    ) -> Result<Ok<ClaimedRuns>, ApiError> {
        let mut faults = Vec::new();
        let wanted = body.0.pipelines.as_deref();
        let pipelines = wanted.map(|texts| slugs(texts, "/pipelines", &mut faults));
        destination::refuse(faults, Vec::new())?;
        let context = who.context();
        let runs = who.scoped().runs();
        let asked = Duration::from_secs(u64::from(body.0.wait_seconds));
        let wait = asked.min(self.app.claim_wait_max);
        if !wait.is_zero() {
            who.request.leave_place();
        }
        let patience = WaitOptions {
            wait,
            gone: who.request.gone(),
            presented: who.presented(),
        };
        let claimed = runs
            .claim_runs(&context, pipelines.as_deref(), body.0.max, patience)
            .await?;
        let items = claimed.into_iter().map(ClaimedRun::from).collect();
        Ok(Ok::text(&ClaimedRuns { items }, None))
    }

    /// Send a heartbeat for a run
    ///
    /// Extends the claim by its pipeline's `lease_seconds` from now. To be sent every third of
    /// that; the answer tells whether the run is to be cancelled.
    #[oai(
        path = "/runs/:id/heartbeat",
        method = "post",
        operation_id = "heartbeat_run"
    )]
    async fn heartbeat(
        &self,
        who: Caller<RunsClaim>,
        Path(id): Path<RunId>,
        /// The claim's token.
        #[oai(name = "X-Stationmaster-Claim", validator(max_length = 200))]
        claim: Header<String>,
        body: OptionalBody<HeartbeatBody>,
    ) -> Result<Ok<HeartbeatView>, ApiError> {
        let progress = body.0.progress.map(|progress| progress.0);
        if let Some(progress) = &progress {
            check_progress(progress)?;
        }
        let context = who.context();
        let runs = who.scoped().runs();
        let run = runs.heartbeat_run(&context, id, &claim.0, progress).await?;
        let view = HeartbeatView::of(&run).ok_or(Code::ClaimLost)?;
        Ok(Ok::show(&view, None))
    }

    /// Complete a run
    #[oai(
        path = "/runs/:id/complete",
        method = "post",
        operation_id = "complete_run"
    )]
    async fn complete(
        &self,
        who: Caller<RunsClaim>,
        Path(id): Path<RunId>,
        /// The claim's token.
        #[oai(name = "X-Stationmaster-Claim", validator(max_length = 200))]
        claim: Header<String>,
        key: Idempotency,
        body: Body<CompleteBody>,
    ) -> Result<Ok<RunView>, ApiError> {
        let runs = who.scoped().runs();
        let output = self
            .judged_output((&who.request, who.scope()), id, body.0.output.0)
            .await?;
        let context = who.context_with(key);
        let answer = runs.complete_run(&context, id, &claim.0, output, shown);
        Ok(answer.await?.into())
    }

    /// Fail a run
    ///
    /// For good, unless `retryable` is true and tries are left.
    #[oai(path = "/runs/:id/fail", method = "post", operation_id = "fail_run")]
    async fn fail(
        &self,
        who: Caller<RunsClaim>,
        Path(id): Path<RunId>,
        /// The claim's token.
        #[oai(name = "X-Stationmaster-Claim", validator(max_length = 200))]
        claim: Header<String>,
        key: Idempotency,
        body: Body<FailBody>,
    ) -> Result<Ok<RunView>, ApiError> {
        let retryable = body.0.retryable;
        let error = body.0.error.0;
        check_payload_bytes("error", &error)?;
        let context = who.context_with(key);
        let runs = who.scoped().runs();
        let answer = runs.fail_run(&context, id, &claim.0, (error, retryable), shown);
        Ok(answer.await?.into())
    }

    /// Release a run
    ///
    /// It is queued again, and another runner may claim it at once; no try is used up.
    #[oai(
        path = "/runs/:id/release",
        method = "post",
        operation_id = "release_run"
    )]
    async fn release(
        &self,
        who: Caller<RunsClaim>,
        Path(id): Path<RunId>,
        /// The claim's token.
        #[oai(name = "X-Stationmaster-Claim", validator(max_length = 200))]
        claim: Header<String>,
        key: Idempotency,
    ) -> Result<Ok<RunView>, ApiError> {
        let context = who.context_with(key);
        let runs = who.scoped().runs();
        let answer = runs.release_run(&context, id, &claim.0, shown);
        Ok(answer.await?.into())
    }
}

/// A report of progress has a limit of its own.
fn check_progress(progress: &JsonText) -> Result<(), Problem> {
    if progress.as_str().len() > PROGRESS_BYTES {
        let detail = format!("`progress` may have at most {PROGRESS_BYTES} bytes of JSON.");
        return Err(Problem::field("/progress", FaultCode::TooLong, detail));
    }
    Ok(())
}

/// A changed run.
fn shown(run: &Run) -> Answer {
    answer_text(200, &RunView::from(run)).revision(run.revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_runner_claims() {
        let problem = check_may_claim(true, false).unwrap_err();
        assert_eq!(problem.errors[0].pointer, "/claim");
        assert!(check_may_claim(true, true).is_ok() && check_may_claim(false, false).is_ok());
    }

    #[test]
    fn progress_has_a_limit() {
        let long = JsonText::of(&"x".repeat(PROGRESS_BYTES));
        assert_eq!(
            check_progress(&long).unwrap_err().errors[0].pointer,
            "/progress"
        );
        assert!(check_progress(&JsonText::null()).is_ok());
    }
}
