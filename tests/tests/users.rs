//! The operator's commands for people, beside a server that serves all the while; and the mails
//! that people get.

use std::{process::Output, time::Duration};

use serde_json::Value;
use tests::{Server, Site, SmtpSink, World, on_both_stores, on_sqlite, tools::eventually};

on_both_stores!(
    the_operator_creates_changes_and_deletes_people,
    a_mail_reaches_the_mail_server,
);
on_sqlite!(
    a_mail_is_logged_only_where_nobody_else_is,
    without_a_public_url_no_link_is_made,
);

const LIMIT: Duration = Duration::from_secs(30);
const ADA: &str = "ada@example.com";
const BOB: &str = "bob@example.com";

/// The command line of a site, for links to `origin`.
struct Desk<'a> {
    site: &'a Site,
    settings: Vec<(&'a str, &'a str)>,
}

impl<'a> Desk<'a> {
    fn of(server: &'a Server, origin: &'a str) -> Self {
        Self {
            site: server.site(),
            settings: vec![
                ("STATIONMASTER_PUBLIC_URL", origin),
                ("STATIONMASTER_PASSWORDS", "on"),
            ],
        }
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.site.command(&[]);
        command.arg("users").args(arguments);
        let output = command.envs(self.settings.iter().copied()).output().await;
        output.unwrap()
    }

    /// What a command wrote that must succeed.
    async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments).await;
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {out}{err}");
        out
    }

    /// The JSON of a command that must succeed.
    async fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--json"]].concat();
        serde_json::from_str(&self.ok(&arguments).await).unwrap()
    }

    /// What a command said that must fail.
    async fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.run(arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
        text(&output.stderr)
    }

    /// Looks for a link's token in all that is written from now on.
    fn remember(&self, link: &str) {
        self.site.remember(link.split_once("?token=").unwrap().1);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn the_operator_creates_changes_and_deletes_people(world: &World) {
    let server = world.start().await;
    let acme = server.publisher("acme").await;
    let origin = server.url();
    let desk = Desk::of(&server, &origin);

    let create = ["create", ADA, "--name", "Ada", "--staff", "--owner-of"];
    let words = desk.refused(&[&create[..], &["nobody"]].concat(), 1).await;
    assert!(
        words.contains("there is no publisher \"nobody\""),
        "{words}"
    );
    let words = desk.ok(&[&create[..], &["acme"]].concat()).await;
    let link = words.lines().last().unwrap();
    desk.remember(link);
    let begin = format!("{origin}/sign-in/confirm?token=");
    assert!(link.starts_with(&begin), "{words}");
    let words = desk.refused(&["create", "ADA@Example.com"], 1).await;
    assert!(words.contains("users sign-in-link"), "{words}");

    let shown = desk.json(&["show", ADA]).await;
    assert_eq!(shown["user"]["display_name"], "Ada");
    assert_eq!(shown["user"]["staff"], true);
    assert_eq!(shown["memberships"][0]["publisher"], "acme");
    assert_eq!(shown["memberships"][0]["role"], "owner");
    assert_eq!(
        desk.json(&["staff", ADA, "off"]).await["user"]["staff"],
        false
    );
    let shown = desk.ok(&["show", ADA]).await;
    assert!(shown.contains("owner of acme"), "{shown}");

    let link = desk.json(&["sign-in-link", ADA]).await;
    desk.remember(link["sign_in_link"].as_str().unwrap());
    let disabled = desk.json(&["disable", ADA]).await;
    assert!(disabled["user"]["disabled_at"].is_string(), "{disabled}");
    let words = desk.refused(&["sign-in-link", ADA], 1).await;
    assert!(words.contains("is disabled"), "{words}");
    desk.refused(&["reset-link", ADA], 1).await;
    desk.ok(&["enable", ADA]).await;
    let ended = desk.json(&["sessions", "revoke", ADA]).await;
    assert_eq!(ended["sessions_ended"], 0);

    let words = desk.refused(&["delete", ADA], 1).await;
    assert!(words.contains("owner"), "{words}");
    let created = desk.json(&["create", BOB, "--owner-of", "acme"]).await;
    desk.remember(created["sign_in_link"].as_str().unwrap());
    let list = desk.json(&["list"]).await;
    let emails: Vec<&Value> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|u| &u["email"])
        .collect();
    assert_eq!(emails, [BOB, ADA]);
    desk.ok(&["delete", ADA]).await;
    assert!(
        desk.refused(&["show", ADA], 1)
            .await
            .contains("no user has")
    );
    assert_eq!(desk.json(&["list"]).await.as_array().unwrap().len(), 1);
    desk.refused(&["show", "no-address"], 2).await;

    let actor = "audit_events WHERE actor_kind = 'system' AND actor_id = 'users'";
    assert!(server.site().count(actor).await >= 9);
    crate::audit::verified(&acme, true).await;
}

