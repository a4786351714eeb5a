//! Reads the targets and due deliveries of endpoints that have something to send.

use std::collections::BTreeSet;

use persistence::{DuePage, DueRequest, EndpointKey, Store, StoreError};

use crate::{board::Load, note::LoadResult};

/// Reads the targets that are not known yet, and a page of due deliveries for each endpoint.
pub(super) async fn load(store: Store, loads: Vec<Load>) -> Result<LoadResult, StoreError> {
    let system = store.system();
    let all: Vec<EndpointKey> = loads.iter().map(|load| load.key).collect();
    let unread = loads.iter().filter(|load| load.ordered.is_none());
    let read: Vec<EndpointKey> = unread.map(|load| load.key).collect();
    let targets = system.webhooks().targets(&read).await?;
    let asks: Vec<DueRequest> = loads
        .into_iter()
        .filter_map(|load| {
            let read = targets.get(&load.key).map(|target| target.ordered);
            Some(DueRequest {
                key: load.key,
                ordered: load.ordered.or(read)?,
                limit: u64::try_from(load.limit).unwrap_or(u64::MAX),
                known: load.known,
            })
        })
        .collect();
    let asked: BTreeSet<EndpointKey> = asks.iter().map(|ask| ask.key).collect();
    let mut pages = system.webhooks().load_due(&asks).await?;
    // An endpoint to which nothing may be sent gets an empty page.
    pages.extend(
        all.iter()
            .filter(|key| !asked.contains(key))
            .map(|key| DuePage {
                key: *key,
                due: Vec::new(),
                more: false,
            }),
    );
    Ok(LoadResult {
        read,
        targets,
        pages,
    })
}
