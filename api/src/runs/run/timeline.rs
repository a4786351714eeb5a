//! What happened to a run: as a list, and as it happens.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use poem::web::sse::Event;
use poem_openapi::{Object, OpenApi, param::Header, payload::EventStream};
use serde::Serialize;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use view_derive::{Example, View};

use domain::{
    Code, Problem,
    id::{PublisherId, RunId},
    permission::RunsRead,
    permits::{Bounds, Full, Permit, Permits},
    run::{RunStatus, TimelineEntryKind},
};
use persistence::{PageRequest, Scoped, TimelineEntry};

use super::views::{Creator, sample};
use crate::{
    auth::{Caller, Standing},
    shared::{App, Listed, PageQuery, Path, Tag, Time, Verbatim, Word},
};
use web::http::ApiError;

/// Most streams in one process, and of a publisher.
const STREAMS: Bounds = Bounds {
    total: 2000,
    per_owner: 100,
};
/// Longest life of a stream; its reader connects again and goes on.
const STREAM_LIFE: Duration = Duration::from_mins(15);
/// How often a quiet stream sends a comment, so that nobody between takes it for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often a stream looks, and asks whether its token is still good, without being woken.
const LOOK: Duration = Duration::from_secs(2);
/// Entries that a stream reads at once; each may have 256 KiB.
const READ: u64 = 16;

/// Something that happened to a run.
#[derive(Object, View, Example, Serialize, Clone, Debug)]
#[oai(rename = "TimelineEntry", example)]
#[view(of = TimelineEntry)]
pub struct TimelineView {
    /// Sorts the entries as they happened; not without gaps. Also the `id` of the stream's events.
    #[example(2)]
    seq: i64,
    /// When it happened.
    at: Time,
    /// What happened.
    #[example(TimelineEntryKind::Claimed)]
    #[view(field = kind)]
    r#type: Word<TimelineEntryKind>,
    /// How often the run had been claimed then.
    #[example(1)]
    attempt: i32,
    /// The credential that did it; null for the service itself.
    #[oai(nullable)]
    #[example(Creator::from(&sample(RunStatus::Running)))]
    #[view(from = of.actor.clone().map(|(kind, id)| Creator { id, kind }))]
    actor: Option<Creator>,
    /// Further facts.
    #[oai(nullable)]
    data: Option<Verbatim>,
}

/// The operations on timelines.
pub struct Timelines {
    app: Arc<App>,
    streams: Permits<PublisherId>,
}

impl Timelines {
    /// The operations over the application's parts.
    #[must_use]
    pub fn new(app: Arc<App>) -> Self {
        Self {
            app,
            streams: Permits::new(STREAMS),
        }
    }
}

#[OpenApi(prefix_path = "/v1/runs", tag = "Tag::Runs")]
impl Timelines {
    /// List a run's timeline
    ///
    /// Everything that happened to it, oldest first. A part also ends at about 4 MiB.
    #[oai(
        path = "/:id/timeline",
        method = "get",
        operation_id = "list_run_timeline"
    )]
    async fn list(
        &self,
        who: Caller<RunsRead>,
        Path(id): Path<RunId>,
        page: PageQuery,
    ) -> Result<Listed<TimelineView>, ApiError> {
        let list = who.list(page).await?;
        let runs = who.scoped().runs();
        let page = runs.timeline(id, list.page()?).await?;
        Ok(list.answer_text(page, TimelineView::from))
    }

    /// Follow a run
    ///
    /// Its timeline as server-sent events, from the beginning or after `Last-Event-ID`: first what
    /// happened already, then what happens. Each event has the entry's `seq` as its `id`, its
    /// `type` as its `event`, and the entry as its `data`. The stream ends with the run, or after
    /// 15 minutes; whoever wants more connects again.
    #[oai(path = "/:id/stream", method = "get", operation_id = "stream_run")]
    async fn stream(
        &self,
        who: Caller<RunsRead>,
        Path(id): Path<RunId>,
        /// The identifier of the last event that the caller has.
        #[oai(
            name = "Last-Event-ID",
            validator(minimum(value = "0"), maximum(value = "9007199254740991"))
        )]
        last: Header<Option<i64>>,
    ) -> Result<EventStream<BoxStream<'static, TimelineView>>, ApiError> {
        let scoped = who.scoped();
        // Watched before it is read, so that nothing falls between.
        let changes = scoped.runs().watch_run(id);
        let mut follower = Follower {
            scoped,
            standing: who.standing(),
            run: id,
            after: last.0.unwrap_or(0),
            known: VecDeque::new(),
            ended: false,
            changes,
            quiet: self.app.store.stopping(),
            until: Instant::now() + STREAM_LIFE,
            permit: None,
        };
        follower.read().await?;
        let permit = self.streams.try_acquire(who.publisher(), 1);
        let permit = permit.map_err(|full| match full {
            Full::Owner => {
                let detail = format!("At most {} streams at once.", STREAMS.per_owner);
                Problem::new(Code::RateLimited, detail).retry_after(5)
            }
            Full::Total => full.problem("streams"),
        })?;
        follower.permit = Some(permit);
        let entries = stream::unfold(follower, |mut follower| async move {
            let entry = follower.next().await?;
            Some((TimelineView::from(entry), follower))
        });
        Ok(EventStream::new(entries.boxed())
            .keep_alive(KEEP_ALIVE)
            .to_event(|entry| {
                Event::message(streamed(&entry))
                    .id(entry.seq.to_string())
                    .event_type(entry.r#type.0.as_str())
            }))
    }
}

/// An entry as a stream sends it. White space within its data may have carriage returns, which end
/// lines of a stream and so can't be sent in one: there each is a space.
fn streamed(entry: &TimelineView) -> String {
    let text = serde_json::to_string(entry).unwrap_or_default();
    if text.contains('\r') {
        text.replace('\r', " ")
    } else {
        text
    }
}

/// Reads a timeline to its end, waiting for what comes.
struct Follower {
    scoped: Scoped,
    standing: Standing,
    run: RunId,
    after: i64,
    known: VecDeque<TimelineEntry>,
    ended: bool,
    changes: watch::Receiver<u64>,
    quiet: CancellationToken,
    until: Instant,
    /// Held for as long as the stream lives.
    permit: Option<Permit<PublisherId>>,
}

impl Follower {
    async fn read(&mut self) -> Result<(), ApiError> {
        let page = PageRequest {
            limit: READ,
            after: Some(self.after),
        };
        let mut found = self.scoped.runs().timeline(self.run, page).await?;
        if found.items.is_empty() && self.scoped.runs().run(self.run).await?.status.is_final() {
            // What ended it may have come between the two. After that nothing more will.
            found = self.scoped.runs().timeline(self.run, page).await?;
            self.ended = found.items.is_empty();
        }
        self.known.extend(found.items);
        Ok(())
    }

    /// The next entry; `None` at the end, and whenever nothing more may be handed out.
    async fn next(&mut self) -> Option<TimelineEntry> {
        loop {
            if let Some(entry) = self.known.pop_front() {
                self.after = entry.seq;
                self.ended |= entry.kind.is_last();
                return Some(entry);
            }
            if self.ended {
                return None;
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = tokio::time::sleep(LOOK) => {}
                () = tokio::time::sleep_until(self.until) => return None,
                () = self.quiet.cancelled() => return None,
            }
            self.standing.check().await.ok()?;
            self.read().await.ok()?;
        }
    }
}
