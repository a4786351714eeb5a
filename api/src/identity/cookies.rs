//! Answers that set cookies.

use poem::{
    IntoResponse, Response,
    http::{HeaderValue, header},
};
use poem_openapi::{
    ApiResponse,
    registry::{MetaResponses, Registry},
};

use crate::shared::text_header;

/// An answer with cookies for the browser.
pub struct WithCookies<R> {
    answer: R,
    cookies: Vec<HeaderValue>,
}

impl<R> WithCookies<R> {
    /// `answer` with these cookies.
    pub(crate) fn new(answer: R, cookies: impl Into<Vec<HeaderValue>>) -> Self {
        Self {
            answer,
            cookies: cookies.into(),
        }
    }
}

impl<R: IntoResponse> IntoResponse for WithCookies<R> {
    fn into_response(self) -> Response {
        let mut response = self.answer.into_response();
        for cookie in self.cookies {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        response
    }
}

impl<R: ApiResponse> ApiResponse for WithCookies<R> {
    fn meta() -> MetaResponses {
        let mut meta = R::meta();
        for response in &mut meta.responses {
            response.headers.push(text_header("SET-COOKIE"));
        }
        meta
    }

    fn register(registry: &mut Registry) {
        R::register(registry);
    }
}
