//! Large fan-outs: if an event would start many deliveries, only a fan-out is written with it. It
//! is spread into deliveries later, in small transactions, with publishers in turn (ADR 0029).
//!
//! A fan-out holds events of one transaction and the endpoints that each of them reaches, as they
//! were at that time. It is removed in the transaction that writes the last of its deliveries, so
//! nothing is lost with a process. A publisher's fan-outs are numbered in the order of commits, and
//! are spread in this order by one process at a time. While some wait, the publisher's later
//! deliveries to ordered endpoints are added to the fan-outs, too.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use domain::{
    Problem,
    id::{EventId, Id as _, PublisherId},
    permits::Full,
};
use sea_orm::{
    ColumnTrait as _, ConnectionTrait, DbBackend, EntityTrait as _, QueryFilter as _,
    QueryOrder as _, QuerySelect as _,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    store::{
        System,
        db::Tx,
        effects::Bodies,
        entity::{deliveries, events, fan_outs, webhook_endpoints},
        error::{Result, StoreError, corrupt_row},
        sql::{self, Sql, padded},
    },
    webhooks::Webhooks,
    webhooks::{
        delivery_rows::{delivery_row, insert_deliveries},
        listeners::{Listener, Listeners},
    },
};

/// Most deliveries of one call that are written with its events. They take one or two milliseconds
/// of the writer. Usual calls, with a few events for up to ten endpoints, stay far below.
pub(crate) const CALL_MAX: usize = 128;
/// Most deliveries that one transaction writes with the events of one publisher: as many as the
/// write lane gathers of small calls.
pub(crate) const TRANSACTION_MAX: usize = 1024;
/// Most events of one fan-out, so that no row grows large.
const EVENTS_A_ROW: usize = 100;
/// How many fan-outs after the oldest one step reads, since small ones may follow large ones.
const ROWS_A_STEP: u64 = 31;
/// How many of a publisher's deliveries may wait to be spread before its large calls are refused:
/// ten calls of 1 000 events to 100 endpoints.
pub(crate) const WAITING_MAX: i64 = 1_000_000;

/// An event, and which of its publisher's listeners want it.
pub(crate) struct Outgoing<'a> {
    pub(crate) event: &'a events::Model,
    /// Indexes into the list of listeners, ascending.
    pub(crate) to: Arc<[usize]>,
    /// The number of the call. Events of one call have the same.
    pub(crate) call: usize,
}

/// Publisher, type and pipeline of events.
type Kind<'a> = (Uuid, &'a str, Option<&'a str>);

/// Which listeners want which events. Each kind of event is matched once.
pub(crate) struct Audience<'a> {
    listeners: &'a Listeners,
    judged: HashMap<Kind<'a>, Arc<[usize]>>,
}

impl<'a> Audience<'a> {
    pub(crate) fn of(listeners: &'a Listeners) -> Self {
        Self {
            listeners,
            judged: HashMap::new(),
        }
    }

    /// Indexes into the list of the publisher's listeners.
    pub(crate) fn wanting(
        &mut self,
        publisher: Uuid,
        event_type: &'a str,
        pipeline: Option<&'a str>,
    ) -> Arc<[usize]> {
        let listeners = self.listeners;
        let judged = self.judged.entry((publisher, event_type, pipeline));
        let judge = || {
            let all = listeners.get(&publisher).into_iter().flatten().enumerate();
            let some = all.filter(|(_, one)| one.wants(event_type, pipeline));
            some.map(|(at, _)| at).collect()
        };
        Arc::clone(judged.or_insert_with(judge))
    }
}

/// Whether an event reaches an ordered endpoint.
pub(crate) fn reaches_ordered(listeners: &[Listener], to: &[usize]) -> bool {
    to.iter().any(|at| listeners[*at].ordered)
}

/// How many deliveries of these publishers wait to be spread. Publishers without any are left out.
pub(crate) async fn waiting(
    db: &impl ConnectionTrait,
    publishers: BTreeSet<Uuid>,
) -> Result<HashMap<Uuid, i64>> {
    let mut found = HashMap::new();
    if publishers.is_empty() {
        return Ok(found);
    }
    let mut sql = Sql::new(
        "SELECT publisher_id, CAST(SUM(total - done) AS BIGINT) AS waiting FROM fan_outs \
         WHERE publisher_id IN (",
    );
    sql.bind_list(padded(publishers))
        .push(") GROUP BY publisher_id");
    let statement = sql.statement(db.get_database_backend());
    for row in db.query_all_raw(statement).await? {
        let publisher: Uuid = row.try_get("", "publisher_id")?;
        found.insert(publisher, row.try_get("", "waiting")?);
    }
    Ok(found)
}

