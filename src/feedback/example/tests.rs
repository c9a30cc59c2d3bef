//! Each rule of what feedback may teach, and that no combination breaks them.

use chrono::DateTime;
use serde_json::json;

use super::*;
use crate::feedback::kind::{FeedbackConfig, Kind, Stars};

const BASE: &str = "base-1";

pub(crate) fn interaction(id: i64, prompt: &str, response: &str) -> Interaction {
    Interaction {
        id,
        time: DateTime::UNIX_EPOCH,
        session: "s".into(),
        turn: 1,
        messages: vec![Message::system("be brief"), Message::user(prompt)],
        response: response.into(),
        model: "m".into(),
        base: Some(BASE.into()),
        adapter: None,
        thinking: None,
        sampling: json!({}),
        finish: Finish::Stop,
        timings: json!({}),
        metadata: json!({}),
    }
}

pub(in crate::feedback) fn feedback(id: i64, kind: Kind) -> Feedback {
    let config = FeedbackConfig::default();
    Feedback {
        id,
        time: DateTime::UNIX_EPOCH,
        interaction: 1,
        session: None,
        kind,
        value: kind.value(),
        weight: kind.weight(&config),
        note: None,
        corrected: None,
        metadata: json!({}),
    }
}

fn correction(id: i64, text: &str) -> Feedback {
    Feedback { corrected: Some(text.into()), ..feedback(id, Kind::Correction) }
}

fn stars(count: u8) -> Kind {
    Kind::Rating(Stars::new(count).unwrap())
}

fn trained(verdict: Verdict) -> Example {
    match verdict {
        Verdict::Trainable(example) => example,
        other => panic!("not trainable: {other:?}"),
    }
}

fn unused(verdict: Verdict) -> UnusedReason {
    match verdict {
        Verdict::Nothing(unused) => unused.reason,
        other => panic!("not unused: {other:?}"),
    }
}

fn waits(verdict: Verdict) -> Waiting {
    match verdict {
        Verdict::Waiting(waiting) => waiting,
        other => panic!("not waiting: {other:?}"),
    }
}

#[test]
fn praise_teaches_the_answer() {
    let i = interaction(1, "q", "a");
    for (kind, weight) in [(Kind::Good, 1.0), (Kind::ThumbsUp, 1.0), (stars(5), 1.0), (stars(4), 0.5)] {
        let example = trained(judge(&i, &[feedback(1, kind)], BASE));
        assert_eq!((example.completion.as_str(), example.rejected.as_deref()), ("a", None));
        assert_eq!((example.weight, example.origin), (weight, Origin::Praise));
        assert_eq!(example.messages, i.messages);
    }
}

#[test]
fn a_bad_answer_waits_with_its_note_and_weight() {
    let i = interaction(1, "q", "a");
    for kind in [Kind::Critical, Kind::Medium, Kind::ThumbsDown, stars(1), stars(2)] {
        let given = Feedback { note: Some("shorter!".into()), ..feedback(1, kind) };
        let waiting = waits(judge(&i, std::slice::from_ref(&given), BASE));
        assert_eq!((waiting.reason, &waiting.feedback), (WaitReason::NoBetterAnswer, &given));
    }
}

#[test]
fn a_correction_alone_or_after_a_bad_rating_makes_a_pair() {
    let i = interaction(1, "q", "a");
    for given in [
        vec![correction(1, "b")],
        vec![feedback(1, Kind::Critical), correction(2, "b")],
        vec![feedback(1, Kind::ThumbsDown), correction(2, "b")],
        vec![feedback(1, Kind::Medium), correction(2, "b")],
        vec![correction(1, "b"), feedback(2, Kind::Medium)],
    ] {
        let example = trained(judge(&i, &given, BASE));
        assert_eq!((example.completion.as_str(), example.rejected.as_deref()), ("b", Some("a")));
        assert_eq!((example.weight, example.origin), (10.0, Origin::Correction));
    }
}

#[test]
fn an_imported_rating_with_a_better_answer_keeps_its_weight() {
    let given = Feedback { corrected: Some("b".into()), ..feedback(1, Kind::Medium) };
    let example = trained(judge(&interaction(1, "q", "a"), &[given], BASE));
    assert_eq!((example.rejected.as_deref(), example.weight), (Some("a"), 3.0));
}

#[test]
fn the_latest_correction_counts() {
    let early = Feedback { corrected: Some("early".into()), ..feedback(1, Kind::Critical) };
    assert_eq!(trained(judge(&interaction(1, "q", "a"), &[early, correction(2, "late")], BASE)).completion, "late");
}

#[test]
fn praise_after_a_correction_keeps_the_correction_and_spares_the_answer() {
    let example = trained(judge(&interaction(1, "q", "a"), &[correction(1, "b"), feedback(2, Kind::Good)], BASE));
    assert_eq!((example.completion.as_str(), example.rejected), ("b", None));
}

