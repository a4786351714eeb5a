//! The audit log: complete, readable, and no use to whoever edits it behind the server's back.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Publisher, Server, World, on_both_stores, tools};

use crate::tokens::mint;

on_both_stores!(
    every_change_stands_in_the_log,
    a_row_says_who_asked,
    the_whole_log_can_be_exported,
    an_edited_row_is_found,
    a_missing_row_is_found,
    a_row_behind_the_end_is_found_and_stands_in_nobodys_way,
);

const ME: &str = "/v1/publishers/me";
const TOKENS: &str = "/v1/publishers/me/tokens";

async fn every_change_stands_in_the_log(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let admin = &publisher.admin;
    admin
        .patch(ME)
        .json(&json!({"display_name": "Acme & Co."}))
        .expect(200)
        .await;
    let (id, _) = mint(admin, "runner", &json!({"name": "spare"})).await;
    admin
        .delete(&format!("{TOKENS}/runner/{id}"))
        .expect(204)
        .await;
    admin
        .post(&format!("{TOKENS}/subcommand_bearer/rotate"))
        .json(&json!({}))
        .expect(200)
        .await;
    publisher.pipeline("nightly").await;
    let body = json!({"display_name": "Other name"});
    admin
        .put("/v1/pipelines/nightly")
        .json(&body)
        .expect(200)
        .await;
    let changed = publisher.actions().await;
    admin
        .put("/v1/pipelines/nightly")
        .json(&body)
        .expect(200)
        .await;
    assert_eq!(
        publisher.actions().await,
        changed,
        "the same again is no change"
    );
    admin.delete("/v1/pipelines/nightly").expect(204).await;
    publisher
        .runner
        .get(TOKENS)
        .refused(403, "wrong_token_kind")
        .await;

    // The denial is written off the request's path.
    let limit = Duration::from_secs(10);
    let actions = tools::eventually("the denial is written", limit, async || {
        let actions = publisher.actions().await;
        let denied = actions.iter().any(|action| action == "token.denied");
        denied.then_some(actions)
    })
    .await;
    let wanted = [
        "publisher.created",
        "publisher.updated",
        "token.minted",
        "token.revoked",
        "secret.rotated",
        "pipeline.created",
        "pipeline.updated",
        "pipeline.deleted",
        "token.denied",
    ];
    let found: Vec<&String> = actions
        .iter()
        .filter(|action| wanted.contains(&action.as_str()))
        .collect();
    assert_eq!(found, wanted, "in order: {actions:?}");
    verified(&publisher, true).await;
}

async fn a_row_says_who_asked(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let body = json!({"display_name": "Acme"});
    let request = publisher.admin.patch(ME).header("x-request-id", "find-me");
    request.json(&body).expect(200).await;
    let path = format!("{ME}/audit?action=publisher.updated");
    let items = publisher.admin.all(&path).await;
    assert_eq!(items.len(), 1, "{items:?}");
    let actor = json!({"kind": "admin", "id": publisher.credential("admin")});
    assert_eq!(items[0]["request_id"], "find-me", "{items:?}");
    assert_eq!(items[0]["actor"], actor, "{items:?}");
}

async fn the_whole_log_can_be_exported(world: &World) {
    let (_, publisher, _) = with_a_history(world).await;
    let call = publisher.admin.get(&format!("{ME}/audit/export"));
    let export = call.expect(200).await;
    let text = String::from_utf8(export.body.to_vec()).unwrap();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    lines.reverse();
    assert_eq!(lines, publisher.admin.all(&format!("{ME}/audit")).await);
}

/// `audit/verify` must say that the log is whole, or that it is not.
pub async fn verified(publisher: &Publisher, whole: bool) {
    let answer = publisher
        .admin
        .get("/v1/publishers/me/audit/verify")
        .expect(200)
        .await;
    assert_eq!(answer["ok"], whole, "{answer}");
}

/// Changes the database behind a stopped server's back.
async fn tamper(server: &Server, statement: &'static str) -> Server {
    assert!(server.stop().await.success());
    let site = server.site();
    let changed = site.execute(statement).await;
    assert!(changed > 0, "nothing was tampered with");
    site.start(&[]).await
}

async fn with_a_history(world: &World) -> (Server, Publisher, Publisher) {
    let server = world.start().await;
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    publisher.pipeline("nightly").await;
    other.pipeline("nightly").await;
    publisher
        .admin
        .patch(ME)
        .json(&json!({"display_name": "Acme"}))
        .expect(200)
        .await;
    verified(&publisher, true).await;
    (server, publisher, other)
}

async fn an_edited_row_is_found(world: &World) {
    let (server, publisher, other) = with_a_history(world).await;
    let statement = "UPDATE audit_events SET actor_id = 'somebody else' WHERE action = \
                     'publisher.updated'";
    let _again = tamper(&server, statement).await;
    verified(&publisher, false).await;
    verified(&other, true).await;
}

async fn a_missing_row_is_found(world: &World) {
    let (server, publisher, _) = with_a_history(world).await;
    let statement = "DELETE FROM audit_events WHERE action = 'pipeline.created'";
    let _again = tamper(&server, statement).await;
    verified(&publisher, false).await;
}

async fn a_row_behind_the_end_is_found_and_stands_in_nobodys_way(world: &World) {
    let (server, publisher, other) = with_a_history(world).await;
    let statement = "INSERT INTO audit_events (owner_id, seq, id, at, actor_kind, actor_id, action, \
                     target_kind, target_id, metadata, mac) SELECT owner_id, seq + 1, owner_id, at, \
                     'bootstrap', 'boot_forged', 'publisher.quota_set', target_kind, target_id, \
                     metadata, mac FROM audit_events WHERE action = 'publisher.updated'";
    let server = tamper(&server, statement).await;
    server
        .site()
        .tolerate("a row that the service did not write stood behind an audit log's end");
    verified(&publisher, false).await;
    verified(&other, true).await;
    let is_forged = |row: &Value| row.to_string().contains("boot_forged");
    let log = format!("{ME}/audit");
    assert!(!publisher.admin.all(&log).await.iter().any(is_forged));
    let exported = publisher.admin.get(&format!("{log}/export")).expect(200);
    assert!(!String::from_utf8_lossy(&exported.await.body).contains("boot_forged"));

    let change = publisher.admin.patch(ME);
    let change = change.json(&json!({"display_name": "Acme again"}));
    change.expect(200).await;
    mint(&publisher.admin, "runner", &json!({})).await;
    verified(&publisher, true).await;
    let rows = publisher.admin.all(&log).await;
    assert!(!rows.iter().any(is_forged));
    let said = rows.iter().find(|row| row["action"] == "audit.tampered");
    assert_eq!(said.unwrap()["metadata"]["rows"], 1);
}
