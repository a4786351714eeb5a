//! Who may call an operation: from the permission that the draft names to what the document says.

use serde_json::{Map, Value, json};

use domain::{
    Code,
    people::Role,
    permission::{Held, Permission},
};

/// The scheme by which the draft marks an operation for people who are not signed in yet.
pub const VISITOR: &str = "visitor";

/// The scheme of people who are signed in.
const SESSION: &str = "session";
/// What a session's request sends besides its cookie to name a publisher.
const PUBLISHER: &str = "publisher";
/// What a session's request sends besides its cookie to change something.
const CSRF_TOKEN: &str = "csrf_token";
/// The member of an operation with the name of its permission.
const PERMISSION: &str = "x-permission";

/// Who may call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Public,
    /// People who are not signed in yet.
    Visitors,
    /// Who holds the permission.
    Holders(Permission),
}

impl Access {
    /// Of an operation of the published document.
    pub(super) fn of(operation: &Value) -> Self {
        let permission = operation[PERMISSION].as_str().and_then(Permission::parse);
        permission.map_or(Self::Public, Self::Holders)
    }

    /// The problems that follow from it. `changes`: the method is not a safe one.
    pub(super) fn codes(self, changes: bool) -> Vec<Code> {
        let limited = [
            Code::InvalidParameter,
            Code::RateLimited,
            Code::ShareExceeded,
            Code::StoreUnavailable,
        ];
        let mut codes = Vec::new();
        let with_cookies = match self {
            Self::Public => return codes,
            Self::Visitors => {
                codes.extend(limited);
                // Where people can't sign in.
                codes.push(Code::NotFound);
                true
            }
            Self::Holders(permission) => {
                codes.extend(limited);
                codes.extend([Code::Unauthenticated, Code::WrongTokenKind]);
                codes.extend(for_people(permission));
                permission.people() != Held::ByNobody
            }
        };
        if with_cookies {
            codes.push(Code::WrongHost);
        }
        if with_cookies && changes {
            codes.push(Code::CsrfFailed);
        }
        codes
    }
}

fn for_people(permission: Permission) -> Vec<Code> {
    let mut codes = match permission.people() {
        Held::ByNobody => vec![Code::PublisherSuspended],
        // Where people can't sign in.
        Held::ByEverybody => vec![Code::NotFound],
        Held::ByStaff => vec![Code::RoleTooLow],
        Held::ByMembers(least) => {
            let mut codes = vec![
                Code::PublisherSuspended,
                Code::PublisherRequired,
                Code::NotFound,
            ];
            if least != Role::Viewer {
                codes.push(Code::RoleTooLow);
            }
            codes
        }
    };
    if permission.needs_recent_sign_in() {
        codes.push(Code::RecentSignInRequired);
    }
    codes
}

/// `[{"runs.create": []}]` → `[{"admin": []}, {"runner": []}, {"session": [], "publisher": []}]`;
/// none → `[]`, which is public. What is no permission is a scheme already: another header for the
/// same token. Adds the names of the schemes to `schemes`.
pub(super) fn spell_out(operation: &mut Value, changes: bool, schemes: &mut Vec<String>) -> Access {
    let (mut access, mut alternatives) = (Access::Public, Vec::new());
    for name in names(operation) {
        match Permission::parse(&name) {
            Some(permission) => {
                access = Access::Holders(permission);
                let kinds = permission.holders().iter();
                alternatives.extend(kinds.map(|kind| vec![kind.as_str().to_owned()]));
                alternatives.extend(of_session(permission, changes));
            }
            None if name == VISITOR => access = Access::Visitors,
            None => alternatives.push(vec![name]),
        }
    }
    let requirement = |names: &Vec<String>| -> Value {
        let names = names.iter().map(|name| (name.clone(), json!([])));
        Value::Object(names.collect())
    };
    operation["security"] = alternatives.iter().map(requirement).collect();
    if let Access::Holders(permission) = access {
        operation[PERMISSION] = json!(permission.as_str());
    }
    schemes.extend(alternatives.into_iter().flatten());
    access
}

/// What a session's request has to carry; `None` if people do not hold the permission.
fn of_session(permission: Permission, changes: bool) -> Option<Vec<String>> {
    let mut all = vec![SESSION.to_owned()];
    match permission.people() {
        Held::ByNobody => return None,
        Held::ByMembers(_) => all.push(PUBLISHER.to_owned()),
        Held::ByEverybody | Held::ByStaff => {}
    }
    if changes {
        all.push(CSRF_TOKEN.to_owned());
    }
    Some(all)
}

/// The schemes that the draft names for an operation.
fn names(operation: &Value) -> Vec<String> {
    let alternatives = operation["security"].as_array().into_iter().flatten();
    let names = alternatives
        .filter_map(Value::as_object)
        .flat_map(Map::keys);
    names.cloned().collect()
}

