//! The headers of every page and asset.

use poem::{
    Response,
    http::{HeaderName, HeaderValue, header},
};

/// Everything from this server and nothing inline, so that no nonce is needed. A form is sent here
/// and nowhere else. No other page may frame this one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// What other pages and other programs may not do with an answer.
pub(crate) fn protect(response: &mut Response) {
    const OPENER: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
    const RESOURCE: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        // For what does not know the policy's `frame-ancestors`.
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (OPENER, "same-origin"),
        (RESOURCE, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Keeps the page's own address, which has a token in it, out of every request that the page makes.
/// Not for all pages: a form of such a page comes with `Origin: null` (Fetch §3.1), and a browser
/// that sends no `Sec-Fetch-Site` beside it is refused.
pub(crate) fn hide_address(response: &mut Response) {
    let value = HeaderValue::from_static("no-referrer");
    response
        .headers_mut()
        .insert(header::REFERRER_POLICY, value);
}

/// Tells browsers to come by https alone from now on; only for a server whose public URL is https.
pub(crate) fn require_https(response: &mut Response) {
    let value = HeaderValue::from_static("max-age=31536000");
    response
        .headers_mut()
        .insert(header::STRICT_TRANSPORT_SECURITY, value);
}
