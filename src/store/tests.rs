//! Tests of the whole store: what it keeps, what replaces what, and two of them on one file.

use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::feedback::exchange;
use crate::feedback::revision::Proposal;
use crate::feedback::{Feedback, FeedbackConfig, Finish, Interaction, Kind, NewFeedback, NewInteraction, Stars};
use crate::model::message::Message;

const BASE: &str = "base-1";

fn store() -> (TempDir, Store) {
    let folder = TempDir::new().unwrap();
    let store = Store::open(&folder.path().join("finch.db")).unwrap();
    (folder, store)
}

fn turn(session: &str, turn: u32, prompt: &str, response: &str) -> NewInteraction {
    NewInteraction {
        session: session.into(),
        turn,
        messages: vec![Message::system("be brief"), Message::user(prompt)],
        response: response.into(),
        model: "finch-tiny".into(),
        base: Some(BASE.into()),
        adapter: Some("lora_adapter_1".into()),
        thinking: Some(false),
        sampling: json!({"temperature": 0.7, "seed": u64::MAX}),
        finish: Finish::Stop,
        timings: json!({"decode_s": 0.5}),
        metadata: json!({"k": [1, null]}),
    }
}

fn signal(kind: Kind) -> NewFeedback {
    NewFeedback::new(kind, &FeedbackConfig::default())
}

fn corrected(text: &str) -> NewFeedback {
    NewFeedback::correction(text, &FeedbackConfig::default())
}

fn kinds(feedback: &[Feedback]) -> Vec<&'static str> {
    feedback.iter().map(|f| f.kind.name()).collect()
}

fn read_rows(text: &str) -> Vec<exchange::Incoming> {
    exchange::read(&mut text.as_bytes(), &FeedbackConfig::default()).unwrap().rows
}

fn export(store: &Store) -> String {
    store.all_feedback().unwrap().iter().map(|(f, i)| exchange::to_line(i, f) + "\n").collect()
}

#[test]
fn sqlite_is_new_enough_and_set_up_for_durability() {
    let (_folder, store) = store();
    let connection = store.connection.lock().unwrap();
    let text = |name| connection.pragma_query_value(None, name, |row| row.get::<_, String>(0)).unwrap();
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(text("journal_mode"), "wal");
    assert_eq!(number("synchronous"), 2);
    assert_eq!((number("foreign_keys"), number("trusted_schema"), number("user_version")), (1, 0, 2));
}

#[test]
fn an_interaction_comes_back_as_it_was_given_also_after_reopening() {
    let (folder, store) = store();
    let new = NewInteraction { finish: Finish::Length, ..turn("s", 3, "q \u{0}\u{1F600}\u{202E}", "a\n") };
    let added = store.add_interaction(&new).unwrap();
    drop(store);
    let store = Store::open(&folder.path().join("finch.db")).unwrap();
    let found = store.interaction(added.id).unwrap().unwrap();
    assert_eq!(found, added);
    let expected = Interaction {
        id: added.id,
        time: added.time,
        session: new.session,
        turn: new.turn,
        messages: new.messages,
        response: new.response,
        model: new.model,
        base: new.base,
        adapter: new.adapter,
        thinking: new.thinking,
        sampling: new.sampling,
        finish: new.finish,
        timings: new.timings,
        metadata: new.metadata,
    };
    assert_eq!(found, expected);
    assert_eq!(store.interaction(added.id + 1).unwrap(), None);
}

#[test]
fn the_last_interaction_is_that_of_the_session_or_of_all() {
    let (_folder, store) = store();
    assert_eq!(store.last_interaction(None).unwrap(), None);
    store.add_interaction(&turn("one", 1, "q", "a")).unwrap();
    let two = store.add_interaction(&turn("one", 2, "q", "b")).unwrap();
    let other = store.add_interaction(&turn("two", 1, "q", "c")).unwrap();
    store
        .import(&read_rows(
            r#"{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"i"}],"kind":"good"}"#,
        ))
        .unwrap();
    assert_eq!(store.last_interaction(Some("one")).unwrap(), Some(two));
    assert_eq!(store.last_interaction(None).unwrap(), Some(other));
    assert_eq!(store.last_interaction(Some("three")).unwrap(), None);
}

