//! The same for reverse proxies that ask before they pass a request on: nginx `auth_request`,
//! Envoy `ext_authz`, Traefik `ForwardAuth`, Caddy `forward_auth`.
//!
//! They ask with the client's own method, so there is an operation for each. The answer's headers
//! are copied into the request: `Authorization` and `x-api-key` always come both, one of them
//! empty, so that nothing that the client sent in either reaches the upstream.

use std::sync::Arc;

use poem::{
    IntoResponse, Response,
    http::{HeaderName, HeaderValue, header},
};
use poem_openapi::{
    ApiResponse, Enum, OpenApi,
    param::{Header, Query},
    registry::{MetaResponse, MetaResponses, Registry},
};
use secrecy::ExposeSecret as _;

use domain::{
    Code, Problem, Timestamp,
    id::{AccountId, Id as _},
    lending::UseOutcome,
    permission::TrainsResolve,
};
use persistence::{AccountReport, Principal, ResolvedAccount};

use super::{Asked, NO_URL, NoUrl, base_url, lend, lending, report};
use crate::{
    auth::{API_KEY, Proxied},
    shared::{App, Tag, text_header},
};
use web::http::{ApiError, RequestContext, error};

const ACCOUNT: &str = "x-stationmaster-account";
const PROVIDER: &str = "x-stationmaster-provider";
const BASE_URL: &str = "x-stationmaster-base-url";
const CREDENTIAL_HEADER: &str = "x-stationmaster-credential-header";
const CREDENTIAL: &str = "x-stationmaster-credential";
/// Envoy takes the headers that this names out of the request, where the others would pass an
/// empty one on (Envoy's `ext_authz`, `CheckResponse.headers_to_remove`).
const REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// The status that a proxy is not told as such.
const STATUS: &str = "x-stationmaster-status";
/// The problem itself, for a proxy that throws the body of a refusal away.
const PROBLEM: &str = "x-stationmaster-problem";
/// Longest problem that goes into a header, bytes. Proxies read heads into small buffers.
const PROBLEM_BYTES_MAX: usize = 4096;
/// Where a proxy says how the account did that it has just used.
const FAILED: &str = "X-Stationmaster-Failed";

/// How the proxy is told of refusals.
#[derive(Clone, Copy, PartialEq, Eq, Enum)]
#[oai(rename = "DenyStatus")]
enum Deny {
    /// By 403, with the true status in `X-Stationmaster-Status`.
    #[oai(rename = "403")]
    Forbidden,
}

/// The headers that a proxy copies into the request.
struct Headers(Vec<(HeaderName, HeaderValue)>);

impl Headers {
    fn of(lent: &ResolvedAccount) -> Result<Self, ApiError> {
        let name = HeaderName::try_from(lent.header.name.as_str()).map_err(|_| Code::Internal)?;
        let mut value =
            HeaderValue::try_from(lent.value.expose_secret()).map_err(|_| Code::Internal)?;
        value.set_sensitive(true);
        let text = |text: &str| HeaderValue::try_from(text).map_err(|_| Code::Internal);
        let mut headers = vec![
            (header::AUTHORIZATION, HeaderValue::from_static("")),
            (API_KEY, HeaderValue::from_static("")),
            (
                HeaderName::from_static(ACCOUNT),
                text(&lent.id.to_string())?,
            ),
            (HeaderName::from_static(PROVIDER), text(&lent.provider)?),
            (HeaderName::from_static(BASE_URL), text(&lent.base_url)?),
            (
                HeaderName::from_static(CREDENTIAL_HEADER),
                text(&lent.header.name)?,
            ),
            (HeaderName::from_static(CREDENTIAL), value.clone()),
            (HeaderName::from_static(REMOVE), unused(&name)),
        ];
        // Whatever stands under the name already gives way.
        headers.push((name, value));
        Ok(Self(headers))
    }
}

/// Which of the two usual headers a credential under `name` leaves empty.
fn unused(name: &HeaderName) -> HeaderValue {
    HeaderValue::from_static(if name == header::AUTHORIZATION {
        "x-api-key"
    } else if name == API_KEY {
        "authorization"
    } else {
        "authorization, x-api-key"
    })
}

/// 200 with the headers, or a refusal that the proxy understands.
enum Forwarded {
    Lent(Headers),
    Denied(Response),
}

