//! Refreshes the tokens of an account once, however many callers ask.
//!
//! In a process, callers that ask for the same account at the same time share one refresh, called a
//! flight. Among processes, a lease in the account's row lets one of them ask the endpoint. The
//! others poll the row until it has another credential.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::{
    Code, Problem, Timestamp,
    id::{AccountId, PublisherId},
    permits::{Bounds, Permits},
    random,
    upstream::{ClientCredentials, ErrorKind, Grant, TokenError, TokenRequest},
};
use moka::sync::Cache;
use persistence::{
    AccountToken, Context, DueRefresh, RefreshClaim, RefreshLease, RefreshRequest, Scope, Scoped,
    Store, StoreError,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::TaskTracker;

use crate::endpoint::{self, AskError};

/// Most requests to token endpoints under way, in a process and for one publisher. Endpoints that
/// hang do not delay the refreshes of other publishers.
const ASKING: Bounds = Bounds {
    total: 128,
    per_owner: 8,
};
/// How long a lease lasts: two requests to the endpoint, and the commit.
const LEASE: Duration = Duration::from_secs(45);
/// How often a flight that waits for another process reads the row; varied by a third.
const POLL_EVERY: Duration = Duration::from_millis(75);
/// How long a flight waits for another process: longer than that process's lease lasts.
const FLIGHT_WAIT_MAX: Duration = Duration::from_mins(1);
/// How long the state of an account is cached: its token is good; its refresh failed while the old
/// token still works; its refresh failed and the old token is expired. And for how many accounts.
const GOOD_KEPT: Duration = Duration::from_secs(1);
const FAILED_KEPT: Duration = Duration::from_secs(5);
const OVER_KEPT: Duration = Duration::from_secs(1);
const KEPT_MAX: u64 = 10_000;
/// How often it is tried to store new tokens, of which no other copy exists; and the wait between
/// two tries.
const STORE_TRIES: u32 = 5;
const STORE_AGAIN: Duration = Duration::from_millis(500);

/// Why an account got no fresh token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RefreshError {
    /// The endpoint gave none, or was not asked because it failed a moment ago.
    #[error("the upstream gave no new token: {0}")]
    Upstream(String),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The refresh did not end in time.
    #[error("the refresh takes too long")]
    TimeOver,
}

impl RefreshError {
    /// The store's error if the store failed, so that the state of the account is unknown; `None`
    /// for every other error.
    #[must_use]
    pub fn of_the_store(self) -> Option<StoreError> {
        match self {
            Self::Store(StoreError::Refused(_)) | Self::Upstream(_) | Self::TimeOver => None,
            Self::Store(error) => Some(error),
        }
    }
}

impl From<RefreshError> for StoreError {
    /// The error that the publisher sees: `refresh_failed` with the reason.
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Store(error) => error,
            other => {
                let mut words = format!("{other}.");
                words[..1].make_ascii_uppercase();
                Problem::new(Code::RefreshFailed, words).into()
            }
        }
    }
}

type RefreshResult = Result<AccountToken, RefreshError>;
type Flights = HashMap<(PublisherId, AccountId, bool), watch::Receiver<Option<RefreshResult>>>;

/// Refreshes accounts. Cheap to clone; create one for the whole process.
#[derive(Clone)]
pub struct Refresher(Arc<Inner>);

struct Inner {
    store: Store,
    http: outbound::Client,
    asking: Permits<PublisherId>,
    flights: Mutex<Flights>,
    /// The cached results for accounts that were asked for lately, and until when each holds.
    lately: Cache<(PublisherId, AccountId), (Result<(), RefreshError>, Timestamp)>,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Refresher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Refresher")
    }
}

impl Refresher {
    /// The size of a batch of scheduled refreshes: accounts in all, and of one publisher. As many
    /// as may be under way at a time, so that none waits for a permit.
    pub const BATCH: (u64, u64) = (ASKING.total as u64, ASKING.per_owner as u64);

    /// A refresher on a store. The policy of `http` decides which token endpoints may be called.
    #[must_use]
    pub fn new(store: Store, http: outbound::Client) -> Self {
        Self(Arc::new(Inner {
            store,
            http,
            asking: Permits::new(ASKING),
            flights: Mutex::default(),
            lately: Cache::builder()
                .max_capacity(KEPT_MAX)
                .time_to_live(FAILED_KEPT)
                .build(),
            tasks: TaskTracker::new(),
        }))
    }

    pub(crate) fn http(&self) -> &outbound::Client {
        &self.0.http
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.0.store.now()
    }

