//! Who may call a subcommand, and with what, on both engines.

use std::{collections::BTreeMap, sync::Arc};

use domain::{
    JsonText,
    credential::CredentialKind,
    pipeline::{Definition, Subcommand},
    slug::Slug,
};
use secrecy::ExposeSecret as _;

use super::*;
use crate::{
    NewCredential, PageRequest, Scope,
    fixture::{Fixture, context, engines, no_content},
    runs::tests::{code, create, definition, house, new_run, slug},
};

fn with_subcommands() -> Definition {
    let subcommand = |path: &str, timeout_ms| Subcommand {
        url: format!("https://tools.example/{path}"),
        timeout_ms,
    };
    Definition {
        subcommands: BTreeMap::from([
            ("archive".to_owned(), subcommand("archive", 1500)),
            ("notify".to_owned(), subcommand("notify", 60_000)),
        ]),
        ..definition()
    }
}

/// A publisher with the pipeline `nightly`, which has subcommands, and `bare`, which has none.
async fn publisher(fixture: &Fixture) -> Scoped {
    let scoped = house(fixture, "acme", &["bare"]).await;
    put(&scoped, with_subcommands()).await;
    scoped
}

async fn put(scoped: &Scoped, definition: Definition) {
    scoped
        .runs()
        .put_pipeline(&context(), slug("nightly"), definition, None, |_| {
            no_content()
        })
        .await
        .unwrap();
}

async fn claimed(scoped: &Scoped, pipeline: &str) -> (RunId, String) {
    let new = crate::NewRun {
        claim: true,
        ..new_run(pipeline)
    };
    let created = create(scoped, new).await.unwrap();
    let (token, _) = created.claim.unwrap();
    (created.run.id, token.expose_secret().to_owned())
}

fn limited(all: &Scoped, pipeline: &str) -> Scoped {
    let slugs: Arc<[Slug]> = Arc::from([slug(pipeline)]);
    Scoped {
        store: all.store.clone(),
        scope: Scope::of_row(all.scope.uuid(), Some(slugs)),
    }
}

#[tokio::test]
async fn a_holder_is_given_what_the_call_takes() {
    for fixture in engines().await {
        let scoped = publisher(&fixture).await;
        let (run, claim) = claimed(&scoped, "nightly").await;
        let call = scoped
            .runs()
            .subcommand_call(run, &claim, "archive")
            .await
            .unwrap();
        assert_eq!((call.run, call.attempt), (run, 1));
        assert_eq!(call.url, "https://tools.example/archive");
        assert_eq!(call.timeout, Duration::from_millis(1500));
        assert_eq!(call.signing.len(), 1);
        assert!(
            call.bearer
                .as_ref()
                .unwrap()
                .expose_secret()
                .starts_with("stm_sub_")
        );
        let shown = format!("{call:?}");
        assert!(!shown.contains("tools.example") && !shown.contains("stm_sub_"));
    }
}

#[tokio::test]
async fn a_run_keeps_the_subcommands_of_its_version() {
    for fixture in engines().await {
        let scoped = publisher(&fixture).await;
        let (run, claim) = claimed(&scoped, "nightly").await;
        put(&scoped, definition()).await;
        assert!(
            scoped
                .runs()
                .subcommand_call(run, &claim, "archive")
                .await
                .is_ok()
        );
        let (later, claim) = claimed(&scoped, "nightly").await;
        let refused = scoped
            .runs()
            .subcommand_call(later, &claim, "archive")
            .await;
        assert_eq!(code(refused), Code::UnknownSubcommand);
    }
}

