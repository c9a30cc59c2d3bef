//! The subcommands: each file carries one out. Results go to standard output, everything else to standard error.

mod adapters;
mod bench;
mod chat;
mod config;
mod feedback;
mod ground;
mod models;
mod score;
mod stats;
mod train;

use std::io::{ErrorKind, Write};

use crate::cli::{Command, Invocation};
use crate::error::{Error, Result};
use crate::repl::terminal::tell as say; // what was done: no result
use ground::Ground;

/// Carries out what finch was started for.
pub fn run(invocation: Invocation) -> Result<()> {
    match invocation {
        Invocation::Help(text) => print(&text),
        Invocation::Chat { prompt, model, args } => {
            let mut overrides = args.overrides();
            overrides.extend(model.overrides());
            chat::run(Ground::open(&overrides)?, prompt, *args)
        }
        Invocation::Command { command, model } => {
            let mut overrides = model.overrides();
            if let Command::Train(args) = &command {
                overrides.extend(args.overrides());
            }
            match command {
                Command::Config(command) => config::run(command),
                Command::Stats => stats::run(&Ground::open(&overrides)?),
                Command::Feedback(command) => feedback::run(&Ground::open(&overrides)?, command),
                Command::Models(command) => models::run(&Ground::open(&overrides)?, command),
                Command::Adapters(command) => adapters::run(&Ground::open(&overrides)?, command),
                Command::Score(args) => score::run(&Ground::open(&overrides)?, &args),
                Command::Bench(args) => bench::run(&Ground::open(&overrides)?, &args),
                Command::Train(args) => train::run(&Ground::open(&overrides)?, &args),
            }
        }
    }
}

/// Writes a result to standard output. A reader that has seen enough (`| head`) is no fault.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::from(error).context("standard output")),
        _ => Ok(()),
    }
}
