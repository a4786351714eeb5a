//! Names to addresses, with the guard between the answer and the connector.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{
    LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use reqwest::dns::{Addrs, Resolve, Resolving};

use crate::failure::Failure;
use crate::guard::Policy;

/// How many addresses of one name are tried at most; all of them are checked.
const ADDRESSES_TRIED_MAX: usize = 16;
/// One query, two tries: both fit into the connect deadline.
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_TRIES_MAX: usize = 2;
/// A moved endpoint is found again, and a new name seen, at the latest after these.
const POSITIVE_TTL_MAX: Duration = Duration::from_mins(5);
const NEGATIVE_TTL_MAX: Duration = Duration::from_secs(10);
/// Queries in flight to one name server; beyond it look-ups fail instead of waiting.
const QUERIES_IN_FLIGHT_MAX: usize = 1024;

/// A name without an answer: absent, or no name server reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name could not be resolved")]
pub struct ResolveFailed;

/// What [`Resolver::addresses`] returns: all addresses of the name, in order of preference.
pub type Answer<'a> = Pin<Box<dyn Future<Output = Result<Vec<IpAddr>, ResolveFailed>> + Send + 'a>>;

/// The source of a name's addresses. A trait so that tests can answer as an attacker would.
pub trait Resolver: Send + Sync + 'static {
    /// Looks a name up; the name is lower-case ASCII, never an IP address.
    fn addresses<'a>(&'a self, name: &'a str) -> Answer<'a>;
}

/// The machine's resolver: `/etc/hosts` first, then the name servers of `/etc/resolv.conf`.
///
/// Both files are read once, at start. Names are taken as complete: the search list is not used,
/// so that a tenant's one-word name can't reach into the operator's domain. Without a usable
/// `resolv.conf` the name server on this machine is asked, as resolv.conf(5) says.
pub struct SystemResolver {
    hosts: Hosts,
    /// `None` only when the library refuses its configuration; then `/etc/hosts` alone answers.
    dns: Option<TokioResolver>,
}

impl SystemResolver {
    /// Reads the machine's configuration. Never fails: what is missing is logged and done without.
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
    // Both families, so that the guard sees every address the name has.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // Asked above, for both families at once.
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(POSITIVE_TTL_MAX);
    options.negative_max_ttl = Some(NEGATIVE_TTL_MAX);
    options.max_active_requests = QUERIES_IN_FLIGHT_MAX;
    builder.build()
}

impl Resolver for SystemResolver {
    fn addresses<'a>(&'a self, name: &'a str) -> Answer<'a> {
        Box::pin(async move {
            let mut name = Name::from_ascii(name).map_err(|_| ResolveFailed)?;
            name.set_fqdn(true);
            let fixed = self.in_hosts_file(&name);
            if !fixed.is_empty() {
                return Ok(fixed);
            }
            let dns = self.dns.as_ref().ok_or(ResolveFailed)?;
            let answer = dns.lookup_ip(name).await.map_err(|error| {
                tracing::debug!(%error, "A name could not be resolved");
                ResolveFailed
            })?;
            Ok(answer.iter().collect())
        })
    }
}

impl fmt::Debug for SystemResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SystemResolver").finish_non_exhaustive()
    }
}

/// The connector's resolver. What it returns is what is connected to, so the check can't be
/// separated from the use by a second look-up.
pub(crate) struct Guarded {
    pub(crate) policy: Arc<Policy>,
    pub(crate) inner: Arc<dyn Resolver>,
}

impl Resolve for Guarded {
    fn resolve(&self, name: reqwest::dns::Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let addresses = checked(&policy, inner.as_ref(), name.as_str()).await?;
            // Port 0 is replaced by the URL's.
            let sockets = addresses
                .into_iter()
                .take(ADDRESSES_TRIED_MAX)
                .map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}

/// All addresses of a name, or a failure when there is none or **any** of them is refused: a name
/// that mixes public and inner addresses is an attack or a mistake, never a webhook receiver.
async fn checked(
    policy: &Policy,
    resolver: &dyn Resolver,
    name: &str,
) -> Result<Vec<IpAddr>, Failure> {
    let addresses = resolver
        .addresses(name)
        .await
        .map_err(|ResolveFailed| Failure::Dns)?;
    if addresses.is_empty() {
        return Err(Failure::Dns);
    }
    for address in &addresses {
        policy.check_address(*address)?;
    }
    Ok(addresses)
}
