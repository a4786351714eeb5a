//! Events that publishers publish: those of many callers in one statement, and all events of a call
//! or none.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use domain::{
    FaultCode, JsonText, Problem, event,
    id::{EventId, Id as _},
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, EntityTrait as _, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, ExprTrait as _},
};
use uuid::Uuid;

use crate::{
    store::{
        db::Tx,
        entity::{events, pipelines},
        error::{Result, StoreError, corrupt_row},
        scope::Scope,
        sql, storage,
    },
    webhooks::{
        events::Event,
        fan_outs::{self, Audience, CALL_MAX, Outgoing, WAITING_MAX, reaches_ordered},
        listeners::{Listeners, listeners},
    },
};

/// External identifiers that one statement looks up.
const NAMES_A_STATEMENT: usize = 500;
/// Skips an event if another has the same external identifier.
const UNLESS_NAMED: &str =
    " ON CONFLICT (publisher_id, external_id) WHERE external_id IS NOT NULL DO NOTHING";

/// An event that a publisher publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOwnEvent {
    /// The event's type. The caller has checked that it is one of the publisher's own.
    pub event_type: String,
    /// The event's data.
    pub data: JsonText,
    /// The publisher's identifier for the event. A second event with the same one is not written.
    pub external_id: Option<String>,
    /// The pipeline in which the event happened.
    pub pipeline: Option<String>,
}

/// An event that was published, now or by an earlier request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedEvent {
    /// The event.
    pub event: Event,
    /// Whether an earlier event has the same external identifier: then `event` is that one.
    pub existed: bool,
}

/// The events of one call: all of them are written, or none.
#[derive(Clone)]
pub(crate) struct Publish {
    pub(crate) scope: Scope,
    pub(crate) events: Arc<[NewOwnEvent]>,
    /// Whether the request had a list, which pointers in errors then refer to.
    pub(crate) listed: bool,
}

impl Publish {
    fn fault(&self, at: usize, member: &str, code: FaultCode, detail: &str) -> Problem {
        let pointer = if self.listed {
            format!("/events/{at}/{member}")
        } else {
            format!("/{member}")
        };
        Problem::field(&pointer, code, detail)
    }
}

/// Publisher and external identifier.
type Name = (Uuid, String);

fn names_of(publish: &Publish) -> impl Iterator<Item = Name> {
    let owner = publish.scope.uuid();
    let names = publish.events.iter();
    names.filter_map(move |new| Some((owner, new.external_id.clone()?)))
}

/// The live pipelines that the events name.
async fn known_pipelines(tx: &Tx, publishes: &[Publish]) -> Result<HashSet<Name>> {
    use pipelines::Column;
    let named: BTreeSet<Name> = publishes
        .iter()
        .flat_map(|publish| {
            let owner = publish.scope.uuid();
            let slugs = publish.events.iter().filter_map(|new| new.pipeline.clone());
            slugs.map(move |slug| (owner, slug))
        })
        .collect();
    if named.is_empty() {
        return Ok(HashSet::new());
    }
    let key = Expr::tuple([Expr::col(Column::PublisherId), Expr::col(Column::LiveSlug)]);
    let found: Vec<Name> = pipelines::Entity::find()
        .select_only()
        .columns([Column::PublisherId, Column::Slug])
        .filter(key.in_tuples(named))
        .into_tuple()
        .all(tx.db())
        .await?;
    Ok(found.into_iter().collect())
}

/// The existing events with these names.
async fn events_of(tx: &Tx, names: BTreeSet<Name>) -> Result<HashMap<Name, events::Model>> {
    use events::Column;
    let mut found = HashMap::new();
    if names.is_empty() {
        return Ok(found);
    }
    let names: Vec<Name> = names.into_iter().collect();
    for part in names.chunks(NAMES_A_STATEMENT) {
        let key = Expr::tuple([
            Expr::col(Column::PublisherId),
            Expr::col(Column::ExternalId),
        ]);
        let rows = events::Entity::find()
            .filter(key.in_tuples(part.iter().cloned()))
            .filter(Column::ExternalId.is_not_null())
            .all(tx.db())
            .await?;
        for row in rows {
            let name = row
                .external_id
                .clone()
                .ok_or_else(|| corrupt_row("event"))?;
            found.insert((row.publisher_id, name), row);
        }
    }
    Ok(found)
}

fn in_reach(scope: &Scope, row: &events::Model) -> bool {
    row.pipeline_slug
        .as_ref()
        .is_none_or(|slug| scope.reaches(slug))
}

/// Rows to insert, and which of them are the events of each call.
struct Drafts {
    rows: Vec<events::Model>,
    by_name: HashMap<Name, usize>,
}

