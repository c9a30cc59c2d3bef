//! The corpus on disk: facts with many wordings of their question and a few of their answer, short dialogues, and rules.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::rules::Rules;

/// One thing that finch-tiny knows.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    pub questions: Vec<String>,
    pub answers: Vec<String>,
    /// A right answer holds one alternative of every group.
    pub keys: Vec<Vec<String>>,
}

impl Fact {
    /// Does `answer` hold the fact?
    pub fn holds(&self, answer: &str) -> bool {
        let answer = answer.to_lowercase();
        self.keys.iter().all(|group| group.iter().any(|key| answer.contains(key.as_str())))
    }
}

/// A hand-written dialogue: user and assistant turns in turn, maybe with a system prompt.
#[derive(Debug, Clone, Default)]
pub struct Dialogue {
    pub system: Option<String>,
    pub turns: Vec<(String, String)>,
}

pub struct Corpus {
    pub facts: BTreeMap<String, Fact>,
    pub dialogues: Vec<Dialogue>,
    pub rules: Rules,
}

impl Corpus {
    /// Reads `facts.tsv` and every file under `corpus/`.
    pub fn read(root: &Path) -> Result<Corpus> {
        let mut facts = read_facts(&root.join("facts.tsv"))?;
        let mut files: Vec<_> =
            std::fs::read_dir(root.join("corpus"))?.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>()?;
        files.sort();
        let (mut dialogues, mut rules) = (Vec::new(), Rules::default());
        for file in files {
            let text = std::fs::read_to_string(&file)?;
            let parse = match file.file_stem().and_then(|s| s.to_str()) {
                Some("dialogues") => parse_dialogues(&text).map(|d| dialogues.extend(d)),
                Some("rules") => Rules::parse(&text).map(|r| rules = r),
                _ => parse_questions(&text, &mut facts),
            };
            parse.with_context(|| format!("in {}", file.display()))?;
        }
        for (id, fact) in &facts {
            if fact.questions.is_empty() || fact.answers.is_empty() {
                bail!("the fact {id} has no questions or no answers");
            }
            if let Some(bad) = fact.answers.iter().find(|a| !fact.holds(a)) {
                bail!("an answer of {id} does not hold its keys: {bad}");
            }
        }
        Ok(Corpus { facts, dialogues, rules })
    }

    /// Everything that is said in it: what the tokenizer is trained on.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let facts = self.facts.values().flat_map(|f| f.questions.iter().chain(&f.answers));
        let turns = self.dialogues.iter().flat_map(|d| d.turns.iter().flat_map(|(q, a)| [q, a]));
        facts.chain(turns).chain(self.rules.texts()).map(String::as_str)
    }
}

fn read_facts(path: &Path) -> Result<BTreeMap<String, Fact>> {
    let mut facts = BTreeMap::new();
    for line in std::fs::read_to_string(path)?.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty()) {
        let mut fields = line.split('\t');
        let (Some(id), Some(keys)) = (fields.next(), fields.next()) else { bail!("no keys in {line:?}") };
        let keys = keys
            .split(" & ")
            .map(|g| g.split('|').map(|k| k.trim().to_lowercase()).filter(|k| !k.is_empty()).collect())
            .collect();
        facts.insert(id.to_string(), Fact { keys, ..Fact::default() });
    }
    Ok(facts)
}

fn parse_questions(text: &str, facts: &mut BTreeMap<String, Fact>) -> Result<()> {
    let mut current = None;
    for line in text.lines().map(str::trim_end).filter(|l| !l.is_empty()) {
        if let Some(id) = line.strip_prefix("# ") {
            current = Some(id.to_string());
            if !facts.contains_key(id) {
                bail!("unknown fact {id}");
            }
            continue;
        }
        let fact = current.as_ref().and_then(|id| facts.get_mut(id)).context("text before the first fact")?;
        match line.split_once(": ") {
            Some(("Q", question)) => fact.questions.push(question.to_string()),
            Some(("A", answer)) => fact.answers.push(answer.to_string()),
            _ => bail!("neither a question nor an answer: {line:?}"),
        }
    }
    Ok(())
}

fn parse_dialogues(text: &str) -> Result<Vec<Dialogue>> {
    let mut dialogues = vec![Dialogue::default()];
    let mut question = None;
    for line in text.lines().map(str::trim_end) {
        let last = dialogues.len() - 1;
        match line.split_once(": ") {
            _ if line.is_empty() => dialogues.push(Dialogue::default()),
            Some(("S", system)) => dialogues[last].system = Some(system.to_string()),
            Some(("U", user)) => question = Some(user.to_string()),
            Some(("A", answer)) => {
                let question = question.take().context("an answer without a question")?;
                dialogues[last].turns.push((question, answer.to_string()));
            }
            _ => bail!("neither S, U nor A: {line:?}"),
        }
    }
    dialogues.retain(|d| !d.turns.is_empty());
    Ok(dialogues)
}

/// `fact-id <tab> question` lines.
pub fn read_questions(path: &Path) -> Result<Vec<(String, String)>> {
    std::fs::read_to_string(path)?
        .lines()
        .filter(|l| !l.trim().is_empty())
        .map(|l| {
            let (id, question) = l.split_once('\t').with_context(|| format!("no tab in {l:?}"))?;
            Ok((id.to_string(), question.to_string()))
        })
        .collect()
}
