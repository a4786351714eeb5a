//! Who gets which page. A page without a case here fails the tests.

use std::collections::BTreeSet;

use domain::people::Role;

use crate::{
    routes::PATHS,
    site::{Asked, Site},
};

/// What is asked of a publisher: the method, the path, the fields of the form, and the least role
/// that gets something else than a refusal.
const OF_A_PUBLISHER: [(&str, &str, &str, Role); 7] = [
    ("GET", "/p/:slug", "", Role::Viewer),
    (
        "POST",
        "/p/:slug/invitations",
        "&email=x%40example.com&role=viewer",
        Role::Admin,
    ),
    (
        "POST",
        "/p/:slug/invitations/:invitation/revoke",
        "",
        Role::Admin,
    ),
    (
        "POST",
        "/p/:slug/invitations/:invitation/resend",
        "",
        Role::Admin,
    ),
    (
        "POST",
        "/p/:slug/members/:member/role",
        "&role=viewer",
        Role::Admin,
    ),
    ("GET", "/p/:slug/members/:member/remove", "", Role::Admin),
    ("POST", "/p/:slug/members/:member/remove", "", Role::Admin),
];

/// Pages for everybody, signed in or not.
const FOR_EVERYBODY: [&str; 17] = [
    "/sign-in",
    "/sign-in/code",
    "/sign-in/confirm",
    "/sign-in/passkey",
    "/sign-in/passkey/options",
    // The same as the two above.
    "/confirm-it-is-you/passkey",
    "/confirm-it-is-you/passkey/options",
    "/sign-in/with/:provider",
    "/sign-in/with/:provider/callback",
    "/sign-out",
    "/register",
    "/register/sent",
    "/verify",
    "/forgot-password",
    "/forgot-password/sent",
    "/reset-password",
    "/invitations/accept",
];

/// What a browser holds: cookies, and the token of its forms.
struct Person {
    cookies: String,
    csrf: String,
}

impl Person {
    async fn nobody(site: &Site) -> Self {
        let page = site.ask("GET", "/sign-in", &[], "").await;
        Self {
            cookies: page.cookies().join("; "),
            csrf: page.csrf(),
        }
    }

    async fn of(site: &Site, user: &persistence::User) -> Self {
        let cookies = format!("stm-dev={}", site.session(user).await);
        let page = site
            .ask("GET", "/account", &[("cookie", &cookies)], "")
            .await;
        Self {
            csrf: page.csrf(),
            cookies,
        }
    }

    async fn asks(&self, site: &Site, method: &str, path: &str, fields: &str) -> Asked {
        let headers = [("cookie", self.cookies.as_str()), ("x-request-id", "same")];
        let body = match method {
            "GET" => String::new(),
            _ => format!("csrf={}{fields}", self.csrf),
        };
        site.ask(method, path, &headers, &body).await
    }
}

#[tokio::test]
async fn each_page_of_a_publisher_is_for_its_members_and_their_roles() {
    let site = Site::open().await;
    let owner = site.user("owner@example.com", "Owner").await;
    let target = site.user("target@example.com", "Target").await;
    let stranger = site.user("stranger@example.com", "Stranger").await;
    site.publisher("engines", "Analytical Engines", &owner)
        .await;
    site.publisher("looms", "Jacquard Looms", &stranger).await;
    site.member("engines", &owner, &target, Role::Viewer).await;
    let mut people = vec![(Some(Role::Owner), Person::of(&site, &owner).await)];
    for role in [Role::Admin, Role::Developer, Role::Viewer] {
        let user = site
            .user(&format!("{role:?}@example.com"), "Somebody")
            .await;
        site.member("engines", &owner, &user, role).await;
        people.push((Some(role), Person::of(&site, &user).await));
    }
    people.push((None, Person::of(&site, &stranger).await));
    let nobody = Person::nobody(&site).await;

    let covered: BTreeSet<&str> = OF_A_PUBLISHER.iter().map(|case| case.1).collect();
    let all = PATHS.iter().copied().filter(|path| path.starts_with("/p/"));
    assert_eq!(
        covered,
        all.collect(),
        "each page of a publisher has its case"
    );
    let absent = "inv_01h455vb4pex5vsknk084sn02q";
    for (method, pattern, fields, least) in OF_A_PUBLISHER {
        let path = |slug: &str| {
            let path = pattern
                .replace(":slug", slug)
                .replace(":invitation", absent);
            path.replace(":member", &target.id.to_string())
        };
        let sent_away = nobody.asks(&site, method, &path("engines"), fields).await;
        assert_eq!(sent_away.status, 303, "{method} {pattern}: nobody");
        assert!(sent_away.location().starts_with("/sign-in"));
        // From the lowest role up, since the last ones change something.
        for (role, person) in people.iter().rev() {
            let what = format!("{method} {pattern}: {role:?}");
            let engines = person.asks(&site, method, &path("engines"), fields).await;
            match role {
                None => assert_eq!(engines.status, 404, "{what}"),
                Some(role) if !role.includes(least) => assert_eq!(engines.status, 403, "{what}"),
                // What it names may be gone by now.
                Some(_) if engines.status == 404 => {
                    assert!(!engines.body.contains("Analytical"), "{what}");
                }
                Some(_) => assert!(engines.status.as_u16() < 400, "{what}: {}", engines.body),
            }
            let other = if role.is_none() { "engines" } else { "looms" };
            let foreign = person.asks(&site, method, &path(other), fields).await;
            let none = person.asks(&site, method, &path("nothing"), fields).await;
            assert_eq!(foreign.status, 404, "{what}, foreign");
            assert_eq!(foreign.body, none.body, "{what}");
            assert_eq!(
                format!("{:?}", foreign.headers),
                format!("{:?}", none.headers),
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn whoever_is_not_signed_in_gets_the_pages_for_everybody_and_no_other() {
    let site = Site::open().await;
    let nobody = Person::nobody(&site).await;
    for pattern in PATHS {
        let path = pattern.replace(":slug", "engines").replace(':', "");
        for method in ["GET", "POST"] {
            let answer = nobody.asks(&site, method, &path, "").await;
            let away = answer.status == 303 && answer.location().starts_with("/sign-in?return_to=");
            let public = FOR_EVERYBODY.contains(pattern) || *pattern == "/account/confirm-address";
            let refused = [403, 404, 405, 422].contains(&answer.status.as_u16());
            assert!(
                public || away || refused,
                "{method} {path}: {}",
                answer.status
            );
            assert!(!(public && away), "{method} {path}");
        }
    }
}
