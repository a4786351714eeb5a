//! Credentials in files: given as text, or as `{"env": "NAME"}` by the name of a variable.
//! Everything that was read is wiped.

use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

/// Looks up a variable of the environment; `None` if it is not set, or is not UTF-8.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<Zeroizing<String>>;

/// A JSON value whose texts are wiped when it is dropped.
pub struct Wiped(Value);

impl Wiped {
    /// Takes a value over.
    #[must_use]
    pub const fn new(value: Value) -> Self {
        Self(value)
    }

    /// The value, to be read and changed in place.
    pub const fn get(&mut self) -> &mut Value {
        &mut self.0
    }
}

impl Drop for Wiped {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        _ => {}
    }
}

/// Replaces the names of variables by their values, in the members that may contain credentials.
/// Returns the pointers of those that name no variable, with a sentence.
pub fn fill_in(
    item: &mut Value,
    places: &[&'static str],
    environment: Environment<'_>,
) -> Vec<(&'static str, &'static str)> {
    let mut faults = Vec::new();
    for pointer in places {
        let Some(value) = item.pointer_mut(pointer) else {
            continue;
        };
        let Value::Object(members) = &*value else {
            continue;
        };
        let name = match (members.len(), members.get("env")) {
            (1, Some(Value::String(name))) if is_name(name) => name,
            _ => {
                let what = "A credential is a string, or names a variable of the environment: {\"env\": \"NAME\"}.";
                faults.push((*pointer, what));
                continue;
            }
        };
        // The name is not repeated: it may be a credential in the wrong place.
        match environment(name) {
            Some(text) => *value = Value::String(text.as_str().to_owned()),
            None => faults.push((
                *pointer,
                "The environment has no such variable, or it is not text.",
            )),
        }
    }
    faults
}

/// Whether a text can be the name of a variable (POSIX.1-2024, 8.1): letters, digits and
/// underscores, no digit first.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next();
    text.len() <= 100
        && first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLACES: [&str; 2] = ["/api_key", "/oauth/access_token"];

    fn environment(name: &str) -> Option<Zeroizing<String>> {
        (name == "KEY_A").then(|| Zeroizing::new("sk-from-environment".to_owned()))
    }

    #[test]
    fn variables_are_put_where_they_are_named() {
        let mut item = json!({
            "api_key": {"env": "KEY_A"},
            "oauth": {"access_token": "as it is"},
            "name": {"env": "KEY_A"},
        });
        assert!(fill_in(&mut item, &PLACES, &environment).is_empty());
        let filled = json!({
            "api_key": "sk-from-environment",
            "oauth": {"access_token": "as it is"},
            "name": {"env": "KEY_A"},
        });
        assert_eq!(item, filled);
    }

    #[test]
    fn what_names_no_variable_is_a_fault() {
        for wrong in [
            json!({"env": "KEY_B"}),
            json!({"env": "sk-ant-123"}),
            json!({"env": ""}),
            json!({"env": 1}),
            json!({"env": "KEY_A", "more": 1}),
            json!({"file": "KEY_A"}),
            json!({}),
        ] {
            let mut item = json!({"api_key": wrong, "oauth": wrong});
            let faults = fill_in(&mut item, &PLACES, &environment);
            assert_eq!(faults.len(), 1, "{wrong}");
            assert_eq!(faults[0].0, "/api_key");
            assert!(!faults[0].1.contains("sk-ant"), "{wrong}");
        }
    }

    #[test]
    fn texts_are_wiped() {
        let mut value = json!({"a": ["secret", {"b": "secret"}], "c": 1});
        wipe(&mut value);
        assert_eq!(value, json!({"a": ["", {"b": ""}], "c": 1}));
    }
}
