//! Trains: the named clients of a gateway, and the accounts that each lends.

pub(crate) mod body;

use std::sync::Arc;

use poem_openapi::{
    Object, OpenApi,
    param::{Path, Query},
    types::Example,
};

use domain::{
    Code,
    id::{Id as _, TrainId},
};
use persistence::{LastNotice, Slack, Train, TrainAccount};

use crate::{
    auth::Admin,
    shared::{
        App,
        common::{Created, IfMatch, NoContent, Ok, Tag, Time, answer, no_content, parse_slug},
        cursor::{List, Listed},
        examples::EXAMPLE_AT,
        idempotency::Idempotency,
    },
    trains::accounts::{self, cooldowns::CooldownView},
};
use web::{
    contract::OperationDoc,
    http::{ApiError, Body, Patch, RequestContext},
};

use body::{NewTrainBody, NoticeName, PlacesBody, TrainPatchBody};

/// The problems of these operations' own.
pub const DOCS: &[OperationDoc] = &[
    OperationDoc {
        operation_id: "create_train",
        codes: &[
            Code::DestinationRefused,
            Code::QuotaExceeded,
            Code::SlugTaken,
            Code::IdempotencyKeyReused,
        ],
    },
    OperationDoc {
        operation_id: "update_train",
        codes: &[Code::DestinationRefused, Code::PreconditionFailed],
    },
    OperationDoc {
        operation_id: "delete_train",
        codes: &[Code::PreconditionFailed],
    },
    OperationDoc {
        operation_id: "set_train_accounts",
        codes: &[Code::PreconditionFailed],
    },
];

/// Where a train's people read, without the URL that leads there.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Slack")]
struct SlackView {
    /// The channel; null for the webhook's own.
    #[oai(nullable)]
    channel: Option<String>,
    /// What they are told.
    events: Vec<NoticeName>,
}

impl From<&Slack> for SlackView {
    fn from(slack: &Slack) -> Self {
        Self {
            channel: slack.channel.clone(),
            events: slack.events.iter().copied().map(NoticeName::from).collect(),
        }
    }
}

/// How the last Slack message about a train stands.
#[derive(Object, Clone, Debug)]
#[oai(rename = "LastNotice")]
struct LastNoticeView {
    /// The type of the event that it tells of.
    event_type: String,
    /// How often it was tried.
    attempts: u32,
    /// The class of error of the last try; null if that succeeded, or none was made yet.
    #[oai(nullable)]
    error: Option<String>,
    /// When it was written.
    created_at: Time,
    /// When it was sent or, with an error, given up; null while it waits.
    #[oai(nullable)]
    finished_at: Option<Time>,
}

impl From<LastNotice> for LastNoticeView {
    fn from(notice: LastNotice) -> Self {
        Self {
            event_type: notice.event_type,
            attempts: notice.attempts,
            error: notice.error,
            created_at: notice.created_at.into(),
            finished_at: notice.finished_at.map(Time::from),
        }
    }
}

/// An account in its place in a train.
#[derive(Object, Clone, Debug)]
#[oai(rename = "TrainAccount")]
struct PlaceView {
    /// `acc_…`
    account_id: String,
    /// Its name.
    name: String,
    /// 0 is tried first.
    priority: u16,
    /// The cooldown of the account as a whole; null if there is none. The account itself also shows
    /// those for single models.
    #[oai(nullable)]
    cooldown: Option<CooldownView>,
}

impl From<&TrainAccount> for PlaceView {
    fn from(place: &TrainAccount) -> Self {
        Self {
            account_id: place.account.to_string(),
            name: place.name.clone(),
            priority: place.priority,
            cooldown: place.cooldown.as_ref().map(CooldownView::from),
        }
    }
}

/// A named client of a gateway.
#[derive(Object, Clone, Debug)]
#[oai(rename = "Train", example)]
pub struct TrainView {
    /// `trn_…`
    id: String,
    /// Unique within the publisher.
    slug: String,
    /// For people.
    #[oai(nullable)]
    description: Option<String>,
    /// Whether it lends anything.
    enabled: bool,
    /// Whether a client that names itself keeps its account while that is usable.
    sticky: bool,
    /// Where its people read; null for nowhere.
    #[oai(nullable)]
    slack: Option<SlackView>,
    /// What it lends, in the order in which they are tried: by priority, then by identifier.
    accounts: Vec<PlaceView>,
    /// The last Slack message about it. Only where one train is read, and where there was one
    /// within the time that they are kept.
    #[oai(skip_serializing_if_is_none)]
    last_notice: Option<LastNoticeView>,
    /// When it was made.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
}

impl From<&Train> for TrainView {
    fn from(train: &Train) -> Self {
        Self {
            id: train.id.to_string(),
            slug: train.slug.clone(),
            description: train.description.clone(),
            enabled: train.enabled,
            sticky: train.sticky,
            slack: train.slack.as_ref().map(SlackView::from),
            accounts: train.accounts.iter().map(PlaceView::from).collect(),
            last_notice: None,
            created_at: train.created_at.into(),
            updated_at: train.updated_at.into(),
        }
    }
}

