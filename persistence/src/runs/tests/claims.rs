//! Claims, on both engines.

use secrecy::SecretString;

use super::*;

#[tokio::test]
async fn claims_go_by_priority_then_time_then_identifier() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let now = mine.store.now();
        let mut expected = Vec::new();
        for (priority, wait) in [(5, 0), (0, 2), (9, 0), (0, 1), (5, 0)] {
            let not_before = Some(now.plus(Duration::from_secs(wait)));
            let new = NewRun {
                priority,
                not_before,
                ..new_run("nightly")
            };
            expected.push(create(&mine, new).await.unwrap().run);
        }
        let late = NewRun {
            priority: 0,
            not_before: Some(now.plus(Duration::from_secs(11))),
            ..new_run("nightly")
        };
        create(&mine, late).await.unwrap();
        expected.sort_by_key(|run| (run.priority, run.not_before, run.id));
        fixture.clock.advance(Duration::from_secs(10));
        let mut taken = Vec::new();
        for max in [2, 0, 100] {
            let some = claim(&mine, max).await;
            let tokens: BTreeSet<String> = some
                .iter()
                .map(|one| one.token.expose_secret().to_owned())
                .collect();
            assert_eq!(tokens.len(), some.len());
            for one in &some {
                let hash = TokenHash::of_secret(&one.token);
                batch::check_claim(&stored(&mine, one.run.id).await, &hash, now).unwrap();
            }
            taken.extend(some.into_iter().map(|one| one.run.id));
        }
        let expected: Vec<RunId> = expected.into_iter().map(|run| run.id).collect();
        assert_eq!(taken, expected);
    }
}

async fn stored(scoped: &Scoped, id: RunId) -> runs::Model {
    let found = runs::Entity::find_by_id((scoped.scope.uuid(), id.uuid()));
    found.one(scoped.store.read()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_two_claims_take_one_run() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        for _ in 0..24 {
            create(&mine, new_run("nightly")).await.unwrap();
        }
        let mut tasks = JoinSet::new();
        for _ in 0..8 {
            let mine = mine.clone();
            tasks.spawn(async move { claim(&mine, 3).await });
        }
        let mut taken: Vec<RunId> = tasks
            .join_all()
            .await
            .into_iter()
            .flatten()
            .map(|one| one.run.id)
            .collect();
        // Under contention a claim may skip rows and return fewer.
        taken.extend(claim(&mine, 100).await.into_iter().map(|one| one.run.id));
        assert_eq!(taken.len(), 24);
        assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), 24);
    }
}

#[tokio::test]
async fn a_limited_token_reaches_its_pipelines_only() {
    for fixture in engines().await {
        let all = house(&fixture, "a", &["mine", "other"]).await;
        let some = limited(&all, &["mine"]);
        let some_runs = some.runs();
        let foreign = create(&all, new_run("other")).await.unwrap().run;
        let own = create(&some, new_run("mine")).await.unwrap().run;
        assert_eq!(code(create(&some, new_run("other")).await), Code::NotFound);
        assert_eq!(code(some_runs.run(foreign.id).await), Code::NotFound);
        assert_eq!(code(cancel(&some, foreign.id).await), Code::NotFound);
        assert_eq!(code(some_runs.pipeline("other").await), Code::NotFound);
        let third = put(&some, "third", definition()).await;
        assert_eq!(code(third), Code::NotFound);
        assert_eq!(code(delete(&some, "other").await), Code::NotFound);
        let names = some_runs.pipelines(PAGE).await.unwrap().items;
        assert!(names.iter().map(|one| one.slug.as_str()).eq(["mine"]));
        let seen = some_runs.runs(&RunFilter::default(), PAGE).await.unwrap();
        assert_eq!(seen.items, std::slice::from_ref(&own));
        let other = RunFilter {
            pipeline: Some("other".into()),
            ..RunFilter::default()
        };
        assert!(some_runs.runs(&other, PAGE).await.unwrap().items.is_empty());
        let (some_events, all_events) = (some.webhooks(), all.webhooks());
        let (seen, told) = (
            some_events.events(None, PAGE),
            all_events.events(None, PAGE),
        );
        let (seen, told) = (seen.await.unwrap().items, told.await.unwrap().items);
        assert_eq!((seen.len(), told.len()), (1, 2));
        for event in told {
            let about_own = event.body.contains(&own.id.to_string());
            let read = some_events.event(event.id).await;
            assert_eq!(read.is_ok(), about_own);
            assert_eq!(seen[0].id == event.id, about_own);
        }

        let asked = [slug("other")];
        assert!(
            some_runs
                .claim_runs(&context(), Some(&asked), 9, at_once())
                .await
                .unwrap()
                .is_empty()
        );
        let both = [slug("other"), slug("mine")];
        let taken = some_runs
            .claim_runs(&context(), Some(&both), 9, at_once())
            .await
            .unwrap();
        assert!(taken.iter().map(|one| one.run.id).eq([own.id]));
        let left = all
            .runs()
            .claim_runs(&context(), Some(&asked), 9, at_once())
            .await
            .unwrap();
        let proof = left[0].token.expose_secret();
        assert_eq!(
            code(complete(&some, foreign.id, proof).await),
            Code::NotFound
        );
        complete(&all, foreign.id, proof).await.unwrap();
    }
}

