//! Drafts make an answer faster or not, and no other.

use super::*;
use crate::model::backend::Backend;
use crate::model::builtin;
use crate::model::checkpoint::Checkpoint;
use crate::model::config::ModelConfig;
use crate::model::digest::DigestCache;
use crate::model::load::{Model, ModelSource};
use crate::model::message::Message;

/// Goes on as it stood 20 tokens before, but for a token now and then.
fn quoting() -> MockNetwork {
    MockNetwork::new(VOCAB, 1000, |tokens, adapter| {
        let other = hash(tokens, adapter);
        Ok(match tokens.len().checked_sub(20) {
            Some(at) if !other.is_multiple_of(13) => tokens[at],
            _ => other,
        })
    })
}

fn prompt(n: u32) -> Vec<u32> {
    (0..40).map(|i| (i * (2 * n + 3) + n) % 60).collect()
}

fn drafted(request: Request) -> Request {
    Request { draft: Draft::Prompt, ..request }
}

/// Tokens and the reason for their end.
fn outcome(events: &[Event]) -> (Vec<u32>, Reason) {
    (tokens(events), finished(events).reason)
}

#[test]
fn greedy_answers_are_those_without_drafts_whatever_ends_them() {
    let network = quoting();
    let (mut proposed, mut accepted) = (0, 0);
    let mut compare = |request: Request| {
        let plain = ask(&engine(&network), request.clone());
        let with = ask(&engine(&network), drafted(request));
        assert_eq!(outcome(&with), outcome(&plain));
        assert_eq!(finished(&with).generated, finished(&plain).generated);
        proposed += finished(&with).drafted.proposed;
        accepted += finished(&with).drafted.accepted;
        outcome(&plain).0
    };
    for n in 0..8 {
        for limit in [1, 2, 3, 4, 5, 6, 7, 11, 40, 200] {
            compare(request(&prompt(n), limit));
        }
        let answer = compare(request(&prompt(n), 60));
        for stop in answer {
            compare(Request { stop: vec![stop], ..request(&prompt(n), 60) });
        }
        // The end of the context.
        compare(request(&[prompt(n), vec![n; 940]].concat(), 500));
    }
    assert!(accepted > 3000 && proposed < 3 * accepted, "{accepted} of {proposed}");
}

#[test]
fn a_quote_takes_few_forwards() {
    let network = MockNetwork::new(VOCAB, 1000, |tokens, _| Ok(tokens[tokens.len() - 30]));
    let prompt: Vec<u32> = (0..30).collect();
    let events = ask(&engine(&network), drafted(request(&prompt, 300)));
    assert_eq!(tokens(&events), prompt.iter().cycle().take(300).copied().collect::<Vec<_>>());
    let forwards = network.take_calls().iter().filter(|call| matches!(call, Call::Forward { .. })).count();
    assert!(forwards < 30, "{forwards}");
}

/// What looks familiar goes on in another way each time.
#[test]
fn drafts_that_never_help_become_rare() {
    let network = MockNetwork::new(VOCAB, 1000, |tokens, _| {
        let (at, round) = (tokens.len() as u32 % 4, tokens.len() as u32 / 4);
        Ok(if at == 0 { 60 + round } else { at })
    });
    let events = ask(&engine(&network), drafted(request(&[1, 2, 3], 130)));
    let Drafted { proposed, accepted } = finished(&events).drafted;
    assert!(proposed > 4 && proposed < 16 && accepted == 0, "{accepted} of {proposed}");
}

#[test]
fn the_next_turn_finds_the_cache_that_it_would_have_found() {
    for limit in [5, 13, 29, 30, 31, 60] {
        let network = quoting();
        let (with, plain) = (engine(&network), engine(&network));
        let mut history = prompt(1);
        for turn in 0..4 {
            let asked = request(&history, limit);
            let (a, b) = (ask(&with, drafted(asked.clone())), ask(&plain, asked));
            assert_eq!(outcome(&a), outcome(&b), "turn {turn}");
            assert_eq!(finished(&a).reused_tokens, finished(&b).reused_tokens);
            history.extend(tokens(&a));
            history.extend([3 + turn, 80, 81]);
        }
    }
}

#[test]
fn cancelled_in_a_draft_it_stops_at_once_and_the_next_turn_is_right() {
    let network = quoting();
    let whole = tokens(&ask(&engine(&network), request(&prompt(2), 200)));
    let engine = engine(&network);
    for after in [1, 4, 9, 17] {
        let cancel = CancelFlag::new();
        let events = engine.generate(drafted(request(&prompt(2), 200)), cancel.clone());
        let mut seen = Vec::new();
        for event in events {
            match event {
                Event::Token(token) => seen.push(token),
                Event::Failed(error) => panic!("{error}"),
                _ => {}
            }
            if seen.len() == after {
                cancel.cancel();
            }
        }
        assert_eq!(seen, whole[..seen.len()]);
        assert_eq!(tokens(&ask(&engine, drafted(request(&prompt(2), 200)))), whole);
    }
}

