//! From a model's name to a model that can answer: which files, checked in which order.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use super::Network;
use super::answers::Answers;
use super::backend::Backend;
use super::builtin;
use super::checkpoint::{Checkpoint, Stop};
use super::config::ModelConfig;
use super::digest::DigestCache;
use super::generation::GenerationConfig;
use super::gguf::{self, Gguf};
use super::memory::Memory;
use super::quantize::{Quantization, quantized};
use super::storage::Storage;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::error::{Context, Error, Result};
use crate::fsio;
use crate::paths::Paths;

/// Files of settings are small; vocabularies are not.
const MAX_SETTINGS: u64 = 1 << 20;
const MAX_TOKENIZER: u64 = 32 << 20;
/// Of `tokenizer_config.json`, which may hold templates and added tokens.
const MAX_TOKENIZER_CONFIG: u64 = 4 << 20;

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// finch-tiny, inside the binary.
    Builtin,
    /// A Hugging Face folder.
    Folder(PathBuf),
    /// A GGUF file, or one part of such.
    Gguf(PathBuf),
    /// One of the others, quantised while it is loaded.
    Quantized(Box<ModelSource>, Quantization),
}

/// Weights that can decode and learn; all that work on token ids needs.
pub struct Base {
    pub name: String,
    /// SHA-256 of the weights, in hex: what adapters and answers name their base by.
    pub digest: String,
    pub network: Arc<dyn Network>,
    pub builtin: bool,
}

/// A base with its tokenizer, template and advice: what a chat needs.
#[derive(Clone)]
pub struct Model {
    pub name: String,
    /// The base digest.
    pub base: String,
    pub network: Arc<dyn Network>,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Arc<ChatTemplate>,
    pub generation: GenerationConfig,
    pub builtin: bool,
    /// What the base has said to prompts that training and the gate ask it.
    pub answers: Arc<Answers>,
}

/// What turns text into token ids and says how a model is asked; no weights.
pub struct ChatFiles {
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
    pub generation: GenerationConfig,
}

/// What a model is, told from its files without loading its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    pub config: ModelConfig,
    /// Numbers in all its tensors.
    pub parameters: u64,
    /// How its tensors are stored: type, number of tensors, bytes; the most bytes first.
    pub stored: Vec<(Storage, usize, u64)>,
    /// The version of a GGUF file.
    pub gguf: Option<u32>,
    /// What running it takes, on the network that would.
    pub memory: Memory,
    pub backend: Backend,
    /// SHA-256 of the weights, in hex.
    pub digest: String,
}

impl ModelSource {
    /// Finds out what `name` means: `auto`, `builtin`, a folder or a GGUF file (of any name).
    ///
    /// Errors say what is there instead, or that a hub name cannot be used yet.
    pub fn resolve(name: &str) -> Result<ModelSource> {
        if matches!(name, "auto" | "builtin") {
            return Ok(ModelSource::Builtin);
        }
        let path = expand_home(name);
        let fault = |what: &str| Error::failure(format!("{}: {what}", Paths::display(&path)));
        let absolute = || std::path::absolute(&path).with_context(|| Paths::display(&path));
        let advice =
            "name a Hugging Face folder (config.json, tokenizer.json, model.safetensors), a GGUF file, or `builtin`";
        if path.is_dir() {
            return Ok(ModelSource::Folder(absolute()?));
        }
        let named_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if path.exists() {
            return match named_gguf || Gguf::is_one(&path) {
                true => Ok(ModelSource::Gguf(absolute()?)),
                false => Err(fault("this is neither a model folder nor a GGUF file").hint(advice)),
            };
        }
        if named_gguf {
            return Err(fault("no such file").hint(advice));
        }
        if is_hub_name(name) {
            return Err(fault("no such folder, and finch cannot fetch models from the hub yet").hint(format!(
                "download it (`hf download {name} --local-dir FOLDER`) and name the folder, or use `builtin`"
            )));
        }
        Err(fault("no such model folder").hint(advice))
    }

    /// The same model, quantised while it is loaded; None leaves it as it is.
    pub fn quantized(self, to: Option<Quantization>) -> ModelSource {
        to.map_or(self.clone(), |to| ModelSource::Quantized(Box::new(self), to))
    }

