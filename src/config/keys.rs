//! Every configuration key: its path, its type and range, where it goes in [`Config`].

use clap::ValueEnum;

use super::source::Value;
use super::{Auto, Config, Revise, Schedule, Variant};
use crate::engine::Draft;
use crate::model::lora::Target;
use crate::model::quantize::Quantization;

/// A key and how a value for it is taken; the error says what it should be.
pub(super) struct Key {
    pub path: &'static str,
    pub set: fn(&mut Config, &Value) -> Result<(), String>,
}

/// Second names of keys: (other, key).
const ALIASES: [(&str, &str); 1] = [("generation.repeat_penalty", "generation.repetition_penalty")];

const SECTIONS: [&str; 6] = ["model", "generation", "feedback", "lora", "lora.training", "teacher"];

fn put<T>(slot: &mut T, value: Result<T, String>) -> Result<(), String> {
    *slot = value?;
    Ok(())
}

#[rustfmt::skip] // one key a line
static KEYS: [Key; 32] = [
    Key { path: "model.name", set: |c, v| put(&mut c.model.name, v.name("a model: auto, builtin, a folder or a GGUF file")) },
    Key { path: "model.quantize", set: |c, v| put(&mut c.model.quantize, v.one_of(&quantizations())) },
    Key { path: "generation.temperature", set: |c, v| put(&mut c.generation.temperature, v.number(0.0, 2.0).map(Some)) },
    Key { path: "generation.top_p", set: |c, v| put(&mut c.generation.top_p, v.number_above(0.0, 1.0).map(Some)) },
    Key { path: "generation.top_k", set: |c, v| put(&mut c.generation.top_k, v.whole(0, 1_000_000).map(Some)) },
    Key { path: "generation.repetition_penalty", set: |c, v| put(&mut c.generation.repetition_penalty, v.number_above(0.0, 10.0).map(|p| Some(p as f32))) },
    Key { path: "generation.max_tokens", set: |c, v| put(&mut c.generation.max_tokens, v.whole(1, 1_000_000)) },
    Key { path: "generation.draft", set: |c, v| put(&mut c.generation.draft, v.one_of(&[("off", Draft::Off), ("prompt", Draft::Prompt)])) },
    Key { path: "feedback.critical_weight", set: |c, v| put(&mut c.feedback.critical_weight, v.number_above(0.0, 1000.0)) },
    Key { path: "feedback.medium_weight", set: |c, v| put(&mut c.feedback.medium_weight, v.number_above(0.0, 1000.0)) },
    Key { path: "feedback.good_weight", set: |c, v| put(&mut c.feedback.good_weight, v.number_above(0.0, 1000.0)) },
    Key { path: "feedback.buffer_capacity", set: |c, v| put(&mut c.feedback.buffer_capacity, v.whole(1, 100_000)) },
    Key { path: "feedback.threshold", set: |c, v| put(&mut c.feedback.threshold, v.whole(1, 100_000)) },
    Key { path: "feedback.auto_train", set: |c, v| put(&mut c.feedback.auto_train, v.yes_or_no()) },
    Key { path: "feedback.revise", set: |c, v| put(&mut c.feedback.revise, v.one_of(&[("ask", Revise::Ask), ("always", Revise::Always), ("never", Revise::Never)])) },
    Key { path: "feedback.lesson_tokens", set: |c, v| put(&mut c.feedback.lesson_tokens, v.whole(0, 100_000)) },
    Key { path: "lora.rank", set: |c, v| put(&mut c.lora.rank, v.whole(1, 1024)) },
    Key { path: "lora.alpha", set: |c, v| put(&mut c.lora.alpha, v.number_above(0.0, 65_536.0)) },
    Key { path: "lora.dropout", set: |c, v| put(&mut c.lora.dropout, v.number(0.0, 0.9).map(|p| p as f32)) },
    Key { path: "lora.targets", set: |c, v| put(&mut c.lora.targets, targets(v)) },
    Key { path: "lora.variant", set: |c, v| put(&mut c.lora.variant, v.one_of(&[("lora", Variant::Lora), ("rslora", Variant::Rslora), ("dora", Variant::Dora)])) },
    Key { path: "lora.training.learning_rate", set: |c, v| put(&mut c.lora.training.learning_rate, auto_or(v, v.number_above(0.0, 1.0))) },
    Key { path: "lora.training.batch_size", set: |c, v| put(&mut c.lora.training.batch_size, v.whole(1, 1024)) },
    Key { path: "lora.training.epochs", set: |c, v| put(&mut c.lora.training.epochs, auto_or(v, v.whole(1, 10_000))) },
    Key { path: "lora.training.max_steps", set: |c, v| put(&mut c.lora.training.max_steps, v.whole(1, 1_000_000)) },
    Key { path: "lora.training.warmup_ratio", set: |c, v| put(&mut c.lora.training.warmup_ratio, v.number(0.0, 1.0)) },
    Key { path: "lora.training.schedule", set: |c, v| put(&mut c.lora.training.schedule, v.one_of(&[("cosine", Schedule::Cosine), ("linear", Schedule::Linear), ("constant", Schedule::Constant)])) },
    Key { path: "lora.training.weight_decay", set: |c, v| put(&mut c.lora.training.weight_decay, v.number(0.0, 1.0)) },
    Key { path: "lora.training.max_grad_norm", set: |c, v| put(&mut c.lora.training.max_grad_norm, v.number(0.0, 1e6)) },
    Key { path: "lora.training.seed", set: |c, v| put(&mut c.lora.training.seed, v.whole(0, i64::MAX as usize).map(|s| s as u64)) },
    Key { path: "teacher.enabled", set: |c, v| put(&mut c.teacher.enabled, v.yes_or_no()) },
    Key { path: "teacher.sampling_rate", set: |c, v| put(&mut c.teacher.sampling_rate, v.number(0.0, 1.0)) },
];

/// The key of a path or of its second name.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    let path = ALIASES.iter().find(|(other, _)| *other == path).map_or(path, |(_, path)| *path);
    KEYS.iter().find(|key| key.path == path)
}

/// Every path that [`find`] knows, second names last.
pub(super) fn all() -> impl Iterator<Item = (&'static str, &'static Key)> {
    let others = ALIASES.iter().map(|(other, _)| *other);
    KEYS.iter().map(|key| key.path).chain(others).filter_map(|path| Some((path, find(path)?)))
}

pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    SECTIONS.into_iter()
}

pub(super) fn is_section(path: &str) -> bool {
    SECTIONS.contains(&path)
}

/// What the weights can be quantised to while they are loaded, and "none".
fn quantizations() -> Vec<(&'static str, Option<Quantization>)> {
    let all = Quantization::value_variants().iter().map(|to| (to.name(), Some(*to)));
    std::iter::once(("none", None)).chain(all).collect()
}

fn auto_or<T>(value: &Value, number: Result<T, String>) -> Result<Auto<T>, String> {
    match value {
        Value::Text(s) | Value::String(s) if s == "auto" => Ok(Auto::Auto),
        _ => number.map(Auto::Value).map_err(|expected| format!("\"auto\" or {expected}")),
    }
}

/// Module names without repetition, in the order of a block.
fn targets(value: &Value) -> Result<Vec<Target>, String> {
    let known = Target::ALL.map(Target::name).join(", ");
    let expected = || format!("a list of one or more of {known}");
    let names = value.names().filter(|names| !names.is_empty()).ok_or_else(expected)?;
    let mut targets = names.iter().map(|n| Target::from_name(n).ok_or_else(expected)).collect::<Result<Vec<_>, _>>()?;
    targets.sort();
    targets.dedup();
    Ok(targets)
}
