//! Making an adapter live by name or by folder: checked against the base first, taken into the registry where it is not there.

use std::path::{Path, PathBuf};

use super::active::{self, Active};
use super::peft::{self, Adapter};
use super::provenance::Provenance;
use super::registry::{Imported, Registry};
use crate::error::{Context, Error, Result};
use crate::model::config::ModelConfig;
use crate::paths::Paths;
use crate::text;

/// Makes the adapter live on `base` and returns its name. `what`: a name in the registry, or a PEFT folder, which is copied
/// there. `force`: also one that was trained on another base, if its shapes fit.
///
/// Errors: unknown, broken, does not fit (the message names the tensor), trained on another base.
pub fn load(paths: &Paths, what: &str, model: &ModelConfig, base: &str, force: bool) -> Result<String> {
    let name = match folder(paths, what) {
        Some(folder) => import(paths, &folder, None, model, base, force)?.name,
        None => what.to_string(),
    };
    Registry::new(paths.clone()).open(&name, model, base, force)?;
    if force {
        active::activate_forced(paths, base, &name)?;
    } else {
        active::activate(paths, base, &name)?;
    }
    Ok(name)
}

/// Copies the PEFT folder `from` into the registry, as `name` where one is given, without making it live. `force`: also one
/// that was trained on another base, if its shapes fit.
///
/// Errors: as those of [`load`]; a name that is none or is taken.
pub fn import(
    paths: &Paths,
    from: &Path,
    name: Option<&str>,
    model: &ModelConfig,
    base: &str,
    force: bool,
) -> Result<Imported> {
    let folder = existing(from.to_path_buf())?;
    if let Some(made) =
        Provenance::read(&folder).with_context(|| Paths::display(&folder))?.filter(|m| m.base != base && !force)
    {
        return Err(Error::failure(format!(
            "the adapter was trained on another base ({}, {})",
            text::one_line(&made.model, 60),
            text::one_line(&made.base, 12)
        ))
        .hint("--model says which model it is for; --force takes it in for this one all the same"));
    }
    Registry::new(paths.clone()).import(&folder, name, model)
}

/// An adapter that was found by name or folder, and read for a base.
pub struct Opened {
    pub folder: PathBuf,
    pub adapter: Adapter,
    /// It was trained on another base.
    pub foreign: bool,
}

/// The adapter that `what` (a name in the registry, or a PEFT folder) means, read for a base without making it live.
///
/// Errors: unknown, broken, does not fit (the message names the tensor).
pub fn open(paths: &Paths, what: &str, model: &ModelConfig, base: &str) -> Result<Opened> {
    let folder = match folder(paths, what) {
        Some(folder) => existing(folder)?,
        None => Registry::new(paths.clone()).find(what)?.path,
    };
    let adapter = peft::read(&folder, model)?;
    let foreign = Provenance::read(&folder).ok().flatten().is_some_and(|made| made.base != base);
    Ok(Opened { folder, adapter, foreign })
}

fn existing(folder: PathBuf) -> Result<PathBuf> {
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(Error::failure(format!("{}: no such folder", Paths::display(&folder)))
        .hint("an adapter is a folder with adapter_config.json and adapter_model.safetensors"))
}

/// `~/` at the start of a path that no shell has seen is the user's home.
pub fn expanded(path: &str) -> PathBuf {
    let home = || Some(directories::UserDirs::new()?.home_dir().join(path.strip_prefix("~/")?));
    home().unwrap_or_else(|| PathBuf::from(path))
}

/// The folder that `what` means, unless it is a name: a path by its looks, or no adapter's name but a folder here.
fn folder(paths: &Paths, what: &str) -> Option<PathBuf> {
    let looks = what.contains(['/', std::path::MAIN_SEPARATOR]) || matches!(what, "." | "..");
    let here = Path::new(what);
    (looks || (!paths.adapters().join(what).is_dir() && here.is_dir())).then(|| expanded(what))
}

/// Goes back, and says what was live on `base` before and what is now. With a `name` to that earlier adapter of the
/// registry, whenever it was live; else to the one before, or to the base alone.
///
/// Errors: there is no such adapter, it does not fit, or the gate refused it, so it was never live.
pub fn rollback(paths: &Paths, base: &str, name: Option<&str>) -> Result<(Active, Active)> {
    let before = active::read(paths, base)?;
    let Some(name) = name else { return Ok((before, active::rollback(paths, base)?)) };
    let made = Registry::new(paths.clone()).find_sound(name)?.provenance;
    if let Some(other) = made.as_ref().filter(|made| made.base != base) {
        return Err(Error::failure(format!("adapter {name} was never live here: it was trained on {}", other.model))
            .hint("`finch adapters load NAME --force` tries it all the same"));
    }
    if made.and_then(|made| made.gate).is_some_and(|gate| !gate.passed) {
        return Err(Error::failure(format!(
            "adapter {name} was refused by the gate, so there is nothing to go back to"
        ))
        .hint("`finch adapters show NAME` says why; `finch adapters load NAME` makes it live all the same"));
    }
    Ok((before, active::activate(paths, base, name)?))
}

#[cfg(test)]
mod tests {
    use super::super::provenance::Gate;
    use super::super::registry::tests::{home, save};
    use super::*;

    const BASE: &str = "ab12";

    #[test]
    fn rollback_goes_to_any_earlier_adapter_that_could_have_been_live() {
        let (_dir, paths) = home();
        for name in ["first", "second", "third", "refused"] {
            save(&paths, name);
        }
        for name in ["first", "second", "third"] {
            active::activate(&paths, BASE, name).unwrap();
        }
        let live = |name| rollback(&paths, BASE, name).map(|(_, now)| now.live);
        assert_eq!(live(Some("first")).unwrap().as_deref(), Some("first"));
        assert_eq!(live(None).unwrap().as_deref(), Some("third"), "what was live before");
        let gate = Gate { passed: false, reasons: vec!["KL".into()], measurements: serde_json::Value::Null };
        let made = Provenance { gate: Some(gate), ..Provenance::new(BASE, "finch-tiny") };
        made.write(&paths.adapters().join("refused")).unwrap();
        assert!(live(Some("refused")).unwrap_err().message().contains("refused by the gate"));
        Provenance::new("cd34", "other").write(&paths.adapters().join("first")).unwrap();
        assert!(live(Some("first")).unwrap_err().message().contains("trained on other"));
        assert!(live(Some("none")).is_err());
        assert_eq!(active::read(&paths, BASE).unwrap().live.as_deref(), Some("third"));
    }
}
