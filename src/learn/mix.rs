//! Which loss each row of a buffer is trained with: praise is imitated, a correction preferred to what it corrects and
//! imitated, a bad answer moved away from, and the base's own answers held.

use super::canaries::Answered;
use super::recipe::{BETA, DPOP, PAIR_SFT, POSITIVE_SHARE, Recipe};
use super::rows::{Fault, Lesson};
use crate::model::Tokens;
use crate::train::row::{Goal, Judge, Prefer, Row};

/// What a lesson is trained with. Weights act through the draws, so every row counts the same in the loss.
pub fn lesson(lesson: &Lesson, recipe: &Recipe) -> Row {
    match &lesson.rejected {
        Some(rejected) if recipe.pairs => pair(lesson.tokens.clone(), rejected.clone(), 1.0),
        _ => Row::imitate(lesson.tokens.clone(), 1.0),
    }
}

/// A preference that also makes the better side likely (DPO with the SFT term).
pub fn pair(chosen: Tokens, rejected: Tokens, weight: f64) -> Row {
    let dpop = if nearly_alike(&chosen, &rejected) { DPOP } else { 0.0 };
    Row { goal: Goal::Prefer(Prefer { chosen, rejected, beta: BETA, dpop, sft: PAIR_SFT, reference: None }), weight }
}

/// What a row is measured by, apart from how it is trained: how likely its completion is.
pub fn yardstick(row: &Row) -> Row {
    match &row.goal {
        Goal::Prefer(pair) => Row::imitate(pair.chosen.clone(), row.weight),
        _ => row.clone(),
    }
}

/// Whether most of the longer answer is also the shorter one's beginning and end: where nearly all tokens are shared, DPO
/// alone may lower both sides (Pal et al. 2024).
fn nearly_alike(chosen: &Tokens, rejected: &Tokens) -> bool {
    let (a, b) = (completion(chosen), completion(rejected));
    let shorter = a.len().min(b.len());
    let front = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let back = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count().min(shorter - front);
    2 * (front + back) >= a.len().max(b.len())
}

/// From the first token that is to be learned.
pub fn completion(tokens: &Tokens) -> &[u32] {
    let start = tokens.targets.iter().position(|target| *target).unwrap_or(tokens.ids.len());
    &tokens.ids[start..]
}

/// The rows that join the drawn ones in every step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Beside {
    pub rows: Vec<Row>,
    /// Indices into `rows`, `a_step` a step, one step behind the other.
    pub draws: Vec<usize>,
    pub a_step: usize,
}

impl Beside {
    /// The base's answers, as many a step as the recipe says, and one of the bad answers: of a batch of two drawn rows or
    /// more it is a third at most.
    pub fn new(recipe: &Recipe, replayed: &[Answered], faults: &[Fault]) -> Beside {
        let form = if recipe.replay_imitates { Row::imitate } else { Row::stay };
        let stays = replayed.iter().filter_map(Answered::tokens).map(|tokens| form(tokens, recipe.replay_weight));
        let mut rows: Vec<Row> = stays.collect();
        let replay = recipe.replay_draws(rows.len());
        let (replays, mut a_step) = (rows.len(), if rows.is_empty() { 0 } else { recipe.replay_rows });
        let judged = recipe.in_turn(faults.len(), 1);
        rows.extend(faults.iter().map(away_from));
        let mut draws = Vec::with_capacity(replay.len() + judged.len());
        for step in 0..recipe.steps {
            draws.extend(&replay[step * a_step..][..a_step]);
            draws.extend(judged.get(step).map(|at| replays + at));
        }
        a_step += usize::from(!judged.is_empty());
        Beside { rows, draws, a_step }
    }
}

/// The bad answers that may be moved away from, all or none: not before enough rows (`lessons`) say where to.
pub fn admitted(recipe: &Recipe, faults: Vec<Fault>, lessons: usize) -> Vec<Fault> {
    let share = lessons as f64 / (lessons + faults.len()).max(1) as f64;
    if recipe.faults && recipe.batch_size >= 2 && share >= POSITIVE_SHARE { faults } else { Vec::new() }
}

