//! Replays: the events since a time, sent to one endpoint again.
//!
//! A replay is a row with its progress. A process that works on it locks the row, reads a few
//! hundred events, and writes deliveries and the progress in one transaction. So a process that
//! dies leaves nothing half-done, and two processes never do the same part. Only a limited number
//! of its deliveries is pending at a time, and new events go first.

use std::collections::{BTreeSet, HashMap, HashSet};

use domain::{
    Code, FaultCode, Problem, Timestamp,
    audit::Action,
    event::{Filter, OwnType},
    id::{EndpointId, EventId, Id as _, ReplayId},
    limits::{REPLAY_PENDING, REPLAYS_RUNNING},
};
use sea_orm::{
    ActiveModelTrait as _, ColumnTrait as _, ConnectionTrait, EntityTrait as _,
    IntoActiveModel as _, PaginatorTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _,
    sea_query::{Expr, LockBehavior, LockType},
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    store::{
        Scoped, System,
        change::{Answer, AuditEntry, Audited, Context, audit_entry},
        db::Tx,
        effects::Bodies,
        entity::{deliveries, events, replays, webhook_endpoints},
        error::{Result, StoreError, corrupt_row},
        page::{Page, PageRequest},
        quota::over_quota,
        sql::{Sql, padded},
        unreadable,
        walk::{Path, Span, Walk, first_id_at},
    },
    webhooks::Webhooks,
    webhooks::{
        delivery_rows::{delivery_row, insert_deliveries},
        endpoint_rows::live_row,
        fan_outs,
        listeners::Listener,
        recovery::{make_due, resume},
    },
};

/// Events that one step reads.
const STEP: u64 = 500;
/// Replays that one round works on.
const ROUND: u64 = 100;
/// Higher than the precedence of new events, whose deliveries go first.
const PRECEDENCE: i32 = 1;
const RUNNING: &str = "running";

/// A replay of events to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The replay's identifier.
    pub id: ReplayId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// `running`, `succeeded` (all its deliveries ended, well or not) or `cancelled`.
    pub status: String,
    /// Only events from this time on.
    pub since: Timestamp,
    /// Only events up to this time.
    pub until: Timestamp,
    /// Only events of which a delivery to the endpoint failed and none succeeded.
    pub only_failed: bool,
    /// Whether deliveries of these events that wait for a later try are made due at once.
    pub include_pending: bool,
    /// Only events that one of these filters matches.
    pub event_types: Option<Vec<String>>,
    /// How many events were found so far.
    pub matched: i64,
    /// How many deliveries were written so far.
    pub queued: i64,
    /// How many pending deliveries were made due so far.
    pub made_due: i64,
    /// How many of the written deliveries have ended.
    pub done: i64,
    /// When it was started.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// What a caller gives for a new replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewReplay {
    /// Only events from this time on.
    pub since: Timestamp,
    /// Only events up to this time; by default, and at most, up to now.
    pub until: Option<Timestamp>,
    /// Only events of which a delivery to the endpoint failed and none succeeded.
    pub only_failed: bool,
    /// Whether deliveries of these events that wait for a later try are made due at once.
    pub include_pending: bool,
    /// Only events that one of these filters matches, besides the endpoint's own filters.
    pub event_types: Option<Vec<String>>,
}

/// The result of one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplayRound {
    /// Replays that are running.
    pub running: u64,
    /// Deliveries that were written.
    pub queued: u64,
    /// Whether any replay progressed.
    pub moved: bool,
}

fn position_of(row: &replays::Model) -> Uuid {
    row.position.unwrap_or_else(|| first_id_at(row.since))
}

/// The identifier at which a replay's events end. With this progress, it has read all of them.
fn end_of(row: &replays::Model) -> Uuid {
    first_id_at(row.until.saturating_add(1))
}

