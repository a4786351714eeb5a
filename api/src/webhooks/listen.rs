//! Listening: a publisher's events as its developer's machine would be sent them, over a
//! connection that the machine has opened. No endpoint is stored and no delivery written.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use poem::web::sse;
use poem_openapi::{
    Enum, Object, OpenApi, Union,
    param::{Header, Query},
    payload::EventStream,
    types::{Example, ToJSON},
};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use view_derive::Example;

use domain::{
    Code, Problem, Timestamp,
    event::{Filter, OwnType},
    id::{EventId, Id as _, PublisherId},
    permission::WebhooksListen,
    permits::{Bounds, Full, Permit, Permits},
    signature,
};
use persistence::{Event, Feed, FeedCursor, Principal, StoreError};

use crate::{
    auth::{Caller, Standing},
    shared::{App, Tag, Time},
    webhooks::events::views::EventView,
};
use web::http::ApiError;

/// Most listeners in one process, and of a publisher.
const LISTENERS: Bounds = Bounds {
    total: 1000,
    per_owner: 10,
};
/// Longest life of a listener; whoever wants more connects again.
const LIFE_S: u64 = 900;
/// How often a quiet stream sends a comment, so that nobody between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a listener looks, and asks whether its token is still good, without being woken.
const LOOK: Duration = Duration::from_secs(1);
/// The shortest time between two looks: a busy publisher's commits are taken together.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Bytes of the key that signs for a listener: divisible by three, so that base64 needs no
/// padding, and within Standard Webhooks' 24 to 64.
const KEY_BYTES: usize = 30;

/// The first message: what to verify with.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "Listening", example)]
pub struct Listening {
    /// Where the stream stands; also the message's `id`, for `Last-Event-ID`.
    #[example(example_place())]
    place: String,
    /// Signs what this token's listeners are sent, and nothing else: the same for every listener
    /// of the token, on every server process.
    #[example("whsec_MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0")]
    secret: String,
    /// What is listened for.
    #[example(["run.*"])]
    event_types: Vec<String>,
    /// When the stream ends.
    #[example(Timestamp::from_ms(1_769_861_700_000))]
    ends_at: Time,
}

/// An event as an endpoint would be sent it.
#[derive(Object, Clone, Debug)]
#[oai(rename = "ListenDelivery", example)]
pub struct Delivered {
    /// Where the stream stands; also the message's `id`, for `Last-Event-ID`.
    place: String,
    /// The event's identifier.
    id: String,
    /// Its type.
    r#type: String,
    /// The headers to send, signed at the moment at which they were written here.
    headers: BTreeMap<String, String>,
    /// The exact body to send.
    body: String,
}

/// The last message: why nothing more follows.
#[derive(Object, Example, Clone, Debug)]
#[oai(rename = "ListenEnd", example)]
#[example(Ended::of(Reason::TimeOver))]
pub struct Ended {
    /// For programs.
    reason: Reason,
    /// For people.
    detail: String,
}

/// Why a stream ends.
#[derive(Enum, Clone, Copy, Debug, PartialEq, Eq)]
#[oai(rename = "ListenEndReason", rename_all = "snake_case")]
pub enum Reason {
    /// Its time is over; connect again.
    TimeOver,
    /// The server process stops; connect again.
    Stopping,
    /// The store does not answer; connect again, after a while.
    Unavailable,
    /// The token is no longer good.
    TokenRefused,
    /// The publisher is suspended.
    PublisherSuspended,
}

/// A message of the stream.
#[derive(Union, Clone, Debug)]
#[oai(rename = "ListenMessage")]
pub enum Message {
    /// `listening`
    Listening(Listening),
    /// `delivery`
    Delivery(Delivered),
    /// `end`
    End(Ended),
}

impl Example for Delivered {
    fn example() -> Self {
        let secret = SecretString::from(Listening::example().secret);
        let at = Timestamp::from_ms(1_769_860_800_000);
        let event = Event {
            id: EventId::from_uuid(uuid::Uuid::nil()),
            event_type: OwnType::RunSucceeded.as_str().to_owned(),
            body: EventView::of_type(OwnType::RunSucceeded).to_json_string(),
            created_at: at,
        };
        signed(&secret, event, at, example_place())
    }
}