#[test]
fn feedback_comes_back_as_it_was_given() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    let note = "  Never use .unwrap()!? \u{1F534}\t";
    let new = signal(Kind::Critical).with_note(note).in_session("s");
    let recorded = store.add_feedback(id, new).unwrap();
    assert!(recorded.replaced.is_empty());
    let list = store.feedback_on(id).unwrap();
    assert_eq!(list, [recorded.feedback]);
    assert_eq!((list[0].value, list[0].weight, list[0].note.as_deref()), (-1.0, 10.0, Some(note)));
    let stars = Kind::Rating(Stars::new(2).unwrap());
    let other = store.add_interaction(&turn("s", 2, "q", "a")).unwrap().id;
    store.add_feedback(other, signal(stars)).unwrap();
    assert_eq!(store.feedback_on(other).unwrap()[0].kind, stars);
}

#[test]
fn feedback_that_cannot_be_is_refused_and_leaves_nothing() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    assert!(store.add_feedback(id + 1, signal(Kind::Good)).unwrap_err().message().contains("no interaction #2"));
    for bad in [
        corrected(" \n"),
        signal(Kind::Correction),
        NewFeedback { weight: f64::NAN, ..signal(Kind::Good) },
        NewFeedback { weight: -1.0, ..signal(Kind::Good) },
        NewFeedback { value: 1.5, ..signal(Kind::Good) },
    ] {
        assert!(store.add_feedback(id, bad).is_err());
    }
    assert!(store.judged().unwrap().is_empty());
}

#[test]
fn the_same_answer_again_replaces_the_judgement() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    let first = store.add_feedback(id, signal(Kind::Good)).unwrap().feedback;
    let second = store.add_feedback(id, signal(Kind::Critical)).unwrap();
    assert_eq!(second.replaced, [first]);
    assert_eq!(store.feedback_on(id).unwrap(), [second.feedback]);
}

#[test]
fn a_correction_joins_a_bad_rating_and_replaces_praise_and_corrections() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, signal(Kind::Medium)).unwrap();
    assert!(store.add_feedback(id, corrected("b")).unwrap().replaced.is_empty());
    assert_eq!(kinds(&store.feedback_on(id).unwrap()), ["medium", "correction"]);
    assert_eq!(kinds(&store.add_feedback(id, corrected("c")).unwrap().replaced), ["correction"]);
    assert_eq!(kinds(&store.add_feedback(id, signal(Kind::Good)).unwrap().replaced), ["medium"]);
    assert_eq!(kinds(&store.add_feedback(id, corrected("d")).unwrap().replaced), ["correction", "good"]);
    assert_eq!(kinds(&store.feedback_on(id).unwrap()), ["correction"]);
}

#[test]
fn implicit_signals_replace_nothing_and_are_not_undone() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, signal(Kind::Good)).unwrap();
    for kind in [Kind::Copy, Kind::Copy, Kind::ReadingTime] {
        assert!(store.add_feedback(id, signal(kind)).unwrap().replaced.is_empty());
    }
    assert_eq!(kinds(&store.feedback_on(id).unwrap()), ["good", "copy", "copy", "reading_time"]);
    assert_eq!(kinds(&store.judged().unwrap()[0].1), ["good"]);
    assert_eq!(store.undo_last(None).unwrap().unwrap().feedback.kind, Kind::Good);
    assert_eq!(store.undo_last(None).unwrap(), None);
}

#[test]
fn rating_again_keeps_a_better_answer_that_came_with_the_rating_before() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, NewFeedback { corrected: Some("b".into()), ..signal(Kind::Medium) }).unwrap();
    let again = store.add_feedback(id, signal(Kind::Critical)).unwrap();
    assert_eq!(again.feedback.corrected.as_deref(), Some("b"));
    assert_eq!(store.training_set(BASE, 100).unwrap().buffer.examples()[0].completion, "b");
}

#[test]
fn undo_goes_back_step_by_step_within_a_session() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    let good = store.add_feedback(id, signal(Kind::Good).in_session("s")).unwrap().feedback;
    let bad = store.add_feedback(id, signal(Kind::Critical).in_session("s")).unwrap().feedback;
    let fix = store.add_feedback(id, corrected("b").in_session("s")).unwrap().feedback;
    let elsewhere = store.add_interaction(&turn("t", 1, "q", "x")).unwrap().id;
    let other = store.add_feedback(elsewhere, signal(Kind::ThumbsUp).in_session("t")).unwrap().feedback;

    let undone = store.undo_last(Some("s")).unwrap().unwrap();
    assert_eq!((&undone.feedback, undone.interaction.id, undone.restored.len()), (&fix, id, 0));
    let undone = store.undo_last(Some("s")).unwrap().unwrap();
    assert_eq!((&undone.feedback, &undone.restored), (&bad, &vec![good.clone()]));
    assert_eq!(store.feedback_on(id).unwrap(), [good]);
    assert!(store.undo_last(Some("s")).unwrap().is_some());
    assert_eq!(store.undo_last(Some("s")).unwrap(), None);
    assert_eq!(store.undo_last(None).unwrap().unwrap().feedback, other);
    assert!(store.judged().unwrap().is_empty());
}

