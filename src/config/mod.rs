//! The configuration: flags, environment, `config.toml` and defaults, resolved once into one typed [`Config`].
//!
//! A bad value ends with its place and key (a usage error, exit 2); a key that nobody knows is a warning that names the
//! nearest one. `keys` lists every key with its type and range, `source` reads the file and the environment.

mod keys;
mod source;

use std::collections::BTreeMap;

use crate::adapter::peft::LoraSettings;
use crate::engine::Draft;
use crate::error::{Error, Result};
use crate::feedback::FeedbackConfig;
use crate::fsio;
use crate::model::load::ModelSource;
use crate::model::lora::Target;
use crate::model::quantize::Quantization;
use crate::nearest::nearest;
use crate::paths::Paths;
use crate::text::one_line;
pub use crate::train::schedule::Shape as Schedule;
use source::{Entry, Value};

/// Far beyond any configuration that somebody wrote, in bytes.
const MAX_FILE: u64 = 1 << 18;
/// Unknown keys that get a line of their own.
const MAX_UNKNOWN: usize = 20;
/// Names in the environment that start with `FINCH_` and stand for no key.
const OTHER_VARIABLES: [&str; 2] = ["FINCH_HOME", "FINCH_NETWORK"];

/// Everything that can be configured, checked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    pub model: ModelSection,
    pub generation: GenerationSection,
    pub feedback: FeedbackSection,
    pub lora: LoraSection,
    pub teacher: TeacherSection,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ModelSection {
    /// `auto`, `builtin`, a folder, a `.gguf` file or a hub repository.
    pub name: String,
    /// What its weights are quantised to while they are loaded; None: they stay as they are.
    pub quantize: Option<Quantization>,
}

impl ModelSection {
    /// Where the model comes from. Errors as those of [`ModelSource::resolve`].
    pub fn source(&self) -> Result<ModelSource> {
        Ok(ModelSource::resolve(&self.name)?.quantized(self.quantize))
    }
}

/// Sampling; what is `None` is decided by the model's own generation_config.json, then by Qwen's recommendation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationSection {
    /// 0 is greedy.
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    /// 0: among all tokens.
    pub top_k: Option<usize>,
    pub repetition_penalty: Option<f32>,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    pub draft: Draft,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FeedbackSection {
    pub critical_weight: f64,
    pub medium_weight: f64,
    pub good_weight: f64,
    pub buffer_capacity: usize,
    /// New trainable examples that start a training; at most `buffer_capacity`.
    pub threshold: usize,
    pub auto_train: bool,
    pub revise: Revise,
    /// Tokens of a prompt that lessons may take, within a share of the model's context; 0: notes are no lessons.
    pub lesson_tokens: usize,
}

impl FeedbackSection {
    /// The part that the rules of [`crate::feedback`] need.
    pub fn rules(&self) -> FeedbackConfig {
        FeedbackConfig {
            critical_weight: self.critical_weight,
            medium_weight: self.medium_weight,
            good_weight: self.good_weight,
            buffer_capacity: self.buffer_capacity,
            threshold: self.threshold,
        }
    }
}

/// Whether a revision is made when a note is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revise {
    Ask,
    Always,
    Never,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LoraSection {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    /// Without repetition, never empty.
    pub targets: Vec<Target>,
    pub variant: Variant,
    pub training: TrainingSection,
}

/// What kind of adapter is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Variant {
    /// Scaled by alpha / rank
    Lora,
    /// Scaled by alpha / √rank
    Rslora,
    /// LoRA that learns the magnitude of each output apart
    Dora,
}

