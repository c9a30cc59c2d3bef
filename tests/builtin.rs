//! What the built-in model knows, asked in other words than those of its corpus.
//!
//! `builtin/questions.tsv` was written apart from the corpus; `facts.tsv` says which words a right answer holds. The
//! shortest wordings ("hi", "what is LoRA") were found twice, by both hands: those that stand in the corpus are not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use finch::model::digest::DigestCache;
use finch::model::load::{Model, ModelSource};
use finch::model::message::Message;
use finch::model::sampling::greedy;

/// Alternatives by group: a right answer holds one of every group.
type Keys = Vec<Vec<String>>;

fn facts() -> BTreeMap<&'static str, Keys> {
    include_str!("../assets/finch-tiny/facts.tsv")
        .lines()
        .filter(|l| !l.starts_with('#') && !l.trim().is_empty())
        .map(|line| {
            let mut fields = line.split('\t');
            let (id, keys) = (fields.next().unwrap(), fields.next().unwrap());
            let alternatives =
                |group: &str| group.split('|').map(|k| k.trim().to_lowercase()).filter(|k| !k.is_empty()).collect();
            (id, keys.split(" & ").map(alternatives).collect())
        })
        .collect()
}

/// A question without its case and punctuation.
fn words(question: &str) -> String {
    let plain: String = question.chars().map(|c| if c.is_alphanumeric() { c } else { ' ' }).collect();
    plain.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Every question of the corpus, those of the dialogues included.
fn trained() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/finch-tiny/corpus");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap());
    files
        .flat_map(|text| {
            let questions = text.lines().filter_map(|l| l.strip_prefix("Q: ").or(l.strip_prefix("U: ")));
            questions.map(words).collect::<Vec<_>>()
        })
        .collect()
}

/// The greedy answer and whether it ended by itself.
fn answer(model: &Model, question: &str) -> (String, bool) {
    let prompt = model.template.encode(&model.tokenizer, &[Message::user(question)], true, None).unwrap();
    let mut decoder = model.network.decoder(None).unwrap();
    let mut logits = decoder.forward(&prompt).unwrap();
    let mut ids = Vec::new();
    while ids.len() < 96 {
        let id = greedy(&logits);
        if model.generation.eos.contains(&id) {
            return (model.tokenizer.decode(&ids), true);
        }
        ids.push(id);
        logits = decoder.forward(&[id]).unwrap();
    }
    (model.tokenizer.decode(&ids), false)
}

/// Ends where a sentence ends, holds no broken characters, and does not say the same four words three times.
fn clean(answer: &str) -> bool {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let mut seen: BTreeMap<&[&str], usize> = BTreeMap::new();
    words.windows(4).for_each(|w| *seen.entry(w).or_default() += 1);
    let ends = answer.trim_end().ends_with(['.', '!', '?', '`', ':', ')', '"', '👍', '👎']);
    ends && !answer.contains('\u{FFFD}') && seen.values().all(|n| *n < 3)
}

#[test]
fn unseen_questions_are_answered() {
    let facts = facts();
    let trained = trained();
    assert!(trained.len() > 10_000, "only {} questions in the corpus", trained.len());
    let questions: Vec<(&str, &str)> = include_str!("builtin/questions.tsv")
        .lines()
        .filter_map(|l| l.split_once('\t'))
        .filter(|(_, question)| !trained.contains(&words(question)))
        .collect();
    assert!(questions.len() >= 150, "only {} questions", questions.len());
    let model = Model::load(&ModelSource::Builtin, &DigestCache::none()).unwrap();
    let next = AtomicUsize::new(0);
    let worker = || {
        let (mut wrong, mut unclean) = (Vec::new(), Vec::new());
        while let Some((id, question)) = questions.get(next.fetch_add(1, Ordering::SeqCst)) {
            let (text, ended) = answer(&model, question);
            let lower = text.to_lowercase();
            if !facts[id].iter().all(|group| group.iter().any(|key| lower.contains(key.as_str()))) {
                wrong.push(format!("{id}: {question} → {text}"));
            }
            if !(ended && clean(&text)) {
                unclean.push(format!("{id}: {question} → {text}"));
            }
        }
        (wrong, unclean)
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut wrong, mut unclean) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for w in workers {
            let (a, b) = w.join().unwrap();
            wrong.extend(a);
            unclean.extend(b);
        }
    });
    let share = |n: usize| 100.0 * (questions.len() - n) as f64 / questions.len() as f64;
    println!(
        "of {} unseen questions {:.1} % right, {:.1} % ended in clean sentences",
        questions.len(),
        share(wrong.len()),
        share(unclean.len())
    );
    assert!(share(wrong.len()) >= 80.0, "{:.1} % right; wrong:\n{}", share(wrong.len()), wrong.join("\n"));
    assert!(share(unclean.len()) >= 95.0, "{:.1} % clean; not:\n{}", share(unclean.len()), unclean.join("\n"));
}
