//! Rows M1 to M18, and section 5.6: mailed links, passwords, and where a sign-in leads.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::{
    Answer, Person, Server, SmtpSink, World, fingerprint, mails_to, on_both_stores, tools,
};

use super::{ANOTHER, PASSWORD, actions, forgive, sign_ins_get_old, start};

on_both_stores!(
    m1_known_and_unknown_addresses_are_answered_alike,
    m2_m3_m5_a_link_is_good_once,
    m4_a_code_is_good_in_the_browser_that_asked,
    m7_m8_m9_what_is_sent_leads_nowhere_else,
    m10_nobody_is_buried_in_mail,
    m11_m12_passwords_are_judged,
    m13_m14_guessing_is_slowed_down_and_locks_nobody_out,
    m15_m16_what_is_secured_anew_ends_what_was,
    m17_registration_tells_nobody_who_is_there,
    m18_a_sign_in_leads_to_a_page_of_this_service,
);

const ANN: &str = "ann@example.org";

/// The floor of answers that must not tell whether there is a user.
const FLOOR: Duration = Duration::from_millis(250);
/// How many requests are sent at a time, half of them for known addresses.
const SIDE_BY_SIDE: usize = 10;
const ROUNDS: usize = 20;

async fn user(server: &Server, sink: &SmtpSink, email: &str) -> Person {
    let browser = Person::new(server);
    browser.signs_in(sink, email).await;
    forgive(server).await;
    browser
}

/// What must be the same of two answers: not the new visit, and no identifier of a request.
fn seen(answer: &Answer) -> (u16, Vec<(String, String)>, Vec<u8>) {
    let (status, headers, body) = fingerprint(answer);
    let own = |name: &str| matches!(name, "set-cookie" | "x-request-id");
    let headers = headers.into_iter().filter(|(name, _)| !own(name));
    (status, headers.collect(), body.to_vec())
}

/// 200 requests for known and 200 for unknown addresses. Compared is what can be compared exactly:
/// the answers, the rows that were written, and that no answer came before the floor. The times
/// themselves are not: above the floor they are those of the machine, whose other work would hide a
/// difference of a millisecond as well as feign one. A difference that exceeded the floor would show
/// as a different number of rows, since both ways run the same statements.
async fn m1_known_and_unknown_addresses_are_answered_alike(world: &World) {
    let closed = [("STATIONMASTER_REGISTRATION", "closed")];
    let Some((server, sink)) = start(world, &closed).await else {
        return;
    };
    let acme = server.publisher("acme").await;
    let mut known = Vec::new();
    for _ in 0..SIDE_BY_SIDE {
        let person = Person::joins(&server, &sink, (&acme.admin, "acme"), "viewer").await;
        known.push(person.get("/v1/me").expect(200).await.text("/user/email"));
    }
    let disable = server.site().execute("UPDATE users SET disabled_at = created_at WHERE id IN (SELECT user_id FROM user_addresses WHERE address LIKE 'viewer-%' ORDER BY address LIMIT 1)");
    assert_eq!(disable.await, 1);
    // An invitation counts as a mail to its address.
    forgive(&server).await;
    for path in ["/v1/auth/link", "/v1/auth/forgot-password"] {
        let mut answers = BTreeSet::new();
        for round in 0..ROUNDS / 2 {
            let unknown = |at| format!("nobody-{round}-{at}@example.org");
            let unknown: Vec<String> = (0..SIDE_BY_SIDE).map(unknown).collect();
            let of_known = written(&server, path, &known).await;
            let of_unknown = written(&server, path, &unknown).await;
            assert_eq!(of_known.1, of_unknown.1, "{path}: rows");
            answers.extend(of_known.0.into_iter().chain(of_unknown.0));
            forgive(&server).await;
        }
        assert_eq!(answers.len(), 1, "{path}: {answers:?}");
        // An address that has got its mails gets no more, and the answer is the same.
        for _ in 0..4 {
            let (again, _) = written(&server, path, &known[..1]).await;
            assert!(answers.is_superset(&again), "{path}: {again:?}");
        }
        forgive(&server).await;
    }
}

type Seen = BTreeSet<(u16, Vec<(String, String)>, Vec<u8>)>;

