//! How much each publisher stores, and the refusal of more (docs/adr/0030-reads-by-index.md).
//!
//! Producers only insert, so no row counts what they write: each process adds up what its commits
//! wrote and removed, and writes the sums down once a second. It lets pass by what it last read and
//! what it has added since, and reads once more before it refuses. So a publisher may go over its quota by what it writes through other
//! processes in a second or two. What a crash loses of a sum is found when rows are counted one by
//! one, once a day, a few hundred at a time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use domain::{Code, Problem, id::Id as _, limits::Quotas};
use sea_orm::ConnectionTrait as _;
use uuid::Uuid;

use crate::store::{
    Store,
    effects::Effects,
    error::{Result, corrupt_row},
    plane_state::PlaneState,
    sql::{Sql, padded, parts},
};

/// What a row is counted for beside its long texts: its other columns and its place in indexes.
pub(crate) const EVENT: usize = 256;
/// The same of a run.
pub(crate) const RUN: usize = 512;
/// Of an entry of a run's timeline.
pub(crate) const ENTRY: usize = 160;
/// Of a delivery with its tries.
pub(crate) const DELIVERY: usize = 512;
/// Of a kept answer.
pub(crate) const ANSWER: usize = 256;

/// Of a version of a pipeline.
pub(crate) const VERSION: usize = 256;

/// The size of a table's rows, as the store computes it; `None` where rows are not counted. The
/// same as what is noted when they are written.
pub(crate) fn size_of(table: &str) -> Option<String> {
    Some(match table {
        "events" => format!("{EVENT} + octet_length(events.body)"),
        "runs" => format!(
            "{RUN} + octet_length(runs.input) + COALESCE(octet_length(runs.output), 0) \
             + COALESCE(octet_length(runs.error), 0) \
             + (SELECT COALESCE(SUM({ENTRY} + COALESCE(octet_length(t.data), 0)), 0) \
             FROM run_timeline t WHERE t.publisher_id = runs.publisher_id AND t.run_id = runs.id)"
        ),
        "deliveries" => DELIVERY.to_string(),
        "idempotency_keys" => format!("{ANSWER} + COALESCE(octet_length(answer), 0)"),
        "pipeline_versions" => format!("{VERSION} + octet_length(pipeline_versions.definition)"),
        _ => return None,
    })
}

/// What this process knows of one publisher.
#[derive(Default)]
struct StorageUse {
    /// As the store had it at the last look: bytes, and how many there may be.
    known: Option<(i64, u64)>,
    /// Counted since.
    unwritten: i64,
    /// Being written down.
    writing: i64,
    /// Whether anybody asked or changed anything since the last look.
    active: bool,
}

/// What this process knows of all publishers.
#[derive(Default)]
pub(crate) struct Storage(Mutex<HashMap<Uuid, StorageUse>>);

impl Storage {
    fn all(&self) -> MutexGuard<'_, HashMap<Uuid, StorageUse>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The publisher's quota may be another one now.
    pub(crate) fn look_again(&self, publisher: Uuid) {
        if let Some(used) = self.all().get_mut(&publisher) {
            used.known = None;
        }
    }

    /// Bytes stored and allowed, if they are known.
    fn of(&self, publisher: Uuid) -> Option<(i64, u64)> {
        let mut all = self.all();
        let used = all.entry(publisher).or_default();
        used.active = true;
        let (bytes, quota) = used.known?;
        let bytes = bytes + used.unwritten + used.writing;
        Some((bytes.max(0), quota))
    }

    /// Whom to look at again, with what is to be written down of them.
    fn begin(&self) -> Vec<(Uuid, i64)> {
        let mut all = self.all();
        let active = all.iter_mut().filter(|(_, used)| used.active);
        active
            .map(|(publisher, used)| {
                used.active = false;
                used.writing += std::mem::take(&mut used.unwritten);
                (*publisher, used.writing)
            })
            .collect()
    }

    /// It could not be written down.
    fn undo(&self, written: &[(Uuid, i64)]) {
        let mut all = self.all();
        for (publisher, _) in written {
            let used = all.entry(*publisher).or_default();
            used.unwritten += std::mem::take(&mut used.writing);
            used.active = true;
        }
    }

    /// It is written down; this is what the store has now.
    fn learn(&self, written: &[(Uuid, i64)], now: &HashMap<Uuid, (i64, u64)>) {
        let mut all = self.all();
        for (publisher, _) in written {
            let Some(known) = now.get(publisher) else {
                // It was removed for good.
                all.remove(publisher);
                continue;
            };
            let used = all.entry(*publisher).or_default();
            used.writing = 0;
            used.known = Some(*known);
        }
    }
}

