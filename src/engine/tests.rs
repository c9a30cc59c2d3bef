//! The engine over a mock network: what it computes, in which order it tells, how soon it stops.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use candle_core::Device;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::mock::{Call, MockNetwork};
use super::*;
use crate::error::Error;
use crate::model::candle::CandleNetwork;
use crate::model::config::ModelConfig;
use crate::model::courtesy::Courtesy;
use crate::model::lora::{LoraShape, Target};

#[path = "draft_tests.rs"]
mod draft;

const VOCAB: usize = 97;
const STOP: u32 = 96;

/// Depends on every token, the length and the adapter, and never yields the stop id.
fn hash(tokens: &[u32], adapter: Option<f32>) -> u32 {
    let mut sum = adapter.map_or(7, |a| a as u32);
    for t in tokens {
        sum = sum.wrapping_mul(31).wrapping_add(*t + 1);
    }
    sum % STOP
}

fn mock() -> MockNetwork {
    MockNetwork::new(VOCAB, 1000, |tokens, adapter| Ok(hash(tokens, adapter)))
}

fn engine(network: &MockNetwork) -> Engine {
    Engine::start(Arc::new(network.clone())).unwrap()
}

fn greedy() -> Sampling {
    Sampling { seed: 1, ..Sampling::GREEDY }
}

fn request(ids: &[u32], max_tokens: usize) -> Request {
    Request { ids: ids.to_vec(), max_tokens, stop: vec![STOP], sampling: greedy(), adapter: None, draft: Draft::Off }
}

fn adapter(value: f32) -> Arc<EngineAdapter> {
    let weights = LoraWeights { modules: Vec::new(), data: vec![value] };
    Arc::new(EngineAdapter { name: format!("lora_{value}"), digest: format!("d{value}"), weights })
}

/// All events; fails when the engine goes silent without a last one.
fn collect(events: &Receiver<Event>) -> Vec<Event> {
    let mut all = Vec::new();
    loop {
        let event = events.recv_timeout(Duration::from_secs(20)).expect("an event");
        let last = matches!(event, Event::Done(_) | Event::Failed(_));
        all.push(event);
        if last {
            return all;
        }
    }
}

fn tokens(events: &[Event]) -> Vec<u32> {
    events.iter().filter_map(|e| if let Event::Token(t) = e { Some(*t) } else { None }).collect()
}

fn finished(events: &[Event]) -> &Finished {
    match events.last() {
        Some(Event::Done(f)) => f,
        other => panic!("not done: {other:?}"),
    }
}

fn failed(events: &[Event]) -> &Error {
    match events.last() {
        Some(Event::Failed(e)) => e,
        other => panic!("not failed: {other:?}"),
    }
}

fn ask(engine: &Engine, request: Request) -> Vec<Event> {
    collect(&engine.generate(request, CancelFlag::new()))
}

/// What a network without any cache would generate.
fn expected(prompt: &[u32], n: usize, adapter: Option<f32>) -> Vec<u32> {
    let mut all = prompt.to_vec();
    for _ in 0..n {
        all.push(hash(&all, adapter));
    }
    all.split_off(prompt.len())
}

#[test]
fn tells_prefill_then_tokens_then_done() {
    let network = mock();
    let prompt: Vec<u32> = (0..450).map(|i| i % 50).collect();
    let events = ask(&engine(&network), request(&prompt, 3));

    let prefill: Vec<(usize, usize, usize)> = events
        .iter()
        .map_while(|e| match e {
            Event::Prefill { done, total, reused } => Some((*done, *total, *reused)),
            _ => None,
        })
        .collect();
    assert_eq!(prefill, [(0, 450, 0), (192, 450, 0), (384, 450, 0), (450, 450, 0)]);
    assert!(events[4..7].iter().all(|e| matches!(e, Event::Token(_))), "{events:?}");
    assert_eq!(events.len(), 8);
    assert_eq!(tokens(&events), expected(&prompt, 3, None));

    let done = finished(&events);
    assert_eq!((done.reason, done.prompt_tokens, done.reused_tokens, done.generated), (Reason::Length, 450, 0, 3));
    assert!(done.prefill_s >= 0.0 && done.decode_s >= 0.0);
    // The last token sent is never computed upon.
    let forwards: Vec<Call> = network.take_calls().split_off(1);
    assert_eq!(
        forwards,
        [(0, 192), (192, 192), (384, 66), (450, 1), (451, 1)].map(|(at, tokens)| Call::Forward { at, tokens })
    );
}