#[test]
fn a_failure_in_a_draft_leaves_nothing_behind() {
    let network = MockNetwork::new(VOCAB, 1000, |tokens, _| match tokens.len() {
        50 if tokens[0] == 7 => Err(Error::failure("out of luck")),
        len => Ok(tokens[len - 10]),
    });
    let engine = engine(&network);
    let unlucky: Vec<u32> = (7..17).collect();
    let events = ask(&engine, drafted(request(&unlucky, 100)));
    assert!(failed(&events).to_string().contains("out of luck"));
    let lucky: Vec<u32> = (8..18).collect();
    assert_eq!(tokens(&ask(&engine, drafted(request(&lucky, 30)))), lucky.repeat(3));
}

/// The mock's expected token has e^(10/T) times the probability of each other one.
#[test]
fn sampled_answers_follow_the_distribution_and_are_those_without_drafts() {
    let network = quoting();
    let temperature = 1.7;
    let weight = (10.0f64 / temperature).exp();
    let expected_share = weight / (weight + (VOCAB - 1) as f64);
    // The expected token, and the others in five classes.
    let (mut counts, mut total, mut accepted) = ([0.0f64; 6], 0.0f64, 0);
    for seed in 0..150 {
        let sampling = Sampling { temperature, seed, ..Sampling::GREEDY };
        let asked = Request { sampling, stop: vec![], ..request(&prompt(seed as u32 % 5), 60) };
        let plain = ask(&engine(&network), asked.clone());
        let with = ask(&engine(&network), drafted(asked.clone()));
        assert_eq!(tokens(&with), tokens(&plain), "seed {seed}");
        accepted += finished(&with).drafted.accepted;
        let mut all = asked.ids;
        for token in tokens(&with) {
            let other = hash(&all, None);
            let expected = if other.is_multiple_of(13) { other } else { all[all.len() - 20] };
            let distance = (token as usize + VOCAB - expected as usize) % VOCAB;
            let class = if distance == 0 { 0 } else { 1 + distance % 5 };
            counts[class] += 1.0;
            total += 1.0;
            all.push(token);
        }
    }
    assert!(accepted > 500, "{accepted} drafted tokens were drawn");
    let mut shares = [expected_share, 0.0, 0.0, 0.0, 0.0, 0.0];
    (1..VOCAB).for_each(|distance| shares[1 + distance % 5] += (1.0 - expected_share) / (VOCAB - 1) as f64);
    let chi: f64 = counts.iter().zip(shares).map(|(n, p)| (n - total * p).powi(2) / (total * p)).sum();
    assert!(chi < 20.5, "χ² of 5 degrees of freedom, above 20.5 once in a thousand: {chi}, {counts:?}");
}

/// The penalty looks back on what the answer has, not on what was drafted.
#[test]
fn penalties_do_not_see_drafts() {
    let network = quoting();
    for penalty in [1.3, 3.0] {
        for n in 0..6 {
            let sampling = Sampling { repetition_penalty: penalty, temperature: 1.5, top_k: 30, top_p: 0.9, seed: 5 };
            let asked = Request { sampling, ..request(&prompt(n), 80) };
            let (plain, with) = (ask(&engine(&network), asked.clone()), ask(&engine(&network), drafted(asked)));
            assert_eq!(outcome(&with), outcome(&plain));
        }
    }
}

/// On both networks: candle's products of one token and of several differ by their rounding, so that there the likeliest
/// tokens are the same and no more is promised.
#[test]
fn the_built_in_model_answers_as_without_drafts() {
    let model = Model::load(&ModelSource::Builtin, &DigestCache::none()).unwrap();
    let file = |name: &str| builtin::file(name).unwrap();
    let config = ModelConfig::from_json(file("config.json")).unwrap();
    let checkpoint = Checkpoint::from_bytes("model.safetensors", file("model.safetensors")).unwrap();
    for (backend, temperatures) in [(Backend::Cpu, &[0.0, 0.8][..]), (Backend::Candle, &[0.0])] {
        let network = backend.load(&config, &checkpoint).unwrap();
        let (with, plain) =
            (Engine::start(Arc::clone(&network)).unwrap(), Engine::start(Arc::clone(&network)).unwrap());
        let mut done = Drafted::default();
        for question in [
            "Say again: finch trains an adapter from the answers that you rate, and finch trains an adapter at night.",
            "How do I undo the last commit? How do I undo the last commit?",
            "fn main() { let a = 1; let b = 1; let c = 1; } What does this do?",
            "What is an adapter?",
            "one two three four five one two three four five one two three",
            "List the commands, list the commands, list the commands.",
        ] {
            for &temperature in temperatures {
                let ids = model.template.encode(&model.tokenizer, &[Message::user(question)], true, None).unwrap();
                let sampling = Sampling { temperature, top_p: 0.9, top_k: 20, repetition_penalty: 1.05, seed: 3 };
                let stop = model.generation.eos.clone();
                let asked = Request { ids, max_tokens: 160, stop, sampling, adapter: None, draft: Draft::Off };
                let (a, b) = (ask(&with, drafted(asked.clone())), ask(&plain, asked));
                assert_eq!(outcome(&a), outcome(&b), "{question}");
                let Drafted { proposed, accepted } = finished(&a).drafted;
                done = Drafted { proposed: done.proposed + proposed, accepted: done.accepted + accepted };
            }
        }
        println!("{done:?}");
        assert!(done.proposed > 0, "no draft was made");
    }
}
