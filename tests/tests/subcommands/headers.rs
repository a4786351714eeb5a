//! Headers that a runner sends and nobody is to believe.

/// Headers of a runner's that nobody else sees.
pub(super) const SPOOFED: [(&str, &str); 15] = [
    ("cookie", "session=1"),
    ("forwarded", "for=10.0.0.1"),
    ("keep-alive", "timeout=5"),
    ("metadata-flavor", "Google"),
    ("proxy-authorization", "Basic x"),
    ("te", "trailers"),
    ("trailer", "x-sum"),
    ("upgrade", "h2c"),
    ("via", "1.1 spoofed"),
    ("x-forwarded-for", "10.0.0.1"),
    ("x-forwarded-host", "inner"),
    ("x-own", "spoofed"),
    ("x-real-ip", "10.0.0.1"),
    ("x-stationmaster-delivery", "dlv_spoofed"),
    ("accept-language", "de"),
];

/// Headers that only we set, as a runner might try to.
pub(super) const OURS: [(&str, &str); 9] = [
    ("user-agent", "spoofed"),
    ("webhook-id", "spoofed"),
    ("webhook-signature", "v1,spoofed"),
    ("webhook-timestamp", "1"),
    ("x-stationmaster-attempt", "99"),
    ("x-stationmaster-run", "run_spoofed"),
    ("x-stationmaster-signature", "t=1,v1=00"),
    ("x-stationmaster-subcommand", "spoofed"),
    ("accept-encoding", "br"),
];
