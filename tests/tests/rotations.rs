//! Rotations of the same kind at once: in the end one credential is live, and everybody can tell
//! which.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tests::{Answer, Publisher, Server, World, on_both_stores};

use crate::{
    audit::verified,
    tokens::{is_live, mint},
};

on_both_stores!(
    two_at_once_leave_one_live,
    many_at_once_leave_one_live,
    a_rotation_and_a_revocation_at_once_agree,
);

const ME: &str = "/v1/publishers/me";
const TOKENS: &str = "/v1/publishers/me/tokens";
const KINDS: [&str; 4] = ["admin", "runner", "webhook_signing", "subcommand_bearer"];

/// Rotates a kind through each of these tokens at once, in this order, without an overlap.
pub async fn rotate_at_once(servers: &[&Server], kind: &str, tokens: &[&str]) -> Vec<Answer> {
    let path = format!("{TOKENS}/{kind}/rotate");
    let asked: Vec<_> = tokens
        .iter()
        .enumerate()
        .map(|(at, token)| {
            let user = servers[at % servers.len()].user(token);
            let call = user.post(&path).json(&json!({"overlap_seconds": 0}));
            tokio::spawn(call.answer())
        })
        .collect();
    let mut answers = Vec::new();
    for answer in asked {
        answers.push(answer.await.unwrap());
    }
    answers
}

/// What must hold after rotations at once.
pub async fn one_is_live(server: &Server, publisher: &Publisher, kind: &str, all: &[Answer]) {
    let (done, refused): (Vec<_>, Vec<_>) = all.iter().partition(|answer| answer.status == 200);
    assert!(!done.is_empty(), "none came through: {all:?}");
    for answer in refused {
        // Its own token was rotated away before it was looked at.
        assert_eq!(answer.status, 401, "{answer}");
        assert_eq!(kind, "admin", "{answer}");
    }
    let mut open = Vec::new();
    if matches!(kind, "admin" | "runner") {
        for answer in &done {
            let user = server.user(&answer.text("/token"));
            let me = user.get(ME).answer().await;
            assert!(matches!(me.status, 200 | 401), "{me}");
            if me.status == 200 {
                open.push((answer.text("/id"), user));
            }
        }
        assert_eq!(open.len(), 1, "{} of {} are live", open.len(), done.len());
    }
    let admin = match (kind, open.first()) {
        ("admin", Some((_, user))) => user.clone(),
        _ => publisher.admin.clone(),
    };
    let list = admin.all(&format!("{TOKENS}?kind={kind}")).await;
    let live: Vec<&Value> = list.iter().filter(|one| is_live(one)).collect();
    assert_eq!(live.len(), 1, "{kind}: {list:?}");
    let live = live[0]["id"].as_str().unwrap();
    assert!(open.iter().all(|(id, _)| id == live), "{kind}: {list:?}");

    let mut replaced = BTreeSet::new();
    let mut made = BTreeSet::new();
    for answer in &done {
        made.insert(answer.text("/id"));
        for one in answer["replaced"].as_array().unwrap() {
            let id = one["id"].as_str().unwrap().to_owned();
            assert!(replaced.insert(id), "replaced twice: {answer}");
        }
    }
    assert!(!replaced.contains(live), "{kind}: {live} was replaced");
    assert!(made.remove(live), "{kind}: nobody was told of {live}");
    assert!(made.is_subset(&replaced), "{made:?} of {replaced:?}");

    let seen = Publisher {
        admin,
        ..publisher.clone()
    };
    verified(&seen, true).await;
    let rotated = seen.actions().await;
    let rotated = rotated.iter().filter(|action| action.ends_with(".rotated"));
    assert_eq!(rotated.count(), done.len(), "each is in the log");
}

async fn two_at_once_leave_one_live(world: &World) {
    let server = world.start().await;
    for kind in KINDS {
        for turned in [false, true] {
            let publisher = server
                .publisher(&format!("p-{}", tests::tools::word()))
                .await;
            let (_, other) = mint(&publisher.admin, "admin", &json!({"name": "other"})).await;
            let mut tokens = [publisher.admin.token(), other.as_str()];
            if turned {
                tokens.reverse();
            }
            let answers = rotate_at_once(&[&server], kind, &tokens).await;
            one_is_live(&server, &publisher, kind, &answers).await;
        }
    }
}

async fn many_at_once_leave_one_live(world: &World) {
    let server = world.start().await;
    for kind in KINDS {
        let publisher = server
            .publisher(&format!("p-{}", tests::tools::word()))
            .await;
        let tokens = [publisher.admin.token(); 10];
        let answers = rotate_at_once(&[&server], kind, &tokens).await;
        one_is_live(&server, &publisher, kind, &answers).await;
    }
}

async fn a_rotation_and_a_revocation_at_once_agree(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    for turned in [false, true, false, true] {
        let (id, text) = mint(&publisher.admin, "runner", &json!({"name": "ci"})).await;
        let path = format!("{TOKENS}/runner/{id}");
        let rotate = publisher.admin.post(&format!("{path}/rotate"));
        let rotate = rotate.json(&json!({"overlap_seconds": 0}));
        let revoke = publisher.admin.delete(&path);
        let calls = if turned {
            [revoke, rotate]
        } else {
            [rotate, revoke]
        };
        let asked = calls.map(|call| tokio::spawn(call.answer()));
        let mut answers = Vec::new();
        for answer in asked {
            answers.push(answer.await.unwrap());
        }
        let won: Vec<&Answer> = answers.iter().filter(|one| one.status < 300).collect();
        assert_eq!(won.len(), 1, "one of them is too late: {answers:?}");
        let lost = answers.iter().find(|one| one.status >= 300).unwrap();
        assert_eq!(lost["code"], "not_found", "{lost}");
        let user = server.user(&text);
        user.get(ME).refused(401, "unauthenticated").await;
        if won[0].status == 200 {
            let user = server.user(&won[0].text("/token"));
            user.get(ME).expect(200).await;
        }
    }
    verified(&publisher, true).await;
}
