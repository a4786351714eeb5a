//! Which account of a train is lent to whoever asks, and what a report of its use brings about.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::{
    account::Ceilings,
    clock::Timestamp,
    fault::FaultCode,
    id::{AccountId, Id as _},
};

/// An access token that lives no longer than this is refreshed before it is lent.
pub const EXPIRES_SOON: Duration = Duration::from_mins(1);
/// How long an answer may be used before the caller should ask again.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How long an account rests after a rate limit of unknown length.
pub const RATE_LIMITED_DEFAULT: Duration = Duration::from_mins(1);
/// The longest that it rests.
pub const RATE_LIMITED_MAX: Duration = Duration::from_hours(7 * 24);
/// How long it rests after its credential was refused.
pub const UNAUTHORIZED_FOR: Duration = Duration::from_mins(5);
/// How long it rests after any other failure.
pub const FAILED_FOR: Duration = Duration::from_secs(30);
/// A train that stays exhausted is told of once in so long.
pub const EXHAUSTED_EVERY: Duration = Duration::from_mins(5);
/// How long to wait when no account comes back by itself.
pub const NOBODY_RETURNS_AFTER: Duration = Duration::from_mins(1);
/// From this share of a soft ceiling on, an account is lent last.
const NEAR_CEILING_PERCENT: u128 = 90;

/// How a request that was made with a lent credential ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Well.
    Ok,
    /// The upstream asked for a pause.
    RateLimited,
    /// The upstream refused the credential.
    Unauthorized,
    /// In another way that is the account's or the upstream's fault.
    Failed,
}

impl Outcome {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self::Ok,
        Self::RateLimited,
        Self::Unauthorized,
        Self::Failed,
    ];

    /// The word in requests and the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::RateLimited => "rate_limited",
            Self::Unauthorized => "unauthorized",
            Self::Failed => "failed",
        }
    }

    /// The one that a word names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }

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

    /// How long the account rests after it; `None` if it need not.
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

/// How much an account was used of late.
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
    /// The same and a little more, just now.
    #[must_use]
    pub const fn and(self, requests: u64, tokens: u64) -> Self {
        Self {
            requests_5h: self.requests_5h.saturating_add(requests),
            tokens_5h: self.tokens_5h.saturating_add(tokens),
            requests_7d: self.requests_7d.saturating_add(requests),
            tokens_7d: self.tokens_7d.saturating_add(tokens),
        }
    }

    /// Whether any ceiling is reached by nine tenths.
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

/// What counts of an account of a train, for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "four independent facts")]
pub struct Candidate {
    /// Which account.
    pub account: AccountId,
    /// 0 is tried first.
    pub priority: u16,
    /// Whether its publisher lets it be lent.
    pub enabled: bool,
    /// Whether it works; one that can't be refreshed any more is lent until its token expires.
    pub healthy: bool,
    /// When its access token expires.
    pub expires_at: Option<Timestamp>,
    /// Until when it rests, as a whole or for the model that is asked for.
    pub resting_until: Option<Timestamp>,
    /// Whether it is near a soft ceiling.
    pub near_ceiling: bool,
    /// Whether the caller wants another one.
    pub excluded: bool,
    /// Whether its access token could be replaced before it is lent.
    pub renewable: bool,
}

/// Why an account is not lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Its publisher disabled it.
    Disabled,
    /// It can't be refreshed any more and its token is expired, or its credential does not open.
    Failed,
    /// Its access token is expired and was not replaced.
    Expired,
    /// It rests until then.
    CoolingDown(Timestamp),
    /// Nothing but that the caller wants another one.
    Excluded,
}

impl Out {
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

    /// When the account is back by itself.
    #[must_use]
    pub const fn returns_at(self) -> Option<Timestamp> {
        match self {
            Self::CoolingDown(until) => Some(until),
            _ => None,
        }
    }
}

impl Candidate {
    /// Why it can't be lent; `None` if it can.
    #[must_use]
    pub fn out(&self, now: Timestamp) -> Option<Out> {
        let expired = self.expires_at.is_some_and(|at| at <= now);
        let lives = self.expires_at.is_some_and(|at| at > now);
        if !self.enabled {
            Some(Out::Disabled)
        } else if !self.healthy && !lives {
            Some(Out::Failed)
        } else if expired && !self.renewable {
            Some(Out::Expired)
        } else if let Some(until) = self.resting_until.filter(|until| *until > now) {
            Some(Out::CoolingDown(until))
        } else if self.excluded {
            Some(Out::Excluded)
        } else {
            None
        }
    }

    /// What comes first is tried first.
    const fn rank(&self) -> (bool, u16) {
        (self.near_ceiling, self.priority)
    }
}

/// The account to lend: of those that can be, one that is near no ceiling before one that is, the
/// lowest priority number, then the lowest identifier.
///
/// With the key of a client, accounts of the same priority are chosen between by that key: always
/// the same one as long as it can be lent, and another client's may be another one (rendezvous
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

/// The same in every process and version.
fn affinity(client: &str, account: AccountId) -> [u8; 32] {
    Sha256::new()
        .chain_update(account.uuid().as_bytes())
        .chain_update(client.as_bytes())
        .finalize()
        .into()
}

/// When the first of them is back; `None` if none comes back by itself.
pub fn first_return(outs: impl IntoIterator<Item = Out>) -> Option<Timestamp> {
    outs.into_iter().filter_map(Out::returns_at).min()
}

#[cfg(test)]
mod tests;
