//! The one mapper: whatever poem, poem-openapi or a handler refuses with becomes a problem.

use poem::{
    Request, Response,
    error::{NotFoundError, ParseJsonError, ReadBodyError},
    http::{Method, StatusCode, Uri, Version, header},
};
use poem_openapi::error::{
    ContentTypeError, ParseParamError, ParsePathError, ParseRequestPayloadError,
};

use domain::{Code, FaultCode, FieldError, Problem};

use crate::contract::{Location, Route};

use super::error::{ApiError, PROBLEM_JSON};

/// What a failed request comes to.
pub(super) enum Outcome {
    /// Answer this problem.
    Problem(Box<Problem>),
    /// The error carried an answer of its own that is none, such as a redirect.
    Response(Response),
}

impl From<Problem> for Outcome {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}

/// Maps an error. `route` is the matched path of the contract.
pub(super) fn of_error(error: poem::Error, route: Option<&Route>, method: &Method) -> Outcome {
    let error = match error.downcast::<ApiError>() {
        Ok(ours) => return ours.into_problem().into(),
        Err(other) => other,
    };
    if error.is::<NotFoundError>()
        || error.is::<ParsePathError>()
        || error.is::<poem::error::ParsePathError>()
    {
        // An identifier that isn't in canonical form names nothing.
        return Problem::not_found().into();
    }
    if let Some(parameter) = error.downcast_ref::<ParseParamError>() {
        return of_parameter(parameter.name, route, method).into();
    }
    if error.is::<ContentTypeError>() {
        return Problem::from(Code::UnsupportedMediaType).into();
    }
    if error.is::<ParseRequestPayloadError>() || error.is::<ParseJsonError>() {
        return Problem::from(Code::MalformedJson).into();
    }
    if let Some(ReadBodyError::Io(_) | ReadBodyError::Utf8(_)) = error.downcast_ref() {
        return Problem::new(Code::MalformedJson, "The body did not arrive as a whole.").into();
    }
    let status = error.status();
    if status.is_server_error() {
        tracing::error!(error = %error, "a request failed");
    }
    if status.is_client_error() || status.is_server_error() {
        return of_status(status).into();
    }
    Outcome::Response(error.into_response())
}

/// The problem that an error response should have been, unless it is a considered one: a problem
/// already, JSON of the operation's own, or a page. (poem's own refusals are plain text.)
pub(super) fn of_response(response: &Response) -> Option<Box<Problem>> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return None;
    }
    let content_type = response
        .headers()
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    let considered = ["application/json", PROBLEM_JSON, "text/html"];
    let considered = considered
        .iter()
        .any(|one| content_type.starts_with(one.as_bytes()));
    (!considered).then(|| Box::new(of_status(status)))
}

fn of_status(status: StatusCode) -> Problem {
    let code = match status.as_u16() {
        401 => Code::Unauthenticated,
        403 => Code::WrongTokenKind,
        404 | 410 => return Problem::not_found(),
        405 => Code::MethodNotAllowed,
        408 => Code::RequestTimeout,
        412 => Code::PreconditionFailed,
        413 => Code::BodyTooLarge,
        415 => Code::UnsupportedMediaType,
        422 => Code::ValidationFailed,
        429 => return Problem::from(Code::RateLimited).retry_after(1),
        503 => return overloaded(),
        400..500 => Code::InvalidParameter,
        _ => Code::Internal,
    };
    code.into()
}

/// 503 for want of room or time.
pub(super) fn overloaded() -> Problem {
    Problem::from(Code::Overloaded).retry_after(1)
}

/// 503 for work that is still going on.
pub(super) fn unfinished() -> Problem {
    Problem::new(
        Code::Overloaded,
        "It takes too long; the change may still be made. The same Idempotency-Key will tell.",
    )
    .retry_after(5)
}

/// Refuses HTTP/1.1 without a `Host`, or with more than one (RFC 9112 §3.2): whoever stands between
/// may have taken another one for it than we would.
pub(super) fn of_host(request: &Request) -> Option<Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let fits = match (hosts.next(), hosts.next()) {
        (Some(_), None) => true,
        (None, _) => request.version() < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    };
    (!fits).then(|| {
        let detail = "Send exactly one `Host` header.";
        Problem {
            errors: vec![FieldError::new("/header/Host", FaultCode::Invalid, detail)],
            ..Problem::new(Code::InvalidParameter, detail)
        }
    })
}