#[test]
fn large_networks_take_fewer_tokens_at_once() {
    let steps =
        [(896, 4864, 24), (1536, 8960, 28), (3584, 18944, 28)].map(|(hidden_size, intermediate_size, layers)| {
            let config = mock().config().clone();
            prefill_chunk(&ModelConfig { hidden_size, intermediate_size, layers, ..config })
        });
    assert_eq!(steps, [192, 60, 60]);
}

#[test]
fn stops_at_any_stop_id_without_sending_it() {
    let network = MockNetwork::new(VOCAB, 1000, |tokens, _| Ok(if tokens.len() < 7 { 5 } else { 42 }));
    let engine = engine(&network);
    let with_stops = Request { stop: vec![STOP, 42], ..request(&[1, 2, 3], 100) };
    let events = ask(&engine, with_stops);
    assert_eq!(tokens(&events), [5, 5, 5, 5]);
    let done = finished(&events);
    assert_eq!((done.reason, done.generated), (Reason::Stop, 4));
}

#[test]
fn a_turn_prefills_from_the_first_token_that_differs() {
    let network = mock();
    let engine = engine(&network);
    let first = [1, 2, 3, 4, 5];
    let answer = tokens(&ask(&engine, request(&first, 4)));

    // The next turn repeats prompt and answer; the answer's last token was not in the cache yet.
    let mut second: Vec<u32> = first.iter().chain(&answer).copied().collect();
    second.extend([9, 9]);
    network.take_calls();
    let events = ask(&engine, request(&second, 2));
    assert_eq!(finished(&events).reused_tokens, 8);
    assert_eq!(network.take_calls()[0], Call::Forward { at: 8, tokens: 3 });
    assert_eq!(tokens(&events), expected(&second, 2, None));

    // A history that differs in its third token keeps two.
    let third = [1, 2, 8, 4, 5, 6];
    let events = ask(&engine, request(&third, 2));
    assert_eq!(finished(&events).reused_tokens, 2);
    assert_eq!(network.take_calls()[0], Call::Forward { at: 2, tokens: 4 });
    assert_eq!(tokens(&events), expected(&third, 2, None));

    // The very same prompt still needs the logits of its last token.
    let events = ask(&engine, request(&third, 2));
    assert_eq!(finished(&events).reused_tokens, 5);
    assert_eq!(tokens(&events), expected(&third, 2, None));

    // So does a prompt that is a part of what the cache holds.
    let events = ask(&engine, request(&third[..3], 2));
    assert_eq!(finished(&events).reused_tokens, 2);
    assert_eq!(tokens(&events), expected(&third[..3], 2, None));
}

#[test]
fn caches_belong_to_an_adapter_and_the_previous_one_is_kept() {
    let network = mock();
    let engine = engine(&network);
    let prompt = [1, 2, 3, 4];
    let run = |a: Option<f32>| {
        let events = ask(&engine, Request { adapter: a.map(adapter), ..request(&prompt, 2) });
        assert_eq!(tokens(&events), expected(&prompt, 2, a), "adapter {a:?}");
        finished(&events).reused_tokens
    };
    assert_eq!(run(None), 0);
    assert_eq!(run(Some(1.0)), 0, "another adapter shares no cache");
    assert_eq!(run(None), 3, "a swap back does not prefill again");
    assert_eq!(run(Some(1.0)), 3);
    assert_eq!(run(Some(2.0)), 0, "a third one pushes out the least recently used, the base");
    assert_eq!(run(Some(1.0)), 3);
    assert_eq!(run(None), 0);
    let made = network.take_calls().into_iter().filter(|c| matches!(c, Call::Made { .. })).count();
    assert_eq!(made, 4);
}

#[test]
fn an_adapter_that_does_not_fit_is_named_and_the_engine_goes_on() {
    let network = mock();
    let engine = engine(&network);
    let bad = EngineAdapter { name: "lora_bad".into(), digest: "x".into(), weights: LoraWeights::default() };
    let events = ask(&engine, Request { adapter: Some(Arc::new(bad)), ..request(&[1, 2], 2) });
    assert_eq!(failed(&events).message(), "adapter lora_bad: tensor mock.lora_A.weight is missing");
    assert_eq!(tokens(&ask(&engine, request(&[1, 2], 2))), expected(&[1, 2], 2, None));
}

