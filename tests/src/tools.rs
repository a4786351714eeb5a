//! Small things that many tests need.

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

/// Asks again and again, for `limit` at most, until there is an answer.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Sends bytes as they are and returns all that comes back until the peer closes or 10 s pass.
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
