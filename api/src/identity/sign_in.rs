//! How people get in, as programs and scripts of pages ask for it. Every rule is
//! [`identity::Service`]'s.

use std::time::Duration;

use poem::http::HeaderValue;
use poem_openapi::{Enum, Object, OpenApi};
use secrecy::{ExposeSecret as _, SecretString};
use view_derive::Example;

use ::identity::{Device, NewBrowserSession, RESET_LASTS, Registration, Requested, Service};
use domain::{people::ReturnTo, permission::MeWrite};
use persistence::Accepted as AcceptedInvitation;

use super::{
    cookies::WithCookies,
    views::{EXAMPLE_EMAIL, NewSessionView, UserView},
};
use crate::{
    auth::{Person, Visitor},
    shared::{Accepted, NoContent, Ok, Tag, answer, no_content},
};
use web::http::{ApiError, Body, cookies};

/// How long a browser is remembered in which somebody signed in.
const DEVICE_LASTS: Duration = Duration::from_hours(365 * 24);
/// A link's text as examples show it: its checksum is wrong.
const EXAMPLE_LINK: &str = "stm_link_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
const EXAMPLE_INVITATION: &str = "stm_inv_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
const EXAMPLE_PASSWORD: &str = "correct horse battery staple";

/// Who asks for a link by mail.
#[derive(Object, Example)]
#[oai(
    rename = "SignInLinkRequest",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct LinkRequest {
    /// The address.
    #[oai(validator(max_length = 254))]
    #[example(EXAMPLE_EMAIL)]
    email: String,
    /// Where the person wants to go: a path of this service. What is none counts as `/`.
    #[oai(validator(max_length = 1024))]
    #[example("/p/acme/runs")]
    return_to: Option<String>,
}

/// The answer to each request for a mail, whether or not one is sent.
#[derive(Object, Example)]
#[oai(example)]
pub(super) struct MailRequested {
    /// For how many seconds what the mail holds is good.
    #[example(600u64)]
    valid_for_seconds: u64,
}

/// A code from a mail.
#[derive(Object, Example)]
#[oai(rename = "SignInCode", example, deny_unknown_fields)]
struct CodeRequest {
    /// Its eight digits. Spaces between them do not count.
    #[oai(validator(min_length = 6, max_length = 20))]
    #[example("123 456")]
    code: String,
}

/// A link from a mail.
#[derive(Object, Example)]
#[oai(rename = "SignInLink", example, deny_unknown_fields)]
struct RedeemRequest {
    /// The `token` of the link's query.
    #[oai(validator(max_length = 200))]
    #[example(EXAMPLE_LINK)]
    token: String,
    /// Whether the person wants to sign in here although another browser asked for the link.
    #[oai(default)]
    confirmed: bool,
}

/// An address and a password.
#[derive(Object, Example)]
#[oai(rename = "PasswordSignIn", example, deny_unknown_fields)]
struct PasswordRequest {
    /// The address.
    #[oai(validator(max_length = 254))]
    #[example(EXAMPLE_EMAIL)]
    email: String,
    /// The password.
    #[oai(validator(max_length = 1024))]
    #[example(EXAMPLE_PASSWORD)]
    password: String,
}

/// Who wants to become a user.
#[derive(Object, Example)]
#[oai(
    rename = "RegistrationRequest",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct RegisterRequest {
    /// The address.
    #[oai(validator(max_length = 254))]
    #[example(EXAMPLE_EMAIL)]
    email: String,
    /// A password of 8 characters or more, and of 1024 bytes at most, that is not a common one.
    #[oai(validator(max_length = 1024))]
    #[example(EXAMPLE_PASSWORD)]
    password: Option<String>,
    /// The person's name.
    #[oai(validator(min_length = 1, max_length = 120))]
    #[example("Ada Lovelace")]
    name: Option<String>,
    /// Where the person wants to go: a path of this service. What is none counts as `/`.
    #[oai(validator(max_length = 1024))]
    return_to: Option<String>,
}

/// A mailed link that is good for one thing.
#[derive(Object, Example)]
#[oai(rename = "MailedLink", example, deny_unknown_fields)]
struct MailedLink {
    /// The `token` of the link's query.
    #[oai(validator(max_length = 200))]
    #[example(EXAMPLE_LINK)]
    token: String,
}

