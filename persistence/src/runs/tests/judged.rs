//! Inputs are validated before a transaction, by the version that the run keeps.

use super::*;
use crate::IdempotencyKey;

#[tokio::test]
async fn a_judgement_by_another_version_creates_nothing() {
    for fixture in engines().await {
        let acme = house(&fixture, "acme", &["a"]).await;
        let first = acme.runs().likely_version(&slug("a")).await.unwrap();
        let strict = Definition {
            input_schema: Some(json!({ "type": "string" })),
            ..definition()
        };
        put(&acme, "a", strict).await.unwrap();
        let ask = |validated, key: Option<IdempotencyKey>| {
            let context = Context {
                idempotency: key,
                ..context()
            };
            let (acme, new) = (acme.clone(), Arc::new(new_run("a")));
            async move {
                let render = |_: &CreatedRun| no_content();
                acme.runs()
                    .create_run(&context, new, validated, render)
                    .await
            }
        };
        let key = || {
            Some(IdempotencyKey {
                operation: "create_run".into(),
                key: "k".into(),
                request_hash: [7; 32],
            })
        };
        for (validated, key) in [
            (None, None),
            (Some(taken_by(&first)), None),
            (Some(taken_by(&first)), key()),
        ] {
            let Err(StoreError::VersionChanged(now)) = ask(validated, key).await else {
                panic!("it was created")
            };
            assert_eq!((now.pipeline, now.version), (first.pipeline, 2));
        }
        assert!(
            acme.runs()
                .runs(&RunFilter::default(), PAGE)
                .await
                .unwrap()
                .items
                .is_empty()
        );
        let now = acme.runs().likely_version(&slug("a")).await.unwrap();
        let refused = ValidatedInput {
            result: Err(Code::ValidationFailed.into()),
            ..taken_by(&now)
        };
        assert_eq!(code(ask(Some(refused), None).await), Code::ValidationFailed);
        // The aborted transaction did not use up the key.
        ask(Some(taken_by(&now)), key()).await.unwrap();
    }
}
