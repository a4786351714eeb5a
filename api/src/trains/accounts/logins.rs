//! Logging in at an upstream: an account whose tokens come from there, never through a person.

use std::sync::Arc;

use poem_openapi::{Object, OpenApi};
use secrecy::ExposeSecret as _;
use view_derive::Example;

use domain::{
    Code, FaultCode, FieldError, Problem, Timestamp,
    account::{Ceilings, Credential, CredentialType, OauthTokens},
    id::{AccountId, Id as _},
    permission::AccountsWrite,
    upstream::{ClientCredentials, Grant, LoginRequest, TokenRequest},
};
use outbound::Policy;
use persistence::{AccountAuthorization, AuthorizationSecrets, NewAccount, OauthClient};
use upstream::AskError;

use crate::{
    auth::Caller,
    shared::{App, Created, Ok, Sent, Tag, Time, destination},
};
use web::http::{ApiError, Body};

use super::{
    AccountView,
    body::{HeaderBody, upstream},
    made,
};

/// A login to begin.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "StartOauthLogin",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
struct StartBody {
    /// The name of the account that is to be made.
    #[oai(validator(min_length = 1, max_length = 120))]
    #[example("Anthropic, team A")]
    name: String,
    /// Whose credential it is to be. `anthropic` and `openai` are known; for others `base_url` is
    /// needed.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    #[example("anthropic")]
    provider: String,
    /// Where the upstream is: an https URL on a public address, without query. A known provider
    /// has one.
    #[oai(validator(min_length = 1, max_length = 2048))]
    base_url: Option<String>,
    /// What carries the credential. A known provider has one; otherwise it is
    /// `authorization: Bearer`.
    header: Option<HeaderBody>,
    /// Where people log in: an https URL. It may have a query.
    #[oai(validator(min_length = 1, max_length = 2048))]
    #[example("https://auth.example.com/oauth/authorize")]
    authorize_url: String,
    /// Where the code is traded for tokens, and where they are refreshed: an https URL on a public
    /// address.
    #[oai(validator(min_length = 1, max_length = 2048))]
    #[example("https://auth.example.com/oauth/token")]
    token_url: String,
    /// The client that the upstream knows.
    #[oai(validator(min_length = 1, max_length = 255, pattern = "^[ -~]+$"))]
    #[example("stationmaster")]
    client_id: String,
    /// What the client authenticates with, if it has to. It is never shown again.
    client_secret: Option<Sent<1, 1024>>,
    /// What to ask for, separated by single spaces (RFC 6749 §3.3).
    #[oai(
        default,
        validator(max_length = 2048, pattern = r"^([!#-\[\]-~]+( [!#-\[\]-~]+)*)?$")
    )]
    #[example("inference offline_access")]
    scopes: String,
    /// Where the upstream sends the browser back to: an https URL, or http on this machine
    /// (RFC 8252 §7.3), as the upstream knows it.
    #[oai(validator(min_length = 1, max_length = 2048))]
    #[example("http://127.0.0.1:40404/callback")]
    redirect_uri: String,
    /// An account whose places in trains the new one takes over; it goes when the login ends well.
    #[oai(validator(max_length = 40))]
    replaces: Option<String>,
}

/// A login that was begun.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "OauthLogin", example)]
pub struct LoginView {
    /// Where a person logs in.
    #[example("https://auth.example.com/oauth/authorize?response_type=code&…")]
    url: String,
    /// Comes back with the code, and is needed to finish. It counts once.
    #[example("Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE")]
    state: String,
    /// When it stops counting.
    expires_at: Time,
}

/// What came back from the upstream.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "FinishOauthLogin", example, deny_unknown_fields)]
struct FinishBody {
    /// The state that the login was begun with.
    #[example("Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE")]
    state: Sent<1, 100>,
    /// The code that came with it.
    #[example("code-of-the-upstream")]
    code: Sent<1, 4096>,
}

/// Judges where a browser is sent back to. We never call it, and it is passed on as it came: the
/// upstream compares it byte by byte.
fn redirect(uri: &str) -> Result<(), FieldError> {
    let loopback = ["127.0.0.0/8", "::1/128"].map(str::parse);
    let policy = Policy {
        allow_http: true,
        allowed: loopback.into_iter().flatten().collect(),
        ..Policy::default()
    };
    let url = destination::check(&policy, "/redirect_uri", uri)?;
    // An address that is let through beyond the public ones is one of this machine.
    let strict = Policy {
        allow_http: true,
        ..Policy::default()
    };
    if url.starts_with("http://") && strict.check_url(&url).is_ok() {
        let detail = "Plain http is for this machine alone: 127.0.0.1, [::1] or localhost.";
        return Err(FieldError::new(
            "/redirect_uri",
            FaultCode::NotAllowed,
            detail,
        ));
    }
    Ok(())
}

impl StartBody {
    /// Checks what the contract can't say; also where people log in.
    fn checked(self, policy: &Policy) -> Result<(AccountAuthorization, Asked), ApiError> {
        let (mut faults, mut refused) = (Vec::new(), Vec::new());
        let wanted = (self.provider.as_str(), CredentialType::Oauth);
        let own = (self.base_url.as_deref(), self.header);
        let (base_url, header) = upstream(policy, wanted, own, (&mut faults, &mut refused));
        let mut check = |pointer, url: &str| match destination::check(policy, pointer, url) {
            Ok(url) => Some(url),
            Err(fault) => {
                refused.push(fault);
                None
            }
        };
        let authorize_url = check("/authorize_url", &self.authorize_url);
        let token_url = check("/token_url", &self.token_url);
        faults.extend(redirect(&self.redirect_uri).err());
        let (Some(base_url), Some(authorize_url), Some(token_url), true) =
            (base_url, authorize_url, token_url, faults.is_empty())
        else {
            return Err(destination::refusal(faults, refused).into());
        };
        let replaces = self.replaces.as_deref().map(|text| {
            let id = AccountId::parse(text);
            id.ok_or_else(Problem::not_found)
        });
        let login = AccountAuthorization {
            name: self.name,
            provider: self.provider,
            base_url,
            header_name: header.name,
            header_scheme: header.scheme,
            token_url,
            client_id: self.client_id,
            redirect_uri: self.redirect_uri,
            replaces: replaces.transpose()?.map(domain::id::Id::uuid),
        };
        let asked = Asked {
            authorize_url,
            scopes: self.scopes,
            client_secret: self.client_secret,
        };
        Ok((login, asked))
    }
}

