//! `/healthz` and `/readyz`: for whoever watches the process. They are no part of the contract and
//! need no token.

use std::sync::Arc;

use poem::{
    Endpoint, IntoEndpoint, IntoResponse, PathPattern, Request, Response, Result,
    error::MethodNotAllowedError,
    http::{Method, StatusCode},
};
use serde_json::json;

use crate::common::App;

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
    async fn ready(&self) -> Response {
        let store = self.parts.store.ready().await;
        if let Err(error) = &store {
            tracing::warn!(%error, "not ready: the store does not answer");
        }
        let (store, dispatcher) = (store.is_ok(), (self.dispatcher)());
        let word = |good: bool| if good { "ok" } else { "failing" };
        let (status, whole) = if store && dispatcher {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
        };
        let checks = json!({ "store": word(store), "dispatcher": word(dispatcher) });
        json_response(status, &json!({ "status": whole, "checks": checks }))
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
            self.ready().await
        };
        response.set_data(pattern);
        Ok(response)
    }
}
