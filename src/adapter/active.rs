//! Which adapter of a base is live and which one was before: one small file a base, replaced atomically.
//!
//! Every process reads it again before a turn. Changes are made under a lock, so that two processes lose none.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::provenance::check_digest;
use super::registry::{Registry, check_name};
use crate::error::{Context, Error, Result};
use crate::fsio::{self, Lock};
use crate::json;
use crate::paths::Paths;

/// Two names fit in this, in bytes.
const MAX_FILE: u64 = 1 << 14;

/// The state of one base; no adapter at all is the default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Active {
    /// Answers come through this adapter; `None`: from the base alone.
    pub live: Option<String>,
    /// What was live before; `None`: the base alone, or nothing ever was.
    pub previous: Option<String>,
    /// Adapters of another base that the user wants on this one all the same; never more than the two above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forced: Vec<String>,
}

impl Active {
    /// Whether the user asked for `name` on this base although it was trained on another one.
    pub fn is_forced(&self, name: &str) -> bool {
        self.forced.iter().any(|forced| forced == name)
    }

    fn forget_stale_force(&mut self) {
        let Active { live, previous, forced } = self;
        forced.retain(|name| live.as_ref() == Some(name) || previous.as_ref() == Some(name));
    }
}

/// The state of the base with this digest. Errors name the file when it cannot be read.
pub fn read(paths: &Paths, base: &str) -> Result<Active> {
    read_file(&place(paths, base)?)
}

/// Makes an adapter live; the one that was becomes the previous. Errors: unknown or broken adapter.
///
/// Sessions use it only if it was trained on this base; see [`activate_forced`].
pub fn activate(paths: &Paths, base: &str, name: &str) -> Result<Active> {
    make_live(paths, base, name, false)
}

/// As [`activate`], for an adapter of another base whose shapes fit: the user named it and asked for it all the same.
pub fn activate_forced(paths: &Paths, base: &str, name: &str) -> Result<Active> {
    make_live(paths, base, name, true)
}

fn make_live(paths: &Paths, base: &str, name: &str, force: bool) -> Result<Active> {
    change(paths, base, |active| {
        Registry::new(paths.clone()).find_sound(name)?;
        active.forced.retain(|forced| forced != name);
        if force {
            active.forced.push(name.to_string());
        }
        if active.live.as_deref() != Some(name) {
            active.previous = active.live.replace(name.to_string());
        }
        Ok(())
    })
}

/// Back to the base alone; the adapter that was live becomes the previous.
pub fn deactivate(paths: &Paths, base: &str) -> Result<Active> {
    change(paths, base, |active| {
        if active.live.is_some() {
            active.previous = active.live.take();
        }
        Ok(())
    })
}

/// Exchanges live and previous: a second rollback takes the first one back. Before the first adapter there was the base
/// alone. Errors: no adapter was ever live, or the previous one is gone or broken.
pub fn rollback(paths: &Paths, base: &str) -> Result<Active> {
    change(paths, base, |active| {
        match (&active.live, &active.previous) {
            (None, None) => {
                return Err(Error::failure("there is nothing to roll back: no adapter was live on this model")
                    .hint("`finch adapters load NAME` makes one live"));
            }
            (_, Some(previous)) => {
                Registry::new(paths.clone()).find_sound(previous).context("cannot roll back")?;
            }
            (Some(_), None) => {}
        }
        std::mem::swap(&mut active.live, &mut active.previous);
        Ok(())
    })
}

/// The digests of the bases on which `name` is live.
pub fn bases_of(paths: &Paths, name: &str) -> Result<Vec<String>> {
    let live = |(base, active): (String, Active)| (active.live.as_deref() == Some(name)).then_some(base);
    Ok(all(paths)?.into_iter().filter_map(live).collect())
}

/// Takes `name` out of the state of every base (where it was live, the base alone answers), then lets `remove` take its
/// folder away; under one lock, so that nobody makes it live in between.
pub(super) fn forget(paths: &Paths, name: &str, remove: impl FnOnce() -> Result<()>) -> Result<()> {
    let _lock = lock(paths)?;
    for (base, mut active) in all(paths)? {
        let before = active.clone();
        for slot in [&mut active.live, &mut active.previous] {
            if slot.as_deref() == Some(name) {
                *slot = None;
            }
        }
        active.forget_stale_force();
        replace(&place(paths, &base)?, &before, &active)?;
    }
    remove()
}