/// The link of an invitation.
#[derive(Object, Example)]
#[oai(rename = "InvitationLink", example, deny_unknown_fields)]
struct InvitationLink {
    /// The `token` of the link's query.
    #[oai(validator(max_length = 200))]
    #[example(EXAMPLE_INVITATION)]
    token: String,
}

/// Who has forgotten a password.
#[derive(Object, Example)]
#[oai(rename = "PasswordResetRequest", example, deny_unknown_fields)]
struct ForgotRequest {
    /// The address.
    #[oai(validator(max_length = 254))]
    #[example(EXAMPLE_EMAIL)]
    email: String,
}

/// A new password, by a mailed link.
#[derive(Object, Example)]
#[oai(rename = "PasswordReset", example, deny_unknown_fields)]
struct ResetRequest {
    /// The `token` of the link's query.
    #[oai(validator(max_length = 200))]
    #[example(EXAMPLE_LINK)]
    token: String,
    /// A password of 8 characters or more, and of 1024 bytes at most, that is not a common one.
    #[oai(validator(max_length = 1024))]
    #[example(EXAMPLE_PASSWORD)]
    password: String,
}

/// Who may become a user.
#[derive(Clone, Copy, Enum)]
#[oai(rename_all = "snake_case")]
enum RegistrationName {
    /// Those who are invited, and those whom the operator makes.
    Closed,
    /// Everybody who receives mail.
    Open,
}

/// How people may sign in here.
#[derive(Object, Example)]
#[oai(example)]
struct SignInMethods {
    /// By a mailed link or code.
    #[example(true)]
    email: bool,
    /// By a password.
    passwords: bool,
    /// By a passkey.
    passkeys: bool,
    /// At which providers, by the names that the operator gave them.
    #[example(["google"])]
    providers: Vec<String>,
    /// Who may become a user.
    #[example(RegistrationName::Closed)]
    registration: RegistrationName,
}

/// Where a person wants to go. What is no path of this service is left out: whoever made the link
/// to us must not be able to stop a sign-in.
fn return_to(text: Option<&str>) -> Option<ReturnTo> {
    text.and_then(ReturnTo::parse)
}

/// The same, with the cookie by which the browser that asked is known.
fn requested_in(visitor: &Visitor, requested: &Requested) -> WithCookies<Accepted<MailRequested>> {
    let (text, lasts) = (requested.visit.expose_secret(), requested.lasts);
    let secure = visitor.app().origin.is_secure();
    let cookie = cookies::VISIT.set(text, Some(lasts.as_secs()), secure);
    WithCookies::new(mailed(lasts), [cookie])
}

pub(super) fn mailed(lasts: Duration) -> Accepted<MailRequested> {
    let valid_for_seconds = lasts.as_secs();
    answer(202, &MailRequested { valid_for_seconds }).into()
}

type SignedInAnswer = WithCookies<Ok<NewSessionView>>;

/// The answer to whoever has signed in, and the cookies: that of the session for as long as it can
/// last, since the server ends it earlier, and that of the browser for a year.
fn signed_in(
    visitor: &Visitor,
    new: &NewBrowserSession,
    joined: Option<&AcceptedInvitation>,
) -> SignedInAnswer {
    let (app, secure) = (visitor.app(), visitor.app().origin.is_secure());
    let cookie = new.cookie.expose_secret();
    let view = NewSessionView {
        user: UserView::from(&new.sign_in.user),
        session: (&new.sign_in.session).into(),
        csrf_token: app.people.csrf_token(cookie),
        return_to: new.return_to.as_str().to_owned(),
        registered: new.sign_in.registered,
        membership: joined.map(Into::into),
    };
    let lasts = app.people.settings().lasts.as_secs();
    let cookies: [HeaderValue; 2] = [
        cookies::SESSION.set(cookie, Some(lasts), secure),
        cookies::DEVICE.set(&new.device, Some(DEVICE_LASTS.as_secs()), secure),
    ];
    WithCookies::new(Ok::show(&view, None), cookies)
}

/// Signing in and out.
pub(crate) struct SignIn;

