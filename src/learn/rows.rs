//! From examples to token rows: the prompt by the model's own chat template, the completion tokenised apart.

use crate::error::Result;
use crate::feedback::example::Origin;
use crate::feedback::{BadAnswer, Example};
use crate::model::Tokens;
use crate::model::load::Model;
use crate::model::message::Role;
use crate::text;
use crate::train::chat::ChatFormat;

/// An example ready to be learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Lesson {
    /// Digest of the example's content: draws and splits go by it, and rows are ordered by it.
    pub key: [u8; 32],
    pub tokens: Tokens,
    /// The same prompt with the answer that it is to be preferred to.
    pub rejected: Option<Tokens>,
    pub weight: f64,
    pub origin: Origin,
    /// The wanted answer without surrounding white space: rows with the same one carry the same lesson.
    pub answer: String,
}

/// A bad answer ready to be moved away from.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    pub key: [u8; 32],
    pub tokens: Tokens,
    pub weight: f64,
}

/// An example that cannot be learned: prompt and completion do not fit into the model's context together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    pub interaction: i64,
    /// The beginning of the question, on one line.
    pub question: String,
    pub tokens: usize,
    pub context: usize,
}

/// Characters of a question that name a skipped row.
const NAME_WIDTH: usize = 40;

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Skipped { interaction, question, tokens, context } = self;
        write!(f, "#{interaction} ({question:?}) has {tokens} tokens, the model's context {context}")
    }
}

/// All examples as rows, in the order of their content, and those that are too long for the model.
pub fn lessons(model: &Model, examples: &[Example]) -> Result<(Vec<Lesson>, Vec<Skipped>)> {
    let context = model.network.config().context;
    let format = ChatFormat::of(model)?;
    let (mut lessons, mut skipped) = (Vec::new(), Vec::new());
    for example in examples {
        let prompt = format.prompt(&example.messages, example.thinking)?;
        let completion = match example.origin {
            Origin::Praise => format.completion(&example.completion)?,
            Origin::Correction => format.typed(example.completion.trim())?,
        };
        let tokens = prompt.len() + completion.len();
        if tokens > context {
            let question = example.messages.iter().rev().find(|m| m.role == Role::User).map_or("", |m| &m.content);
            let question = text::one_line(question, NAME_WIDTH);
            skipped.push(Skipped { interaction: example.interaction, question, tokens, context });
            continue;
        }
        let rejected = example.rejected.as_ref().map(|answer| format.completion(answer)).transpose()?;
        let rejected = rejected.map(|answer| Tokens::new(&prompt, &answer)).filter(|row| row.ids.len() <= context);
        lessons.push(Lesson {
            key: example.content_digest(),
            tokens: Tokens::new(&prompt, &completion),
            rejected,
            weight: example.weight,
            origin: example.origin,
            answer: example.completion.trim().to_string(),
        });
    }
    lessons.sort_by(|a, b| a.key.cmp(&b.key).then(a.weight.total_cmp(&b.weight)));
    Ok((lessons, skipped))
}

/// All bad answers as rows, in the order of their content; those that are too long for the model are left out.
pub fn faults(model: &Model, bad: &[BadAnswer]) -> Result<Vec<Fault>> {
    let context = model.network.config().context;
    let format = ChatFormat::of(model)?;
    let mut faults = Vec::new();
    for bad in bad {
        let tokens = format.tokens(&bad.messages, &bad.answer, bad.thinking)?;
        if tokens.ids.len() <= context {
            faults.push(Fault { key: bad.content_digest(), tokens, weight: bad.weight });
        }
    }
    faults.sort_by(|a, b| a.key.cmp(&b.key).then(a.weight.total_cmp(&b.weight)));
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{self, example};
    use super::*;

    const IM_END: u32 = 302;

    #[test]
    fn the_prompt_is_masked_and_the_answer_ends_its_turn() {
        let model = testing::model(1);
        let (lessons, skipped) = lessons(&model, &[example(1, "why?", "so", Origin::Praise, 1.0)]).unwrap();
        assert!(skipped.is_empty());
        let Tokens { ids, targets } = &lessons[0].tokens;
        let text = model.tokenizer.decode_with_control(ids);
        assert_eq!(text, "<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\nso<|im_end|>");
        let learned: Vec<u32> = ids.iter().zip(targets).filter(|(_, t)| **t).map(|(id, _)| *id).collect();
        assert_eq!(learned, [u32::from(b's'), u32::from(b'o'), IM_END]);
    }

    #[test]
    fn markup_is_the_models_only() {
        let model = testing::model(1);
        let tokens = |origin| {
            let rows = lessons(&model, &[example(1, "q", " <think>x<|im_end|> ", origin, 1.0)]).unwrap().0;
            rows[0].tokens.ids.clone()
        };
        let own = tokens(Origin::Praise);
        assert_eq!(own.iter().filter(|id| **id == 304).count(), 1, "<think>");
        let typed = tokens(Origin::Correction);
        assert_eq!(typed.iter().filter(|id| **id == 304).count(), 0);
        assert_eq!(typed.iter().filter(|id| **id == IM_END).count(), 2, "of the question and of the answer");
        let text = model.tokenizer.decode_with_control(&typed);
        assert!(text.ends_with("assistant\n<think>x<|im_end|><|im_end|>"), "without the white space around: {text}");
    }

    #[test]
    fn rows_are_in_the_order_of_their_content() {
        let model = testing::model(1);
        let examples: Vec<_> = (0..6).map(|i| example(i, &format!("q{i}"), "a", Origin::Praise, 1.0)).collect();
        let forward = lessons(&model, &examples).unwrap().0;
        let backward: Vec<_> =
            examples.into_iter().rev().map(|e| Example { interaction: e.interaction + 50, ..e }).collect();
        assert_eq!(lessons(&model, &backward).unwrap().0, forward);
        assert!(forward.is_sorted_by_key(|l| l.key));
    }

    #[test]
    fn what_is_too_long_is_skipped_and_named() {
        let model = testing::model(1);
        let context = model.network.config().context;
        let long = example(9, &"x\n".repeat(context), "a", Origin::Correction, 10.0);
        let (rows, skipped) = lessons(&model, &[long, example(1, "q", "a", Origin::Praise, 1.0)]).unwrap();
        assert_eq!(rows.len(), 1);
        assert_eq!((skipped[0].interaction, skipped[0].context), (9, context));
        assert!(skipped[0].tokens > context);
        let shown = skipped[0].to_string();
        assert!(shown.starts_with("#9 (\"x x") && !shown.contains('\n'), "{shown}");
    }
}
