//! The story of one run.

mod abort_callback;
mod batch;
pub mod claim;
mod container_plan;
mod follow;
mod git_settings;
mod health;
mod in_container;
mod inside;
pub mod job_env;
mod large_diff;
mod monitoring;
mod node;
mod not_run;
pub mod outcome;
mod prepare;
pub mod report;
pub mod result;
pub mod run;
pub mod run_dir;
pub mod scheduler;
pub mod settings;
mod slurm;
pub mod stop;
pub mod timeline;
pub mod watch;
pub mod worker_place;
