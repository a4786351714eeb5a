use domain::people::Role;
use tests::{Browser, Look};

use crate::site::Site;

const ADA: &str = "ada@example.com";
const BEN: &str = "ben@example.com";
const PASSWORD: &str = "five red lorries in Turin";
const ANOTHER: &str = "seven blue bicycles in Oslo";

#[tokio::test]
async fn somebody_registers_signs_in_by_password_and_resets_it() {
    let Some(browser) = Browser::start("pages::register").await else {
        return;
    };
    let site = Site::open().await;
    let tab = site.tab(&browser, Look::default()).await;
    tab.open("/register").await;
    tab.fill("Your name", "Ada <b>Lovelace</b>").await;
    tab.fill("E-mail address", ADA).await;
    tab.fill("Password (optional)", "password1").await;
    let shown = tab.press("Register").await;
    assert_eq!(shown.status, 422, "{}", shown.text);
    tab.judge().await;
    let (source, _) = tab.source().await;
    assert!(
        source.contains(ADA) && !source.contains("password1"),
        "what was typed stays, passwords excepted"
    );
    tab.fill("Password (optional)", PASSWORD).await;
    let shown = tab.press("Register").await;
    assert!(shown.text.contains("A mail was sent"), "{}", shown.text);

    // Nobody gets in before the address is verified.
    tab.open("/sign-in").await;
    tab.fill("E-mail address", ADA).await;
    tab.fill("Password", PASSWORD).await;
    assert_eq!(tab.press("Sign in").await.status, 401);
    tab.judge().await;
    tab.open(&site.link_in(&site.mail_to(ADA).await)).await;
    tab.judge().await;
    let shown = tab.press("Confirm the address").await;
    assert!(shown.text.contains("Ada <b>Lovelace</b>"), "{}", shown.text);
    tab.press("Sign out").await;

    let other = site.tab(&browser, Look::default()).await;
    other.open("/sign-in?return_to=/account").await;
    other.fill("E-mail address", ADA).await;
    other.fill("Password", PASSWORD).await;
    let shown = other.press("Sign in").await;
    assert!(shown.url.ends_with("/account"), "{}", shown.url);

    tab.open("/sign-in").await;
    tab.follow("Forgot your password?").await;
    tab.fill("E-mail address", ADA).await;
    let shown = tab.press("Send the mail").await;
    assert!(shown.text.contains("Look into your mail"), "{}", shown.text);
    tab.open(&site.link_in(&site.mail_to(ADA).await)).await;
    tab.fill("New password", "password1").await;
    assert_eq!(tab.press("Set the password").await.status, 422);
    tab.fill("New password", ANOTHER).await;
    let shown = tab.press("Set the password").await;
    assert!(
        shown.text.contains("Your password was changed."),
        "{}",
        shown.text
    );
    let shown = other.open("/account").await;
    assert!(
        shown.url.contains("/sign-in"),
        "the reset ended the session: {}",
        shown.url
    );
    for (password, status) in [(PASSWORD, 401), (ANOTHER, 200)] {
        tab.open("/sign-in").await;
        tab.fill("E-mail address", ADA).await;
        tab.fill("Password", password).await;
        assert_eq!(tab.press("Sign in").await.status, status, "{password}");
    }
}