#[test]
fn cancels_within_one_token() {
    // The flag is set while the fourth call computes: no fifth call may follow.
    let cancel = CancelFlag::new();
    let flag = cancel.clone();
    let network = MockNetwork::new(VOCAB, 1000, move |tokens, adapter| {
        if tokens.len() == 6 {
            flag.cancel();
        }
        Ok(hash(tokens, adapter))
    });
    let engine = engine(&network);
    let events = collect(&engine.generate(request(&[1, 2, 3], 100), cancel));
    let done = finished(&events);
    assert_eq!((done.reason, done.generated), (Reason::Cancelled, 3));
    assert_eq!(tokens(&events), expected(&[1, 2, 3], 3, None), "what was told stays told");
    assert_eq!(network.take_calls().len(), 5, "made, prefill and three tokens");
    // The cache is sound afterwards.
    let events = ask(&engine, request(&[1, 2, 3, 4, 5], 2));
    assert_eq!(finished(&events).reused_tokens, 3);
    assert_eq!(tokens(&events), expected(&[1, 2, 3, 4, 5], 2, None));
}

#[test]
fn cancels_within_one_prefill_chunk() {
    let cancel = CancelFlag::new();
    let flag = cancel.clone();
    let network = MockNetwork::new(VOCAB, 1000, move |tokens, adapter| {
        if tokens.len() == 384 {
            flag.cancel();
        }
        Ok(hash(tokens, adapter))
    });
    let engine = engine(&network);
    let prompt = vec![3; 600];
    let events = collect(&engine.generate(request(&prompt, 10), cancel));
    assert_eq!((finished(&events).reason, tokens(&events).len()), (Reason::Cancelled, 0));
    assert_eq!(network.take_calls().len(), 3, "made and two chunks of four");
    let events = ask(&engine, request(&prompt, 1));
    assert_eq!(finished(&events).reused_tokens, 384, "the work that was done is kept");
}

#[test]
fn cancelled_before_its_turn_costs_nothing() {
    let network = mock();
    let cancel = CancelFlag::new();
    cancel.cancel();
    let events = collect(&engine(&network).generate(request(&[1, 2], 5), cancel));
    assert_eq!((finished(&events).reason, finished(&events).generated), (Reason::Cancelled, 0));
    assert_eq!(network.take_calls(), []);
}

/// A network that stops before its `at`-th token until the test says go.
fn pausing(at: usize) -> (MockNetwork, Sender<()>) {
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let network = MockNetwork::new(VOCAB, 1000, move |tokens, adapter| {
        if tokens.len() == at {
            let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(20));
        }
        Ok(hash(tokens, adapter))
    });
    (network, go)
}

#[test]
fn dropping_the_receiver_cancels_an_answer() {
    let (network, go) = pausing(6);
    let engine = engine(&network);
    let events = engine.generate(request(&[1, 2, 3], 900), CancelFlag::new());
    while !matches!(events.recv().unwrap(), Event::Token(_)) {}
    drop(events);
    go.send(()).unwrap();
    ask(&engine, request(&[7], 1)); // queued behind it, so it has ended
    let calls = network.take_calls().len();
    assert!(calls <= 6, "{calls} calls: made, prefill, at most three tokens, the second question");
}

#[test]
fn dropping_the_receiver_cancels_a_prefill() {
    let (network, go) = pausing(128);
    let engine = engine(&network);
    drop(engine.generate(request(&[5; 990], 900), CancelFlag::new()));
    go.send(()).unwrap();
    ask(&engine, request(&[7], 1));
    let calls = network.take_calls().len();
    assert!(calls <= 4, "{calls} calls: made, at most two chunks of sixteen, the second question");
}

#[test]
fn limits_are_checked_before_any_work() {
    let network = MockNetwork::new(VOCAB, 16, |tokens, adapter| Ok(hash(tokens, adapter)));
    let engine = engine(&network);
    let events = ask(&engine, request(&[1; 20], 5));
    assert_eq!(
        failed(&events).message(),
        "the conversation is too long for this model: 20 tokens, and its context holds 16, answer included"
    );
    assert!(failed(&events).hint_text().is_some());
    assert_eq!(events.len(), 1);
    assert!(failed(&ask(&engine, request(&[], 5))).message().contains("empty"));
    assert!(failed(&ask(&engine, request(&[1, 97], 5))).message().contains("97"));
    assert_eq!(network.take_calls(), []);

    // Up to the very end of the context, and no further.
    let events = ask(&engine, request(&[1; 12], 100));
    assert_eq!((finished(&events).reason, finished(&events).generated), (Reason::Length, 4));
    assert_eq!(finished(&ask(&engine, request(&[1; 15], 100))).generated, 1);
    assert_eq!(finished(&ask(&engine, request(&[1; 4], 0))).generated, 0);
}

