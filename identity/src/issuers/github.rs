//! GitHub, which has no ID tokens: who the person is, its API tells.

use domain::upstream::{ClientAuth, ClientCredentials, TokenRequest};
use secrecy::SecretString;
use serde_json::Value;

use super::{
    Callback, Email, GitHubSettings, InvalidSettings, IssuerError, Pending, Person, Started,
    check_base,
    http::{Http, access_token},
    started,
};
use crate::json;

const SCOPES: &str = "read:user user:email";
const ACCEPT: &str = "application/vnd.github+json";
/// Where GitHub, which sends no `iss` so far, names itself in RFC 8414 metadata.
const ISSUER_PATH: &str = "/login/oauth";

/// GitHub, or a GitHub Enterprise Server.
pub(super) struct GitHub {
    settings: GitHubSettings,
    http: Http,
}

impl GitHub {
    pub(super) fn new(mut settings: GitHubSettings, http: Http) -> Result<Self, InvalidSettings> {
        for url in [&mut settings.web_url, &mut settings.api_url] {
            check_base(url, &settings.client_id)?;
            let length = url.trim_end_matches('/').len();
            url.truncate(length);
        }
        Ok(Self { settings, http })
    }

    pub(super) fn begin(&self, redirect_uri: &str) -> Started {
        let url = format!("{}/login/oauth/authorize", self.settings.web_url);
        started(&url, &self.settings.client_id, redirect_uri, SCOPES)
    }

    pub(super) async fn finish(
        &self,
        callback: Callback<'_>,
        pending: Pending<'_>,
    ) -> Result<Person, IssuerError> {
        let web_url = &self.settings.web_url;
        let is_own = |iss: &str| {
            iss.strip_prefix(web_url.as_str())
                .is_some_and(|path| path.is_empty() || path == ISSUER_PATH)
        };
        if callback.iss.is_some_and(|iss| !is_own(iss)) {
            return Err(IssuerError::Refused("iss"));
        }
        let code = callback.into_code()?;
        let token = self.exchange(&code, pending).await?;
        let user = self.api("/user", &token).await?;
        let user = json::object(&user).ok_or(IssuerError::Refused("malformed_answer"))?;
        // The number stays when the login name changes, and is never given to somebody else.
        let id = user.get("id").and_then(Value::as_u64);
        let id = id.ok_or(IssuerError::Refused("sub"))?;
        let emails = self.api("/user/emails?per_page=100", &token).await?;
        let emails = json::value(&emails).ok_or(IssuerError::Refused("malformed_answer"))?;
        let text = |name: &str| {
            let text = user.get(name).and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        Ok(Person {
            issuer: web_url.clone(),
            subject: id.to_string(),
            email: primary(&emails),
            name: text("name").or_else(|| text("login")),
        })
    }

    async fn exchange(
        &self,
        code: &SecretString,
        pending: Pending<'_>,
    ) -> Result<SecretString, IssuerError> {
        let client = ClientCredentials {
            id: &self.settings.client_id,
            secret: Some(&self.settings.client_secret),
        };
        let request = TokenRequest::Code {
            code,
            redirect_uri: pending.redirect_uri,
            verifier: pending.pkce_verifier,
        };
        let form = client.request(request, ClientAuth::Body);
        let url = format!("{}/login/oauth/access_token", self.settings.web_url);
        access_token(&self.http.post_form(&url, form).await?.grant()?)
    }

    async fn api(&self, path: &str, token: &SecretString) -> Result<Vec<u8>, IssuerError> {
        let url = format!("{}{path}", self.settings.api_url);
        let answer = self.http.get(&url, ACCEPT, Some(token)).await?;
        answer.success("api_refused").map(<[u8]>::to_vec)
    }
}

/// The primary address in the list of a user's addresses.
fn primary(emails: &Value) -> Option<Email> {
    let is_true = |email: &Value, name: &str| email.get(name) == Some(&Value::Bool(true));
    let mut emails = emails.as_array()?.iter();
    let email = emails.find(|email| is_true(email, "primary"))?;
    Some(Email {
        address: email.get("email")?.as_str()?.to_owned(),
        verified: is_true(email, "verified"),
    })
}
