//! How far a training is: a bar on a terminal, plain lines otherwise.

use std::io::{IsTerminal, stderr};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::repl::render;
use crate::train::run::StepReport;

/// Plain lines of a whole training, about.
const LINES: usize = 20;

pub enum Screen {
    Bar(ProgressBar),
    Lines { steps: usize, started: Instant },
}

impl Screen {
    pub fn start(steps: usize) -> Screen {
        if !stderr().is_terminal() {
            return Screen::Lines { steps, started: Instant::now() };
        }
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:30} step {pos}/{len}, {msg}{elapsed}, {eta} left") {
            bar.set_style(style);
        }
        bar.tick();
        Screen::Bar(bar)
    }

    pub fn step(&mut self, report: &StepReport) {
        let StepReport { step, loss, learning_rate, .. } = report;
        match self {
            Screen::Bar(bar) => {
                bar.set_message(format!("loss {loss:.3}, "));
                bar.set_position(*step as u64);
            }
            Screen::Lines { steps, started } => {
                let every = steps.div_ceil(LINES).max(1);
                if step.is_multiple_of(every) || *step == 1 || step == steps {
                    let taken = render::duration(started.elapsed().as_secs_f64());
                    eprintln!("step {step}/{steps}, loss {loss:.3}, learning rate {learning_rate:.2e}, {taken}");
                }
            }
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Screen::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
