//! What it costs to check a value by a schema, before anybody does.
//!
//! A schema is walked as it is evaluated: each reference is replaced by what it refers to, and
//! whatever is looked at again counts again. The library looks again, at the same value, for
//! `unevaluatedProperties` and `unevaluatedItems`: at every alternative and condition below them,
//! and at those below these. So a chain of such schemas costs twice as much with every link. A
//! schema may not contain itself; so no part of it meets the same place of a value more often than
//! is counted here, and the sum bounds the work of a check for each value and byte of a payload.

use std::{
    collections::HashMap,
    ops::{Add, AddAssign},
};

use serde_json::{Map, Value};

use domain::{FaultCode, FieldError};

use super::pattern::{self, PatternCost};
use web::contract::{FAULTS_MAX, child};

/// Deepest nesting of a schema once each reference is replaced by what it refers to.
const DEEP_MAX: usize = 96;
/// Most patterns of a schema.
const PATTERNS_MAX: usize = 32;
/// Memory of a compiled keyword, bytes, without its place.
const KEYWORD_BYTES: u64 = 400;
/// How often a keyword's place is kept.
const PLACES: u64 = 3;
/// Memory of a value that is kept as it stands in the schema.
const VALUE_BYTES: u64 = 100;
/// A payload's bytes that are compared or hashed in the time of one step.
const BYTES_A_STEP: u64 = 16;

/// How much a schema may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Steps for each value of a payload.
    pub(super) value: u64,
    /// Steps for each byte of it, on top.
    pub(super) byte: u64,
    /// Memory of the compiled schema, bytes.
    pub(super) memory: u64,
}

/// What is registered from now on.
pub(super) const REGISTERED: Limits = Limits {
    value: 4_000,
    byte: 1_000,
    memory: 16 * 1024 * 1024,
};

/// What was registered under older rules is still evaluated, as far as a payload's own budget
/// allows, unless even making it ready would cost too much.
pub(super) const KEPT: Limits = Limits {
    value: 40_000,
    byte: 20_000,
    memory: 32 * 1024 * 1024,
};

/// Steps at most: for each value of a payload, and for each of its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Steps {
    value: u64,
    byte: u64,
}

impl Steps {
    /// For a payload of so many values and bytes.
    pub(super) fn of(self, values: u64, bytes: u64) -> u64 {
        let by_value = self
            .value
            .saturating_mul(values.saturating_add(bytes / BYTES_A_STEP));
        by_value.saturating_add(self.byte.saturating_mul(bytes))
    }

    const fn values(value: u64) -> Self {
        Self { value, byte: 0 }
    }

    const fn bytes(byte: u64) -> Self {
        Self { value: 0, byte }
    }
}

impl Add for Steps {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            value: self.value.saturating_add(other.value),
            byte: self.byte.saturating_add(other.byte),
        }
    }
}

impl AddAssign for Steps {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// What a whole schema costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    /// To learn whether a payload fits.
    pub(super) check: Steps,
    /// To learn why it does not, on top.
    pub(super) explain: Steps,
    /// Memory of the compiled schema, bytes.
    pub(super) memory: u64,
}

/// What a part of a schema costs.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    check: Steps,
    /// To learn which members or items of a value it has evaluated.
    mark: Steps,
    explain: Steps,
    /// Longest place of something within it, bytes.
    place: u64,
}

impl Part {
    /// Adds a part that is looked at in all three ways in its own form.
    fn takes(&mut self, other: Self) {
        self.check += other.check;
        self.mark += other.mark;
        self.explain += other.explain;
    }

    /// Adds a part that looks at members or items of the value, which it leaves unmarked.
    fn takes_below(&mut self, other: Self) {
        self.check += other.check;
        self.explain += other.explain;
    }

    /// Adds steps of a keyword's own.
    fn steps(&mut self, steps: Steps) {
        self.check += steps;
        // Checked again, and said.
        self.explain += steps + steps + Steps::values(2);
    }
}

/// What a schema costs; or all that is never taken in it, or where it costs too much.
pub(super) fn cost_of(schema: &Value, limits: Limits) -> Result<Cost, Vec<FieldError>> {
    let mut scan = Scan::default();
    scan.schema("", schema);
    if scan.patterns > PATTERNS_MAX {
        let detail = format!("A schema may have at most {PATTERNS_MAX} patterns.");
        scan.faults
            .push(FieldError::new("", FaultCode::TooLong, detail));
    }
    if !scan.faults.is_empty() {
        return Err(scan.faults);
    }
    let mut walk = Walk {
        root: schema,
        limits,
        known: HashMap::new(),
        patterns: HashMap::new(),
        memory: kept_values(schema).saturating_mul(VALUE_BYTES),
        marked: 0,
    };
    let whole = walk.schema("", schema, 0).map_err(|fault| vec![fault])?;
    walk.grow("", walk.marked_bytes(whole.place))
        .map_err(|fault| vec![fault])?;
    Ok(Cost {
        check: whole.check,
        explain: whole.explain,
        memory: walk.memory,
    })
}

