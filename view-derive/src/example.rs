//! The derive `Example`.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::{
    Attribute, DeriveInput, Error, Expr, Field, Lit, LitStr, Path, Result, Token, Type,
    parenthesized, parse::ParseStream, spanned::Spanned as _,
};

use crate::fields::{named, parts, without_generics};

/// The types whose example is their `Default`, unless an attribute says otherwise.
const EMPTY: [&str; 4] = ["Option", "bool", "Vec", "MaybeUndefined"];

pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    without_generics(input)?;
    let name = &input.ident;
    let example = match (given(&input.attrs)?, named(input)) {
        (Some(whole), _) => quote!(::core::convert::From::from(#whole)),
        (None, Some(fields)) => {
            let mut members = Vec::with_capacity(fields.len());
            for field in fields {
                let (ident, value) = (&field.ident, example_of(field)?);
                members.push(quote!(#ident: #value));
            }
            quote!(Self { #(#members,)* })
        }
        (None, None) => {
            let refusal = "only a struct with named fields has an example for each of them: \
                           say the whole, `#[example(EXPRESSION)]`";
            return Err(Error::new_spanned(name, refusal));
        }
    };
    Ok(quote! {
        #[automatically_derived]
        #[allow(clippy::useless_conversion)]
        impl ::poem_openapi::types::Example for #name {
            fn example() -> Self {
                #example
            }
        }
    })
}

/// What `#[example(…)]` says.
fn given(attributes: &[Attribute]) -> Result<Option<Expr>> {
    let mut found = attributes
        .iter()
        .filter(|one| one.path().is_ident("example"));
    found.next().map(Attribute::parse_args).transpose()
}

fn example_of(field: &Field) -> Result<TokenStream> {
    let ty = &field.ty;
    if let Some(expression) = given(&field.attrs)? {
        return Ok(value(ty, &expression));
    }
    if let Some(default) = default_of(&field.attrs)? {
        return Ok(default);
    }
    let (name, _) = parts(ty);
    Ok(if EMPTY.contains(&name.as_str()) {
        quote!(::core::default::Default::default())
    } else {
        // A type without an example is reported where it is written.
        quote_spanned!(ty.span()=> <#ty as ::poem_openapi::types::Example>::example())
    })
}

/// An expression as a value of `ty`.
fn value(ty: &Type, expression: &Expr) -> TokenStream {
    let (name, inner) = parts(ty);
    match (name.as_str(), &inner[..], expression) {
        ("Option", [inner], _) => {
            let value = value(inner, expression);
            quote!(::core::option::Option::Some(#value))
        }
        ("Vec", [inner], Expr::Array(list)) => {
            let values = list.elems.iter().map(|one| value(inner, one));
            quote!(::std::vec![#(#values),*])
        }
        // The type of a number follows from its place; a conversion would leave it open.
        (_, _, Expr::Lit(literal)) if !matches!(literal.lit, Lit::Str(_)) => quote!(#literal),
        _ => quote!(<#ty as ::core::convert::From<_>>::from(#expression)),
    }
}

/// The default that `#[oai(default)]` or `#[oai(default = "function")]` gives a field.
fn default_of(attributes: &[Attribute]) -> Result<Option<TokenStream>> {
    let mut default = None;
    for attribute in attributes {
        if !attribute.path().is_ident("oai") {
            continue;
        }
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("default") {
                return skip(meta.input);
            }
            default = Some(if meta.input.peek(Token![=]) {
                let function: Path = meta.value()?.parse::<LitStr>()?.parse()?;
                quote!(#function())
            } else {
                quote!(::core::default::Default::default())
            });
            Ok(())
        })?;
    }
    Ok(default)
}

/// Passes over what belongs to another name: `= value`, `(…)` or nothing.
fn skip(input: ParseStream<'_>) -> Result<()> {
    if input.peek(Token![=]) {
        input.parse::<Token![=]>()?;
        input.parse::<Expr>()?;
    } else if input.peek(syn::token::Paren) {
        let inner;
        parenthesized!(inner in input);
        inner.parse::<TokenStream>()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use syn::parse_quote;

    use super::*;

    fn refusal(input: &DeriveInput) -> String {
        derive(input).unwrap_err().to_string()
    }

    #[test]
    fn what_has_no_named_fields_says_the_whole() {
        let text = refusal(&parse_quote! { enum Kind { One } });
        assert!(text.contains("say the whole"), "{text}");
        let whole: DeriveInput = parse_quote! { #[example(1)] struct Thing(u8); };
        assert!(derive(&whole).is_ok());
    }

    #[test]
    fn defaults_are_found_among_other_attributes() {
        let field: Field = parse_quote! {
            #[oai(nullable, rename = "b", validator(minimum(value = "0")), default = "five")]
            a: u8
        };
        assert_eq!(example_of(&field).unwrap().to_string(), "five ()");
    }

    #[test]
    fn an_expression_is_put_into_its_containers() {
        let field: Field = parse_quote! { #[example([1, 2])] a: Option<Vec<u8>> };
        let text = example_of(&field).unwrap().to_string();
        let expected = quote!(::core::option::Option::Some(::std::vec![1, 2]));
        assert_eq!(text, expected.to_string());
    }
}
