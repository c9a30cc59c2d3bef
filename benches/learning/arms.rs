//! Who learns: nobody, the naive way, finch.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use finch::adapter::peft;
use finch::feedback::record::prompt_digest;
use finch::learn::canaries::Answered;
use finch::learn::fit::{Fit, Stopping};
use finch::learn::mix::Beside;
use finch::learn::recipe::Recipe;
use finch::model::lora::LoraWeights;
use finch::train::chat::ChatFormat;
use finch::train::row::Row;
use serde::Serialize;

use crate::measure::{self, Asker, Figures, Seen};
use crate::tasks::{Draw, Task};
use crate::user::User;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Arm {
    /// The base as it is.
    None,
    /// Likelihood on the rated answer times the weight of its rating, bad ones as well; nothing is replayed.
    Naive,
    /// `learn::round::Round`.
    Finch,
}

/// What one round of one arm came to.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub arm: Arm,
    pub seed: u64,
    pub round: usize,
    #[serde(flatten)]
    pub figures: Figures,
    /// The gate's verdict and what it measured.
    pub live: Option<bool>,
    pub reasons: Vec<String>,
    pub gate_kl: Option<f64>,
    pub steps: usize,
    /// Of the training, judging included.
    pub seconds: f64,
    /// Most memory that the process has held so far, MiB.
    pub peak_mib: Option<f64>,
    #[serde(skip)]
    pub seen: Seen,
}

/// What a run needs to know.
pub struct Bench<'m> {
    pub asker: &'m Asker<'m>,
    pub unrelated: &'m [Answered],
    pub rounds: usize,
}

/// How finch's arm differs from what finch does: nothing, or one line of a search.
pub struct Variant<'v> {
    pub configure: &'v dyn Fn(&mut finch::config::Config),
    pub adjust: &'v dyn Fn(&mut Recipe),
    /// Measure what was made, not what is live.
    pub whatever: bool,
}

impl Variant<'_> {
    pub const AS_IT_IS: Variant<'static> = Variant { configure: &|_| {}, adjust: &|_| {}, whatever: false };
}

impl Bench<'_> {
    pub fn run(
        &self,
        arm: Arm,
        seed: u64,
        draw: &Draw,
        variant: &Variant,
        tell: &mut dyn FnMut(Outcome),
    ) -> Result<()> {
        let mut user = User::new(self.asker)?;
        (variant.configure)(&mut user.config);
        let mut taught: Vec<Task> = Vec::new();
        for round in 0..self.rounds {
            taught.extend(draw.rounds[round].iter().cloned());
            user.give_feedback(&draw.rounds[round], &draw.praised[round])?;
            let started = Instant::now();
            let (mut live, mut reasons, mut gate_kl, mut steps) = (None, Vec::new(), None, 0);
            let adapter = match arm {
                Arm::None => None,
                Arm::Naive => {
                    let weights;
                    (weights, steps) = naive(self.asker, &user)?;
                    Some(weights)
                }
                Arm::Finch => {
                    let (receipt, went_live) = user.train(variant.adjust)?;
                    live = Some(went_live);
                    gate_kl = receipt.measured.as_ref().and_then(|m| m.kl);
                    (reasons, steps) = (receipt.reasons.clone(), receipt.steps);
                    if variant.whatever { Some(user.made(&receipt)?) } else { user.live()? }
                }
            };
            let seconds = started.elapsed().as_secs_f64();
            let first = draw.rounds[0].len();
            let (figures, seen) = measure::figures(self.asker, adapter.as_ref(), &taught, first, self.unrelated)?;
            let peak_mib = peak_mib();
            let round = round + 1;
            tell(Outcome { arm, seed, round, figures, live, reasons, gate_kl, steps, seconds, peak_mib, seen });
        }
        Ok(())
    }
}

/// Epochs of the naive arm. More of them only bring it nearer to the answers that were rated.
const NAIVE_EPOCHS: usize = 30;

/// What was done where a rating scaled the likelihood of the answer that it judged: at finch's learning rate and rank.
fn naive(asker: &Asker, user: &User) -> Result<(LoraWeights, usize)> {
    let model = asker.model;
    let format = ChatFormat::of(model)?;
    let (mut rows, mut weights) = (Vec::new(), Vec::new());
    for (interaction, feedback) in user.store.judged()? {
        let Some(weight) = feedback.iter().map(|f| f.weight).reduce(f64::max) else { continue };
        let tokens = format.tokens(&interaction.messages, &interaction.response, interaction.thinking)?;
        rows.push(Row::imitate(tokens, 1.0));
        weights.push((prompt_digest(&interaction.messages), weight));
    }
    let mut recipe = Recipe::resolve(&user.config.lora, model.network.config(), rows.len());
    recipe.steps = (NAIVE_EPOCHS * rows.len()).div_ceil(recipe.batch_size);
    let fit = Fit {
        network: model.network.as_ref(),
        start: peft::init(model.network.as_ref(), &user.config.lora.settings(), recipe.seed)?,
        rows: &rows,
        measured: &rows,
        importance: &weights.iter().map(|(_, w)| *w).collect::<Vec<_>>(),
        draws: &recipe.draws(&weights),
        batch: recipe.batch_size,
        beside: &Beside::default(),
        held_out: &[],
        plan: recipe.plan(),
        stopping: Stopping::default(),
        threads: asker.threads,
        courtesy: Arc::default(),
    };
    let trained = fit.run(&mut |_, _| Ok(()))?;
    Ok((trained.weights, trained.steps))
}

/// From the kernel's accounts, where it keeps them.
fn peak_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()? / 1024.0)
}
