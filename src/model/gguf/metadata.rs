//! What a GGUF file says of itself: keys and typed values, asked for by the type that the reader needs.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::text;

/// Longest text that is a name, in bytes.
const MAX_NAME: usize = 64;

/// A value of the header. Numbers keep no more of their type than whether they are whole.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Whole(i128),
    Real(f64),
    Flag(bool),
    Text(String),
    Texts(Texts),
    /// Of all else.
    List(Vec<Value>),
}

/// A list of texts, which stand behind each other: a vocabulary has too many for each to be kept apart.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Texts {
    all: String,
    ends: Vec<usize>,
}

impl Texts {
    pub fn push(&mut self, text: &str) {
        self.all.push_str(text);
        self.ends.push(self.all.len());
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.all[std::mem::replace(&mut start, end)..end])
    }
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Value::Whole(_) => "a whole number",
            Value::Real(_) => "a number",
            Value::Flag(_) => "true or false",
            Value::Text(_) => "text",
            Value::Texts(_) | Value::List(_) => "a list",
        }
    }
}

/// All keys, each once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub(super) BTreeMap<String, Value>);

impl Metadata {
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A text that is a name: short, so that errors can quote it.
    pub(super) fn name(&self, key: &str) -> Result<Option<&str>> {
        match self.text(key)? {
            Some(name) if name.len() > MAX_NAME => {
                Err(Error::failure(format!("{key} has {} bytes, more than {MAX_NAME}", name.len())))
            }
            name => Ok(name),
        }
    }

    /// A whole number from 0 on.
    pub(super) fn whole(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a whole number from 0 on", |value| match value {
            Value::Whole(n) => u64::try_from(*n).ok(),
            _ => None,
        })
    }

    pub(super) fn real(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match value {
            Value::Whole(n) => Some(*n as f64),
            Value::Real(x) => Some(*x),
            _ => None,
        })
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of texts", |value| match value {
            Value::Texts(texts) => Some(texts.iter().collect()),
            Value::List(items) => items.is_empty().then(Vec::new),
            _ => None,
        })
    }

    pub(super) fn wholes(&self, key: &str) -> Result<Option<Vec<i128>>> {
        let whole = |value: &Value| if let Value::Whole(n) = value { Some(*n) } else { None };
        self.typed(key, "a list of whole numbers", |value| match value {
            Value::List(items) => items.iter().map(whole).collect(),
            Value::Texts(texts) => texts.ends.is_empty().then(Vec::new),
            _ => None,
        })
    }

    /// None where the key is missing; an error where its value is something else.
    fn typed<'a, T>(&'a self, key: &str, wanted: &str, take: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let found = || match value {
            Value::Whole(n) => n.to_string(),
            Value::Real(x) => text::number(*x),
            other => other.kind().to_string(),
        };
        take(value).map(Some).ok_or_else(|| Error::failure(format!("{key} is {}, not {wanted}", found())))
    }
}

/// The value of a key that must be there.
pub(super) fn needed<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::failure(format!("{key} is missing")))
}
