//! Bodies that browsers' forms and OAuth clients send: `application/x-www-form-urlencoded`, read
//! within limits and parsed strictly.

use std::fmt;

use poem::{FromRequest, Request, RequestBody};
use serde::{
    Deserializer,
    de::{self, DeserializeOwned, IntoDeserializer, Visitor, value::MapDeserializer},
    forward_to_deserialize_any,
};

use domain::{Code, FaultCode, Problem};

use super::{
    body::{self, BODY_TIMEOUT},
    error::ApiError,
};

/// Largest form, bytes. The largest thing that a page sends is a passkey's answer.
const FORM_BYTES: usize = 32 * 1024;
/// Most fields of a form.
const FIELDS: usize = 64;

const URL_ENCODED: &str = "application/x-www-form-urlencoded";

/// A form's fields, as a struct of `String` and `Option<String>`. A field that the struct does not
/// have is refused, whether or not the struct says so itself; so is a field that comes twice.
///
/// The type is never taken from `multipart/form-data` or `text/plain`, the other two that a page of
/// another site can send.
#[derive(Clone, Debug)]
pub struct Form<T>(pub T);

impl<'a, T: DeserializeOwned> FromRequest<'a> for Form<T> {
    async fn from_request(request: &'a Request, body: &mut RequestBody) -> poem::Result<Self> {
        Ok(take(request, body)
            .await
            .map(Self)
            .map_err(ApiError::from)?)
    }
}

async fn take<T: DeserializeOwned>(
    request: &Request,
    body: &mut RequestBody,
) -> Result<T, Problem> {
    read(request, body).await?.parse()
}

/// A form whose fields nobody has looked at.
pub struct Unparsed(Vec<(String, String)>);

impl Unparsed {
    /// Takes a field out; `None` if it is not there, or there twice.
    pub fn take(&mut self, name: &str) -> Option<String> {
        let (mut taken, rest): (Vec<_>, _) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(found, _)| found == name);
        self.0 = rest;
        let (one, another) = (taken.pop(), taken.pop());
        another.is_none().then_some(one?.1)
    }

    /// What is left, as a struct.
    ///
    /// # Errors
    /// `validation_failed` for a field that is missing, unknown, or there twice.
    pub fn parse<T: DeserializeOwned>(self) -> Result<T, Problem> {
        T::deserialize(Fields(self.0)).map_err(|Fault(problem)| *problem)
    }
}

/// Reads a form.
///
/// # Errors
/// `unsupported_media_type`, `body_too_large`, `request_timeout`; `validation_failed` for what is no
/// form of ours.
pub async fn read(request: &Request, body: &mut RequestBody) -> Result<Unparsed, Problem> {
    body::not_encoded(request)?;
    if !body::is_declared_as(request, &[URL_ENCODED]) {
        let detail = format!("Send `Content-Type: {URL_ENCODED}`, in UTF-8.");
        return Err(Problem::new(Code::UnsupportedMediaType, detail));
    }
    let body = body.take().map_err(|_| Problem::from(Code::Internal))?;
    let bytes = body::read(request, body, FORM_BYTES, BODY_TIMEOUT).await?;
    decode(&bytes)
}

/// A parameter of a query, if it is there once.
#[must_use]
pub fn query(query: &str, name: &str) -> Option<String> {
    let pairs = url::form_urlencoded::parse(query.as_bytes());
    let mut values = pairs.filter(|(found, _)| found == name);
    let (one, another) = (values.next(), values.next());
    another.is_none().then_some(one?.1.into_owned())
}

/// A value as it stands in a query.
#[must_use]
pub fn encode(value: &str) -> String {
    url::form_urlencoded::byte_serialize(value.as_bytes()).collect()
}

/// Decodes a form.
fn decode(bytes: &[u8]) -> Result<Unparsed, Problem> {
    let refused = |pointer: &str, code, detail: &str| Problem::field(pointer, code, detail);
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(bytes)
        .take(FIELDS + 1)
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    if pairs.len() > FIELDS {
        return Err(refused(
            "",
            FaultCode::TooLong,
            "The form has too many fields.",
        ));
    }
    // What is no UTF-8 becomes U+FFFD when it is decoded; no form of ours holds that.
    let odd = |text: &str| text.contains(['\0', char::REPLACEMENT_CHARACTER]);
    if pairs.iter().any(|(name, value)| odd(name) || odd(value)) {
        let detail = "The form holds a character that can't be stored.";
        return Err(refused("", FaultCode::Invalid, detail));
    }
    Ok(Unparsed(pairs))
}

/// The fields as a struct's deserializer sees them.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn judge(&self, known: &'static [&'static str]) -> Result<(), Fault> {
        let mut seen = Vec::with_capacity(known.len());
        for (name, _) in &self.0 {
            let Some(name) = known.iter().find(|known| *known == name) else {
                let detail = "The form has a field that this page does not know.";
                return Err(Fault::at("", FaultCode::UnknownField, detail));
            };
            if seen.contains(name) {
                let detail = format!("The form has `{name}` twice.");
                return Err(Fault::at(name, FaultCode::Duplicate, &detail));
            }
            seen.push(*name);
        }
        Ok(())
    }
}

