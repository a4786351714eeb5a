//! What a document must have, checked: used by a test, so that nothing is published half-described.

use serde_json::Value;

use super::{
    fault_list::child,
    faults,
    schema::{operations, refer, reference, resolve},
};

/// Every way in which a completed document falls short; nothing means good.
///
/// Checked are: identifier, summary, tag and security of each operation; examples, which must fit
/// their schemas; named schemas for request bodies; and bounds on every string, array, map and
/// integer that a request can hold.
#[must_use]
pub fn audit(document: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (path, method, operation) in operations(document) {
        let id = operation["operationId"].as_str();
        let at = id.map_or_else(|| format!("{method} {path}"), str::to_owned);
        let mut say = |what: &str| found.push(format!("{at}: {what}"));
        for member in ["operationId", "summary"] {
            if operation[member].as_str().is_none_or(str::is_empty) {
                say(&format!("no {member}"));
            }
        }
        if operation["tags"].as_array().is_none_or(Vec::is_empty) {
            say("no tag");
        }
        if !operation["security"].is_array() {
            say("no security (an empty list means public)");
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or("?");
            if parameter["description"].as_str().is_none_or(str::is_empty) {
                say(&format!("parameter {name}: no description"));
            }
            let mut walk = Walk {
                document,
                seen: Vec::new(),
                say: &mut say,
            };
            walk.bounds(&format!("parameter {name}"), &parameter["schema"]);
        }
        for (kind, media) in media_of(&operation["requestBody"]) {
            if reference(&media["schema"]).is_none() {
                say(&format!(
                    "body {kind}: the schema has no name, so it can't be enforced"
                ));
            }
            examples(&format!("body {kind}"), media, document, &mut say);
            let mut walk = Walk {
                document,
                seen: Vec::new(),
                say: &mut say,
            };
            walk.bounds("body", &media["schema"]);
        }
        for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
            for (kind, media) in media_of(answer) {
                examples(
                    &format!("answer {status} {kind}"),
                    media,
                    document,
                    &mut say,
                );
            }
        }
    }
    found.dedup();
    found
}

fn media_of(of: &Value) -> impl Iterator<Item = (&String, &Value)> {
    of["content"].as_object().into_iter().flatten()
}

fn examples(at: &str, media: &Value, document: &Value, say: &mut impl FnMut(&str)) {
    let several = media["examples"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(_, e)| &e["value"]);
    let all: Vec<&Value> = media.get("example").into_iter().chain(several).collect();
    if all.is_empty() {
        say(&format!("{at}: no example"));
        return;
    }
    match faults::compile(&media["schema"], document) {
        Err(error) => say(&format!("{at}: the schema does not compile: {error}")),
        Ok(validator) => {
            for fault in all
                .iter()
                .flat_map(|example| faults::of(&validator, example))
            {
                say(&format!(
                    "{at}: the example is wrong at {}: {}",
                    fault.pointer, fault.detail
                ));
            }
        }
    }
}

struct Walk<'a> {
    document: &'a Value,
    seen: Vec<String>,
    say: &'a mut dyn FnMut(&str),
}

impl Walk<'_> {
    /// Reports whatever may grow without limit.
    fn bounds(&mut self, at: &str, schema: &Value) {
        if let Some(name) = reference(schema) {
            if self.seen.iter().any(|seen| seen == name) {
                return;
            }
            self.seen.push(name.to_owned());
            let target = refer(name);
            self.bounds(at, resolve(&target, self.document));
        }
        let bounded = |keywords: &[&str]| {
            keywords
                .iter()
                .any(|keyword| schema.get(*keyword).is_some())
        };
        let is = |name: &str| {
            schema["type"] == name
                || schema["type"]
                    .as_array()
                    .is_some_and(|names| names.iter().any(|n| n == name))
        };
        let self_bounding = matches!(schema["format"].as_str(), Some("uuid" | "date-time"));
        if is("string") && !self_bounding && !bounded(&["maxLength", "enum", "const", "pattern"]) {
            (self.say)(&format!("{at}: a string without maxLength"));
        }
        if is("array") && !bounded(&["maxItems"]) {
            (self.say)(&format!("{at}: an array without maxItems"));
        }
        if is("integer") && !bounded(&["enum", "const"]) {
            let low = bounded(&["minimum", "exclusiveMinimum"]);
            let high = bounded(&["maximum", "exclusiveMaximum"]);
            if !(low && high) {
                (self.say)(&format!("{at}: an integer without minimum and maximum"));
            }
        }
        if schema["additionalProperties"].is_object() && !bounded(&["maxProperties"]) {
            (self.say)(&format!("{at}: a map without maxProperties"));
        }
        self.inner(at, schema);
    }

    fn inner(&mut self, at: &str, schema: &Value) {
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            self.bounds(&child(at, name), property);
        }
        for (keyword, step) in [("items", "*"), ("additionalProperties", "*")] {
            if schema[keyword].is_object() {
                self.bounds(&child(at, step), &schema[keyword]);
            }
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for part in schema[keyword].as_array().into_iter().flatten() {
                self.bounds(at, part);
            }
        }
    }
}
