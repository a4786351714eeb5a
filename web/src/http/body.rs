//! Request bodies: read within limits, parsed strictly, and judged by the published contract.
//!
//! An operation that takes [`Body<T>`] never sees a body that its own OpenAPI document refuses.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use poem::{
    Request, RequestBody,
    http::{HeaderValue, header},
};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, Registry},
    types::ParseFromJSON,
};
use tokio::time::Instant;

use domain::{Code, FaultCode, FieldError, Problem, limits, permits::Permit};

use super::{
    context::RequestContext,
    error::ApiError,
    json::{self, Parsed},
    share::Owner,
};

/// How long a body may take to arrive as a whole.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(20);

/// How long what a body announced is counted for it; from then on, what has come.
const RESERVED_FOR: Duration = Duration::from_millis(500);

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";

/// A required JSON body of at most `MAX` bytes.
#[derive(Clone, Debug)]
pub struct Body<T, const MAX: usize = { limits::BODY_BYTES }>(pub T);

/// A JSON body that may be left out: an absent or empty one counts as `{}`.
#[derive(Clone, Debug)]
pub struct OptionalBody<T, const MAX: usize = { limits::BODY_BYTES }>(pub T);

/// A JSON Merge Patch (RFC 7396), declared as such or as plain JSON.
///
/// Members that may be removed are `MaybeUndefined<_>` marked `#[oai(nullable)]`; members that
/// may be left out but not removed are plain `Option<_>`, for which the contract refuses null.
#[derive(Clone, Debug)]
pub struct Patch<T, const MAX: usize = { limits::BODY_BYTES }>(pub T);

struct Rules {
    types: &'static [&'static str],
    required: bool,
}

const BODY: Rules = Rules {
    types: &[JSON],
    required: true,
};
const OPTIONAL: Rules = Rules {
    types: &[JSON],
    required: false,
};
const PATCH: Rules = Rules {
    types: &[JSON, MERGE_PATCH],
    required: true,
};

macro_rules! extractor {
    ($name:ident, $rules:expr) => {
        impl<'a, T: ParseFromJSON, const MAX: usize> ApiExtractor<'a> for $name<T, MAX> {
            const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
            const PARAM_IS_REQUIRED: bool = $rules.required;

            type ParamType = ();
            type ParamRawType = ();

            fn register(registry: &mut Registry) {
                T::register(registry);
            }

            fn request_meta() -> Option<MetaRequest> {
                let media = |content_type: &&'static str| MetaMediaType {
                    content_type: *content_type,
                    schema: T::schema_ref(),
                };
                Some(MetaRequest {
                    description: None,
                    content: $rules.types.iter().map(media).collect(),
                    required: $rules.required,
                })
            }

            async fn from_request(
                request: &'a Request,
                body: &mut RequestBody,
                _: ExtractParamOptions<()>,
            ) -> poem::Result<Self> {
                Ok(take::<T>(request, body, &$rules, MAX)
                    .await
                    .map(Self)
                    .map_err(ApiError::from)?)
            }
        }
    };
}

extractor!(Body, BODY);
extractor!(OptionalBody, OPTIONAL);
extractor!(Patch, PATCH);

async fn take<T: ParseFromJSON>(
    request: &Request,
    body: &mut RequestBody,
    rules: &Rules,
    bytes_max: usize,
) -> Result<T, Problem> {
    let context = RequestContext::of(request).map_err(ApiError::into_problem)?;
    not_encoded(request)?;
    let declared = declared_type(request, rules)?;
    let body = body.take().map_err(|_| Problem::from(Code::Internal))?;
    let bytes = read(request, body, bytes_max, BODY_TIMEOUT).await?;
    context.note_body(&bytes);
    let shape = json::shape_of(&T::name());
    let parsed = match (bytes.is_empty(), rules.required) {
        (true, true) => {
            return Err(Problem::new(
                Code::MalformedJson,
                "A JSON body is needed; there is none.",
            ));
        }
        (true, false) => json::parse(b"{}", shape)?,
        (false, _) if !declared => return Err(unsupported(rules)),
        (false, _) => json::parse(&bytes, shape)?,
    };
    judge(context, parsed)
}

