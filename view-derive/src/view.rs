//! The derive `View`.

use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::{
    Data, DataEnum, DeriveInput, Error, Expr, Field, Fields, Ident, Path, Result, Token, Type,
    punctuated::Punctuated, spanned::Spanned as _,
};

use crate::fields::{named, parts, without_generics};

/// What `#[view(…)]` on a type says.
#[derive(Default)]
struct Targets {
    of: Option<Path>,
    into: Option<Path>,
}

/// Where the value of a field comes from.
enum Origin {
    /// A field of the row, by its path from the row.
    Field(Punctuated<Ident, Token![.]>),
    /// An expression over `of`.
    Expression(Expr),
}

/// Whether a field's type is the result of a conversion, or its source.
#[derive(Clone, Copy)]
enum Direction {
    From,
    Into,
}

pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    without_generics(input)?;
    let targets = targets(input)?;
    if let Data::Enum(data) = &input.data {
        return of_enum(&input.ident, data, &targets);
    }
    let Some(fields) = named(input) else {
        let refusal = "`View` is for enums and for structs with named fields";
        return Err(Error::new_spanned(&input.ident, refusal));
    };
    let (mut of, mut into) = (TokenStream::new(), TokenStream::new());
    if let Some(row) = &targets.of {
        of = struct_of(&input.ident, row, fields)?;
    }
    if let Some(target) = &targets.into {
        into = struct_into(&input.ident, target, fields);
    }
    Ok(quote! { #of #into })
}

fn targets(input: &DeriveInput) -> Result<Targets> {
    let mut targets = Targets::default();
    for attribute in &input.attrs {
        if !attribute.path().is_ident("view") {
            continue;
        }
        attribute.parse_nested_meta(|meta| {
            let target = match meta.path.get_ident().map(ToString::to_string).as_deref() {
                Some("of") => &mut targets.of,
                Some("into") => &mut targets.into,
                _ => return Err(meta.error("a type takes `of = Row` and `into = Row`")),
            };
            *target = Some(meta.value()?.parse()?);
            Ok(())
        })?;
    }
    if targets.of.is_none() && targets.into.is_none() {
        let refusal = "say what it is converted from or into: `#[view(of = Row)]`";
        return Err(Error::new_spanned(&input.ident, refusal));
    }
    Ok(targets)
}

/// Conversions of an enum: variants of the same names mean the same.
fn of_enum(name: &Ident, data: &DataEnum, targets: &Targets) -> Result<TokenStream> {
    let mut variants = Vec::with_capacity(data.variants.len());
    for variant in &data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            let refusal = "`View` converts variants without fields only";
            return Err(Error::new_spanned(variant, refusal));
        }
        variants.push(&variant.ident);
    }
    let conversion = |from: &TokenStream, into: &TokenStream| {
        quote! {
            #[automatically_derived]
            impl ::core::convert::From<#from> for #into {
                fn from(value: #from) -> Self {
                    match value { #(#from::#variants => Self::#variants,)* }
                }
            }
        }
    };
    let name = quote!(#name);
    let of = targets
        .of
        .as_ref()
        .map(|row| conversion(&quote!(#row), &name));
    let into = targets
        .into
        .as_ref()
        .map(|target| conversion(&name, &quote!(#target)));
    Ok(quote! { #of #into })
}

/// `From<Row>`, which moves the row's fields, and `From<&Row>`, which clones those that are shown.
fn struct_of(
    name: &Ident,
    row: &Path,
    fields: &Punctuated<Field, Token![,]>,
) -> Result<TokenStream> {
    // The expressions of the attributes see `of`, but not `value`.
    let of = Ident::new("of", Span::call_site());
    let value = Ident::new("value", Span::mixed_site());
    let (mut computed, mut moved, mut cloned) = (Vec::new(), Vec::new(), Vec::new());
    for field in fields {
        let (ident, ty) = (&field.ident, &field.ty);
        match origin(field)? {
            Origin::Field(path) => {
                let member = |value| {
                    let value = converted(ty, Direction::From, &value);
                    quote!(#ident: #value)
                };
                let clone = member(quote!(#value.#path.clone()));
                // A part of a part may be behind an `Arc`, which nothing is moved out of.
                let whole = path.len() == 1;
                moved.push(if whole {
                    member(quote!(#value.#path))
                } else {
                    clone.clone()
                });
                cloned.push(clone);
            }
            Origin::Expression(expression) => computed.push(quote!(#ident: #expression)),
        }
    }
    // An expression may do without the row.
    let borrow = (!computed.is_empty()).then(|| {
        quote! {
            #[allow(unused_variables)]
            let #of: &#row = &#value;
        }
    });
    // Most conversions are of a type into itself, which a derive can't see. Members are evaluated in
    // the order of the text: expressions come first, because they need the whole row.
    Ok(quote! {
        #[automatically_derived]
        #[allow(clippy::useless_conversion)]
        impl ::core::convert::From<#row> for #name {
            fn from(#value: #row) -> Self {
                #borrow
                Self { #(#computed,)* #(#moved,)* }
            }
        }

        #[automatically_derived]
        #[allow(clippy::useless_conversion)]
        impl ::core::convert::From<&#row> for #name {
            fn from(#value: &#row) -> Self {
                #borrow
                Self { #(#computed,)* #(#cloned,)* }
            }
        }
    })
}

fn struct_into(name: &Ident, target: &Path, fields: &Punctuated<Field, Token![,]>) -> TokenStream {
    let members = fields.iter().map(|field| {
        let ident = &field.ident;
        let value = converted(&field.ty, Direction::Into, &quote!(value.#ident));
        quote!(#ident: #value)
    });
    quote! {
        #[automatically_derived]
        #[allow(clippy::useless_conversion)]
        impl ::core::convert::From<#name> for #target {
            fn from(value: #name) -> Self {
                Self { #(#members,)* }
            }
        }
    }
}

fn origin(field: &Field) -> Result<Origin> {
    let mut origin = Origin::Field(field.ident.iter().cloned().collect());
    for attribute in &field.attrs {
        if !attribute.path().is_ident("view") {
            continue;
        }
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("field") {
                let path = Punctuated::parse_separated_nonempty(meta.value()?)?;
                origin = Origin::Field(path);
            } else if meta.path.is_ident("from") {
                origin = Origin::Expression(meta.value()?.parse()?);
            } else {
                return Err(meta.error("a field takes `field = name` or `from = EXPRESSION`"));
            }
            Ok(())
        })?;
    }
    Ok(origin)
}

/// `value` after its conversion. What is inside a container is converted one by one.
fn converted(ty: &Type, direction: Direction, value: &TokenStream) -> TokenStream {
    let (name, inner) = parts(ty);
    let item = |ty| converted(ty, direction, &quote!(item));
    match (name.as_str(), &inner[..]) {
        ("Option", [inner]) => {
            let item = item(inner);
            quote!(#value.map(|item| #item))
        }
        ("Vec", [inner]) => {
            let item = item(inner);
            quote!(#value.into_iter().map(|item| #item).collect())
        }
        ("BTreeMap", [_, inner]) => {
            let item = item(inner);
            quote!(#value.into_iter().map(|(key, item)| (key, #item)).collect())
        }
        _ => match direction {
            // A missing conversion is reported at the field's type.
            Direction::From => {
                quote_spanned!(ty.span()=> <#ty as ::core::convert::From<_>>::from(#value))
            }
            Direction::Into => quote!(::core::convert::Into::into(#value)),
        },
    }
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    fn refusal(input: &DeriveInput) -> String {
        derive(input).unwrap_err().to_string()
    }

    #[test]
    fn a_type_says_its_other_type() {
        let text = refusal(&parse_quote! { struct Thing { id: String } });
        assert!(text.contains("#[view(of = Row)]"), "{text}");
        let text = refusal(&parse_quote! { #[view(off = Row)] struct Thing { id: String } });
        assert!(text.contains("`of = Row`"), "{text}");
    }

    #[test]
    fn a_field_says_nothing_else() {
        let text = refusal(&parse_quote! {
            #[view(of = Row)]
            struct Thing { #[view(fields = id)] id: String }
        });
        assert!(text.contains("`field = name`"), "{text}");
    }

    #[test]
    fn shapes_without_a_list_of_names_are_refused() {
        let text = refusal(&parse_quote! { #[view(of = Row)] struct Thing(String); });
        assert!(text.contains("named fields"), "{text}");
        let text = refusal(&parse_quote! { #[view(of = Row)] enum Thing { One(String) } });
        assert!(text.contains("variants without fields"), "{text}");
        let text = refusal(&parse_quote! { #[view(of = Row)] struct Thing<T> { id: T } });
        assert!(text.contains("parameters"), "{text}");
    }
}
