//! `finch.json`: where an adapter came from and what the gate measured. PEFT and vLLM do not look at it.

use std::path::Path;

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::{fsio, json, text};

pub const FILE: &str = "finch.json";
/// Far beyond any provenance, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Figures that were not measured are absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// Digest of the base's weights.
    pub base: String,
    /// The base's name, for people.
    pub model: String,
    /// The run's id in the store of the data folder that it was trained in.
    #[serde(default)]
    pub run: Option<i64>,
    pub created: DateTime<Utc>,
    /// Rows that it was trained on.
    #[serde(default)]
    pub examples: usize,
    /// Objective, learning rate, steps, seed, …
    #[serde(default)]
    pub parameters: Value,
    #[serde(default)]
    pub loss_before: Option<f64>,
    #[serde(default)]
    pub loss_after: Option<f64>,
    /// Time that the training took.
    #[serde(default)]
    pub seconds: Option<f64>,
    #[serde(default)]
    pub gate: Option<Gate>,
    /// Digests ([`crate::feedback::lesson::digest`]) of the notes that it obeys without being told, as the gate measured: while
    /// it is live they stay out of the prompt.
    #[serde(default)]
    pub carries: Vec<String>,
}

/// What the gate said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    pub passed: bool,
    /// Why not, in sentences.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Figure by figure.
    #[serde(default)]
    pub measurements: Value,
}

/// Errors unless `base` can be the digest of a base's weights; it also names a file.
pub fn check_digest(base: &str) -> Result<()> {
    if !base.is_empty() && base.len() <= 128 && base.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Error::failure(format!("\"{}\" is no digest of a base model", text::one_line(base, 40))))
}

impl Provenance {
    /// Of an adapter for the base with this digest and name, made now.
    pub fn new(base: impl Into<String>, model: impl Into<String>) -> Provenance {
        Provenance {
            base: base.into(),
            model: model.into(),
            run: None,
            created: Utc::now().trunc_subsecs(3),
            examples: 0,
            parameters: Value::Null,
            loss_before: None,
            loss_after: None,
            seconds: None,
            gate: None,
            carries: Vec::new(),
        }
    }

    /// Digests of the notes that it carries on `base`: what was measured on another base says nothing about this one.
    pub fn carried_on(&self, base: &str) -> &[String] {
        if self.base == base { &self.carries } else { &[] }
    }

    /// The provenance in an adapter's folder; `None` where the adapter is not finch's. Errors name the file.
    pub fn read(folder: &Path) -> Result<Option<Provenance>> {
        let path = folder.join(FILE);
        if path.symlink_metadata().is_err() {
            return Ok(None);
        }
        let bytes = fsio::read_limited(&path, MAX_FILE)?;
        let made: Provenance = json::read(&bytes).context(FILE)?;
        check_digest(&made.base).context(FILE)?;
        Ok(Some(made))
    }

    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut json = serde_json::to_vec_pretty(self)?;
        json.push(b'\n');
        fsio::write_atomic(&folder.join(FILE), &json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Provenance::read(dir.path()).unwrap(), None);
        let gate = Gate {
            passed: false,
            reasons: vec!["KL 0.31 nat a token".to_string()],
            measurements: serde_json::json!({"kl": 0.31, "canaries": [18, 20]}),
        };
        let full = Provenance {
            run: Some(3),
            examples: 12,
            parameters: serde_json::json!({"learning_rate": 1e-3}),
            loss_before: Some(2.31),
            loss_after: Some(0.09),
            seconds: Some(94.0),
            gate: Some(gate),
            carries: vec!["c0ffee".to_string()],
            ..Provenance::new("ab12", "finch-tiny")
        };
        full.write(dir.path()).unwrap();
        assert_eq!(Provenance::read(dir.path()).unwrap(), Some(full));
    }

    #[test]
    fn other_versions_read_and_broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let put = |text: &str| std::fs::write(dir.path().join(FILE), text).unwrap();
        put(r#"{"base":"ab","model":"m","created":"2026-02-06T14:30:25+01:00","loss_after":null,"future":[1]}"#);
        let read = Provenance::read(dir.path()).unwrap().unwrap();
        assert_eq!(
            (read.base.as_str(), read.loss_after, read.created.to_rfc3339().as_str()),
            ("ab", None, "2026-02-06T13:30:25+00:00")
        );
        assert!(read.carries.is_empty());
        let no_digest = r#"{"base":"../x","model":"m","created":"2026-02-06T14:30:25Z"}"#;
        for bad in ["", "{}", "[1]", r#"{"base":1}"#, no_digest] {
            put(bad);
            assert!(Provenance::read(dir.path()).unwrap_err().message().contains(FILE), "{bad}");
        }
    }
}
