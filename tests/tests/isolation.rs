//! The isolation proof: for every operation that the server publishes, nobody but the owner gets
//! at anything, and nobody can tell a stranger's thing from one that does not exist.
//!
//! The operations come from `GET /openapi.json`. One without a case in `cases.rs` fails the test.

mod cases;
mod people;
mod things;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use domain::permission::{Held, Permission, TokenKind};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};
use tests::{Answer, Call, Consumer, Server, User, World, fingerprint, on_both_stores, tools};

use cases::{Ask, Pair, Target};
use people::members_may_what_their_role_says;
use things::{Things, snapshot};

on_both_stores!(
    members_may_what_their_role_says,
    nobody_gets_at_anothers_things,
    nobody_rides_along_with_the_owner,
);

/// Operations that are looked at side by side: each waits for deliveries and for tokens to end.
const AT_ONCE: usize = 4;

/// Operations for which a stranger's thing and an absent one may be answered differently, and why
/// that tells nothing. This list may only shrink.
const EXCEPTIONS: [&str; 0] = [];

/// One operation of the contract.
struct Operation {
    id: String,
    method: String,
    path: String,
    /// `None` if it needs no credential.
    permission: Option<Permission>,
}

impl Operation {
    /// Every operation of a document.
    fn all(document: &Value) -> Vec<Self> {
        let mut all = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if matches!(method.as_str(), "parameters" | "summary" | "description") {
                    continue;
                }
                all.push(Self::new(path, method, operation));
            }
        }
        all
    }

    fn new(path: &str, method: &str, operation: &Value) -> Self {
        let id = operation["operationId"].as_str().unwrap();
        let named = operation["x-permission"].as_str();
        let permission = named.map(|name| Permission::parse(name).unwrap());
        let schemes = operation["security"].as_array().unwrap().iter();
        let schemes: BTreeSet<&str> = schemes
            .flat_map(|one| one.as_object().unwrap().keys())
            .map(String::as_str)
            // What goes with a session, and another header for a train's token.
            .filter(|scheme| !matches!(*scheme, "publisher" | "csrf_token" | "train_key"))
            .collect();
        let mut expected = BTreeSet::new();
        if let Some(permission) = permission {
            expected.extend(permission.holders().iter().map(|kind| kind.as_str()));
            if permission.people() != Held::ByNobody {
                expected.insert("session");
            }
        }
        assert_eq!(
            schemes, expected,
            "{id}: its security is not its permission's"
        );
        Self {
            id: id.to_owned(),
            method: method.to_uppercase(),
            path: path.to_owned(),
            permission,
        }
    }

    /// The kinds of token that hold its permission; none of a public one.
    fn holders(&self) -> &'static [TokenKind] {
        self.permission.map_or(&[], Permission::holders)
    }

    fn takes(&self, kind: TokenKind) -> bool {
        self.holders().contains(&kind)
    }

    fn only_reads(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD")
    }

    fn is_public(&self) -> bool {
        self.permission.is_none()
    }

    /// Whether it is for people alone, who are signed in or want to.
    fn is_for_people(&self) -> bool {
        self.path.starts_with("/v1/auth/") || (!self.is_public() && self.holders().is_empty())
    }

    /// Whether some of a publisher's own tokens, or of its trains', may.
    fn is_tenants(&self) -> bool {
        self.holders()
            .iter()
            .any(|kind| *kind != TokenKind::Bootstrap)
    }

    /// Of a publisher's users, or the operator, one who may.
    fn owner(&self, server: &Server, things: &Things) -> User {
        match self.holders().first() {
            Some(kind) => things.holder(server, *kind),
            None => server.anon(),
        }
    }

    fn call(&self, user: &User, ask: &Ask) -> Call {
        self.fill(user.call(&self.method, &ask.path), ask)
    }

    fn fill(&self, call: Call, ask: &Ask) -> Call {
        let mut call = call.header("x-request-id", "same");
        if let Some(body) = &ask.body {
            call = call.json(body);
        }
        if self.takes(TokenKind::Train) {
            // What is lent was sent before, by the account's owner.
            call = call.repeats_a_secret();
        }
        match &ask.claim {
            Some(claim) => call.claim(claim),
            None => call,
        }
    }
}

/// Whether a path is an instance of a template such as `/v1/runs/{id}`.
fn fits(template: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap();
    let (wanted, given): (Vec<_>, Vec<_>) =
        (template.split('/').collect(), path.split('/').collect());
    wanted.len() == given.len()
        && wanted
            .iter()
            .zip(&given)
            .all(|(wanted, given)| wanted.starts_with('{') || wanted == given)
}

