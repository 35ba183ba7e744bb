//! One ClearML task, run truly: see `execute` for the story, the other modules for its parts.

pub mod api;
pub mod cache;
pub mod cli;
pub mod config;
pub mod console;
pub mod container;
pub mod execute;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod journal;
pub mod logging;
pub mod mask;
pub mod monitor;
pub mod outlet;
pub mod process;
pub mod python;
pub mod secret;
pub mod server;
pub mod source;
pub mod sync;
pub mod task;
