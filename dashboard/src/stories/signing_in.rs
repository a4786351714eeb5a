use std::{process::Stdio, time::Duration};

use tests::{Browser, Look};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
};

use crate::site::{Site, code_in};

const ADA: &str = "ada@example.com";

/// What a phone is.
const PHONE: Look = Look {
    width: 375,
    javascript: false,
    dark: true,
};

#[tokio::test]
async fn somebody_signs_in_by_the_code_of_a_mail_and_out_again() {
    let Some(browser) = Browser::start("pages::code").await else {
        return;
    };
    let site = Site::open().await;
    site.user(ADA, "Ada").await;
    let tab = site.tab(&browser, Look::default()).await;
    // Whoever is not signed in comes back to the page that was wanted.
    let shown = tab.open("/account").await;
    assert!(
        shown.url.ends_with("/sign-in?return_to=%2Faccount"),
        "{}",
        shown.url
    );
    tab.fill("E-mail address", ADA).await;
    let shown = tab.press("E-mail me a link instead").await;
    assert!(shown.text.contains("Look into your mail"), "{}", shown.text);
    tab.judge().await;

    let code = code_in(&site.mail_to(ADA).await);
    tab.fill(
        "Eight-digit code",
        if code == "111111" { "222222" } else { "111111" },
    )
    .await;
    let shown = tab.press("Sign in").await;
    assert_eq!(shown.status, 401);
    assert!(shown.text.contains("not the code"), "{}", shown.text);
    tab.judge().await;
    let spaced = format!("{} {}", &code[..3], &code[3..]);
    tab.fill("Eight-digit code", &spaced).await;
    let shown = tab.press("Sign in").await;
    assert!(shown.url.ends_with("/account"), "{}", shown.url);
    assert!(shown.text.contains("this browser"), "{}", shown.text);
    tab.judge().await;

    let shown = tab.press("Sign out").await;
    assert!(
        shown.text.contains("You were signed out."),
        "{}",
        shown.text
    );
    let shown = tab.back().await;
    assert!(
        !shown.text.contains(ADA),
        "nothing is shown after signing out: {}",
        shown.text
    );
    assert!(shown.url.contains("/sign-in"), "{}", shown.url);
    tab.judge().await;
}

#[tokio::test]
async fn a_link_signs_in_the_browser_that_asked_by_one_click() {
    let Some(browser) = Browser::start("pages::link").await else {
        return;
    };
    let site = Site::open().await;
    site.user(ADA, "Ada").await;
    let tab = site.tab(&browser, PHONE).await;
    tab.open("/sign-in").await;
    tab.fill("E-mail address", ADA).await;
    tab.press("E-mail me a link instead").await;
    let link = site.link_in(&site.mail_to(ADA).await);
    // However often it is opened.
    for _ in 0..3 {
        let shown = tab.open(&link).await;
        assert_eq!(shown.status, 200);
        assert!(shown.text.contains(ADA), "{}", shown.text);
        assert!(!shown.text.contains("another browser"), "{}", shown.text);
    }
    let (_, headers) = tab.source().await;
    assert_eq!(headers["referrer-policy"], "no-referrer");
    let shown = tab.press("Sign in").await;
    assert!(shown.text.contains("Your publishers"), "{}", shown.text);
    let shown = tab.open(&link).await;
    assert_eq!(shown.status, 410, "{}", shown.text);
    assert!(shown.text.contains("was used already"), "{}", shown.text);
    tab.judge().await;
}

#[tokio::test]
async fn m4_a_link_in_another_browser_asks_first_and_says_for_whom() {
    let Some(browser) = Browser::start("pages::other_browser").await else {
        return;
    };
    let site = Site::open().await;
    site.user(ADA, "Ada").await;
    let asks = site.tab(&browser, Look::default()).await;
    asks.open("/sign-in").await;
    asks.fill("E-mail address", ADA).await;
    asks.press("E-mail me a link instead").await;
    let mail = site.mail_to(ADA).await;

    let other = site.tab(&browser, Look::default()).await;
    let shown = other.open(&site.link_in(&mail)).await;
    assert!(
        shown.text.contains("asked for in another browser"),
        "{}",
        shown.text
    );
    assert!(shown.text.contains(ADA), "{}", shown.text);
    other.judge().await;
    // The code is of no use there.
    other.open("/sign-in/code").await;
    other.fill("Eight-digit code", &code_in(&mail)).await;
    assert_eq!(other.press("Sign in").await.status, 401);
    other.open(&site.link_in(&mail)).await;
    let shown = other.press("Sign in in this browser").await;
    assert!(shown.text.contains("Your publishers"), "{}", shown.text);
    assert!(!asks.open("/").await.text.contains("Your publishers"));
}