fn kept_values(schema: &Value) -> u64 {
    1 + match schema {
        Value::Array(items) => items.iter().map(kept_values).sum(),
        Value::Object(members) => members.values().map(kept_values).sum::<u64>(),
        _ => 0,
    }
}

/// Keywords whose value is a map from names to schemas.
const NAMED: [&str; 6] = [
    "properties",
    "patternProperties",
    "dependentSchemas",
    "dependencies",
    "$defs",
    "definitions",
];
/// Keywords whose value is data, whatever it looks like.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];

/// Why a keyword is never taken, if it is so.
fn forbidden(keyword: &str, value: &Value, is_root: bool) -> Option<&'static str> {
    match (keyword, value) {
        ("$ref", Value::String(target)) if target != "#" && !target.starts_with("#/") => {
            Some("A `$ref` must be a JSON pointer within the same schema, `#/…`.")
        }
        // One spelling for each place.
        ("$ref", Value::String(target)) if target.contains('%') => {
            Some("A `$ref` may not be percent-encoded.")
        }
        ("$dynamicRef" | "$recursiveRef", _) => Some("Only `$ref` is taken for references."),
        ("$id", Value::String(_)) if !is_root => Some("Only the whole schema may have an `$id`."),
        // Another dialect may resolve references in another way.
        ("$schema", Value::String(_)) if !is_root => {
            Some("Only the whole schema may have a `$schema`.")
        }
        _ => None,
    }
}

/// Looks for what is never taken, wherever it stands.
#[derive(Default)]
struct Scan {
    faults: Vec<FieldError>,
    patterns: usize,
}

impl Scan {
    fn schema(&mut self, pointer: &str, schema: &Value) {
        match schema {
            Value::Object(members) => self.members(pointer, members),
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.schema(&format!("{pointer}/{at}"), item);
                }
            }
            _ => {}
        }
    }

    fn members(&mut self, pointer: &str, members: &Map<String, Value>) {
        for (keyword, value) in members {
            let at = child(pointer, keyword);
            if let Some(detail) = forbidden(keyword, value, pointer.is_empty()) {
                if self.faults.len() < FAULTS_MAX {
                    self.faults
                        .push(FieldError::new(at, FaultCode::NotAllowed, detail));
                }
                continue;
            }
            match (keyword.as_str(), value) {
                ("pattern", Value::String(_)) => self.patterns += 1,
                (data, _) if DATA.contains(&data) => {}
                (named, Value::Object(schemas)) if NAMED.contains(&named) => {
                    if named == "patternProperties" {
                        self.patterns += schemas.len();
                    }
                    for (name, schema) in schemas {
                        self.schema(&child(&at, name), schema);
                    }
                }
                (_, value) => self.schema(&at, value),
            }
        }
    }
}

/// Adds up what is evaluated, each reference replaced by what it refers to.
struct Walk<'a> {
    root: &'a Value,
    limits: Limits,
    /// Parts by their address; `None` while one is being added up.
    known: HashMap<usize, Option<Part>>,
    patterns: HashMap<&'a str, PatternCost>,
    memory: u64,
    /// Steps of marking in all places that mark. Of each the library keeps a copy there.
    marked: u64,
}

impl<'a> Walk<'a> {
    fn schema(
        &mut self,
        pointer: &str,
        schema: &'a Value,
        depth: usize,
    ) -> Result<Part, FieldError> {
        let Value::Object(members) = schema else {
            let mut part = Part::default();
            part.steps(Steps::values(1));
            return Ok(part);
        };
        let address = std::ptr::from_ref(schema).addr();
        match self.known.get(&address) {
            Some(Some(part)) => return Ok(*part),
            Some(None) => {
                let detail = "A schema may not contain itself.";
                return Err(FieldError::new(pointer, FaultCode::NotAllowed, detail));
            }
            None => {}
        }
        if depth > DEEP_MAX {
            let detail = format!("A schema may be at most {DEEP_MAX} levels deep.");
            return Err(FieldError::new(pointer, FaultCode::TooLong, detail));
        }
        self.known.insert(address, None);
        let part = self.members(pointer, members, depth)?;
        self.known.insert(address, Some(part));
        Ok(part)
    }

