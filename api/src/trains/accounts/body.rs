//! What a request says of an account, and whether that may be.

use poem_openapi::{Object, types::MaybeUndefined};
use view_derive::{Example, View};

use domain::{
    FaultCode, FieldError, Problem,
    account::{Ceilings, Credential, CredentialType, OauthTokens, UpstreamHeader, known_provider},
    limits::CREDENTIAL_CHARS,
};
use persistence::{AccountPatch, NewAccount, OauthClient};

use crate::shared::{Sent, Time, Word, change, destination};

/// What carries a credential to the upstream.
#[derive(Object, View, Example, Clone, Debug, PartialEq, Eq)]
#[oai(rename = "UpstreamHeader", example, deny_unknown_fields)]
#[view(of = UpstreamHeader)]
#[example(UpstreamHeader::bearer())]
pub(super) struct HeaderBody {
    /// The header's name, in any case. Names of the connection's own headers are refused.
    #[oai(validator(min_length = 1, max_length = 64))]
    pub(super) name: String,
    /// The word before the credential, such as `Bearer`; without one the credential stands alone.
    #[oai(
        nullable,
        validator(
            min_length = 1,
            max_length = 32,
            pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"
        )
    )]
    pub(super) scheme: Option<String>,
}

/// Soft ceilings of use; null for none.
#[derive(Object, View, Clone, Debug, Default)]
#[oai(rename = "Ceilings", deny_unknown_fields)]
#[view(of = Ceilings, into = Ceilings)]
pub(super) struct CeilingsBody {
    /// Requests in 5 hours.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    requests_5h: Option<u64>,
    /// Tokens of a model in 5 hours.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    tokens_5h: Option<u64>,
    /// Requests in 7 days.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    requests_7d: Option<u64>,
    /// Tokens of a model in 7 days.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    tokens_7d: Option<u64>,
}

/// The tokens of an `oauth` account, and how they are refreshed (RFC 6749 §6).
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "NewOauthCredential",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct OauthBody {
    /// What goes out.
    #[example("access-token-of-the-upstream")]
    access_token: Sent<8, CREDENTIAL_CHARS>,
    /// What a refresh presents.
    #[example("refresh-token-of-the-upstream")]
    refresh_token: Sent<1, CREDENTIAL_CHARS>,
    /// When the access token expires. One that has expired already is refreshed at once.
    expires_at: Time,
    /// The token endpoint: an https URL on a public address.
    #[oai(validator(min_length = 1, max_length = 2048))]
    #[example("https://auth.example.com/oauth/token")]
    token_url: String,
    /// As whom the refresh is asked for.
    #[oai(validator(min_length = 1, max_length = 255, pattern = "^[ -~]+$"))]
    #[example("stationmaster")]
    client_id: String,
    /// What the client authenticates with, if it has to.
    client_secret: Option<Sent<1, 1024>>,
    /// What a refresh asks for; none for what was granted first.
    #[oai(
        default,
        validator(
            max_items = 50,
            unique_items,
            max_length = 128,
            pattern = r"^[!#-\[\]-~]+$"
        )
    )]
    #[example(["inference"])]
    scopes: Vec<String>,
}

/// An account to make.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "NewAccount",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(crate) struct NewAccountBody {
    /// Unique within the publisher.
    #[oai(validator(min_length = 1, max_length = 120))]
    #[example("Anthropic, team A")]
    pub(super) name: String,
    /// Whose credential it is. `anthropic` and `openai` are known; for others `base_url` is needed.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    #[example("anthropic")]
    pub(super) provider: String,
    /// Where the upstream is: an https URL on a public address, without query. A known provider
    /// has one.
    #[oai(validator(min_length = 1, max_length = 2048))]
    pub(super) base_url: Option<String>,
    /// What carries the credential. A known provider has one; otherwise it is
    /// `authorization: Bearer`.
    pub(super) header: Option<HeaderBody>,
    /// What sort of credential it is; the member of the same name holds it.
    #[example(CredentialType::ApiKey)]
    pub(super) credential_type: Word<CredentialType>,
    /// The key, for `api_key`. It is never shown again.
    #[example("sk-ant-example-0123456789")]
    pub(super) api_key: Option<Sent<8, CREDENTIAL_CHARS>>,
    /// The tokens, for `oauth`. They are never shown again.
    pub(super) oauth: Option<OauthBody>,
    /// Whether trains lend it.
    #[oai(default = "yes")]
    pub(super) enabled: bool,
    /// How much of it is to be used: above a ceiling it is lent only when no other is left.
    #[oai(nullable)]
    pub(super) ceilings: Option<CeilingsBody>,
}

