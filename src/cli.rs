//! The command line: clap's definitions, and their resolution into one [`Invocation`].
//!
//! Two stages: what clap parsed, then what it means. The second decides between a prompt and a mistyped subcommand, which
//! clap cannot know. Flags hold raw values here; the configuration checks ranges.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::adapter::export::Format;
use crate::config::Variant;
use crate::error::{Error, Result};
use crate::model::quantize::Quantization;
use crate::nearest::nearest;
use crate::train::data::Objective;
use crate::train::order::Order;
use crate::train::schedule::Shape;

#[derive(Debug, Parser)]
#[command(
    name = "finch",
    version,
    about = "A terminal assistant that runs a local Qwen model and becomes yours",
    after_help = "Without words, on a terminal: the chat; /help there lists its commands.\n\
                  Piped text is put before the words:  cat notes.txt | finch summarise this",
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub chat: ChatArgs,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Which model, for every command.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct ModelArgs {
    /// The model: auto, builtin, a Hugging Face folder or a GGUF file
    #[arg(long, short = 'm', global = true, value_name = "MODEL")]
    pub model: Option<String>,
    /// Quantise its weights while they are loaded: q8_0, q6_k, q5_k_m, q4_k_m, q4_0, … or none; no file is written
    #[arg(long, global = true, value_name = "TYPE")]
    pub quantize: Option<String>,
}

impl ModelArgs {
    /// Plain overrides of configuration keys, for [`crate::config`].
    pub fn overrides(&self) -> Vec<(&'static str, String)> {
        let keys = [("model.name", &self.model), ("model.quantize", &self.quantize)];
        keys.into_iter().filter_map(|(key, value)| Some((key, value.clone()?))).collect()
    }
}

/// One answer or the chat: the flags of `finch` without a subcommand.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct ChatArgs {
    /// Answer this and exit; it is a prompt whatever its words are
    #[arg(long = "prompt", short = 'p', value_name = "PROMPT", conflicts_with = "words")]
    pub forced: Option<String>,
    /// Answer these words and exit
    #[arg(value_name = "PROMPT")]
    pub words: Vec<String>,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Randomness of the choice of tokens; 0 is greedy
    #[arg(long, value_name = "X")]
    pub temperature: Option<f64>,
    /// Choose among the likeliest tokens that hold this share of the probability
    #[arg(long, value_name = "X")]
    pub top_p: Option<f64>,
    /// Choose among this many of the likeliest tokens
    #[arg(long, value_name = "N")]
    pub top_k: Option<usize>,
    /// Make tokens that were used already less likely; 1 is off
    #[arg(long, value_name = "X")]
    pub repetition_penalty: Option<f64>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<usize>,
    /// Seed of the sampling: the same seed gives the same answer
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Draft answers from what stands in the conversation (prompt): quotes and edits come faster, and say the same; off
    #[arg(long, value_name = "prompt|off")]
    pub draft: Option<String>,
    /// Let a thinking model think before it answers
    #[arg(long, overrides_with = "no_thinking")]
    pub thinking: bool,
    /// Let a thinking model answer at once
    #[arg(long)]
    pub no_thinking: bool,
}

impl ChatArgs {
    /// Plain overrides of configuration keys, for [`crate::config`].
    pub fn overrides(&self) -> Vec<(&'static str, String)> {
        let mut set = Vec::new();
        let mut put = |key, value: Option<String>| set.extend(value.map(|v| (key, v)));
        put("generation.temperature", self.temperature.map(|v| v.to_string()));
        put("generation.top_p", self.top_p.map(|v| v.to_string()));
        put("generation.top_k", self.top_k.map(|v| v.to_string()));
        put("generation.repetition_penalty", self.repetition_penalty.map(|v| v.to_string()));
        put("generation.max_tokens", self.max_tokens.map(|v| v.to_string()));
        put("generation.draft", self.draft.clone());
        set
    }

