//! Pipelines and runs, on both engines.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use domain::{
    Code,
    pipeline::Definition,
    token::{self, Prefix},
};
use secrecy::ExposeSecret as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    Expected, Pipeline, PipelineVersion, Presented, PublisherPatch, QuotasPatch, Scope,
    fixture::{Fixture, context, engines, no_content},
    operations::audit::AuditFilter,
};

/// Keeps the value from which a change's response was rendered.
pub(crate) struct Slot<T>(Mutex<Option<T>>);

impl<T: Clone> Slot<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(crate) fn keep(&self, value: &T) -> Answer {
        *self.0.lock().unwrap() = Some(value.clone());
        no_content()
    }

    pub(crate) fn take(self) -> T {
        self.0.into_inner().unwrap().unwrap()
    }
}

pub(crate) const PAGE: PageRequest<Uuid> = PageRequest {
    limit: 200,
    after: None,
};

pub(crate) fn slug(text: &str) -> Slug {
    Slug::parse(text).unwrap()
}

pub(crate) fn code<T>(result: Result<T>) -> Code {
    match result {
        Err(StoreError::Refused(problem)) => problem.code,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was not refused"),
    }
}

pub(crate) fn definition() -> Definition {
    Definition {
        display_name: "Nightly".into(),
        description: None,
        input_schema: Some(json!({ "type": "object" })),
        output_schema: None,
        subcommands: BTreeMap::new(),
        lease_seconds: 60,
        max_attempts: 2,
        max_concurrent_runs: None,
        time_to_live_seconds: None,
        retention_days: 3,
    }
}

/// A publisher's handle, with a pipeline for each of these names.
pub(crate) async fn house(fixture: &Fixture, name: &str, pipelines: &[&str]) -> Scoped {
    let publisher = fixture.publisher(name).await.publisher.id;
    let scoped = fixture.store.scoped(&Scope::of_row(publisher.uuid(), None));
    for pipeline in pipelines {
        put(&scoped, pipeline, definition()).await.unwrap();
    }
    scoped
}

fn limited(all: &Scoped, pipelines: &[&str]) -> Scoped {
    let slugs: Arc<[Slug]> = pipelines.iter().map(|name| slug(name)).collect();
    Scoped {
        store: all.store.clone(),
        scope: Scope::of_row(all.scope.uuid(), Some(slugs)),
    }
}

async fn put(scoped: &Scoped, name: &str, new: Definition) -> Result<(Pipeline, bool)> {
    let slot = Slot::new();
    scoped
        .runs()
        .put_pipeline(&context(), slug(name), new, None, |put| slot.keep(put))
        .await?;
    Ok(slot.take())
}

async fn delete(scoped: &Scoped, name: &str) -> Result<Answer> {
    scoped
        .runs()
        .delete_pipeline(&context(), name, None, |()| no_content())
        .await
}

pub(crate) fn new_run(pipeline: &str) -> NewRun {
    NewRun {
        pipeline: pipeline.into(),
        input: json!({ "a": [1, "ä"] }).into(),
        external_id: None,
        priority: 5,
        not_before: None,
        claim: false,
    }
}

pub(crate) async fn create(scoped: &Scoped, new: NewRun) -> Result<CreatedRun> {
    let (slot, new, context) = (Slot::new(), Arc::new(new), context());
    let mut validated = None;
    loop {
        let render = |created: &CreatedRun| slot.keep(created);
        let runs = scoped.runs();
        let created = runs.create_run(&context, Arc::clone(&new), validated, render);
        match created.await {
            Err(StoreError::VersionChanged(now)) => validated = Some(taken_by(&now)),
            created => {
                created?;
                return Ok(slot.take());
            }
        }
    }
}

fn taken_by(version: &PipelineVersion) -> ValidatedInput {
    ValidatedInput {
        pipeline: version.pipeline,
        version: version.version,
        result: Ok(()),
    }
}

/// Does not wait at all.
pub(crate) fn at_once() -> WaitOptions {
    WaitOptions {
        wait: Duration::ZERO,
        gone: CancellationToken::new(),
        presented: Presented::Token(TokenHash::of("nobody's")),
    }
}

async fn claim(scoped: &Scoped, max: u32) -> Vec<Claimed> {
    scoped
        .runs()
        .claim_runs(&context(), None, max, at_once())
        .await
        .unwrap()
}

async fn complete(scoped: &Scoped, id: RunId, claim: &str) -> Result<Run> {
    let slot = Slot::new();
    let output = json!({ "rows": 7 }).into();
    scoped
        .runs()
        .complete_run(&context(), id, claim, output, |run| slot.keep(run))
        .await?;
    Ok(slot.take())
}

