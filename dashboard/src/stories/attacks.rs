use std::time::Duration;

use crate::{routes::PATHS, site::Site};

const ADA: &str = "ada@example.com";

/// A signed-in browser: its cookie, and the token of its forms.
async fn signed_in(site: &Site) -> (String, String) {
    let ada = site.user(ADA, "Ada").await;
    let cookie = format!("stm-dev={}", site.session(&ada).await);
    let page = site
        .ask("GET", "/account", &[("cookie", &cookie)], "")
        .await;
    assert_eq!(page.status, 200);
    (cookie, page.csrf())
}

#[tokio::test]
async fn s14_every_page_says_what_others_may_not_do_with_it() {
    let site = Site::open().await;
    let (cookie, _) = signed_in(&site).await;
    for path in PATHS {
        for cookie in [cookie.as_str(), ""] {
            let page = site.ask("GET", path, &[("cookie", cookie)], "").await;
            let header = |name: &str| page.headers[name].to_str().unwrap().to_owned();
            let policy = header("content-security-policy");
            assert!(policy.starts_with("default-src 'none'"), "{path}");
            assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"));
            assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
            assert_eq!(
                header("cross-origin-opener-policy"),
                "same-origin",
                "{path}"
            );
            assert_eq!(header("cache-control"), "no-store", "{path}");
        }
    }
}

#[tokio::test]
async fn s7_a_form_without_the_token_of_its_own_session_does_nothing() {
    let site = Site::open().await;
    let (cookie, csrf) = signed_in(&site).await;
    let other = site.ask("GET", "/sign-in", &[], "").await;
    let eve = site.user("eve@example.com", "Eve").await;
    let eve = format!("stm-dev={}", site.session(&eve).await);
    let foreign = site
        .ask("GET", "/account", &[("cookie", &eve)], "")
        .await
        .csrf();
    let twice = format!("csrf={csrf}&csrf={csrf}&name=Eve");
    for body in [
        "name=Eve",
        "csrf=&name=Eve",
        "csrf=x&name=Eve",
        &format!("csrf={foreign}&name=Eve"),
        &format!("csrf={}&name=Eve", other.csrf()),
        &twice,
    ] {
        let refused = site
            .ask("POST", "/account/name", &[("cookie", &cookie)], body)
            .await;
        assert_eq!(refused.status, 403, "{body}");
        assert!(
            refused.body.contains("did not come from a page"),
            "{}",
            refused.body
        );
    }
    let body = format!("csrf={csrf}&name=Countess");
    let done = site
        .ask("POST", "/account/name", &[("cookie", &cookie)], &body)
        .await;
    assert_eq!(
        (done.status.as_u16(), done.location()),
        (303, "/account?done=name")
    );
}