    fn members(
        &mut self,
        pointer: &str,
        members: &'a Map<String, Value>,
        depth: usize,
    ) -> Result<Part, FieldError> {
        let mut whole = Part::default();
        whole.steps(Steps::values(1));
        whole.mark += Steps::values(4);
        // What looks at all that the rest has left unmarked.
        let mut left = Vec::new();
        for (keyword, value) in members {
            let at = child(pointer, keyword);
            if let Some(detail) = forbidden(keyword, value, pointer.is_empty()) {
                return Err(FieldError::new(at, FaultCode::NotAllowed, detail));
            }
            self.grow(&at, KEYWORD_BYTES + PLACES * at.len() as u64)?;
            let place = match keyword.as_str() {
                "unevaluatedProperties" | "unevaluatedItems" => {
                    let part = self.schema(&at, value, depth + 1)?;
                    left.push((at, part));
                    part.place
                }
                name => self.keyword(&mut whole, (&at, name, value), depth)?,
            };
            whole.place = whole.place.max(keyword.len() as u64 + 1 + place);
            self.check_limits(pointer, whole.check)?;
        }
        // Once to mark what it takes itself, and once to judge what is left.
        for (_, part) in &left {
            whole.mark += part.check;
        }
        for (at, part) in left {
            let again = whole.mark + part.check;
            whole.check += again;
            whole.explain += again + again;
            self.check_limits(&at, whole.check)?;
            self.marked = self.marked.saturating_add(whole.mark.value);
        }
        Ok(whole)
    }

    /// Adds what a keyword costs. Answers its longest place below itself.
    #[expect(clippy::too_many_lines, reason = "an arm a keyword")]
    fn keyword(
        &mut self,
        whole: &mut Part,
        (at, keyword, value): (&str, &str, &'a Value),
        depth: usize,
    ) -> Result<u64, FieldError> {
        let mut place = 0;
        match (keyword, value) {
            ("$ref", Value::String(target)) => {
                let part = self.referred(at, target, depth)?;
                whole.takes(part);
                place = part.place;
            }
            // They count where they are referred to.
            ("$defs" | "definitions", _) => {}
            ("enum" | "required", Value::Array(items)) => {
                whole.steps(Steps::values(items.len() as u64));
            }
            ("dependentRequired", Value::Object(lists)) => {
                let names = lists.values().filter_map(Value::as_array).map(Vec::len);
                whole.steps(Steps::values((lists.len() + names.sum::<usize>()) as u64));
            }
            ("patternProperties", Value::Object(schemas)) => {
                place = self.by_pattern(whole, at, schemas, depth)?;
            }
            ("properties" | "dependencies" | "dependentSchemas", Value::Object(schemas)) => {
                place = self.by_name(whole, (at, keyword, schemas), depth)?;
            }
            ("allOf" | "anyOf" | "oneOf", Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    let part = self.schema(&format!("{at}/{index}"), schema, depth + 1)?;
                    whole.takes(part);
                    // Only of those that fit is anything marked.
                    whole.mark += part.check;
                    if keyword != "allOf" {
                        whole.explain += part.check + part.check;
                    }
                    place = place.max(8 + part.place);
                }
            }
            ("if" | "contains" | "not", schema) => {
                let part = self.schema(at, schema, depth + 1)?;
                whole.check += part.check;
                whole.explain += part.check + part.check;
                if keyword == "if" {
                    whole.mark += part.check + part.mark;
                } else if keyword == "contains" {
                    whole.mark += part.check;
                }
                place = part.place;
            }
            ("then" | "else", schema) => {
                let part = self.schema(at, schema, depth + 1)?;
                whole.takes(part);
                place = part.place;
            }
            ("items" | "prefixItems", Value::Array(schemas)) => {
                for (index, schema) in schemas.iter().enumerate() {
                    let part = self.schema(&format!("{at}/{index}"), schema, depth + 1)?;
                    whole.takes_below(part);
                    place = place.max(8 + part.place);
                }
            }
            (
                "additionalItems"
                | "additionalProperties"
                | "items"
                | "propertyNames"
                | "contentSchema",
                schema,
            ) => {
                let part = self.schema(at, schema, depth + 1)?;
                whole.takes_below(part);
                place = part.place;
            }
            _ => {
                let own = self.own_steps((at, keyword, value))?;
                whole.steps(Steps::values(1) + own);
            }
        }
        Ok(place)
    }

