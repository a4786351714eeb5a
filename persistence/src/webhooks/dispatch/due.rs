//! What is due: which endpoints have work, and the deliveries of those that this process holds.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use domain::{
    Timestamp,
    id::{DeliveryId, EventId, Id as _, PublisherId},
};
use sea_orm::{ConnectionTrait as _, DbBackend, QueryResult, Value};
use uuid::Uuid;

use super::{processes::ProcessId, values::whole};
use crate::store::{
    System,
    effects::{DueDelivery, EndpointKey},
    error::{Result, StoreError, corrupt_row},
    lines::Line,
    sql::{Sql, padded},
    unreadable,
};

/// Most endpoints that one look finds.
const WAITING_MAX: i64 = 10_000;

/// What events say that one look loads, bytes, beyond the first delivery of each endpoint.
const LOAD_BYTES: usize = 16 * 1024 * 1024;
/// So many deliveries are loaded without a look at their sizes first.
const UNSEEN: usize = 16;

/// Walks the index of waiting deliveries from endpoint to endpoint: its cost grows with the
/// endpoints that have any, not with the deliveries.
///
/// Of each endpoint it tells when the first is due, and of one that was ordered once also when one
/// with a place in that order is.
const WAITING: &str = "WITH RECURSIVE owners (owner) AS (\
    SELECT (SELECT d.publisher_id FROM deliveries d WHERE d.status = 'pending' \
    ORDER BY d.publisher_id LIMIT 1) \
    UNION ALL \
    SELECT (SELECT d.publisher_id FROM deliveries d WHERE d.status = 'pending' \
    AND d.publisher_id > owners.owner ORDER BY d.publisher_id LIMIT 1) \
    FROM owners WHERE owners.owner IS NOT NULL), \
    reach (owner, target) AS (\
    SELECT o.owner, (SELECT d.endpoint_id FROM deliveries d WHERE d.status = 'pending' \
    AND d.publisher_id = o.owner ORDER BY d.endpoint_id LIMIT 1) \
    FROM owners o WHERE o.owner IS NOT NULL \
    UNION ALL \
    SELECT reach.owner, (SELECT d.endpoint_id FROM deliveries d WHERE d.status = 'pending' \
    AND d.publisher_id = reach.owner AND d.endpoint_id > reach.target \
    ORDER BY d.endpoint_id LIMIT 1) \
    FROM reach WHERE reach.target IS NOT NULL) \
    SELECT r.owner AS publisher_id, r.target AS endpoint_id, \
    (SELECT d.next_attempt_at FROM deliveries d WHERE d.status = 'pending' \
    AND d.publisher_id = r.owner AND d.endpoint_id = r.target \
    ORDER BY d.seq, d.next_attempt_at LIMIT 1) AS head, \
    (SELECT d.next_attempt_at FROM deliveries d WHERE d.status = 'pending' AND NOT e.ordered \
    AND d.publisher_id = r.owner AND d.endpoint_id = r.target AND d.seq > 0 \
    AND d.next_attempt_at <= ";
/// The rest of it, after the present moment.
const WAITING_WHERE: &str = " ORDER BY d.seq LIMIT 1) AS rest \
    FROM reach r \
    JOIN webhook_endpoints e ON e.publisher_id = r.owner AND e.id = r.target \
    JOIN publishers p ON p.id = r.owner \
    LEFT JOIN dispatch_leases l ON l.publisher_id = r.owner AND l.endpoint_id = r.target \
    WHERE r.target IS NOT NULL AND e.enabled AND e.deleted_at IS NULL AND p.status = 'active' \
    AND (l.process_id IS NULL OR l.process_id = ";

/// An endpoint with deliveries that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingEndpoint {
    /// Which.
    pub key: EndpointKey,
    /// When its next delivery is due; in the past if one is.
    pub due: Timestamp,
}

/// What to load of one endpoint.
#[derive(Clone, Debug)]
pub struct DueRequest {
    /// Which.
    pub key: EndpointKey,
    /// In the order of events, whatever is due, instead of what is due longest.
    pub ordered: bool,
    /// How many at most.
    pub limit: u64,
    /// Those that the caller has already.
    pub known: HashSet<DeliveryId>,
}

/// What was loaded of one endpoint.
#[derive(Debug)]
pub struct DuePage {
    /// Which.
    pub key: EndpointKey,
    /// What the caller did not have yet, in the order in which to send it.
    pub due: Vec<DueDelivery>,
    /// Whether there may be more.
    pub more: bool,
}

