//! SIGTERM and SIGINT. The first signal asks the process to finish. The second ends it at once, and
//! so does the end of the time limit.
//!
//! A thread of its own watches the signals, because the async runtime may hang.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The names of the work that has to end before the process.
#[derive(Clone, Debug, Default)]
pub struct Unfinished(Arc<Mutex<BTreeSet<&'static str>>>);

impl Unfinished {
    fn names(&self) -> MutexGuard<'_, BTreeSet<&'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `ends`, and lists it under `name` until then.
    pub async fn until<T>(&self, name: &'static str, ends: impl Future<Output = T>) -> T {
        self.names().insert(name);
        let ended = ends.await;
        self.names().remove(name);
        ended
    }

    /// The names of the work that has not ended, separated by commas.
    #[must_use]
    pub fn list(&self) -> String {
        let names: Vec<&str> = self.names().iter().copied().collect();
        names.join(", ")
    }
}

/// Watches the two signals. The first one cancels the returned token. The second one ends the
/// process with 128 plus the number of the signal, as a shell reports it. In both cases nothing
/// that was acknowledged is lost, because it was durable before.
///
/// # Errors
/// The system refuses to report signals.
pub fn watch() -> io::Result<CancellationToken> {
    begin(None)
}

/// Does the same as [`watch`], and ends the process with 1 if it has not ended by itself `limit`
/// after the first signal.
///
/// # Errors
/// The system refuses to report signals.
pub fn watch_within(limit: Duration, unfinished: Unfinished) -> io::Result<CancellationToken> {
    begin(Some((limit, unfinished)))
}

fn begin(end: Option<(Duration, Unfinished)>) -> io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let first = token.clone();
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let begun = builder.enable_all().build().and_then(|runtime| {
                let entered = runtime.enter();
                let both = (
                    signal(SignalKind::terminate())?,
                    signal(SignalKind::interrupt())?,
                );
                drop(entered);
                Ok((runtime, both))
            });
            match begun {
                Ok((runtime, (term, int))) => {
                    let _ = tell.send(Ok(()));
                    runtime.block_on(follow(term, int, first, end));
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        })?;
    let gone = |_| io::Error::other("the thread that watches signals has ended");
    told.recv().map_err(gone)??;
    Ok(token)
}

async fn follow(
    mut term: Signal,
    mut int: Signal,
    first: CancellationToken,
    end: Option<(Duration, Unfinished)>,
) {
    let (name, _) = next(&mut term, &mut int).await;
    tracing::info!(
        signal = name,
        "Stopping: finishing what is under way. A second signal stops at once"
    );
    first.cancel();
    let late = async {
        match &end {
            Some((limit, unfinished)) => {
                tokio::time::sleep(*limit).await;
                unfinished.list()
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        (name, number) = next(&mut term, &mut int) => {
            tracing::warn!(signal = name, "Stopped at once by a second signal");
            std::process::exit(128 + number);
        }
        unfinished = late => {
            tracing::error!(unfinished, "Stopped: this had not ended in time");
            std::process::exit(1);
        }
    }
}

async fn next(term: &mut Signal, int: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = term.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = int.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}