    /// Waits until no refresh is under way. Call it before the store is closed.
    pub async fn drained(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Makes sure that the account's access token can be used, and refreshes it if it expires soon.
    /// Waits for the refresh for `wait.0` if the present token works for longer than that, else for
    /// `wait.1`. The result is cached for some seconds, because many callers may ask.
    ///
    /// # Errors
    /// [`RefreshError`] if the token still expires soon or is expired; the store's 404 and
    /// `wrong_credential_type`.
    pub async fn living_token(
        &self,
        scope: &Scope,
        account: AccountId,
        wait: (Duration, Duration),
    ) -> Result<(), RefreshError> {
        let (key, now) = ((scope.publisher(), account), self.0.store.now());
        if let Some((outcome, until)) = self.0.lately.get(&key)
            && now < until
        {
            return outcome;
        }
        let scoped = self.0.store.scoped(scope);
        let present = scoped.trains().account_token(account).await?;
        let left = present.expires_at.map(|at| at.since(now));
        if !present.ends_soon {
            // The caller saw another token, so its caches may be stale.
            scoped.trains().invalidate_cached();
            let kept = left.map_or(GOOD_KEPT, |left| GOOD_KEPT.min(left / 4));
            self.0.lately.insert(key, (Ok(()), now.plus(kept)));
            return Ok(());
        }
        // A token that expires during the wait is of no use after it.
        let lives = left.is_some_and(|left| left > wait.0);
        let wait = if lives { wait.0 } else { wait.1 };
        let flight = self.replace(scope, account, present.version, false, None);
        let error = match tokio::time::timeout(wait, flight).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => RefreshError::TimeOver,
        };
        let now = self.0.store.now();
        let kept = match present.expires_at.filter(|end| *end > now) {
            Some(end) => now.plus(FAILED_KEPT).min(end),
            None => now.plus(OVER_KEPT),
        };
        self.0.lately.insert(key, (Err(error.clone()), kept));
        Err(error)
    }

