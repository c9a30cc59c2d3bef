//! Text in the user's own editor: handed over in a private file, taken back when the editor ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::terminal::QuietKeys;
use crate::error::{Error, Result};
use crate::fsio;
use crate::paths::Paths;

/// Where the editor is named, the first one that says something.
const VARIABLES: [&str; 3] = ["FINCH_EDITOR", "VISUAL", "EDITOR"];
/// More than any answer, in bytes.
const MAX_TEXT: u64 = 16 << 20;

/// What came back.
#[derive(Debug)]
pub enum Edited {
    /// Another text, without the white space at its end. The draft is removed when it is dropped.
    Changed(String, Draft),
    Unchanged,
    /// Nothing but white space.
    Emptied,
}

/// The folder that holds the text and whatever the editor puts beside it.
#[derive(Debug)]
pub struct Draft {
    folder: PathBuf,
    kept: bool,
}

impl Draft {
    /// Leaves the file where it is, as its text got nowhere else; gives its place.
    pub fn keep(mut self) -> PathBuf {
        self.kept = true;
        self.file()
    }

    /// Written, private, under a name of its own.
    fn write(paths: &Paths, text: &str) -> Result<Draft> {
        let name = format!("edit-{}-{:08x}", std::process::id(), rand::random::<u32>());
        let draft = Draft { folder: paths.root().join(name), kept: false };
        fsio::create_private_dir(&draft.folder)?;
        fsio::write_atomic(&draft.file(), format!("{}\n", text.trim_end()).as_bytes())?;
        Ok(draft)
    }

    fn file(&self) -> PathBuf {
        self.folder.join("answer.md")
    }

    fn read(&self) -> Result<String> {
        Ok(fsio::read_text_limited(&self.file(), MAX_TEXT)?.trim_end().to_string())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_dir_all(&self.folder); // what stays is private
        }
    }
}

/// Opens `text` in the editor that the environment names, and waits for its end. `quiet`: the modes to lift meanwhile.
///
/// Errors: no editor is named, it cannot be started, or it ended with another status than 0; what it saved is then kept
/// and its place is told.
pub fn edit(paths: &Paths, text: &str, quiet: Option<&QuietKeys>) -> Result<Edited> {
    let command = editor(|name| std::env::var(name).ok())?;
    run(&command, paths, text, quiet)
}

fn run(command: &[String], paths: &Paths, text: &str, quiet: Option<&QuietKeys>) -> Result<Edited> {
    let Some((program, arguments)) = command.split_first() else { return Err(no_editor()) };
    let draft = Draft::write(paths, text)?;
    let lent = quiet.map(QuietKeys::lift);
    let ended = Command::new(program).args(arguments).arg(draft.file()).status();
    drop(lent);
    let status = ended.map_err(|e| {
        Error::from(e)
            .context(format!("cannot start the editor {program}"))
            .hint("set EDITOR to a program that is there")
    })?;
    let saved = draft.read();
    if !status.success() {
        let error = Error::failure(format!("the editor {program} ended with {status}; nothing was recorded"));
        let touched = !saved.is_ok_and(|saved| saved == text.trim_end());
        return Err(if touched { error.hint(kept_in(&draft.keep())) } else { error });
    }
    match saved {
        Ok(saved) if saved.trim() == text.trim() => Ok(Edited::Unchanged),
        Ok(saved) if saved.trim().is_empty() => Ok(Edited::Emptied),
        Ok(saved) => Ok(Edited::Changed(saved, draft)),
        Err(error) => Err(error.hint(kept_in(&draft.keep()))),
    }
}

/// "what was saved is in …"
pub fn kept_in(file: &Path) -> String {
    format!("what was saved is in {}", Paths::display(file))
}

/// Program and arguments.
fn editor(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<String>> {
    let named = VARIABLES.iter().filter_map(|name| variable(name)).map(|value| words(&value));
    named.into_iter().find(|words| !words.is_empty()).ok_or_else(no_editor)
}

fn no_editor() -> Error {
    Error::failure("no editor is named").hint("set EDITOR, such as EDITOR=nano; or /correct TEXT")
}

/// Splits at white space; single or double quotes hold a word together. A `\` is a letter, as in Windows' paths.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in command.chars() {
        match quote {
            Some(mark) if c == mark => quote = None,
            None if matches!(c, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const ANSWER: &str = "Use unwrap.\nThen go on.";

    /// What a shell script makes of the answer; its file is `"$1"`.
    fn edited(script: &str) -> (tempfile::TempDir, Result<Edited>) {
        let home = tempfile::tempdir().unwrap();
        let command: Vec<String> = ["sh", "-c", script, "editor"].map(String::from).to_vec();
        let edited = run(&command, &Paths::at(home.path()), ANSWER, None);
        (home, edited)
    }

    fn left_over(home: &tempfile::TempDir) -> usize {
        std::fs::read_dir(home.path()).unwrap().count()
    }

    #[test]
    fn the_first_variable_that_says_something_names_editor_and_arguments() {
        let variables = |name: &str| match name {
            "FINCH_EDITOR" => Some("  ".to_string()),
            "VISUAL" => Some("code --wait \"-n a\"".to_string()),
            _ => Some("vi".to_string()),
        };
        assert_eq!(editor(variables).unwrap(), ["code", "--wait", "-n a"]);
        assert!(editor(|_| None).unwrap_err().hint_text().unwrap().contains("EDITOR"));
        assert_eq!(words("'/a b/vim' -c 'set tw=80' \"\" x\\y"), ["/a b/vim", "-c", "set tw=80", "", "x\\y"]);
        assert_eq!(words(" \t"), Vec::<String>::new());
    }

    #[test]
    fn what_is_saved_comes_back_and_the_private_file_goes() {
        let (home, edited) =
            edited("stat -c %a \"$1\" \"$(dirname \"$1\")\" > mode; cat mode \"$1\" > new; mv new \"$1\"; rm mode");
        let Ok(Edited::Changed(text, draft)) = edited else { panic!("{edited:?}") };
        assert_eq!(text, format!("600\n700\n{ANSWER}"));
        drop(draft);
        assert_eq!(left_over(&home), 0);
    }

    #[test]
    fn an_unchanged_or_empty_text_is_told_apart() {
        let (home, unchanged) = edited("echo >> \"$1\"");
        assert!(matches!(unchanged, Ok(Edited::Unchanged)), "{unchanged:?}");
        assert_eq!(left_over(&home), 0);
        let (_home, emptied) = edited("echo > \"$1\"");
        assert!(matches!(emptied, Ok(Edited::Emptied)), "{emptied:?}");
    }

    #[test]
    fn an_editor_that_fails_is_told_with_its_status() {
        let (home, failed) = edited("exit 3");
        let error = failed.unwrap_err();
        assert!(
            error.message().contains("exit status: 3") && error.message().contains("nothing was recorded"),
            "{error}"
        );
        assert_eq!((error.hint_text(), left_over(&home)), (None, 0));
        let (home, failed) = edited("echo mine > \"$1\"; exit 1");
        assert!(failed.unwrap_err().hint_text().unwrap().contains("answer.md"));
        assert_eq!(left_over(&home), 1, "what was saved is not lost");
        let missing = run(&["no-such-editor-here".to_string()], &Paths::at(home.path()), ANSWER, None).unwrap_err();
        assert!(missing.message().contains("no-such-editor-here"), "{missing}");
    }
}