impl Variant {
    pub fn name(self) -> &'static str {
        match self {
            Variant::Lora => "lora",
            Variant::Rslora => "rslora",
            Variant::Dora => "dora",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct TrainingSection {
    pub learning_rate: Auto<f64>,
    pub batch_size: usize,
    pub epochs: Auto<usize>,
    pub max_steps: usize,
    pub warmup_ratio: f64,
    pub schedule: Schedule,
    pub weight_decay: f64,
    /// 0 is off.
    pub max_grad_norm: f64,
    pub seed: u64,
}

/// A number, or the choice left to finch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto<T> {
    Auto,
    Value(T),
}

impl<T> Auto<T> {
    /// `None` for auto.
    pub fn value(self) -> Option<T> {
        match self {
            Auto::Auto => None,
            Auto::Value(value) => Some(value),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct TeacherSection {
    /// Nothing is sent while this is false.
    pub enabled: bool,
    pub sampling_rate: f64,
}

impl Default for ModelSection {
    fn default() -> Self {
        ModelSection { name: "auto".to_string(), quantize: None }
    }
}

impl Default for GenerationSection {
    fn default() -> Self {
        GenerationSection {
            temperature: None,
            top_p: None,
            top_k: None,
            repetition_penalty: None,
            max_tokens: 1024,
            draft: Draft::Off,
        }
    }
}

impl Default for FeedbackSection {
    fn default() -> Self {
        FeedbackSection {
            critical_weight: 10.0,
            medium_weight: 3.0,
            good_weight: 1.0,
            buffer_capacity: 100,
            threshold: 10,
            auto_train: true,
            revise: Revise::Ask,
            lesson_tokens: 256,
        }
    }
}

impl Default for LoraSection {
    fn default() -> Self {
        LoraSection {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            targets: Target::ALL.to_vec(),
            variant: Variant::Lora,
            training: TrainingSection::default(),
        }
    }
}

impl Default for TrainingSection {
    fn default() -> Self {
        TrainingSection {
            learning_rate: Auto::Auto,
            batch_size: 4,
            epochs: Auto::Auto,
            max_steps: 300,
            warmup_ratio: 0.05,
            schedule: Schedule::Cosine,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            seed: 42,
        }
    }
}

impl Default for TeacherSection {
    fn default() -> Self {
        TeacherSection { enabled: false, sampling_rate: 0.05 }
    }
}

impl LoraSection {
    /// What a new adapter is made with.
    pub fn settings(&self) -> LoraSettings {
        LoraSettings {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            targets: self.targets.clone(),
            layers: None,
            use_rslora: self.variant == Variant::Rslora,
            use_dora: self.variant == Variant::Dora,
        }
    }
}

impl Config {
    /// The configuration of this process: `overrides` (flags, as dotted keys and values), then `FINCH_…` variables, then
    /// `config.toml`, then defaults; and the warnings to show.
    pub fn load<K: AsRef<str>, V: AsRef<str>>(paths: &Paths, overrides: &[(K, V)]) -> Result<(Config, Vec<String>)> {
        let path = paths.config();
        let file = if path.symlink_metadata().is_ok() {
            let bad = |e: Error| Error::usage(e.message().to_string());
            Some((Paths::display(&path), fsio::read_text_limited(&path, MAX_FILE).map_err(bad)?))
        } else {
            None
        };
        let overrides: Vec<(&str, &str)> = overrides.iter().map(|(k, v)| (k.as_ref(), v.as_ref())).collect();
        let variables = source::variables(std::env::vars_os());
        resolve(file.as_ref().map(|(name, text)| (name.as_str(), text.as_str())), &variables?, &overrides)
    }
}

/// What a `config.toml` alone says, with warnings; `name` is what errors call it.
pub fn read(name: &str, text: &str) -> Result<(Config, Vec<String>)> {
    resolve(Some((name, text)), &[], &[])
}

/// [`Config::load`] without the outside world: the file's name and text, the `FINCH_…` variables, the flags.
fn resolve(
    file: Option<(&str, &str)>,
    variables: &[(String, String)],
    overrides: &[(&str, &str)],
) -> Result<(Config, Vec<String>)> {
    let mut resolver = Resolver::default();
    if let Some((name, text)) = file {
        resolver.take_file(name, text)?;
    }
    for (name, value) in variables {
        resolver.take_variable(name, value)?;
    }
    for (path, value) in overrides {
        let key = keys::find(path).ok_or_else(|| Error::usage(format!("there is no configuration key {path}")))?;
        resolver.set(key, &Value::Text(value.to_string()), &Origin::Flag)?;
    }
    resolver.check_together()?;
    Ok((resolver.config, resolver.warnings))
}

/// Where a value came from, in words that open an error.
#[derive(Debug, Clone, PartialEq)]
enum Origin {
    File { name: String, line: usize },
    Variable(String),
    Flag,
}

impl Origin {
    fn error(&self, message: String) -> Error {
        match self {
            Origin::File { name, line } => Error::usage(format!("{name}:{line}: {message}"))
                .hint("correct this line, or remove it for the default"),
            Origin::Variable(name) => Error::usage(format!("{name}: {message}"))
                .hint(format!("correct {name} in the environment, or unset it")),
            Origin::Flag => Error::usage(format!("command line: {message}")),
        }
    }
}

#[derive(Default)]
struct Resolver {
    config: Config,
    warnings: Vec<String>,
    origins: BTreeMap<&'static str, Origin>,
}

impl Resolver {
    fn set(&mut self, key: &'static keys::Key, value: &Value, origin: &Origin) -> Result<()> {
        (key.set)(&mut self.config, value).map_err(|expected| {
            origin.error(format!("{} should be {expected}, it is {}", key.path, value.describe()))
        })?;
        self.origins.insert(key.path, origin.clone());
        Ok(())
    }

    fn take_file(&mut self, name: &str, text: &str) -> Result<()> {
        let entries = source::parse(text, keys::is_section).map_err(|(line, message)| {
            Error::usage(format!("{name}:{line}: {message}")).hint("config.toml is written in TOML: key = value")
        })?;
        let is_set = |path: &str| entries.iter().any(|e| e.path == path);
        let mut unknown = 0;
        for Entry { path, value, line } in &entries {
            let origin = Origin::File { name: name.to_string(), line: *line };
            match keys::find(path) {
                Some(key) if key.path != path && is_set(key.path) => {
                    self.warnings.push(format!("{name}:{line}: {path} is ignored: {} is set too", key.path));
                }
                Some(key) => self.set(key, value, &origin)?,
                None if keys::is_section(path) => {
                    return Err(origin.error(format!("{path} should be a section, it is {}", value.describe())));
                }
                None if unknown == MAX_UNKNOWN => {
                    self.warnings
                        .push(format!("{name}:{line}: this key and those after it that are unknown are ignored"));
                    unknown += 1;
                }
                None if unknown > MAX_UNKNOWN => {}
                None => {
                    unknown += 1;
                    let shown = one_line(path, 80); // a quoted key can hold anything
                    self.warnings.push(format!("{name}:{line}: unknown key {shown} is ignored{}", suggestion(path)));
                }
            }
        }
        Ok(())
    }

    fn take_variable(&mut self, name: &str, value: &str) -> Result<()> {
        if value.is_empty() || OTHER_VARIABLES.contains(&name) {
            return Ok(()); // an empty variable counts as unset
        }
        if let Some(key) = keys::all().find(|(path, _)| variable(path) == name).map(|(_, key)| key) {
            return self.set(key, &Value::Text(value.to_string()), &Origin::Variable(name.to_string()));
        }
        // Other programs may use such names too, so only what looks like a slip is worth a word.
        let known: Vec<String> = keys::all().map(|(path, _)| variable(path)).collect();
        if let Some(near) = nearest(name, known.iter().map(String::as_str)) {
            self.warnings.push(format!("{name} in the environment is ignored; did you mean {near}?"));
        }
        Ok(())
    }

    /// Checks that need more than one key.
    fn check_together(&self) -> Result<()> {
        let FeedbackSection { threshold, buffer_capacity, .. } = self.config.feedback;
        let origin = ["feedback.threshold", "feedback.buffer_capacity"].iter().find_map(|key| self.origins.get(key));
        match origin {
            Some(origin) if threshold > buffer_capacity => Err(origin.error(format!(
                "feedback.threshold is {threshold}, more than feedback.buffer_capacity ({buffer_capacity}): no training would start"
            ))),
            _ => Ok(()),
        }
    }
}

/// The environment's name of a key: `FINCH_LORA_RANK`.
fn variable(path: &str) -> String {
    format!("FINCH_{}", path.replace('.', "_").to_uppercase())
}

/// "; did you mean …?" for an unknown key: the nearest path, else a key of that name elsewhere, else what there is.
fn suggestion(path: &str) -> String {
    let paths = || keys::all().map(|(path, _)| path);
    let name = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
    let same_section: Vec<&str> = paths().filter(|known| section(known) == section(path)).collect();
    let names: Vec<String> = same_section.iter().map(|known| name(known)).collect();
    let near_in_section = nearest(&name(path), names.iter().map(String::as_str))
        .and_then(|near| same_section.iter().find(|known| name(known) == near).copied());
    let near = near_in_section
        .or_else(|| paths().find(|known| name(known) == name(path)))
        .or_else(|| nearest(path, paths().chain(keys::sections())))
        .or_else(|| paths().find(|known| nearest(&name(path), [name(known).as_str()]).is_some()));
    match near {
        Some(near) => format!("; did you mean {near}?"),
        None if names.is_empty() => format!("; the sections are {}", keys::sections().collect::<Vec<_>>().join(", ")),
        None => format!("; [{}] has {}", section(path), names.join(", ")),
    }
}

fn section(path: &str) -> &str {
    path.rsplit_once('.').map_or("", |(section, _)| section)
}

#[cfg(test)]
mod tests;
