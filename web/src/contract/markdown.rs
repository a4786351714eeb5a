//! The document as pages for people: a reference, and a table of who may do what.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use domain::{
    people::Role,
    permission::{Held, Permission, TokenKind},
};

use super::{
    describe,
    schema::{operations, reference, resolve},
    security::{self, Access},
};

/// Deepest nesting of fields that a table shows.
const DEPTH_MAX: usize = 4;

type Operation<'a> = (&'a str, &'a str, &'a Value);

/// The reference, one section a tag and operation.
#[must_use]
pub fn reference_markdown(document: &Value) -> String {
    let mut page = format!(
        "# {} reference\n\nGenerated from `openapi/stationmaster.json`; edits are lost.\n\n{}\n",
        document["info"]["title"].as_str().unwrap_or("API"),
        document["info"]["description"].as_str().unwrap_or_default(),
    );
    for (tag, operations) in by_tag(document) {
        let _ = write!(page, "\n## {tag}\n");
        if let Some(description) = tag_description(document, tag) {
            let _ = write!(page, "\n{description}\n");
        }
        for operation in operations {
            write_operation(&mut page, operation, document);
        }
    }
    page
}

/// A column of the table of who may do what.
struct Column {
    title: String,
    may: Box<dyn Fn(Permission) -> bool>,
    /// Whether it is about people, some of whose requests need a recent sign-in.
    people: bool,
}

fn columns() -> Vec<Column> {
    let tokens = TokenKind::ALL.into_iter().map(|kind| Column {
        title: format!("{} token", kind.as_str()),
        may: Box::new(move |permission| permission.is_held_by(kind)),
        people: false,
    });
    let roles = Role::ALL.into_iter().rev().map(|role| Column {
        title: role.as_str().to_owned(),
        may: Box::new(move |permission| match permission.people() {
            Held::ByMembers(least) => role.includes(least),
            Held::ByEverybody => true,
            Held::ByNobody | Held::ByStaff => false,
        }),
        people: true,
    });
    let staff = Column {
        title: "staff".to_owned(),
        may: Box::new(|permission| {
            matches!(permission.people(), Held::ByEverybody | Held::ByStaff)
        }),
        people: true,
    };
    tokens.chain(roles).chain([staff]).collect()
}

fn mark(column: &Column, access: Access) -> &'static str {
    match access {
        Access::Holders(permission) if !(column.may)(permission) => "–",
        Access::Holders(permission) if column.people && permission.needs_recent_sign_in() => {
            "recent"
        }
        Access::Public | Access::Visitors | Access::Holders(_) => "yes",
    }
}

/// Kinds of token and roles of people × operations.
#[must_use]
pub fn access_table_markdown(document: &Value) -> String {
    let columns = columns();
    let mut table = "| operation | request |".to_owned();
    for column in &columns {
        let _ = write!(table, " {} |", column.title);
    }
    let _ = write!(table, "\n|---|---|{}\n", "---|".repeat(columns.len()));
    for (tag, operations) in by_tag(document) {
        let _ = writeln!(table, "| **{tag}** | |{}", " |".repeat(columns.len()));
        for (path, method, operation) in operations {
            let id = operation["operationId"].as_str().unwrap_or("?");
            let _ = write!(table, "| `{id}` | `{} {path}` |", method.to_uppercase());
            let access = Access::of(operation);
            for column in &columns {
                let _ = write!(table, " {} |", mark(column, access));
            }
            table.push('\n');
        }
    }
    table
}

fn by_tag(document: &Value) -> BTreeMap<&str, Vec<Operation<'_>>> {
    let mut tags: BTreeMap<&str, Vec<Operation<'_>>> = BTreeMap::new();
    for operation in operations(document) {
        let tag = operation.2["tags"][0].as_str().unwrap_or("other");
        tags.entry(tag).or_default().push(operation);
    }
    tags
}

fn tag_description<'a>(document: &'a Value, tag: &str) -> Option<&'a str> {
    let tags = document["tags"].as_array().into_iter().flatten();
    tags.filter(|known| known["name"] == tag)
        .find_map(|known| known["description"].as_str())
}

fn write_operation(page: &mut String, (path, method, operation): Operation<'_>, document: &Value) {
    let id = operation["operationId"].as_str().unwrap_or("?");
    let summary = operation["summary"].as_str().unwrap_or_default();
    let _ = write!(
        page,
        "\n### {id}\n\n`{} {path}`: {summary}\n",
        method.to_uppercase()
    );
    if let Some(description) = operation["description"].as_str().filter(|d| !d.is_empty()) {
        let _ = write!(page, "\n{description}\n");
    }
    let _ = write!(page, "\nWho may: {}.\n", security::sentence(operation));
    write_parameters(page, operation, document);
    write_body(page, operation, document);
    write_answers(page, operation, document);
}

