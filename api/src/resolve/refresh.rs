//! How an access token that is expired, or nearly, is replaced before it is lent.

use std::time::Duration;

use futures_util::{FutureExt as _, future::BoxFuture};

use domain::id::AccountId;
use oauth::Refresher;
use persistence::Scope;

/// How long whoever resolves waits for a new token while the old one lives, and after its end.
const WAIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));

/// Replaces the tokens of `oauth` accounts.
pub trait Refresh: Send + Sync {
    /// Makes sure that the store holds an access token of the account that lasts for more than a
    /// moment. Once it is done, what the account's trains lend is read anew, so the commit that
    /// stores new tokens has to note that its publisher's credentials changed.
    ///
    /// Whoever resolves waits for it: many may ask at once for the same account, and must get one
    /// refresh; a try that failed just now is to be answered from memory.
    ///
    /// # Errors
    /// [`NotFresh`] when there is no such token. An unexpired one is then lent all the same.
    fn fresh<'a>(
        &'a self,
        scope: &'a Scope,
        account: AccountId,
    ) -> BoxFuture<'a, Result<(), NotFresh>>;
}

/// The account has no access token that lasts, and none could be had now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFresh;

impl Refresh for Refresher {
    fn fresh<'a>(
        &'a self,
        scope: &'a Scope,
        account: AccountId,
    ) -> BoxFuture<'a, Result<(), NotFresh>> {
        async move {
            let found = self.living_token(scope, account, WAIT).await;
            found.map_err(|error| {
                tracing::debug!(%account, %error, "an account has no fresh token");
                NotFresh
            })
        }
        .boxed()
    }
}
