//! The gate: what is measured on a saved adapter before it may go live. Its printed form is the receipt.
//!
//! Refused is an adapter that has not learned, that does worse than what answers now on rows that it has not seen or on
//! what it was taught, that moves the base's answers to ordinary prompts too far, or whose folder, read back, is another.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::canaries::Answered;
use super::compliance::{self, Check};
use super::gauge::Gauge;
use super::held_out::{self, Unseen};
use super::recipe::{
    FITTING_MIN, HELD_OUT_MIN, HELD_OUT_NOISE, HELD_OUT_RISE, KL_REFUSE, KL_WARN, ORDERLY_MIN, PAIRS_FALL, PAIRS_MIN,
    PAIRS_WON, SLIPS, answer_tokens,
};
use crate::adapter::{peft, provenance};
use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::model::courtesy::Courtesy;
use crate::model::load::Model;
use crate::model::lora::LoraWeights;
use crate::model::{Network, Tokens};
use crate::train::lanes::Lanes;

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
    /// Rows that were not trained on.
    pub held_out: &'a [Unseen],
    /// The trained corrections, and the model that they are asked with.
    pub corrections: Option<(&'a Model, &'a [Check])>,
    /// Ordinary prompts with the base's answers, never trained on.
    pub watched: &'a [Answered],
    /// The ids that end an answer.
    pub ends: &'a [u32],
    /// The adapter that answers until now; `None`: the base alone does.
    pub live: Option<LoraWeights>,
}

/// What was measured; what was not is absent. Counts are (passed, of how many).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measurements {
    pub loss_before: f64,
    pub loss_after: f64,
    /// Held-out loss of what answers until now, and of the new adapter. Absent: there were too few rows, and the trained
    /// ones and the canaries decide alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<(f64, f64)>,
    /// Held-out rows whose own answer is likelier than the answers to other questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fitting: Option<(usize, usize)>,
    /// Held-out pairs whose margin has grown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<(usize, usize)>,
    /// How far the better sides of these pairs fell below the base, in nat a token; negative: they rose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs_fall: Option<f64>,
    /// Greatest difference of a logit between the trained adapter and its folder read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logit_difference: Option<f32>,
    /// KL(base ‖ adapter) on the watched prompts, in nat a token: over all, and of the worst prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_worst: Option<f64>,
    /// Trained corrections that hold (see [`compliance::ask`]), and how many held until now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrections: Option<(usize, usize)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrections_before: Option<usize>,
    /// Watched answers that still end, go in no circles and keep their length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canaries: Option<(usize, usize)>,
}

/// The verdict.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// Why not, in sentences; empty: passed.
    pub reasons: Vec<String>,
    pub warnings: Vec<String>,
    /// What could not be measured, and why, in words.
    pub unmeasured: Vec<String>,
    pub measured: Measurements,
    /// Digests of the notes that are obeyed without being told.
    pub carries: Vec<String>,
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
    let measured = Measurements { loss_before, loss_after, ..Measurements::default() };
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
    let lanes = Lanes::for_network(network.config(), threads)?;
    let gauge = |adapter| Gauge::new(network, adapter, &saved, &lanes, courtesy);
    let (new, live, base) = (gauge(Some(&saved))?, gauge(evidence.live.as_ref())?, gauge(None)?);
    held_out(&mut report, evidence, &new, &live, &base)?;
    corrections(&mut report, evidence, &new, &live)?;
    canaries(&mut report, evidence, &new, &lanes, network.config())?;
    Ok(report)
}

/// Measurements 1 and 2: rows that were never trained on.
fn held_out(report: &mut Report, evidence: &Evidence, new: &Gauge, live: &Gauge, base: &Gauge) -> Result<()> {
    let Some(figures) = held_out::measure(evidence.held_out, new, live, base)? else {
        let rows = evidence.held_out.len();
        report.unmeasured.push(format!("loss and pairs on unseen rows ({rows} held out, {HELD_OUT_MIN} are needed)"));
        return Ok(());
    };
    let (before, after) = figures.loss;
    report.measured.held_out = Some(figures.loss);
    report.measured.fitting = figures.fitting;
    if !below(after, before * HELD_OUT_RISE + HELD_OUT_NOISE) {
        report.reasons.push(format!("the loss on held-out rows rises: {before:.3} → {after:.3}"));
    }
    if let Some((fit, of)) = figures.fitting.filter(|(fit, of)| (*fit as f64) < FITTING_MIN * *of as f64) {
        let said = format!("only {fit} of {of} held-out questions find their own answer likeliest");
        report.reasons.push(said);
    }
    let Some(pairs) = figures.pairs else {
        let pairs = evidence.held_out.iter().filter(|row| row.rejected.is_some()).count();
        report.unmeasured.push(format!("unseen pairs ({pairs} held out, {PAIRS_MIN} are needed)"));
        return Ok(());
    };
    report.measured.pairs = Some((pairs.won, pairs.of));
    report.measured.pairs_fall = Some(pairs.fall);
    if (pairs.won as f64) < PAIRS_WON * pairs.of as f64 {
        report.reasons.push(format!("only {} of {} held-out pairs are told apart better", pairs.won, pairs.of));
    }
    if !below(pairs.fall, PAIRS_FALL) {
        let said = format!("better answers of held-out pairs become unlikelier, by {:.3} nat a token", pairs.fall);
        report.reasons.push(said);
    }
    Ok(())
}

