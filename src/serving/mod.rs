//! What serving stacks read beside a model: the edits with which they serve a latent cache.
//!
//! The contract of each stack is in its own file; none of them reads a file, they are given texts and return texts.
//! [`folder`] puts it together: a folder in, a folder out that the same stack serves.

pub mod bundle;
mod config;
mod edits;
mod error;
pub mod folder;
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
