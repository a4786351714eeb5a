//! Quotas: each holds, also against many at once, and leaves nothing half done.

use serde_json::{Value, json};
use tests::{Call, Publisher, User, World, new_account, on_both_stores};

use crate::audit::verified;

on_both_stores!(
    each_quota_holds_and_leaves_nothing_half_done,
    creation_at_once_stays_within_a_quota,
    a_quota_below_what_is_there_takes_nothing_away,
    the_operator_too_keeps_to_a_quota,
    an_overlap_is_no_way_around_a_quota,
    what_is_stored_has_a_quota_and_what_is_under_way_goes_on,
);

/// Something that a quota limits.
pub struct Limited {
    pub quota: &'static str,
    /// Where those that there are stand.
    pub list: &'static str,
    /// Makes one more; the number tells it from others.
    pub create: fn(&User, usize) -> Call,
    /// Of how many a publisher is made.
    pub at_first: usize,
    /// Makes what they belong to, if that is not the publisher itself.
    pub before: Option<fn(&User) -> Call>,
}

impl Limited {
    /// Makes what they belong to.
    pub async fn prepare(&self, user: &User) {
        if let Some(before) = self.before {
            before(user).expect(201).await;
        }
    }
}

fn pipeline(user: &User, number: usize) -> Call {
    user.put(&format!("/v1/pipelines/p{number}"))
        .json(&json!({"display_name": "One more"}))
}

fn endpoint(user: &User, number: usize) -> Call {
    let url = format!("http://127.0.0.1:9/{number}");
    user.post("/v1/webhook-endpoints")
        .json(&json!({"url": url, "event_types": ["own.none"]}))
}

fn account(user: &User, number: usize) -> Call {
    let body = new_account(&format!("account {number}"));
    user.post("/v1/accounts").json(&body)
}

fn train(user: &User, number: usize) -> Call {
    let body = json!({"slug": format!("train-{number}")});
    user.post("/v1/trains").json(&body)
}

fn token_of(user: &User, train: &str, number: usize) -> Call {
    user.post(&format!("/v1/trains/{train}/tokens"))
        .json(&json!({"name": format!("number {number}")}))
}

fn train_named(user: &User, slug: &str) -> Call {
    user.post("/v1/trains").json(&json!({"slug": slug}))
}

fn credential(user: &User, kind: &str, number: usize) -> Call {
    user.post(&format!("/v1/publishers/me/tokens/{kind}"))
        .json(&json!({"name": format!("number {number}")}))
}

const CREDENTIALS: &str = "credentials_per_kind";

/// Every quota that there is, credentials once for each kind.
pub const ALL: &[Limited] = &[
    Limited {
        quota: "pipelines",
        list: "/v1/pipelines",
        create: pipeline,
        at_first: 0,
        before: None,
    },
    Limited {
        quota: "webhook_endpoints",
        list: "/v1/webhook-endpoints",
        create: endpoint,
        at_first: 0,
        before: None,
    },
    Limited {
        quota: "accounts",
        list: "/v1/accounts",
        create: account,
        at_first: 0,
        before: None,
    },
    Limited {
        quota: "trains",
        list: "/v1/trains",
        create: train,
        at_first: 0,
        before: None,
    },
    Limited {
        quota: "train_tokens",
        list: "/v1/trains/chat/tokens",
        create: |user, number| token_of(user, "chat", number),
        at_first: 0,
        before: Some(|user| train_named(user, "chat")),
    },
    Limited {
        quota: "train_tokens_per_train",
        list: "/v1/trains/other/tokens",
        create: |user, number| token_of(user, "other", number),
        at_first: 0,
        before: Some(|user| train_named(user, "other")),
    },
    Limited {
        quota: CREDENTIALS,
        list: "/v1/publishers/me/tokens?kind=admin",
        create: |user, number| credential(user, "admin", number),
        at_first: 1,
        before: None,
    },
    Limited {
        quota: CREDENTIALS,
        list: "/v1/publishers/me/tokens?kind=runner",
        create: |user, number| credential(user, "runner", number),
        at_first: 1,
        before: None,
    },
    Limited {
        quota: CREDENTIALS,
        list: "/v1/publishers/me/tokens?kind=webhook_signing",
        create: |user, number| credential(user, "webhook_signing", number),
        at_first: 1,
        before: None,
    },
    Limited {
        quota: CREDENTIALS,
        list: "/v1/publishers/me/tokens?kind=subcommand_bearer",
        create: |user, number| credential(user, "subcommand_bearer", number),
        at_first: 1,
        before: None,
    },
];

/// Lets the operator set quotas.
pub async fn allow(operator: &User, publisher: &Publisher, quotas: &Value) {
    let path = format!("/v1/publishers/{}", publisher.id);
    let body = json!({"quotas": quotas});
    let answer = operator.patch(&path).json(&body).expect(200).await;
    for (name, value) in quotas.as_object().unwrap() {
        assert_eq!(&answer["quotas"][name], value, "{answer}");
    }
}

