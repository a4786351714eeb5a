//! Passwords: which are taken, and how they are hashed.
//!
//! A hash takes tens of milliseconds of a core and 19 MiB, on purpose. So at most as many are made
//! at a time as there are cores, on threads of their own; few more wait, and whoever comes after
//! them is refused at once. Other requests do not feel it.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicUsize, Ordering},
};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::phc::PasswordHash,
};
use domain::{Code, FaultCode, Problem, people::EmailAddress};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::Semaphore;

/// Memory of a hash, KiB (OWASP's recommendation for Argon2id with two passes).
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over that memory.
const PASSES: u32 = 2;
/// Shortest password, characters (NIST SP 800-63B-4 §3.1.1.2).
pub const MIN_CHARS: usize = 8;
/// Longest password, bytes. A longer one is refused before anything is hashed.
pub const MAX_BYTES: usize = 1024;
/// Most hashes that wait for a core.
const WAITING: usize = 32;
/// How long whoever is refused should wait, seconds.
const RETRY_AFTER: u64 = 2;

/// The passwords of at least eight characters among the 20 000 that are found most often in
/// published leaks, in lower case, sorted.
const COMMON: &str = include_str!("passwords/common.txt");

/// Makes and verifies hashes.
#[derive(Clone)]
pub struct Hasher {
    cores: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    /// The hash of no password, which is verified where there is no user.
    nobody: Arc<str>,
}

/// The outcome of a verification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The password is right.
    Right,
    /// The password is right, and was hashed with other parameters: here is a new hash.
    Outdated(String),
    /// The password is wrong.
    Wrong,
}

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash_of(password: &str) -> Result<String, Problem> {
    let salt: [u8; 16] = domain::random::bytes();
    let hash = argon2().hash_password_with_salt(password.as_bytes(), &salt);
    hash.map(|hash| hash.to_string()).map_err(|error| {
        tracing::error!(%error, "a password could not be hashed");
        Code::Internal.into()
    })
}

/// Whether a hash was made with today's algorithm and parameters.
fn is_current(hash: &PasswordHash) -> bool {
    let params = Params::try_from(hash);
    hash.algorithm == Algorithm::Argon2id.ident()
        && params.is_ok_and(|params| {
            (params.m_cost(), params.t_cost(), params.p_cost()) == (MEMORY_KIB, PASSES, 1)
        })
}

fn verify(password: &str, stored: &str) -> Result<Verified, Problem> {
    let Ok(hash) = PasswordHash::new(stored) else {
        tracing::error!("a stored password hash can't be read");
        return Ok(Verified::Wrong);
    };
    if argon2()
        .verify_password(password.as_bytes(), &hash)
        .is_err()
    {
        return Ok(Verified::Wrong);
    }
    if is_current(&hash) {
        return Ok(Verified::Right);
    }
    hash_of(password).map(Verified::Outdated)
}

impl Hasher {
    /// For as many hashes at a time as `cores`.
    ///
    /// # Errors
    /// When the first hash can't be made.
    pub fn new(cores: usize) -> Result<Self, Problem> {
        Ok(Self {
            cores: Arc::new(Semaphore::new(cores.max(1))),
            waiting: Arc::default(),
            nobody: hash_of(&hex::encode(domain::random::bytes::<16>()))?.into(),
        })
    }

    /// The hash of a password that was [judged](judge) before, in PHC form.
    ///
    /// # Errors
    /// 503 `overloaded` when too many wait.
    pub async fn hash(&self, password: &SecretString) -> Result<String, Problem> {
        let password = password.clone();
        self.work(move || hash_of(password.expose_secret())).await
    }

    /// Whether a password is the one of `stored`. Takes as long if there is none.
    ///
    /// # Errors
    /// 503 `overloaded` when too many wait.
    pub async fn verify(
        &self,
        password: &SecretString,
        stored: Option<&str>,
    ) -> Result<Verified, Problem> {
        if password.expose_secret().len() > MAX_BYTES {
            return Ok(Verified::Wrong);
        }
        let (password, known) = (password.clone(), stored.is_some());
        let stored: Arc<str> = stored.map_or_else(|| Arc::clone(&self.nobody), Arc::from);
        let verified = self
            .work(move || verify(password.expose_secret(), &stored))
            .await?;
        Ok(if known { verified } else { Verified::Wrong })
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, Problem> {
        let permit = match Arc::clone(&self.cores).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await?,
        };
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        done.await.map_err(|error| {
            tracing::error!(%error, "a password's hash was not made");
            Problem::from(Code::Internal)
        })?
    }

