//! Ordinary prompts, and the base's own answers to them.
//!
//! Some are replayed while an adapter is trained (it is held to the base on them), others are only watched: the gate
//! measures on prompts that no training has seen how far an adapter has moved from its base.

use std::collections::{BTreeSet, HashMap};

use crate::error::Result;
use crate::feedback::record::prompt_digest;
use crate::model::courtesy::Courtesy;
use crate::model::load::Model;
use crate::model::lora::LoraWeights;
use crate::model::message::{Message, Role};
use crate::model::sampling::{Sampler, Sampling};
use crate::model::{Decoder, Network, Tokens};
use crate::train::chat::ChatFormat;
use crate::train::lanes::Lanes;
use crate::words::{is_common, words};

use super::recipe;

/// Replayed in training. The order matters: slow models take the first ones only.
pub const REPLAYED: [&str; 100] = [
    "Hello!",
    "What can you do?",
    "How do I read a file in Rust?",
    "How do I undo the last commit but keep my changes?",
    "How do I find a file by name?",
    "Tell me a joke.",
    "What does the threshold mean in finch?",
    "How do I sort a vector?",
    "Thanks, that helped.",
    "What is a rebase?",
    "How can I see how much disk space is left?",
    "How do I start the training by hand?",
    "What is the difference between String and &str?",
    "Explain photosynthesis in one sentence.",
    "How do I make a new branch?",
    "How do I search for a word in all files here?",
    "Does anything I type leave my computer?",
    "Give me a tip for learning to cook.",
    "How are you today?",
    "How do I write a unit test in Rust?",
    "What is an adapter?",
    "How do I see what I changed before committing?",
    "How do I unpack a tar.gz file?",
    "Which models can finch run?",
    "What does the question mark operator do?",
    "How do I throw away my changes to one file?",
    "How do I stop a process that hangs?",
    "Where does finch keep its settings?",
    "What is the capital of France?",
    "How do I add a dependency to my project?",
    "How do I push my commits?",
    "How do I make a script executable?",
    "How do I take back a rating?",
    "Are you a person?",
    "How do I loop over a list in Rust?",
    "How do I put my changes aside for a moment?",
    "How do I follow a log file as it grows?",
    "How do I go back to the previous adapter?",
    "What should I read about history?",
    "Good night!",
    "How does finch learn?",
    "What is the difference between /critical and /medium?",
    "When should I use /good?",
    "Can I rate with an emoji?",
    "How do I write a correction?",
    "What happens to an answer that I rated badly?",
    "Does a training slow down the chat?",
    "What is shown by /train status?",
    "Can I train on my own data set?",
    "What is LoRA?",
    "Does the base model change?",
    "How do I remove an adapter?",
    "Why was my adapter refused?",
    "When does a new adapter go live?",
    "What is the default rank?",
    "Does finch work offline?",
    "What does FINCH_HOME do?",
    "Where is my data stored?",
    "How do I see my statistics?",
    "How do I set a system prompt?",
    "How do I clear the conversation?",
    "Which commands are there?",
    "How do I interrupt an answer?",
    "How do I enter several lines?",
    "How do I ask one question from the shell?",
    "How do I begin a message with a slash?",
    "What does finch score print?",
    "How do I import ratings?",
    "What does the temperature change?",
    "How long can an answer be?",
    "What is the loss?",
    "What is a learning rate?",
    "How many tokens can you see at once?",
    "What does exit code 3 mean?",
    "How do I write a text file in Rust?",
    "How do I get the command-line arguments in Rust?",
    "How do I use a HashMap?",
    "How does pattern matching work in Rust?",
    "When do I use Option?",
    "What is a Result?",
    "Why is unwrap dangerous?",
    "What is a trait object for?",
    "What does clone do?",
    "How do I join strings with format?",
    "How do I check my code with clippy?",
    "How do I clone a repository?",
    "How do I merge a branch into main?",
    "What do I do about a merge conflict?",
    "How do I fix the message of the last commit?",
    "How do I keep a file out of the repository?",
    "Who changed this line?",
    "How do I mark a version with a tag?",
    "How do I rename a folder?",
    "How do I delete a directory?",
    "How large is this folder?",
    "How do I count words?",
    "How do I replace a word everywhere in a file?",
    "How do I write the output of a command into a file?",
    "How do I set a variable for my shell?",
    "Do you speak German?",
];