async fn nobody_gets_at_anothers_things(world: &World) {
    let server = world.start().await;
    let document = server.anon().get("/openapi.json").expect(200).await;
    let mut operations = Operation::all(document.json());
    // Those of people alone have a test of their own.
    operations.retain(|operation| !operation.is_for_people());
    assert!(
        operations.len() > 30,
        "only {} operations",
        operations.len()
    );
    let consumer = Consumer::start().await;

    // The owner comes first: what follows must not be refused for another reason.
    let read = Arc::new(Things::make(&server, &consumer).await);
    // Reading leaves things as they are; what changes them has things of its own.
    let fresh = async |operation: &Operation| {
        if operation.only_reads() {
            Arc::clone(&read)
        } else {
            Arc::new(Things::make(&server, &consumer).await)
        }
    };
    let victims = stream::iter(&operations).map(async |operation| {
        let things = fresh(operation).await;
        let target = target_of(operation, &things);
        if operation.id == "resume_publisher" {
            things.suspend(&server).await;
        }
        let owner = operation.owner(&server, &things);
        let answer = operation
            .call(&owner, &target.probes[0].theirs)
            .answer()
            .await;
        assert_eq!(
            answer.status, target.status,
            "{}, by its owner: {answer}",
            operation.id
        );
        fresh(operation).await
    });
    let victims: Vec<_> = victims.buffered(AT_ONCE).collect().await;
    let stranger = Things::make(&server, &consumer).await;
    let last = victims.last().unwrap();
    tools::eventually(
        "the brief tokens are over",
        Duration::from_secs(20),
        async || {
            let answer = server
                .user(&last.expired)
                .get("/v1/publishers/me")
                .answer()
                .await;
            (answer.status == 401).then_some(())
        },
    )
    .await;

    let attacks = stream::iter(operations.iter().zip(&victims)).map(async |(operation, victim)| {
        let target = target_of(operation, victim);
        let before = snapshot(&server, victim).await;
        attack(&server, operation, &target, victim, &stranger).await;
        let after = snapshot(&server, victim).await;
        assert_eq!(before, after, "{} changed something", operation.id);
    });
    attacks.buffer_unordered(AT_ONCE).collect::<()>().await;
    exceptions_are_needed(&operations);
}

fn target_of(operation: &Operation, things: &Things) -> Target {
    let target = cases::target(&operation.id, things).unwrap_or_else(|| {
        panic!(
            "{} ({} {}) has no case: add one to tests/tests/isolation/cases.rs",
            operation.id, operation.method, operation.path
        )
    });
    for probe in &target.probes {
        for path in [&probe.theirs.path, &probe.absent.path] {
            assert!(fits(&operation.path, path), "{}: {path}", operation.id);
        }
    }
    target
}

fn exceptions_are_needed(operations: &[Operation]) {
    let known: BTreeSet<&str> = operations
        .iter()
        .map(|operation| operation.id.as_str())
        .collect();
    for name in EXCEPTIONS {
        assert!(
            known.contains(name),
            "{name} is excepted but does not exist"
        );
    }
}

async fn attack(
    server: &Server,
    operation: &Operation,
    target: &Target,
    victim: &Things,
    stranger: &Things,
) {
    if operation.is_public() {
        return;
    }
    let probe = &target.probes[0];
    strangers_without_a_token(server, operation, probe, victim).await;
    other_kinds(server, operation, probe, victim).await;
    if operation.is_tenants() {
        let foreigner = operation.owner(server, stranger);
        for probe in &target.probes {
            another_tenant(operation, probe, &foreigner, victim).await;
        }
    }
}

/// Nobody, and everybody whose token is no good, gets one and the same answer.
async fn strangers_without_a_token(
    server: &Server,
    operation: &Operation,
    probe: &Pair,
    victim: &Things,
) {
    let good = victim.publisher.admin.token();
    let last = good.chars().last().unwrap();
    let bad_sum = format!(
        "{}{}",
        &good[..good.len() - 1],
        if last == '0' { '1' } else { '0' }
    );
    let answers = [
        ("nobody", server.anon()),
        ("garbage", server.user("stm_admin_garbage")),
        ("a bad checksum", server.user(&bad_sum)),
        (
            "an unknown token of another form",
            server.user(&"x".repeat(40)),
        ),
        ("a revoked token", server.user(&victim.revoked)),
        ("an expired token", server.user(&victim.expired)),
        (
            "a secret",
            server.user(&victim.publisher.secret("subcommand_bearer")),
        ),
        ("a claim", server.user(&victim.claim)),
        (
            "a revoked train token",
            server.user(&victim.revoked_train_token),
        ),
        (
            "an expired train token",
            server.user(&victim.expired_train_token),
        ),
    ];
    let mut first: Option<Answer> = None;
    for (who, user) in answers {
        let answer = operation.call(&user, &probe.theirs).answer().await;
        assert_eq!(answer.status, 401, "{} as {who}: {answer}", operation.id);
        let first = first.get_or_insert_with(|| answer.clone());
        assert_eq!(
            fingerprint(first),
            fingerprint(&answer),
            "{} as {who}",
            operation.id
        );
    }
}

