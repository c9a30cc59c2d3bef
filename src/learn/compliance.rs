//! Whether what was taught is obeyed: every trained correction is asked again, also in other words, without its note.

use std::collections::BTreeMap;

use super::gauge::Gauge;
use super::mix::completion;
use super::recipe::{LARGE_CHECKS, SMALL_CHECKS, answer_tokens};
use crate::error::Result;
use crate::feedback::Example;
use crate::feedback::example::Origin;
use crate::feedback::lesson::digest;
use crate::feedback::rule::{Rule, rules};
use crate::model::Tokens;
use crate::model::load::Model;
use crate::model::message::{Message, Role};
use crate::train::chat::ChatFormat;
use crate::train::data::{self, DataRow};

/// A correction to ask for.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Digest of the note that came with it.
    note: Option<String>,
    /// What the note forbids and demands to the letter.
    rules: Vec<Rule>,
    /// The question as it was, then in other words.
    asked: Vec<Asked>,
}

#[derive(Debug, Clone, PartialEq)]
struct Asked {
    prompt: Vec<u32>,
    better: Tokens,
    /// The answer that was corrected; `None`: it was another model's.
    rejected: Option<Tokens>,
}

/// What came of the checks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Compliance {
    /// One verdict a check.
    pub holds: Vec<bool>,
    /// Digests of the notes that hold wherever they were given.
    pub carried: Vec<String>,
}

impl Compliance {
    pub fn count(&self) -> usize {
        self.holds.iter().filter(|holds| **holds).count()
    }
}

/// The checks for the corrections among `examples`, in the order of their content; of a large model the heaviest few.
/// Wordings that leave no room for an answer are left out.
pub fn checks(model: &Model, examples: &[Example]) -> Result<Vec<Check>> {
    let mut corrected: Vec<&Example> = examples.iter().filter(|e| e.origin == Origin::Correction).collect();
    corrected.sort_by_key(|example| example.content_digest());
    if !model.network.config().is_small() {
        corrected.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        corrected.truncate(LARGE_CHECKS);
    }
    let checks = corrected.into_iter().map(|example| check(model, example)).collect::<Result<Vec<_>>>()?;
    Ok(checks.into_iter().filter(|check| !check.asked.is_empty()).collect())
}

fn check(model: &Model, example: &Example) -> Result<Check> {
    let format = ChatFormat::of(model)?;
    let better = format.typed(example.completion.trim())?;
    let rejected = example.rejected.as_ref().map(|answer| format.completion(answer)).transpose()?;
    let asked = in_all_words(model, &example.messages, example.thinking, &better, rejected.as_deref())?;
    let note = example.note.as_deref();
    Ok(Check { note: note.map(digest), rules: note.map(rules).unwrap_or_default(), asked })
}

/// The checks for the pairs among the rows of a data set, the heaviest first, and of very many those alone: the better side
/// is to be likelier. A prompt that is no list of messages is asked as it stands, in no other words.
pub fn checks_of_pairs(model: &Model, rows: &[&DataRow]) -> Result<Vec<Check>> {
    let most = if model.network.config().is_small() { SMALL_CHECKS } else { LARGE_CHECKS };
    let mut pairs: Vec<&DataRow> =
        rows.iter().filter(|row| matches!(row.lesson, data::Lesson::Pair { .. })).copied().collect();
    pairs.sort_by_key(|row| row.lesson.digest());
    pairs.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    pairs.truncate(most);
    let mut checks = Vec::new();
    for row in pairs {
        let data::Lesson::Pair { chosen, rejected } = &row.lesson else { continue };
        let (better, worse) = (completion(chosen), completion(rejected));
        let asked = match &row.question {
            Some(asked) => in_all_words(model, &asked.messages, asked.thinking, better, Some(worse))?,
            None => {
                let prompt = chosen.ids[..chosen.ids.len() - better.len()].to_vec();
                vec![Asked { prompt, better: chosen.clone(), rejected: Some(rejected.clone()) }]
            }
        };
        checks.push(Check { note: None, rules: Vec::new(), asked });
    }
    checks.retain(|check| !check.asked.is_empty());
    Ok(checks)
}

