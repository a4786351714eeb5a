//! How often somebody may fail, or ask for mail.
//!
//! Guesses are slowed down by the address that they are for and by the network that they come
//! from, with delays that grow. Nobody is locked out for good: a browser in which the user signed
//! in before is not slowed down by what others do.

use std::{net::IpAddr, time::Duration};

use domain::{Code, Problem, Timestamp, id::PublisherId, people::EmailAddress};
use persistence::{Context, Growth, StoreError};

use crate::Service;

/// Wrong passwords and codes for one address.
const FOR_ADDRESS: Growth = Growth {
    free: 5,
    first: Duration::from_secs(2),
    most: Duration::from_mins(5),
    forgets_after: Duration::from_hours(1),
};
/// Wrong passwords and codes from one network.
const FROM_NETWORK: Growth = Growth {
    free: 20,
    first: Duration::from_secs(2),
    most: Duration::from_mins(15),
    forgets_after: Duration::from_hours(1),
};
/// Mails to one address: three in a quarter of an hour.
const MAILS_TO: Growth = Growth {
    free: 2,
    first: Duration::from_mins(15),
    most: Duration::from_mins(15),
    forgets_after: Duration::from_mins(15),
};
/// Mails that one network asks for: twenty an hour.
const MAILS_FROM: Growth = Growth {
    free: 19,
    first: Duration::from_hours(1),
    most: Duration::from_hours(1),
    forgets_after: Duration::from_hours(1),
};

/// Invitations of one publisher, mailed for the first time or again: fifty an hour.
const INVITATIONS_OF: Growth = Growth {
    free: 49,
    first: Duration::from_mins(5),
    most: Duration::from_hours(1),
    forgets_after: Duration::from_hours(1),
};
/// Sign-ins by passkey or elsewhere that one network begins.
const BEGUN_FROM: Growth = Growth {
    free: 60,
    first: Duration::from_secs(10),
    most: Duration::from_mins(5),
    forgets_after: Duration::from_mins(30),
};

/// What is counted, and how it grows.
pub(crate) type Counted = ([u8; 32], Growth);

/// The network of a client: an IPv4 address, or the /64 of an IPv6 one. A text that is no address
/// is a network of its own.
fn network_of(context: &Context) -> String {
    let text = context.address.as_deref().unwrap_or_default();
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}")
        }
        _ => text.to_owned(),
    }
}

impl Service {
    pub(crate) fn failures_for(&self, address: &EmailAddress) -> Counted {
        let key = self.keyed("failures-for", &[address.as_str().as_bytes()]);
        (key, FOR_ADDRESS)
    }

    pub(crate) fn failures_from(&self, context: &Context) -> Counted {
        let key = self.keyed("failures-from", &[network_of(context).as_bytes()]);
        (key, FROM_NETWORK)
    }

    pub(crate) fn failures_of_device(&self, device: &str) -> Counted {
        (
            self.keyed("failures-of-device", &[device.as_bytes()]),
            FOR_ADDRESS,
        )
    }

    /// Mails of one kind to an address: whoever asks for many of one kind keeps no other away.
    pub(crate) fn mails_to(&self, address: &EmailAddress, kind: &str) -> Counted {
        let parts = [address.as_str().as_bytes(), kind.as_bytes()];
        (self.keyed("mails-to", &parts), MAILS_TO)
    }

    pub(crate) fn invitations_of(&self, publisher: PublisherId) -> Counted {
        let key = self.keyed("invitations-of", &[publisher.to_string().as_bytes()]);
        (key, INVITATIONS_OF)
    }

    pub(crate) fn begun_from(&self, context: &Context) -> Counted {
        let key = self.keyed("begun-from", &[network_of(context).as_bytes()]);
        (key, BEGUN_FROM)
    }

    pub(crate) fn mails_from(&self, context: &Context) -> Counted {
        let key = self.keyed("mails-from", &[network_of(context).as_bytes()]);
        (key, MAILS_FROM)
    }

    /// Counts one more attempt, unless there were too many already.
    ///
    /// # Errors
    /// 429 `rate_limited` with the time to wait.
    pub(crate) async fn admit(&self, counted: &[Counted]) -> Result<(), StoreError> {
        match self.store.identity().admit(counted).await? {
            Some(until) => Err(too_often(until, self.store.now()).into()),
            None => Ok(()),
        }
    }

    /// The same for what is not told: whether it may go on.
    pub(crate) async fn admits(&self, counted: &[Counted]) -> Result<bool, StoreError> {
        Ok(self.store.identity().admit(counted).await?.is_none())
    }
}

fn too_often(until: Timestamp, now: Timestamp) -> Problem {
    let seconds = until.since(now).as_secs() + 1;
    let detail = "There were too many attempts. Wait a moment, then try again.";
    Problem::new(Code::RateLimited, detail).retry_after(seconds)
}