#[test]
fn feedback_in_one_breath_is_recorded_and_undone_as_one() {
    let (_folder, store) = store();
    let first = store.add_interaction(&turn("s", 1, "q", "one")).unwrap().id;
    let second = store.add_interaction(&turn("s", 2, "q", "two")).unwrap().id;
    store.add_feedback(first, signal(Kind::Good).in_session("s")).unwrap();
    let implied = (first, corrected("two"));
    let (good, better) = store.add_feedback_with(second, signal(Kind::Good).in_session("s"), implied.clone()).unwrap();
    assert_eq!((good.feedback.interaction, better.feedback.interaction), (second, first));
    assert_eq!(kinds(&store.feedback_on(first).unwrap()), ["correction"]);
    let undone = store.undo_last(Some("s")).unwrap().unwrap();
    assert_eq!((undone.feedback.id, undone.interaction.id), (good.feedback.id, second), "told as what the user gave");
    assert_eq!(kinds(&undone.restored), ["good"]);
    assert_eq!(kinds(&store.feedback_on(first).unwrap()), ["good"]);
    assert!(store.feedback_on(second).unwrap().is_empty());
    assert!(store.add_feedback_with(second, signal(Kind::Good), (99, implied.1)).is_err());
    assert!(store.feedback_on(second).unwrap().is_empty(), "both or neither");
}

#[test]
fn a_proposal_stays_with_its_rating_while_that_is_in_force() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "one")).unwrap().id;
    let rating = store.add_feedback(id, signal(Kind::Critical).with_note("no")).unwrap().feedback;
    let proposal = Proposal { text: "two \"so\"".into(), base: BASE.into(), gain: 0.5, rejected: false };
    assert!(store.keep_proposal(rating.id, &proposal).unwrap());
    let read = &store.feedback_on(id).unwrap()[0];
    assert_eq!(Proposal::of(read), Some(proposal.clone()));
    let rejected = Proposal { rejected: true, ..proposal };
    assert!(store.keep_proposal(rating.id, &rejected).unwrap());
    assert_eq!(Proposal::of(&store.feedback_on(id).unwrap()[0]), Some(rejected.clone()));
    store.undo_last(None).unwrap();
    assert!(!store.keep_proposal(rating.id, &rejected).unwrap());
}

#[test]
fn judged_comes_in_the_order_of_the_latest_feedback() {
    let (_folder, store) = store();
    let ids: Vec<i64> =
        (1..=4).map(|n| store.add_interaction(&turn("s", n, &format!("q{n}"), "a")).unwrap().id).collect();
    for index in [2, 0, 1] {
        store.add_feedback(ids[index], signal(Kind::Critical)).unwrap();
    }
    store.add_feedback(ids[2], corrected("b")).unwrap();
    let judged = store.judged().unwrap();
    assert_eq!(judged.iter().map(|(i, _)| i.id).collect::<Vec<_>>(), [ids[0], ids[1], ids[2]]);
    assert_eq!(kinds(&judged[2].1), ["critical", "correction"]);
    let list = store.feedback_list(2).unwrap();
    assert_eq!(
        list.iter().map(|(f, i)| (f.kind.name(), i.id)).collect::<Vec<_>>(),
        [("correction", ids[2]), ("critical", ids[1])]
    );
}

