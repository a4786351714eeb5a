//! Mailed links: a GET shows what a link is for and uses nothing up, a POST uses it.

use askama::Template;
use poem::{Response, handler, http::StatusCode};
use serde::Deserialize;

use domain::Code;
use identity::{LinkKind, OpenedLink, Service};
use persistence::StoreError;

use crate::{
    handlers::{Answer, sign_in::SecretText},
    headers, page,
    stop::{Stop, explain},
    views::{
        Confirm, Field, Message,
        sign_in::{ForgotPassword, ResetPassword, SignInConfirm},
    },
    visit::{Posted, Visit},
};

/// What a form sends whose page was opened by a mailed link.
#[derive(Deserialize)]
pub(crate) struct TokenForm {
    pub(crate) token: String,
}

/// The token in the address.
pub(crate) fn token_of(visit: &Visit) -> Result<String, Stop> {
    visit.query("token").ok_or_else(|| Code::LinkInvalid.into())
}

/// The page of a mailed link, whose address goes nowhere.
pub(crate) fn answer(view: &impl Template) -> Response {
    let mut response = page::answer(StatusCode::OK, view);
    headers::hide_address(&mut response);
    response
}

async fn open(visit: &Visit, token: &str, kinds: &[LinkKind]) -> Result<OpenedLink, Stop> {
    let opened = visit.service().open_link(token, Some(visit.browser()));
    let opened = opened.await?;
    if kinds.contains(&opened.kind) {
        Ok(opened)
    } else {
        Err(Code::LinkInvalid.into())
    }
}

fn sign_in_view(visit: &Visit, token: String, opened: &OpenedLink) -> SignInConfirm {
    SignInConfirm {
        frame: visit.frame("Sign in by the link in your mail"),
        email: opened.address.to_string(),
        token,
        elsewhere: !opened.same_browser,
    }
}

const SIGN_IN: [LinkKind; 2] = [LinkKind::SignIn, LinkKind::Operator];

/// `GET /sign-in/confirm`
#[handler]
pub(crate) async fn show_sign_in(visit: &Visit) -> Answer {
    let token = token_of(visit)?;
    let opened = open(visit, &token, &SIGN_IN).await?;
    Ok(answer(&sign_in_view(visit, token, &opened)))
}

/// What the form of `/sign-in/confirm` sends.
#[derive(Deserialize)]
pub(crate) struct SignInLinkForm {
    token: String,
    elsewhere: Option<String>,
}

/// `POST /sign-in/confirm`
#[handler]
pub(crate) async fn use_sign_in(visit: &Visit, Posted(form): Posted<SignInLinkForm>) -> Answer {
    let (context, confirmed) = (visit.context(), form.elsewhere.is_some());
    let done = visit
        .service()
        .redeem_link(
            &context,
            &form.token,
            (Some(visit.browser()), confirmed),
            visit.signed_in(),
        )
        .await;
    match done {
        Ok(session) => Ok(visit.welcome(&session, session.return_to.as_str())),
        // The page was opened when the browser still had its cookie.
        Err(StoreError::Refused(problem)) if problem.code == Code::OtherBrowser => {
            let opened = open(visit, &form.token, &SIGN_IN).await?;
            let view = sign_in_view(visit, form.token, &opened);
            Ok(page::answer(StatusCode::FORBIDDEN, &view))
        }
        Err(error) => Err(error.into()),
    }
}

/// `GET /verify`
#[handler]
pub(crate) async fn show_verify(visit: &Visit) -> Answer {
    let token = token_of(visit)?;
    let opened = open(visit, &token, &[LinkKind::Register]).await?;
    let words = format!(
        "This link confirms that {} is yours, and finishes your registration.",
        opened.address
    );
    Ok(answer(&Confirm {
        frame: visit.frame("Confirm your address"),
        paragraphs: vec![words],
        list: Vec::new(),
        action: "/verify".to_owned(),
        hidden: vec![("token", token)],
        choice: None,
        button: "Confirm the address".to_owned(),
        destructive: false,
        cancel: None,
    }))
}

/// `POST /verify`
#[handler]
pub(crate) async fn use_verify(visit: &Visit, Posted(form): Posted<TokenForm>) -> Answer {
    let context = visit.context();
    let session = visit
        .service()
        .finish_registration(
            &context,
            (&form.token, Some(visit.browser())),
            visit.signed_in(),
        )
        .await?;
    Ok(visit.welcome(&session, session.return_to.as_str()))
}

