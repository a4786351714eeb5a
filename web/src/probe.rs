//! Asks an endpoint without a network, for tests. poem has such a client behind a feature that the
//! server is built without: with it, the tests would have all that depends on it compiled twice.

use poem::{
    Body, Endpoint, Request, Response,
    http::{HeaderMap, Method, Uri, header::HeaderName},
};

/// Asks one endpoint.
pub(crate) struct TestClient<E> {
    endpoint: E,
    headers: HeaderMap,
}

/// A request that is not sent yet.
pub(crate) struct Asked<'a, E> {
    endpoint: &'a E,
    request: Request,
}

/// What came back.
pub(crate) struct TestResponse(pub(crate) Response);

impl<E: Endpoint> TestClient<E> {
    pub(crate) fn new(endpoint: E) -> Self {
        Self {
            endpoint,
            headers: HeaderMap::new(),
        }
    }

    /// With this header on every request.
    pub(crate) fn default_header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers.insert(name, value.parse().unwrap());
        self
    }

    fn ask(&self, method: Method, uri: &str) -> Asked<'_, E> {
        let uri: Uri = uri.parse().unwrap();
        let mut request = Request::builder().method(method).uri(uri).finish();
        request.headers_mut().clone_from(&self.headers);
        Asked {
            endpoint: &self.endpoint,
            request,
        }
    }

    pub(crate) fn get(&self, uri: impl AsRef<str>) -> Asked<'_, E> {
        self.ask(Method::GET, uri.as_ref())
    }

    pub(crate) fn post(&self, uri: impl AsRef<str>) -> Asked<'_, E> {
        self.ask(Method::POST, uri.as_ref())
    }

    pub(crate) fn patch(&self, uri: impl AsRef<str>) -> Asked<'_, E> {
        self.ask(Method::PATCH, uri.as_ref())
    }

    pub(crate) fn delete(&self, uri: impl AsRef<str>) -> Asked<'_, E> {
        self.ask(Method::DELETE, uri.as_ref())
    }
}

impl<E: Endpoint> Asked<'_, E> {
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let name: HeaderName = name.parse().unwrap();
        let value = value.as_ref().parse().unwrap();
        self.request.headers_mut().append(name, value);
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Body>) -> Self {
        self.request.set_body(body);
        self
    }

    pub(crate) async fn send(self) -> TestResponse {
        TestResponse(self.endpoint.get_response(self.request).await)
    }
}