#[tokio::test]
async fn an_unknown_name_lists_those_that_there_are() {
    for fixture in engines().await {
        let scoped = publisher(&fixture).await;
        let detail = async |pipeline: &str| {
            let (run, claim) = claimed(&scoped, pipeline).await;
            match scoped.runs().subcommand_call(run, &claim, "Archive").await {
                Err(StoreError::Refused(problem)) => problem.detail,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(
            detail("nightly").await,
            "The run's version of its pipeline has these: `archive`, `notify`."
        );
        assert_eq!(
            detail("bare").await,
            "The run's version of its pipeline has no subcommands."
        );
    }
}

#[tokio::test]
async fn only_the_present_claim_of_the_very_run_will_do() {
    for fixture in engines().await {
        let scoped = publisher(&fixture).await;
        let (run, claim) = claimed(&scoped, "nightly").await;
        let (_, others) = claimed(&scoped, "nightly").await;
        let ask =
            async |claim: &str| code(scoped.runs().subcommand_call(run, claim, "archive").await);
        assert_eq!(ask(&others).await, Code::ClaimLost);
        assert_eq!(ask("").await, Code::ClaimLost);
        let queued = create(&scoped, new_run("nightly")).await.unwrap().run.id;
        let refused = scoped
            .runs()
            .subcommand_call(queued, &claim, "archive")
            .await;
        assert_eq!(code(refused), Code::ClaimLost);
        // Only the holder learns the names.
        let refused = scoped.runs().subcommand_call(run, &others, "none").await;
        assert_eq!(code(refused), Code::ClaimLost);
        fixture
            .clock
            .advance(Duration::from_secs(with_subcommands().lease_seconds.into()));
        assert_eq!(ask(&claim).await, Code::ClaimLost, "the lease is over");
    }
}

#[tokio::test]
async fn what_is_out_of_reach_is_absent() {
    for fixture in engines().await {
        let scoped = publisher(&fixture).await;
        let (run, claim) = claimed(&scoped, "nightly").await;
        let stranger = house(&fixture, "other", &["nightly"]).await;
        for (who, run) in [
            (&stranger, run),
            (&limited(&scoped, "bare"), run),
            (&scoped, RunId::from_uuid(Uuid::nil())),
        ] {
            let refused = who.runs().subcommand_call(run, &claim, "archive").await;
            assert_eq!(code(refused), Code::NotFound);
        }
        let reached = limited(&scoped, "nightly");
        assert!(
            reached
                .runs()
                .subcommand_call(run, &claim, "archive")
                .await
                .is_ok()
        );
    }
}

#[tokio::test]
async fn during_a_rotation_the_newest_bearer_goes_and_every_secret_signs() {
    for fixture in engines().await {
        let scoped = publisher(&fixture).await;
        let (run, claim) = claimed(&scoped, "nightly").await;
        let before = scoped
            .runs()
            .subcommand_call(run, &claim, "notify")
            .await
            .unwrap();
        fixture.clock.advance(Duration::from_secs(1));
        for kind in [
            CredentialKind::SubcommandBearer,
            CredentialKind::WebhookSigning,
        ] {
            let overlap = Duration::from_secs(10);
            scoped
                .credentials()
                .rotate_all(&context(), kind, overlap, NewCredential::default(), |_| {
                    no_content()
                })
                .await
                .unwrap();
        }
        let during = scoped
            .runs()
            .subcommand_call(run, &claim, "notify")
            .await
            .unwrap();
        let text = |secret: &SecretString| secret.expose_secret().to_owned();
        assert_ne!(
            during.bearer.as_ref().map(text),
            before.bearer.as_ref().map(text)
        );
        assert_eq!(during.signing.len(), 2);
        assert_eq!(text(&during.signing[1]), text(&before.signing[0]));
        fixture.clock.advance(Duration::from_secs(10));
        let after = scoped
            .runs()
            .subcommand_call(run, &claim, "notify")
            .await
            .unwrap();
        assert_eq!(after.signing.len(), 1);
        assert_eq!(text(&after.signing[0]), text(&during.signing[0]));
    }
}

#[tokio::test]
async fn a_call_stands_in_the_timeline() {
    for fixture in engines().await {
        let scoped = publisher(&fixture).await;
        let (run, _) = claimed(&scoped, "nightly").await;
        let mut call = CallRecord {
            id: CallId::generate(fixture.store.now()),
            name: "archive",
            attempt: 1,
            status_code: Some(404),
            error: None,
            latency_ms: 41,
        };
        scoped
            .runs()
            .record_call(&context(), run, &call)
            .await
            .unwrap();
        (call.status_code, call.error) = (None, Some("timeout"));
        scoped
            .runs()
            .record_call(&context(), run, &call)
            .await
            .unwrap();
        let page = PageRequest {
            limit: 50,
            after: None,
        };
        let timeline = scoped.runs().timeline(run, page).await.unwrap().items;
        let calls: Vec<_> = timeline
            .iter()
            .filter(|entry| entry.kind == TimelineEntryKind::Subcommand)
            .filter_map(|entry| entry.data.as_ref().map(JsonText::to_tree))
            .collect();
        let expected = |status: Option<u16>, error: Option<&str>| {
            json!({
                "id": call.id.to_string(), "name": "archive", "attempt": 1,
                "status_code": status, "error": error, "latency_ms": 41,
            })
        };
        assert_eq!(
            calls,
            [expected(Some(404), None), expected(None, Some("timeout"))]
        );
        let stranger = house(&fixture, "other", &[]).await;
        stranger
            .runs()
            .record_call(&context(), run, &call)
            .await
            .unwrap();
        let after = scoped.runs().timeline(run, page).await.unwrap().items;
        assert_eq!(after.len(), timeline.len(), "a stranger adds nothing");
    }
}