impl Drafts {
    /// Adds the events of one call. Returns the index of each event's row, and whether another
    /// call's event came first. If the call is refused, nothing is added.
    fn add(
        &mut self,
        tx: &Tx,
        publish: &Publish,
        pipelines: &HashSet<Name>,
        taken: &HashMap<Name, events::Model>,
        ids: &mut impl Iterator<Item = EventId>,
    ) -> Result<Vec<(usize, bool)>> {
        for (at, new) in publish.events.iter().enumerate() {
            self.check(publish, at, new, pipelines, taken)?;
        }
        let owner = publish.scope.uuid();
        let mut places = Vec::with_capacity(publish.events.len());
        for new in publish.events.iter() {
            let name = new.external_id.clone().map(|name| (owner, name));
            if let Some(first) = name.as_ref().and_then(|name| self.by_name.get(name)) {
                places.push((*first, true));
                continue;
            }
            let id = ids.next().ok_or_else(|| corrupt_row("batch of events"))?;
            places.push((self.rows.len(), false));
            if let Some(name) = name {
                self.by_name.insert(name, self.rows.len());
            }
            self.rows.push(events::Model {
                publisher_id: owner,
                id: id.uuid(),
                event_type: new.event_type.clone(),
                body: event::body(id, &new.event_type, tx.now, new.data.as_str()),
                created_at: tx.now.ms(),
                pipeline_slug: new.pipeline.clone(),
                external_id: new.external_id.clone(),
            });
        }
        Ok(places)
    }

    fn check(
        &self,
        publish: &Publish,
        at: usize,
        new: &NewOwnEvent,
        pipelines: &HashSet<Name>,
        taken: &HashMap<Name, events::Model>,
    ) -> Result<(), Problem> {
        let owner = publish.scope.uuid();
        if let Some(slug) = &new.pipeline
            && !(publish.scope.reaches(slug) && pipelines.contains(&(owner, slug.clone())))
        {
            let detail = "There is no pipeline of that name.";
            return Err(publish.fault(at, "pipeline", FaultCode::Invalid, detail));
        }
        if let Some(name) = &new.external_id {
            let name = (owner, name.clone());
            let drafted = self.by_name.get(&name).map(|first| &self.rows[*first]);
            let first = drafted.or_else(|| taken.get(&name));
            if first.is_some_and(|row| !in_reach(&publish.scope, row)) {
                let detail = "The identifier is in use.";
                return Err(publish.fault(at, "external_id", FaultCode::Duplicate, detail));
            }
        }
        Ok(())
    }
}

/// Inserts the rows, except those whose name an existing event has. Returns the existing events, by
/// name.
async fn insert(tx: &Tx, rows: &[events::Model]) -> Result<HashMap<Name, events::Model>> {
    // Always in the same order, so that two transactions cannot deadlock on names.
    let mut sorted = rows.to_vec();
    sorted.sort_by(|a, b| (a.publisher_id, &a.external_id).cmp(&(b.publisher_id, &b.external_id)));
    let named = rows.iter().any(|row| row.external_id.is_some());
    let suffix = if named { UNLESS_NAMED } else { "" };
    let inserted = sql::insert(tx.db(), sorted, suffix).await?;
    if usize::try_from(inserted).is_ok_and(|inserted| inserted == rows.len()) {
        return Ok(HashMap::new());
    }
    let named = rows
        .iter()
        .filter_map(|row| Some((row.publisher_id, row.external_id.clone()?)));
    let mut found = events_of(tx, named.collect()).await?;
    let ours: HashSet<Uuid> = rows.iter().map(|row| row.id).collect();
    let all = rows
        .iter()
        .filter_map(|row| Some((row.publisher_id, row.external_id.clone()?)))
        .all(|name| found.contains_key(&name));
    if !all {
        // The existing event was swept between the two statements: the transaction starts anew.
        return Err(StoreError::Conflict("an event was swept meanwhile".into()));
    }
    found.retain(|_, row| !ours.contains(&row.id));
    Ok(found)
}

