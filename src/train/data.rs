//! Data sets: JSONL rows in the forms of TRL, or already tokenised, to rows of training.
//!
//! A row says by its fields what it is: a text to imitate, a pair, or a judged answer; the objective says which of them it
//! can use. Errors name file, line and field. A row that is too long is skipped and named, never cut.

use std::collections::BTreeSet;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::chat::ChatFormat;
use super::order::Mark;
use super::row::{Goal, Judge, Prefer, Row};
use crate::error::{Context, Error, Result};
use crate::jsonl::{self, Lines};
use crate::model::Tokens;
use crate::model::load::{ChatFiles, ModelSource};
use crate::model::message::{Message, Role};

/// Which loss a training minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Objective {
    /// finch's own mixture, with hold-out, replay and early stop.
    Auto,
    Sft,
    Dpo,
    Kto,
}

impl Objective {
    pub fn name(self) -> &'static str {
        match self {
            Objective::Auto => "auto",
            Objective::Sft => "sft",
            Objective::Dpo => "dpo",
            Objective::Kto => "kto",
        }
    }
}

/// What a row asks for, in token ids.
#[derive(Debug, Clone, PartialEq)]
pub enum Lesson {
    Imitate(Tokens),
    Pair { chosen: Tokens, rejected: Tokens },
    Judged { tokens: Tokens, good: bool },
}

/// One row of a data set.
#[derive(Debug, Clone, PartialEq)]
pub struct DataRow {
    /// Counted from 1.
    pub line: usize,
    pub weight: f64,
    pub lesson: Lesson,
    /// The prompt, where the row has it as messages.
    pub question: Option<Question>,
}

/// A prompt before the template.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    pub messages: Vec<Message>,
    pub thinking: Option<bool>,
}

/// A data set, tokenised.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataSet {
    /// The file in words for messages.
    pub name: String,
    pub rows: Vec<DataRow>,
    /// Lines of rows with more tokens than allowed, and how many they have.
    pub skipped: Vec<(usize, usize)>,
    /// Fields that mean nothing here: they may be misspelt.
    pub unknown: BTreeSet<String>,
}

/// The model's side of reading: its ids, and its tokenizer and template once a row needs them.
pub struct Reader {
    source: ModelSource,
    vocab_size: usize,
    max_length: usize,
    files: Option<ChatFiles>,
}

impl Reader {
    /// Rows of more than `max_length` tokens are skipped. Tokenised rows need no tokenizer in the model's folder.
    pub fn new(source: ModelSource, vocab_size: usize, max_length: usize) -> Reader {
        Reader { source, vocab_size, max_length, files: None }
    }

    /// Reads all rows, or none: the first bad one is an error that names it.
    pub fn read(&mut self, path: &Path) -> Result<DataSet> {
        let mut lines = Lines::open(path)?;
        let mut set = DataSet { name: lines.name().to_string(), ..DataSet::default() };
        while let Some((line, mut row)) = lines.next_row()? {
            let place = || format!("{}:{line}", lines.name());
            let weight = weight(&mut row).with_context(place)?;
            let (lesson, question) = self.lesson(&mut row).with_context(place)?;
            set.unknown.extend(row.rest().map(str::to_owned));
            let length = lesson.longest();
            if length > self.max_length {
                set.skipped.push((line, length));
            } else {
                set.rows.push(DataRow { line, weight, lesson, question });
            }
        }
        Ok(set)
    }