#[tokio::test]
async fn another_publisher_sees_and_changes_nothing() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        let theirs = house(&fixture, "b", &["other"]).await;
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        assert!(claim(&theirs, 9).await.is_empty());
        let token = claim(&mine, 1).await.remove(0).token;
        assert_eq!(code(theirs.runs().run(run.id).await), Code::NotFound);
        assert_eq!(code(cancel(&theirs, run.id).await), Code::NotFound);
        let stolen = complete(&theirs, run.id, token.expose_secret()).await;
        assert_eq!(code(stolen), Code::NotFound);
        assert_eq!(
            code(theirs.runs().pipeline("nightly").await),
            Code::NotFound
        );
        assert_eq!(code(delete(&theirs, "nightly").await), Code::NotFound);
        assert_eq!(
            code(create(&theirs, new_run("nightly")).await),
            Code::NotFound
        );
        assert!(
            theirs
                .runs()
                .runs(&RunFilter::default(), PAGE)
                .await
                .unwrap()
                .items
                .is_empty()
        );
        let event = mine
            .webhooks()
            .events(None, PAGE)
            .await
            .unwrap()
            .items
            .remove(0);
        assert_eq!(
            code(theirs.webhooks().event(event.id).await),
            Code::NotFound
        );
        complete(&mine, run.id, token.expose_secret())
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn lists_narrow_and_page() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly", "hourly"]).await;
        let mut ids = Vec::new();
        for pipeline in ["nightly", "hourly", "nightly", "nightly"] {
            ids.push(create(&mine, new_run(pipeline)).await.unwrap().run.id);
            fixture.clock.advance(Duration::from_millis(10));
        }
        cancel(&mine, ids[2]).await.unwrap();
        let since = mine.store.now().minus(Duration::from_millis(30));
        let until = mine.store.now().minus(Duration::from_millis(10));
        let cases = [
            (RunFilter::default(), vec![3, 2, 1, 0]),
            (
                RunFilter {
                    pipeline: Some("nightly".into()),
                    ..RunFilter::default()
                },
                vec![3, 2, 0],
            ),
            (
                RunFilter {
                    status: Some(RunStatus::Cancelled),
                    ..RunFilter::default()
                },
                vec![2],
            ),
            (
                RunFilter {
                    since: Some(since),
                    ..RunFilter::default()
                },
                vec![3, 2, 1],
            ),
            (
                RunFilter {
                    until: Some(until),
                    ..RunFilter::default()
                },
                vec![2, 1, 0],
            ),
            (
                RunFilter {
                    pipeline: Some("%".into()),
                    ..RunFilter::default()
                },
                vec![],
            ),
        ];
        for (filter, expected) in cases {
            let mut seen = Vec::new();
            let mut page = PageRequest {
                limit: 2,
                after: None,
            };
            loop {
                let part = mine.runs().runs(&filter, page).await.unwrap();
                assert!(part.items.len() <= 2);
                seen.extend(part.items.into_iter().map(|run| run.id));
                let Some(next) = part.next else { break };
                page.after = Some(next);
            }
            let expected: Vec<RunId> = expected.into_iter().map(|at: usize| ids[at]).collect();
            assert_eq!(seen, expected, "{filter:?}");
        }
    }
}

