//! Answers to what is no HTTP request: hyper refuses it by itself, with a status alone. Callers
//! get a problem instead, like from every other refusal.
//!
//! hyper offers no hook for that. So the connection is looked at where it is written: what hyper
//! writes while no answer of ours is on its way, and none was since it last wrote, is its own. That
//! rule, and not the look of the bytes, keeps an answer's body from passing for a refusal.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use domain::{Code, Problem};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use super::{last_answer::last_answer, open::State};

/// How long a refused connection is read on, for nothing. One that is closed with bytes unread is
/// reset, and the refusal may be lost with it (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(1);

/// A connection whose refusals of what is no request are problems.
pub(super) struct Explained<S> {
    inner: S,
    state: Arc<State>,
    /// How many requests had begun or been answered when hyper last wrote.
    steps: u64,
    /// Whether hyper has written something that the peer has not taken yet.
    unwritten: bool,
    /// What goes out in place of a refusal, and how much of it has.
    instead: Option<(Vec<u8>, usize)>,
    /// The end of reading on, once something was refused.
    linger: Option<Pin<Box<Sleep>>>,
}

impl<S> Explained<S> {
    pub(super) fn new(inner: S, state: &Arc<State>) -> Self {
        Self {
            inner,
            state: Arc::clone(state),
            steps: 0,
            unwritten: false,
            instead: None,
            linger: None,
        }
    }

    /// What to write instead of these bytes, if they are a refusal of hyper's own.
    fn instead_of(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let before = std::mem::replace(&mut self.steps, self.state.steps());
        let own = self.unwritten || self.state.is_under_way() || before != self.steps;
        let code = if own { None } else { refusal(bytes) };
        code.map(answer)
    }
}

/// Which problem hyper's refusal is about, if these bytes are one.
fn refusal(bytes: &[u8]) -> Option<Code> {
    let head = bytes.strip_prefix(b"HTTP/1.1 ")?;
    if !head.ends_with(b"\r\n\r\n") {
        return None;
    }
    match head.get(..3)? {
        b"400" => Some(Code::MalformedRequest),
        b"414" | b"431" => Some(Code::HeadTooLarge),
        _ => None,
    }
}

/// The whole answer, after which the connection is closed.
fn answer(code: Code) -> Vec<u8> {
    let detail = match code {
        Code::HeadTooLarge => "A request's head takes at most 16 KiB and 100 header fields.",
        _ => "The head of the request can't be read as HTTP/1.1.",
    };
    metrics::counter!("http_malformed_requests_total").increment(1);
    last_answer(&Problem::new(code, detail), &[])
}

impl<S: AsyncRead + Unpin> AsyncRead for Explained<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Explained<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.instead.is_none() {
            this.instead = this.instead_of(bytes).map(|answer| (answer, 0));
        }
        let Some((answer, done)) = &mut this.instead else {
            let outcome = Pin::new(&mut this.inner).poll_write(context, bytes);
            this.unwritten = !matches!(outcome, Poll::Ready(Ok(count)) if count == bytes.len());
            return outcome;
        };
        while *done < answer.len() {
            let part = &answer[*done..];
            let count = ready!(Pin::new(&mut this.inner).poll_write(context, part))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *done += count;
        }
        this.instead = None;
        this.linger = Some(Box::pin(sleep(LINGER)));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.inner).poll_shutdown(context))?;
        let Some(linger) = &mut this.linger else {
            return Poll::Ready(Ok(()));
        };
        while linger.as_mut().poll(context).is_pending() {
            let mut space = [0; 4096];
            let mut unread = ReadBuf::new(&mut space);
            let read = ready!(Pin::new(&mut this.inner).poll_read(context, &mut unread));
            if read.is_err() || unread.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}
