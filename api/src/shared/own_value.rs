//! What each type with a schema of its own says alike.

/// Those members of `poem_openapi`'s trait `Type` that describe a value that is always there and is
/// no container of others: with the name of a schema that the type registers, or with a name and the
/// schema itself, which then stands wherever the type does.
macro_rules! own_value {
    ($name:expr) => {
        own_value!(@ $name, ::poem_openapi::registry::MetaSchemaRef::Reference($name.to_owned()));
    };
    ($name:expr, $schema:expr) => {
        own_value!(@ $name, ::poem_openapi::registry::MetaSchemaRef::Inline(Box::new($schema)));
    };
    (@ $name:expr, $schema:expr) => {
        const IS_REQUIRED: bool = true;
        type RawValueType = Self;
        type RawElementValueType = Self;

        fn name() -> ::std::borrow::Cow<'static, str> {
            $name.into()
        }

        fn schema_ref() -> ::poem_openapi::registry::MetaSchemaRef {
            $schema
        }

        fn as_raw_value(&self) -> Option<&Self> {
            Some(self)
        }

        fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
            Box::new(self.as_raw_value().into_iter())
        }
    };
}

pub(crate) use own_value;
