use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::prelude::*;

use super::{DestinationRefusal, Policy};
use crate::registry::AddressClass::{
    self, Benchmarking, Broadcast, CloudPlatform, Discard, Documentation, EmbedsIpv4, LinkLocal,
    Loopback, Multicast, Private, ProtocolAssignment, Reserved, SegmentRouting, SharedSpace,
    SiteLocal, UniqueLocal, Unspecified,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn allowing(nets: &[&str]) -> Policy {
    Policy {
        allowed: nets.iter().map(|net| net.parse().unwrap()).collect(),
        ..Policy::default()
    }
}

/// First and last address of each range, and notable ones inside.
const REFUSED: &[(&str, AddressClass)] = &[
    ("0.0.0.0", Unspecified),
    ("0.255.255.255", Unspecified),
    ("10.0.0.0", Private),
    ("10.255.255.255", Private),
    ("100.64.0.0", SharedSpace),
    ("100.100.100.200", SharedSpace),
    ("100.127.255.255", SharedSpace),
    ("127.0.0.0", Loopback),
    ("127.0.0.1", Loopback),
    ("127.255.255.255", Loopback),
    ("168.63.129.16", CloudPlatform),
    ("169.254.0.0", LinkLocal),
    ("169.254.169.254", LinkLocal),
    ("169.254.255.255", LinkLocal),
    ("172.16.0.0", Private),
    ("172.31.255.255", Private),
    ("192.0.0.0", ProtocolAssignment),
    ("192.0.0.9", ProtocolAssignment),
    ("192.0.0.192", ProtocolAssignment),
    ("192.0.0.255", ProtocolAssignment),
    ("192.0.2.0", Documentation),
    ("192.0.2.255", Documentation),
    ("192.31.196.1", ProtocolAssignment),
    ("192.52.193.1", ProtocolAssignment),
    ("192.88.99.1", ProtocolAssignment),
    ("192.168.0.0", Private),
    ("192.168.255.255", Private),
    ("192.175.48.1", ProtocolAssignment),
    ("198.18.0.0", Benchmarking),
    ("198.19.255.255", Benchmarking),
    ("198.51.100.7", Documentation),
    ("203.0.113.7", Documentation),
    ("224.0.0.0", Multicast),
    ("239.255.255.255", Multicast),
    ("240.0.0.0", Reserved),
    ("255.255.255.254", Reserved),
    ("255.255.255.255", Broadcast),
    ("::", Unspecified),
    ("::1", Loopback),
    ("::2", EmbedsIpv4),
    ("::8.8.8.8", EmbedsIpv4),
    ("::127.0.0.1", EmbedsIpv4),
    ("::ffff:127.0.0.1", EmbedsIpv4),
    ("::ffff:8.8.8.8", EmbedsIpv4),
    ("::ffff:0:10.0.0.1", EmbedsIpv4),
    ("64:ff9b::169.254.169.254", EmbedsIpv4),
    ("64:ff9b::8.8.8.8", EmbedsIpv4),
    ("64:ff9b:1::1", EmbedsIpv4),
    ("64:ff9b:1:ffff::", EmbedsIpv4),
    ("64:ff9b:2::1", Reserved),
    ("100::1", Discard),
    ("100:0:0:1::1", Discard),
    ("100:0:0:2::1", Reserved),
    ("2001::1", EmbedsIpv4),
    ("2001:0:ffff::1", EmbedsIpv4),
    ("2001:1::1", ProtocolAssignment),
    ("2001:2::1", Benchmarking),
    ("2001:2:1::1", ProtocolAssignment),
    ("2001:4:112::1", ProtocolAssignment),
    ("2001:20::1", ProtocolAssignment),
    ("2001:1ff:ffff::1", ProtocolAssignment),
    ("2001:db8::1", Documentation),
    ("2001:db8:ffff::1", Documentation),
    ("2002::1", EmbedsIpv4),
    ("2002:7f00:1::", EmbedsIpv4),
    ("2002:ffff:ffff::1", EmbedsIpv4),
    ("2606:4700::5efe:127.0.0.1", EmbedsIpv4),
    ("2606:4700::200:5efe:10.0.0.1", EmbedsIpv4),
    ("2620:4f:8000::1", ProtocolAssignment),
    ("3fff::1", Documentation),
    ("3fff:fff:ffff::1", Documentation),
    ("4000::1", Reserved),
    ("5f00::1", SegmentRouting),
    ("5f01::1", Reserved),
    ("fc00::1", UniqueLocal),
    ("fd00:ec2::254", UniqueLocal),
    ("fdff:ffff::1", UniqueLocal),
    ("fe00::1", Reserved),
    ("fe80::1", LinkLocal),
    ("febf:ffff::1", LinkLocal),
    ("fec0::1", SiteLocal),
    ("feff::1", SiteLocal),
    ("ff00::1", Multicast),
    ("ff02::1", Multicast),
    ("ffff::1", Multicast),
];

/// Ordinary public addresses, most of them the neighbours of a refused range.
const PUBLIC: &[&str] = &[
    "1.0.0.0",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "191.255.255.255",
    "192.0.1.0",
    "192.0.3.0",
    "192.88.98.255",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "203.0.112.255",
    "223.255.255.255",
    "2000::1",
    "2001:200::1",
    "2001:db7:ffff::1",
    "2001:db9::1",
    "2001:4860:4860::8888",
    "2003::1",
    "2606:4700:4700::1111",
    "2620:4f:8001::1",
    "3ffe:ffff::1",
    "3fff:1000::1",
];

#[test]
fn every_special_address_is_refused_with_its_class() {
    for (text, class) in REFUSED {
        assert_eq!(
            Policy::default().check_address(ip(text)),
            Err(DestinationRefusal::AddressRefused(*class)),
            "{text}"
        );
    }
}

#[test]
fn public_addresses_beside_the_special_ranges_pass() {
    for text in PUBLIC {
        assert_eq!(Policy::default().check_address(ip(text)), Ok(()), "{text}");
    }
}

#[test]
fn the_allow_list_lets_through_what_it_names_and_nothing_else() {
    let policy = allowing(&["127.0.0.0/8", "fd00::/8"]);
    assert_eq!(policy.check_address(ip("127.9.9.9")), Ok(()));
    assert_eq!(policy.check_address(ip("fd00:ec2::254")), Ok(()));
    for text in ["10.0.0.1", "fc00::1", "::1"] {
        assert!(policy.check_address(ip(text)).is_err(), "{text}");
    }
}

#[test]
fn an_ipv4_entry_of_the_allow_list_does_not_cover_embedding_forms() {
    let policy = allowing(&["127.0.0.0/8"]);
    for text in [
        "::ffff:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "2002:7f00:1::",
        "::127.0.0.1",
    ] {
        let refused = Err(DestinationRefusal::AddressRefused(EmbedsIpv4));
        assert_eq!(policy.check_address(ip(text)), refused, "{text}");
    }
    let named = allowing(&["::ffff:127.0.0.0/104"]);
    assert_eq!(named.check_address(ip("::ffff:127.0.0.1")), Ok(()));
}

#[test]
fn the_allow_list_never_overrules_the_scheme() {
    let policy = allowing(&["0.0.0.0/0", "::/0"]);
    assert_eq!(
        policy.check_url("http://10.0.0.1/"),
        Err(DestinationRefusal::SchemeRefused)
    );
    assert!(policy.check_url("https://10.0.0.1/").is_ok());
}

#[test]
fn urls_are_refused_for_the_rule_they_break() {
    let strict = Policy::default();
    let long = format!("https://example.com/{}", "a".repeat(2048));
    let grows = format!("https://example.com/{}", "é".repeat(600));
    let cases: &[(&str, DestinationRefusal)] = &[
        (&long, DestinationRefusal::UrlTooLong { max: 2048 }),
        (&grows, DestinationRefusal::UrlTooLong { max: 2048 }),
        ("", DestinationRefusal::UrlInvalid),
        ("example.com/hook", DestinationRefusal::UrlInvalid),
        ("/hook", DestinationRefusal::UrlInvalid),
        (" https://example.com/", DestinationRefusal::UrlInvalid),
        ("https://exam\nple.com/", DestinationRefusal::UrlInvalid),
        ("https://exam\tple.com/", DestinationRefusal::UrlInvalid),
        ("https://example.com/\u{a0}", DestinationRefusal::UrlInvalid),
        ("https://example.com:99999/", DestinationRefusal::UrlInvalid),
        ("https://1.2.3.4.5/", DestinationRefusal::UrlInvalid),
        ("https://[::1/", DestinationRefusal::UrlInvalid),
        ("https://[fe80::1%25eth0]/", DestinationRefusal::UrlInvalid),
        ("https://", DestinationRefusal::HostMissing),
        ("https:///example.com/hook", DestinationRefusal::HostMissing),
        (
            "https:////example.com/hook",
            DestinationRefusal::HostMissing,
        ),
        ("https:/example.com/hook", DestinationRefusal::UrlInvalid),
        ("https:example.com/hook", DestinationRefusal::UrlInvalid),
        ("https:\\\\example.com/hook", DestinationRefusal::UrlInvalid),
        (
            "https://example.com\\@other.example/",
            DestinationRefusal::UrlInvalid,
        ),
        ("https://a..b/", DestinationRefusal::UrlInvalid),
        ("https://.a.b/", DestinationRefusal::UrlInvalid),
        ("https://a.b../", DestinationRefusal::UrlInvalid),
        ("https://-/", DestinationRefusal::UrlInvalid),
        ("https://-a.b/", DestinationRefusal::UrlInvalid),
        ("https://a-.b/", DestinationRefusal::UrlInvalid),
        ("https://a*.b/", DestinationRefusal::UrlInvalid),
        ("http://example.com/", DestinationRefusal::SchemeRefused),
        ("ftp://example.com/", DestinationRefusal::SchemeRefused),
        ("file:///etc/passwd", DestinationRefusal::SchemeRefused),
        ("javascript:alert(1)", DestinationRefusal::SchemeRefused),
        (
            "https://user@example.com/",
            DestinationRefusal::CredentialsInUrl,
        ),
        (
            "https://user:pw@example.com/",
            DestinationRefusal::CredentialsInUrl,
        ),
        (
            "https://:pw@example.com/",
            DestinationRefusal::CredentialsInUrl,
        ),
        (
            "https://example.com/#part",
            DestinationRefusal::FragmentInUrl,
        ),
        ("https://example.com/#", DestinationRefusal::FragmentInUrl),
        ("https://example.com:0/", DestinationRefusal::PortRefused),
    ];
    for (text, refusal) in cases {
        assert_eq!(strict.check_url(text), Err(*refusal), "{text:?}");
    }
}

#[test]
fn names_that_hosts_have_are_taken() {
    let strict = Policy::default();
    for name in [
        "a",
        "a.b",
        "a.b.",
        "my_host.internal",
        "xn--bcher-kva.example",
        "b\u{fc}cher.example",
        "a--b.c",
        "1a.b",
    ] {
        let url = format!("https://{name}/hook");
        assert!(strict.check_url(&url).is_ok(), "{name}");
    }
    let label = "a".repeat(63);
    assert!(strict.check_url(&format!("https://{label}.b/")).is_ok());
    let refused = strict.check_url(&format!("https://{label}a.b/"));
    assert_eq!(refused, Err(DestinationRefusal::UrlInvalid));
}

#[test]
fn ip_literals_are_judged_in_every_spelling() {
    let loopback = DestinationRefusal::AddressRefused(Loopback);
    let link_local = DestinationRefusal::AddressRefused(LinkLocal);
    let embeds = DestinationRefusal::AddressRefused(EmbedsIpv4);
    let cases: &[(&str, DestinationRefusal)] = &[
        ("https://127.0.0.1/", loopback),
        ("https://127.0.0.1./", loopback),
        ("https://127.1/", loopback),
        ("https://127.0.1/", loopback),
        ("https://2130706433/", loopback),
        ("https://0x7f000001/", loopback),
        ("https://0x7f.0.0.1/", loopback),
        ("https://0177.0.0.1/", loopback),
        ("https://017700000001/", loopback),
        ("https://%31%32%37.0.0.1/", loopback),
        (
            "https://\u{ff11}\u{ff12}\u{ff17}\u{3002}0\u{3002}0\u{3002}1/",
            loopback,
        ),
        ("https://2852039166/latest/meta-data/", link_local),
        ("https://0xa9fea9fe/", link_local),
        ("https://0251.0376.0251.0376/", link_local),
        (
            "https://0/",
            DestinationRefusal::AddressRefused(Unspecified),
        ),
        (
            "https://[::]/",
            DestinationRefusal::AddressRefused(Unspecified),
        ),
        ("https://[::1]/", loopback),
        ("https://[0:0:0:0:0:0:0:1]/", loopback),
        ("https://[::ffff:127.0.0.1]/", embeds),
        ("https://[::ffff:7f00:1]/", embeds),
        ("https://[64:ff9b::a9fe:a9fe]/", embeds),
        ("https://[2002:7f00:1::]/", embeds),
        ("https://localhost/", loopback),
        ("https://LOCALHOST./", loopback),
        ("https://api.localhost/", loopback),
    ];
    for (text, refusal) in cases {
        assert_eq!(Policy::default().check_url(text), Err(*refusal), "{text:?}");
    }
}

#[test]
fn good_urls_come_back_normalised() {
    let destination = Policy::default()
        .check_url(
            "HTTPS://Bücher.Example:443/a b"
                .replace(' ', "%20")
                .as_str(),
        )
        .unwrap();
    assert_eq!(destination.as_str(), "https://xn--bcher-kva.example/a%20b");
    assert_eq!(destination.host(), "xn--bcher-kva.example");
    let open = Policy {
        allow_http: true,
        ..allowing(&["127.0.0.0/8"])
    };
    let destination = open.check_url("http://2130706433:8080/x?y=1").unwrap();
    assert_eq!(destination.as_str(), "http://127.0.0.1:8080/x?y=1");
    assert!(open.check_url("http://localhost/").is_ok());
    assert!(
        allowing(&["::1/128"])
            .check_url("https://localhost/")
            .is_ok()
    );
}

#[test]
fn ports_can_be_limited() {
    let policy = Policy {
        allowed_ports: vec![443, 8443],
        ..Policy::default()
    };
    assert!(policy.check_url("https://example.com/").is_ok());
    assert!(policy.check_url("https://example.com:8443/").is_ok());
    assert_eq!(
        policy.check_url("https://example.com:25/"),
        Err(DestinationRefusal::PortRefused)
    );
}

/// The refused ranges again, spelled as text, so that a slip in the table can't hide in its test.
const RANGES: &[&str] = &[
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0:0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "4000::/2",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// Some address of a network: its prefix, with the bits of `noise` behind.
fn within(net: IpNet, noise: u128) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let host_bits = u32::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0);
            let low = u32::try_from(noise & u128::from(u32::MAX)).unwrap();
            Ipv4Addr::from_bits(Ipv4Net::network(&net).to_bits() | (low & host_bits)).into()
        }
        IpNet::V6(net) => {
            let host_bits = u128::MAX.checked_shr(net.prefix_len().into()).unwrap_or(0);
            Ipv6Addr::from_bits(Ipv6Net::network(&net).to_bits() | (noise & host_bits)).into()
        }
    }
}

