//! JSON Schemas of publishers: of a pipeline, obeyed by runs, and of a type of events, obeyed by
//! what is published. They are checked when they are registered.
//!
//! They come from strangers and are evaluated on a shared machine, and an evaluation can't be
//! stopped. So what it may cost is known before it begins: [`cost`] bounds the steps that a schema
//! takes for each value and byte of a payload, and their product has a limit. What is more than a
//! moment's work is done by [`workers`], of which every publisher has its share; never on a thread
//! that answers requests, and never while a transaction waits. Nothing is ever fetched.

use std::{borrow::Cow, sync::Arc};

use serde_json::Value;

use domain::{
    FaultCode, FieldError, JsonText, Problem,
    id::{Id as _, PipelineId, PublisherId},
    limits::{PAYLOAD_BYTES, PAYLOAD_VALUES},
};
use persistence::TypeSchema;
use uuid::Uuid;

use web::contract::{self, FAULTS_MAX};

mod cache;
mod compile;
mod cost;
mod pattern;
mod workers;

use cache::{Cached, Known};
use compile::{Compiled, compile};
use cost::REGISTERED;
use workers::Workers;

/// Most threads that evaluate schemas at once.
const WORKERS_MAX: usize = 8;
/// Most steps that one check may take: some tenths of a second.
const WORK_MAX: u64 = 20_000_000;
/// Up to this a check is made where it is asked for: about a millisecond at most.
const WORK_INLINE_MAX: u64 = 50_000;
/// Larger payloads than this are never looked at where they are asked for, bytes.
const BYTES_INLINE_MAX: usize = 16 * 1024;
/// Up to this every fault is looked for; above, the answer only says that there are some.
const WORK_EXPLAINED_MAX: u64 = 1_000_000;

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

/// A schema: of which pipeline or type, in which version, and which of its schemas.
type Key = (Uuid, i64, Side);

/// A payload, and the schema that judges it.
pub(crate) struct Item<'a> {
    /// Where it stands in its request: empty, or `/events/3`.
    pointer: Cow<'a, str>,
    key: Key,
    schema: Cow<'a, Value>,
    /// The payload: JSON.
    text: Cow<'a, str>,
    /// How many values it consists of.
    values: usize,
}

impl<'a> Item<'a> {
    /// A run's input or output, by the schema of a pipeline's version.
    pub(crate) fn of_run(
        version: (PipelineId, i64),
        side: Side,
        schema: &'a Value,
        payload: &'a JsonText,
    ) -> Self {
        Self {
            pointer: Cow::Borrowed(""),
            key: (version.0.uuid(), version.1, side),
            schema: Cow::Borrowed(schema),
            text: Cow::Borrowed(payload.as_str()),
            values: payload.values(),
        }
    }

    /// The data of an event that stands at `pointer`.
    pub(crate) fn of_event(pointer: String, schema: &'a TypeSchema, payload: &'a JsonText) -> Self {
        Self {
            pointer: Cow::Owned(pointer),
            key: (schema.id, schema.revision, Side::Data),
            schema: Cow::Borrowed(&schema.schema),
            text: Cow::Borrowed(payload.as_str()),
            values: payload.values(),
        }
    }

    fn side(&self) -> Side {
        self.key.2
    }

    /// The same for another thread. What is compiled already needs no copy of the schema.
    fn owned(&self, known: &Known) -> Item<'static> {
        let schema = match known.get(&self.key) {
            Some(_) => Value::Null,
            None => self.schema.clone().into_owned(),
        };
        Item {
            pointer: Cow::Owned(self.pointer.clone().into_owned()),
            key: self.key,
            schema: Cow::Owned(schema),
            text: Cow::Owned(self.text.clone().into_owned()),
            values: self.values,
        }
    }
}

/// Judges by schemas. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Schemas {
    known: Arc<Known>,
    workers: Workers,
}

impl Schemas {
    pub(crate) fn new() -> Self {
        Self {
            known: Arc::new(Known::new()),
            workers: Workers::new(),
        }
    }

