//! Strict JSON: UTF-8, limited depth, no repeated member names (RFC 8259 §4, I-JSON RFC 7493 §2.3).
//!
//! A body becomes a tree of values, since the contract judges it. What in it is callers' own JSON
//! does not: it is checked by the same rules and stays the text that it is. In the tree its place
//! is taken by that text, as a string, which the contract takes as it takes anything there.

use std::{borrow::Cow, cell::RefCell, collections::HashSet, fmt};

use serde::{
    Deserialize as _,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value, value::RawValue};

use domain::{
    Code, FaultCode, FieldError, Problem,
    limits::{BODY_VALUES, JSON_DEPTH},
};

use crate::contract::{FAULTS_MAX, child};

/// Which parts of a body are callers' own JSON.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// None.
    Tree,
    /// This one.
    Text,
    /// This one, an object of which the contract judges the members themselves: which there are,
    /// and those that are no lists or objects.
    Object,
    /// Some of what these members hold.
    Members(&'static [(&'static str, Self)]),
    /// Some of what the items hold.
    Items(&'static Self),
}

/// The bodies with callers' own JSON, by the names of their schemas.
pub(crate) const SHAPES: [(&str, Shape); 6] = [
    ("NewRunBody", Shape::Members(&[("input", Shape::Text)])),
    ("CompleteBody", Shape::Members(&[("output", Shape::Text)])),
    ("FailBody", Shape::Members(&[("error", Shape::Object)])),
    (
        "HeartbeatBody",
        Shape::Members(&[("progress", Shape::Text)]),
    ),
    (
        "EventTypeDescription",
        Shape::Members(&[("example", Shape::Text)]),
    ),
    (
        "Publish",
        Shape::Members(&[
            ("data", Shape::Text),
            (
                "events",
                Shape::Items(&Shape::Members(&[("data", Shape::Text)])),
            ),
        ]),
    ),
];

/// What is callers' own JSON in a body of the schema called `name`.
pub(crate) fn shape_of(name: &str) -> &'static Shape {
    let found = SHAPES.iter().find(|(of, _)| *of == name);
    found.map_or(&Shape::Tree, |(_, shape)| shape)
}

/// A body that was parsed.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// What the contract judges.
    pub(crate) tree: Value,
    /// Members whose text takes the place of what the contract judged.
    texts: Vec<(String, String)>,
    /// The characters that can't be stored, in what is no part of the tree.
    pub(crate) faults: Vec<FieldError>,
}

impl Parsed {
    /// What the operation's own types are made of, once the contract has judged.
    pub(crate) fn into_value(mut self) -> Value {
        for (name, text) in self.texts {
            self.tree[name.as_str()] = Value::String(text);
        }
        self.tree
    }
}

/// Parses one JSON value.
///
/// # Errors
/// `malformed_json` with line and column; `validation_failed` for too many values.
pub(crate) fn parse(bytes: &[u8], shape: &'static Shape) -> Result<Parsed, Problem> {
    read(bytes, shape, BODY_VALUES)
}

/// Parses the operator's own file, which has as many values as it has room for.
///
/// # Errors
/// `malformed_json` with line and column.
pub fn parse_file(bytes: &[u8]) -> Result<Value, Problem> {
    read(bytes, &Shape::Tree, usize::MAX).map(|parsed| parsed.tree)
}

fn read(bytes: &[u8], shape: &'static Shape, values_max: usize) -> Result<Parsed, Problem> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        Problem::new(
            Code::MalformedJson,
            format!(
                "The body is not UTF-8, from byte {} on.",
                error.valid_up_to()
            ),
        )
    })?;
    let state = RefCell::new(State {
        text,
        left: values_max,
        problem: None,
        texts: Vec::new(),
        faults: Vec::new(),
    });
    let place = Place {
        shape,
        depth: 0,
        pointer: String::new(),
        state: &state,
    };
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = place
        .deserialize(&mut reader)
        .and_then(|tree| reader.end().map(|()| tree));
    let state = state.into_inner();
    match read {
        Ok(tree) => Ok(Parsed {
            tree,
            texts: state.texts,
            faults: state.faults,
        }),
        Err(error) => Err(state
            .problem
            .unwrap_or_else(|| malformed(&error, (error.line(), error.column())))),
    }
}