#[test]
fn a_correction_that_repeats_the_bad_answer_teaches_nothing() {
    let i = interaction(1, "q", "a");
    let waiting = waits(judge(&i, &[feedback(1, Kind::Critical), correction(2, " a\n")], BASE));
    assert_eq!(waiting.reason, WaitReason::SameAsAnswer);
    assert_eq!(trained(judge(&i, &[feedback(1, Kind::Good), correction(2, "a")], BASE)).origin, Origin::Praise);
    assert_eq!(unused(judge(&i, &[correction(1, "a")], BASE)), UnusedReason::Neutral);
}

#[test]
fn a_cut_off_answer_is_neither_target_nor_rejected() {
    for finish in [Finish::Length, Finish::Interrupted] {
        let i = Interaction { finish, ..interaction(1, "q", "a") };
        assert_eq!(unused(judge(&i, &[feedback(1, Kind::Good)], BASE)), UnusedReason::CutOff);
        let example = trained(judge(&i, &[feedback(1, Kind::Critical), correction(2, "b")], BASE));
        assert_eq!((example.completion.as_str(), example.rejected), ("b", None));
        waits(judge(&i, &[feedback(1, Kind::Critical)], BASE));
    }
}

#[test]
fn an_empty_answer_is_neither_target_nor_rejected() {
    let i = interaction(1, "q", " \n");
    assert_eq!(unused(judge(&i, &[feedback(1, Kind::Good)], BASE)), UnusedReason::Empty);
    assert_eq!(trained(judge(&i, &[correction(1, "b")], BASE)).rejected, None);
}

#[test]
fn another_bases_answer_is_no_target_but_typed_words_are() {
    let i = interaction(1, "q", "a");
    assert_eq!(unused(judge(&i, &[feedback(1, Kind::Good)], "base-2")), UnusedReason::OtherBase);
    let example = trained(judge(&i, &[correction(1, "b")], "base-2"));
    assert_eq!((example.completion.as_str(), example.rejected), ("b", None));
    let imported = Interaction { base: None, ..i };
    assert_eq!(trained(judge(&imported, &[feedback(1, Kind::Good)], "base-2")).completion, "a");
}

#[test]
fn neutral_and_implicit_signals_teach_nothing() {
    let i = interaction(1, "q", "a");
    for kind in [stars(3), Kind::Copy, Kind::Retry, Kind::FollowUp, Kind::Interrupted, Kind::ReadingTime] {
        assert_eq!(unused(judge(&i, &[feedback(1, kind)], BASE)), UnusedReason::Neutral, "{}", kind.name());
    }
    assert_eq!(unused(judge(&i, &[], BASE)), UnusedReason::Neutral);
    let copied = [feedback(1, Kind::Good), feedback(2, Kind::Retry)];
    assert_eq!(trained(judge(&i, &copied, BASE)).weight, 1.0);
}

#[test]
fn weights_that_cannot_be_drawn_by_teach_nothing() {
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let given = Feedback { weight, ..feedback(1, Kind::Good) };
        assert_eq!(unused(judge(&interaction(1, "q", "a"), &[given], BASE)), UnusedReason::Weightless);
    }
}

#[test]
fn an_answer_rated_bad_anywhere_is_no_target_for_the_same_messages() {
    let all = [
        (interaction(1, "q", "a"), vec![feedback(1, Kind::Good)]),
        (interaction(2, "q", "a "), vec![feedback(2, Kind::Critical)]),
        (interaction(3, "other", "a"), vec![feedback(3, Kind::Good)]),
        (interaction(4, "q", "c"), vec![correction(4, "a")]),
        (interaction(5, "q", "x"), vec![feedback(5, Kind::Good)]),
        (interaction(6, "q", "x"), vec![correction(6, "y")]),
    ];
    let judged = judge_all(&all, BASE);
    let taught: Vec<i64> = judged.examples.iter().map(|e| e.interaction).collect();
    assert_eq!(taught, [3, 6]);
    let reasons: Vec<_> = judged.unused.iter().map(|u| (u.interaction, u.reason)).collect();
    assert_eq!(reasons, [(1, UnusedReason::RatedBad(2)), (5, UnusedReason::RatedBad(6))]);
    let waiting: Vec<_> = judged.waiting.iter().map(|w| (w.interaction, w.reason)).collect();
    assert_eq!(waiting, [(2, WaitReason::NoBetterAnswer), (4, WaitReason::RatedBad(2))]);
}

#[test]
fn a_correction_brings_the_note_that_it_answers() {
    let note = |f: Feedback, note: &str| Feedback { note: Some(note.into()), ..f };
    let i = interaction(1, "q", "a");
    let of = |given: &[Feedback]| trained(judge(&i, given, BASE)).note;
    assert_eq!(of(&[note(feedback(1, Kind::Critical), " No x. "), correction(2, "b")]).as_deref(), Some("No x."));
    assert_eq!(of(&[correction(1, "b"), note(feedback(2, Kind::Medium), "No x.")]).as_deref(), Some("No x."));
    assert_eq!(of(&[feedback(1, Kind::Critical), note(correction(2, "b"), "shorter")]).as_deref(), Some("shorter"));
    assert_eq!(of(&[note(feedback(1, Kind::Good), "well done")]), None);
}