/// Who may, as the reference says it: `admin token, runner token, or member (developer or above)`.
pub(super) fn sentence(operation: &Value) -> String {
    let Access::Holders(permission) = Access::of(operation) else {
        return "anybody".to_owned();
    };
    let tokens = permission.holders().iter();
    let mut who: Vec<String> = tokens
        .map(|kind| format!("{} token", kind.as_str()))
        .collect();
    match permission.people() {
        Held::ByNobody => {}
        Held::ByMembers(Role::Owner) => who.push("owner".to_owned()),
        Held::ByMembers(Role::Viewer) => who.push("any member".to_owned()),
        Held::ByMembers(least) => who.push(format!("member ({} or above)", least.as_str())),
        Held::ByEverybody => who.push("any person who is signed in".to_owned()),
        Held::ByStaff => who.push("staff".to_owned()),
    }
    let mut text = who.join(" or ");
    if permission.needs_recent_sign_in() && permission.people() != Held::ByNobody {
        text.push_str("; a person only after a recent sign-in");
    }
    text
}

/// The schemes of these names.
pub(super) fn schemes(names: Vec<String>) -> Value {
    let schemes = names.into_iter().map(|name| {
        let scheme = scheme(&name);
        (name, scheme)
    });
    Value::Object(schemes.collect())
}

fn scheme(name: &str) -> Value {
    let in_place = |place: &str, key: &str, description: &str| json!({"type": "apiKey", "in": place, "name": key, "description": description});
    let description = match name {
        "admin" => "A publisher's admin token, `stm_admin_…`: everything within its publisher.",
        "runner" => "A publisher's runner token, `stm_runner_…`: starts, claims and finishes runs.",
        "bootstrap" => "The operator's bootstrap token: makes and manages publishers.",
        "train" => "A train token, `ptk_…`: asks which account to use.",
        "train_key" => {
            let description = "A train token where its client sends no bearer; counts only \
                without an `Authorization` header.";
            return in_place("header", "x-api-key", description);
        }
        SESSION => {
            let description = "The cookie of a person who is signed in, which the operations under \
                `/v1/auth` set. It counts only without an `Authorization` header. On a loopback \
                address by http its name is `stm-dev`.";
            return in_place("cookie", "__Host-stm", description);
        }
        PUBLISHER => {
            let description = "The slug of the publisher that a request of a session is about. The \
                person has to be a member of it.";
            return in_place("header", "Stationmaster-Publisher", description);
        }
        CSRF_TOKEN => {
            let description = "The `csrf_token` of `GET /v1/me`: the proof that a change of a \
                session was not sent by another site's page.";
            return in_place("header", "X-CSRF-Token", description);
        }
        _ => "A bearer token.",
    };
    json!({"type": "http", "scheme": "bearer", "description": description})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelt(draft: &str, changes: bool) -> (Access, Value) {
        let mut operation = json!({"security": [{draft: []}]});
        let access = spell_out(&mut operation, changes, &mut Vec::new());
        (access, operation)
    }

    #[test]
    fn a_permission_becomes_what_a_request_carries() {
        let (access, operation) = spelt("runs.create", true);
        assert_eq!(access, Access::Holders(Permission::RunsCreate));
        let session = json!({"session": [], "publisher": [], "csrf_token": []});
        let expected = json!([{"admin": []}, {"runner": []}, session]);
        assert_eq!(operation["security"], expected);
        assert_eq!(Access::of(&operation), access);
        let (_, operation) = spelt("me.read", false);
        assert_eq!(operation["security"], json!([{"session": []}]));
        let (access, operation) = spelt(VISITOR, true);
        assert_eq!(
            (access, &operation["security"]),
            (Access::Visitors, &json!([]))
        );
        let (_, operation) = spelt("trains.resolve", true);
        assert_eq!(operation["security"], json!([{"train": []}]));
    }

    #[test]
    fn problems_follow_from_who_may() {
        let of = |permission, changes| Access::Holders(permission).codes(changes);
        let read = of(Permission::RunsRead, false);
        assert!(read.contains(&Code::PublisherRequired) && !read.contains(&Code::CsrfFailed));
        assert!(!read.contains(&Code::RoleTooLow));
        let mint = of(Permission::CredentialsWrite, true);
        for code in [
            Code::RecentSignInRequired,
            Code::RoleTooLow,
            Code::CsrfFailed,
        ] {
            assert!(mint.contains(&code), "{code}");
        }
        let lent = of(Permission::TrainsResolve, true);
        assert!(!lent.contains(&Code::WrongHost) && lent.contains(&Code::PublisherSuspended));
        assert!(!of(Permission::MeRead, false).contains(&Code::PublisherSuspended));
        assert!(Access::Public.codes(true).is_empty());
    }

    #[test]
    fn a_sentence_says_who_may() {
        for (draft, expected) in [
            (
                "runs.create",
                "admin token or runner token or member (developer or above)",
            ),
            (
                "me.secure",
                "any person who is signed in; a person only after a recent sign-in",
            ),
            ("publishers.read", "bootstrap token or staff"),
            ("trains.resolve", "train token"),
            (VISITOR, "anybody"),
        ] {
            assert_eq!(sentence(&spelt(draft, true).1), expected);
        }
    }
}