/// The answers to requests for mails, each from an address of its own, and how many rows of each
/// kind they wrote.
async fn written(server: &Server, path: &str, emails: &[String]) -> (Seen, Vec<i64>) {
    const TABLES: [&str; 4] = [
        "single_use_tokens",
        "mails",
        "audit_events",
        "sign_in_throttles",
    ];
    let count = async || {
        let mut all = Vec::new();
        for table in TABLES {
            all.push(server.site().count(table).await);
        }
        all
    };
    let before = count().await;
    let ask = emails.iter().map(async |email| {
        let (browser, began) = (Person::new(server), Instant::now());
        let answer = browser.posted(path, &json!({"email": email}), 202).await;
        assert!(began.elapsed() >= FLOOR, "{email}: {:?}", began.elapsed());
        seen(&answer)
    });
    let answers = join_all(ask).await.into_iter().collect();
    let after = count().await;
    let new = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after - before);
    (answers, new.collect())
}

async fn m2_m3_m5_a_link_is_good_once(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = Person::new(&server);
    let (token, _) = ann.asks_for_a_link(&sink, ANN).await;
    // A scanner opens what it finds in mails, by any method that changes nothing.
    for method in ["GET", "HEAD"] {
        for _ in 0..10 {
            let path = format!("/sign-in/confirm?token={token}");
            // The page holds what it asks the person to send.
            let look = server.anon().call(method, &path).repeats_a_secret();
            let answer = look.answer().await;
            assert_eq!(answer.status, 200, "M2: {answer}");
            let redeem = server.anon().call(method, "/v1/auth/redeem").answer().await;
            assert_eq!(redeem.status, 405, "M2: {redeem}");
        }
    }
    let body = json!({"token": token});
    let tries = (0..20).map(|_| async {
        ann.call("POST", "/v1/auth/redeem")
            .json(&body)
            .answer()
            .await
    });
    let answers = join_all(tries).await;
    let won = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(won, 1, "M3");
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!(
            (answer.status, &answer["code"]),
            (410, &json!("link_used")),
            "M3"
        );
    }
    ann.refused("/v1/auth/redeem", &body, (410, "link_used"))
        .await;

    let (older, _) = ann.asks_for_a_link(&sink, ANN).await;
    let (newer, _) = ann.asks_for_a_link(&sink, ANN).await;
    let body = json!({"token": older});
    ann.refused("/v1/auth/redeem", &body, (410, "link_expired"))
        .await;
    let flipped = if newer.ends_with('0') { "1" } else { "0" };
    let tampered = format!("{}{flipped}", &newer[..newer.len() - 1]);
    let invalid = (400, "link_invalid");
    for text in [tampered.as_str(), "", "x", "stm_admin_x"] {
        let body = json!({"token": text});
        ann.refused("/v1/auth/redeem", &body, invalid).await;
        for path in ["/v1/auth/verify", "/v1/auth/accept-invitation"] {
            ann.refused(path, &body, invalid).await;
        }
    }
    // A link is good for its purpose alone.
    let body = json!({"token": newer});
    for path in ["/v1/auth/verify", "/v1/auth/accept-invitation"] {
        ann.refused(path, &body, invalid).await;
    }
    server
        .site()
        .execute("UPDATE single_use_tokens SET expires_at = created_at")
        .await;
    ann.refused("/v1/auth/redeem", &body, (410, "link_expired"))
        .await;
    let mut all = actions(&server).await;
    all.retain(|row| row["action"] == "sign_in.failed");
    assert!(all.len() >= 3, "U1: {all:?}");
}