    /// Adds what schemas for the members with certain names cost.
    fn by_name(
        &mut self,
        whole: &mut Part,
        (at, keyword, schemas): (&str, &str, &'a Map<String, Value>),
        depth: usize,
    ) -> Result<u64, FieldError> {
        let mut place = 0;
        for (name, schema) in schemas {
            let part = match schema {
                Value::Array(names) => {
                    let mut part = Part::default();
                    part.steps(Steps::values(1 + names.len() as u64));
                    part
                }
                schema => self.schema(&child(at, name), schema, depth + 1)?,
            };
            if keyword == "dependentSchemas" {
                whole.takes(part);
            } else {
                whole.takes_below(part);
            }
            place = place.max(name.len() as u64 + 1 + part.place);
        }
        Ok(place)
    }

    /// The same for members whose names match.
    fn by_pattern(
        &mut self,
        whole: &mut Part,
        at: &str,
        schemas: &'a Map<String, Value>,
        depth: usize,
    ) -> Result<u64, FieldError> {
        let mut place = 0;
        for (name, schema) in schemas {
            let at = child(at, name);
            let matched = self.pattern(&at, name)?;
            // Once for itself, and once for what takes the other members.
            whole.steps(matched + matched);
            whole.mark += matched;
            let part = self.schema(&at, schema, depth + 1)?;
            whole.takes_below(part);
            place = place.max(name.len() as u64 + 1 + part.place);
        }
        Ok(place)
    }

    /// Steps of a keyword that has no schemas, beyond the first.
    fn own_steps(
        &mut self,
        (at, keyword, value): (&str, &str, &'a Value),
    ) -> Result<Steps, FieldError> {
        Ok(match (keyword, value) {
            ("pattern", Value::String(pattern)) => self.pattern(at, pattern)?,
            ("format", Value::String(format)) if format == "regex" => Steps::bytes(8),
            ("format", _) => Steps::bytes(1),
            ("contentMediaType" | "contentEncoding", _) => Steps::bytes(4),
            ("uniqueItems", _) => Steps { value: 4, byte: 1 },
            _ => Steps::default(),
        })
    }

    fn pattern(&mut self, at: &str, pattern: &'a str) -> Result<Steps, FieldError> {
        if let Some(known) = self.patterns.get(pattern) {
            return Ok(Steps::bytes(known.steps));
        }
        let refused = |(code, detail): pattern::Refusal| FieldError::new(at, code, detail);
        let cost = pattern::cost_of(pattern).map_err(refused)?;
        if cost.steps > self.limits.byte {
            let detail = "Matching the pattern takes too long: it has too many states, and no \
                small automaton decides it. Shorten its repetitions.";
            return Err(FieldError::new(at, FaultCode::TooLong, detail));
        }
        if self.patterns.len() >= PATTERNS_MAX {
            let detail = format!("A schema may have at most {PATTERNS_MAX} patterns.");
            return Err(FieldError::new(at, FaultCode::TooLong, detail));
        }
        self.grow(at, cost.bytes)?;
        self.patterns.insert(pattern, cost);
        Ok(Steps::bytes(cost.steps))
    }

    fn referred(&mut self, at: &str, target: &str, depth: usize) -> Result<Part, FieldError> {
        let pointer = target.strip_prefix('#').unwrap_or(target);
        let root = self.root;
        let schema = root.pointer(pointer).ok_or_else(|| {
            let detail = "The `$ref` leads to nothing within the schema.";
            FieldError::new(at, FaultCode::Invalid, detail)
        })?;
        // The fault is told where the reference stands, which may be one of several.
        self.schema(pointer, schema, depth + 1)
            .map_err(|fault| FieldError {
                pointer: at.to_owned(),
                ..fault
            })
    }

    /// Memory of the copies that marking keeps.
    fn marked_bytes(&self, longest_place: u64) -> u64 {
        let each = KEYWORD_BYTES.saturating_add(longest_place.saturating_mul(PLACES));
        self.marked.saturating_mul(each)
    }

    fn grow(&mut self, at: &str, bytes: u64) -> Result<(), FieldError> {
        self.memory = self.memory.saturating_add(bytes);
        if self.memory > self.limits.memory {
            let detail = format!(
                "Up to here, the schema takes more than {} bytes once it is compiled: its parts, \
                 their places and its patterns together.",
                self.limits.memory
            );
            return Err(FieldError::new(at, FaultCode::TooLong, detail));
        }
        Ok(())
    }

    fn check_limits(&self, pointer: &str, check: Steps) -> Result<(), FieldError> {
        let limits = self.limits;
        let (most, of) = if check.value > limits.value {
            (limits.value, "value")
        } else if check.byte > limits.byte {
            (limits.byte, "byte")
        } else {
            return Ok(());
        };
        let here = if pointer.is_empty() { "/" } else { pointer };
        let detail = format!(
            "A check takes more than {most} steps for each {of} of a payload at `{here}`: \
             references resolved, and what `unevaluated…` looks at again counted again."
        );
        Err(FieldError::new(pointer, FaultCode::TooLong, detail))
    }
}

#[cfg(test)]
mod tests;