    /// The source of the files.
    pub fn files(&self) -> &ModelSource {
        match self {
            ModelSource::Quantized(files, _) => files.files(),
            own => own,
        }
    }

    /// What the model is called: its folder's name, the hub's name within the hub's cache; a file's without `.gguf`.
    pub fn name(&self) -> String {
        match self {
            ModelSource::Quantized(files, _) => files.name(),
            ModelSource::Builtin => builtin::NAME.to_string(),
            ModelSource::Folder(folder) => folder_name(folder),
            ModelSource::Gguf(path) => {
                let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
                let whole = || name.strip_suffix(".gguf").unwrap_or(&name);
                gguf::split_name(&name).map_or_else(whole, |(prefix, _)| prefix).to_string()
            }
        }
    }

    /// The shape of the network. Errors as those of [`Model::load`].
    pub fn config(&self) -> Result<ModelConfig> {
        let read = || match self.files() {
            ModelSource::Gguf(path) => Gguf::open(path)?.config(),
            _ => self.json_config(),
        };
        self.placed(read())
    }

    fn json_config(&self) -> Result<ModelConfig> {
        ModelConfig::from_json(&self.config_json()?)
    }

    /// `config.json`, without which a folder is no model's.
    fn config_json(&self) -> Result<Cow<'static, [u8]>> {
        self.file("config.json", MAX_SETTINGS)?.ok_or_else(|| {
            let is_adapter = self.file("adapter_config.json", MAX_SETTINGS).is_ok_and(|file| file.is_some());
            Error::failure("config.json is missing").hint(match is_adapter {
                true => "this is an adapter, no model: `finch adapters import` takes it in",
                false => "a model's folder holds config.json, tokenizer.json and model.safetensors",
            })
        })
    }

    /// See [`Facts`]. Errors as those of [`Model::load`], as far as the files' heads show them.
    pub fn facts(&self, digests: &DigestCache) -> Result<Facts> {
        let read = || -> Result<Facts> {
            let Weights { config, checkpoint, gguf } = self.weights()?;
            let size = |name| checkpoint.shape(name).map_or(0, |shape| shape.iter().map(|n| *n as u64).product());
            let parameters = checkpoint.names().map(size).sum();
            let stored =
                checkpoint.names().filter_map(|name| Some((checkpoint.storage(name)?, checkpoint.size(name)?)));
            let backend = Backend::from_env()?;
            let memory = backend.memory(&config, &checkpoint)?;
            Ok(Facts {
                parameters,
                stored: tally(stored),
                gguf,
                memory,
                backend,
                digest: digests.digest(&checkpoint)?,
                config,
            })
        };
        self.placed(read())
    }

    /// Tokenizer, template and advice, for work that needs the text's ids alone. Errors as those of [`Model::load`].
    pub fn chat_files(&self) -> Result<ChatFiles> {
        self.placed(chat_files(self))
    }

    /// A file of the model; None where it has none.
    fn file(&self, name: &str, max_bytes: u64) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            ModelSource::Quantized(files, _) => files.file(name, max_bytes),
            ModelSource::Builtin => Ok(builtin::file(name).map(Cow::Borrowed)),
            ModelSource::Folder(folder) => {
                let path = folder.join(name);
                if !path.exists() {
                    return Ok(None);
                }
                fsio::read_limited(&path, max_bytes).map(|bytes| Some(Cow::Owned(bytes)))
            }
            ModelSource::Gguf(_) => Ok(None), // it has everything within
        }
    }

    fn needed(&self, name: &str, max_bytes: u64) -> Result<Cow<'static, [u8]>> {
        self.file(name, max_bytes)?.ok_or_else(|| Error::failure(format!("{name} is missing")))
    }

    /// Configuration and weights, for those who write them otherwise. Errors as those of [`Model::load`].
    pub(super) fn network(&self) -> Result<(ModelConfig, Checkpoint)> {
        self.placed(self.weights().map(|Weights { config, checkpoint, .. }| (config, checkpoint)))
    }

    /// `config.json`, `tokenizer.json` and, where there is one, `tokenizer_config.json`, of what is no GGUF file.
    pub(super) fn texts(&self) -> Result<Texts> {
        let read = || {
            Ok((self.config_json()?, tokenizer_json(self)?, self.file("tokenizer_config.json", MAX_TOKENIZER_CONFIG)?))
        };
        self.placed(read())
    }

    /// Configuration and weights; the configuration is checked first.
    fn weights(&self) -> Result<Weights> {
        if let ModelSource::Gguf(path) = self.files() {
            return self.planned(Weights::of(&Gguf::open(path)?)?);
        }
        let config = self.json_config()?;
        let checkpoint = match self.files() {
            ModelSource::Folder(folder) => {
                let checkpoint = Checkpoint::open(folder)?;
                check_layers(&checkpoint, config.layers)?;
                checkpoint
            }
            _ => {
                let name = "model.safetensors";
                Checkpoint::from_bytes(name, self.needed(name, u64::MAX)?)?
            }
        };
        self.planned(Weights { config, checkpoint, gguf: None })
    }

    /// The weights of its files, quantised on the way if it says so.
    fn planned(&self, weights: Weights) -> Result<Weights> {
        let ModelSource::Quantized(files, to) = self else { return Ok(weights) };
        let Weights { config, checkpoint, gguf } = files.planned(weights)?;
        let checkpoint = quantized(checkpoint, &config, *to, false);
        let checkpoint = checkpoint.map_err(|e| {
            e.hint("leave --quantize (model.quantize) out: it is for weights that are not quantised yet")
        })?;
        Ok(Weights { config, checkpoint, gguf })
    }

    /// The place in front of an error about one of its files; behind it what to do, where nothing better is known.
    fn placed<T>(&self, result: Result<T>) -> Result<T> {
        let hint = "a file of this model is damaged or was changed: download it again, or choose another model";
        let hinted = |e: Error| if self.files() == &ModelSource::Builtin { e } else { e.hint(hint) };
        result.with_context(|| self.place()).map_err(hinted)
    }

    fn place(&self) -> String {
        match self {
            ModelSource::Quantized(files, _) => files.place(),
            ModelSource::Builtin => "the built-in model".to_string(),
            ModelSource::Folder(folder) => Paths::display(folder),
            // Its errors begin with the file's name.
            ModelSource::Gguf(path) => Paths::display(path.parent().unwrap_or(path)),
        }
    }
}