fn example_place() -> String {
    place_text(FeedCursor {
        event: EventId::from_uuid(uuid::Uuid::nil()),
        since: Timestamp::from_ms(1_769_860_800_000),
    })
}

impl Ended {
    fn of(reason: Reason) -> Self {
        let detail = match reason {
            Reason::TimeOver => "The stream's time is over. Connect again to go on.",
            Reason::Stopping => "The server stops. Connect again to go on.",
            Reason::Unavailable => "The store does not answer. Connect again in a while.",
            Reason::TokenRefused => "The token is no longer good.",
            Reason::PublisherSuspended => "The publisher is suspended.",
        };
        Self {
            reason,
            detail: detail.to_owned(),
        }
    }
}

/// What an endpoint would be sent, signed by this secret.
fn signed(secret: &SecretString, event: Event, at: Timestamp, place: String) -> Delivered {
    let (id, seconds) = (event.id.to_string(), at.seconds());
    let secrets = std::slice::from_ref(secret);
    let body = event.body.as_bytes();
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("webhook-id", id.clone()),
        ("webhook-timestamp", seconds.to_string()),
        (
            "webhook-signature",
            signature::standard(secrets, &id, seconds, body),
        ),
        (
            "x-stationmaster-signature",
            signature::stationmaster(secrets, seconds, body),
        ),
    ];
    Delivered {
        place,
        id,
        r#type: event.event_type,
        headers: headers.map(|(name, value)| (name.to_owned(), value)).into(),
        body: event.body,
    }
}

/// `<event>` or `<event>.<when the first stream began, Unix milliseconds>`.
fn parse_place(text: &str) -> Option<FeedCursor> {
    let (event, since) = match text.split_once('.') {
        None => (text, None),
        Some((event, since)) => (event, Some(since.parse::<i64>().ok()?)),
    };
    let event = EventId::parse(event)?;
    let since = Timestamp::from_ms(since.unwrap_or(0));
    Some(FeedCursor { event, since })
}

fn place_text(place: FeedCursor) -> String {
    format!("{}.{}", place.event, place.since.ms())
}

/// The filters in `a,b.*`; the fault, if one has not the documented form.
fn filters_of(text: Option<&str>) -> Result<Vec<Filter>, Problem> {
    let words = text.unwrap_or("*").split(',');
    let filters: Option<Vec<Filter>> = words.map(Filter::parse).collect();
    filters.ok_or_else(|| {
        let detail = "It takes `*`, `prefix.*` or event types, separated by commas.";
        Problem::parameter("/query/event_types", detail)
    })
}

/// The operation.
pub struct Listen {
    app: Arc<App>,
    listeners: Permits<PublisherId>,
}

impl Listen {
    /// The operation over the application's parts.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self {
            app,
            listeners: Permits::new(LISTENERS),
        }
    }

    /// What signs for a token's listeners. It follows from the publisher's key and the token's
    /// identifier, so that it outlives connections and processes, and is stored nowhere.
    async fn secret(&self, who: &Principal) -> Result<SecretString, StoreError> {
        let purpose = format!("listen.{}", who.actor().id);
        let key = self.app.store.derived_key(Some(&who.scope), &purpose);
        let text = STANDARD.encode(&key.await?[..KEY_BYTES]);
        Ok(SecretString::from(format!("whsec_{text}")))
    }
}

