//! Our cookies, read from the bytes of the header.
//!
//! Not by poem's cookie jar: it percent-decodes names, so that a page of a sibling domain could
//! plant `__%48ost-stm`, which browsers do not protect, and it would be taken for ours.

use std::fmt::Write as _;

use poem::http::{HeaderMap, HeaderValue, header};

/// A cookie of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// Its name where the public URL is https. Browsers accept the prefix only from the host itself,
    /// by https, for all paths.
    secure_name: &'static str,
    /// Its name on a loopback address by http.
    plain_name: &'static str,
}

/// The session.
pub const SESSION: Cookie = Cookie {
    secure_name: "__Host-stm",
    plain_name: "stm-dev",
};

/// A browser that is not signed in: who asked for a mail, who began a sign-in elsewhere.
pub const VISIT: Cookie = Cookie {
    secure_name: "__Host-stm-visit",
    plain_name: "stm-dev-visit",
};

/// A browser in which somebody signed in before. It opens nothing; see
/// `identity::passwords`.
pub const DEVICE: Cookie = Cookie {
    secure_name: "__Host-stm-device",
    plain_name: "stm-dev-device",
};

impl Cookie {
    /// Its name.
    #[must_use]
    pub fn name(self, secure: bool) -> &'static str {
        if secure {
            self.secure_name
        } else {
            self.plain_name
        }
    }

    /// Its value, if there is exactly one of that very name and it is one that we could have made.
    /// Of two, one was planted, and nothing tells which.
    #[must_use]
    pub fn read(self, headers: &HeaderMap, secure: bool) -> Option<&str> {
        let name = self.name(secure).as_bytes();
        let pairs = headers
            .get_all(header::COOKIE)
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b';'));
        let mut values = pairs.filter_map(|pair| {
            let pair = pair.trim_ascii_start();
            pair.strip_prefix(name)?.strip_prefix(b"=")
        });
        let (value, second) = (values.next()?, values.next());
        let ours = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let fits = second.is_none() && (1..=256).contains(&value.len()) && value.iter().all(ours);
        fits.then(|| std::str::from_utf8(value).ok())?
    }

    /// The header that sets it, until the browser ends or for so many seconds.
    #[must_use]
    pub fn set(self, value: &str, seconds: Option<u64>, secure: bool) -> HeaderValue {
        let mut text = format!(
            "{}={value}; Path=/; HttpOnly; SameSite=Lax",
            self.name(secure)
        );
        if secure {
            text.push_str("; Secure");
        }
        if let Some(seconds) = seconds {
            let _ = write!(text, "; Max-Age={seconds}");
        }
        let mut header = HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""));
        header.set_sensitive(true);
        header
    }

    /// The header that removes it.
    #[must_use]
    pub fn remove(self, secure: bool) -> HeaderValue {
        self.set("", Some(0), secure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::COOKIE, HeaderValue::from_static(value));
        }
        SESSION.read(&headers, true).map(str::to_owned)
    }

    #[test]
    fn the_one_cookie_of_the_very_name_is_read() {
        assert_eq!(read(&["__Host-stm=abc_-1"]).as_deref(), Some("abc_-1"));
        assert_eq!(read(&["a=b; __Host-stm=abc; c=d"]).as_deref(), Some("abc"));
        assert_eq!(read(&["a=b", "__Host-stm=abc"]).as_deref(), Some("abc"));
        assert_eq!(
            read(&["__Host-stm-visit=x;__Host-stm=abc"]).as_deref(),
            Some("abc")
        );
    }

    #[test]
    fn s2_what_is_planted_is_not_taken() {
        for planted in [
            &["__%48ost-stm=abc"][..],
            &["__host-stm=abc"],
            &["__HOST-STM=abc"],
            &["stm-dev=abc"],
            &["__Host-stm =abc"],
            &["__Host-stm"],
            &["__Host-stm="],
            &["=__Host-stm=abc"],
            &["__Host-stm=abc; __Host-stm=abc"],
            &["__Host-stm=abc; __Host-stm=def"],
            &["__Host-stm=abc", "__Host-stm=def"],
            &["__Host-stm=\"abc\""],
            &["__Host-stm=a b"],
            &["__Host-stm=%61bc"],
        ] {
            assert_eq!(read(planted), None, "{planted:?}");
        }
    }

    #[test]
    fn a_cookie_is_set_for_this_host_alone() {
        let set = SESSION.set("abc", None, true);
        assert_eq!(
            set,
            "__Host-stm=abc; Path=/; HttpOnly; SameSite=Lax; Secure"
        );
        assert!(set.is_sensitive());
        let set = VISIT.remove(false);
        assert_eq!(
            set,
            "stm-dev-visit=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"
        );
    }
}
