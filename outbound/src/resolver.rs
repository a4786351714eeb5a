//! Resolves names to addresses, and checks each address before a connection is made to it.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use hyper_util::client::legacy::connect::dns;
use tokio::time::Instant;
use tower_service::Service;

use crate::failure::{Failure, is_shortage};
use crate::guard::Policy;

/// How many addresses of a name are tried at most. All addresses are checked.
const ADDRESSES_TRIED_MAX: usize = 16;
/// The time limit of one query, and the number of tries; both fit into the connect deadline.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_TRIES_MAX: usize = 2;
/// How long an answer is cached at most, and how long it is cached at most that a name has none.
const POSITIVE_TTL_MAX: Duration = Duration::from_mins(5);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(10);
/// Most queries under way to one name server. Further queries fail instead of waiting.
const QUERIES_IN_FLIGHT_MAX: usize = 1024;

/// How long to wait for the other family of addresses once one is known (RFC 8305 §3). A request
/// succeeds even if a name server never answers one of the two queries.
const GRACE: Duration = Duration::from_millis(250);

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveFailed {
    /// The name does not exist, or no name server answered.
    #[error("the name could not be resolved")]
    NoAnswer,
    /// No name server was asked: this machine had no file descriptor left, or too many queries.
    #[error("the name could not be asked for")]
    OwnShortage,
}

/// What [`Resolver::addresses`] returns: all addresses of the name, in order of preference.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveFailed>> + Send + 'a>>;

/// Looks up the addresses of names. A trait, so that tests can answer as an attacker would.
pub trait Resolver: Send + Sync + 'static {
    /// Looks a name up; the name is lower-case ASCII, never an IP address.
    fn addresses<'a>(&'a self, name: &'a str) -> Answer<'a>;
}

/// The machine's resolver: `/etc/hosts` first, then the name servers of `/etc/resolv.conf`.
///
/// Both files are read once, when this is created. The search list is not used, so that a tenant's
/// one-word name can't lead into the operator's domain. Without a usable `resolv.conf`, the name
/// server on this machine is asked, as resolv.conf(5) says.
pub struct SystemResolver {
    hosts: Hosts,
    /// `None` if the library refuses its configuration; then only `/etc/hosts` is used.
    dns: Option<TokioResolver>,
}

impl SystemResolver {
    /// Reads the machine's configuration. Never fails: parts that can't be read are logged and left
    /// out.
    #[must_use]
    pub fn new() -> Self {
        let hosts = Hosts::from_system().unwrap_or_else(|error| {
            tracing::warn!(%error, "The hosts file can't be read, so only DNS resolves names");
            Hosts::default()
        });
        let (config, options) =
            hickory_resolver::system_conf::read_system_conf().unwrap_or_else(|error| {
                tracing::warn!(%error, "No name server is configured, so the local one is asked");
                let local = NameServerConfig::udp_and_tcp(Ipv4Addr::LOCALHOST.into());
                let config = ResolverConfig::from_name_servers(vec![local]);
                (config, ResolverOpts::default())
            });
        let dns = build_dns(config, options)
            .inspect_err(|error| tracing::error!(%error, "DNS can't be used, only the hosts file"))
            .ok();
        Self { hosts, dns }
    }

