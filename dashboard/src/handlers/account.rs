//! One's own page.

use poem::{handler, http::StatusCode, web::Path};
use serde::Deserialize;

use domain::FaultCode;
use domain::{
    Problem,
    id::{Id as _, SessionId},
    limits::NAME_CHARS,
};
use identity::Service;
use persistence::{SignedIn, StoreError};

use crate::{
    device,
    handlers::{Answer, done, providers, sign_in::SecretText},
    page,
    stop::{Stop, explain},
    views::{
        Confirm, Field, Moment,
        account::{Account, Email, Identity, Passkey, Password, Session},
    },
    visit::{Nothing, Posted, Visit},
};

async fn view(visit: &Visit, who: &SignedIn) -> Result<Account, Stop> {
    let service = visit.service();
    let sessions = service.sessions(who.user.id).await?;
    let passkeys = service.passkeys(who.user.id).await?;
    let identities = service.identities(who.user.id).await?;
    let passwords = service.settings().passwords;
    Ok(Account {
        frame: visit.frame("Your account"),
        name: Field::of(who.user.display_name.clone().unwrap_or_default()),
        email: who.user.address.to_string(),
        sessions: sessions
            .into_iter()
            .map(|session| Session {
                device: device::words(session.user_agent.as_deref()),
                address: session.client_address.unwrap_or_default(),
                last_seen: Moment::of(session.last_seen_at),
                current: session.id == who.session.id,
                id: session.id.to_string(),
            })
            .collect(),
        passkeys: passkeys
            .into_iter()
            .map(|passkey| Passkey {
                id: passkey.id.to_string(),
                name: passkey.name,
                created: Moment::of(passkey.created_at),
                last_used: passkey.last_used_at.map(Moment::of),
            })
            .collect(),
        identities: identities
            .into_iter()
            .map(|one| Identity {
                name: one.address.unwrap_or(one.subject),
                issuer: one.provider,
            })
            .collect(),
        providers: providers::all(visit),
        has_passkeys: service.has_passkeys(),
        passwords,
        has_password: passwords && service.has_password(who.user.id).await?,
    })
}

/// `GET /account`
#[handler]
pub(crate) async fn show(visit: Visit) -> Answer {
    let who = visit.need("/account")?;
    let mut view = view(&visit, who).await?;
    view.frame.done = done(visit.query("done").as_deref());
    Ok(page::answer(StatusCode::OK, &view))
}

/// What a form with a name sends.
#[derive(Deserialize)]
pub(crate) struct NameForm {
    pub(crate) name: String,
}

/// Takes a name for people, without blanks around it.
pub(crate) fn name_of(text: &str) -> Result<&str, Problem> {
    let (name, odd) = (text.trim(), text.chars().any(char::is_control));
    let refused = |code, detail: String| Err(Problem::field("/name", code, detail));
    match name.chars().count() {
        0 => refused(FaultCode::Required, "Type a name.".to_owned()),
        count if count > NAME_CHARS => refused(
            FaultCode::TooLong,
            format!("A name has at most {NAME_CHARS} characters."),
        ),
        _ if odd => refused(
            FaultCode::Invalid,
            "The name has a character that can't be shown.".to_owned(),
        ),
        _ => Ok(name),
    }
}

