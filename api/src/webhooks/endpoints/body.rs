//! What a request says of a webhook endpoint, and whether that may be.

use std::collections::BTreeMap;

use poem_openapi::{
    Object,
    registry::MetaSchema,
    types::{MaybeUndefined, ParseFromJSON, ParseResult, ToJSON, Type},
};
use serde_json::Value;
use view_derive::Example;

use domain::{
    FaultCode, FieldError, Problem, limits::HEADERS, retry::Schedule, signature::Signing,
};
use persistence::{Endpoint, EndpointPatch, NewEndpoint, Sending};

use crate::{
    runs::pipelines::slugs,
    shared::{Word, change, destination, own_value},
};
use web::contract::child;

/// An endpoint to make.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "NewWebhookEndpoint",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub struct NewEndpointBody {
    /// Where it is: an https URL on a public address, without credentials and fragment.
    #[oai(validator(min_length = 1, max_length = 2048))]
    #[example("https://example.com/hooks")]
    pub(super) url: String,
    /// For people.
    #[oai(nullable, validator(max_length = 1000))]
    #[example("Tells the billing service.")]
    pub(super) description: Option<String>,
    /// `*`, `prefix.*` or event types: what one of them matches is delivered.
    #[oai(
        default = "every_type",
        validator(
            min_items = 1,
            max_items = 50,
            unique_items,
            max_length = 128,
            pattern = r"^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$"
        )
    )]
    #[example(["run.*"])]
    pub(super) event_types: Vec<String>,
    /// If given, only what happens in these pipelines is delivered.
    #[oai(
        nullable,
        validator(
            min_items = 1,
            max_items = 50,
            unique_items,
            pattern = "^[a-z0-9][a-z0-9-]{0,62}$"
        )
    )]
    pub(super) pipelines: Option<Vec<String>>,
    /// What every delivery carries besides. Names of the connection's and of our own headers are
    /// refused.
    #[oai(default, validator(max_properties = 20, max_length = 1024))]
    #[example(BTreeMap::from([("X-Team".into(), "billing".into())]))]
    pub(super) headers: BTreeMap<String, String>,
    /// Whether deliveries are made.
    #[oai(default = "yes")]
    enabled: bool,
    /// Whether deliveries carry the newest subcommand bearer as `Authorization: Bearer`. Only a
    /// publisher that was seeded starts with true.
    #[example(false)]
    send_bearer: Option<bool>,
    /// What deliveries are signed by. `ed25519` makes a pair of keys for this endpoint.
    #[oai(default = "shared")]
    signing: Word<Signing>,
    /// Whether deliveries go out one after the other, in the order of their events. One that fails
    /// holds up the others until it arrives or its last try is over.
    #[oai(default)]
    ordered: bool,
    /// Most deliveries a second, whichever processes make them.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "10000")))]
    #[example(50)]
    rate_limit_per_second: Option<u32>,
    /// Waits before the second, third, … try in seconds, instead of the operator's; none for a
    /// single try. Each is spread by a fifth to either side.
    #[oai(
        nullable,
        validator(max_items = 32, minimum(value = "1"), maximum(value = "604800"))
    )]
    retry_schedule_seconds: Option<Vec<u32>>,
    /// Most deliveries under way at a time, instead of the operator's limit.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "100")))]
    max_in_flight: Option<u32>,
}

const fn shared() -> Word<Signing> {
    Word(Signing::Hmac)
}

fn every_type() -> Vec<String> {
    vec!["*".to_owned()]
}

const fn yes() -> bool {
    true
}

/// A header's new value; null takes the header away (RFC 7396 §2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange(Option<String>);

impl Type for HeaderChange {
    own_value!(
        "header_change",
        MetaSchema {
            nullable: true,
            max_length: Some(outbound::HEADER_VALUE_LEN_MAX),
            ..MetaSchema::new("string")
        }
    );
}

impl ParseFromJSON for HeaderChange {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        let text = Option::<String>::parse_from_json(value);
        text.map(Self)
            .map_err(poem_openapi::types::ParseError::propagate)
    }
}

