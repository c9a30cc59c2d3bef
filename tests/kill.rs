//! kill -9 at any moment, many times over: an acknowledged rating is on disk, an adapter is whole or absent, the live one
//! is whole, and the next start works. And two finches on one data folder.
//!
//! Acknowledged is what the program has said to be recorded: read from its output, up to its end.
#![cfg(unix)]

#[path = "common/pty.rs"]
mod pty;
#[path = "common/run.rs"]
mod run;
#[path = "common/scripted.rs"]
mod scripted;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use finch::adapter::active;
use finch::adapter::registry::{Registry, State};
use finch::feedback::{FeedbackConfig, exchange};
use finch::model::config::ModelConfig;
use finch::model::digest::DigestCache;
use finch::model::load::ModelSource;
use finch::paths::Paths;
use finch::store::{Outcome, Run, Store};
use pty::{CTRL_D, Terminal};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use scripted::Then;
use serde_json::json;

/// What the model always answers.
const ANSWER: &str = "Sure thing.";

/// Trainings take their time in saving and judging, not in steps.
const SMALL: [(&str, &str); 2] = [("FINCH_LORA_RANK", "4"), ("FINCH_LORA_TRAINING_MAX_STEPS", "8")];

/// A data folder, and a model that loads and trains at once.
struct Place {
    folder: tempfile::TempDir,
    /// Every word that the program said to have recorded.
    acknowledged: Vec<String>,
    /// Words given so far.
    given: usize,
    base: String,
    config: ModelConfig,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        scripted::write(&model, &[b"Su", b"re", b" thing", b"."], Then::End);
        let facts = ModelSource::Folder(model).facts(&DigestCache::none()).unwrap();
        std::fs::create_dir(folder.path().join("home")).unwrap();
        Place { folder, acknowledged: Vec::new(), given: 0, base: facts.digest, config: facts.config }
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    fn paths(&self) -> Paths {
        Paths::at(self.home())
    }

    fn store(&self) -> Store {
        Store::open(&self.paths().db()).unwrap()
    }

    fn model(&self) -> String {
        self.folder.path().join("model").to_str().unwrap().to_string()
    }

    fn chat(&self, threshold: Option<usize>) -> Terminal {
        let threshold = threshold.map(|n| n.to_string());
        let mut environment = SMALL.to_vec();
        match &threshold {
            Some(n) => environment.push(("FINCH_FEEDBACK_THRESHOLD", n)),
            None => environment.push(("FINCH_FEEDBACK_AUTO_TRAIN", "false")),
        }
        let arguments = ["--model", &self.model()].map(String::from);
        Terminal::start_with(env!("CARGO_BIN_EXE_finch"), &arguments, &self.home(), &environment)
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let arguments: Vec<String> =
            ["--model", &self.model()].into_iter().chain(arguments.iter().copied()).map(String::from).collect();
        let mut command = run::command(&self.home(), &arguments);
        command.envs(SMALL);
        command
    }

    /// A word that no other feedback holds.
    fn word(&mut self) -> String {
        self.given += 1;
        format!("word-{}-end", self.given)
    }

