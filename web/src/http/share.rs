//! Shares: who a request counts for, and what it counts.
//!
//! Two things are counted for every request ([`Shares`]): a place among those at work, and the
//! bytes of its body, and of a large answer until its client has read it. Each has a bound for
//! everybody together and one for each [`Owner`]. Whoever has its whole share waits for its turn,
//! for a few seconds at most, and is then refused; nobody else is refused for it.
//!
//! A place is held by work alone: not while a body comes, a long poll or a stream waits, or
//! somebody outside is asked. Such waits have bounds of their own, beside their use.

use std::{future::poll_fn, hash::Hash, net::IpAddr, pin::pin, task::Poll, time::Duration};

use tokio_util::sync::CancellationToken;

use domain::{
    Code, Problem,
    id::PublisherId,
    permits::{Bounds, Full, Permit, Permits},
};

use super::address::network;

/// How long a request waits for its turn at most.
pub const TURN_MAX: Duration = Duration::from_secs(4);

/// Requests at work. More of one publisher would only stand in each other's way: it is what can
/// be under way between this process and the database that they work with.
const WORK: Bounds = Bounds {
    total: 1024,
    per_owner: 128,
};

/// Bytes of bodies and large answers. What a request makes of its body takes some two to three
/// times as much again while it is at work, so that all of them together stay under 512 MiB; and
/// eight of the largest bodies of one publisher are in at a time.
const BYTES: Bounds = Bounds {
    total: 128 * 1024 * 1024,
    per_owner: 32 * 1024 * 1024,
};

/// The least answer that is counted. What is shorter fits into the kernel's buffer of a socket,
/// and is off our hands when it is written.
pub(super) const LARGE_ANSWER: usize = 64 * 1024;

/// Whom a request counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Who sent a token of this publisher, or of one of its trains.
    Publisher(PublisherId),
    /// Who sent a bootstrap token.
    Operator,
    /// Whoever it is, from this network, as long as that is not known.
    Network(IpAddr),
}

impl Owner {
    /// An address: an IPv4 address, or the /64 of an IPv6 one.
    #[must_use]
    pub fn address(address: IpAddr) -> Self {
        Self::Network(network(address))
    }

    /// What this owner is told when there is no room for it: 429 about its own share, else 503.
    #[must_use]
    pub fn refusal(self, full: Full, what: &str) -> Problem {
        let whose = match (full, self) {
            (Full::Total, _) | (Full::Owner, Self::Publisher(_)) => return full.problem(what),
            (Full::Owner, Self::Operator) => "operator",
            (Full::Owner, Self::Network(_)) => "address",
        };
        let detail = format!("The {whose}'s share of {what} is in use.");
        Problem::new(Code::ShareExceeded, detail).retry_after(1)
    }
}

/// What requests count, for the whole process.
pub struct Shares {
    work: Permits<Owner>,
    bytes: Permits<Owner>,
    turn_max: Duration,
}

impl Default for Shares {
    fn default() -> Self {
        Self::new(WORK, BYTES, TURN_MAX)
    }
}

impl Shares {
    /// Within these bounds; whoever has its share waits for so long at most.
    #[must_use]
    pub fn new(work: Bounds, bytes: Bounds, turn_max: Duration) -> Self {
        Self {
            work: Permits::new(work),
            bytes: Permits::new(bytes),
            turn_max,
        }
    }

    /// A place among the requests at work, in its turn.
    ///
    /// # Errors
    /// There is none for so long, or nobody waits any more.
    pub(super) async fn work(
        &self,
        owner: Owner,
        gone: &CancellationToken,
    ) -> Result<Permit<Owner>, Problem> {
        in_turn(&self.work, owner, 1, (self.turn_max, gone))
            .await
            .map_err(|full| refused(owner, full, "requests at work", "work"))
    }

    /// So many bytes, in their turn.
    ///
    /// # Errors
    /// There is no room for so long, or nobody waits any more.
    pub(super) async fn bytes(
        &self,
        owner: Owner,
        amount: usize,
        gone: &CancellationToken,
    ) -> Result<Permit<Owner>, Problem> {
        in_turn(&self.bytes, owner, amount, (self.turn_max, gone))
            .await
            .map_err(|full| no_bytes(owner, full))
    }

    /// So many bytes, now.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn bytes_now(&self, owner: Owner, amount: usize) -> Result<Permit<Owner>, Problem> {
        self.bytes
            .try_acquire(owner, amount)
            .map_err(|full| no_bytes(owner, full))
    }
}