    async fn wait(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Problem> {
        /// Counts one who waits, until dropped.
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        if before >= WAITING {
            let detail = "Too many passwords are being checked at the moment.";
            return Err(Problem::new(Code::Overloaded, detail).retry_after(RETRY_AFTER));
        }
        let permit = Arc::clone(&self.cores).acquire_owned().await;
        permit.map_err(|_| Code::Overloaded.into())
    }
}

/// Whether a password may be used: its length, and that nobody guesses it first. `pointer` names
/// the field.
///
/// # Errors
/// `validation_failed` that names the field.
pub fn judge(
    password: &SecretString,
    address: &EmailAddress,
    pointer: &str,
) -> Result<(), Problem> {
    let text = password.expose_secret();
    if text.chars().count() < MIN_CHARS {
        let detail = "Use at least 8 characters.";
        return Err(Problem::field(pointer, FaultCode::TooShort, detail));
    }
    if text.len() > MAX_BYTES {
        let detail = "Use at most 1024 bytes.";
        return Err(Problem::field(pointer, FaultCode::TooLong, detail));
    }
    let lower = text.to_lowercase();
    let (local, domain) = address.as_str().split_once('@').unwrap_or_default();
    let own = [address.as_str(), local, domain, "stationmaster"];
    let guessed = is_common(&lower)
        || own.contains(&lower.as_str())
        || lower.chars().all(|one| lower.starts_with(one));
    if guessed {
        let detail = "This password is one of the first that anybody would try.";
        return Err(Problem::field(pointer, FaultCode::NotAllowed, detail));
    }
    Ok(())
}

fn is_common(password: &str) -> bool {
    static SORTED: LazyLock<Vec<&str>> = LazyLock::new(|| COMMON.lines().collect());
    SORTED.binary_search(&password).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_is_verified_and_another_is_not() {
        let hasher = Hasher::new(2).unwrap();
        let hash = hasher.hash(&secret("pässwörd 1234")).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        let verified = hasher.verify(&secret("pässwörd 1234"), Some(&hash)).await;
        assert_eq!(verified.unwrap(), Verified::Right);
        for wrong in ["", "passwörd 1234", "pässwörd 1234 ", &"x".repeat(5000)] {
            let verified = hasher.verify(&secret(wrong), Some(&hash)).await;
            assert_eq!(verified.unwrap(), Verified::Wrong);
        }
        let verified = hasher.verify(&secret("anything"), None).await.unwrap();
        assert_eq!(verified, Verified::Wrong);
        let verified = hasher.verify(&secret("anything"), Some("no hash")).await;
        assert_eq!(verified.unwrap(), Verified::Wrong);
    }

    #[tokio::test]
    async fn a_hash_of_other_parameters_is_replaced() {
        let params = Params::new(8 * 1024, 1, 1, None).unwrap();
        let old = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_with_salt(b"correct horse", &[7; 16])
            .unwrap()
            .to_string();
        let hasher = Hasher::new(1).unwrap();
        let verified = hasher.verify(&secret("correct horse"), Some(&old)).await;
        let Verified::Outdated(new) = verified.unwrap() else {
            panic!("it is outdated");
        };
        let verified = hasher.verify(&secret("correct horse"), Some(&new)).await;
        assert_eq!(verified.unwrap(), Verified::Right);
    }

    #[test]
    fn m11_m12_passwords_are_judged_by_length_and_by_what_is_guessed_first() {
        let address = EmailAddress::parse("ada@acme.example").unwrap();
        for good in [
            "correct horse",
            "пароль и соль",
            "        x",
            "日本語日本語日本",
        ] {
            assert!(
                judge(&secret(good), &address, "/password").is_ok(),
                "{good}"
            );
        }
        for bad in [
            "short",
            "1234567",
            "password",
            "PassWord",
            "12345678",
            "ada@acme.example",
            "acme.example",
            "aaaaaaaaaaaa",
            "qwertyuiop",
            "Stationmaster",
        ] {
            assert!(judge(&secret(bad), &address, "/password").is_err(), "{bad}");
        }
        assert!(judge(&secret(&"ab".repeat(512)), &address, "/password").is_ok());
        assert!(judge(&secret(&"ab".repeat(513)), &address, "/password").is_err());
    }

    #[tokio::test]
    async fn m13_who_comes_after_the_queue_is_refused_at_once() {
        let hasher = Hasher::new(1).unwrap();
        let _busy = Arc::clone(&hasher.cores).acquire_owned().await.unwrap();
        let waits: Vec<_> = (0..WAITING)
            .map(|_| {
                let hasher = hasher.clone();
                tokio::spawn(async move { hasher.hash(&secret("correct horse")).await })
            })
            .collect();
        while hasher.waiting.load(Ordering::Relaxed) < WAITING {
            tokio::task::yield_now().await;
        }
        let refused = hasher.hash(&secret("correct horse")).await.unwrap_err();
        assert_eq!(refused.code, Code::Overloaded);
        assert_eq!(refused.retry_after_s, Some(RETRY_AFTER));
        for wait in waits {
            wait.abort();
        }
    }
}
