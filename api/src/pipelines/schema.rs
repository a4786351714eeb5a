//! JSON Schemas of publishers: of a pipeline, obeyed by runs, and of a type of events, obeyed by
//! what is published. They are checked when they are registered.
//!
//! They come from strangers and are evaluated on a shared machine, so everything that makes an
//! evaluation expensive has a limit: size, patterns (linear ones only), references (local ones
//! only, never in a circle) and the product of schema and payload. Nothing is ever fetched.

use std::{collections::HashMap, sync::Arc};

use jsonschema::{Draft, PatternOptions, Validator};
use moka::sync::Cache;
use serde_json::{Map, Value};

use domain::{
    Code, FieldError, JsonText, Problem,
    id::{Id as _, PipelineId},
    limits::{PAYLOAD_BYTES, PAYLOAD_VALUES},
};
use persistence::TypeSchema;
use uuid::Uuid;

use crate::contract::{self, FAULTS_MAX, child};

/// Largest schema, bytes of JSON.
pub(crate) const SCHEMA_BYTES: usize = 64 * 1024;
/// Most parts of a schema once each reference is replaced by what it refers to.
const PARTS_MAX: u64 = 4_000;
/// Deepest nesting of the same.
const PARTS_DEEP_MAX: usize = 96;
/// Most patterns of a schema.
const PATTERNS_MAX: usize = 32;
/// Largest compiled pattern, bytes.
const PATTERN_BYTES: usize = 512 * 1024;
/// Most work (parts of the schema × size of the payload) that one check may be.
const WORK_MAX: u64 = 20_000_000;
/// Above this a check leaves the threads that answer requests.
const WORK_INLINE_MAX: u64 = 500_000;
/// Up to this every fault is looked for; above, the answer only says that there are some.
const WORK_EXPLAINED_MAX: u64 = 200_000;
/// Memory for compiled schemas, bytes, estimated.
const CACHE_BYTES: u64 = 64 * 1024 * 1024;

/// Keywords whose value is a map from names to schemas.
const NAMED: [&str; 6] = [
    "properties",
    "patternProperties",
    "dependentSchemas",
    "dependencies",
    "$defs",
    "definitions",
];
/// Keywords whose value is a schema, or a list of them.
const APPLIED: [&str; 16] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "contentSchema",
];
/// Keywords whose value is data, whatever it looks like.
const DATA: [&str; 4] = ["const", "default", "enum", "examples"];

/// What a schema judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// What a run begins with.
    Input,
    /// What it ends with.
    Output,
    /// What an event tells.
    Data,
}

impl Side {
    /// The member of a request that the schema judges.
    const fn member(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Data => "data",
        }
    }

    /// Whose schema it is, for messages.
    const fn owner(self) -> &'static str {
        match self {
            Self::Input | Self::Output => "the pipeline's schema",
            Self::Data => "the event type's schema",
        }
    }
}

/// A schema that passed [`compile`].
pub(crate) struct Compiled {
    validator: Validator,
    parts: u64,
    bytes: u64,
}

/// A schema: of which pipeline or type, in which version, and which of its schemas.
type Key = (Uuid, i64, Side);

/// An event's data, and the schema that judges it, if there is one.
pub(crate) struct Item {
    /// Where the event stands in its request: empty, or `/events/3`.
    pub(crate) pointer: String,
    pub(crate) schema: Option<TypeSchema>,
    pub(crate) data: JsonText,
}

/// Compiled schemas by version, which never changes.
#[derive(Clone)]
pub(crate) struct Schemas(Cache<Key, Arc<Compiled>>);

impl Schemas {
    pub(crate) fn new() -> Self {
        let weight =
            |_: &_, schema: &Arc<Compiled>| u32::try_from(schema.bytes).unwrap_or(u32::MAX);
        Self(
            Cache::builder()
                .max_capacity(CACHE_BYTES)
                .weigher(weight)
                .build(),
        )
    }