impl IntoResponse for Forwarded {
    fn into_response(self) -> Response {
        match self {
            Self::Denied(response) => response,
            // Envoy takes no other status than 200 for a yes.
            Self::Lent(headers) => {
                let mut response = Response::default();
                for (name, value) in headers.0 {
                    response.headers_mut().insert(name, value);
                }
                response
            }
        }
    }
}

impl ApiResponse for Forwarded {
    fn meta() -> MetaResponses {
        let names = [
            "AUTHORIZATION",
            "X-API-KEY",
            "X-STATIONMASTER-ACCOUNT",
            "X-STATIONMASTER-PROVIDER",
            "X-STATIONMASTER-BASE-URL",
            "X-STATIONMASTER-CREDENTIAL-HEADER",
            "X-STATIONMASTER-CREDENTIAL",
            "X-ENVOY-AUTH-HEADERS-TO-REMOVE",
        ];
        MetaResponses {
            responses: vec![MetaResponse {
                description: "The request may go on, with these headers in place of its own.",
                status: Some(200),
                status_range: None,
                content: Vec::new(),
                headers: names.into_iter().map(text_header).collect(),
            }],
        }
    }

    fn register(_: &mut Registry) {}
}

/// A refusal for a proxy that takes no other status than 401 and 403 for one, and passes none of
/// its body on: the true status and the problem are in headers too.
fn denied(problem: &Problem, context: &RequestContext) -> Response {
    let status = problem.code.status();
    let told = if matches!(status, 401 | 403) {
        problem.clone()
    } else {
        Problem {
            code: Code::NothingToLend,
            ..problem.clone()
        }
    };
    let request_id = context.request_id();
    let mut response = error::render(&told, request_id);
    let mut body = error::body(problem, request_id);
    if body.len() > PROBLEM_BYTES_MAX {
        let short = Problem {
            errors: Vec::new(),
            ..problem.clone()
        };
        body = error::body(&short, request_id);
    }
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static(STATUS), HeaderValue::from(status));
    // JSON escapes control characters, so it always fits.
    if let Ok(value) = HeaderValue::from_bytes(&body) {
        headers.insert(HeaderName::from_static(PROBLEM), value);
    }
    response
}

/// What came of the account that the proxy used for the same request just before.
#[derive(Debug, PartialEq, Eq)]
struct Failed {
    account: AccountId,
    status: u16,
    retry_after: Option<String>,
}

impl Failed {
    /// The account, the status of the upstream's answer, and its `Retry-After` as it came.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ' ');
        let account = AccountId::parse(parts.next()?)?;
        let status = parts.next()?.parse().ok()?;
        let retry_after = parts.next().map(str::to_owned);
        (100..=999).contains(&status).then_some(Self {
            account,
            status,
            retry_after,
        })
    }

    /// The report that this amounts to, if the account is to blame.
    fn report(&self, model: Option<&str>, now: Timestamp) -> Option<AccountReport> {
        let outcome = UseOutcome::of_status(self.status)?;
        let wait = self.retry_after.as_deref();
        let wait = wait.and_then(|text| outbound::asked_wait(text, now.ms()));
        Some(AccountReport {
            account: self.account,
            outcome,
            model: model.map(str::to_owned),
            retry_after: wait,
            requests: 0,
            tokens: 0,
        })
    }
}

/// What proxies ask.
pub(crate) struct ForwardAuth {
    pub(crate) app: Arc<App>,
}

impl ForwardAuth {
    async fn answer(
        &self,
        who: Proxied<TrainsResolve>,
        context: &RequestContext,
        asked: Asked,
        failed: Option<Failed>,
        deny: Option<Deny>,
    ) -> Result<Forwarded, ApiError> {
        let lent = match who.principal {
            Ok(who) => self.lend(context, &who, asked, failed).await,
            Err(refusal) => Err(refusal),
        };
        match lent {
            Ok(lent) => Ok(Forwarded::Lent(Headers::of(&lent)?)),
            Err(error) if deny.is_some() => Ok(Forwarded::Denied(denied(error.problem(), context))),
            Err(error) => Err(error),
        }
    }