fn all(paths: &Paths) -> Result<Vec<(String, Active)>> {
    let Ok(entries) = std::fs::read_dir(paths.active_dir()) else { return Ok(Vec::new()) };
    let mut bases: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|base| place(paths, base).is_ok())
        .collect();
    bases.sort();
    bases.into_iter().map(|base| Ok((base.clone(), read(paths, &base)?))).collect()
}

fn place(paths: &Paths, base: &str) -> Result<std::path::PathBuf> {
    check_digest(base)?;
    Ok(paths.active(base))
}

fn read_file(path: &Path) -> Result<Active> {
    if path.symlink_metadata().is_err() {
        return Ok(Active::default());
    }
    let parse = || {
        let active: Active = json::read(&fsio::read_limited(path, MAX_FILE)?)?;
        active.live.iter().chain(&active.previous).try_for_each(|name| check_name(name))?;
        Ok(active)
    };
    parse().map_err(|e: Error| {
        Error::failure(format!("{} does not say which adapter is live: {e}", Paths::display(path)))
            .hint("remove that file, then load an adapter again: finch adapters load NAME")
    })
}

fn change(paths: &Paths, base: &str, edit: impl FnOnce(&mut Active) -> Result<()>) -> Result<Active> {
    let path = place(paths, base)?;
    let _lock = lock(paths)?;
    let before = read_file(&path)?;
    let mut active = before.clone();
    edit(&mut active)?;
    active.forget_stale_force();
    replace(&path, &before, &active)?;
    Ok(active)
}

fn lock(paths: &Paths) -> Result<Lock> {
    for dir in [paths.root(), &paths.adapters(), &paths.active_dir()] {
        fsio::create_private_dir(dir)?;
    }
    Lock::wait(&paths.lock("active"), "a change of the live adapter")
}

fn replace(path: &Path, before: &Active, after: &Active) -> Result<()> {
    if after == before {
        return Ok(());
    }
    if *after == Active::default() {
        return std::fs::remove_file(path).with_context(|| format!("cannot remove {}", Paths::display(path)));
    }
    let mut json = serde_json::to_vec(after)?;
    json.push(b'\n');
    fsio::write_atomic(path, &json)
}

#[cfg(test)]
mod tests {
    use super::super::registry::tests::{home, save};
    use super::*;

    const BASE: &str = "ab12";

    fn state(live: Option<&str>, previous: Option<&str>) -> Active {
        Active { live: live.map(String::from), previous: previous.map(String::from), forced: Vec::new() }
    }

    #[test]
    fn the_live_adapter_changes_and_comes_back() {
        let (_dir, paths) = home();
        assert_eq!(read(&paths, BASE).unwrap(), Active::default());
        assert!(rollback(&paths, BASE).unwrap_err().message().contains("nothing to roll back"));
        save(&paths, "a");
        save(&paths, "b");
        assert_eq!(activate(&paths, BASE, "a").unwrap(), state(Some("a"), None));
        assert_eq!(activate(&paths, BASE, "b").unwrap(), state(Some("b"), Some("a")));
        assert_eq!(activate(&paths, BASE, "b").unwrap(), state(Some("b"), Some("a")), "again changes nothing");
        assert_eq!(rollback(&paths, BASE).unwrap(), state(Some("a"), Some("b")));
        assert_eq!(rollback(&paths, BASE).unwrap(), state(Some("b"), Some("a")));
        assert_eq!(deactivate(&paths, BASE).unwrap(), state(None, Some("b")));
        assert_eq!(deactivate(&paths, BASE).unwrap(), state(None, Some("b")));
        assert_eq!(rollback(&paths, BASE).unwrap(), state(Some("b"), None));
        assert_eq!(rollback(&paths, BASE).unwrap(), state(None, Some("b")), "before it there was the base");
        assert_eq!(read(&paths, BASE).unwrap(), state(None, Some("b")));
        assert_eq!(read(&paths, "cd34").unwrap(), Active::default(), "another base has its own");
    }