    /// On, off, or as the model's template has it.
    pub fn thinking(&self) -> Option<bool> {
        match (self.thinking, self.no_thinking) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Train on the collected feedback, or on a data set; the gate decides whether the adapter goes live
    ///
    /// Before it trains on feedback, notes that wait for a better answer get one where feedback.revise is "always"; where it
    /// is not, finch says how many wait.
    Train(Box<TrainArgs>),
    /// List, load, take back and delete adapters
    #[command(subcommand)]
    Adapters(AdaptersCommand),
    /// Rate answers from scripts; list, export and import feedback
    #[command(subcommand)]
    Feedback(FeedbackCommand),
    /// Look into models, quantise them
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Show what was asked, rated and trained
    Stats,
    /// Log-probability of each token of given text (JSONL in and out)
    Score(ScoreArgs),
    /// Speed of reading, writing and training, and peak memory, measured on this machine
    Bench(BenchArgs),
    /// Where the configuration is
    #[command(subcommand)]
    Config(ConfigCommand),
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct TrainArgs {
    /// Train on this data set (JSONL) instead of the feedback
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Train on all feedback in the store, also on what has left the buffer
    #[arg(long, conflicts_with = "data")]
    pub all: bool,
    /// Write the adapter to this new or empty folder: it is then neither registered nor made active
    #[arg(long, value_name = "DIR", requires = "data")]
    pub output: Option<PathBuf>,
    /// The loss; auto is finch's own mixture with hold-out, replay and early stop
    #[arg(long, value_enum, default_value_t = Objective::Auto, requires = "data")]
    pub objective: Objective,
    /// Start from this adapter; it gives rank, alpha and targets
    #[arg(long, value_name = "DIR", requires = "data")]
    pub init_adapter: Option<PathBuf>,
    /// Order of the rows: as in the file, drawn by weight, or short to long
    #[arg(long, value_enum, requires = "data")]
    pub order: Option<Order>,
    /// Optimiser steps in all
    #[arg(long, value_name = "N", requires = "data")]
    pub steps: Option<usize>,
    /// Passes over the rows
    #[arg(long, value_name = "N")]
    pub epochs: Option<usize>,
    /// Rows of a forward
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Forwards of an optimiser step
    #[arg(long, value_name = "N", requires = "data")]
    pub gradient_accumulation: Option<usize>,
    /// Peak learning rate (default: found for the model)
    #[arg(long, value_name = "X")]
    pub learning_rate: Option<f64>,
    /// Steps of linear warm-up
    #[arg(long, value_name = "N", conflicts_with = "warmup_ratio", requires = "data")]
    pub warmup_steps: Option<usize>,
    /// Share of the steps that warm up
    #[arg(long, value_name = "X")]
    pub warmup_ratio: Option<f64>,
    /// Course of the learning rate after the warm-up
    #[arg(long, value_enum)]
    pub schedule: Option<Shape>,
    /// AdamW's weight decay
    #[arg(long, value_name = "X")]
    pub weight_decay: Option<f64>,
    /// Clip the gradient to this norm; 0 is off
    #[arg(long, value_name = "X")]
    pub max_grad_norm: Option<f64>,
    /// Strength of the pull to the reference model (dpo, kto)
    #[arg(long, value_name = "X", requires = "data")]
    pub beta: Option<f64>,
    /// Weight of the likelihood of the chosen side (dpo)
    #[arg(long, value_name = "X", requires = "data")]
    pub sft_weight: Option<f64>,
    /// Weight of the replay of the base's own answers
    #[arg(long, value_name = "X", requires = "data")]
    pub replay: Option<f64>,
    /// Share of the rows held out to measure on
    #[arg(long, value_name = "X", requires = "data")]
    pub eval_split: Option<f64>,
    /// Longest row in tokens; longer ones are skipped and named
    #[arg(long, value_name = "N", requires = "data")]
    pub max_length: Option<usize>,
    /// Seed of order, draws and start values
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Rank of a new adapter
    #[arg(long, value_name = "N", conflicts_with = "init_adapter")]
    pub rank: Option<usize>,
    /// Alpha of a new adapter: its output is scaled by alpha / rank (rslora: by alpha / √rank)
    #[arg(long, value_name = "X", conflicts_with = "init_adapter")]
    pub alpha: Option<f64>,
    /// Dropout on the adapter's input
    #[arg(long, value_name = "X")]
    pub dropout: Option<f64>,
    /// Kind of a new adapter
    #[arg(long, value_enum, conflicts_with = "init_adapter")]
    pub variant: Option<Variant>,
    /// Layers of a new adapter, comma-separated: q_proj,v_proj,…
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "init_adapter")]
    pub targets: Option<Vec<String>>,
    /// Write a row for each optimiser step to this file (JSONL)
    #[arg(long, value_name = "FILE", requires = "data")]
    pub metrics: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum AdaptersCommand {
    /// All adapters, with their losses and which one is active
    List,
    /// One adapter in detail
    Show { name: String },
    /// Make an adapter active
    Load {
        /// An adapter's name, or a PEFT LoRA folder
        #[arg(value_name = "NAME|FOLDER")]
        name: String,
        /// Also when it was trained on another base whose shapes fit
        #[arg(long)]
        force: bool,
    },
    /// Go back to the base without an adapter
    Unload,
    /// Remove an adapter
    Delete {
        name: String,
        /// Do not ask, also when it is the active one
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Go back to the adapter that was active before, or to any earlier one
    Rollback { name: Option<String> },
    /// Copy a PEFT folder in, once it was checked against the base; nothing becomes active
    Import {
        /// A folder with adapter_config.json and adapter_model.safetensors: LoRA, rsLoRA or DoRA
        folder: PathBuf,
        /// Its name here (default: the folder's)
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Make it active too
        #[arg(long)]
        load: bool,
        /// Also when it was trained on another base whose shapes fit
        #[arg(long)]
        force: bool,
    },
    /// Write an adapter for another program
    Export {
        /// An adapter's name, or a PEFT LoRA folder
        #[arg(value_name = "NAME|FOLDER")]
        name: String,
        /// Where to: a new file for gguf, a new or empty folder for the others
        out: PathBuf,
        #[arg(long, value_enum)]
        format: Format,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum FeedbackCommand {
    /// Latest feedback
    List {
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// Write all feedback as JSONL
    Export {
        /// To this file instead of standard output
        #[arg(long, short = 'o', value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Read feedback from JSONL; rows that are known already are left out
    Import {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// The answer is badly wrong; the note says what should have been done instead
    #[command(visible_alias = "high")]
    Critical(RatingArgs),
    /// The answer is somewhat off
    Medium(RatingArgs),
    /// The answer is good
    #[command(visible_alias = "normal")]
    Good(RatingArgs),
    /// Thumbs up
    Up(RatingArgs),
    /// Thumbs down
    Down(RatingArgs),
    /// One to five stars
    Rate {
        #[arg(value_parser = clap::value_parser!(u8).range(1..=5))]
        stars: u8,
        #[command(flatten)]
        rating: RatingArgs,
    },
    /// Give the better answer
    Correct {
        #[arg(required = true, value_name = "TEXT")]
        text: Vec<String>,
        /// The interaction meant, as `feedback list` numbers it (default: the last answer)
        #[arg(long, value_name = "ID")]
        id: Option<i64>,
    },
    /// Take the last feedback back
    Undo,
    /// The notes that act as rules in the prompt; take one away
    Lessons {
        #[command(subcommand)]
        action: Option<LessonsCommand>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum LessonsCommand {
    /// All of them, with their numbers
    List,
    /// Take one away; its rating stays
    Drop { number: i64 },
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RatingArgs {
    #[arg(value_name = "NOTE")]
    pub note: Vec<String>,
    /// The interaction meant, as `feedback list` numbers it (default: the last answer)
    #[arg(long, value_name = "ID")]
    pub id: Option<i64>,
}

impl TrainArgs {
    /// Plain overrides of configuration keys, for [`crate::config`].
    pub fn overrides(&self) -> Vec<(&'static str, String)> {
        let mut set = Vec::new();
        let mut put = |key, value: Option<String>| set.extend(value.map(|v| (key, v)));
        put("lora.rank", self.rank.map(|v| v.to_string()));
        put("lora.alpha", self.alpha.map(|v| v.to_string()));
        put("lora.dropout", self.dropout.map(|v| v.to_string()));
        put("lora.variant", self.variant.map(|v| v.name().to_string()));
        put("lora.targets", self.targets.as_ref().map(|v| v.join(",")));
        put("lora.training.learning_rate", self.learning_rate.map(|v| v.to_string()));
        put("lora.training.batch_size", self.batch_size.map(|v| v.to_string()));
        put("lora.training.epochs", self.epochs.map(|v| v.to_string()));
        put("lora.training.warmup_ratio", self.warmup_ratio.map(|v| v.to_string()));
        put("lora.training.schedule", self.schedule.map(|v| v.name().to_string()));
        put("lora.training.weight_decay", self.weight_decay.map(|v| v.to_string()));
        put("lora.training.max_grad_norm", self.max_grad_norm.map(|v| v.to_string()));
        put("lora.training.seed", self.seed.map(|v| v.to_string()));
        set
    }
}

impl RatingArgs {
    /// The note's words joined as the shell gave them; none when there is nothing but space.
    pub fn note(&self) -> Option<String> {
        Some(self.note.join(" ")).filter(|note| !note.trim().is_empty())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ModelsCommand {
    /// What a model is: architecture, sizes, tokenizer, digest
    Show {
        /// auto, builtin, a folder or a GGUF file (default: the configured model)
        name: Option<String>,
    },
    /// Write a model as a GGUF file, which llama.cpp and Ollama read too, with smaller weights
    Quantize {
        /// A Hugging Face folder, a GGUF file, or builtin
        #[arg(value_name = "IN")]
        input: String,
        /// The file to write
        #[arg(value_name = "OUT.gguf")]
        output: PathBuf,
        /// How to store the weights
        #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = Quantization::Q4KM)]
        to: Quantization,
        /// Replace OUT.gguf where it exists
        #[arg(long)]
        force: bool,
        /// Also from weights that are quantised already, which loses more than from the original
        #[arg(long)]
        requantize: bool,
    },
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct ScoreArgs {
    /// Score under this adapter: a name or a PEFT folder
    #[arg(long, value_name = "NAME|FOLDER")]
    pub adapter: Option<String>,
    /// Also decode this many tokens greedily after each row
    #[arg(long = "continue", value_name = "N", default_value_t = 0)]
    pub continue_tokens: usize,
    /// Rows of {"ids":[…]}, {"text":"…"} or {"messages":[…]}; - reads standard input
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub input: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Args)]
pub struct BenchArgs {
    /// Compute with this many threads (default: as many as this process may use)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Read and write under this adapter: a name or a PEFT folder; training is always that of a new one
    #[arg(long, value_name = "NAME|FOLDER")]
    pub adapter: Option<String>,
    /// Measure these alone, comma-separated
    #[arg(long, value_name = "PARTS", value_enum, value_delimiter = ',')]
    pub only: Vec<BenchPart>,
    /// Measurements of each part, after one that is not counted; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub repeat: u16,
    /// One line of JSON instead of the table
    #[arg(long)]
    pub json: bool,
}

/// What `finch bench` can measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BenchPart {
    /// From the file's name to the first token
    Load,
    /// Reading a prompt of 512 tokens
    Prefill,
    /// Writing 64 tokens behind one
    Decode,
    /// The same under an adapter of rank 16 on all linear layers, or that of --adapter
    Adapter,
    /// From an adapter in memory to one that runs
    Swap,
    /// Writing what the prompt held, with changes, and drafts from there
    Draft,
    /// Optimiser steps of 4 rows of 256 tokens
    Training,
    /// Answers and their first tokens, alone and while a training runs
    Chat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Print the path of config.toml
    Path,
}

/// What this start of finch is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Invocation {
    /// The words, or none: then piped input or the REPL.
    Chat {
        prompt: Option<String>,
        model: ModelArgs,
        args: Box<ChatArgs>,
    },
    Command {
        command: Command,
        model: ModelArgs,
    },
    /// Help that was asked for by word; text for standard output.
    Help(String),
}

impl Cli {
    /// Decides between prompt, subcommand and mistyped subcommand.
    ///
    /// Errors (usage): a near miss of a subcommand, an empty prompt, chat flags before a subcommand.
    pub fn resolve(self) -> Result<Invocation> {
        let Cli { model, chat, command } = self;
        if let Some(command) = command {
            if chat != ChatArgs::default() {
                let name = command.name();
                return Err(Error::usage(format!("a prompt or its flags do not go together with `finch {name}`"))
                    .hint(format!("`finch {name} --help` lists its own flags; `finch -p …` asks a prompt")));
            }
            if matches!(command, Command::Models(ModelsCommand::Quantize { .. })) && model != ModelArgs::default() {
                return Err(Error::usage("`finch models quantize` takes its model and type as IN and --type")
                    .hint("finch models quantize IN OUT.gguf --type q8_0"));
            }
            return Ok(Invocation::Command { command, model });
        }
        if let Some(help) = help_by_word(&chat.words) {
            return Ok(Invocation::Help(help));
        }
        if let Some(meant) = near_miss(&chat.words) {
            let typed = chat.words.join(" ");
            return Err(Error::usage(format!("`finch {typed}` is no command; nearest is `finch {meant}`"))
                .hint(format!("to ask it as a prompt: finch -p {typed:?}")));
        }
        let prompt = match (&chat.forced, chat.words.is_empty()) {
            (Some(forced), _) => Some(forced.clone()),
            (None, false) => Some(chat.words.join(" ")),
            (None, true) => None,
        };
        if prompt.as_ref().is_some_and(|p| p.trim().is_empty()) {
            return Err(Error::usage("the prompt is empty").hint("`finch` alone starts the chat"));
        }
        Ok(Invocation::Chat { prompt, model, args: Box::new(chat) })
    }
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Command::Train(_) => "train",
            Command::Adapters(_) => "adapters",
            Command::Feedback(_) => "feedback",
            Command::Models(_) => "models",
            Command::Stats => "stats",
            Command::Score(_) => "score",
            Command::Bench(_) => "bench",
            Command::Config(_) => "config",
        }
    }
}

/// `finch help` and `finch help SUBCOMMAND…`; "help me …" stays a prompt.
fn help_by_word(words: &[String]) -> Option<String> {
    let (first, path) = words.split_first()?;
    if first != "help" {
        return None;
    }
    let mut command = Cli::command();
    command.build();
    for word in path {
        command = command.find_subcommand(word)?.clone();
    }
    Some(command.render_help().to_string())
}

/// The subcommand that prompt words were meant to be, if they look like one: the first word nearly is its name, and what
/// follows is what could follow it. A sentence that only begins with such a word stays a prompt.
fn near_miss(words: &[String]) -> Option<String> {
    let (first, rest) = words.split_first()?;
    let root = Cli::command();
    let names: Vec<&str> = root.get_subcommands().map(clap::Command::get_name).collect();
    let meant = root.find_subcommand(nearest(first, names)?)?;
    let inner: Vec<&str> = meant.get_subcommands().map(clap::Command::get_name).collect();
    let name = meant.get_name();
    match rest.first() {
        None => Some(name.to_string()),
        Some(next) if next.starts_with('-') => Some(name.to_string()),
        Some(next) => nearest(next, inner).map(|inner| format!("{name} {inner}")),
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
