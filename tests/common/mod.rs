//! What several test files share.

use std::io::Write;
use std::path::{Path, PathBuf};

/// `../shared/NAME` beside the checkout: reference values that are no part of the repository. None where they are not
/// there, which is said on standard error past the test harness, which would swallow it.
pub fn reference(name: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.join("shared").join(name);
    if folder.is_dir() {
        return Some(folder);
    }
    let _ = writeln!(std::io::stderr(), "NOT RUN: the reference values ../shared/{name} are not beside this checkout");
    None
}

/// The folders of models, adapters and trainings with values computed by torch, transformers and PEFT: our own small ones
/// (tests/fixtures/make.py), and the larger reference values where they are beside the checkout.
#[allow(dead_code)] // each test file uses a part of this one
pub fn computed_values() -> Vec<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::iter::once(own).chain(reference("golden")).collect()
}

/// The subfolders of `folder`, in order.
#[allow(dead_code)]
pub fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}