/// Never trained on: the gate measures with these.
pub const WATCHED: [&str; 20] = [
    "Good morning!",
    "How do I define an enum?",
    "How do I copy a folder?",
    "What is finch?",
    "How do I switch to another branch?",
    "What is two plus two?",
    "How do I list the adapters?",
    "How do I start a thread in Rust?",
    "How do I count the lines of a file?",
    "What is your name?",
    "How do I see the history of a repository?",
    "How do I turn a string into a number?",
    "How do I leave the chat?",
    "Which process uses a port?",
    "What is a good name for a cat?",
    "How do I delete a branch?",
    "What does borrowing mean?",
    "What happens when the buffer is full?",
    "How do I download a file?",
    "Can you help me write an email?",
];

/// A prompt with the answer that the base gives to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// Digest of the prompt's messages.
    pub key: [u8; 32],
    /// The prompt's ids.
    pub prompt: Vec<u32>,
    /// The greedy answer's ids, without its end.
    pub answer: Vec<u32>,
    /// The end-of-turn id that closed it; `None`: the limit cut it off.
    pub end: Option<u32>,
}

impl Answered {
    /// The prompt masked, the answer and its end as targets; `None` for an answer of no token at all.
    pub fn tokens(&self) -> Option<Tokens> {
        let completion: Vec<u32> = self.answer.iter().copied().chain(self.end).collect();
        (!completion.is_empty()).then(|| Tokens::new(&self.prompt, &completion))
    }
}

/// A built-in prompt as a conversation.
pub fn conversation(prompt: &str) -> Vec<Message> {
    vec![Message::user(prompt)]
}

/// The prompts that teach something else than `taught` (the questions of the examples): holding an adapter to the base
/// on a question that the user has just corrected would undo the correction.
pub fn unlike<'a>(
    prompts: Vec<Vec<Message>>,
    taught: impl Iterator<Item = &'a [Message]> + Clone,
) -> Vec<Vec<Message>> {
    let taught: BTreeSet<Question> = taught.map(Question::of).collect();
    prompts.into_iter().filter(|p| !taught.iter().any(|t| t.resembles(&Question::of(p)))).collect()
}

/// A text, or what a conversation's last turn asks, reduced to words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    all: Vec<String>,
    /// Without the words that every question has.
    telling: BTreeSet<String>,
}

impl Question {
    fn of(messages: &[Message]) -> Question {
        let last = messages.iter().rev().find(|m| m.role == Role::User).map_or("", |m| &m.content);
        Question::of_text(last)
    }

    fn of_text(text: &str) -> Question {
        let all = words(text);
        let telling = all.iter().filter(|word| !is_common(word)).cloned().collect();
        Question { all, telling }
    }

    /// The same words, or most of the telling ones shared (Jaccard).
    fn resembles(&self, other: &Question) -> bool {
        if self.telling.is_empty() || other.telling.is_empty() {
            return self.all == other.all;
        }
        let shared = self.telling.intersection(&other.telling).count();
        let either = self.telling.union(&other.telling).count();
        5 * shared >= 3 * either
    }
}

/// Parts the user's own prompts into those to replay and those to watch, by their content: what is watched once is never
/// trained on.
pub fn part(own: Vec<Vec<Message>>) -> (Vec<Vec<Message>>, Vec<Vec<Message>>) {
    own.into_iter().partition(|prompt| !prompt_digest(prompt)[0].is_multiple_of(WATCHED_OF_OWN))
}

/// One in so many of the user's own prompts is watched.
const WATCHED_OF_OWN: u8 = 4;

/// A question with the base's answer to it.
struct Asked {
    question: Question,
    said: Question,
}

impl Asked {
    /// Whether the base takes both for the same question: they share a word that says what they are about, and it gives
    /// about the same answer. What was taught about the one then holds for the other.
    fn is_as(&self, other: &Asked) -> bool {
        !self.question.telling.is_disjoint(&other.question.telling) && self.said.resembles(&other.said)
    }
}

