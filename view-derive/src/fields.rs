//! What both derives read of a type.

use syn::{
    Data, DataStruct, DeriveInput, Error, Field, Fields, GenericArgument, PathArguments, Result,
    Token, Type, punctuated::Punctuated,
};

/// The named fields of a struct; `None` for anything else.
pub(crate) fn named(input: &DeriveInput) -> Option<&Punctuated<Field, Token![,]>> {
    match &input.data {
        Data::Struct(DataStruct {
            fields: Fields::Named(fields),
            ..
        }) => Some(&fields.named),
        _ => None,
    }
}

/// Refuses parameters of the type: no type of a request or an answer has any.
pub(crate) fn without_generics(input: &DeriveInput) -> Result<()> {
    if input.generics.params.is_empty() {
        return Ok(());
    }
    let refusal = "types with parameters are not supported: implement the trait by hand";
    Err(Error::new_spanned(&input.generics, refusal))
}

/// The last name of a type's path and the types in its angle brackets: `Option` and `String` of
/// `Option<String>`.
pub(crate) fn parts(ty: &Type) -> (String, Vec<&Type>) {
    let Type::Path(path) = ty else {
        return (String::new(), Vec::new());
    };
    let Some(last) = path.path.segments.last() else {
        return (String::new(), Vec::new());
    };
    let mut inner = Vec::new();
    if let PathArguments::AngleBracketed(arguments) = &last.arguments {
        inner.extend(arguments.args.iter().filter_map(|argument| match argument {
            GenericArgument::Type(ty) => Some(ty),
            _ => None,
        }));
    }
    (last.ident.to_string(), inner)
}
