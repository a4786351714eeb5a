//! Whose address a request comes from.
//!
//! Anybody can write `X-Forwarded-For`, so it counts only when the peer is a configured proxy, and
//! only from the right: every proxy appends the address that it saw itself. `Forwarded`
//! (RFC 7239) is not read: a proxy that maintains one of the two passes the other on unchanged,
//! so believing both would believe the client.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use poem::{
    Request,
    http::{HeaderMap, HeaderName},
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Most addresses of a chain that are looked at.
const HOPS_MAX: usize = 32;

/// The client of `request`: see [`client_address`]. Unspecified without an internet peer.
#[must_use]
pub fn of_request(request: &Request, trusted: &[IpNet]) -> IpAddr {
    let peer = request
        .remote_addr()
        .as_socket_addr()
        .map_or(IpAddr::from([0, 0, 0, 0]), SocketAddr::ip);
    client_address(peer, request.headers(), trusted)
}

/// The peer, unless it is one of `trusted`: then the right-most address of `X-Forwarded-For` that
/// is not. Stops at the first thing that is no address, and answers the nearest hop known so far.
#[must_use]
pub fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted.iter().any(|net| net.contains(&address));
    let mut nearest = peer.to_canonical();
    if !is_trusted(nearest) {
        return nearest;
    }
    let lines: Vec<&str> = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .map(|value| value.to_str().unwrap_or(""))
        .collect();
    // Several lines are one list, in order (RFC 9110 §5.3).
    for hop in lines
        .iter()
        .rev()
        .flat_map(|line| line.rsplit(','))
        .take(HOPS_MAX)
    {
        let Some(address) = parse(hop.trim()) else {
            break;
        };
        nearest = address;
        if !is_trusted(address) {
            break;
        }
    }
    nearest
}

/// An address, with or without a port.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    bare.parse::<IpAddr>()
        .or_else(|_| text.parse::<SocketAddr>().map(|address| address.ip()))
        .ok()
        .map(|address| address.to_canonical())
}

/// What counts as one caller: an IPv4 address, or the /64 of an IPv6 one.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use poem::http::HeaderValue;

    fn client(peer: &str, lines: &[&'static str]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_static(line));
        }
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn a_stranger_cannot_choose_its_address() {
        assert_eq!(client("203.0.113.9", &["198.51.100.1"]), "203.0.113.9");
        assert_eq!(client("2001:db8::1", &["10.0.0.1"]), "2001:db8::1");
    }

    #[test]
    fn a_client_behind_a_proxy_cannot_choose_its_address() {
        // It sends the left part itself; the proxy appends what it saw.
        assert_eq!(client("10.0.0.1", &["1.2.3.4, 203.0.113.9"]), "203.0.113.9");
        assert_eq!(
            client("10.0.0.1", &["1.2.3.4", "203.0.113.9"]),
            "203.0.113.9"
        );
        assert_eq!(
            client("10.0.0.1", &["10.9.9.9, 203.0.113.9, 10.0.0.2"]),
            "203.0.113.9"
        );
    }

    #[test]
    fn nonsense_ends_the_chain_at_the_nearest_known_hop() {
        assert_eq!(client("10.0.0.1", &["203.0.113.9, unknown"]), "10.0.0.1");
        assert_eq!(
            client("10.0.0.1", &["203.0.113.9, _hidden, 10.0.0.2"]),
            "10.0.0.2"
        );
        assert_eq!(client("10.0.0.1", &[""]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
    }

    #[test]
    fn a_chain_of_proxies_only_gives_its_far_end() {
        assert_eq!(client("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), "10.0.0.3");
    }

    #[test]
    fn spellings_are_brought_to_one_form() {
        assert_eq!(
            client("::ffff:10.0.0.1", &["::ffff:203.0.113.9"]),
            "203.0.113.9"
        );
        assert_eq!(client("10.0.0.1", &["203.0.113.9:4711"]), "203.0.113.9");
        assert_eq!(client("fd00::1", &["[2001:db8::5]:443"]), "2001:db8::5");
        assert_eq!(client("fd00::1", &["[2001:db8::5]"]), "2001:db8::5");
    }
}
