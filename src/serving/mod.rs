//! Configurations of serving stacks, and their edits for latent caches.
//!
//! Each stack has its own module, which maps configuration texts to edited texts without file access. [`folder`]
//! rewrites a whole model folder for the same stack.

pub mod bundle;
mod config;
mod edits;
mod error;
pub mod folder;
pub mod foreseen;
mod genai;
mod latent;
mod optimum;
mod stack;
mod transformers_js;
mod triton;

pub use config::{Config, Edit};
pub use edits::{check, data_file, edited, place};
pub use error::ServingError;
pub use latent::Latent;
pub use stack::Stack;