fn malformed(error: &serde_json::Error, (line, column): (usize, usize)) -> Problem {
    // serde_json's syntax messages are fixed sentences and never quote the input.
    let full = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let reason = full.strip_suffix(&place).unwrap_or(&full);
    Problem::new(
        Code::MalformedJson,
        format!("Line {line}, column {column}: {reason}."),
    )
}

/// What all places of a body share.
struct State<'a> {
    /// The whole body.
    text: &'a str,
    /// How many more values the tree may have.
    left: usize,
    /// What is to be answered, where that is not what the reader says.
    problem: Option<Problem>,
    texts: Vec<(String, String)>,
    faults: Vec<FieldError>,
}

impl State<'_> {
    fn count<E: de::Error>(&mut self) -> Result<(), E> {
        if self.left == 0 {
            let detail = format!(
                "The body may have at most {BODY_VALUES} values, beside those that are carried as \
                 they are."
            );
            self.problem = Some(Problem::field("", FaultCode::TooManyValues, detail));
            return Err(E::custom("too many values"));
        }
        self.left -= 1;
        Ok(())
    }

    /// Checks a part that stays text.
    fn check<E: de::Error>(&mut self, part: &str, depth: usize, pointer: &str) -> Result<(), E> {
        match check(part, depth) {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.faults.extend(nul_faults_of(part, pointer));
                Ok(())
            }
            Err(error) => {
                let before = &self.text[..part.as_ptr().addr() - self.text.as_ptr().addr()];
                let (lines, last) = match before.rfind('\n') {
                    Some(at) => (before.matches('\n').count(), at + 1),
                    None => (0, 0),
                };
                let first = error.line() <= 1;
                let column = error.column() + if first { before.len() - last } else { 0 };
                self.problem = Some(malformed(&error, (lines + error.line().max(1), column)));
                Err(E::custom("refused"))
            }
        }
    }
}

fn deeper<E: de::Error>(depth: usize) -> Result<usize, E> {
    if depth == JSON_DEPTH {
        return Err(E::custom(format_args!(
            "nested more than {JSON_DEPTH} levels deep"
        )));
    }
    Ok(depth + 1)
}

fn repeated<E: de::Error>() -> E {
    E::custom("a member name stands twice in one object")
}

/// A place in a body that becomes a part of its tree.
struct Place<'s, 'a> {
    shape: &'static Shape,
    depth: usize,
    /// Where it is; kept only on the way to callers' own JSON.
    pointer: String,
    state: &'s RefCell<State<'a>>,
}

impl Place<'_, '_> {
    fn inner(&self, shape: &'static Shape, depth: usize, step: &dyn fmt::Display) -> Self {
        let pointer = match shape {
            Shape::Tree => String::new(),
            _ => format!("{}/{step}", self.pointer),
        };
        Place {
            shape,
            depth,
            pointer,
            state: self.state,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Place<'_, '_> {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.state.borrow_mut().count()?;
        if !matches!(self.shape, Shape::Text | Shape::Object) {
            return reader.deserialize_any(self);
        }
        let part = <&RawValue>::deserialize(reader)?.get();
        let mut state = self.state.borrow_mut();
        state.check(part, self.depth, &self.pointer)?;
        if *self.shape == Shape::Object && part.starts_with('{') {
            let name = self.pointer.trim_start_matches('/').to_owned();
            state.texts.push((name, part.to_owned()));
            return outline(part, &mut state);
        }
        Ok(match part {
            // What is nothing to an optional member.
            "null" => Value::Null,
            _ if *self.shape == Shape::Object => summary(part),
            _ => Value::String(part.to_owned()),
        })
    }
}

/// An object without what is in its lists and objects.
fn outline<E: de::Error>(object: &str, state: &mut State<'_>) -> Result<Value, E> {
    struct Members<'s, 'a>(&'s mut State<'a>);

    impl<'de> Visitor<'de> for Members<'_, '_> {
        type Value = Map<String, Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
            let mut out = Map::new();
            while let Some((name, value)) = members.next_entry::<String, &RawValue>()? {
                self.0.count()?;
                out.insert(name, summary(value.get()));
            }
            Ok(out)
        }
    }

    let mut reader = serde_json::Deserializer::from_str(object);
    let members = de::Deserializer::deserialize_map(&mut reader, Members(state));
    members.map(Value::Object).map_err(E::custom)
}

/// A value by itself, without what is in it.
fn summary(text: &str) -> Value {
    match text.as_bytes().first() {
        Some(b'{') => Value::Object(Map::new()),
        Some(b'[') => Value::Array(Vec::new()),
        _ => serde_json::from_str(text).unwrap_or_default(),
    }
}

impl<'de> Visitor<'de> for Place<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = deeper(self.depth)?;
        let shape = match self.shape {
            Shape::Items(shape) => *shape,
            _ => &Shape::Tree,
        };
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(self.inner(shape, depth, &out.len()))? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let depth = deeper(self.depth)?;
        let shapes = match self.shape {
            Shape::Members(shapes) => *shapes,
            _ => &[],
        };
        let mut out = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if out.contains_key(&name) {
                return Err(repeated());
            }
            let shape = shapes.iter().find(|(of, _)| *of == name);
            let shape = shape.map_or(&Shape::Tree, |(_, shape)| shape);
            let value = members.next_value_seed(self.inner(shape, depth, &name))?;
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}

