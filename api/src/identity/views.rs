//! What answers show of people.

use poem_openapi::Object;
use view_derive::{Example, View};

use domain::people::{Role, SignInMethod};
use persistence::{
    Accepted, Invitation, InvitationStatus, Membership, MintedToken, OwnInvitation, OwnMembership,
    Publisher, PublisherStatus, RemovedMember, Session, User,
};

use crate::{
    publishers::credentials::EXAMPLE_TOKEN_ID,
    shared::{EXAMPLE_AT, EXAMPLE_ID, Time, Word, schemas_of_words},
};

/// A user's identifier.
pub(crate) const EXAMPLE_USER_ID: &str = "usr_01h455vb4pex5vsknk084sn02q";
pub(super) const EXAMPLE_EMAIL: &str = "ada@example.com";
const EXAMPLE_NAME: &str = "Ada Lovelace";
const EXAMPLE_BROWSER: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0";
/// The token of a session's changes: 64 hexadecimal characters.
const EXAMPLE_CSRF: &str = "6c1f0d3f5f1e5a0c4b8f0f8a7c9b2e4d6c1f0d3f5f1e5a0c4b8f0f8a7c9b2e4d";

schemas_of_words! {
    SignInMethod, "SignInMethod", "How a person signed in.";
    InvitationStatus, "InvitationStatus", "What became of an invitation.";
}

/// A person.
#[derive(Object, View, Example)]
#[oai(rename = "User", example)]
#[view(of = User)]
pub(super) struct UserView {
    /// `usr_…`
    #[example(EXAMPLE_USER_ID)]
    id: String,
    /// The address to which mails go.
    #[view(field = address)]
    #[example(EXAMPLE_EMAIL)]
    email: String,
    /// The person's name.
    #[oai(nullable)]
    #[view(field = display_name)]
    #[example(EXAMPLE_NAME)]
    name: Option<String>,
    /// Whether the person has the operator's rights.
    staff: bool,
    /// When the person became a user.
    created_at: Time,
}

/// A publisher, as its members see it in lists.
#[derive(Object, View, Example)]
#[oai(rename = "MembersPublisher")]
#[view(of = Publisher)]
pub(super) struct PublisherName {
    /// `pub_…`
    #[example(EXAMPLE_ID)]
    id: String,
    /// What requests of a session send as `Stationmaster-Publisher`.
    #[example("acme")]
    slug: String,
    /// Its name for people.
    #[example("Acme Media")]
    display_name: String,
    /// Whether requests about it are answered.
    #[example(PublisherStatus::Active)]
    status: Word<PublisherStatus>,
}

/// A membership that an invitation led to.
#[derive(Object, View, Example)]
#[oai(rename = "AcceptedInvitation", example)]
#[view(of = Accepted)]
pub(super) struct AcceptedView {
    /// The publisher.
    publisher: PublisherName,
    /// What the person may do there; a higher role than the invitation's if the person had it.
    #[example(Role::Developer)]
    role: Word<Role>,
}

/// A membership of the person who asks.
#[derive(Object, View, Example)]
#[oai(rename = "OwnMembership")]
#[view(of = OwnMembership)]
pub(super) struct OwnMembershipView {
    /// The publisher.
    publisher: PublisherName,
    /// What the person may do there.
    #[example(Role::Developer)]
    role: Word<Role>,
    /// When the person joined.
    #[view(field = created_at)]
    joined_at: Time,
}

/// All publishers of which the person is a member.
#[derive(Object, Example)]
#[oai(example)]
pub(super) struct OwnMemberships {
    /// They, by slug.
    #[example([OwnMembershipView::example()])]
    pub(super) items: Vec<OwnMembershipView>,
}

/// A session.
#[derive(Object, View, Example)]
#[oai(rename = "Session", example)]
#[view(of = Session)]
pub(super) struct SessionView {
    /// `ses_…`
    #[example("ses_01h455vb4pex5vsknk084sn02q")]
    id: String,
    /// How the person signed in.
    #[example(SignInMethod::Link)]
    method: Word<SignInMethod>,
    /// The provider, if the person signed in elsewhere.
    #[oai(nullable)]
    provider: Option<String>,
    /// When it began.
    created_at: Time,
    /// When the person last proved who they are.
    authenticated_at: Time,
    /// When it was last used, to the minute.
    last_seen_at: Time,
    /// When it ends, however much it is used.
    expires_at: Time,
    /// The address from which the person signed in.
    #[oai(nullable)]
    #[view(field = client_address)]
    #[example("203.0.113.9")]
    address: Option<String>,
    /// The browser's `User-Agent`, shortened.
    #[oai(nullable)]
    #[example(EXAMPLE_BROWSER)]
    user_agent: Option<String>,
}

/// The live sessions of the person.
#[derive(Object, Example)]
#[oai(example)]
pub(super) struct Sessions {
    /// They, the most recently seen one first.
    #[example([SessionView::example()])]
    pub(super) items: Vec<SessionView>,
    /// The identifier of the one that asks.
    #[example("ses_01h455vb4pex5vsknk084sn02q")]
    pub(super) current: String,
}