    /// Judges a run's input or output. Hands the payload back, with what is to be said of it:
    /// `validation_failed` with pointers under `/input` or `/output`.
    pub(crate) async fn check(
        &self,
        version: (PipelineId, i64),
        side: Side,
        schema: Option<&Value>,
        payload: JsonText,
    ) -> (JsonText, Result<(), Problem>) {
        let (job, tree) = match self.job(version, side, schema, &payload) {
            Ok(Some(job)) => job,
            Ok(None) => return (payload, Ok(())),
            Err(problem) => return (payload, Err(problem)),
        };
        if job.work <= WORK_INLINE_MAX {
            return (payload, job.run(&tree));
        }
        let done = tokio::task::spawn_blocking(move || job.run(&tree));
        let verdict = done.await.unwrap_or_else(|_| Err(Code::Internal.into()));
        (payload, verdict)
    }

    /// The same at once, on the thread that asks: for the rare case that a pipeline changed since
    /// [`Schemas::check`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn check_now(
        &self,
        version: (PipelineId, i64),
        side: Side,
        schema: Option<&Value>,
        payload: &JsonText,
    ) -> Result<(), Problem> {
        match self.job(version, side, schema, payload)? {
            Some((job, tree)) => job.run(&tree),
            None => Ok(()),
        }
    }

    /// Judges the data of all events of a request, each where it stands, and hands them back. All
    /// checks together have the limits of one.
    pub(crate) async fn check_all(&self, items: Vec<Item>) -> Result<Vec<JsonText>, Problem> {
        let (mut faults, mut texts, mut jobs) = (Vec::new(), Vec::new(), Vec::new());
        let mut work = 0;
        for item in items {
            let bytes = item.data.as_str().len();
            if bytes > PAYLOAD_BYTES {
                faults.push(placed(&item.pointer, too_long("data")));
            } else if let Some(schema) = &item.schema {
                let key = (schema.id, schema.revision, Side::Data);
                let tree = match tree_of("data", &item.data) {
                    Ok(tree) => tree,
                    Err(fault) => {
                        faults.push(placed(&item.pointer, fault));
                        continue;
                    }
                };
                let job = self.prepared(key, &schema.schema, bytes, &tree)?;
                work += job.work;
                jobs.push((job, item.pointer, tree));
            }
            texts.push(item.data);
        }
        if work > WORK_MAX {
            let detail = "The events and their schemas are together too large to check.";
            let pointer = if texts.len() > 1 { "/events" } else { "/data" };
            faults.push(FieldError::new(pointer, "too_large", detail));
        } else if work > WORK_INLINE_MAX {
            let judged = tokio::task::spawn_blocking(move || judge_all(&jobs)).await;
            faults.extend(judged.map_err(|_| Problem::from(Code::Internal))?);
        } else {
            faults.extend(judge_all(&jobs));
        }
        if faults.is_empty() {
            return Ok(texts);
        }
        faults.truncate(FAULTS_MAX);
        Err(Problem::invalid(faults))
    }

    /// What is to be done to judge a payload, and the payload as a tree; nothing without a schema.
    fn job(
        &self,
        version: (PipelineId, i64),
        side: Side,
        schema: Option<&Value>,
        payload: &JsonText,
    ) -> Result<Option<(Job, Value)>, Problem> {
        let bytes = payload_bytes(side.member(), payload)?;
        let Some(schema) = schema else {
            return Ok(None);
        };
        let key = (version.0.uuid(), version.1, side);
        let tree =
            tree_of(side.member(), payload).map_err(|fault| Problem::invalid(vec![fault]))?;
        let job = self.prepared(key, schema, bytes, &tree)?;
        Ok(Some((job, tree)))
    }

    fn prepared(
        &self,
        key: Key,
        schema: &Value,
        bytes: usize,
        payload: &Value,
    ) -> Result<Job, Problem> {
        let compiled = match self.0.get(&key) {
            Some(known) => known,
            None => self.keep(key, schema)?,
        };
        let work = compiled.parts * (nodes(payload) + bytes as u64 / 16);
        Ok(Job {
            compiled,
            side: key.2,
            work,
        })
    }

    fn keep(&self, key: Key, schema: &Value) -> Result<Arc<Compiled>, Problem> {
        let fresh = compile(schema).map_err(|faults| {
            let fault = faults.first().map(|fault| fault.detail.as_str());
            tracing::error!(?key, fault, "a stored schema does not compile");
            Problem::from(Code::Internal)
        })?;
        let fresh = Arc::new(fresh);
        self.0.insert(key, Arc::clone(&fresh));
        Ok(fresh)
    }
}

