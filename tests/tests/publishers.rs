//! What the operator does to publishers: suspend, delete, bring back, let in again.

use serde_json::json;
use tests::{World, on_both_stores};

on_both_stores!(
    a_suspended_publisher_is_refused_until_it_resumes,
    a_deleted_publisher_can_come_back,
    the_operator_replaces_a_lost_admin_token,
);

const ME: &str = "/v1/publishers/me";

async fn a_suspended_publisher_is_refused_until_it_resumes(world: &World) {
    let server = world.start().await;
    let (publisher, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let operator = server.operator();
    publisher.admin.get(ME).expect(200).await;
    let suspend = format!("/v1/publishers/{}/suspend", publisher.id);
    let answer = operator.post(&suspend).expect(200).await;
    assert_eq!(answer["status"], "suspended", "{answer}");
    for user in [&publisher.admin, &publisher.runner] {
        user.get(ME).refused(403, "publisher_suspended").await;
    }
    other.admin.get(ME).expect(200).await;
    let resume = format!("/v1/publishers/{}/resume", publisher.id);
    operator.post(&resume).json(&json!({})).expect(200).await;
    publisher.admin.get(ME).expect(200).await;
    let actions = publisher.actions().await;
    for action in [
        "publisher.created",
        "publisher.suspended",
        "publisher.resumed",
    ] {
        assert!(
            actions.iter().any(|known| known == action),
            "{action}: {actions:?}"
        );
    }
}

async fn a_deleted_publisher_can_come_back(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let operator = server.operator();
    let path = format!("/v1/publishers/{}", publisher.id);
    operator.delete(&path).answer().await;
    publisher.admin.get(ME).expect(200).await;
    operator
        .delete(&format!("{path}?confirm=other"))
        .answer()
        .await;
    publisher.admin.get(ME).expect(200).await;
    operator
        .delete(&format!("{path}?confirm=acme"))
        .expect(204)
        .await;
    let refusal = publisher.admin.get(ME).answer().await;
    assert!(matches!(refusal.status, 401 | 403), "{refusal}");
    // Its slug is free at once.
    let successor = server.publisher("acme").await;
    assert_ne!(successor.id, publisher.id);
    let resume = format!("/v1/publishers/{}/resume", publisher.id);
    operator
        .post(&resume)
        .json(&json!({}))
        .refused(409, "slug_taken")
        .await;
    operator
        .post(&resume)
        .json(&json!({"slug": "acme-2"}))
        .expect(200)
        .await;
    let me = publisher.admin.get(ME).expect(200).await;
    assert_eq!(me["slug"], "acme-2", "{me}");
    successor.admin.get(ME).expect(200).await;
}

async fn the_operator_replaces_a_lost_admin_token(world: &World) {
    let server = world.start().await;
    let publisher = server.publisher("acme").await;
    let path = format!("/v1/publishers/{}/tokens/admin", publisher.id);
    let answer = server
        .operator()
        .post(&path)
        .json(&json!({"name": "found"}))
        .expect(201)
        .await;
    let found = server.user(&answer.text("/token"));
    found.get(ME).expect(200).await;
    publisher.admin.get(ME).expect(200).await;
    let actions = publisher.actions().await;
    assert!(
        actions.iter().any(|action| action == "token.minted"),
        "{actions:?}"
    );
}
