//! `/healthz` and `/readyz`: for whoever watches the process. They are no part of the contract and
//! need no token.

use std::sync::Arc;

use poem::{
    Endpoint, IntoEndpoint, IntoResponse, PathPattern, Request, Response, Result,
    error::MethodNotAllowedError,
    http::{Method, StatusCode},
};
use serde_json::json;

use crate::shared::App;

/// Tells whether a part of the process does its work.
pub type Probe = Arc<dyn Fn() -> bool + Send + Sync>;

/// An application with the two paths in front of it.
pub struct WithHealth<E> {
    app: E,
    parts: Arc<App>,
    dispatcher: Probe,
}

/// Puts the two paths in front of `app`. `dispatcher` tells whether deliveries are being made.
pub fn attach<E: IntoEndpoint>(
    app: E,
    parts: Arc<App>,
    dispatcher: Probe,
) -> WithHealth<E::Endpoint> {
    WithHealth {
        app: app.into_endpoint(),
        parts,
        dispatcher,
    }
}

impl<E: Endpoint> WithHealth<E> {
    /// From what the process knows already: whoever asks waits for no database.
    fn ready(&self) -> Response {
        let (store, dispatcher) = (self.parts.store.answers(), (self.dispatcher)());
        let stuck = self.parts.store.progress().stuck();
        let word = |good: bool| if good { "ok" } else { "failing" };
        let (status, whole) = if store && dispatcher && stuck.is_empty() {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
        };
        let checks = json!({
            "store": word(store),
            "dispatcher": word(dispatcher),
            "progress": word(stuck.is_empty()),
        });
        let stuck = stuck.iter();
        let stuck: Vec<_> = stuck
            .map(|(part, age)| json!({ "part": part, "seconds": age.as_secs() }))
            .collect();
        let body = json!({ "status": whole, "checks": checks, "stuck": stuck });
        json_response(status, &body)
    }
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    Response::builder()
        .status(status)
        .content_type("application/json")
        .header("cache-control", "no-store")
        .body(body.to_string())
}

impl<E: Endpoint> Endpoint for WithHealth<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        let pattern = match request.uri().path() {
            "/healthz" => PathPattern("/healthz".into()),
            "/readyz" => PathPattern("/readyz".into()),
            _ => {
                let answer = self.app.call(request).await;
                return answer.map(IntoResponse::into_response);
            }
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut error = poem::Error::from(MethodNotAllowedError);
            error.set_data(pattern);
            return Err(error);
        }
        let mut response = if &*pattern.0 == "/healthz" {
            json_response(StatusCode::OK, &json!({ "status": "ok" }))
        } else {
            self.ready()
        };
        response.set_data(pattern);
        Ok(response)
    }
}