/// The base's answers to ordinary prompts: those to replay and those to watch, `own` (see [`part`]) among them. What
/// resembles a `taught` question, or what the base takes for the same, is in neither.
pub fn ordinary<'a>(
    model: &Model,
    own: (Vec<Vec<Message>>, Vec<Vec<Message>>),
    taught: impl Iterator<Item = &'a [Message]> + Clone,
    lanes: &Lanes,
    courtesy: &Courtesy,
) -> Result<(Vec<Answered>, Vec<Answered>)> {
    let config = model.network.config();
    let answers_to = |prompts: &[Vec<Message>]| -> Result<Vec<(Asked, Answered)>> {
        let questions: HashMap<_, _> = prompts.iter().map(|p| (prompt_digest(p), Question::of(p))).collect();
        let answers = answer(model, prompts, recipe::answer_tokens(config), lanes, courtesy)?;
        let with_question = |answered: Answered| {
            let question = questions.get(&answered.key)?.clone();
            Some((Asked { question, said: Question::of_text(&model.tokenizer.decode(&answered.answer)) }, answered))
        };
        Ok(answers.into_iter().filter_map(with_question).collect())
    };
    // Where the base answers slowly, the questions' own words have to do.
    let asked = match config.is_small() {
        true => answers_to(&taught.clone().map(<[Message]>::to_vec).collect::<Vec<_>>())?,
        false => Vec::new(),
    };
    let (replayed, watched) = match config.is_small() {
        true => (REPLAYED.len(), WATCHED.len()),
        false => (recipe::LARGE_REPLAYED, recipe::LARGE_WATCHED),
    };
    let answers = |prompts| -> Result<Vec<Answered>> {
        let mut others = answers_to(&unlike(prompts, taught.clone()))?;
        others.retain(|(other, _)| !asked.iter().any(|(taught, _)| taught.is_as(other)));
        Ok(others.into_iter().map(|(_, answered)| answered).collect())
    };
    let built_in = |list: &[&str], n: usize| list.iter().take(n).map(|p| conversation(p)).collect::<Vec<_>>();
    let (replayed, watched) = (built_in(&REPLAYED, replayed), built_in(&WATCHED, watched));
    Ok((answers([replayed, own.0].concat())?, answers([watched, own.1].concat())?))
}

/// The base's greedy answers, each of at most `max_tokens`, sorted by the prompts' content and without repetition. Prompts
/// that leave no room for an answer are left out. Gives way to the chat at every token; what was asked before is remembered.
pub fn answer(
    model: &Model,
    prompts: &[Vec<Message>],
    max_tokens: usize,
    lanes: &Lanes,
    courtesy: &Courtesy,
) -> Result<Vec<Answered>> {
    let mut sorted: Vec<([u8; 32], &Vec<Message>)> = prompts.iter().map(|p| (prompt_digest(p), p)).collect();
    sorted.sort_by_key(|(key, _)| *key);
    sorted.dedup_by_key(|(key, _)| *key);
    let format = ChatFormat::of(model)?;
    let mut prompts = Vec::with_capacity(sorted.len());
    for (key, messages) in sorted {
        let prompt = format.prompt(messages, model.default_thinking())?;
        if prompt.len() + max_tokens <= model.network.config().context {
            prompts.push((key, prompt));
        }
    }
    lanes.map(prompts.len(), |i| {
        let (key, prompt) = prompts[i].clone();
        let (answer, end) = model.answers.of(&prompt, max_tokens, || {
            let mut decoder = model.network.decoder(None)?;
            greedy(decoder.as_mut(), &prompt, max_tokens, &model.generation.eos, courtesy)
        })?;
        Ok(Answered { key, prompt, answer, end })
    })
}

/// As the base answered, `network` with `adapter` answers again.
pub fn answer_again(
    network: &dyn Network,
    adapter: &LoraWeights,
    before: &Answered,
    max_tokens: usize,
    ends: &[u32],
    courtesy: &Courtesy,
) -> Result<Answered> {
    let mut decoder = network.decoder(Some(adapter))?;
    let (answer, end) = greedy(decoder.as_mut(), &before.prompt, max_tokens, ends, courtesy)?;
    Ok(Answered { answer, end, ..before.clone() })
}

