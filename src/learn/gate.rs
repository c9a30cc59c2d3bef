//! The gate: what is measured on a saved adapter before it may go live. Its printed form is the receipt.
//!
//! Refused is an adapter that cannot be read back, that answers otherwise once it is read back, that has not learned, or
//! that moves the base's answers to ordinary prompts too far. What else is measured is told and refuses nothing yet.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::canaries::{Answered, answer_again};
use super::recipe::{KL_REFUSE, KL_WARN, answer_tokens};
use crate::adapter::{peft, provenance};
use crate::error::{Context, Error, Result};
use crate::model::courtesy::Courtesy;
use crate::model::lora::LoraWeights;
use crate::model::sampling::{Sampler, Sampling};
use crate::model::{Decoder, Network, Tokens};
use crate::train::lanes::Lanes;
use crate::train::row::Row;

/// The saved folder holds the same f32 values that were trained, so its logits differ by rounding at most.
const SAME_LOGITS: f64 = 1e-4;
/// Prompts on which the saved folder's logits are compared.
const COMPARED: usize = 4;
/// How many times the same tokens in a row make an answer that goes in circles.
const CIRCLES: usize = 4;

/// What the measurements need.
pub struct Evidence<'a> {
    /// Loss on the trained rows before and after.
    pub loss: (f64, f64),
    /// Loss on held-out rows before and after, where there were enough of them.
    pub held_out: Option<(f64, f64)>,
    /// The trained corrections.
    pub corrections: Vec<&'a Tokens>,
    /// Ordinary prompts with the base's answers, never trained on.
    pub watched: &'a [Answered],
    /// The ids that end an answer.
    pub ends: &'a [u32],
}

/// What was measured; what was not is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measurements {
    pub loss_before: f64,
    pub loss_after: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<(f64, f64)>,
    /// Greatest difference of a logit between the trained adapter and its folder read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_difference: Option<f32>,
    /// KL(base ‖ adapter) on the watched prompts, in nat a token: over all, and of the worst prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_worst: Option<f64>,
    /// Corrections that are now answered word for word, of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrections: Option<(usize, usize)>,
    /// Watched answers that still end, go in no circles and keep their length, of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canaries: Option<(usize, usize)>,
}

/// The verdict.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Why not, in sentences; empty: passed.
    pub reasons: Vec<String>,
    pub warnings: Vec<String>,
    pub measured: Measurements,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.reasons.is_empty()
    }

    /// As it stands in the adapter's provenance and in the store.
    pub fn provenance(&self) -> Result<provenance::Gate> {
        let mut measurements = serde_json::to_value(&self.measured)?;
        if !self.warnings.is_empty() {
            measurements["warnings"] = Value::from(self.warnings.clone());
        }
        Ok(provenance::Gate { passed: self.passed(), reasons: self.reasons.clone(), measurements })
    }
}

