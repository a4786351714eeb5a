//! The application's parts, and what is done with them whatever the resource.

use std::{sync::Arc, time::Duration};

use tokio_util::task::TaskTracker;

use domain::{
    audit::Actor,
    id::PublisherId,
    permission::Permission,
    permits::{Bounds, Permit, Permits},
    token::TokenHash,
};
use persistence::{Context, IdempotencyKey, Store};
use upstream::Refresher;

use super::notices::Notices;
use crate::schemas::Schemas;
use web::http::{ApiError, PublicOrigin, RateLimits, RequestContext, share};

/// The parts that operations work with.
pub struct App {
    /// The store.
    pub store: Store,
    /// How people get in.
    pub people: ::identity::Service,
    /// The origin at which browsers reach the server.
    pub origin: PublicOrigin,
    /// Who may ask how often.
    pub limits: Arc<RateLimits>,
    /// The operator's tokens: one, or two during a rotation.
    pub bootstrap: Vec<TokenHash>,
    /// Which URLs a publisher may name.
    pub policy: outbound::Policy,
    /// Who refreshes accounts.
    pub refresher: Refresher,
    /// The longest that a claim waits.
    pub claim_wait_max: Duration,
    /// Work off the requests' path; wait for it at shutdown, before the store is closed.
    pub tasks: TaskTracker,
    /// Requests that wait for token endpoints.
    pub(crate) outside: Permits<PublisherId>,
    /// Who judges by the schemas of publishers.
    pub(crate) schemas: Schemas,
    pub(crate) notices: Notices,
}

/// Requests that wait for token endpoints, in a process. Those that wait for one account's token
/// share one request to its endpoint; each waits in memory, with its connection. A thousand of one
/// publisher wait when the token ends that all its gateway's clients use.
pub(crate) const OUTSIDE: Bounds = Bounds {
    total: 8192,
    per_owner: 1024,
};

impl App {
    /// Has a request wait for somebody outside: it gives up its place among those at work and
    /// counts, to its end, among its publisher's requests that wait.
    ///
    /// # Errors
    /// 429 when as many wait as the publisher may have wait, 503 when as many as there may be.
    pub(crate) async fn wait_outside(
        &self,
        request: &RequestContext,
        publisher: PublisherId,
    ) -> Result<Permit<PublisherId>, ApiError> {
        request.leave_place();
        let gone = request.gone();
        let within = (share::TURN_MAX, &gone);
        let permit = share::in_turn(&self.outside, publisher, 1, within);
        Ok(permit.await.map_err(|full| {
            share::count_refusal(full, "outside");
            full.problem("requests that wait for token endpoints")
        })?)
    }
}

/// What the store is told of who asks, and how.
pub(crate) fn context(
    request: &RequestContext,
    actor: Actor,
    (permission, idempotency): (Option<Permission>, Option<IdempotencyKey>),
) -> Context {
    Context {
        actor,
        request_id: Some(request.request_id().to_owned()),
        address: Some(request.address().to_string()),
        user_agent: request.user_agent(),
        idempotency,
        permission,
    }
}
