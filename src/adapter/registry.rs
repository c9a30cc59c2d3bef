//! The adapters of a data folder: names, listing, saving, importing, deleting.
//!
//! An adapter is a folder that appears whole and disappears whole; nothing here holds state beside the disk.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, NaiveDateTime, Utc};

use super::peft::{self, Adapter, Summary};
use super::provenance::Provenance;
use super::{active, export};
use crate::error::{Context, Error, Result};
use crate::fsio;
use crate::model::config::ModelConfig;
use crate::nearest::nearest;
use crate::paths::Paths;
use crate::text;

/// Longest name, in bytes.
const MAX_NAME: usize = 100;

/// Whether an adapter's folder can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Ok,
    /// Why not, in words.
    Broken(String),
}

/// One adapter as a list shows it; what is not known (an adapter from elsewhere) is `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub name: String,
    pub path: PathBuf,
    /// From its provenance, else the folder's time of change.
    pub created: Option<DateTime<Utc>>,
    /// What its configuration says.
    pub summary: Option<Summary>,
    pub provenance: Option<Provenance>,
    /// Of all files in the folder.
    pub bytes: u64,
    pub state: State,
}

/// What came of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Its name here.
    pub name: String,
    /// False: this very adapter was here already.
    pub is_new: bool,
}

/// The door to `adapters/` in the data folder.
#[derive(Debug, Clone)]
pub struct Registry {
    paths: Paths,
}

/// Errors unless `name` can be a folder's name inside `adapters/`: nothing that leads elsewhere or hides.
pub fn check_name(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_NAME {
        "it is too long"
    } else if name.contains(['/', '\\', ':']) {
        "it holds a path separator"
    } else if name.starts_with('.') || name.ends_with(['.', ' ']) || name.starts_with([' ', '-']) {
        "it begins or ends with a character that file systems or shells treat differently"
    } else if name.contains(['\n', '\t']) || text::sanitize(name) != name {
        "it holds control or hidden characters"
    } else if name.eq_ignore_ascii_case("active") {
        "finch keeps its own files there"
    } else {
        return Ok(());
    };
    Err(Error::failure(format!("{:?} is no adapter name: {why}", text::one_line(name, MAX_NAME)))
        .hint("`finch adapters list` shows the names"))
}

impl Registry {
    pub fn new(paths: Paths) -> Registry {
        Registry { paths }
    }

    /// The default name of an adapter made at `now` (local time), with a number behind it where that is taken.
    pub fn new_name(&self, now: NaiveDateTime) -> String {
        self.free_name(&format!("lora_adapter_{}", now.format("%Y%m%d_%H%M%S")))
    }

    fn free_name(&self, wanted: &str) -> String {
        let taken = |name: &str| self.paths.adapters().join(name).symlink_metadata().is_ok();
        let mut name = wanted.to_string();
        let mut number = 2;
        while taken(&name) {
            name = format!("{wanted}_{number}");
            number += 1;
        }
        name
    }

