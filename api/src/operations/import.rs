//! What files bring instead of requests: accounts and trains in the very form of the requests that
//! make them, judged by the same published schemas, and keys that trains' clients have already.

use std::collections::HashSet;

use jsonschema::Validator;
use poem_openapi::types::{ParseFromJSON, Type as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use domain::{
    FaultCode, FieldError, Problem, limits::TRAIN_ACCOUNTS, limits::TRAIN_PRIORITY_MAX, slug::Slug,
    token, token::TokenHash,
};
use persistence::{AccountSpec, ClientKeySpec, TrainSpec};

use crate::trains::{accounts::body::NewAccountBody, train::body::NewTrainBody};
use web::{
    contract::{Contract, faults_of},
    http::json as strict,
};

/// Shortest client's key: below that, one is too easily guessed.
pub const CLIENT_KEY_CHARS_MIN: usize = 16;
/// What lists show of a key of which only the hash is known.
const UNKNOWN_LAST_FOUR: &str = "????";
/// Bearers of ours that no client of a train presents.
const OURS: [&str; 2] = ["stm_", "whsec_"];
/// The longest name of an unknown member that is repeated. No client's key is as short, so none
/// that stands in the place of a name is shown.
const NAME_SHOWN_CHARS: usize = CLIENT_KEY_CHARS_MIN - 1;

/// Judges what files describe. Of what it takes, it takes the texts out of the item; what it
/// refuses stays as it is, for the caller to wipe.
pub struct Judge {
    account: Validator,
    train: Validator,
    client_key: Validator,
    policy: outbound::Policy,
}

/// Parses a file as strictly as a request's body.
///
/// # Errors
/// `malformed_json` with line and column; never what stands there.
pub fn parse(bytes: &[u8]) -> Result<Value, Problem> {
    let value = strict::parse_file(bytes)?;
    Ok(if strict::has_whole_floats(&value) {
        strict::with_whole_numbers(value)
    } else {
        value
    })
}

impl Judge {
    /// Compiles the schemas. `policy` judges URLs.
    ///
    /// # Errors
    /// A sentence that names the schema that doesn't compile.
    pub fn new(contract: &Contract, policy: outbound::Policy) -> Result<Self, String> {
        let compile = |what: &str, schema: &Value| {
            contract
                .validator(schema)
                .map_err(|error| format!("the form of {what} does not compile: {error}"))
        };
        let schemas = &contract.document()["components"]["schemas"];
        let account = &schemas[&*NewAccountBody::name()];
        let mut train = schemas[&*NewTrainBody::name()].clone();
        train["properties"]["accounts"] = places_schema();
        Ok(Self {
            account: compile("an account", account)?,
            train: compile("a train", &train)?,
            client_key: compile("a client's key", &client_key_schema())?,
            policy,
        })
    }

    /// An account, in the form of a request that makes one.
    ///
    /// # Errors
    /// All faults; none repeats a value.
    pub fn account(&self, item: &mut Value) -> Result<AccountSpec, Vec<FieldError>> {
        check(&self.account, item)?;
        let (enabled, ceilings) = (
            item.get("enabled").is_some(),
            item.get("ceilings").is_some(),
        );
        let new = parsed::<NewAccountBody>(item)?
            .checked(&self.policy)
            .map_err(faults)?;
        Ok(AccountSpec {
            enabled: enabled.then_some(new.enabled),
            ceilings: ceilings.then_some(new.ceilings),
            new,
        })
    }

    /// A train, in the form of a request that makes one, and in `accounts` what it lends.
    ///
    /// # Errors
    /// All faults; none repeats a value.
    pub fn train(&self, item: &mut Value) -> Result<TrainSpec, Vec<FieldError>> {
        check(&self.train, item)?;
        let members = item.as_object_mut();
        let places = members.and_then(|members| members.remove("accounts"));
        let accounts = places.as_ref().map(places_of).transpose()?;
        let said = |name| item.get(name).is_some();
        let (description, enabled) = (said("description"), said("enabled"));
        let (sticky, slack) = (said("sticky"), said("slack"));
        let new = parsed::<NewTrainBody>(item)?
            .checked(&self.policy)
            .map_err(faults)?;
        Ok(TrainSpec {
            slug: new.slug,
            description: description.then_some(new.description),
            enabled: enabled.then_some(new.enabled),
            sticky: sticky.then_some(new.sticky),
            slack: slack.then_some(new.slack),
            accounts,
        })
    }

    /// A key that a train's clients have, as it is or as its SHA-256.
    ///
    /// # Errors
    /// All faults; none repeats a value.
    pub fn client_key(&self, item: &mut Value) -> Result<ClientKeySpec, Vec<FieldError>> {
        check(&self.client_key, item)?;
        let text = |item: &Value, name: &str| item[name].as_str().map(str::to_owned);
        let train = item["train"].as_str().and_then(Slug::parse);
        let train = train.ok_or_else(|| one("/train", FaultCode::Pattern, "It is no slug."))?;
        // The text itself moves along: no copy of it stays behind.
        let key = match item.get_mut("key").map(Value::take) {
            Some(Value::String(key)) => Some(SecretString::from(key)),
            _ => None,
        };
        let (hash, last_four) = match (key, text(item, "sha256"), text(item, "last_four")) {
            (Some(key), None, None) => of_key(&key)?,
            (None, Some(sha256), last_four) => {
                let last_four = last_four.unwrap_or_else(|| UNKNOWN_LAST_FOUR.to_owned());
                (of_hex(&sha256)?, last_four)
            }
            (Some(_), None, Some(_)) => {
                let detail = "`last_four` goes with `sha256`; of a key it is known.";
                return Err(one("/last_four", FaultCode::NotAllowed, detail));
            }
            (Some(_), Some(_), _) => {
                let detail = "A key stands there itself or as its `sha256`, not both.";
                return Err(one("/sha256", FaultCode::NotAllowed, detail));
            }
            (None, None, _) => {
                return Err(one(
                    "/key",
                    FaultCode::Required,
                    "`key` or `sha256` is required.",
                ));
            }
        };
        Ok(ClientKeySpec {
            train,
            hash,
            last_four,
            name: text(item, "name"),
        })
    }
}

fn places_schema() -> Value {
    json!({
        "type": "array",
        "maxItems": TRAIN_ACCOUNTS,
        "items": {
            "type": "object",
            "additionalProperties": false,
            "required": ["account", "priority"],
            "properties": {
                "account": {"type": "string", "minLength": 1, "maxLength": domain::limits::NAME_CHARS},
                "priority": {"type": "integer", "minimum": 0, "maximum": TRAIN_PRIORITY_MAX},
            },
        },
    })
}

fn client_key_schema() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["train"],
        "properties": {
            "train": {"type": "string", "pattern": domain::slug::PATTERN},
            "key": {
                "type": "string",
                "minLength": CLIENT_KEY_CHARS_MIN,
                "maxLength": token::MAX_BEARER_LEN,
                "pattern": "^[!-~]+$",
            },
            "sha256": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
            "last_four": {"type": "string", "pattern": "^[!-~]{4}$"},
            "name": {"type": "string", "minLength": 1, "maxLength": domain::limits::NAME_CHARS},
        },
    })
}

