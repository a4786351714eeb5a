//! Becoming a user, or a member.

use askama::Template;

use super::{Field, Frame};

/// `/register`.
#[derive(Debug, Template)]
#[template(path = "register.html")]
pub(crate) struct Register {
    pub(crate) frame: Frame,
    pub(crate) name: Field,
    pub(crate) email: Field,
    pub(crate) password: Field,
    /// Whether a password can be set.
    pub(crate) passwords: bool,
    /// Where to go after it.
    pub(crate) return_to: String,
}

/// `/invitations/accept`: by a mailed link.
#[derive(Debug, Template)]
#[template(path = "invitation.html")]
pub(crate) struct Invitation {
    pub(crate) frame: Frame,
    /// The publisher's name.
    pub(crate) publisher: String,
    pub(crate) role: Role,
    /// Who invites, if they are still there.
    pub(crate) inviter: Option<String>,
    /// The invited address.
    pub(crate) email: String,
    pub(crate) token: String,
    /// The address of whoever is signed in here, if it is another one.
    pub(crate) signed_in_as: Option<String>,
}

impl From<domain::people::Role> for Role {
    fn from(role: domain::people::Role) -> Self {
        use domain::people::Role as Known;
        let may = match role {
            Known::Owner => "do everything, and give the publisher up",
            Known::Admin => "do everything but manage owners and delete the publisher",
            Known::Developer => {
                "read everything but credentials, work on runs, publish events and retry deliveries"
            }
            Known::Viewer => "read everything but credentials",
        };
        Self {
            word: role.as_str(),
            may,
        }
    }
}

/// A role, in the one word that everybody uses and in a sentence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Role {
    pub(crate) word: &'static str,
    /// What it may do, after "may".
    pub(crate) may: &'static str,
}
