//! Signing in and out, and confirming that it is still the same person.

use poem::{Response, handler, http::StatusCode};
use secrecy::SecretString;
use serde::Deserialize;

use domain::{
    Code,
    people::{EmailAddress, ReturnTo},
};
use identity::{Registration, Service};
use persistence::StoreError;

use crate::{
    handlers::{Answer, done, providers},
    page,
    stop::{Stop, explain},
    views::{
        Field,
        sign_in::{ConfirmItIsYou, SignIn, SignInCode, Ways},
    },
    visit::{Nothing, Posted, Visit},
};

fn view(visit: &Visit, return_to: Option<&ReturnTo>) -> SignIn {
    let settings = visit.service().settings();
    SignIn {
        frame: visit.frame("Sign in"),
        email: Field::default(),
        password: Field::default(),
        ways: Ways {
            mail: settings.mail,
            passwords: settings.passwords,
            passkeys: visit.service().has_passkeys(),
            providers: providers::all(visit),
        },
        registration: settings.registration == Registration::Open,
        return_to: text_of(return_to),
    }
}

/// What a form sends back; nothing for the first page.
pub(crate) fn text_of(return_to: Option<&ReturnTo>) -> String {
    return_to.map_or_else(String::new, |page| page.as_str().to_owned())
}

/// `GET /sign-in`
#[handler]
pub(crate) fn show(visit: &Visit) -> Response {
    let return_to = visit.return_to();
    if visit.signed_in().is_some() {
        return page::see_other(return_to.unwrap_or_default().as_str());
    }
    let mut view = view(visit, return_to.as_ref());
    view.frame.done = done(visit.query("done").as_deref());
    page::answer(StatusCode::OK, &view)
}

/// What the form of `/sign-in` sends.
#[derive(Deserialize)]
pub(crate) struct SignInForm {
    email: String,
    password: Option<SecretText>,
    by: Option<String>,
    return_to: Option<String>,
}

/// A text of a form that is never shown again.
#[derive(Deserialize)]
#[serde(from = "String")]
pub(crate) struct SecretText(pub(crate) SecretString);

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

/// `POST /sign-in`
#[handler]
pub(crate) async fn submit(visit: &Visit, Posted(form): Posted<SignInForm>) -> Answer {
    let return_to = form.return_to.as_deref().and_then(ReturnTo::parse);
    let by_password = form.by.as_deref() == Some("password");
    let done = match Service::address(&form.email, "/email") {
        Err(problem) => Err(problem.into()),
        Ok(address) => match form.password {
            Some(password) if by_password => {
                by_secret(visit, &address, &password.0, return_to.as_ref()).await
            }
            _ => by_link(visit, &address, return_to.as_ref()).await,
        },
    };
    done.or_else(|error| {
        let mut view = view(visit, return_to.as_ref());
        view.email = Field::of(form.email);
        let mut fields = [("email", &mut view.email), ("password", &mut view.password)];
        let status = explain(error, &mut view.frame, &mut fields)?;
        Ok(page::answer(status, &view))
    })
}

async fn by_secret(
    visit: &Visit,
    address: &EmailAddress,
    password: &SecretString,
    return_to: Option<&ReturnTo>,
) -> Result<Response, StoreError> {
    let session = visit
        .service()
        .sign_in_with_password(
            &visit.context(),
            (address, password),
            visit.device(),
            visit.signed_in(),
        )
        .await?;
    let page = return_to.cloned().unwrap_or_default();
    Ok(visit.welcome(&session, page.as_str()))
}

async fn by_link(
    visit: &Visit,
    address: &EmailAddress,
    return_to: Option<&ReturnTo>,
) -> Result<Response, StoreError> {
    let (context, browser) = (visit.context(), Some(visit.browser()));
    let requested = visit
        .service()
        .request_link(&context, address, browser, return_to)
        .await?;
    let mut response = page::see_other("/sign-in/code");
    visit.hold(&mut response, &requested.visit);
    Ok(response)
}

fn code_view(visit: &Visit) -> SignInCode {
    SignInCode {
        frame: visit.frame("Look into your mail"),
        code: Field::default(),
        minutes: visit.service().settings().link_lasts.as_secs() / 60,
    }
}

/// `GET /sign-in/code`
#[handler]
pub(crate) fn show_code(visit: &Visit) -> Response {
    page::answer(StatusCode::OK, &code_view(visit))
}

