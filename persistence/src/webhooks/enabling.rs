//! Enabling an endpoint: its deliveries are sent again, and a replay may start.

use domain::{audit::Action, id::EndpointId};
use serde_json::json;

use crate::{
    store::{
        Scoped,
        change::{Answer, Audited, Context, audit_entry},
        db::Tx,
        error::StoreError,
    },
    webhooks::Webhooks,
    webhooks::{
        endpoint_rows::live_row,
        endpoints::{Endpoint, EndpointPatch, change},
        recovery::recover,
        replays::{NewReplay, Replay, start_in},
    },
};

/// The result of enabling an endpoint.
#[derive(Clone, Debug)]
pub struct Enabled {
    /// The endpoint as it is now.
    pub endpoint: Endpoint,
    /// How many deliveries waited for a later attempt, and are due now.
    pub deliveries_due: u64,
    /// The replay, if one was requested.
    pub replay: Option<Replay>,
}

impl Webhooks<Scoped> {
    /// Enables an endpoint, and treats it as if it had never failed: deliveries that waited for a
    /// later attempt are due now. Starts a replay if one is requested. Has the same effect on an
    /// endpoint that is enabled already.
    pub async fn enable_endpoint<A>(
        &self,
        context: &Context,
        id: EndpointId,
        replay: Option<NewReplay>,
        render: A,
    ) -> Result<Answer, StoreError>
    where
        A: Fn(&Enabled) -> Answer + Send + Sync,
    {
        let (owner, replay) = (self.scope.uuid(), &replay);
        let work = |tx: Tx| async move {
            let row = live_row(&tx, owner, id).await?;
            let patch = EndpointPatch {
                enabled: Some(true),
                ..EndpointPatch::default()
            };
            let (mut entries, mut deliveries_due) = (Vec::new(), 0);
            if row.enabled {
                deliveries_due = recover(&tx, owner, row.id).await?;
            }
            if deliveries_due > 0 {
                let facts = json!({ "deliveries_due": deliveries_due });
                entries.push(audit_entry(Action::EndpointEnabled, "endpoint", id, facts));
            }
            let changed = change(&self.store, &tx, owner, row.clone(), &patch).await?;
            entries.extend(changed.entries);
            let mut started = None;
            if let Some(new) = replay {
                let (replay, entry) = start_in(&tx, &row, new).await?;
                started = Some(replay);
                entries.extend(entry);
            }
            let audited = Audited::unchanged(Enabled {
                endpoint: changed.endpoint,
                deliveries_due: deliveries_due + changed.deliveries_due,
                replay: started,
            });
            let entries = entries.into_iter();
            Ok(entries.fold(audited, |audited, entry| audited.and(&[owner], entry)))
        };
        self.store.administer(context, owner, work, render).await
    }
}
