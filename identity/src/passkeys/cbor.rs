//! The part of CBOR that WebAuthn uses (RFC 8949, CTAP2's canonical form).
//!
//! Refused are indefinite lengths, numbers that are longer than they need be, more than
//! [`DEPTH_MAX`] levels, a key that stands twice in a map, keys that are no numbers or texts, tags,
//! and floating-point numbers. Nothing is allocated by a length that is only announced.

/// How deep lists and maps may be nested: an attestation object has a map with lists.
const DEPTH_MAX: usize = 4;
/// Most items of a list or map.
const ITEMS_MAX: u64 = 64;
/// The longest text that is read, in bytes.
const LEN_MAX: usize = 48 * 1024;

/// A value, which borrows from the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Int(i64),
    Bytes(&'a [u8]),
    Text(&'a str),
    List(Vec<Self>),
    Map(Vec<(Self, Self)>),
    Bool(bool),
    Null,
}

/// Reads a text that is one value.
pub(super) fn parse(text: &[u8]) -> Option<Value<'_>> {
    let (value, rest) = parse_first(text)?;
    rest.is_empty().then_some(value)
}

/// Reads the first value of a text, and returns what comes after it.
pub(super) fn parse_first(text: &[u8]) -> Option<(Value<'_>, &[u8])> {
    if text.len() > LEN_MAX {
        return None;
    }
    let mut reader = Reader(text);
    let value = reader.value(0)?;
    Some((value, reader.0))
}

impl<'a> Value<'a> {
    pub(super) const fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) const fn as_bytes(&self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub(super) const fn as_text(&self) -> Option<&'a str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn as_map(&self) -> Option<&[(Self, Self)]> {
        match self {
            Self::Map(members) => Some(members),
            _ => None,
        }
    }

    /// The member of a map with a text as its key.
    pub(super) fn member(&self, name: &str) -> Option<&Self> {
        self.find(&Value::Text(name))
    }

    /// The member of a map with a number as its key.
    pub(super) fn labelled(&self, label: i64) -> Option<&Self> {
        self.find(&Value::Int(label))
    }

    fn find(&self, wanted: &Value<'_>) -> Option<&Self> {
        let mut members = self.as_map()?.iter();
        members
            .find(|(key, _)| key == wanted)
            .map(|(_, value)| value)
    }
}