/// Measures the adapter in `folder`, which was saved from `trained`.
///
/// Errors: interrupted, or the network failed; a bad adapter is a report, not an error.
pub fn inspect(
    network: &dyn Network,
    folder: &Path,
    trained: &LoraWeights,
    evidence: &Evidence,
    threads: usize,
    courtesy: &Arc<Courtesy>,
) -> Result<Report> {
    let (loss_before, loss_after) = evidence.loss;
    let measured = Measurements { loss_before, loss_after, held_out: evidence.held_out, ..Measurements::default() };
    let mut report = Report { measured, ..Report::default() };
    if !below(loss_after, loss_before) {
        report.reasons.push(format!("the loss on the examples did not improve: {loss_before:.3} → {loss_after:.3}"));
    }
    let saved = match peft::read(folder, network.config()) {
        Ok(adapter) => adapter.weights,
        Err(e) => {
            report.reasons.push(format!("the saved adapter cannot be read back: {e}"));
            return Ok(report);
        }
    };
    let difference = logit_difference(network, trained, &saved, evidence, courtesy)?;
    report.measured.logit_difference = difference;
    if let Some(difference) = difference.filter(|d| !below(f64::from(*d), SAME_LOGITS)) {
        report.reasons.push(format!("the saved adapter, read back, gives other logits: they differ by {difference}"));
    }
    if let Some((kl, worst)) = divergence(network, &saved, evidence.watched, threads, courtesy)? {
        (report.measured.kl, report.measured.kl_worst) = (Some(kl), Some(worst));
        let said = format!("unrelated answers change: KL {kl:.3} nat a token on ordinary prompts");
        if !below(kl, KL_REFUSE) {
            report.reasons.push(format!("{said}, above {KL_REFUSE}"));
        } else if kl > KL_WARN {
            report.warnings.push(format!("{said}, above {KL_WARN}"));
        }
    }
    report.measured.corrections = count(&evidence.corrections, |tokens| {
        let mut decoder = network.decoder(Some(&saved))?;
        reproduces(decoder.as_mut(), tokens, courtesy)
    })?;
    let longest = answer_tokens(network.config());
    report.measured.canaries = count(evidence.watched, |before| {
        let after = answer_again(network, &saved, before, longest, evidence.ends, courtesy)?;
        Ok(stays_in_order(before, &after))
    })?;
    Ok(report)
}

/// Whether a figure is below its limit; one that is not a number is not.
fn below(figure: f64, limit: f64) -> bool {
    figure < limit
}

/// How many of `items` pass, of how many; `None` where there are none.
fn count<T>(items: &[T], mut passes: impl FnMut(&T) -> Result<bool>) -> Result<Option<(usize, usize)>> {
    let mut passed = 0;
    for item in items {
        passed += usize::from(passes(item)?);
    }
    Ok((!items.is_empty()).then_some((passed, items.len())))
}

/// Greatest difference of a logit after some prompts; `None` without prompts. NaN where one side is.
fn logit_difference(
    network: &dyn Network,
    trained: &LoraWeights,
    saved: &LoraWeights,
    evidence: &Evidence,
    courtesy: &Courtesy,
) -> Result<Option<f32>> {
    let corrections = evidence.corrections.iter().map(|t| t.ids.as_slice());
    let prompts = evidence.watched.iter().map(|a| a.prompt.as_slice()).chain(corrections).take(COMPARED);
    let mut greatest: Option<f32> = None;
    for prompt in prompts {
        courtesy.point()?;
        let of = |weights| network.decoder(Some(weights)).and_then(|mut decoder| decoder.forward(prompt));
        for (a, b) in of(trained)?.iter().zip(of(saved)?) {
            let difference = (a - b).abs();
            let so_far = greatest.unwrap_or(0.0);
            greatest = Some(if difference.is_nan() || difference > so_far { difference } else { so_far });
        }
        if greatest.is_some_and(f32::is_nan) {
            break;
        }
    }
    Ok(greatest)
}

/// KL(base ‖ adapter) in nat a token: over all tokens of the watched answers, and of the prompt where it is greatest.
fn divergence(
    network: &dyn Network,
    adapter: &LoraWeights,
    watched: &[Answered],
    threads: usize,
    courtesy: &Arc<Courtesy>,
) -> Result<Option<(f64, f64)>> {
    let rows: Vec<Row> = watched.iter().filter_map(Answered::tokens).map(|tokens| Row::stay(tokens, 1.0)).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let lanes = Lanes::for_network(network.config(), threads)?;
    let learner = network.learner(adapter, Arc::clone(courtesy))?;
    let kl = lanes.losses(learner.as_ref(), &rows.iter().collect::<Vec<_>>())?;
    let tokens: Vec<f64> =
        rows.iter().map(|r| r.sequences().iter().map(|s| s.target_count()).sum::<usize>() as f64).collect();
    let sum: f64 = kl.iter().zip(&tokens).map(|(kl, n)| kl * n).sum();
    let worst = kl.iter().copied().max_by(f64::total_cmp).unwrap_or(f64::NAN);
    Ok(Some((sum / tokens.iter().sum::<f64>(), worst)))
}

