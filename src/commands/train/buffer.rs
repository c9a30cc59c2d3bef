//! `finch train` without a data set: one round over the store's buffer, from its examples to the live adapter.

use std::sync::Arc;

use super::revisions;
use super::screen::{JUDGING, Spinner};
use crate::cli::TrainArgs;
use crate::commands::ground::Ground;
use crate::commands::say;
use crate::engine::CancelFlag;
use crate::error::{Error, Result};
use crate::learn::round::{self, Ended, Event, Receipt, Round, default_threads};
use crate::model::courtesy::Courtesy;
use crate::model::digest::DigestCache;
use crate::model::load::Model;
use crate::repl::{render, render_training};
use crate::text;

/// `cancel` is set when `courtesy` is cancelled: it stops what the model writes before the training.
pub fn run(ground: &Ground, args: &TrainArgs, courtesy: Arc<Courtesy>, cancel: &CancelFlag) -> Result<()> {
    let mut config = ground.config.clone();
    if args.all {
        config.feedback.buffer_capacity = usize::MAX;
    }
    let store = Arc::new(ground.store()?);
    let model = Model::load(&ground.source()?, &DigestCache::of(&ground.paths))?;
    // Said before better answers are made: that may take minutes.
    if let Some(holder) = round::trainer(&ground.paths)? {
        return Err(holder.into());
    }
    revisions::settle(ground, &store, &model, cancel).inspect_err(|error| {
        if error.is_interrupted() {
            say(render_training::STOPPED_BEFORE);
        }
    })?;
    let round = Round {
        store: &store,
        paths: &ground.paths,
        config: &config,
        model: &model,
        need: usize::from(!args.all),
        keep_interrupted: true,
        threads: default_threads(),
        courtesy,
    };
    let mut spinner = Spinner::start("Preparing…");
    let ended = round.run(&mut |event| match event {
        Event::Started { examples, skipped, .. } => {
            spinner.say(&format!("Training on {}", render::count(examples, "example")));
            for row in skipped {
                spinner.say(&format!("warning: {} and is left out", text::sanitize(&row.to_string())));
            }
        }
        Event::Progress(progress) => spinner.progress(&progress),
        Event::Judging => spinner.doing(JUDGING),
    });
    spinner.end();
    tell(ended?)
}

/// Says how the round ended; the error carries the exit code.
fn tell(ended: Ended) -> Result<()> {
    match ended {
        Ended::Nothing { examples: 0, .. } => say(render_training::NOTHING_TO_TRAIN),
        Ended::Nothing { .. } => say(render_training::NOTHING_NEW),
        Ended::Busy(holder) => return Err(holder.into()),
        Ended::Live(receipt) => {
            say(&format!("✓ Training completed!\n{}", render_training::trained_on(&receipt)));
            warn(&receipt);
            say(&render_training::receipt(&receipt));
        }
        Ended::Refused(receipt) => {
            let trained = render_training::trained_on(&receipt);
            say(&format!("✗ Training completed, but the new adapter is not used\n{trained}"));
            warn(&receipt);
            return Err(super::refused(&receipt.reasons));
        }
        Ended::Cancelled { examples, kept } => {
            say(&render_training::cancelled(examples));
            if let Some(receipt) = kept {
                say(&format!(
                    "{}   It is not live; `finch adapters load {}` makes it so.\n",
                    render_training::trained_on(&receipt),
                    receipt.adapter
                ));
            }
            return Err(Error::interrupted());
        }
    }
    Ok(())
}

fn warn(receipt: &Receipt) {
    for warning in &receipt.warnings {
        say(&format!("warning: {}\n", text::sanitize(warning)));
    }
}