/// What has not been read yet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn value(&mut self, depth: usize) -> Option<Value<'a>> {
        let first = self.take(1)?[0];
        let (kind, low) = (first >> 5, first & 0x1f);
        if kind == 7 {
            return match low {
                20 => Some(Value::Bool(false)),
                21 => Some(Value::Bool(true)),
                22 => Some(Value::Null),
                _ => None,
            };
        }
        let number = self.number(low)?;
        match kind {
            0 => i64::try_from(number).ok().map(Value::Int),
            1 => i64::try_from(number).ok().map(|n| Value::Int(-1 - n)),
            2 => self.sized(number).map(Value::Bytes),
            3 => std::str::from_utf8(self.sized(number)?)
                .ok()
                .map(Value::Text),
            4 | 5 if depth == DEPTH_MAX || number > ITEMS_MAX => None,
            4 => {
                let items = (0..number).map(|_| self.value(depth + 1));
                items.collect::<Option<_>>().map(Value::List)
            }
            5 => self.map(number, depth + 1).map(Value::Map),
            _ => None,
        }
    }

    fn map(&mut self, members: u64, depth: usize) -> Option<Vec<(Value<'a>, Value<'a>)>> {
        let mut map: Vec<(Value<'a>, Value<'a>)> = Vec::new();
        for _ in 0..members {
            let key = self.value(depth)?;
            let is_key = matches!(key, Value::Int(_) | Value::Text(_));
            if !is_key || map.iter().any(|(other, _)| *other == key) {
                return None;
            }
            map.push((key, self.value(depth)?));
        }
        Some(map)
    }

    /// The number of a value's head: the low bits of its first byte, or as many bytes as they say.
    fn number(&mut self, low: u8) -> Option<u64> {
        let length = match low {
            0..24 => return Some(low.into()),
            24..28 => 1 << (low - 24),
            _ => return None,
        };
        let bytes = self.take(length)?;
        let number = bytes
            .iter()
            .fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
        let shortest = match length {
            1 => 24,
            length => 1 << (length * 4),
        };
        (number >= shortest).then_some(number)
    }

    fn sized(&mut self, length: u64) -> Option<&'a [u8]> {
        self.take(usize::try_from(length).ok()?)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_values_of_webauthn_are_read() {
        let text = [
            0xa4, 0x01, 0x02, 0x03, 0x26, 0x20, 0x42, 0xaa, 0xbb, 0x62, b'o', b'k', 0x83, 0xf4,
            0xf5, 0xf6,
        ];
        let map = parse(&text).unwrap();
        assert_eq!(map.labelled(1), Some(&Value::Int(2)));
        assert_eq!(map.labelled(3).and_then(Value::as_int), Some(-7));
        assert_eq!(
            map.labelled(-1).and_then(Value::as_bytes),
            Some(&[0xaa, 0xbb][..])
        );
        let list = [Value::Bool(false), Value::Bool(true), Value::Null];
        assert_eq!(map.member("ok"), Some(&Value::List(list.to_vec())));
        assert_eq!(map.member("no"), None);
        for (text, number) in [
            (&[0x18, 0x18][..], 24),
            (&[0x19, 0x01, 0x00], 256),
            (&[0x39, 0x01, 0x00], -257),
            (&[0x1a, 0, 1, 0, 0], 65536),
            (&[0x1b, 0, 0, 0, 1, 0, 0, 0, 0], 1 << 32),
        ] {
            assert_eq!(parse(text), Some(Value::Int(number)));
        }
    }

    #[test]
    fn what_comes_after_a_value_is_returned_or_refused() {
        assert_eq!(
            parse_first(&[0x01, 0x02]),
            Some((Value::Int(1), &[0x02][..]))
        );
        assert_eq!(parse(&[0x01, 0x02]), None);
    }

    #[test]
    fn everything_else_is_refused() {
        for (text, why) in [
            (&[0x5f, 0x41, 0xaa, 0xff][..], "bytes without a length"),
            (&[0x7f, 0x61, b'a', 0xff], "a text without a length"),
            (&[0x9f, 0x01, 0xff], "a list without a length"),
            (&[0xbf, 0x01, 0x02, 0xff], "a map without a length"),
            (&[0xa2, 0x01, 0x02, 0x01, 0x03], "a key twice"),
            (&[0xa2, 0x61, b'a', 1, 0x61, b'a', 2], "a text as key twice"),
            (&[0xa1, 0x41, 0xaa, 0x01], "bytes as a key"),
            (&[0xa1, 0xa0, 0x01], "a map as a key"),
            (&[0x18, 0x17], "a number of one byte too many"),
            (&[0x19, 0x00, 0xff], "a number of one byte too many"),
            (&[0x1a, 0, 0, 0xff, 0xff], "a number of two bytes too many"),
            (&[0x58, 0x01, 0xaa], "a length of one byte too many"),
            (&[0x1b, 0x80, 0, 0, 0, 0, 0, 0, 0], "a number above i64"),
            (&[0x3b, 0xff, 0, 0, 0, 0, 0, 0, 0], "a number below i64"),
            (&[0x81, 0x81, 0x81, 0x81, 0x80], "five levels"),
            (&[0xa1, 1, 0xa1, 1, 0xa1, 1, 0xa1, 1, 0xa0], "five levels"),
            (&[0x98, 0x41], "65 items"),
            (&[0x9b, 0xff, 0, 0, 0, 0, 0, 0, 0], "too many items"),
            (&[0x5b, 0xff, 0, 0, 0, 0, 0, 0, 0], "too many bytes"),
            (&[0x42, 0xaa], "bytes that end early"),
            (&[0x61, 0xff], "a text that is not UTF-8"),
            (&[0xc1, 0x01], "a tag"),
            (&[0xf7], "undefined"),
            (&[0xf9, 0, 0], "a floating-point number"),
            (&[0xf8, 0x14], "a long simple value"),
            (&[0x1c], "a reserved length"),
            (&[], "nothing"),
        ] {
            assert_eq!(parse(text), None, "{why}");
        }
        assert!(parse(&[0x81, 0x81, 0x81, 0x80]).is_some(), "four levels");
        let long = |length: usize| {
            let mut text = vec![0x59];
            text.extend(u16::try_from(length).unwrap().to_be_bytes());
            text.resize(3 + length, 0);
            text
        };
        assert!(parse(&long(LEN_MAX - 3)).is_some());
        assert_eq!(parse(&long(LEN_MAX - 2)), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(text in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some((_, rest)) = parse_first(&text) {
                prop_assert!(rest.len() < text.len());
                prop_assert_eq!(parse(&text).is_some(), rest.is_empty());
            }
        }
    }
}