/// A waiting delivery's row.
struct Row {
    key: EndpointKey,
    id: Uuid,
    event: Uuid,
    attempts: i32,
    throttled: i32,
    due: i64,
    created_at: i64,
    precedence: i32,
    seq: i64,
}

impl Row {
    fn of_row(key: EndpointKey, row: &QueryResult) -> Result<Self> {
        Ok(Self {
            key,
            id: row.try_get("", "id")?,
            event: row.try_get("", "event_id")?,
            attempts: row.try_get("", "attempts")?,
            throttled: row.try_get("", "throttled")?,
            due: row.try_get("", "next_attempt_at")?,
            created_at: row.try_get("", "created_at")?,
            precedence: row.try_get("", "precedence")?,
            seq: row.try_get("", "seq")?,
        })
    }
}

pub(super) fn waiting_sql(process: ProcessId, now: Timestamp) -> Sql {
    let mut sql = Sql::new(WAITING);
    sql.bind(now.ms()).push(WAITING_WHERE).bind(process.0);
    sql.push(
        " OR NOT EXISTS (SELECT 1 FROM processes other \
         WHERE other.id = l.process_id AND other.expires_at > ",
    );
    sql.bind(now.ms()).push(")) LIMIT ").bind(WAITING_MAX);
    sql
}

/// Some of an endpoint's waiting deliveries, along the index.
struct Branch {
    which: &'static str,
    /// Whether only those that are due.
    due: bool,
    order: &'static str,
}

/// All of an ordered endpoint, one after the other.
const ORDERED: [Branch; 1] = [Branch {
    which: "",
    due: false,
    order: "seq, next_attempt_at",
}];

/// Of others: without a place in an order, telling of what just happened; with a place, which does
/// not count any more; telling of it once more, which are few at a time.
const UNORDERED: [Branch; 3] = [
    Branch {
        which: " AND seq = 0 AND precedence = 0",
        due: true,
        order: "next_attempt_at",
    },
    Branch {
        which: " AND seq > 0",
        due: true,
        order: "seq, next_attempt_at",
    },
    Branch {
        which: REPLAYED,
        due: true,
        order: "next_attempt_at",
    },
];

/// Found by the index of replays: of those by endpoint it would look at the whole backlog.
const REPLAYED: &str = " AND replay_id IS NOT NULL AND seq = 0 AND precedence > 0";

const SELECT: &str = "SELECT publisher_id, endpoint_id, id, event_id, attempts, \
     throttled, next_attempt_at, created_at, seq, precedence FROM deliveries";
const WHERE: &str = " WHERE status = 'pending' AND publisher_id = ";

/// How many rows to read to find as many as are asked for among those that are known.
fn reach(ask: &DueRequest) -> i64 {
    let known = whole(u64::try_from(ask.known.len()).unwrap_or(u64::MAX));
    whole(ask.limit).saturating_add(known)
}

/// Reads each endpoint's rows along the index, in the order in which to send them.
pub(super) fn load_sql(asks: &[DueRequest], now: Timestamp, backend: DbBackend) -> Sql {
    match backend {
        DbBackend::Postgres => load_lateral(asks, now),
        _ => load_union(asks, now),
    }
}

/// A statement with a part for each endpoint and branch, for engines without `LATERAL`. Planning
/// costs `SQLite` next to nothing.
fn load_union(asks: &[DueRequest], now: Timestamp) -> Sql {
    let mut sql = Sql::new("");
    let mut at = 0;
    // What fills up asks for nothing.
    let filling = asks.last().map(|last| DueRequest {
        limit: 0,
        known: HashSet::new(),
        ..*last
    });
    let missing = asks.len().next_power_of_two() - asks.len();
    let filling = filling.iter().cycle().take(missing);
    for ask in asks.iter().chain(filling) {
        let branches: &[Branch] = if ask.ordered { &ORDERED } else { &UNORDERED };
        for branch in branches {
            let [publisher, endpoint] = ask.key.values();
            sql.push(if at == 0 { "" } else { " UNION ALL " });
            sql.push("SELECT * FROM (").push(SELECT);
            // It knows no figures that would tell it.
            if branch.which == REPLAYED {
                sql.push(" INDEXED BY deliveries_of_replay");
            }
            sql.push(WHERE).bind(publisher);
            sql.push(" AND endpoint_id = ").bind(endpoint);
            sql.push(branch.which);
            if branch.due {
                sql.push(" AND next_attempt_at <= ").bind(now.ms());
            }
            sql.push(" ORDER BY ").push(branch.order);
            sql.push(" LIMIT ").bind(reach(ask));
            sql.push(&format!(") part{at}"));
            at += 1;
        }
    }
    sql
}