    /// Judges payloads of a publisher. All together have the limits of one check.
    ///
    /// # Errors
    /// `validation_failed` with pointers under `/input`, `/output` or `/data`; `share_exceeded` if
    /// the publisher's checks under way leave no place for more in time.
    pub(crate) async fn check(
        &self,
        publisher: PublisherId,
        items: &[Item<'_>],
    ) -> Result<(), Problem> {
        if items.is_empty() {
            return Ok(());
        }
        let many = items.iter().filter(|item| item.values > PAYLOAD_VALUES);
        let faults: Vec<_> = many.take(FAULTS_MAX).map(too_many_values).collect();
        if !faults.is_empty() {
            return Err(Problem::invalid(faults));
        }
        if let Some(verdict) = self.check_at_once(items) {
            return verdict;
        }
        let owned: Vec<_> = items.iter().map(|item| item.owned(&self.known)).collect();
        let known = Arc::clone(&self.known);
        let judged = self.workers.run(publisher, move || {
            let jobs = owned.iter().map(|item| Job::of(&known, publisher, item));
            judge_all(jobs, owned.len() > 1)
        });
        judged.await?
    }

    /// The same on this thread, if it is but a moment's work.
    fn check_at_once(&self, items: &[Item<'_>]) -> Option<Result<(), Problem>> {
        let bytes: usize = items.iter().map(|item| item.text.len()).sum();
        if bytes > BYTES_INLINE_MAX {
            return None;
        }
        let mut jobs = Vec::with_capacity(items.len());
        let mut work = 0_u64;
        for item in items {
            let job = Job::with(self.known.get(&item.key)?, item);
            work = work
                .saturating_add(job.work())
                .saturating_add(job.explain());
            jobs.push(job);
        }
        (work <= WORK_INLINE_MAX).then(|| judge_all(jobs.into_iter(), items.len() > 1))
    }

    /// The faults of schemas that are to be registered, each at its pointer of the request; and of
    /// an example of the first one.
    ///
    /// # Errors
    /// As [`Schemas::check`].
    pub(crate) async fn faults(
        &self,
        publisher: PublisherId,
        schemas: Vec<(&'static str, Value)>,
        example: Option<(&'static str, String)>,
    ) -> Result<Vec<FieldError>, Problem> {
        if schemas.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.workers.run(publisher, move || {
            let mut found = Vec::new();
            let mut first = None;
            for (pointer, schema) in &schemas {
                match compile(schema, REGISTERED) {
                    Ok(compiled) => first = first.or(Some(compiled)),
                    Err(faults) => found.extend(faults.into_iter().map(|fault| FieldError {
                        pointer: format!("{pointer}{}", fault.pointer),
                        detail: shortened(fault.detail),
                        ..fault
                    })),
                }
            }
            if let (Some(compiled), Some((pointer, text)), true) =
                (first, example, found.is_empty())
            {
                found = example_faults(compiled, pointer, &text);
            }
            found.truncate(FAULTS_MAX);
            found
        });
        found.await
    }
}

/// Refuses a payload that is too long.
///
/// # Errors
/// `validation_failed` at the request's `member`.
pub(crate) fn check_payload_bytes(member: &str, payload: &JsonText) -> Result<(), Problem> {
    if payload.as_str().len() > PAYLOAD_BYTES {
        return Err(Problem::invalid(vec![too_long(member)]));
    }
    Ok(())
}

/// A payload that is longer than any may be.
pub(crate) fn too_long(member: &str) -> FieldError {
    let detail = format!("`{member}` may have at most {PAYLOAD_BYTES} bytes of JSON.");
    FieldError::new(format!("/{member}"), FaultCode::TooLong, detail)
}

/// A tree of too many values would take too much room.
fn too_many_values(item: &Item<'_>) -> FieldError {
    let member = item.side().member();
    let detail =
        format!("`{member}` may have at most {PAYLOAD_VALUES} values where a schema judges it.");
    let fault = FieldError::new(format!("/{member}"), FaultCode::TooManyValues, detail);
    placed(&item.pointer, fault)
}

/// The faults of an example that stands at `pointer`.
fn example_faults(compiled: Compiled, pointer: &str, text: &str) -> Vec<FieldError> {
    let item = Item {
        pointer: Cow::Borrowed(""),
        key: (Uuid::nil(), 0, Side::Data),
        schema: Cow::Owned(Value::Null),
        text: Cow::Borrowed(text),
        values: 0,
    };
    let job = Job::with(Arc::new(Ok(compiled)), &item);
    let found = judge_all(std::iter::once(job), false)
        .err()
        .map(|problem| problem.errors);
    let found = found.into_iter().flatten().map(|fault| FieldError {
        pointer: fault.pointer.replacen("/data", pointer, 1),
        detail: fault.detail.replacen("`data", "`example", 1),
        ..fault
    });
    found.collect()
}

/// Judges payloads one after the other, as far as they are not too much work together.
fn judge_all<'a>(jobs: impl Iterator<Item = Job<'a>>, several: bool) -> Result<(), Problem> {
    let (mut work, mut explained) = (WORK_MAX, WORK_EXPLAINED_MAX);
    let mut faults = Vec::new();
    for job in jobs {
        work = match work.checked_sub(job.work()) {
            Some(left) => left,
            None => return Err(job.too_large(several)),
        };
        let found = job.faults(&mut explained).into_iter();
        faults.extend(found.map(|fault| placed(&job.item.pointer, fault)));
        if faults.len() >= FAULTS_MAX {
            break;
        }
    }
    if faults.is_empty() {
        return Ok(());
    }
    faults.truncate(FAULTS_MAX);
    Err(Problem::invalid(faults))
}

/// Moves a fault of an event to where the event stands in its request.
pub(crate) fn placed(pointer: &str, fault: FieldError) -> FieldError {
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

/// One payload to judge, with its tree and what that is going to cost.
struct Job<'a> {
    item: &'a Item<'a>,
    compiled: Arc<Cached>,
    payload: Value,
    values: u64,
}

impl<'a> Job<'a> {
    fn of(known: &Known, publisher: PublisherId, item: &'a Item<'a>) -> Self {
        Self::with(
            known.get_or_compile(publisher, item.key, &item.schema),
            item,
        )
    }

    fn with(compiled: Arc<Cached>, item: &'a Item<'a>) -> Self {
        // It was parsed before, and taken.
        let payload = serde_json::from_str(&item.text).unwrap_or_default();
        Self {
            item,
            compiled,
            values: values_of(&payload),
            payload,
        }
    }

    /// Steps to learn whether it fits.
    fn work(&self) -> u64 {
        self.compiled.as_ref().as_ref().map_or(0, |compiled| {
            compiled.check.of(self.values, self.item.text.len() as u64)
        })
    }

    /// Steps to learn why it does not, on top.
    fn explain(&self) -> u64 {
        self.compiled.as_ref().as_ref().map_or(0, |compiled| {
            compiled
                .explain
                .of(self.values, self.item.text.len() as u64)
        })
    }

    fn too_large(&self, several: bool) -> Problem {
        if several {
            let detail = "The events and their schemas are together too large to check.";
            return Problem::field("/events", FaultCode::TooLarge, detail);
        }
        let side = self.item.side();
        let (member, owner) = (side.member(), side.owner());
        let detail = format!("`{member}` and {owner} are together too large to check.");
        let fault = FieldError::new(format!("/{member}"), FaultCode::TooLarge, detail);
        Problem::invalid(vec![placed(&self.item.pointer, fault)])
    }

    /// Its faults. Takes the steps of looking for them from `explained`, unless it has too few.
    fn faults(&self, explained: &mut u64) -> Vec<FieldError> {
        let side = self.item.side();
        let (member, owner) = (side.member(), side.owner());
        let pointer = format!("/{member}");
        let compiled = match &*self.compiled {
            Ok(compiled) => compiled,
            Err(fault) => {
                let detail = format!(
                    "{owner} can't be evaluated any more and has to be registered anew: at `{}`: {}",
                    fault.pointer, fault.detail
                );
                return vec![FieldError::new(
                    pointer,
                    FaultCode::Invalid,
                    capitalised(detail),
                )];
            }
        };
        if compiled.validator.is_valid(&self.payload) {
            return Vec::new();
        }
        // The library collects every fault before it hands out the first one.
        if let Some(left) = explained.checked_sub(self.explain()) {
            *explained = left;
            let found = contract::faults_of(&compiled.validator, &self.payload);
            if !found.is_empty() {
                let found = found.iter();
                return found.map(|fault| below(&pointer, member, fault)).collect();
            }
        }
        let detail = format!("`{member}` is not what {owner} takes.");
        vec![FieldError::new(pointer, FaultCode::Invalid, detail)]
    }
}

/// Moves a fault of a payload to where the payload stands in its request.
fn below(pointer: &str, member: &str, fault: &FieldError) -> FieldError {
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

fn capitalised(mut detail: String) -> String {
    if let Some(first) = detail.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    shortened(detail)
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
fn values_of(value: &Value) -> u64 {
    1 + match value {
        Value::Array(items) => items.iter().map(values_of).sum(),
        Value::Object(members) => members.values().map(values_of).sum::<u64>(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
