//! What feedback may teach: from an interaction and its feedback in force to a training example, or to the reason why not.
//!
//! The rules, in the order of their force:
//! - A response that was rated bad is never a target, not even where the same answer to the same messages was praised
//!   elsewhere. Without a better answer it waits; where no word says what would have been better, it is also one to move
//!   away from ([`BadAnswer`]).
//! - A cut-off answer is never a target, and never the rejected side either: the model did not choose to end there.
//! - A model's own answer, a revision or a second answer included, is a target for the base that gave it only. What the
//!   user typed holds for every base, and so does an imported answer that names no base.
//! - Implicit signals and three stars teach nothing.

use std::collections::HashMap;
use std::fmt;

use super::record::{Feedback, FieldHash, Finish, Interaction, prompt_digest};
use crate::model::message::Message;

/// Why an example may be learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The answer was rated good.
    Praise,
    /// The user gave the better answer.
    Correction,
}

/// What training sees: messages, a completion to reinforce, maybe one to move away from, and a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    pub interaction: i64,
    /// The prompt: everything before the completion, but for the lessons: what was a reminder is to be obeyed unprompted.
    pub messages: Vec<Message>,
    pub completion: String,
    pub rejected: Option<String>,
    /// Positive and finite.
    pub weight: f64,
    /// The thinking switch that the prompt was given with.
    pub thinking: Option<bool>,
    pub origin: Origin,
    /// What the user said should have been done, trimmed; the completion obeys it.
    pub note: Option<String>,
}

/// An answer that was rated bad without a word of what would have been better. It is no [`Example`]: it can be moved away
/// from, never imitated.
#[derive(Debug, Clone, PartialEq)]
pub struct BadAnswer {
    pub messages: Vec<Message>,
    pub answer: String,
    /// Above 0, at most 1: it says what not to do, and nothing about what to do.
    pub weight: f64,
    pub thinking: Option<bool>,
}

impl BadAnswer {
    /// Digest of prompt and answer, as [`Example::content_digest`].
    pub fn content_digest(&self) -> [u8; 32] {
        answer_digest(&self.messages, &self.answer)
    }
}

impl Example {
    /// Digest of the lesson: prompt, completion, rejected side; not of ids, weight or time. Splits and draws go by it.
    pub fn content_digest(&self) -> [u8; 32] {
        let mut hash = FieldHash::new("example");
        hash.field(&prompt_digest(&self.messages));
        hash.field(self.completion.as_bytes());
        hash.field(&[u8::from(self.rejected.is_some())]);
        hash.field(self.rejected.as_deref().unwrap_or("").as_bytes());
        hash.field(match self.thinking {
            None => b"default",
            Some(true) => b"on",
            Some(false) => b"off",
        });
        hash.finish()
    }

    /// Hex digest of lesson and weight. A run notes it for each of its examples: an interaction whose stamp has changed
    /// since (rated otherwise, corrected) is new again, one that was merely rated the same once more is not.
    pub fn stamp(&self) -> String {
        let mut hash = FieldHash::new("stamp");
        hash.field(&self.content_digest());
        hash.field(&self.weight.to_le_bytes());
        hash.finish().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What an interaction's feedback amounts to.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Trainable(Example),
    /// Rated bad, and there is no better answer to learn from yet.
    Waiting(Waiting),
    /// Nothing to learn, and why.
    Nothing(Unused),
}

/// A bad answer that waits for a better one.
#[derive(Debug, Clone, PartialEq)]
pub struct Waiting {
    pub interaction: i64,
    /// The feedback that it waits with; its kind, note and weight are for display.
    pub feedback: Feedback,
    pub reason: WaitReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitReason {
    NoBetterAnswer,
    /// The correction given is the bad answer again.
    SameAsAnswer,
    /// The correction given was itself rated bad, as the answer of this interaction.
    RatedBad(i64),
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitReason::NoBetterAnswer => f.write_str("waiting for a better answer"),
            WaitReason::SameAsAnswer => f.write_str("the correction is the same as the answer"),
            WaitReason::RatedBad(id) => write!(f, "the correction was rated bad as the answer of #{id}"),
        }
    }
}

