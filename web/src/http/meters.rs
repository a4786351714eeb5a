//! Counters by route, method and class of status.
//!
//! Looking a counter up by its labels costs more than counting, so each combination is looked up
//! once. Labels come from the contract only: a caller can't make new ones.

use std::{sync::OnceLock, time::Duration};

use metrics::{Counter, Histogram};
use poem::http::Method;

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "PATCH", "DELETE", "other"];
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

type Row = [[Meter; CLASSES.len()]; METHODS.len()];

/// The meters of every route of the contract, and one row for everything else.
pub(super) struct Meters(Vec<Row>);

/// One combination.
#[derive(Default)]
pub(super) struct Meter(OnceLock<(Counter, Histogram)>);

impl Meters {
    pub(super) fn new(routes: usize) -> Self {
        Self((0..=routes).map(|_| Row::default()).collect())
    }

    /// The meter of a route (`None`: anything outside of the contract).
    pub(super) fn of(&self, route: Option<usize>, method: &Method, status: u16) -> &Meter {
        let last = self.0.len() - 1;
        let row = &self.0[route.map_or(last, |index| index.min(last))];
        &row[method_index(method)][class_index(status)]
    }
}

impl Meter {
    pub(super) fn record(&self, route: &str, method: &Method, status: u16, took: Duration) {
        let (requests, seconds) = self.0.get_or_init(|| {
            let route = route.to_owned();
            let method = METHODS[method_index(method)];
            let class = CLASSES[class_index(status)];
            (
                metrics::counter!(
                    "http_requests_total",
                    "route" => route.clone(), "method" => method, "status" => class
                ),
                metrics::histogram!(
                    "http_request_duration_seconds",
                    "route" => route, "method" => method, "status" => class
                ),
            )
        });
        requests.increment(1);
        seconds.record(took);
    }
}

fn method_index(method: &Method) -> usize {
    let other = METHODS.len() - 1;
    METHODS[..other]
        .iter()
        .position(|name| *name == method.as_str())
        .unwrap_or(other)
}

fn class_index(status: u16) -> usize {
    usize::from(status / 100).clamp(2, 5) - 2
}
