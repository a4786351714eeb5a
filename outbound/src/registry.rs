//! The addresses that are not public: both IANA special-purpose registries, as data.
//!
//! Sources: the IANA IPv4 and IPv6 Special-Purpose Address Registries (RFC 6890, RFC 8190) and the
//! IPv6 address space registry. Every entry counts, including the few that IANA marks as globally
//! reachable (AS112, AMT, PCP and TURN anycast, ORCHID, DRIP): the nearest network answers them, or
//! they are no locators at all, and no webhook receiver has such an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Why an address is not public. The list is closed: a new class changes the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// `0.0.0.0/8` and `::`: this host, this network.
    Unspecified,
    /// RFC 1918 networks.
    Private,
    /// `100.64.0.0/10`, between a carrier and its customers (RFC 6598).
    SharedSpace,
    /// `127.0.0.0/8` and `::1`.
    Loopback,
    /// `169.254.0.0/16` (metadata services among them) and `fe80::/10`.
    LinkLocal,
    /// Ranges given to IETF protocols and to anycast services.
    ProtocolAssignment,
    /// Ranges for examples in documents.
    Documentation,
    /// Ranges for benchmarks of network devices.
    Benchmarking,
    /// A cloud platform's host service on an otherwise public address.
    CloudPlatform,
    /// `224.0.0.0/4` and `ff00::/8`.
    Multicast,
    /// `255.255.255.255`.
    Broadcast,
    /// Not assigned for unicast.
    Reserved,
    /// An IPv6 address that contains an IPv4 address: mapped, compatible, translated, NAT64,
    /// 6to4, Teredo, ISATAP.
    EmbedsIpv4,
    /// Black-hole prefixes (RFC 6666, RFC 9780).
    Discard,
    /// `fc00::/7`.
    UniqueLocal,
    /// `fec0::/10`, deprecated and still routed in places.
    SiteLocal,
    /// Segment routing identifiers, `5f00::/16` (RFC 9602).
    SegmentRouting,
}

impl AddressClass {
    /// The stable code of a refusal for this class, for publishers and attempts.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unspecified => "address_unspecified",
            Self::Private => "address_private",
            Self::SharedSpace => "address_shared",
            Self::Loopback => "address_loopback",
            Self::LinkLocal => "address_link_local",
            Self::ProtocolAssignment => "address_protocol",
            Self::Documentation => "address_documentation",
            Self::Benchmarking => "address_benchmarking",
            Self::CloudPlatform => "address_cloud_platform",
            Self::Multicast => "address_multicast",
            Self::Broadcast => "address_broadcast",
            Self::Reserved => "address_reserved",
            Self::EmbedsIpv4 => "address_embeds_ipv4",
            Self::Discard => "address_discard",
            Self::UniqueLocal => "address_unique_local",
            Self::SiteLocal => "address_site_local",
            Self::SegmentRouting => "address_segment_routing",
        }
    }

    /// The class in words, to stand before "address".
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Unspecified => "this-network",
            Self::Private => "private-network",
            Self::SharedSpace => "carrier-shared",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::ProtocolAssignment => "protocol-assigned",
            Self::Documentation => "documentation",
            Self::Benchmarking => "benchmarking",
            Self::CloudPlatform => "cloud-platform",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Reserved => "reserved",
            Self::EmbedsIpv4 => "IPv4-embedding",
            Self::Discard => "discard-only",
            Self::UniqueLocal => "unique-local",
            Self::SiteLocal => "site-local",
            Self::SegmentRouting => "segment-routing",
        }
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_len)
}

const fn v6(bits: u128, prefix_len: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::from_bits(bits), prefix_len)
}

