//! The story of one run.

mod abort_callback;
pub mod claim;
mod follow;
mod git_settings;
mod health;
pub mod job_env;
mod large_diff;
mod monitoring;
mod node;
mod not_run;
pub mod outcome;
mod prepare;
pub mod result;
pub mod run;
pub mod run_dir;
pub mod settings;
pub mod stop;
pub mod timeline;
pub mod watch;
pub mod worker_place;
