//! Better answers before a training that no chat stands around: made and recorded where the configuration asks for no word
//! on them; what waits on is counted, with what to do about it.

use std::sync::Arc;

use super::screen::Spinner;
use crate::commands::ground::Ground;
use crate::commands::say;
use crate::config::Revise;
use crate::engine::CancelFlag;
use crate::error::Result;
use crate::feedback::example::WaitReason;
use crate::feedback::revision::Case;
use crate::model::load::Model;
use crate::repl::{render, render_revision, views};
use crate::session::{Reviser, Taken};
use crate::store::Store;

/// Makes what is to be made, and says what still waits.
///
/// Errors: interrupted once `cancel` is set, with all that was recorded until then on disk; the model or the disk failed.
pub fn settle(ground: &Ground, store: &Arc<Store>, model: &Model, cancel: &CancelFlag) -> Result<()> {
    let always = ground.config.feedback.revise == Revise::Always;
    let waiting = || store.training_set(&model.base, ground.config.feedback.buffer_capacity).map(|set| set.waiting);
    if always && !waiting()?.is_empty() {
        make(ground, store, model, cancel)?;
    }
    let mut waiting = waiting()?;
    waiting.retain(|waiting| waiting.reason == WaitReason::NoBetterAnswer);
    let noted = waiting.iter().filter(|waiting| waiting.feedback.note.is_some()).count();
    if let Some(line) = render_revision::waiting(waiting.len(), noted, always) {
        say(&line);
    }
    Ok(())
}

fn make(ground: &Ground, store: &Arc<Store>, model: &Model, cancel: &CancelFlag) -> Result<()> {
    let reviser = Reviser::alone(Arc::clone(store), ground.paths.clone(), ground.config.clone(), model.clone())?;
    let cases = reviser.undecided(cancel)?;
    if cases.is_empty() {
        return Ok(());
    }
    let spinner = Spinner::start("");
    spinner.say(render_revision::making(cases.len()).trim_end());
    let made = cases.iter().try_for_each(|case| take(&reviser, case, cancel, &spinner));
    spinner.end();
    made
}

fn take(reviser: &Reviser, case: &Case, cancel: &CancelFlag, spinner: &Spinner) -> Result<()> {
    let taken = reviser.take(case, cancel, &mut |stage| spinner.glimpse(render_revision::progress(stage)))?;
    let said = match taken {
        Taken::Recorded { text, weight } => {
            let recorded = render_revision::accepted_by_itself(case.note(), &text, weight, "`finch feedback undo`");
            format!("{}{recorded}", render::about(&views::about(&case.interaction)))
        }
        Taken::NonePassed(faults) => {
            render_revision::none_passed(&faults, reviser.notes_are_lessons(), Some(&case.interaction))
        }
        Taken::Settled => return Ok(()),
    };
    spinner.say(said.trim_end());
    Ok(())
}
