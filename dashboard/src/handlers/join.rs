//! Becoming a user, or a member.

use poem::{Response, handler, http::StatusCode, web::Path};
use serde::Deserialize;

use domain::{
    Code, Problem,
    id::{Id as _, InvitationId, UserId},
    people::ReturnTo,
};
use identity::{Registration, Service};
use persistence::{OwnInvitation, StoreError};

use crate::{
    handlers::{
        Answer,
        links::{self, TokenForm},
        sign_in::{SecretText, text_of},
    },
    page,
    stop::{Stop, explain},
    views::{
        Field, Message,
        join::{Invitation, Register},
    },
    visit::{Nothing, Posted, Visit, person},
};

fn view(visit: &Visit, return_to: Option<&ReturnTo>) -> Result<Register, Stop> {
    let settings = visit.service().settings();
    if settings.registration == Registration::Closed {
        return Err(Code::RegistrationClosed.into());
    }
    Ok(Register {
        frame: visit.frame("Register"),
        name: Field::default(),
        email: Field::default(),
        password: Field::default(),
        passwords: settings.passwords,
        return_to: text_of(return_to),
    })
}

/// `GET /register`
#[handler]
pub(crate) fn show_register(visit: &Visit) -> Answer {
    let view = view(visit, visit.return_to().as_ref())?;
    Ok(page::answer(StatusCode::OK, &view))
}

/// What the form of `/register` sends.
#[derive(Deserialize)]
pub(crate) struct RegisterForm {
    name: String,
    email: String,
    password: Option<SecretText>,
    return_to: Option<String>,
}

/// `POST /register`
#[handler]
pub(crate) async fn submit_register(visit: &Visit, Posted(form): Posted<RegisterForm>) -> Answer {
    use secrecy::ExposeSecret as _;
    let return_to = form.return_to.as_deref().and_then(ReturnTo::parse);
    let password = form.password.as_ref().map(|text| &text.0);
    let password = password.filter(|text| !text.expose_secret().is_empty());
    let done: Result<(), StoreError> = match Service::address(&form.email, "/email") {
        Ok(address) => {
            let rest = (Some(form.name.as_str()), return_to.as_ref());
            let context = visit.context();
            visit
                .service()
                .register(&context, &address, (password, Some(visit.browser())), rest)
                .await
                .map(|_| ())
        }
        Err(problem) => Err(problem.into()),
    };
    match done {
        Ok(()) => Ok(page::see_other("/register/sent")),
        Err(error) => {
            let mut view = view(visit, return_to.as_ref())?;
            view.name = Field::of(form.name);
            view.email = Field::of(form.email);
            let mut fields = [
                ("name", &mut view.name),
                ("email", &mut view.email),
                ("password", &mut view.password),
            ];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}

/// `GET /register/sent`
#[handler]
pub(crate) fn show_register_sent(visit: &Visit) -> Response {
    let view = Message {
        frame: visit.frame("Look into your mail"),
        paragraphs: vec![
            "A mail was sent to the address that you gave. Open the link in it to finish. It works for \
             24 hours."
                .to_owned(),
            "No mail? Look into the folder for unwanted mail, or register again.".to_owned(),
        ],
        onward: None,
    };
    page::answer(StatusCode::OK, &view)
}

/// How a page calls whoever invited; `None` for a token.
pub(crate) async fn inviter(
    visit: &Visit,
    invitation: &OwnInvitation,
) -> Result<Option<String>, StoreError> {
    match UserId::parse(&invitation.invitation.invited_by) {
        Some(user) => {
            let user = visit.store().identity().user(user).await?;
            Ok(user.as_ref().map(person))
        }
        None => Ok(None),
    }
}

/// `GET /invitations/accept`
#[handler]
pub(crate) async fn show_invitation(visit: &Visit) -> Answer {
    let token = links::token_of(visit)?;
    let opened = visit.service().open_invitation(&token).await?;
    let inviter = inviter(visit, &opened).await?;
    let address = opened.invitation.address;
    let other = visit.signed_in().map(|who| &who.user.address);
    let other = other.filter(|signed_in| **signed_in != address);
    Ok(links::answer(&Invitation {
        frame: visit.frame("You are invited"),
        publisher: opened.publisher.display_name,
        role: opened.invitation.role.into(),
        inviter,
        signed_in_as: other.map(ToString::to_string),
        email: address.to_string(),
        token,
    }))
}

/// `POST /invitations/accept`
#[handler]
pub(crate) async fn accept(visit: &Visit, Posted(form): Posted<TokenForm>) -> Answer {
    let context = visit.context();
    let (accepted, session) = visit
        .service()
        .accept_invitation(&context, &form.token, visit.signed_in())
        .await?;
    let page = format!("/p/{}?done=joined", accepted.publisher.slug);
    Ok(visit.welcome(&session, &page))
}

/// `POST /invitations/{invitation}/accept`: by the person whose address it names.
#[handler]
pub(crate) async fn accept_own(
    visit: &Visit,
    Path(id): Path<String>,
    Posted(Nothing {}): Posted<Nothing>,
) -> Answer {
    let who = visit.need("/")?;
    let id = InvitationId::parse(&id).ok_or_else(Problem::not_found)?;
    let context = visit.context();
    let accepted = visit
        .service()
        .accept_own_invitation(&context, who, id)
        .await?;
    let page = format!("/p/{}?done=joined", accepted.publisher.slug);
    Ok(page::see_other(&page))
}