    /// Lets the account rest that has failed the proxy, and lends another one.
    async fn lend(
        &self,
        context: &RequestContext,
        who: &Principal,
        mut asked: Asked,
        failed: Option<Failed>,
    ) -> Result<Arc<ResolvedAccount>, ApiError> {
        if let Some(failed) = failed {
            lending(&self.app, who).await?;
            let of_it = failed.report(asked.model.as_deref(), self.app.store.now());
            if let Some(of_it) = of_it {
                let told = report(&self.app, who, &of_it).await;
                // One that left the train meanwhile is not lent again anyway.
                told.or_else(|error| match error.problem().code {
                    Code::NotFound => Ok(()),
                    _ => Err(error),
                })?;
            }
            asked.exclude.push(failed.account);
        }
        lend(&self.app, context, who, &asked).await
    }
}

/// The query parameters that say what is asked for.
struct Parameters {
    provider: Query<Option<String>>,
    base_url: Query<Option<String>>,
    model: Query<Option<String>>,
    client_key: Query<Option<String>>,
}

impl Parameters {
    fn asked(self) -> Result<Asked, ApiError> {
        let url = self.base_url.0.as_deref().map(base_url).transpose();
        let fault = || Problem::parameter("/query/base_url", NO_URL);
        Ok(Asked {
            provider: self.provider.0,
            base_url: url.map_err(|NoUrl| fault())?,
            has_one_upstream: true,
            model: self.model.0,
            exclude: Vec::new(),
            client_key: self.client_key.0,
        })
    }
}

fn failed(header: Header<Option<String>>) -> Result<Option<Failed>, ApiError> {
    let detail = "It is an account's identifier, a status and maybe a Retry-After.";
    let fault = || Problem::parameter(&format!("/header/{FAILED}"), detail);
    let text = header.0.filter(|text| !text.is_empty());
    let failed = text.map(|text| Failed::parse(&text).ok_or_else(fault));
    Ok(failed.transpose()?)
}

/// Writes the operations, which differ in their method alone.
macro_rules! operations {
    ($($method:ident, $name:literal, $id:literal;)*) => {
        #[OpenApi(prefix_path = "/v1", tag = "Tag::Trains")]
        impl ForwardAuth {
            $(
                /// Resolve a credential for a proxied request
                ///
                /// For nginx `auth_request`, Envoy, Traefik and Caddy. The headers of the answer
                /// take the place of the request's own. The proxy names the upstream that it serves;
                /// otherwise all accounts of the train must have the same base URL.
                #[oai(
                    path = "/forward-auth/train",
                    method = $name,
                    operation_id = $id
                )]
                #[expect(clippy::too_many_arguments, reason = "each is a part of the request")]
                async fn $method(
                    &self,
                    who: Proxied<TrainsResolve>,
                    context: &RequestContext,
                    /// The provider of the upstream that the proxy serves.
                    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
                    provider: Query<Option<String>>,
                    /// The base URL of the upstream that the proxy serves.
                    #[oai(validator(min_length = 1, max_length = 2048))]
                    base_url: Query<Option<String>>,
                    /// The model that will be used.
                    #[oai(validator(min_length = 1, max_length = 200))]
                    model: Query<Option<String>>,
                    /// The client, for a sticky train.
                    #[oai(validator(min_length = 1, max_length = 200))]
                    client_key: Query<Option<String>>,
                    /// `403`: every refusal but 401 comes as 403, with the true status in
                    /// `X-Stationmaster-Status` and the problem in `X-Stationmaster-Problem`.
                    deny: Query<Option<Deny>>,
                    /// The account that the proxy used for the same request just before, the status
                    /// of the upstream's answer, and its `Retry-After` if it had one. The account
                    /// rests as after a report, and another one is lent.
                    #[oai(name = "X-Stationmaster-Failed", validator(max_length = 1000))]
                    used: Header<Option<String>>,
                ) -> Result<Forwarded, ApiError> {
                    let parameters = Parameters { provider, base_url, model, client_key };
                    let (asked, failed) = (parameters.asked()?, failed(used)?);
                    self.answer(who, context, asked, failed, deny.0).await
                }
            )*
        }
    };
}

operations! {
    get, "get", "forward_auth_get";
    head, "head", "forward_auth_head";
    post, "post", "forward_auth_post";
    put, "put", "forward_auth_put";
    patch, "patch", "forward_auth_patch";
    delete, "delete", "forward_auth_delete";
    options, "options", "forward_auth_options";
}
