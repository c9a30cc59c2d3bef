//! Pretrains finch-tiny, the model inside the binary, from the corpus under `assets/finch-tiny/`.
//!
//! ```text
//! cargo run --release --example pretrain_tiny -- --out target/finch-tiny [--threads 4] [--steps 6000] [--seed 42]
//! ```
//!
//! The network is the candle one with gradients of all weights, the loop and the optimiser are those that train adapters.
//! A run can be stopped and started again: it goes on from its last checkpoint. The checkpoint that answers most of the
//! unseen wordings in `dev.tsv` is the one that is kept.

#[path = "pretrain_tiny/artifacts.rs"]
mod artifacts;
#[path = "pretrain_tiny/corpus.rs"]
mod corpus;
#[path = "pretrain_tiny/rows.rs"]
mod rows;
#[path = "pretrain_tiny/rules.rs"]
mod rules;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::Device;
use clap::Parser;
use finch::model::candle::{CandleNetwork, weights};
use finch::model::config::ModelConfig;
use finch::model::courtesy::Courtesy;
use finch::model::tokenizer::Tokenizer;
use finch::model::{Learner, Network};
use finch::train::lanes::Lanes;
use finch::train::run::{Plan, State, Then, train};
use finch::train::schedule::{Schedule, Shape};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use corpus::{Corpus, read_questions};
use rows::{Chat, Rows};

#[derive(Parser)]
struct Args {
    /// Where the model, its tokenizer and the checkpoints go; a model that is there already is trained on.
    #[arg(long)]
    out: PathBuf,
    /// Facts, corpus and unseen wordings.
    #[arg(long, default_value = "assets/finch-tiny")]
    data: PathBuf,
    #[arg(long, default_value_t = 4)]
    threads: usize,
    #[arg(long, default_value_t = 3600)]
    steps: usize,
    /// Rows of a step.
    #[arg(long, default_value_t = 36)]
    rows: usize,
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f64,
    #[arg(long, default_value_t = 0.05)]
    weight_decay: f64,
    /// Steps between two looks at the unseen wordings.
    #[arg(long, default_value_t = 250)]
    every: usize,
    #[arg(long, default_value_t = 42)]
    seed: u64,
    #[arg(long, default_value_t = 3072)]
    vocab: usize,
    /// Facts that the model in --out does not know yet, by their ids: a fifth of all turns is about them.
    #[arg(long, value_delimiter = ',')]
    focus: Vec<String>,
    /// Stop after this many minutes; a later run goes on from there.
    #[arg(long)]
    minutes: Option<f64>,
    /// Only ask these questions (`fact-id <tab> question`) of the model in --out and print the answers.
    #[arg(long)]
    ask: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    std::fs::create_dir_all(&args.out)?;
    let corpus = Corpus::read(&args.data)?;
    let tokenizer_file = args.out.join("tokenizer.json");
    if !tokenizer_file.exists() {
        artifacts::train_tokenizer(&corpus, args.vocab, &tokenizer_file)?;
    }
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(&tokenizer_file)?)?;
    let id = |token: &str| tokenizer.special_id(token).with_context(|| format!("the tokenizer lacks {token}"));
    let (start, end, pad) = (id("<|im_start|>")?, id("<|im_end|>")?, id("<|endoftext|>")?);
    write_configs(&args.out, args.vocab, end, pad)?;
    let config = ModelConfig::from_json(&std::fs::read(args.out.join("config.json"))?)?;
    let chat = Chat { tokenizer, start, end };
    match &args.ask {
        Some(file) => ask(&args, &config, &chat, &corpus, file),
        None => pretrain(&args, &config, &chat, &corpus),
    }
}

