//! Helpers for many tests.

use std::{path::PathBuf, time::Duration};

use domain::{
    clock::{Clock as _, SystemClock},
    random,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

/// The repository's root.
#[must_use]
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap().to_owned()
}

/// The Python interpreter with the packages of the tests.
#[must_use]
pub fn python() -> PathBuf {
    let given = std::env::var_os("STATIONMASTER_TEST_PYTHON").map(PathBuf::from);
    given.unwrap_or_else(|| root().join("target/venv/bin/python"))
}

/// Unix seconds.
#[must_use]
pub fn now_s() -> i64 {
    SystemClock.now().seconds()
}

/// RFC 3339, `seconds` from now.
#[must_use]
pub fn in_seconds(seconds: u64) -> String {
    SystemClock
        .now()
        .plus(Duration::from_secs(seconds))
        .to_string()
}

/// RFC 3339, `seconds` ago.
#[must_use]
pub fn seconds_ago(seconds: u64) -> String {
    SystemClock
        .now()
        .minus(Duration::from_secs(seconds))
        .to_string()
}

/// A random word of 16 hexadecimal digits.
#[must_use]
pub fn word() -> String {
    hex::encode(random::bytes::<8>())
}

/// A random number below `limit`.
#[must_use]
pub fn below(limit: u64) -> u64 {
    u64::from_le_bytes(random::bytes()) % limit
}

/// Calls `ask` until it returns a value. The last call comes after `limit`, so that a slow call
/// does not make it fail.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        let asked = Instant::now();
        if let Some(found) = ask().await {
            return found;
        }
        assert!(asked < end, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends bytes as they are; returns all that comes back until the peer closes or 10 s pass.
pub async fn raw(url: &str, request: &[u8]) -> String {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// A well-formed identifier that names nothing.
#[must_use]
pub fn absent(prefix: &str) -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let suffix: String = random::bytes::<25>()
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 32)]))
        .collect();
    format!("{prefix}_0{suffix}")
}

/// Reproducible random numbers: the seed is printed, and `STATIONMASTER_TEST_SEED` sets it.
pub struct Dice(u64);

impl Dice {
    /// Prints the seed.
    #[must_use]
    pub fn roll(what: &str) -> Self {
        let given = std::env::var("STATIONMASTER_TEST_SEED");
        let seed = given.map_or_else(|_| below(u64::MAX), |text| text.parse().unwrap());
        eprintln!("{what}: STATIONMASTER_TEST_SEED={seed}");
        Self(seed)
    }

    /// The next number below `limit`, by `SplitMix64` (Steele, Lea, Flood 2014).
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}

/// An address of this machine at which a server can start again after its end. The system must not
/// give its port to outgoing connections: a client that keeps calling the stopped server could get
/// that port, and be connected to itself.
#[must_use]
pub fn lasting_address() -> String {
    loop {
        let port = u16::try_from(15_000 + below(15_000)).unwrap();
        let address = format!("127.0.0.1:{port}");
        if std::net::TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}

/// The value below which this share of the values lies.
#[must_use]
pub fn percentile(values: &[Duration], share: f64) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a few thousand values at most"
    )]
    let at = (share * sorted.len() as f64) as usize;
    sorted[at.min(sorted.len() - 1)]
}