/// Checks JSON that stays text, at a depth of the body: answers whether it holds a NUL.
fn check(text: &str, depth: usize) -> Result<bool, serde_json::Error> {
    let mut nul = false;
    let mut reader = serde_json::Deserializer::from_str(text);
    let check = Check {
        depth,
        nul: &mut |_| nul = true,
        pointer: None,
    };
    check.deserialize(&mut reader)?;
    reader.end()?;
    Ok(nul)
}

/// A fault for each string or member name with a NUL in it, in JSON that was checked.
fn nul_faults_of(text: &str, pointer: &str) -> Vec<FieldError> {
    let mut faults = Vec::new();
    let mut reader = serde_json::Deserializer::from_str(text);
    let mut pointer = pointer.to_owned();
    let check = Check {
        depth: 0,
        nul: &mut |found| {
            if faults.len() < FAULTS_MAX {
                faults.push(found.fault());
            }
        },
        pointer: Some(&mut pointer),
    };
    // It was checked: only for what it tells of NUL is it looked at again.
    let _ = check.deserialize(&mut reader);
    faults
}

/// Where a NUL is.
struct Nul<'p> {
    pointer: &'p str,
    in_name: bool,
}

impl Nul<'_> {
    fn fault(&self) -> FieldError {
        let detail = if self.in_name { NUL_IN_NAME } else { NUL };
        FieldError::new(self.pointer, FaultCode::Invalid, detail)
    }
}

/// A value that is looked at and not kept.
struct Check<'c> {
    depth: usize,
    nul: &'c mut dyn FnMut(&Nul<'_>),
    /// Where it is, if that matters.
    pointer: Option<&'c mut String>,
}

impl Check<'_> {
    fn text(&mut self, text: &str, in_name: bool) {
        if text.contains('\0') {
            let pointer = self.pointer.as_ref().map_or("", |pointer| pointer.as_str());
            (self.nul)(&Nul { pointer, in_name });
        }
    }

    /// What is within, one step further on.
    fn inner(&mut self, depth: usize, step: impl fmt::Display) -> Check<'_> {
        if let Some(pointer) = &mut self.pointer {
            pointer.push('/');
            pointer.push_str(&step.to_string());
        }
        Check {
            depth,
            nul: &mut *self.nul,
            pointer: self.pointer.as_deref_mut(),
        }
    }

    fn length(&self) -> usize {
        self.pointer.as_ref().map_or(0, |pointer| pointer.len())
    }

    fn back_to(&mut self, length: usize) {
        if let Some(pointer) = &mut self.pointer {
            pointer.truncate(length);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Check<'_> {
    type Value = ();

    fn deserialize<D: de::Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Check<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        if value.is_finite() {
            Ok(())
        } else {
            Err(E::custom("number out of range"))
        }
    }

    fn visit_str<E>(mut self, value: &str) -> Result<(), E> {
        self.text(value, false);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let depth = deeper(self.depth)?;
        let (length, mut at) = (self.length(), 0_usize);
        while items.next_element_seed(self.inner(depth, at))?.is_some() {
            self.back_to(length);
            at += 1;
        }
        self.back_to(length);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let depth = deeper(self.depth)?;
        let length = self.length();
        let mut names = Names::default();
        while let Some(Name(name)) = members.next_key()? {
            self.text(&name, true);
            let step = if self.pointer.is_some() {
                child("", &name).split_off(1)
            } else {
                String::new()
            };
            if !names.insert(name) {
                return Err(repeated());
            }
            members.next_value_seed(self.inner(depth, step))?;
            self.back_to(length);
        }
        Ok(())
    }
}