/// Opened and checked, not read yet.
struct Weights {
    config: ModelConfig,
    checkpoint: Checkpoint,
    /// The version of a GGUF file.
    gguf: Option<u32>,
}

impl Weights {
    fn of(file: &Gguf) -> Result<Weights> {
        Ok(Weights { config: file.config()?, gguf: Some(file.version), checkpoint: file.checkpoint().clone() })
    }
}

/// Weights of layers that the configuration has not are those of another model.
fn check_layers(checkpoint: &Checkpoint, layers: usize) -> Result<()> {
    let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<u64>().ok();
    match checkpoint.names().find(|name| layer(name).is_some_and(|layer| layer >= layers as u64)) {
        Some(name) => {
            Err(Error::failure(format!("tensor {name} is there; num_hidden_layers in config.json is {layers}"))
                .hint("config.json and the weights belong to different models: download the folder again"))
        }
        None => Ok(()),
    }
}

/// `config.json`, `tokenizer.json`, `tokenizer_config.json`.
type Texts = (Cow<'static, [u8]>, Cow<'static, [u8]>, Option<Cow<'static, [u8]>>);

/// Types and sizes of tensors, as [`Facts::stored`] has them.
pub(super) fn tally(tensors: impl Iterator<Item = (Storage, u64)>) -> Vec<(Storage, usize, u64)> {
    let mut stored: BTreeMap<Storage, (usize, u64)> = BTreeMap::new();
    for (storage, size) in tensors {
        let (count, bytes) = stored.entry(storage).or_default();
        (*count, *bytes) = (*count + 1, *bytes + size);
    }
    let mut stored: Vec<_> = stored.into_iter().map(|(storage, (count, bytes))| (storage, count, bytes)).collect();
    stored.sort_by_key(|&(_, _, bytes)| std::cmp::Reverse(bytes));
    stored
}

impl Base {
    /// Loads the weights: the configuration is checked first, then the headers, then the tensors as they are read.
    pub fn load(source: &ModelSource, digests: &DigestCache) -> Result<Base> {
        source.placed(Self::read(source, digests))
    }

    fn read(source: &ModelSource, digests: &DigestCache) -> Result<Base> {
        Self::packed(source, source.weights()?, digests, &Stop::default())
    }

    /// The digest is taken beside the packing: of files that were not seen before it takes as long.
    fn packed(source: &ModelSource, weights: Weights, digests: &DigestCache, stop: &Stop) -> Result<Base> {
        let (config, checkpoint) = (weights.config, weights.checkpoint.until(stop));
        let backend = Backend::from_env()?;
        let (digest, network) = beside(stop, || digests.digest(&checkpoint), || backend.load(&config, &checkpoint))?;
        Ok(Base { name: source.name(), network, digest, builtin: *source.files() == ModelSource::Builtin })
    }
}

impl From<Model> for Base {
    fn from(model: Model) -> Base {
        let Model { name, base: digest, network, builtin, .. } = model;
        Base { name, digest, network, builtin }
    }
}

impl Model {
    /// Loads everything that a chat needs: the weights, and beside them the small files, of which a large vocabulary takes
    /// its time. What is wrong with these is told first, and is not kept waiting by the weights.
    pub fn load(source: &ModelSource, digests: &DigestCache) -> Result<Model> {
        source.placed(Self::read(source, digests))
    }

    fn read(source: &ModelSource, digests: &DigestCache) -> Result<Model> {
        let stop = Stop::default();
        let (words, base) = match source.files() {
            ModelSource::Gguf(path) => {
                let file = Gguf::open(path)?;
                let weights = Weights::of(&file)?;
                let words = || gguf_words(&file);
                beside(&stop, words, || Base::packed(source, source.planned(weights)?, digests, &stop))?
            }
            _ => beside(&stop, || chat_files(source), || Base::packed(source, source.weights()?, digests, &stop))?,
        };
        let (ChatFiles { tokenizer, template, generation }, Base { name, digest, network, builtin }) = (words, base);
        Ok(Model {
            name,
            base: digest,
            network,
            tokenizer: Arc::new(tokenizer),
            template: Arc::new(template),
            generation,
            builtin,
            answers: Arc::default(),
        })
    }

    /// How the model is asked unless the user says otherwise: where its template can switch thinking, without. Answers
    /// come at once, and what training reinforces is exactly what stood on the screen. The built-in model was trained on
    /// prompts without the mark that this leaves.
    pub fn default_thinking(&self) -> Option<bool> {
        (!self.builtin && self.template.has_thinking()).then_some(false)
    }
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Base({}, {})", self.name, self.digest)
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({}, {})", self.name, self.base)
    }
}