#[test]
fn the_training_set_holds_trainable_examples_and_counts_the_waiting_apart() {
    let (folder, store) = store();
    for n in 1..=5 {
        let id = store.add_interaction(&turn("s", n, &format!("q{n}"), "a")).unwrap().id;
        match n {
            1 => drop(store.add_feedback(id, signal(Kind::Critical).with_note("shorter")).unwrap()),
            2 => drop(store.add_feedback(id, corrected("b")).unwrap()),
            3 => drop(store.add_feedback(id, signal(Kind::Rating(Stars::new(3).unwrap()))).unwrap()),
            _ => drop(store.add_feedback(id, signal(Kind::Good)).unwrap()),
        }
    }
    drop(store);
    let store = Store::open(&folder.path().join("finch.db")).unwrap();
    let set = store.training_set(BASE, 100).unwrap();
    assert_eq!((set.buffer.len(), set.buffer.total_weight(), set.new), (3, 12.0, 3));
    assert_eq!((set.waiting.len(), set.waiting[0].feedback.note.as_deref()), (1, Some("shorter")));
    assert_eq!(set.unused.len(), 1);
    let small = store.training_set(BASE, 2).unwrap();
    assert_eq!(small.buffer.examples().iter().map(|e| e.weight).collect::<Vec<_>>(), [10.0, 1.0]);
    assert_eq!(store.judged().unwrap().len(), 5, "nothing is lost from the store");
    assert_eq!(store.training_set("base-2", 100).unwrap().buffer.len(), 1);
}

fn result(outcome: Outcome) -> RunResult {
    RunResult {
        outcome,
        reason: None,
        adapter: Some("lora_adapter_2".into()),
        loss_before: Some(2.25),
        loss_after: Some(0.5),
        seconds: 21.0,
        curve: vec![2.25, 1.0, 0.5],
        gate: json!({"passed": true}),
    }
}

fn begin(store: &Store, base: &str) -> i64 {
    let set = store.training_set(base, 100).unwrap();
    let new = NewRun { model: "finch-tiny", base, parameters: &json!({"rank": 16}), examples: set.buffer.examples() };
    store.begin_run(&new).unwrap()
}

#[test]
fn examples_are_new_until_a_completed_or_refused_run_has_seen_them() {
    let (_folder, store) = store();
    let fresh = |base| store.training_set(base, 100).unwrap().new;
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, corrected("b")).unwrap();
    for outcome in [Outcome::Cancelled, Outcome::Failed] {
        let run = begin(&store, BASE);
        assert_eq!(fresh(BASE), 1, "still running");
        store.finish_run(run, &result(outcome)).unwrap();
        assert_eq!(fresh(BASE), 1, "{outcome:?}");
    }
    let run = begin(&store, BASE);
    store.finish_run(run, &result(Outcome::Refused)).unwrap();
    assert_eq!((fresh(BASE), fresh("base-2")), (0, 1));
    store.add_feedback(id, corrected("c")).unwrap();
    assert_eq!(fresh(BASE), 1, "corrected anew");
    store.undo_last(None).unwrap();
    assert_eq!(fresh(BASE), 0, "as it was when it was trained");
}

#[test]
fn feedback_given_during_a_run_is_new_after_it() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, signal(Kind::Good)).unwrap();
    let run = begin(&store, BASE);
    store.add_feedback(id, corrected("b")).unwrap();
    store.finish_run(run, &result(Outcome::Completed)).unwrap();
    assert_eq!(store.training_set(BASE, 100).unwrap().new, 1);
}

#[test]
fn a_run_comes_back_as_it_ended() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, signal(Kind::Good)).unwrap();
    let lost = begin(&store, BASE);
    assert_eq!(store.runs(9).unwrap()[0].result, None);
    let run = begin(&store, BASE);
    let diverged = RunResult { loss_after: Some(f64::NAN), curve: vec![1.0, f64::INFINITY], ..result(Outcome::Failed) };
    store.finish_run(run, &diverged).unwrap();
    let third = begin(&store, BASE);
    store.finish_run(third, &result(Outcome::Completed)).unwrap();

    let runs = store.runs(9).unwrap();
    assert_eq!(runs.iter().map(|r| (r.id, r.examples)).collect::<Vec<_>>(), [(third, 1), (run, 1), (lost, 1)]);
    assert_eq!(runs[0].result, Some(result(Outcome::Completed)));
    assert_eq!((runs[0].parameters["rank"].as_i64(), runs[0].base.as_str()), (Some(16), BASE));
    let failed = runs[1].result.as_ref().unwrap();
    assert_eq!((failed.loss_before, failed.loss_after), (Some(2.25), None));
    assert!(failed.curve[1].is_nan());
    assert_eq!(runs[2].result.as_ref().unwrap().outcome, Outcome::Abandoned);
    assert!(store.finish_run(third, &result(Outcome::Failed)).is_err(), "a run ends once");
    assert!(store.finish_run(99, &result(Outcome::Failed)).is_err());
    assert_eq!(store.runs(1).unwrap().len(), 1);
}

