//! What the process says of itself: the log on stderr, and traces to an OpenTelemetry collector where one is named.
//!
//! A run is a trace, a phase a span of it. Traces are sent in batches by a thread of their own; a collector that is away costs spans, never
//! a run and no time of one: the queue is bounded, and what does not fit is dropped.

use std::future::Future;
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::cli::args::{Global, LogFormat};
use crate::error::{Context, Kind, Result};

/// Where traces go: the variables of the OpenTelemetry specification (OTLP exporter configuration). Without one of them there are none.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// What sending one batch may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// What is waited for at the end for the last batch.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Holds what must be finished before the process ends.
pub struct Telemetry {
    provider: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts both; called once, before anything is worth telling. Returns also why there are no traces although somebody wants them: that
    /// must stop nobody's restore.
    #[must_use]
    pub fn start(global: &Global, daemon: bool, runtime: &tokio::runtime::Handle) -> (Self, Option<crate::error::Error>) {
        let wanted = ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
        let (provider, failed) = match wanted.then(|| provider(runtime)).transpose() {
            Ok(provider) => (provider, None),
            Err(error) => (None, Some(error)),
        };
        let traces = provider.as_ref().map(|provider| {
            tracing_opentelemetry::layer()
                .with_tracer(provider.tracer("lifeboat"))
                .with_location(false)
                .with_threads(false)
                // Runs and their phases; other crates' spans are of no use to an operator, and may hold anything.
                .with_filter(filter_fn(|metadata| metadata.is_span() && metadata.target().starts_with("lifeboat")))
        });
        Registry::default().with(traces).with(log(global, daemon)).init();
        (Self { provider }, failed)
    }

    /// Sends what is left, for a moment.
    pub fn finish(self) {
        if let Some(provider) = self.provider
            && let Err(error) = provider.shutdown_with_timeout(FLUSH_TIMEOUT)
        {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Logs go to stderr. `LIFEBOAT_LOG` (as in tracing's `EnvFilter`) wins over `-v` and `-q`.
fn log<S>(global: &Global, daemon: bool) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let level = match (global.quiet, global.verbose, daemon) {
        (true, _, true) => "error",
        // What fails is told by `error:` once.
        (_, 0, false) => "off",
        (_, 0, true) | (_, 1, _) => "info",
        (_, 2, _) => "debug",
        _ => "trace",
    };
    // Other crates log URLs and headers at their lower levels: only their warnings are let through.
    let filter = std::env::var("LIFEBOAT_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(if level == "off" { "off".to_owned() } else { format!("warn,lifeboat={level}") }));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(colour);
    match global.log_format {
        LogFormat::Text => layer.with_target(false).with_filter(filter).boxed(),
        LogFormat::Json => layer.json().with_current_span(true).with_span_list(false).with_filter(filter).boxed(),
    }
}

fn provider(runtime: &tokio::runtime::Handle) -> Result<SdkTracerProvider> {
    let http = reqwest::Client::builder()
        .timeout(SEND_TIMEOUT)
        .build()
        .context(Kind::Failed, || "make the HTTP client of the traces".to_owned())?;
    let client = Client { http, runtime: runtime.clone(), failing: Arc::default() };
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(client)
        .build()
        .context(Kind::Usage, || "understand where traces go (OTEL_EXPORTER_OTLP_…)".to_owned())?;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut resource = Resource::builder()
        .with_attributes([KeyValue::new("service.version", env!("CARGO_PKG_VERSION")), KeyValue::new("host.name", host)]);
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name("lifeboat");
    }
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build())
}

/// Sends from the runtime's threads: the one that makes batches belongs to no runtime.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: tokio::runtime::Handle,
    /// A collector that is away is told of once.
    failing: Arc<AtomicBool>,
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move { HttpClient::send_bytes(&http, request).await });
        let failing = Arc::clone(&self.failing);
        Box::pin(async move {
            let answer = match sent.await {
                Ok(answer) => answer,
                Err(error) => Err(error.into()),
            };
            let trouble = match &answer {
                Ok(response) if response.status().is_success() => None,
                Ok(response) => Some(format!("the collector answers {}", response.status())),
                Err(error) => Some(innermost(error.as_ref())),
            };
            match (trouble, failing.load(Ordering::Relaxed)) {
                (Some(why), false) => {
                    failing.store(true, Ordering::Relaxed);
                    tracing::warn!(why, "traces cannot be sent; they are dropped until the collector is there");
                }
                (None, true) => {
                    failing.store(false, Ordering::Relaxed);
                    tracing::info!("traces are sent again");
                }
                _ => {}
            }
            answer
        })
    }
}

/// The cause at the bottom; those above it may hold the address with what was put into it.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