#[tokio::test]
async fn a_member_is_invited_joins_changes_role_and_is_removed_without_scripts_on_a_phone() {
    let Some(browser) = Browser::start("pages::members").await else {
        return;
    };
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    site.publisher("engines", "Analytical Engines", &ada).await;
    let phone = Look {
        width: 375,
        javascript: false,
        dark: false,
    };
    let owner = site.tab_of(&browser, &ada, phone).await;
    let shown = owner.follow("Analytical Engines").await;
    assert!(shown.url.ends_with("/p/engines"), "{}", shown.url);
    owner.fill("E-mail address", "nobody").await;
    // Without scripts the browser itself refuses what is no address; with one that it takes:
    owner.fill("E-mail address", "nobody@localhost").await;
    assert_eq!(owner.press("Send the invitation").await.status, 422);
    owner.fill("E-mail address", BEN).await;
    let shown = owner.press("Send the invitation").await;
    assert!(
        shown.text.contains("The invitation is on its way."),
        "{}",
        shown.text
    );
    owner.judge().await;

    let guest = site.tab(&browser, phone).await;
    let link = site.link_in(&site.mail_to(BEN).await);
    for _ in 0..3 {
        let shown = guest.open(&link).await;
        assert!(shown.text.contains("Ada invites you"), "{}", shown.text);
    }
    let shown = guest.press("Accept the invitation").await;
    assert!(
        shown.text.contains("You are a member now."),
        "{}",
        shown.text
    );
    assert!(!shown.text.contains("Invite somebody"), "{}", shown.text);
    assert_eq!(guest.open(&link).await.status, 410);
    guest.judge().await;

    owner.open("/p/engines").await;
    owner.select(&format!("Role of {BEN}"), "admin").await;
    let shown = owner.press(&format!("Change the role of {BEN}")).await;
    assert!(
        shown.text.contains("The role was changed."),
        "{}",
        shown.text
    );
    let shown = guest.open("/p/engines").await;
    assert!(
        shown.text.contains("Invite somebody"),
        "at once: {}",
        shown.text
    );

    owner.follow(&format!("Remove… {BEN}")).await;
    owner.judge().await;
    let shown = owner.press(&format!("Remove {BEN}")).await;
    assert!(
        shown.text.contains("not a member any more"),
        "{}",
        shown.text
    );
    assert_eq!(guest.open("/p/engines").await.status, 404);
}

#[tokio::test]
async fn a_stranger_s_publisher_is_as_one_that_does_not_exist() {
    let site = Site::open().await;
    let (ada, ben) = (site.user(ADA, "Ada").await, site.user(BEN, "Ben").await);
    site.publisher("engines", "Analytical Engines", &ada).await;
    let cookie = format!("stm-dev={}", site.session(&ben).await);
    let id = [("cookie", cookie.as_str()), ("x-request-id", "same")];
    let foreign = site.ask("GET", "/p/engines", &id, "").await;
    let absent = site.ask("GET", "/p/nothing", &id, "").await;
    assert_eq!(foreign.status, 404);
    assert_eq!(
        (foreign.status, &foreign.body),
        (absent.status, &absent.body)
    );
    assert_eq!(
        format!("{:?}", foreign.headers),
        format!("{:?}", absent.headers)
    );
}

#[tokio::test]
async fn only_who_may_manage_members_sees_and_uses_the_forms_for_it() {
    let site = Site::open().await;
    let (ada, ben) = (site.user(ADA, "Ada").await, site.user(BEN, "Ben").await);
    site.publisher("engines", "Analytical Engines", &ada).await;
    site.member("engines", &ada, &ben, Role::Viewer).await;
    let cookie = format!("stm-dev={}", site.session(&ben).await);
    let cookie = [("cookie", cookie.as_str())];
    let page = site.ask("GET", "/p/engines", &cookie, "").await;
    assert_eq!(page.status, 200);
    assert!(!page.body.contains("/role\"") && !page.body.contains("/invitations\""));
    let csrf = page.csrf();
    let member = format!("/p/engines/members/{}", ada.id);
    for (path, fields) in [
        (
            "/p/engines/invitations",
            "email=eve%40example.com&role=viewer",
        ),
        (&format!("{member}/role"), "role=viewer"),
        (&format!("{member}/remove"), ""),
    ] {
        let body = format!("csrf={csrf}&{fields}");
        let refused = site.ask("POST", path, &cookie, &body).await;
        assert_eq!(refused.status, 403, "{path}: {}", refused.body);
    }
}
