//! What Prometheus reads: names, meaning and units of `docs/reference/metrics.md`.
//!
//! Counters begin at zero with the process, as the field does it; gauges say what the last look and the journal know. Times are given as
//! moments (`_timestamp_seconds`), so that an age is right whenever it is asked for.

pub(super) mod ledger;
pub(super) mod look;
mod requests;

pub(super) use requests::Requests;

use std::sync::atomic::AtomicU64;

use chrono::{DateTime, Utc};
use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Label names and values.
pub(super) type Labels = Vec<(&'static str, String)>;

/// A gauge for each set of labels.
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;

/// One answer in the making.
#[derive(Default)]
struct Page(Registry);

impl Page {
    fn gauges(&mut self, name: &str, help: &str) -> Gauges {
        let family = Gauges::default();
        self.0.register(format!("lifeboat_{name}"), help, family.clone());
        family
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.gauges(name, help).get_or_create(&Vec::new()).set(value);
    }

    /// A family that lives longer than the page.
    fn register<M, C>(&mut self, name: &str, help: &str, family: &Family<Labels, M, C>)
    where
        M: EncodeMetric + TypedMetric + Send + Sync + std::fmt::Debug + 'static,
        C: MetricConstructor<M> + Clone + Send + Sync + std::fmt::Debug + 'static,
        Family<Labels, M, C>: EncodeMetric + Clone,
    {
        self.0.register(format!("lifeboat_{name}"), help, family.clone());
    }

    fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail; what is there when it does is still a page.
        let _ = prometheus_client::encoding::prometheus_text::encode(&mut text, &self.0);
        text
    }
}

/// Bounds of run times, seconds: from a small file to a large database over night.
const RUN_BOUNDS: [f64; 12] = [0.5, 2.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 10800.0, 28800.0, 86400.0];

fn set(gauges: &Gauges, labels: Labels, value: Option<f64>) {
    if let Some(value) = value {
        gauges.get_or_create(&labels).set(value);
    }
}

/// Seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "microseconds of centuries fit")]
fn moment(at: DateTime<Utc>) -> f64 {
    at.timestamp_micros() as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a float of Prometheus is one of 64 bits")]
fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(ms: u64) -> f64 {
    float(ms) / 1e3
}

fn of_plan(plan: &str) -> Labels {
    vec![("plan", plan.to_owned())]
}
