//! What a pretraining leaves behind: the tokenizer, the model in Hugging Face's formats, and checkpoints to resume from.

use std::path::Path;

use anyhow::{Result, bail};
use finch::model::candle::weights::Slot;
use finch::train::run::State;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, TokenizerBuilder};

use super::corpus::Corpus;

/// How Qwen's tokenizers cut text before the merges.
const QWEN_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub const SPECIALS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Tokens of Qwen3's thinking blocks: whole, but not hidden.
const THINKING: [&str; 2] = ["<think>", "</think>"];

/// Trains a byte-level BPE of `vocab` ids on the corpus and writes `tokenizer.json`.
pub fn train_tokenizer(corpus: &Corpus, vocab: usize, path: &Path) -> Result<()> {
    let error = |e: tokenizers::Error| anyhow::anyhow!("{e}");
    let split =
        Split::new(SplitPattern::Regex(QWEN_SPLIT.into()), SplitDelimiterBehavior::Isolated, false).map_err(error)?;
    let bytes = ByteLevel::new(false, true, false);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(Some(NFC))
        .with_pre_tokenizer(Some(Sequence::new(vec![split.into(), bytes.into()])))
        .with_post_processor(Some(ByteLevel::new(false, false, false)))
        .with_decoder(Some(ByteLevel::new(false, false, false)))
        .build()
        .map_err(error)?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab - SPECIALS.len() - THINKING.len())
        .min_frequency(2)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    // lower-case too: most people type so
    let texts: Vec<String> = corpus.texts().flat_map(|t| [t.to_string(), t.to_lowercase()]).collect();
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(error)?;
    tokenizer.add_special_tokens(SPECIALS.map(|t| AddedToken::from(t, true).normalized(false))).map_err(error)?;
    tokenizer.add_tokens(THINKING.map(|t| AddedToken::from(t, false).normalized(false))).map_err(error)?;
    if tokenizer.get_vocab_size(true) > vocab {
        bail!("the tokenizer has more than {vocab} ids");
    }
    tokenizer.save(path, false).map_err(error)?;
    Ok(())
}

/// Rounds to bf16, to nearest even: what the model will be when it is read back.
pub fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// Writes all weights as `model.safetensors`, bf16.
pub fn write_model(slots: &[Slot], params: &[f32], path: &Path) -> Result<()> {
    let bytes: Vec<Vec<u8>> = slots
        .iter()
        .map(|s| params[s.start..s.start + s.len()].iter().flat_map(|v| to_bf16(*v).to_le_bytes()).collect())
        .collect();
    let views = slots
        .iter()
        .zip(&bytes)
        .map(|(s, b)| Ok((s.name.clone(), TensorView::new(Dtype::BF16, s.shape.clone(), b)?)))
        .collect::<Result<Vec<_>>>()?;
    let format = [("format".to_string(), "pt".to_string())].into_iter().collect();
    safetensors::serialize_to_file(views, Some(format), path)?;
    Ok(())
}

/// Saves parameters and optimiser, atomically: a kill leaves the former checkpoint.
pub fn save_checkpoint(state: &State, path: &Path) -> Result<()> {
    let (m, v, _) = state.optimizer.state();
    let flat: Vec<Vec<u8>> =
        [&state.params, m, v].map(|x: &[f32]| x.iter().flat_map(|f| f.to_le_bytes()).collect()).into();
    let step = (state.step as u64).to_le_bytes();
    let n = state.params.len();
    let mut views: Vec<(&str, TensorView)> = ["params", "m", "v"]
        .into_iter()
        .zip(&flat)
        .map(|(name, bytes)| Ok((name, TensorView::new(Dtype::F32, vec![n], bytes)?)))
        .collect::<Result<_>>()?;
    views.push(("step", TensorView::new(Dtype::U64, vec![1], &step)?));
    let temporary = path.with_extension("tmp");
    safetensors::serialize_to_file(views, None, &temporary)?;
    std::fs::rename(temporary, path)?;
    Ok(())
}

/// Goes on from a checkpoint.
pub fn load_checkpoint(state: &mut State, path: &Path) -> Result<()> {
    let bytes = std::fs::read(path)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let read = |name: &str| -> Result<Vec<f32>> {
        let (chunks, _) = file.tensor(name)?.data().as_chunks::<4>();
        Ok(chunks.iter().map(|c| f32::from_le_bytes(*c)).collect())
    };
    let params = read("params")?;
    if params.len() != state.params.len() {
        bail!("the checkpoint holds {} parameters, the network has {}", params.len(), state.params.len());
    }
    let step = u64::from_le_bytes(file.tensor("step")?.data().try_into()?) as usize;
    state.params = params;
    state.optimizer.restore(read("m")?, read("v")?, step as i32);
    state.step = step;
    Ok(())
}
