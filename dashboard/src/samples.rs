//! Every page with sample data, looked at as text and in a browser. `STATIONMASTER_TEST_PICTURES`
//! names a directory for pictures of them all, for people to look at.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, sync::Arc};

use askama::Template;
use poem::{
    Request, Response, Server, endpoint::make, error::NotFoundError, listener::TcpAcceptor,
};
use tests::{Browser, Look};
use tokio::net::TcpListener;

use domain::{Code, Problem};

use crate::{
    assets, headers, problem_page,
    views::{
        Confirm, Field, Frame, Message, Moment,
        account::{
            Account, ChangeEmail, ChangePassword, Identity, Passkey, RenamePasskey, Session,
        },
        join::{Invitation, Register, Role},
        publisher::{Home, Member, OwnPublisher, Publisher, SentInvitation, WaitingInvitation},
        sign_in::{
            ConfirmItIsYou, ForgotPassword, Leave, Provider, ResetPassword, SignIn, SignInCode,
            SignInConfirm, Ways,
        },
    },
};

const EMAIL: &str = "ada.lovelace@analytical-engines.example";
const HOSTILE: &str = "<script>alert(1)</script>\"'&";

const ADMIN: Role = Role {
    word: "admin",
    may: "do everything but manage owners and delete the publisher",
};
const DEVELOPER: Role = Role {
    word: "developer",
    may: "read everything, work on runs, publish events and retry deliveries",
};
const VIEWER: Role = Role {
    word: "viewer",
    may: "read everything but credentials",
};

fn frame(title: &str) -> Frame {
    Frame {
        title: title.to_owned(),
        csrf: "csrf-token-of-this-page".to_owned(),
        ..Frame::default()
    }
}

fn signed_in(title: &str) -> Frame {
    Frame {
        person: Some("Ada Lovelace".to_owned()),
        ..frame(title)
    }
}

fn moment(words: &str) -> Moment {
    Moment {
        exact: "2026-11-30T15:04:05Z".to_owned(),
        words: words.to_owned(),
    }
}

fn wrong(value: &str, error: &str) -> Field {
    Field {
        value: value.to_owned(),
        error: Some(error.to_owned()),
    }
}

fn ways() -> Ways {
    let provider = |slug: &str, name: &str| Provider {
        slug: slug.to_owned(),
        name: name.to_owned(),
    };
    Ways {
        mail: true,
        passwords: true,
        passkeys: true,
        providers: vec![
            provider("github", "GitHub"),
            provider("acme", "Acme single sign-on"),
        ],
    }
}

