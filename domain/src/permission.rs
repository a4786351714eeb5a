//! What a caller has to be allowed to do: one permission an operation, and one table of who holds
//! each.
//!
//! An operation names its permission in its signature, by the type that has the permission's name.
//! The security in the OpenAPI document, `docs/access.md` and the isolation proof follow from the
//! table. Its columns are the kinds of token and, for people who are signed in, the least role.
//! Scopes of people's tokens will be a further column.

use crate::people::Role;

/// A kind of token that a request can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// A publisher's token that configures.
    Admin,
    /// A publisher's token that works on runs.
    Runner,
    /// The token of a train.
    Train,
    /// The operator's token.
    Bootstrap,
}

/// Which people hold a permission, when they are signed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nobody: it is for tokens alone.
    ByNobody,
    /// Members of the publisher with this role, or with one that includes it.
    ByMembers(Role),
    /// Everybody, about themselves.
    ByEverybody,
    /// Staff.
    ByStaff,
}

impl TokenKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Admin, Self::Runner, Self::Train, Self::Bootstrap];

    /// The name of its security scheme in the OpenAPI document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Runner => "runner",
            Self::Train => "train",
            Self::Bootstrap => "bootstrap",
        }
    }

    /// The kind whose security scheme has this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// What stands before the word "token" in a sentence.
    const fn with_article(self) -> &'static str {
        match self {
            Self::Admin => "an admin",
            Self::Runner => "a runner",
            Self::Train => "a train",
            Self::Bootstrap => "the operator's bootstrap",
        }
    }
}

/// A type that stands for a permission in the signature of an operation.
pub trait Required {
    /// The permission.
    const PERMISSION: Permission;
}

macro_rules! permissions {
    ($($(#[$doc:meta])* $name:ident = $word:literal, [$($kind:ident),*], $people:expr;)*) => {
        /// What an operation asks of its caller.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Permission { $($(#[$doc])* $name,)* }

        impl Permission {
            /// Every permission.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// The permission that has this name.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($word => Some(Self::$name),)* _ => None }
            }

            /// The kinds of token that hold it.
            #[must_use]
            pub const fn holders(self) -> &'static [TokenKind] {
                match self { $(Self::$name => &[$(TokenKind::$kind),*],)* }
            }

            /// The people who hold it when they are signed in.
            #[must_use]
            pub const fn people(self) -> Held {
                match self { $(Self::$name => $people,)* }
            }
        }

        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub enum $name {}

            impl Required for $name {
                const PERMISSION: Permission = Permission::$name;
            }
        )*
    };
}

const VIEWER: Held = Held::ByMembers(Role::Viewer);
const DEVELOPER: Held = Held::ByMembers(Role::Developer);
const ADMIN: Held = Held::ByMembers(Role::Admin);

permissions! {
    /// Read the publisher's own name, state and settings.
    PublisherRead = "publisher.read", [Admin, Runner], VIEWER;
    /// Change the publisher's own settings.
    PublisherWrite = "publisher.write", [Admin], ADMIN;
    /// Read the publisher's quotas and their use.
    UsageRead = "usage.read", [Admin], VIEWER;
    /// Read and verify the publisher's audit log.
    AuditRead = "audit.read", [Admin], VIEWER;
    /// Read the lists of the publisher's credentials. No credential itself can be read.
    CredentialsRead = "credentials.read", [Admin], ADMIN;
    /// Create, rotate and revoke credentials of the publisher, its endpoints and its trains.
    CredentialsWrite = "credentials.write", [Admin], ADMIN;
    /// Read pipelines.
    PipelinesRead = "pipelines.read", [Admin, Runner], VIEWER;
    /// Create, change, pause and delete pipelines.
    PipelinesWrite = "pipelines.write", [Admin], ADMIN;
    /// Read runs and their timelines.
    RunsRead = "runs.read", [Admin, Runner], VIEWER;
    /// Create runs.
    RunsCreate = "runs.create", [Admin, Runner], DEVELOPER;
    /// Cancel runs.
    RunsCancel = "runs.cancel", [Admin, Runner], DEVELOPER;
    /// Claim runs, work on what was claimed, and finish it.
    RunsClaim = "runs.claim", [Runner], DEVELOPER;
    /// Read events, and the list of their types.
    EventsRead = "events.read", [Admin, Runner], VIEWER;
    /// Publish events.
    EventsPublish = "events.publish", [Admin, Runner], DEVELOPER;
    /// Read one type of events with its schema.
    EventTypesRead = "event_types.read", [Admin], VIEWER;
    /// Describe types of events.
    EventTypesWrite = "event_types.write", [Admin], ADMIN;
    /// Read webhook endpoints, their deliveries and their replays.
    WebhooksRead = "webhooks.read", [Admin], VIEWER;
    /// Create, change and delete webhook endpoints; start and cancel replays.
    WebhooksWrite = "webhooks.write", [Admin], ADMIN;
    /// Send a test event to an endpoint, or a delivery again.
    WebhooksSend = "webhooks.send", [Admin], DEVELOPER;
    /// Receive events over a connection of one's own, signed with a secret of the token's.
    WebhooksListen = "webhooks.listen", [Admin], ADMIN;
    /// Read accounts. Their credentials can't be read.
    AccountsRead = "accounts.read", [Admin], VIEWER;
    /// Store, change, refresh and delete accounts.
    AccountsWrite = "accounts.write", [Admin], ADMIN;
    /// Read trains.
    TrainsRead = "trains.read", [Admin], VIEWER;
    /// Create, change and delete trains.
    TrainsWrite = "trains.write", [Admin], ADMIN;
    /// Use the accounts of one's own train: ask for a credential, and report how it went.
    TrainsResolve = "trains.resolve", [Train], Held::ByNobody;
    /// Read the publisher's members.
    MembersRead = "members.read", [Admin], VIEWER;
    /// Change roles of members, and remove members.
    MembersWrite = "members.write", [Admin], ADMIN;
    /// Read the publisher's invitations.
    InvitationsRead = "invitations.read", [Admin], ADMIN;
    /// Invite members; send invitations again, and withdraw them.
    InvitationsWrite = "invitations.write", [Admin], ADMIN;
    /// Leave the publisher.
    MembershipLeave = "membership.leave", [], VIEWER;
    /// Read what is known of oneself.
    MeRead = "me.read", [], Held::ByEverybody;
    /// Change one's own name, and end one's own sessions.
    MeWrite = "me.write", [], Held::ByEverybody;
    /// Change how one gets in: address, password, passkeys, connected providers.
    MeSecure = "me.secure", [], Held::ByEverybody;
    /// Read the operator's audit log, and the state of the jobs.
    OperatorRead = "operator.read", [Bootstrap], Held::ByStaff;
    /// Read publishers.
    PublishersRead = "publishers.read", [Bootstrap], Held::ByStaff;
    /// Change, suspend, resume and delete publishers.
    PublishersWrite = "publishers.write", [Bootstrap], Held::ByStaff;
    /// Create a publisher with its first credentials, or another admin token for one.
    PublishersMint = "publishers.mint", [Bootstrap], Held::ByStaff;
}

