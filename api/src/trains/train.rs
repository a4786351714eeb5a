//! Trains: the named clients of a gateway, and the accounts that each lends.

pub(crate) mod body;

use std::sync::Arc;

use poem_openapi::{Object, OpenApi};
use view_derive::{Example, View};

use domain::{
    Slug,
    id::TrainId,
    permission::{TrainsRead, TrainsWrite},
    train::NoticeKind,
};
use persistence::{LastNotice, Slack, Train, TrainAccount};

use crate::{
    auth::Caller,
    shared::{
        App, Created, Idempotency, IfMatch, Listed, NoContent, Ok, PageQuery, Path, Tag, Time,
        Word, answer, created, nil_id, no_content,
    },
    trains::accounts::{self, cooldowns::CooldownView},
};
use web::http::{ApiError, Body, Patch};

use body::{NewTrainBody, PlacesBody, TrainPatchBody};

/// Where a train's people read, without the URL that leads there.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "Slack")]
#[view(of = Slack)]
struct SlackView {
    /// The channel; null for the webhook's own.
    #[oai(nullable)]
    #[example("#gateway")]
    channel: Option<String>,
    /// What they are told.
    #[example([NoticeKind::TrainExhausted])]
    events: Vec<Word<NoticeKind>>,
}

/// How the last Slack message about a train stands.
#[derive(Object, View, Clone, Debug)]
#[oai(rename = "LastNotice")]
#[view(of = LastNotice)]
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

/// An account in its place in a train.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "TrainAccount")]
#[view(of = TrainAccount)]
struct PlaceView {
    /// `acc_…`
    #[view(field = account)]
    #[example(accounts::example_id())]
    account_id: String,
    /// Its name.
    #[example("Anthropic, team A")]
    name: String,
    /// 0 is tried first.
    #[example(0)]
    priority: u16,
    /// The cooldown of the account as a whole; null if there is none. The account itself also shows
    /// those for single models.
    #[oai(nullable)]
    cooldown: Option<CooldownView>,
}

/// A named client of a gateway.
#[derive(Object, View, Example, Clone, Debug)]
#[oai(rename = "Train", example)]
#[view(of = Train)]
pub struct TrainView {
    /// `trn_…`
    #[example(nil_id::<TrainId>())]
    id: String,
    /// Unique within the publisher.
    #[example("night-shift")]
    slug: String,
    /// For people.
    #[oai(nullable)]
    #[example("The gateway of the nightly jobs.")]
    description: Option<String>,
    /// Whether it lends anything.
    #[example(true)]
    enabled: bool,
    /// Whether a client that names itself keeps its account while that is usable.
    sticky: bool,
    /// Where its people read; null for nowhere.
    #[oai(nullable)]
    #[example(SlackView::example())]
    slack: Option<SlackView>,
    /// What it lends, in the order in which they are tried: by priority, then by identifier.
    #[example([PlaceView::example()])]
    accounts: Vec<PlaceView>,
    /// The last Slack message about it. Only where one train is read, and where there was one
    /// within the time that they are kept.
    #[oai(skip_serializing_if_is_none)]
    #[view(from = None)]
    last_notice: Option<LastNoticeView>,
    /// When it was made.
    created_at: Time,
    /// When it last changed.
    updated_at: Time,
}

/// The operations on trains.
pub struct Trains {
    pub(crate) app: Arc<App>,
}

#[OpenApi(prefix_path = "/v1/trains", tag = "Tag::Trains")]
impl Trains {
    /// Create a train
    ///
    /// It lends nothing until it is given accounts.
    #[oai(path = "/", method = "post", operation_id = "create_train")]
    async fn create(
        &self,
        who: Caller<TrainsWrite>,
        key: Idempotency,
        body: Body<NewTrainBody>,
    ) -> Result<Created<TrainView>, ApiError> {
        let new = body.0.checked(&self.app.policy)?;
        let context = who.context_with(key);
        let trains = who.scoped().trains();
        let answer = trains.create_train(&context, new, |train| {
            created(shown(train), format!("/v1/trains/{}", train.slug))
        });
        Ok(answer.await?.into())
    }

    /// List trains
    ///
    /// Newest first, each with what it lends.
    #[oai(path = "/", method = "get", operation_id = "list_trains")]
    async fn list(
        &self,
        who: Caller<TrainsRead>,
        page: PageQuery,
    ) -> Result<Listed<TrainView>, ApiError> {
        let list = who.list(page).await?;
        let page = who.scoped().trains().trains(list.page()?).await?;
        Ok(list.answer(page, |train| TrainView::from(&train)))
    }

    /// Get a train
    #[oai(path = "/:slug", method = "get", operation_id = "get_train")]
    async fn get(
        &self,
        who: Caller<TrainsRead>,
        /// The train's slug.
        Path(slug): Path<Slug>,
    ) -> Result<Ok<TrainView>, ApiError> {
        let trains = who.scoped().trains();
        let train = trains.train(&slug).await?;
        let last = trains.last_notice(train.id).await?;
        let view = TrainView {
            last_notice: last.map(LastNoticeView::from),
            ..TrainView::from(&train)
        };
        Ok(Ok::show(&view, Some(train.revision)))
    }

    /// Update a train
    ///
    /// A JSON Merge Patch (RFC 7396).
    #[oai(path = "/:slug", method = "patch", operation_id = "update_train")]
    async fn update(
        &self,
        who: Caller<TrainsWrite>,
        /// The train's slug.
        Path(slug): Path<Slug>,
        if_match: IfMatch,
        body: Patch<TrainPatchBody>,
    ) -> Result<Ok<TrainView>, ApiError> {
        let patch = body.0.checked(&self.app.policy)?;
        let context = who.context();
        let trains = who.scoped().trains();
        let answer = trains.update_train(&context, &slug, patch, if_match.0, shown);
        Ok(answer.await?.into())
    }

    /// Delete a train
    ///
    /// Its tokens stop working with it; its accounts stay.
    #[oai(path = "/:slug", method = "delete", operation_id = "delete_train")]
    async fn delete(
        &self,
        who: Caller<TrainsWrite>,
        /// The train's slug.
        Path(slug): Path<Slug>,
        if_match: IfMatch,
    ) -> Result<NoContent, ApiError> {
        let context = who.context();
        let trains = who.scoped().trains();
        let answer = trains.delete_train(&context, &slug, if_match.0, |()| no_content());
        Ok(answer.await?.into())
    }

    /// Set the accounts of a train
    ///
    /// The list as a whole: what is not in it, the train lends no longer. Priority 0 is tried
    /// first; of two alike the one with the smaller identifier.
    #[oai(
        path = "/:slug/accounts",
        method = "put",
        operation_id = "set_train_accounts"
    )]
    async fn set_accounts(
        &self,
        who: Caller<TrainsWrite>,
        /// The train's slug.
        Path(slug): Path<Slug>,
        /// The expected revision (`ETag`) of the train.
        if_match: IfMatch,
        body: Body<PlacesBody>,
    ) -> Result<Ok<TrainView>, ApiError> {
        let wish = body.0.checked()?;
        let context = who.context();
        let trains = who.scoped().trains();
        let answer = trains.set_train_accounts(&context, &slug, wish, if_match.0, shown);
        Ok(answer.await?.into())
    }
}

/// A train as it is now.
fn shown(train: &Train) -> persistence::Answer {
    answer(200, &TrainView::from(train)).revision(train.revision)
}
