//! Which modules a PEFT configuration means: names, patterns and layers, matched as PEFT matches them in Python.

use std::collections::BTreeSet;
use std::fmt;

use fancy_regex::{Regex, RegexBuilder};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::peft_config::{index, is_set, quoted, wrong};
use crate::error::{Error, Result};

/// Longest pattern, in bytes.
const MAX_PATTERN: usize = 4096;
/// Counted repetitions of a pattern, multiplied with each other: those who compile it multiply them unchecked.
const MAX_REPETITIONS: usize = 1_000_000;
/// The regular parts of a compiled pattern, in bytes.
const MAX_PROGRAM: usize = 1 << 18;
/// Names in a list: PEFT writes one a module at most.
const MAX_NAMES: usize = 4096;
/// Patterns with a rank or alpha of their own.
const MAX_EXCEPTIONS: usize = 600;
/// Steps after which a pattern that goes back and forth is given up: far more than any honest one takes on a module path.
const MAX_STEPS: usize = 100_000;

/// A pattern over a whole module path, with the text that the configuration has.
#[derive(Debug)]
pub(super) struct Pattern {
    key: &'static str,
    text: String,
    regex: Regex,
}

impl Pattern {
    /// `before` and `after` go around the pattern, as PEFT puts them there.
    fn new(key: &'static str, text: &str, before: &str, after: &str) -> Result<Pattern> {
        let refuse = |why: String| {
            Error::failure(format!("{key}: the pattern {} is not understood: {why}", quoted(text)))
                .hint("name the modules in a list, such as [\"q_proj\", \"v_proj\"]")
        };
        if text.len() > MAX_PATTERN {
            return Err(refuse(format!("{} characters are too many", text.len())));
        }
        if repetitions(text) > MAX_REPETITIONS {
            return Err(refuse("it repeats something too often".to_string()));
        }
        let compile = |text: &str| {
            RegexBuilder::new(text).delegate_size_limit(MAX_PROGRAM).backtrack_limit(MAX_STEPS).build().map_err(|e| {
                let why = e.to_string();
                refuse(why.lines().last().unwrap_or_default().trim_start_matches("error: ").to_string())
            })
        };
        compile(text)?; // on its own first: parentheses that close the group around it must not pass
        Ok(Pattern { key, text: text.to_string(), regex: compile(&format!("^{before}({text}){after}"))? })
    }

    fn is_match(&self, path: &str) -> Result<bool> {
        self.regex.is_match(path).map_err(|e| self.gave_up(&e))
    }

    fn gave_up(&self, error: &fancy_regex::Error) -> Error {
        Error::failure(format!("{}: the pattern {} cannot be matched: {error}", self.key, quoted(&self.text)))
            .hint("write a simpler pattern, or name the modules in a list")
    }
}

/// The product of the numbers in braces; more than a nesting of them can ask for.
fn repetitions(pattern: &str) -> usize {
    let braces = pattern.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    let numbers = braces.flat_map(|inside| inside.split(|c: char| !c.is_ascii_digit())).filter(|run| !run.is_empty());
    numbers.fold(1, |product: usize, run| product.saturating_mul(run.parse().unwrap_or(usize::MAX).max(1)))
}

/// PEFT's ways of naming modules.
#[derive(Debug)]
enum Names {
    AllLinear,
    /// Whole paths, or their ends after a dot.
    List(Vec<String>),
    /// For the whole path.
    Pattern(Pattern),
}

/// How a list of names means a path.
#[derive(PartialEq)]
enum Match {
    No,
    /// The end of it: restrictions to some layers apply.
    End,
    Whole,
}

impl Names {
    fn parse(key: &'static str, value: &Value) -> Result<Names> {
        match value {
            Value::String(s) if s.eq_ignore_ascii_case("all-linear") => Ok(Names::AllLinear),
            Value::String(s) => Ok(Names::Pattern(Pattern::new(key, s, "", "$")?)),
            Value::Array(items) if items.len() > MAX_NAMES => {
                Err(Error::failure(format!("{key} names {} modules, more than {MAX_NAMES}", items.len())))
            }
            Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map(str::to_string))
                .collect::<Option<Vec<String>>>()
                .map(Names::List)
                .ok_or_else(|| wrong(key, "a list of module names", value)),
            other => Err(wrong(key, "a list of module names or a pattern", other)),
        }
    }

    fn find(&self, path: &str) -> Result<Match> {
        let ends = |name: &String| path.strip_suffix(name.as_str()).is_some_and(|before| before.ends_with('.'));
        let whole = match self {
            Names::AllLinear => path.contains(".layers."),
            Names::Pattern(pattern) => pattern.is_match(path)?,
            Names::List(names) if names.iter().any(|name| name == path) => true,
            Names::List(names) if names.iter().any(ends) => return Ok(Match::End),
            Names::List(_) => false,
        };
        Ok(if whole { Match::Whole } else { Match::No })
    }
}

/// The modules that carry pairs.
#[derive(Debug)]
pub(super) struct Selection {
    targets: Names,
    exclude: Option<Names>,
    layers: Option<BTreeSet<usize>>,
    /// Where a path has its layer's number; several are tried in turn.
    layer_patterns: Vec<Pattern>,
}

