//! Random histories of runs, compared with a model that only knows the rules.

use domain::run::{RunActor, RunChange, TRANSITIONS, TimelineEntryKind, Tries};

use super::*;

/// A run in the model.
#[derive(Clone, Debug)]
struct ModelRun {
    id: RunId,
    status: RunStatus,
    attempt: i32,
    failures: u32,
    cancel_requested: bool,
    claim: Option<(String, Timestamp)>,
    /// The expected entries of its timeline.
    kinds: Vec<TimelineEntryKind>,
}

impl ModelRun {
    fn tries(&self) -> Tries {
        Tries {
            failures: self.failures,
            max_attempts: 2,
            cancel_requested: self.cancel_requested,
            expires_at: None,
        }
    }

    /// Makes a change that the table must allow to this actor.
    fn step(&mut self, change: RunChange, actor: RunActor) {
        let found = TRANSITIONS
            .iter()
            .find(|(from, by, who, _)| (*from, *by, *who) == (self.status, change, actor));
        self.status = found.expect("a change that the table lists").3;
        if change != RunChange::Heartbeat {
            self.kinds.push(TimelineEntryKind::of(change));
        }
        if matches!(change, RunChange::Retry | RunChange::LoseLease) {
            self.failures += 1;
        }
        if self.status != RunStatus::Running {
            self.claim = None;
        }
    }
}

/// Reproducible pseudo-random numbers (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// The claim in the model, or one that does not exist.
fn shown(run: &ModelRun, good: bool) -> String {
    let held = run.claim.as_ref().filter(|_| good);
    held.map_or_else(|| "stm_claim_wrong".to_owned(), |(token, _)| token.clone())
}

async fn act(mine: &Scoped, run: &mut ModelRun, dice: &mut Dice) {
    let (now, good) = (mine.store.now(), dice.roll(5) > 0);
    let token = shown(run, good);
    let holds = good && run.claim.as_ref().is_some_and(|(_, until)| *until > now);
    let by = context();
    let (change, result) = match dice.roll(5) {
        0 => (
            RunChange::Complete,
            complete(mine, run.id, &token).await.map(drop),
        ),
        1 => {
            let retryable = dice.roll(2) == 0;
            let failure = (json!({ "message": "no" }).into(), retryable);
            let runs = mine.runs();
            let result = runs.fail_run(&by, run.id, &token, failure, |_| no_content());
            (
                run.tries().at_failure(retryable, now),
                result.await.map(drop),
            )
        }
        2 => {
            let runs = mine.runs();
            let result = runs.release_run(&by, run.id, &token, |_| no_content());
            (run.tries().at_release(), result.await.map(drop))
        }
        3 => {
            let result = mine.runs().heartbeat_run(&by, run.id, &token, None).await;
            if let Ok(run_now) = &result {
                let until = run_now.lease_expires_at.unwrap();
                assert_eq!(until, now.plus(Duration::from_mins(1)));
                run.claim = Some((token.clone(), until));
            }
            (RunChange::Heartbeat, result.map(drop))
        }
        _ => {
            let result = cancel(mine, run.id).await.map(drop);
            match run.status {
                RunStatus::Queued => run.step(RunChange::Cancel, RunActor::Publisher),
                RunStatus::Running if run.cancel_requested => {}
                RunStatus::Running => run.step(RunChange::RequestCancel, RunActor::Publisher),
                _ => return assert_eq!(code(result), Code::RunFinished),
            }
            run.cancel_requested = true;
            return result.unwrap();
        }
    };
    if holds {
        result.unwrap();
        run.step(change, RunActor::Holder);
    } else {
        assert_eq!(code(result), Code::ClaimLost);
    }
}

/// Applies the changes that are due by time.
fn lose_leases(known: &mut [ModelRun], now: Timestamp) {
    for run in known {
        if run.claim.as_ref().is_some_and(|(_, until)| *until <= now) {
            run.step(run.tries().at_lease_end(now), RunActor::Clock);
        }
    }
}

async fn take(mine: &Scoped, known: &mut [ModelRun], max: u32) {
    lose_leases(known, mine.store.now());
    for taken in claim(mine, max).await {
        let run = known.iter_mut().find(|run| run.id == taken.run.id).unwrap();
        run.step(RunChange::Claim, RunActor::Runner);
        run.attempt += 1;
        assert_eq!(taken.run.attempt, run.attempt);
        run.claim = Some((taken.token.expose_secret().to_owned(), taken.expires_at));
    }
}

async fn compare(mine: &Scoped, known: &[ModelRun]) {
    for run in known {
        let stored = mine.runs().run(run.id).await.unwrap();
        assert_eq!(stored.status, run.status, "{run:?}");
        assert_eq!(stored.cancel_requested, run.cancel_requested, "{run:?}");
        let page = PageRequest {
            limit: 200,
            after: None,
        };
        let entries = mine.runs().timeline(run.id, page).await.unwrap().items;
        let kinds: Vec<TimelineEntryKind> = entries.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, run.kinds, "{run:?}");
        assert!(entries.is_sorted_by(|a, b| a.seq < b.seq));
        let last = kinds.iter().filter(|kind| kind.is_last()).count();
        assert_eq!(last, usize::from(run.status.is_final()), "{run:?}");
    }
}

#[tokio::test]
async fn every_history_is_one_that_the_rules_allow() {
    for (seed, fixture) in engines().await.into_iter().enumerate() {
        let mine = house(&fixture, "a", &["nightly", "weekly"]).await;
        let mut dice = Dice(0x5eed + seed as u64);
        let mut known: Vec<ModelRun> = Vec::new();
        for _ in 0..400 {
            match dice.roll(10) {
                0 | 1 => {
                    let pipeline = ["nightly", "weekly"][usize::from(dice.roll(2) == 0)];
                    let run = create(&mine, new_run(pipeline)).await.unwrap().run;
                    known.push(ModelRun {
                        id: run.id,
                        status: RunStatus::Queued,
                        attempt: 0,
                        failures: 0,
                        cancel_requested: false,
                        claim: None,
                        kinds: vec![TimelineEntryKind::Created],
                    });
                }
                2 | 3 => {
                    let max = 1 + u32::try_from(dice.roll(3)).unwrap();
                    take(&mine, &mut known, max).await;
                }
                4 => {
                    fixture.clock.advance(Duration::from_secs(dice.roll(50)));
                    fixture
                        .store
                        .system()
                        .runs()
                        .expire_runs(1000)
                        .await
                        .unwrap();
                    lose_leases(&mut known, mine.store.now());
                }
                _ if known.is_empty() => {}
                _ => {
                    let at = dice.roll(known.len() as u64);
                    act(&mine, &mut known[usize::try_from(at).unwrap()], &mut dice).await;
                }
            }
        }
        compare(&mine, &known).await;
        let ended = known.iter().filter(|run| run.status.is_final()).count();
        assert!(ended > 10, "the dice were too kind: {ended}");
        let told = told(&mine).await.len();
        let due: usize = known
            .iter()
            .flat_map(|run| &run.kinds)
            .filter(|m| {
                m.is_last() || matches!(m, TimelineEntryKind::Created | TimelineEntryKind::Claimed)
            })
            .count();
        assert_eq!(told, due.min(200));
    }
}