impl<'de> Deserializer<'de> for Fields {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Fault> {
        // A mistake in this program: only a struct names the fields that it knows.
        tracing::error!("a form is read as something else than a struct");
        Err(Fault(Box::new(Code::Internal.into())))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.judge(known)?;
        let pairs = self.0.into_iter();
        let pairs = pairs.map(|(name, value)| (name, Text(value)));
        visitor.visit_map(MapDeserializer::new(pairs))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The value of a field: a text, and so also what may be left out.
struct Text(String);

impl IntoDeserializer<'_, Fault> for Text {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Text {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_string(self.0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Why a form is refused, as serde's error.
#[derive(Debug)]
struct Fault(Box<Problem>);

impl Fault {
    fn at(name: &str, code: FaultCode, detail: &str) -> Self {
        let pointer = if name.is_empty() {
            String::new()
        } else {
            format!("/{name}")
        };
        Self(Box::new(Problem::field(&pointer, code, detail)))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    /// The parser's own words could quote a password, so they go nowhere.
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::at("", FaultCode::Invalid, "The form is not valid.")
    }

    fn missing_field(name: &'static str) -> Self {
        Self::at(name, FaultCode::Required, "This field is missing.")
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq, Eq)]
    struct Known {
        email: String,
        return_to: Option<String>,
    }

    fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
        decode(bytes)?.parse()
    }

    #[test]
    fn a_field_can_be_looked_at_before_the_others() {
        let mut form = decode(b"csrf=x&email=a").unwrap();
        assert_eq!(form.take("csrf").as_deref(), Some("x"));
        assert_eq!(form.take("csrf"), None);
        assert_eq!(form.parse::<Known>().unwrap().email, "a");
        let mut twice = decode(b"csrf=x&email=a&csrf=x").unwrap();
        assert_eq!(twice.take("csrf"), None);
    }

    fn fault(text: &str) -> (String, FaultCode) {
        let problem = parse::<Known>(text.as_bytes()).unwrap_err();
        assert_eq!(problem.code, Code::ValidationFailed, "{problem:?}");
        let error = &problem.errors[0];
        (error.pointer.clone(), error.code)
    }

    #[test]
    fn fields_are_decoded() {
        let known: Known = parse(b"email=a%2Bb%40c.example&return_to=%2Fp%2Fa+b").unwrap();
        let expected = Known {
            email: "a+b@c.example".to_owned(),
            return_to: Some("/p/a b".to_owned()),
        };
        assert_eq!(known, expected);
        let known: Known = parse(b"email=").unwrap();
        assert_eq!((known.email.as_str(), known.return_to), ("", None));
    }

    #[test]
    fn what_the_page_does_not_know_is_refused() {
        assert_eq!(
            fault("email=a&role=owner"),
            (String::new(), FaultCode::UnknownField)
        );
        assert_eq!(
            fault("email=a&email=b"),
            ("/email".to_owned(), FaultCode::Duplicate)
        );
        assert_eq!(
            fault("return_to=a"),
            ("/email".to_owned(), FaultCode::Required)
        );
        assert_eq!(fault("email=a%00b"), (String::new(), FaultCode::Invalid));
        assert_eq!(fault("email=%ff"), (String::new(), FaultCode::Invalid));
        let many = "x=1&".repeat(FIELDS + 1);
        assert_eq!(fault(&many), (String::new(), FaultCode::TooLong));
    }

    #[tokio::test]
    async fn only_the_one_type_is_read() {
        let types = [
            (Some("application/x-www-form-urlencoded"), true),
            (
                Some("application/x-www-form-urlencoded;charset=UTF-8"),
                true,
            ),
            (Some("text/plain"), false),
            (Some("multipart/form-data; boundary=x"), false),
            (Some("application/json"), false),
            (None, false),
        ];
        for (content_type, taken) in types {
            let mut request = Request::builder();
            if let Some(value) = content_type {
                request = request.content_type(value);
            }
            let request = request.body("email=a");
            let (request, mut body) = request.split();
            let read = take::<Known>(&request, &mut body).await;
            assert_eq!(read.is_ok(), taken, "{content_type:?}: {read:?}");
        }
    }

    #[tokio::test]
    async fn a_large_form_is_refused() {
        let request = Request::builder()
            .content_type(URL_ENCODED)
            .body(format!("email={}", "a".repeat(FORM_BYTES)));
        let (request, mut body) = request.split();
        let refused = take::<Known>(&request, &mut body).await.unwrap_err();
        assert_eq!(refused.code, Code::BodyTooLarge);
    }
}
