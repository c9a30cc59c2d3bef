//! How far a training is: a bar on a terminal, plain lines otherwise.

use std::io::stderr;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::commands::say;
use crate::learn::fit::Progress;
use crate::repl::{render, render_training, terminal};
use crate::train::run::StepReport;

/// Plain lines of a whole training, about.
const LINES: usize = 20;
/// Between plain lines of a training of unknown length, at least.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// What goes on after the last step.
pub const JUDGING: &str = "Judging the new adapter…";

/// How far a training of a known length is.
pub enum Bar {
    Terminal(ProgressBar),
    Lines { steps: usize, started: Instant },
}

impl Bar {
    pub fn start(steps: usize) -> Bar {
        if !terminal::is_capable(&stderr()) {
            return Bar::Lines { steps, started: Instant::now() };
        }
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} step {pos}/{len}, {msg}{elapsed}, {eta} left") {
            bar.set_style(style);
        }
        bar.tick();
        Bar::Terminal(bar)
    }

    pub fn step(&mut self, report: &StepReport) {
        let StepReport { step, loss, learning_rate, .. } = report;
        match self {
            Bar::Terminal(bar) => {
                bar.set_message(format!("loss {loss:.3}, "));
                bar.set_position(*step as u64);
            }
            Bar::Lines { steps, started } => {
                let every = steps.div_ceil(LINES).max(1);
                if step.is_multiple_of(every) || *step == 1 || step == steps {
                    let taken = render::duration(started.elapsed().as_secs_f64());
                    say(&format!("step {step}/{steps}, loss {loss:.3}, learning rate {learning_rate:.2e}, {taken}\n"));
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Bar::Terminal(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// How far a training is whose end is not known beforehand.
pub enum Spinner {
    Terminal(ProgressBar),
    Lines { last: Option<Instant> },
}

impl Spinner {
    pub fn start(doing: &'static str) -> Spinner {
        if !terminal::is_capable(&stderr()) {
            return Spinner::Lines { last: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::default_spinner()); // else it is a bar without an end, and shows no words
        bar.set_message(doing);
        bar.enable_steady_tick(Duration::from_millis(120));
        Spinner::Terminal(bar)
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match self {
            Spinner::Terminal(bar) => bar.suspend(|| say(&format!("{line}\n"))),
            Spinner::Lines { .. } => say(&format!("{line}\n")),
        }
    }

    /// What goes on now.
    pub fn doing(&self, what: &'static str) {
        match self {
            Spinner::Terminal(bar) => bar.set_message(what),
            Spinner::Lines { .. } => say(&format!("{what}\n")),
        }
    }

    /// What goes on for a moment: a log is spared it.
    pub fn glimpse(&self, what: String) {
        if let Spinner::Terminal(bar) = self {
            bar.set_message(what);
        }
    }

    pub fn progress(&mut self, progress: &Progress) {
        let line = render_training::progress(progress);
        match self {
            Spinner::Terminal(bar) => bar.set_message(line),
            Spinner::Lines { last } => {
                let epoch_ends = progress.batch == progress.batches;
                if epoch_ends && last.is_none_or(|last| last.elapsed() >= BETWEEN_LINES) {
                    *last = Some(Instant::now());
                    say(&format!("{line}\n"));
                }
            }
        }
    }

    pub fn end(self) {
        if let Spinner::Terminal(bar) = self {
            bar.finish_and_clear();
        }
    }
}
