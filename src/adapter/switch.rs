//! Making an adapter live by name or by folder: checked against the base first, taken into the registry where it is not there.

use std::path::{Path, PathBuf};

use super::active::{self, Active};
use super::peft::{self, Adapter};
use super::provenance::Provenance;
use super::registry::Registry;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::paths::Paths;

/// Makes the adapter live on `base` and returns its name. `what`: a name in the registry, or a PEFT folder, which is copied
/// there. `force`: also one that was trained on another base, if its shapes fit.
///
/// Errors: unknown, broken, does not fit (the message names the tensor), trained on another base.
pub fn load(paths: &Paths, what: &str, model: &ModelConfig, base: &str, force: bool) -> Result<String> {
    let registry = Registry::new(paths.clone());
    let name = match folder(paths, what) {
        Some(folder) => {
            if !folder.is_dir() {
                return Err(Error::failure(format!("{}: no such folder", Paths::display(&folder)))
                    .hint("an adapter is a folder with adapter_config.json and adapter_model.safetensors"));
            }
            registry.import(&folder, model)?
        }
        None => what.to_string(),
    };
    registry.open(&name, model, base, force)?;
    if force {
        active::activate_forced(paths, base, &name)?;
    } else {
        active::activate(paths, base, &name)?;
    }
    Ok(name)
}

/// The adapter that `what` (a name in the registry, or a PEFT folder) means, read for a base without making it live; and
/// whether it was trained on another base than `base`.
///
/// Errors: unknown, broken, does not fit (the message names the tensor).
pub fn open(paths: &Paths, what: &str, model: &ModelConfig, base: &str) -> Result<(Adapter, bool)> {
    let folder = match folder(paths, what) {
        Some(folder) => folder,
        None => Registry::new(paths.clone()).find(what)?.path,
    };
    let adapter = peft::read(&folder, model)?;
    let foreign = Provenance::read(&folder).ok().flatten().is_some_and(|made| made.base != base);
    Ok((adapter, foreign))
}

/// The folder that `what` means, unless it is a name: a path by its looks, or no adapter's name but a folder here.
fn folder(paths: &Paths, what: &str) -> Option<PathBuf> {
    if let Some(rest) = what.strip_prefix("~/") {
        return directories::UserDirs::new().map(|dirs| dirs.home_dir().join(rest));
    }
    let looks = what.contains(['/', std::path::MAIN_SEPARATOR]) || matches!(what, "." | "..");
    let here = Path::new(what);
    (looks || (!paths.adapters().join(what).is_dir() && here.is_dir())).then(|| here.to_path_buf())
}

/// What is live on `base` now and what was, before and after going back one.
pub fn rollback(paths: &Paths, base: &str) -> Result<(Active, Active)> {
    let before = active::read(paths, base)?;
    Ok((before, active::rollback(paths, base)?))
}
