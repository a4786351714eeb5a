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
    param::Query,
    registry::{MetaResponse, MetaResponses, Registry},
};
use secrecy::ExposeSecret as _;

use domain::{Code, Problem};
use persistence::Lent;

use super::{Asked, lend};
use crate::{
    auth::{API_KEY, ProxiedTrainToken},
    common::{Tag, text_header},
    contract::OperationDoc,
    http::{ApiError, RequestContext, error},
    shared::App,
};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[
    doc("forward_auth_get"),
    doc("forward_auth_head"),
    doc("forward_auth_post"),
    doc("forward_auth_put"),
    doc("forward_auth_patch"),
    doc("forward_auth_delete"),
    doc("forward_auth_options"),
];

const fn doc(operation_id: &'static str) -> OperationDoc {
    OperationDoc {
        operation_id,
        codes: &[
            Code::TrainDisabled,
            Code::TrainExhausted,
            Code::NothingToLend,
        ],
    }
}

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

/// How the proxy is told that it has to wait.
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
    fn of(lent: &Lent) -> Result<Self, ApiError> {
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

/// Says with 403 what the proxy could not pass on: that it has to wait.
fn denied(problem: &Problem, context: &RequestContext) -> Response {
    let status = HeaderValue::from(problem.code.status());
    let told = Problem {
        code: Code::NothingToLend,
        ..problem.clone()
    };
    let mut response = error::render(&told, context.request_id());
    response
        .headers_mut()
        .insert(HeaderName::from_static(STATUS), status);
    response
}

/// What proxies ask.
pub(crate) struct ForwardAuth {
    pub(crate) app: Arc<App>,
}

impl ForwardAuth {
    async fn answer(
        &self,
        who: ProxiedTrainToken,
        context: &RequestContext,
        asked: Asked,
        deny: Option<Deny>,
    ) -> Result<Forwarded, ApiError> {
        let lent = match who.0 {
            Ok(who) => lend(&self.app, context, &who, &asked).await,
            Err(refusal) => Err(refusal),
        };
        match lent {
            Ok(lent) => Ok(Forwarded::Lent(Headers::of(&lent)?)),
            Err(error) if deny.is_some() && error.problem().code.status() == 429 => {
                Ok(Forwarded::Denied(denied(error.problem(), context)))
            }
            Err(error) => Err(error),
        }
    }
}

fn asked(model: Query<Option<String>>, client_key: Query<Option<String>>) -> Asked {
    Asked {
        model: model.0,
        exclude: Vec::new(),
        client_key: client_key.0,
    }
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
                /// take the place of the request's own.
                #[oai(
                    path = "/forward-auth/train",
                    method = $name,
                    operation_id = $id
                )]
                async fn $method(
                    &self,
                    who: ProxiedTrainToken,
                    context: &RequestContext,
                    /// The model that will be used.
                    #[oai(validator(min_length = 1, max_length = 200))]
                    model: Query<Option<String>>,
                    /// The client, for a sticky train.
                    #[oai(validator(min_length = 1, max_length = 200))]
                    client_key: Query<Option<String>>,
                    /// `403`: say by 403 what would be 429, with `X-Stationmaster-Status: 429`.
                    deny: Query<Option<Deny>>,
                ) -> Result<Forwarded, ApiError> {
                    self.answer(who, context, asked(model, client_key), deny.0).await
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