    /// What a row teaches, and its prompt where that is a list of messages.
    fn lesson(&mut self, row: &mut jsonl::Row) -> Result<(Lesson, Option<Question>)> {
        let vocab_size = self.vocab_size;
        let lesson = match Form::of(row)? {
            Form::Labels => labelled_ids(row, vocab_size).map(Lesson::Imitate)?,
            Form::PairIds => {
                let prompt = needed_ids(row, "prompt_ids", vocab_size)?;
                let chosen = needed_ids(row, "chosen_ids", vocab_size)?;
                let rejected = needed_ids(row, "rejected_ids", vocab_size)?;
                pair(&prompt, &chosen, &rejected)?
            }
            Form::CompletionIds => {
                let prompt = needed_ids(row, "prompt_ids", vocab_size)?;
                let completion = needed_ids(row, "completion_ids", vocab_size)?;
                judged(Tokens::new(&prompt, &completion), row.yes_or_no("label")?)?
            }
            Form::Messages => {
                let thinking = row.yes_or_no("thinking")?;
                let mut messages = row.messages("messages")?.unwrap_or_default();
                let last = messages.iter().rposition(|m| m.role == Role::Assistant);
                let last = last.ok_or_else(|| Error::failure("messages holds no assistant message to learn from"))?;
                if last == 0 {
                    return Err(Error::failure("messages: nothing stands before the last assistant message"));
                }
                let tokens = self.format()?.tokens(&messages[..last], &messages[last].content, thinking)?;
                let lesson = judged(tokens, row.yes_or_no("label")?)?;
                messages.truncate(last);
                return Ok((lesson, Some(Question { messages, thinking })));
            }
            Form::Pair => {
                let (prompt, question) = self.prompt(row)?;
                let chosen = self.completion(row, "chosen")?;
                let rejected = self.completion(row, "rejected")?;
                return Ok((pair(&prompt, &chosen, &rejected)?, question));
            }
            Form::Completion => {
                let (prompt, question) = self.prompt(row)?;
                let completion = self.completion(row, "completion")?;
                return Ok((judged(Tokens::new(&prompt, &completion), row.yes_or_no("label")?)?, question));
            }
        };
        Ok((lesson, None))
    }

    fn format(&mut self) -> Result<ChatFormat<'_>> {
        let files = match self.files.take() {
            Some(files) => files,
            None => self.source.chat_files()?,
        };
        ChatFormat::of_files(self.files.insert(files))
    }

    /// A string as it stands; messages by the template, opened for an answer, and the messages themselves.
    fn prompt(&mut self, row: &mut jsonl::Row) -> Result<(Vec<u32>, Option<Question>)> {
        let thinking = row.yes_or_no("thinking")?;
        match row.take("prompt") {
            Some(serde_json::Value::String(text)) => Ok((self.format()?.plain(&text)?, None)),
            Some(value) => {
                let messages = jsonl::messages("prompt", &value)?;
                if messages.is_empty() {
                    return Err(Error::failure("prompt is empty"));
                }
                let ids = self.format()?.prompt(&messages, thinking)?;
                Ok((ids, Some(Question { messages, thinking })))
            }
            None => Err(Error::failure("prompt is missing")),
        }
    }

    /// A string, or a list of one assistant message.
    fn completion(&mut self, row: &mut jsonl::Row, field: &str) -> Result<Vec<u32>> {
        let text = match row.take(field) {
            Some(serde_json::Value::String(text)) => text,
            Some(value) => match jsonl::messages(field, &value)?.as_slice() {
                [Message { role: Role::Assistant, content }] => content.clone(),
                _ => return Err(Error::failure(format!("{field} should be text or a list of one assistant message"))),
            },
            None => return Err(Error::failure(format!("{field} is missing"))),
        };
        self.format()?.completion(&text)
    }
}

/// The forms of a row, told by the fields that it has.
enum Form {
    Labels,
    PairIds,
    CompletionIds,
    Messages,
    Pair,
    Completion,
}

