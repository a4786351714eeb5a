//! Signed-in people: each gets at what the role allows in their own publishers, and at nothing else.
//! What is expected follows from the table of permissions alone.

use domain::{
    people::Role,
    permission::{Held, Permission, TokenKind},
};
use tests::{
    Answer, Call, Consumer, Person, Server, SmtpSink, World, fingerprint, people_settings,
};

use super::{
    Operation,
    cases::{Ask, Pair},
    target_of,
    things::{Things, snapshot},
};

/// Everybody who asks, beside tokens.
struct People {
    /// One member of each role.
    members: Vec<(Role, Person)>,
    /// An owner of another publisher, which requests name.
    stranger: Person,
    /// Has the operator's rights, and is no member.
    staff: Person,
    /// Is signed in, and nothing else.
    person: Person,
}

impl People {
    async fn make(server: &Server, sink: &SmtpSink, ours: &Things, theirs: &Things) -> Self {
        let mut members = Vec::new();
        // The owner first: an admin token may invite one only where there is none.
        for role in Role::ALL {
            let inviter = (&ours.publisher.admin, ours.publisher.slug.as_str());
            let member = Person::joins(server, sink, inviter, role.as_str()).await;
            members.push((role, member));
        }
        let inviter = (&theirs.publisher.admin, theirs.publisher.slug.as_str());
        let stranger = Person::joins(server, sink, inviter, "owner").await;
        let (staff, person) = (Person::new(server), Person::new(server));
        person.signs_in(sink, "person@example.org").await;
        staff.signs_in(sink, "staff@example.org").await;
        let promote = "UPDATE users SET staff = true WHERE id IN \
            (SELECT user_id FROM user_addresses WHERE address = 'staff@example.org')";
        assert_eq!(server.site().execute(promote).await, 1);
        Self {
            members,
            stranger,
            staff,
            person,
        }
    }

    fn owner(&self) -> &Person {
        let owner = self.members.iter().find(|(role, _)| *role == Role::Owner);
        &owner.unwrap().1
    }
}

fn call(operation: &Operation, browser: &Person, ask: &Ask) -> Call {
    operation.fill(browser.call(&operation.method, &ask.path), ask)
}

/// The same request about a publisher that does not exist.
fn of_nothing(call: Call) -> Call {
    call.header("stationmaster-publisher", "no-such-publisher")
}

fn code(answer: &Answer) -> (u16, String) {
    let code = answer["code"].as_str().unwrap_or_default();
    (answer.status, code.to_owned())
}

pub(super) async fn members_may_what_their_role_says(world: &World) {
    let Some(sink) = SmtpSink::start("isolation").await else {
        return;
    };
    let env = people_settings(&sink);
    let env: Vec<(&str, &str)> = env.iter().map(|(n, v)| (*n, v.as_str())).collect();
    let server = world.start_with(&env).await;
    let document = server.anon().get("/openapi.json").expect(200).await;
    let operations = Operation::all(document.json());
    let consumer = Consumer::start().await;
    let (ours, theirs) = (
        Things::make(&server, &consumer).await,
        Things::make(&server, &consumer).await,
    );
    let people = People::make(&server, &sink, &ours, &theirs).await;
    // Cached users are read anew.
    let server = server.restart(&env).await;

    let held = operations
        .iter()
        .filter_map(|operation| Some((operation, operation.permission?)));
    let held: Vec<_> = held.collect();
    let before = snapshot(&server, &ours).await;
    for (operation, permission) in &held {
        nobody_beyond(&server, operation, *permission, (&people, &ours)).await;
    }
    assert_eq!(
        before,
        snapshot(&server, &ours).await,
        "something was changed"
    );
    for (operation, permission) in &held {
        everybody_within(operation, *permission, (&people, &ours)).await;
    }
    let old = "UPDATE sessions SET authenticated_at = authenticated_at - 600000";
    server.site().execute(old).await;
    let _server = server.restart(&env).await;
    for (operation, permission) in &held {
        needs_a_recent_sign_in(operation, *permission, (&people, &ours)).await;
    }
}

