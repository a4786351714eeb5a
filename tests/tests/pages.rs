//! The pages of a running server. What people do with them is tested beside the pages themselves
//! (`dashboard/src/stories`); here, that the server has them, and nothing else in their place.

use serde_json::Value;
use tests::{Browser, Look, Server, SmtpSink, Tab, World, on_both_stores, tools};

on_both_stores!(
    the_server_has_pages_and_an_api_at_one_address,
    the_first_person_invites_another_who_adds_a_passkey,
);

const ADA: &str = "ada@example.com";
const BEN: &str = "ben@example.com";

async fn the_server_has_pages_and_an_api_at_one_address(world: &World) {
    let server = world.start().await;
    let url = server.url();
    let host = url.trim_start_matches("http://");
    let ask = async |line: &str, more: &str| {
        let head = format!("{line} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{more}\r\n");
        tools::raw(&url, head.as_bytes()).await
    };
    // Who is nobody yet is led to sign in, and a program still gets problems.
    let first = ask("GET /", "").await;
    assert!(first.starts_with("HTTP/1.1 303"), "{first}");
    let missing = ask("GET /nothing", "accept: text/html\r\n").await;
    assert!(
        missing.starts_with("HTTP/1.1 404") && missing.contains("There is no such page"),
        "{missing}"
    );
    let missing = ask("GET /nothing", "").await;
    assert!(missing.contains("application/problem+json"), "{missing}");
    let missing = ask("GET /v1/nothing", "accept: text/html\r\n").await;
    assert!(missing.contains("application/problem+json"), "{missing}");

    let Some(browser) = Browser::start("pages").await else {
        return;
    };
    let tab = browser.tab(&server.url(), Look::default()).await;
    let shown = tab.open("/").await;
    assert!(shown.url.contains("/sign-in"), "{}", shown.url);
    assert_eq!(shown.status, 200);
    tab.judge().await;
    // A link that never was: nobody learns more than that, and the log keeps no token.
    let token = format!("not-a-token-{}", tools::word());
    let shown = tab.open(&format!("/sign-in/confirm?token={token}")).await;
    assert_eq!(shown.status, 400, "{}", shown.text);
    tab.judge().await;
    let log: Vec<String> = server.log().iter().map(ToString::to_string).collect();
    assert!(log.iter().any(|line| line.contains("/sign-in/confirm")));
    assert!(!log.iter().any(|line| line.contains(&token)));
}

/// What the session's cookie of a tab holds must be found nowhere.
async fn remember_session(server: &Server, tab: &Tab) {
    for cookie in tab.cookies().await {
        if cookie["name"] == "stm-dev" {
            server.site().remember(cookie["value"].as_str().unwrap());
        }
    }
}

/// The path of a link, whose token must be found nowhere.
fn path_of(server: &Server, link: &str, origin: &str) -> String {
    server
        .site()
        .remember(link.split_once("?token=").unwrap().1);
    link.strip_prefix(origin).unwrap().to_owned()
}

/// A member adds a passkey, signs out, and signs in by it. Nothing is left in the browser between.
async fn adds_a_passkey_and_uses_it(server: &Server, guest: &Tab) {
    guest.authenticator().await;
    guest.open("/account").await;
    let shown = guest.press("Add a passkey").await;
    assert!(
        shown.text.contains("The passkey was added."),
        "{}",
        shown.text
    );
    guest.judge().await;
    guest.press("Sign out").await;
    assert!(!guest.back().await.text.contains(BEN), "nothing is kept");
    guest.open("/sign-in?return_to=/p/acme").await;
    let shown = guest.press("Use a passkey").await;
    assert!(shown.url.ends_with("/p/acme"), "{}", shown.text);
    remember_session(server, guest).await;
    guest.judge().await;
}

async fn the_first_person_invites_another_who_adds_a_passkey(world: &World) {
    let name = "pages::first_person";
    let (Some(browser), Some(sink)) = (Browser::start(name).await, SmtpSink::start(name).await)
    else {
        return;
    };
    let listen = tools::lasting_address();
    let (_, port) = listen.split_once(':').unwrap();
    // By this name browsers have passkeys without https.
    let (origin, smtp) = (
        format!("http://localhost:{port}"),
        sink.starttls.to_string(),
    );
    let settings = [
        ("STATIONMASTER_LISTEN", listen.as_str()),
        ("STATIONMASTER_PUBLIC_URL", &origin),
        ("STATIONMASTER_SMTP_URL", &smtp),
        ("STATIONMASTER_MAIL_FROM", "mail@example.com"),
    ];
    let server = world.start_with(&settings).await;
    server.publisher("acme").await;
    let mut command = server.site().command(&[]);
    command.args(["users", "create", ADA, "--owner-of", "acme", "--json"]);
    let made = command.envs(settings).output().await.unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let link = path_of(&server, made["sign_in_link"].as_str().unwrap(), &origin);

    let owner = browser.tab(&origin, Look::default()).await;
    owner.open(&link).await;
    let shown = owner.press("Sign in").await;
    assert!(shown.text.contains("Your publishers"), "{}", shown.text);
    remember_session(&server, &owner).await;
    owner.open("/p/acme").await;
    owner.fill("E-mail address", BEN).await;
    owner.check("developer").await;
    let shown = owner.press("Send the invitation").await;
    assert!(shown.text.contains("on its way"), "{}", shown.text);
    owner.judge().await;

    let phone = Look {
        width: 375,
        ..Look::default()
    };
    let guest = browser.tab(&origin, phone).await;
    let mail = sink.mail_to(BEN, 0).await;
    guest.open(&path_of(&server, mail.link(), &origin)).await;
    let shown = guest.press("Accept the invitation").await;
    assert!(
        shown.text.contains("You are a member now."),
        "{}",
        shown.text
    );
    remember_session(&server, &guest).await;
    adds_a_passkey_and_uses_it(&server, &guest).await;

    // By the code of a mail, too.
    guest.press("Sign out").await;
    guest.fill("E-mail address", BEN).await;
    guest.press("E-mail me a sign-in link").await;
    let mail = sink.mail_to(BEN, 2).await;
    path_of(&server, mail.link(), &origin);
    let mut words = mail.text.split(|c: char| !c.is_ascii_digit());
    let code = words.rfind(|word| word.len() == 8).unwrap();
    guest.fill("Eight-digit code", code).await;
    let shown = guest.press("Sign in").await;
    assert!(shown.text.contains("Your publishers"), "{}", shown.text);
    remember_session(&server, &guest).await;
}
