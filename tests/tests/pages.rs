//! The pages of a running server. What people do with them is tested beside the pages themselves
//! (`dashboard/src/stories`); here, that the server has them, and nothing else in their place.

use tests::{Browser, Look, World, on_both_stores, tools};

on_both_stores!(the_server_has_pages_and_an_api_at_one_address);

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
