//! The list of faults of a body, in our words: bounded, and each of them once.

use std::collections::HashSet;

use serde_json::Value;

use domain::{FaultCode, FieldError};

/// Most faults that one answer lists.
pub const FAULTS_MAX: usize = 20;

/// Longest pointer that is answered, bytes; a longer one is cut after a whole step.
const POINTER_BYTES: usize = 200;

/// The faults that were found so far.
pub(super) struct Faults<'a> {
    pub(super) body: &'a Value,
    pub(super) list: Vec<FieldError>,
    seen: HashSet<(String, FaultCode)>,
}

impl<'a> Faults<'a> {
    /// None of `body` yet.
    pub(super) fn of(body: &'a Value) -> Self {
        Self {
            body,
            list: Vec::new(),
            seen: HashSet::new(),
        }
    }
}

impl Faults<'_> {
    pub(super) fn add(&mut self, pointer: &str, code: FaultCode, what: &str) {
        let pointer = bounded(pointer);
        if self.seen.insert((pointer.to_owned(), code)) {
            let detail = format!("{} {what}.", label(pointer));
            self.list.push(FieldError::new(pointer, code, detail));
        }
    }

    pub(super) fn add_unknown(&mut self, at: &str, name: &str) {
        let pointer = child(at, name);
        if bounded(&pointer).len() < pointer.len() {
            let chars = name.chars().count();
            self.add(
                at,
                FaultCode::UnknownField,
                &format!("has an unknown member with a name of {chars} characters"),
            );
        } else {
            self.add(&pointer, FaultCode::UnknownField, "is not known here");
        }
    }
}

/// The pointer, or its longest part of whole steps within the limit.
fn bounded(pointer: &str) -> &str {
    if pointer.len() <= POINTER_BYTES {
        return pointer;
    }
    let mut end = POINTER_BYTES;
    while !pointer.is_char_boundary(end) {
        end -= 1;
    }
    &pointer[..pointer[..end].rfind('/').unwrap_or(0)]
}

fn label(pointer: &str) -> String {
    match pointer.strip_prefix('/') {
        None => "The body".to_owned(),
        Some(path) => format!(
            "`{}`",
            path.replace('/', ".").replace("~1", "/").replace("~0", "~")
        ),
    }
}

/// The JSON pointer (RFC 6901) to the member `name` of the thing at `pointer`.
#[must_use]
pub fn child(pointer: &str, name: &str) -> String {
    format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_is_cut_after_a_whole_step() {
        let key = "k".repeat(150);
        let pointer = format!("/{key}/{key}/x");
        assert_eq!(bounded(&pointer), format!("/{key}"));
        assert_eq!(bounded(&format!("/{}", "ä".repeat(150))), "");
        assert_eq!(bounded("/a/b"), "/a/b");
    }
}