impl Form {
    fn of(row: &jsonl::Row) -> Result<Form> {
        let forms = [
            (["input_ids", "labels"], Form::Labels),
            (["chosen_ids", "rejected_ids"], Form::PairIds),
            (["completion_ids", "completion_ids"], Form::CompletionIds),
            (["messages", "messages"], Form::Messages),
            (["chosen", "rejected"], Form::Pair),
            (["completion", "completion"], Form::Completion),
        ];
        let mut found = forms.into_iter().filter(|(fields, _)| fields.iter().any(|field| row.has(field)));
        match (found.next(), found.next()) {
            (Some((_, form)), None) => Ok(form),
            (Some((one, _)), Some((two, _))) => {
                Err(Error::failure(format!("the row has both {} and {}: it should be of one form", one[0], two[0])))
            }
            (None, _) => Err(Error::failure(
                "the row has none of messages, completion, chosen, input_ids, chosen_ids and completion_ids",
            )
            .hint("{\"messages\":[…]}, {\"prompt\":…,\"completion\":…} and {\"prompt\":…,\"chosen\":…,\"rejected\":…} are rows")),
        }
    }
}

impl Lesson {
    /// Tokens of its longest sequence.
    fn longest(&self) -> usize {
        match self {
            Lesson::Imitate(tokens) | Lesson::Judged { tokens, .. } => tokens.ids.len(),
            Lesson::Pair { chosen, rejected } => chosen.ids.len().max(rejected.ids.len()),
        }
    }

    /// Tokens of all its sequences.
    pub fn len(&self) -> usize {
        match self {
            Lesson::Imitate(tokens) | Lesson::Judged { tokens, .. } => tokens.ids.len(),
            Lesson::Pair { chosen, rejected } => chosen.ids.len() + rejected.ids.len(),
        }
    }

    /// Never: every lesson has a token to learn.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Stable digest of its content: the same in every file, on every line.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut put = |tag: u8, tokens: &Tokens| {
            hash.update([tag]);
            hash.update((tokens.ids.len() as u64).to_le_bytes());
            for (id, target) in tokens.ids.iter().zip(&tokens.targets) {
                hash.update(id.to_le_bytes());
                hash.update([u8::from(*target)]);
            }
        };
        match self {
            Lesson::Imitate(tokens) => put(0, tokens),
            Lesson::Pair { chosen, rejected } => {
                put(1, chosen);
                put(2, rejected);
            }
            Lesson::Judged { tokens, good } => put(3 + u8::from(*good), tokens),
        }
        hash.finalize().into()
    }
}

impl DataSet {
    /// What an order looks at, row by row.
    pub fn marks(&self) -> Vec<Mark> {
        let mark = |row: &DataRow| Mark { key: row.lesson.digest(), weight: row.weight, length: row.lesson.len() };
        self.rows.iter().map(mark).collect()
    }

    /// The rows without the answers judged bad, and the lines of those: `auto` has no use for them yet.
    pub fn without_bad(mut self) -> (DataSet, Vec<usize>) {
        let bad = |row: &DataRow| matches!(row.lesson, Lesson::Judged { good: false, .. });
        let lines = self.rows.iter().filter(|row| bad(row)).map(|row| row.line).collect();
        self.rows.retain(|row| !bad(row));
        (self, lines)
    }

    /// The rows as an objective takes them, in the order of the file; `beta`: the pull to the reference (dpo, kto), `sft`:
    /// the weight of the chosen side's own likelihood (dpo). `auto` imitates what is wanted, of a pair the chosen side.
    ///
    /// Errors name the first row that the objective has no use for: nothing is left out in silence.
    pub fn rows(&self, objective: Objective, beta: f64, sft: f64) -> Result<Vec<Row>> {
        let row = |row: &DataRow| {
            let goal = match (objective, &row.lesson) {
                (Objective::Sft, Lesson::Imitate(tokens) | Lesson::Judged { tokens, good: true }) => {
                    Goal::Imitate(tokens.clone())
                }
                (
                    Objective::Auto,
                    Lesson::Imitate(tokens)
                    | Lesson::Judged { tokens, good: true }
                    | Lesson::Pair { chosen: tokens, .. },
                ) => Goal::Imitate(tokens.clone()),
                (Objective::Dpo, Lesson::Pair { chosen, rejected }) => {
                    let (chosen, rejected) = (chosen.clone(), rejected.clone());
                    Goal::Prefer(Prefer { chosen, rejected, beta, dpop: 0.0, sft, reference: None })
                }
                (Objective::Kto, Lesson::Judged { tokens, good }) => {
                    Goal::Judge(Judge { tokens: tokens.clone(), good: *good, beta, reference: None })
                }
                (_, lesson) => return Err(unfit(objective, lesson).context(format!("{}:{}", self.name, row.line))),
            };
            Ok(Row { goal, weight: row.weight })
        };
        self.rows.iter().map(row).collect()
    }
}