/// A token of the wrong kind is refused before anything is looked up.
async fn other_kinds(server: &Server, operation: &Operation, probe: &Pair, victim: &Things) {
    for kind in TokenKind::ALL {
        if operation.takes(kind) {
            continue;
        }
        let user = victim.holder(server, kind);
        let kind = kind.as_str();
        let there = operation.call(&user, &probe.theirs).answer().await;
        assert_eq!(there.status, 403, "{} as {kind}: {there}", operation.id);
        if operation.method != "HEAD" {
            let code = &there["code"];
            assert_eq!(code, "wrong_token_kind", "{} as {kind}", operation.id);
        }
        let absent = operation.call(&user, &probe.absent).answer().await;
        assert_eq!(
            fingerprint(&there),
            fingerprint(&absent),
            "{} as {kind}",
            operation.id
        );
    }
}

/// Another tenant can't tell a thing of the victim's from one that does not exist.
async fn another_tenant(operation: &Operation, probe: &Pair, foreigner: &User, victim: &Things) {
    let mut there = operation.call(foreigner, &probe.theirs).answer().await;
    let mut absent = operation.call(foreigner, &probe.absent).answer().await;
    let name = &operation.id;
    // Operations that are looked at beside this one change what is the foreigner's own, perhaps
    // between the two: a list may have to be asked for again. What tells of the victim stays.
    for _ in 0..10 {
        let lists = operation.method == "GET" || name == "refresh_accounts";
        let lists = lists && there.status < 400 && absent.status < 400;
        if !lists || masked(there.json(), probe) == masked(absent.json(), probe) {
            break;
        }
        there = operation.call(foreigner, &probe.theirs).answer().await;
        absent = operation.call(foreigner, &probe.absent).answer().await;
    }
    assert_eq!(there.status, absent.status, "{name}: {there} but {absent}");
    assert!(there.status < 500, "{name}: {there}");
    if there.status >= 400 {
        assert_eq!(
            fingerprint(&there),
            fingerprint(&absent),
            "{name}: {there} but {absent}"
        );
    } else if !EXCEPTIONS.contains(&name.as_str()) {
        let (there, absent) = (masked(there.json(), probe), masked(absent.json(), probe));
        assert_eq!(there, absent, "{name}");
    }
    if probe.must_be_absent {
        assert_eq!(there.status, 404, "{name}: {there}");
    }
    let body = String::from_utf8_lossy(&there.body);
    let text = format!("{body} {:?}", there.headers);
    for id in victim.identifiers() {
        // What the caller itself wrote may come back to it.
        let sent = format!("{} {:?}", probe.theirs.path, probe.theirs.body);
        assert!(
            sent.contains(&id) || !text.contains(&id),
            "{name} tells of {id}: {there}"
        );
    }
}

/// An answer without what differs from one request to the next: identifiers, times, credentials,
/// and the very name that was asked for.
fn masked(value: &Value, probe: &Pair) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| masked(item, probe)).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), masked(value, probe)))
            .collect(),
        Value::String(text) => {
            let changing = [
                "acc_", "trn_", "rpl_", "wks_", "whpk_", "tok_", "sec_", "run_", "ep_", "pl_",
                "evt_", "dlv_", "aud_", "stm_", "whsec_", "ptk_", "usr_", "inv_",
            ];
            let is_time = text.len() == 24 && text.ends_with('Z');
            if is_time
                || changing.iter().any(|prefix| text.starts_with(prefix))
                || probe.names(text)
            {
                json!("…")
            } else if text.len() == 4 {
                json!("last")
            } else {
                value.clone()
            }
        }
        _ => value.clone(),
    }
}

/// Changes of runs share transactions, whoever asks for them: a stranger's must not find what the
/// owner's has just read.
async fn nobody_rides_along_with_the_owner(world: &World) {
    let server = world.start().await;
    let (victim, stranger) = (
        server.publisher("victim").await,
        server.publisher("stranger").await,
    );
    victim.pipeline("nightly").await;
    let (run, claim) = victim.claimed_run("nightly").await;
    let path = |verb: &str| format!("/v1/runs/{run}/{verb}");
    let beat = |user: &User| {
        let call = user.post(&path("heartbeat")).claim(&claim);
        call.json(&json!({"progress": 1}))
    };
    for _ in 0..10 {
        let mut asked = Vec::new();
        for _ in 0..8 {
            let done = stranger.runner.post(&path("complete")).claim(&claim);
            for (call, status) in [
                (beat(&victim.runner), 200),
                (stranger.runner.post(&path("cancel")), 404),
                (beat(&stranger.runner), 404),
                (done.json(&json!({"output": {}})), 404),
            ] {
                asked.push(tokio::spawn(call.expect(status)));
            }
        }
        for answer in asked {
            answer.await.unwrap();
        }
    }
    let run = victim.runner.get(&format!("/v1/runs/{run}"));
    let run = run.expect(200).await;
    assert_eq!(run["status"], "running", "{run}");
    assert_eq!(run["cancel_requested"], false, "{run}");
}