fn one(pointer: &str, code: FaultCode, detail: &str) -> Vec<FieldError> {
    vec![FieldError::new(pointer, code, detail)]
}

fn faults(problem: Problem) -> Vec<FieldError> {
    if problem.errors.is_empty() {
        return vec![FieldError::new("", FaultCode::Invalid, problem.detail)];
    }
    problem.errors
}

/// Refuses what the schema does not take.
fn check(validator: &Validator, item: &Value) -> Result<(), Vec<FieldError>> {
    let mut faults = faults_of(validator, item);
    strict::nul_faults(item, &mut faults);
    if faults.is_empty() {
        return Ok(());
    }
    Err(faults.into_iter().map(unrepeated).collect())
}

/// A fault in words for a file's item, and without the name of an unknown member that may be
/// something else than a name.
fn unrepeated(mut fault: FieldError) -> FieldError {
    if let Some(rest) = fault.detail.strip_prefix("The body ") {
        fault.detail = format!("It {rest}");
    }
    if fault.code != FaultCode::UnknownField {
        return fault;
    }
    let (parent, name) = fault.pointer.rsplit_once('/').unwrap_or_default();
    let chars = name.chars().count();
    if chars <= NAME_SHOWN_CHARS {
        return fault;
    }
    let detail = format!("A member with a name of {chars} characters is not known here.");
    FieldError::new(parent, FaultCode::UnknownField, detail)
}

fn parsed<T: ParseFromJSON>(item: &mut Value) -> Result<T, Vec<FieldError>> {
    // The schema should have said what is wrong; the parser's words may hold values.
    T::parse_from_json(Some(item.take()))
        .map_err(|_| one("", FaultCode::Invalid, "It is not valid."))
}

fn places_of(places: &Value) -> Result<Vec<(String, u16)>, Vec<FieldError>> {
    let (mut found, mut seen, mut faults) = (Vec::new(), HashSet::new(), Vec::new());
    for (at, place) in places.as_array().into_iter().flatten().enumerate() {
        let name = place["account"].as_str().unwrap_or_default();
        let priority = place["priority"].as_u64();
        let priority = priority.and_then(|priority| u16::try_from(priority).ok());
        if !seen.insert(name) {
            let pointer = format!("/accounts/{at}/account");
            let detail = "The same account stands twice.";
            faults.push(FieldError::new(pointer, FaultCode::Duplicate, detail));
        }
        found.push((name.to_owned(), priority.unwrap_or(TRAIN_PRIORITY_MAX)));
    }
    if faults.is_empty() {
        Ok(found)
    } else {
        Err(faults)
    }
}

fn of_key(key: &SecretString) -> Result<(TokenHash, String), Vec<FieldError>> {
    let text = key.expose_secret();
    if OURS.iter().any(|prefix| text.starts_with(prefix)) {
        let detail = "It is a credential of this service, and none of a train's.";
        return Err(one("/key", FaultCode::NotAllowed, detail));
    }
    Ok((TokenHash::of_secret(key), token::last_four(text)))
}

fn of_hex(sha256: &str) -> Result<TokenHash, Vec<FieldError>> {
    let bytes: Option<Vec<u8>> = (0..sha256.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(sha256.get(at..at + 2)?, 16).ok())
        .collect();
    bytes
        .and_then(|bytes| TokenHash::from_stored(&bytes))
        .ok_or_else(|| {
            one(
                "/sha256",
                FaultCode::Pattern,
                "It is no SHA-256 in hexadecimal.",
            )
        })
}

#[cfg(test)]
mod tests;
