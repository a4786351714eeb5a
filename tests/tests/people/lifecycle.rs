//! A person's life here, from the registration to the removal from a publisher.

use serde_json::json;
use tests::{Person, World, mails_to, on_both_stores};

use super::{ANOTHER, PASSWORD, forgive, start};

on_both_stores!(a_person_comes_and_goes);

const ANN: &str = "ann@example.org";
const BOB: &str = "bob@example.org";

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn a_person_comes_and_goes(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let acme = server.publisher("acme").await;
    let ann = Person::new(&server);

    // Registers, opens the link, and is signed in.
    let body = json!({"email": "Ann@Example.org", "password": PASSWORD, "name": "Ann"});
    let asked = ann.posted("/v1/auth/register", &body, 202).await;
    assert_eq!(asked["valid_for_seconds"], 24 * 3600, "{asked}");
    assert!(!ann.is_signed_in().await);
    let token = ann.token_of(&sink.mail_to(ANN, 0).await);
    let verify = json!({"token": token});
    let new = ann.posted("/v1/auth/verify", &verify, 200).await;
    assert_eq!(new["registered"], true, "{new}");
    assert_eq!(new["user"]["email"], ANN, "{new}");
    let me = ann.get("/v1/me").expect(200).await;
    assert_eq!(me["user"]["name"], "Ann", "{me}");
    assert_eq!(me["recent_sign_in"], true, "{me}");
    assert_eq!(me["has_password"], true, "{me}");
    assert_eq!(me["csrf_token"], new["csrf_token"], "{me}");
    ann.posted("/v1/auth/sign-out", &json!({}), 204).await;
    assert!(!ann.is_signed_in().await);

    // Signs in by the password, and is signed out by a reset from elsewhere.
    let body = json!({"email": ANN, "password": PASSWORD});
    ann.posted("/v1/auth/password", &body, 200).await;
    let forgotten = Person::new(&server);
    let forgot = json!({"email": ANN});
    forgotten
        .posted("/v1/auth/forgot-password", &forgot, 202)
        .await;
    let token = forgotten.token_of(&sink.mail_to(ANN, 1).await);
    let reset = json!({"token": token, "password": ANOTHER});
    forgotten
        .posted("/v1/auth/reset-password", &reset, 204)
        .await;
    assert!(!ann.is_signed_in().await, "M15");
    assert!(!forgotten.is_signed_in().await, "M15");
    ann.refused("/v1/auth/password", &body, (401, "sign_in_failed"))
        .await;
    let new = json!({"email": ANN, "password": ANOTHER});
    ann.posted("/v1/auth/password", &new, 200).await;

    // Asks for a link here, opens it elsewhere.
    forgive(&server).await;
    let (token, _) = ann.asks_for_a_link(&sink, ANN).await;
    let elsewhere = Person::new(&server);
    let body = json!({"token": token});
    let other = (403, "other_browser");
    elsewhere.refused("/v1/auth/redeem", &body, other).await;
    let body = json!({"token": token, "confirmed": true});
    elsewhere.posted("/v1/auth/redeem", &body, 200).await;
    assert!(ann.is_signed_in().await && elsewhere.is_signed_in().await);

    // Is invited by the publisher's token, and accepts as the signed-in person.
    forgive(&server).await;
    let body = json!({"email": ANN, "role": "owner", "message": "Welcome."});
    let invite = acme.admin.post("/v1/invitations").json(&body);
    let invitation = invite.expect(201).await;
    assert_eq!(invitation["status"], "pending", "{invitation}");
    let mine = ann.get("/v1/me/invitations").expect(200).await;
    assert_eq!(mine["items"][0]["publisher"]["slug"], "acme", "{mine}");
    let path = format!("/v1/me/invitations/{}/accept", invitation.text("/id"));
    let accepted = ann.posted(&path, &json!({}), 200).await;
    assert_eq!(accepted["role"], "owner", "{accepted}");
    let mine = ann.get("/v1/me/memberships").expect(200).await;
    assert_eq!(mine["items"][0]["publisher"]["slug"], "acme", "{mine}");
    ann.works_for("acme");
    ann.get("/v1/runs").expect(200).await;

    // Invites somebody, who has no user yet; the link alone is the proof.
    let body = json!({"email": BOB, "role": "admin"});
    ann.posted("/v1/invitations", &body, 201).await;
    let bob = Person::new(&server);
    let token = bob.token_of(&sink.mail_to(BOB, 0).await);
    let body = json!({"token": token});
    let joined = bob.posted("/v1/auth/accept-invitation", &body, 200).await;
    assert_eq!(joined["membership"]["role"], "admin", "{joined}");
    bob.works_for("acme");
    let user = joined.text("/user/id");

    // Bob mints a token, gets a lower role, and is removed together with the token.
    let made = bob
        .posted("/v1/publishers/me/tokens/runner", &json!({}), 201)
        .await;
    let runner = server.user(&made.text("/token"));
    let listed = acme.admin.all("/v1/publishers/me/tokens").await;
    let row = listed.iter().find(|one| one["id"] == made["id"]).unwrap();
    assert_eq!(row["minted_by"], user.as_str(), "{row}");
    let path = format!("/v1/members/{user}");
    let before = ann.get(&path).expect(200).await;
    let change = ann.call("PATCH", &path).json(&json!({"role": "viewer"}));
    let stale = change.clone().header("if-match", "\"99\"");
    stale.refused(412, "precondition_failed").await;
    let change = change.header("if-match", before.header("etag"));
    let after = change.expect(200).await;
    assert_eq!(after["role"], "viewer", "{after}");
    bob.get("/v1/runs").expect(200).await;
    let refused = bob
        .post("/v1/publishers/me/tokens/runner", &json!({}))
        .await;
    assert_eq!(
        (refused.status, &refused["code"]),
        (403, &json!("role_too_low"))
    );
    let minted = ann.get(&format!("{path}/minted")).expect(200).await;
    assert_eq!(minted["items"][0]["id"], made["id"], "{minted}");
    let remove = ann.call("DELETE", &format!("{path}?revoke_minted=true"));
    let removed = remove.expect(200).await;
    assert_eq!(removed["revoked"], true, "{removed}");
    assert_eq!(removed["minted"][0]["id"], made["id"], "{removed}");
    bob.get("/v1/runs").refused(404, "not_found").await;
    runner.get("/v1/runs").refused(401, "unauthenticated").await;
    assert!(bob.is_signed_in().await);

    let kept = acme
        .admin
        .get("/v1/publishers/me/audit/verify")
        .expect(200)
        .await;
    assert_eq!(kept["ok"], true, "{kept}");
    assert_eq!(mails_to(&sink, BOB).len(), 1);
}
