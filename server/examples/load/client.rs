//! A connection to the server that is kept open.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::Outcome;

/// A connection that is kept open, with one token.
pub(crate) struct Client {
    address: String,
    authorization: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub(crate) async fn connect(address: &str, token: &str) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self {
            address: address.to_owned(),
            authorization: format!("Bearer {token}"),
            sender,
        })
    }

    /// Sends a POST request, and returns the body of a 2xx answer.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        claim: Option<&str>,
        body: Bytes,
    ) -> Outcome<Bytes> {
        let mut request = Request::post(path)
            .header("host", &self.address)
            .header("authorization", &self.authorization)
            .header("content-type", "application/json");
        if let Some(claim) = claim {
            request = request.header("x-stationmaster-claim", claim);
        }
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.body(Full::new(body))?);
        let answer = answer.await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        if status.is_success() {
            Ok(body)
        } else {
            Err(format!("{path}: {status}: {}", String::from_utf8_lossy(&body)).into())
        }
    }
}
