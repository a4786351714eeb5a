//! Due deliveries: which endpoints have some, and those of the endpoints that this process holds.

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
use crate::{
    store::{
        System,
        effects::{DueDelivery, EndpointKey},
        error::{Result, StoreError, corrupt_row},
        lines::Line,
        sql::{Sql, padded},
        unreadable,
    },
    webhooks::Webhooks,
};

/// Most endpoints that one look returns.
const WAITING_MAX: i64 = 10_000;

/// Bytes of bodies that one look loads, beyond the first delivery of each endpoint.
const LOAD_BYTES: usize = 16 * 1024 * 1024;
/// Up to so many deliveries are loaded without reading their sizes first.
const UNSEEN: usize = 16;

/// Walks the index of pending deliveries from endpoint to endpoint: the cost depends on the number
/// of endpoints with some, not on the number of deliveries.
///
/// For each endpoint it returns when the first delivery is due. For an endpoint that was once
/// ordered, it also considers the first delivery with a sequence number.
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
/// The rest of the statement, after the current time.
const WAITING_WHERE: &str = " ORDER BY d.seq LIMIT 1) AS rest \
    FROM reach r \
    JOIN webhook_endpoints e ON e.publisher_id = r.owner AND e.id = r.target \
    JOIN publishers p ON p.id = r.owner \
    LEFT JOIN dispatch_leases l ON l.publisher_id = r.owner AND l.endpoint_id = r.target \
    WHERE r.target IS NOT NULL AND e.enabled AND e.deleted_at IS NULL AND p.status = 'active' \
    AND (l.process_id IS NULL OR l.process_id = ";

/// An endpoint with pending deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingEndpoint {
    /// The endpoint.
    pub key: EndpointKey,
    /// When its next delivery is due; in the past if one is.
    pub due: Timestamp,
}

/// What to load of one endpoint.
#[derive(Clone, Debug)]
pub struct DueRequest {
    /// The endpoint.
    pub key: EndpointKey,
    /// Whether to load in the order of events, whatever is due. Otherwise what has been due the
    /// longest comes first.
    pub ordered: bool,
    /// Most deliveries to return.
    pub limit: u64,
    /// Deliveries that the caller has already.
    pub known: HashSet<DeliveryId>,
}

/// What was loaded of one endpoint.
#[derive(Debug)]
pub struct DuePage {
    /// The endpoint.
    pub key: EndpointKey,
    /// The deliveries that the caller did not have, in the order in which to send them.
    pub due: Vec<DueDelivery>,
    /// Whether there may be more.
    pub more: bool,
}

/// The row of a pending delivery.
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

/// A part of an endpoint's pending deliveries, along an index.
struct Branch {
    which: &'static str,
    /// Whether only due ones are read.
    due: bool,
    order: &'static str,
}

/// The branch for an ordered endpoint: all deliveries, by sequence number.
const ORDERED: [Branch; 1] = [Branch {
    which: "",
    due: false,
    order: "seq, next_attempt_at",
}];

/// Branches for unordered endpoints: new deliveries; deliveries left over from when the endpoint
/// was ordered; replays (at most 500 pending).
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

/// Uses the index of replays. The index by endpoint would read the whole backlog.
const REPLAYED: &str = " AND replay_id IS NOT NULL AND seq = 0 AND precedence > 0";

const SELECT: &str = "SELECT publisher_id, endpoint_id, id, event_id, attempts, \
     throttled, next_attempt_at, created_at, seq, precedence FROM deliveries";
const WHERE: &str = " WHERE status = 'pending' AND publisher_id = ";

/// How many rows to read, so that as many as requested remain without the known ones.
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
/// costs SQLite next to nothing.
fn load_union(asks: &[DueRequest], now: Timestamp) -> Sql {
    let mut sql = Sql::new("");
    let mut at = 0;
    // The rows that fill the statement up request nothing.
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
            // SQLite has no statistics by which it would choose this index.
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

/// A statement with the branches written once and run for each endpoint. PostgreSQL plans every
/// part of a union separately, which took longer than the rest of its work for a delivery.
fn load_lateral(asks: &[DueRequest], now: Timestamp) -> Sql {
    let mut sql = Sql::new("SELECT part.* FROM (");
    let missing = asks.len().next_power_of_two() - asks.len();
    // The rows that fill the statement up request nothing.
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

impl Webhooks<System> {
    /// Endpoints with pending deliveries that may be sent to and that no other living process
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

    /// Loads deliveries of endpoints that the caller holds, with one statement for the rows and one
    /// for the bodies. At most a hundred endpoints at a time.
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
                    unreadable::report("delivery", owner, endpoint, &error);
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
                // A union of sorted parts may be unsorted.
                fresh.sort_by_key(|row| (row.seq, row.due));
            } else {
                // New deliveries go before replays.
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

    /// The sizes of the events' bodies in bytes, by publisher and event.
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

    /// The events' bodies, by publisher and event.
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
                Err(error) => unreadable::report("event", owner, id, &error.into()),
            }
        }
        Ok(bodies)
    }

    /// A column of the deliveries' events. Its name must be a literal of this program.
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

/// Drops what would be too much to load at once, except the first delivery of each endpoint. It is
/// loaded later.
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
            unreadable::report("event", owner, self.event, &error);
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
