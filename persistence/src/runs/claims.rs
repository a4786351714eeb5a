//! Claims: which runs are given to which claim.
//!
//! Within a pipeline, the order is by priority, then by earliest start, then by age. Pipelines of
//! equal priority take turns, so that a deep queue does not block a shallow one. Many claims are
//! served in one transaction, in the order of their arrival.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use domain::{
    Timestamp,
    audit::Actor,
    limits::{CLAIM_MAX, PAGE_BYTES},
    run::{RunChange, RunStatus, TimelineEntryKind},
    slug::Slug,
    token::{self, Prefix, TokenHash},
};
use moka::sync::Cache;
use sea_orm::{ConnectionTrait as _, DbBackend, EntityTrait as _, FromQueryResult};
use secrecy::SecretString;
use uuid::Uuid;

use super::{
    capacity::RunCapacity,
    row::{RunEvents, save_all, step, tries_of},
    run::{Claimed, Run},
};
use crate::{
    runs::versions::Definitions,
    store::{
        Store,
        db::Tx,
        entity::runs,
        error::{Result, StoreError, corrupt_row},
        plane_state::PlaneState,
        sql::{self, Sql, padded, parts},
        unreadable,
    },
};

/// Due runs that one transaction makes ready.
const PROMOTED: i64 = 1000;
/// Runs with expired leases that one claiming transaction requeues.
pub(super) const TAKEN_BACK: u64 = 100;
/// Bytes of runs' own JSON that one transaction hands out, beyond the first run of each claim.
const BATCH_BYTES: usize = 16 * 1024 * 1024;
/// The condition of runs with a lease. It ends with the column that holds the end of the lease.
const LEASED: &str = "status = 'running' AND lease_expires_at";
/// The condition of queued runs that expire. It ends with the column that holds that time.
const MORTAL: &str = "status = 'queued' AND expires_at";
/// Most pipelines whose last turn is remembered.
const TURNS: u64 = 100_000;

/// A request for runs.
pub(crate) struct Claim {
    pub(crate) publisher: Uuid,
    /// The pipelines to claim from; `None` for all.
    pub(crate) pipelines: Option<Vec<Slug>>,
    /// The most runs that are wanted.
    pub(crate) max: u32,
    pub(crate) actor: Actor,
}

impl Claim {
    fn wants(&self, open: &Source) -> bool {
        self.publisher == open.publisher_id
            && self
                .pipelines
                .as_ref()
                .is_none_or(|some| some.iter().any(|slug| slug.as_str() == open.slug))
    }

    pub(crate) fn max(&self) -> u32 {
        self.max.clamp(1, CLAIM_MAX)
    }

    /// The same claim, limited to these pipelines.
    pub(crate) fn within(&self, pipelines: Vec<Slug>) -> Self {
        Self {
            publisher: self.publisher,
            pipelines: Some(pipelines),
            max: self.max,
            actor: self.actor.clone(),
        }
    }
}

/// When each pipeline last had its turn in this process.
pub(crate) struct RoundRobin {
    count: AtomicU64,
    last: Cache<Uuid, u64>,
}

impl RoundRobin {
    pub(crate) fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            last: Cache::new(TURNS),
        }
    }

    fn of(&self, pipeline: Uuid) -> u64 {
        self.last.get(&pipeline).unwrap_or(0)
    }

    fn note(&self, pipeline: Uuid) {
        let turn = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        self.last.insert(pipeline, turn);
    }
}

impl PlaneState for RoundRobin {}

/// A pipeline that has runs to hand out and is not paused.
#[derive(FromQueryResult)]
struct Source {
    publisher_id: Uuid,
    id: Uuid,
    slug: String,
    version: i64,
    head: Option<i32>,
}

/// A run that may be handed out. The transaction has locked it.
#[derive(FromQueryResult, Clone, Copy)]
struct Candidate {
    publisher_id: Uuid,
    id: Uuid,
    pipeline_id: Uuid,
    priority: i32,
    not_before: i64,
    /// The size of the run's own JSON.
    bytes: i32,
}

impl Candidate {
    fn bytes(&self) -> usize {
        usize::try_from(self.bytes).unwrap_or(0)
    }
}

