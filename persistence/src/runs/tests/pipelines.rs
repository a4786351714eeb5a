//! Pipelines: their versions, their quota, and what keeps one from being deleted.

use super::*;

#[tokio::test]
async fn a_pipeline_has_a_new_version_only_when_it_changes() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &[]).await;
        let (first, created) = put(&mine, "nightly", definition()).await.unwrap();
        assert!(created);
        assert_eq!((first.version, first.revision), (1, 1));
        let (same, created) = put(&mine, "nightly", definition()).await.unwrap();
        assert!(!created);
        assert_eq!(same, first);
        let changed = Definition {
            lease_seconds: 90,
            ..definition()
        };
        let (second, created) = put(&mine, "nightly", changed.clone()).await.unwrap();
        assert!(!created);
        assert_eq!((second.version, second.revision), (2, 2));
        assert_eq!(*second.definition, changed);
        assert_eq!(mine.runs().pipeline("nightly").await.unwrap(), second);
        assert_eq!(mine.runs().pipelines(PAGE).await.unwrap().items, [second]);
        assert_eq!(
            logged(&mine).await,
            ["pipeline.created", "pipeline.updated"]
        );

        for (name, seen) in [
            ("nightly", Expected::Revision(1)),
            ("other", Expected::Revision(1)),
            ("other", Expected::Any),
        ] {
            let (by, seen) = (context(), Some(seen));
            let runs = mine.runs();
            let stale = runs.put_pipeline(&by, slug(name), definition(), seen, |_| no_content());
            assert_eq!(code(stale.await), Code::PreconditionFailed);
        }
    }
}

#[tokio::test]
async fn a_run_keeps_the_version_that_it_was_created_with() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        put(
            &mine,
            "nightly",
            Definition {
                lease_seconds: 90,
                ..definition()
            },
        )
        .await
        .unwrap();
        let claimed = claim(&mine, 1).await.remove(0);
        assert_eq!((claimed.run.id, claimed.run.pipeline_version), (run.id, 1));
        assert_eq!(
            claimed.expires_at.since(mine.store.now()),
            Duration::from_mins(1)
        );
    }
}

#[tokio::test]
async fn the_quota_of_pipelines_holds() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["one"]).await;
        let patch = PublisherPatch {
            quotas: QuotasPatch {
                pipelines: Some(1),
                ..QuotasPatch::default()
            },
            ..PublisherPatch::default()
        };
        let system = fixture.store.system();
        let publisher = mine.scope.publisher();
        let by = context();
        let publishers = system.publishers();
        let set = publishers.update_publisher(&by, publisher, patch, None, |_| no_content());
        set.await.unwrap();
        assert_eq!(
            code(put(&mine, "two", definition()).await),
            Code::QuotaExceeded
        );
        put(
            &mine,
            "one",
            Definition {
                max_attempts: 9,
                ..definition()
            },
        )
        .await
        .unwrap();
        delete(&mine, "one").await.unwrap();
        put(&mine, "two", definition()).await.unwrap();
    }
}

#[tokio::test]
async fn a_pipeline_goes_only_without_unfinished_runs_and_frees_its_slug() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        assert_eq!(code(delete(&mine, "nightly").await), Code::PipelineInUse);
        cancel(&mine, run.id).await.unwrap();
        delete(&mine, "nightly").await.unwrap();
        assert_eq!(code(delete(&mine, "nightly").await), Code::NotFound);
        assert_eq!(code(mine.runs().pipeline("nightly").await), Code::NotFound);
        assert_eq!(
            code(create(&mine, new_run("nightly")).await),
            Code::NotFound
        );
        assert_eq!(
            mine.runs().run(run.id).await.unwrap().status,
            RunStatus::Cancelled
        );
        let (again, created) = put(&mine, "nightly", definition()).await.unwrap();
        assert!(created);
        assert_eq!(again.version, 1);
        assert_eq!(
            logged(&mine).await,
            ["pipeline.created", "pipeline.deleted", "pipeline.created"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_deleted_while_runs_are_created_leaves_none_behind() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &[]).await;
        for round in 0..15 {
            let name = format!("p-{round}");
            put(&mine, &name, definition()).await.unwrap();
            let mut tasks = JoinSet::new();
            for _ in 0..3 {
                let (mine, name) = (mine.clone(), name.clone());
                tasks.spawn(async move { create(&mine, new_run(&name)).await.is_ok() });
            }
            let deleted = delete(&mine, &name).await.is_ok();
            let created = tasks.join_all().await.contains(&true);
            assert!(!(deleted && created), "round {round}");
        }
    }
}
