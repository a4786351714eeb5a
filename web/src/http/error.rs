//! Problems as answers (RFC 9457): the one way in which anything that went wrong leaves the process.

use poem::{
    Response,
    error::ResponseError,
    http::{HeaderValue, StatusCode, header},
};
use poem_openapi::{
    ApiResponse,
    registry::{MetaResponses, Registry},
};
use serde::Serialize;

use domain::{Code, Problem};

/// The media type of every problem (RFC 9457 §3).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A refusal on its way out. Handlers return `Result<_, ApiError>`.
///
/// The request's identifier is filled in by the [middleware](super::middleware), which every
/// answer passes.
#[derive(Clone, Debug)]
pub struct ApiError(Box<Problem>);

impl ApiError {
    /// What it says.
    #[must_use]
    pub fn problem(&self) -> &Problem {
        &self.0
    }

    /// What it says, taken out. There is no `From` for it: it would forbid the one below, which
    /// takes everything that becomes a problem.
    #[must_use]
    pub fn into_problem(self) -> Problem {
        *self.0
    }
}

/// Whatever can be said as a problem: a code, or what a crate below answers.
impl<T: Into<Problem>> From<T> for ApiError {
    fn from(cause: T) -> Self {
        Self(Box::new(cause.into()))
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status(&self) -> StatusCode {
        status(self.0.code)
    }

    /// Only for code that turns errors into answers before the stack sees them, which then lack
    /// the request's identifier: better to pass the error on.
    fn as_response(&self) -> Response {
        render(&self.0, "")
    }
}

/// Says nothing of its own: the contract lists each operation's problems (see `contract`).
impl ApiResponse for ApiError {
    fn meta() -> MetaResponses {
        MetaResponses {
            responses: Vec::new(),
        }
    }

    fn register(_: &mut Registry) {}
}

#[derive(Serialize)]
struct Members<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault<'a>>,
    request_id: &'a str,
}

#[derive(Serialize)]
struct Fault<'a> {
    pointer: &'a str,
    code: &'a str,
    detail: &'a str,
}

/// A problem's JSON.
#[must_use]
pub fn body(problem: &Problem, request_id: &str) -> Vec<u8> {
    let errors = problem.errors.iter().map(|fault| Fault {
        pointer: &fault.pointer,
        code: fault.code.as_str(),
        detail: &fault.detail,
    });
    let members = Members {
        r#type: &format!("/docs/problems#{}", problem.code),
        title: problem.code.title(),
        status: problem.code.status(),
        code: problem.code.as_str(),
        detail: &problem.detail,
        errors: errors.collect(),
        request_id,
    };
    // Strings and numbers always serialise.
    serde_json::to_vec(&members).unwrap_or_default()
}

/// A problem as an answer, with the headers that its status asks for.
#[must_use]
pub fn render(problem: &Problem, request_id: &str) -> Response {
    let mut response = Response::builder()
        .status(status(problem.code))
        .body(body(problem, request_id));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = problem.retry_after_s {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
    }
    if problem.code.status() == 401 {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn status(code: Code) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::FaultCode;
    use serde_json::{Value, json};

    #[tokio::test]
    async fn a_problem_has_every_member_and_header() {
        let problem =
            Problem::field("/name", FaultCode::TooLong, "`name` is too long.").retry_after(0);
        let response = render(&problem, "req_1");
        assert_eq!(response.status(), 422);
        assert_eq!(response.header("content-type"), Some(PROBLEM_JSON));
        assert_eq!(response.header("cache-control"), Some("no-store"));
        assert_eq!(
            response.header("retry-after"),
            Some("1"),
            "never sooner than a second"
        );
        let body: Value = response.into_body().into_json().await.unwrap();
        let expected = json!({
            "type": "/docs/problems#validation_failed",
            "title": Code::ValidationFailed.title(),
            "status": 422,
            "code": "validation_failed",
            "detail": "`name` is too long.",
            "errors": [{"pointer": "/name", "code": "too_long", "detail": "`name` is too long."}],
            "request_id": "req_1",
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn a_401_says_how_to_authenticate() {
        let response = render(&Code::Unauthenticated.into(), "req_1");
        assert_eq!(response.header("www-authenticate"), Some("Bearer"));
    }
}
