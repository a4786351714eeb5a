//! Signing in elsewhere, and connecting such a sign-in with oneself.

use poem::{handler, http::StatusCode, web::Path};
use serde::Deserialize;

use domain::{Code, Problem, people::ReturnTo};
use identity::{CameBack, issuers::Callback};
use persistence::{SignedIn, StoreError};

use crate::{
    handlers::Answer,
    page,
    views::sign_in::{Leave, Provider},
    visit::{Posted, Visit},
};

/// The providers, as pages name them.
pub(crate) fn all(visit: &Visit) -> Vec<Provider> {
    let names = visit.service().providers().into_iter();
    names
        .map(|slug| Provider {
            name: name_of(&slug),
            slug,
        })
        .collect()
}

/// How people call a provider whose name in the settings is this.
pub(crate) fn name_of(slug: &str) -> String {
    match slug {
        "github" => "GitHub".to_owned(),
        "gitlab" => "GitLab".to_owned(),
        _ => {
            let mut chars = slug.chars();
            let first = chars.next().map(char::to_uppercase);
            first.into_iter().flatten().chain(chars).collect()
        }
    }
}

/// What the form that leads to a provider sends.
#[derive(Deserialize)]
pub(crate) struct ElsewhereForm {
    return_to: Option<String>,
}

async fn leave(
    visit: &Visit,
    slug: &str,
    (return_to, who): (Option<&ReturnTo>, Option<&SignedIn>),
) -> Answer {
    let context = visit.context();
    let began =
        visit
            .service()
            .begin_elsewhere((&context, slug), Some(visit.browser()), return_to, who);
    let began = began.await?;
    let provider = name_of(slug);
    let mut frame = visit.frame(format!("On the way to {provider}"));
    frame.person = None;
    let view = Leave {
        frame,
        provider,
        url: began.url,
    };
    // Not a redirect: the policy of the page with the form allows none to another site.
    let mut response = page::answer(StatusCode::OK, &view);
    visit.hold(&mut response, &began.visit);
    Ok(response)
}

/// `POST /sign-in/with/{provider}`
#[handler]
pub(crate) async fn begin(
    visit: &Visit,
    Path(slug): Path<String>,
    Posted(form): Posted<ElsewhereForm>,
) -> Answer {
    let return_to = form.return_to.as_deref().and_then(ReturnTo::parse);
    leave(visit, &slug, (return_to.as_ref(), None)).await
}

/// `POST /account/providers/{provider}`: to connect it.
#[handler]
pub(crate) async fn connect(
    visit: &Visit,
    Path(slug): Path<String>,
    Posted(_): Posted<ElsewhereForm>,
) -> Answer {
    let who = visit.need_recent("/account")?;
    let page = ReturnTo::parse("/account?done=connected");
    leave(visit, &slug, (page.as_ref(), Some(who))).await
}

/// What the form that disconnects a provider sends.
#[derive(Deserialize)]
pub(crate) struct DisconnectForm {
    issuer: String,
}

/// `POST /account/disconnect`
#[handler]
pub(crate) async fn disconnect(visit: &Visit, Posted(form): Posted<DisconnectForm>) -> Answer {
    let who = visit.need_recent("/account")?;
    let context = visit.context();
    visit
        .service()
        .unlink((&context, who), &form.issuer)
        .await?;
    Ok(page::see_other("/account?done=disconnected"))
}

/// `GET /sign-in/with/{provider}/callback`: the only GET that changes something. It is the
/// provider's redirect; what it brings is good once, and only in the browser that began.
#[handler]
pub(crate) async fn finish(visit: &Visit, Path(slug): Path<String>) -> Answer {
    let parameter = |name| visit.query(name);
    let state = parameter("state").ok_or(Code::LinkInvalid)?;
    let (code, iss, error) = (parameter("code"), parameter("iss"), parameter("error"));
    let callback = Callback {
        code: code.as_deref(),
        iss: iss.as_deref(),
        error: error.as_deref(),
    };
    let context = visit.context();
    let finished = visit.service().finish_elsewhere(
        &context,
        &slug,
        (&state, callback),
        Some(visit.browser()),
        visit.signed_in(),
    );
    match finished.await {
        Ok(CameBack::SignedIn(session)) => Ok(visit.welcome(&session, session.return_to.as_str())),
        Ok(CameBack::Linked(page)) => Ok(page::see_other(page.as_str())),
        // Somebody went back to the provider's page, or loaded this one again.
        Err(StoreError::Refused(Problem {
            code: Code::LinkUsed,
            ..
        })) => Ok(page::see_other("/sign-in")),
        Err(error) => Err(error.into()),
    }
}
