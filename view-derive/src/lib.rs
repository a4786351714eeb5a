//! Two derives for the types of requests and answers. Each writes code that would otherwise repeat
//! the list of fields:
//!
//! - [`View`](macro@View) writes the conversion from a row of the store, or into a type of the
//!   domain.
//! - [`Example`](macro@Example) writes the example that the `OpenAPI` document shows.
//!
//! `api/tests/shapes.rs` is an example of both.

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

mod example;
mod fields;
mod view;

/// Writes conversions between this type and another one that has fields or variants of the same
/// names.
///
/// On the type:
///
/// - `#[view(of = Row)]` writes `From<Row>` and `From<&Row>` for this type.
/// - `#[view(into = Row)]` writes `From<Self>` for `Row`.
///
/// Fields are converted by `From`, and those inside an `Option`, a `Vec` or a `BTreeMap` one by one.
///
/// On a field, for `of` alone:
///
/// - `#[view(field = name)]`, `#[view(field = part.name)]`: takes this field of the row.
/// - `#[view(from = EXPRESSION)]`: takes this value. In the expression, `of` is a reference to the
///   row.
#[proc_macro_derive(View, attributes(view))]
pub fn view(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    view::derive(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// Writes `poem_openapi::types::Example`.
///
/// The example of a field is, in this order:
///
/// - what `#[example(EXPRESSION)]` on the field says, converted by `From`. Leave out `Some` and
///   `vec!`: `"a"` also serves an `Option<String>`, and `["a", "b"]` a `Vec<String>`.
/// - the default that `#[oai(default)]` gives the field.
/// - `None`, `false`, an empty `Vec`, or `MaybeUndefined::Undefined`.
/// - the `Example` of the field's type.
///
/// `#[example(EXPRESSION)]` on the type itself gives the whole example, converted by `From`.
#[proc_macro_derive(Example, attributes(example))]
pub fn example(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    example::derive(&input)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