fn chat_files(source: &ModelSource) -> Result<ChatFiles> {
    if let ModelSource::Gguf(path) = source.files() {
        return gguf_words(&Gguf::open(path)?);
    }
    let config_json = source.config_json()?;
    let config = ModelConfig::from_json(&config_json)?;
    let tokenizer_config = source.file("tokenizer_config.json", MAX_TOKENIZER_CONFIG)?;
    let tokenizer = Tokenizer::from_files(&tokenizer_json(source)?, tokenizer_config.as_deref())?;
    check_vocabulary(&tokenizer, "tokenizer.json", config.vocab_size, "config.json (vocab_size)")?;
    let jinja = source.file("chat_template.jinja", MAX_SETTINGS)?;
    let jinja = jinja.as_deref().map(std::str::from_utf8).transpose();
    let jinja = jinja.map_err(|e| Error::failure(format!("chat_template.jinja: {e}")))?;
    let template = ChatTemplate::from_files(jinja, tokenizer_config.as_deref())?;
    let generation = source.file("generation_config.json", MAX_SETTINGS)?;
    let generation = GenerationConfig::read(generation.as_deref(), &config_json, &tokenizer, config.vocab_size)?;
    Ok(ChatFiles { tokenizer, template, generation })
}

fn gguf_words(file: &Gguf) -> Result<ChatFiles> {
    let (config, tokenizer) = (file.config()?, file.tokenizer()?);
    check_vocabulary(&tokenizer, "tokenizer.ggml.tokens", config.vocab_size, "the embedding")?;
    let (template, generation) = (file.template()?, file.generation(&tokenizer)?);
    Ok(ChatFiles { tokenizer, template, generation })
}

