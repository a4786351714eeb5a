//! What commands read from files, standard input and the environment.

use std::{
    io::{self, Read as _},
    path::Path,
};

use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// The largest file that is read, bytes.
const BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// The file can't be read, or is larger than 16 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::Usage(format!("{} can't be read: {error}", path.display()))
    };
    let mut bytes = Vec::new();
    let source: Box<dyn io::Read> = if is_input(path) {
        Box::new(io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(|error| failed(&error))?)
    };
    let mut source = source.take(BYTES_MAX + 1);
    source
        .read_to_end(&mut bytes)
        .map_err(|error| failed(&error))?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > BYTES_MAX) {
        return Err(failed(&"it is larger than 16 MiB"));
    }
    Ok(bytes)
}

/// Whether a path stands for standard input.
#[must_use]
pub fn is_input(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Reads a credential from a file, or from standard input for `-`.
///
/// # Errors
/// The file can't be read, or does not contain exactly one word.
pub fn secret_of_file(path: &Path) -> Result<SecretString, Failure> {
    let bytes = Zeroizing::new(read(path)?);
    let text = std::str::from_utf8(&bytes).ok().and_then(word);
    let words = format!(
        "{} does not hold one line with a credential",
        path.display()
    );
    text.ok_or(Failure::Usage(words))
}

/// Reads a credential from an environment variable.
///
/// # Errors
/// The variable is not set, or does not contain exactly one word.
pub fn secret_of_env(name: &str) -> Result<SecretString, Failure> {
    let text = std::env::var(name).ok().map(Zeroizing::new);
    let words = format!("the environment variable {name} does not hold a credential");
    let text = text.as_deref().and_then(|text| word(text));
    text.ok_or(Failure::Usage(words))
}

fn word(text: &str) -> Option<SecretString> {
    let text = text.trim();
    let sane = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    sane.then(|| SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_credential_is_one_word() {
        let found = word(" whsec_AAAA\r\n").unwrap();
        assert_eq!(found.expose_secret(), "whsec_AAAA");
        for bad in ["", " \n", "a b", "a\nb", "ä"] {
            assert!(word(bad).is_none(), "{bad:?}");
        }
    }
}
