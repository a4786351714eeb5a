//! The rules for destinations. The same rules hold when a URL is stored, tested and called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::{Host, Url};

use crate::registry::{AddressClass, classify};

/// The longest URL that is accepted, in bytes, unless configured otherwise.
pub const URL_LEN_MAX_DEFAULT: usize = 2048;

/// The operator's rules for destinations.
///
/// The allow-list overrules the refusal of an address, but not the rule about the scheme. It is
/// compared with the address as written: `127.0.0.0/8` allows `127.0.0.1` but not
/// `::ffff:127.0.0.1`. To allow such an IPv6 form, list it as well (`::ffff:127.0.0.0/104`).
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether `http` is allowed besides `https`.
    pub allow_http: bool,
    /// Networks that may be called although they are not public. For tests and private networks.
    pub allowed: Vec<IpNet>,
    /// The longest URL in bytes, both as given and after normalisation.
    pub max_url_len: usize,
    /// The only ports that are allowed; if empty, every port but 0.
    pub allowed_ports: Vec<u16>,
}

impl Default for Policy {
    /// The strict policy: `https` to public addresses, on any port.
    fn default() -> Self {
        Self {
            allow_http: false,
            allowed: Vec::new(),
            max_url_len: URL_LEN_MAX_DEFAULT,
            allowed_ports: Vec::new(),
        }
    }
}

/// A URL that passed [`Policy::check_url`], in the normalised form that is stored and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    url: Url,
}

impl Destination {
    /// The normalised URL: lower-case ASCII host, an IP address in its plain form, no default port.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.url.as_str()
    }

    /// The host as it stands in the URL (an IPv6 address in brackets).
    #[must_use]
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }

    pub(crate) fn into_url(self) -> Url {
        self.url
    }
}

/// Why a destination is refused. The list is closed; [`DestinationRefusal::code`] is part of the
/// contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum DestinationRefusal {
    /// The URL is longer than the limit, as given or after normalisation.
    #[error("the URL is longer than {max} bytes")]
    UrlTooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// The text is no URL, or has white space or control characters.
    #[error("the URL can't be parsed")]
    UrlInvalid,
    /// The scheme is neither `https` nor, where it is allowed, `http`.
    #[error("the URL's scheme is not allowed: use https")]
    SchemeRefused,
    /// The URL has a user name or password before the host.
    #[error("the URL must not contain a user name or password")]
    CredentialsInUrl,
    /// The URL has a fragment (`#…`), which is never sent to a server.
    #[error("the URL must not contain a fragment (#)")]
    FragmentInUrl,
    /// The URL has no host.
    #[error("the URL has no host")]
    HostMissing,
    /// The port is 0, or one that the operator does not allow.
    #[error("the URL's port is not allowed")]
    PortRefused,
    /// The host is, or resolves to, an address that is not public.
    #[error("the destination is a {} address, which is not allowed", .0.words())]
    AddressRefused(AddressClass),
}

impl DestinationRefusal {
    /// The stable code for attempts, problems and metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::UrlTooLong { .. } => "url_too_long",
            Self::UrlInvalid => "url_invalid",
            Self::SchemeRefused => "scheme_refused",
            Self::CredentialsInUrl => "credentials_in_url",
            Self::FragmentInUrl => "fragment_in_url",
            Self::HostMissing => "host_missing",
            Self::PortRefused => "port_refused",
            Self::AddressRefused(class) => class.code(),
        }
    }
}

impl Policy {
    /// A policy that allows every address, by `http` or `https`. For URLs that the person who runs
    /// the program typed; never for a URL that a tenant chose.
    #[must_use]
    pub fn anywhere() -> Self {
        let every = [
            IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
            IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
        ];
        Self {
            allow_http: true,
            allowed: every.to_vec(),
            ..Self::default()
        }
    }

    /// Checks a URL without using the network, and returns its normalised form.
    ///
    /// A host that is an IP address is checked at once, in every spelling that the URL standard
    /// accepts (decimal, octal, hexadecimal, shortened, full-width, mapped IPv6). `localhost` and
    /// names below it count as loopback (RFC 6761 §6.3). The addresses of any other name are
    /// checked when a connection is made.
    ///
    /// # Errors
    /// The first rule that the URL breaks.
    pub fn check_url(&self, text: &str) -> Result<Destination, DestinationRefusal> {
        let max = self.max_url_len;
        if text.len() > max {
            return Err(DestinationRefusal::UrlTooLong { max });
        }
        // The parser would drop these silently, and call another URL than the one that is shown.
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(DestinationRefusal::UrlInvalid);
        }
        let url = Url::parse(text).map_err(|error| match error {
            url::ParseError::EmptyHost => DestinationRefusal::HostMissing,
            _ => DestinationRefusal::UrlInvalid,
        })?;
        if url.as_str().len() > max {
            return Err(DestinationRefusal::UrlTooLong { max });
        }
        self.check_parts(&url)?;
        check_authority(text)?;
        Ok(Destination { url })
    }

    fn check_parts(&self, url: &Url) -> Result<(), DestinationRefusal> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            _ => return Err(DestinationRefusal::SchemeRefused),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(DestinationRefusal::CredentialsInUrl);
        }
        if url.fragment().is_some() {
            return Err(DestinationRefusal::FragmentInUrl);
        }
        let port = url
            .port_or_known_default()
            .ok_or(DestinationRefusal::PortRefused)?;
        if port == 0 || !(self.allowed_ports.is_empty() || self.allowed_ports.contains(&port)) {
            return Err(DestinationRefusal::PortRefused);
        }
        match url.host() {
            None | Some(Host::Domain("")) => Err(DestinationRefusal::HostMissing),
            Some(Host::Ipv4(address)) => self.check_address(address.into()),
            Some(Host::Ipv6(address)) => self.check_address(address.into()),
            Some(Host::Domain(name)) if is_localhost(name) => self
                .check_address(Ipv4Addr::LOCALHOST.into())
                .or_else(|refusal| {
                    self.check_address(Ipv6Addr::LOCALHOST.into())
                        .map_err(|_| refusal)
                }),
            Some(Host::Domain(name)) if is_name(name) => Ok(()),
            Some(Host::Domain(_)) => Err(DestinationRefusal::UrlInvalid),
        }
    }

    /// Checks one address, from a URL or from the answer of a name server.
    ///
    /// # Errors [`DestinationRefusal::AddressRefused`] if the address is not public and not on the
    /// allow-list.
    pub fn check_address(&self, address: IpAddr) -> Result<(), DestinationRefusal> {
        match classify(address) {
            Some(class) if !self.allowed.iter().any(|net| net.contains(&address)) => {
                Err(DestinationRefusal::AddressRefused(class))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses a URL without a host behind exactly two slashes. The parser accepts any number of
/// slashes and backslashes, so that `https:///x` would lead to the host `x`.
fn check_authority(text: &str) -> Result<(), DestinationRefusal> {
    let rest = text.split_once(':').map_or("", |(_, rest)| rest);
    let rest = rest
        .strip_prefix("//")
        .ok_or(DestinationRefusal::UrlInvalid)?;
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        return Err(DestinationRefusal::HostMissing);
    }
    if authority.contains('\\') {
        return Err(DestinationRefusal::UrlInvalid);
    }
    Ok(())
}

/// Whether the text can be a host name (RFC 1123 §2.1): labels of letters and digits, with hyphens
/// inside. Underscores are accepted, because private networks use them.
fn is_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

fn is_localhost(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests;
