//! What an adapter does to the answers: every figure comes from greedy decoding or from the network's own KL.

use std::sync::Arc;

use anyhow::{Context, Result};
use finch::learn::canaries::{Answered, answer, answer_again, conversation};
use finch::model::courtesy::Courtesy;
use finch::model::load::Model;
use finch::model::lora::LoraWeights;
use finch::train::lanes::Lanes;
use finch::train::row::Row;
use serde::Serialize;

use crate::tasks::Task;

/// Tokens of an answer, at most; the longest taught one has about 40.
const LONGEST: usize = 64;

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Share {
    pub yes: usize,
    pub of: usize,
}

impl Share {
    fn count(all: impl Iterator<Item = bool>) -> Share {
        all.fold(Share::default(), |s, yes| Share { yes: s.yes + usize::from(yes), of: s.of + 1 })
    }

    pub fn plus(self, other: Share) -> Share {
        Share { yes: self.yes + other.yes, of: self.of + other.of }
    }

    pub fn percent(self) -> f64 {
        100.0 * self.yes as f64 / self.of.max(1) as f64
    }
}

/// The figures of one state.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    /// Taught questions whose greedy answer passes the check, and those answered word for word.
    pub hold: Share,
    pub verbatim: Share,
    /// As `hold`, for the tasks of the first round alone.
    pub first_round: Share,
    /// Unseen wordings obeyed.
    pub paraphrases: Share,
    /// Near-scope prompts to which the taught answer is given.
    pub near: Share,
    /// Unrelated prompts answered as the base does, token for token.
    pub unchanged: Share,
    /// KL(base ‖ adapter) on the base's unrelated answers, nat a token.
    pub kl: f64,
}

/// Answers prompts on `threads` cores, a prompt a core.
pub struct Asker<'m> {
    pub model: &'m Model,
    pub threads: usize,
    lanes: Lanes,
}

impl<'m> Asker<'m> {
    pub fn new(model: &'m Model, threads: usize) -> Result<Asker<'m>> {
        Ok(Asker { model, threads, lanes: Lanes::for_network(model.network.config(), threads)? })
    }

    /// The base's answers of at most `tokens`, in the order of the prompts.
    fn answers(&self, prompts: &[&str], tokens: usize) -> Result<Vec<Answered>> {
        let here = Lanes::shared(tokens); // the thread that it is called from
        let all = self.lanes.map(prompts.len(), |i| {
            let prompt = conversation(prompts[i]);
            Ok(answer(self.model, &[prompt], tokens, &here, &Courtesy::default())?.pop())
        })?;
        all.into_iter().collect::<Option<_>>().context("a prompt too long for the model")
    }

    /// The base's answers, in the order of the prompts.
    pub fn base(&self, prompts: &[&str]) -> Result<Vec<Answered>> {
        self.answers(prompts, LONGEST)
    }

    /// What the model with `adapter` says to the prompts that the base answered so.
    pub fn again(&self, before: &[Answered], adapter: Option<&LoraWeights>) -> Result<Vec<Answered>> {
        let Some(adapter) = adapter else { return Ok(before.to_vec()) };
        let (network, ends) = (self.model.network.as_ref(), &self.model.generation.eos);
        let again = |i: usize| answer_again(network, adapter, &before[i], LONGEST, ends, &Courtesy::default());
        Ok(self.lanes.map(before.len(), again)?)
    }

    /// What the model with `adapter` says.
    pub fn say(&self, prompts: &[&str], adapter: Option<&LoraWeights>) -> Result<Vec<String>> {
        let before = match adapter {
            None => self.base(prompts)?,
            // The prompts' ids are all that matters of the base's answers.
            Some(_) => self.answers(prompts, 1)?,
        };
        Ok(self.again(&before, adapter)?.iter().map(|a| self.model.tokenizer.decode(&a.answer)).collect())
    }
}

/// What was looked at, for those who want to read along.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// All answers to taught, paraphrased and near prompts.
    pub answers: Vec<Answer>,
    pub changed: Vec<Changed>,
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub what: &'static str,
    pub prompt: String,
    pub answer: String,
    pub obeyed: bool,
}