impl Permission {
    /// Whether tokens of this kind hold it.
    #[must_use]
    pub fn is_held_by(self, kind: TokenKind) -> bool {
        self.holders().contains(&kind)
    }

    /// Whether a person with this role in the publisher holds it.
    #[must_use]
    pub fn is_held_by_member(self, role: Role) -> bool {
        matches!(self.people(), Held::ByMembers(least) if role.includes(least))
    }

    /// Whether a person has to have signed in moments ago: whoever finds an open browser must not
    /// get credentials, or let others in.
    #[must_use]
    pub const fn needs_recent_sign_in(self) -> bool {
        matches!(
            self,
            Self::CredentialsWrite
                | Self::WebhooksListen
                | Self::MembersWrite
                | Self::InvitationsWrite
                | Self::MeSecure
                | Self::PublishersWrite
                | Self::PublishersMint
        )
    }

    /// The tokens that hold it, as a sentence names them: "an admin or a runner token".
    #[must_use]
    pub fn tokens(self) -> String {
        if self.holders().is_empty() {
            return "a person who is signed in".to_owned();
        }
        let kinds = self.holders().iter().map(|kind| kind.with_article());
        format!("{} token", kinds.collect::<Vec<_>>().join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for permission in Permission::ALL {
            assert_eq!(Permission::parse(permission.as_str()), Some(*permission));
        }
        for kind in TokenKind::ALL {
            assert_eq!(TokenKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(Permission::parse("runs"), None);
        assert_eq!(TokenKind::parse("admins"), None);
    }

    #[test]
    fn the_operator_and_publishers_share_no_permission() {
        for permission in Permission::ALL {
            let for_staff = permission.people() == Held::ByStaff;
            assert_eq!(for_staff, permission.is_held_by(TokenKind::Bootstrap));
            let operators = permission.is_held_by(TokenKind::Bootstrap);
            assert!(
                !operators || permission.holders() == [TokenKind::Bootstrap],
                "{}",
                permission.as_str()
            );
        }
    }

    #[test]
    fn an_owner_may_all_that_an_admin_token_may() {
        for permission in Permission::ALL {
            if permission.is_held_by(TokenKind::Admin) {
                assert!(permission.is_held_by_member(Role::Admin));
                assert!(permission.is_held_by_member(Role::Owner));
            }
        }
        assert!(!Permission::RunsCreate.is_held_by_member(Role::Viewer));
        assert!(Permission::RunsCreate.is_held_by_member(Role::Developer));
        assert!(!Permission::TrainsResolve.is_held_by_member(Role::Owner));
    }

    #[test]
    fn a_sentence_names_the_tokens() {
        assert_eq!(
            Permission::RunsCancel.tokens(),
            "an admin or a runner token"
        );
        assert_eq!(
            Permission::PublishersRead.tokens(),
            "the operator's bootstrap token"
        );
        assert_eq!(Permission::MeRead.tokens(), "a person who is signed in");
    }
}
