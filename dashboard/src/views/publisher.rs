//! Publishers and their members.

use askama::Template;

use super::{Field, Frame, Moment, join::Role};

/// `/`: one's own publishers, and the invitations that wait.
#[derive(Debug, Template)]
#[template(path = "home.html")]
pub(crate) struct Home {
    pub(crate) frame: Frame,
    pub(crate) publishers: Vec<OwnPublisher>,
    pub(crate) invitations: Vec<WaitingInvitation>,
}

/// A publisher that somebody is a member of.
#[derive(Debug)]
pub(crate) struct OwnPublisher {
    pub(crate) slug: String,
    pub(crate) name: String,
    pub(crate) role: &'static str,
    pub(crate) suspended: bool,
}

/// An invitation to the address of whoever is signed in.
#[derive(Debug)]
pub(crate) struct WaitingInvitation {
    pub(crate) id: String,
    pub(crate) publisher: String,
    pub(crate) role: Role,
    pub(crate) inviter: Option<String>,
    pub(crate) expires: Moment,
}

/// `/p/{slug}`: a publisher and its members.
#[derive(Debug, Template)]
#[template(path = "publisher.html")]
pub(crate) struct Publisher {
    pub(crate) frame: Frame,
    pub(crate) slug: String,
    pub(crate) name: String,
    /// The viewer's own role.
    pub(crate) role: Role,
    pub(crate) suspended: bool,
    pub(crate) members: Vec<Member>,
    pub(crate) invitations: Vec<SentInvitation>,
    /// The roles that the viewer may give; none for who may not manage members.
    pub(crate) roles: Vec<Role>,
    pub(crate) email: Field,
    /// The role that is chosen in the form.
    pub(crate) chosen: String,
}

/// A member.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) role: &'static str,
    pub(crate) last_seen: Option<Moment>,
    /// Whether it is the viewer.
    pub(crate) own: bool,
    /// Whether the viewer may change the role and remove the member.
    pub(crate) manageable: bool,
}

/// An invitation that was not accepted yet.
#[derive(Debug)]
pub(crate) struct SentInvitation {
    pub(crate) id: String,
    pub(crate) email: String,
    pub(crate) role: &'static str,
    pub(crate) expires: Moment,
}
