//! The finch program: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser;

use finch::cli::Cli;
use finch::commands;
use finch::error::Error;
use finch::repl::{render, terminal};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and version come this way too, with exit code 0. A closed pipe is no fault of theirs.
            let _ = answer.print();
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(2));
        }
    };
    match cli.resolve().and_then(commands::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn report(error: &Error) -> ExitCode {
    if !error.is_interrupted() {
        terminal::tell(&render::error(error.message(), error.hint_text()));
    }
    ExitCode::from(error.kind().exit_code())
}