#[test]
fn only_a_bad_answer_without_words_is_moved_away_from() {
    let bad = |i: Interaction, given: Vec<Feedback>| judge_all(&[(i, given)], BASE).bad;
    let i = || interaction(1, "q", "a");
    for (kind, weight) in [(Kind::Critical, 1.0), (Kind::ThumbsDown, 1.0), (stars(1), 1.0), (stars(2), 0.5)] {
        let found = bad(i(), vec![feedback(1, kind)]);
        assert_eq!(found.iter().map(|b| (b.answer.as_str(), b.weight)).collect::<Vec<_>>(), [("a", weight)]);
    }
    let noted = Feedback { note: Some("shorter".into()), ..feedback(1, Kind::Critical) };
    assert!(bad(i(), vec![noted]).is_empty(), "it waits for a revision");
    assert!(bad(i(), vec![feedback(1, Kind::Critical), correction(2, "b")]).is_empty());
    assert!(bad(i(), vec![feedback(1, Kind::Good)]).is_empty());
    for other in [
        Interaction { finish: Finish::Length, ..i() },
        Interaction { base: Some("base-2".into()), ..i() },
        Interaction { base: None, ..i() },
        interaction(1, "q", " "),
    ] {
        assert!(bad(other, vec![feedback(1, Kind::Critical)]).is_empty());
    }
}

/// Every combination of two signals, every ending, both bases: whatever comes out keeps the invariants.
#[test]
fn no_combination_makes_a_bad_or_cut_off_answer_a_target() {
    let kinds = [
        Kind::Critical,
        Kind::Medium,
        Kind::Good,
        Kind::ThumbsUp,
        Kind::ThumbsDown,
        stars(1),
        stars(3),
        stars(5),
        Kind::Copy,
        Kind::Correction,
    ];
    let mut trainable = 0;
    for finish in [Finish::Stop, Finish::Length, Finish::Interrupted] {
        for base in [Some(BASE), Some("base-2"), None] {
            for first in kinds {
                for second in kinds {
                    for text in [None, Some("a"), Some("b")] {
                        let i = Interaction { finish, base: base.map(Into::into), ..interaction(1, "q", "a") };
                        let given =
                            [feedback(1, first), Feedback { corrected: text.map(Into::into), ..feedback(2, second) }];
                        let latest = given.iter().rev().find(|f| f.kind.is_judgement());
                        let rated_bad = latest.is_some_and(|f| f.value < 0.0);
                        let case = format!("{finish:?} {base:?} {first:?} {second:?} {text:?}");
                        if let Verdict::Trainable(example) = judge(&i, &given, BASE) {
                            trainable += 1;
                            if example.completion == "a" {
                                assert!(!rated_bad, "a bad answer is a target: {case}");
                                assert_eq!(finish, Finish::Stop, "a cut-off answer is a target: {case}");
                                assert_ne!(base, Some("base-2"), "another base's answer is a target: {case}");
                            }
                            assert_ne!(example.rejected.as_ref(), Some(&example.completion), "{case}");
                            assert!(example.weight > 0.0);
                        }
                    }
                }
            }
        }
    }
    assert!(trainable > 100, "the combinations must reach training, or nothing was tested");
}

#[test]
fn a_stamp_changes_with_lesson_and_weight_only() {
    let i = interaction(1, "q", "a");
    let praised = trained(judge(&i, &[feedback(1, Kind::Good)], BASE));
    let again = trained(judge(&Interaction { id: 9, ..i.clone() }, &[feedback(7, Kind::ThumbsUp)], BASE));
    assert_eq!(praised.stamp(), again.stamp());
    assert_eq!(praised.stamp().len(), 64);
    let heavier = Example { weight: 2.0, ..praised.clone() };
    assert_eq!(heavier.content_digest(), praised.content_digest());
    assert_ne!(heavier.stamp(), praised.stamp());
    let corrected = trained(judge(&i, &[correction(1, "b")], BASE));
    assert_ne!(corrected.content_digest(), praised.content_digest());
    let thinking = Example { thinking: Some(true), ..praised.clone() };
    assert_ne!(thinking.content_digest(), praised.content_digest());
}

#[test]
fn a_better_answer_that_a_model_wrote_holds_for_its_base_only() {
    let asked = interaction(1, "q", "bad");
    let written = |base: &str| {
        let mut better = correction(2, "good");
        better.metadata = json!({"source": "revision", "base": base});
        better
    };
    let noted = Feedback { note: Some("do".into()), ..feedback(1, Kind::Critical) };
    let own = trained(judge(&asked, &[noted.clone(), written(BASE)], BASE));
    assert_eq!((own.completion.as_str(), own.rejected.as_deref()), ("good", Some("bad")));
    let other = judge(&asked, &[noted, written("base-2")], BASE);
    assert!(matches!(&other, Verdict::Waiting(w) if w.reason == WaitReason::NoBetterAnswer), "{other:?}");
    let unrated = judge(&asked, &[written("base-2")], BASE);
    assert!(matches!(&unrated, Verdict::Nothing(u) if u.reason == UnusedReason::OtherBase), "{unrated:?}");
}
