//! The Python side of a run: which interpreter, which environment, which packages, and the
//! command line that starts the task's script.
//!
//! The steps are cut so that the first two can run while the sources are fetched:
//! [`find_tools`] → [`create`] → [`install`] → [`notebook::convert`] → [`command::command`].
//! Everything that is configured arrives in [`Settings`]; nothing here reads the environment or
//! a configuration file on its own, but for pip's own configuration files.

pub mod cache;
pub mod choice;
pub mod command;
pub mod conda;
pub mod connection;
pub mod cuda;
pub mod environment;
pub mod failure;
pub mod fetched;
mod filling;
pub mod flags;
pub mod freeze;
pub mod git_access;
pub mod index;
mod inherited;
pub mod install;
pub mod interpreter;
mod known;
mod not_found;
pub mod notebook;
mod obtain;
pub mod project;
pub mod record;
pub mod requirements;
pub mod settings;
pub mod tool;
pub mod tools;
pub mod torch;
pub mod uv;

pub use command::{JobCommand, command};
pub use environment::{Environment, create};
pub use failure::PythonError;
pub use install::{Installed, install};
pub use settings::Settings;
pub use tools::{Tools, find_tools};

/// Environment variables by name.
pub type Variables = std::collections::BTreeMap<String, String>;
