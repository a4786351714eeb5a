//! Pages for people, rendered by the server. They work without JavaScript, but for passkeys, which
//! browsers offer to scripts alone.
//!
//! A page decides nothing: it calls `identity`, and the store by a publisher's scope.
//!
//! **Tokens of mailed links** come as `?token=…`. In the fragment they would stay out of requests,
//! but then only a script could read them. So the first request, a GET, consumes nothing: it shows
//! what the link is for and a form that posts the token, and scanners of mail may open it as often
//! as they like. The token leaks neither by `Referer` (these pages send none, and nothing is loaded
//! from elsewhere) nor by our logs (they have the pattern of a path, and no query). A proxy
//! in front may log the address; by then the token is worth a few minutes and one use, and the form
//! asks for a click of the person.

use identity::Service;
use persistence::Store;
use poem::{
    Request,
    endpoint::EndpointExt as _,
    http::{Method, header},
};
use web::http::{Pages, ProblemPages, PublicOrigin};

mod assets;
mod device;
mod handlers;
mod headers;
mod page;
mod problem_page;
mod routes;
mod stop;
mod views;
mod visit;

pub use routes::PATHS;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod site;
#[cfg(test)]
mod stories;

/// All pages, at `origin` alone.
#[must_use]
pub fn pages(service: Service, store: Store, origin: PublicOrigin) -> Pages {
    let parts = visit::Parts {
        service,
        store,
        origin,
    };
    Pages {
        owns: routes::owns,
        endpoint: routes::Pages::new(parts).boxed(),
        problems: ProblemPages {
            asks: asks_for_page,
            render: problem_page::render,
        },
    }
}

/// Whether a person made the request with a browser: for a page, or for what may have been meant as
/// one.
fn asks_for_page(request: &Request) -> bool {
    let path = request.uri().path();
    if routes::owns(path) {
        // The script for passkeys wants JSON.
        return !accepts(request, "application/json");
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    reads && !path.starts_with("/v1/") && accepts(request, "text/html")
}

fn accepts(request: &Request, media_type: &str) -> bool {
    let mut values = request.headers().get_all(header::ACCEPT).iter();
    values.any(|value| value.to_str().is_ok_and(|text| text.contains(media_type)))
}
