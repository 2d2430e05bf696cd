//! Listens to a run for the journal: its phases with their time and bytes, and its warnings. Each phase is a span of the run's trace.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::Status;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::daemon::journal::Phase;
use crate::event::{Event, Progress};

/// More warnings than this are counted, not kept.
const WARNINGS_KEPT: usize = 100;

/// Hands every event on, and keeps what the journal wants to know.
pub struct Recorder {
    next: Arc<dyn Progress>,
    /// The run's own span.
    run: Span,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    last_event: Option<Instant>,
    current: Option<(Instant, Phase, Span)>,
    phases: Vec<Phase>,
    warnings: Vec<String>,
    more_warnings: usize,
}

impl Seen {
    fn end_phase(&mut self) {
        if let Some((since, mut phase, span)) = self.current.take() {
            phase.duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            span.record("bytes", phase.bytes);
            self.phases.push(phase);
        }
    }
}

impl Recorder {
    /// `next` gets every event too. Phases belong to the span that this thread is in.
    #[must_use]
    pub fn new(next: Arc<dyn Progress>) -> Self {
        Self { next, run: Span::current(), seen: Mutex::new(Seen { last_event: Some(Instant::now()), ..Seen::default() }) }
    }

    /// For how long nothing has been heard of the run.
    #[must_use]
    pub fn silent_for(&self) -> Duration {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last_event.map_or(Duration::ZERO, |last| last.elapsed())
    }

    /// The name of the current phase.
    #[must_use]
    pub fn current_phase(&self) -> Option<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).current.as_ref().map(|(_, phase, _)| phase.name.clone())
    }

    /// The trace shows where a run failed, and why.
    pub fn failed(&self, why: &str) {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let phase = seen.current.as_ref().map(|(_, _, span)| span);
        for span in phase.into_iter().chain([&self.run]) {
            span.set_status(Status::error(why.to_owned()));
        }
    }

    /// Phases and warnings so far; the current phase ends now.
    #[must_use]
    pub fn finish(&self) -> (Vec<Phase>, Vec<String>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.end_phase();
        let mut warnings = std::mem::take(&mut seen.warnings);
        if seen.more_warnings > 0 {
            warnings.push(format!("… and {} more", seen.more_warnings));
        }
        (std::mem::take(&mut seen.phases), warnings)
    }
}

impl Progress for Recorder {
    fn event(&self, event: Event) {
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.last_event = Some(Instant::now());
            match &event {
                // The same again goes on: it is one phase.
                Event::Phase { name, .. } if seen.current.as_ref().is_some_and(|(_, phase, _)| phase.name == *name) => {}
                Event::Phase { name, .. } => {
                    seen.end_phase();
                    // Never entered: it is in no log line, and threads come and go within it.
                    let span = tracing::info_span!(parent: &self.run, "phase", otel.name = *name, bytes = Empty);
                    seen.current = Some((Instant::now(), Phase { name: (*name).to_owned(), duration_ms: 0, bytes: 0 }, span));
                }
                Event::Advance { bytes, .. } => {
                    if let Some((_, phase, _)) = seen.current.as_mut() {
                        phase.bytes += bytes;
                    }
                }
                Event::Warning { message } if seen.warnings.len() < WARNINGS_KEPT => seen.warnings.push(message.clone()),
                Event::Warning { .. } => seen.more_warnings += 1,
                Event::Total { .. } => {}
            }
        }
        self.next.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Silent;

    #[test]
    fn phases_and_warnings_are_kept() {
        let recorder = Recorder::new(Arc::new(Silent));
        recorder.event(Event::Phase { name: "read", detail: String::new() });
        recorder.event(Event::Advance { bytes: 3, items: 1 });
        recorder.event(Event::Advance { bytes: 4, items: 1 });
        recorder.event(Event::Phase { name: "commit", detail: "crm".into() });
        recorder.event(Event::Phase { name: "commit", detail: String::new() });
        for i in 0..150 {
            recorder.event(Event::Warning { message: format!("w{i}") });
        }
        let (phases, warnings) = recorder.finish();
        assert_eq!(phases.iter().map(|phase| (phase.name.as_str(), phase.bytes)).collect::<Vec<_>>(), [("read", 7), ("commit", 0)]);
        assert_eq!((warnings.len(), warnings.last().unwrap().as_str()), (101, "… and 50 more"));
    }
}
