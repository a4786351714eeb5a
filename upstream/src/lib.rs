//! The token endpoints of upstreams: refreshing what accounts hold, and trading a login's code.
//!
//! However many ask for an account's fresh token, here or in other processes, one request goes
//! out ([`Refresher`]). It leaves through `outbound` alone, holds no database connection, and is
//! never cancelled half-way: whoever asked and went away leaves a task behind that ends by itself.
//! Neither tokens nor bodies of answers ever reach a log.

mod endpoint;
mod refresher;

pub use endpoint::AskError;
pub use refresher::{RefreshError, Refresher};

use domain::upstream::{ClientCredentials, Grant, TokenRequest};

impl Refresher {
    /// Trades the code of a login for tokens.
    ///
    /// # Errors
    /// Why there are none, in words of ours.
    pub async fn trade(
        &self,
        token_url: &str,
        client: ClientCredentials<'_>,
        code: TokenRequest<'_>,
    ) -> Result<Grant, AskError> {
        endpoint::ask(self, token_url, client, code).await
    }
}