/// The IPv6 addresses that carry `inner`, in each form with a fixed place for it.
fn embeddings(inner: Ipv4Addr, prefix: u64) -> Vec<Ipv6Addr> {
    let low = u128::from(inner.to_bits());
    // 2000::/3 with arbitrary bits, as a provider's own prefix.
    let global = u128::from((prefix >> 3) | (1 << 61)) << 64;
    vec![
        Ipv6Addr::from_bits(low),
        Ipv6Addr::from_bits((0xffff << 32) | low),
        Ipv6Addr::from_bits((0xffff << 48) | low),
        Ipv6Addr::from_bits((0x0064_ff9b << 96) | low),
        Ipv6Addr::from_bits((0x0064_ff9b_0001 << 80) | low),
        Ipv6Addr::from_bits((0x2002 << 112) | (low << 80)),
        Ipv6Addr::from_bits((0x2001_0000 << 96) | (low ^ 0xffff_ffff)),
        Ipv6Addr::from_bits(global | (0x5efe << 32) | low),
        Ipv6Addr::from_bits(global | (0x0200_5efe << 32) | low),
    ]
}

proptest! {
    #[test]
    fn every_address_of_a_refused_range_is_refused(range in 0..RANGES.len(), noise: u128) {
        let address = within(RANGES[range].parse().unwrap(), noise);
        prop_assert!(Policy::default().check_address(address).is_err(), "{}", address);
    }

    #[test]
    fn every_embedded_ipv4_address_is_refused(inner: u32, prefix: u64) {
        for address in embeddings(Ipv4Addr::from_bits(inner), prefix) {
            prop_assert!(Policy::default().check_address(address.into()).is_err(), "{}", address);
        }
    }

    #[test]
    fn an_ipv4_address_is_refused_exactly_when_a_range_holds_it(bits: u32) {
        let address = IpAddr::V4(Ipv4Addr::from_bits(bits));
        let special = address == ip("168.63.129.16") || RANGES
            .iter()
            .any(|range| range.parse::<IpNet>().unwrap().contains(&address));
        prop_assert_eq!(Policy::default().check_address(address).is_err(), special);
    }

    #[test]
    fn no_spelling_of_a_refused_ipv4_literal_passes(range in 0..18_usize, noise: u128, style in 0..5) {
        let IpAddr::V4(address) = within(RANGES[range].parse().unwrap(), noise) else {
            unreachable!("the first 18 ranges are IPv4")
        };
        let [a, b, c, d] = address.octets();
        let host = match style {
            0 => address.to_string(),
            1 => address.to_bits().to_string(),
            2 => format!("{:#x}", address.to_bits()),
            3 => format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
            _ => format!("{a}.{}", (u32::from(b) << 16) | (u32::from(c) << 8) | u32::from(d)),
        };
        let verdict = Policy::default().check_url(&format!("https://{host}/"));
        prop_assert!(matches!(verdict, Err(DestinationRefusal::AddressRefused(_))), "{} {:?}", host, verdict);
    }

    #[test]
    fn checking_any_text_never_panics(text in ".{0,200}") {
        let _ = Policy::default().check_url(&text);
        let _ = Policy::default().check_url(&format!("https://{text}"));
    }
}