/// Whether a content type is declared; one that doesn't fit is refused before anything is read.
fn declared_type(request: &Request, rules: &Rules) -> Result<bool, Problem> {
    // Without one an optional body can still be absent; only reading tells.
    if !rules.required && !request.headers().contains_key(header::CONTENT_TYPE) {
        return Ok(false);
    }
    if is_declared_as(request, rules.types) {
        Ok(true)
    } else {
        Err(unsupported(rules))
    }
}

/// Whether exactly one content type is declared, and it is among `types`.
pub(super) fn is_declared_as(request: &Request, types: &[&str]) -> bool {
    let mut values = request.headers().get_all(header::CONTENT_TYPE).iter();
    let (first, second) = (values.next(), values.next());
    let first = first.and_then(|value| value.to_str().ok());
    second.is_none() && first.is_some_and(|text| is_one_of(text, types))
}

/// Refuses what is packed (RFC 9110 §15.5.16): read as it is it would be no JSON, and the fault would
/// not be named.
pub(super) fn not_encoded(request: &Request) -> Result<(), Problem> {
    let mut encodings = request.headers().get_all(header::CONTENT_ENCODING).iter();
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if encodings.all(plain) {
        return Ok(());
    }
    let detail = "Send the body as it is, without `Content-Encoding`.";
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}

fn is_one_of(text: &str, types: &[&str]) -> bool {
    let mut parts = text.split(';');
    let essence = parts.next().unwrap_or_default().trim();
    // JSON has no parameters (RFC 8259 §11); a charset that says what is so anyway does no harm.
    let harmless = |parameter: &str| {
        let parameter = parameter.trim();
        parameter.is_empty()
            || parameter.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("charset")
                    && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            })
    };
    types.iter().any(|t| essence.eq_ignore_ascii_case(t)) && parts.all(harmless)
}

fn unsupported(rules: &Rules) -> Problem {
    let types = rules.types.join("` or `");
    Problem::new(
        Code::UnsupportedMediaType,
        format!("Send `Content-Type: {types}`, in UTF-8."),
    )
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("At most {bytes_max} bytes are taken."),
    )
}

/// Reads at most `bytes_max` bytes, whatever `Content-Length` says or doesn't say.
pub(super) async fn read(
    request: &Request,
    body: poem::Body,
    bytes_max: usize,
    time_max: Duration,
) -> Result<Bytes, Problem> {
    let announced: Option<u64> = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length| usize::try_from(length).is_ok_and(|l| l > bytes_max)) {
        return Err(too_large(bytes_max));
    }
    let announced = announced.and_then(|length| usize::try_from(length).ok());
    let context = request.data::<RequestContext>();
    let arriving = Arriving {
        context,
        counted: None,
        first: Bytes::new(),
        rest: BytesMut::new(),
    };
    let reading = arriving.collect(body, announced, bytes_max);
    let mut reading = pin!(tokio::time::timeout(time_max, reading));
    let note_arriving = |is| context.inspect(|context| context.note_arriving(is));
    note_arriving(true);
    // Mostly all of it came together with the head.
    let now = poll_fn(|task| Poll::Ready(reading.as_mut().poll(task))).await;
    let outcome = match (now, context) {
        (Poll::Ready(outcome), _) => outcome,
        (Poll::Pending, None) => reading.await,
        (Poll::Pending, Some(context)) => {
            context.leave_place();
            match reading.await {
                Ok(Ok(bytes)) => Ok(context.reenter().await.map(|()| bytes)),
                outcome => outcome,
            }
        }
    };
    note_arriving(false);
    outcome.unwrap_or_else(|_| Err(Code::RequestTimeout.into()))
}

/// A body that arrives, and what is counted of it.
struct Arriving<'a> {
    context: Option<&'a RequestContext>,
    counted: Option<Permit<Owner>>,
    first: Bytes,
    rest: BytesMut,
}