    fn in_hosts_file(&self, name: &Name) -> Vec<IpAddr> {
        [RecordType::A, RecordType::AAAA]
            .into_iter()
            .filter_map(|kind| {
                let query = Query::query(name.clone(), kind);
                self.hosts.lookup_static_host(&query)
            })
            .flat_map(|found| {
                let answers = found.answers().iter();
                answers
                    .filter_map(|record| record.data.ip_addr())
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new()
    }
}

fn build_dns(config: ResolverConfig, system: ResolverOpts) -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    *options = system;
    options.timeout = options.timeout.min(QUERY_TIMEOUT);
    options.attempts = options.attempts.min(QUERY_TRIES_MAX);
    // Both families, so that the guard checks every address of the name.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // [`SystemResolver`] reads the hosts file itself, for both families at once.
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    options.max_active_requests = QUERIES_IN_FLIGHT_MAX;
    builder.build()
}

type Found = Result<Vec<IpAddr>, ResolveFailed>;

/// The addresses of one family.
async fn family(dns: &TokioResolver, name: Name, kind: RecordType) -> Found {
    match dns.lookup(name, kind).await {
        Ok(found) => {
            let records = found.answers().iter();
            Ok(records.filter_map(|one| one.data.ip_addr()).collect())
        }
        Err(error) if error.is_no_records_found() => Ok(Vec::new()),
        Err(error) => {
            tracing::debug!(%error, %kind, "A name could not be resolved");
            let own = match &error {
                NetError::Busy => true,
                NetError::Io(error) => is_shortage(error),
                _ => false,
            };
            Err(if own {
                ResolveFailed::OwnShortage
            } else {
                ResolveFailed::NoAnswer
            })
        }
    }
}

/// The addresses of both families, IPv4 first. If the answers are more than [`GRACE`] apart, those
/// of the later family are left out.
async fn both(four: impl Future<Output = Found>, six: impl Future<Output = Found>) -> Found {
    tokio::pin!(four, six);
    let (mut known_four, mut known_six): (Option<Found>, Option<Found>) = (None, None);
    let mut grace: Option<Instant> = None;
    loop {
        let until = grace;
        let over = async move {
            match until {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            found = &mut four, if known_four.is_none() => known_four = Some(found),
            found = &mut six, if known_six.is_none() => known_six = Some(found),
            () = over => break,
        }
        let known = [&known_four, &known_six].into_iter().flatten();
        let usable = known.filter(|found| found.as_ref().is_ok_and(|some| !some.is_empty()));
        if usable.count() > 0 {
            grace.get_or_insert_with(|| Instant::now() + GRACE);
        }
        if known_four.is_some() && known_six.is_some() {
            break;
        }
    }
    let mut all = Vec::new();
    let mut failed = None;
    for found in [known_four, known_six].into_iter().flatten() {
        match found {
            Ok(addresses) => all.extend(addresses),
            Err(ResolveFailed::OwnShortage) => failed = Some(ResolveFailed::OwnShortage),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if all.is_empty() {
        return Err(failed.unwrap_or(ResolveFailed::NoAnswer));
    }
    Ok(all)
}

impl Resolver for SystemResolver {
    fn addresses<'a>(&'a self, name: &'a str) -> Answer<'a> {
        Box::pin(async move {
            let mut name = Name::from_ascii(name).map_err(|_| ResolveFailed::NoAnswer)?;
            name.set_fqdn(true);
            let fixed = self.in_hosts_file(&name);
            if !fixed.is_empty() {
                return Ok(fixed);
            }
            let dns = self.dns.as_ref().ok_or(ResolveFailed::NoAnswer)?;
            let of = |kind| family(dns, name.clone(), kind);
            both(of(RecordType::A), of(RecordType::AAAA)).await
        })
    }
}

impl fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemResolver").finish_non_exhaustive()
    }
}

/// The connector's resolver. The connector connects to the addresses that this returns, so no
/// second look-up can give other addresses after the check.
#[derive(Clone)]
pub(crate) struct Guarded {
    pub(crate) policy: Arc<Policy>,
    pub(crate) inner: Arc<dyn Resolver>,
}

impl Service<dns::Name> for Guarded {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        let policy = Arc::clone(&self.policy);
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let addresses = checked(&policy, inner.as_ref(), name.as_str()).await?;
            // The connector replaces port 0 by that of the URL.
            let sockets: Vec<SocketAddr> = addresses
                .into_iter()
                .take(ADDRESSES_TRIED_MAX)
                .map(|address| SocketAddr::new(address, 0))
                .collect();
            Ok(sockets.into_iter())
        })
    }
}

/// All addresses of a name; an error if there is none, or if **any** is refused. A name with both
/// public and internal addresses is an attack or a mistake, never a webhook receiver.
///
/// Both cases give the same error. Different errors would show a publisher which names exist in the
/// operator's own network. The operator's log tells them apart.
async fn checked(
    policy: &Policy,
    resolver: &dyn Resolver,
    name: &str,
) -> Result<Vec<IpAddr>, Failure> {
    let addresses = resolver
        .addresses(name)
        .await
        .map_err(|failed| match failed {
            ResolveFailed::NoAnswer => Failure::Dns,
            ResolveFailed::OwnShortage => Failure::OwnShortage,
        })?;
    if addresses.is_empty() {
        return Err(Failure::Dns);
    }
    for address in &addresses {
        if let Err(refusal) = policy.check_address(*address) {
            tracing::debug!(name, %address, %refusal, "A name has an address that may not be called");
            return Err(Failure::Dns);
        }
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const SIX: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    async fn after(ms: u64, found: Found) -> Found {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        found
    }

    #[tokio::test]
    async fn a_family_that_never_answers_costs_a_moment() {
        let began = Instant::now();
        let found = both(after(10, Ok(vec![FOUR])), std::future::pending()).await;
        assert_eq!(found, Ok(vec![FOUR]));
        let took = began.elapsed();
        assert!(took >= GRACE, "{took:?}");
        let found = both(std::future::pending(), after(10, Ok(vec![SIX]))).await;
        assert_eq!(found, Ok(vec![SIX]));
    }

    #[tokio::test]
    async fn both_families_count_and_a_failure_only_where_there_is_nothing_else() {
        let (none, shortage) = (ResolveFailed::NoAnswer, ResolveFailed::OwnShortage);
        for (four, six, found) in [
            (Ok(vec![FOUR]), Ok(vec![SIX]), Ok(vec![FOUR, SIX])),
            (Ok(vec![]), Ok(vec![SIX]), Ok(vec![SIX])),
            (Ok(vec![FOUR]), Err(none), Ok(vec![FOUR])),
            (Ok(vec![]), Ok(vec![]), Err(none)),
            (Ok(vec![]), Err(shortage), Err(shortage)),
            (Err(none), Err(shortage), Err(shortage)),
        ] {
            assert_eq!(both(after(1, four), after(2, six)).await, found);
        }
    }
}