/// Which calls are refused because too many of the publisher's deliveries wait to be spread: those
/// that would add to them.
pub(crate) async fn check_room(
    db: &impl ConnectionTrait,
    publishes: &[Publish],
    listeners: &Listeners,
) -> Result<Vec<Option<Problem>>> {
    let mut audience = Audience::of(listeners);
    let mut concerned: Vec<Option<Uuid>> = Vec::with_capacity(publishes.len());
    for publish in publishes {
        let owner = publish.scope.uuid();
        let known = listeners.get(&owner).map_or(&[][..], Vec::as_slice);
        let (mut count, mut in_order) = (0, false);
        for new in publish.events.iter() {
            let to = audience.wanting(owner, &new.event_type, new.pipeline.as_deref());
            count += to.len();
            in_order |= reaches_ordered(known, &to);
        }
        concerned.push((count > CALL_MAX || in_order).then_some(owner));
    }
    let waiting = fan_outs::waiting(db, concerned.iter().flatten().copied().collect()).await?;
    let is_full = |owner: &Uuid| waiting.get(owner).is_some_and(|some| *some >= WAITING_MAX);
    let refused = concerned.into_iter();
    Ok(refused
        .map(|owner| owner.filter(is_full).map(|_| fan_outs::refusal()))
        .collect())
}

/// Writes a delivery for each endpoint that wants one of the events, and notifies those that follow
/// the events. Each event has the number of its call.
async fn deliver(
    tx: &Tx,
    listeners: &Listeners,
    rows: impl Iterator<Item = (usize, &events::Model)>,
) -> Result<()> {
    let mut audience = Audience::of(listeners);
    let outgoing = rows.map(|(call, event)| {
        tx.tells_of(event.publisher_id);
        tx.stores(event.publisher_id, storage::EVENT + event.body.len());
        let pipeline = event.pipeline_slug.as_deref();
        let to = audience.wanting(event.publisher_id, &event.event_type, pipeline);
        Outgoing { event, to, call }
    });
    let outgoing: Vec<Outgoing<'_>> = outgoing.collect();
    fan_outs::deliver(tx, listeners, &outgoing).await
}

/// Publishes the events of several calls. Each call is checked by itself. Events of a refused call
/// are not written.
pub(crate) async fn publish_all(
    tx: &Tx,
    publishes: &[Publish],
) -> Result<Vec<Result<Vec<PublishedEvent>, Problem>>> {
    if publishes.is_empty() {
        return Ok(Vec::new());
    }
    let owners = publishes.iter().map(|publish| publish.scope.uuid());
    let listeners = listeners(tx, owners.collect()).await?;
    let full = check_room(tx.db(), publishes, &listeners).await?;
    let pipelines = known_pipelines(tx, publishes).await?;
    // Only a token with limits can name an event that it must not see.
    let limited = publishes.iter().filter(|p| p.scope.pipelines().is_some());
    let taken = events_of(tx, limited.flat_map(names_of).collect()).await?;
    let count = publishes.iter().map(|publish| publish.events.len()).sum();
    let mut ids: Vec<EventId> = std::iter::repeat_with(|| EventId::generate(tx.now))
        .take(count)
        .collect();
    ids.sort_unstable();
    let mut ids = ids.into_iter();
    let mut drafts = Drafts {
        rows: Vec::with_capacity(count),
        by_name: HashMap::new(),
    };
    let mut calls = Vec::with_capacity(count);
    let mut plans = Vec::with_capacity(publishes.len());
    for ((call, publish), full) in publishes.iter().enumerate().zip(full) {
        if let Some(refusal) = full {
            plans.push(Err(refusal));
            continue;
        }
        plans.push(
            match drafts.add(tx, publish, &pipelines, &taken, &mut ids) {
                Ok(places) => Ok(places),
                Err(StoreError::Refused(problem)) => Err(problem),
                Err(error) => return Err(error),
            },
        );
        calls.resize(drafts.rows.len(), call);
    }
    let rows = drafts.rows;
    let firsts = insert(tx, &rows).await?;
    let first_of = |row: &events::Model| {
        let name = row.external_id.clone()?;
        firsts.get(&(row.publisher_id, name))
    };
    let fresh = calls.into_iter().zip(&rows);
    let fresh = fresh.filter(|(_, row)| first_of(row).is_none());
    deliver(tx, &listeners, fresh).await?;
    let mut done = Vec::with_capacity(plans.len());
    for (publish, plan) in publishes.iter().zip(plans) {
        let places = match plan {
            Ok(places) => places,
            Err(problem) => {
                done.push(Err(problem));
                continue;
            }
        };
        let mut answered = Vec::with_capacity(places.len());
        for (place, repeated) in places {
            let first = first_of(&rows[place]);
            let row = first.unwrap_or(&rows[place]);
            if !in_reach(&publish.scope, row) {
                // Another process took the name meanwhile: the transaction starts anew, and then
                // finds that event.
                return Err(StoreError::Conflict("a name was taken meanwhile".into()));
            }
            answered.push(PublishedEvent {
                event: Event::of_row(row.clone()),
                existed: repeated || first.is_some(),
            });
        }
        done.push(Ok(answered));
    }
    Ok(done)
}