impl Arriving<'_> {
    /// Takes all of it in. What was announced has its room before anything is read, and keeps it for
    /// a moment: so bodies that come at once do not stop each other half-way. From then on what has
    /// come is counted and no more, so that who sends slowly keeps little from the others.
    async fn collect(
        mut self,
        body: poem::Body,
        announced: Option<usize>,
        bytes_max: usize,
    ) -> Result<Bytes, Problem> {
        let expected = announced.unwrap_or(0);
        if let Some(context) = self.context
            && expected > 0
        {
            self.counted = context.body_bytes(expected).await?;
        }
        let mut reserved = self.counted.is_some();
        let until = Instant::now() + RESERVED_FOR;
        let mut chunks = pin!(body.into_bytes_stream());
        loop {
            let chunk = if reserved {
                if let Ok(chunk) = tokio::time::timeout_at(until, chunks.next()).await {
                    chunk
                } else {
                    reserved = false;
                    let arrived = self.len();
                    if let Some(permit) = self.counted.as_mut() {
                        permit.shrink_to(arrived);
                    }
                    continue;
                }
            } else {
                chunks.next().await
            };
            let Some(chunk) = chunk else { break };
            let chunk = chunk.map_err(|_| {
                Problem::new(Code::MalformedJson, "The body did not arrive as a whole.")
            })?;
            let arrived = self.len() + chunk.len();
            if arrived > bytes_max {
                return Err(too_large(bytes_max));
            }
            if let Some(context) = self.context {
                context.grow_body(&mut self.counted, arrived)?;
            }
            self.append(chunk, if reserved { expected } else { arrived });
        }
        if let Some(context) = self.context {
            context.keep_body(self.counted.take());
        }
        Ok(if self.rest.is_empty() {
            self.first
        } else {
            self.rest.freeze()
        })
    }

    fn len(&self) -> usize {
        self.first.len().max(self.rest.len())
    }

    /// Nearly every body comes in one piece: only a second one makes a copy, with room for as much
    /// as is counted.
    fn append(&mut self, chunk: Bytes, room: usize) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = chunk;
            return;
        }
        if self.rest.is_empty() {
            self.rest.reserve(room);
            self.rest.extend_from_slice(&self.first);
            self.first = Bytes::new();
        }
        self.rest.extend_from_slice(&chunk);
    }
}

/// Checks a body against the contract's schema of `T`, then makes a `T` of it.
fn judge<T: ParseFromJSON>(context: &RequestContext, parsed: Parsed) -> Result<T, Problem> {
    let mut faults = context
        .contract()
        .faults(&T::name(), &parsed.tree)
        .ok_or_else(|| {
            tracing::error!(schema = %T::name(), "the contract has no schema for a request body");
            Problem::from(Code::Internal)
        })?;
    json::nul_faults(&parsed.tree, &mut faults);
    for fault in &parsed.faults {
        if !faults.contains(fault) {
            faults.push(fault.clone());
        }
    }
    if !faults.is_empty() {
        faults.truncate(crate::contract::FAULTS_MAX);
        return Err(Problem::invalid(faults));
    }
    let value = parsed.into_value();
    // JSON Schema counts 1.0 as an integer, the parser doesn't: only then is a copy made.
    let spare = json::has_whole_floats(&value).then(|| value.clone());
    T::parse_from_json(Some(value))
        .or_else(|error| match spare {
            Some(value) => T::parse_from_json(Some(json::with_whole_numbers(value))),
            None => Err(error),
        })
        .map_err(|error| {
            // The schema should have said so: the message may hold input, so it goes nowhere else.
            tracing::debug!(
                error = error.message(),
                "a body passed its schema but does not parse"
            );
            Problem::invalid(vec![FieldError::new(
                "",
                FaultCode::Invalid,
                "The body is not valid.",
            )])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_that_never_ends_is_given_up() {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>("{")]);
        let body = poem::Body::from_bytes_stream(first.chain(futures_util::stream::pending()));
        let read = read(&Request::default(), body, 100, Duration::from_millis(20)).await;
        assert_eq!(read.unwrap_err().code, Code::RequestTimeout);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_refused() {
        let broken = [Ok("{"), Err(std::io::Error::other("gone"))];
        let body = poem::Body::from_bytes_stream(futures_util::stream::iter(broken));
        let read = read(&Request::default(), body, 100, BODY_TIMEOUT).await;
        assert_eq!(read.unwrap_err().code, Code::MalformedJson);
    }
}