    /// The names of all adapters, sorted; for completion and hints. None where the folder cannot be read.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.paths.adapters()) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let name = entry.file_name().into_string().ok()?;
                (check_name(&name).is_ok() && entry.path().is_dir()).then_some(name)
            })
            .collect();
        names.sort();
        names
    }

    /// All adapters, oldest first, broken ones too.
    pub fn list(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = self.names().into_iter().map(|name| self.entry(name)).collect();
        entries.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        entries
    }

    /// The adapter of that name, broken or not. Errors: no name, or none of that name (the hint has the nearest).
    pub fn find(&self, name: &str) -> Result<Entry> {
        check_name(name)?;
        if !self.paths.adapters().join(name).is_dir() {
            let names = self.names();
            let hint = match nearest(name, names.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}?"),
                None => "`finch adapters list` shows the names".to_string(),
            };
            return Err(Error::failure(format!("there is no adapter {name}")).hint(hint));
        }
        Ok(self.entry(name.to_string()))
    }

    /// As [`Registry::find`]; a broken adapter is an error too.
    pub fn find_sound(&self, name: &str) -> Result<Entry> {
        let entry = self.find(name)?;
        match &entry.state {
            State::Ok => Ok(entry),
            State::Broken(reason) => Err(Error::failure(format!("adapter {name} cannot be used: {reason}"))),
        }
    }

    fn entry(&self, name: String) -> Entry {
        let path = self.paths.adapters().join(&name);
        let summary = peft::inspect(&path);
        let provenance = Provenance::read(&path);
        let broken = summary.as_ref().err().or(provenance.as_ref().err()).map(|e| e.message().to_string());
        let files = fs::read_dir(&path).into_iter().flatten().flatten();
        let bytes = files.filter_map(|f| f.metadata().ok()).filter(fs::Metadata::is_file).map(|m| m.len()).sum();
        let provenance = provenance.ok().flatten();
        let changed = || path.metadata().and_then(|m| m.modified()).ok().map(DateTime::<Utc>::from);
        Entry {
            created: provenance.as_ref().map(|p| p.created).or_else(changed),
            summary: summary.ok(),
            provenance,
            bytes,
            state: broken.map_or(State::Ok, State::Broken),
            name,
            path,
        }
    }

    /// Reads an adapter for a base. Errors: unknown, broken, does not fit, or trained on a base with another digest
    /// (unless `force`).
    pub fn open(&self, name: &str, model: &ModelConfig, base: &str, force: bool) -> Result<Adapter> {
        let entry = self.find(name)?;
        let provenance = Provenance::read(&entry.path).with_context(|| format!("adapter {name}"))?;
        if let Some(other) = provenance.filter(|p| p.base != base && !force) {
            return Err(Error::failure(format!(
                "adapter {name} was trained on another base ({}, {})",
                text::one_line(&other.model, 60),
                text::one_line(&other.base, 12),
            ))
            .hint("load it with --force to try it all the same"));
        }
        peft::read(&entry.path, model)
    }

    /// Saves an adapter under a new name; its folder is complete or absent.
    pub fn save(&self, name: &str, adapter: &Adapter, provenance: &Provenance) -> Result<PathBuf> {
        check_name(name)?;
        let path = self.prepare()?.join(name);
        save_folder(&path, adapter, provenance)?;
        Ok(path)
    }

    /// Copies a PEFT folder from elsewhere that fits `model`. With a `wanted` name it gets that one; else the folder's own,
    /// with a number behind it where another adapter has it, and the same adapter is not copied twice.
    ///
    /// Errors: what [`peft::read`] refuses; no name, or one that is taken.
    pub fn import(&self, folder: &Path, wanted: Option<&str>, model: &ModelConfig) -> Result<Imported> {
        let adapter = peft::read(folder, model)?;
        Provenance::read(folder).with_context(|| Paths::display(folder))?;
        let real = fs::canonicalize(folder).with_context(|| Paths::display(folder))?;
        let name = match wanted {
            Some(name) => {
                check_name(name)?;
                if self.paths.adapters().join(name).symlink_metadata().is_ok() {
                    return Err(Error::failure(format!("there is an adapter {name} already"))
                        .hint("choose another name, or delete that one first: finch adapters delete NAME"));
                }
                name.to_string()
            }
            None => {
                let own = real.file_name().and_then(|n| n.to_str()).filter(|n| check_name(n).is_ok());
                let own = own.unwrap_or("imported");
                let same = |name: &String| {
                    let stem = name.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'));
                    stem && peft::read(&self.paths.adapters().join(name), model)
                        .is_ok_and(|a| a.digest == adapter.digest)
                };
                if let Some(name) = self.names().into_iter().find(same) {
                    return Ok(Imported { name, is_new: false });
                }
                self.free_name(own)
            }
        };
        let path = self.prepare()?.join(&name);
        fsio::write_dir_atomic(&path, |unfinished| export::copy(&real, &adapter, model, unfinished))?;
        Ok(Imported { name, is_new: true })
    }

    /// Removes an adapter; wherever it was live or previous it is taken out first.
    pub fn delete(&self, name: &str) -> Result<()> {
        let entry = self.find(name)?;
        active::forget(&self.paths, name, || fsio::remove_dir_atomic(&entry.path))
    }

    /// Removes what killed writers left behind, in the data folder and in those of the adapters; returns how many things.
    pub fn sweep(&self) -> Result<usize> {
        let adapters = self.names().into_iter().map(|name| self.paths.adapters().join(name));
        let places = [self.paths.root().to_path_buf(), self.paths.adapters(), self.paths.active_dir()];
        places.into_iter().chain(adapters).map(|dir| fsio::sweep_temporaries(&dir)).sum()
    }

    /// Makes `adapters/` ready for a new one, and clears away what killed writers left there.
    fn prepare(&self) -> Result<PathBuf> {
        fsio::create_private_dir(self.paths.root())?;
        let dir = self.paths.adapters();
        fsio::create_private_dir(&dir)?;
        if let Err(error) = self.sweep() {
            tracing::warn!("{error}"); // they take room, and harm nothing
        }
        Ok(dir)
    }
}

/// Writes an adapter with its provenance as the folder `dst` (new or empty), complete or absent.
pub fn save_folder(dst: &Path, adapter: &Adapter, provenance: &Provenance) -> Result<()> {
    fsio::write_dir_atomic(dst, |tmp| {
        peft::write(tmp, adapter, &provenance.model)?;
        provenance.write(tmp)
    })
}

#[cfg(test)]
#[path = "registry_tests.rs"]
pub(super) mod tests;