fn replay_of(row: replays::Model, pending: i64) -> Result<Replay> {
    let types = row.event_types.as_deref().map(serde_json::from_str);
    Ok(Replay {
        id: ReplayId::from_uuid(row.id),
        endpoint: EndpointId::from_uuid(row.endpoint_id),
        status: row.status,
        since: Timestamp::from_ms(row.since),
        until: Timestamp::from_ms(row.until),
        only_failed: row.only_failed,
        include_pending: row.include_pending,
        made_due: row.made_due,
        event_types: types.transpose().map_err(|_| corrupt_row("replay"))?,
        matched: row.matched,
        queued: row.queued,
        done: row.queued - pending,
        created_at: Timestamp::from_ms(row.created_at),
        finished_at: row.finished_at.map(Timestamp::from_ms),
    })
}

/// How many deliveries of each of these replays are pending.
async fn pending_of<C: ConnectionTrait>(
    db: &C,
    owner: Uuid,
    replays: &[Uuid],
) -> Result<HashMap<Uuid, i64>> {
    use deliveries::Column;
    if replays.is_empty() {
        return Ok(HashMap::new());
    }
    let counts: Vec<(Uuid, i64)> = deliveries::Entity::find()
        .select_only()
        .column(Column::ReplayId)
        .column_as(Column::Id.count(), "pending")
        .filter(Column::PublisherId.eq(owner))
        .filter(Column::ReplayId.is_in(replays.iter().copied()))
        .filter(Column::Status.eq("pending"))
        .group_by(Column::ReplayId)
        .into_tuple()
        .all(db)
        .await?;
    Ok(counts.into_iter().collect())
}

async fn shown<C: ConnectionTrait>(db: &C, row: replays::Model) -> Result<Replay> {
    let pending = pending_of(db, row.publisher_id, &[row.id]).await?;
    let pending = pending.get(&row.id).copied().unwrap_or(0);
    replay_of(row, pending)
}

/// The running replays of an endpoint.
async fn running_of<C: ConnectionTrait>(
    db: &C,
    owner: Uuid,
    endpoint: Uuid,
) -> Result<Vec<replays::Model>> {
    use replays::Column;
    Ok(replays::Entity::find()
        .filter(Column::PublisherId.eq(owner))
        .filter(Column::EndpointId.eq(endpoint))
        .filter(Column::Status.eq(RUNNING))
        .all(db)
        .await?)
}

fn check_filters<'a>(filters: impl Iterator<Item = &'a String>) -> Result<(), Problem> {
    for (at, filter) in filters.enumerate() {
        if Filter::parse(filter).is_none() {
            let detail = "It takes `*`, an event type, or `prefix.*`.";
            return Err(Problem::field(
                &format!("/event_types/{at}"),
                FaultCode::Invalid,
                detail,
            ));
        }
    }
    Ok(())
}

/// Starts a replay, or returns a running one with the same filter, without an audit entry. The
/// publisher's row must be locked, and the endpoint must be live.
pub(crate) async fn start_in(
    tx: &Tx,
    endpoint: &webhook_endpoints::Model,
    new: &NewReplay,
) -> Result<(Replay, Option<AuditEntry>)> {
    let until = new.until.unwrap_or(tx.now).min(tx.now);
    if new.since > until {
        let detail = "It must be before `until`, and not in the future.";
        return Err(Problem::field("/since", FaultCode::TooLarge, detail).into());
    }
    check_filters(new.event_types.iter().flatten())?;
    let types = new
        .event_types
        .as_ref()
        .map(|types| json!(types).to_string());
    let mut filter = json!({
        "since": new.since.ms(),
        "until": new.until.map(Timestamp::ms),
        "only_failed": new.only_failed,
        "event_types": new.event_types,
    });
    if new.include_pending {
        filter["include_pending"] = json!(true);
    }
    let filter = filter.to_string();
    let owner = endpoint.publisher_id;
    let running = running_of(tx.db(), owner, endpoint.id).await?;
    if let Some(same) = running.iter().find(|row| row.filter == filter) {
        return Ok((shown(tx.db(), same.clone()).await?, None));
    }
    if running.len() >= REPLAYS_RUNNING {
        let limit = u32::try_from(REPLAYS_RUNNING).unwrap_or(u32::MAX);
        return Err(over_quota("running replays of an endpoint", limit));
    }
    let row = replays::Model {
        publisher_id: owner,
        id: ReplayId::generate(tx.now).uuid(),
        endpoint_id: endpoint.id,
        status: RUNNING.to_owned(),
        filter,
        since: new.since.ms(),
        until: until.ms(),
        only_failed: new.only_failed,
        event_types: types,
        position: None,
        matched: 0,
        queued: 0,
        looked_at: tx.now.ms(),
        created_at: tx.now.ms(),
        finished_at: None,
        include_pending: new.include_pending,
        made_due: 0,
    };
    if new.include_pending {
        resume(tx, owner, endpoint.id).await?;
    }
    let active = row.clone().into_active_model().reset_all();
    replays::Entity::insert(active)
        .exec_without_returning(tx.db())
        .await?;
    let replay = replay_of(row, 0)?;
    let facts = json!({
        "endpoint_id": replay.endpoint.to_string(),
        "since": replay.since.to_string(),
        "until": replay.until.to_string(),
        "only_failed": replay.only_failed,
        "include_pending": replay.include_pending,
    });
    let entry = audit_entry(Action::ReplayStarted, "replay", replay.id, facts);
    Ok((replay, Some(entry)))
}

