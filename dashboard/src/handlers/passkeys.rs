//! Passkeys: the options of a ceremony for the script, and the form that it sends afterwards.

use poem::{handler, http::StatusCode, web::Path};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;

use domain::{
    Code, Problem,
    id::{Id as _, PasskeyId},
    people::ReturnTo,
};
use identity::Ceremony;
use persistence::{Passkey, SignedIn, StoreError};

use crate::{
    device,
    handlers::{
        Answer,
        account::{NameForm, name_of},
        sign_in::{self, SecretText},
    },
    page,
    stop::{Stop, explain},
    views::{Confirm, Field, account::RenamePasskey},
    visit::{Nothing, Posted, Visit},
};

/// What a ceremony's form sends: first without the answer, for the options.
#[derive(Deserialize)]
pub(crate) struct CeremonyForm {
    return_to: Option<String>,
    token: Option<SecretText>,
    credential: Option<String>,
}

impl CeremonyForm {
    /// The ceremony's text and the browser's answer.
    fn answer<T: DeserializeOwned>(&self) -> Result<(&SecretString, T), Problem> {
        let malformed = || {
            let detail = "The browser's answer can't be read. Allow JavaScript, and try again.";
            Problem::new(Code::SignInFailed, detail)
        };
        let token = self.token.as_ref().ok_or_else(malformed)?;
        let credential = self.credential.as_deref().unwrap_or_default();
        let answer = serde_json::from_str(credential).map_err(|_| malformed())?;
        Ok((&token.0, answer))
    }
}

fn options<O: serde::Serialize>(ceremony: &Ceremony<O>) -> Answer {
    let token = ceremony.token.expose_secret();
    Ok(page::json(
        &json!({ "token": token, "options": ceremony.options }),
    ))
}

/// `POST /sign-in/passkey/options` and `POST /confirm-it-is-you/passkey/options`
#[handler]
pub(crate) async fn sign_in_options(visit: Visit, Posted(_): Posted<CeremonyForm>) -> Answer {
    let context = visit.context();
    options(&visit.service().begin_passkey_sign_in(&context).await?)
}

/// `POST /sign-in/passkey` and `POST /confirm-it-is-you/passkey`
#[handler]
pub(crate) async fn submit(visit: Visit, Posted(form): Posted<CeremonyForm>) -> Answer {
    let return_to = form.return_to.as_deref().and_then(ReturnTo::parse);
    let signed_in = match form.answer() {
        Ok((token, answer)) => {
            let context = visit.context();
            let signed_in =
                visit
                    .service()
                    .sign_in_with_passkey(&context, token, &answer, visit.signed_in());
            signed_in.await
        }
        Err(problem) => Err(problem.into()),
    };
    match signed_in {
        Ok(session) => Ok(visit.welcome(&session, return_to.unwrap_or_default().as_str())),
        Err(error) => sign_in::refused(&visit, error, return_to.as_ref()).await,
    }
}

/// `POST /account/passkeys/options`
#[handler]
pub(crate) async fn creation_options(visit: Visit, Posted(_): Posted<CeremonyForm>) -> Answer {
    let Ok(who) = visit.need_recent("/account") else {
        // For the script, which can lead nowhere by itself.
        return Err(Code::RecentSignInRequired.into());
    };
    options(&visit.service().begin_passkey(who).await?)
}

/// `POST /account/passkeys`
#[handler]
pub(crate) async fn add(visit: Visit, Posted(form): Posted<CeremonyForm>) -> Answer {
    let who = visit.need_recent("/account")?;
    let context = visit.context();
    let name = device::words(context.user_agent.as_deref());
    let (token, answer) = form.answer()?;
    let added = visit
        .service()
        .add_passkey((&context, who), token, &answer, &name);
    added.await?;
    Ok(page::see_other("/account?done=passkey"))
}

async fn own(visit: &Visit, who: &SignedIn, id: &str) -> Result<Passkey, Stop> {
    let id = PasskeyId::parse(id).ok_or_else(Problem::not_found)?;
    let all = visit.service().passkeys(who.user.id).await?;
    let one = all.into_iter().find(|passkey| passkey.id == id);
    one.ok_or_else(|| Problem::not_found().into())
}

fn page_of(id: &str) -> String {
    format!("/account/passkeys/{id}")
}

fn view(visit: &Visit, id: String, name: String) -> RenamePasskey {
    RenamePasskey {
        frame: visit.frame("Rename the passkey"),
        id,
        name: Field::of(name),
    }
}

/// `GET /account/passkeys/{passkey}`
#[handler]
pub(crate) async fn show(visit: Visit, Path(id): Path<String>) -> Answer {
    let who = visit.need_recent(&page_of(&id))?;
    let passkey = own(&visit, who, &id).await?;
    Ok(page::answer(
        StatusCode::OK,
        &view(&visit, id, passkey.name),
    ))
}

/// `POST /account/passkeys/{passkey}`
#[handler]
pub(crate) async fn rename(
    visit: Visit,
    Path(id): Path<String>,
    Posted(form): Posted<NameForm>,
) -> Answer {
    let who = visit.need_recent(&page_of(&id))?;
    let passkey = own(&visit, who, &id).await?;
    let context = visit.context();
    let renamed: Result<(), StoreError> = match name_of(&form.name) {
        Ok(name) => {
            let renamed = visit
                .service()
                .rename_passkey((&context, who), passkey.id, name);
            renamed.await
        }
        Err(problem) => Err(problem.into()),
    };
    match renamed {
        Ok(()) => Ok(page::see_other("/account?done=passkey-name")),
        Err(error) => {
            let mut view = view(&visit, id, form.name);
            let mut fields = [("name", &mut view.name)];
            let status = explain(error, &mut view.frame, &mut fields)?;
            Ok(page::answer(status, &view))
        }
    }
}

/// `GET /account/passkeys/{passkey}/remove`
#[handler]
pub(crate) async fn ask_remove(visit: Visit, Path(id): Path<String>) -> Answer {
    let page = page_of(&id) + "/remove";
    let who = visit.need_recent(&page)?;
    let name = own(&visit, who, &id).await?.name;
    let words = format!(
        "“{name}” will not sign you in here any more. Your device may still offer it: remove it there, too."
    );
    let view = Confirm {
        frame: visit.frame("Remove the passkey?"),
        paragraphs: vec![words],
        list: Vec::new(),
        action: page,
        hidden: Vec::new(),
        choice: None,
        button: "Remove the passkey".to_owned(),
        destructive: true,
        cancel: Some("/account".to_owned()),
    };
    Ok(page::answer(StatusCode::OK, &view))
}

/// `POST /account/passkeys/{passkey}/remove`
#[handler]
pub(crate) async fn remove(
    visit: Visit,
    Path(id): Path<String>,
    Posted(Nothing {}): Posted<Nothing>,
) -> Answer {
    let who = visit.need_recent(&(page_of(&id) + "/remove"))?;
    let passkey = own(&visit, who, &id).await?;
    let context = visit.context();
    let removed = visit.service().remove_passkey((&context, who), passkey.id);
    removed.await?;
    Ok(page::see_other("/account?done=passkey-removed"))
}