/// Does both at once. Where both fail it is `first` that is told of; where one does, `stop` ends the other's reading.
fn beside<A, B: Send>(
    stop: &Stop,
    first: impl FnOnce() -> Result<A>,
    second: impl FnOnce() -> Result<B> + Send,
) -> Result<(A, B)> {
    fn ending<T>(stop: &Stop, done: Result<T>) -> Result<T> {
        if done.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        done
    }
    let (first, second) = thread::scope(|scope| -> Result<_> {
        let thread = thread::Builder::new().name("finch-load".to_string());
        let second = thread.spawn_scoped(scope, || ending(stop, second())).context("cannot start a thread")?;
        let first = ending(stop, first());
        Ok((first, second.join().unwrap_or_else(|panic| resume_unwind(panic))))
    })?;
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        // What was stopped is not to blame.
        (Err(stopped), Err(error)) if stopped.is_interrupted() => Err(error),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn tokenizer_json(source: &ModelSource) -> Result<Cow<'static, [u8]>> {
    let slow = || source.file("vocab.json", MAX_TOKENIZER).is_ok_and(|file| file.is_some());
    source.needed("tokenizer.json", MAX_TOKENIZER).map_err(|error| match slow() {
        true => error.hint(
            "vocab.json and merges.txt alone do not say all: make tokenizer.json with transformers \
             (AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER))",
        ),
        false => error,
    })
}

/// Every id that the tokenizer gives has a row in the embedding.
fn check_vocabulary(tokenizer: &Tokenizer, from: &str, rows: usize, of: &str) -> Result<()> {
    match tokenizer.vocab_size() {
        size if size > rows => Err(Error::failure(format!("{from} has ids up to {}, {of} only {rows}", size - 1))),
        _ => Ok(()),
    }
}

/// `~` and `~/…` as shells read them: names also come from config.toml, which no shell has seen.
fn expand_home(name: &str) -> PathBuf {
    let rest = match name.strip_prefix('~') {
        Some("") => Some(""),
        Some(rest) => rest.strip_prefix('/'),
        None => None,
    };
    match (rest, directories::UserDirs::new()) {
        (Some(rest), Some(dirs)) => dirs.home_dir().join(rest),
        _ => PathBuf::from(name),
    }
}

