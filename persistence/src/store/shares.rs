//! Waiting for a share: with an end, and with what is answered then.

use std::time::Duration;

use domain::permits::{Permit, Permits};
use uuid::Uuid;

use crate::store::error::Result;

/// How long whoever is over a share waits for some of it.
const WAIT: Duration = Duration::from_secs(10);

/// One unit of the publisher's share, waited for in its own line.
///
/// # Errors
/// 429 `share_exceeded` if the publisher's share stays in use, 503 if everything does; `what`
/// names it in the plural.
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