/// Ends the running replays of an endpoint that is being deleted. Its deliveries are cancelled with
/// it.
pub(crate) async fn end_all_of(tx: &Tx, owner: Uuid, endpoint: Uuid) -> Result<()> {
    use replays::Column;
    replays::Entity::update_many()
        .col_expr(Column::Status, Expr::value("cancelled"))
        .col_expr(Column::FinishedAt, Expr::value(tx.now.ms()))
        .filter(Column::PublisherId.eq(owner))
        .filter(Column::EndpointId.eq(endpoint))
        .filter(Column::Status.eq(RUNNING))
        .exec(tx.db())
        .await?;
    Ok(())
}

async fn save(tx: &Tx, row: &replays::Model) -> Result<()> {
    let active = row.clone().into_active_model().reset_all();
    replays::Entity::update(active).exec(tx.db()).await?;
    Ok(())
}

/// Cancels the pending deliveries of a replay. The outcome of a running attempt does not change a
/// delivery that has ended.
async fn cancel_deliveries(tx: &Tx, row: &replays::Model) -> Result<u64> {
    use deliveries::Column;
    let done = deliveries::Entity::update_many()
        .col_expr(Column::Status, Expr::value("cancelled"))
        .col_expr(Column::NextAttemptAt, Expr::value(Option::<i64>::None))
        .col_expr(Column::FinishedAt, Expr::value(tx.now.ms()))
        .filter(Column::PublisherId.eq(row.publisher_id))
        .filter(Column::ReplayId.eq(row.id))
        .filter(Column::Status.eq("pending"))
        .exec(tx.db())
        .await?;
    Ok(done.rows_affected)
}

/// Which of these events to send. Left out are those with a delivery to the endpoint that was
/// pending when the replay was started, or is now. If only failed ones are wanted, those that
/// arrived are left out, too. The second value has the events with a pending delivery.
async fn wanted(
    tx: &Tx,
    row: &replays::Model,
    found: &[Uuid],
) -> Result<(HashSet<Uuid>, HashSet<Uuid>)> {
    use deliveries::Column;
    let mut all: HashSet<Uuid> = found.iter().copied().collect();
    let standing: Vec<(Uuid, String, Option<i64>)> = deliveries::Entity::find()
        .select_only()
        .columns([Column::EventId, Column::Status, Column::FinishedAt])
        .filter(Column::PublisherId.eq(row.publisher_id))
        .filter(Column::EventId.is_in(found.iter().copied()))
        .filter(Column::EndpointId.eq(row.endpoint_id))
        .into_tuple()
        .all(tx.db())
        .await?;
    let with = |status: &str| -> HashSet<Uuid> {
        let some = standing.iter().filter(|(_, at, _)| at == status);
        some.map(|(event, ..)| *event).collect()
    };
    let (pending, failed) = (with("pending"), with("failed"));
    all.retain(|event| !pending.contains(event));
    // A delivery that arrived after the replay was started was pending then, and is not sent twice.
    for (event, status, finished) in &standing {
        if status == "succeeded" && finished.is_some_and(|at| at > row.created_at) {
            all.remove(event);
        }
    }
    if row.only_failed {
        let arrived = with("succeeded");
        all.retain(|event| failed.contains(event) && !arrived.contains(event));
    }
    Ok((all, pending))
}