/// The question as it was, then in other words, each with the better answer and the one that it is compared with.
fn in_all_words(
    model: &Model,
    messages: &[Message],
    thinking: Option<bool>,
    better: &[u32],
    rejected: Option<&[u32]>,
) -> Result<Vec<Asked>> {
    let (format, config) = (ChatFormat::of(model)?, model.network.config());
    let longest = better.len().max(rejected.map_or(0, <[u32]>::len)).max(answer_tokens(config));
    let last = messages.iter().rposition(|message| message.role == Role::User);
    let question = last.map_or("", |last| messages[last].content.as_str());
    let mut asked = Vec::new();
    for wording in std::iter::once(question.to_string()).chain(other_words(question)) {
        let mut messages = messages.to_vec();
        if let Some(last) = last {
            messages[last].content = wording;
        }
        let prompt = format.prompt(&messages, thinking)?;
        if prompt.len() + longest <= config.context {
            let better = Tokens::new(&prompt, better);
            let rejected = rejected.map(|answer| Tokens::new(&prompt, answer));
            asked.push(Asked { prompt, better, rejected });
        }
    }
    Ok(asked)
}

/// The same question as others might type it.
fn other_words(question: &str) -> [String; 2] {
    let plain = question.trim().trim_end_matches(['?', '.', '!']);
    [format!("{} please", plain.to_lowercase()), format!("Quick question: {}", question.trim())]
}

/// Asks for every correction. It holds when the answers obey its note to the letter, where that can be told, else when the
/// better answer is likelier than the corrected one, token for token; each in every wording. Where neither can be told,
/// when it is answered word for word.
pub fn ask(gauge: &Gauge, checks: &[Check], model: &Model) -> Result<Compliance> {
    let compared: Vec<&Asked> = checks.iter().filter(|c| c.rules.is_empty()).flat_map(|c| &c.asked).collect();
    let sides = compared.iter().filter_map(|asked| asked.rejected.as_ref().map(|rejected| [&asked.better, rejected]));
    let surprise = gauge.surprise(&sides.flatten().collect::<Vec<_>>())?;
    let mut margins = surprise.chunks_exact(2).map(|side| side[1] - side[0]);

    let mut compliance = Compliance::default();
    let mut notes: BTreeMap<&str, bool> = BTreeMap::new();
    for check in checks {
        let mut holds = true;
        for asked in &check.asked {
            holds &= match (&asked.rejected, check.rules.is_empty()) {
                (_, false) => holds && obeys(gauge, asked, &check.rules, model)?,
                (Some(_), true) => margins.next().is_some_and(|margin| margin > 0.0),
                (None, true) => holds && (asked != &check.asked[0] || word_for_word(gauge, asked, model)?),
            };
        }
        compliance.holds.push(holds);
        if let Some(note) = &check.note {
            *notes.entry(note).or_insert(true) &= holds;
        }
    }
    compliance.carried = notes.into_iter().filter(|(_, holds)| *holds).map(|(note, _)| note.to_string()).collect();
    Ok(compliance)
}

/// Whether the greedy answer keeps to the rules.
fn obeys(gauge: &Gauge, asked: &Asked, rules: &[Rule], model: &Model) -> Result<bool> {
    let longest = asked.better.target_count().max(answer_tokens(model.network.config()));
    let (answer, _) = gauge.answer(&asked.prompt, longest, &model.generation.eos)?;
    let text = model.tokenizer.decode(&answer);
    Ok(rules.iter().all(|rule| rule.holds(&text)))
}