/// `POST /account/name`
#[handler]
pub(crate) async fn rename(visit: Visit, Posted(form): Posted<NameForm>) -> Answer {
    let who = visit.need("/account")?;
    let context = visit.context();
    let renamed = match name_of(&form.name) {
        Ok(name) => visit.service().rename(&context, who, Some(name)).await,
        Err(problem) => Err(problem.into()),
    };
    match renamed {
        Ok(_) => Ok(page::see_other("/account?done=name")),
        Err(error) => {
            let mut view = view(&visit, who).await?;
            view.name = Field::of(form.name);
            let mut fields = [("name", &mut view.name)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}

/// `POST /account/sessions/{session}/revoke`
#[handler]
pub(crate) async fn end_session(
    visit: Visit,
    Path(id): Path<String>,
    Posted(Nothing {}): Posted<Nothing>,
) -> Answer {
    let who = visit.need("/account")?;
    let id = SessionId::parse(&id).ok_or_else(Problem::not_found)?;
    let context = visit.context();
    let ended = visit.service().end_own_session(&context, who.user.id, id);
    ended.await?;
    Ok(page::see_other("/account?done=session"))
}

/// `GET /account/sign-out-everywhere`
#[handler]
pub(crate) async fn ask_everywhere(visit: Visit) -> Answer {
    let who = visit.need("/account/sign-out-everywhere")?;
    let count = visit.service().sessions(who.user.id).await?.len();
    let words = match count {
        1 => "Only this browser is signed in. It will be signed out.".to_owned(),
        _ => {
            format!("{count} browsers are signed in. All of them will be signed out, this one too.")
        }
    };
    Ok(page::answer(
        StatusCode::OK,
        &Confirm {
            frame: visit.frame("Sign out everywhere?"),
            paragraphs: vec![words],
            list: Vec::new(),
            action: "/account/sign-out-everywhere".to_owned(),
            hidden: Vec::new(),
            choice: None,
            button: "Sign out everywhere".to_owned(),
            destructive: true,
            cancel: Some("/account".to_owned()),
        },
    ))
}

/// `POST /account/sign-out-everywhere`
#[handler]
pub(crate) async fn everywhere(visit: Visit, Posted(Nothing {}): Posted<Nothing>) -> Answer {
    let who = visit.need("/account")?;
    let context = visit.context();
    visit
        .service()
        .end_sessions(&context, who.user.id, None)
        .await?;
    Ok(visit.goodbye("/sign-in?done=everywhere"))
}

async fn password_view(visit: &Visit, who: &SignedIn) -> Result<Password, Stop> {
    let has_password = visit.service().has_password(who.user.id).await?;
    let title = if has_password {
        "Change your password"
    } else {
        "Set a password"
    };
    Ok(Password {
        frame: visit.frame(title),
        email: who.user.address.to_string(),
        has_password,
        password: Field::default(),
    })
}

/// `GET /account/password`
#[handler]
pub(crate) async fn show_password(visit: Visit) -> Answer {
    let who = visit.need_recent("/account/password")?;
    let view = password_view(&visit, who).await?;
    Ok(page::answer(StatusCode::OK, &view))
}

/// What the form of `/account/password` sends.
#[derive(Deserialize)]
pub(crate) struct PasswordForm {
    password: SecretText,
}

/// `POST /account/password`
#[handler]
pub(crate) async fn change_password(visit: Visit, Posted(form): Posted<PasswordForm>) -> Answer {
    let who = visit.need_recent("/account/password")?;
    let (context, password) = (visit.context(), &form.password.0);
    let changed = visit.service().change_password(&context, who, password);
    match changed.await {
        Ok(_) => Ok(page::see_other("/account?done=password")),
        Err(error) => {
            let mut view = password_view(&visit, who).await?;
            let mut fields = [("password", &mut view.password)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}

/// `GET /account/password/remove`
#[handler]
pub(crate) fn ask_remove_password(visit: Visit) -> Answer {
    visit.need_recent("/account/password/remove")?;
    let words = "You will sign in by links that are mailed to you, or by a passkey.";
    Ok(page::answer(
        StatusCode::OK,
        &Confirm {
            frame: visit.frame("Remove your password?"),
            paragraphs: vec![words.to_owned()],
            list: Vec::new(),
            action: "/account/password/remove".to_owned(),
            hidden: Vec::new(),
            choice: None,
            button: "Remove the password".to_owned(),
            destructive: true,
            cancel: Some("/account".to_owned()),
        },
    ))
}

/// `POST /account/password/remove`
#[handler]
pub(crate) async fn remove_password(visit: Visit, Posted(Nothing {}): Posted<Nothing>) -> Answer {
    let who = visit.need_recent("/account/password/remove")?;
    let context = visit.context();
    visit.service().remove_password(&context, who).await?;
    Ok(page::see_other("/account?done=password-removed"))
}

fn email_view(visit: &Visit, who: &SignedIn) -> Email {
    Email {
        frame: visit.frame("Change your address"),
        email: who.user.address.to_string(),
        new_email: Field::default(),
    }
}

/// `GET /account/email`
#[handler]
pub(crate) fn show_email(visit: Visit) -> Answer {
    let who = visit.need_recent("/account/email")?;
    Ok(page::answer(StatusCode::OK, &email_view(&visit, who)))
}

/// What the form of `/account/email` sends.
#[derive(Deserialize)]
pub(crate) struct EmailForm {
    email: String,
}

/// `POST /account/email`
#[handler]
pub(crate) async fn change_email(visit: Visit, Posted(form): Posted<EmailForm>) -> Answer {
    let who = visit.need_recent("/account/email")?;
    let context = visit.context();
    let asked: Result<_, StoreError> = match Service::address(&form.email, "/email") {
        Ok(address) => {
            let asked = visit
                .service()
                .request_address_change(&context, who, &address);
            asked.await
        }
        Err(problem) => Err(problem.into()),
    };
    match asked {
        Ok(_) => Ok(page::see_other("/account?done=address-asked")),
        Err(error) => {
            let mut view = email_view(&visit, who);
            view.new_email = Field::of(form.email);
            let mut fields = [("email", &mut view.new_email)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}
