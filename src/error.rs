//! One error type for the crate: what went wrong, what to do about it, and the exit code it means.
//!
//! Lower layers build an [`Error`] from a sentence that names the thing and the fault; upper layers add context in
//! front and a hint behind. Nothing here prints: `main.rs` and the REPL own the screen.

use std::any::Any;
use std::fmt;
use std::io::ErrorKind;

pub type Result<T> = std::result::Result<T, Error>;

/// What an error means for the process; each kind has one exit code (design: the command line).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Anything that failed: exit 1.
    Failure,
    /// Wrong use of the command line or a bad configuration: exit 2.
    Usage,
    /// Trained, and refused by the gate: exit 3.
    Refused,
    /// The model is missing and cannot be fetched: exit 4.
    ModelMissing,
    /// Stopped by the user: exit 130.
    Interrupted,
}

impl Kind {
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failure => 1,
            Kind::Usage => 2,
            Kind::Refused => 3,
            Kind::ModelMissing => 4,
            Kind::Interrupted => 130,
        }
    }
}

/// A fault in words for the user, with an optional hint of what to do next.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), hint: None }
    }

    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted")
    }

    /// A panic that was caught: a fault in finch, told like any other.
    pub fn panicked(what: &str, panic: &(dyn Any + Send)) -> Self {
        let said = panic.downcast_ref::<&str>().copied();
        let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self::failure(format!("{what} failed unexpectedly: {}", said.unwrap_or("no reason given")))
    }

    /// What the user can do about it; the last hint given (the innermost) stays.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Puts `what` in front: "what: message".
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub fn is_interrupted(&self) -> bool {
        self.kind == Kind::Interrupted
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Adds the doing that failed in front of any error.
pub trait Context<T> {
    fn context(self, what: impl fmt::Display) -> Result<T>;
    fn with_context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.into().context(what))
    }

    fn with_context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.into().context(what()))
    }
}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        let error = Error::failure(e.to_string());
        match e.kind() {
            ErrorKind::PermissionDenied => error.hint("look at who owns it, and at its permissions"),
            _ => error,
        }
    }
}

macro_rules! failure_from {
    ($($t:ty),* $(,)?) => {$(
        impl From<$t> for Error {
            fn from(e: $t) -> Self {
                Error::failure(e.to_string())
            }
        }
    )*};
}
failure_from!(serde_json::Error, candle_core::Error, rusqlite::Error, safetensors::SafeTensorError);
