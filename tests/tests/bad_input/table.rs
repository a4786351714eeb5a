//! The table of wrong requests.

use serde_json::{Value, json};

use super::{accounts, frame, logins, trains, webhooks, work};

#[derive(Clone, Copy)]
pub enum Who {
    Admin,
    Runner,
    Operator,
    Train,
}

pub enum Body {
    None,
    Json(Value),
    Text(&'static str, String),
    Bytes(Vec<u8>),
}

pub struct Case {
    pub what: &'static str,
    pub who: Who,
    pub method: &'static str,
    pub path: &'static str,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
    pub status: u16,
    pub code: &'static str,
    /// Where the fault is; `-` where a problem of this code names no place.
    pub pointer: &'static str,
}

impl Case {
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn claim(self) -> Self {
        self.header("x-stationmaster-claim", "{claim}")
    }

    pub fn by(mut self, who: Who) -> Self {
        self.who = who;
        self
    }
}

/// A body of JSON with one fault.
pub fn invalid(
    what: &'static str,
    method: &'static str,
    path: &'static str,
    body: Value,
    pointer: &'static str,
) -> Case {
    refused(
        what,
        method,
        path,
        Body::Json(body),
        (422, "validation_failed", pointer),
    )
}

pub fn refused(
    what: &'static str,
    method: &'static str,
    path: &'static str,
    body: Body,
    (status, code, pointer): (u16, &'static str, &'static str),
) -> Case {
    Case {
        what,
        who: Who::Admin,
        method,
        path,
        headers: Vec::new(),
        body,
        status,
        code,
        pointer,
    }
}

pub fn get(what: &'static str, path: &'static str, pointer: &'static str) -> Case {
    refused(
        what,
        "GET",
        path,
        Body::None,
        (400, "invalid_parameter", pointer),
    )
}

pub fn absent(what: &'static str, method: &'static str, path: &'static str) -> Case {
    let body = if method == "GET" || method == "DELETE" {
        Body::None
    } else {
        Body::Json(json!({}))
    };
    refused(what, method, path, body, (404, "not_found", "-"))
}

/// Every case.
pub fn all() -> Vec<Case> {
    let parts = [
        accounts::publishers(),
        accounts::tokens(),
        work::pipelines(),
        work::runs(),
        work::subcommands(),
        work::endpoints(),
        webhooks::all(),
        webhooks::listening(),
        trains::all(),
        logins::all(),
        frame::queries(),
        frame::paths(),
        frame::bodies(),
        frame::headers(),
    ];
    parts.into_iter().flatten().collect()
}