#[OpenApi(prefix_path = "/v1/auth", tag = "Tag::People")]
impl SignIn {
    /// Get how people may sign in
    #[oai(
        path = "/methods",
        method = "get",
        operation_id = "get_sign_in_methods"
    )]
    #[expect(clippy::unused_async, reason = "the macro wants handlers to be async")]
    async fn methods(&self, visitor: Visitor) -> Result<Ok<SignInMethods>, ApiError> {
        let people = &visitor.app().people;
        let settings = people.settings();
        let view = SignInMethods {
            email: settings.mail,
            passwords: settings.passwords,
            passkeys: people.has_passkeys(),
            providers: people.providers(),
            registration: match settings.registration {
                Registration::Closed => RegistrationName::Closed,
                Registration::Open => RegistrationName::Open,
            },
        };
        Ok(Ok::show(&view, None))
    }

    /// Request a link and a code to sign in with
    ///
    /// They are mailed if somebody may sign in by the address. The answer is always the same. The
    /// cookie that it sets makes the code good in this browser alone.
    #[oai(path = "/link", method = "post", operation_id = "request_sign_in_link")]
    async fn link(
        &self,
        visitor: Visitor,
        body: Body<LinkRequest>,
    ) -> Result<WithCookies<Accepted<MailRequested>>, ApiError> {
        let address = Service::address(&body.0.email, "/email")?;
        let return_to = return_to(body.0.return_to.as_deref());
        let (app, held) = (visitor.app(), visitor.visit.as_deref());
        let requested = app
            .people
            .request_link(&visitor.context(), &address, held, return_to.as_ref())
            .await?;
        Ok(requested_in(&visitor, &requested))
    }

    /// Sign in by a mailed code
    ///
    /// In the browser that asked for it.
    #[oai(path = "/code", method = "post", operation_id = "redeem_sign_in_code")]
    async fn code(
        &self,
        visitor: Visitor,
        body: Body<CodeRequest>,
    ) -> Result<SignedInAnswer, ApiError> {
        let (visit, old) = (visitor.visit.as_deref(), visitor.signed_in.as_deref());
        let people = &visitor.app().people;
        let new = people
            .redeem_code(
                &visitor.context(),
                visit.unwrap_or_default(),
                &body.0.code,
                old,
            )
            .await?;
        Ok(signed_in(&visitor, &new, None))
    }

    /// Sign in by a mailed link
    ///
    /// A browser that did not ask for the link gets 403 `other_browser`, until the person has said
    /// that they want to sign in there: `confirmed`.
    #[oai(
        path = "/redeem",
        method = "post",
        operation_id = "redeem_sign_in_link"
    )]
    async fn redeem(
        &self,
        visitor: Visitor,
        body: Body<RedeemRequest>,
    ) -> Result<SignedInAnswer, ApiError> {
        let (visit, old) = (visitor.visit.as_deref(), visitor.signed_in.as_deref());
        let people = &visitor.app().people;
        let (context, how) = (visitor.context(), (visit, body.0.confirmed));
        let new = people
            .redeem_link(&context, &body.0.token, how, old)
            .await?;
        Ok(signed_in(&visitor, &new, None))
    }

    /// Sign in by a password
    #[oai(
        path = "/password",
        method = "post",
        operation_id = "sign_in_with_password"
    )]
    async fn password(
        &self,
        visitor: Visitor,
        body: Body<PasswordRequest>,
    ) -> Result<SignedInAnswer, ApiError> {
        let address = Service::address(&body.0.email, "/email")?;
        let password = SecretString::from(body.0.password);
        let device = Device(visitor.device.as_deref());
        let (people, old) = (&visitor.app().people, visitor.signed_in.as_deref());
        let new = people
            .sign_in_with_password(&visitor.context(), (&address, &password), device, old)
            .await?;
        Ok(signed_in(&visitor, &new, None))
    }

    /// Register
    ///
    /// Mails a link that finishes the registration. Whoever has an address of a user's gets a mail
    /// that says so; the answer is the same.
    #[oai(path = "/register", method = "post", operation_id = "register")]
    async fn register(
        &self,
        visitor: Visitor,
        body: Body<RegisterRequest>,
    ) -> Result<WithCookies<Accepted<MailRequested>>, ApiError> {
        let address = Service::address(&body.0.email, "/email")?;
        let password = body.0.password.map(SecretString::from);
        let return_to = return_to(body.0.return_to.as_deref());
        let more = (body.0.name.as_deref(), return_to.as_ref());
        let people = &visitor.app().people;
        let given = (password.as_ref(), visitor.visit.as_deref());
        let requested = people
            .register(&visitor.context(), &address, given, more)
            .await?;
        Ok(requested_in(&visitor, &requested))
    }

    /// Finish a registration by its link
    ///
    /// Makes the user, and signs the person in.
    #[oai(
        path = "/verify",
        method = "post",
        operation_id = "verify_registration"
    )]
    async fn verify(
        &self,
        visitor: Visitor,
        body: Body<MailedLink>,
    ) -> Result<SignedInAnswer, ApiError> {
        let (people, old) = (&visitor.app().people, visitor.signed_in.as_deref());
        let new = people
            .finish_registration(
                &visitor.context(),
                (&body.0.token, visitor.visit.as_deref()),
                old,
            )
            .await?;
        Ok(signed_in(&visitor, &new, None))
    }

    /// Request a link for a new password
    ///
    /// It is mailed if a user has the address. The answer is always the same.
    #[oai(
        path = "/forgot-password",
        method = "post",
        operation_id = "request_password_reset"
    )]
    async fn forgot(
        &self,
        visitor: Visitor,
        body: Body<ForgotRequest>,
    ) -> Result<Accepted<MailRequested>, ApiError> {
        let address = Service::address(&body.0.email, "/email")?;
        let people = &visitor.app().people;
        people.request_reset(&visitor.context(), &address).await?;
        Ok(mailed(RESET_LASTS))
    }

    /// Set a new password by a mailed link
    ///
    /// All sessions of the person end, and no other mailed link is good any more. It signs nobody
    /// in.
    #[oai(
        path = "/reset-password",
        method = "post",
        operation_id = "reset_password"
    )]
    async fn reset(
        &self,
        visitor: Visitor,
        body: Body<ResetRequest>,
    ) -> Result<NoContent, ApiError> {
        let password = SecretString::from(body.0.password);
        let people = &visitor.app().people;
        people
            .reset_password(&visitor.context(), &body.0.token, &password)
            .await?;
        Ok(no_content().into())
    }

    /// Take over a new address by its mailed link
    ///
    /// By the person who asked for it, who is signed in. The old address is told.
    #[oai(
        path = "/confirm-email",
        method = "post",
        operation_id = "confirm_email"
    )]
    async fn confirm_email(
        &self,
        person: Person<MeWrite>,
        body: Body<MailedLink>,
    ) -> Result<NoContent, ApiError> {
        let by = (&person.context(), &*person.who);
        let people = &person.app().people;
        people.confirm_address_change(by, &body.0.token).await?;
        Ok(no_content().into())
    }

    /// Accept an invitation by its mailed link
    ///
    /// Signs the person in as the user who has the invitation's address. An address of nobody
    /// becomes a new user's, also where registration is closed.
    #[oai(
        path = "/accept-invitation",
        method = "post",
        operation_id = "accept_invitation_link"
    )]
    async fn accept(
        &self,
        visitor: Visitor,
        body: Body<InvitationLink>,
    ) -> Result<SignedInAnswer, ApiError> {
        let (people, old) = (&visitor.app().people, visitor.signed_in.as_deref());
        let (joined, new) = people
            .accept_invitation(&visitor.context(), &body.0.token, old)
            .await?;
        Ok(signed_in(&visitor, &new, Some(&joined)))
    }

    /// Sign out
    #[oai(path = "/sign-out", method = "post", operation_id = "sign_out")]
    async fn sign_out(&self, person: Person<MeWrite>) -> Result<WithCookies<NoContent>, ApiError> {
        let (app, who) = (person.app(), &person.who);
        let people = &app.people;
        people
            .end_session(&person.context(), who.user.id, who.session.id)
            .await?;
        let gone = cookies::SESSION.remove(app.origin.is_secure());
        Ok(WithCookies::new(no_content().into(), [gone]))
    }
}
