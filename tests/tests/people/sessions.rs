//! Rows S1 to S16 and U1 to U3: sessions, cookies, the token of changes, and the audit log.

use serde_json::json;
use tests::{
    Person, SESSION_COOKIE, Server, SmtpSink, World, fingerprint, on_both_stores, people_settings,
};

use super::{ANOTHER, PASSWORD, actions, forgive, sign_ins_get_old, start};

on_both_stores!(
    s1_s4_sessions_end_when_they_should,
    s2_s5_cookies_are_read_and_set_exactly,
    s3_a_session_ends_by_itself,
    s6_s11_a_session_reaches_its_own_publishers_and_a_token_needs_none,
    s7_s8_s9_s10_changes_come_from_pages_of_ours,
    s12_s13_what_is_sensitive_needs_a_recent_sign_in,
    u1_u2_u3_attempts_are_in_the_audit_log,
);

const ANN: &str = "ann@example.org";
const UNAUTHENTICATED: (u16, &str) = (401, "unauthenticated");

async fn signed_in(server: &Server, sink: &SmtpSink) -> Person {
    let browser = Person::new(server);
    browser.signs_in(sink, ANN).await;
    forgive(server).await;
    browser
}

async fn s1_s4_sessions_end_when_they_should(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = Person::new(&server);
    let planted = format!("stm_ses_{}", "x".repeat(49));
    ann.plant(SESSION_COOKIE, &planted);
    ann.signs_in(&sink, ANN).await;
    assert_ne!(ann.cookie(SESSION_COOKIE), planted, "S1");
    // Whoever signs in again has a new session, and the old one is over.
    let thief = ann.clone();
    assert!(thief.is_signed_in().await);
    ann.signs_in(&sink, ANN).await;
    assert!(
        !thief.is_signed_in().await && ann.is_signed_in().await,
        "S1"
    );

    forgive(&server).await;
    let (desk, phone, tablet) = (
        signed_in(&server, &sink).await,
        signed_in(&server, &sink).await,
        signed_in(&server, &sink).await,
    );
    let list = desk.get("/v1/me/sessions").expect(200).await;
    let items = list["items"].as_array().unwrap();
    assert_eq!(items.len(), 4, "{list}");
    let of_phone = items.iter().find(|one| one["address"] == phone.address());
    let path = format!(
        "/v1/me/sessions/{}",
        of_phone.unwrap()["id"].as_str().unwrap()
    );
    desk.call("DELETE", &path).expect(204).await;
    desk.call("DELETE", &path).refused(404, "not_found").await;
    assert!(!phone.is_signed_in().await, "S4");
    desk.call("DELETE", "/v1/me/sessions").expect(204).await;
    assert!(
        desk.is_signed_in().await && !tablet.is_signed_in().await,
        "S4"
    );
    assert!(!ann.is_signed_in().await, "S4");
    let thief = desk.clone();
    desk.posted("/v1/auth/sign-out", &json!({}), 204).await;
    assert_eq!(desk.cookie(SESSION_COOKIE), "", "S4");
    assert!(!thief.is_signed_in().await, "S4");
}

async fn s2_s5_cookies_are_read_and_set_exactly(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = signed_in(&server, &sink).await;
    let value = ann.cookie(SESSION_COOKIE);
    let ask = |cookie: String| server.anon().get("/v1/me").header("cookie", &cookie);
    ask(format!("stm-dev={value}")).expect(200).await;
    ask(format!("a=b; stm-dev={value}; c=d")).expect(200).await;
    for cookie in [
        format!("stm%2Ddev={value}"),
        format!("STM-DEV={value}"),
        format!("__Host-stm={value}"),
        format!("__%48ost-stm={value}"),
        format!("stm-dev ={value}"),
        format!("stm-dev=\"{value}\""),
        format!("=stm-dev={value}"),
        format!("stm-dev={value}; stm-dev={value}"),
        format!("stm-dev={value}; stm-dev=x"),
        "stm-dev".to_owned(),
        "stm-dev=".to_owned(),
    ] {
        let answer = ask(cookie.clone()).answer().await;
        assert_eq!(
            answer.status,
            401,
            "S2 {}: {answer}",
            cookie.replace(&value, "…")
        );
    }
    by_https_they_are_of_this_host_alone(&server, &sink).await;
}