#[test]
fn unrated_prompts_are_ordinary_whole_and_different() {
    let (_folder, store) = store();
    store.add_interaction(&turn("s", 1, "once", "a")).unwrap();
    store.add_interaction(&turn("s", 2, "twice", "a")).unwrap();
    store.add_interaction(&turn("s", 3, "twice", "b")).unwrap();
    store.add_interaction(&NewInteraction { finish: Finish::Interrupted, ..turn("s", 4, "cut", "a") }).unwrap();
    store.add_interaction(&NewInteraction { base: Some("base-2".into()), ..turn("s", 5, "other", "a") }).unwrap();
    store.add_interaction(&turn("s", 6, "rated", "a")).unwrap();
    let rated = store.add_interaction(&turn("s", 7, "rated", "b")).unwrap().id;
    store.add_feedback(rated, corrected("c")).unwrap();
    let copied = store.add_interaction(&turn("s", 8, "copied", "b")).unwrap().id;
    store.add_feedback(copied, signal(Kind::Copy)).unwrap();
    let asked = |limit| -> Vec<String> {
        let prompts = store.unrated_prompts(BASE, limit).unwrap();
        prompts.into_iter().map(|mut messages| messages.pop().unwrap().content).collect()
    };
    assert_eq!(asked(10), ["copied", "twice", "once"]);
    assert_eq!(asked(1), ["copied"]);
    store.undo_last(None).unwrap();
    assert_eq!(asked(10), ["copied", "rated", "twice", "once"]);
}

#[test]
fn stats_count_what_is_there() {
    let (_folder, store) = store();
    assert_eq!(store.stats().unwrap(), Stats::default());
    for n in 1..=3 {
        store.add_interaction(&turn(if n == 3 { "t" } else { "s" }, n, "q", "a")).unwrap();
    }
    store.add_feedback(1, signal(Kind::Good)).unwrap();
    store.add_feedback(1, signal(Kind::Critical).with_note("n")).unwrap();
    store.add_feedback(1, corrected("b")).unwrap();
    store.add_feedback(2, signal(Kind::Good)).unwrap();
    store.undo_last(None).unwrap();
    begin(&store, BASE);
    let stats = store.stats().unwrap();
    assert_eq!((stats.interactions, stats.sessions, stats.imported), (3, 2, 0));
    assert_eq!(stats.feedback.into_iter().collect::<Vec<_>>(), [("correction".into(), 1), ("critical".into(), 1)]);
    assert_eq!((stats.notes, stats.corrections), (1, 1));
    assert_eq!(stats.runs.into_iter().collect::<Vec<_>>(), [("running".into(), 1)]);
    assert!(stats.first.is_some() && stats.first <= stats.last);
}

#[test]
fn an_export_imports_into_another_store_and_back_without_doubles() {
    let (_a, one) = store();
    let bad = one.add_interaction(&turn("s", 1, "q1", "a")).unwrap().id;
    one.add_feedback(bad, signal(Kind::Medium).with_note(" no! ")).unwrap();
    one.add_feedback(bad, corrected("b")).unwrap();
    let good = one.add_interaction(&turn("s", 2, "q2", "a")).unwrap().id;
    one.add_feedback(good, signal(Kind::Good)).unwrap();
    let cut = one.add_interaction(&NewInteraction { finish: Finish::Length, ..turn("s", 3, "q3", "a") }).unwrap().id;
    one.add_feedback(cut, signal(Kind::Good)).unwrap();
    let rows = read_rows(&export(&one));
    assert_eq!(rows.len(), 4);

    let (_b, two) = store();
    assert_eq!(two.import(&rows).unwrap(), Imported { added: 4, known: 0, outdated: 0 });
    assert_eq!(two.import(&rows).unwrap(), Imported { added: 0, known: 4, outdated: 0 });
    assert_eq!(one.import(&rows).unwrap(), Imported { added: 0, known: 4, outdated: 0 });
    let strip = |store: &Store| -> Vec<_> {
        let all = store.all_feedback().unwrap();
        all.into_iter().map(|(f, i)| (Feedback { id: 0, interaction: 0, ..f }, Interaction { id: 0, ..i })).collect()
    };
    assert_eq!(strip(&one), strip(&two));
    let (here, there) = (one.training_set(BASE, 100).unwrap(), two.training_set(BASE, 100).unwrap());
    let stamps = |set: &TrainingSet| set.buffer.examples().iter().map(|e| e.stamp()).collect::<Vec<_>>();
    assert_eq!(stamps(&here), stamps(&there));
    assert_eq!((there.buffer.len(), there.unused.len()), (2, 1));
    assert_eq!(two.stats().unwrap().imported, 3);
}