/// Whoever has not the permission is refused, and can't tell what there is.
async fn nobody_beyond(
    server: &Server,
    operation: &Operation,
    permission: Permission,
    (people, ours): (&People, &Things),
) {
    let (name, probe) = (&operation.id, &target_of(operation, ours).probes[0]);
    let refused = async |who: &Person, expected: (u16, &str)| {
        let there = call(operation, who, &probe.theirs).answer().await;
        assert_eq!(
            code(&there),
            (expected.0, expected.1.to_owned()),
            "{name}: {there}"
        );
        let absent = call(operation, who, &probe.absent).answer().await;
        assert_eq!(fingerprint(&there), fingerprint(&absent), "{name}");
    };
    let nobody = Person::new(server);
    nobody.works_for(&ours.publisher.slug);
    match permission.people() {
        // Proxies know other refusals.
        Held::ByNobody => {
            let answer = call(operation, people.owner(), &probe.theirs)
                .answer()
                .await;
            assert!(matches!(answer.status, 401 | 403), "{name}: {answer}");
        }
        Held::ByEverybody => {
            refused(&nobody, (401, "unauthenticated")).await;
            for kind in TokenKind::ALL {
                let user = ours.holder(server, kind);
                let answer = operation.call(&user, &probe.theirs).answer().await;
                assert_eq!(
                    code(&answer),
                    (403, "wrong_token_kind".to_owned()),
                    "{name}"
                );
            }
        }
        Held::ByStaff => {
            refused(&nobody, (401, "unauthenticated")).await;
            for who in [people.owner(), &people.stranger, &people.person] {
                refused(who, (403, "role_too_low")).await;
            }
        }
        Held::ByMembers(least) => {
            refused(&nobody, (401, "unauthenticated")).await;
            refused(&people.person, (400, "publisher_required")).await;
            for (role, member) in &people.members {
                if !role.includes(least) {
                    refused(member, (403, "role_too_low")).await;
                }
            }
            for who in [&people.stranger, &people.staff, &people.person] {
                let asks = call(operation, who, &probe.theirs);
                let there = asks
                    .clone()
                    .header("stationmaster-publisher", &ours.publisher.slug);
                let there = there.refused(404, "not_found").await;
                let absent = of_nothing(asks).refused(404, "not_found").await;
                assert_eq!(fingerprint(&there), fingerprint(&absent), "{name}");
            }
            if permission != Permission::MembershipLeave {
                in_their_own(operation, probe, &people.stranger).await;
            }
        }
    }
}

/// A member of another publisher, who names that one, finds nothing of ours in it.
async fn in_their_own(operation: &Operation, probe: &Pair, stranger: &Person) {
    let name = &operation.id;
    let there = call(operation, stranger, &probe.theirs).answer().await;
    let absent = call(operation, stranger, &probe.absent).answer().await;
    assert!(there.status < 500, "{name}: {there}");
    if probe.must_be_absent {
        assert_eq!(there.status, 404, "{name}: {there}");
    }
    if there.status >= 400 && absent.status >= 400 {
        assert_eq!(fingerprint(&there), fingerprint(&absent), "{name}: {there}");
    }
}

/// Whoever has the permission is let in: reads succeed, and a change of what does not exist fails for
/// that alone.
async fn everybody_within(
    operation: &Operation,
    permission: Permission,
    (people, ours): (&People, &Things),
) {
    let target = target_of(operation, ours);
    let mut who: Vec<&Person> = match permission.people() {
        Held::ByNobody => return,
        Held::ByMembers(least) => {
            let members = people
                .members
                .iter()
                .filter(|(role, _)| role.includes(least));
            members.map(|(_, member)| member).collect()
        }
        Held::ByEverybody => vec![&people.person],
        Held::ByStaff => vec![&people.staff],
    };
    // What ends the membership or the session would leave nothing to look at.
    if permission == Permission::MembershipLeave || operation.id == "sign_out" {
        who.clear();
    }
    let (probe, reads) = (&target.probes[0], operation.only_reads());
    for browser in who {
        let ask = if reads { &probe.theirs } else { &probe.absent };
        let answer = call(operation, browser, ask).answer().await;
        let refused = matches!(answer.status, 401 | 403) || answer.status >= 500;
        assert!(!refused, "{}: {answer}", operation.id);
        if reads {
            assert_eq!(answer.status, target.status, "{}: {answer}", operation.id);
        }
    }
}

/// Long after the sign-in, what lets others in or gives credentials away is refused.
async fn needs_a_recent_sign_in(
    operation: &Operation,
    permission: Permission,
    (people, ours): (&People, &Things),
) {
    let who = match permission.people() {
        Held::ByNobody => return,
        Held::ByMembers(_) => people.owner(),
        Held::ByEverybody => &people.person,
        Held::ByStaff => &people.staff,
    };
    let (name, probe) = (&operation.id, &target_of(operation, ours).probes[0]);
    if permission.needs_recent_sign_in() {
        let there = call(operation, who, &probe.theirs);
        let there = there.refused(403, "recent_sign_in_required").await;
        let absent = call(operation, who, &probe.absent).answer().await;
        assert_eq!(fingerprint(&there), fingerprint(&absent), "{name}");
    } else if operation.only_reads() {
        let answer = call(operation, who, &probe.theirs).answer().await;
        assert!(!matches!(answer.status, 401 | 403), "{name}: {answer}");
    }
}