/// Row S5, on a server that browsers reach by https.
async fn by_https_they_are_of_this_host_alone(server: &Server, sink: &SmtpSink) {
    let secure = ("STATIONMASTER_PUBLIC_URL", "https://sm.example.com");
    let env = people_settings(sink);
    let mut env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    env.push(secure);
    let server = server.restart(&env).await;
    let browser = Person::new(&server);
    let before = tests::mails_to(sink, ANN).len();
    let post = |path: &str| browser.call("POST", path).header("host", "sm.example.com");
    let asked = post("/v1/auth/link").json(&json!({"email": ANN}));
    let asked = asked.expect(202).await;
    let visit = asked
        .header("set-cookie")
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let code = tests::code_of(&sink.mail_to(ANN, before).await);
    let redeem = post("/v1/auth/code").header("cookie", &visit);
    let answer = redeem.json(&json!({"code": code})).expect(200).await;
    let set: Vec<&str> = answer
        .headers
        .get_all("set-cookie")
        .iter()
        .map(|v| v.to_str().unwrap())
        .collect();
    let names = [
        ("__Host-stm=", "604800"),
        ("__Host-stm-device=", "31536000"),
    ];
    assert_eq!(set.len(), names.len(), "S5");
    for (header, (name, age)) in set.iter().zip(names) {
        assert!(header.starts_with(name), "S5: {name}");
        let (_, attributes) = header.split_once("; ").unwrap();
        let expected = format!("Path=/; HttpOnly; SameSite=Lax; Secure; Max-Age={age}");
        assert_eq!(attributes, expected, "S5");
    }
    assert_eq!(answer.header("cache-control"), "no-store", "S14");
    post("/v1/auth/link")
        .header("host", "127.0.0.1")
        .json(&json!({"email": ANN}))
        .refused(421, "wrong_host")
        .await;
}

async fn s3_a_session_ends_by_itself(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let (idle, long) = (
        signed_in(&server, &sink).await,
        signed_in(&server, &sink).await,
    );
    let site = server.site();
    let of = |browser: &Person| format!("WHERE client_address = '{}'", browser.address());
    let aged = format!(
        "UPDATE sessions SET last_seen_at = last_seen_at - 3661000 {}",
        of(&idle)
    );
    assert_eq!(site.execute(&aged).await, 1);
    let over = format!("UPDATE sessions SET expires_at = created_at {}", of(&long));
    assert_eq!(site.execute(&over).await, 1);
    let live = signed_in(&server, &sink).await;
    let env = people_settings(&sink);
    let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    // What a process has seen itself it need not read again.
    let server = server.restart(&env).await;
    assert!(!idle.at(&server).is_signed_in().await, "S3: idle");
    assert!(!long.at(&server).is_signed_in().await, "S3: absolute");
    assert!(live.at(&server).is_signed_in().await, "S3");
}

