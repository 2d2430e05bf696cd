//! How progress looks: a bar on a terminal, one line per phase otherwise, or JSON lines. Always on stderr.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::cli::args::ProgressMode;
use crate::cli::output::note;
use crate::cli::render;
use crate::event::{Event, Progress, Silent};

/// JSON lines and phase lines for one phase come at most this often; every phase has a first and a last one.
const INTERVAL: Duration = Duration::from_millis(500);

/// The listener for a mode. `operation` is the first word of text lines; the first line is out before this returns.
#[must_use]
pub fn listener(mode: ProgressMode, quiet: bool, operation: &str) -> Arc<dyn Progress> {
    if quiet {
        return Arc::new(Silent);
    }
    match mode {
        ProgressMode::None => Arc::new(Silent),
        ProgressMode::Json => Arc::new(JsonLines::new(operation)),
        ProgressMode::Tty => Arc::new(Bar::new(operation)),
        ProgressMode::Auto if std::io::stderr().is_terminal() => Arc::new(Bar::new(operation)),
        ProgressMode::Auto => Arc::new(PhaseLines::new(operation)),
    }
}

/// For commands that are over in a moment: what they are warned of, and nothing else.
pub struct Warnings;

impl Progress for Warnings {
    fn event(&self, event: Event) {
        if let Event::Warning { message } = event {
            note(&format!("warning: {message}"));
        }
    }
}

/// What is known of the current phase.
struct Phase {
    name: &'static str,
    detail: String,
    since: Instant,
    total_bytes: u64,
    total_items: u64,
    bytes: u64,
    items: u64,
    shown: Instant,
}

