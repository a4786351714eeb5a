//! Which handler answers where. Every page is here, so that tests can go through them all.

use poem::{
    Endpoint, Request, Response, Result, Route, RouteMethod,
    error::MethodNotAllowedError,
    get,
    http::{HeaderValue, header},
    post,
};
use std::sync::Arc;

use domain::Code;
use web::http::RequestContext;

use crate::{
    assets,
    handlers::{account, join, links, passkeys, providers, publisher, sign_in},
    problem_page,
    visit::{Parts, Visit},
};

macro_rules! routes {
    ($($path:literal: $methods:expr;)*) => {
        /// The path of every page, with `:name` where something is named.
        pub const PATHS: &[&str] = &[$($path,)*];

        fn table() -> Vec<(&'static str, RouteMethod)> {
            vec![$(($path, $methods),)*]
        }
    };
}

routes! {
    "/": get(publisher::show_home);
    "/sign-in": get(sign_in::show).post(sign_in::submit);
    "/sign-in/code": get(sign_in::show_code).post(sign_in::submit_code);
    "/sign-in/confirm": get(links::show_sign_in).post(links::use_sign_in);
    "/sign-in/passkey": post(passkeys::submit);
    "/sign-in/passkey/options": post(passkeys::sign_in_options);
    "/sign-in/with/:provider": post(providers::begin);
    "/sign-in/with/:provider/callback": get(providers::finish);
    "/sign-out": post(sign_in::sign_out);
    "/confirm-it-is-you": get(sign_in::show_confirm).post(sign_in::confirm_by_password);
    "/confirm-it-is-you/link": post(sign_in::confirm_by_link);
    "/confirm-it-is-you/passkey": post(passkeys::submit);
    "/confirm-it-is-you/passkey/options": post(passkeys::sign_in_options);
    "/register": get(join::show_register).post(join::submit_register);
    "/register/sent": get(join::show_register_sent);
    "/verify": get(links::show_verify).post(links::use_verify);
    "/forgot-password": get(links::show_forgot).post(links::submit_forgot);
    "/forgot-password/sent": get(links::show_forgot_sent);
    "/reset-password": get(links::show_reset).post(links::use_reset);
    "/invitations/accept": get(join::show_invitation).post(join::accept);
    "/invitations/:invitation/accept": post(join::accept_own);
    "/account": get(account::show);
    "/account/name": post(account::rename);
    "/account/sessions/:session/revoke": post(account::end_session);
    "/account/sign-out-everywhere": get(account::ask_everywhere).post(account::everywhere);
    "/account/password": get(account::show_password).post(account::change_password);
    "/account/password/remove": get(account::ask_remove_password).post(account::remove_password);
    "/account/email": get(account::show_email).post(account::change_email);
    "/account/confirm-address": get(links::show_change_address).post(links::use_change_address);
    "/account/passkeys": post(passkeys::add);
    "/account/passkeys/options": post(passkeys::creation_options);
    "/account/passkeys/:passkey": get(passkeys::show).post(passkeys::rename);
    "/account/passkeys/:passkey/remove": get(passkeys::ask_remove).post(passkeys::remove);
    "/account/providers/:provider": post(providers::connect);
    "/account/disconnect": post(providers::disconnect);
    "/p/:slug": get(publisher::show);
    "/p/:slug/invitations": post(publisher::invite);
    "/p/:slug/invitations/:invitation/revoke": post(publisher::withdraw);
    "/p/:slug/invitations/:invitation/resend": post(publisher::resend);
    "/p/:slug/members/:member/role": post(publisher::change_role);
    "/p/:slug/members/:member/remove": get(publisher::ask_remove).post(publisher::remove);
}

/// Whether a path is one of a page, or of what pages refer to.
pub(crate) fn owns(path: &str) -> bool {
    const OURS: [&str; 12] = [
        "",
        "account",
        "assets",
        "confirm-it-is-you",
        "forgot-password",
        "invitations",
        "p",
        "register",
        "reset-password",
        "sign-in",
        "sign-out",
        "verify",
    ];
    let first = path.trim_start_matches('/').split('/').next();
    first.is_some_and(|first| OURS.contains(&first))
}

/// All pages.
pub(crate) struct Pages {
    parts: Arc<Parts>,
    route: Route,
}

impl Pages {
    pub(crate) fn new(parts: Parts) -> Self {
        let rows = table().into_iter();
        let route = rows.fold(Route::new(), |route, (path, methods)| {
            route.at(path, methods)
        });
        Self {
            parts: Arc::new(parts),
            route,
        }
    }
}

impl Endpoint for Pages {
    type Output = Response;

    async fn call(&self, mut request: Request) -> Result<Response> {
        let path = request.uri().path();
        if path.starts_with(assets::PREFIX) && request.method().is_safe() {
            let asset = assets::answer(path);
            return asset.ok_or_else(|| poem::error::NotFoundError.into());
        }
        let visit = Visit::begin(&self.parts, &request).await?;
        request.set_data(visit.clone());
        let id = RequestContext::of(&request)?.request_id().to_owned();
        let safe = request.method().is_safe();
        let mut answer = self.route.call(request).await;
        if let Err(error) = &answer
            && error.is::<MethodNotAllowedError>()
        {
            let allow = if safe { "POST" } else { "GET, HEAD" };
            let mut response = problem_page::render(&Code::MethodNotAllowed.into(), &id);
            let allow = HeaderValue::from_static(allow);
            response.headers_mut().insert(header::ALLOW, allow);
            answer = Ok(response);
        }
        answer.map(|mut response| {
            visit.finish(&mut response);
            response
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_at_a_path_of_ours() {
        for path in PATHS {
            assert!(owns(path), "{path}");
        }
        for other in [
            "/v1/runs",
            "/docs",
            "/openapi.json",
            "/healthz",
            "/pp",
            "/mcp",
        ] {
            assert!(!owns(other), "{other}");
        }
        // It panics on two rows for one path.
        let rows = table().into_iter();
        rows.fold(Route::new(), |route, (path, methods)| {
            route.at(path, methods)
        });
    }
}