/// The size of a payload as JSON, which has a limit.
///
/// # Errors
/// `validation_failed` at the request's `member`.
pub(crate) fn payload_bytes(member: &str, payload: &JsonText) -> Result<usize, Problem> {
    let bytes = payload.as_str().len();
    if bytes > PAYLOAD_BYTES {
        return Err(Problem::invalid(vec![too_long(member)]));
    }
    Ok(bytes)
}

/// A payload as a tree, to be judged: one of too many values would take too much room.
fn tree_of(member: &str, payload: &JsonText) -> Result<Value, FieldError> {
    if payload.values() > PAYLOAD_VALUES {
        let detail = format!(
            "`{member}` may have at most {PAYLOAD_VALUES} values where a schema judges it."
        );
        return Err(FieldError::new(
            format!("/{member}"),
            "too_many_values",
            detail,
        ));
    }
    Ok(payload.to_tree())
}

fn too_long(member: &str) -> FieldError {
    let detail = format!("`{member}` may have at most {PAYLOAD_BYTES} bytes of JSON.");
    FieldError::new(format!("/{member}"), "too_long", detail)
}

/// The faults of several payloads, each with the pointer of its event.
fn judge_all(jobs: &[(Job, String, Value)]) -> Vec<FieldError> {
    let mut faults = Vec::new();
    for (job, pointer, data) in jobs {
        if faults.len() >= FAULTS_MAX {
            break;
        }
        if let Err(problem) = job.run(data) {
            let found = problem.errors.into_iter();
            faults.extend(found.map(|fault| placed(pointer, fault)));
        }
    }
    faults
}

/// Moves a fault of an event to where the event stands in its request.
fn placed(pointer: &str, fault: FieldError) -> FieldError {
    if pointer.is_empty() {
        return fault;
    }
    let words = pointer.trim_start_matches('/').replace('/', ".");
    FieldError {
        pointer: format!("{pointer}{}", fault.pointer),
        code: fault.code,
        detail: fault.detail.replacen('`', &format!("`{words}."), 1),
    }
}

/// One payload to judge by one schema.
struct Job {
    compiled: Arc<Compiled>,
    side: Side,
    work: u64,
}

impl Job {
    fn run(&self, payload: &Value) -> Result<(), Problem> {
        let member = self.side.member();
        let pointer = format!("/{member}");
        if self.work > WORK_MAX {
            let detail = format!(
                "`{member}` and {} are together too large to check.",
                self.side.owner()
            );
            return Err(Problem::field(&pointer, "too_large", detail));
        }
        let validator = &self.compiled.validator;
        if validator.is_valid(payload) {
            return Ok(());
        }
        // The library collects every fault before it hands out the first one.
        let found = if self.work <= WORK_EXPLAINED_MAX {
            contract::faults_of(validator, payload)
        } else {
            Vec::new()
        };
        let mut faults: Vec<FieldError> = found
            .into_iter()
            .map(|fault| below(&pointer, member, fault))
            .collect();
        if faults.is_empty() {
            let detail = format!("`{member}` is not what {} takes.", self.side.owner());
            faults.push(FieldError::new(pointer, "invalid", detail));
        }
        Err(Problem::invalid(faults))
    }
}

/// Moves a fault of a payload to where the payload stands in its request.
fn below(pointer: &str, member: &str, fault: FieldError) -> FieldError {
    let detail = match fault.detail.strip_prefix('`') {
        Some(rest) => format!("`{member}.{rest}"),
        None => fault.detail.replacen("The body", &format!("`{member}`"), 1),
    };
    FieldError {
        pointer: format!("{pointer}{}", fault.pointer),
        code: fault.code,
        detail: shortened(detail),
    }
}

/// A schema's own words can be long.
fn shortened(mut detail: String) -> String {
    const CHARS: usize = 300;
    if let Some((at, _)) = detail.char_indices().nth(CHARS) {
        detail.truncate(at);
        detail.push('…');
    }
    detail
}

/// How many values a value consists of.
fn nodes(value: &Value) -> u64 {
    1 + match value {
        Value::Array(items) => items.iter().map(nodes).sum(),
        Value::Object(members) => members.values().map(nodes).sum::<u64>(),
        _ => 0,
    }
}

/// The faults of a schema that stands at `pointer` of a request; none if it can be registered.
pub(crate) fn faults(pointer: &str, schema: &Value) -> Vec<FieldError> {
    let Err(found) = compile(schema) else {
        return Vec::new();
    };
    let placed = found.into_iter().map(|fault| FieldError {
        pointer: format!("{pointer}{}", fault.pointer),
        detail: shortened(fault.detail),
        ..fault
    });
    placed.take(FAULTS_MAX).collect()
}