fn pretrain(args: &Args, config: &ModelConfig, chat: &Chat, corpus: &Corpus) -> Result<()> {
    let slots = weights::slots(config)?;
    let mut state = State::new(initial(&slots, args.seed), args.weight_decay);
    let checkpoint = args.out.join("checkpoint.safetensors");
    if checkpoint.exists() {
        artifacts::load_checkpoint(&mut state, &checkpoint)?;
        println!("going on from step {}", state.step);
    } else if args.out.join("model.safetensors").exists() {
        state.params = read_model(&args.out, &slots)?;
        println!("going on from the model in {}", args.out.display());
    }
    if let Some(unknown) = args.focus.iter().find(|id| !corpus.facts.contains_key(*id)) {
        bail!("--focus: there is no fact {unknown}");
    }
    let rows = Rows::new(corpus, chat, &args.focus, args.seed);
    let unseen = read_questions(&args.data.join("dev.tsv"))?;
    println!(
        "{} parameters, {} facts, {} questions, {} dialogues",
        state.params.len(),
        corpus.facts.len(),
        rows.questions(),
        corpus.dialogues.len()
    );

    let warmup = 200.min(args.steps / 10);
    let plan = Plan {
        schedule: Schedule { shape: Shape::Cosine, peak: args.learning_rate, warmup, total: args.steps },
        weight_decay: args.weight_decay,
        max_grad_norm: 1.0,
        dropout: 0.0,
        seed: args.seed,
    };
    let mut learner = CandleNetwork::full_learner(config, &Device::Cpu)?;
    let lanes = Lanes::new(args.threads, 384)?;
    let (began, mut best) = (Instant::now(), read_best(&args.out));
    let (mut tokens, mut losses) = (0usize, Vec::new());
    while state.step < args.steps {
        if args.minutes.is_some_and(|m| began.elapsed().as_secs_f64() > m * 60.0) {
            println!("time is up at step {}; run again to go on", state.step);
            return Ok(());
        }
        let k = state.step;
        let batch = rows.step(k, args.rows)?;
        tokens += batch.iter().map(|r| r.len()).sum::<usize>();
        one_step(learner.as_mut(), &lanes, &mut state, &plan, &batch, &mut losses)?;
        if state.step.is_multiple_of(50) {
            let mean = losses.iter().sum::<f64>() / losses.len() as f64;
            let speed = tokens as f64 / began.elapsed().as_secs_f64();
            println!("step {} loss {mean:.4} {speed:.0} tok/s {:.0} s", state.step, began.elapsed().as_secs_f64());
            losses.clear();
        }
        if state.step.is_multiple_of(args.every) || state.step == args.steps {
            artifacts::save_checkpoint(&state, &checkpoint)?;
            let rounded = round(&state.params);
            let report = examine(config, &rounded, chat, corpus, &unseen, args.threads)?;
            println!("step {} unseen wordings: {}", state.step, report.summary());
            if report.right > best {
                best = report.right;
                artifacts::write_model(&slots, &rounded, &args.out.join("model.safetensors"))?;
                std::fs::write(
                    args.out.join("best.txt"),
                    format!("{best}\nstep {}\n{}\n", state.step, report.summary()),
                )?;
            }
        }
    }
    Ok(())
}

/// One turn of the training loop: rows of this step only, so that a checkpoint can be taken between steps.
fn one_step(
    learner: &mut dyn Learner,
    lanes: &Lanes,
    state: &mut State,
    plan: &Plan,
    batch: &[finch::train::row::Row],
    losses: &mut Vec<f64>,
) -> Result<()> {
    train(learner, lanes, state, plan, &Courtesy::default(), &mut |_| batch.iter().collect(), &mut |report, _| {
        losses.push(report.loss);
        Ok(Then::Stop)
    })?;
    Ok(())
}

fn read_best(out: &Path) -> usize {
    let text = std::fs::read_to_string(out.join("best.txt")).unwrap_or_default();
    text.lines().next().and_then(|l| l.parse().ok()).unwrap_or(0)
}

fn round(params: &[f32]) -> Vec<f32> {
    params.iter().map(|p| f32::from_bits(u32::from(artifacts::to_bf16(*p)) << 16)).collect()
}

