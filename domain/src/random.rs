//! The only source of randomness: the operating system's generator.

use rand::TryRng as _;

/// `N` random bytes from the operating system.
///
/// # Panics
/// If the operating system returns no random bytes: nothing safe can be done without them.
#[must_use]
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0_u8; N];
    rand::rngs::SysRng
        .try_fill_bytes(&mut out)
        .expect("the operating system's random generator answers");
    out
}

/// `N` random bytes that an attacker may be able to guess, from this thread's generator, which does
/// not ask the operating system each time. For names in logs; never for secrets.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "names of requests are no secrets; this is the one place for them"
)]
pub fn plain_bytes<const N: usize>() -> [u8; N] {
    use rand::Rng as _;
    let mut out = [0_u8; N];
    rand::rng().fill_bytes(&mut out);
    out
}

/// A random factor in `1 - spread ..= 1 + spread`, for jitter; not for secrets.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "jitter is no secret; this is the one place for it"
)]
pub fn jitter(spread: f64) -> f64 {
    use rand::RngExt as _;
    rand::rng().random_range(1.0 - spread..=1.0 + spread)
}