#[test]
fn errors_and_panics_reach_the_caller_and_leave_a_working_engine() {
    let network = MockNetwork::new(VOCAB, 1000, |tokens, adapter| match tokens {
        [.., 13] => panic!("out of luck"),
        [.., 14] => Err(Error::failure("out of memory")),
        _ => Ok(hash(tokens, adapter)),
    });
    let engine = engine(&network);
    ask(&engine, request(&[1, 2, 3], 1));
    let events = ask(&engine, request(&[1, 2, 13], 5));
    assert!(failed(&events).message().contains("out of luck"), "{events:?}");
    assert!(failed(&events).hint_text().is_some());
    let events = ask(&engine, request(&[1, 2, 3], 2));
    assert_eq!(finished(&events).reused_tokens, 0, "a decoder that panicked is not trusted again");
    assert_eq!(tokens(&events), expected(&[1, 2, 3], 2, None));

    assert_eq!(failed(&ask(&engine, request(&[1, 2, 14], 5))).message(), "out of memory");
    let events = ask(&engine, request(&[1, 2, 3], 2));
    assert_eq!((finished(&events).reused_tokens, tokens(&events)), (0, expected(&[1, 2, 3], 2, None)));
}

#[test]
fn a_training_waits_from_the_request_to_the_last_event() {
    let (go, wait) = channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let network = MockNetwork::new(VOCAB, 1000, move |tokens, adapter| {
        let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(20));
        Ok(hash(tokens, adapter))
    });
    let engine = engine(&network);
    let courtesy = Arc::new(Courtesy::beside(engine.chat_gate()));
    courtesy.point().unwrap(); // free

    let events = engine.generate(request(&[1, 2], 1), CancelFlag::new());
    let (passed, has_passed) = channel();
    let trainer = Arc::clone(&courtesy);
    let training = thread::spawn(move || {
        trainer.point().unwrap();
        passed.send(()).unwrap();
    });
    assert!(has_passed.recv_timeout(Duration::from_millis(50)).is_err(), "trained during an answer");
    go.send(()).unwrap();
    collect(&events);
    has_passed.recv_timeout(Duration::from_secs(20)).expect("free after the answer");
    training.join().unwrap();
}

#[test]
fn requests_are_answered_in_order() {
    let network = mock();
    let engine = engine(&network);
    let all: Vec<_> = (0..5).map(|i| engine.generate(request(&[i, 2], 3), CancelFlag::new())).collect();
    for (i, events) in all.iter().enumerate() {
        assert_eq!(tokens(&collect(events)), expected(&[i as u32, 2], 3, None));
    }
}

#[test]
fn what_is_written_aside_leaves_the_chats_cache_alone() {
    let network = mock();
    let engine = engine(&network);
    ask(&engine, request(&[1, 2, 3], 2));
    let aside = collect(&engine.generate_aside(request(&[7, 8], 3), CancelFlag::new()));
    assert_eq!(tokens(&aside), expected(&[7, 8], 3, None));
    let again = collect(&engine.generate_aside(request(&[7, 8], 3), CancelFlag::new()));
    assert_eq!(finished(&again).reused_tokens, 1, "one aside shares its prompt with the next");
    let turn: Vec<u32> = [1, 2, 3].into_iter().chain(expected(&[1, 2, 3], 2, None)).chain([5]).collect();
    assert!(finished(&ask(&engine, request(&turn, 1))).reused_tokens >= 4, "the turn before is still in the cache");
    let after = collect(&engine.generate_aside(request(&[7, 8], 3), CancelFlag::new()));
    assert_eq!(finished(&after).reused_tokens, 0, "a turn of the chat takes the memory back");
}

#[test]
fn a_prompt_aside_is_read_in_small_steps() {
    let network = mock();
    let prompt = vec![3; 150];
    let events = collect(&engine(&network).generate_aside(request(&prompt, 1), CancelFlag::new()));
    assert_eq!(finished(&events).reason, Reason::Length);
    let steps = [(0, 60), (60, 60), (120, 30)].map(|(at, tokens)| Call::Forward { at, tokens });
    assert_eq!(network.take_calls()[1..], steps, "a turn of the chat waits for one of them at most");
}

