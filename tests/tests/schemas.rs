//! Schemas of publishers: whatever one registers and hands in, the others are answered.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tests::{Publisher, World, on_both_stores};

on_both_stores!(
    a_schema_that_would_run_away_is_refused_at_its_place,
    neighbours_are_answered_while_costly_inputs_are_checked,
    checks_that_wait_leave_their_publisher_its_requests,
    a_run_is_judged_by_the_version_that_it_keeps,
);

/// Each link looks at the next one twice: once for `anyOf`, once for `unevaluatedProperties`.
fn chain(links: usize) -> Value {
    let mut defs = Map::new();
    for at in 0..links {
        let next = json!({"$ref": format!("#/$defs/a{}", at + 1)});
        let link = json!({"anyOf": [next], "unevaluatedProperties": {"type": "integer"}});
        defs.insert(format!("a{at}"), link);
    }
    defs.insert(format!("a{links}"), json!({"type": "object"}));
    json!({"$ref": "#/$defs/a0", "$defs": defs})
}

fn with_input(schema: &Value) -> Value {
    json!({"display_name": "x", "input_schema": schema})
}

async fn a_schema_that_would_run_away_is_refused_at_its_place(world: &World) {
    let server = world.start().await;
    let acme = server.publisher("acme").await;
    for (schema, at) in [
        (chain(40), "/input_schema/$ref"),
        (
            json!({"items": {"pattern": "^[01]*1[01]{9000}$"}}),
            "/input_schema/items/pattern",
        ),
        (
            json!({"patternProperties": {r"(a)\1": true}}),
            r"/input_schema/patternProperties/(a)\1",
        ),
        (
            json!({"$ref": "#/const", "const": {"items": {"$dynamicRef": "#"}}}),
            "/input_schema/$ref",
        ),
    ] {
        let put = acme.admin.put("/v1/pipelines/p").json(&with_input(&schema));
        let refused = put.refused(422, "validation_failed").await;
        assert_eq!(refused.text("/errors/0/pointer"), at);
    }
    let described = json!({"schema": chain(40)});
    let put = acme
        .admin
        .put("/v1/event-types/order.paid")
        .json(&described);
    let refused = put.refused(422, "validation_failed").await;
    assert_eq!(refused.text("/errors/0/pointer"), "/schema/$ref");
    // A short chain costs little, and is obeyed.
    let put = acme
        .admin
        .put("/v1/pipelines/p")
        .json(&with_input(&chain(2)));
    put.expect(201).await;
    let run = |input: Value| {
        acme.runner
            .post("/v1/pipelines/p/runs")
            .json(&json!({ "input": input }))
    };
    run(json!({"a": 1})).expect(201).await;
    let refused = run(json!({"a": "b"}))
        .refused(422, "validation_failed")
        .await;
    assert!(refused.text("/errors/0/pointer").starts_with("/input"));
}

/// Takes a check that is more than a moment's work.
pub(crate) async fn costly(publisher: &Publisher) -> Value {
    let all: Vec<Value> = (0..190).map(|n| json!({"not": {"const": n}})).collect();
    let schema = json!({"items": {"allOf": all}});
    let put = publisher.admin.put("/v1/pipelines/costly");
    put.json(&with_input(&schema)).expect(201).await;
    json!({ "input": vec![-1; 2_000] })
}

async fn neighbours_are_answered_while_costly_inputs_are_checked(world: &World) {
    let server = world.start().await;
    let (acme, beta) = (
        server.publisher("acme").await,
        server.publisher("beta").await,
    );
    let body = costly(&acme).await;
    beta.pipeline("small").await;
    let attacks: Vec<_> = (0..6)
        .map(|_| {
            let (runner, body) = (acme.runner.clone(), body.clone());
            tokio::spawn(async move {
                let call = runner.post("/v1/pipelines/costly/runs").json(&body);
                call.answer().await.status
            })
        })
        .collect();
    let mut rounds = 0;
    while attacks.iter().any(|attack| !attack.is_finished()) || rounds == 0 {
        beta.admin.get("/v1/publishers/me").expect(200).await;
        beta.run("small").await;
        rounds += 1;
    }
    for attack in attacks {
        // Checked in its turn, or not in time.
        let status = attack.await.unwrap();
        assert!(status == 201 || status == 429, "{status}");
    }
    // What is more work than one check may be is refused at once.
    let larger = json!({ "input": vec![-1; 45_000] });
    let call = acme.runner.post("/v1/pipelines/costly/runs").json(&larger);
    let refused = call.refused(422, "validation_failed").await;
    assert_eq!(refused.text("/errors/0/code"), "too_large");
}

/// As many requests as a publisher may have at work wait for their checks, which come one after the
/// other; another one is answered while they do.
async fn checks_that_wait_leave_their_publisher_its_requests(world: &World) {
    const AT_WORK: usize = 128;
    let server = world.start().await;
    let acme = server.publisher("acme").await;
    costly(&acme).await;
    // So much that only a few are done within a second.
    let body = json!({ "input": vec![-1; 16_000] });
    // A machine may be so slow that checks are given up, after four seconds, before all have come.
    for _ in 0..5 {
        let waiting: Vec<_> = (0..AT_WORK + 40)
            .map(|_| {
                let call = acme.runner.post("/v1/pipelines/costly/runs").json(&body);
                tokio::spawn(async move {
                    let status = call.answer().await.status;
                    assert!([201, 429].contains(&status), "{status}");
                })
            })
            .collect();
        // All are on their way; each is at work or waits for its check when this one is.
        tokio::time::sleep(Duration::from_secs(1)).await;
        acme.admin.get("/v1/publishers/me").expect(200).await;
        let left = waiting.iter().filter(|one| !one.is_finished()).count();
        for one in waiting {
            one.await.unwrap();
        }
        if left >= AT_WORK {
            return;
        }
    }
    panic!("it waited for a place");
}

async fn a_run_is_judged_by_the_version_that_it_keeps(world: &World) {
    let server = world.start().await;
    let acme = server.publisher("acme").await;
    let put = |most: i64| {
        let schema = json!({"properties": {"n": {"maximum": most}}});
        acme.admin.put("/v1/pipelines/p").json(&with_input(&schema))
    };
    put(0).expect(201).await;
    let until = Instant::now() + Duration::from_secs(2);
    let changes = async {
        let mut at = 0;
        while Instant::now() < until {
            at += 1;
            put(at % 2 * 10).expect(200).await;
        }
        at
    };
    let runs = async {
        let mut seen = (0, 0);
        while Instant::now() < until {
            let call = acme.runner.post("/v1/pipelines/p/runs");
            let answer = call.json(&json!({"input": {"n": 5}})).answer().await;
            match answer.status {
                // Odd changes take it: versions 2, 4, 6, …
                201 => {
                    let version = answer.json()["pipeline_version"].as_i64().unwrap();
                    assert_eq!(version % 2, 0, "version {version} takes no more than 0");
                    seen.0 += 1;
                }
                422 => seen.1 += 1,
                status => assert_eq!(status, 503),
            }
        }
        seen
    };
    let (changes, seen) = tokio::join!(changes, runs);
    assert!(changes > 1 && seen.0 + seen.1 > 0, "{changes} {seen:?}");
}
