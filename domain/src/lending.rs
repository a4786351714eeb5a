//! Chooses the account of a train whose credential is lent, and what follows from reports of its
//! use.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::words;
use crate::{
    account::Ceilings,
    clock::Timestamp,
    fault::FaultCode,
    id::{AccountId, Id as _},
};

/// An access token that expires within this time is refreshed before it is lent.
pub const EXPIRES_SOON: Duration = Duration::from_mins(1);
/// How long a caller may use an answer before it should ask again.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// The cooldown of an account after a rate limit of unknown length.
pub const RATE_LIMITED_DEFAULT: Duration = Duration::from_mins(1);
/// The longest cooldown after a rate limit.
pub const RATE_LIMITED_MAX: Duration = Duration::from_hours(7 * 24);
/// The cooldown after the upstream refused the credential.
pub const UNAUTHORIZED_FOR: Duration = Duration::from_mins(5);
/// The cooldown after any other failure.
pub const FAILED_FOR: Duration = Duration::from_secs(30);
/// The shortest time between two notices that a train is exhausted.
pub const EXHAUSTED_EVERY: Duration = Duration::from_mins(5);
/// How long a caller should wait if no account becomes available by itself.
pub const NOBODY_RETURNS_AFTER: Duration = Duration::from_mins(1);
/// An account that has used this share of a soft ceiling is lent last.
const NEAR_CEILING_PERCENT: u128 = 90;

words! {
    /// How a request that was made with a lent credential ended.
    pub enum UseOutcome {
        /// It succeeded.
        Ok = "ok",
        /// The upstream asked for a pause.
        RateLimited = "rate_limited",
        /// The upstream refused the credential.
        Unauthorized = "unauthorized",
        /// It failed in another way that is due to the account or the upstream.
        Failed = "failed",
    }
}

impl UseOutcome {
    /// What the status of an upstream's answer says about the account that was used; `None` if it
    /// says nothing.
    #[must_use]
    pub const fn of_status(status: u16) -> Option<Self> {
        match status {
            429 | 529 => Some(Self::RateLimited),
            401 | 403 => Some(Self::Unauthorized),
            500..=599 => Some(Self::Failed),
            _ => None,
        }
    }

    /// The cooldown that follows; `None` if there is none. `retry_after` is what the upstream asked
    /// for.
    #[must_use]
    pub fn rest(self, retry_after: Option<Duration>) -> Option<Duration> {
        match self {
            Self::Ok => None,
            Self::RateLimited => {
                let asked = retry_after.unwrap_or(RATE_LIMITED_DEFAULT);
                Some(asked.clamp(Duration::from_secs(1), RATE_LIMITED_MAX))
            }
            Self::Unauthorized => Some(UNAUTHORIZED_FOR),
            Self::Failed => Some(FAILED_FOR),
        }
    }
}

/// How much an account was used lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Requests in 5 hours.
    pub requests_5h: u64,
    /// Tokens of a model in 5 hours.
    pub tokens_5h: u64,
    /// Requests in 7 days.
    pub requests_7d: u64,
    /// Tokens of a model in 7 days.
    pub tokens_7d: u64,
}

impl Used {
    /// The same use plus these requests and tokens, made just now.
    #[must_use]
    pub const fn and(self, requests: u64, tokens: u64) -> Self {
        Self {
            requests_5h: self.requests_5h.saturating_add(requests),
            tokens_5h: self.tokens_5h.saturating_add(tokens),
            requests_7d: self.requests_7d.saturating_add(requests),
            tokens_7d: self.tokens_7d.saturating_add(tokens),
        }
    }

    /// Whether at least nine tenths of any ceiling are used.
    #[must_use]
    pub fn is_near(self, ceilings: &Ceilings) -> bool {
        [
            (self.requests_5h, ceilings.requests_5h),
            (self.tokens_5h, ceilings.tokens_5h),
            (self.requests_7d, ceilings.requests_7d),
            (self.tokens_7d, ceilings.tokens_7d),
        ]
        .into_iter()
        .any(|(used, ceiling)| {
            ceiling.is_some_and(|ceiling| {
                u128::from(used) * 100 >= u128::from(ceiling) * NEAR_CEILING_PERCENT
            })
        })
    }
}