/// Norms at one, the embedding small, every other matrix normal with 0.6/√in.
fn initial(slots: &[weights::Slot], seed: u64) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut normal = move || {
        let (u, v): (f64, f64) = (rng.random(), rng.random());
        ((-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    let mut params = Vec::new();
    for slot in slots {
        let scale = match slot.shape.as_slice() {
            [_] => None,
            _ if slot.name.contains("embed") => Some(0.02),
            [_, inputs] => Some(0.6 / (*inputs as f32).sqrt()),
            _ => None,
        };
        params.extend((0..slot.len()).map(|_| scale.map_or(1.0, |s| s * normal())));
    }
    params
}

struct Report {
    right: usize,
    ended: usize,
    total: usize,
    answers: Vec<(String, String, String, bool)>,
}

impl Report {
    fn summary(&self) -> String {
        let percent = |n: usize| 100.0 * n as f64 / self.total as f64;
        format!("{:.1} % right, {:.1} % ended ({} questions)", percent(self.right), percent(self.ended), self.total)
    }
}

/// Asks every question greedily, the questions spread over `threads`.
fn examine(
    config: &ModelConfig,
    params: &[f32],
    chat: &Chat,
    corpus: &Corpus,
    questions: &[(String, String)],
    threads: usize,
) -> Result<Report> {
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<(usize, String, bool)>> {
        let network = CandleNetwork::from_params(config, params, &Device::Cpu)?;
        let mut answers = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::SeqCst);
            let Some((_, question)) = questions.get(i) else { return Ok(answers) };
            let (text, ended) = answer(&network, chat, question)?;
            answers.push((i, text, ended));
        }
    };
    let mut all = std::thread::scope(|scope| -> Result<Vec<_>> {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut all = Vec::new();
        for w in workers {
            all.extend(w.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??);
        }
        Ok(all)
    })?;
    all.sort();
    let mut report = Report { right: 0, ended: 0, total: questions.len(), answers: Vec::new() };
    for (i, text, ended) in all {
        let (id, question) = &questions[i];
        let right = corpus.facts.get(id).with_context(|| format!("unknown fact {id}"))?.holds(&text);
        report.right += usize::from(right);
        report.ended += usize::from(ended);
        report.answers.push((id.clone(), question.clone(), text, right));
    }
    Ok(report)
}

/// The greedy answer, and whether it ended by itself.
fn answer(network: &CandleNetwork, chat: &Chat, question: &str) -> Result<(String, bool)> {
    let mut decoder = network.decoder(None)?;
    let mut logits = decoder.forward(&chat.prompt(question)?)?;
    let mut ids = Vec::new();
    for _ in 0..96 {
        let id = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap_or(0) as u32;
        if id == chat.end {
            return Ok((chat.tokenizer.decode(&ids), true));
        }
        ids.push(id);
        logits = decoder.forward(&[id])?;
    }
    Ok((chat.tokenizer.decode(&ids), false))
}

fn ask(args: &Args, config: &ModelConfig, chat: &Chat, corpus: &Corpus, file: &Path) -> Result<()> {
    let params = read_model(&args.out, &weights::slots(config)?)?;
    let report = examine(config, &params, chat, corpus, &read_questions(file)?, args.threads)?;
    for (id, question, text, right) in &report.answers {
        println!("{}\t{id}\t{question}\t{}", if *right { "ok" } else { "NO" }, text.replace('\n', "\\n"));
    }
    println!("{}", report.summary());
    Ok(())
}

/// All weights of the model in `folder`, in the order of `slots`.
fn read_model(folder: &Path, slots: &[weights::Slot]) -> Result<Vec<f32>> {
    let checkpoint = finch::model::checkpoint::Checkpoint::open(folder)?;
    let mut params = Vec::new();
    for slot in slots {
        params.extend(checkpoint.tensor(&slot.name, &slot.shape)?);
    }
    Ok(params)
}

/// config.json, generation_config.json, tokenizer_config.json and the chat template.
fn write_configs(out: &Path, vocab: usize, end: u32, pad: u32) -> Result<()> {
    let config = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu", "attention_bias": false,
        "vocab_size": vocab, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "bos_token_id": pad, "eos_token_id": end, "pad_token_id": pad, "use_cache": true,
    });
    let generation = serde_json::json!({ "eos_token_id": [end, pad], "pad_token_id": pad, "do_sample": false });
    let tokenizer = serde_json::json!({
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false,
    });
    for (name, value) in
        [("config.json", config), ("generation_config.json", generation), ("tokenizer_config.json", tokenizer)]
    {
        std::fs::write(out.join(name), serde_json::to_string_pretty(&value)? + "\n")?;
    }
    let template = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
                    '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% if \
                    enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}\
                    {% endif %}{% endif %}\n";
    std::fs::write(out.join("chat_template.jinja"), template)?;
    Ok(())
}