async fn s6_s11_a_session_reaches_its_own_publishers_and_a_token_needs_none(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let (acme, other) = (
        server.publisher("acme").await,
        server.publisher("other").await,
    );
    let ann = Person::joins(&server, &sink, (&acme.admin, "acme"), "owner").await;
    ann.get("/v1/publishers/me").expect(200).await;
    let named = |slug: &str| {
        ann.get("/v1/publishers/me")
            .header("stationmaster-publisher", slug)
    };
    let same = |call: tests::Call| {
        call.header("x-request-id", "same")
            .refused(404, "not_found")
    };
    let (there, absent) = (same(named(&other.slug)).await, same(named("no-such")).await);
    assert_eq!(fingerprint(&there), fingerprint(&absent), "S6");
    named("Not A Slug").refused(404, "not_found").await;
    let nameless = Person::new(&server);
    nameless.plant(SESSION_COOKIE, &ann.cookie(SESSION_COOKIE));
    nameless
        .get("/v1/publishers/me")
        .refused(400, "publisher_required")
        .await;

    // A token needs no proof, and a cookie beside it does not count.
    let bearer = format!("Bearer {}", other.admin.token());
    let who = ann
        .get("/v1/publishers/me")
        .authorization(Some(&bearer))
        .expect(200)
        .await;
    assert_eq!(who["slug"], "other", "S11: {who}");
    assert!(who.text("/credential/id").starts_with("tok_"), "S11: {who}");
    let mint = nameless.call("POST", "/v1/publishers/me/tokens/runner");
    mint.authorization(Some(&bearer)).expect(201).await;
    let bad = ann
        .get("/v1/publishers/me")
        .authorization(Some("Bearer stm_admin_x"));
    bad.refused(UNAUTHENTICATED.0, UNAUTHENTICATED.1).await;
    ann.get("/v1/members?limit=0")
        .refused(400, "invalid_parameter")
        .await;
}

#[expect(clippy::too_many_lines, reason = "one story, told in order")]
async fn s7_s8_s9_s10_changes_come_from_pages_of_ours(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let acme = server.publisher("acme").await;
    let ann = Person::joins(&server, &sink, (&acme.admin, "acme"), "owner").await;
    let other = signed_in(&server, &sink).await;
    let csrf = (403, "csrf");
    let changes = [
        ("POST", "/v1/publishers/me/tokens/runner", json!({})),
        ("PATCH", "/v1/me", json!({"name": "x"})),
        ("DELETE", "/v1/me/sessions", json!({})),
        ("POST", "/v1/auth/sign-out", json!({})),
    ];
    let others = other.csrf_token();
    for (method, path, body) in &changes {
        let call = || ann.call(method, path).json(body);
        for token in ["", "x", others.as_str(), &ann.cookie(SESSION_COOKIE)] {
            call()
                .header("x-csrf-token", token)
                .refused(csrf.0, csrf.1)
                .await;
        }
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("sec-fetch-site", "none"),
            ("origin", "null"),
            ("origin", "https://evil.example"),
            ("origin", "http://127.0.0.1"),
        ] {
            call().header(name, value).refused(csrf.0, csrf.1).await;
        }
        call()
            .header("host", "evil.example")
            .refused(421, "wrong_host")
            .await;
    }
    // A token of the session before is over together with it.
    let old = ann.csrf_token();
    let email = ann.get("/v1/me").expect(200).await.text("/user/email");
    forgive(&server).await;
    ann.signs_in(&sink, &email).await;
    let call = ann.call("PATCH", "/v1/me").json(&json!({"name": "x"}));
    call.header("x-csrf-token", &old)
        .refused(csrf.0, csrf.1)
        .await;
    ann.call("PATCH", "/v1/me")
        .json(&json!({"name": "x"}))
        .header("origin", &server.url())
        .expect(200)
        .await;

    // Nobody is signed in by another site's page, and no form can send JSON.
    let body = json!({"email": ANN});
    for path in [
        "/v1/auth/link",
        "/v1/auth/register",
        "/v1/auth/forgot-password",
    ] {
        let call = || Person::new(&server).call("POST", path);
        call()
            .json(&body)
            .header("sec-fetch-site", "cross-site")
            .refused(csrf.0, csrf.1)
            .await;
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
        ] {
            let call = call().text(kind, body.to_string());
            call.refused(415, "unsupported_media_type").await;
        }
        server
            .anon()
            .get(path)
            .refused(405, "method_not_allowed")
            .await;
        let query = format!("{path}?_method=POST");
        server.anon().get(&query).expect(405).await;
    }
}

