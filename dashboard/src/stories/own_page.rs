use std::time::Duration;

use tests::{Browser, Look};

use crate::site::Site;

const ADA: &str = "ada@example.com";
const PASSWORD: &str = "five red lorries in Turin";

#[tokio::test]
async fn what_needs_a_recent_sign_in_asks_for_one_and_goes_on() {
    let Some(browser) = Browser::start("pages::recent").await else {
        return;
    };
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    let tab = site.tab_of(&browser, &ada, Look::default()).await;
    tab.open("/account").await;
    tab.follow("Set a password").await;
    tab.judge().await;
    tab.fill("New password", PASSWORD).await;
    let shown = tab.press("Set the password").await;
    assert!(
        shown.url.contains("/account?done=password"),
        "{}",
        shown.url
    );

    site.clock.advance(Duration::from_mins(6));
    let shown = tab.follow("Change the address").await;
    assert!(
        shown.text.contains("Confirm that it is you"),
        "{}",
        shown.text
    );
    tab.judge().await;
    tab.fill("Password", "wrong").await;
    let shown = tab.press("Continue").await;
    assert_eq!(shown.status, 401, "{}", shown.text);
    tab.fill("Password", PASSWORD).await;
    let shown = tab.press("Continue").await;
    assert!(shown.url.ends_with("/account/email"), "{}", shown.url);
    tab.fill("New address", "lovelace@example.com").await;
    let shown = tab.press("Send the mail").await;
    assert!(
        shown.text.contains("on its way to the new address"),
        "{}",
        shown.text
    );
    tab.open(&site.link_in(&site.mail_to("lovelace@example.com").await))
        .await;
    tab.judge().await;
    let shown = tab.press("Change the address").await;
    assert!(
        shown.text.contains("lovelace@example.com"),
        "{}",
        shown.text
    );

    // A form that was open for too long leads there, too.
    tab.open("/account/password").await;
    site.clock.advance(Duration::from_mins(6));
    tab.fill("New password", PASSWORD).await;
    let shown = tab.press("Change the password").await;
    assert!(
        shown.text.contains("Confirm that it is you"),
        "{}",
        shown.text
    );
}

#[tokio::test]
async fn sessions_are_listed_and_ended() {
    let Some(browser) = Browser::start("pages::sessions").await else {
        return;
    };
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    let first = site.tab_of(&browser, &ada, Look::default()).await;
    let second = site.tab_of(&browser, &ada, Look::default()).await;
    let shown = first.open("/account").await;
    assert!(shown.text.contains("Chrome on Linux"), "{}", shown.text);
    assert_eq!(shown.text.matches("last seen").count(), 2);
    assert_eq!(shown.text.matches("this browser").count(), 1);
    let shown = first.press("Sign out Chrome on Linux").await;
    assert!(
        shown.text.contains("That browser was signed out."),
        "{}",
        shown.text
    );
    assert!(second.open("/account").await.url.contains("/sign-in"));
    first.open("/account").await;
    first.fill("Name", "  ").await;
    assert_eq!(first.press("Change the name").await.status, 422);
    first.fill("Name", "Countess").await;
    let shown = first.press("Change the name").await;
    assert!(shown.text.contains("Countess"), "{}", shown.text);
    first.follow("Sign out everywhere…").await;
    first.judge().await;
    let shown = first.press("Sign out everywhere").await;
    assert!(
        shown.text.contains("signed out everywhere"),
        "{}",
        shown.text
    );
}

#[tokio::test]
async fn a_passkey_is_added_signs_in_confirms_is_renamed_and_removed() {
    let Some(browser) = Browser::start("pages::passkeys").await else {
        return;
    };
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    let tab = site.tab_of(&browser, &ada, Look::default()).await;
    tab.authenticator().await;
    tab.open("/account").await;
    let shown = tab.press("Add a passkey").await;
    assert!(
        shown.text.contains("The passkey was added."),
        "{}",
        shown.text
    );
    assert!(site.mail_to(ADA).await.contains("passkey"));
    tab.judge().await;
    // The authenticator makes no second one.
    tab.touch("Add a passkey").await;
    tab.see("already has a passkey").await;
    tab.judge().await;

    tab.press("Sign out").await;
    tab.open("/sign-in?return_to=/account").await;
    let shown = tab.press("Use a passkey").await;
    assert!(shown.url.ends_with("/account"), "{}", shown.text);
    assert!(shown.text.contains("last used"), "{}", shown.text);

    site.clock.advance(Duration::from_mins(6));
    let shown = tab.press("Add a passkey").await;
    assert!(
        shown.text.contains("Confirm that it is you"),
        "{}",
        shown.text
    );
    tab.open("/account").await;
    let shown = tab.follow("Rename Chrome on Linux").await;
    assert!(
        shown.text.contains("Confirm that it is you"),
        "{}",
        shown.text
    );
    let shown = tab.press("Use a passkey").await;
    assert!(shown.text.contains("Rename the passkey"), "{}", shown.text);
    tab.fill("Name", "Laptop <i>").await;
    let shown = tab.press("Save the name").await;
    assert!(shown.text.contains("Laptop <i>"), "{}", shown.text);
    tab.follow("Remove… Laptop <i>").await;
    tab.judge().await;
    let shown = tab.press("Remove the passkey").await;
    assert!(
        shown.text.contains("The passkey was removed."),
        "{}",
        shown.text
    );
    tab.press("Sign out").await;
    let shown = tab.press("Use a passkey").await;
    assert_eq!(shown.status, 401, "{}", shown.text);
    tab.judge().await;
}

#[tokio::test]
async fn without_scripts_a_page_says_what_passkeys_need() {
    let Some(browser) = Browser::start("pages::no_scripts").await else {
        return;
    };
    let site = Site::open().await;
    let ada = site.user(ADA, "Ada").await;
    let look = Look {
        javascript: false,
        ..Look::default()
    };
    let tab = site.tab_of(&browser, &ada, look).await;
    let shown = tab.open("/account").await;
    assert!(
        shown.text.contains("To add a passkey, allow JavaScript."),
        "{}",
        shown.text
    );
    assert!(!shown.text.contains("Add a passkey"), "{}", shown.text);
}