const fn yes() -> bool {
    true
}

/// A base URL as it is stored: normalised, without a slash at its end.
fn base_url(policy: &outbound::Policy, text: &str) -> Result<String, FieldError> {
    let url = destination::check(policy, "/base_url", text)?;
    if url.contains('?') {
        let detail = "A base URL has no query.";
        return Err(FieldError::new("/base_url", FaultCode::NotAllowed, detail));
    }
    Ok(url.trim_end_matches('/').to_owned())
}

fn needed(pointer: &str, detail: &str) -> FieldError {
    FieldError::new(pointer, FaultCode::Required, detail)
}

fn out_of_place(pointer: &str, detail: &str) -> FieldError {
    FieldError::new(pointer, FaultCode::NotAllowed, detail)
}

/// A credential, and for `oauth` how it is refreshed, by the URL as it came.
type Held = (Credential, Option<(OauthClient, domain::Timestamp)>);

impl OauthBody {
    fn held(self) -> Held {
        let client = OauthClient {
            token_url: self.token_url,
            client_id: self.client_id,
            scopes: self.scopes,
        };
        let tokens = OauthTokens {
            access_token: self.access_token.0,
            refresh_token: self.refresh_token.0,
            client_secret: self.client_secret.map(|secret| secret.0),
        };
        (Credential::Oauth(tokens), Some((client, self.expires_at.0)))
    }
}

/// What fits `wanted`; `None` with a fault for what is missing, and a fault for what is too much.
fn held(
    wanted: CredentialType,
    api_key: Option<Sent<8, CREDENTIAL_CHARS>>,
    oauth: Option<OauthBody>,
    faults: &mut Vec<FieldError>,
) -> Option<Held> {
    match wanted {
        CredentialType::ApiKey => {
            if oauth.is_some() {
                faults.push(out_of_place(
                    "/oauth",
                    "An `api_key` account has no `oauth`.",
                ));
            }
            if api_key.is_none() {
                faults.push(needed("/api_key", "An `api_key` account needs `api_key`."));
            }
            api_key.map(|key| (Credential::ApiKey(key.0), None))
        }
        CredentialType::Oauth => {
            if api_key.is_some() {
                faults.push(out_of_place(
                    "/api_key",
                    "An `oauth` account has no `api_key`.",
                ));
            }
            if oauth.is_none() {
                faults.push(needed("/oauth", "An `oauth` account needs `oauth`."));
            }
            oauth.map(OauthBody::held)
        }
    }
}

fn header(
    body: Option<HeaderBody>,
    known: Option<UpstreamHeader>,
    faults: &mut Vec<FieldError>,
) -> UpstreamHeader {
    let Some(body) = body else {
        return known.unwrap_or_else(UpstreamHeader::bearer);
    };
    if let Err(refusal) = outbound::check_credential_header(&body.name) {
        faults.push(destination::header_fault("/header/name", refusal));
    }
    UpstreamHeader {
        name: body.name.to_ascii_lowercase(),
        scheme: body.scheme,
    }
}

