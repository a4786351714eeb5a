//! How much each publisher stores, and the refusal of more (docs/adr/0030-reads-by-index.md).
//!
//! Producers only insert rows and update no counter. Instead each process adds up what its commits
//! wrote and removed, and writes the sums once a second. It decides by the stored sum that it last
//! read and what it has added since, and reads again before it refuses. So a publisher may exceed
//! its quota by what it writes through other processes within a second or two. If a crash loses
//! part of a sum, the daily count of all rows, a few hundred at a time, corrects it.

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

/// Bytes that an event counts besides its long texts: its other columns and its index entries.
pub(crate) const EVENT: usize = 256;
/// Bytes that a run counts besides its long texts.
pub(crate) const RUN: usize = 512;
/// Bytes that an entry of a run's timeline counts besides its data.
pub(crate) const ENTRY: usize = 160;
/// Bytes that a delivery counts, with its attempts.
pub(crate) const DELIVERY: usize = 512;
/// Bytes that a stored response counts besides its text.
pub(crate) const ANSWER: usize = 256;

/// Bytes that a version of a pipeline counts besides its definition.
pub(crate) const VERSION: usize = 256;

/// The SQL expression for the size of a table's rows; `None` if its rows do not count. It must
/// equal the size that is added when the rows are written.
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
    /// As last read from the database: bytes stored, and the quota.
    known: Option<(i64, u64)>,
    /// Bytes added since then, not written yet.
    unwritten: i64,
    /// Bytes that are being written.
    writing: i64,
    /// Whether the publisher stored or asked for anything since the last read.
    active: bool,
}

/// What this process knows of all publishers.
#[derive(Default)]
pub(crate) struct Storage(Mutex<HashMap<Uuid, StorageUse>>);

impl Storage {
    fn all(&self) -> MutexGuard<'_, HashMap<Uuid, StorageUse>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the quota, since it may have changed.
    pub(crate) fn look_again(&self, publisher: Uuid) {
        if let Some(used) = self.all().get_mut(&publisher) {
            used.known = None;
        }
    }

    /// Bytes stored, and the quota; `None` if they are unknown.
    fn of(&self, publisher: Uuid) -> Option<(i64, u64)> {
        let mut all = self.all();
        let used = all.entry(publisher).or_default();
        used.active = true;
        let (bytes, quota) = used.known?;
        let bytes = bytes + used.unwritten + used.writing;
        Some((bytes.max(0), quota))
    }

    /// The publishers whose sums to write and read, with the bytes to write.
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

    /// Takes back [`Self::begin`] after the sums could not be written.
    fn undo(&self, written: &[(Uuid, i64)]) {
        let mut all = self.all();
        for (publisher, _) in written {
            let used = all.entry(*publisher).or_default();
            used.unwritten += std::mem::take(&mut used.writing);
            used.active = true;
        }
    }

    /// Ends [`Self::begin`]: the sums are written, and `now` has the stored values.
    fn learn(&self, written: &[(Uuid, i64)], now: &HashMap<Uuid, (i64, u64)>) {
        let mut all = self.all();
        for (publisher, _) in written {
            let Some(known) = now.get(publisher) else {
                // The publisher was removed.
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
    /// Adds the bytes that a commit wrote, minus those that it removed.
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

/// Whether a publisher may store more, and otherwise the refusal.
pub(crate) struct Room(Option<Problem>);

impl Room {
    /// # Errors
    /// 409 `quota_exceeded` if the publisher's storage is full.
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

    /// Bytes that a publisher stores, and its quota in bytes.
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

    /// Whether a publisher may store more. It is determined before the transaction and checked
    /// within it, since a stored response is returned in any case.
    pub(crate) async fn storage_room(&self, publisher: Uuid) -> Result<Room> {
        let fits = |(bytes, quota)| u64::try_from(bytes).is_ok_and(|bytes| bytes < quota);
        if fits(self.storage_of(publisher).await?) {
            return Ok(Room(None));
        }
        // The known values may be old: another process may have removed rows. So read them again
        // before refusing.
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

    /// Writes the sums, and reads the totals of all processes.
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
