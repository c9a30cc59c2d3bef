//! Figures on rows that were never trained on.

use super::gauge::Gauge;
use super::mix::completion;
use super::recipe::{HELD_OUT_MIN, PAIRS_MIN};
use super::rows::Lesson;
use crate::error::Result;
use crate::model::Tokens;
use crate::train::data;

/// Answers to other questions that a row's own answer is compared with, at most.
const OTHERS: usize = 3;

/// A row that was not trained on: what is wanted, and what it is to be preferred to.
#[derive(Debug, Clone, PartialEq)]
pub struct Unseen {
    pub tokens: Tokens,
    pub rejected: Option<Tokens>,
}

impl From<&Lesson> for Unseen {
    fn from(lesson: &Lesson) -> Unseen {
        Unseen { tokens: lesson.tokens.clone(), rejected: lesson.rejected.clone() }
    }
}

impl Unseen {
    /// A row of a data set; `None`: it is an answer judged bad, and nothing is wanted in its place.
    pub fn of(lesson: &data::Lesson) -> Option<Unseen> {
        let (tokens, rejected) = match lesson {
            data::Lesson::Imitate(tokens) | data::Lesson::Judged { tokens, good: true } => (tokens, None),
            data::Lesson::Pair { chosen, rejected } => (chosen, Some(rejected.clone())),
            data::Lesson::Judged { good: false, .. } => return None,
        };
        Some(Unseen { tokens: tokens.clone(), rejected })
    }
}

/// What is measured on held-out rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct HeldOut {
    /// Mean loss of a row, in nat a token: of what answers now, and of the new adapter.
    pub loss: (f64, f64),
    /// Rows whose own answer the new adapter finds likelier than the answers to other questions, of how many; `None`: all
    /// rows have the same answer.
    pub fitting: Option<(usize, usize)>,
    /// `None`: too few pairs.
    pub pairs: Option<Pairs>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    /// Pairs whose margin has grown over the base's.
    pub won: usize,
    pub of: usize,
    /// How far the better sides have fallen below the base, in nat a token; negative: they have risen.
    pub fall: f64,
}

/// Measures on `rows`; `None`: there are too few for their figures to mean anything.
pub fn measure(rows: &[Unseen], new: &Gauge, live: &Gauge, base: &Gauge) -> Result<Option<HeldOut>> {
    if rows.len() < HELD_OUT_MIN {
        return Ok(None);
    }
    let own: Vec<&Tokens> = rows.iter().map(|row| &row.tokens).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let after = new.surprise(&own)?;
    let loss = (mean(&live.surprise(&own)?), mean(&after));
    Ok(Some(HeldOut { loss, fitting: fitting(rows, &after, new)?, pairs: pairs(rows, new, base)? }))
}

/// An adapter that has learned answers, but not which question each belongs to, is told by this.
fn fitting(rows: &[Unseen], own: &[f64], new: &Gauge) -> Result<Option<(usize, usize)>> {
    let (mut of, mut others) = (Vec::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        let mut seen = vec![completion(&row.tokens)];
        for other in rows.iter().cycle().skip(i + 1).take(rows.len() - 1) {
            let answer = completion(&other.tokens);
            if seen.len() <= OTHERS && !seen.contains(&answer) {
                seen.push(answer);
                of.push(i);
                others.push(exchanged(&row.tokens, &other.tokens));
            }
        }
    }
    let losses = new.surprise(&others.iter().collect::<Vec<_>>())?;
    let mut compared: Vec<usize> = of.clone();
    compared.dedup();
    // A loss that is no number is not below any other.
    let fits = |row: &usize| of.iter().zip(&losses).filter(|(i, _)| *i == row).all(|(_, loss)| own[*row] < *loss);
    let fits = compared.iter().filter(|row| fits(row)).count();
    Ok((!compared.is_empty()).then_some((fits, compared.len())))
}

/// One row's prompt with another's completion.
fn exchanged(row: &Tokens, other: &Tokens) -> Tokens {
    let prompt = row.ids.len() - completion(row).len();
    Tokens::new(&row.ids[..prompt], completion(other))
}

fn pairs(rows: &[Unseen], new: &Gauge, base: &Gauge) -> Result<Option<Pairs>> {
    let sides: Vec<&Tokens> =
        rows.iter().filter_map(|row| Some([&row.tokens, row.rejected.as_ref()?])).flatten().collect();
    if sides.len() < 2 * PAIRS_MIN {
        return Ok(None);
    }
    // Sums over the completion, as in the preference loss.
    let risen: Vec<f64> = (new.surprise(&sides)?.iter().zip(base.surprise(&sides)?).zip(&sides))
        .map(|((new, base), side)| (base - new) * side.target_count() as f64)
        .collect();
    let tokens: usize = sides.iter().step_by(2).map(|side| side.target_count()).sum();
    Ok(Some(Pairs {
        won: risen.chunks_exact(2).filter(|side| side[0] - side[1] > 0.0).count(),
        of: risen.len() / 2,
        fall: -risen.iter().step_by(2).sum::<f64>() / tokens as f64,
    }))
}