impl PlaneState for Storage {
    /// Adds what a commit wrote, less what it removed.
    fn committed(&self, effects: &Effects) {
        for publisher in &effects.credentials_of {
            self.look_again(publisher.uuid());
        }
        if effects.stored.is_empty() {
            return;
        }
        let mut all = self.all();
        for (publisher, bytes) in &effects.stored {
            let used = all.entry(*publisher).or_default();
            used.unwritten = used.unwritten.saturating_add(*bytes);
            used.active = true;
        }
    }
}

/// Whether a publisher may store more; if not, what it is told.
pub(crate) struct Room(Option<Problem>);

impl Room {
    /// # Errors
    /// 409 `quota_exceeded` where the publisher stores as much as it may.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.0 {
            Some(problem) => Err(problem.clone().into()),
            None => Ok(()),
        }
    }
}

impl Store {
    pub(crate) async fn read_storage(
        &self,
        publishers: impl IntoIterator<Item = Uuid>,
    ) -> Result<HashMap<Uuid, (i64, u64)>> {
        let mut sql = Sql::new(
            "SELECT p.id, p.quotas, COALESCE(s.bytes, 0) AS bytes FROM publishers p \
             LEFT JOIN storage_usage s ON s.publisher_id = p.id WHERE p.id IN (",
        );
        sql.bind_list(padded(publishers)).push(")");
        let statement = sql.statement(self.backend());
        let mut found = HashMap::new();
        for row in self.read().query_all_raw(statement).await? {
            let quotas: String = row.try_get("", "quotas")?;
            let quotas: Quotas =
                serde_json::from_str(&quotas).map_err(|_| corrupt_row("quotas"))?;
            let bytes: i64 = row.try_get("", "bytes")?;
            found.insert(row.try_get("", "id")?, (bytes, quotas.storage_bytes));
        }
        Ok(found)
    }

    /// Bytes that a publisher stores, and how many it may.
    pub(crate) async fn storage_of(&self, publisher: Uuid) -> Result<(i64, u64)> {
        let storage = self.state::<Storage>();
        if let Some(known) = storage.of(publisher) {
            return Ok(known);
        }
        let found = self.read_storage([publisher]).await?;
        let known = found.get(&publisher).copied();
        let known = known.ok_or_else(Problem::not_found)?;
        storage.all().entry(publisher).or_default().known = Some(known);
        Ok(storage.of(publisher).unwrap_or(known))
    }

    /// Whether a publisher may store more. It is found out before the transaction that stores,
    /// and told there: a kept answer is answered in any case.
    pub(crate) async fn storage_room(&self, publisher: Uuid) -> Result<Room> {
        let fits = |(bytes, quota)| u64::try_from(bytes).is_ok_and(|bytes| bytes < quota);
        if fits(self.storage_of(publisher).await?) {
            return Ok(Room(None));
        }
        // What this process knows may be old, and nobody is refused by that: others removed rows.
        self.state::<Storage>().look_again(publisher);
        let (bytes, quota) = self.storage_of(publisher).await?;
        if fits((bytes, quota)) {
            return Ok(Room(None));
        }
        let detail = format!(
            "The publisher may store {quota} bytes of events, runs, deliveries and versions of pipelines, and stores {bytes}."
        );
        Ok(Room(Some(Problem::new(Code::QuotaExceeded, detail))))
    }

    /// Writes the sums down, and reads what other processes added.
    pub(crate) async fn flush_storage(&self) -> Result<()> {
        let storage = self.state::<Storage>();
        let begun = storage.begin();
        if begun.is_empty() {
            return Ok(());
        }
        let flushed = async {
            let sums: Vec<_> = begun.iter().copied().filter(|(_, sum)| *sum != 0).collect();
            if !sums.is_empty() {
                self.write_sums(&sums).await?;
            }
            let mut now = HashMap::new();
            for part in begun.chunks(256) {
                now.extend(self.read_storage(part.iter().map(|(of, _)| *of)).await?);
            }
            Ok(now)
        };
        match flushed.await {
            Ok(now) => {
                storage.learn(&begun, &now);
                Ok(())
            }
            Err(error) => {
                storage.undo(&begun);
                Err(error)
            }
        }
    }

    async fn write_sums(&self, sums: &[(Uuid, i64)]) -> Result<()> {
        let backend = self.backend();
        self.write_unflushed(|tx| async move {
            for part in parts(sums.to_vec()) {
                let mut sql =
                    Sql::new("INSERT INTO storage_usage (publisher_id, bytes) SELECT * FROM (");
                let row = |(of, sum): (Uuid, i64)| vec![of.into(), sum.into()];
                sql.values(part.into_iter().map(row)).push(
                    ") AS new WHERE EXISTS (SELECT 1 FROM publishers p WHERE p.id = new.column1) \
                     ON CONFLICT (publisher_id) DO UPDATE \
                     SET bytes = storage_usage.bytes + excluded.bytes",
                );
                tx.db().execute_raw(sql.statement(backend)).await?;
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests;
