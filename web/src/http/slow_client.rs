//! Whether a peer takes what is written to it. One that does not would keep its connection, and
//! whatever the answer holds, for as long as it likes, and a shutdown waiting.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Since when a peer has taken nothing of what it was to take.
#[derive(Clone, Default)]
pub(super) struct Stalled(Arc<Mutex<Option<Instant>>>);

impl Stalled {
    fn note<T>(&self, outcome: &Poll<T>) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if outcome.is_pending() {
            since.get_or_insert_with(Instant::now);
        } else {
            *since = None;
        }
    }

    /// Whether the peer has yet to take something.
    pub(super) fn is_stalled(&self) -> bool {
        let since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some()
    }

    /// Ends once the peer has taken nothing for so long.
    pub(super) async fn for_long(&self, limit: Duration) {
        loop {
            let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match since {
                Some(since) if since.elapsed() >= limit => return,
                Some(since) => tokio::time::sleep_until(since + limit).await,
                None => tokio::time::sleep(limit).await,
            }
        }
    }
}

/// A connection that notes when its peer takes nothing.
pub(super) struct Watched<S> {
    inner: S,
    stalled: Stalled,
}

impl<S> Watched<S> {
    pub(super) fn new(inner: S) -> (Self, Stalled) {
        let stalled = Stalled::default();
        let watched = Self {
            inner,
            stalled: stalled.clone(),
        };
        (watched, stalled)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.stalled.note(&outcome);
        outcome
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(context, parts);
        self.stalled.note(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_noticed_and_one_that_takes_its_time_is_not() {
        let (near, mut far) = tokio::io::duplex(4);
        let (mut near, stalled) = Watched::new(near);
        let quiet = tokio::time::timeout(3 * LIMIT, stalled.for_long(LIMIT));
        assert!(quiet.await.is_err(), "nothing is to be taken");
        let writing = tokio::spawn(async move { near.write_all(&[7; 60]).await });
        let slow = async {
            for _ in 0..14 {
                tokio::time::sleep(LIMIT / 4).await;
                let mut some = [0; 4];
                far.read_exact(&mut some).await.unwrap();
            }
        };
        tokio::select! {
            () = slow => {}
            () = stalled.for_long(2 * LIMIT) => panic!("it takes something all the time"),
        }
        tokio::time::timeout(5 * LIMIT, writing)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let (near, _far) = tokio::io::duplex(4);
        let (mut near, stalled) = Watched::new(near);
        tokio::spawn(async move { near.write_all(&[7; 60]).await });
        let noticed = tokio::time::timeout(5 * LIMIT, stalled.for_long(LIMIT));
        noticed.await.unwrap();
    }
}
