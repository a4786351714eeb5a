//! A view as an answer.

use askama::Template;
use poem::{
    Response,
    http::{HeaderValue, StatusCode, header},
};

use crate::headers;

/// The page of a view.
pub(crate) fn answer(status: StatusCode, view: &impl Template) -> Response {
    let (status, body) = match view.render() {
        Ok(body) => (status, body),
        Err(error) => {
            tracing::error!(%error, "a template failed");
            let words = "Something went wrong on our side.".to_owned();
            (StatusCode::INTERNAL_SERVER_ERROR, words)
        }
    };
    let mut response = Response::builder()
        .status(status)
        .content_type("text/html; charset=utf-8")
        .body(body);
    headers::protect(&mut response);
    response
}

/// Data for a script of ours.
pub(crate) fn json(value: &serde_json::Value) -> Response {
    let mut response = Response::builder()
        .content_type("application/json")
        .body(value.to_string());
    headers::protect(&mut response);
    response
}

/// The way from a form that was taken to the page that shows what came of it: the browser asks for
/// `path` with a GET, so that reloading sends nothing twice (RFC 9110 §15.4.4).
pub(crate) fn see_other(path: &str) -> Response {
    let mut response = Response::builder().status(StatusCode::SEE_OTHER).finish();
    headers::protect(&mut response);
    let location = HeaderValue::try_from(path).unwrap_or(HeaderValue::from_static("/"));
    response.headers_mut().insert(header::LOCATION, location);
    response
}
