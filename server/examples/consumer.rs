//! The receiver of `scripts/bench webhooks`: hyper on one thread, so that it does not limit the
//! measurement. Prints `listening on …`.
//!
//! `POST /NAME…` is a delivery. Its time is recorded, and it is answered with 204, or after 30 s if
//! the path begins with `/hang`. `GET /count` returns how many arrived, and when the first and the
//! last did (microseconds of the wall clock). `GET /arrivals` returns a line
//! `NAME webhook-id microseconds` for each, and removes them. `POST /-/forget` removes all.

use std::{
    cell::RefCell,
    convert::Infallible,
    fmt::Write as _,
    io::Write as _,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::HeaderValue,
    server::conn::http1::Builder, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::LocalSet};

/// How long a delivery to `/hang…` waits for its answer.
const HANG: Duration = Duration::from_secs(30);

/// The deliveries that arrived.
#[derive(Default)]
struct Log {
    count: u64,
    first: u128,
    last: u128,
    /// The path, the event, and the time.
    arrivals: Vec<(Box<str>, Option<HeaderValue>, u128)>,
}

impl Log {
    #[expect(
        clippy::disallowed_methods,
        reason = "the load, another process, reads the same clock"
    )]
    fn note(&mut self, path: &str, id: Option<HeaderValue>) {
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_micros());
        if self.count == 0 {
            self.first = at;
        }
        self.count += 1;
        self.last = at;
        self.arrivals.push((path.into(), id, at));
    }

    fn lines(&mut self) -> String {
        let mut text = String::new();
        for (path, id, at) in std::mem::take(&mut self.arrivals) {
            let id = id.as_ref().and_then(|id| id.to_str().ok());
            // Writing to a string can't fail.
            let _ = writeln!(
                text,
                "{} {} {at}",
                path.trim_start_matches('/'),
                id.unwrap_or("-")
            );
        }
        text
    }
}

async fn answer(
    log: Rc<RefCell<Log>>,
    mut request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let text = |text: String| Ok(Response::new(Full::new(text.into())));
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/count") => {
            let log = log.borrow();
            return text(format!(
                r#"{{"count":{},"first":{},"last":{}}}"#,
                log.count, log.first, log.last
            ));
        }
        (&Method::GET, _) => return text(log.borrow_mut().lines()),
        (_, "/-/forget") => *log.borrow_mut() = Log::default(),
        _ => {
            let id = request.headers_mut().remove("webhook-id");
            let path = request.uri().path();
            log.borrow_mut().note(path, id);
            let hangs = path.starts_with("/hang");
            // The body is read to its end, or the connection could not be used again.
            while let Some(Ok(_)) = request.frame().await {}
            if hangs {
                tokio::time::sleep(HANG).await;
            }
        }
    }
    let mut done = Response::new(Full::default());
    *done.status_mut() = StatusCode::NO_CONTENT;
    Ok(done)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(
        std::io::stdout(),
        "listening on http://{}",
        listener.local_addr()?
    )?;
    let log = Rc::new(RefCell::new(Log::default()));
    LocalSet::new()
        .run_until(async move {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let log = Rc::clone(&log);
                let service = service_fn(move |request| answer(Rc::clone(&log), request));
                tokio::task::spawn_local(
                    Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        })
        .await
}