#[tokio::test]
async fn s8_s10_another_site_s_page_sends_no_form_even_with_the_right_token() {
    let site = Site::open().await;
    let (cookie, csrf) = signed_in(&site).await;
    let body = format!("csrf={csrf}");
    for path in ["/sign-out", "/account/name", "/sign-in", "/verify"] {
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
            ("origin", "https://evil.example"),
            ("origin", "null"),
        ] {
            let headers = [("cookie", cookie.as_str()), (name, value)];
            let refused = site.ask("POST", path, &headers, &body).await;
            assert_eq!(refused.status, 403, "{path} {name}: {value}");
        }
    }
    assert_eq!(
        site.ask("GET", "/account", &[("cookie", &cookie)], "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn s9_only_forms_of_the_one_type_and_only_known_fields_are_taken() {
    let site = Site::open().await;
    let (cookie, csrf) = signed_in(&site).await;
    let body = format!("csrf={csrf}&name=Eve");
    for content_type in [
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/json",
    ] {
        let headers = [("cookie", cookie.as_str()), ("content-type", content_type)];
        let refused = site.ask("POST", "/account/name", &headers, &body).await;
        assert_eq!(refused.status, 415, "{content_type}");
    }
    for extra in ["&role=owner", "&_method=DELETE", "&name=Eve"] {
        let body = format!("{body}{extra}");
        let refused = site
            .ask("POST", "/account/name", &[("cookie", &cookie)], &body)
            .await;
        assert_eq!(refused.status, 422, "{extra}");
    }
    let cookie = [("cookie", cookie.as_str())];
    for (method, path, allow) in [
        ("GET", "/sign-out", "POST"),
        ("GET", "/account/name", "POST"),
        ("POST", "/account", "GET, HEAD"),
        ("DELETE", "/account", "GET, HEAD"),
    ] {
        let refused = site.ask(method, path, &cookie, &body).await;
        assert_eq!(refused.status, 405, "{method} {path}");
        assert_eq!(refused.headers["allow"], allow, "{method} {path}");
    }
    let head = site.ask("HEAD", "/account", &cookie, "").await;
    assert_eq!((head.status.as_u16(), head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn s2_a_session_is_read_from_the_one_cookie_of_its_very_name() {
    let site = Site::open().await;
    let (cookie, _) = signed_in(&site).await;
    let (_, value) = cookie.split_once('=').unwrap();
    for planted in [
        format!("stm-de%76={value}"),
        format!("STM-DEV={value}"),
        format!("{cookie}; {cookie}"),
        format!("stm-dev=x; {cookie}"),
        format!("stm-dev =x; {cookie}; stm-dev={value}"),
        format!("stm-dev=\"{value}\""),
        format!("__Host-stm={value}"),
    ] {
        let page = site
            .ask("GET", "/account", &[("cookie", &planted)], "")
            .await;
        assert_eq!(page.status, 303, "{planted}");
        assert_eq!(page.location(), "/sign-in?return_to=%2Faccount");
    }
}

#[tokio::test]
async fn s1_nothing_that_was_planted_before_a_sign_in_is_good_after_it() {
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    let page = site.ask("GET", "/sign-in", &[], "").await;
    let visit = page.cookies().join("; ");
    let planted = format!("{visit}; stm-dev={}", site.session(&ada).await);
    let link = site.link(&ada).await;
    let (_, token) = link.split_once("token=").unwrap();
    let page = site.ask("GET", &link, &[("cookie", &planted)], "").await;
    let body = format!("csrf={}&token={token}", page.csrf());
    let done = site
        .ask("POST", "/sign-in/confirm", &[("cookie", &planted)], &body)
        .await;
    assert_eq!(done.status, 303, "{}", done.body);
    let cookies = done.cookies();
    let session = cookies
        .iter()
        .find(|one| one.starts_with("stm-dev="))
        .unwrap();
    assert!(!planted.contains(session.as_str()));
    let old = site
        .ask("GET", "/account", &[("cookie", &planted)], "")
        .await;
    assert_eq!(old.status, 303, "the old session has ended");
    // The token of the old page is not the new session's.
    let body = format!("csrf={}&name=x", page.csrf());
    let refused = site
        .ask("POST", "/account/name", &[("cookie", session)], &body)
        .await;
    assert_eq!(refused.status, 403);
}

#[tokio::test]
async fn s3_a_session_ends_when_it_is_idle_and_when_it_is_old() {
    let site = Site::open().await;
    let (cookie, _) = signed_in(&site).await;
    let asks = async || {
        let page = site
            .ask("GET", "/account", &[("cookie", &cookie)], "")
            .await;
        page.status.as_u16()
    };
    for _ in 0..7 * 24 {
        site.clock.advance(Duration::from_mins(59));
        assert_eq!(asks().await, 200, "what is used stays");
    }
    site.clock.advance(Duration::from_hours(4));
    assert_eq!(asks().await, 303, "but not for ever");
}

#[tokio::test]
async fn m7_another_host_gets_nothing() {
    let site = Site::open().await;
    for headers in [
        &[("host", "evil.example")][..],
        &[("host", "evil.example"), ("x-forwarded-host", "localhost")],
    ] {
        let page = site.ask("GET", "/sign-in", headers, "").await;
        assert_eq!(page.status, 421);
        assert!(!page.body.contains("evil.example"));
        assert!(page.cookies().is_empty());
    }
}

#[tokio::test]
async fn m1_m18_known_and_unknown_addresses_get_the_same_answer_and_no_page_leads_elsewhere() {
    let site = Site::open().await;
    site.user(ADA, "Ada").await;
    let mut answers = Vec::new();
    for address in ["ada%40example.com", "nobody%40example.com"] {
        let page = site.ask("GET", "/sign-in", &[], "").await;
        let visit = page.cookies().join("; ");
        let body = format!(
            "csrf={}&email={address}&by=link&return_to=%2F%2Fevil.example",
            page.csrf()
        );
        let headers = [("cookie", visit.as_str()), ("x-request-id", "same")];
        let mut answer = site.ask("POST", "/sign-in", &headers, &body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.location()),
            (303, "/sign-in/code")
        );
        // The cookie is the browser's own, which was random before.
        answer.headers.remove("set-cookie");
        answers.push(format!("{:?} {}", answer.headers, answer.body));
    }
    assert_eq!(answers[0], answers[1]);
    for evil in [
        "//evil",
        "/\\evil",
        "https:evil",
        "/%5Cevil",
        "javascript:alert(1)",
        "/\t/evil",
    ] {
        let path = format!("/sign-in?return_to={}", web::http::form::encode(evil));
        let page = site.ask("GET", &path, &[], "").await;
        assert!(!page.body.contains("evil"), "{evil}");
    }
}

#[tokio::test]
async fn m3_a_link_is_good_once_and_twenty_who_try_at_once_get_one_session() {
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    let link = site.link(&ada).await;
    let (_, token) = link.split_once("token=").unwrap();
    let page = site.ask("GET", &link, &[], "").await;
    let visit = page.cookies().join("; ");
    let body = format!("csrf={}&token={token}", page.csrf());
    let headers = [("cookie", visit.as_str())];
    let all: Vec<_> = (0..20)
        .map(|_| site.ask("POST", "/sign-in/confirm", &headers, &body))
        .collect();
    let mut statuses = Vec::new();
    for answer in futures_util::future::join_all(all).await {
        statuses.push(answer.status.as_u16());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [vec![303], vec![410; 19]].concat());
}
