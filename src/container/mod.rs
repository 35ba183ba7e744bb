//! A run inside a container: where the engine is, the image, what goes in, and the container's life
//! around the inner agent.

pub mod address;
pub mod apptainer;
pub mod archive;
pub mod caches;
pub mod choice;
pub mod credentials;
mod dial;
pub mod engine;
pub mod error;
pub mod gpus;
pub mod handover;
pub mod image;
pub mod lifecycle;
pub mod name;
pub mod owner;
pub mod ports;
pub mod programs;
pub mod proxies;
pub mod reached;
pub mod run_args;
pub mod settings;
pub mod spec;
mod ssh;
pub mod template;
mod tls;
pub mod user;