/// Works on one replay: writes deliveries while there is room, or ends it once all of them have
/// ended. Returns how many it wrote, and whether the replay progressed. Does nothing if another
/// process has locked the replay or it may not continue now.
async fn step(tx: &Tx, key: (Uuid, Uuid)) -> Result<(u64, bool)> {
    let row = replays::Entity::find_by_id(key)
        .lock_with_behavior(LockType::NoKeyUpdate, LockBehavior::SkipLocked)
        .one(tx.db())
        .await?;
    let Some(mut row) = row.filter(|row| row.status == RUNNING) else {
        return Ok((0, false));
    };
    let endpoint = webhook_endpoints::Entity::find_by_id((key.0, row.endpoint_id))
        .one(tx.db())
        .await?;
    let Some(endpoint) = endpoint.filter(|found| found.enabled) else {
        return Ok((0, false));
    };
    // Deliveries that wait to be spread will be sent, and must not be sent twice.
    if !fan_outs::waiting(tx.db(), BTreeSet::from([key.0]))
        .await?
        .is_empty()
    {
        return Ok((0, false));
    }
    let running = running_of(tx.db(), key.0, endpoint.id).await?;
    let ids: Vec<Uuid> = running.iter().map(|row| row.id).collect();
    let pending = pending_of(tx.db(), key.0, &ids).await?;
    if position_of(&row) >= end_of(&row) {
        if pending.contains_key(&row.id) {
            return Ok((0, false));
        }
        "succeeded".clone_into(&mut row.status);
        row.finished_at = Some(tx.now.ms());
        save(tx, &row).await?;
        return Ok((0, true));
    }
    let room = REPLAY_PENDING.saturating_sub(pending.values().sum());
    let room = usize::try_from(room).unwrap_or(0);
    if room == 0 {
        return Ok((0, false));
    }
    let queued = queue(tx, &mut row, &endpoint, room).await?;
    row.looked_at = tx.now.ms();
    save(tx, &row).await?;
    Ok((queued, true))
}

fn filters_of(row: &replays::Model) -> Result<Option<Vec<Filter>>> {
    let words: Option<Vec<String>> = row
        .event_types
        .as_deref()
        .map(serde_json::from_str)
        .transpose()
        .map_err(|_| corrupt_row("replay"))?;
    let filters = |words: Vec<String>| {
        let filters = words.iter().filter_map(|word| Filter::parse(word));
        filters.collect()
    };
    Ok(words.map(filters))
}