#[tokio::test]
async fn the_session_s_cookie_is_the_browser_s_alone() {
    let Some(browser) = Browser::start("pages::cookie").await else {
        return;
    };
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    let tab = site.tab_of(&browser, &ada, Look::default()).await;
    let cookies = tab.cookies().await;
    let session = cookies
        .iter()
        .find(|cookie| cookie["name"] == "stm-dev")
        .unwrap();
    assert_eq!(session["httpOnly"], true);
    assert_eq!(session["sameSite"], "Lax");
    assert_eq!(session["path"], "/");
    let (source, _) = tab.source().await;
    assert!(!source.contains(session["value"].as_str().unwrap()));
}

/// A certified `OpenID` provider that knows one person, without an address. It ends when dropped.
async fn provider(name: &str) -> Option<(String, Child)> {
    let Some(home) = tests::node_modules("oidc-provider") else {
        tests::skip(name, "oidc-provider is missing; scripts/test installs it");
        return None;
    };
    let mut child = Command::new("node")
        .arg(tests::tools::root().join("tests/programs/oidc-provider.mjs"))
        .args(["3600", "http://localhost/sign-in/with/acme/callback"])
        .env("STATIONMASTER_TEST_NODE_PATH", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await;
    let line = line.unwrap().unwrap().expect("the provider starts");
    let url = line.strip_prefix("listening on ").unwrap().to_owned();
    Some((url, child))
}

#[tokio::test]
async fn a_sign_in_elsewhere_is_connected_and_then_signs_in() {
    let name = "pages::elsewhere";
    let (Some(browser), Some((issuer, _running))) =
        (Browser::start(name).await, provider(name).await)
    else {
        return;
    };
    let site = Site::open_at(Some(&issuer), |settings| settings).await;
    let ada = site.user(ADA, "Ada").await;
    // Nobody is known by it, and it names no address.
    let stranger = site.tab(&browser, Look::default()).await;
    stranger.open("/sign-in").await;
    stranger.touch("Continue with Acme").await;
    let shown = stranger.see("is not verified").await;
    assert_eq!(shown.status, 403, "{}", shown.text);

    let tab = site.tab_of(&browser, &ada, Look::default()).await;
    tab.open("/account").await;
    tab.judge().await;
    tab.touch("Connect Acme").await;
    let shown = tab.see("connected with you now").await;
    assert!(shown.text.contains(&issuer), "{}", shown.text);
    tab.press("Sign out").await;
    tab.open("/sign-in?return_to=/account").await;
    tab.touch("Continue with Acme").await;
    let shown = tab.see("Your account").await;
    assert!(shown.url.ends_with("/account"), "{}", shown.url);
    let shown = tab.press("Disconnect person").await;
    assert!(
        shown.text.contains("not connected with you any more"),
        "{}",
        shown.text
    );
}

#[tokio::test]
async fn o1_o8_what_this_browser_did_not_begin_ends_nothing() {
    let name = "pages::callbacks";
    let Some((issuer, _running)) = provider(name).await else {
        return;
    };
    let site = Site::open_at(Some(&issuer), |settings| settings).await;
    let page = site.ask("GET", "/sign-in", &[], "").await;
    let visit = page.cookies().join("; ");
    let headers = [("cookie", visit.as_str())];
    let body = format!("csrf={}", page.csrf());
    let leave = site
        .ask("POST", "/sign-in/with/acme", &headers, &body)
        .await;
    assert_eq!(leave.status, 200, "{}", leave.body);
    let (_, rest) = leave.body.split_once("state=").unwrap();
    let state = rest.split(['&', '"']).next().unwrap();
    let back = format!("/sign-in/with/acme/callback?state={state}&error=access_denied");
    // Another browser, and one without a cookie.
    let other = site
        .ask("GET", "/sign-in", &[], "")
        .await
        .cookies()
        .join("; ");
    for cookie in [other.as_str(), ""] {
        let refused = site.ask("GET", &back, &[("cookie", cookie)], "").await;
        assert_eq!(refused.status, 400, "{}", refused.body);
        assert!(!refused.body.contains(state));
    }
    let twice = format!("{back}&state={state}");
    assert_eq!(site.ask("GET", &twice, &headers, "").await.status, 400);
    assert_eq!(
        site.ask("GET", &back, &headers, "").await.status,
        400,
        "it was denied"
    );
    let again = site.ask("GET", &back, &headers, "").await;
    assert_eq!((again.status.as_u16(), again.location()), (303, "/sign-in"));
}
