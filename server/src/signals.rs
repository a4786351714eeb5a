//! SIGTERM and SIGINT: the first asks the process to finish, the second ends it at once.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Watches for the two signals. The token is cancelled by the first of them; the second ends the
/// process with 128 plus its number, as a shell reports it. Nothing that was acknowledged is lost
/// either way: it was durable before.
///
/// # Errors
/// The system refuses to report signals.
pub fn watch() -> io::Result<CancellationToken> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let first = token.clone();
    tokio::spawn(async move {
        let (name, _) = next(&mut term, &mut int).await;
        tracing::info!(
            signal = name,
            "Stopping: finishing what is under way. A second signal stops at once"
        );
        first.cancel();
        let (name, number) = next(&mut term, &mut int).await;
        tracing::warn!(signal = name, "Stopped at once by a second signal");
        std::process::exit(128 + number);
    });
    Ok(token)
}

async fn next(term: &mut Signal, int: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = term.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = int.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}