fn unfit(objective: Objective, lesson: &Lesson) -> Error {
    let (is, fits) = match lesson {
        Lesson::Imitate(_) => ("has no label and no rejected side", "sft"),
        Lesson::Pair { .. } => ("is a pair", "dpo"),
        Lesson::Judged { good: false, .. } => ("is an answer judged bad, never one to imitate", "kto"),
        Lesson::Judged { good: true, .. } => ("is an answer judged good", "kto or sft"),
    };
    Error::failure(format!("the row {is}; objective {} cannot use it", objective.name()))
        .hint(format!("--objective {fits} takes such rows"))
}

/// 1 where the row says nothing.
fn weight(row: &mut jsonl::Row) -> Result<f64> {
    match row.number("weight")? {
        None => Ok(1.0),
        Some(weight) if weight > 0.0 && weight.is_finite() => Ok(weight),
        Some(weight) => Err(Error::failure(format!("weight is {weight}, it should be a number above 0"))),
    }
}

fn needed_ids(row: &mut jsonl::Row, field: &str, vocab_size: usize) -> Result<Vec<u32>> {
    row.ids(field, vocab_size)?.ok_or_else(|| Error::failure(format!("{field} is missing")))
}

fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> Result<Lesson> {
    let (chosen, rejected) = (Tokens::new(prompt, chosen), Tokens::new(prompt, rejected));
    check_targets(&chosen).context("chosen")?;
    check_targets(&rejected).context("rejected")?;
    Ok(Lesson::Pair { chosen, rejected })
}

fn judged(tokens: Tokens, label: Option<bool>) -> Result<Lesson> {
    check_targets(&tokens)?;
    Ok(match label {
        Some(good) => Lesson::Judged { tokens, good },
        None => Lesson::Imitate(tokens),
    })
}

fn check_targets(tokens: &Tokens) -> Result<()> {
    match tokens.target_count() {
        0 => Err(Error::failure("there is nothing to learn: no token of a completion stands after the first token")),
        _ => Ok(()),
    }
}

/// `labels[i]` is `input_ids[i]` where the token counts, −100 where it does not.
fn labelled_ids(row: &mut jsonl::Row, vocab_size: usize) -> Result<Tokens> {
    let ids = needed_ids(row, "input_ids", vocab_size)?;
    let labels = row.integers("labels")?.ok_or_else(|| Error::failure("labels is missing"))?;
    if labels.len() != ids.len() {
        return Err(Error::failure(format!("labels has {} entries, input_ids {}", labels.len(), ids.len())));
    }
    let mut targets = Vec::with_capacity(ids.len());
    for (at, (label, id)) in labels.iter().zip(&ids).enumerate() {
        if *label != IGNORED && *label != i64::from(*id) {
            return Err(Error::failure(format!(
                "labels[{at}] is {label}, it should be {IGNORED} or input_ids[{at}] ({id})"
            )));
        }
        targets.push(*label != IGNORED && at > 0); // nothing stands before the first token to predict it from
    }
    let tokens = Tokens { ids, targets };
    check_targets(&tokens)?;
    Ok(tokens)
}

/// torch's label of tokens that do not count.
const IGNORED: i64 = -100;

#[cfg(test)]
#[path = "data_tests.rs"]
mod tests;