impl Example for TrainView {
    fn example() -> Self {
        Self {
            id: TrainId::from_uuid(uuid::Uuid::nil()).to_string(),
            slug: "night-shift".into(),
            description: Some("The gateway of the nightly jobs.".into()),
            enabled: true,
            sticky: false,
            slack: Some(SlackView {
                channel: Some("#gateway".into()),
                events: vec![NoticeName::TrainExhausted],
            }),
            accounts: vec![PlaceView {
                account_id: accounts::example_id(),
                name: "Anthropic, team A".into(),
                priority: 0,
                cooldown: None,
            }],
            last_notice: None,
            created_at: EXAMPLE_AT,
            updated_at: EXAMPLE_AT,
        }
    }
}

/// The operations on trains.
pub struct Trains {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1", tag = "Tag::Trains")]
impl Trains {
    /// Create a train
    ///
    /// It lends nothing until it is given accounts.
    #[oai(path = "/trains", method = "post", operation_id = "create_train")]
    async fn create(
        &self,
        who: Admin,
        request: &RequestContext,
        /// Makes repeats of the request harmless for 24 hours.
        #[oai(name = "Idempotency-Key")]
        key: Idempotency,
        body: Body<NewTrainBody>,
    ) -> Result<Created<TrainView>, ApiError> {
        let new = body.0.checked(&self.app.policy)?;
        let key = key.of("create_train", request);
        let context = self.app.context(request, who.0.actor(), key);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.create_train(&context, new, |train| {
            let location = format!("/v1/trains/{}", train.slug);
            let view = TrainView::from(train);
            answer(201, &view, Some(train.revision), Some(location), false)
        });
        Ok(answer.await?.into())
    }

    /// List trains
    ///
    /// Newest first, each with what it lends.
    #[oai(path = "/trains", method = "get", operation_id = "list_trains")]
    async fn list(
        &self,
        who: Admin,
        request: &RequestContext,
        /// Page size.
        #[oai(validator(minimum(value = "1"), maximum(value = "200")))]
        limit: Query<Option<u64>>,
        /// Cursor: the `next_cursor` of the previous page.
        #[oai(validator(max_length = 200))]
        cursor: Query<Option<String>>,
    ) -> Result<Listed<TrainView>, ApiError> {
        let scope = &who.0.scope;
        let list = List::begin(&self.app, request, Some(scope), limit.0, cursor.0).await?;
        let page = self.app.store.scoped(scope).trains(list.page()?).await?;
        Ok(list.answer(page, |train| TrainView::from(&train)))
    }

    /// Get a train
    #[oai(path = "/trains/:slug", method = "get", operation_id = "get_train")]
    async fn get(
        &self,
        who: Admin,
        /// The train's slug.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
    ) -> Result<Ok<TrainView>, ApiError> {
        let slug = parse_slug(&slug.0)?;
        let scoped = self.app.store.scoped(&who.0.scope);
        let train = scoped.train(&slug).await?;
        let last = scoped.last_notice(train.id).await?;
        let view = TrainView {
            last_notice: last.map(LastNoticeView::from),
            ..TrainView::from(&train)
        };
        Ok(Ok::show(&view, Some(train.revision)))
    }

    /// Update a train
    ///
    /// A JSON Merge Patch (RFC 7396).
    #[oai(
        path = "/trains/:slug",
        method = "patch",
        operation_id = "update_train"
    )]
    async fn update(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The train's slug.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
        /// The expected revision (`ETag`).
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        body: Patch<TrainPatchBody>,
    ) -> Result<Ok<TrainView>, ApiError> {
        let slug = parse_slug(&slug.0)?;
        let patch = body.0.checked(&self.app.policy)?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.update_train(&context, &slug, patch, if_match.0, shown);
        Ok(answer.await?.into())
    }

    /// Delete a train
    ///
    /// Its tokens stop working with it; its accounts stay.
    #[oai(
        path = "/trains/:slug",
        method = "delete",
        operation_id = "delete_train"
    )]
    async fn delete(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The train's slug.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
        /// The expected revision (`ETag`).
        #[oai(name = "If-Match")]
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let slug = parse_slug(&slug.0)?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.delete_train(&context, &slug, if_match.0, |()| no_content());
        Ok(answer.await?.into())
    }

    /// Set the accounts of a train
    ///
    /// The list as a whole: what is not in it, the train lends no longer. Priority 0 is tried
    /// first; of two alike the one with the smaller identifier.
    #[oai(
        path = "/trains/:slug/accounts",
        method = "put",
        operation_id = "set_train_accounts"
    )]
    async fn set_accounts(
        &self,
        who: Admin,
        request: &RequestContext,
        /// The train's slug.
        #[oai(validator(max_length = 63))]
        slug: Path<String>,
        /// The expected revision (`ETag`) of the train.
        #[oai(name = "If-Match")]
        if_match: IfMatch,
        body: Body<PlacesBody>,
    ) -> Result<Ok<TrainView>, ApiError> {
        let slug = parse_slug(&slug.0)?;
        let wish = body.0.checked()?;
        let context = self.app.context(request, who.0.actor(), None);
        let scoped = self.app.store.scoped(&who.0.scope);
        let answer = scoped.set_train_accounts(&context, &slug, wish, if_match.0, shown);
        Ok(answer.await?.into())
    }
}

/// A changed train.
fn shown(train: &Train) -> persistence::Answer {
    answer(
        200,
        &TrainView::from(train),
        Some(train.revision),
        None,
        false,
    )
}
