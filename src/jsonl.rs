//! Files of one JSON row a line: read line by line, bounded, with the line's number in front of every error.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, stdin};
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Context, Error, Result};
use crate::json;
use crate::model::message::{Message, Role};
use crate::paths::Paths;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 16 << 20;

/// The lines of a file, blank ones left out.
pub struct Lines {
    name: String,
    input: Box<dyn BufRead>,
    line: usize,
}

impl Lines {
    /// `-` is standard input.
    pub fn open(path: &Path) -> Result<Lines> {
        if path == Path::new("-") {
            return Ok(Lines { name: "standard input".to_string(), input: Box::new(BufReader::new(stdin())), line: 0 });
        }
        let name = Paths::display(path);
        let meta = std::fs::metadata(path).with_context(|| name.clone())?;
        if meta.is_dir() {
            return Err(Error::failure(format!("{name} is a folder, not a file")));
        }
        let file = File::open(path).with_context(|| name.clone())?;
        Ok(Lines { name, input: Box::new(BufReader::new(file)), line: 0 })
    }

    /// The file in words for errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next row, as a JSON object, with its line's number (from 1). Errors name the file and the line.
    pub fn next_row(&mut self) -> Result<Option<(usize, Row)>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = (&mut self.input).take(MAX_LINE + 1).read_until(b'\n', &mut bytes);
            if read.with_context(|| self.name.clone())? == 0 {
                return Ok(None);
            }
            self.line += 1;
            let parsed = parse(&bytes, self.line).with_context(|| format!("{}:{}", self.name, self.line))?;
            if let Some(row) = parsed {
                return Ok(Some((self.line, row)));
            }
        }
    }
}

fn parse(bytes: &[u8], line: usize) -> Result<Option<Row>> {
    if bytes.len() as u64 > MAX_LINE {
        return Err(Error::failure(format!("the line is longer than {} MiB", MAX_LINE >> 20)));
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Error::failure("not UTF-8 text"))?;
    let text = if line == 1 { text.trim_start_matches('\u{FEFF}') } else { text }.trim();
    if text.is_empty() {
        return Ok(None);
    }
    match json::read(text.as_bytes())? {
        Value::Object(fields) => Ok(Some(Row { fields })),
        _ => Err(Error::failure("the row is no JSON object {…}")),
    }
}

/// One row; fields are taken out of it by name, and errors name the field.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    fields: Map<String, Value>,
}

impl Row {
    pub fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Takes a field out; `null` counts as absent.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        self.fields.remove(field).filter(|value| !value.is_null())
    }

    pub fn number(&mut self, field: &str) -> Result<Option<f64>> {
        let number = |v: Value| v.as_f64().ok_or_else(|| wrong(field, "a number", &v));
        self.take(field).map(number).transpose()
    }

    pub fn yes_or_no(&mut self, field: &str) -> Result<Option<bool>> {
        let flag = |v: Value| v.as_bool().ok_or_else(|| wrong(field, "true or false", &v));
        self.take(field).map(flag).transpose()
    }

    /// A list of whole numbers.
    pub fn integers(&mut self, field: &str) -> Result<Option<Vec<i64>>> {
        let list = |v: Value| {
            match &v {
                Value::Array(items) => items.iter().map(Value::as_i64).collect::<Option<Vec<i64>>>(),
                _ => None,
            }
            .ok_or_else(|| wrong(field, "a list of whole numbers", &v))
        };
        self.take(field).map(list).transpose()
    }

    /// A list of token ids, each below `vocab_size`.
    pub fn ids(&mut self, field: &str, vocab_size: usize) -> Result<Option<Vec<u32>>> {
        let Some(integers) = self.integers(field)? else { return Ok(None) };
        let id = |(at, n): (usize, i64)| {
            u32::try_from(n).ok().filter(|id| (*id as usize) < vocab_size).ok_or_else(|| {
                Error::failure(format!("{field}[{at}] is {n}; the model's token ids go from 0 to {}", vocab_size - 1))
            })
        };
        integers.into_iter().enumerate().map(id).collect::<Result<Vec<u32>>>().map(Some)
    }

    /// A list of messages with role and content.
    pub fn messages(&mut self, field: &str) -> Result<Option<Vec<Message>>> {
        self.take(field).map(|value| messages(field, &value)).transpose()
    }

    /// What was not taken.
    pub fn rest(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }
}

