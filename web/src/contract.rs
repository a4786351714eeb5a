//! The contract: the OpenAPI document, which is published, checked in, and obeyed.
//!
//! poem-openapi writes a first draft from the code (OpenAPI 3.0, successes only). [`complete`]
//! makes it 3.1 and true: every problem of every operation, bounds, examples, who may. A
//! [`Contract`] then is that document at work: it judges request bodies by their published schemas,
//! and knows the routes for the log, the counters and the error mapper.

mod audit;
mod complete;
mod describe;
mod example;
mod fault_list;
mod faults;
mod markdown;
mod parameters;
mod problems;
mod routes;
mod schema;
mod security;
mod sizes;
mod unique_items;

use std::collections::HashMap;

use jsonschema::Validator;
use serde_json::Value;

use domain::FieldError;

pub use audit::audit;
pub use complete::{OperationDoc, complete};
pub use fault_list::{FAULTS_MAX, child};
pub use markdown::{access_table_markdown, reference_markdown};
pub use routes::{Location, Parameter, Route, Routes};
pub use security::VISITOR;
pub use unique_items::unique_items;

/// The published document, compiled.
pub struct Contract {
    document: Value,
    text: String,
    routes: Routes,
    validators: HashMap<String, Validator>,
}

impl Contract {
    /// Compiles a [completed](complete) document.
    ///
    /// # Errors
    /// A sentence that names the schema that doesn't compile.
    pub fn new(document: Value) -> Result<Self, String> {
        Ok(Self {
            text: text(&document),
            routes: Routes::of(&document),
            validators: faults::validators(&document)?,
            document,
        })
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The document as it is published and checked in.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The paths of the document.
    #[must_use]
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Every way in which `value` is not what the schema called `name` takes, at most
    /// [`FAULTS_MAX`]; `None` when no request body has that schema.
    #[must_use]
    pub fn faults(&self, name: &str, value: &Value) -> Option<Vec<FieldError>> {
        self.validators
            .get(name)
            .map(|validator| faults::of_body(validator, name, &self.document, value))
    }

    /// Compiles a schema that may refer to those of the document.
    pub fn validator(&self, schema: &Value) -> Result<Validator, String> {
        faults::compile(schema, &self.document).map_err(|error| error.to_string())
    }
}

/// Every way in which `value` is not what a schema takes, at most [`FAULTS_MAX`], in our words.
#[must_use]
pub fn faults_of(validator: &Validator, value: &Value) -> Vec<FieldError> {
    faults::of(validator, value)
}

/// A document as text: members in alphabetical order, two spaces, a newline at the end.
#[must_use]
pub fn text(document: &Value) -> String {
    let mut text = format!("{:#}", schema::sorted(document.clone()));
    text.push('\n');
    text
}

#[cfg(test)]
mod tests;