/// The clause by which a claim skips rows that another transaction has locked. SQLite has one
/// writer and no such clause.
const fn skip_locked(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => " FOR UPDATE SKIP LOCKED",
        _ => "",
    }
}

/// Serves the claims in order.
pub(super) async fn claim_all(
    store: &Store,
    tx: &Tx,
    claims: &[Arc<Claim>],
    events: &mut RunEvents,
) -> Result<Vec<Vec<Claimed>>> {
    if claims.is_empty() {
        return Ok(Vec::new());
    }
    let publishers: BTreeSet<Uuid> = claims.iter().map(|claim| claim.publisher).collect();
    take_back(tx, Some(&publishers), TAKEN_BACK, events).await?;
    promote(tx, &publishers).await?;
    let open = open_pipelines(tx, claims, &publishers).await?;
    let turns = store.state::<RoundRobin>();
    let open = best_of(claims, open, turns);
    let mut capacity = capacity_of(store, tx, &open).await?;
    let found = candidates(tx, claims, &open, &capacity).await?;
    let mut queues: BTreeMap<Uuid, VecDeque<Candidate>> = BTreeMap::new();
    for candidate in found {
        queues
            .entry(candidate.pipeline_id)
            .or_default()
            .push_back(candidate);
    }
    let (mut picks, mut all_bytes) = (Vec::new(), 0);
    for (at, claim) in claims.iter().enumerate() {
        let mine: Vec<Uuid> = open
            .iter()
            .filter(|open| claim.wants(open))
            .map(|open| open.id)
            .collect();
        let mut bytes = 0;
        for _ in 0..claim.max() {
            // Each claim gets at least one run, however large the others of the transaction were.
            if bytes > 0 && (bytes >= PAGE_BYTES || all_bytes >= BATCH_BYTES) {
                break;
            }
            let Some(pick) = next(&mine, &mut queues, &mut capacity, turns) else {
                break;
            };
            bytes += pick.bytes().max(1);
            all_bytes += pick.bytes();
            picks.push((at, pick, token::generate(Prefix::Claim)));
        }
    }
    // Locked here but not taken: claims of other processes skipped these rows.
    for left in queues.values().flatten() {
        tx.readies_runs_of(left.publisher_id);
    }
    hand_out(store, tx, claims, picks, events).await
}

/// The next run of these pipelines: of the highest priority, and among those of the pipeline whose
/// last turn is the longest ago.
fn next(
    mine: &[Uuid],
    queues: &mut BTreeMap<Uuid, VecDeque<Candidate>>,
    capacity: &mut RunCapacity,
    turns: &RoundRobin,
) -> Option<Candidate> {
    let best = mine
        .iter()
        .filter(|pipeline| capacity.available(**pipeline, 1) > 0)
        .filter_map(|pipeline| {
            let head = queues.get(pipeline)?.front()?;
            let turn = turns.of(*pipeline);
            Some((head.priority, turn, head.not_before, head.id, *pipeline))
        })
        .min()?;
    let pipeline = best.4;
    capacity.take(pipeline);
    turns.note(pipeline);
    queues.get_mut(&pipeline)?.pop_front()
}

fn promote_sql(backend: DbBackend, now: Timestamp, publishers: &BTreeSet<Uuid>) -> Sql {
    let mut sql = Sql::new(
        "WITH due AS MATERIALIZED (SELECT publisher_id, id FROM runs \
         WHERE status = 'queued' AND NOT ready AND not_before <= ",
    );
    sql.bind(now.ms())
        .push(" AND publisher_id IN (")
        .bind_list(padded(publishers.iter().copied()))
        .push(") ORDER BY not_before LIMIT ")
        .bind(PROMOTED)
        .push(skip_locked(backend))
        .push(
            ") UPDATE runs SET ready = TRUE WHERE (publisher_id, id) IN \
             (SELECT publisher_id, id FROM due)",
        );
    sql
}

/// Makes due runs ready. Returns whether there were any.
pub(super) async fn promote(tx: &Tx, publishers: &BTreeSet<Uuid>) -> Result<bool> {
    let backend = tx.db().get_database_backend();
    let sql = promote_sql(backend, tx.now, publishers);
    let done = tx.db().execute_raw(sql.statement(backend)).await?;
    Ok(done.rows_affected() > 0)
}