/// `value` as a list of messages.
pub fn messages(field: &str, value: &Value) -> Result<Vec<Message>> {
    let Value::Array(items) = value else { return Err(wrong(field, "a list of messages", value)) };
    let message = |(at, item): (usize, &Value)| {
        let place = format!("{field}[{at}]");
        let role = item.get("role").and_then(Value::as_str).ok_or_else(|| {
            Error::failure(format!("{place}: a message needs a \"role\" and a \"content\", both of them text"))
        })?;
        let roles = [Role::System, Role::User, Role::Assistant, Role::Tool];
        let role = roles.into_iter().find(|r| r.name() == role).ok_or_else(|| {
            Error::failure(format!("{place}.role is {role:?}, it should be system, user, assistant or tool"))
        })?;
        let content = item.get("content").unwrap_or(&Value::Null);
        let content = content.as_str().ok_or_else(|| wrong(&format!("{place}.content"), "text", content))?;
        Ok(Message::new(role, content))
    };
    items.iter().enumerate().map(message).collect()
}

/// "field should be …, it is …".
pub fn wrong(field: &str, expected: &str, value: &Value) -> Error {
    let found = match value {
        Value::Null => "missing".to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => format!("{:?}", crate::text::one_line(s, 40)),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    };
    Error::failure(format!("{field} should be {expected}, it is {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: impl Into<Vec<u8>>) -> Lines {
        Lines { name: "rows.jsonl".to_string(), input: Box::new(std::io::Cursor::new(text.into())), line: 0 }
    }

    #[test]
    fn rows_come_with_their_lines_and_blank_ones_are_left_out() {
        let mut lines = lines("\u{FEFF}{\"ids\":[1,2]}\r\n\n  \n{\"ids\":[3]}");
        let (line, mut row) = lines.next_row().unwrap().unwrap();
        assert_eq!((line, row.ids("ids", 4).unwrap()), (1, Some(vec![1, 2])));
        assert_eq!(lines.next_row().unwrap().unwrap().0, 4);
        assert_eq!(lines.next_row().unwrap(), None);
    }

    #[test]
    fn errors_name_file_line_and_field() {
        let fault = |text: &[u8]| lines(text).next_row().unwrap_err().to_string();
        assert!(fault(b"\n{\"a\":}").starts_with("rows.jsonl:2: not JSON: expected value at column 6"));
        assert_eq!(fault(b"[1]"), "rows.jsonl:1: the row is no JSON object {…}");
        assert_eq!(fault(b"\xff"), "rows.jsonl:1: not UTF-8 text");
        let row = |text: &str| lines(text).next_row().unwrap().unwrap().1;
        for (text, expected) in [
            (r#"{"ids":[1,9]}"#, "ids[1] is 9; the model's token ids go from 0 to 8"),
            (r#"{"ids":[-1]}"#, "ids[0] is -1"),
            (r#"{"ids":"x"}"#, "ids should be a list of whole numbers, it is \"x\""),
        ] {
            let error = row(text).ids("ids", 9).unwrap_err();
            assert!(error.message().contains(expected), "{error}");
        }
        for (text, expected) in [
            (r#"{"m":3}"#, "m should be a list of messages, it is 3"),
            (r#"{"m":[{"content":"x"}]}"#, "m[0]: a message needs a \"role\""),
            (r#"{"m":[{"role":"bot","content":"x"}]}"#, "m[0].role is \"bot\""),
            (r#"{"m":[{"role":"user","content":[1]}]}"#, "m[0].content should be text, it is a list"),
        ] {
            let error = row(text).messages("m").unwrap_err();
            assert!(error.message().contains(expected), "{error}");
        }
        assert!(row(r#"{"w":"1"}"#).number("w").unwrap_err().message().contains("w should be a number"));
        assert_eq!(row(r#"{"w":null}"#).number("w").unwrap(), None);
    }
}