impl Selection {
    /// From `target_modules`, `exclude_modules`, `layers_to_transform` and `layers_pattern`; `get` gives what is not null.
    pub fn parse<'a>(get: &dyn Fn(&str) -> Option<&'a Value>) -> Result<Selection> {
        let targets = match get("target_modules") {
            Some(value) => Names::parse("target_modules", value)?,
            None => Names::List(vec!["q_proj".into(), "v_proj".into()]), // PEFT's own default for Qwen
        };
        let exclude = get("exclude_modules").filter(|v| is_set(v));
        let layers = get("layers_to_transform").filter(|v| is_set(v) || v.is_number()).map(layers).transpose()?;
        let pattern = get("layers_pattern").filter(|v| is_set(v));
        if !matches!(targets, Names::List(_)) {
            for (key, is_there) in [("layers_to_transform", layers.is_some()), ("layers_pattern", pattern.is_some())] {
                if is_there {
                    return Err(Error::failure(format!("{key} goes with a list of target_modules only"))
                        .hint("PEFT refuses it too: say the layers in the pattern of target_modules"));
                }
            }
        }
        Ok(Selection {
            targets,
            exclude: exclude.map(|v| Names::parse("exclude_modules", v)).transpose()?,
            layers,
            layer_patterns: layer_patterns(pattern)?,
        })
    }

    /// Whether the module at `path` carries a pair. Errors: a pattern that takes too long.
    pub fn contains(&self, path: &str) -> Result<bool> {
        if let Some(exclude) = &self.exclude
            && exclude.find(path)? != Match::No
        {
            return Ok(false);
        }
        match (self.targets.find(path)?, &self.layers) {
            (Match::No, _) => Ok(false),
            (Match::End, Some(layers)) => Ok(self.layer_of(path)?.is_some_and(|layer| layers.contains(&layer))),
            _ => Ok(true),
        }
    }

    fn layer_of(&self, path: &str) -> Result<Option<usize>> {
        for pattern in &self.layer_patterns {
            let found = pattern.regex.captures(path).map_err(|e| pattern.gave_up(&e))?;
            if let Some(number) = found.as_ref().and_then(|captures| captures.name("layer")) {
                return Ok(number.as_str().parse().ok());
            }
        }
        Ok(None)
    }
}

fn layers(value: &Value) -> Result<BTreeSet<usize>> {
    let found = match value {
        Value::Array(items) => items.iter().map(index).collect(),
        one => index(one).map(|layer| BTreeSet::from([layer])),
    };
    found.ok_or_else(|| wrong("layers_to_transform", "a layer number or a list of them", value))
}

fn layer_patterns(value: Option<&Value>) -> Result<Vec<Pattern>> {
    let key = "layers_pattern";
    let number = r"\.(?P<layer>\d+)\.";
    let one = |text: &str| Pattern::new(key, text, r"(?:|.*?\.)", number);
    match value {
        None => Ok(vec![Pattern::new(key, r"[^.]*", r".*?\.", number)?]),
        Some(Value::String(text)) => Ok(vec![one(text)?]),
        Some(Value::Array(items)) if items.len() > MAX_EXCEPTIONS => {
            Err(Error::failure(format!("{key} has {} patterns, more than {MAX_EXCEPTIONS}", items.len())))
        }
        Some(Value::Array(items)) => {
            let text =
                |item: &Value| item.as_str().ok_or_else(|| wrong(key, "a name or a list of names", item)).and_then(one);
            items.iter().map(text).collect()
        }
        Some(other) => Err(wrong(key, "a name or a list of names", other)),
    }
}

/// The entries of a JSON object in the order of the file.
#[derive(Debug, Default)]
pub(super) struct InOrder(pub Vec<(String, Value)>);

impl<'de> Deserialize<'de> for InOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = InOrder;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_unit<E>(self) -> std::result::Result<InOrder, E> {
                Ok(InOrder::default()) // null: none
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<InOrder, M::Error> {
                let mut entries: Vec<(String, Value)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Value>()? {
                    if entries.len() > MAX_EXCEPTIONS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_EXCEPTIONS} patterns")));
                    }
                    match entries.iter_mut().find(|(known, _)| *known == name) {
                        Some(known) => known.1 = value, // as in Python: the last value in the first one's place
                        None => entries.push((name, value)),
                    }
                }
                Ok(InOrder(entries))
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

/// PEFT's `rank_pattern` or `alpha_pattern`: module names or patterns to values.
#[derive(Debug)]
pub(super) struct Exceptions<T>(Vec<(Pattern, T)>);

impl<T: Copy> Exceptions<T> {
    pub fn parse(key: &'static str, entries: &InOrder, value: impl Fn(&str, &Value) -> Result<T>) -> Result<Self> {
        let entry = |(name, found): &(String, Value)| {
            Ok((Pattern::new(key, name, r"(.*\.)?", "$")?, value(&format!("{key}: {name}"), found)?))
        };
        entries.0.iter().map(entry).collect::<Result<_>>().map(Exceptions)
    }

    /// The value for `path`: the first that matches in the order of the file.
    pub fn of(&self, path: &str) -> Result<Option<T>> {
        for (pattern, value) in &self.0 {
            if pattern.is_match(path)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[path = "peft_modules_tests.rs"]
mod tests;
