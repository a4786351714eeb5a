//! Rows R1 to R6 and I1 to I8: members and invitations; and what holds when there are several
//! processes, or one that is killed.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::{Person, Server, SmtpSink, World, on_both_stores, on_postgres, people_settings, tools};
use tokio::time::Instant;

use super::{forgive, start};

on_both_stores!(
    r_nobody_gives_or_takes_more_than_they_have,
    i_an_invitation_is_good_once_and_for_whom_it_names,
    what_was_mailed_or_acknowledged_outlives_a_kill,
);
on_postgres!(what_one_process_takes_away_the_other_refuses);

const SECOND: Duration = Duration::from_secs(1);
const ACCEPT: &str = "/v1/auth/accept-invitation";

async fn id_of(browser: &Person) -> String {
    browser.get("/v1/me").expect(200).await.text("/user/id")
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn r_nobody_gives_or_takes_more_than_they_have(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let (acme, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let owner = Person::joins(&server, &sink, (&acme.admin, "acme"), "owner").await;
    let admin = Person::joins(&server, &sink, (&acme.admin, "acme"), "admin").await;
    let viewer = Person::joins(&server, &sink, (&acme.admin, "acme"), "viewer").await;
    let foreigner = Person::joins(&server, &sink, (&other.admin, "other"), "owner").await;
    let (of_owner, of_viewer) = (id_of(&owner).await, id_of(&viewer).await);

    let foreign = format!("/v1/members/{}", id_of(&foreigner).await);
    owner.get(&foreign).refused(404, "not_found").await;
    owner
        .call("DELETE", &foreign)
        .refused(404, "not_found")
        .await;
    acme.admin.get(&foreign).refused(404, "not_found").await;

    let low = (403, "role_too_low");
    let path = format!("/v1/members/{of_owner}");
    let demote = json!({"role": "viewer"});
    admin
        .call("PATCH", &path)
        .json(&demote)
        .refused(low.0, low.1)
        .await;
    admin.call("DELETE", &path).refused(low.0, low.1).await;
    acme.admin
        .patch(&path)
        .json(&demote)
        .refused(low.0, low.1)
        .await;
    let raise = json!({"role": "owner"});
    let own = format!("/v1/members/{}", id_of(&admin).await);
    admin
        .call("PATCH", &own)
        .json(&raise)
        .refused(low.0, low.1)
        .await;
    let invite = json!({"email": "new@example.org", "role": "owner"});
    admin.refused("/v1/invitations", &invite, low).await;
    // An admin token may make an owner only where there is none.
    acme.admin
        .post("/v1/invitations")
        .json(&invite)
        .refused(low.0, low.1)
        .await;
    let own = format!("/v1/members/{of_viewer}");
    viewer
        .call("PATCH", &own)
        .json(&raise)
        .refused(low.0, low.1)
        .await;
    viewer.get("/v1/invitations").refused(low.0, low.1).await;

    let last = (409, "last_owner");
    owner.refused("/v1/members/leave", &json!({}), last).await;
    owner
        .call("PATCH", &path)
        .json(&demote)
        .refused(last.0, last.1)
        .await;
    owner.call("DELETE", &path).refused(last.0, last.1).await;
    viewer.posted("/v1/members/leave", &json!({}), 204).await;
    viewer.get("/v1/members").refused(404, "not_found").await;

    for body in [
        json!({"role": "admin", "publisher_id": acme.id}),
        json!({"role": "god"}),
        json!({"email": "x@example.org"}),
    ] {
        let change = owner.call("PATCH", &own).json(&body).answer().await;
        assert_eq!(change.status, 422, "R6: {change}");
    }
    let body = json!({"name": "x", "staff": true});
    owner
        .call("PATCH", "/v1/me")
        .json(&body)
        .refused(422, "validation_failed")
        .await;
    let members = acme.admin.all("/v1/members").await;
    let roles: Vec<&Value> = members.iter().map(|member| &member["role"]).collect();
    assert_eq!(roles, ["owner", "admin"]);
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn i_an_invitation_is_good_once_and_for_whom_it_names(world: &World) {
    let closed = [("STATIONMASTER_REGISTRATION", "closed")];
    let Some((server, sink)) = start(world, &closed).await else {
        return;
    };
    let acme = server.publisher("acme").await;
    let owner = Person::joins(&server, &sink, (&acme.admin, "acme"), "owner").await;
    let admin = Person::joins(&server, &sink, (&acme.admin, "acme"), "admin").await;
    let invited = async |by: &Person, email: &str| {
        let body = json!({"email": email, "role": "viewer"});
        let made = by.posted("/v1/invitations", &body, 201).await;
        let token = by.token_of(&sink.mail_to(email, 0).await);
        (made.text("/id"), json!({"token": token}))
    };

    // By the link alone, also where registration is closed; once, however many try.
    let (id, link) = invited(&owner, "ann@example.org").await;
    let path = format!("/v1/me/invitations/{id}/accept");
    admin.refused(&path, &json!({}), (404, "not_found")).await;
    server
        .anon()
        .get(ACCEPT)
        .refused(405, "method_not_allowed")
        .await;
    let more = json!({"token": link["token"], "role": "owner"});
    Person::new(&server)
        .refused(ACCEPT, &more, (422, "validation_failed"))
        .await;
    let tries = (0..20).map(|_| {
        let (browser, link) = (Person::new(&server), link.clone());
        async move { browser.post(ACCEPT, &link).await }
    });
    let answers = join_all(tries).await;
    assert_eq!(
        answers.iter().filter(|answer| answer.status == 200).count(),
        1,
        "I5"
    );
    assert!(
        answers
            .iter()
            .all(|a| a.status == 200 || a["code"] == "link_used"),
        "I5"
    );
    Person::new(&server)
        .refused(ACCEPT, &link, (410, "link_used"))
        .await;
    let again = json!({"email": "ann@example.org", "role": "viewer"});
    owner
        .refused("/v1/invitations", &again, (409, "already_member"))
        .await;

    let (id, link) = invited(&owner, "withdrawn@example.org").await;
    owner
        .call("DELETE", &format!("/v1/invitations/{id}"))
        .expect(204)
        .await;
    owner
        .call("DELETE", &format!("/v1/invitations/{id}"))
        .refused(404, "not_found")
        .await;
    Person::new(&server)
        .refused(ACCEPT, &link, (410, "link_expired"))
        .await;
    let (id, link) = invited(&owner, "resent@example.org").await;
    owner
        .posted(&format!("/v1/invitations/{id}/resend"), &json!({}), 200)
        .await;
    sink.mail_to("resent@example.org", 1).await;
    let old = Person::new(&server).post(ACCEPT, &link).await;
    assert!(matches!(old.status, 400 | 410), "{old}");
    let shown = owner
        .get(&format!("/v1/invitations/{id}"))
        .expect(200)
        .await;
    assert_eq!(shown["status"], "pending", "{shown}");

    // Who has lost the right to invite has invited nobody.
    let (_, link) = invited(&admin, "late@example.org").await;
    let path = format!("/v1/members/{}", id_of(&admin).await);
    owner
        .call("PATCH", &path)
        .json(&json!({"role": "viewer"}))
        .expect(200)
        .await;
    Person::new(&server)
        .refused(ACCEPT, &link, (403, "inviter_lost_rights"))
        .await;
    let (_, link) = invited(&owner, "slow@example.org").await;
    server
        .site()
        .execute("UPDATE invitations SET expires_at = created_at")
        .await;
    Person::new(&server)
        .refused(ACCEPT, &link, (410, "link_expired"))
        .await;
}

/// Asks without a pause: what is asked a second from now or later must be refused.
async fn refused_within_a_second(ask: impl AsyncFn() -> u16, status: u16) {
    let since = Instant::now();
    loop {
        let begun = since.elapsed();
        let answered = ask().await;
        if answered == status {
            return;
        }
        assert!(begun < SECOND, "{answered} after {begun:?}");
    }
}

async fn what_one_process_takes_away_the_other_refuses(world: &World) {
    let Some(sink) = SmtpSink::start("people").await else {
        return;
    };
    let env = people_settings(&sink);
    let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let site = world.site().await;
    let (one, two) = (site.start(&env).await, site.start_beside(&env).await);
    let acme = one.publisher("acme").await;
    let owner = Person::joins(&one, &sink, (&acme.admin, "acme"), "owner").await;
    let admin = Person::joins(&one, &sink, (&acme.admin, "acme"), "admin").await;
    let path = format!("/v1/members/{}", id_of(&admin).await);
    let there = admin.at(&two);
    let status = async |path: &str| there.get(path).answer().await.status;
    for _ in 0..10 {
        assert_eq!(status("/v1/publishers/me/tokens").await, 200);
    }
    owner
        .call("PATCH", &path)
        .json(&json!({"role": "viewer"}))
        .expect(200)
        .await;
    refused_within_a_second(async || status("/v1/publishers/me/tokens").await, 403).await;
    assert_eq!(status("/v1/members").await, 200);
    owner.call("DELETE", &path).expect(200).await;
    refused_within_a_second(async || status("/v1/members").await, 404).await;
    assert_eq!(status("/v1/me").await, 200);
    admin.posted("/v1/auth/sign-out", &json!({}), 204).await;
    refused_within_a_second(async || status("/v1/me").await, 401).await;
}

/// What became of one link when its server was killed.
struct Redeemed {
    browser: Person,
    email: String,
    link: Value,
    answered: Option<u16>,
}

/// Kills the server while links are redeemed and asked for.
async fn what_was_mailed_or_acknowledged_outlives_a_kill(world: &World) {
    let Some((mut server, sink)) = start(world, &[]).await else {
        return;
    };
    let env = people_settings(&sink);
    let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    for _ in 0..3 {
        let mut links = Vec::new();
        for _ in 0..6 {
            let (browser, email) = (
                Person::new(&server),
                format!("{}@example.org", tools::word()),
            );
            let (token, _) = browser.asks_for_a_link(&sink, &email).await;
            links.push((browser, email, json!({"token": token})));
        }
        let redeem = links.into_iter().map(|(browser, email, link)| {
            tokio::spawn(async move {
                let call = browser.call("POST", "/v1/auth/redeem").json(&link);
                let answer = call.send().await.ok();
                let answered = answer.as_ref().map(|answer| answer.status);
                if let Some(answer) = &answer {
                    browser.keep(answer);
                }
                Redeemed {
                    browser,
                    email,
                    link,
                    answered,
                }
            })
        });
        let redeem: Vec<_> = redeem.collect();
        let ask = (0..6).map(|_| {
            let (browser, email) = (
                Person::new(&server),
                format!("{}@example.org", tools::word()),
            );
            tokio::spawn(async move {
                let call = browser
                    .call("POST", "/v1/auth/link")
                    .json(&json!({"email": email}));
                let answer = call.send().await.ok()?;
                (answer.status == 202).then_some(email)
            })
        });
        let ask: Vec<_> = ask.collect();
        tokio::time::sleep(Duration::from_millis(tools::below(400))).await;
        server.kill().await;
        let (redeemed, asked) = (join_all(redeem).await, join_all(ask).await);
        server = server.site().start(&env).await;
        forgive(&server).await;
        for email in asked.into_iter().filter_map(Result::unwrap) {
            sink.mail_to(&email, 0).await;
        }
        for one in redeemed.into_iter().map(Result::unwrap) {
            holds(&server, &sink, one).await;
        }
    }
}

/// A sign-in that was acknowledged holds; of one that was not, the link is good or used, and the
/// person gets in either way.
async fn holds(server: &Server, sink: &SmtpSink, one: Redeemed) {
    let browser = one.browser.at(server);
    if let Some(status) = one.answered {
        assert_eq!(status, 200);
        assert!(browser.is_signed_in().await, "a sign-in was lost");
        return;
    }
    let again = browser.post("/v1/auth/redeem", &one.link).await;
    if again.status != 200 {
        assert_eq!(again["code"], "link_used", "{again}");
        browser.signs_in(sink, &one.email).await;
    }
    assert!(browser.is_signed_in().await);
}