/// `Qwen/Qwen3-0.6B`: one owner, one name, nothing that only a path has.
fn is_hub_name(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

fn folder_name(folder: &Path) -> String {
    // …/models--Qwen--Qwen3-0.6B/snapshots/COMMIT
    let mut above = folder.ancestors().skip(1).filter_map(Path::file_name).map(|name| name.to_string_lossy());
    if above.next().is_some_and(|name| name == "snapshots")
        && let Some(repository) = above.next().as_deref().and_then(|name| name.strip_prefix("models--"))
    {
        return repository.replacen("--", "/", 1);
    }
    folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn resolves_names() {
        assert_eq!(ModelSource::resolve("auto").unwrap(), ModelSource::Builtin);
        assert_eq!(ModelSource::resolve("builtin").unwrap().name(), "finch-tiny");
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("Qwen3-0.6B");
        fs::create_dir(&model).unwrap();
        let source = ModelSource::resolve(model.to_str().unwrap()).unwrap();
        assert_eq!((source.name().as_str(), &source), ("Qwen3-0.6B", &ModelSource::Folder(model)));
    }

    #[test]
    fn gguf_files_are_known_by_name_or_by_content() {
        let folder = tempfile::tempdir().unwrap();
        for (file, content, name) in [
            ("Qwen3-0.6B-Q8_0.gguf", "", "Qwen3-0.6B-Q8_0"),
            ("big-00002-of-00003.gguf", "GGUF", "big"),
            ("sha256-1f2e", "GGUF\u{3}", "sha256-1f2e"), // as Ollama keeps them
        ] {
            let path = folder.path().join(file);
            fs::write(&path, content).unwrap();
            let source = ModelSource::resolve(path.to_str().unwrap()).unwrap();
            assert_eq!((source.name().as_str(), &source), (name, &ModelSource::Gguf(path)));
        }
    }

    #[test]
    fn says_what_a_name_is_instead() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("notes.txt");
        fs::write(&file, "x").unwrap();
        for (name, expected) in [
            ("Qwen/Qwen3-0.6B", "cannot fetch models from the hub yet"),
            ("somewhere/model.GGUF", "no such file"),
            (file.to_str().unwrap(), "neither a model folder nor a GGUF file"),
            ("./no-such-folder", "no such model folder"),
            ("../a/b", "no such model folder"),
            ("", "no such model folder"),
        ] {
            let error = ModelSource::resolve(name).expect_err(name);
            assert!(error.to_string().contains(expected), "{name}: {error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("builtin")), "{name}");
        }
    }

    #[test]
    fn names_hub_snapshots_as_the_hub_does() {
        let name = |path: &str| folder_name(Path::new(path));
        assert_eq!(name("/hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de"), "Qwen/Qwen3-0.6B");
        assert_eq!(name("/data/snapshots/mine"), "mine");
        assert_eq!(name("/data/Qwen3"), "Qwen3");
    }

    #[test]
    fn home_is_expanded() {
        let home = directories::UserDirs::new().unwrap().home_dir().to_path_buf();
        assert_eq!(expand_home("~/models/x"), home.join("models/x"));
        assert_eq!(expand_home("~"), home);
        assert_eq!(expand_home("~other/x"), PathBuf::from("~other/x"));
    }

    #[test]
    fn the_first_fault_is_told_and_ends_the_reading_of_the_other() {
        let told = |result: Result<((), ())>| result.unwrap_err().to_string();
        let fail = |what: &str| -> Result<()> { Err(Error::failure(what)) };
        let builtin = || ModelSource::Builtin.weights().unwrap().checkpoint;
        // As long as it may be read, the weights have no end.
        let read_on = |checkpoint: &Checkpoint| -> Result<()> {
            loop {
                checkpoint.digest()?;
            }
        };
        let stop = Stop::default();
        let endless = builtin().until(&stop);
        assert_eq!(told(beside(&stop, || fail("words"), || read_on(&endless))), "words");
        let stop = Stop::default();
        let endless = builtin().until(&stop);
        assert_eq!(told(beside(&stop, || read_on(&endless), || fail("weights"))), "weights");
        // The fault of the weights is there before that of the words.
        let stop = Stop::default();
        let late = || {
            while !stop.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            fail("words")
        };
        assert_eq!(told(beside(&stop, late, || fail("weights"))), "words");
        assert!(beside(&Stop::default(), || Ok(()), || Ok(())).is_ok());
    }

    #[test]
    fn bad_folders_are_named_with_the_fault() {
        let folder = tempfile::tempdir().unwrap();
        let source = ModelSource::Folder(folder.path().to_path_buf());
        let fault = || Model::load(&source, &DigestCache::none()).expect_err("should be refused").to_string();
        let hint =
            || Model::load(&source, &DigestCache::none()).unwrap_err().hint_text().unwrap_or_default().to_string();
        assert!(fault().contains("config.json is missing"), "{}", fault());
        assert!(hint().contains("a model's folder holds"), "{}", hint());
        fs::write(folder.path().join("adapter_config.json"), "{}").unwrap();
        assert!(hint().contains("this is an adapter, no model"), "{}", hint());
        let config = serde_json::json!({"model_type": "qwen3", "vocab_size": 100, "hidden_size": 8,
            "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        assert!(fault().contains("tokenizer.json is missing"), "{}", fault());
        let tokenizer = super::super::tokenizer::tests::tokenizer_json().to_string();
        fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
        assert!(fault().contains("ids up to 306, config.json (vocab_size) only 100"), "{}", fault());
        assert!(hint().contains("download it again"), "{}", hint());
        let config = config.to_string().replace("100", "400");
        fs::write(folder.path().join("config.json"), config).unwrap();
        assert!(fault().contains("neither model.safetensors nor"), "{}", fault());
        let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        put("pytorch_model.bin", b"");
        assert!(hint().contains("convert it to safetensors"), "{}", hint());
        let header = br#"{"model.layers.1.mlp.up_proj.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
        put("model.safetensors", &[&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat());
        assert!(
            fault().contains("layers.1.mlp.up_proj.weight is there; num_hidden_layers in config.json is 1"),
            "{}",
            fault()
        );
        fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
        put("vocab.json", b"{}");
        assert!(hint().contains("make tokenizer.json with transformers"), "{}", hint());
    }
}