fn open_sql(claims: &[Arc<Claim>], publishers: &BTreeSet<Uuid>) -> Sql {
    let mut sql = Sql::new(
        "SELECT p.publisher_id, p.id, p.slug, p.version, (SELECT r.priority FROM runs r \
         WHERE r.publisher_id = p.publisher_id AND r.pipeline_id = p.id \
         AND r.status = 'queued' AND r.ready \
         ORDER BY r.priority, r.not_before, r.id LIMIT 1) AS head \
         FROM pipelines p WHERE p.live_slug IS NOT NULL AND p.paused_at IS NULL \
         AND p.publisher_id IN (",
    );
    sql.bind_list(padded(publishers.iter().copied())).push(")");
    let named: Option<BTreeSet<&str>> = claims
        .iter()
        .map(|claim| claim.pipelines.as_deref())
        .try_fold(BTreeSet::new(), |mut all, some| {
            all.extend(some?.iter().map(Slug::as_str));
            Some(all)
        });
    match named {
        None => {}
        // The scope reaches none of the named pipelines, and PostgreSQL does not accept an empty
        // list.
        Some(named) if named.is_empty() => {
            sql.push(" AND FALSE");
        }
        Some(named) => {
            sql.push(" AND p.live_slug IN (")
                .bind_list(padded(named))
                .push(")");
        }
    }
    sql
}

/// The publishers' pipelines that have runs to hand out.
async fn open_pipelines(
    tx: &Tx,
    claims: &[Arc<Claim>],
    publishers: &BTreeSet<Uuid>,
) -> Result<Vec<Source>> {
    let statement = open_sql(claims, publishers).statement(tx.db().get_database_backend());
    let found = Source::find_by_statement(statement).all(tx.db()).await?;
    Ok(found
        .into_iter()
        .filter(|open| open.head.is_some())
        .collect())
}

/// The pipelines to read runs of: for each claim as many as it wants runs, since each pipeline has
/// at least one.
fn best_of(claims: &[Arc<Claim>], open: Vec<Source>, turns: &RoundRobin) -> Vec<Source> {
    let mut order: Vec<(Option<i32>, u64, Uuid, usize)> = open
        .iter()
        .enumerate()
        .map(|(at, open)| (open.head, turns.of(open.id), open.id, at))
        .collect();
    order.sort_unstable();
    let all: u32 = claims.iter().map(|claim| claim.max()).sum();
    let mut wanted = vec![all; claims.len()];
    let mut keep = BTreeSet::new();
    for (_, _, _, at) in order {
        for (claim, left) in claims.iter().zip(&mut wanted) {
            if *left > 0 && claim.wants(&open[at]) {
                *left -= 1;
                keep.insert(at);
            }
        }
    }
    open.into_iter()
        .enumerate()
        .filter(|(at, _)| keep.contains(at))
        .map(|(_, open)| open)
        .collect()
}

async fn capacity_of(store: &Store, tx: &Tx, open: &[Source]) -> Result<RunCapacity> {
    let keys = open.iter().map(|o| (o.publisher_id, o.id, o.version));
    let definitions = store.state::<Definitions>().of(tx.db(), keys).await?;
    let limits = definitions
        .into_iter()
        .filter_map(|((publisher, pipeline, _), definition)| {
            Some(((publisher, pipeline), definition.max_concurrent_runs?))
        });
    RunCapacity::count(tx, limits.collect()).await
}

/// The statement for the first runs of each pipeline, with their number.
fn candidates_sql(backend: DbBackend, now: Timestamp, wanted: &[(&Source, u32)]) -> Sql {
    let mut sql = Sql::new("");
    for (at, (open, limit)) in wanted.iter().enumerate() {
        sql.push(if at > 0 { " UNION ALL " } else { "" })
            .push(
                "SELECT * FROM (SELECT publisher_id, id, pipeline_id, priority, not_before, \
                 octet_length(input) + COALESCE(octet_length(output), 0) \
                 + COALESCE(octet_length(error), 0) + COALESCE(octet_length(progress), 0) \
                 AS bytes FROM runs WHERE publisher_id = ",
            )
            .bind(open.publisher_id)
            .push(" AND pipeline_id = ")
            .bind(open.id)
            .push(" AND status = 'queued' AND ready AND (expires_at IS NULL OR expires_at > ")
            .bind(now.ms())
            .push(") ORDER BY priority, not_before, id LIMIT ")
            .bind(i64::from(*limit))
            .push(skip_locked(backend))
            .push(") AS first");
    }
    sql
}