async fn fail(scoped: &Scoped, id: RunId, claim: &str) -> Result<Run> {
    let slot = Slot::new();
    let error = (json!({ "message": "no" }).into(), false);
    scoped
        .runs()
        .fail_run(&context(), id, claim, error, |run| slot.keep(run))
        .await?;
    Ok(slot.take())
}

async fn cancel(scoped: &Scoped, id: RunId) -> Result<Run> {
    let slot = Slot::new();
    scoped
        .runs()
        .cancel_run(&context(), id, |run| slot.keep(run))
        .await?;
    Ok(slot.take())
}

/// Events of one millisecond are in order only within one transaction.
fn tick(fixture: &Fixture) {
    fixture.clock.advance(Duration::from_millis(1));
}

/// The types of all events, oldest first.
async fn told(scoped: &Scoped) -> Vec<String> {
    let page = scoped.webhooks().events(None, PAGE).await.unwrap();
    page.items
        .into_iter()
        .rev()
        .map(|event| event.event_type)
        .collect()
}

async fn logged(scoped: &Scoped) -> Vec<String> {
    let page = PageRequest {
        limit: 200,
        after: None,
    };
    let rows = scoped
        .operations()
        .audit(&AuditFilter::default(), page)
        .await
        .unwrap()
        .items;
    let ours = rows
        .into_iter()
        .rev()
        .filter(|row| row.target_kind == "pipeline");
    ours.map(|row| row.action).collect()
}

#[tokio::test]
async fn a_run_goes_from_creation_to_success() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let created = create(&mine, new_run("nightly")).await.unwrap();
        assert!(!created.existed && created.claim.is_none());
        let run = created.run;
        assert_eq!(
            (run.status, run.attempt, run.revision),
            (RunStatus::Queued, 0, 1)
        );
        assert_eq!(
            (run.created_by_kind.as_str(), run.created_by_id.as_str()),
            ("system", "test")
        );
        assert_eq!(mine.runs().run(run.id).await.unwrap(), run);

        fixture.clock.advance(Duration::from_secs(1));
        let claimed = claim(&mine, 5).await.remove(0);
        assert_eq!(
            token::recognise(claimed.token.expose_secret()),
            Some(Prefix::Claim)
        );
        assert_eq!(
            (claimed.run.status, claimed.run.attempt),
            (RunStatus::Running, 1)
        );
        assert_eq!(claimed.run.input, run.input);
        assert_eq!(mine.runs().run(run.id).await.unwrap(), claimed.run);
        assert!(claim(&mine, 5).await.is_empty());

        fixture.clock.advance(Duration::from_secs(1));
        let done = complete(&mine, run.id, claimed.token.expose_secret())
            .await
            .unwrap();
        assert_eq!(done.status, RunStatus::Succeeded);
        assert_eq!(done.output, Some(json!({ "rows": 7 }).into()));
        assert_eq!(done.finished_at, Some(mine.store.now()));
        assert_eq!((done.lease_expires_at, done.revision), (None, 3));
        assert_eq!(mine.runs().run(run.id).await.unwrap(), done);
        assert_eq!(
            told(&mine).await,
            ["run.created", "run.started", "run.succeeded"]
        );

        let last = mine
            .webhooks()
            .events(Some("run.succeeded"), PAGE)
            .await
            .unwrap()
            .items
            .remove(0);
        let body: serde_json::Value = serde_json::from_str(&last.body).unwrap();
        assert_eq!(body["data"]["run"], done.without_input().to_tree());
        assert!(body["data"]["run"].get("input").is_none());
        let swept = "runs WHERE sweep_at = finished_at + 3 * 86400000";
        assert_eq!(fixture.count(swept).await, 1);
    }
}

#[tokio::test]
async fn only_the_present_claim_finishes_a_run() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        assert_eq!(
            code(complete(&mine, run.id, "stm_claim_x").await),
            Code::ClaimLost
        );
        tick(&fixture);
        let first = claim(&mine, 1).await.remove(0);
        assert_eq!(
            code(fail(&mine, run.id, "stm_claim_x").await),
            Code::ClaimLost
        );
        fixture.clock.advance(Duration::from_mins(1));
        // The lease ends to the millisecond, whether it was swept or not.
        let late = first.token.expose_secret();
        assert_eq!(code(complete(&mine, run.id, late).await), Code::ClaimLost);
        assert_eq!(
            fixture.store.system().runs().expire_runs(10).await.unwrap(),
            (1, 0)
        );
        let second = claim(&mine, 1).await.remove(0);
        assert_eq!((second.run.id, second.run.attempt), (run.id, 2));
        assert_eq!(code(complete(&mine, run.id, late).await), Code::ClaimLost);
        let token = second.token.expose_secret();
        tick(&fixture);
        let failed = fail(&mine, run.id, token).await.unwrap();
        assert_eq!(failed.status, RunStatus::Failed);
        assert_eq!(failed.error, Some(json!({ "message": "no" }).into()));
        assert_eq!(failed.started_at, first.run.started_at);
        assert_eq!(code(complete(&mine, run.id, token).await), Code::ClaimLost);
        assert_eq!(code(cancel(&mine, run.id).await), Code::RunFinished);
        let types = ["run.created", "run.started", "run.started", "run.failed"];
        assert_eq!(told(&mine).await, types);
    }
}

