//! The upper limit for the HTTP measurements: the same HTTP stack with one constant JSON answer,
//! without middleware, routing or store. Prints `listening on …`.

use std::io::Write as _;

use poem::{Response, endpoint::make_sync, http::header};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use web::http::{ConnectionLimits, serve};

const BODY: &str = r#"{"id":"pub_01h455vb4pex5vsknk084sn02q","slug":"acme","status":"active"}"#;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(
        std::io::stdout(),
        "listening on http://{}",
        listener.local_addr()?
    )?;
    let app = make_sync(|_| {
        Response::builder()
            .header(header::CONTENT_TYPE, "application/json")
            .body(BODY)
    });
    serve(
        listener,
        app,
        ConnectionLimits::default(),
        CancellationToken::new(),
    )
    .await
}