/// The person who asks, and the session.
#[derive(Object, Example)]
#[oai(rename = "Me", example)]
pub(super) struct MeView {
    /// The person.
    pub(super) user: UserView,
    /// The session that asks.
    pub(super) session: SessionView,
    /// What changes of this session send as `X-CSRF-Token`.
    #[example(EXAMPLE_CSRF)]
    pub(super) csrf_token: String,
    /// Whether the sign-in is recent enough for operations that need that.
    #[example(true)]
    pub(super) recent_sign_in: bool,
    /// Whether the person has a password.
    pub(super) has_password: bool,
}

/// A person has just signed in; the cookies of the answer are the session.
#[derive(Object, Example)]
#[oai(rename = "NewSession", example)]
pub(super) struct NewSessionView {
    /// The person.
    pub(super) user: UserView,
    /// The session.
    pub(super) session: SessionView,
    /// What changes of this session send as `X-CSRF-Token`.
    #[example(EXAMPLE_CSRF)]
    pub(super) csrf_token: String,
    /// Where the person wanted to go: a path of this service.
    #[example("/")]
    pub(super) return_to: String,
    /// Whether the person has become a user by this.
    pub(super) registered: bool,
    /// The membership that an invitation led to; null after any other way in.
    #[oai(nullable)]
    pub(super) membership: Option<AcceptedView>,
}

/// A member.
#[derive(Object, View, Example)]
#[oai(rename = "Member", example)]
#[view(of = Membership)]
pub(super) struct MemberView {
    /// `usr_…`
    #[view(field = user)]
    #[example(EXAMPLE_USER_ID)]
    user_id: String,
    /// The person's address.
    #[view(field = address)]
    #[example(EXAMPLE_EMAIL)]
    email: String,
    /// The person's name.
    #[oai(nullable)]
    #[view(field = display_name)]
    #[example(EXAMPLE_NAME)]
    name: Option<String>,
    /// What the person may do here.
    #[example(Role::Developer)]
    role: Word<Role>,
    /// When the person joined.
    #[view(field = created_at)]
    joined_at: Time,
    /// When one of the person's sessions was last seen, to the minute; null if there is none.
    #[oai(nullable)]
    #[example(EXAMPLE_AT)]
    last_seen_at: Option<Time>,
}

/// What a member created that still works.
#[derive(Object, View, Example)]
#[oai(rename = "MintedToken")]
#[view(of = MintedToken)]
pub(super) struct MintedView {
    /// `tok_…`
    #[example(EXAMPLE_TOKEN_ID)]
    id: String,
    /// Whether it is a train's token.
    train: bool,
    /// Its name for people.
    #[oai(nullable)]
    #[example("importer")]
    name: Option<String>,
    /// Its last four characters.
    #[example("9kQz")]
    last_four: String,
    /// When it was made.
    created_at: Time,
}

/// The live tokens that a member created.
#[derive(Object, Example)]
#[oai(example)]
pub(super) struct MintedTokens {
    /// They.
    #[example([MintedView::example()])]
    pub(super) items: Vec<MintedView>,
}

/// A membership that has ended.
#[derive(Object, View, Example)]
#[oai(rename = "RemovedMember", example)]
#[view(of = RemovedMember)]
pub(super) struct RemovedView {
    /// `usr_…`
    #[view(field = user)]
    #[example(EXAMPLE_USER_ID)]
    user_id: String,
    /// The live tokens that the person had created.
    #[example([MintedView::example()])]
    minted: Vec<MintedView>,
    /// Whether they were revoked together with the membership.
    #[example(true)]
    revoked: bool,
}

/// An offer of membership.
#[derive(Object, View, Example)]
#[oai(rename = "Invitation", example)]
#[view(of = Invitation)]
pub(super) struct InvitationView {
    /// `inv_…`
    #[example("inv_01h455vb4pex5vsknk084sn02q")]
    id: String,
    /// To whom it was mailed.
    #[view(field = address)]
    #[example(EXAMPLE_EMAIL)]
    email: String,
    /// The role that it offers.
    #[example(Role::Developer)]
    role: Word<Role>,
    /// What became of it.
    #[example(InvitationStatus::Pending)]
    status: Word<InvitationStatus>,
    /// Who invited: `usr_…` of a person, `tok_…` of a token.
    #[example(EXAMPLE_USER_ID)]
    invited_by: String,
    /// When it was made.
    created_at: Time,
    /// Until when it can be accepted.
    expires_at: Time,
    /// When it was accepted.
    #[oai(nullable)]
    accepted_at: Option<Time>,
}

/// An invitation of the person who asks.
#[derive(Object, View, Example)]
#[oai(rename = "OwnInvitation")]
#[view(of = OwnInvitation)]
pub(super) struct OwnInvitationView {
    /// `inv_…`
    #[view(field = invitation.id)]
    #[example("inv_01h455vb4pex5vsknk084sn02q")]
    id: String,
    /// The publisher that invites.
    publisher: PublisherName,
    /// The role that it offers.
    #[view(field = invitation.role)]
    #[example(Role::Developer)]
    role: Word<Role>,
    /// When it was made.
    #[view(field = invitation.created_at)]
    created_at: Time,
    /// Until when it can be accepted.
    #[view(field = invitation.expires_at)]
    expires_at: Time,
}

/// The invitations that wait for the person.
#[derive(Object, Example)]
#[oai(example)]
pub(super) struct OwnInvitations {
    /// They, newest first.
    #[example([OwnInvitationView::example()])]
    pub(super) items: Vec<OwnInvitationView>,
}
