//! What may be wrong with one place of a request: a closed list of codes.

use std::fmt;

use crate::words;

words! {
    /// The stable code of one fault, in `errors[].code`. Programs branch on it. The document lists
    /// them in this order.
    pub enum FaultCode {
        /// A member is missing.
        Required = "required",
        /// A member that is not known.
        UnknownField = "unknown_field",
        /// A query parameter that the operation does not have.
        UnknownParameter = "unknown_parameter",
        /// A value of another type.
        Type = "type",
        /// Too few characters, items or members.
        TooShort = "too_short",
        /// Too many characters, items or members.
        TooLong = "too_long",
        /// A number or a time below the least.
        TooSmall = "too_small",
        /// A number or a time above the most.
        TooLarge = "too_large",
        /// JSON of more values than are looked at.
        TooManyValues = "too_many_values",
        /// A text that does not match the pattern.
        Pattern = "pattern",
        /// A value that is not among those allowed, or not here.
        NotAllowed = "not_allowed",
        /// The same thing twice.
        Duplicate = "duplicate",
        /// A text that is not of the documented format.
        Format = "format",
        /// Anything else.
        Invalid = "invalid",
        /// An account of a train is not lent because it is disabled.
        Disabled = "disabled",
        /// It is not lent because it can't be refreshed any more.
        Failed = "failed",
        /// It is not lent because its access token has expired.
        Expired = "expired",
        /// It is not lent because it cools down.
        CoolingDown = "cooling_down",
        /// It is not lent because the request excludes it.
        Excluded = "excluded",
    }
}

impl fmt::Display for FaultCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::FaultCode;

    #[test]
    fn words_parse_back() {
        for code in FaultCode::ALL {
            assert_eq!(FaultCode::parse(code.as_str()), Some(code));
        }
        assert_eq!(FaultCode::parse("range"), None);
    }
}