/// Where an upstream is and what carries its credential: what is known of the provider, unless the
/// request has words of its own. Adds to the faults and to the refused destinations.
pub(super) fn upstream(
    policy: &outbound::Policy,
    (provider, wanted): (&str, CredentialType),
    (own_url, own_header): (Option<&str>, Option<HeaderBody>),
    (faults, refused): (&mut Vec<FieldError>, &mut Vec<FieldError>),
) -> (Option<String>, UpstreamHeader) {
    let known = known_provider(provider, wanted);
    let known_url = known.as_ref().map(|(url, _)| (*url).to_owned());
    let header = header(own_header, known.map(|(_, header)| header), faults);
    let url = match own_url.map(|text| base_url(policy, text)) {
        None => known_url,
        Some(Ok(url)) => return (Some(url), header),
        Some(Err(fault)) => {
            refused.push(fault);
            return (None, header);
        }
    };
    if url.is_none() {
        let detail = "The provider is not known here, so its URL is needed.";
        faults.push(needed("/base_url", detail));
    }
    (url, header)
}

impl NewAccountBody {
    /// Checks what the contract can't say.
    pub(crate) fn checked(self, policy: &outbound::Policy) -> Result<NewAccount, Problem> {
        let (mut faults, mut refused) = (Vec::new(), Vec::new());
        let wanted = (self.provider.as_str(), self.credential_type.0);
        let own = (self.base_url.as_deref(), self.header);
        let (url, header) = upstream(policy, wanted, own, (&mut faults, &mut refused));
        let mut held = held(wanted.1, self.api_key, self.oauth, &mut faults);
        if let Some((_, Some((client, _)))) = &mut held {
            match destination::check(policy, "/oauth/token_url", &client.token_url) {
                Ok(url) => client.token_url = url,
                Err(fault) => refused.push(fault),
            }
        }
        let (Some(base_url), Some((credential, oauth)), true, true) =
            (url, held, faults.is_empty(), refused.is_empty())
        else {
            return Err(destination::refusal(faults, refused));
        };
        Ok(NewAccount {
            name: self.name,
            provider: self.provider,
            base_url,
            header,
            credential,
            oauth,
            enabled: self.enabled,
            ceilings: self.ceilings.unwrap_or_default().into(),
        })
    }
}

/// Ceilings to change; null takes one away.
#[derive(Object, Clone, Debug)]
#[oai(rename = "CeilingsPatch", deny_unknown_fields)]
pub(super) struct CeilingsPatchBody {
    /// Requests in 5 hours.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    requests_5h: MaybeUndefined<u64>,
    /// Tokens of a model in 5 hours.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    tokens_5h: MaybeUndefined<u64>,
    /// Requests in 7 days.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    requests_7d: MaybeUndefined<u64>,
    /// Tokens of a model in 7 days.
    #[oai(
        nullable,
        validator(minimum(value = "1"), maximum(value = "1000000000000"))
    )]
    tokens_7d: MaybeUndefined<u64>,
}

impl CeilingsPatchBody {
    fn over(&self, now: Ceilings) -> Ceilings {
        let merged = |wish: MaybeUndefined<u64>, now| change(wish).unwrap_or(now);
        Ceilings {
            requests_5h: merged(self.requests_5h, now.requests_5h),
            tokens_5h: merged(self.tokens_5h, now.tokens_5h),
            requests_7d: merged(self.requests_7d, now.requests_7d),
            tokens_7d: merged(self.tokens_7d, now.tokens_7d),
        }
    }
}

/// What to change of an account; what is left out stays. A credential never changes: replace the
/// account instead.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "AccountPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct AccountPatchBody {
    /// Unique within the publisher.
    #[oai(validator(min_length = 1, max_length = 120))]
    name: Option<String>,
    /// Whether trains lend it.
    #[example(false)]
    enabled: Option<bool>,
    /// Ceilings to set, by name; null for none at all.
    #[oai(nullable)]
    ceilings: MaybeUndefined<CeilingsPatchBody>,
}

impl AccountPatchBody {
    /// The patch, given the ceilings as they stand.
    pub(super) fn over(&self, ceilings: Ceilings) -> AccountPatch {
        AccountPatch {
            name: self.name.clone(),
            enabled: self.enabled,
            ceilings: change(self.ceilings.clone())
                .map(|wish| wish.map_or_else(Ceilings::default, |wish| wish.over(ceilings))),
        }
    }
}

#[cfg(test)]
mod tests;