/// Whether greedy decoding gives exactly the completion, its end included.
fn reproduces(decoder: &mut dyn Decoder, tokens: &Tokens, courtesy: &Courtesy) -> Result<bool> {
    let start = tokens.targets.iter().position(|t| *t).ok_or_else(|| Error::failure("a row without a completion"))?;
    let mut sampler = Sampler::new(Sampling::GREEDY);
    let mut next = &tokens.ids[..start];
    for (i, expected) in tokens.ids.iter().enumerate().skip(start) {
        courtesy.point()?;
        let mut logits = decoder.forward(next).context("the gate")?;
        if sampler.sample(&mut logits, &[])? != *expected {
            return Ok(false);
        }
        next = &tokens.ids[i..=i];
    }
    Ok(true)
}

/// Whether an answer still ends, goes in no circles and is about as long (within 30 %) as the base's.
fn stays_in_order(before: &Answered, after: &Answered) -> bool {
    let ends = before.end.is_none() || after.end.is_some();
    let circles = goes_in_circles(&after.answer) && !goes_in_circles(&before.answer);
    let (was, is) = (before.answer.len() as f64, after.answer.len() as f64);
    ends && !circles && (is - was).abs() <= (0.3 * was).max(1.0)
}

/// Whether the last tokens are the same ones several times over.
fn goes_in_circles(ids: &[u32]) -> bool {
    (1..=ids.len() / CIRCLES).any(|n| {
        let tail = &ids[ids.len() - CIRCLES * n..];
        tail.iter().zip(&tail[n..]).all(|(a, b)| a == b)
    })
}

#[cfg(test)]
mod tests {
    use super::super::canaries::{WATCHED, answer, conversation};
    use super::super::testing;
    use super::*;
    use crate::adapter::peft::{Adapter, LoraSettings};
    use crate::model::load::Model;

    /// An adapter whose B is `size` times random; 0 is the base.
    fn weights(model: &Model, size: f32) -> LoraWeights {
        let settings = LoraSettings { rank: 4, alpha: 8.0, ..LoraSettings::default() };
        let config = model.network.config();
        let mut weights = peft::init(config, &settings, 1);
        let other = peft::init(config, &settings, 2);
        for m in &weights.modules {
            for (i, at) in m.b.clone().enumerate() {
                weights.data[at] = size * other.data[m.a.start + i % m.a.len()];
            }
        }
        weights
    }