/// Continues a replay, with at most `room` deliveries.
async fn queue(
    tx: &Tx,
    row: &mut replays::Model,
    endpoint: &webhook_endpoints::Model,
    room: usize,
) -> Result<u64> {
    use events::Column;
    let listener = Listener::of_endpoint(endpoint)?;
    let filters = filters_of(row)?;
    let seen: Vec<(Uuid, String, Option<String>)> = events::Entity::find()
        .select_only()
        .columns([Column::Id, Column::EventType, Column::PipelineSlug])
        .filter(Column::PublisherId.eq(row.publisher_id))
        .filter(Column::Id.gt(position_of(row)))
        .filter(Column::Id.lt(end_of(row)))
        .order_by_asc(Column::Id)
        .limit(STEP)
        .into_tuple()
        .all(tx.db())
        .await?;
    let matches = |event_type: &str, pipeline: Option<&str>| {
        // A test event is about nothing that happened.
        event_type != OwnType::Test.as_str()
            && listener.wants(event_type, pipeline)
            && filters
                .as_ref()
                .is_none_or(|some| some.iter().any(|filter| filter.matches(event_type)))
    };
    let found = seen.iter().filter(|(_, t, p)| matches(t, p.as_deref()));
    let found: Vec<Uuid> = found.map(|(id, ..)| *id).collect();
    let (wanted, pending) = wanted(tx, row, &found).await?;
    let whole = u64::try_from(seen.len()).unwrap_or(0) < STEP;
    let matching: HashSet<Uuid> = found.into_iter().collect();
    let (mut rows, mut waiting) = (Vec::new(), Vec::new());
    let mut full = false;
    for (id, ..) in &seen {
        if wanted.contains(id) {
            if rows.len() >= room {
                full = true;
                break;
            }
            rows.push(deliveries::Model {
                replay_id: Some(row.id),
                precedence: PRECEDENCE,
                ..delivery_row(tx, row.publisher_id, EventId::from_uuid(*id), endpoint.id)
            });
        }
        waiting.extend(pending.contains(id).then_some(*id));
        row.matched += i64::from(matching.contains(id));
        row.position = Some(*id);
    }
    if whole && !full {
        row.position = Some(end_of(row));
    }
    if row.include_pending && !waiting.is_empty() {
        let made = make_due(tx, row.publisher_id, endpoint.id, Some(&waiting)).await?;
        row.made_due += i64::try_from(made).unwrap_or(i64::MAX);
        tx.delivers_to(row.publisher_id, endpoint.id);
    }
    let queued = u64::try_from(rows.len()).unwrap_or(0);
    row.queued += i64::try_from(rows.len()).unwrap_or(0);
    let ordered = endpoint.ordered.then_some((row.publisher_id, endpoint.id));
    // They go after new events, so they are not handed over.
    let bodies = Bodies::default();
    insert_deliveries(tx, rows, &ordered.into_iter().collect(), &bodies).await?;
    Ok(queued)
}

impl Webhooks<Scoped> {
    /// Starts a replay to an endpoint. `render` also learns whether a replay with the same filter
    /// was running already.
    pub async fn start_replay<A>(
        &self,
        context: &Context,
        endpoint: EndpointId,
        new: NewReplay,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&(Replay, bool)) -> Answer + Send + Sync,
    {
        let (owner, new) = (self.scope.uuid(), &new);
        let room = &self.store.storage_room(owner).await?;
        let work = |tx: Tx| async move {
            room.check()?;
            let row = live_row(&tx, owner, endpoint).await?;
            if !row.enabled {
                return Err(Code::EndpointDisabled.into());
            }
            Ok(match start_in(&tx, &row, new).await? {
                (replay, Some(entry)) => Audited::new((replay, false), owner, entry),
                (replay, None) => Audited::unchanged((replay, true)),
            })
        };
        self.store.administer(context, owner, work, render).await
    }

    /// Reads a replay of an endpoint.
    pub async fn replay(&self, endpoint: EndpointId, id: ReplayId) -> Result<Replay, StoreError> {
        let db = self.store.read();
        let row = replays::Entity::find_by_id((self.scope.uuid(), id.uuid()))
            .one(db)
            .await?
            .filter(|row| row.endpoint_id == endpoint.uuid());
        shown(db, row.ok_or_else(Problem::not_found)?).await
    }

    /// An endpoint's replays, newest first.
    pub async fn replays(
        &self,
        endpoint: EndpointId,
        page: PageRequest<Uuid>,
    ) -> Result<Page<Replay, Uuid>, StoreError> {
        use replays::Column;
        let owner = self.scope.uuid();
        let scan = self.store.scan(owner).await?;
        let db = scan.db();
        self.endpoint(endpoint).await?;
        let path = [endpoint.uuid().into()];
        let path = Path::by("replays_by_endpoint", &["endpoint_id"], path);
        let walk = Walk::over("replays", owner, vec![path]);
        let found = walk.part(db, &page, Span::after(page.after)).await?;
        let ids = found.keys.clone();
        let rows = replays::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::Id.is_in(padded(ids.iter().copied())))
            .all(db)
            .await?;
        let pending = pending_of(db, owner, &ids).await?;
        Page::of_key_page(found, rows, |row| row.id).try_map(|row| {
            let pending = pending.get(&row.id).copied().unwrap_or(0);
            replay_of(row, pending)
        })
    }

    /// Ends a replay and cancels its pending deliveries. One that has ended does not change.
    pub async fn cancel_replay<A>(
        &self,
        context: &Context,
        endpoint: EndpointId,
        id: ReplayId,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Replay) -> Answer + Send + Sync,
    {
        let owner = self.scope.uuid();
        let work = |tx: Tx| async move {
            let row = replays::Entity::find_by_id((owner, id.uuid()))
                .lock(LockType::NoKeyUpdate)
                .one(tx.db())
                .await?
                .filter(|row| row.endpoint_id == endpoint.uuid());
            let mut row = row.ok_or_else(Problem::not_found)?;
            if row.status != RUNNING {
                return Ok(Audited::unchanged(shown(tx.db(), row).await?));
            }
            "cancelled".clone_into(&mut row.status);
            row.finished_at = Some(tx.now.ms());
            save(&tx, &row).await?;
            let cancelled = cancel_deliveries(&tx, &row).await?;
            let facts = json!({ "deliveries_cancelled": cancelled });
            let entry = audit_entry(Action::ReplayCancelled, "replay", id, facts);
            Ok(Audited::new(shown(tx.db(), row).await?, owner, entry))
        };
        self.store.administer(context, owner, work, render).await
    }
}

