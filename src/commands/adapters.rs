//! `finch adapters`: what was learned, and what of it is live.

use std::io::IsTerminal;
use std::path::Path;

use super::ground::Ground;
use super::{print, say};
use crate::adapter::export::{self, Format};
use crate::adapter::registry::Registry;
use crate::adapter::switch::Opened;
use crate::adapter::{active, switch};
use crate::cli::AdaptersCommand;
use crate::error::{Error, Result};
use crate::model::digest::DigestCache;
use crate::paths::Paths;
use crate::repl::{render_adapter, render_training, terminal, views};

pub fn run(ground: &Ground, command: AdaptersCommand) -> Result<()> {
    let paths = &ground.paths;
    let registry = Registry::new(paths.clone());
    match command {
        AdaptersCommand::List => print(&render_training::adapters(&views::adapters(paths)?, terminal::columns())),
        AdaptersCommand::Show { name } => {
            let entry = registry.find(&name)?;
            print(&render_adapter::adapter(&entry, &active::bases_of(paths, &name)?))
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
        AdaptersCommand::Import { folder, name, load, force } => import(ground, &folder, name.as_deref(), load, force),
        AdaptersCommand::Export { name, out, format } => export_to(ground, &name, format, &out),
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

/// Takes a folder in; live only where that was asked for.
fn import(ground: &Ground, folder: &Path, name: Option<&str>, load: bool, force: bool) -> Result<()> {
    let paths = &ground.paths;
    let facts = ground.source()?.facts(&DigestCache::of(paths))?;
    let imported = switch::import(paths, folder, name, &facts.config, &facts.digest, force)?;
    say(&render_adapter::imported(&imported, (!load).then_some("finch adapters load")));
    if load {
        let name = switch::load(paths, &imported.name, &facts.config, &facts.digest, force)?;
        say(&render_training::switched(None, Some(&name)));
    }
    Ok(())
}

fn export_to(ground: &Ground, what: &str, format: Format, out: &Path) -> Result<()> {
    let facts = ground.source()?.facts(&DigestCache::of(&ground.paths))?;
    let Opened { folder, adapter, foreign } = switch::open(&ground.paths, what, &facts.config, &facts.digest)?;
    if foreign {
        say("warning: the adapter was trained on another base than the model that is configured; its shapes fit\n");
    }
    export::export(&folder, &adapter, &facts.config, format, out)?;
    say(&render_adapter::exported(what, out, adapter.weights.modules.len()));
    Ok(())
}