fn waiting_with(token: &SecretString) -> WaitOptions {
    WaitOptions {
        wait: Duration::from_secs(20),
        gone: CancellationToken::new(),
        presented: Presented::Token(TokenHash::of_secret(token)),
    }
}

/// A publisher's handle and its runner token.
async fn staffed(fixture: &Fixture, pipelines: &[&str]) -> (Scoped, SecretString) {
    let made = fixture.publisher("staffed").await;
    let scope = Scope::of_row(made.publisher.id.uuid(), None);
    let scoped = fixture.store.scoped(&scope);
    for name in pipelines {
        put(&scoped, name, definition()).await.unwrap();
    }
    (scoped, made.runner.text)
}

#[tokio::test]
async fn a_claim_waits_for_the_run_that_comes() {
    for fixture in engines().await {
        let (mine, bearer) = staffed(&fixture, &["nightly", "weekly"]).await;
        let (waiting, options) = (mine.clone(), waiting_with(&bearer));
        let weekly = [slug("weekly")];
        let waiter = tokio::spawn(async move {
            let by = context();
            waiting
                .runs()
                .claim_runs(&by, Some(&weekly), 5, options)
                .await
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        create(&mine, new_run("nightly")).await.unwrap();
        let wanted = create(&mine, new_run("weekly")).await.unwrap().run;
        let taken = waiter.await.unwrap().unwrap();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].run.id, wanted.id);
        assert_eq!(
            mine.runs().run(wanted.id).await.unwrap().status,
            RunStatus::Running
        );
    }
}

/// A waiting claim of one run. It is queued when this returns, since the test has one thread.
async fn waiting(mine: &Scoped, pipelines: &[&str], bearer: &SecretString) -> Waiter {
    let (mine, options) = (mine.clone(), waiting_with(bearer));
    let pipelines: Vec<Slug> = pipelines.iter().map(|name| slug(name)).collect();
    let waiter = tokio::spawn(async move {
        let by = context();
        let pipelines = Some(pipelines.as_slice()).filter(|some| !some.is_empty());
        mine.runs().claim_runs(&by, pipelines, 1, options).await
    });
    // Until the lane has tried it.
    tokio::time::sleep(Duration::from_millis(20)).await;
    waiter
}

type Waiter = tokio::task::JoinHandle<Result<Vec<Claimed>>>;

#[tokio::test]
async fn those_that_wait_are_served_in_the_order_in_which_they_came() {
    for fixture in engines().await {
        let (mine, bearer) = staffed(&fixture, &["nightly", "weekly"]).await;
        let mut waiters = Vec::new();
        for wanted in [
            &["weekly"][..],
            &["nightly", "weekly"],
            &[],
            &["nightly"],
            &["nightly"],
        ] {
            waiters.push(waiting(&mine, wanted, &bearer).await);
        }
        // A run of one of these pipelines goes to the first claim that wants it.
        for (pipeline, expected) in [
            ("nightly", 1),
            ("nightly", 1),
            ("weekly", 0),
            ("nightly", 0),
            ("nightly", 0),
        ] {
            let run = create(&mine, new_run(pipeline)).await.unwrap().run;
            let served = waiters.remove(expected).await.unwrap().unwrap();
            assert_eq!(served[0].run.id, run.id);
        }
    }
}

