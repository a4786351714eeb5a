//! Waits for a permit of a publisher's share, for a limited time.

use std::time::Duration;

use domain::permits::{Permit, Permits};
use uuid::Uuid;

use crate::store::error::Result;

/// How long to wait for a permit.
const WAIT: Duration = Duration::from_secs(10);

/// Waits for one permit of the publisher's share.
///
/// # Errors
/// 429 `share_exceeded` if the publisher's own share is used up, 503 if the whole is. `what` names
/// the permits in the error text, in the plural.
pub(crate) async fn one_of(
    permits: &Permits<Uuid>,
    publisher: Uuid,
    what: &str,
) -> Result<Permit<Uuid>> {
    match tokio::time::timeout(WAIT, permits.acquire(publisher, 1)).await {
        Ok(permit) => Ok(permit),
        Err(_) => Ok(permits
            .try_acquire(publisher, 1)
            .map_err(|full| full.problem(what))?),
    }
}