/// The refusal of a call if too many of the publisher's deliveries wait to be spread.
pub(crate) fn refusal() -> Problem {
    Full::Owner.problem("deliveries that wait to be written")
}

/// The publishers with a call, or with a sum of calls, that is too large to be written at once.
fn too_large(outgoing: &[Outgoing<'_>]) -> BTreeSet<Uuid> {
    let mut found = BTreeSet::new();
    let all: usize = outgoing.iter().map(|one| one.to.len()).sum();
    if all <= CALL_MAX {
        return found;
    }
    let mut calls: HashMap<(Uuid, usize), usize> = HashMap::new();
    let mut totals: HashMap<Uuid, usize> = HashMap::new();
    for one in outgoing {
        let publisher = one.event.publisher_id;
        let call = calls.entry((publisher, one.call)).or_default();
        *call += one.to.len();
        let total = totals.entry(publisher).or_default();
        *total += one.to.len();
        if *call > CALL_MAX || *total > TRANSACTION_MAX {
            found.insert(publisher);
        }
    }
    found
}

/// Writes the deliveries of inserted events, or a fan-out of them.
///
/// Numbers of fan-outs are taken before sequence numbers of ordered endpoints.
pub(crate) async fn deliver(
    tx: &Tx,
    listeners: &Listeners,
    outgoing: &[Outgoing<'_>],
) -> Result<()> {
    let large = too_large(outgoing);
    let of = |one: &Outgoing<'_>| listeners.get(&one.event.publisher_id).map(Vec::as_slice);
    let in_order = outgoing.iter().filter(|one| {
        !large.contains(&one.event.publisher_id)
            && of(one).is_some_and(|some| reaches_ordered(some, &one.to))
    });
    let in_order: BTreeSet<Uuid> = in_order.map(|one| one.event.publisher_id).collect();
    let behind = waiting(tx.db(), in_order).await?;
    let mut later: BTreeMap<Uuid, Vec<(Uuid, Vec<usize>)>> = BTreeMap::new();
    let (mut rows, mut ordered) = (Vec::new(), BTreeSet::new());
    for one in outgoing {
        let publisher = one.event.publisher_id;
        let listeners = of(one).unwrap_or_default();
        let waits = |at: &usize| {
            large.contains(&publisher)
                || (listeners[*at].ordered && behind.contains_key(&publisher))
        };
        let (wait, now): (Vec<usize>, Vec<usize>) = one.to.iter().copied().partition(waits);
        if !wait.is_empty() {
            let lines = later.entry(publisher).or_default();
            lines.push((one.event.id, wait));
        }
        for at in now {
            let to = &listeners[at];
            if to.ordered {
                ordered.insert((publisher, to.endpoint));
            }
            let event = EventId::from_uuid(one.event.id);
            rows.push(delivery_row(tx, publisher, event, to.endpoint));
        }
    }
    write_down(tx, listeners, later).await?;
    let bodies = Bodies::of(outgoing.iter().map(|one| one.event), &rows);
    insert_deliveries(tx, rows, &ordered, &bodies).await
}

/// Which events go to which endpoints: the content of a fan-out. Events that reach the same
/// endpoints share their list.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    endpoints: Vec<String>,
    /// Lists of indexes into the list of endpoints.
    sets: Vec<Vec<usize>>,
    /// Events, each with the index of its list in `sets`.
    events: Vec<(String, usize)>,
}

impl Plan {
    fn of(listeners: &[Listener], lines: &[(Uuid, Vec<usize>)]) -> Self {
        let mut plan = Self::default();
        let (mut endpoints, mut sets) = (HashMap::new(), HashMap::new());
        for (event, to) in lines {
            let set = *sets.entry(to).or_insert_with(|| {
                let places = to.iter().map(|at| {
                    *endpoints.entry(*at).or_insert_with(|| {
                        let name = listeners[*at].endpoint.simple().to_string();
                        plan.endpoints.push(name);
                        plan.endpoints.len() - 1
                    })
                });
                plan.sets.push(places.collect());
                plan.sets.len() - 1
            });
            plan.events.push((event.simple().to_string(), set));
        }
        plan
    }

    /// Pairs of an event and an endpoint, the oldest event first: at most `most`, from the pair
    /// number `from` on.
    fn pairs(&self, from: usize, most: usize) -> Result<Vec<(Uuid, Uuid)>> {
        let parse = |text: &str| Uuid::try_parse(text).map_err(|_| corrupt_row("fan-out"));
        let endpoints: Vec<Uuid> = self
            .endpoints
            .iter()
            .map(|text| parse(text))
            .collect::<Result<_>>()?;
        let (mut found, mut passed) = (Vec::new(), 0);
        for (event, set) in &self.events {
            let set = self.sets.get(*set).ok_or_else(|| corrupt_row("fan-out"))?;
            let skipped = from.saturating_sub(passed).min(set.len());
            passed += set.len();
            for at in &set[skipped..] {
                if found.len() == most {
                    return Ok(found);
                }
                let endpoint = endpoints.get(*at).ok_or_else(|| corrupt_row("fan-out"))?;
                found.push((parse(event)?, *endpoint));
            }
        }
        Ok(found)
    }
}

fn whole(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Writes the fan-outs of publishers' events.
async fn write_down(
    tx: &Tx,
    listeners: &Listeners,
    later: BTreeMap<Uuid, Vec<(Uuid, Vec<usize>)>>,
) -> Result<()> {
    if later.is_empty() {
        return Ok(());
    }
    let rows = later
        .values()
        .map(|lines| lines.len().div_ceil(EVENTS_A_ROW));
    let counts: BTreeMap<Uuid, i64> = later.keys().copied().zip(rows.map(whole)).collect();
    let mut numbers = take_numbers(tx, &counts).await?;
    let mut rows = Vec::new();
    for (publisher, lines) in &later {
        let known = listeners.get(publisher).map(Vec::as_slice);
        let number = numbers.get_mut(publisher);
        let (Some(known), Some(number)) = (known, number) else {
            return Err(StoreError::Internal("a fan-out has no number".into()));
        };
        for part in lines.chunks(EVENTS_A_ROW) {
            *number += 1;
            let plan = serde_json::to_string(&Plan::of(known, part));
            rows.push(fan_outs::Model {
                publisher_id: *publisher,
                seq: *number,
                total: whole(part.iter().map(|(_, to)| to.len()).sum()),
                done: 0,
                created_at: tx.now.ms(),
                plan: plan.map_err(|error| StoreError::Internal(error.to_string()))?,
            });
        }
    }
    tx.fans_out();
    sql::insert(tx.db(), rows, "").await.map(drop)
}

/// Takes `counts` numbers of each publisher. Returns the last number before them. The counters'
/// rows stay locked until the transaction ends, so that the numbers follow the order of commits.
async fn take_numbers(tx: &Tx, counts: &BTreeMap<Uuid, i64>) -> Result<HashMap<Uuid, i64>> {
    let mut sql = Sql::new("INSERT INTO fan_out_sequences (publisher_id, last) ");
    sql.values(
        counts
            .iter()
            .map(|(publisher, count)| vec![(*publisher).into(), (*count).into()]),
    );
    sql.push(
        " ON CONFLICT (publisher_id) DO UPDATE \
         SET last = fan_out_sequences.last + excluded.last RETURNING publisher_id, last",
    );
    let statement = sql.statement(tx.db().get_database_backend());
    let mut before = HashMap::with_capacity(counts.len());
    for taken in tx.db().query_all_raw(statement).await? {
        let publisher: Uuid = taken.try_get("", "publisher_id")?;
        let last: i64 = taken.try_get("", "last")?;
        let count = counts.get(&publisher).copied().unwrap_or(0);
        before.insert(publisher, last - count);
    }
    Ok(before)
}

/// A publisher's oldest fan-out, locked; `None` if there is none or another process has locked it.
/// Only the oldest is ever taken, so that the order is kept.
async fn oldest(tx: &Tx, publisher: Uuid) -> Result<Option<fan_outs::Model>> {
    let backend = tx.db().get_database_backend();
    let mut sql = Sql::new("SELECT * FROM fan_outs WHERE publisher_id = ");
    sql.bind(publisher)
        .push(" AND seq = (SELECT MIN(first.seq) FROM fan_outs first WHERE first.publisher_id = ")
        .bind(publisher)
        .push(")");
    if backend == DbBackend::Postgres {
        sql.push(" FOR UPDATE SKIP LOCKED");
    }
    let found = fan_outs::Entity::find().from_raw_sql(sql.statement(backend));
    Ok(found.one(tx.db()).await?)
}

/// Those of the endpoints that are not deleted, and whether each is ordered.
async fn living(
    tx: &Tx,
    publisher: Uuid,
    endpoints: BTreeSet<Uuid>,
) -> Result<HashMap<Uuid, bool>> {
    use webhook_endpoints::Column;
    let found: Vec<(Uuid, bool)> = webhook_endpoints::Entity::find()
        .select_only()
        .columns([Column::Id, Column::Ordered])
        .filter(Column::PublisherId.eq(publisher))
        .filter(Column::Id.is_in(padded(endpoints)))
        .filter(Column::DeletedAt.is_null())
        .into_tuple()
        .all(tx.db())
        .await?;
    Ok(found.into_iter().collect())
}

/// The publisher's next fan-outs, oldest first. The lock of the oldest covers them, too.
async fn after(tx: &Tx, first: &fan_outs::Model) -> Result<Vec<fan_outs::Model>> {
    use fan_outs::Column;
    let query = fan_outs::Entity::find()
        .filter(Column::PublisherId.eq(first.publisher_id))
        .filter(Column::Seq.gt(first.seq))
        .order_by_asc(Column::Seq)
        .limit(ROWS_A_STEP);
    Ok(query.all(tx.db()).await?)
}

/// Writes up to `most` deliveries of a publisher's oldest fan-outs. Returns how many pairs it
/// handled, including those with deleted endpoints.
async fn step(tx: &Tx, publisher: Uuid, most: usize) -> Result<usize> {
    let Some(first) = oldest(tx, publisher).await? else {
        return Ok(0);
    };
    let mut rows = Vec::new();
    if first.total - first.done < whole(most) {
        rows = after(tx, &first).await?;
    }
    let (mut pairs, mut finished, mut begun) = (Vec::new(), None, None);
    for row in std::iter::once(first).chain(rows) {
        let room = most - pairs.len();
        if room == 0 {
            break;
        }
        let plan: Plan = serde_json::from_str(&row.plan).map_err(|_| corrupt_row("fan-out"))?;
        let some = plan.pairs(usize::try_from(row.done).unwrap_or(0), room)?;
        let done = row.done + whole(some.len());
        if done >= row.total || some.is_empty() {
            finished = Some(row.seq);
        } else {
            begun = Some((row.seq, done));
        }
        pairs.extend(some);
    }
    let living = living(tx, publisher, pairs.iter().map(|(_, to)| *to).collect()).await?;
    let ordered = living.iter().filter(|(_, ordered)| **ordered);
    let ordered = ordered
        .map(|(endpoint, _)| (publisher, *endpoint))
        .collect();
    let rows: Vec<deliveries::Model> = pairs
        .iter()
        .filter(|(_, to)| living.contains_key(to))
        .map(|(event, to)| delivery_row(tx, publisher, EventId::from_uuid(*event), *to))
        .collect();
    // There are many, so they are not handed over: the dispatcher loads them when it has room.
    insert_deliveries(tx, rows, &ordered, &Bodies::default()).await?;
    let mut changes = Vec::new();
    if let Some(last) = finished {
        let mut sql = Sql::new("DELETE FROM fan_outs WHERE publisher_id = ");
        sql.bind(publisher).push(" AND seq <= ").bind(last);
        changes.push(sql);
    }
    if let Some((seq, done)) = begun {
        let mut sql = Sql::new("UPDATE fan_outs SET done = ");
        sql.bind(done)
            .push(" WHERE publisher_id = ")
            .bind(publisher);
        sql.push(" AND seq = ").bind(seq);
        changes.push(sql);
    }
    for sql in changes {
        let statement = sql.statement(tx.db().get_database_backend());
        tx.db().execute_raw(statement).await?;
    }
    Ok(pairs.len())
}

impl Webhooks<System> {
    /// The first publisher with a fan-out: after `after` in the order of identifiers, or of all.
    pub async fn fanning_out(
        &self,
        after: Option<PublisherId>,
    ) -> Result<Option<PublisherId>, StoreError> {
        use fan_outs::Column;
        let mut query = fan_outs::Entity::find()
            .select_only()
            .column(Column::PublisherId);
        if let Some(after) = after {
            query = query.filter(Column::PublisherId.gt(after.uuid()));
        }
        let found = query
            .order_by_asc(Column::PublisherId)
            .limit(1)
            .into_tuple::<Uuid>()
            .one(self.store.read())
            .await?;
        Ok(found.map(PublisherId::from_uuid))
    }

    /// Writes up to `most` deliveries of the publisher's oldest fan-outs in one transaction.
    /// Returns how many. Several processes may call this: each publisher's fan-outs are spread by
    /// one at a time.
    pub async fn spread(&self, publisher: PublisherId, most: usize) -> Result<usize, StoreError> {
        let publisher = publisher.uuid();
        self.store
            .write(|tx| async move { step(&tx, publisher, most).await })
            .await
    }
}

#[cfg(test)]
mod tests;