/// The faults of an example that stands at `pointer`, by a schema that can be registered.
pub(crate) fn example_faults(pointer: &str, schema: &Value, example: &JsonText) -> Vec<FieldError> {
    let Ok(compiled) = compile(schema) else {
        return Vec::new();
    };
    let tree = example.to_tree();
    let job = Job {
        work: compiled.parts * (nodes(&tree) + example.as_str().len() as u64 / 16),
        compiled: Arc::new(compiled),
        side: Side::Data,
    };
    let found = job.run(&tree).err().map(|problem| problem.errors);
    let found = found.into_iter().flatten().map(|fault| FieldError {
        pointer: fault.pointer.replacen("/data", pointer, 1),
        detail: fault.detail.replacen("`data", "`example", 1),
        ..fault
    });
    found.collect()
}

/// Checks a schema and makes a validator of it.
fn compile(schema: &Value) -> Result<Compiled, Vec<FieldError>> {
    let one = |pointer: &str, code, detail: String| vec![FieldError::new(pointer, code, detail)];
    let text_bytes = schema.to_string().len();
    if text_bytes > SCHEMA_BYTES {
        let detail = format!("A schema may have at most {SCHEMA_BYTES} bytes of JSON.");
        return Err(one("", "too_long", detail));
    }
    let Some(draft) = draft_of(schema) else {
        let detail = "`$schema` must name draft 6, 7, 2019-09 or 2020-12, or be left out.".into();
        return Err(one("/$schema", "not_allowed", detail));
    };
    let mut scan = Scan::default();
    scan.schema("", schema);
    if scan.patterns > PATTERNS_MAX {
        let detail = format!("A schema may have at most {PATTERNS_MAX} patterns.");
        scan.faults.push(FieldError::new("", "too_long", detail));
    }
    if !scan.faults.is_empty() {
        return Err(scan.faults);
    }
    if let Err(error) = jsonschema::meta::validate(schema) {
        let detail = "That is not valid JSON Schema: a keyword has a value that it does not take.";
        return Err(one(
            error.instance_path().as_str(),
            "invalid",
            detail.into(),
        ));
    }
    let parts = Unfold {
        root: schema,
        known: HashMap::new(),
    }
    .parts("", schema, 0)
    .map_err(|fault| vec![fault])?;
    let validator = jsonschema::options()
        .with_draft(draft)
        .should_validate_formats(true)
        .should_ignore_unknown_formats(true)
        .with_pattern_options(
            PatternOptions::regex()
                .size_limit(PATTERN_BYTES)
                .dfa_size_limit(PATTERN_BYTES),
        )
        .offline()
        .build(schema)
        .map_err(|error| {
            let detail = "The schema can't be used: a reference leads nowhere, or a pattern is too \
                large or uses look-around or back-references.";
            one(error.instance_path().as_str(), "invalid", detail.into())
        })?;
    let bytes = (text_bytes * 8 + scan.patterns * PATTERN_BYTES / 4) as u64;
    Ok(Compiled {
        validator,
        parts,
        bytes,
    })
}

/// The dialect that a schema is written in; 2020-12 unless it says otherwise.
fn draft_of(schema: &Value) -> Option<Draft> {
    let Some(named) = schema.get("$schema") else {
        return Some(Draft::Draft202012);
    };
    let name = named.as_str()?.trim_end_matches('#');
    let name = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"))?;
    Some(match name {
        "json-schema.org/draft-06/schema" => Draft::Draft6,
        "json-schema.org/draft-07/schema" => Draft::Draft7,
        "json-schema.org/draft/2019-09/schema" => Draft::Draft201909,
        "json-schema.org/draft/2020-12/schema" => Draft::Draft202012,
        _ => return None,
    })
}

/// Looks for what is never taken.
#[derive(Default)]
struct Scan {
    faults: Vec<FieldError>,
    patterns: usize,
}