impl ToJSON for HeaderChange {
    fn to_json(&self) -> Option<Value> {
        self.0.to_json()
    }
}

/// What to change of an endpoint; what is left out stays.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "WebhookEndpointPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub struct EndpointPatchBody {
    /// Where it is.
    #[oai(validator(min_length = 1, max_length = 2048))]
    url: Option<String>,
    /// For people; null takes it away.
    #[oai(nullable, validator(max_length = 1000))]
    #[example(MaybeUndefined::Null)]
    description: MaybeUndefined<String>,
    /// The new list.
    #[oai(validator(
        min_items = 1,
        max_items = 50,
        unique_items,
        max_length = 128,
        pattern = r"^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)$"
    ))]
    #[example(["run.failed", "run.expired"])]
    event_types: Option<Vec<String>>,
    /// The new list; null for all pipelines, also those to come.
    #[oai(
        nullable,
        validator(
            min_items = 1,
            max_items = 50,
            unique_items,
            pattern = "^[a-z0-9][a-z0-9-]{0,62}$"
        )
    )]
    pipelines: MaybeUndefined<Vec<String>>,
    /// Headers to set, by name; null takes one away, the others stay.
    #[oai(validator(max_properties = 40))]
    headers: Option<BTreeMap<String, HeaderChange>>,
    /// Whether deliveries are made. What waits meanwhile goes out when it is true again.
    #[example(true)]
    enabled: Option<bool>,
    /// Whether deliveries carry the newest subcommand bearer.
    send_bearer: Option<bool>,
    /// What deliveries are signed by. `ed25519` makes a pair of keys, unless there is a live one.
    signing: Option<Word<Signing>>,
    /// Whether deliveries go out one after the other, in the order of their events.
    ordered: Option<bool>,
    /// Most deliveries a second; null for no limit.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "10000")))]
    #[example(MaybeUndefined::Value(10))]
    rate_limit_per_second: MaybeUndefined<u32>,
    /// Waits before the second, third, … try in seconds; null for the operator's.
    #[oai(
        nullable,
        validator(max_items = 32, minimum(value = "1"), maximum(value = "604800"))
    )]
    retry_schedule_seconds: MaybeUndefined<Vec<u32>>,
    /// Most deliveries under way at a time; null for the operator's limit.
    #[oai(nullable, validator(minimum(value = "1"), maximum(value = "100")))]
    max_in_flight: MaybeUndefined<u32>,
}

/// The contract bounds waits as [`Schedule`] does; where it does not, its word counts.
fn schedule(waits: &[u32], faults: &mut Vec<FieldError>) -> Option<Schedule> {
    match Schedule::of_seconds(waits) {
        Ok(schedule) => Some(schedule),
        Err(error) => {
            let detail = format!("{error}.");
            faults.push(FieldError::new(
                "/retry_schedule_seconds",
                FaultCode::NotAllowed,
                detail,
            ));
            None
        }
    }
}

/// Where a header stands in a body; names that are too long are not repeated.
fn header_pointer(name: &str) -> String {
    if name.len() <= outbound::HEADER_NAME_LEN_MAX {
        child("/headers", name)
    } else {
        "/headers".to_owned()
    }
}

/// Judges headers by the rules of what goes out, and by each other: their names have no case.
fn check_headers(headers: &BTreeMap<String, String>, faults: &mut Vec<FieldError>) {
    let mut seen = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        if let Err(refusal) = outbound::check_custom_header(name, value) {
            faults.push(destination::header_fault(header_pointer(name), refusal));
        }
        let plain = name.to_ascii_lowercase();
        if seen.contains(&plain) {
            let detail = "The same header stands twice; case makes no difference.";
            faults.push(FieldError::new(
                header_pointer(name),
                FaultCode::Duplicate,
                detail,
            ));
        }
        seen.push(plain);
    }
}