async fn s12_s13_what_is_sensitive_needs_a_recent_sign_in(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let acme = server.publisher("acme").await;
    let ann = Person::joins(&server, &sink, (&acme.admin, "acme"), "owner").await;
    let user = ann.get("/v1/me").expect(200).await;
    let env = people_settings(&sink);
    let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let server = sign_ins_get_old(&server, &env).await;
    let me = ann.get("/v1/me").expect(200).await;
    assert_eq!(me["recent_sign_in"], false, "{me}");
    let member = format!("/v1/members/{}", user.text("/user/id"));
    let body = json!({"email": "x@example.org", "role": "viewer"});
    let sensitive = [
        ("POST", "/v1/publishers/me/tokens/runner", json!({})),
        ("POST", "/v1/publishers/me/tokens/admin/rotate", json!({})),
        ("POST", "/v1/invitations", body),
        ("PATCH", &member, json!({"role": "viewer"})),
        ("DELETE", &member, json!({})),
    ];
    for (method, path, body) in &sensitive {
        // Using the session does not make the sign-in any younger.
        let call = ann.call(method, path).json(body);
        call.refused(403, "recent_sign_in_required").await;
    }
    ann.get("/v1/members").expect(200).await;
    forgive(&server).await;
    let email = user.text("/user/email");
    ann.signs_in(&sink, &email).await;
    ann.posted("/v1/publishers/me/tokens/runner", &json!({}), 201)
        .await;
}

/// A condition that no new row of the audit log meets, or its end.
async fn audit_fails(server: &Server, fails: bool) {
    let site = server.site();
    let statement = match (site.database.is_some(), fails) {
        (true, true) => {
            "ALTER TABLE audit_events ADD CONSTRAINT nothing_more CHECK (false) NOT VALID"
        }
        (true, false) => "ALTER TABLE audit_events DROP CONSTRAINT nothing_more",
        (false, true) => {
            "CREATE TRIGGER nothing_more BEFORE INSERT ON audit_events \
             BEGIN SELECT RAISE(ABORT, 'nothing more'); END"
        }
        (false, false) => "DROP TRIGGER nothing_more",
    };
    site.execute(statement).await;
}

async fn u1_u2_u3_attempts_are_in_the_audit_log(world: &World) {
    let Some((server, sink)) = start(world, &[]).await else {
        return;
    };
    let ann = signed_in(&server, &sink).await;
    let set = ann
        .call("PUT", "/v1/me/password")
        .json(&json!({"password": PASSWORD}));
    set.expect(204).await;
    let wrong = json!({"email": ANN, "password": ANOTHER});
    let call = ann.call("POST", "/v1/auth/password").json(&wrong);
    let agent = "Mozilla/5.0 (a; b)";
    call.header("user-agent", agent)
        .refused(401, "sign_in_failed")
        .await;
    let rows = actions(&server).await;
    let row = rows
        .iter()
        .find(|row| row["action"] == "sign_in.failed")
        .unwrap();
    assert_eq!(row["address"], ann.address(), "U1: {row}");
    assert_eq!(row["user_agent"], agent, "U1: {row}");
    for action in [
        "sign_in.requested",
        "sign_in.succeeded",
        "user.created",
        "password.changed",
    ] {
        assert!(
            rows.iter().any(|row| row["action"] == action),
            "U1: {action}"
        );
    }

    server.site().tolerate("nothing");
    audit_fails(&server, true).await;
    let change = ann
        .call("PUT", "/v1/me/password")
        .json(&json!({"password": ANOTHER}));
    let failed = change.answer().await;
    assert!(failed.status >= 500, "U2: {failed}");
    let failed = Person::new(&server).post("/v1/auth/password", &wrong).await;
    assert!(failed.status >= 400, "U2: {failed}");
    audit_fails(&server, false).await;
    let right = json!({"email": ANN, "password": PASSWORD});
    Person::new(&server)
        .posted("/v1/auth/password", &right, 200)
        .await;
    Person::new(&server)
        .refused("/v1/auth/password", &wrong, (401, "sign_in_failed"))
        .await;

    assert!(server.stop().await.success());
    let mut verify = server.site().command(&[]);
    let output = verify.args(["audit", "verify"]).output().await.unwrap();
    assert!(
        output.status.success(),
        "U3: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