/// The same with the branches written once, and run for each endpoint: `PostgreSQL` plans every
/// part of a union by itself, which took longer than all else that it did for a delivery.
fn load_lateral(asks: &[DueRequest], now: Timestamp) -> Sql {
    let mut sql = Sql::new("SELECT part.* FROM (");
    let missing = asks.len().next_power_of_two() - asks.len();
    // What fills up asks for nothing.
    let filling = asks.last().map(|last| (last, 0));
    let filling = filling.into_iter().cycle().take(missing);
    let rows = asks.iter().map(|ask| (ask, reach(ask))).chain(filling);
    sql.values(rows.map(|(ask, most)| {
        let [publisher, endpoint] = ask.key.values();
        vec![publisher, endpoint, ask.ordered.into(), most.into()]
    }));
    sql.push(") AS ask (owner, target, in_order, most) CROSS JOIN LATERAL (");
    let branches = ORDERED.iter().map(|one| ("ask.in_order", one));
    let others = UNORDERED.iter().map(|one| ("NOT ask.in_order", one));
    for (at, (when, branch)) in branches.chain(others).enumerate() {
        sql.push(if at == 0 { "(" } else { " UNION ALL (" });
        sql.push(SELECT)
            .push(WHERE)
            .push("ask.owner AND endpoint_id = ask.target AND ")
            .push(when);
        sql.push(branch.which);
        if branch.due {
            sql.push(" AND next_attempt_at <= ").bind(now.ms());
        }
        sql.push(" ORDER BY ").push(branch.order);
        sql.push(" LIMIT ask.most)");
    }
    sql.push(") part");
    sql
}

