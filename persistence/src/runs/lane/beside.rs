//! Large calls on PostgreSQL: they use connections of the pool, so that the lane does not wait for
//! them.

use super::entry::{Lane, Reply, answer};
use crate::{
    runs::batch::{Batch, apply},
    store::{Store, error::corrupt_row},
    webhooks::own_events::{Publish, PublishedEvent},
};

/// Makes the call, one at a time for each publisher, and answers.
pub(super) fn publish(store: &Store, publish: Publish, reply: Reply<Vec<PublishedEvent>>) {
    let store = store.clone();
    store.inner.tasks.clone().spawn(async move {
        let publisher = publish.scope.uuid();
        let batch = &Batch {
            publishes: vec![publish],
            ..Batch::default()
        };
        let lane = &store;
        let work = |tx| async move { apply(lane, &tx, batch).await };
        let done = match store.state::<Lane>().large_turn(publisher).await {
            Ok(turn) => store.write_resting(publisher, turn, work).await,
            Err(error) => Err(error),
        };
        let first = done.and_then(|done| {
            let first = done.publishes.into_iter().next();
            Ok(first.ok_or_else(|| corrupt_row("batch of events"))??)
        });
        answer(reply, first);
    });
}