    /// Asks and rates, `most` times at most, until `until`; then kills it and notes what was acknowledged.
    fn chat_until_killed(&mut self, mut chat: Terminal, most: usize, until: &mut dyn FnMut() -> bool) {
        let mut words = Vec::new();
        let mut alive = |chat: &Terminal, wanted: &dyn Fn(&Terminal) -> bool| loop {
            if until() {
                return false;
            }
            if wanted(chat) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        for turn in 0.. {
            if !alive(&chat, &|chat| turn < most && chat.at_prompt()) {
                break;
            }
            if turn % 4 == 3 {
                chat.line("/clear"); // the model's context is small
            }
            chat.line("a question");
            if !alive(&chat, &|chat| count(chat, ANSWER) > turn && chat.at_prompt()) {
                break;
            }
            let word = self.word();
            let rating = ["/good", "/good", "/critical", "/correct", "/medium", "/up"][turn % 6];
            chat.line(&format!("{rating} {word}"));
            words.push(word);
            if !alive(&chat, &|chat| count(chat, RECORDED) > turn) {
                break;
            }
        }
        chat.kill();
        let acknowledged = count(&chat, RECORDED);
        assert!(acknowledged <= words.len());
        words.truncate(acknowledged);
        self.acknowledged.extend(words);
    }

    /// Everything that holds at any moment.
    fn check(&self, when: &str) {
        if !self.paths().db().exists() {
            assert!(self.acknowledged.is_empty(), "{when}");
            return;
        }
        drop(self.store()); // the next start works
        let database = rusqlite::Connection::open(self.paths().db()).unwrap();
        let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok", "{when}");
        // Replaced feedback is kept, too: an answer may have been rated again.
        let mut statement = database.prepare("SELECT coalesce(note, corrected, '') FROM feedback").unwrap();
        let kept: HashSet<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for word in &self.acknowledged {
            assert!(kept.contains(word), "{when}: {word} was acknowledged and is lost");
        }

        let registry = Registry::new(self.paths());
        for adapter in registry.list() {
            assert_eq!(adapter.state, State::Ok, "{when}: {}", adapter.name);
            registry.open(&adapter.name, &self.config, &self.base, false).expect(when);
        }
        let active = active::read(&self.paths(), &self.base).expect(when);
        for name in active.live.iter().chain(&active.previous) {
            registry.find_sound(name).expect(when);
        }
    }

    /// Example number `n`, as another program would bring it in.
    fn bring_in(&self, n: usize) {
        let row = json!({"messages": [{"role": "user", "content": format!("imported question {n}")},
            {"role": "assistant", "content": ANSWER}], "kind": "good", "note": format!("imported-{n}-end")});
        let rows = exchange::read(&mut row.to_string().as_bytes(), &FeedbackConfig::default()).unwrap().rows;
        assert_eq!(self.store().import(&rows).unwrap().added, 1);
    }
}

const RECORDED: &str = " recorded (weight";

/// How often the program wrote `text`.
fn count(chat: &Terminal, text: &str) -> usize {
    String::from_utf8_lossy(&chat.raw()).matches(text).count()
}

/// True from then on.
fn at(deadline: Instant) -> impl FnMut() -> bool {
    move || Instant::now() >= deadline
}

fn millis(rng: &mut StdRng, most: u64) -> Duration {
    Duration::from_micros(rng.random_range(0..most * 1000))
}

#[test]
fn acknowledged_ratings_survive_kills() {
    let mut rng = StdRng::seed_from_u64(1);
    // The first start of all makes the folder and the database.
    for round in 0..8 {
        let mut place = Place::new();
        let deadline = Instant::now() + millis(&mut rng, 120);
        place.chat_until_killed(place.chat(None), usize::MAX, &mut at(deadline));
        place.check(&format!("first start {round}"));
    }
    let mut place = Place::new();
    for round in 0..20 {
        let deadline = Instant::now() + millis(&mut rng, 900);
        place.chat_until_killed(place.chat(None), usize::MAX, &mut at(deadline));
        place.check(&format!("chat {round}"));
    }
    // From scripts; the answer to rate must be there.
    let in_chats = place.acknowledged.len();
    assert!(run::printed(&place.home(), &["--model", &place.model(), "a question"]).starts_with(ANSWER));
    for round in 0..40 {
        let word = place.word();
        let mut child = place.command(&["feedback", "good", &word]).spawn().unwrap();
        std::thread::sleep(millis(&mut rng, 60));
        child.kill().unwrap();
        let said = child.wait_with_output().unwrap();
        if String::from_utf8_lossy(&said.stderr).contains(RECORDED) {
            place.acknowledged.push(word);
        }
        place.check(&format!("script {round}"));
    }
    let in_scripts = place.acknowledged.len() - in_chats;
    println!(
        "of {} ratings {in_chats} were acknowledged in chats and {in_scripts} in scripts; none is lost",
        place.given
    );
    assert!(in_chats > 10 && in_scripts > 2);
}

/// When to kill a training.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after its start.
    After(Duration),
    /// So long after something new or anew, finished or not, lies in this folder.
    New(Folder, Duration),
}

#[derive(Debug, Clone, Copy)]
enum Folder {
    Adapters,
    Active,
}

impl Moment {
    /// A mixture: anywhere, while the adapter is being saved, while it is judged and made live.
    fn any(rng: &mut StdRng, training: u64) -> Moment {
        match rng.random_range(0..4) {
            0 => Moment::After(millis(rng, training)),
            1 => Moment::New(Folder::Adapters, millis(rng, 8)),
            2 => Moment::New(Folder::Adapters, millis(rng, 300)),
            _ => Moment::New(Folder::Active, millis(rng, 6)),
        }
    }

    /// Becomes true at the moment, or in the end.
    fn watch(self, paths: &Paths) -> impl FnMut() -> bool + use<> {
        let start = Instant::now();
        let folder = match self {
            Moment::New(Folder::Active, _) => paths.active_dir(),
            _ => paths.adapters(),
        };
        let before = entries(&folder);
        let mut due = match self {
            Moment::After(delay) => Some(start + delay),
            Moment::New(..) => None,
        };
        move || {
            if let Moment::New(_, delay) = self
                && due.is_none()
                && entries(&folder).iter().any(|entry| !before.contains(entry))
            {
                due = Some(Instant::now() + delay);
            }
            due.is_some_and(|due| Instant::now() >= due) || start.elapsed() > Duration::from_secs(20)
        }
    }
}

