//! Whether what was good when its request came still is: asked by whatever lasts longer than a
//! moment, before it hands anything out.

use std::sync::Arc;

use domain::{Code, permission::Permission};
use persistence::Presented;

use crate::shared::App;
use web::http::ApiError;

/// What a request presented, and what it is used for.
#[derive(Clone)]
pub(crate) struct Standing {
    pub(super) app: Arc<App>,
    pub(super) presented: Presented,
    pub(super) permission: Permission,
}

impl Standing {
    /// Looks again.
    ///
    /// # Errors
    /// 401 when the token or the session is not good any more, or not for this; 403 when its publisher is
    /// suspended.
    pub(crate) async fn check(&self) -> Result<(), ApiError> {
        let principal = self.app.store.standing(&self.presented).await?;
        let principal = principal
            .filter(|principal| principal.holds(self.permission))
            .ok_or(Code::Unauthenticated)?;
        if !principal.publisher.is_active() {
            return Err(Code::PublisherSuspended.into());
        }
        Ok(())
    }
}
