//! What a request says of a train, and whether that may be.

use poem_openapi::{
    Object,
    registry::{MetaSchema, Registry},
    types::{Example, MaybeUndefined, ParseError, ParseFromJSON, ParseResult, ToJSON, Type},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use view_derive::Example;

use domain::{
    FaultCode, FieldError, Problem,
    id::{AccountId, Id as _},
    limits::TRAIN_ACCOUNTS,
    slug::{self, Slug},
    train::NoticeKind,
};
use persistence::{NewSlack, NewTrain, SlackPatch, TrainPatch};

use crate::{
    shared::{Sent, Word, change, destination, own_value},
    trains::accounts,
};

fn notices(words: &[Word<NoticeKind>]) -> Vec<NoticeKind> {
    words.iter().map(|word| word.0).collect()
}

/// Where a train's people read.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "NewSlack",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct SlackBody {
    /// The incoming webhook's URL. Who knows it may send, so it is never shown again.
    #[example("https://hooks.slack.com/services/T000/B000/example")]
    webhook_url: Sent<1, 2048>,
    /// The channel, if not the webhook's own.
    #[oai(nullable, validator(min_length = 1, max_length = 80))]
    #[example("#gateway")]
    channel: Option<String>,
    /// What they are told.
    #[oai(validator(min_items = 1, max_items = 2, unique_items))]
    #[example([NoticeKind::TrainExhausted])]
    events: Vec<Word<NoticeKind>>,
}

/// A train to make.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "NewTrain",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(crate) struct NewTrainBody {
    /// Unique within the publisher.
    #[oai(validator(pattern = "^[a-z0-9][a-z0-9-]{0,62}$"))]
    #[example("night-shift")]
    slug: String,
    /// For people.
    #[oai(nullable, validator(max_length = 1000))]
    #[example("The gateway of the nightly jobs.")]
    description: Option<String>,
    /// Whether it lends anything.
    #[oai(default = "yes")]
    enabled: bool,
    /// Whether a client that names itself keeps its account while that is usable.
    #[oai(default)]
    sticky: bool,
    /// Where its people read.
    #[oai(nullable)]
    #[example(SlackBody::example())]
    slack: Option<SlackBody>,
}

const fn yes() -> bool {
    true
}

/// Judges the URL of a Slack webhook; its normalised form.
fn webhook_url(policy: &outbound::Policy, url: &SecretString) -> Result<SecretString, Problem> {
    destination::check(policy, "/slack/webhook_url", url.expose_secret())
        .map(SecretString::from)
        .map_err(|fault| destination::refusal(Vec::new(), vec![fault]))
}

impl SlackBody {
    fn checked(self, policy: &outbound::Policy) -> Result<NewSlack, Problem> {
        Ok(NewSlack {
            webhook_url: webhook_url(policy, &self.webhook_url.0)?,
            channel: self.channel,
            events: notices(&self.events),
        })
    }
}

impl NewTrainBody {
    /// Checks what the contract can't say.
    pub(crate) fn checked(self, policy: &outbound::Policy) -> Result<NewTrain, Problem> {
        let slug = Slug::parse(&self.slug).ok_or_else(|| {
            let detail = format!("`slug` must match `{}`.", slug::PATTERN);
            Problem::field("/slug", FaultCode::Pattern, detail)
        })?;
        let slack = self.slack.map(|slack| slack.checked(policy));
        Ok(NewTrain {
            slug,
            description: self.description,
            enabled: self.enabled,
            sticky: self.sticky,
            slack: slack.transpose()?,
        })
    }
}

/// What to change of where a train's people read; what is left out stays.
#[derive(Object, Clone, Debug)]
#[oai(
    rename = "SlackPatch",
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct SlackPatchBody {
    /// The incoming webhook's URL; needed while there is none.
    webhook_url: Option<Sent<1, 2048>>,
    /// The channel; null for the webhook's own.
    #[oai(nullable, validator(min_length = 1, max_length = 80))]
    channel: MaybeUndefined<String>,
    /// What they are told; needed while there is nothing set.
    #[oai(validator(min_items = 1, max_items = 2, unique_items))]
    events: Option<Vec<Word<NoticeKind>>>,
}

impl SlackPatchBody {
    fn checked(self, policy: &outbound::Policy) -> Result<SlackPatch, Problem> {
        let url = self.webhook_url.map(|url| webhook_url(policy, &url.0));
        Ok(SlackPatch {
            webhook_url: url.transpose()?,
            channel: change(self.channel),
            events: self.events.map(|names| notices(&names)),
        })
    }
}

/// What to change of a train; what is left out stays.
#[derive(Object, Example, Clone, Debug)]
#[oai(
    rename = "TrainPatch",
    example,
    deny_unknown_fields,
    skip_serializing_if_is_none
)]
pub(super) struct TrainPatchBody {
    /// For people; null takes it away.
    #[oai(nullable, validator(max_length = 1000))]
    description: MaybeUndefined<String>,
    /// Whether it lends anything.
    #[example(false)]
    enabled: Option<bool>,
    /// Whether a client that names itself keeps its account while that is usable.
    sticky: Option<bool>,
    /// Where its people read; null for nowhere.
    #[oai(nullable)]
    #[example(MaybeUndefined::Null)]
    slack: MaybeUndefined<SlackPatchBody>,
}

