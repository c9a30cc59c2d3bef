//! `finch feedback`: rating from scripts, and feedback as a list and as files.

use std::fs::File;
use std::io::{BufReader, stdin};
use std::path::Path;

use super::ground::Ground;
use super::{print, say};
use crate::adapter::active;
use crate::adapter::provenance::Provenance;
use crate::cli::{FeedbackCommand, LessonsCommand, RatingArgs};
use crate::error::{Context, Error, Result};
use crate::feedback::{Interaction, Kind, NewFeedback, Stars, exchange};
use crate::fsio;
use crate::paths::Paths;
use crate::repl::{render, render_lessons, render_stats, terminal, views};
use crate::session::record_feedback;
use crate::store::Store;
use crate::text;

pub fn run(ground: &Ground, command: FeedbackCommand) -> Result<()> {
    let store = ground.store()?;
    match command {
        FeedbackCommand::List { limit } => {
            print(&render_stats::feedback_list(&store.feedback_list(limit)?, terminal::columns()))
        }
        FeedbackCommand::Export { output } => export(&store, output.as_deref()),
        FeedbackCommand::Import { file } => import(ground, &store, &file),
        FeedbackCommand::Critical(rating) => rate(ground, &store, Kind::Critical, &rating),
        FeedbackCommand::Medium(rating) => rate(ground, &store, Kind::Medium, &rating),
        FeedbackCommand::Good(rating) => rate(ground, &store, Kind::Good, &rating),
        FeedbackCommand::Up(rating) => rate(ground, &store, Kind::ThumbsUp, &rating),
        FeedbackCommand::Down(rating) => rate(ground, &store, Kind::ThumbsDown, &rating),
        FeedbackCommand::Rate { stars, rating } => {
            let stars = Stars::new(stars).ok_or_else(|| Error::usage("the stars are a whole number from 1 to 5"))?;
            rate(ground, &store, Kind::Rating(stars), &rating)
        }
        FeedbackCommand::Correct { text, id } => {
            let text = text.join(" ");
            if text.trim().is_empty() {
                return Err(Error::usage("the better answer is missing").hint("finch feedback correct \"TEXT\""));
            }
            give(ground, &store, NewFeedback::correction(text, &ground.config.feedback.rules()), id)
        }
        FeedbackCommand::Undo => undo(ground, &store),
        FeedbackCommand::Lessons { action: None | Some(LessonsCommand::List) } => lessons(ground, &store),
        FeedbackCommand::Lessons { action: Some(LessonsCommand::Drop { number }) } => {
            let dropped = store.drop_lesson(number)?;
            say(&render_lessons::dropped(number, &dropped.text));
            Ok(())
        }
    }
}

fn rate(ground: &Ground, store: &Store, kind: Kind, rating: &RatingArgs) -> Result<()> {
    let mut new = NewFeedback::new(kind, &ground.config.feedback.rules());
    new.note = rating.note();
    give(ground, store, new, rating.id)
}

/// Puts feedback on an interaction, by default on the last one.
fn give(ground: &Ground, store: &Store, new: NewFeedback, id: Option<i64>) -> Result<()> {
    let interaction = find(store, id)?;
    let about = views::about(&interaction);
    let given = record_feedback(store, &ground.config.feedback.rules(), None, interaction, new)?;
    // A script sees no answer on a screen: what was rated is always said.
    say(&format!("On {}\n{}", render::quote(&about.prompt), render::recorded(&views::recorded(&given))));
    Ok(())
}

fn find(store: &Store, id: Option<i64>) -> Result<Interaction> {
    match id {
        Some(id) => store.interaction(id)?.ok_or_else(|| {
            Error::failure(format!("there is no interaction {id}"))
                .hint("`finch feedback list` shows those with feedback")
        }),
        None => store
            .last_interaction(None)?
            .ok_or_else(|| Error::failure("there is no answer to rate yet").hint("ask something first: finch \"…\"")),
    }
}

fn undo(ground: &Ground, store: &Store) -> Result<()> {
    let undone = store.undo_last(None)?.ok_or_else(|| Error::failure("there is no feedback to take back"))?;
    let base = undone.interaction.base.clone().unwrap_or_default();
    let set = store.training_set(&base, ground.config.feedback.buffer_capacity)?;
    say(&render::undone(&render::Undone {
        kind: undone.feedback.kind,
        about: views::about(&undone.interaction),
        buffer: views::figures(&set),
    }));
    Ok(())
}

fn lessons(ground: &Ground, store: &Store) -> Result<()> {
    // A model that is not there has no adapter.
    let live = match ground.base() {
        Ok(base) => active::read(&ground.paths, &base)?.live.map(|name| (name, base)),
        Err(_) => None,
    };
    let carries = match &live {
        Some((name, base)) => {
            let made = Provenance::read(&ground.paths.adapters().join(name))?;
            made.map(|made| made.carried_on(base).to_vec()).unwrap_or_default()
        }
        None => Vec::new(),
    };
    let adapter = live.as_ref().map(|(name, _)| (name.as_str(), carries.as_slice()));
    let off = ground.config.feedback.lesson_tokens == 0;
    let view = views::standing_lessons(store.lessons()?, adapter, off);
    print(&render_lessons::lessons(&view, "finch feedback lessons drop"))
}

fn export(store: &Store, output: Option<&Path>) -> Result<()> {
    let mut lines = String::new();
    let all = store.all_feedback()?;
    for (feedback, interaction) in &all {
        lines += &exchange::to_line(interaction, feedback);
        lines.push('\n');
    }
    match output {
        None => print(&lines),
        Some(path) => {
            fsio::write_atomic(path, lines.as_bytes()).with_context(|| Paths::display(path))?;
            say(&format!("{} written to {}\n", render::count(all.len(), "row"), Paths::display(path)));
            Ok(())
        }
    }
}

fn import(ground: &Ground, store: &Store, file: &Path) -> Result<()> {
    let rules = ground.config.feedback.rules();
    let (name, parsed) = if file == Path::new("-") {
        ("standard input".to_string(), exchange::read(&mut BufReader::new(stdin().lock()), &rules))
    } else {
        let name = Paths::display(file);
        let opened = File::open(file).with_context(|| name.clone())?;
        (name, exchange::read(&mut BufReader::new(opened), &rules))
    };
    let parsed = parsed.context(&name)?;
    for warning in render_stats::unknown_keys(&parsed) {
        say(&format!("warning: {name}: {}\n", text::sanitize(&warning)));
    }
    let done = store.import(&parsed.rows)?;
    say(&render_stats::imported(&done));
    Ok(())
}