/// First match wins, so a narrower range stands before the wider one around it.
const SPECIAL_V4: [(Ipv4Net, AddressClass); 20] = [
    (v4(0, 0, 0, 0, 8), AddressClass::Unspecified),
    (v4(10, 0, 0, 0, 8), AddressClass::Private),
    (v4(100, 64, 0, 0, 10), AddressClass::SharedSpace),
    (v4(127, 0, 0, 0, 8), AddressClass::Loopback),
    // Azure's host service: a public address, but inside Azure it reaches the platform.
    (v4(168, 63, 129, 16, 32), AddressClass::CloudPlatform),
    (v4(169, 254, 0, 0, 16), AddressClass::LinkLocal),
    (v4(172, 16, 0, 0, 12), AddressClass::Private),
    (v4(192, 0, 0, 0, 24), AddressClass::ProtocolAssignment),
    (v4(192, 0, 2, 0, 24), AddressClass::Documentation),
    (v4(192, 31, 196, 0, 24), AddressClass::ProtocolAssignment), // AS112
    (v4(192, 52, 193, 0, 24), AddressClass::ProtocolAssignment), // AMT
    (v4(192, 88, 99, 0, 24), AddressClass::ProtocolAssignment),  // 6to4 relay
    (v4(192, 168, 0, 0, 16), AddressClass::Private),
    (v4(192, 175, 48, 0, 24), AddressClass::ProtocolAssignment), // AS112
    (v4(198, 18, 0, 0, 15), AddressClass::Benchmarking),
    (v4(198, 51, 100, 0, 24), AddressClass::Documentation),
    (v4(203, 0, 113, 0, 24), AddressClass::Documentation),
    (v4(224, 0, 0, 0, 4), AddressClass::Multicast),
    (v4(255, 255, 255, 255, 32), AddressClass::Broadcast),
    (v4(240, 0, 0, 0, 4), AddressClass::Reserved),
];

/// First match wins. What is outside `2000::/3` and not named here is [`AddressClass::Reserved`].
const SPECIAL_V6: [(Ipv6Net, AddressClass); 21] = [
    (v6(0, 128), AddressClass::Unspecified),
    (v6(1, 128), AddressClass::Loopback),
    (v6(0, 96), AddressClass::EmbedsIpv4), // compatible, RFC 4291 §2.5.5.1
    (v6(0xffff << 32, 96), AddressClass::EmbedsIpv4), // mapped, RFC 4291 §2.5.5.2
    (v6(0xffff << 48, 96), AddressClass::EmbedsIpv4), // translated, RFC 2765 §2.1
    (v6(0x64_ff9b << 96, 96), AddressClass::EmbedsIpv4), // NAT64, RFC 6052
    (v6(0x64_ff9b_0001 << 80, 48), AddressClass::EmbedsIpv4), // NAT64, RFC 8215
    (v6(0x100 << 112, 64), AddressClass::Discard), // RFC 6666
    (v6((0x100 << 112) | (1 << 64), 64), AddressClass::Discard), // RFC 9780
    (v6(0x2001 << 112, 32), AddressClass::EmbedsIpv4), // Teredo
    (v6(0x2001_0002 << 96, 48), AddressClass::Benchmarking),
    (v6(0x2001 << 112, 23), AddressClass::ProtocolAssignment),
    (v6(0x2001_0db8 << 96, 32), AddressClass::Documentation),
    (v6(0x2002 << 112, 16), AddressClass::EmbedsIpv4), // 6to4
    (
        v6(0x2620_004f_8000 << 80, 48),
        AddressClass::ProtocolAssignment,
    ), // AS112
    (v6(0x3fff << 112, 20), AddressClass::Documentation),
    (v6(0x5f00 << 112, 16), AddressClass::SegmentRouting),
    (v6(0xfc00 << 112, 7), AddressClass::UniqueLocal),
    (v6(0xfe80 << 112, 10), AddressClass::LinkLocal),
    (v6(0xfec0 << 112, 10), AddressClass::SiteLocal),
    (v6(0xff00 << 112, 8), AddressClass::Multicast),
];

/// The only range from which IANA assigns public unicast addresses.
const GLOBAL_UNICAST_V6: Ipv6Net = v6(0x2000 << 112, 3);

/// The class of an address that is not public; `None` for a public unicast address.
pub(crate) fn classify(address: IpAddr) -> Option<AddressClass> {
    match address {
        IpAddr::V4(address) => SPECIAL_V4
            .iter()
            .find(|(net, _)| net.contains(&address))
            .map(|(_, class)| *class),
        IpAddr::V6(address) => classify_v6(address),
    }
}

fn classify_v6(address: Ipv6Addr) -> Option<AddressClass> {
    if let Some((_, class)) = SPECIAL_V6.iter().find(|(net, _)| net.contains(&address)) {
        return Some(*class);
    }
    if !GLOBAL_UNICAST_V6.contains(&address) {
        return Some(AddressClass::Reserved);
    }
    // ISATAP (RFC 5214 §6.1): any prefix, then [02]00:5efe and an IPv4 address.
    let segments = address.segments();
    let isatap = matches!(segments[4], 0 | 0x200) && segments[5] == 0x5efe;
    isatap.then_some(AddressClass::EmbedsIpv4)
}