const Q: &str = r#""messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]"#;

#[test]
fn importing_twice_changes_nothing_even_where_a_row_replaces_another() {
    let (_folder, store) = store();
    let rows = read_rows(&format!(
        "{{{Q},\"kind\":\"medium\",\"corrected_response\":\"b\"}}\n{{{Q},\"kind\":\"good\"}}\n{{{Q},\"kind\":\"critical\"}}"
    ));
    assert_eq!(store.import(&rows).unwrap().added, 3);
    let before = store.judged().unwrap();
    assert_eq!(kinds(&before[0].1), ["critical"]);
    assert_eq!(store.import(&rows).unwrap(), Imported { added: 0, known: 3, outdated: 0 });
    assert_eq!(store.judged().unwrap(), before);
}

#[test]
fn an_older_judgement_does_not_come_over_a_newer_one_but_an_undone_one_comes_back() {
    let (_folder, store) = store();
    let at = |time: &str, kind: &str| read_rows(&format!("{{{Q},\"kind\":\"{kind}\",\"time\":\"{time}\"}}"));
    store.import(&at("2026-02-06T12:00:00Z", "critical")).unwrap();
    assert_eq!(store.import(&at("2026-02-06T11:00:00Z", "good")).unwrap().outdated, 1);
    assert_eq!(store.import(&at("2026-02-06T15:00:00+02:00", "good")).unwrap().added, 1);
    assert_eq!(kinds(&store.judged().unwrap()[0].1), ["good"]);
    store.undo_last(None).unwrap();
    assert_eq!(store.import(&at("2026-02-06T13:00:00Z", "good")).unwrap().added, 1);
}

#[test]
fn an_import_is_whole_or_nothing() {
    let (_folder, store) = store();
    let mut rows = read_rows(&format!("{{{Q},\"kind\":\"good\"}}\n{{{Q},\"kind\":\"critical\"}}"));
    rows[1].feedback.weight = f64::NAN;
    assert!(store.import(&rows).is_err());
    assert_eq!(store.stats().unwrap(), Stats::default());
}