/// The first runs of each pipeline, as many as its claims may take. PostgreSQL locks them.
async fn candidates(
    tx: &Tx,
    claims: &[Arc<Claim>],
    open: &[Source],
    capacity: &RunCapacity,
) -> Result<Vec<Candidate>> {
    let backend = tx.db().get_database_backend();
    let wanted = open.iter().map(|open| {
        let all = claims.iter().filter(|claim| claim.wants(open));
        (
            open,
            capacity.available(open.id, all.map(|claim| claim.max()).sum()),
        )
    });
    let wanted: Vec<(&Source, u32)> = wanted.filter(|(_, limit)| *limit > 0).collect();
    let mut found = Vec::new();
    for part in parts(wanted) {
        let statement = candidates_sql(backend, tx.now, &part).statement(backend);
        found.extend(Candidate::find_by_statement(statement).all(tx.db()).await?);
    }
    found.sort_unstable_by_key(|run| (run.priority, run.not_before, run.id));
    Ok(found)
}

type Pick = (usize, Candidate, SecretString);

/// Writes the claims, and returns the runs as they are then.
async fn mark_claimed(tx: &Tx, claims: &[Arc<Claim>], picks: &[&Pick]) -> Result<Vec<runs::Model>> {
    let backend = tx.db().get_database_backend();
    let now = tx.now.ms();
    let mut sql = Sql::new("WITH v (publisher_id, id, hash, claimed_by) AS (");
    sql.values(picks.iter().map(|(at, pick, token)| {
        vec![
            pick.publisher_id.into(),
            pick.id.into(),
            TokenHash::of_secret(token).as_bytes().to_vec().into(),
            claims[*at].actor.id.as_str().into(),
        ]
    }));
    sql.push(
        ") UPDATE runs SET status = 'running', attempt = attempt + 1, revision = revision + 1, \
         claim_hash = (SELECT v.hash FROM v \
         WHERE v.publisher_id = runs.publisher_id AND v.id = runs.id), \
         claimed_by = (SELECT v.claimed_by FROM v \
         WHERE v.publisher_id = runs.publisher_id AND v.id = runs.id), \
         started_at = COALESCE(started_at, ",
    )
    .bind(now)
    .push("), lease_expires_at = ")
    .bind(now)
    .push(
        " + CAST(lease_seconds AS BIGINT) * 1000 \
         WHERE (publisher_id, id) IN (SELECT publisher_id, id FROM v) RETURNING *",
    );
    let marked = runs::Entity::find().from_raw_sql(sql.statement(backend));
    Ok(marked.all(tx.db()).await?)
}

/// Writes the claims, and gives each its runs.
async fn hand_out(
    store: &Store,
    tx: &Tx,
    claims: &[Arc<Claim>],
    picks: Vec<Pick>,
    events: &mut RunEvents,
) -> Result<Vec<Vec<Claimed>>> {
    let mut answers: Vec<Vec<Claimed>> = claims.iter().map(|_| Vec::new()).collect();
    if picks.is_empty() {
        return Ok(answers);
    }
    let mut rows = HashMap::new();
    for part in parts(picks.iter().collect()) {
        for row in mark_claimed(tx, claims, &part).await? {
            store.state::<Definitions>().claimed(&row);
            rows.insert(row.id, row);
        }
    }
    for (at, pick, token) in picks {
        let row = rows.remove(&pick.id).ok_or_else(|| corrupt_row("claim"))?;
        events.record(
            tx,
            &row,
            TimelineEntryKind::Claimed,
            Some(&claims[at].actor),
            None,
        )?;
        let until = row.lease_expires_at.ok_or_else(|| corrupt_row("lease"))?;
        answers[at].push(Claimed {
            run: Run::of_row(row)?,
            token,
            expires_at: Timestamp::from_ms(until),
        });
    }
    Ok(answers)
}