async fn m4_a_code_is_good_in_the_browser_that_asked(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let (ann, other) = (Person::new(&server), Person::new(&server));
    let (token, code) = ann.asks_for_a_link(&sink, ANN).await;
    other.asks_for_a_link(&sink, "eve@example.org").await;
    let body = json!({"code": code});
    let failed = (401, "sign_in_failed");
    other.refused("/v1/auth/code", &body, failed).await;
    Person::new(&server)
        .refused("/v1/auth/code", &body, failed)
        .await;
    let link = json!({"token": token});
    other
        .refused("/v1/auth/redeem", &link, (403, "other_browser"))
        .await;
    // Five wrong guesses spend the code.
    let wrong = if code == "000000" { "000001" } else { "000000" };
    for _ in 0..5 {
        ann.post("/v1/auth/code", &json!({"code": wrong})).await;
    }
    forgive(&server).await;
    let spent = ann.post("/v1/auth/code", &body).await;
    assert!(matches!(spent.status, 401 | 410), "{spent}");
    assert!(!ann.is_signed_in().await);
    let (_, code) = ann.asks_for_a_link(&sink, ANN).await;
    let spaced = json!({"code": format!("{} {}", &code[..3], &code[3..])});
    ann.posted("/v1/auth/code", &spaced, 200).await;
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn m7_m8_m9_what_is_sent_leads_nowhere_else(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = Person::new(&server);
    let body = json!({"email": ANN});
    let link = || ann.call("POST", "/v1/auth/link").json(&body);
    link()
        .header("host", "evil.example")
        .refused(421, "wrong_host")
        .await;
    for (name, value) in [
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "https"),
        ("forwarded", "host=evil.example;proto=https"),
    ] {
        link().header(name, value).expect(202).await;
    }
    for at in 0..3 {
        let mail = sink.mail_to(ANN, at).await;
        assert!(
            mail.link().starts_with(&format!("{}/", server.url())),
            "M7: {}",
            mail.link()
        );
    }

    let name = "Eve\r\nBcc: mallory@example.org\u{202e}<script>";
    let body = json!({"email": "eve@example.org", "name": name});
    ann.posted("/v1/auth/register", &body, 202).await;
    let acme = server.publisher("acme").await;
    let body = json!({"email": "bob@example.org", "role": "owner", "message": name});
    acme.admin
        .post("/v1/invitations")
        .json(&body)
        .expect(201)
        .await;
    for to in ["eve@example.org", "bob@example.org"] {
        let mail = sink.mail_to(to, 0).await;
        assert_eq!(mail.to, [to], "M8");
        assert_eq!(
            (mail.header("To").len(), mail.header("Bcc").len()),
            (1, 0),
            "M8"
        );
        assert!(
            !mail.html.contains("<script>") && !mail.html.contains('\u{202e}'),
            "M8"
        );
    }

    let long = format!("{}@example.org", "a".repeat(250));
    for email in [
        "a@b.example,c@d.example",
        "<a@b.example>",
        "\"a b\"@example.org",
        "a@[127.0.0.1]",
        "a@b@example.org",
        "a@example.org ",
        "ä@example.org",
        "a@example",
        long.as_str(),
    ] {
        let body = json!({"email": email});
        for path in [
            "/v1/auth/link",
            "/v1/auth/register",
            "/v1/auth/forgot-password",
        ] {
            let answer = ann.posted(path, &body, 422).await;
            assert_eq!(answer.pointers(), ["/email"], "M9 {email}: {answer}");
        }
    }
    let more = json!({"email": ANN, "role": "owner", "staff": true});
    ann.refused("/v1/auth/register", &more, (422, "validation_failed"))
        .await;
}

async fn m10_nobody_is_buried_in_mail(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    // Whoever asks, and from wherever: three mails to an address, and the answer is the same.
    for _ in 0..5 {
        let body = json!({"email": ANN});
        Person::new(&server)
            .posted("/v1/auth/link", &body, 202)
            .await;
    }
    let eve = Person::new(&server);
    let mut statuses = Vec::new();
    for at in 0..22 {
        let body = json!({"email": format!("victim-{at}@example.org")});
        statuses.push(eve.post("/v1/auth/link", &body).await.status);
    }
    assert_eq!(statuses[..20], [202; 20], "{statuses:?}");
    assert_eq!(statuses[20..], [429; 2], "{statuses:?}");
    let last = "victim-19@example.org";
    sink.mail_to(last, 0).await;
    assert_eq!(mails_to(&sink, ANN).len(), 3);
}