/// Refuses U+0000, which PostgreSQL can't compare with: in the path it names nothing, in the query
/// it is wrong.
pub(super) fn of_uri(uri: &Uri) -> Option<Problem> {
    if uri.path().contains("%00") {
        return Some(Problem::not_found());
    }
    let pair = uri.query()?.split('&').find(|pair| pair.contains("%00"))?;
    let name = pair.split('=').next().unwrap_or_default();
    Some(Problem::parameter(
        &pointer_to_query(name),
        "The character U+0000 is not taken anywhere.",
    ))
}

/// Refuses a query parameter that the operation does not have. A misspelt filter would otherwise be
/// left out, and the list would show everything.
pub fn of_query(query: &str, route: &Route, method: &Method) -> Option<Problem> {
    let known = route.query(method)?;
    let mut names = url::form_urlencoded::parse(query.as_bytes()).map(|(name, _)| name);
    let name = names.find(|name| !known.contains(&name.as_ref()))?;
    let meant = known
        .iter()
        // Of a long name no parameter is meant, and to compare it would cost time and memory.
        .filter(|_| is_plain(&name))
        .map(|known| (strsim::damerau_levenshtein(&name, known), *known))
        .filter(|(edits, known)| *edits <= known.len().div_ceil(3))
        .min();
    let detail = match meant {
        Some((_, known)) => {
            format!("This operation has no such query parameter. Did you mean `{known}`?")
        }
        None if known.is_empty() => "This operation has no query parameters.".to_owned(),
        None => {
            let known = known.join("`, `");
            format!("This operation has no such query parameter. It has: `{known}`.")
        }
    };
    let error = FieldError::new(
        pointer_to_query(&name),
        FaultCode::UnknownParameter,
        detail.clone(),
    );
    Some(Problem {
        errors: vec![error],
        ..Problem::new(Code::InvalidParameter, detail)
    })
}

/// Where a query parameter stands. A name that no parameter could have is not repeated.
fn pointer_to_query(name: &str) -> String {
    if is_plain(name) {
        format!("/query/{name}")
    } else {
        "/query".to_owned()
    }
}

/// Whether a parameter could have this name.
fn is_plain(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// A parameter that doesn't parse. The contract says where it stands and what it takes; the
/// parser's own words would quote the input.
fn of_parameter(name: &str, route: Option<&Route>, method: &Method) -> Problem {
    match route.and_then(|route| route.parameter(method, name)) {
        Some(parameter) if parameter.location == Location::Path => Problem::not_found(),
        Some(parameter) => {
            let detail = format!("`{name}` takes {}.", parameter.takes);
            let pointer = format!("/{}/{name}", parameter.location.as_str());
            let errors = vec![FieldError::new(pointer, FaultCode::Invalid, detail.clone())];
            Problem {
                errors,
                ..Problem::new(Code::InvalidParameter, detail)
            }
        }
        None => Problem::parameter(&format!("/query/{name}"), format!("`{name}` is not valid.")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::contract::Routes;

    #[test]
    fn a_near_miss_is_named_and_a_long_name_is_not_repeated() {
        let document = json!({"paths": {"/v1/runs": {"get": {"parameters": [
            {"name": "status", "in": "query", "schema": {"type": "string"}},
            {"name": "If-Match", "in": "header", "schema": {"type": "string"}},
        ]}}}});
        let routes = Routes::of(&document);
        let route = routes.get("/v1/runs").unwrap();
        let refused = |query: &str| of_query(query, route, &Method::GET);
        assert!(refused("status=failed&&status=queued").is_none());
        let near = refused("status=failed&stauts=queued").unwrap();
        assert_eq!(near.errors[0].pointer, "/query/stauts");
        assert!(near.detail.ends_with("Did you mean `status`?"), "{near:?}");
        let header = refused("If-Match=1").unwrap();
        assert!(header.detail.ends_with("It has: `status`."), "{header:?}");
        let long = refused(&"s".repeat(60_000)).unwrap();
        assert_eq!(long.errors[0].pointer, "/query");
        assert!(long.detail.len() < 100, "{long:?}");
    }
}
