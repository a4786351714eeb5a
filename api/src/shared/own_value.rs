//! What each type with a schema of its own says alike.

/// Those members of `poem_openapi`'s trait `Type` that describe a value that is always there and is
/// no container of others.
macro_rules! own_value {
    () => {
        const IS_REQUIRED: bool = true;
        type RawValueType = Self;
        type RawElementValueType = Self;

        fn as_raw_value(&self) -> Option<&Self> {
            Some(self)
        }

        fn raw_element_iter<'a>(&'a self) -> Box<dyn Iterator<Item = &'a Self> + 'a> {
            Box::new(self.as_raw_value().into_iter())
        }
    };
}

pub(crate) use own_value;
