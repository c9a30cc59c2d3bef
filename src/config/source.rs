//! Values as they stand in `config.toml`, the environment or a flag, and how they become numbers, choices and lists.

use std::ffi::OsString;

use toml::de::{DeTable, DeValue};

use crate::error::{self, Error};

/// A value that nobody has judged yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// From the environment or a flag: the type is still open.
    Text(String),
    String(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Value>),
    /// Something that no key takes: what it is, in words.
    Other(&'static str),
}

/// A value in the file.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    /// Dotted.
    pub path: String,
    pub value: Value,
    /// From 1.
    pub line: usize,
}

/// Every value of a TOML text with its dotted path, in the order of the lines; tables for which `is_section` is false
/// count as values. Errors: line and reason.
pub(super) fn parse(text: &str, is_section: fn(&str) -> bool) -> Result<Vec<Entry>, (usize, String)> {
    let ends: Vec<usize> = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at).collect();
    let line_at = |byte: usize| ends.partition_point(|end| *end < byte) + 1;
    let document = DeTable::parse(text).map_err(|e| {
        let line = line_at(e.span().map_or(0, |span| span.start));
        (line, e.message().lines().collect::<Vec<_>>().join(", "))
    })?;
    let mut entries = Vec::new();
    collect("", document.get_ref(), is_section, &line_at, &mut entries);
    entries.sort_by_key(|e| e.line);
    Ok(entries)
}

fn collect(
    section: &str,
    table: &DeTable<'_>,
    is_section: fn(&str) -> bool,
    line_at: &dyn Fn(usize) -> usize,
    entries: &mut Vec<Entry>,
) {
    for (key, value) in table.iter() {
        let path = if section.is_empty() { key.get_ref().to_string() } else { format!("{section}.{}", key.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) if is_section(&path) => collect(&path, inner, is_section, line_at, entries),
            other => entries.push(Entry { path, value: Value::from_toml(other), line: line_at(key.span().start) }),
        }
    }
}

/// The `FINCH_…` variables, in order of their names. Errors: one that is no Unicode.
pub(super) fn variables(all: impl Iterator<Item = (OsString, OsString)>) -> error::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for (name, value) in all {
        let Some(name) = name.to_str().filter(|n| n.starts_with("FINCH_")) else { continue };
        // Folders may have any name; they are not read here.
        match value.into_string() {
            Ok(value) => found.push((name.to_string(), value)),
            Err(_) if name == "FINCH_HOME" => {}
            Err(_) => return Err(Error::usage(format!("{name} in the environment is not Unicode text"))),
        }
    }
    found.sort();
    Ok(found)
}

impl Value {
    fn from_toml(value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(s) => Value::String(s.to_string()),
            DeValue::Integer(i) => i64::from_str_radix(i.as_str(), i.radix())
                .map_or(Value::Other("a number that is too large"), Value::Integer),
            DeValue::Float(f) => f.as_str().parse().map_or(Value::Other("no number"), Value::Float),
            DeValue::Boolean(b) => Value::Bool(*b),
            DeValue::Array(items) => Value::List(items.iter().map(|item| Value::from_toml(item.get_ref())).collect()),
            DeValue::Datetime(_) => Value::Other("a date or time"),
            DeValue::Table(_) => Value::Other("a table"),
        }
    }

    /// For an error: what was given, shortened, controls escaped.
    pub fn describe(&self) -> String {
        let quoted = |s: &str| {
            let mut short: String = s.chars().take(60).collect();
            if short.len() < s.len() {
                short.push('…');
            }
            format!("{short:?}")
        };
        match self {
            Value::Text(s) | Value::String(s) => quoted(s),
            Value::Integer(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Bool(b) => b.to_string(),
            Value::List(items) if items.len() > 8 => format!("a list of {}", items.len()),
            Value::List(items) => format!("[{}]", items.iter().map(Value::describe).collect::<Vec<_>>().join(", ")),
            Value::Other(what) => what.to_string(),
        }
    }

    pub fn whole(&self, least: usize, most: usize) -> Result<usize, String> {
        let number = match self {
            Value::Text(s) => s.trim().parse().ok(),
            Value::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        number.filter(|n| (least..=most).contains(n)).ok_or_else(|| format!("a whole number from {least} to {most}"))
    }

    fn float(&self) -> Option<f64> {
        match self {
            Value::Text(s) => s.trim().parse().ok(),
            Value::Integer(n) => Some(*n as f64),
            Value::Float(x) => Some(*x),
            _ => None,
        }
    }

    pub fn number(&self, least: f64, most: f64) -> Result<f64, String> {
        self.float()
            .filter(|x| (least..=most).contains(x)) // neither NaN nor infinity is
            .ok_or_else(|| format!("a number from {least} to {most}"))
    }

    pub fn number_above(&self, least: f64, most: f64) -> Result<f64, String> {
        self.float()
            .filter(|x| *x > least && *x <= most)
            .ok_or_else(|| format!("a number above {least}, {most} at most"))
    }

    pub fn yes_or_no(&self) -> Result<bool, String> {
        match self {
            Value::Bool(b) => Some(*b),
            Value::Text(s) => match s.trim().to_lowercase().as_str() {
                "true" | "yes" | "on" | "1" => Some(true),
                "false" | "no" | "off" | "0" => Some(false),
                _ => None,
            },
            _ => None,
        }
        .ok_or_else(|| "true or false".to_string())
    }

    pub fn name(&self, what: &str) -> Result<String, String> {
        match self {
            Value::Text(s) | Value::String(s) if !s.trim().is_empty() => Ok(s.clone()),
            _ => Err(what.to_string()),
        }
    }

    pub fn one_of<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, String> {
        let given = match self {
            Value::Text(s) | Value::String(s) => s.as_str(),
            _ => "",
        };
        let expected = || {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            format!("one of {}", names.join(", "))
        };
        choices.iter().find(|(name, _)| *name == given).map(|(_, choice)| *choice).ok_or_else(expected)
    }

    /// A list of strings; as open text, the names between commas.
    pub fn names(&self) -> Option<Vec<String>> {
        match self {
            Value::Text(s) => Some(s.split(',').map(|name| name.trim().to_string()).collect()),
            Value::List(items) => items
                .iter()
                .map(|item| match item {
                    Value::String(s) => Some(s.clone()),
                    _ => None,
                })
                .collect(),
            _ => None,
        }
    }
}
