//! The story of one run.

pub mod claim;
pub mod job_env;
pub mod outcome;
mod prepare;
pub mod run;
pub mod run_dir;
pub mod settings;
pub mod stop;
pub mod watch;