fn write_parameters(page: &mut String, operation: &Value, document: &Value) {
    let Some(parameters) = operation["parameters"]
        .as_array()
        .filter(|list| !list.is_empty())
    else {
        return;
    };
    page.push_str("\n| parameter | in | takes | |\n|---|---|---|---|\n");
    for parameter in parameters {
        let takes = describe::schema(resolve(&parameter["schema"], document));
        let required = if parameter["required"] == true {
            "required. "
        } else {
            ""
        };
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {required}{} |",
            parameter["name"].as_str().unwrap_or("?"),
            parameter["in"].as_str().unwrap_or("?"),
            cell(&takes),
            cell(parameter["description"].as_str().unwrap_or_default()),
        );
    }
}

fn write_body(page: &mut String, operation: &Value, document: &Value) {
    let body = &operation["requestBody"];
    let Some((kind, media)) = body["content"]
        .as_object()
        .and_then(|content| content.iter().next())
    else {
        return;
    };
    let needed = if body["required"] == false {
        ", may be left out"
    } else {
        ""
    };
    let _ = write!(page, "\nBody (`{kind}`{needed}):\n");
    write_fields(page, &media["schema"], document);
    write_example(page, media);
}

fn write_answers(page: &mut String, operation: &Value, document: &Value) {
    let mut codes = Vec::new();
    for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
        for (kind, media) in answer["content"].as_object().into_iter().flatten() {
            if let Some(examples) = media["examples"].as_object() {
                codes.extend(examples.keys().map(|code| format!("{status} `{code}`")));
                continue;
            }
            let _ = write!(
                page,
                "\nAnswers {status} (`{kind}`): {}\n",
                described(answer)
            );
            write_fields(page, &media["schema"], document);
            write_example(page, media);
        }
        if answer.get("content").is_none() {
            let _ = write!(page, "\nAnswers {status}: {}\n", described(answer));
        }
    }
    let _ = write!(page, "\nProblems: {}.\n", codes.join(", "));
}

fn described(answer: &Value) -> &str {
    answer["description"].as_str().unwrap_or_default()
}

fn write_example(page: &mut String, media: &Value) {
    if let Some(example) = media.get("example") {
        let _ = write!(page, "\n```json\n{example:#}\n```\n");
    }
}

fn write_fields(page: &mut String, schema: &Value, document: &Value) {
    let mut rows = String::new();
    collect_fields(&mut rows, "", schema, document, DEPTH_MAX);
    if !rows.is_empty() {
        let _ = write!(page, "\n| field | takes | |\n|---|---|---|\n{rows}");
    }
}

fn collect_fields(rows: &mut String, prefix: &str, schema: &Value, document: &Value, depth: usize) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    let schema = resolve(schema, document);
    for keyword in ["allOf", "anyOf", "oneOf"] {
        for part in schema[keyword].as_array().into_iter().flatten() {
            collect_fields(rows, prefix, part, document, depth);
        }
    }
    let required = |name: &str| {
        schema["required"]
            .as_array()
            .is_some_and(|names| names.iter().any(|n| n == name))
    };
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let target = without_null(property, document);
        let null = if target.1 { " or null" } else { "" };
        let description = property["description"]
            .as_str()
            .or(target.0["description"].as_str());
        let needed = if required(name) { "" } else { "optional. " };
        let _ = writeln!(
            rows,
            "| `{prefix}{name}` | {}{null} | {needed}{} |",
            cell(&describe::schema(target.0)),
            cell(description.unwrap_or_default()),
        );
        let (inner, step) = match &target.0["items"] {
            Value::Null => (target.0, "."),
            items => (items, "[]."),
        };
        collect_fields(
            rows,
            &format!("{prefix}{name}{step}"),
            inner,
            document,
            depth,
        );
    }
}

/// The schema behind a reference and behind "or null", and whether null is allowed.
fn without_null<'a>(schema: &'a Value, document: &'a Value) -> (&'a Value, bool) {
    let is_null = |branch: &&Value| branch["type"] == "null";
    if let Some(branches) = schema["anyOf"].as_array()
        && branches.iter().any(|branch| is_null(&branch))
        && let Some(other) = branches.iter().find(|branch| !is_null(branch))
    {
        return (resolve(other, document), true);
    }
    let null = schema["type"]
        .as_array()
        .is_some_and(|names| names.iter().any(|n| n == "null"));
    let target = if reference(schema).is_some() {
        resolve(schema, document)
    } else {
        schema
    };
    (target, null)
}

/// Text that can stand in a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}