#[test]
fn a_turn_of_the_chat_goes_before_what_is_written_aside() {
    let (go, gate) = std::sync::mpsc::channel();
    let (arrived, begun) = std::sync::mpsc::channel();
    let ends = std::sync::Mutex::new((arrived, gate));
    let network = MockNetwork::new(VOCAB, 1000, move |tokens, _| {
        if tokens[0] == 9 && tokens.len() == 4 {
            let (arrived, gate) = &*ends.lock().unwrap();
            arrived.send(()).unwrap();
            gate.recv().unwrap(); // the aside holds here until the turn is asked for
        }
        Ok(hash(tokens, None))
    });
    let engine = engine(&network);
    let aside = engine.generate_aside(request(&[9], 50), CancelFlag::new());
    begun.recv().unwrap();
    let second = engine.generate_aside(request(&[8], 5), CancelFlag::new());
    let turn = engine.generate(request(&[1, 2], 4), CancelFlag::new());
    go.send(()).unwrap();
    let aside = collect(&aside);
    assert_eq!((finished(&aside).reason, tokens(&aside).len()), (Reason::Yielded, 3));
    let second = collect(&second);
    assert_eq!((finished(&second).reason, tokens(&second).len()), (Reason::Yielded, 0), "the turn still waits");
    assert_eq!(tokens(&collect(&turn)).len(), 4);
    let again = collect(&engine.generate_aside(request(&[8], 5), CancelFlag::new()));
    assert_eq!(finished(&again).reason, Reason::Length, "nothing waits any more");
}

#[test]
fn the_same_seed_samples_the_same_tokens() {
    let network = mock();
    let engine = engine(&network);
    let sampled = |seed| {
        let sampling = Sampling { temperature: 5.0, seed, ..greedy() };
        tokens(&ask(&engine, Request { sampling, ..request(&[1, 2, 3], 40) }))
    };
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
}

/// A small Qwen3 with random weights.
fn real_network() -> Arc<dyn Network> {
    let config = ModelConfig {
        vocab_size: VOCAB,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ..mock().config().clone()
    };
    let mut rng = StdRng::seed_from_u64(5);
    let values = CandleNetwork::full_learner(&config, &Device::Cpu).unwrap().len();
    let params: Vec<f32> = (0..values).map(|_| rng.random::<f32>() - 0.5).collect();
    Arc::new(CandleNetwork::from_params(&config, &params, &Device::Cpu).unwrap())
}

#[test]
fn over_a_real_network_a_reused_cache_gives_what_a_fresh_one_gives() {
    let network = real_network();
    let shape =
        LoraShape { layer: 1, target: Target::V, rank: 2, in_features: 16, out_features: 8, scale: 1.0, dora: false };
    let mut weights = LoraWeights::zeros(vec![shape]);
    weights.data.iter_mut().enumerate().for_each(|(i, v)| *v = (i % 7) as f32 / 3.0 - 1.0);
    let adapter = Arc::new(EngineAdapter { name: "lora".into(), digest: "d".into(), weights });
    let long = Engine::start(Arc::clone(&network)).unwrap();

    let mut history: Vec<u32> = (0..100).map(|i| i * 7 % STOP).collect();
    let (mut reused, mut differed) = (Vec::new(), false);
    for turn in 0..6 {
        history.extend([turn, 3, turn * 5]);
        let adapter = (turn % 3 == 1).then(|| Arc::clone(&adapter));
        let asked = |engine: &Engine, adapter| ask(engine, Request { adapter, ..request(&history, 20) });
        let here = asked(&long, adapter.clone());
        let fresh = asked(&Engine::start(Arc::clone(&network)).unwrap(), adapter.clone());
        assert_eq!(tokens(&here), tokens(&fresh), "turn {turn}");
        if adapter.is_some() {
            let alone = asked(&Engine::start(Arc::clone(&network)).unwrap(), None);
            differed |= tokens(&here) != tokens(&alone);
        }
        reused.push(finished(&here).reused_tokens);
        history.extend(tokens(&here));
        history[90 + turn as usize] += 1; // the next turn differs from here on
    }
    assert!(differed, "the adapter must matter for this to mean anything");
    // Up to the first change since the same adapter's turn before; turns 1 and 4 ran with the adapter.
    assert_eq!(reused, [0, 0, 90, 92, 91, 93]);
}