    /// Returns the token that follows the one with version `seen`, whichever process gets it from
    /// the endpoint. `force` asks the endpoint even if it failed a moment ago. `context` says who
    /// asks, for the audit log; if several callers share a flight, that of the first counts.
    ///
    /// # Errors
    /// [`RefreshError`] if there is no such token.
    pub async fn replace(
        &self,
        scope: &Scope,
        account: AccountId,
        seen: i64,
        force: bool,
        context: Option<Context>,
    ) -> RefreshResult {
        let mut flight = self.join(scope, account, seen, force, context);
        let landed = flight.wait_for(Option::is_some).await;
        let broken = || StoreError::Internal("a refresh panicked".to_owned());
        let outcome = landed.ok().and_then(|outcome| outcome.clone());
        outcome.unwrap_or_else(|| Err(broken().into()))
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.0
            .flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn join(
        &self,
        scope: &Scope,
        account: AccountId,
        seen: i64,
        force: bool,
        context: Option<Context>,
    ) -> watch::Receiver<Option<RefreshResult>> {
        let key = (scope.publisher(), account, force);
        let mut flights = self.flights();
        if let Some(flight) = flights.get(&key) {
            return flight.clone();
        }
        let (done, flight) = watch::channel(None);
        flights.insert(key, flight.clone());
        drop(flights);
        let entry = FlightEntry {
            refresher: self.clone(),
            key,
        };
        let scoped = self.0.store.scoped(scope);
        let context = context.unwrap_or_else(|| Context::system("refresh"));
        let this = self.clone();
        self.0.tasks.spawn(async move {
            // The permit first: a lease must not run out while the flight waits for a permit.
            let permit = this.0.asking.acquire(key.0, 1).await;
            let outcome = this.fly(&scoped, account, seen, force, &context).await;
            drop(permit);
            // Callers from now on start a flight of their own.
            drop(entry);
            done.send_replace(Some(outcome));
        });
        flight
    }

    async fn fly(
        &self,
        scoped: &Scoped,
        account: AccountId,
        seen: i64,
        force: bool,
        context: &Context,
    ) -> RefreshResult {
        let end = Instant::now() + FLIGHT_WAIT_MAX;
        let mut request = RefreshRequest {
            seen,
            force,
            waited: None,
        };
        loop {
            match scoped
                .trains()
                .take_refresh(account, request, LEASE)
                .await?
            {
                RefreshClaim::Claimed(lease) => return self.ask(scoped, &lease, context).await,
                RefreshClaim::Replaced => {
                    // Another process may have stored it, and its notice may not have arrived here
                    // yet.
                    scoped.trains().invalidate_cached();
                    return Ok(scoped.trains().account_token(account).await?);
                }
                RefreshClaim::BackingOff { reason, .. } => {
                    return Err(RefreshError::Upstream(reason));
                }
                RefreshClaim::InProgress { failures } => {
                    request.waited.get_or_insert(failures);
                }
            }
            if Instant::now() >= end {
                return Err(RefreshError::TimeOver);
            }
            tokio::time::sleep(POLL_EVERY.mul_f64(random::jitter(0.33))).await;
        }
    }

    /// Asks the endpoint, and stores the result before it is returned.
    async fn ask(&self, scoped: &Scoped, lease: &RefreshLease, context: &Context) -> RefreshResult {
        let asked_at = self.0.store.now();
        let client = ClientCredentials {
            id: &lease.client_id,
            secret: lease.tokens.client_secret.as_ref(),
        };
        let ask = TokenRequest::Refresh {
            token: &lease.tokens.refresh_token,
            scope: lease.scopes.as_deref(),
        };
        match endpoint::ask(self, &lease.token_url, client, ask).await {
            Ok(grant) => keep(scoped, lease, context, &grant, asked_at).await,
            Err(AskError::Endpoint(error)) => {
                self.failed(scoped, lease, context, &error).await;
                Err(RefreshError::Upstream(error.reason.to_owned()))
            }
            Err(error @ AskError::OwnShortage) => {
                count("own_shortage");
                // Nothing is known about the account, so it is as due as before.
                if let Err(error) = scoped.trains().return_refresh(lease).await {
                    let account = lease.account;
                    tracing::warn!(%account, %error, "a refresh that was not made is not due again before its lease ends");
                }
                Err(StoreError::Unavailable(error.to_string()).into())
            }
        }
    }

    async fn failed(
        &self,
        scoped: &Scoped,
        lease: &RefreshLease,
        context: &Context,
        error: &TokenError,
    ) {
        let (account, reason) = (lease.account, error.reason);
        count(match error.kind {
            ErrorKind::Spent => "spent",
            ErrorKind::Refused => "refused",
            ErrorKind::Passing => "passing",
        });
        tracing::warn!(%account, reason, "an account could not be refreshed");
        let mut tries = 1;
        loop {
            match scoped
                .trains()
                .keep_refresh_failure(context, lease, error)
                .await
            {
                Ok(()) => return,
                // No other copy exists of a refresh token that came with the error.
                Err(failure) if error.refresh_token.is_some() && may_try(&failure, tries) => {}
                Err(error) => {
                    tracing::warn!(%account, %error, "a failed refresh could not be recorded");
                    return;
                }
            }
            tries += 1;
            tokio::time::sleep(STORE_AGAIN).await;
        }
    }

    /// Refreshes accounts that are due; returns how many succeeded and how many failed. Pass at
    /// most [`Refresher::BATCH`] at a time.
    pub async fn refresh_due(&self, due: &[DueRefresh]) -> (u64, u64) {
        let flights: Vec<_> = due
            .iter()
            .map(|one| self.join(&one.scope, one.account, one.version, false, None))
            .collect();
        let (mut refreshed, mut failed) = (0, 0);
        for mut flight in flights {
            let landed = flight.wait_for(Option::is_some).await;
            match landed.as_deref() {
                Ok(Some(Ok(_))) => refreshed += 1,
                _ => failed += 1,
            }
        }
        (refreshed, failed)
    }
}

/// Whether to try the store again after an error.
fn may_try(error: &StoreError, tries: u32) -> bool {
    error.may_pass() && tries < STORE_TRIES
}

/// Stores new tokens. Tries again if the store fails: the old refresh token may not work any more,
/// and no other copy of the new one exists.
async fn keep(
    scoped: &Scoped,
    lease: &RefreshLease,
    context: &Context,
    grant: &Grant,
    asked_at: Timestamp,
) -> RefreshResult {
    let account = lease.account;
    let mut tries = 1;
    loop {
        match scoped
            .trains()
            .keep_refreshed(context, lease, grant, asked_at)
            .await
        {
            Ok(token) => {
                count("refreshed");
                tracing::info!(%account, "an account was refreshed");
                return Ok(token);
            }
            Err(error) if may_try(&error, tries) => {
                tries += 1;
                tokio::time::sleep(STORE_AGAIN).await;
            }
            Err(error) => {
                count("lost");
                tracing::warn!(%account, %error, "new tokens could not be stored");
                return Err(error.into());
            }
        }
    }
}

/// The entry of a flight in the list; removed when dropped, however the flight ends.
struct FlightEntry {
    refresher: Refresher,
    key: (PublisherId, AccountId, bool),
}

impl Drop for FlightEntry {
    fn drop(&mut self) {
        self.refresher.flights().remove(&self.key);
    }
}

fn count(outcome: &'static str) {
    metrics::counter!("stationmaster_account_refreshes_total", "outcome" => outcome).increment(1);
}
