//! Publishing events: through the write lane, or with an `Idempotency-Key` in a transaction of its
//! own.

use std::collections::BTreeSet;

use crate::{
    runs::lane::Lane,
    store::{
        Scoped,
        change::{Answer, Context},
        db::Tx,
        error::{Result, StoreError, corrupt_row},
    },
    webhooks::Webhooks,
    webhooks::{
        fan_outs::{self, CALL_MAX, WAITING_MAX},
        listeners::read_listeners,
        own_events::{NewOwnEvent, Publish, PublishedEvent, check_room, publish_all},
    },
};

impl Webhooks<Scoped> {
    /// Publishes events in the given order, all or none. If an event with the same external
    /// identifier exists, it is returned instead.
    ///
    /// `listed` says whether the request had a list, which pointers in errors then refer to.
    pub async fn publish<A>(
        &self,
        context: &Context,
        events: Vec<NewOwnEvent>,
        listed: bool,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Vec<PublishedEvent>) -> Answer + Send + Sync,
    {
        let room = self.store.storage_room(self.scope.uuid()).await?;
        let publish = Publish {
            scope: self.scope.clone(),
            events: events.into(),
            listed,
        };
        if context.idempotency.is_none() {
            room.check()?;
            self.check_room_to_spread(&publish).await?;
            return Ok(render(&self.store.state::<Lane>().publish(publish).await?));
        }
        let (store, publish, room) = (&self.store, &publish, &room);
        let work = |tx: Tx| async move {
            room.check()?;
            let done = publish_all(&tx, std::slice::from_ref(publish)).await?;
            let first = done.into_iter().next();
            Ok(first.ok_or_else(|| corrupt_row("batch of events"))??)
        };
        store.transact(context, &self.scope, work, render).await
    }

    /// Refuses a large call early if too many of the publisher's deliveries wait to be spread, so
    /// that it takes no time of the writer. The transaction checks again. Publishers over their
    /// share often repeat their calls.
    async fn check_room_to_spread(&self, publish: &Publish) -> Result<()> {
        let (owner, store) = (self.scope.uuid(), &self.store);
        let listening = store.state::<Lane>().listening_to(owner);
        if publish.events.len().saturating_mul(listening) <= CALL_MAX {
            return Ok(());
        }
        let (db, owner) = (store.read(), BTreeSet::from([owner]));
        let waiting = fan_outs::waiting(db, owner.clone()).await?;
        if waiting.values().all(|some| *some < WAITING_MAX) {
            return Ok(());
        }
        let listeners = read_listeners(db, &owner).await?;
        let calls = std::slice::from_ref(publish);
        let refused = check_room(db, calls, &listeners).await?;
        refused
            .into_iter()
            .flatten()
            .next()
            .map_or(Ok(()), |problem| Err(problem.into()))
    }
}

#[cfg(test)]
mod tests;