impl Phase {
    fn new(name: &'static str, detail: String) -> Self {
        let now = Instant::now();
        Self { name, detail, since: now, total_bytes: 0, total_items: 0, bytes: 0, items: 0, shown: now }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Plain bytes a second since the phase began.
    fn rate(&self) -> u64 {
        let ms = self.elapsed_ms().max(1);
        u64::try_from(u128::from(self.bytes) * 1000 / u128::from(ms)).unwrap_or(u64::MAX)
    }

    /// Milliseconds to go at this rate; `None` when that cannot be told.
    fn left_ms(&self) -> Option<u64> {
        let rate = self.rate();
        (rate > 0 && self.total_bytes > 0).then(|| {
            let left = u128::from(self.total_bytes.saturating_sub(self.bytes)) * 1000 / u128::from(rate);
            u64::try_from(left).unwrap_or(u64::MAX)
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn line(text: &str) {
    // One write a line, so that lines of several threads do not mix.
    let _ = std::io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

/// One line when a phase begins, one with figures when it ends if it took a while.
struct PhaseLines {
    operation: String,
    phase: Mutex<Option<Phase>>,
}

impl PhaseLines {
    fn new(operation: &str) -> Self {
        line(&format!("{operation}: starting"));
        Self { operation: operation.to_owned(), phase: Mutex::new(None) }
    }

    fn finished(&self, phase: &Phase) {
        if phase.bytes > 0 {
            line(&format!(
                "{}: {}: {} in {} ({}/s)",
                self.operation,
                phase.name,
                render::bytes(phase.bytes),
                render::duration_ms(phase.elapsed_ms()),
                render::bytes(phase.rate())
            ));
        }
    }
}

impl Progress for PhaseLines {
    fn event(&self, event: Event) {
        let mut current = lock(&self.phase);
        match event {
            Event::Phase { name, detail } => {
                if let Some(phase) = current.take() {
                    self.finished(&phase);
                }
                let detail_text = if detail.is_empty() { String::new() } else { format!(" {detail}") };
                line(&format!("{}: {name}{detail_text}", self.operation));
                *current = Some(Phase::new(name, detail));
            }
            Event::Total { bytes, items } => {
                if let Some(phase) = current.as_mut() {
                    (phase.total_bytes, phase.total_items) = (bytes, items);
                }
            }
            Event::Advance { bytes, items } => {
                if let Some(phase) = current.as_mut() {
                    phase.bytes += bytes;
                    phase.items += items;
                }
            }
            Event::Warning { message } => line(&format!("{}: warning: {message}", self.operation)),
        }
    }
}

impl Drop for PhaseLines {
    fn drop(&mut self) {
        if let Some(phase) = lock(&self.phase).take() {
            self.finished(&phase);
        }
    }
}

/// One JSON object a line: `operation`, `event` (`start`, `phase`, `progress`, `warning`, `end`), and figures with units.
struct JsonLines {
    operation: String,
    phase: Mutex<Option<Phase>>,
}

impl JsonLines {
    fn new(operation: &str) -> Self {
        line(&json!({ "operation": operation, "event": "start" }).to_string());
        Self { operation: operation.to_owned(), phase: Mutex::new(None) }
    }

    fn progress(&self, phase: &Phase) {
        line(
            &json!({
                "operation": self.operation, "event": "progress", "phase": phase.name, "bytes": phase.bytes, "bytes_total": phase.total_bytes,
                "items": phase.items, "items_total": phase.total_items, "elapsed_ms": phase.elapsed_ms(),
                "bytes_per_second": phase.rate(), "left_ms": phase.left_ms(),
            })
            .to_string(),
        );
    }
}

impl Progress for JsonLines {
    fn event(&self, event: Event) {
        let mut current = lock(&self.phase);
        match event {
            Event::Phase { name, detail } => {
                if let Some(phase) = current.take() {
                    self.progress(&phase);
                }
                line(&json!({ "operation": self.operation, "event": "phase", "phase": name, "detail": detail }).to_string());
                *current = Some(Phase::new(name, detail));
            }
            Event::Total { bytes, items } => {
                if let Some(phase) = current.as_mut() {
                    (phase.total_bytes, phase.total_items) = (bytes, items);
                }
            }
            Event::Advance { bytes, items } => {
                if let Some(phase) = current.as_mut() {
                    phase.bytes += bytes;
                    phase.items += items;
                    if phase.shown.elapsed() >= INTERVAL {
                        phase.shown = Instant::now();
                        self.progress(phase);
                    }
                }
            }
            Event::Warning { message } => line(&json!({ "operation": self.operation, "event": "warning", "message": message }).to_string()),
        }
    }
}

impl Drop for JsonLines {
    fn drop(&mut self) {
        if let Some(phase) = lock(&self.phase).take() {
            self.progress(&phase);
        }
        line(&json!({ "operation": self.operation, "event": "end" }).to_string());
    }
}

/// A bar with bytes, rate and time left; a spinner while the total is unknown.
struct Bar {
    shown: ProgressBar,
    operation: String,
    phase: Mutex<Option<Phase>>,
}

impl Bar {
    fn new(operation: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        bar.set_style(style("{spinner} {msg}"));
        bar.set_message(operation.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { shown: bar, operation: operation.to_owned(), phase: Mutex::new(None) }
    }

    fn message(&self, phase: &Phase) -> String {
        if phase.detail.is_empty() {
            format!("{}: {}", self.operation, phase.name)
        } else {
            format!("{}: {} {}", self.operation, phase.name, phase.detail)
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are literals of this file; a mistake in one shows the default style.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bar {
    fn event(&self, event: Event) {
        let mut current = lock(&self.phase);
        match event {
            Event::Phase { name, detail } => {
                if let Some(phase) = current.take()
                    && phase.bytes > 0
                {
                    self.shown.println(format!(
                        "{}: {} in {}",
                        self.message(&phase),
                        render::bytes(phase.bytes),
                        render::duration_ms(phase.elapsed_ms())
                    ));
                }
                let phase = Phase::new(name, detail);
                self.shown.set_style(style("{spinner} {msg} {bytes}"));
                self.shown.unset_length();
                self.shown.set_position(0);
                self.shown.reset_eta();
                self.shown.set_message(self.message(&phase));
                *current = Some(phase);
            }
            Event::Total { bytes, items } => {
                if let Some(phase) = current.as_mut() {
                    (phase.total_bytes, phase.total_items) = (bytes, items);
                }
                if bytes > 0 {
                    self.shown.set_style(style("{spinner} {msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left"));
                    self.shown.set_length(bytes);
                }
            }
            Event::Advance { bytes, items } => {
                if let Some(phase) = current.as_mut() {
                    phase.bytes += bytes;
                    phase.items += items;
                }
                self.shown.inc(bytes);
            }
            Event::Warning { message } => self.shown.println(format!("{}: warning: {message}", self.operation)),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.shown.finish_and_clear();
    }
}