/// What only the beginning of a login needs.
struct Asked {
    authorize_url: String,
    scopes: String,
    client_secret: Option<Sent<1, 1024>>,
}

/// The account that a login makes.
fn account(
    login: &AccountAuthorization,
    secrets: AuthorizationSecrets,
    grant: Grant,
    at: Timestamp,
) -> Option<NewAccount> {
    let client = OauthClient {
        token_url: login.token_url.clone(),
        client_id: login.client_id.clone(),
        // A refresh asks for what was granted (RFC 6749 §6).
        scopes: Vec::new(),
    };
    Some(NewAccount {
        name: login.name.clone(),
        provider: login.provider.clone(),
        base_url: login.base_url.clone(),
        header: login.header(),
        credential: Credential::Oauth(OauthTokens {
            access_token: grant.access_token,
            refresh_token: grant.refresh_token?,
            client_secret: secrets.client_secret,
        }),
        oauth: Some((client, at.plus(grant.life))),
        enabled: true,
        ceilings: Ceilings::default(),
    })
}

fn failed(words: String) -> Problem {
    Problem::new(Code::LoginFailed, words)
}

/// The operations.
pub struct Logins {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1/accounts/oauth", tag = "Tag::Trains")]
impl Logins {
    /// Start an upstream login
    ///
    /// Answers where a person logs in (authorization code with PKCE, RFC 7636). Nothing is made yet;
    /// whoever does not finish within 10 minutes begins anew. At most 20 logins wait.
    #[oai(path = "/start", method = "post", operation_id = "start_oauth_login")]
    async fn start(
        &self,
        who: Caller<AccountsWrite>,
        body: Body<StartBody>,
    ) -> Result<Ok<LoginView>, ApiError> {
        let (login, asked) = body.0.checked(&self.app.policy)?;
        let (client, back) = (&login.client_id, &login.redirect_uri);
        let begun = LoginRequest::new(&asked.authorize_url, client, back, &asked.scopes);
        let secrets = AuthorizationSecrets {
            verifier: begun.verifier,
            client_secret: asked.client_secret.map(|secret| secret.0),
        };
        let context = who.context();
        let trains = who.scoped().trains();
        let until = trains.begin_account_authorization(&context, &begun.state, &login, &secrets);
        let view = LoginView {
            expires_at: until.await?.into(),
            state: begun.state.expose_secret().to_owned(),
            url: begun.url,
        };
        Ok(Ok::show(&view, None))
    }

    /// Finish an upstream login
    ///
    /// Trades the code for tokens and makes the account. A state counts once, whatever comes of it,
    /// as a code does: after a refusal, begin anew.
    #[oai(path = "/finish", method = "post", operation_id = "finish_oauth_login")]
    async fn finish(
        &self,
        who: Caller<AccountsWrite>,
        body: Body<FinishBody>,
    ) -> Result<Created<AccountView>, ApiError> {
        let publisher = who.publisher();
        // Before the state is taken, which counts once.
        let _outside = self.app.wait_outside(&who.request, publisher).await?;
        let trains = who.scoped().trains();
        let (login, secrets) = trains.take_account_authorization(&body.0.state.0).await?;
        let client = ClientCredentials {
            id: &login.client_id,
            secret: secrets.client_secret.as_ref(),
        };
        let code = TokenRequest::Code {
            code: &body.0.code.0,
            redirect_uri: &login.redirect_uri,
            verifier: &secrets.verifier,
        };
        let at = self.app.store.now();
        let grant = self.app.refresher.trade(&login.token_url, client, code);
        let grant = grant.await.map_err(|error| match error {
            AskError::Endpoint(error) => {
                let reason = error.reason;
                failed(format!("The token endpoint gave no tokens: {reason}."))
            }
            AskError::OwnShortage => {
                let words = "This server is short of something of its own. Log in again.";
                Problem::new(Code::Overloaded, words).retry_after(1)
            }
        })?;
        let new = account(&login, secrets, grant, at).ok_or_else(|| {
            let words = "The upstream gave no refresh token. Many give one only for the scope \
                         `offline_access`.";
            failed(words.to_owned())
        })?;
        let context = who.context();
        let answer = match login.replaces {
            Some(old) => {
                let old = AccountId::from_uuid(old);
                trains.replace_account(&context, old, new, made).await
            }
            None => trains.create_account(&context, new, made).await,
        };
        Ok(answer?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_come_back_by_https_or_to_this_machine() {
        for good in [
            "https://app.example/cb?x=1",
            "http://127.0.0.1:40404/callback",
            "http://[::1]:1/",
            "http://localhost:54545/callback",
        ] {
            assert!(redirect(good).is_ok(), "{good}");
        }
        for bad in [
            "http://app.example/cb",
            "http://127.example/cb",
            "http://localhost.example/cb",
            "https://app.example/cb#x",
            "https://10.0.0.1/cb",
            "javascript:alert(1)",
            "/cb",
        ] {
            assert!(redirect(bad).is_err(), "{bad}");
        }
    }
}