async fn a_mail_reaches_the_mail_server(world: &World) {
    let Some(sink) = SmtpSink::start("users").await else {
        return;
    };
    let url = sink.starttls.to_string();
    let public = "https://sm.example.com";
    let server = world
        .start_with(&[
            ("STATIONMASTER_PUBLIC_URL", public),
            ("STATIONMASTER_SMTP_URL", &url),
            ("STATIONMASTER_MAIL_FROM", "Mail <mail@sm.example.com>"),
        ])
        .await;
    let mut desk = Desk::of(&server, public);
    let created = desk.json(&["create", ADA]).await;
    desk.remember(created["sign_in_link"].as_str().unwrap());
    let words = desk.refused(&["reset-link", ADA], 1).await;
    assert!(words.contains("no mails"), "{words}");
    desk.settings.push(("STATIONMASTER_SMTP_URL", &url));
    desk.settings
        .push(("STATIONMASTER_MAIL_FROM", "mail@sm.example.com"));
    desk.ok(&["reset-link", ADA]).await;
    let mail = sink.mail_to(ADA, 0).await;
    let link = mail.link().to_owned();
    desk.remember(&link);
    assert!(
        link.starts_with(&format!("{public}/reset-password?token=")),
        "{link}"
    );
    let metric = "stationmaster_mail_attempts_total{kind=\"reset\",outcome=\"sent\"} 1";
    eventually("the attempt is counted", LIMIT, async || {
        server.metrics().await.contains(metric).then_some(())
    })
    .await;
    let sent = "mails WHERE finished_at IS NOT NULL AND sealed IS NULL AND last_error IS NULL";
    eventually("the mail is finished", LIMIT, async || {
        (server.site().count(sent).await == 1).then_some(())
    })
    .await;
}

/// Whether the server's log has a line that contains this.
fn logs(server: &Server, part: &str) -> bool {
    let has = |line: &Value| line["message"].as_str().is_some_and(|m| m.contains(part));
    server.log().iter().any(has)
}

async fn a_mail_is_logged_only_where_nobody_else_is(world: &World) {
    let server = world.start().await;
    assert!(logs(&server, "`stationmaster users create EMAIL --staff`"));
    assert!(logs(&server, "go to this log"));
    let origin = server.url();
    let desk = Desk::of(&server, &origin);
    let created = desk.json(&["create", ADA]).await;
    desk.remember(created["sign_in_link"].as_str().unwrap());
    desk.ok(&["reset-link", ADA]).await;
    let link = format!("{origin}/reset-password?token=");
    eventually("the mail is logged", LIMIT, async || {
        logs(&server, &link).then_some(())
    })
    .await;

    // The mail that waits when the server starts at a public URL without a mail server is given up.
    assert!(server.stop().await.success());
    desk.ok(&["reset-link", ADA]).await;
    let public = ("STATIONMASTER_PUBLIC_URL", "https://sm.example.com");
    let server = server.site().start(&[public]).await;
    let given_up = "mails WHERE last_error IS NOT NULL AND sealed IS NULL";
    eventually("the mail is given up", LIMIT, async || {
        (server.site().count(given_up).await == 1).then_some(())
    })
    .await;
    assert!(logs(&server, "a mail is given up"));
    assert!(!logs(&server, "/reset-password"));
}

async fn without_a_public_url_no_link_is_made(world: &World) {
    let server = world.start().await;
    let mut desk = Desk::of(&server, "");
    desk.settings.push(("STATIONMASTER_LISTEN", "0.0.0.0:0"));
    let words = desk.refused(&["create", ADA], 2).await;
    assert!(words.contains("STATIONMASTER_PUBLIC_URL"), "{words}");
    assert_eq!(desk.json(&["list"]).await, serde_json::json!([]));
}