/// Names, and when each was last changed.
fn entries(folder: &Path) -> HashSet<(std::ffi::OsString, Option<SystemTime>)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let others = entries.filter(|entry| entry.file_name() != "active");
    others.map(|entry| (entry.file_name(), entry.metadata().and_then(|m| m.modified()).ok())).collect()
}

#[test]
fn trainings_survive_kills() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut place = Place::new();
    // Behind the chat: every good answer starts a training, and the chat goes on.
    for round in 0..12 {
        let moment = Moment::any(&mut rng, 3000);
        let watch = &mut moment.watch(&place.paths());
        place.chat_until_killed(place.chat(Some(1)), 2, watch);
        place.check(&format!("chat {round}, {moment:?}"));
    }
    // Headless.
    for round in 0..24 {
        place.bring_in(round);
        let moment = Moment::any(&mut rng, 1500);
        let mut watch = moment.watch(&place.paths());
        let mut child = place.command(&["train"]).spawn().unwrap();
        while !watch() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        place.check(&format!("train {round}, {moment:?}"));
    }
    let killed = place.store().runs(1000).unwrap();
    let adapters = Registry::new(place.paths()).list().len();
    println!("{} runs, {adapters} adapters; {} ratings acknowledged", killed.len(), place.acknowledged.len());
    assert!(
        killed.iter().filter(|run| run.result.as_ref().is_none_or(|r| r.outcome == Outcome::Abandoned)).count() > 5
    );

    // What was never trained on is trained now, and what was left half-written is cleared away.
    place.bring_in(1000);
    let trained = place.command(&["train"]).output().unwrap();
    assert!(matches!(trained.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&trained.stderr));
    let set = place.store().training_set(&place.base, 100).unwrap();
    assert_eq!(set.new, 0);
    for folder in [place.home(), place.paths().adapters(), place.paths().active_dir()] {
        let left: Vec<_> =
            entries(&folder).into_iter().filter(|(n, _)| n.to_string_lossy().starts_with(".finch")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
    place.check("in the end");
}

#[test]
fn two_finches_rate_and_train_on_one_folder_without_loss() {
    let mut place = Place::new();
    const RATINGS: usize = 8;
    let chats: Vec<Terminal> = (0..2).map(|_| place.chat(Some(3))).collect();
    let finished: Vec<Terminal> = std::thread::scope(|scope| {
        let rating = chats.into_iter().enumerate().map(|(who, mut chat)| {
            scope.spawn(move || {
                for turn in 0..RATINGS {
                    let answer = chat.ask(&format!("question {turn} of {who}"));
                    assert!(answer.contains(ANSWER), "{answer}"); // news of the training may come behind it
                    let noted = chat.ask(&format!("/good word-{who}-{turn}"));
                    assert!(noted.contains(RECORDED), "{noted}");
                }
                chat
            })
        });
        let rating: Vec<_> = rating.collect();
        for n in 0..4 {
            let row = json!({"messages": [{"role": "user", "content": format!("question {n} from a file")}],
                "kind": "correction", "corrected_response": format!("Answer {n}.")});
            let ran = run::piped(&place.home(), &["feedback", "import", "-"], &row.to_string());
            assert!(ran.code == Some(0) && ran.error.contains("1 row imported"), "{ran:?}");
        }
        rating.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Both leave; what trains is cancelled, and stays new.
    for mut chat in finished {
        chat.wait_for_prompt();
        chat.send(CTRL_D);
        assert_eq!(chat.wait_for_exit(), 0);
        let shown = chat.shown();
        assert!(!shown.contains("error") && !shown.contains("failed"), "{shown}");
    }
    place.acknowledged = (0..2).flat_map(|who| (0..RATINGS).map(move |turn| format!("word-{who}-{turn}"))).collect();
    place.acknowledged.extend((0..4).map(|n| format!("Answer {n}.")));
    place.check("after both");

    let mut runs: Vec<Run> = place.store().runs(1000).unwrap();
    runs.reverse();
    assert!(!runs.is_empty(), "nobody has trained");
    for run in &runs {
        let outcome = run.result.as_ref().expect("ended").outcome;
        assert!(matches!(outcome, Outcome::Completed | Outcome::Refused | Outcome::Cancelled), "{outcome:?}");
    }
    for pair in runs.windows(2) {
        assert!(pair[0].finished.unwrap() <= pair[1].started, "two trainings at once: {pair:#?}");
    }
    let trained = place.command(&["train"]).output().unwrap();
    assert!(matches!(trained.status.code(), Some(0 | 3)), "{}", String::from_utf8_lossy(&trained.stderr));
    let set = place.store().training_set(&place.base, 100).unwrap();
    assert_eq!((set.new, set.buffer.len()), (0, 2 * RATINGS + 4));
}
