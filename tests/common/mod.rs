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
