//! What is asked and answered about lent credentials.

use std::collections::HashMap;

use poem_openapi::Object;
use secrecy::ExposeSecret as _;
use view_derive::Example;

use domain::{FaultCode, Problem, Timestamp, id::AccountId, id::Id as _, lending::UseOutcome};
use persistence::{AccountReport, ResolvedAccount};

use super::{ask_again_at, seconds};
use crate::shared::{Time, Word};
use web::http::ApiError;

const EXAMPLE_ACCOUNT: &str = "acc_01h455vb4pex5vsknk084sn02q";

/// What a caller wants; everything may be left out.
#[derive(Object, Example, Default)]
#[oai(
    rename = "Resolve",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct ResolveRequest {
    /// Only accounts of this provider.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    pub(super) provider: Option<String>,
    /// Only accounts with this base URL.
    #[oai(validator(min_length = 1, max_length = 2048))]
    pub(super) base_url: Option<String>,
    /// The model that it will use: accounts that cool down for it are left out.
    #[oai(validator(min_length = 1, max_length = 200))]
    #[example("claude-opus-4-1")]
    pub(super) model: Option<String>,
    /// Accounts that it does not want, such as those that it has just tried.
    #[oai(validator(max_items = 100, max_length = 64))]
    pub(super) exclude: Option<Vec<String>>,
    /// The client that it asks for, in words of its own. A sticky train gives one client the same
    /// account as long as that can be used.
    #[oai(validator(min_length = 1, max_length = 200))]
    #[example("user-17")]
    pub(super) client_key: Option<String>,
}

/// An account to use now, with its credential.
#[derive(Object, Example)]
#[oai(example)]
pub(super) struct Lending {
    /// Which account, for the report.
    #[example(EXAMPLE_ACCOUNT)]
    account_id: String,
    /// Whose credential it is.
    #[example("anthropic")]
    provider: String,
    /// Where to send requests.
    #[example("https://api.anthropic.com")]
    base_url: String,
    /// The header that carries the credential, by its name in lower case: send it as it is.
    #[example(HashMap::from([("x-api-key".into(), format!("sk-ant-{}", "x".repeat(20)))]))]
    headers: HashMap<String, String>,
    /// When the credential expires; null for never.
    #[oai(nullable)]
    expires_at: Option<Time>,
    /// Until when the answer may be used without asking again.
    ask_again_at: Time,
}

impl Lending {
    pub(super) fn of(lent: &ResolvedAccount, now: Timestamp) -> Self {
        let value = lent.value.expose_secret().to_owned();
        Self {
            account_id: lent.id.to_string(),
            provider: lent.provider.clone(),
            base_url: lent.base_url.clone(),
            headers: HashMap::from([(lent.header.name.clone(), value)]),
            expires_at: lent.expires_at.map(Time),
            ask_again_at: ask_again_at(lent, now).into(),
        }
    }
}

/// What was used of an account.
#[derive(Object, Example)]
#[oai(
    rename = "ReportedUse",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct UseRequest {
    /// Requests; none by default.
    #[oai(validator(minimum(value = "0"), maximum(value = "1000000")))]
    #[example(1)]
    requests: Option<u32>,
    /// Tokens of a model, of input and output together; none by default.
    #[oai(validator(minimum(value = "0"), maximum(value = "1000000000")))]
    #[example(1834)]
    tokens: Option<u32>,
}

/// How a request with a lent credential went.
#[derive(Object, Example)]
#[oai(
    rename = "Report",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct ReportRequest {
    /// The account that was used; one of the token's train.
    #[oai(validator(max_length = 64))]
    #[example(EXAMPLE_ACCOUNT)]
    account_id: String,
    /// How the request ended.
    #[example(UseOutcome::RateLimited)]
    outcome: Word<UseOutcome>,
    /// The model that it is about; without it, it is about the account as a whole.
    #[oai(validator(min_length = 1, max_length = 200))]
    #[example("claude-opus-4-1")]
    model: Option<String>,
    /// How long the upstream asked to wait, seconds: 7 days at most. Only with `rate_limited`.
    #[oai(validator(minimum(value = "0"), maximum(value = "604800")))]
    #[example(120)]
    retry_after: Option<u32>,
    /// What was used of the account's soft ceilings.
    #[example(UseRequest::example())]
    usage: Option<UseRequest>,
}

impl ReportRequest {
    pub(super) fn parse(self) -> Result<AccountReport, ApiError> {
        let outcome = self.outcome.0;
        if self.retry_after.is_some() && outcome != UseOutcome::RateLimited {
            let detail = "Only `rate_limited` says how long to wait.";
            return Err(Problem::field("/retry_after", FaultCode::NotAllowed, detail).into());
        }
        let usage = self.usage.as_ref();
        Ok(AccountReport {
            account: AccountId::parse(&self.account_id).ok_or_else(Problem::not_found)?,
            outcome,
            retry_after: seconds(self.retry_after),
            requests: usage.and_then(|usage| usage.requests).unwrap_or(0),
            tokens: usage.and_then(|usage| usage.tokens).unwrap_or(0),
            model: self.model,
        })
    }
}