    fn save(weights: &LoraWeights) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let settings = LoraSettings { rank: 4, alpha: 8.0, ..LoraSettings::default() };
        peft::write(folder.path(), &Adapter::new(weights.clone(), settings), "random").unwrap();
        folder
    }

    struct Case {
        model: Model,
        watched: Vec<Answered>,
    }

    impl Case {
        fn new() -> Case {
            let model = testing::model(5);
            let prompts: Vec<_> = WATCHED[..4].iter().map(|p| conversation(p)).collect();
            let watched =
                answer(&model, &prompts, answer_tokens(model.network.config()), &Courtesy::default()).unwrap();
            Case { model, watched }
        }

        fn inspect(&self, trained: &LoraWeights, folder: &Path, loss: (f64, f64)) -> Report {
            let evidence = Evidence {
                loss,
                held_out: None,
                corrections: vec![],
                watched: &self.watched,
                ends: &self.model.generation.eos,
            };
            inspect(self.model.network.as_ref(), folder, trained, &evidence, 2, &Arc::default()).unwrap()
        }
    }

    #[test]
    fn a_small_change_that_helps_passes() {
        let case = Case::new();
        let trained = weights(&case.model, 0.02);
        let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
        assert!(report.passed(), "{report:?}");
        assert_eq!(report.measured.logit_difference, Some(0.0));
        let kl = report.measured.kl.unwrap();
        assert!(kl > 0.0 && kl < KL_WARN && report.measured.kl_worst.unwrap() >= kl, "{report:?}");
        assert_eq!(report.measured.canaries.unwrap().1, 4);
        let stored = report.provenance().unwrap();
        assert!(stored.passed && stored.measurements["kl"].as_f64() == Some(kl));
        assert!(stored.measurements.get("held_out").is_none(), "what was not measured is absent");
    }

    #[test]
    fn the_base_itself_diverges_by_nothing() {
        let case = Case::new();
        let trained = weights(&case.model, 0.0);
        let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
        assert!(report.measured.kl.unwrap().abs() < 1e-6, "{report:?}");
        assert_eq!(report.measured.canaries, Some((4, 4)));
    }

    #[test]
    fn a_large_change_is_refused_with_its_figure() {
        let case = Case::new();
        let trained = weights(&case.model, 3.0);
        let report = case.inspect(&trained, save(&trained).path(), (2.0, 1.0));
        assert!(!report.passed());
        assert!(report.reasons[0].contains("KL") && report.reasons[0].contains("above 0.15"), "{report:?}");
    }

    #[test]
    fn what_has_not_learned_is_refused() {
        let case = Case::new();
        let trained = weights(&case.model, 0.0);
        let folder = save(&trained);
        for after in [2.0, 2.5, f64::NAN] {
            let report = case.inspect(&trained, folder.path(), (2.0, after));
            assert!(report.reasons[0].contains("did not improve"), "{report:?}");
        }
    }

    #[test]
    fn a_folder_that_holds_something_else_is_refused() {
        let case = Case::new();
        let trained = weights(&case.model, 0.02);
        let report = case.inspect(&trained, save(&weights(&case.model, 0.05)).path(), (2.0, 1.0));
        assert!(report.reasons[0].contains("gives other logits"), "{report:?}");
        let folder = save(&trained);
        std::fs::write(folder.path().join(peft::TENSOR_FILE), b"torn").unwrap();
        let report = case.inspect(&trained, folder.path(), (2.0, 1.0));
        assert!(report.reasons[0].contains("cannot be read back"), "{report:?}");
        assert_eq!(report.measured.kl, None);
    }

    #[test]
    fn a_correction_holds_when_it_is_answered_word_for_word() {
        let case = Case::new();
        let one = &case.watched[0];
        let own: Vec<u32> = one.answer.iter().copied().chain(one.end).collect();
        let says = |completion: &[u32]| {
            let mut decoder = case.model.network.decoder(None).unwrap();
            reproduces(decoder.as_mut(), &Tokens::new(&one.prompt, completion), &Courtesy::default()).unwrap()
        };
        assert!(says(&own) && says(&own[..2]));
        let mut other = own.clone();
        *other.last_mut().unwrap() ^= 1;
        assert!(!says(&other));
    }

    #[test]
    fn order_is_an_end_no_circles_and_the_length() {
        let answered = |answer: &[u32], end| Answered { key: [0; 32], prompt: vec![1], answer: answer.to_vec(), end };
        let before = answered(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], Some(302));
        let after = |answer: &[u32], end| stays_in_order(&before, &answered(answer, end));
        assert!(after(&[1, 2, 3, 4, 5, 6, 7], Some(300)));
        assert!(!after(&[1, 2, 3, 4, 5, 6], Some(302)), "too short");
        assert!(!after(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], None), "no end");
        assert!(!after(&[9, 9, 1, 2, 1, 2, 1, 2, 1, 2], Some(302)), "circles");
        assert!(!goes_in_circles(&[1, 2, 3, 1, 2, 3, 1, 2, 3]) && goes_in_circles(&[5, 5, 5, 5]));
    }
}
