//! Where things live: one root folder, `$FINCH_HOME` or the platform's configuration folder, and the names inside it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::text;

/// The data folder and the places in it; nothing is created by asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// `$FINCH_HOME`, else the platform's configuration folder (`~/.config/finch` on Linux).
    pub fn from_env() -> Result<Paths> {
        Self::from_home(std::env::var_os("FINCH_HOME"))
    }

    fn from_home(finch_home: Option<OsString>) -> Result<Paths> {
        match finch_home.filter(|v| !v.is_empty()) {
            // Absolute at once: a later change of folder must not move the data.
            Some(home) => Ok(Paths::at(std::path::absolute(home).context("FINCH_HOME")?)),
            None => directories::ProjectDirs::from("", "", "finch")
                .map(|dirs| Paths::at(dirs.config_dir()))
                .ok_or_else(|| {
                    Error::failure("no home folder is known for this user, so finch has no place for its data")
                        .hint("set FINCH_HOME to a folder")
                }),
        }
    }

    pub fn at(root: impl Into<PathBuf>) -> Paths {
        Paths { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    pub fn db(&self) -> PathBuf {
        self.root.join("finch.db")
    }

    pub fn history(&self) -> PathBuf {
        self.root.join("history.txt")
    }

    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub fn adapters(&self) -> PathBuf {
        self.root.join("adapters")
    }

    pub fn active_dir(&self) -> PathBuf {
        self.adapters().join("active")
    }

    /// The file that names the live and the previous adapter of a base.
    pub fn active(&self, base_digest: &str) -> PathBuf {
        self.active_dir().join(base_digest)
    }

    /// The file whose lock means `name`, such as `training`.
    pub fn lock(&self, name: &str) -> PathBuf {
        self.root.join(format!("{name}.lock"))
    }

    /// A path in words: the home folder shortened to `~`, safe for the screen, on one line.
    pub fn display(path: &Path) -> String {
        let home = directories::UserDirs::new().map(|dirs| dirs.home_dir().to_path_buf());
        display_under(path, home.as_deref())
    }
}

fn display_under(path: &Path, home: Option<&Path>) -> String {
    let shortened = home
        .filter(|home| home.parent().is_some()) // a root user's "/" is no home to shorten
        .and_then(|home| path.strip_prefix(home).ok())
        .map(|rest| if rest.as_os_str().is_empty() { PathBuf::from("~") } else { Path::new("~").join(rest) });
    let shown = shortened.as_deref().unwrap_or(path).to_string_lossy();
    text::sanitize(&shown).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finch_home_wins_and_is_absolute() {
        let paths = Paths::from_home(Some("some/folder".into())).unwrap();
        assert!(paths.root().is_absolute() && paths.root().ends_with("some/folder"));
        let default = Paths::from_home(None).unwrap();
        assert_eq!(Paths::from_home(Some("".into())).unwrap(), default, "an empty value counts as unset");
        assert!(default.root().ends_with("finch") || default.root().parent().unwrap().ends_with("finch"));
    }

    #[test]
    fn everything_lies_under_the_root() {
        let paths = Paths::at("/data/finch");
        for (path, expected) in [
            (paths.config(), "config.toml"),
            (paths.db(), "finch.db"),
            (paths.history(), "history.txt"),
            (paths.logs(), "logs"),
            (paths.adapters(), "adapters"),
            (paths.active("abc"), "adapters/active/abc"),
            (paths.lock("training"), "training.lock"),
        ] {
            assert_eq!(path, Path::new("/data/finch").join(expected));
        }
    }

    #[test]
    fn display_shortens_home_and_hides_nothing_else() {
        let home = Some(Path::new("/home/ada"));
        let show = |p: &str| display_under(Path::new(p), home);
        assert_eq!(show("/home/ada/.config/finch"), Path::new("~").join(".config/finch").to_string_lossy());
        assert_eq!(show("/home/ada"), "~");
        assert_eq!(show("/home/adam/x"), "/home/adam/x");
        assert_eq!(show("/tmp/a\x1b[31m\nb"), "/tmp/a b");
        assert_eq!(display_under(Path::new("/tmp/x"), Some(Path::new("/"))), "/tmp/x");
        assert_eq!(display_under(Path::new("/tmp/x"), None), "/tmp/x");
    }
}