impl Scan {
    fn refuse(&mut self, pointer: String, detail: &str) {
        if self.faults.len() < FAULTS_MAX {
            self.faults
                .push(FieldError::new(pointer, "not_allowed", detail));
        }
    }

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
            match (keyword.as_str(), value) {
                ("$ref", Value::String(target)) if target != "#" && !target.starts_with("#/") => {
                    self.refuse(
                        at,
                        "A `$ref` must be a JSON pointer within the same schema, `#/…`.",
                    );
                }
                ("$dynamicRef" | "$recursiveRef", _) => {
                    self.refuse(at, "Only `$ref` is taken for references.");
                }
                ("$id", Value::String(_)) if !pointer.is_empty() => {
                    self.refuse(at, "Only the whole schema may have an `$id`.");
                }
                ("pattern", Value::String(_)) => self.patterns += 1,
                (data, _) if DATA.contains(&data) => {}
                (named, Value::Object(schemas)) if NAMED.contains(&named) => {
                    self.patterns += if named == "patternProperties" {
                        schemas.len()
                    } else {
                        0
                    };
                    for (name, schema) in schemas {
                        self.schema(&child(&at, name), schema);
                    }
                }
                (_, value) => self.schema(&at, value),
            }
        }
    }
}

/// Counts the parts of a schema with each reference replaced by what it refers to. That number
/// times the size of a payload bounds the work of a check, since without circles no part meets
/// the same place of a payload twice.
struct Unfold<'a> {
    root: &'a Value,
    /// Parts below a pointer; `None` while it is being counted.
    known: HashMap<String, Option<u64>>,
}

impl Unfold<'_> {
    fn parts(&mut self, pointer: &str, schema: &Value, depth: usize) -> Result<u64, FieldError> {
        let Value::Object(members) = schema else {
            return Ok(1);
        };
        match self.known.get(pointer) {
            Some(Some(parts)) => return Ok(*parts),
            Some(None) => {
                let detail = "A schema may not contain itself.";
                return Err(FieldError::new(pointer, "not_allowed", detail));
            }
            None => {}
        }
        if depth > PARTS_DEEP_MAX {
            let detail = format!("A schema may be at most {PARTS_DEEP_MAX} levels deep.");
            return Err(FieldError::new(pointer, "too_long", detail));
        }
        self.known.insert(pointer.to_owned(), None);
        let mut parts = 1;
        for (keyword, value) in members {
            let at = child(pointer, keyword);
            parts += match (keyword.as_str(), value) {
                ("$ref", Value::String(target)) => self.referred(&at, target, depth)?,
                // They count where they are referred to.
                ("$defs" | "definitions", _) => 0,
                ("enum" | "required", Value::Array(items)) => items.len() as u64,
                (named, Value::Object(schemas)) if NAMED.contains(&named) => {
                    let mut sum = 0;
                    for (name, schema) in schemas {
                        sum += self.parts(&child(&at, name), schema, depth + 1)?;
                    }
                    sum
                }
                (applied, Value::Array(schemas)) if APPLIED.contains(&applied) => {
                    let mut sum = 0;
                    for (index, schema) in schemas.iter().enumerate() {
                        sum += self.parts(&format!("{at}/{index}"), schema, depth + 1)?;
                    }
                    sum
                }
                (applied, schema) if APPLIED.contains(&applied) => {
                    self.parts(&at, schema, depth + 1)?
                }
                _ => 1,
            };
            if parts > PARTS_MAX {
                let detail =
                    format!("A schema may have at most {PARTS_MAX} parts, references resolved.");
                return Err(FieldError::new(pointer, "too_long", detail));
            }
        }
        self.known.insert(pointer.to_owned(), Some(parts));
        Ok(parts)
    }

    fn referred(&mut self, at: &str, target: &str, depth: usize) -> Result<u64, FieldError> {
        let pointer = target.strip_prefix('#').unwrap_or(target);
        let leads_nowhere = || {
            let detail = "The `$ref` leads to nothing within the schema.";
            FieldError::new(at, "invalid", detail)
        };
        // One spelling for each place, or a circle could hide behind a percent-encoded step.
        if pointer.contains('%') {
            let detail = "A `$ref` may not be percent-encoded.";
            return Err(FieldError::new(at, "not_allowed", detail));
        }
        let root = self.root;
        let schema = root.pointer(pointer).ok_or_else(leads_nowhere)?;
        self.parts(pointer, schema, depth + 1)
            .map_err(|fault| FieldError {
                pointer: at.to_owned(),
                ..fault
            })
    }
}

#[cfg(test)]
mod tests;