impl TrainPatchBody {
    /// Checks what the contract can't say.
    pub(super) fn checked(self, policy: &outbound::Policy) -> Result<TrainPatch, Problem> {
        let slack = match change(self.slack) {
            Some(Some(slack)) => Some(Some(slack.checked(policy)?)),
            Some(None) => Some(None),
            None => None,
        };
        Ok(TrainPatch {
            description: change(self.description),
            enabled: self.enabled,
            sticky: self.sticky,
            slack,
        })
    }
}

/// An account's place in a train.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "TrainPlace", example, deny_unknown_fields)]
pub(super) struct PlaceBody {
    /// `acc_…`
    #[oai(validator(max_length = 40))]
    #[example(accounts::example_id())]
    account_id: String,
    /// 0 is tried first; of two alike the one with the smaller identifier.
    #[oai(validator(minimum(value = "0"), maximum(value = "999")))]
    #[example(0)]
    priority: u16,
}

/// Which accounts a train lends, all of them.
#[derive(Clone, Debug)]
pub(super) struct PlacesBody(Vec<PlaceBody>);

impl Type for PlacesBody {
    own_value!("TrainPlaces");

    fn register(registry: &mut Registry) {
        PlaceBody::register(registry);
        registry.create_schema::<Self, _>("TrainPlaces".into(), |_| MetaSchema {
            description: Some("Which accounts a train lends, all of them."),
            items: Some(Box::new(PlaceBody::schema_ref())),
            max_items: Some(TRAIN_ACCOUNTS),
            example: PlaceBody::example()
                .to_json()
                .map(|one| Value::Array(vec![one])),
            ..MetaSchema::new("array")
        });
    }
}

impl ParseFromJSON for PlacesBody {
    fn parse_from_json(value: Option<Value>) -> ParseResult<Self> {
        let places = Vec::<PlaceBody>::parse_from_json(value);
        places.map(Self).map_err(ParseError::propagate)
    }
}

impl PlacesBody {
    /// The accounts with their priorities. An identifier that isn't in canonical form names
    /// nothing, like one of another publisher.
    pub(super) fn checked(self) -> Result<Vec<(AccountId, u16)>, Problem> {
        let (mut places, mut faults) = (Vec::with_capacity(self.0.len()), Vec::new());
        for (at, place) in self.0.iter().enumerate() {
            if self.0[..at]
                .iter()
                .any(|before| before.account_id == place.account_id)
            {
                let pointer = format!("/{at}/account_id");
                let detail = "The same account stands twice.";
                faults.push(FieldError::new(pointer, FaultCode::Duplicate, detail));
            }
        }
        if !faults.is_empty() {
            return Err(Problem::invalid(faults));
        }
        for place in self.0 {
            let account = AccountId::parse(&place.account_id).ok_or_else(Problem::not_found)?;
            places.push((account, place.priority));
        }
        Ok(places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::{Code, limits::TRAIN_PRIORITY_MAX};

    fn places(places: &[(&str, u16)]) -> PlacesBody {
        let places = places.iter().map(|(account, priority)| PlaceBody {
            account_id: (*account).to_owned(),
            priority: *priority,
        });
        PlacesBody(places.collect())
    }

    #[test]
    fn an_account_stands_once() {
        let id = accounts::example_id();
        let problem = places(&[(&id, 0), (&id, 1)]).checked().unwrap_err();
        assert_eq!(problem.code, Code::ValidationFailed);
        assert_eq!(problem.errors[0].pointer, "/1/account_id");
        assert_eq!(places(&[(&id, 3)]).checked().unwrap()[0].1, 3);
    }

    #[test]
    fn what_names_nothing_is_absent() {
        let problem = places(&[("acc_x", 0)]).checked().unwrap_err();
        assert_eq!(problem, Problem::not_found());
    }

    #[test]
    fn a_slack_url_is_judged_by_the_guard_and_not_repeated() {
        let inside = "https://127.0.0.1/services/T0/B0/secret";
        let body = NewTrainBody {
            slack: Some(SlackBody {
                webhook_url: Sent::from(inside),
                ..Example::example()
            }),
            ..Example::example()
        };
        let problem = body.checked(&outbound::Policy::default()).unwrap_err();
        assert_eq!(problem.code, Code::DestinationRefused);
        assert_eq!(problem.errors[0].pointer, "/slack/webhook_url");
        assert!(!format!("{problem:?}").contains("services"));
    }

    #[test]
    fn the_contract_has_the_domains_bounds() {
        let mut registry = Registry::new();
        PlacesBody::register(&mut registry);
        let place = serde_json::to_string(&registry.schemas["TrainPlace"]).unwrap();
        assert!(
            place.contains(&format!("\"maximum\":{TRAIN_PRIORITY_MAX}")),
            "{place}"
        );
    }
}
