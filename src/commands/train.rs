//! `finch train`: on the collected feedback, or on a data set. Progress and outcome go to standard error.

mod buffer;
mod data;
mod keep;
mod revisions;
mod screen;

use std::sync::Arc;

#[cfg(unix)]
use tokio::signal::unix::{SignalKind, signal};

use super::ground::Ground;
use super::say;
use crate::cli::TrainArgs;
use crate::engine::CancelFlag;
use crate::error::{Context, Error, Kind, Result};
use crate::model::courtesy::Courtesy;
use crate::repl::interrupts::ctrl_c;

pub fn run(ground: &Ground, args: &TrainArgs) -> Result<()> {
    let (courtesy, cancel) = (Arc::new(Courtesy::default()), CancelFlag::new());
    let _interrupts = cancel_on_interrupt(Arc::clone(&courtesy), cancel.clone())?;
    match &args.data {
        Some(file) => data::run(ground, args, file, courtesy),
        None => buffer::run(ground, args, courtesy, &cancel),
    }
}

/// The gate's refusal, with its exit code.
fn refused(reasons: &[String]) -> Error {
    Error::new(Kind::Refused, format!("the gate refuses the adapter: {}", reasons.join("; ")))
        .hint("it is kept, and answers stay as they were")
}

/// Ctrl-C, and the system's request to end, cancel what is being written and the training, which then saves its best state;
/// a second one ends the process at once. The runtime that listens lives as long as the returned value.
fn cancel_on_interrupt(courtesy: Arc<Courtesy>, writing: CancelFlag) -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = built.context("cannot listen for Ctrl-C")?;
    let inside = runtime.enter();
    // Registered before anything begins: from here on an interruption finds somebody who listens.
    let mut ctrl_c = ctrl_c().context("cannot listen for Ctrl-C")?;
    #[cfg(unix)]
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for the end")?;
    let mut interruption = async move || {
        #[cfg(unix)]
        tokio::select! {
            _ = ctrl_c.recv() => {}
            _ = terminate.recv() => {}
        }
        #[cfg(not(unix))]
        ctrl_c.recv().await;
    };
    runtime.spawn(async move {
        interruption().await;
        say("\nStopping… (Ctrl-C again leaves at once)\n");
        writing.cancel();
        courtesy.cancel();
        interruption().await;
        // As after a kill: an adapter is complete or absent, and the run's examples stay new.
        std::process::exit(i32::from(Kind::Interrupted.exit_code()));
    });
    drop(inside);
    Ok(runtime)
}