impl NewEndpointBody {
    /// Checks what the contract can't say.
    pub(super) fn checked(self, policy: &outbound::Policy) -> Result<NewEndpoint, Problem> {
        let mut faults = Vec::new();
        check_headers(&self.headers, &mut faults);
        let pipelines = self
            .pipelines
            .map(|texts| slugs(&texts, "/pipelines", &mut faults));
        let waits = self.retry_schedule_seconds.as_deref();
        let sending = Sending {
            ordered: self.ordered,
            rate_limit_per_second: self.rate_limit_per_second,
            retry_schedule: waits.and_then(|waits| schedule(waits, &mut faults)),
            max_in_flight: self.max_in_flight,
        };
        let url = match destination::check(policy, "/url", &self.url) {
            Ok(url) => url,
            Err(fault) => return Err(destination::refusal(faults, vec![fault])),
        };
        destination::refuse(faults, Vec::new())?;
        Ok(NewEndpoint {
            url,
            description: self.description,
            event_types: self.event_types,
            pipelines,
            headers: self.headers,
            enabled: self.enabled,
            send_bearer: self.send_bearer,
            signing: self.signing.0,
            sending,
        })
    }
}

impl EndpointPatchBody {
    /// Checks what the contract can't say, but for the headers, which depend on those that are
    /// there: see [`merged_into`](Self::merged_into).
    pub(super) fn checked(&self, policy: &outbound::Policy) -> Result<EndpointPatch, Problem> {
        let mut faults = Vec::new();
        let pipelines = change(self.pipelines.clone())
            .map(|texts| texts.map(|texts| slugs(&texts, "/pipelines", &mut faults)));
        let retry_schedule = change(self.retry_schedule_seconds.clone())
            .map(|waits| waits.and_then(|waits| schedule(&waits, &mut faults)));
        let (mut url, mut refused) = (None, Vec::new());
        if let Some(text) = &self.url {
            match destination::check(policy, "/url", text) {
                Ok(good) => url = Some(good),
                Err(fault) => refused.push(fault),
            }
        }
        destination::refuse(faults, refused)?;
        Ok(EndpointPatch {
            url,
            description: change(self.description.clone()),
            event_types: self.event_types.clone(),
            pipelines,
            headers: None,
            enabled: self.enabled,
            send_bearer: self.send_bearer,
            signing: self.signing.map(|signing| signing.0),
            ordered: self.ordered,
            rate_limit_per_second: change(self.rate_limit_per_second),
            retry_schedule,
            max_in_flight: change(self.max_in_flight),
        })
    }
}

impl EndpointPatchBody {
    /// Adds to what is [`checked`](Self::checked) the headers as they are to be.
    pub(super) fn merged_into(
        &self,
        endpoint: &Endpoint,
        checked: &EndpointPatch,
    ) -> Result<EndpointPatch, Problem> {
        let changes = self.headers.as_ref();
        Ok(EndpointPatch {
            headers: changes
                .map(|changes| merged(&endpoint.headers, changes))
                .transpose()?,
            ..checked.clone()
        })
    }
}

