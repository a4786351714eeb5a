//! How deliveries are written. Those to an ordered endpoint get sequence numbers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use domain::id::{DeliveryId, EventId, Id as _};
use sea_orm::ConnectionTrait as _;
use uuid::Uuid;

use crate::store::{
    db::Tx,
    effects::Bodies,
    entity::deliveries,
    error::Result,
    sql::{self, Sql},
    storage,
};

pub(crate) fn delivery_row(
    tx: &Tx,
    publisher: Uuid,
    event: EventId,
    endpoint: Uuid,
) -> deliveries::Model {
    deliveries::Model {
        publisher_id: publisher,
        id: DeliveryId::generate(tx.now).uuid(),
        event_id: event.uuid(),
        endpoint_id: endpoint,
        status: "pending".to_owned(),
        attempts: 0,
        next_attempt_at: Some(tx.now.ms()),
        created_at: tx.now.ms(),
        finished_at: None,
        replay_id: None,
        precedence: 0,
        seq: 0,
        throttled: 0,
    }
}

/// Gives deliveries to ordered endpoints their sequence numbers, in the order of `rows`.
///
/// An endpoint's last number is in a row that stays locked until the transaction ends, so the
/// numbers follow the order of commits. Callers take these locks last and in the order of keys, so
/// that two producers wait for each other briefly and cannot deadlock.
async fn assign_sequence(
    tx: &Tx,
    rows: &mut [deliveries::Model],
    ordered: &BTreeSet<(Uuid, Uuid)>,
) -> Result<()> {
    let key = |row: &deliveries::Model| (row.publisher_id, row.endpoint_id);
    let mut counts: BTreeMap<(Uuid, Uuid), i64> = BTreeMap::new();
    for row in rows.iter().filter(|row| ordered.contains(&key(row))) {
        *counts.entry(key(row)).or_default() += 1;
    }
    if counts.is_empty() {
        return Ok(());
    }
    let mut sql = Sql::new("INSERT INTO endpoint_sequences (publisher_id, endpoint_id, last) ");
    sql.values(counts.iter().map(|((publisher, endpoint), count)| {
        vec![(*publisher).into(), (*endpoint).into(), (*count).into()]
    }));
    sql.push(
        " ON CONFLICT (publisher_id, endpoint_id) DO UPDATE \
         SET last = endpoint_sequences.last + excluded.last \
         RETURNING publisher_id, endpoint_id, last",
    );
    let statement = sql.statement(tx.db().get_database_backend());
    let mut next: HashMap<(Uuid, Uuid), i64> = HashMap::with_capacity(counts.len());
    for taken in tx.db().query_all_raw(statement).await? {
        let of: (Uuid, Uuid) = (
            taken.try_get("", "publisher_id")?,
            taken.try_get("", "endpoint_id")?,
        );
        let last: i64 = taken.try_get("", "last")?;
        next.insert(of, last - counts.get(&of).copied().unwrap_or(0));
    }
    for row in rows {
        if let Some(last) = next.get_mut(&(row.publisher_id, row.endpoint_id)) {
            *last += 1;
            row.seq = *last;
        }
    }
    Ok(())
}

/// Inserts deliveries. Those to `ordered` endpoints get sequence numbers first. The others are
/// handed to the dispatcher after the commit if `bodies` holds the bodies of their events.
pub(crate) async fn insert_deliveries(
    tx: &Tx,
    mut rows: Vec<deliveries::Model>,
    ordered: &BTreeSet<(Uuid, Uuid)>,
    bodies: &Bodies,
) -> Result<()> {
    assign_sequence(tx, &mut rows, ordered).await?;
    tx.delivers(&rows, bodies);
    for row in &rows {
        tx.stores(row.publisher_id, storage::DELIVERY);
    }
    sql::insert(tx.db(), rows, "").await.map(drop)
}