async fn m11_m12_passwords_are_judged(world: &World) {
    let Some((server, _sink)) = start(world, &[]).await else {
        return;
    };
    let register = async |password: &str, status: u16| {
        let browser = Person::new(&server);
        let email = format!("{}@example.org", tools::word());
        let body = json!({"email": email, "password": password});
        let answer = browser.posted("/v1/auth/register", &body, status).await;
        if status == 422 {
            assert_eq!(answer.pointers(), ["/password"], "{answer}");
        }
    };
    let longest = "x y".repeat(341);
    for good in [
        "7 chars!",
        "pässwörter 日本語",
        " with spaces around ",
        &longest,
    ] {
        register(good, 202).await;
    }
    let (long, wide, huge) = ("x".repeat(1025), "ü".repeat(600), "x".repeat(900_000));
    for bad in [
        "",
        "7 chars",
        "password1",
        "12345678",
        "PASSWORD1",
        &long,
        &wide,
        &huge,
    ] {
        register(bad, 422).await;
    }
}

async fn m13_m14_guessing_is_slowed_down_and_locks_nobody_out(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = user(&server, &sink, ANN).await;
    let set = ann
        .call("PUT", "/v1/me/password")
        .json(&json!({"password": PASSWORD}));
    set.expect(204).await;
    let right = json!({"email": ANN, "password": PASSWORD});
    let wrong = json!({"email": ANN, "password": ANOTHER});
    let mut statuses = Vec::new();
    for _ in 0..8 {
        let answer = Person::new(&server).post("/v1/auth/password", &wrong).await;
        statuses.push(answer.status);
    }
    assert_eq!((statuses[0], statuses[7]), (401, 429), "M14: {statuses:?}");
    let stranger = Person::new(&server);
    let slow = stranger.refused("/v1/auth/password", &right, (429, "rate_limited"));
    slow.await;
    // What strangers do does not slow down the browser in which the user signed in before.
    ann.posted("/v1/auth/sign-out", &json!({}), 204).await;
    ann.posted("/v1/auth/password", &right, 200).await;

    // One address tries many users.
    let eve = Person::new(&server);
    let mut last = 0;
    for at in 0..23 {
        let body = json!({"email": format!("user-{at}@example.org"), "password": ANOTHER});
        last = eve.post("/v1/auth/password", &body).await.status;
    }
    assert_eq!(last, 429, "M14");

    // Many at once wait for a core, or are sent away with the time to wait.
    let many = (0..100).map(async |at| {
        let body = json!({"email": format!("many-{at}@example.org"), "password": ANOTHER});
        let browser = Person::new(&server);
        browser.post("/v1/auth/password", &body).await
    });
    let methods = async { server.anon().get("/v1/auth/methods").expect(200).await };
    let (answers, methods) = futures_util::future::join(join_all(many), methods).await;
    assert_eq!(methods["passwords"], true, "{methods}");
    for answer in &answers {
        let known = [(401, "sign_in_failed"), (503, "overloaded")];
        let found = (answer.status, answer["code"].as_str().unwrap());
        assert!(known.contains(&found), "M13: {answer}");
    }
    assert!(answers.iter().any(|answer| answer.status == 401), "M13");
}