#[tokio::test]
async fn a_run_expires_with_its_last_lease() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let system = fixture.store.system();
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        for outcome in [(1, 0), (0, 1)] {
            tick(&fixture);
            assert_eq!(claim(&mine, 1).await.len(), 1);
            fixture.clock.advance(Duration::from_secs(59));
            assert_eq!(system.runs().expire_runs(10).await.unwrap(), (0, 0));
            fixture.clock.advance(Duration::from_secs(1));
            assert_eq!(system.runs().expire_runs(10).await.unwrap(), outcome);
        }
        assert_eq!(
            mine.runs().run(run.id).await.unwrap().status,
            RunStatus::Expired
        );
        let types = ["run.created", "run.started", "run.started", "run.expired"];
        assert_eq!(told(&mine).await, types);
        assert!(claim(&mine, 1).await.is_empty());
    }
}

#[tokio::test]
async fn the_leases_of_a_suspended_publisher_wait_for_it() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let (system, id) = (fixture.store.system(), mine.scope.publisher());
        create(&mine, new_run("nightly")).await.unwrap();
        claim(&mine, 1).await;
        system
            .publishers()
            .suspend_publisher(&context(), id, |_| no_content())
            .await
            .unwrap();
        fixture.clock.advance(Duration::from_mins(10));
        assert_eq!(system.runs().expire_runs(10).await.unwrap(), (0, 0));
        system
            .publishers()
            .resume_publisher(&context(), id, None, |_| no_content())
            .await
            .unwrap();
        assert_eq!(system.runs().expire_runs(10).await.unwrap(), (1, 0));
    }
}

#[tokio::test]
async fn cancelling_a_held_run_asks_its_holder() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        let claimed = claim(&mine, 1).await.remove(0);
        let asked = cancel(&mine, run.id).await.unwrap();
        assert_eq!(
            (asked.status, asked.cancel_requested),
            (RunStatus::Running, true)
        );
        let token = claimed.token.expose_secret();
        let kept = mine
            .runs()
            .heartbeat_run(&context(), run.id, token, None)
            .await;
        assert!(kept.unwrap().cancel_requested);
        let ended = fail(&mine, run.id, token).await.unwrap();
        assert_eq!(ended.status, RunStatus::Cancelled);
        assert_eq!(code(complete(&mine, run.id, token).await), Code::ClaimLost);
        assert_eq!(code(cancel(&mine, run.id).await), Code::RunFinished);
        let nobody = RunId::generate(mine.store.now());
        assert_eq!(code(cancel(&mine, nobody).await), Code::NotFound);
    }
}

#[tokio::test]
async fn a_run_that_waits_is_cancelled_at_once() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        tick(&fixture);
        let cancelled = cancel(&mine, run.id).await.unwrap();
        assert_eq!(cancelled.status, RunStatus::Cancelled);
        assert!(claim(&mine, 1).await.is_empty());
        assert_eq!(told(&mine).await, ["run.created", "run.cancelled"]);
    }
}

