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

#![cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "the handlers follow with the service that they call"
    )
)]

mod assets;
mod headers;
mod page;
mod problem_page;
mod views;

#[cfg(test)]
mod samples;
