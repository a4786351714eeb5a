//! Whether a request was made by a page of ours, and at our address.

use poem::{
    Request,
    http::{HeaderMap, Method, header},
};

/// The one origin that this server answers at.
#[derive(Clone, Debug)]
pub struct PublicOrigin {
    /// `https://stationmaster.example.com`, without a slash at its end, as browsers write it.
    origin: String,
    /// Host and port, as browsers send them in `Host`.
    host: String,
}

impl PublicOrigin {
    /// Of an origin as browsers write it: a default port is left out.
    #[must_use]
    pub fn new(origin: impl Into<String>) -> Self {
        let origin = origin.into();
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        Self {
            host: host.to_owned(),
            origin,
        }
    }

    /// The origin, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.origin
    }

    /// Whether it is reached by https: then cookies are `Secure`.
    #[must_use]
    pub fn is_secure(&self) -> bool {
        self.origin.starts_with("https://")
    }

    /// Whether the request is meant for this host. Forwarded headers do not count: mails and
    /// redirects are made from the setting alone.
    #[must_use]
    pub fn is_host_of(&self, request: &Request) -> bool {
        let sent = request.headers().get(header::HOST);
        let sent =
            sent.is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(self.host.as_bytes()));
        // A request line with a whole URL names its own host (RFC 9112 §3.2.2).
        let named = request.uri().authority();
        sent && named.is_none_or(|named| named.as_str().eq_ignore_ascii_case(&self.host))
    }

    /// Whether the browser says that a page of this origin sends the request. Every browser of today
    /// sends `Sec-Fetch-Site`; older ones send `Origin` with every POST. What sends neither is no
    /// browser, or one that hides where it comes from: its token decides.
    ///
    /// Forms of pages that hide their address come with `Origin: null`. So do those of a sandboxed
    /// frame, but a browser calls these cross-site.
    #[must_use]
    pub fn is_from_us(&self, method: &Method, headers: &HeaderMap) -> bool {
        if method.is_safe() {
            return true;
        }
        let sites = headers.get_all("sec-fetch-site");
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let vouched = sites.iter().count() > 0;
        sites.iter().all(|site| site.as_bytes() == b"same-origin")
            && origins.all(|origin| match origin.as_bytes() {
                b"null" => vouched,
                origin => origin == self.origin.as_bytes(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&'static str, &'static str)]) -> Request {
        let mut request = Request::builder().method(Method::POST);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.finish()
    }

    #[test]
    fn m7_only_the_configured_host_counts() {
        let public = PublicOrigin::new("https://sm.example.com");
        for (host, fits) in [
            ("sm.example.com", true),
            ("SM.example.com", true),
            ("sm.example.com:443", false),
            ("sm.example.com.", false),
            ("evil.example", false),
            ("sm.example.com@evil.example", false),
        ] {
            let request = request(&[("host", host), ("x-forwarded-host", "sm.example.com")]);
            assert_eq!(public.is_host_of(&request), fits, "{host}");
        }
        assert!(!public.is_host_of(&request(&[])));
    }

    #[test]
    fn s8_only_pages_of_this_origin_send_forms() {
        let public = PublicOrigin::new("https://sm.example.com");
        let ours = ("origin", "https://sm.example.com");
        for (headers, fits) in [
            (&[("sec-fetch-site", "same-origin"), ours][..], true),
            (&[("sec-fetch-site", "same-origin")], true),
            (&[ours], true),
            (&[], true),
            (&[("sec-fetch-site", "same-site"), ours], false),
            (&[("sec-fetch-site", "cross-site"), ours], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("origin", "null")], false),
            (
                &[("sec-fetch-site", "same-origin"), ("origin", "null")],
                true,
            ),
            (
                &[("sec-fetch-site", "cross-site"), ("origin", "null")],
                false,
            ),
            (&[("origin", "https://sm.example.com:8443")], false),
            (&[("origin", "http://sm.example.com")], false),
            (
                &[
                    ("sec-fetch-site", "same-origin"),
                    ("origin", "https://evil.example"),
                ],
                false,
            ),
            (&[ours, ("origin", "https://evil.example")], false),
        ] {
            let request = request(headers);
            let found = public.is_from_us(&Method::POST, request.headers());
            assert_eq!(found, fits, "{headers:?}");
            assert!(public.is_from_us(&Method::GET, request.headers()));
        }
    }
}