/// Feedback that teaches nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unused {
    pub interaction: i64,
    pub reason: UnusedReason,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnusedReason {
    /// Three stars, or implicit signals only.
    Neutral,
    /// Its weight is zero.
    Weightless,
    /// Praise for an answer without a word.
    Empty,
    /// Praise for an answer that was interrupted or ran out of tokens.
    CutOff,
    /// The answer to learn is another base model's.
    OtherBase,
    /// Praise for an answer that was rated bad in this interaction.
    RatedBad(i64),
}

impl fmt::Display for UnusedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UnusedReason::Neutral => f.write_str("says neither good nor bad"),
            UnusedReason::Weightless => f.write_str("its weight is zero"),
            UnusedReason::Empty => f.write_str("the answer is empty"),
            UnusedReason::CutOff => f.write_str("the answer was cut off"),
            UnusedReason::OtherBase => f.write_str("the answer is another model's"),
            UnusedReason::RatedBad(id) => write!(f, "the same answer was rated bad in #{id}"),
        }
    }
}

/// Judges one interaction by its feedback in force, for training on `base` (digest of the base's weights).
///
/// `feedback` holds what is in force only, in the order in which it was given: at most one judgement and one correction,
/// implicit signals besides. Use [`judge_all`] for a whole store: it also sees the same answer rated elsewhere.
pub fn judge(interaction: &Interaction, feedback: &[Feedback], base: &str) -> Verdict {
    let standing = Standing::of(interaction, feedback);
    let nothing = |reason| Verdict::Nothing(Unused { interaction: interaction.id, reason });
    let example = |completion: &str, rejected: Option<&str>, weight: f64, origin, note: Option<&str>| {
        if weight > 0.0 && weight.is_finite() {
            Verdict::Trainable(Example {
                interaction: interaction.id,
                messages: interaction.prompt(),
                completion: completion.to_owned(),
                rejected: rejected.map(str::to_owned),
                weight,
                thinking: interaction.thinking,
                origin,
                note: note.map(str::to_owned),
            })
        } else {
            nothing(UnusedReason::Weightless)
        }
    };
    let of_this_base = interaction.base.as_deref().is_none_or(|answered| answered == base);
    let whole = interaction.finish == Finish::Stop;
    let empty = interaction.response.trim().is_empty();

    let of_base = |given: &Feedback| given.written_by().is_none_or(|wrote| wrote == base);
    if let Some((given, text)) = standing.correction.filter(|(given, _)| of_base(given)) {
        if !same_text(text, &interaction.response) {
            let rejected = (standing.bad() && of_this_base && whole && !empty).then_some(interaction.response.as_str());
            let weight = standing.correction_weight(given);
            return example(text, rejected, weight, Origin::Correction, standing.note());
        }
        if standing.bad() {
            return waiting(interaction, given, WaitReason::SameAsAnswer);
        }
    }
    match standing.judgement {
        Some(given) if given.value < 0.0 => waiting(interaction, given, WaitReason::NoBetterAnswer),
        Some(given) if given.value > 0.0 => {
            if empty {
                nothing(UnusedReason::Empty)
            } else if !whole {
                nothing(UnusedReason::CutOff)
            } else if !of_this_base {
                nothing(UnusedReason::OtherBase)
            } else {
                example(&interaction.response, None, given.weight, Origin::Praise, None)
            }
        }
        _ if standing.correction.is_some_and(|(given, _)| !of_base(given)) => nothing(UnusedReason::OtherBase),
        _ => nothing(UnusedReason::Neutral),
    }
}

fn waiting(interaction: &Interaction, feedback: &Feedback, reason: WaitReason) -> Verdict {
    Verdict::Waiting(Waiting { interaction: interaction.id, feedback: feedback.clone(), reason })
}

/// Every verdict on a store's feedback, sorted by what it is, each list in the order given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Judged {
    pub examples: Vec<Example>,
    pub waiting: Vec<Waiting>,
    /// Those of the waiting ones that may be moved away from meanwhile.
    pub bad: Vec<BadAnswer>,
    pub unused: Vec<Unused>,
}