#[tokio::test]
async fn runs_that_others_made_ready_reach_those_that_wait() {
    for fixture in engines().await {
        let (mine, bearer) = staffed(&fixture, &["nightly"]).await;
        // With an idempotency key, in a transaction of its own.
        let first = waiting(&mine, &["nightly"], &bearer).await;
        let keyed = Context {
            idempotency: Some(crate::IdempotencyKey {
                operation: "create_run".into(),
                key: "k".into(),
                request_hash: [7; 32],
            }),
            ..context()
        };
        let version = mine.runs().likely_version(&slug("nightly")).await.unwrap();
        let (new, validated) = (Arc::new(new_run("nightly")), Some(taken_by(&version)));
        let runs = mine.runs();
        let made = runs.create_run(&keyed, new, validated, |_| no_content());
        made.await.unwrap();
        assert_eq!(first.await.unwrap().unwrap().len(), 1);
        // By time.
        let later = NewRun {
            not_before: Some(mine.store.now().plus(Duration::from_secs(5))),
            ..new_run("nightly")
        };
        create(&mine, later).await.unwrap();
        let second = waiting(&mine, &[], &bearer).await;
        fixture.clock.advance(Duration::from_secs(6));
        let taken = second.await.unwrap().unwrap();
        assert_eq!(taken.len(), 1);
        // By capacity that became free.
        put(
            &mine,
            "narrow",
            Definition {
                max_concurrent_runs: Some(1),
                ..definition()
            },
        )
        .await
        .unwrap();
        create(&mine, new_run("narrow")).await.unwrap();
        let held = claim(&mine, 1).await.remove(0);
        create(&mine, new_run("narrow")).await.unwrap();
        let third = waiting(&mine, &["narrow", "nightly"], &bearer).await;
        assert!(!third.is_finished());
        complete(&mine, held.run.id, held.token.expose_secret())
            .await
            .unwrap();
        assert_eq!(third.await.unwrap().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_publishers_waiting_claims_have_a_bound_of_their_own() {
    for fixture in engines().await {
        let (mine, bearer) = staffed(&fixture, &["nightly"]).await;
        let mut waiters = JoinSet::new();
        for _ in 0..domain::limits::WAITING_CLAIMS {
            let (mine, options) = (mine.clone(), waiting_with(&bearer));
            waiters
                .spawn(async move { mine.runs().claim_runs(&context(), None, 1, options).await });
        }
        let lane = fixture.store.state::<Lane>();
        while lane.waiting_of(mine.scope.uuid()) < domain::limits::WAITING_CLAIMS {
            tokio::task::yield_now().await;
        }
        let refused = mine
            .runs()
            .claim_runs(&context(), None, 1, waiting_with(&bearer))
            .await;
        assert_eq!(code(refused), Code::ShareExceeded);
        assert!(
            claim(&mine, 1).await.is_empty(),
            "who does not wait may ask"
        );
        let other = house(&fixture, "other", &["nightly"]).await;
        let options = WaitOptions {
            wait: Duration::from_millis(10),
            ..waiting_with(&bearer)
        };
        let waited = other.runs().claim_runs(&context(), None, 1, options).await;
        assert!(waited.unwrap().is_empty());
        // Each run goes to one claim, which makes capacity free for the next. Which claim gets it
        // depends on which began to wait first.
        for _ in 0..3 {
            create(&mine, new_run("nightly")).await.unwrap();
        }
        for _ in 0..3 {
            let served = waiters.join_next().await.unwrap();
            assert_eq!(served.unwrap().unwrap().len(), 1);
        }
        let options = WaitOptions {
            wait: Duration::from_millis(10),
            ..waiting_with(&bearer)
        };
        let waited = mine.runs().claim_runs(&context(), None, 1, options).await;
        assert!(waited.unwrap().is_empty());
        fixture.store.stop_waiters();
        while let Some(waiter) = waiters.join_next().await {
            assert!(waiter.unwrap().unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn nobody_who_left_gets_a_run() {
    for fixture in engines().await {
        let (mine, token) = staffed(&fixture, &["nightly"]).await;
        let (waiting, options) = (mine.clone(), waiting_with(&token));
        let gone = options.gone.clone();
        let waiter = tokio::spawn(async move {
            waiting
                .runs()
                .claim_runs(&context(), None, 1, options)
                .await
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        gone.cancel();
        let run = create(&mine, new_run("nightly")).await.unwrap().run;
        assert_eq!(claim(&mine, 1).await[0].run.id, run.id);
        assert!(waiter.await.unwrap().is_err());
    }
}

#[tokio::test]
async fn a_claim_of_a_dead_token_ends_with_nothing() {
    for fixture in engines().await {
        let (mine, _) = staffed(&fixture, &["nightly"]).await;
        let (waiting, options) = (
            mine.clone(),
            waiting_with(&"stm_runner_no".to_owned().into()),
        );
        let waiter = tokio::spawn(async move {
            waiting
                .runs()
                .claim_runs(&context(), None, 1, options)
                .await
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        create(&mine, new_run("nightly")).await.unwrap();
        assert_eq!(code(waiter.await.unwrap()), Code::Unauthenticated);
        assert_eq!(claim(&mine, 1).await.len(), 1);
    }
}

#[tokio::test]
async fn pipelines_take_turns() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["deep", "shallow"]).await;
        for _ in 0..20 {
            create(&mine, new_run("deep")).await.unwrap();
        }
        for _ in 0..2 {
            create(&mine, new_run("shallow")).await.unwrap();
        }
        let urgent = NewRun {
            priority: 0,
            ..new_run("deep")
        };
        create(&mine, urgent).await.unwrap();
        let mut order = Vec::new();
        for _ in 0..5 {
            order.extend(
                claim(&mine, 1)
                    .await
                    .into_iter()
                    .map(|one| one.run.pipeline),
            );
        }
        assert_eq!(order, ["deep", "shallow", "deep", "shallow", "deep"]);
    }
}

#[tokio::test]
async fn a_paused_pipeline_hands_out_nothing() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &["nightly"]).await;
        create(&mine, new_run("nightly")).await.unwrap();
        let by = context();
        let runs = mine.runs();
        let pause = |paused| runs.pause_pipeline(&by, "nightly", paused, |_| no_content());
        pause(true).await.unwrap();
        pause(true).await.unwrap();
        assert!(claim(&mine, 1).await.is_empty());
        let at_once = NewRun {
            claim: true,
            ..new_run("nightly")
        };
        assert_eq!(code(create(&mine, at_once).await), Code::PipelinePaused);
        create(&mine, new_run("nightly")).await.unwrap();
        pause(false).await.unwrap();
        assert_eq!(claim(&mine, 9).await.len(), 2);
        assert_eq!(
            logged(&mine).await,
            ["pipeline.created", "pipeline.paused", "pipeline.resumed"]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_runs_are_held_than_may_be() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &[]).await;
        let limited = Definition {
            max_concurrent_runs: Some(3),
            ..definition()
        };
        put(&mine, "narrow", limited).await.unwrap();
        for _ in 0..8 {
            create(&mine, new_run("narrow")).await.unwrap();
        }
        let mut tasks = JoinSet::new();
        for _ in 0..6 {
            let mine = mine.clone();
            tasks.spawn(async move { claim(&mine, 2).await });
        }
        let taken: Vec<Claimed> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(taken.len(), 3);
        let at_once = NewRun {
            claim: true,
            ..new_run("narrow")
        };
        assert_eq!(code(create(&mine, at_once).await), Code::ConcurrencyLimit);
        let proof = taken[0].token.expose_secret();
        complete(&mine, taken[0].run.id, proof).await.unwrap();
        assert_eq!(claim(&mine, 9).await.len(), 1);
    }
}

#[tokio::test]
async fn a_run_does_not_outlive_its_time_in_the_queue() {
    for fixture in engines().await {
        let mine = house(&fixture, "a", &[]).await;
        let mortal = Definition {
            time_to_live_seconds: Some(60),
            ..definition()
        };
        put(&mine, "mortal", mortal).await.unwrap();
        let run = create(&mine, new_run("mortal")).await.unwrap().run;
        let held = create(&mine, new_run("mortal")).await.unwrap().run;
        fixture.clock.advance(Duration::from_secs(59));
        let taken = claim(&mine, 1).await;
        fixture.clock.advance(Duration::from_secs(1));
        assert!(claim(&mine, 1).await.is_empty());
        assert_eq!(
            fixture.store.system().runs().expire_runs(9).await.unwrap(),
            (0, 1)
        );
        let ended = [run.id, held.id]
            .into_iter()
            .find(|id| *id != taken[0].run.id)
            .unwrap();
        assert_eq!(
            mine.runs().run(ended).await.unwrap().status,
            RunStatus::Expired
        );
        let proof = taken[0].token.expose_secret();
        complete(&mine, taken[0].run.id, proof).await.unwrap();
    }
}