/// What the choice depends on, for one account of a train and one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts")]
pub struct Candidate {
    /// The account.
    pub account: AccountId,
    /// The priority; 0 is tried first.
    pub priority: u16,
    /// Whether the publisher has enabled the account.
    pub enabled: bool,
    /// Whether the account works. One that can't be refreshed any more is lent until its token
    /// expires.
    pub healthy: bool,
    /// When the access token expires.
    pub expires_at: Option<Timestamp>,
    /// The end of its cooldown, as a whole or for the requested model.
    pub resting_until: Option<Timestamp>,
    /// Whether the account is near a soft ceiling.
    pub near_ceiling: bool,
    /// Whether the request excludes the account.
    pub excluded: bool,
    /// Whether the access token could be refreshed before it is lent.
    pub renewable: bool,
}

/// Why an account is not lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The publisher disabled it.
    Disabled,
    /// It can't be refreshed any more and the token is expired, or the credential can't be
    /// decrypted.
    Failed,
    /// The access token is expired and was not refreshed.
    Expired,
    /// It cools down until this time.
    CoolingDown(Timestamp),
    /// Only the request excludes it.
    Excluded,
}

impl Unavailable {
    /// The code by which a refusal tells of it.
    #[must_use]
    pub const fn code(self) -> FaultCode {
        match self {
            Self::Disabled => FaultCode::Disabled,
            Self::Failed => FaultCode::Failed,
            Self::Expired => FaultCode::Expired,
            Self::CoolingDown(_) => FaultCode::CoolingDown,
            Self::Excluded => FaultCode::Excluded,
        }
    }

    /// When the account becomes available by itself; `None` if it does not.
    #[must_use]
    pub const fn returns_at(self) -> Option<Timestamp> {
        match self {
            Self::CoolingDown(until) => Some(until),
            _ => None,
        }
    }
}

impl Candidate {
    /// Why the account can't be lent; `None` if it can.
    #[must_use]
    pub fn out(&self, now: Timestamp) -> Option<Unavailable> {
        let expired = self.expires_at.is_some_and(|at| at <= now);
        let lives = self.expires_at.is_some_and(|at| at > now);
        if !self.enabled {
            Some(Unavailable::Disabled)
        } else if !self.healthy && !lives {
            Some(Unavailable::Failed)
        } else if expired && !self.renewable {
            Some(Unavailable::Expired)
        } else if let Some(until) = self.resting_until.filter(|until| *until > now) {
            Some(Unavailable::CoolingDown(until))
        } else if self.excluded {
            Some(Unavailable::Excluded)
        } else {
            None
        }
    }

    /// The sort key: accounts with a lower rank are tried first.
    const fn rank(&self) -> (bool, u16) {
        (self.near_ceiling, self.priority)
    }
}

/// The account to lend, among those that can be lent: first one that is near no ceiling, then the
/// one with the lowest priority number, then the one with the lowest identifier. `None` if none
/// can.
///
/// With the key of a client, the key decides between accounts of the same rank: a client keeps its
/// account as long as that can be lent, and clients are spread over the accounts (rendezvous
/// hashing: when an account comes or goes, only its own clients move).
#[must_use]
pub fn choose(candidates: &[Candidate], now: Timestamp, client: Option<&str>) -> Option<AccountId> {
    let usable = || candidates.iter().filter(|one| one.out(now).is_none());
    let first = usable().min_by_key(|one| (one.rank(), one.account))?;
    let Some(client) = client else {
        return Some(first.account);
    };
    usable()
        .filter(|one| one.rank() == first.rank())
        .max_by_key(|one| (affinity(client, one.account), one.account))
        .map(|one| one.account)
}

/// The weight of an account for a client. It is the same in every process and version.
fn affinity(client: &str, account: AccountId) -> [u8; 32] {
    Sha256::new()
        .chain_update(account.uuid().as_bytes())
        .chain_update(client.as_bytes())
        .finalize()
        .into()
}

/// When the first of the accounts becomes available; `None` if none does by itself.
pub fn first_return(outs: impl IntoIterator<Item = Unavailable>) -> Option<Timestamp> {
    outs.into_iter().filter_map(Unavailable::returns_at).min()
}

#[cfg(test)]
mod tests;