/// All figures of `adapter` (`None`: the base) after `taught`, whose first `first` tasks are those of the first round.
pub fn figures(
    asker: &Asker,
    adapter: Option<&LoraWeights>,
    taught: &[Task],
    first: usize,
    unrelated: &[Answered],
) -> Result<(Figures, Seen)> {
    let mut prompts: Vec<(&Task, &'static str, &str)> = Vec::new();
    for task in taught {
        prompts.push((task, "taught", &task.question));
        prompts.extend(task.paraphrases.iter().map(|p| (task, "paraphrase", p.as_str())));
        prompts.extend(task.near.iter().map(|p| (task, "near", p.as_str())));
    }
    let answers = asker.say(&prompts.iter().map(|(_, _, p)| *p).collect::<Vec<_>>(), adapter)?;
    let seen: Vec<Answer> = (prompts.iter().zip(answers))
        .map(|((task, what, prompt), answer)| Answer {
            what,
            prompt: prompt.to_string(),
            obeyed: task.is_obeyed(&answer),
            answer,
        })
        .collect();
    let of = |what: &'static str| seen.iter().filter(move |s| s.what == what);
    let after = asker.again(unrelated, adapter)?;
    let figures = Figures {
        hold: Share::count(of("taught").map(|s| s.obeyed)),
        verbatim: Share::count(of("taught").zip(taught).map(|(s, task)| s.answer.trim() == task.answer)),
        first_round: Share::count(of("taught").take(first).map(|s| s.obeyed)),
        paraphrases: Share::count(of("paraphrase").map(|s| s.obeyed)),
        near: Share::count(of("near").map(|s| s.obeyed)),
        unchanged: Share::count(unrelated.iter().zip(&after).map(|(a, b)| (&a.answer, a.end) == (&b.answer, b.end))),
        kl: adapter.map_or(Ok(0.0), |adapter| divergence(asker, adapter, unrelated))?,
    };
    let changed: Vec<Changed> = unrelated
        .iter()
        .zip(&after)
        .filter_map(|(a, b)| changed(asker.model, a, b).transpose())
        .collect::<Result<_>>()?;
    Ok((figures, Seen { answers: seen, changed }))
}

/// An unrelated answer that is another one now, and how sure the base was where the two part.
#[derive(Debug, Clone)]
pub struct Changed {
    pub prompt: String,
    pub before: String,
    pub after: String,
    /// Position of the first other token, counted from 0, and the base's probabilities there: of its own token, of the new one.
    pub at: usize,
    pub base: [f32; 2],
}

fn changed(model: &Model, before: &Answered, after: &Answered) -> Result<Option<Changed>> {
    let whole = |a: &Answered| -> Vec<u32> { a.answer.iter().copied().chain(a.end).collect() };
    let (old, new) = (whole(before), whole(after));
    let Some(at) = (0..old.len().max(new.len())).find(|i| old.get(*i) != new.get(*i)) else { return Ok(None) };
    let logits = model.network.decoder(None)?.forward(&[&before.prompt, &old[..at]].concat())?;
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|l| (l - greatest).exp()).sum();
    let probability = |id: Option<&u32>| id.map_or(f32::NAN, |id| (logits[*id as usize] - greatest).exp() / sum);
    Ok(Some(Changed {
        prompt: model.tokenizer.decode(&before.prompt),
        before: model.tokenizer.decode(&before.answer),
        after: model.tokenizer.decode(&after.answer),
        at,
        base: [probability(old.get(at)), probability(new.get(at))],
    }))
}

/// KL(base ‖ adapter) over all tokens of the base's answers.
fn divergence(asker: &Asker, adapter: &LoraWeights, answered: &[Answered]) -> Result<f64> {
    let network = asker.model.network.as_ref();
    let rows: Vec<Row> = answered.iter().filter_map(Answered::tokens).map(|tokens| Row::stay(tokens, 1.0)).collect();
    let learner = network.learner(adapter, Arc::default())?;
    let lanes = Lanes::for_network(network.config(), asker.threads)?;
    let kl = lanes.losses(learner.as_ref(), &rows.iter().collect::<Vec<_>>())?;
    let tokens: Vec<f64> =
        rows.iter().map(|r| r.sequences().iter().map(|s| s.target_count()).sum::<usize>() as f64).collect();
    Ok(kl.iter().zip(&tokens).map(|(kl, n)| kl * n).sum::<f64>() / tokens.iter().sum::<f64>())
}
