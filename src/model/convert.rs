//! A model of any source as one GGUF file, which finch, llama.cpp and Ollama read.
//!
//! A GGUF file's keys go over as they are; those of a folder are made of its files. Tensors are read, quantised and written
//! a piece at a time, so that no model is too large for memory.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::gguf::describe::{self, Folder};
use super::gguf::write::{Declared, Item, head, padding};
use super::gguf::{Gguf, own_name};
use super::load::{ModelSource, tally};
use super::quantize::{Planned, Quantization, plan, quantized};
use super::storage::Storage;
use super::tokenizer::file;
use crate::error::{Context, Error, Result};
use crate::fsio;
use crate::paths::Paths;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    pub to: Quantization,
    /// Put the file in the place of one that is there.
    pub replace: bool,
    /// Quantise also what is quantised already.
    pub again: bool,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the weights as they were stored.
    pub before: u64,
    /// Bytes of the file.
    pub after: u64,
    /// How its tensors are stored: type, number of tensors, bytes; the most bytes first.
    pub stored: Vec<(Storage, usize, u64)>,
}

/// Writes `source` to `out`, complete or not at all; `progress` hears after each tensor how many bytes of weights are
/// written, of how many.
///
/// Errors: those of [`ModelSource::chat_files`] and of the weights, `out` exists or is a part of `source`, weights that are
/// quantised already, what no key of GGUF can say.
pub fn write(
    source: &ModelSource,
    out: &Path,
    options: Options,
    mut progress: impl FnMut(u64, u64),
) -> Result<Written> {
    let source = source.files();
    refuse(source, out, options.replace)?;
    source.chat_files()?; // what is wrong with the small files shows before the work
    let (config, checkpoint) = source.network()?;
    let tensors = plan(&config, options.to)?;
    let size = |checkpoint: &Checkpoint| tensors.iter().filter_map(|tensor| checkpoint.size(&tensor.name)).sum();
    let before = size(&checkpoint);
    let mut keys = keys(source, &config, &tensors)?;
    keys.push(("general.file_type".to_string(), Item::U32(options.to.file_type())));
    keys.push(("general.quantization_version".to_string(), Item::U32(2)));
    let checkpoint = quantized(checkpoint, &config, options.to, options.again).map_err(|e| {
        e.hint("quantise the original: what is rounded twice loses more; --requantize does it all the same")
    })?;
    let declared = |Planned { name, shape, storage }: &Planned| {
        let name = own_name(name).into_owned();
        Declared { name, shape: shape.clone(), storage: *storage }
    };
    let head = head(&keys, &tensors.iter().map(declared).collect::<Vec<_>>())?;
    let (mut done, total) = (0, size(&checkpoint));
    // What a killed run left there is as large as a model. Where it cannot be taken away, it stays.
    let _ = fsio::sweep_temporaries(fsio::parent(out));
    fsio::write_atomic_with(out, |file| {
        put(file, &head, out)?;
        for tensor in &tensors {
            done += write_tensor(file, &checkpoint, tensor, out)?;
            progress(done, total);
        }
        Ok(())
    })?;
    let after = out.metadata().with_context(|| Paths::display(out))?.len();
    let stored = tensors.iter().filter_map(|tensor| Some((tensor.storage, checkpoint.size(&tensor.name)?)));
    Ok(Written { before, after, stored: tally(stored) })
}

/// Appends a tensor and what stands behind it; returns the tensor's bytes.
fn write_tensor(file: &mut File, checkpoint: &Checkpoint, tensor: &Planned, out: &Path) -> Result<u64> {
    let (mut length, mut written) = (0, Ok(()));
    checkpoint.stored(&tensor.name, &tensor.shape, |bytes| {
        length += bytes.len() as u64;
        if written.is_ok() {
            written = put(file, bytes, out);
        }
    })?;
    written.and_then(|()| put(file, padding(length), out))?;
    Ok(length)
}

fn put(file: &mut File, bytes: &[u8], out: &Path) -> Result<()> {
    file.write_all(bytes).map_err(|e| Error::failure(format!("cannot write {}: {e}", Paths::display(out))))
}

fn keys(source: &ModelSource, config: &ModelConfig, tensors: &[Planned]) -> Result<Vec<(String, Item)>> {
    if let ModelSource::Gguf(path) = source {
        return Gguf::open(path)?.keys();
    }
    let files = source.chat_files()?;
    let (config_json, tokenizer_json, tokenizer_config) = source.texts()?;
    describe::keys(&Folder {
        name: &source.name(),
        config,
        parameters: tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum(),
        config_json: &config_json,
        tokenizer_config: tokenizer_config.as_deref(),
        tokenizer: &file::parts(&tokenizer_json, tokenizer_config.as_deref())?,
        template: &files.template,
        generation: &files.generation,
    })
}

/// Nothing of the source is written over, and nothing else unless it was asked for.
fn refuse(source: &ModelSource, out: &Path, replace: bool) -> Result<()> {
    let shown = Paths::display(out);
    let fault = |what: &str, hint: &str| Err(Error::failure(format!("{shown}{what}")).hint(hint));
    let folder = fsio::parent(out);
    if !folder.is_dir() {
        return fault(": there is no such folder to write it in", "make the folder first");
    }
    if out.is_dir() {
        return fault(" is a folder", "name the file to write, for example MODEL-Q4_K_M.gguf in it");
    }
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let within = match source {
        ModelSource::Builtin | ModelSource::Quantized(..) => false,
        ModelSource::Folder(model) => real(folder).zip(real(model)).is_some_and(|(out, model)| out.starts_with(model)),
        ModelSource::Gguf(path) => Gguf::open(path)?
            .into_checkpoint()
            .files()
            .into_iter()
            .any(|part| real(part).is_some_and(|part| Some(part) == real(out))),
    };
    if within {
        return fault(" lies in the model itself", "name a place outside it: what is read stays as it is");
    }
    if !replace && out.symlink_metadata().is_ok() {
        return fault(" already exists", "name a file that does not exist yet, or add --force to replace it");
    }
    Ok(())
}
