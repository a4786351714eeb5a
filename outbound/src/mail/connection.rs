//! A connection to the mail server, encrypted before the library sees it.
//!
//! STARTTLS is done here. The library keeps what the server sent in clear behind its answer to
//! STARTTLS, and takes it for answers that came encrypted: somebody on the way could make a mail
//! look sent that the server never got. Here such bytes end the connection.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use lettre::transport::smtp::{
    client::{AsyncSmtpConnection, AsyncTokioStream},
    extension::ClientId,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader, ReadBuf,
    },
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{MailError, SmtpSettings, TlsMode, trouble, words_of_io};

/// How many bytes a line of an answer has at most; RFC 5321 §4.5.3.1.5 asks for 512.
const LINE_LEN_MAX: u64 = 4096;
/// How many lines an answer has at most.
const LINES_MAX: usize = 128;
/// What the library reads in place of the greeting, which came before STARTTLS.
const GREETING: &[u8] = b"220 encrypted\r\n";

/// Connects, encrypts as the settings say, and introduces this server.
pub(super) async fn open(
    settings: &SmtpSettings,
    site: &ClientId,
    tls: &Arc<ClientConfig>,
) -> Result<AsyncSmtpConnection, MailError> {
    let host = settings.host();
    let stream = TcpStream::connect((host.as_str(), settings.port())).await;
    let stream = stream.map_err(|error| failed("connecting", &error))?;
    let peer = stream.peer_addr();
    let peer = peer.map_err(|error| failed("connecting", &error))?;
    let stream: Box<dyn AsyncTokioStream> = match settings.tls() {
        TlsMode::Off => Box::new(SmtpStream::new(peer, b"", stream)),
        TlsMode::Implicit => Box::new(SmtpStream::new(
            peer,
            b"",
            encrypt(host, stream, tls).await?,
        )),
        TlsMode::StartTls => {
            let stream = start_tls(stream, site).await?;
            let stream = encrypt(host, stream, tls).await?;
            Box::new(SmtpStream::new(peer, GREETING, stream))
        }
    };
    let opening = AsyncSmtpConnection::connect_with_transport(stream, site);
    opening.await.map_err(|error| trouble("connecting", &error))
}

async fn encrypt(
    host: String,
    stream: TcpStream,
    tls: &Arc<ClientConfig>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, MailError> {
    let name = ServerName::try_from(host).map_err(|error| {
        MailError::Passing(format!(
            "connecting failed: no certificate can name the host: {error}"
        ))
    })?;
    let encrypting = TlsConnector::from(Arc::clone(tls)).connect(name, stream);
    encrypting
        .await
        .map_err(|error| failed("connecting", &error))
}

/// Everything up to the handshake. Nothing that the server says here counts after it (RFC 3207
/// §4.2).
async fn start_tls(stream: TcpStream, site: &ClientId) -> Result<TcpStream, MailError> {
    let mut stream = BufReader::new(stream);
    expect(&mut stream, 220, "connecting").await?;
    let extensions = ask(&mut stream, &format!("EHLO {site}\r\n"), 250, "connecting").await?;
    let offered = extensions
        .iter()
        .any(|line| line.trim().eq_ignore_ascii_case("STARTTLS"));
    if !offered {
        return Err(MailError::Passing(
            "the mail server does not offer STARTTLS, and nothing is sent without it".to_owned(),
        ));
    }
    ask(&mut stream, "STARTTLS\r\n", 220, "STARTTLS").await?;
    if !stream.buffer().is_empty() {
        return Err(MailError::Passing(
            "STARTTLS failed: something came in clear behind the answer".to_owned(),
        ));
    }
    Ok(stream.into_inner())
}

async fn ask(
    stream: &mut BufReader<TcpStream>,
    command: &str,
    code: u16,
    doing: &str,
) -> Result<Vec<String>, MailError> {
    let written = stream.get_mut().write_all(command.as_bytes()).await;
    written.map_err(|error| failed(doing, &error))?;
    expect(stream, code, doing).await
}

/// The lines of an answer with this code, without it.
async fn expect(
    stream: &mut BufReader<TcpStream>,
    code: u16,
    doing: &str,
) -> Result<Vec<String>, MailError> {
    let answer = answer(stream)
        .await
        .map_err(|error| failed(doing, &error))?;
    match answer {
        Some((found, lines)) if found == code => Ok(lines),
        Some((found, _)) => Err(MailError::Passing(format!(
            "{doing} failed: the mail server answered {found}"
        ))),
        None => Err(MailError::Passing(format!(
            "{doing} failed: the mail server broke off, or did not speak SMTP"
        ))),
    }
}

/// One answer: its code and its lines; `None` if it is none.
async fn answer(stream: &mut BufReader<TcpStream>) -> io::Result<Option<(u16, Vec<String>)>> {
    let mut lines = Vec::new();
    while lines.len() < LINES_MAX {
        let mut line = Vec::new();
        let mut limited = (&mut *stream).take(LINE_LEN_MAX);
        limited.read_until(b'\n', &mut line).await?;
        let text = String::from_utf8_lossy(&line);
        let Some((code, rest)) = text
            .strip_suffix('\n')
            .and_then(|line| line.split_at_checked(3))
        else {
            return Ok(None);
        };
        let Ok(code) = code.parse::<u16>() else {
            return Ok(None);
        };
        let more = rest.starts_with('-');
        lines.push(rest.chars().skip(1).collect());
        if !more {
            return Ok(Some((code, lines)));
        }
    }
    Ok(None)
}

fn failed(doing: &str, error: &io::Error) -> MailError {
    MailError::Passing(format!("{doing} failed: {}", words_of_io(error)))
}

/// A stream for the library, which expects a greeting first.
struct SmtpStream<S> {
    peer: SocketAddr,
    greeting: &'static [u8],
    stream: S,
}

impl<S> SmtpStream<S> {
    fn new(peer: SocketAddr, greeting: &'static [u8], stream: S) -> Self {
        Self {
            peer,
            greeting,
            stream,
        }
    }
}

impl<S> fmt::Debug for SmtpStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SmtpStream")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> AsyncTokioStream for SmtpStream<S> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SmtpStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.greeting.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let (now, later) = self
            .greeting
            .split_at(self.greeting.len().min(buffer.remaining()));
        buffer.put_slice(now);
        self.greeting = later;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SmtpStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