struct Pages(Vec<(&'static str, String)>);

impl Pages {
    fn add(&mut self, name: &'static str, view: &impl Template) {
        self.0.push((name, view.render().unwrap()));
    }
}

fn all() -> Vec<(&'static str, String)> {
    let mut pages = Pages(Vec::new());
    sign_in(&mut pages);
    links(&mut pages);
    join(&mut pages);
    publishers(&mut pages);
    own(&mut pages);
    pages.0
}

fn sign_in(pages: &mut Pages) {
    let plain = SignIn {
        frame: frame("Sign in"),
        email: Field::default(),
        password: Field::default(),
        ways: Ways {
            mail: true,
            ..Ways::default()
        },
        registration: false,
        return_to: "/p/acme".to_owned(),
    };
    pages.add("sign-in", &plain);
    let full = SignIn {
        frame: Frame {
            fault: Some("Address and password do not belong together.".to_owned()),
            ..frame("Sign in")
        },
        email: wrong(HOSTILE, "This is no e-mail address."),
        ways: ways(),
        registration: true,
        ..plain
    };
    pages.add("sign-in-with-everything", &full);
    let code = SignInCode {
        frame: frame("Look into your mail"),
        code: Field::default(),
        minutes: 10,
    };
    pages.add("sign-in-code", &code);
    let wrong_code = SignInCode {
        code: wrong(
            "123 456",
            "This code does not fit. Three more tries are left.",
        ),
        ..code
    };
    pages.add("sign-in-code-wrong", &wrong_code);
    let leave = Leave {
        frame: frame("On the way to GitHub"),
        provider: "GitHub".to_owned(),
        url: "https://github.example/login/oauth/authorize?client_id=a&state=b".to_owned(),
    };
    pages.add("leave", &leave);
    let confirm = ConfirmItIsYou {
        frame: signed_in("Confirm that it is you"),
        email: EMAIL.to_owned(),
        password: Field::default(),
        has_password: true,
        has_passkeys: true,
        has_mail: true,
        return_to: "/account/password".to_owned(),
    };
    pages.add("confirm-it-is-you", &confirm);
}

fn links(pages: &mut Pages) {
    for (name, elsewhere) in [
        ("sign-in-confirm", false),
        ("sign-in-confirm-elsewhere", true),
    ] {
        let view = SignInConfirm {
            frame: frame("Sign in by the link in your mail"),
            email: EMAIL.to_owned(),
            token: "token-of-the-link".to_owned(),
            elsewhere,
        };
        pages.add(name, &view);
    }
    let forgot = ForgotPassword {
        frame: frame("Choose a new password"),
        email: Field::default(),
    };
    pages.add("forgot-password", &forgot);
    let reset = ResetPassword {
        frame: frame("Choose a new password"),
        email: EMAIL.to_owned(),
        token: "token-of-the-link".to_owned(),
        password: wrong(
            "",
            "This password is among the most common ones. Choose another.",
        ),
    };
    pages.add("reset-password", &reset);
    let verify = Confirm {
        frame: frame("Confirm your address"),
        paragraphs: vec![format!(
            "This link confirms that {EMAIL} is yours, and finishes your registration."
        )],
        list: Vec::new(),
        action: "/verify".to_owned(),
        hidden: vec![("token", "token-of-the-link".to_owned())],
        choice: None,
        button: "Confirm the address".to_owned(),
        destructive: false,
        cancel: None,
    };
    pages.add("verify", &verify);
}

fn join(pages: &mut Pages) {
    let register = Register {
        frame: frame("Register"),
        name: Field::of("Ada Lovelace"),
        email: wrong("ada@", "This is no e-mail address."),
        password: Field::default(),
        passwords: true,
        return_to: String::new(),
    };
    pages.add("register", &register);
    let done = Message {
        frame: frame("Look into your mail"),
        paragraphs: vec![
            format!("A mail was sent to {EMAIL}. Click the link in it to finish."),
            "The link works for 24 hours. No mail? Look into the folder for unwanted mail."
                .to_owned(),
        ],
        onward: None,
    };
    pages.add("register-done", &done);
    for (name, other) in [
        ("invitation", None),
        ("invitation-other", Some("eve@example.com")),
    ] {
        let mut frame = frame("You are invited");
        frame.person = other.map(str::to_owned);
        let view = Invitation {
            frame,
            publisher: "Analytical Engines".to_owned(),
            role: DEVELOPER,
            inviter: Some("Charles Babbage".to_owned()),
            email: EMAIL.to_owned(),
            token: "token-of-the-link".to_owned(),
            signed_in_as: other.map(str::to_owned),
        };
        pages.add(name, &view);
    }
}

fn publishers(pages: &mut Pages) {
    let own = |slug: &str, name: &str, role, suspended| OwnPublisher {
        slug: slug.to_owned(),
        name: name.to_owned(),
        role,
        suspended,
    };
    let home = Home {
        frame: signed_in("Your publishers"),
        publishers: vec![
            own("analytical-engines", "Analytical Engines", "owner", false),
            own("difference-engines-of-the-north", HOSTILE, "viewer", true),
        ],
        invitations: vec![WaitingInvitation {
            id: "inv_1".to_owned(),
            publisher: "Jacquard Looms".to_owned(),
            role: DEVELOPER,
            inviter: Some("Joseph Marie Jacquard".to_owned()),
            expires: moment("7 December 2026, 15:04 UTC"),
        }],
    };
    pages.add("home", &home);
    let empty = Home {
        frame: signed_in("Your publishers"),
        publishers: Vec::new(),
        invitations: Vec::new(),
    };
    pages.add("home-empty", &empty);
    members(pages);
}

fn members(pages: &mut Pages) {
    for (name, roles) in [
        ("publisher", vec![ADMIN, DEVELOPER, VIEWER]),
        ("publisher-viewer", vec![]),
    ] {
        let manages = !roles.is_empty();
        let member = |id: &str, name: &str, role, own| Member {
            id: id.to_owned(),
            name: name.to_owned(),
            email: format!("{id}@analytical-engines.example"),
            role,
            last_seen: (id != "mem_3").then(|| moment("30 November 2026, 15:04 UTC")),
            own,
            manageable: manages && role != "owner" && !own,
        };
        let view = Publisher {
            frame: Frame {
                done: manages.then_some("The invitation is on its way."),
                ..signed_in("Publisher")
            },
            slug: "analytical-engines".to_owned(),
            name: "Analytical Engines".to_owned(),
            role: if manages { ADMIN } else { VIEWER },
            suspended: !manages,
            members: vec![
                member(
                    "mem_1",
                    "Ada Lovelace",
                    if manages { "admin" } else { "viewer" },
                    true,
                ),
                member("mem_2", "Charles Babbage", "owner", false),
                member("mem_3", HOSTILE, "developer", false),
            ],
            invitations: vec![SentInvitation {
                id: "inv_2".to_owned(),
                email: "luigi.menabrea@torino.example".to_owned(),
                role: "viewer",
                expires: moment("7 December 2026, 15:04 UTC"),
            }],
            roles,
            email: Field::default(),
            chosen: "viewer".to_owned(),
        };
        pages.add(name, &view);
    }
    let remove = Confirm {
        frame: signed_in("Remove Charles Babbage?"),
        paragraphs: vec![
            "Charles Babbage will have no access to Analytical Engines any more, at once."
                .to_owned(),
            "These 2 tokens were minted by them. They stay valid unless you say otherwise:"
                .to_owned(),
        ],
        list: vec!["nightly (runner)".to_owned(), "deploys (admin)".to_owned()],
        action: "/p/analytical-engines/members/mem_2/remove".to_owned(),
        hidden: Vec::new(),
        choice: Some(("revoke", "Revoke these 2 tokens, too".to_owned())),
        button: "Remove Charles Babbage".to_owned(),
        destructive: true,
        cancel: Some("/p/analytical-engines".to_owned()),
    };
    pages.add("member-remove", &remove);
}

fn own(pages: &mut Pages) {
    let session = |id: &str, device: &str, current| Session {
        id: id.to_owned(),
        device: device.to_owned(),
        address: "2001:db8:85a3::8a2e:370:7334".to_owned(),
        last_seen: moment("30 November 2026, 15:04 UTC"),
        current,
    };
    let passkey = |id: &str, name: &str, used| Passkey {
        id: id.to_owned(),
        name: name.to_owned(),
        created: moment("2 March 2026, 9:30 UTC"),
        last_used: used,
    };
    for (name, full) in [("account", true), ("account-new", false)] {
        let view = Account {
            frame: Frame {
                done: full.then_some("Your name was changed."),
                ..signed_in("Your account")
            },
            name: Field::of("Ada Lovelace"),
            email: EMAIL.to_owned(),
            sessions: if full {
                vec![
                    session("ses_1", "Firefox on Linux", true),
                    session("ses_2", "Safari on iOS", false),
                ]
            } else {
                vec![session("ses_1", "Firefox on Linux", true)]
            },
            passkeys: if full {
                vec![
                    passkey("pk_1", "Laptop", Some(moment("today, 9:12 UTC"))),
                    passkey("pk_2", "Key ring", None),
                ]
            } else {
                Vec::new()
            },
            identities: if full {
                vec![Identity {
                    issuer: "https://github.example".to_owned(),
                    name: "ada".to_owned(),
                }]
            } else {
                Vec::new()
            },
            providers: ways().providers,
            has_passkeys: true,
            passwords: true,
            has_password: full,
        };
        pages.add(name, &view);
    }
    changes(pages);
}

fn changes(pages: &mut Pages) {
    let password = ChangePassword {
        frame: signed_in("Change your password"),
        email: EMAIL.to_owned(),
        has_password: true,
        password: Field::default(),
    };
    pages.add("account-password", &password);
    let email = ChangeEmail {
        frame: signed_in("Change your address"),
        email: EMAIL.to_owned(),
        new_email: Field::default(),
    };
    pages.add("account-email", &email);
    let rename = RenamePasskey {
        frame: signed_in("Rename the passkey"),
        id: "pk_1".to_owned(),
        name: Field::of("Laptop"),
    };
    pages.add("account-passkey", &rename);
}

/// The pages of two problems.
async fn problems() -> Vec<(&'static str, String)> {
    let mut pages = Vec::new();
    let limited = Problem::from(Code::RateLimited).retry_after(240);
    for (name, problem) in [
        ("problem-404", Problem::not_found()),
        ("problem-429", limited),
    ] {
        let body = problem_page::render(&problem, "req_0123456789").into_body();
        pages.push((name, body.into_string().await.unwrap()));
    }
    pages
}

async fn everything() -> Vec<(&'static str, String)> {
    [all(), problems().await].concat()
}

#[tokio::test]
async fn every_page_escapes_what_it_is_given_and_has_nothing_inline() {
    for (name, text) in everything().await {
        assert!(
            !text.contains("alert(1)</script>"),
            "{name} does not escape"
        );
        for inline in [" style=", "<style", " onclick=", "javascript:"] {
            assert!(!text.contains(inline), "{name} has {inline}");
        }
        let ours = "<script type=\"module\" src=\"/assets/";
        assert_eq!(text.matches("<script").count(), text.matches(ours).count());
        assert_eq!(text.matches("<h1>").count(), 1, "{name}");
        let forms = text.matches("<form").count();
        for due in ["name=\"csrf\"", "method=\"post\""] {
            assert_eq!(
                text.matches(due).count(),
                forms,
                "{name}: each form has {due}"
            );
        }
    }
}

/// Serves the samples, each at its name, with the headers that pages have.
async fn serve() -> SocketAddr {
    let pages: Arc<HashMap<_, _>> = Arc::new(everything().await.into_iter().collect());
    let app = make(move |request: Request| {
        let path = request.uri().path().to_owned();
        let text = pages.get(path.trim_start_matches('/')).cloned();
        async move {
            let page = text.map(|text| {
                let mut response = Response::builder().content_type("text/html").body(text);
                headers::protect(&mut response);
                response
            });
            page.or_else(|| assets::answer(&path))
                .ok_or_else(|| poem::Error::from(NotFoundError))
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TcpAcceptor::from_tokio(listener).unwrap();
    tokio::spawn(Server::new_with_acceptor(acceptor).run(app));
    address
}

/// Looks at every page in a window of this width, light and dark.
async fn look_at_all(width: u32) {
    let Some(browser) = Browser::start("dashboard::samples").await else {
        return;
    };
    let origin = format!("http://{}", serve().await);
    let pictures = std::env::var_os("STATIONMASTER_TEST_PICTURES").map(PathBuf::from);
    for dark in [false, true] {
        let look = Look {
            width,
            dark,
            ..Look::default()
        };
        let tab = browser.tab(&origin, look).await;
        for (name, _) in everything().await {
            // It leads elsewhere at once.
            if name == "leave" {
                continue;
            }
            tab.open(&format!("/{name}")).await;
            if let Some(directory) = &pictures {
                let light = if look.dark { "dark" } else { "light" };
                let file = format!("{name}-{}-{light}.png", look.width);
                tab.picture(&directory.join(file)).await;
            }
            tab.judge().await;
        }
    }
}

#[tokio::test]
async fn every_page_can_be_used_by_everybody_on_a_desk() {
    look_at_all(1280).await;
}

#[tokio::test]
async fn every_page_can_be_used_by_everybody_on_a_phone() {
    look_at_all(375).await;
}
