//! What an application for programs knows of one for people: which requests go there.

use poem::{
    Endpoint, IntoEndpoint, IntoResponse, Request, Response, Result, endpoint::BoxEndpoint,
};

use super::middleware::ProblemPages;

/// Pages for people.
pub struct Pages {
    /// Whether a path is a page's.
    pub owns: fn(&str) -> bool,
    /// What answers there.
    pub endpoint: BoxEndpoint<'static, Response>,
    /// How problems are shown to people.
    pub problems: ProblemPages,
}

/// An application with pages in front of it.
pub struct WithPages<E> {
    app: E,
    pages: Option<Pages>,
}

/// Puts the pages in front of `app`, if there are any.
pub fn attach<E: IntoEndpoint>(app: E, pages: Option<Pages>) -> WithPages<E::Endpoint> {
    WithPages {
        app: app.into_endpoint(),
        pages,
    }
}

impl<E: Endpoint> Endpoint for WithPages<E> {
    type Output = Response;

    async fn call(&self, request: Request) -> Result<Response> {
        match &self.pages {
            Some(pages) if (pages.owns)(request.uri().path()) => pages.endpoint.call(request).await,
            _ => {
                let answer = self.app.call(request).await;
                answer.map(IntoResponse::into_response)
            }
        }
    }
}