    #[test]
    fn force_goes_with_the_adapter_it_was_said_of() {
        let (_dir, paths) = home();
        save(&paths, "a");
        save(&paths, "b");
        assert!(activate_forced(&paths, BASE, "a").unwrap().is_forced("a"));
        let both = activate(&paths, BASE, "b").unwrap();
        assert!(both.is_forced("a") && !both.is_forced("b"));
        assert!(rollback(&paths, BASE).unwrap().is_forced("a"));
        assert!(!activate(&paths, BASE, "a").unwrap().is_forced("a"), "the last word counts");
        activate_forced(&paths, BASE, "a").unwrap();
        deactivate(&paths, BASE).unwrap();
        activate(&paths, BASE, "b").unwrap();
        save(&paths, "c");
        assert_eq!(activate(&paths, BASE, "c").unwrap().forced, [""; 0], "forgotten with the adapter");
    }

    #[test]
    fn only_a_sound_adapter_goes_live() {
        let (_dir, paths) = home();
        save(&paths, "a");
        save(&paths, "b");
        activate(&paths, BASE, "a").unwrap();
        for name in ["none", "../a", "active", ""] {
            assert!(activate(&paths, BASE, name).is_err(), "{name}");
        }
        std::fs::write(paths.adapters().join("b/adapter_model.safetensors"), "torn").unwrap();
        let e = activate(&paths, BASE, "b").unwrap_err();
        assert!(e.message().contains("adapter b cannot be used"), "{e}");
        assert_eq!(read(&paths, BASE).unwrap(), state(Some("a"), None));
        deactivate(&paths, BASE).unwrap();
        std::fs::remove_dir_all(paths.adapters().join("a")).unwrap();
        assert!(rollback(&paths, BASE).unwrap_err().message().contains("there is no adapter a"));
    }

    #[test]
    fn a_deleted_adapter_is_live_nowhere() {
        let (_dir, paths) = home();
        save(&paths, "a");
        save(&paths, "b");
        activate(&paths, BASE, "a").unwrap();
        activate(&paths, BASE, "b").unwrap();
        activate(&paths, "cd34", "a").unwrap();
        assert_eq!(bases_of(&paths, "a").unwrap(), ["cd34"]);
        assert_eq!(bases_of(&paths, "b").unwrap(), [BASE]);
        Registry::new(paths.clone()).delete("a").unwrap();
        assert_eq!(read(&paths, BASE).unwrap(), state(Some("b"), None));
        assert_eq!(read(&paths, "cd34").unwrap(), Active::default());
        assert!(!paths.active("cd34").exists(), "no adapter: no file");
        Registry::new(paths.clone()).delete("b").unwrap();
        assert!(!paths.active(BASE).exists());
    }

    #[test]
    fn bad_files_and_digests_are_errors() {
        let (_dir, paths) = home();
        std::fs::create_dir_all(paths.active_dir()).unwrap();
        for text in ["", "{", r#"{"live":"../../etc"}"#, r#"{"live":3}"#, r#"{"previous":"a/b"}"#] {
            std::fs::write(paths.active(BASE), text).unwrap();
            let e = read(&paths, BASE).unwrap_err();
            assert!(e.message().contains(BASE) && e.hint_text().is_some(), "{text}: {e}");
        }
        std::fs::write(paths.active(BASE), r#"{"live":"a"}"#).unwrap();
        assert_eq!(
            read(&paths, BASE).unwrap(),
            state(Some("a"), None),
            "the pointer alone does not vouch for the folder"
        );
        for base in ["", "../x", "xyz", "ab12/cd"] {
            assert!(read(&paths, base).is_err(), "{base}");
        }
    }

    #[test]
    fn changes_at_the_same_time_are_all_made() {
        let (_dir, paths) = home();
        let names: Vec<String> = (0..8).map(|i| format!("a{i}")).collect();
        for name in &names {
            save(&paths, name);
        }
        std::thread::scope(|scope| {
            for name in &names {
                scope.spawn(|| activate(&paths, BASE, name).unwrap());
            }
        });
        let end = read(&paths, BASE).unwrap();
        let (live, previous) = (end.live.unwrap(), end.previous.unwrap());
        assert!(names.contains(&live) && names.contains(&previous) && live != previous);
    }
}