#[OpenApi(prefix_path = "/v1/listen", tag = "Tag::Webhooks")]
impl Listen {
    /// Listen to events
    ///
    /// For a developer's machine: what a temporary endpoint would be sent, as server-sent events
    /// over a connection that the machine opens. The first message, `listening`, has the secret to
    /// verify with, which signs for this token's listeners alone. Each `delivery` has the headers
    /// and the exact body to pass on. `end` says why nothing follows. Whoever comes back with
    /// `Last-Event-ID` misses nothing that is still kept, but gets again what came in the minute
    /// before: `webhook-id` tells. No delivery is written, nothing is tried again, and no answer is
    /// noted. At most 10 listeners of a publisher on each server process.
    #[oai(path = "/", method = "get", operation_id = "listen")]
    async fn listen(
        &self,
        who: Caller<WebhooksListen>,
        /// `*` (the default), `prefix.*` or event types, up to 50, separated by commas.
        #[oai(validator(
            max_length = 2000,
            pattern = r"^(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)(,(\*|[a-z0-9_]+(\.[a-z0-9_]+)*(\.\*)?)){0,49}$"
        ))]
        event_types: Query<Option<String>>,
        /// The number of seconds after which the stream ends.
        #[oai(validator(minimum(value = "1"), maximum(value = "900")))]
        seconds: Query<Option<u64>>,
        /// The `id` of the last message, or the identifier of an event, to go on from there.
        #[oai(
            name = "Last-Event-ID",
            validator(
                max_length = 60,
                pattern = r"^evt_[0-9a-hjkmnp-tv-z]{26}(\.[0-9]{1,15})?$"
            )
        )]
        last: Header<Option<String>>,
    ) -> Result<EventStream<BoxStream<'static, Message>>, ApiError> {
        let filters = filters_of(event_types.0.as_deref())?;
        let from = match last.0.as_deref() {
            None => None,
            Some(text) => Some(parse_place(text).ok_or_else(|| {
                Problem::parameter("/header/Last-Event-ID", "It names no place in a stream.")
            })?),
        };
        let publisher = who.publisher();
        let permit = self.listeners.try_acquire(publisher, 1);
        let permit = permit.map_err(|full| match full {
            Full::Owner => {
                let detail = format!("At most {} listeners at once.", LISTENERS.per_owner);
                Problem::new(Code::QuotaExceeded, detail)
            }
            Full::Total => full.problem("listeners"),
        })?;
        let seconds = seconds.0.unwrap_or(LIFE_S);
        let listener = self.begin(&who, filters, from, seconds, permit).await?;
        let messages = stream::unfold(listener, |mut listener| async move {
            let message = listener.next().await?;
            Some((message, listener))
        });
        Ok(EventStream::new(messages.boxed())
            .keep_alive(KEEP_ALIVE)
            .to_event(|message| sent(&message)))
    }
}

impl Listen {
    async fn begin(
        &self,
        who: &Caller<WebhooksListen>,
        filters: Vec<Filter>,
        from: Option<FeedCursor>,
        seconds: u64,
        permit: Permit<PublisherId>,
    ) -> Result<Listener, ApiError> {
        let webhooks = who.scoped().webhooks();
        // Watched before it is read, so that nothing falls between.
        let changes = webhooks.watch_events();
        let secret = self.secret(&who.principal).await?;
        let life = Duration::from_secs(seconds);
        let event_types = filters.iter().map(Filter::to_string).collect();
        let feed = webhooks.feed(filters, from).await?;
        let place = from.unwrap_or_else(|| feed.beginning());
        let first = Message::Listening(Listening {
            place: place_text(place),
            secret: secret.expose_secret().to_owned(),
            event_types,
            ends_at: self.app.store.now().plus(life).into(),
        });
        Ok(Listener {
            app: Arc::clone(&self.app),
            standing: who.standing(),
            secret,
            feed,
            known: VecDeque::new(),
            first: Some(first),
            ended: false,
            changes,
            quiet: self.app.store.stopping(),
            until: Instant::now() + life,
            looked: Instant::now(),
            _permit: permit,
        })
    }
}

/// A message as it goes out.
fn sent(message: &Message) -> sse::Event {
    let text = sse::Event::message(message.to_json_string());
    match message {
        Message::Listening(first) => text.event_type("listening").id(&first.place),
        Message::Delivery(delivered) => text.event_type("delivery").id(&delivered.place),
        Message::End(_) => text.event_type("end"),
    }
}

/// Hands out a feed for as long as its token is good.
struct Listener {
    app: Arc<App>,
    standing: Standing,
    secret: SecretString,
    feed: Feed,
    known: VecDeque<Event>,
    first: Option<Message>,
    ended: bool,
    changes: watch::Receiver<u64>,
    quiet: CancellationToken,
    until: Instant,
    looked: Instant,
    /// Held for as long as the stream lives.
    _permit: Permit<PublisherId>,
}

