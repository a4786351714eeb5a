//! Requests to the token endpoints of upstreams: refreshing the tokens of accounts, and exchanging
//! the code of a login for tokens.
//!
//! However many callers want a fresh token of an account, in this process or in others, one request
//! is sent ([`Refresher`]). It is sent by `outbound`, holds no database connection, and is never
//! cancelled half-way: if the caller goes away, the task ends by itself. Neither tokens nor bodies
//! of answers ever reach a log.

mod endpoint;
mod refresher;

pub use endpoint::AskError;
pub use refresher::{RefreshError, Refresher};

use domain::upstream::{ClientCredentials, Grant, TokenRequest};

impl Refresher {
    /// Exchanges the code of a login for tokens.
    ///
    /// # Errors
    /// [`AskError`], whose texts contain nothing that the endpoint wrote.
    pub async fn trade(
        &self,
        token_url: &str,
        client: ClientCredentials<'_>,
        code: TokenRequest<'_>,
    ) -> Result<Grant, AskError> {
        endpoint::ask(self, token_url, client, code).await
    }
}