/// `GET /account/confirm-address`
#[handler]
pub(crate) async fn show_change_address(visit: &Visit) -> Answer {
    let token = token_of(visit)?;
    let opened = open(visit, &token, &[LinkKind::ChangeAddress]).await?;
    let words = format!(
        "This link makes {} your address: you sign in with it from then on. The old address is told.",
        opened.address
    );
    Ok(answer(&Confirm {
        frame: visit.frame("Confirm your new address"),
        paragraphs: vec![words],
        list: Vec::new(),
        action: "/account/confirm-address".to_owned(),
        hidden: vec![("token", token)],
        choice: None,
        button: "Change the address".to_owned(),
        destructive: false,
        cancel: None,
    }))
}

/// `POST /account/confirm-address`
#[handler]
pub(crate) async fn use_change_address(visit: &Visit, Posted(form): Posted<TokenForm>) -> Answer {
    let who = visit.need("/account")?;
    let context = visit.context();
    let done = visit
        .service()
        .confirm_address_change((&context, who), &form.token);
    done.await?;
    Ok(page::see_other("/account?done=address"))
}

fn forgot_view(visit: &Visit) -> ForgotPassword {
    ForgotPassword {
        frame: visit.frame("Choose a new password"),
        email: Field::default(),
    }
}

fn need_passwords(visit: &Visit) -> Result<(), Stop> {
    if visit.service().settings().passwords {
        Ok(())
    } else {
        Err(Code::NotFound.into())
    }
}

/// `GET /forgot-password`
#[handler]
pub(crate) fn show_forgot(visit: &Visit) -> Answer {
    need_passwords(visit)?;
    Ok(page::answer(StatusCode::OK, &forgot_view(visit)))
}

/// What the form of `/forgot-password` sends.
#[derive(Deserialize)]
pub(crate) struct ForgotForm {
    email: String,
}

/// `POST /forgot-password`
#[handler]
pub(crate) async fn submit_forgot(visit: &Visit, Posted(form): Posted<ForgotForm>) -> Answer {
    let done = match Service::address(&form.email, "/email") {
        Ok(address) => {
            visit
                .service()
                .request_reset(&visit.context(), &address)
                .await
        }
        Err(problem) => Err(problem.into()),
    };
    match done {
        Ok(()) => Ok(page::see_other("/forgot-password/sent")),
        Err(error) => {
            let mut view = forgot_view(visit);
            view.email = Field::of(form.email);
            let mut fields = [("email", &mut view.email)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}

/// `GET /forgot-password/sent`
#[handler]
pub(crate) fn show_forgot_sent(visit: &Visit) -> Response {
    let view = Message {
        frame: visit.frame("Look into your mail"),
        paragraphs: vec![
            "If somebody is registered with the address that you gave, a mail with a link is on its \
             way. It works for one hour."
                .to_owned(),
            "No mail? Look into the folder for unwanted mail, or try again.".to_owned(),
        ],
        onward: Some(("/sign-in".to_owned(), "Back to signing in")),
    };
    page::answer(StatusCode::OK, &view)
}

fn reset_view(visit: &Visit, token: String, opened: &OpenedLink) -> ResetPassword {
    ResetPassword {
        frame: visit.frame("Choose a new password"),
        email: opened.address.to_string(),
        token,
        password: Field::default(),
    }
}

/// `GET /reset-password`
#[handler]
pub(crate) async fn show_reset(visit: &Visit) -> Answer {
    let token = token_of(visit)?;
    let opened = open(visit, &token, &[LinkKind::Reset]).await?;
    Ok(answer(&reset_view(visit, token, &opened)))
}

/// What the form of `/reset-password` sends.
#[derive(Deserialize)]
pub(crate) struct ResetForm {
    token: String,
    password: SecretText,
}

/// `POST /reset-password`
#[handler]
pub(crate) async fn use_reset(visit: &Visit, Posted(form): Posted<ResetForm>) -> Answer {
    let (context, password) = (visit.context(), &form.password.0);
    let done = visit
        .service()
        .reset_password(&context, &form.token, password)
        .await;
    match done {
        Ok(_) => Ok(visit.goodbye("/sign-in?done=reset")),
        Err(error) => {
            let opened = open(visit, &form.token, &[LinkKind::Reset]).await?;
            let mut view = reset_view(visit, form.token, &opened);
            let mut fields = [("password", &mut view.password)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}