/// What is there, what counts, and what the log says of it.
async fn state(publisher: &Publisher, one: &Limited) -> Value {
    let list: Vec<Value> = publisher
        .admin
        .all(one.list)
        .await
        .into_iter()
        .map(|mut item| {
            item.as_object_mut().unwrap().remove("last_used_at");
            item
        })
        .collect();
    let usage = publisher.admin.get("/v1/publishers/me/usage");
    let mut usage = usage.expect(200).await.json().clone();
    // A kept refusal is stored, too.
    usage.as_object_mut().unwrap().remove("storage_bytes");
    json!([list, usage, publisher.actions().await])
}

async fn each_quota_holds_and_leaves_nothing_half_done(world: &World) {
    let server = world.start().await;
    let operator = server.operator();
    let usage = server.publisher("first").await;
    let usage = usage.admin.get("/v1/publishers/me/usage").expect(200).await;
    let known: Vec<&String> = usage["quotas"].as_object().unwrap().keys().collect();
    for name in known.iter().filter(|name| **name != "storage_bytes") {
        let tried = ALL.iter().any(|one| one.quota == name.as_str());
        assert!(tried, "no story tells of the quota {name}");
    }
    for (at, one) in ALL.iter().enumerate() {
        let publisher = server.publisher(&format!("acme-{at}")).await;
        let admin = &publisher.admin;
        one.prepare(admin).await;
        allow(&operator, &publisher, &json!({one.quota: 3})).await;
        for number in one.at_first..3 {
            (one.create)(admin, number).expect(201).await;
        }
        let full = state(&publisher, one).await;
        let refused = (one.create)(admin, 3).refused(409, "quota_exceeded").await;
        assert!(refused.text("/detail").contains('3'), "{refused}");
        if one.quota != "pipelines" {
            // The refusal is kept for a repeat like any other answer.
            let call = (one.create)(admin, 4).key("same");
            for _ in 0..2 {
                call.clone().refused(409, "quota_exceeded").await;
            }
        }
        assert_eq!(state(&publisher, one).await, full, "{}", one.list);

        allow(&operator, &publisher, &json!({one.quota: 4})).await;
        (one.create)(admin, 3).expect(201).await;
        (one.create)(admin, 4).refused(409, "quota_exceeded").await;
        assert_eq!(admin.all(one.list).await.len(), 4, "{}", one.list);
        verified(&publisher, true).await;
    }
}

/// Asks for twelve at once, through all of these; answers how many were made.
pub async fn twelve_at_once(users: &[User], one: &Limited) -> usize {
    let asked: Vec<_> = (0..12)
        .map(|number| {
            let user = &users[number % users.len()];
            tokio::spawn((one.create)(user, 100 + number).answer())
        })
        .collect();
    let mut made = 0;
    for answer in asked {
        let answer = answer.await.unwrap();
        if answer.status == 201 {
            made += 1;
        } else {
            assert_eq!(answer.status, 409, "{answer}");
            assert_eq!(answer["code"], "quota_exceeded", "{answer}");
        }
    }
    made
}

async fn creation_at_once_stays_within_a_quota(world: &World) {
    let server = world.start().await;
    for (at, one) in ALL.iter().enumerate() {
        let publisher = server.publisher(&format!("acme-{at}")).await;
        one.prepare(&publisher.admin).await;
        allow(&server.operator(), &publisher, &json!({one.quota: 4})).await;
        let made = twelve_at_once(std::slice::from_ref(&publisher.admin), one).await;
        assert_eq!(made + one.at_first, 4, "{}", one.list);
        assert_eq!(publisher.admin.all(one.list).await.len(), 4, "{}", one.list);
        verified(&publisher, true).await;
    }
}

