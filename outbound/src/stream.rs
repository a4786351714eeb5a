//! Streamed answers, which the caller reads piece by piece.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use tokio::time::timeout;

use crate::{
    client::{Answering, Body, Client, Request, chunk, prepare},
    failure::{Failure, Phase},
    shortage,
};

/// An answer whose body is read as it arrives. Its `Debug` shows nothing of the body.
pub struct Incoming {
    /// The HTTP status.
    pub status: u16,
    /// `Content-Type` as sent.
    pub content_type: Option<String>,
    answer: Answering,
    silence_max: Duration,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Sends one request whose answer may be endless. The guard, and the deadline for the answer's
    /// headers, are those of [`Client::send`]. After the headers, at most `silence_max` may pass
    /// without a byte.
    ///
    /// # Errors
    /// [`Failure`], as for [`Client::send`].
    pub async fn open(&self, request: Request, silence_max: Duration) -> Result<Incoming, Failure> {
        let destination = self.policy().check_url(&request.url)?;
        let host = destination.host().to_owned();
        let headers_end = tokio::time::Instant::now() + self.headers_timeout(&request);
        let request = prepare(destination, request)?;
        let answer = self
            .head_of(request, false, headers_end)
            .await
            .inspect_err(|failure| {
                if *failure == Failure::OwnShortage {
                    shortage::tell(&host);
                }
            })?;
        let content_type = answer.headers().get(CONTENT_TYPE);
        Ok(Incoming {
            status: answer.status().as_u16(),
            content_type: content_type.and_then(|value| value.to_str().ok().map(str::to_owned)),
            answer,
            silence_max,
        })
    }
}

impl Incoming {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The answer broke off, or was silent for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        timeout(self.silence_max, chunk(&mut self.answer))
            .await
            .map_err(|_| Failure::Timeout(Phase::Body))?
    }

    /// The first `bytes` of what is left, for an answer that turned out to be short.
    ///
    /// # Errors
    /// The answer broke off, or took too long.
    pub async fn excerpt(mut self, bytes: usize) -> Result<Vec<u8>, Failure> {
        let mut body = Body::up_to(bytes);
        timeout(self.silence_max, body.read(&mut self.answer, bytes))
            .await
            .map_err(|_| Failure::Timeout(Phase::Body))??;
        Ok(body.kept)
    }
}