/// Requeues up to `limit` runs with expired leases, of `publishers` or of all active publishers.
/// Returns how many are queued again and how many ended. A suspended publisher cannot extend its
/// leases, so its runs stay unchanged until it is resumed.
pub(super) async fn take_back(
    tx: &Tx,
    publishers: Option<&BTreeSet<Uuid>>,
    limit: u64,
    events: &mut RunEvents,
) -> Result<(u64, u64)> {
    let rows = past(tx, LEASED, publishers, limit).await?;
    let (mut done, mut again) = (Vec::with_capacity(rows.len()), 0);
    for mut row in rows {
        let change = tries_of(&row).at_lease_end(tx.now);
        if !stepped(step(tx, &mut row, change, None, None, events), &row)? {
            continue;
        }
        // The pipeline has free capacity now, also if the run itself has ended.
        tx.readies_runs_of(row.publisher_id);
        again += u64::from(row.status == RunStatus::Queued.as_str());
        done.push(row);
    }
    save_all(tx, &done.iter().collect::<Vec<_>>()).await?;
    let all = u64::try_from(done.len()).unwrap_or(limit);
    Ok((again, all - again))
}

/// Whether one of many runs made its step. A run that cannot be read stays unchanged, and does not
/// affect the others.
fn stepped(result: Result<()>, row: &runs::Model) -> Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error @ StoreError::Internal(_)) => {
            unreadable::report("run", row.publisher_id, row.id, &error);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Ends up to `limit` runs that exceeded their time in the queue. Returns how many.
pub(super) async fn end_outlived(tx: &Tx, limit: u64, events: &mut RunEvents) -> Result<u64> {
    let rows = past(tx, MORTAL, None, limit).await?;
    let mut done = Vec::with_capacity(rows.len());
    for mut row in rows {
        if stepped(
            step(tx, &mut row, RunChange::Expire, None, None, events),
            &row,
        )? {
            done.push(row);
        }
    }
    save_all(tx, &done.iter().collect::<Vec<_>>()).await?;
    Ok(u64::try_from(done.len()).unwrap_or(limit))
}

/// The statement for runs whose time in a column is over. `due` is a condition of this program that
/// ends with the column.
fn past_sql(
    backend: DbBackend,
    now: Timestamp,
    due: &str,
    publishers: Option<&BTreeSet<Uuid>>,
    limit: u64,
) -> Sql {
    let mut sql = Sql::new("SELECT ");
    for column in <runs::Model as sql::Row>::COLUMNS {
        // Nobody needs the inputs of these runs, which may be large.
        let input = *column == "input";
        sql.push(if input { "'' AS " } else { "" });
        sql.push("\"").push(column).push("\", ");
    }
    sql.push("1 FROM runs WHERE ");
    sql.push(due).push(" <= ").bind(now.ms());
    match publishers {
        Some(some) => sql
            .push(" AND publisher_id IN (")
            .bind_list(padded(some.iter().copied()))
            .push(")"),
        None => sql.push(
            " AND EXISTS (SELECT 1 FROM publishers p \
             WHERE p.id = runs.publisher_id AND p.status = 'active')",
        ),
    };
    let column = due.rsplit(' ').next().unwrap_or(due);
    sql.push(" ORDER BY ")
        .push(column)
        .push(" LIMIT ")
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .push(skip_locked(backend));
    sql
}

/// The runs whose time in a column has been over the longest, without their inputs. Runs that
/// another transaction has locked are skipped.
async fn past(
    tx: &Tx,
    due: &str,
    publishers: Option<&BTreeSet<Uuid>>,
    limit: u64,
) -> Result<Vec<runs::Model>> {
    let backend = tx.db().get_database_backend();
    let sql = past_sql(backend, tx.now, due, publishers, limit);
    let rows = runs::Entity::find().from_raw_sql(sql.statement(backend));
    Ok(rows.all(tx.db()).await?)
}

#[cfg(test)]
mod tests;
