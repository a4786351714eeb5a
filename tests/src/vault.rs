//! All secrets that a test receives, and the search for them where none may be.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Mutex,
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::Value;

/// The prefixes of the credentials that the server issues.
const PREFIXES: [&str; 7] = [
    "stm_admin_",
    "stm_runner_",
    "stm_boot_",
    "stm_sub_",
    "stm_claim_",
    "whsec_",
    "ptk_",
];

/// Shorter secrets are left out: a text could contain them by chance.
const SENT_LEN_MIN: usize = 16;

/// The secrets of one test.
#[derive(Default)]
pub struct Vault(Mutex<Index>);

/// All forms of all secrets by their last eight bytes. One pass over a text finds all of them.
struct Index {
    secrets: Vec<String>,
    forms: HashMap<u64, Vec<Form>>,
    /// Whether any form ends in these two bytes: this alone rules out most positions of a text.
    endings: Vec<bool>,
}

/// A form in which a secret could be written: as it is, in hexadecimal, in base64.
struct Form {
    secret: usize,
    name: &'static str,
    bytes: Vec<u8>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            secrets: Vec::new(),
            forms: HashMap::new(),
            endings: vec![false; 1 << 16],
        }
    }
}

impl Vault {
    /// Remembers one secret.
    pub fn add(&self, text: &str) {
        let mut index = self.0.lock().unwrap();
        if !index.secrets.iter().any(|known| known == text) {
            index.add(text);
        }
    }

    /// Remembers every credential in an answer.
    pub fn take_from(&self, value: &Value) {
        match value {
            Value::String(text) if is_credential(text) => self.add(text),
            Value::Array(items) => items.iter().for_each(|item| self.take_from(item)),
            Value::Object(members) => members.values().for_each(|member| self.take_from(member)),
            _ => {}
        }
    }

    /// Remembers every upstream credential in a request's body, even if the request is refused.
    pub fn take_sent(&self, value: &Value) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| self.take_sent(item)),
            Value::Object(members) => {
                for (name, member) in members {
                    match member.as_str() {
                        Some(text) => self.take_member(name, text),
                        None => self.take_sent(member),
                    }
                }
            }
            _ => {}
        }
    }

    fn take_member(&self, name: &str, text: &str) {
        let secret = match name {
            "api_key" | "access_token" | "refresh_token" | "client_secret" | "password" => text,
            // The rest of the URL is no secret, and other URLs may share it.
            "webhook_url" => text.rsplit('/').next().unwrap_or_default(),
            _ => return,
        };
        if secret.len() >= SENT_LEN_MIN {
            self.add(secret);
        }
    }

    /// The number of secrets.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().secrets.len()
    }

    /// The secrets in `bytes`, with their form. The descriptions do not reveal them.
    pub fn found_in(&self, bytes: &[u8]) -> Vec<String> {
        self.0.lock().unwrap().found_in(bytes)
    }
}

fn is_credential(text: &str) -> bool {
    PREFIXES
        .iter()
        .any(|prefix| text.len() > prefix.len() + 20 && text.starts_with(prefix))
}

impl Index {
    fn add(&mut self, text: &str) {
        let secret = self.secrets.len();
        self.secrets.push(text.to_owned());
        let mut forms = forms_of(text.as_bytes());
        let key = text
            .strip_prefix("whsec_")
            .and_then(|encoded| STANDARD.decode(encoded).ok());
        if let Some(key) = key {
            forms.extend(forms_of(&key));
        }
        for (name, bytes) in forms {
            let end = bytes.last_chunk::<8>().expect("secrets are longer");
            self.endings[usize::from(u16::from_le_bytes([end[6], end[7]]))] = true;
            let found = self.forms.entry(u64::from_le_bytes(*end)).or_default();
            found.push(Form {
                secret,
                name,
                bytes,
            });
        }
    }

    fn found_in(&self, bytes: &[u8]) -> Vec<String> {
        let mut found = BTreeSet::new();
        for end in 8..=bytes.len() {
            if !self.endings[usize::from(u16::from_le_bytes([bytes[end - 2], bytes[end - 1]]))] {
                continue;
            }
            let last = bytes[..end].last_chunk::<8>().expect("there are eight");
            let forms = self.forms.get(&u64::from_le_bytes(*last));
            for form in forms.into_iter().flatten() {
                if bytes[..end].ends_with(&form.bytes) {
                    found.insert(format!(
                        "{} as {}",
                        self.description(form.secret),
                        form.name
                    ));
                }
            }
        }
        found.into_iter().collect()
    }

    fn description(&self, secret: usize) -> String {
        let text = &self.secrets[secret];
        let start = text.find('_').map_or(0, |at| at + 1);
        let end = text.len() - 4;
        format!("{}…{}", &text[..start.min(end)], &text[end..])
    }
}

fn forms_of(raw: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut forms = vec![
        ("it is", raw.to_vec()),
        ("hex", hex::encode(raw).into_bytes()),
        ("upper-case hex", hex::encode_upper(raw).into_bytes()),
    ];
    for offset in 0..3 {
        for (name, engine) in [
            ("base64", &STANDARD_NO_PAD),
            ("URL-safe base64", &URL_SAFE_NO_PAD),
        ] {
            forms.push((name, within_base64(raw, offset, engine)));
        }
    }
    forms
}

/// The base64 of `raw` after `offset` other bytes, without the characters that depend on other
/// bytes.
fn within_base64(raw: &[u8], offset: usize, engine: &base64::engine::GeneralPurpose) -> Vec<u8> {
    let padded = [&vec![0; offset], raw].concat();
    let encoded = engine.encode(&padded);
    let start = [0, 2, 3][offset];
    let shared = usize::from(!padded.len().is_multiple_of(3));
    encoded.as_bytes()[start..encoded.len() - shared].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "stm_admin_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJ";

    #[test]
    fn a_secret_is_found_in_every_form() {
        let vault = Vault::default();
        vault.take_from(&serde_json::json!({"tokens": [{"token": TOKEN, "kind": "admin"}]}));
        assert_eq!(vault.count(), 1);
        for before in ["", "x", "xy", "xyz"] {
            let text = format!("{before}{TOKEN} and more");
            let texts = [text.clone(), hex::encode(&text), STANDARD.encode(&text)];
            for text in texts {
                assert!(!vault.found_in(text.as_bytes()).is_empty(), "{text}");
            }
        }
        assert!(vault.found_in(b"stm_admin_ is a prefix").is_empty());
    }

    #[test]
    fn what_is_sent_is_known_too() {
        let vault = Vault::default();
        vault.take_sent(&serde_json::json!({
            "name": "a name that is long enough",
            "api_key": "sk-0123456789abcdef",
            "oauth": {"refresh_token": "rt-0123456789abcdef", "client_secret": "short"},
            "slack": {"webhook_url": "https://hooks.example/T0/B0/0123456789abcdef0"},
        }));
        assert_eq!(vault.count(), 3);
        assert!(vault.found_in(b"https://hooks.example/T0/B0/").is_empty());
        assert_eq!(
            vault
                .found_in(b"/0123456789abcdef0 sk-0123456789abcdef")
                .len(),
            2
        );
    }

    #[test]
    fn the_key_within_a_webhook_secret_counts_too() {
        let vault = Vault::default();
        vault.add(&format!("whsec_{}", STANDARD.encode([7; 33])));
        assert!(
            !vault
                .found_in(&[[1; 3].as_slice(), &[7; 33]].concat())
                .is_empty()
        );
    }
}
