//! `finch adapters`: what was learned, and what of it is live.

use std::io::IsTerminal;

use super::ground::Ground;
use super::{print, say};
use crate::adapter::registry::{Entry, Registry, State};
use crate::adapter::{active, switch};
use crate::cli::AdaptersCommand;
use crate::error::{Error, Result};
use crate::model::digest::DigestCache;
use crate::paths::Paths;
use crate::repl::render_training;
use crate::repl::{render, render_stats, terminal, views};
use crate::text;

pub fn run(ground: &Ground, command: AdaptersCommand) -> Result<()> {
    let paths = &ground.paths;
    let registry = Registry::new(paths.clone());
    match command {
        AdaptersCommand::List => print(&render_training::adapters(&views::adapters(paths)?, terminal::columns())),
        AdaptersCommand::Show { name } => {
            let entry = registry.find(&name)?;
            let live_on = active::bases_of(paths, &name)?;
            print(&show(&entry, &live_on))
        }
        AdaptersCommand::Load { name, force } => {
            let facts = ground.source()?.facts(&DigestCache::of(paths))?;
            let name = switch::load(paths, &name, &facts.config, &facts.digest, force)?;
            say(&render_training::switched(None, Some(&name)));
            Ok(())
        }
        AdaptersCommand::Unload => {
            let base = ground.base()?;
            let before = active::read(paths, &base)?;
            active::deactivate(paths, &base)?;
            say(&render_training::switched(before.live.as_deref(), None));
            Ok(())
        }
        AdaptersCommand::Delete { name, yes } => delete(paths, &registry, &name, yes),
        AdaptersCommand::Rollback { name } => {
            let (before, now) = switch::rollback(paths, &ground.base()?, name.as_deref())?;
            say(&render_training::switched(before.live.as_deref(), now.live.as_deref()));
            Ok(())
        }
    }
}

fn delete(paths: &Paths, registry: &Registry, name: &str, yes: bool) -> Result<()> {
    registry.find(name)?;
    let live = !active::bases_of(paths, name)?.is_empty();
    if live && !yes && !confirmed(name)? {
        return Err(Error::failure(format!("adapter {name} is kept")));
    }
    registry.delete(name)?;
    say(&render_training::deleted(name, live));
    Ok(())
}

/// Asks on a terminal; a script has to say --yes.
fn confirmed(name: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::failure(format!("adapter {name} is the active one")).hint("--yes deletes it all the same"));
    }
    eprint!("{} [y/N] ", render_training::delete_question(name));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn show(entry: &Entry, live_on: &[String]) -> String {
    let mut rows: Vec<(&str, String)> = vec![("name", entry.name.clone()), ("folder", Paths::display(&entry.path))];
    rows.extend(entry.created.map(|time| ("created", render_stats::local_time(time))));
    rows.extend(entry.rank.map(|rank| ("rank", rank.to_string())));
    rows.push(("size", render::bytes(entry.bytes)));
    if let Some(made) = &entry.provenance {
        rows.push(("model", made.model.clone()));
        rows.push(("base", made.base.clone()));
        rows.extend(made.run.map(|run| ("run", run.to_string())));
        rows.push(("examples", made.examples.to_string()));
        let loss = made.loss_before.zip(made.loss_after);
        rows.extend(loss.map(|(before, after)| ("loss", format!("{before:.2} → {after:.2}"))));
        rows.extend(made.seconds.map(|seconds| ("time taken", render::duration(seconds))));
        if let Some(parameters) = made.parameters.as_object().filter(|p| !p.is_empty()) {
            let listed: Vec<String> = parameters.iter().map(|(key, value)| format!("{key} {value}")).collect();
            rows.push(("parameters", listed.join(", ")));
        }
        if let Some(gate) = &made.gate {
            let verdict =
                if gate.passed { "passed".to_string() } else { format!("refused: {}", gate.reasons.join("; ")) };
            rows.push(("gate", verdict));
            if let Some(figures) = gate.measurements.as_object().filter(|m| !m.is_empty()) {
                let listed: Vec<String> = figures.iter().map(|(key, value)| format!("{key} {value}")).collect();
                rows.push(("measured", listed.join(", ")));
            }
        }
    } else {
        rows.push(("origin", "not trained by finch: its base and data are not known".to_string()));
    }
    if let State::Broken(reason) = &entry.state {
        rows.push(("broken", reason.clone()));
    }
    let live = live_on.iter().map(|base| format!("on base {}", render::short_digest(base))).collect::<Vec<_>>();
    rows.push(("live", if live.is_empty() { "no".to_string() } else { live.join(", ") }));
    rows.iter().map(|(what, value)| format!("{what:12}{}\n", text::one_line(value, 1000))).collect()
}
