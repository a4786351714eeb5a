//! Metrics for Prometheus, on a port of their own so that they are never public by accident.

use std::{io, time::Duration};

use domain::progress::Progress;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use poem::{Response, Route, Server, endpoint::make_sync, get, listener::TcpAcceptor};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Values};

/// The text format that Prometheus reads (exposition format 0.0.4).
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How often old samples are aggregated if nobody reads the metrics.
const UPKEEP: Duration = Duration::from_secs(5);
/// How often the progress of the parts of the process is measured.
const FOLLOW: Duration = Duration::from_secs(2);
/// The histogram bounds for durations in seconds: from a cached look-up to a slow consumer.
const SECONDS: [f64; 14] = [
    0.000_25, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0,
];

/// Binds the metrics port, unless it is turned off.
///
/// # Errors
/// The configured port can't be bound. If the default port can't be bound, a warning is logged.
pub async fn bind(config: &Config, values: &Values) -> Result<Option<TcpListener>, String> {
    let Some(address) = config.metrics_listen else {
        return Ok(None);
    };
    let asked_for = values.source("STATIONMASTER_METRICS_LISTEN").is_some();
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !asked_for && error.kind() == io::ErrorKind::AddrInUse => {
            tracing::warn!(%address, "Metrics are off, because the default port is in use. Set STATIONMASTER_METRICS_LISTEN to another one");
            Ok(None)
        }
        Err(error) => Err(format!(
            "can't serve metrics on {address}: {error}. Set STATIONMASTER_METRICS_LISTEN to a free address, or to nothing to turn metrics off"
        )),
    }
}

/// Starts recording metrics in this process. Call this once.
///
/// # Errors
/// A recorder is already installed.
pub fn record() -> Result<PrometheusHandle, String> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(|error| format!("metrics can't start: {error}"))?;
    metrics::gauge!("stationmaster_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

/// Aggregates the records, and serves them if there is a listener, until `shutdown`.
///
/// # Errors
/// The listener can't be used.
pub async fn serve(
    listener: Option<TcpListener>,
    handle: PrometheusHandle,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            handle.run_upkeep();
        }
    };
    let Some(listener) = listener else {
        tokio::select! {
            () = upkeep => {}
            () = shutdown.cancelled() => {}
        }
        return Ok(());
    };
    tracing::info!(address = %listener.local_addr()?, "Metrics are served");
    let render = {
        let handle = handle.clone();
        make_sync(move |_| {
            Response::builder()
                .content_type(CONTENT_TYPE)
                .body(handle.render())
        })
    };
    let app = Route::new().at("/metrics", get(render));
    let server = Server::new_with_acceptor(TcpAcceptor::from_tokio(listener)?)
        .run_with_graceful_shutdown(app, shutdown.cancelled(), Some(Duration::from_secs(1)));
    tokio::select! {
        () = upkeep => Ok(()),
        ended = server => ended,
    }
}

/// Records how long each part of the process has had work without progress, until `stop`.
pub async fn follow(progress: Progress, stop: CancellationToken) {
    loop {
        for (part, standing) in progress.standings() {
            let age = standing.age.as_secs_f64();
            metrics::gauge!("stationmaster_progress_age_seconds", "part" => part).set(age);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(FOLLOW) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::config::{Loaded, load};

    fn loaded(address: Option<&str>) -> Loaded {
        let given = address.map(|text| ("STATIONMASTER_METRICS_LISTEN".into(), text.into()));
        load(given, None).unwrap()
    }

    async fn bound(loaded: &Loaded) -> Result<Option<TcpListener>, String> {
        bind(&loaded.config, &loaded.values).await
    }

    #[tokio::test]
    async fn a_taken_port_fails_only_when_it_was_asked_for() {
        // Where this fails, another program has the port: taken either way.
        let _default = TcpListener::bind("127.0.0.1:9464").await;
        assert!(bound(&loaded(None)).await.unwrap().is_none());
        let wrong = bound(&loaded(Some("127.0.0.1:9464"))).await.unwrap_err();
        assert!(wrong.contains("STATIONMASTER_METRICS_LISTEN"), "{wrong}");
    }

    #[tokio::test]
    async fn nothing_is_served_when_it_is_set_to_nothing() {
        assert!(bound(&loaded(Some(""))).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn figures_are_served_until_the_end() {
        let listener = bound(&loaded(Some("127.0.0.1:0"))).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(Some(listener), record().unwrap(), shutdown.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.contains("stationmaster_build_info{version="),
            "{answer}"
        );
        shutdown.cancel();
        server.await.unwrap().unwrap();
    }
}