#[test]
fn two_stores_on_one_new_file_rate_at_once_without_loss() {
    let folder = TempDir::new().unwrap();
    let path = Arc::new(folder.path().join("finch.db"));
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let path = Arc::clone(&path);
            std::thread::spawn(move || {
                let store = Store::open(&path).unwrap();
                for n in 0..15 {
                    let id = store.add_interaction(&turn(&format!("s{worker}"), n, &format!("q{n}"), "a")).unwrap().id;
                    store.add_feedback(id, signal(Kind::Critical)).unwrap();
                    store.add_feedback(id, corrected("b")).unwrap();
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let store = Store::open(&path).unwrap();
    let judged = store.judged().unwrap();
    assert_eq!(judged.len(), 60);
    assert!(judged.iter().all(|(_, feedback)| kinds(feedback) == ["critical", "correction"]));
}

#[test]
fn two_stores_that_judge_the_same_answer_leave_one_judgement() {
    let (folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    let path = folder.path().join("finch.db");
    std::thread::scope(|scope| {
        for kind in [Kind::Good, Kind::Critical, Kind::ThumbsUp] {
            let path = &path;
            scope.spawn(move || {
                let store = Store::open(path).unwrap();
                for _ in 0..10 {
                    store.add_feedback(id, signal(kind)).unwrap();
                }
            });
        }
    });
    assert_eq!(store.feedback_on(id).unwrap().len(), 1);
    let mut steps = 0;
    while store.undo_last(None).unwrap().is_some() {
        steps += 1;
    }
    assert_eq!(steps, 30, "each judgement is kept, and comes back when the next is undone");
}

#[test]
fn opening_waits_for_no_writer() {
    let (folder, store) = store();
    let start = std::time::Instant::now();
    store
        .write(|_| {
            drop(Store::open(&folder.path().join("finch.db")).unwrap());
            Ok(())
        })
        .unwrap();
    assert!(start.elapsed() < PATIENCE / 2);
}

#[test]
fn another_stores_change_is_seen_at_once() {
    let (folder, one) = store();
    let two = Store::open(&folder.path().join("finch.db")).unwrap();
    let id = one.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    two.add_feedback(id, signal(Kind::Good)).unwrap();
    assert_eq!(one.training_set(BASE, 10).unwrap().new, 1);
}

#[test]
fn a_transaction_that_does_not_end_leaves_nothing() {
    let (folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, signal(Kind::Good)).unwrap();
    let failed: Result<()> = store.write(|transaction| {
        feedback::insert(transaction, id, signal(Kind::Critical), rows::now())?;
        Err(Error::failure("killed here").into())
    });
    assert!(failed.is_err());
    let copy = folder.path().join("copy.db");
    // What a killed process leaves: the files as they are, the log not yet merged.
    for suffix in ["", "-wal"] {
        std::fs::copy(folder.path().join(format!("finch.db{suffix}")), format!("{}{suffix}", copy.display())).unwrap();
    }
    let survivor = Store::open(&copy).unwrap();
    assert_eq!(kinds(&survivor.feedback_on(id).unwrap()), ["good"]);
}

#[cfg(unix)]
#[test]
fn all_files_of_the_database_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("finch.db");
    std::fs::write(&path, "").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let store = Store::open(&path).unwrap();
    store.add_interaction(&turn("s", 1, "q", "a")).unwrap();
    let mut files = 0;
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.file_name());
        files += 1;
    }
    assert_eq!(files, 3);
}

#[test]
fn files_that_are_no_finch_database_are_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let text = folder.path().join("text.db");
    std::fs::write(
        &text,
        "not a database, but long enough to have a header of one hundred bytes or even more".repeat(20),
    )
    .unwrap();
    let error = Store::open(&text).unwrap_err();
    assert!(error.message().contains("text.db") && error.hint_text().is_some(), "{}", error.message());

    let foreign = folder.path().join("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE bookmarks (url TEXT);").unwrap();
    let before = std::fs::read(&foreign).unwrap();
    let error = Store::open(&foreign).unwrap_err();
    assert!(error.message().contains("foreign.db") && error.message().contains("another program"));
    assert_eq!(std::fs::read(&foreign).unwrap(), before, "it is left as it was");

    assert!(Store::open(&folder.path().join("no/such/finch.db")).unwrap_err().message().contains("finch.db"));

    let newer = folder.path().join("newer.db");
    drop(Store::open(&newer).unwrap());
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&newer).unwrap_err();
    assert!(error.message().contains("version 99") && error.message().contains("newer.db"), "{}", error.message());
}

#[test]
fn a_database_without_its_tables_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for (sql, missing) in [
        ("DROP TABLE run_examples", "a table run_examples"),
        ("DROP VIEW feedback_in_force", "a table feedback_in_force"),
        ("ALTER TABLE runs DROP COLUMN curve", "no column curve in a table runs"),
    ] {
        let path = folder.path().join(format!("{}.db", missing.len()));
        drop(Store::open(&path).unwrap());
        Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let before = std::fs::read(&path).unwrap();
        let error = Store::open(&path).unwrap_err();
        assert!(error.message().contains(missing) && error.hint_text().is_some(), "{}", error.message());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}

#[test]
fn a_damaged_row_is_an_error_that_names_it() {
    let (_folder, store) = store();
    let id = store.add_interaction(&turn("s", 1, "q", "a")).unwrap().id;
    store.add_feedback(id, signal(Kind::Good)).unwrap();
    let spoil = |sql: &str| store.connection.lock().unwrap().execute(sql, []).unwrap();
    for (sql, fault) in [
        ("UPDATE interactions SET messages = '[{'", "interaction #1 with unreadable JSON"),
        ("UPDATE interactions SET messages = '[]', finish = 'why'", "interaction #1 ended by \"why\""),
        ("UPDATE interactions SET finish = 'stop', time = 9223372036854775807", "interaction #1 at time"),
        ("UPDATE feedback SET kind = 'odd'", "feedback #1 of kind \"odd\""),
    ] {
        spoil(sql);
        let error = store.judged().unwrap_err();
        assert!(error.message().contains(fault), "{}", error.message());
        assert!(error.hint_text().is_some());
    }
}
