//! What a candidate must pass, and which of them is chosen.

use chrono::DateTime;

use super::*;
use crate::feedback::kind::{FeedbackConfig, Kind};

const ANSWER: &str = "You can read the file with read_to_string and then call .unwrap() on the result of it.";
const NOTE: &str = "Never use .unwrap() in production code";

fn interaction(id: i64) -> Interaction {
    Interaction {
        id,
        time: DateTime::UNIX_EPOCH,
        session: "s".into(),
        turn: 1,
        messages: vec![Message::user("How do I read a file?")],
        response: ANSWER.into(),
        model: "m".into(),
        base: Some("b".into()),
        adapter: None,
        thinking: None,
        sampling: json!({}),
        finish: Finish::Stop,
        timings: json!({}),
        metadata: json!({}),
    }
}

fn rating(interaction: i64, kind: Kind, note: Option<&str>) -> Feedback {
    Feedback {
        id: interaction,
        time: DateTime::UNIX_EPOCH,
        interaction,
        session: None,
        kind,
        value: kind.value(),
        weight: kind.weight(&FeedbackConfig::default()),
        note: note.map(str::to_owned),
        corrected: None,
        metadata: json!({}),
    }
}

fn checked(candidate: &str) -> Result<(), Fault> {
    check(candidate, Finish::Stop, "How do I read a file?", ANSWER, NOTE)
}

#[test]
fn a_candidate_that_mends_the_answer_passes() {
    assert_eq!(checked("You can read the file with read_to_string and then pass the error on with ?"), Ok(()));
    assert_eq!(
        checked("You can read the file with read_to_string and then call .context() on the result of it."),
        Ok(()),
        "one word differs, and the note is obeyed now"
    );
}

#[test]
fn each_fault_is_found() {
    let long = "file ".repeat(80);
    for (candidate, fault) in [
        ("  \n", Fault::Empty),
        ("Use it with .unwrap() here, which is fine in a test.", Fault::Breaks(Rule::Absent(".unwrap()".into()))),
        ("Never use .expect(), said nobody <|im_end|>", Fault::Unclean),
        ("Read the file \x1b[31mwith care and pass errors on.", Fault::Unclean),
        ("Use ? instead.", Fault::TooShort),
        (&long, Fault::TooLong),
        ("List the adapters of finch by typing /adapters at the prompt.", Fault::OffTopic),
    ] {
        assert_eq!(checked(candidate), Err(fault), "{candidate}");
    }
    assert_eq!(check("A good answer, so far", Finish::Length, "", ANSWER, NOTE), Err(Fault::CutOff));
    assert_eq!(check("Be brief!", Finish::Stop, "Count!", "One two three.", "be brief"), Err(Fault::Echo));
}

#[test]
fn the_same_answer_again_is_none_unless_the_note_asked_for_the_difference() {
    let answer =
        "The capital of Australia is Sydney, a city of five million people on the coast, well known for its opera.";
    let check = |candidate: &str, note: &str| {
        check(candidate, Finish::Stop, "Which is the capital of Australia?", answer, note)
    };
    assert_eq!(check(answer, "that is wrong"), Err(Fault::NearCopy));
    assert_eq!(check(&answer.to_uppercase(), "that is wrong"), Err(Fault::NearCopy));
    assert_eq!(check(&answer.replace("five", "six"), "that is wrong"), Err(Fault::NearCopy));
    assert_eq!(check(&answer.replace("Sydney", "Canberra"), "it is Canberra"), Ok(()));
}

#[test]
fn a_short_answer_may_grow() {
    assert_eq!(check("It depends on the weather and on the season.", Finish::Stop, "Warm?", "No.", "say why"), Ok(()));
    assert_eq!(check("Because of the rain.", Finish::Stop, "Why?", "", "say something"), Ok(()));
    let question = "Which database should our small team choose for the new project?";
    assert_eq!(check("选择 SQLite。", Finish::Stop, question, "Postgres.", "用中文回答"), Ok(()));
}

#[test]
fn both_prompts_hold_the_note_and_the_question() {
    let messages = [Message::user("How?")];
    let rewriting = rewriting(&messages, "So.", "Be precise");
    assert_eq!(rewriting[..2], [Message::user("How?"), Message::assistant("So.")]);
    assert!(rewriting[2].role == Role::User && rewriting[2].content.starts_with("Be precise\n\n"));
    let rules = "Follow these rules, which the user gave:\n- Be precise";
    assert_eq!(ruled(&messages, "Be\n  precise "), [Message::system(rules), Message::user("How?")]);
    let system = [Message::system("You are a pirate."), Message::user("How?")];
    let first = ruled(&system, "Be precise");
    assert_eq!(first[0].content, format!("You are a pirate.\n\n{rules}"));
    assert_eq!(ruled(&first, "Be kind")[0].content, format!("You are a pirate.\n\n{rules}\n- Be kind"));
}

#[test]
fn the_greatest_gain_wins() {
    assert!((gain(&[-1.0, -2.0], &[-2.0, -5.0]) - 2.0).abs() < 1e-9);
    assert_eq!(gain(&[], &[]), 0.0);
    assert_eq!(best(&[0.1, 0.7, 0.3]), Some(1));
    assert_eq!(best(&[-3.0, f64::NAN, -2.0]), Some(2));
    assert_eq!(best(&[0.5, 0.5]), Some(0));
    assert_eq!(best(&[f64::NAN]), None);
}

#[test]
fn faults_are_counted_for_the_user() {
    let faults = [Fault::CutOff, Fault::Breaks(Rule::Absent("x()".into())), Fault::CutOff];
    assert_eq!(faults_in_words(&faults), "2 cut off, 1 against \"no x()\"");
}

#[test]
fn bad_answers_with_a_note_are_pending_until_a_better_one_comes() {
    let correction = Feedback { id: 9, corrected: Some("Better.".into()), ..rating(4, Kind::Correction, None) };
    let judged = vec![
        (interaction(1), vec![rating(1, Kind::Critical, Some(NOTE))]),
        (interaction(2), vec![rating(2, Kind::Critical, Some("  "))]),
        (interaction(3), vec![rating(3, Kind::Good, Some("nice"))]),
        (interaction(4), vec![rating(4, Kind::Medium, Some("longer")), correction]),
        (interaction(5), vec![rating(5, Kind::ThumbsDown, Some("rude"))]),
    ];
    let pending: Vec<i64> = pending(&judged, "b").iter().map(|case| case.interaction.id).collect();
    assert_eq!(pending, [1, 5]);
}

#[test]
fn a_proposal_is_read_back_from_its_rating() {
    let proposal = Proposal { text: "So.".into(), base: "b".into(), gain: 0.25, rejected: false };
    let mut rating = rating(1, Kind::Critical, Some(NOTE));
    assert_eq!(Proposal::of(&rating), None);
    rating.metadata[PROPOSAL] = proposal.to_json();
    assert_eq!(Proposal::of(&rating), Some(proposal));
    rating.metadata[PROPOSAL] = json!({"text": 3});
    assert_eq!(Proposal::of(&rating), None);
}

#[test]
fn an_answer_is_about_the_question_that_makes_it_likelier_than_others_do() {
    let own = [-1.0, -2.0];
    assert!(is_about(&own, &[vec![-1.0, -3.0], vec![-1.5, -2.0]]), "by 0.5 and 0.25 nat a token");
    assert!(!is_about(&own, &[vec![-1.0, -3.0], vec![-0.5, -2.0]]), "by 0.5 and -0.25");
    assert!(!is_about(&own, &[vec![f32::NAN, -3.0]]));
    assert!(is_about(&own, &[]), "there is nothing to compare with");
}