async fn m15_m16_what_is_secured_anew_ends_what_was(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = user(&server, &sink, ANN).await;
    let elsewhere = user(&server, &sink, ANN).await;
    let eve = Person::new(&server);
    let (link, _) = eve.asks_for_a_link(&sink, ANN).await;
    let forgot = json!({"email": ANN});
    eve.posted("/v1/auth/forgot-password", &forgot, 202).await;
    let token = eve.token_of(&sink.mail_to(ANN, 3).await);
    // A password that is refused does not spend the link.
    let bad = json!({"token": token, "password": "password1"});
    eve.refused("/v1/auth/reset-password", &bad, (422, "validation_failed"))
        .await;
    let good = json!({"token": token, "password": PASSWORD});
    eve.posted("/v1/auth/reset-password", &good, 204).await;
    eve.refused("/v1/auth/reset-password", &good, (410, "link_used"))
        .await;
    assert!(
        !ann.is_signed_in().await && !elsewhere.is_signed_in().await,
        "M15"
    );
    let old = json!({"token": link, "confirmed": true});
    let dead = eve.post("/v1/auth/redeem", &old).await;
    assert_eq!(dead.status, 410, "M15: {dead}");

    // A new address is confirmed where it receives mail, and the old one is told.
    let right = json!({"email": ANN, "password": PASSWORD});
    ann.posted("/v1/auth/password", &right, 200).await;
    forgive(&server).await;
    let (before, new) = (mails_to(&sink, ANN).len(), "ann@example.net");
    ann.posted("/v1/me/email", &json!({"email": new}), 202)
        .await;
    let token = ann.token_of(&sink.mail_to(new, 0).await);
    ann.posted("/v1/auth/confirm-email", &json!({"token": token}), 204)
        .await;
    let me = ann.get("/v1/me").expect(200).await;
    assert_eq!(me["user"]["email"], new, "{me}");
    sink.mail_to(ANN, before).await;

    let env = tests::people_settings(&sink);
    let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let server = sign_ins_get_old(&server, &env).await;
    let recent = (403, "recent_sign_in_required");
    ann.refused("/v1/me/email", &json!({"email": ANN}), recent)
        .await;
    let change = ann
        .call("PUT", "/v1/me/password")
        .json(&json!({"password": ANOTHER}));
    change.refused(recent.0, recent.1).await;
    let remove = ann.call("DELETE", "/v1/me/password");
    remove.refused(recent.0, recent.1).await;
    assert!(server.anon().get("/v1/me").answer().await.status == 401);
}

async fn m17_registration_tells_nobody_who_is_there(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    user(&server, &sink, ANN).await;
    let register = |email: &str| json!({"email": email, "password": PASSWORD});
    let known = Person::new(&server)
        .posted("/v1/auth/register", &register(ANN), 202)
        .await;
    let new = "new@example.org";
    let unknown = Person::new(&server)
        .posted("/v1/auth/register", &register(new), 202)
        .await;
    assert_eq!(seen(&known), seen(&unknown));
    sink.mail_to(new, 0).await;
    let told = sink.mail_to(ANN, 1).await;
    assert!(!told.text.contains("token="), "{}", told.text);

    let env = tests::people_settings(&sink);
    let mut env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    env.push(("STATIONMASTER_REGISTRATION", "closed"));
    let server = server.restart(&env).await;
    forgive(&server).await;
    let closed = (403, "registration_closed");
    let known = Person::new(&server)
        .refused("/v1/auth/register", &register(ANN), closed)
        .await;
    let body = register("newer@example.org");
    let unknown = Person::new(&server)
        .refused("/v1/auth/register", &body, closed)
        .await;
    let without_id = |answer: &Answer| {
        let mut body = answer.json().clone();
        body.as_object_mut().unwrap().remove("request_id");
        body
    };
    assert_eq!(without_id(&known), without_id(&unknown));
}

/// Section 5.6: what may lead to another site leads to the first page.
async fn m18_a_sign_in_leads_to_a_page_of_this_service(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = Person::new(&server);
    let leads = async |to: Value| {
        let before = mails_to(&sink, ANN).len();
        let body = json!({"email": ANN, "return_to": to});
        ann.posted("/v1/auth/link", &body, 202).await;
        let mail = sink.mail_to(ANN, before).await;
        let code = json!({"code": tests::code_of(&mail)});
        forgive(&server).await;
        ann.posted("/v1/auth/code", &code, 200)
            .await
            .text("/return_to")
    };
    assert_eq!(
        leads(json!("/p/acme/runs?status=failed")).await,
        "/p/acme/runs?status=failed"
    );
    for to in [
        "//evil",
        "/\\evil",
        "/%5Cevil",
        "/\t/evil",
        "\\/\\/evil",
        "https:evil",
        "javascript:alert(1)",
        "data:,x",
        "/..//evil",
        "@evil",
        ".evil.com",
        "/a\r\nLocation: //evil",
        "http://127.0.0.1:1/",
        "http://evil",
    ] {
        assert_eq!(leads(json!(to)).await, "/", "{to:?}");
    }
    let long = format!("/{}", "a".repeat(4096));
    let body = json!({"email": ANN, "return_to": long});
    ann.refused("/v1/auth/link", &body, (422, "validation_failed"))
        .await;
}
