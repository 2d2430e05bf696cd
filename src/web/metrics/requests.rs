//! Counts of the service's own requests.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use crate::web::metrics::{Labels, Page};

/// Bounds of answer times, seconds.
const BOUNDS: [f64; 7] = [0.001, 0.01, 0.1, 0.5, 2.0, 10.0, 30.0];

/// What was answered since the process began. Labels have few values whatever clients send.
pub(in crate::web) struct Requests {
    count: Family<Labels, Counter<u64, AtomicU64>>,
    times: Family<Labels, Histogram, fn() -> Histogram>,
}

fn histogram() -> Histogram {
    Histogram::new(BOUNDS)
}

impl Default for Requests {
    fn default() -> Self {
        Self { count: Family::default(), times: Family::new_with_constructor(histogram) }
    }
}

impl Requests {
    /// `route`: the pattern of a path, not the path.
    pub fn count(&self, route: &str, method: &Method, status: StatusCode, took: Duration) {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            _ => "other",
        };
        let labels = vec![("route", route.to_owned()), ("method", method.to_owned()), ("status", status.as_u16().to_string())];
        self.count.get_or_create(&labels).inc();
        self.times.get_or_create(&Vec::new()).observe(took.as_secs_f64());
    }

    /// Adds them to a page.
    pub fn encode(&self, text: &mut String) {
        let mut page = Page::default();
        page.register("http_requests", "Answers of the API", &self.count);
        page.register("http_request_duration_seconds", "How long answers took", &self.times);
        text.push_str(&page.text());
    }
}