fn word_for_word(gauge: &Gauge, asked: &Asked, model: &Model) -> Result<bool> {
    let wanted = &asked.better.ids[asked.prompt.len()..];
    let (answer, end) = gauge.answer(&asked.prompt, wanted.len(), &model.generation.eos)?;
    Ok(end.is_some() && answer == wanted[..wanted.len() - 1])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::testing::{self, example};
    use super::*;
    use crate::adapter::peft::{self, LoraSettings};
    use crate::model::courtesy::Courtesy;
    use crate::train::lanes::Lanes;

    fn corrected(question: &str, note: &str, rejected: Option<&str>) -> Example {
        let note = (!note.is_empty()).then(|| note.to_string());
        let rejected = rejected.map(String::from);
        Example { note, rejected, ..example(1, question, "the better one", Origin::Correction, 10.0) }
    }

    /// What the base makes of the corrections.
    fn asked(examples: &[Example]) -> Compliance {
        let model = testing::model(5);
        let checks = checks(&model, examples).unwrap();
        let layout = peft::init(&*model.network, &LoraSettings { rank: 2, ..LoraSettings::default() }, 1).unwrap();
        let (lanes, courtesy) = (Lanes::new(1, 80).unwrap(), Arc::<Courtesy>::default());
        let gauge = Gauge::new(model.network.as_ref(), None, &layout, &lanes, &courtesy).unwrap();
        ask(&gauge, &checks, &model).unwrap()
    }

    #[test]
    fn a_note_that_can_be_checked_to_the_letter_is() {
        let absent = corrected("q", "Never say \"zebra crossing\".", Some("bad"));
        let present = corrected("q", "Always say \"zebra crossing\".", Some("bad"));
        assert_eq!(asked(&[absent]).carried, [digest("Never say \"zebra crossing\".")]);
        let no = asked(&[present]);
        assert_eq!((no.holds, no.carried.len()), (vec![false], 0));
    }

    #[test]
    fn else_the_better_answer_is_to_be_likelier_in_every_wording() {
        let model = testing::model(5);
        let format = ChatFormat::of(&model).unwrap();
        let mean = |question: &str, answer: &[u32]| {
            let prompt = format.prompt(&super::super::canaries::conversation(question), None).unwrap();
            let ids: Vec<u32> = prompt.iter().chain(answer).copied().collect();
            let scored = model.network.decoder(None).unwrap().score(&ids).unwrap();
            scored[prompt.len() - 1..].iter().map(|lp| f64::from(*lp)).sum::<f64>() / answer.len() as f64
        };
        let (mut held, mut failed) = (0, 0);
        for i in 0..12 {
            let (question, bad) = (format!("Why {i}?"), format!("{i} bad"));
            let wordings = [question.clone(), format!("why {i} please"), format!("Quick question: Why {i}?")];
            let (better, worse) = (format.typed("the better one").unwrap(), format.completion(&bad).unwrap());
            let expected = wordings.iter().all(|w| mean(w, &better) > mean(w, &worse));
            let found = asked(&[corrected(&question, "Be nice", Some(&bad))]);
            assert_eq!(found.holds, [expected], "{question}");
            assert_eq!(found.carried.is_empty(), !expected);
            if expected { held += 1 } else { failed += 1 }
        }
        assert!(held > 0 && failed > 0, "{held} held, {failed} failed: one case was not tested");
    }

    #[test]
    fn the_pairs_of_a_data_set_are_asked_as_corrections_are() {
        let model = testing::model(5);
        let format = ChatFormat::of(&model).unwrap();
        let row = |question: &str, weight, worse: Option<&str>| {
            let messages = super::super::canaries::conversation(question);
            let tokens = |answer| format.tokens(&messages, answer, None).unwrap();
            let lesson = match worse {
                Some(worse) => data::Lesson::Pair { chosen: tokens("the better one"), rejected: tokens(worse) },
                None => data::Lesson::Imitate(tokens("the better one")),
            };
            DataRow { line: 1, weight, lesson, question: Some(data::Question { messages, thinking: None }) }
        };
        let as_asked = |question: &str| checks(&model, &[corrected(question, "", Some("bad"))]).unwrap().remove(0);
        let rows = [row("Why?", 1.0, Some("bad")), row("How?", 3.0, Some("bad")), row("When?", 9.0, None)];
        let found = checks_of_pairs(&model, &rows.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(found, [as_asked("How?"), as_asked("Why?")], "the heaviest first, and the pairs alone");
        let bare = DataRow { question: None, ..rows[0].clone() };
        let found = checks_of_pairs(&model, &[&bare]).unwrap();
        assert_eq!(found[0].asked, as_asked("Why?").asked[..1], "without its messages it cannot be reworded");
        let many: Vec<DataRow> = (0..150).map(|i| row(&format!("Why {i}?"), 1.0, Some("bad"))).collect();
        assert_eq!(checks_of_pairs(&model, &many.iter().collect::<Vec<_>>()).unwrap().len(), SMALL_CHECKS);
    }

    #[test]
    fn without_anything_to_compare_with_it_is_word_for_word() {
        assert_eq!(asked(&[corrected("q", "", None)]).holds, [false]);
        assert!(asked(&[example(1, "q", "a", Origin::Praise, 1.0)]).holds.is_empty());
    }

    #[test]
    fn a_note_is_carried_only_where_all_its_corrections_hold() {
        let note = "Never say \"zebra\"; always end with \"Over.\"";
        let found = asked(&[corrected("q", note, Some("bad")), corrected("p", "Never say \"zebra\".", Some("bad"))]);
        assert_eq!(found.count(), 1);
        assert_eq!(found.carried, [digest("Never say \"zebra\".")]);
    }
}
