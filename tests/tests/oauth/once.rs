//! Once however many ask, and in time.

use std::{collections::HashSet, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tests::{
    Answer, AnswerMode, Publisher, Server, TokenEndpoint, User, World, keeping_client,
    on_both_stores, on_postgres, on_sqlite, tools,
};
use tokio::{sync::Barrier, time::Instant};

use crate::resolving::resolve;

use super::{BY_CLOCK, BY_HAND, HOUR, hold, lent_token, read, refresh};

on_both_stores!(
    many_who_refresh_at_once_are_one_request,
    a_token_that_has_ended_is_replaced_before_it_is_lent,
    who_asks_just_before_the_end_waits_for_the_next_token,
    the_job_refreshes_ahead_of_time,
    a_restart_never_refreshes_all_at_once,
    while_the_endpoint_is_down_the_old_token_is_lent,
    who_hangs_holds_nobody_else_up,
);
on_sqlite!(a_refresh_that_a_crash_cut_off_is_made_again_at_once);
on_postgres!(
    a_store_that_fails_at_a_tokens_end_is_no_exhausted_train,
    processes_share_one_refresh,
    a_thousand_who_resolve_while_a_token_ends_get_one_refresh,
);

const LIMIT: Duration = Duration::from_secs(30);

async fn many_who_refresh_at_once_are_one_request(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let account = hold(&publisher, &endpoint.account("one", HOUR)).await;
    endpoint.delay(Duration::from_secs(3));
    let answers = all_at_once(&[&publisher], &account, 40).await;
    let mut ends = HashSet::new();
    for answer in &answers {
        assert_eq!(answer.status, 200, "{answer}");
        ends.insert(answer.text("/expires_at"));
    }
    assert_eq!((endpoint.asked().len(), ends.len()), (1, 1));

    endpoint.answer_with(AnswerMode::Saying(503, "{}".into()));
    for answer in all_at_once(&[&publisher], &account, 40).await {
        assert_eq!(answer["code"], "refresh_failed", "{answer}");
    }
    assert_eq!(endpoint.asked().len(), 2);
}

async fn all_at_once(publishers: &[&Publisher], account: &str, count: usize) -> Vec<Answer> {
    let asked: Vec<_> = (0..count)
        .map(|at| {
            let publisher = publishers[at % publishers.len()].clone();
            let account = account.to_owned();
            tokio::spawn(async move { refresh(&publisher, &account).await })
        })
        .collect();
    let mut answers = Vec::new();
    for one in asked {
        answers.push(one.await.unwrap());
    }
    answers
}

/// A train that lends one account, and its gateway.
async fn lender(publisher: &Publisher, account: &Value) -> (String, User) {
    let account = hold(publisher, account).await;
    publisher.train("chat", &[&account]).await;
    (account, publisher.train_token("chat").await.1)
}

async fn a_token_that_has_ended_is_replaced_before_it_is_lent(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let body = endpoint.account("one", Duration::from_secs(1));
    let (account, gateway) = lender(&publisher, &body).await;
    tokio::time::sleep(Duration::from_millis(2100)).await;
    endpoint.delay(Duration::from_secs(2));
    let asked: Vec<_> = (0..60)
        .map(|_| {
            let gateway = gateway.clone();
            tokio::spawn(async move { resolve(&gateway, &json!({})).await })
        })
        .collect();
    let mut tokens = HashSet::new();
    for one in asked {
        let answer = one.await.unwrap();
        assert_eq!(answer.status, 200, "{answer}");
        tokens.insert(lent_token(&answer));
    }
    assert_eq!((endpoint.asked().len(), tokens.len()), (1, 1));
    assert!(tokens.iter().all(|token| endpoint.left(token).is_some()));
    let account = read(&publisher, &account).await;
    assert!(account["refreshed_at"].is_string(), "{account}");
}

async fn who_asks_just_before_the_end_waits_for_the_next_token(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let life = Duration::from_secs(5);
    let (_, gateway) = lender(&publisher, &endpoint.account("one", life)).await;
    endpoint.delay(Duration::from_secs(4));
    // Near the end, yet not so near that it is over before the question comes.
    tokio::time::sleep(Duration::from_millis(4300)).await;
    let answer = resolve(&gateway, &json!({})).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert!(endpoint.left(&lent_token(&answer)).unwrap() > HOUR / 2);
    assert_eq!(endpoint.asked().len(), 1);
}

/// What is kept of the train lends on, but its only token can't be looked after.
async fn a_store_that_fails_at_a_tokens_end_is_no_exhausted_train(world: &World) {
    let site = world.site().await;
    site.tolerate("store");
    let server = site.start(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    // Within two seconds of its end a token waits for the next one; the rest is for a machine that
    // takes its time to take the table away.
    let life = Duration::from_secs(8);
    let (_, gateway) = lender(&publisher, &endpoint.account("one", life)).await;
    let end = Instant::now() + life;
    endpoint.answer_with(AnswerMode::Saying(503, "{}".into()));
    let mut connection = site.database.as_ref().unwrap().connect().await;
    let mut run = async |sql: &'static str| {
        let run = sqlx::raw_sql(sql).execute(&mut connection).await;
        run.unwrap();
    };
    run(ACCOUNTS_BEHIND_A_FUNCTION).await;
    // The server polls the log of changes each 250 ms and drops what it kept of the publishers in
    // it. A poll that meets the train's own creation ends a try; the next one keeps it anew.
    loop {
        run(ACCOUNTS_BACK).await;
        let lent = resolve(&gateway, &json!({})).await;
        assert_eq!(lent.status, 200, "{lent}");
        run(ACCOUNTS_AWAY).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        if resolve(&gateway, &json!({})).await.status == 200 {
            break;
        }
    }
    let mut answers = Vec::new();
    while Instant::now() < end + Duration::from_secs(2) {
        let answer = resolve(&gateway, &json!({})).await;
        answers.push((answer.status, answer["code"].clone()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A server that could not poll for 750 ms trusts nothing that it kept, until the next poll: a
    // 503 between is right, a 429 (no token left) never is.
    let lent = (200, Value::Null);
    let away = (503, json!("store_unavailable"));
    assert_eq!(answers.last(), Some(&away));
    assert!(answers.contains(&lent), "{answers:?}");
    answers.retain(|answer| *answer != lent && *answer != away);
    assert_eq!(answers, []);
}

/// Who reads accounts asks a function first.
const ACCOUNTS_BEHIND_A_FUNCTION: &str = "
    CREATE FUNCTION there() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RETURN true; END $$;
    ALTER TABLE accounts RENAME TO accounts_themselves;
    CREATE VIEW accounts AS SELECT * FROM accounts_themselves WHERE there();";

/// Who reads accounts hears that the database can't be reached now.
const ACCOUNTS_AWAY: &str = "
    CREATE OR REPLACE FUNCTION there() RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '57P03'; END $$;";

const ACCOUNTS_BACK: &str = "
    CREATE OR REPLACE FUNCTION there() RETURNS boolean LANGUAGE plpgsql AS
        $$ BEGIN RETURN true; END $$;";

async fn the_job_refreshes_ahead_of_time(world: &World) {
    let server = world.start_with(&BY_CLOCK).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let body = endpoint.account("one", Duration::from_secs(20));
    let first = body["oauth"]["access_token"].as_str().unwrap().to_owned();
    let (account, gateway) = lender(&publisher, &body).await;
    tools::eventually("it is refreshed", LIMIT, async || {
        let account = read(&publisher, &account).await;
        account["refreshed_at"].is_string().then_some(())
    })
    .await;
    assert!(endpoint.left(&first).is_some(), "it came too late");
    let lent = lent_token(&resolve(&gateway, &json!({})).await);
    assert!(endpoint.left(&lent).unwrap() > HOUR / 2);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(endpoint.asked().len(), 1);
    let jobs = server.operator().get("/v1/jobs").expect(200).await;
    let jobs = jobs["items"].as_array().unwrap().clone();
    assert!(
        jobs.iter()
            .any(|job| job["name"] == "accounts" && job["error"].is_null())
    );
    let metrics = server.metrics().await;
    let counted = "stationmaster_account_refreshes_total{outcome=\"refreshed\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}

async fn a_restart_never_refreshes_all_at_once(world: &World) {
    const COUNT: usize = 40;
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    for number in 0..COUNT {
        // Some have ended, as if no process had run for a while.
        let life = if number % 2 == 0 {
            HOUR
        } else {
            Duration::ZERO
        };
        let body = endpoint.account(&format!("number {number}"), life);
        hold(&publisher, &body).await;
    }
    let site = server.site();
    let spread = "(SELECT DISTINCT refresh_due_at FROM accounts \
                  WHERE expires_at > refresh_due_at) spread";
    assert!(
        site.count(spread).await > 15,
        "they would all be due at once"
    );
    endpoint.delay(Duration::from_millis(200));
    let _server = server.restart(&BY_CLOCK).await;
    tools::eventually("those that ended are refreshed", LIMIT, async || {
        (endpoint.asked().len() >= COUNT / 2).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(endpoint.asked().len(), COUNT / 2);
    let most = endpoint.most_under_way();
    assert!((1..=8).contains(&most), "{most} at a time");
    assert!(!endpoint.saw_reuse());
}

async fn while_the_endpoint_is_down_the_old_token_is_lent(world: &World) {
    const LIFE: Duration = Duration::from_secs(16);
    let server = world.start_with(&BY_CLOCK).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    endpoint.answer_with(AnswerMode::Saying(503, "{}".into()));
    let body = endpoint.account("one", LIFE);
    let token = body["oauth"]["access_token"].as_str().unwrap().to_owned();
    let (account, gateway) = lender(&publisher, &body).await;
    // The endpoint is down for nearly all of the token's life, from before it is due.
    let mut count = 0;
    while endpoint.left(&token).is_some_and(|left| left > LIFE / 8) {
        let answer = resolve(&gateway, &json!({})).await;
        assert_eq!(answer.status, 200, "{answer}");
        assert_eq!(lent_token(&answer), token);
        count += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(count > 20, "only {count}");
    let asked = endpoint.asked().len();
    assert!((1..=6).contains(&asked), "{asked} tries");
    let state = read(&publisher, &account).await;
    assert_eq!(state["health"]["status"], "ok", "{state}");

    endpoint.answer_with(AnswerMode::Granting);
    tools::eventually("it is refreshed", LIMIT, async || {
        let answer = resolve(&gateway, &json!({})).await;
        (answer.status == 200 && lent_token(&answer) != token).then_some(())
    })
    .await;
    assert!(!endpoint.saw_reuse());
}

async fn who_hangs_holds_nobody_else_up(world: &World) {
    let server = world.start_with(&BY_CLOCK).await;
    let (slow, quick) = (
        server.publisher("slow").await,
        server.publisher("quick").await,
    );
    let tarpit = TokenEndpoint::start(&server).await;
    tarpit.delay(Duration::from_mins(10));
    for number in 0..20 {
        let body = tarpit.account(&format!("number {number}"), Duration::ZERO);
        hold(&slow, &body).await;
    }
    tools::eventually("they hang", LIMIT, async || {
        (tarpit.most_under_way() > 0).then_some(())
    })
    .await;
    let endpoint = TokenEndpoint::start(&server).await;
    let account = hold(&quick, &endpoint.account("one", Duration::ZERO)).await;
    let began = Instant::now();
    assert_eq!(refresh(&quick, &account).await.status, 200);
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "{:?}",
        began.elapsed()
    );
    assert!(tarpit.most_under_way() <= 8);
}

async fn a_refresh_that_a_crash_cut_off_is_made_again_at_once(world: &World) {
    let server = world.start_with(&BY_HAND).await;
    let publisher = server.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&server).await;
    let account = hold(&publisher, &endpoint.account("one", HOUR)).await;
    endpoint.delay(Duration::from_secs(30));
    let path = format!("/v1/accounts/{account}/refresh");
    let asking = tokio::spawn(publisher.admin.post(&path).send());
    tools::eventually("the endpoint is asked", LIMIT, async || {
        (endpoint.most_under_way() > 0).then_some(())
    })
    .await;
    server.kill().await;
    assert!(asking.await.unwrap().is_err());
    endpoint.delay(Duration::ZERO);
    let _server = server.site().start(&BY_HAND).await;
    let began = Instant::now();
    let answer = refresh(&publisher, &account).await;
    assert_eq!(answer.status, 200, "{answer}");
    assert!(
        began.elapsed() < Duration::from_secs(20),
        "it waited for a dead lease"
    );
}

async fn two(world: &World) -> (Server, Server) {
    let site = world.site().await;
    let one = site.start(&BY_HAND).await;
    let two = site.start_beside(&BY_HAND).await;
    (one, two)
}

async fn processes_share_one_refresh(world: &World) {
    let (one, two) = two(world).await;
    let publisher = one.publisher("acme").await;
    let there = Publisher {
        admin: two.user(publisher.admin.token()),
        ..publisher.clone()
    };
    let endpoint = TokenEndpoint::start(&one).await;
    let account = hold(&publisher, &endpoint.account("one", HOUR)).await;
    endpoint.delay(Duration::from_secs(3));
    for answer in all_at_once(&[&publisher, &there], &account, 40).await {
        assert_eq!(answer.status, 200, "{answer}");
    }
    assert_eq!(endpoint.asked().len(), 1);
    // Whoever waited for another process hears of its failure, too.
    endpoint.answer_with(AnswerMode::Saying(503, "{}".into()));
    for answer in all_at_once(&[&publisher, &there], &account, 40).await {
        assert_eq!(answer["code"], "refresh_failed", "{answer}");
    }
    assert_eq!(endpoint.asked().len(), 2);
    assert!(!endpoint.saw_reuse());
}

async fn a_thousand_who_resolve_while_a_token_ends_get_one_refresh(world: &World) {
    const CALLERS: usize = 1000;
    let (one, two) = two(world).await;
    let publisher = one.publisher("acme").await;
    let endpoint = TokenEndpoint::start(&one).await;
    let life = Duration::from_secs(15);
    let body = endpoint.account("one", life);
    let token = body["oauth"]["access_token"].as_str().unwrap().to_owned();
    let (_, gateway) = lender(&publisher, &body).await;
    endpoint.delay(Duration::from_millis(500));
    let client = keeping_client();
    let bearer = format!("Bearer {}", gateway.token());
    let urls = [one.url(), two.url()].map(|url| format!("{url}/v1/resolve"));
    let start = Arc::new(Barrier::new(CALLERS));
    // They begin long before its last fifth, in which it is replaced, and go on until it would
    // have ended.
    let ends = Instant::now() + endpoint.left(&token).unwrap();
    let begin = ends - Duration::from_secs(8);
    tokio::time::sleep_until(begin).await;
    let callers: Vec<_> = (0..CALLERS)
        .map(|at| {
            let request = client.post(&urls[at % 2]).header("authorization", &bearer);
            let start = Arc::clone(&start);
            tokio::spawn(async move {
                start.wait().await;
                let mut answers = Vec::new();
                while answers.len() < 3 || Instant::now() < ends + Duration::from_secs(1) {
                    let request = request.try_clone().unwrap();
                    let answer = request.send().await.unwrap();
                    let status = answer.status().as_u16();
                    let body: Value =
                        serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
                    answers.push((std::time::Instant::now(), status, body));
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                answers
            })
        })
        .collect();
    let (mut count, mut tokens) = (0, HashSet::new());
    for caller in callers {
        for (at, status, body) in caller.await.unwrap() {
            assert_eq!(status, 200, "{body}");
            let value = body["headers"]["authorization"].as_str().unwrap();
            let lent = value.strip_prefix("Bearer ").unwrap();
            // It lived when the answer had come.
            let end = endpoint.end(lent).unwrap();
            assert!(at < end, "a token that ended {:?} ago", at - end);
            tokens.insert(lent.to_owned());
            count += 1;
        }
    }
    assert!(count >= 3 * CALLERS);
    assert_eq!(endpoint.asked().len(), 1, "for {count} answers");
    assert_eq!(tokens.len(), 2, "the old one and the new one");
}