async fn a_quota_below_what_is_there_takes_nothing_away(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    for one in ALL {
        one.prepare(admin).await;
        for number in one.at_first..3 {
            (one.create)(admin, number).expect(201).await;
        }
    }
    let few: Value = ALL.iter().map(|one| (one.quota, json!(1))).collect();
    allow(&server.operator(), &publisher, &few).await;
    for one in ALL {
        // Among the trains are those that others of this list belong to.
        let others = ALL.iter().filter(|other| other.before.is_some()).count();
        let there = 3 + if one.list == "/v1/trains" { others } else { 0 };
        assert_eq!(admin.all(one.list).await.len(), there, "{}", one.list);
        (one.create)(admin, 9).refused(409, "quota_exceeded").await;
    }
    let usage = admin.get("/v1/publishers/me/usage").expect(200).await;
    assert_eq!(usage["pipelines"], 3, "{usage}");
    assert_eq!(usage["quotas"]["pipelines"], 1, "{usage}");

    // What is there works as ever: it changes, it is used, it is rotated.
    let body = json!({"display_name": "Another name"});
    let put = admin.put("/v1/pipelines/p1").json(&body);
    put.expect(200).await;
    publisher.finished_run("p2").await;
    let endpoints = admin.all("/v1/webhook-endpoints").await;
    let path = |item: &Value| format!("/v1/webhook-endpoints/{}", item["id"].as_str().unwrap());
    let off = admin.patch(&path(&endpoints[0]));
    off.json(&json!({"enabled": false})).expect(200).await;
    let rotate = admin.post("/v1/publishers/me/tokens/runner/rotate");
    let rotate = rotate.json(&json!({"overlap_seconds": 60}));
    rotate.expect(200).await;
    publisher.finished_run("p2").await;

    // There is room again only below the quota.
    for number in 0..3 {
        pipeline(admin, 9).refused(409, "quota_exceeded").await;
        let path = format!("/v1/pipelines/p{number}");
        admin.delete(&path).expect(204).await;
    }
    pipeline(admin, 9).expect(201).await;
    for item in &endpoints {
        endpoint(admin, 9).refused(409, "quota_exceeded").await;
        admin.delete(&path(item)).expect(204).await;
    }
    endpoint(admin, 9).expect(201).await;
}

async fn the_operator_too_keeps_to_a_quota(world: &World) {
    let server = world.start().await;
    let operator = server.operator();
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    allow(&operator, &publisher, &json!({CREDENTIALS: 1})).await;
    let mint = |publisher: &Publisher| {
        let path = format!("/v1/publishers/{}/tokens/admin", publisher.id);
        operator.post(&path).json(&json!({}))
    };
    mint(&publisher).refused(409, "quota_exceeded").await;
    mint(&other).expect(201).await;
    // It may raise the quota first, which is on record.
    allow(&operator, &publisher, &json!({CREDENTIALS: 2})).await;
    mint(&publisher).expect(201).await;
    let actions = publisher.actions().await;
    let set = actions.iter().filter(|one| *one == "publisher.quota_set");
    assert_eq!(set.count(), 2, "{actions:?}");
}

async fn an_overlap_is_no_way_around_a_quota(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    allow(&server.operator(), &publisher, &json!({CREDENTIALS: 2})).await;
    for kind in ["runner", "webhook_signing"] {
        let tokens = "/v1/publishers/me/tokens";
        let list = format!("{tokens}?kind={kind}");
        let rotate = |overlap: u64| {
            let call = publisher.admin.post(&format!("{tokens}/{kind}/rotate"));
            call.json(&json!({"overlap_seconds": overlap}))
        };
        for _ in 0..2 {
            rotate(3600).expect(200).await;
        }
        let before = publisher.admin.all(&list).await;
        rotate(3600).refused(409, "quota_exceeded").await;
        let newest = before[0]["id"].as_str().unwrap();
        let one = format!("{tokens}/{kind}/{newest}/rotate");
        let one = publisher.admin.post(&one);
        one.json(&json!({"overlap_seconds": 1}))
            .refused(409, "quota_exceeded")
            .await;
        assert_eq!(publisher.admin.all(&list).await, before);
        // A leak can always be answered.
        rotate(0).expect(200).await;
        assert_eq!(publisher.admin.all(&list).await.len(), 1);
    }
}

async fn what_is_stored_has_a_quota_and_what_is_under_way_goes_on(world: &World) {
    let server = world.start().await;
    let (operator, publisher) = (server.operator(), server.publisher("acme").await);
    let admin = &publisher.admin;
    pipeline(admin, 0).expect(201).await;
    let run = json!({"input": {"text": "x".repeat(5000)}});
    let runs = "/v1/pipelines/p0/runs";
    admin.post(runs).json(&run).expect(201).await;
    let (id, claim) = publisher.claimed_run("p0").await;
    let usage = || admin.get("/v1/publishers/me/usage");
    let used = usage().expect(200).await;
    assert!(used["storage_bytes"].as_u64().unwrap() > 5000, "{used}");
    allow(&operator, &publisher, &json!({"storage_bytes": 5000})).await;
    let event = json!({"type": "acme.done", "data": {}});
    for grow in [
        admin.post(runs).json(&run),
        admin.post("/v1/events").json(&event),
    ] {
        let refused = grow.refused(409, "quota_exceeded").await;
        assert!(refused.text("/detail").contains("5000 bytes"), "{refused}");
    }
    publisher.complete(&id, &claim).await;
    admin.get("/v1/runs").expect(200).await;
    assert_eq!(usage().expect(200).await["quotas"]["storage_bytes"], 5000);
    allow(&operator, &publisher, &json!({"storage_bytes": 100_000})).await;
    admin.post("/v1/events").json(&event).expect(202).await;
}