/// What the form of `/sign-in/code` sends.
#[derive(Deserialize)]
pub(crate) struct CodeForm {
    code: String,
}

/// `POST /sign-in/code`
#[handler]
pub(crate) async fn submit_code(visit: &Visit, Posted(form): Posted<CodeForm>) -> Answer {
    let context = visit.context();
    let done = visit
        .service()
        .redeem_code(&context, visit.browser(), &form.code, visit.signed_in())
        .await;
    match done {
        Ok(session) => Ok(visit.welcome(&session, session.return_to.as_str())),
        Err(StoreError::Refused(problem)) if problem.code == Code::SignInFailed => {
            let mut view = code_view(visit);
            view.code = Field {
                value: form.code,
                error: Some("This is not the code of the newest mail.".to_owned()),
            };
            Ok(page::answer(StatusCode::UNAUTHORIZED, &view))
        }
        Err(error) => Err(error.into()),
    }
}

/// `POST /sign-out`
#[handler]
pub(crate) async fn sign_out(visit: &Visit, Posted(Nothing {}): Posted<Nothing>) -> Answer {
    if let Some(who) = visit.signed_in() {
        let context = visit.context();
        let ended = visit
            .service()
            .end_session(&context, who.user.id, who.session.id);
        ended.await?;
    }
    Ok(visit.goodbye("/sign-in?done=signed-out"))
}

async fn confirm_view(visit: &Visit, return_to: &ReturnTo) -> Result<ConfirmItIsYou, Stop> {
    let who = visit.need(return_to.as_str())?;
    let settings = visit.service().settings();
    let service = visit.service();
    let has_password = settings.passwords && service.has_password(who.user.id).await?;
    let has_passkeys = service.has_passkeys() && !service.passkeys(who.user.id).await?.is_empty();
    Ok(ConfirmItIsYou {
        frame: visit.frame("Confirm that it is you"),
        email: who.user.address.to_string(),
        password: Field::default(),
        has_password,
        has_passkeys,
        has_mail: settings.mail,
        return_to: return_to.as_str().to_owned(),
    })
}

/// The page again for somebody whom a passkey did not sign in: who comes, or who confirms.
pub(crate) async fn refused(
    visit: &Visit,
    cause: StoreError,
    return_to: Option<&ReturnTo>,
) -> Answer {
    if visit.signed_in().is_some() {
        let page = return_to.cloned().unwrap_or_default();
        let mut view = confirm_view(visit, &page).await?;
        let status = explain(cause, &mut view.frame, &mut [])?;
        return Ok(page::answer(status, &view));
    }
    let mut view = view(visit, return_to);
    let status = explain(cause, &mut view.frame, &mut [])?;
    Ok(page::answer(status, &view))
}

/// `GET /confirm-it-is-you`
#[handler]
pub(crate) async fn show_confirm(visit: &Visit) -> Answer {
    let view = confirm_view(visit, &visit.return_to().unwrap_or_default()).await?;
    Ok(page::answer(StatusCode::OK, &view))
}

/// What the forms of `/confirm-it-is-you` send.
#[derive(Deserialize)]
pub(crate) struct ConfirmForm {
    password: Option<SecretText>,
    return_to: Option<String>,
}

impl ConfirmForm {
    fn page(&self) -> ReturnTo {
        let page = self.return_to.as_deref().and_then(ReturnTo::parse);
        page.unwrap_or_default()
    }
}

/// `POST /confirm-it-is-you`: a new session of the same person takes the place of the old one.
#[handler]
pub(crate) async fn confirm_by_password(
    visit: &Visit,
    Posted(form): Posted<ConfirmForm>,
) -> Answer {
    let page = form.page();
    let who = visit.need(page.as_str())?;
    let password = form
        .password
        .map_or_else(SecretString::default, |text| text.0);
    match by_secret(visit, &who.user.address, &password, Some(&page)).await {
        Ok(response) => Ok(response),
        Err(error) => {
            let mut view = confirm_view(visit, &page).await?;
            let mut fields = [("password", &mut view.password)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}

/// `POST /confirm-it-is-you/link`
#[handler]
pub(crate) async fn confirm_by_link(visit: &Visit, Posted(form): Posted<ConfirmForm>) -> Answer {
    let page = form.page();
    let who = visit.need(page.as_str())?;
    Ok(by_link(visit, &who.user.address, Some(&page)).await?)
}
