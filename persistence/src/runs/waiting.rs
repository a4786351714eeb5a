//! Finds runs for waiting claims, beside the write lane.

use std::collections::{BTreeMap, BTreeSet};

use domain::{Timestamp, limits::CLAIM_MAX, run::RunStatus, slug::Slug};
use sea_orm::{
    ColumnTrait as _, EntityTrait as _, FromQueryResult, QueryFilter as _, QuerySelect as _,
    sea_query::{Expr, ExprTrait as _},
};
use uuid::Uuid;

use super::{
    capacity::RunCapacity,
    claims::{TAKEN_BACK, promote, take_back},
    row::RunEvents,
};
use crate::{
    runs::versions::Definitions,
    store::{
        Store,
        entity::runs,
        error::{Result, StoreError},
        sql::{Sql, padded},
    },
};

/// Publishers for which one statement searches due runs.
const PUBLISHERS_A_LOOK: usize = 256;

/// The publishers with due runs: whose start has come, or whose lease expired.
async fn due(store: &Store, publishers: &[Uuid]) -> Result<BTreeSet<Uuid>> {
    use runs::Column;
    let now = store.now().ms();
    let scheduled = Column::Status
        .eq(RunStatus::Queued.as_str())
        .and(Expr::col(Column::Ready).not())
        .and(Column::NotBefore.lte(now));
    let lost = Column::Status
        .eq(RunStatus::Running.as_str())
        .and(Column::LeaseExpiresAt.lte(now));
    let mut found = BTreeSet::new();
    for past in [scheduled, lost] {
        let some: Vec<Uuid> = runs::Entity::find()
            .select_only()
            .column(Column::PublisherId)
            .distinct()
            .filter(past)
            .filter(Column::PublisherId.is_in(padded(publishers.iter().copied())))
            .into_tuple()
            .all(store.read())
            .await?;
        found.extend(some);
    }
    Ok(found)
}

/// Makes due runs of the publishers ready, and requeues those whose lease expired. Waiting claims
/// are notified.
pub(crate) async fn bring(store: &Store, publishers: &[Uuid]) -> Result<()> {
    for some in publishers.chunks(PUBLISHERS_A_LOOK) {
        let due = due(store, some).await?;
        if due.is_empty() {
            continue;
        }
        let due = &due;
        store
            .write(|tx| async move {
                let mut events = RunEvents::default();
                take_back(&tx, Some(due), TAKEN_BACK, &mut events).await?;
                if promote(&tx, due).await? {
                    for publisher in due {
                        tx.readies_runs_of(*publisher);
                    }
                }
                events.write(&tx).await
            })
            .await?;
    }
    Ok(())
}

/// How many runs a publisher's pipelines have to hand out, by slug.
pub(crate) type Open = BTreeMap<Slug, u32>;

/// For each publisher, the pipelines to search, or `None` for all.
pub(crate) type Wanted = BTreeMap<Uuid, Option<Vec<Slug>>>;

/// A pipeline with runs to hand out, and their number, up to what one claim may take.
#[derive(FromQueryResult)]
struct Ready {
    publisher_id: Uuid,
    id: Uuid,
    slug: String,
    version: i64,
    count: i64,
}

fn ready_sql(now: Timestamp, wanted: &Wanted) -> Sql {
    let mut sql = Sql::new(
        "SELECT p.publisher_id, p.id, p.slug, p.version, (SELECT COUNT(*) FROM (\
         SELECT 1 FROM runs r WHERE r.publisher_id = p.publisher_id AND r.pipeline_id = p.id \
         AND r.status = 'queued' AND r.ready AND (r.expires_at IS NULL OR r.expires_at > ",
    );
    sql.bind(now.ms())
        .push(") LIMIT ")
        .bind(i64::from(CLAIM_MAX))
        .push(") AS first) AS count FROM pipelines p WHERE p.live_slug IS NOT NULL AND p.paused_at IS NULL AND p.publisher_id IN (")
        .bind_list(padded(wanted.keys().copied()))
        .push(")");
    let named = wanted.values().try_fold(BTreeSet::new(), |mut all, some| {
        all.extend(some.as_ref()?.iter().map(Slug::as_str));
        Some(all)
    });
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        sql.push(" AND p.live_slug IN (")
            .bind_list(padded(named))
            .push(")");
    }
    sql
}

/// How many runs the publishers' pipelines have to hand out, for the wanted pipelines. Pipelines
/// without any are left out.
pub(crate) async fn open_runs(store: &Store, wanted: Wanted) -> Result<Vec<(Uuid, Open)>> {
    let sql = ready_sql(store.now(), &wanted).statement(store.backend());
    let mut found = Ready::find_by_statement(sql).all(store.read()).await?;
    found.retain(|one| one.count > 0);
    let keys = found
        .iter()
        .map(|one| (one.publisher_id, one.id, one.version));
    let definitions = match store.state::<Definitions>().of(store.read(), keys).await {
        // A row that cannot be parsed must not affect other publishers.
        Err(StoreError::Internal(_)) if wanted.len() > 1 => return one_by_one(store, wanted).await,
        other => other?,
    };
    let limits = definitions
        .into_iter()
        .filter_map(|((publisher, pipeline, _), definition)| {
            Some(((publisher, pipeline), definition.max_concurrent_runs?))
        });
    let capacity = RunCapacity::left(store.read(), limits.collect()).await?;
    let mut open: BTreeMap<Uuid, Open> = BTreeMap::new();
    for one in found {
        let ready = capacity.available(one.id, u32::try_from(one.count).unwrap_or(CLAIM_MAX));
        let Some(slug) = Slug::parse(&one.slug).filter(|_| ready > 0) else {
            continue;
        };
        open.entry(one.publisher_id)
            .or_default()
            .insert(slug, ready);
    }
    Ok(open.into_iter().collect())
}

/// Like [`open_runs`], with a query for each publisher. Publishers whose rows cannot be read are
/// left out.
async fn one_by_one(store: &Store, wanted: Wanted) -> Result<Vec<(Uuid, Open)>> {
    let mut all = Vec::new();
    for (publisher, named) in wanted {
        let alone = Wanted::from([(publisher, named)]);
        match Box::pin(open_runs(store, alone)).await {
            Ok(found) => all.extend(found),
            Err(StoreError::Internal(error)) => {
                tracing::warn!(%publisher, error, "runs for a publisher's waiting claims can't be read");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}