/// The likeliest token again and again, until one of `ends` (given back apart) or `max_tokens`.
pub(super) fn greedy(
    decoder: &mut dyn Decoder,
    prompt: &[u32],
    max_tokens: usize,
    ends: &[u32],
    courtesy: &Courtesy,
) -> Result<(Vec<u32>, Option<u32>)> {
    let mut sampler = Sampler::new(Sampling::GREEDY);
    let mut answer = Vec::new();
    courtesy.point()?;
    let mut logits = decoder.forward(prompt)?;
    while answer.len() < max_tokens {
        let next = sampler.sample(&mut logits, &[])?;
        if ends.contains(&next) {
            return Ok((answer, Some(next)));
        }
        answer.push(next);
        if answer.len() < max_tokens {
            courtesy.point()?;
            logits = decoder.forward(&[next])?;
        }
    }
    Ok((answer, None))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    fn left(taught: &[&str], prompts: &[&str]) -> Vec<String> {
        let taught: Vec<Vec<Message>> = taught.iter().map(|t| conversation(t)).collect();
        unlike(prompts.iter().map(|p| conversation(p)).collect(), taught.iter().map(Vec::as_slice))
            .into_iter()
            .map(|p| p[0].content.clone())
            .collect()
    }

    #[test]
    fn a_taught_question_is_not_held_to_the_base() {
        let taught = ["what is the capital of FRANCE", "who are you"];
        let prompts =
            ["What is the capital of France?", "Who are you?", "How are you?", "What is the capital of Peru?"];
        assert_eq!(left(&taught, &prompts), ["How are you?", "What is the capital of Peru?"]);
        assert_eq!(left(&[], &prompts).len(), 4);
    }

    #[test]
    fn built_in_prompts_are_all_different_and_the_watched_ones_are_not_replayed() {
        let all: Vec<Vec<Message>> = REPLAYED.iter().chain(&WATCHED).map(|p| conversation(p)).collect();
        for (i, prompt) in all.iter().enumerate() {
            let others: Vec<Vec<Message>> = all[i + 1..].to_vec();
            let rest = unlike(others.clone(), std::iter::once(prompt.as_slice()));
            assert_eq!(rest, others, "{prompt:?} is there twice");
        }
    }

    #[test]
    fn some_of_the_users_own_prompts_are_watched_and_never_replayed() {
        let own: Vec<_> = (0..200).map(|i| conversation(&format!("prompt {i}"))).collect();
        let (replayed, watched) = part(own.clone());
        assert!((30..70).contains(&watched.len()) && replayed.len() + watched.len() == 200, "{}", watched.len());
        let (fewer, same) = part(own[..100].to_vec());
        assert!(fewer.iter().all(|p| replayed.contains(p)) && same.iter().all(|p| watched.contains(p)));
    }

    #[test]
    fn answers_are_the_bases_own_and_sorted_by_content() {
        let model = testing::model(7);
        let prompts: Vec<_> = ["a", "b", "c", "a"].map(conversation).to_vec();
        let lanes = Lanes::new(2, 64).unwrap();
        let answered = answer(&model, &prompts, 6, &lanes, &Courtesy::default()).unwrap();
        assert_eq!(answered.len(), 3, "once each");
        let backwards: Vec<_> = prompts.iter().rev().cloned().collect();
        // Remembered: there is nothing to work out, which this would stop.
        let cancelled = Courtesy::default();
        cancelled.cancel();
        assert_eq!(answer(&model, &backwards, 6, &lanes, &cancelled).unwrap(), answered);
        assert!(answer(&model, &backwards, 7, &lanes, &cancelled).is_err(), "of another length it is another answer");
        for a in &answered {
            // Token by token, without a cache between them.
            let mut ids = a.prompt.clone();
            for expected in a.answer.iter().copied().chain(a.end) {
                let logits = model.network.decoder(None).unwrap().forward(&ids).unwrap();
                let best = (0..logits.len()).max_by(|&x, &y| logits[x].total_cmp(&logits[y])).unwrap();
                assert_eq!(best as u32, expected);
                ids.push(expected);
            }
            assert!(a.answer.len() <= 6 && (a.end.is_some() || a.answer.len() == 6));
            assert_eq!(a.tokens().unwrap().target_count(), a.answer.len() + usize::from(a.end.is_some()));
        }
    }

    #[test]
    fn a_prompt_without_room_for_an_answer_is_left_out() {
        let model = testing::model(7);
        let long = conversation(&"x".repeat(model.network.config().context));
        assert!(answer(&model, &[long], 6, &Lanes::shared(64), &Courtesy::default()).unwrap().is_empty());
    }

    #[test]
    fn a_cancelled_training_stops_answering() {
        let courtesy = Courtesy::default();
        courtesy.cancel();
        let lanes = Lanes::shared(64);
        assert!(answer(&testing::model(7), &[conversation("a")], 6, &lanes, &courtesy).unwrap_err().is_interrupted());
    }
}