/// What is said when there is no room for a body or an answer.
pub(super) fn no_bytes(owner: Owner, full: Full) -> Problem {
    refused(owner, full, "bytes of bodies and answers", "bytes")
}

fn refused(owner: Owner, full: Full, what: &str, resource: &'static str) -> Problem {
    count_refusal(full, resource);
    owner.refusal(full, what)
}

/// Counts a refusal for want of room. `resource` says of what.
pub fn count_refusal(full: Full, resource: &'static str) {
    let bound = match full {
        Full::Owner => "share",
        Full::Total => "total",
    };
    metrics::counter!("http_share_refusals_total", "resource" => resource, "bound" => bound)
        .increment(1);
}

/// A permit, as soon as it is the owner's turn: within the time given, and until nobody waits for the
/// answer any more.
///
/// # Errors
/// Which bound stands in the way.
pub async fn in_turn<K: Eq + Hash + Clone>(
    permits: &Permits<K>,
    owner: K,
    amount: usize,
    (within, gone): (Duration, &CancellationToken),
) -> Result<Permit<K>, Full> {
    let mut asked = pin!(permits.acquire(owner.clone(), amount));
    // Nearly always there is room, and no timer is needed.
    let now = poll_fn(|context| Poll::Ready(asked.as_mut().poll(context))).await;
    if let Poll::Ready(permit) = now {
        return Ok(permit);
    }
    tokio::select! {
        permit = asked => Ok(permit),
        () = gone.cancelled() => Err(Full::Total),
        // Asked once more, to learn which bound it is.
        () = tokio::time::sleep(within) => permits.try_acquire(owner, amount),
    }
}

#[cfg(test)]
mod tests {
    use domain::id::Id as _;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_mins(10);

    fn publisher(number: u128) -> Owner {
        Owner::Publisher(PublisherId::from_uuid(uuid::Uuid::from_u128(number)))
    }

    fn shares(total: usize, per_owner: usize, turn_max: Duration) -> Shares {
        let bounds = Bounds { total, per_owner };
        Shares::new(bounds, bounds, turn_max)
    }

    #[tokio::test]
    async fn who_has_its_share_waits_and_is_refused_alone() {
        let (shares, gone) = (shares(8, 2, SHORT), CancellationToken::new());
        let first = shares.work(publisher(1), &gone).await.unwrap();
        let _second = shares.work(publisher(1), &gone).await.unwrap();
        let refused = shares.work(publisher(1), &gone).await.err().unwrap();
        assert_eq!(
            (refused.code, refused.retry_after_s),
            (Code::ShareExceeded, Some(1))
        );
        assert!(shares.work(publisher(2), &gone).await.is_ok());
        let (third, ()) = tokio::join!(shares.work(publisher(1), &gone), async { drop(first) });
        assert!(third.is_ok(), "its turn came");
    }

    #[tokio::test]
    async fn everybody_together_has_a_bound_that_is_nobodys_fault() {
        let (shares, gone) = (shares(1, 1, SHORT), CancellationToken::new());
        let _first = shares.bytes(publisher(1), 1, &gone).await.unwrap();
        let refused = shares.bytes(publisher(2), 1, &gone).await.err().unwrap();
        assert_eq!(refused.code, Code::Overloaded);
        assert_eq!(
            shares.bytes_now(publisher(2), 1).err().unwrap().code,
            Code::Overloaded
        );
    }

    #[tokio::test]
    async fn who_went_away_waits_no_longer() {
        let (shares, gone) = (shares(1, 1, LONG), CancellationToken::new());
        let first = shares.work(Owner::Operator, &gone).await.unwrap();
        gone.cancel();
        assert!(shares.work(Owner::Operator, &gone).await.is_err());
        drop(first);
        assert!(
            shares
                .work(Owner::Operator, &CancellationToken::new())
                .await
                .is_ok()
        );
    }

    #[test]
    fn a_network_is_one_owner_and_is_told_so() {
        let owner = |text: &str| Owner::address(text.parse().unwrap());
        assert_eq!(owner("2001:db8::1"), owner("2001:db8::2:3"));
        assert_ne!(owner("2001:db8::1"), owner("2001:db8:0:1::1"));
        let problem = owner("192.0.2.1").refusal(Full::Owner, "things");
        assert_eq!(problem.code, Code::ShareExceeded);
        assert_eq!(problem.detail, "The address's share of things is in use.");
    }
}