/// Measurement 4, first half: what was taught is obeyed, no worse than until now.
fn corrections(report: &mut Report, evidence: &Evidence, new: &Gauge, live: &Gauge) -> Result<()> {
    let Some((model, checks)) = evidence.corrections.filter(|(_, checks)| !checks.is_empty()) else {
        report.unmeasured.push("corrections that hold (none was trained on)".to_string());
        return Ok(());
    };
    let (now, before) = (compliance::ask(new, checks, model)?, compliance::ask(live, checks, model)?.count());
    report.measured.corrections = Some((now.count(), checks.len()));
    report.measured.corrections_before = Some(before);
    if now.count() + checks.len() / SLIPS < before {
        let said = format!("{} of {} corrections hold, until now it was {before}", now.count(), checks.len());
        report.reasons.push(said);
    }
    report.carries = now.carried;
    Ok(())
}

/// Measurements 3 and 4, second half: ordinary prompts.
fn canaries(report: &mut Report, evidence: &Evidence, new: &Gauge, lanes: &Lanes, config: &ModelConfig) -> Result<()> {
    if let Some((kl, worst)) = divergence(new, evidence.watched)? {
        (report.measured.kl, report.measured.kl_worst) = (Some(kl), Some(worst));
        let said = format!("unrelated answers change: KL {kl:.3} nat a token on ordinary prompts");
        if !below(kl, KL_REFUSE) {
            report.reasons.push(format!("{said}, above {KL_REFUSE}"));
        } else if kl > KL_WARN {
            report.warnings.push(format!("{said}, above {KL_WARN}"));
        }
    }
    let in_order = lanes.map(evidence.watched.len(), |i| {
        let before = &evidence.watched[i];
        let (answer, end) = new.answer(&before.prompt, answer_tokens(config), evidence.ends)?;
        Ok(stays_in_order(before, &Answered { answer, end, ..before.clone() }))
    })?;
    let orderly = in_order.into_iter().filter(|orderly| *orderly).count();
    let of = evidence.watched.len();
    report.measured.canaries = (of > 0).then_some((orderly, of));
    if (orderly as f64) < ORDERLY_MIN * of as f64 {
        let said =
            format!("{} of {of} ordinary answers no longer end, go in circles or change in length", of - orderly);
        report.reasons.push(said);
    }
    Ok(())
}

/// Whether a figure is below its limit; one that is not a number is not.
fn below(figure: f64, limit: f64) -> bool {
    figure < limit
}

/// Greatest difference of a logit after some prompts; `None` without prompts. NaN where one side is.
fn logit_difference(
    network: &dyn Network,
    trained: &LoraWeights,
    saved: &LoraWeights,
    evidence: &Evidence,
    courtesy: &Courtesy,
) -> Result<Option<f32>> {
    let held_out = evidence.held_out.iter().map(|row| row.tokens.ids.as_slice());
    let prompts = evidence.watched.iter().map(|a| a.prompt.as_slice()).chain(held_out).take(COMPARED);
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
fn divergence(new: &Gauge, watched: &[Answered]) -> Result<Option<(f64, f64)>> {
    let rows: Vec<Tokens> = watched.iter().filter_map(Answered::tokens).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let kl = new.divergence(&rows)?;
    let tokens: Vec<f64> = rows.iter().map(|row| row.target_count() as f64).collect();
    let sum: f64 = kl.iter().zip(&tokens).map(|(kl, n)| kl * n).sum();
    let worst = kl.iter().copied().max_by(f64::total_cmp).unwrap_or(f64::NAN);
    Ok(Some((sum / tokens.iter().sum::<f64>(), worst)))
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
#[path = "gate_tests.rs"]
mod tests;