/// A bad answer's row: never a likelihood to raise.
fn away_from(fault: &Fault) -> Row {
    let judge = Judge { tokens: fault.tokens.clone(), good: false, beta: BETA, reference: None };
    Row { goal: Goal::Judge(judge), weight: fault.weight.min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use crate::config::LoraSection;
    use crate::feedback::example::Origin;
    use crate::feedback::{BadAnswer, Example};
    use crate::model::message::Message;

    fn recipe() -> Recipe {
        Recipe::resolve(&LoraSection::default(), &testing::config(), 10)
    }

    fn corrected(completion: &str, rejected: &str) -> Lesson {
        let example = testing::example(1, "q", completion, Origin::Correction, 10.0);
        let example = Example { rejected: Some(rejected.into()), ..example };
        super::super::rows::lessons(&testing::model(1), &[example]).unwrap().0.remove(0)
    }

    fn faults(n: usize) -> Vec<Fault> {
        let bad = |i| BadAnswer {
            messages: vec![Message::user(format!("q{i}"))],
            answer: "bad".into(),
            weight: 0.5,
            thinking: None,
        };
        super::super::rows::faults(&testing::model(1), &(0..n).map(bad).collect::<Vec<_>>()).unwrap()
    }

    fn stay(n: u32) -> Vec<Answered> {
        let answered = |i| Answered { key: [0; 32], prompt: vec![1], answer: vec![i], end: Some(302) };
        (0..n).map(answered).collect()
    }

    #[test]
    fn each_signal_has_its_loss() {
        let praise = testing::lesson("q", "a", Origin::Praise, 1.0);
        assert_eq!(lesson(&praise, &recipe()), Row::imitate(praise.tokens.clone(), 1.0));
        let pair = corrected("something else altogether", "no");
        let Goal::Prefer(prefer) = lesson(&pair, &recipe()).goal else { panic!("not preferred") };
        assert_eq!((&prefer.chosen, Some(&prefer.rejected)), (&pair.tokens, pair.rejected.as_ref()));
        assert_eq!((prefer.beta, prefer.sft, prefer.dpop), (0.1, 1.0, 0.0));
        assert_eq!(yardstick(&lesson(&pair, &recipe())), Row::imitate(pair.tokens.clone(), 1.0));
        let imitated = Recipe { pairs: false, ..recipe() };
        assert_eq!(lesson(&pair, &imitated), Row::imitate(pair.tokens, 1.0));
        for fault in faults(3) {
            let row = away_from(&fault);
            assert!(matches!(row.goal, Goal::Judge(Judge { good: false, .. })) && row.weight == 0.5);
        }
    }

    #[test]
    fn pairs_that_differ_in_few_tokens_keep_their_better_side() {
        let dpop = |a: &str, b: &str| match lesson(&corrected(a, b), &recipe()).goal {
            Goal::Prefer(prefer) => prefer.dpop,
            other => panic!("{other:?}"),
        };
        assert_eq!(dpop("let x = y?; done", "let x = y.unwrap(); done"), DPOP);
        assert_eq!(dpop("aaaa", "aaaaaa"), DPOP);
        assert_eq!(dpop("one answer", "quite another text"), 0.0);
    }

    #[test]
    fn bad_answers_wait_for_enough_good_ones_and_are_a_third_of_a_batch_at_most() {
        let admitted = |recipe: &Recipe, bad, lessons| admitted(recipe, faults(bad), lessons).len();
        assert_eq!(admitted(&recipe(), 15, 5), 15);
        assert_eq!(admitted(&recipe(), 16, 5), 0, "5 of 21 are too few");
        assert_eq!(admitted(&Recipe { batch_size: 1, ..recipe() }, 1, 5), 0, "half of a batch is too much");
        assert_eq!(admitted(&Recipe { faults: false, ..recipe() }, 1, 5), 0);
        let some = Beside::new(&recipe(), &stay(20), &faults(15));
        assert_eq!((some.a_step, some.rows.len(), some.draws.len()), (9, 35, 9 * recipe().steps));
        for step in some.draws.chunks(9) {
            assert!(step[..8].iter().all(|i| *i < 20) && step[8] >= 20, "{step:?}");
        }
        let alone = Beside::new(&recipe(), &[], &faults(2));
        assert_eq!((alone.a_step, alone.draws.len()), (1, recipe().steps));
        assert_eq!(Beside::new(&recipe(), &[], &[]), Beside::default());
    }
}