/// The headers after a change of some (RFC 7396 §2). A name in another case means the same one.
fn merged(
    old: &BTreeMap<String, String>,
    changes: &BTreeMap<String, HeaderChange>,
) -> Result<BTreeMap<String, String>, Problem> {
    let mut faults = Vec::new();
    let mut new = old.clone();
    new.retain(|name, _| {
        !changes
            .keys()
            .any(|changed| changed.eq_ignore_ascii_case(name))
    });
    for (name, change) in changes {
        if let Some(value) = &change.0 {
            new.insert(name.clone(), value.clone());
        }
    }
    check_headers(&new, &mut faults);
    if new.len() > HEADERS {
        let detail = format!("`headers` may have at most {HEADERS} members in all.");
        faults.push(FieldError::new("/headers", FaultCode::TooLong, detail));
    }
    destination::refuse(faults, Vec::new())?;
    Ok(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::Code;
    use poem_openapi::types::Example;

    fn faults_of(body: NewEndpointBody) -> (Code, Vec<(String, String)>) {
        let problem = body.checked(&outbound::Policy::default()).unwrap_err();
        let found = problem.errors.into_iter();
        (
            problem.code,
            found.map(|f| (f.pointer, f.code.to_string())).collect(),
        )
    }

    fn with_headers(headers: &[(&str, &str)]) -> NewEndpointBody {
        NewEndpointBody {
            headers: map(headers),
            ..NewEndpointBody::example()
        }
    }

    fn map(headers: &[(&str, &str)]) -> BTreeMap<String, String> {
        headers
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn the_url_is_normalised() {
        let body = NewEndpointBody {
            url: "https://EXAMPLE.com:443".into(),
            ..Example::example()
        };
        let new = body.checked(&outbound::Policy::default()).unwrap();
        assert_eq!(new.url, "https://example.com/");
    }

    #[test]
    fn a_url_to_ourselves_is_refused() {
        for url in [
            "https://127.0.0.1/",
            "https://[::ffff:7f00:1]/",
            "https://0x7f.1/",
        ] {
            let body = NewEndpointBody {
                url: url.into(),
                ..Example::example()
            };
            let refused = vec![("/url".to_owned(), "not_allowed".to_owned())];
            assert_eq!(
                faults_of(body),
                (Code::DestinationRefused, refused),
                "{url}"
            );
        }
    }

    #[test]
    fn headers_are_judged_by_name_value_and_each_other() {
        for (headers, pointer, code) in [
            (&[("Host", "x")][..], "/headers/Host", "not_allowed"),
            (&[("webhook-id", "x")], "/headers/webhook-id", "not_allowed"),
            (&[("x-a", "a\r\nb")], "/headers/x-a", "pattern"),
            (&[("x/a", "b")], "/headers/x~1a", "pattern"),
            (&[("X-A", "1"), ("x-a", "2")], "/headers/x-a", "duplicate"),
            (&[("", "1")], "/headers/", "too_short"),
        ] {
            let expected = vec![(pointer.to_owned(), code.to_owned())];
            assert_eq!(faults_of(with_headers(headers)).1, expected, "{headers:?}");
        }
        let long = "x".repeat(65);
        assert_eq!(faults_of(with_headers(&[(&long, "1")])).1[0].0, "/headers");
    }

    #[test]
    fn headers_are_merged_one_by_one() {
        let old = map(&[("X-A", "1"), ("X-B", "2"), ("X-C", "3")]);
        let set = |value: &str| HeaderChange(Some(value.into()));
        let changes = BTreeMap::from([
            ("x-a".to_owned(), set("9")),
            ("X-B".to_owned(), HeaderChange(None)),
            ("X-D".to_owned(), set("4")),
        ]);
        let new = merged(&old, &changes).unwrap();
        assert_eq!(new, map(&[("x-a", "9"), ("X-C", "3"), ("X-D", "4")]));
        let many = (0..18).map(|n| (format!("y-{n}"), set("1"))).collect();
        assert_eq!(
            merged(&old, &many).unwrap_err().errors[0].code.as_str(),
            "too_long"
        );
        let bad = BTreeMap::from([("Host".to_owned(), set("x"))]);
        assert_eq!(
            merged(&old, &bad).unwrap_err().errors[0].pointer,
            "/headers/Host"
        );
    }

    #[test]
    fn a_patch_tells_absent_from_null() {
        let body = EndpointPatchBody {
            description: MaybeUndefined::Null,
            pipelines: MaybeUndefined::Undefined,
            ..Example::example()
        };
        let patch = body.checked(&outbound::Policy::default()).unwrap();
        assert_eq!((patch.description, patch.pipelines), (Some(None), None));
    }

    #[test]
    fn the_contract_has_the_domains_patterns() {
        use poem_openapi::registry::Registry;
        let mut registry = Registry::new();
        NewEndpointBody::register(&mut registry);
        let schema = serde_json::to_string(&registry.schemas["NewWebhookEndpoint"]).unwrap();
        for pattern in [domain::event::FILTER_PATTERN, domain::slug::PATTERN] {
            let text = serde_json::to_string(pattern).unwrap();
            assert!(schema.contains(&text), "{text} in {schema}");
        }
    }
}
