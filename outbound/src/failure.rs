//! The ways in which a request can fail: a closed list that is safe to show to a publisher.

use std::error::Error;
use std::io;

use crate::guard::DestinationRefusal;

/// What a request was doing when its time ran out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Resolving the name, connecting, or the TLS handshake.
    Connect,
    /// Sending the request and waiting for the answer's status and headers.
    Headers,
    /// Reading the answer's body.
    Body,
}

/// Why no complete answer came. The list is closed; no variant contains bytes of an answer or an
/// address.
///
/// [`Failure::code`] is part of the contract; the message is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// The host name has no address, or one that may not be called; or no name server answered.
    #[error("the host's name does not lead to an address that may be called")]
    Dns,
    /// The guard refused the URL or the address in it. No connection was made.
    #[error("the destination was refused: {0}")]
    DestinationRefused(#[from] DestinationRefusal),
    /// No TCP connection could be made, or it broke before a request could be sent.
    #[error("no connection could be made")]
    Connect,
    /// The TLS handshake failed: untrusted, expired or wrong certificate, no common version.
    #[error("the TLS handshake failed (is the certificate valid for this name?)")]
    Tls,
    /// A deadline passed.
    #[error("the time ran out while {}", match .0 {
        Phase::Connect => "connecting",
        Phase::Headers => "waiting for an answer",
        Phase::Body => "reading the answer",
    })]
    Timeout(Phase),
    /// The peer broke off, or what it sent is not HTTP.
    #[error("the answer broke off or was not valid HTTP")]
    Protocol,
    /// This machine lacked a resource of its own (file descriptors, memory, local ports), or its
    /// resolver did not work. Nothing is known about the receiver, so this is no failed attempt.
    #[error("this server lacks a resource of its own")]
    OwnShortage,
    /// The request can't be sent: it has a header that is malformed or belongs to the connection.
    #[error("the request has a header that can't be sent")]
    RequestInvalid,
}

impl Failure {
    /// The stable code for attempts, problems and metrics.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::DestinationRefused(_) => "destination_refused",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Timeout(_) => "timeout",
            Self::Protocol => "protocol",
            Self::OwnShortage => "own_shortage",
            Self::RequestInvalid => "request_invalid",
        }
    }

    /// The reason, if the guard refused the destination.
    #[must_use]
    pub const fn refusal(self) -> Option<DestinationRefusal> {
        match self {
            Self::DestinationRefused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Classifies an error of the HTTP library. `connecting` says that it came while connecting.
    pub(crate) fn of(error: &(dyn Error + 'static), connecting: bool) -> Self {
        if let Some(failure) = find::<Self>(error) {
            return *failure;
        }
        // Only while connecting, when nothing was sent yet.
        if connecting && is_own_shortage(error) {
            return Self::OwnShortage;
        }
        if find::<rustls::Error>(error).is_some() {
            return Self::Tls;
        }
        if connecting && find::<io::Error>(error).is_some_and(is_time_out) {
            Self::Timeout(Phase::Connect)
        } else if connecting {
            Self::Connect
        } else {
            Self::Protocol
        }
    }
}

/// The error numbers of a shortage: no file descriptor (`EMFILE`, `ENFILE`), no memory (`ENOMEM`,
/// `ENOBUFS`), no local port (`EADDRNOTAVAIL`).
#[cfg(target_os = "linux")]
const SHORTAGES: [i32; 5] = [24, 23, 12, 105, 99];
#[cfg(not(target_os = "linux"))]
const SHORTAGES: [i32; 5] = [24, 23, 12, 55, 49];

/// Whether an error of the operating system is a shortage.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .is_some_and(|code| SHORTAGES.contains(&code))
        || error.kind() == io::ErrorKind::OutOfMemory
}

fn is_time_out(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut
}

/// Whether the error or any of its causes is a shortage.
fn is_own_shortage(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        let system = error.downcast_ref::<io::Error>();
        if system.is_some_and(is_shortage) {
            return true;
        }
        next = system
            .and_then(io::Error::get_ref)
            .map(|payload| payload as &(dyn Error + 'static))
            .or_else(|| error.source());
    }
    false
}

/// The first error of type `T` among the error and its causes, including the payloads of I/O
/// errors, which are not in the source chain.
pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let payload = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match payload {
            Some(payload) => Some(payload),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_shortage_is_found_however_deep_it_lies() {
        let emfile = || io::Error::from_raw_os_error(SHORTAGES[0]);
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        assert!(is_own_shortage(&emfile()));
        assert!(is_own_shortage(&Outer(emfile())));
        assert!(is_own_shortage(&io::Error::other(Outer(emfile()))));
        assert!(!is_own_shortage(&Outer(refused())));
        assert!(!is_own_shortage(&io::Error::other(Outer(refused()))));
    }
}