impl System {
    /// Endpoints with waiting deliveries that can be sent to and that no other living process
    /// holds: 10 000 at most.
    pub async fn waiting_endpoints(
        &self,
        process: ProcessId,
    ) -> Result<Vec<WaitingEndpoint>, StoreError> {
        let sql = waiting_sql(process, self.store.now());
        let statement = sql.statement(self.store.backend());
        let rows = self.store.read().query_all_raw(statement).await?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let head: Option<i64> = row.try_get("", "head")?;
            let rest: Option<i64> = row.try_get("", "rest")?;
            if let Some(due) = head.into_iter().chain(rest).min() {
                found.push(WaitingEndpoint {
                    key: EndpointKey::of_row(row)?,
                    due: Timestamp::from_ms(due),
                });
            }
        }
        Ok(found)
    }

    /// Loads deliveries of endpoints that the caller holds: one statement for all their rows, one
    /// for what these say. At most a hundred endpoints at a time.
    pub async fn load_due(&self, asks: &[DueRequest]) -> Result<Vec<DuePage>, StoreError> {
        if asks.is_empty() {
            return Ok(Vec::new());
        }
        let statement = load_sql(asks, self.store.now(), self.store.backend());
        let statement = statement.statement(self.store.backend());
        let mut rows: HashMap<EndpointKey, Vec<Row>> = HashMap::with_capacity(asks.len());
        for row in self
            .store
            .inner
            .db
            .line(Line::Load)
            .query_all_raw(statement)
            .await?
        {
            let key = EndpointKey::of_row(&row)?;
            match Row::of_row(key, &row) {
                Ok(row) => rows.entry(key).or_default().push(row),
                Err(error) => {
                    let (owner, endpoint) = (key.publisher.uuid(), key.endpoint.uuid());
                    unreadable::tell("delivery", owner, endpoint, &error);
                }
            }
        }
        let mut found: Vec<(EndpointKey, Vec<Row>, bool)> = Vec::with_capacity(asks.len());
        for ask in asks {
            let own = rows.remove(&ask.key).unwrap_or_default();
            let asked = usize::try_from(ask.limit).unwrap_or(usize::MAX);
            let full = own.len() >= asked.saturating_add(ask.known.len());
            let fresh = own.into_iter();
            let mut fresh: Vec<Row> = fresh
                .filter(|row| !ask.known.contains(&DeliveryId::from_uuid(row.id)))
                .collect();
            if ask.ordered {
                // A union of sorted parts need not keep their order.
                fresh.sort_by_key(|row| (row.seq, row.due));
            } else {
                // What just happened goes before what is told once more.
                fresh.sort_by_key(|row| row.precedence);
            }
            let more = full || fresh.len() > asked;
            fresh.truncate(asked);
            found.push((ask.key, fresh, more));
        }
        if found.iter().map(|(_, rows, _)| rows.len()).sum::<usize>() > UNSEEN {
            let sizes = self.sizes(&found).await?;
            bound(&mut found, &sizes);
        }
        let bodies = self.bodies(&found).await?;
        Ok(found
            .into_iter()
            .map(|(key, rows, more)| {
                let due = rows.into_iter().map(|row| row.due(&bodies));
                DuePage {
                    key,
                    due: due.collect(),
                    more,
                }
            })
            .collect())
    }

    /// How long what the events say is, bytes, by publisher and event.
    async fn sizes(
        &self,
        found: &[(EndpointKey, Vec<Row>, bool)],
    ) -> Result<HashMap<(PublisherId, Uuid), usize>> {
        let mut sizes = HashMap::new();
        for row in self.events(found, "octet_length(body) AS bytes").await? {
            let publisher = PublisherId::from_uuid(row.try_get("", "publisher_id")?);
            let bytes: i32 = row.try_get("", "bytes")?;
            let bytes = usize::try_from(bytes).unwrap_or(0);
            sizes.insert((publisher, row.try_get("", "id")?), bytes);
        }
        Ok(sizes)
    }

    /// What the events say, by publisher and event.
    async fn bodies(
        &self,
        found: &[(EndpointKey, Vec<Row>, bool)],
    ) -> Result<HashMap<(PublisherId, Uuid), Arc<str>>> {
        let mut bodies = HashMap::new();
        for row in self.events(found, "body").await? {
            let (owner, id): (Uuid, Uuid) =
                (row.try_get("", "publisher_id")?, row.try_get("", "id")?);
            match row.try_get::<String>("", "body") {
                Ok(body) => {
                    bodies.insert((PublisherId::from_uuid(owner), id), body.into());
                }
                Err(error) => unreadable::tell("event", owner, id, &error.into()),
            }
        }
        Ok(bodies)
    }

    /// A column (our own text) of the events that deliveries tell of.
    async fn events(
        &self,
        found: &[(EndpointKey, Vec<Row>, bool)],
        column: &str,
    ) -> Result<Vec<QueryResult>> {
        let all = found.iter().flat_map(|(_, rows, _)| rows);
        let wanted: HashSet<(PublisherId, Uuid)> =
            all.map(|row| (row.key.publisher, row.event)).collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = Sql::new("SELECT publisher_id, id, ");
        sql.push(column);
        sql.push(" FROM events WHERE (publisher_id, id) IN (");
        let rows = padded(wanted.iter()).into_iter();
        let rows =
            rows.map(|(publisher, id)| vec![Value::from(publisher.uuid()), Value::from(*id)]);
        sql.values(rows).push(")");
        let statement = sql.statement(self.store.backend());
        let line = self.store.inner.db.line(Line::Load);
        Ok(line.query_all_raw(statement).await?)
    }
}

/// Leaves to a later look what would be too much to load at once; of each endpoint the first
/// delivery stays.
fn bound(found: &mut [(EndpointKey, Vec<Row>, bool)], sizes: &HashMap<(PublisherId, Uuid), usize>) {
    let (mut loaded, mut bytes) = (HashSet::new(), 0_usize);
    for (_, rows, more) in found {
        let mut keep = 0;
        for row in rows.iter() {
            let event = (row.key.publisher, row.event);
            let size = sizes.get(&event).copied().unwrap_or(0);
            let fits = loaded.contains(&event) || bytes.saturating_add(size) <= LOAD_BYTES;
            if keep > 0 && !fits {
                break;
            }
            if loaded.insert(event) {
                bytes = bytes.saturating_add(size);
            }
            keep += 1;
        }
        *more |= keep < rows.len();
        rows.truncate(keep);
    }
}

impl Row {
    fn due(self, bodies: &HashMap<(PublisherId, Uuid), Arc<str>>) -> DueDelivery {
        let body = bodies.get(&(self.key.publisher, self.event)).cloned();
        if body.is_none() {
            let (owner, error) = (self.key.publisher.uuid(), corrupt_row("event"));
            unreadable::tell("event", owner, self.event, &error);
        }
        DueDelivery {
            id: DeliveryId::from_uuid(self.id),
            event: EventId::from_uuid(self.event),
            body: body.unwrap_or_default(),
            attempt: self.attempts.saturating_add(1),
            throttled: self.throttled,
            due: Timestamp::from_ms(self.due),
            created_at: Timestamp::from_ms(self.created_at),
        }
    }
}