impl Listener {
    /// The next message; `None` after the last.
    async fn next(&mut self) -> Option<Message> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if self.ended {
            return None;
        }
        Some(match self.delivery().await {
            Ok(delivered) => Message::Delivery(delivered),
            Err(reason) => {
                self.ended = true;
                Message::End(Ended::of(reason))
            }
        })
    }

    async fn delivery(&mut self) -> Result<Delivered, Reason> {
        loop {
            if self.quiet.is_cancelled() {
                return Err(Reason::Stopping);
            }
            if Instant::now() >= self.until {
                return Err(Reason::TimeOver);
            }
            // Before each, since whoever reads slowly may take long between two.
            let asked = self.standing.check().await;
            asked.map_err(|error| reason_of(&error))?;
            if let Some(event) = self.known.pop_front() {
                let place = place_text(self.feed.after(event.id));
                return Ok(signed(&self.secret, event, self.app.store.now(), place));
            }
            let found = self.feed.next().await;
            let found = found.map_err(|_| Reason::Unavailable)?;
            if found.is_empty() && !self.feed.is_behind() {
                self.wait().await?;
            }
            self.known.extend(found);
        }
    }

    /// Until there may be more, or it is time to look.
    async fn wait(&mut self) -> Result<(), Reason> {
        tokio::select! {
            changed = self.changes.changed() => changed.map_err(|_| Reason::Stopping)?,
            () = tokio::time::sleep(LOOK) => {}
            () = tokio::time::sleep_until(self.until) => return Err(Reason::TimeOver),
            () = self.quiet.cancelled() => return Err(Reason::Stopping),
        }
        tokio::time::sleep_until(self.looked + LOOK_EVERY).await;
        self.looked = Instant::now();
        Ok(())
    }
}

fn reason_of(error: &ApiError) -> Reason {
    match error.problem().code {
        Code::Unauthenticated => Reason::TokenRefused,
        Code::PublisherSuspended => Reason::PublisherSuspended,
        _ => Reason::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_survives_the_round_trip() {
        let event = EventId::generate(Timestamp::from_ms(1_769_860_800_000));
        let since = Timestamp::from_ms(1_769_860_799_999);
        let place = FeedCursor { event, since };
        assert_eq!(parse_place(&place_text(place)), Some(place));
        let bare = parse_place(&event.to_string()).unwrap();
        assert_eq!((bare.event, bare.since.ms()), (event, 0));
        for bad in ["", "evt_", "run_01h455vb4pex5vsknk084sn02q", "1", ".1"] {
            assert_eq!(parse_place(bad), None, "{bad}");
        }
    }

    #[test]
    fn filters_stand_side_by_side() {
        let words = |text| {
            let filters = filters_of(text).unwrap();
            filters.iter().map(Filter::to_string).collect::<Vec<_>>()
        };
        assert_eq!(words(None), ["*"]);
        assert_eq!(words(Some("run.*,order.paid")), ["run.*", "order.paid"]);
        assert!(filters_of(Some("run.*,")).is_err() && filters_of(Some("*.x")).is_err());
    }

    #[test]
    fn what_is_handed_out_is_signed_for_its_listener() {
        let example = Delivered::example();
        let verifier = signature::Verifier::of(&Listening::example().secret.into());
        let header = |name: &str| example.headers.get(name).map(String::as_str);
        let at = example.headers["webhook-timestamp"].parse().unwrap();
        let body = example.body.as_bytes();
        let judged = verifier.ok().map(|one| one.verify(header, body, at, 0));
        assert_eq!(judged, Some(Ok(())));
    }

    #[test]
    fn messages_are_named_and_only_the_last_has_no_place() {
        let text = |message: Message| sent(&message).to_string();
        let first = text(Message::Listening(Listening::example()));
        let id = format!("id: {}\n", example_place());
        assert!(
            first.starts_with(&id) && first.contains("event: listening\n"),
            "{first}"
        );
        let last = text(Message::End(Ended::of(Reason::Stopping)));
        assert!(
            last.starts_with("event: end\n") && !last.contains("id: evt"),
            "{last}"
        );
        assert!(last.contains(r#""reason":"stopping""#), "{last}");
    }
}
