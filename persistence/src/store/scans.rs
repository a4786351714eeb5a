//! Scans: reads that may take long, such as lists, exports, and searches before a change. Few run
//! at once, and a publisher has a share of those, so that reads of single rows never wait for
//! scans.

use std::time::Duration;

use domain::permits::{Bounds, Full, Permit, Permits};
use uuid::Uuid;

use crate::store::{connections::Connections, error::Result};

/// Most scans of one publisher at a time, if there are at least twice as many connections and
/// processors. Processors count because this process checks and renders the rows.
const PER_PUBLISHER: usize = 4;
/// How long a scan waits until it may begin.
const PATIENCE: Duration = Duration::from_secs(5);

/// Limits the scans in this process.
pub(crate) struct Scans(Permits<Uuid>);

impl Scans {
    /// Limits for so many connections.
    pub(crate) fn new(connections: usize) -> Self {
        let total = connections.max(1);
        Self(Permits::new(Bounds {
            total,
            per_owner: share(total),
        }))
    }

    /// Waits until `owner` may scan on `db`.
    pub(crate) async fn turn<'a>(&self, db: &'a Connections, owner: Uuid) -> Result<Scan<'a>> {
        self.turn_within(db, owner, PATIENCE).await
    }

    async fn turn_within<'a>(
        &self,
        db: &'a Connections,
        owner: Uuid,
        patience: Duration,
    ) -> Result<Scan<'a>> {
        let turn = tokio::time::timeout(patience, self.0.acquire(owner, 1)).await;
        let turn = turn.map_err(|_| {
            let own = self.0.in_use_by(&owner) > 0;
            (if own { Full::Owner } else { Full::Total }).problem("scans")
        })?;
        Ok(Scan { db, _turn: turn })
    }
}

/// A publisher's share of so many connections.
fn share(connections: usize) -> usize {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    (connections.min(processors) / 2).clamp(1, PER_PUBLISHER)
}

/// The permit of a scan. It is held while statements run, not while their rows are rendered or
/// sent.
pub(crate) struct Scan<'a> {
    db: &'a Connections,
    _turn: Permit<Uuid>,
}

impl Scan<'_> {
    /// The connections for its statements.
    pub(crate) const fn db(&self) -> &Connections {
        self.db
    }
}

#[cfg(test)]
mod tests {
    use domain::Code;

    use super::*;
    use crate::{
        fixture::engines,
        runs::{
            RunFilter,
            tests::{create, house, new_run},
        },
        store::{error::StoreError, page::PageRequest},
    };

    const PAGE: PageRequest<Uuid> = PageRequest {
        limit: 10,
        after: None,
    };

    #[tokio::test]
    async fn a_publisher_at_its_share_waits_and_takes_nothing_from_others() {
        for fixture in engines().await {
            let mine = house(&fixture, "a", &["nightly"]).await;
            let theirs = house(&fixture, "b", &["nightly"]).await;
            let run = create(&mine, new_run("nightly")).await.unwrap().run.id;
            let mut held = Vec::new();
            for _ in 0..share(fixture.store.inner.db.scanners()) {
                held.push(fixture.store.scan(mine.scope.uuid()).await.unwrap());
            }
            let filter = RunFilter::default();
            let runs = mine.runs();
            let mut list = std::pin::pin!(runs.runs(&filter, PAGE));
            assert!(waits(list.as_mut()), "it waits for its turn");
            // Neither a single row's read nor another publisher's list waits.
            mine.runs().run(run).await.unwrap();
            assert!(
                theirs
                    .runs()
                    .runs(&filter, PAGE)
                    .await
                    .unwrap()
                    .items
                    .is_empty()
            );
            // It is refused when its turn does not come.
            let short = Duration::from_millis(20);
            let inner = &fixture.store.inner;
            let refused = inner
                .scans
                .turn_within(inner.db.scan(), mine.scope.uuid(), short);
            let refused = refused.await.err();
            let refused = match refused {
                Some(StoreError::Refused(problem)) => problem,
                other => panic!("{other:?}"),
            };
            assert_eq!(refused.code, Code::ShareExceeded);
            drop(held);
            assert_eq!(list.await.unwrap().items.len(), 1);
        }
    }

    /// Polls once; answers whether it waits.
    fn waits<F: Future>(future: std::pin::Pin<&mut F>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut context).is_pending()
    }
}