impl Webhooks<System> {
    /// Works a little on every running replay that may continue. Those that waited longest come
    /// first.
    pub async fn work_replays(&self) -> Result<ReplayRound, StoreError> {
        let mut sql = Sql::new(
            "SELECT r.publisher_id, r.id FROM replays r \
             JOIN webhook_endpoints e ON e.publisher_id = r.publisher_id AND e.id = r.endpoint_id \
             JOIN publishers p ON p.id = r.publisher_id \
             WHERE r.status = 'running' AND e.enabled AND p.status = 'active' \
             ORDER BY r.looked_at LIMIT ",
        );
        sql.bind(i64::try_from(ROUND).unwrap_or(i64::MAX));
        let statement = sql.statement(self.store.backend());
        let rows = self.store.read().query_all_raw(statement).await?;
        let mut worked = ReplayRound {
            running: u64::try_from(rows.len()).unwrap_or(0),
            ..ReplayRound::default()
        };
        for row in rows {
            let key: (Uuid, Uuid) = (row.try_get("", "publisher_id")?, row.try_get("", "id")?);
            // Most of the time a replay waits for its deliveries. Then the writer is not needed.
            if self.waits(key).await? {
                continue;
            }
            let stepped = self
                .store
                .write(|tx| async move { step(&tx, key).await })
                .await;
            match stepped {
                Ok((queued, moved)) => {
                    worked.queued += queued;
                    worked.moved |= moved;
                }
                // The replay, or its endpoint, cannot be read: others come first until it can.
                Err(error @ StoreError::Internal(_)) => {
                    unreadable::report("replay", key.0, key.1, &error);
                    self.put_behind(key).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(worked)
    }

    /// Moves a replay behind the others.
    async fn put_behind(&self, (owner, id): (Uuid, Uuid)) -> Result<()> {
        use replays::Column;
        self.store
            .write(|tx| async move {
                replays::Entity::update_many()
                    .col_expr(Column::LookedAt, tx.now.ms().into())
                    .filter(Column::PublisherId.eq(owner))
                    .filter(Column::Id.eq(id))
                    .exec(tx.db())
                    .await?;
                Ok(())
            })
            .await
    }

    async fn waits(&self, (owner, id): (Uuid, Uuid)) -> Result<bool> {
        use deliveries::Column;
        let db = self.store.read();
        let row = replays::Entity::find_by_id((owner, id)).one(db).await?;
        let Some(row) = row else { return Ok(true) };
        let pending = deliveries::Entity::find()
            .filter(Column::PublisherId.eq(owner))
            .filter(Column::ReplayId.eq(id))
            .filter(Column::Status.eq("pending"))
            .count(db)
            .await?;
        let pending = i64::try_from(pending).unwrap_or(i64::MAX);
        let looked_at_all = position_of(&row) >= end_of(&row);
        Ok(pending >= REPLAY_PENDING || (looked_at_all && pending > 0))
    }
}

#[cfg(test)]
mod tests;
