//! JSON that others wrote, as typed values: an error says that it is no JSON, or which field holds what in place of what.

use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::error::Category;
use serde_path_to_error::Error as Fault;

use crate::error::{Error, Result};
use crate::text;

/// Longest path of fields and longest fault in an error, in columns: both may quote the file.
const MAX_PATH: usize = 80;
const MAX_FAULT: usize = 200;

/// What types are called by those who do not write Rust.
const TYPES: [(&str, &str); 4] = [
    ("expected u32", "expected a whole number from 0 to 4294967295"),
    ("expected u64", "expected a whole number from 0 on"),
    ("expected usize", "expected a whole number from 0 on"),
    ("expected f64", "expected a number"),
];

/// Reads a whole text.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    // To know where a fault is takes longer than to read: only a text that has one is read for it.
    if let Ok(value) = serde_json::from_slice(json) {
        return Ok(value);
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(fault)?;
    reader.end().map_err(|e| no_json(&e))?;
    Ok(value)
}

/// The same of JSON that was parsed already.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(fault)
}

fn fault(fault: Fault<serde_json::Error>) -> Error {
    let error = fault.inner();
    let path = match error.classify() {
        Category::Data => fault.path().to_string(),
        _ => return no_json(error),
    };
    let mut said = told(error);
    for (rust, plain) in TYPES {
        said = said.replace(rust, plain);
    }
    match path.as_str() {
        "." => Error::failure(said), // the whole
        path => Error::failure(said).context(text::one_line(path, MAX_PATH)),
    }
}

fn no_json(error: &serde_json::Error) -> Error {
    Error::failure(format!("not JSON: {}", told(error)))
}

fn told(error: &serde_json::Error) -> String {
    // Files of one line are many, rows of a larger file are others.
    text::one_line(&error.to_string().replace(" at line 1 column", " at column"), MAX_FAULT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Settings {
        size: Option<u64>,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Inner {
        rate: f64,
    }

    #[test]
    fn errors_name_the_field_or_say_that_it_is_no_json() {
        let long = format!(r#"{{"size":"{}"}}"#, "x".repeat(9000));
        for (json, expected) in [
            ("", "not JSON: EOF while parsing a value at column 0"),
            ("{\"size\":1", "not JSON: EOF while parsing an object at column 9"),
            ("{\n\"size\" 1}", "not JSON: expected `:` at line 2 column 8"),
            ("{} {}", "not JSON: trailing characters at column 4"),
            ("[]", "invalid length 0, expected struct Settings with 2 elements at column 2"),
            (
                r#"{"size":1.5}"#,
                "size: invalid type: floating point `1.5`, expected a whole number from 0 on at column 11",
            ),
            (r#"{"inner":{"rate":"x"}}"#, "inner.rate: invalid type: string \"x\", expected a number at column 20"),
            (&long, "size: invalid type: string \"xxx"),
        ] {
            let error = read::<Settings>(json.as_bytes()).expect_err(json).to_string();
            assert!(error.starts_with(expected) && error.len() < 300, "{error}");
        }
        let error = typed::<Settings>(serde_json::json!({"size": -1})).unwrap_err().to_string();
        assert_eq!(error, "size: invalid value: integer `-1`, expected a whole number from 0 on");
        assert!(read::<Settings>(br#"{"size":1}"#).is_ok());
    }
}