#[tokio::test]
async fn who_creates_a_run_can_hold_it_at_once() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let created = create(
            &mine,
            NewRun {
                claim: true,
                ..new_run("nightly")
            },
        )
        .await
        .unwrap();
        let (token, until) = created.claim.unwrap();
        assert_eq!(until.since(mine.store.now()), Duration::from_mins(1));
        assert_eq!(
            (created.run.status, created.run.attempt),
            (RunStatus::Running, 1)
        );
        assert_eq!(mine.runs().run(created.run.id).await.unwrap(), created.run);
        assert!(claim(&mine, 1).await.is_empty());
        tick(&fixture);
        complete(&mine, created.run.id, token.expose_secret())
            .await
            .unwrap();
        assert_eq!(
            told(&mine).await,
            ["run.created", "run.started", "run.succeeded"]
        );

        let later = mine.store.now().plus(Duration::from_secs(1));
        let both = NewRun {
            claim: true,
            not_before: Some(later),
            ..new_run("nightly")
        };
        assert_eq!(code(create(&mine, both).await), Code::ValidationFailed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_identifier_names_one_run_of_a_pipeline() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly", "hourly"]).await;
        let named = |pipeline: &str| NewRun {
            external_id: Some("order-1".into()),
            claim: true,
            ..new_run(pipeline)
        };
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let (mine, new) = (mine.clone(), named("nightly"));
            tasks.spawn(async move { create(&mine, new).await.unwrap() });
        }
        let all = tasks.join_all().await;
        let ids: BTreeSet<RunId> = all.iter().map(|created| created.run.id).collect();
        assert_eq!(ids.len(), 1);
        assert_eq!(all.iter().filter(|created| !created.existed).count(), 1);
        assert!(
            all.iter()
                .all(|created| created.existed == created.claim.is_none())
        );
        assert_eq!(told(&mine).await, ["run.created", "run.started"]);

        let other = create(&mine, named("hourly")).await.unwrap();
        assert!(!other.existed);
        let theirs = house(&fixture, "b", &["nightly"]).await;
        assert!(!create(&theirs, named("nightly")).await.unwrap().existed);
        let filter = RunFilter {
            external_id: Some("order-1".into()),
            ..RunFilter::default()
        };
        assert_eq!(
            mine.runs().runs(&filter, PAGE).await.unwrap().items.len(),
            2
        );
    }
}

mod cancelling;
mod claims;
mod judged;
mod model;
mod pipelines;

/// A cached version is of no use to a token that cannot reach the pipeline, and is replaced by the
/// version that a transaction saw.
#[tokio::test]
async fn remembered_versions_keep_to_the_reach_of_tokens_and_to_the_latest() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly", "daily"]).await;
        let nightly = slug("nightly");
        assert_eq!(
            mine.runs().likely_version(&nightly).await.unwrap().version,
            1
        );
        let created = create(&mine, new_run("nightly")).await.unwrap();
        let claimed = claim(&mine, 1).await.remove(0);
        assert_eq!(claimed.run.id, created.run.id);
        assert_eq!(
            mine.runs()
                .version_of_run(created.run.id)
                .await
                .unwrap()
                .version,
            1
        );

        let elsewhere = limited(&mine, &["daily"]);
        let theirs = house(&fixture, "b", &[]).await;
        for stranger in [&elsewhere, &theirs] {
            let version = stranger.runs().likely_version(&nightly).await;
            assert_eq!(code(version), Code::NotFound);
            let version = stranger.runs().version_of_run(created.run.id).await;
            assert_eq!(code(version), Code::NotFound);
        }

        let changed = Definition {
            lease_seconds: 90,
            ..definition()
        };
        put(&mine, "nightly", changed).await.unwrap();
        create(&mine, new_run("nightly")).await.unwrap();
        assert_eq!(
            mine.runs().likely_version(&nightly).await.unwrap().version,
            2
        );
        assert_eq!(
            mine.runs()
                .version_of_run(created.run.id)
                .await
                .unwrap()
                .version,
            1
        );
    }
}

/// More changes at once than one statement writes. None is lost, and none is swapped with another.
#[tokio::test]
async fn odd_numbers_of_runs_are_written_in_several_statements() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let mut creating = JoinSet::new();
        for number in 0..43 {
            let mine = mine.clone();
            let new = NewRun {
                input: json!({ "number": number }).into(),
                external_id: (number % 2 == 0).then(|| format!("name-{}", number / 4)),
                ..new_run("nightly")
            };
            creating.spawn(async move { (number, create(&mine, new).await.unwrap()) });
        }
        let mut existed = 0;
        for (number, created) in creating.join_all().await {
            existed += usize::from(created.existed);
            let input = &mine.runs().run(created.run.id).await.unwrap().input;
            assert!(created.existed || input.to_tree()["number"] == number);
        }
        // Two even numbers share each of eleven names.
        assert_eq!(existed, 11);
        let claimed = claim(&mine, 100).await;
        assert_eq!(claimed.len(), 32);
        let ids: BTreeSet<RunId> = claimed.iter().map(|claimed| claimed.run.id).collect();
        assert_eq!(ids.len(), 32);
        let mut completing = JoinSet::new();
        for one in claimed {
            let mine = mine.clone();
            completing.spawn(async move {
                let token = one.token.expose_secret();
                complete(&mine, one.run.id, token).await.unwrap().status
            });
        }
        for status in completing.join_all().await {
            assert_eq!(status, RunStatus::Succeeded);
        }
    }
}
