//! Adapters: PEFT folders to LoRA tensors and back, and to other formats; where they came from, which there are, which one
//! is live.

pub mod active;
pub mod export;
pub mod peft;
mod peft_config;
mod peft_modules;
pub mod provenance;
pub mod registry;
pub mod switch;
