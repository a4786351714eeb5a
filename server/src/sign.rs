//! `stationmaster sign` and `verify`: sign and verify deliveries in files.

use std::path::PathBuf;

use clap::Args;
use domain::{
    clock::{Clock as _, SystemClock},
    id::{EventId, Id as _},
    signature::{self, Refused, Verifier},
};
use secrecy::SecretString;

use crate::{
    failure::Failure,
    files,
    text::{put, say},
};

/// Where the secret or the key is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Key {
    /// A file with the secret (`whsec_…`) or the key (`whsk_…`, to verify also `whpk_…`); `-` is
    /// standard input
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The environment variable that holds the secret or the key
    #[arg(long, value_name = "NAME")]
    secret_env: Option<String>,
}

impl Key {
    /// Reads the key; for `subcommand`, returns the secret for calls that is derived from it.
    fn read(&self, subcommand: bool) -> Result<SecretString, Failure> {
        let key = match (&self.secret_file, &self.secret_env) {
            (Some(path), _) => files::secret_of_file(path)?,
            (None, Some(name)) => files::secret_of_env(name)?,
            (None, None) => return Err(Failure::Usage("no secret is given".into())),
        };
        if !subcommand {
            return Ok(key);
        }
        match Verifier::of(&key) {
            Ok(Verifier::Shared(..)) => Ok(signature::subcommand_secret(&key)),
            _ => Err(Failure::Usage(
                "only a secret (`whsec_…`) signs calls of subcommands".into(),
            )),
        }
    }
}

/// Options of `sign`.
#[derive(Debug, Args)]
pub struct Sign {
    #[command(flatten)]
    key: Key,
    /// For a subcommand call: use the secret that is derived for calls
    #[arg(long)]
    subcommand: bool,
    /// The event's identifier (`webhook-id`); a new one by default
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// The time of signing in Unix seconds; now by default
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..1_000_000_000_000))]
    timestamp: Option<i64>,
    /// The exact body; `-` is standard input
    #[arg(value_name = "BODY_FILE")]
    body: PathBuf,
}

/// Options of `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    #[command(flatten)]
    key: Key,
    /// For a subcommand call: use the secret that is derived for calls
    #[arg(long)]
    subcommand: bool,
    /// The headers, one `name: value` on a line, as `sign` or a dump of a request has them; `-` is
    /// standard input
    #[arg(long, value_name = "FILE")]
    headers: PathBuf,
    /// The maximum age of the signature in seconds, in either direction
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    tolerance_seconds: u32,
    /// The time to compare with, in Unix seconds, instead of now
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(0..1_000_000_000_000))]
    at: Option<i64>,
    /// The exact body; `-` is standard input
    #[arg(value_name = "BODY_FILE")]
    body: PathBuf,
}

/// Refuses more than one path that names standard input.
fn one_input(paths: &[Option<&PathBuf>]) -> Result<(), Failure> {
    let inputs = paths.iter().flatten().filter(|path| files::is_input(path));
    if inputs.count() > 1 {
        let words = "only one of secret, headers and body can come from standard input";
        return Err(Failure::Usage(words.into()));
    }
    Ok(())
}

/// Writes the headers of a delivery, one a line.
///
/// # Errors
/// A file can't be read, or contains no secret.
pub fn sign(options: &Sign) -> Result<(), Failure> {
    one_input(&[options.key.secret_file.as_ref(), Some(&options.body)])?;
    let key = options.key.read(options.subcommand)?;
    let shared = match Verifier::of(&key) {
        Ok(Verifier::Shared(..)) => true,
        Ok(Verifier::Public(_)) if signature::is_private_key(&key) => false,
        _ => {
            return Err(Failure::Usage(
                "that is no secret and no private key".into(),
            ));
        }
    };
    let now = SystemClock.now();
    let at = options.timestamp.unwrap_or(now.seconds());
    let id = match &options.id {
        Some(id)
            if id.is_empty()
                || !id
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'.') =>
        {
            let words = "--id takes visible ASCII characters without spaces and dots";
            return Err(Failure::Usage(words.into()));
        }
        Some(id) => id.clone(),
        None => EventId::generate(now).to_string(),
    };
    let body = files::read(&options.body)?;
    let keys = std::slice::from_ref(&key);
    let own = signature::stationmaster(keys, at, &body);
    let own = format!("x-stationmaster-signature: {own}\n");
    put(&format!(
        "content-type: application/json\nwebhook-id: {id}\nwebhook-timestamp: {at}\n\
         webhook-signature: {}\n",
        signature::standard(keys, &id, at, &body)
    ));
    // A private key signs in one scheme only.
    if shared {
        put(&own);
    }
    Ok(())
}

/// Verifies a delivery, and prints the result.
///
/// # Errors
/// The delivery is not genuine, with the reason; or a file can't be read.
pub fn verify(options: &Verify) -> Result<(), Failure> {
    let inputs = [
        options.key.secret_file.as_ref(),
        Some(&options.headers),
        Some(&options.body),
    ];
    one_input(&inputs)?;
    let key = options.key.read(options.subcommand)?;
    let headers = files::read(&options.headers)?;
    let headers = headers_of(&String::from_utf8_lossy(&headers));
    let body = files::read(&options.body)?;
    let header = |name: &str| {
        let found = headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    };
    let now = options.at.unwrap_or(SystemClock.now().seconds());
    let judged = Verifier::of(&key)
        .and_then(|verifier| verifier.verify(header, &body, now, options.tolerance_seconds));
    match judged {
        Ok(()) => {
            say("genuine");
            Ok(())
        }
        Err(refused) => {
            let missing: Vec<&str> = STANDARD
                .into_iter()
                .filter(|name| header(name).is_none())
                .collect();
            let words = words(refused, &missing, options.tolerance_seconds);
            Err(Failure::Failed(format!("{refused}: {words}")))
        }
    }
}

/// The headers of Standard Webhooks.
const STANDARD: [&str; 3] = ["webhook-id", "webhook-timestamp", "webhook-signature"];

fn words(refused: Refused, missing: &[&str], tolerance_s: u32) -> String {
    match refused {
        Refused::NoSignature => "there is no signature that this key could verify".into(),
        Refused::Malformed if (1..STANDARD.len()).contains(&missing.len()) => {
            format!("missing: {}", missing.join(", "))
        }
        Refused::Malformed => "a header does not have the documented form for this key".into(),
        Refused::TooOld => format!("it was signed more than {tolerance_s} s ago"),
        Refused::TooNew => format!("it was signed more than {tolerance_s} s from now"),
        Refused::NoMatch => "no signature matches this key and these bytes".into(),
        Refused::BadSecret => {
            "the secret or key does not have the documented form, or is too weak".into()
        }
    }
}

/// The headers in a text: names in lower case, with their values. Lines without a colon, such as
/// the first line of a request, are left out, and so are the marks that `curl -v` puts before
/// lines.
fn headers_of(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| {
        let line = line.strip_prefix(['>', '<']).unwrap_or(line);
        let (name, value) = line.split_once(':')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_from_dumps() {
        let dump =
            "POST /hook HTTP/1.1\r\n> Webhook-ID:  evt_1 \r\n< X-Empty:\r\n\r\nwebhook-id: 2";
        let found = headers_of(dump);
        let found: Vec<_> = found
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("webhook-id", "evt_1"),
                ("x-empty", ""),
                ("webhook-id", "2")
            ]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let words = |missing: &[&str]| words(Refused::Malformed, missing, 300);
        assert_eq!(words(&["webhook-id"]), "missing: webhook-id");
        assert!(!words(&STANDARD).contains("missing") && !words(&[]).contains("missing"));
    }
}