/// A member's name, as a part of the text where it can be.
struct Name<'de>(Cow<'de, str>);

impl<'de> de::Deserialize<'de> for Name<'de> {
    fn deserialize<D: de::Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        struct Text;

        impl<'de> Visitor<'de> for Text {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a member name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }

        reader.deserialize_str(Text)
    }
}

/// The names of an object's members so far.
#[derive(Default)]
struct Names<'de> {
    few: Vec<Cow<'de, str>>,
    many: HashSet<Cow<'de, str>>,
}

impl<'de> Names<'de> {
    /// So many are looked through one by one.
    const FEW: usize = 16;

    /// Whether it was not there.
    fn insert(&mut self, name: Cow<'de, str>) -> bool {
        if self.few.len() < Self::FEW {
            let new = !self.few.contains(&name);
            self.few.push(name);
            return new;
        }
        if self.many.is_empty() {
            self.many.extend(self.few.iter().cloned());
        }
        self.many.insert(name)
    }
}

const NUL: &str = "The character U+0000 can't be stored.";
const NUL_IN_NAME: &str = "A member name holds U+0000, which can't be stored.";

/// Adds a fault for each string or member name with a NUL in it: PostgreSQL can't store one.
pub fn nul_faults(value: &Value, faults: &mut Vec<FieldError>) {
    if holds_nul(value) {
        collect_nul("", value, faults);
    }
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(members) => members
            .iter()
            .any(|(name, member)| name.contains('\0') || holds_nul(member)),
        _ => false,
    }
}

fn collect_nul(pointer: &str, value: &Value, faults: &mut Vec<FieldError>) {
    if faults.len() >= FAULTS_MAX {
        return;
    }
    match value {
        Value::String(text) if text.contains('\0') => {
            faults.push(FieldError::new(pointer, FaultCode::Invalid, NUL));
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if holds_nul(item) {
                    collect_nul(&format!("{pointer}/{index}"), item, faults);
                }
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                if name.contains('\0') {
                    faults.push(FieldError::new(pointer, FaultCode::Invalid, NUL_IN_NAME));
                } else {
                    collect_nul(&child(pointer, name), member, faults);
                }
            }
        }
        _ => {}
    }
}

/// Whether any number is written as a fraction without being one, such as `1.0` or `1e3`.
pub fn has_whole_floats(value: &Value) -> bool {
    match value {
        Value::Number(number) => whole(number).is_some(),
        Value::Array(items) => items.iter().any(has_whole_floats),
        Value::Object(members) => members.values().any(has_whole_floats),
        _ => false,
    }
}

/// The same value with such numbers as integers.
#[must_use]
pub fn with_whole_numbers(mut value: Value) -> Value {
    fn rewrite(value: &mut Value) {
        match value {
            Value::Number(number) => {
                if let Some(integer) = whole(number) {
                    *number = integer.into();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(rewrite),
            Value::Object(members) => members.values_mut().for_each(rewrite),
            _ => {}
        }
    }
    rewrite(&mut value);
    value
}

fn whole(number: &Number) -> Option<i64> {
    /// Integers up to here are exact as a 64-bit float (RFC 8259 §6).
    const EXACT: f64 = 9_007_199_254_740_991.0;
    let float = number.is_f64().then(|| number.as_f64())??;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked to be whole and within ±2^53"
    )]
    (float.fract() == 0.0 && float.abs() <= EXACT).then_some(float as i64)
}

#[cfg(test)]
mod tests;