/// Judges all interactions (oldest first, as the store gives them) for training on `base`.
pub fn judge_all(judged: &[(Interaction, Vec<Feedback>)], base: &str) -> Judged {
    let mut bad: HashMap<[u8; 32], i64> = HashMap::new();
    for (interaction, feedback) in judged {
        if Standing::of(interaction, feedback).bad() {
            bad.insert(answer_digest(&interaction.prompt(), &interaction.response), interaction.id);
        }
    }
    let mut result = Judged::default();
    for (interaction, feedback) in judged {
        match judge(interaction, feedback, base) {
            Verdict::Trainable(example) => match bad.get(&answer_digest(&example.messages, &example.completion)) {
                None => result.examples.push(example),
                Some(&id) if example.origin == Origin::Praise => {
                    result.unused.push(Unused { interaction: interaction.id, reason: UnusedReason::RatedBad(id) });
                }
                Some(&id) => {
                    if let Some((given, _)) = Standing::of(interaction, feedback).correction
                        && let Verdict::Waiting(w) = waiting(interaction, given, WaitReason::RatedBad(id))
                    {
                        result.waiting.push(w);
                    }
                }
            },
            Verdict::Waiting(waiting) => {
                result.bad.extend(bad_answer(interaction, &waiting, base));
                result.waiting.push(waiting);
            }
            Verdict::Nothing(unused) => result.unused.push(unused),
        }
    }
    result
}

/// What may be moved away from of a waiting answer: this base's own, whole, and nobody said what would have been better
/// (then it waits for a revision).
fn bad_answer(interaction: &Interaction, waiting: &Waiting, base: &str) -> Option<BadAnswer> {
    let given = &waiting.feedback;
    let worded = given.note.as_deref().is_some_and(|note| !note.trim().is_empty());
    let own = interaction.base.as_deref() == Some(base);
    let whole = interaction.finish == Finish::Stop && !interaction.response.trim().is_empty();
    let weight = given.weight.min(1.0);
    let usable = waiting.reason == WaitReason::NoBetterAnswer && !worded && own && whole && weight > 0.0;
    usable.then(|| BadAnswer {
        messages: interaction.prompt(),
        answer: interaction.response.clone(),
        weight,
        thinking: interaction.thinking,
    })
}

fn answer_digest(messages: &[Message], answer: &str) -> [u8; 32] {
    let mut hash = FieldHash::new("answer");
    hash.field(&prompt_digest(messages));
    hash.field(answer.trim().as_bytes());
    hash.finish()
}

/// Surrounding white space does not make an answer another one.
pub fn same_text(a: &str, b: &str) -> bool {
    a.trim() == b.trim()
}

/// The feedback in force, by its part.
struct Standing<'a> {
    judgement: Option<&'a Feedback>,
    /// The latest better answer, and the feedback that brought it (a correction, or an imported rating with one).
    correction: Option<(&'a Feedback, &'a str)>,
    answer: &'a str,
}

impl<'a> Standing<'a> {
    fn of(interaction: &'a Interaction, feedback: &'a [Feedback]) -> Standing<'a> {
        let text =
            |f: &'a Feedback| f.corrected.as_deref().filter(|text| !text.trim().is_empty()).map(|text| (f, text));
        Standing {
            judgement: feedback.iter().rev().find(|f| f.kind.is_judgement()),
            correction: feedback.iter().rev().filter(|f| f.kind.is_explicit()).find_map(text),
            answer: &interaction.response,
        }
    }

    /// The answer was rated bad: in words, or by a correction that differs from it with no praise beside it.
    fn bad(&self) -> bool {
        match (self.judgement, self.correction) {
            (Some(judgement), _) if judgement.value != 0.0 => judgement.value < 0.0,
            (_, Some((_, text))) => !same_text(text, self.answer),
            _ => false,
        }
    }

    /// What should have been done: the words of the bad rating, else of the correction.
    fn note(&self) -> Option<&'a str> {
        let bad = self.judgement.filter(|judgement| judgement.value < 0.0);
        let given = bad.into_iter().chain(self.correction.map(|(given, _)| given));
        given.filter_map(|given| given.note.as_deref()).map(str::trim).find(|note| !note.is_empty())
    }

    /// The heavier of the correction's own weight and that of the bad rating which it answers.
    fn correction_weight(&self, given: &Feedback) -> f64 {
        match self.judgement {
            Some(judgement) if judgement.value < 0.0 => judgement.weight.max(given.weight),
            _ => given.weight,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
