//! The story of one run.

mod abort_callback;
mod batch;
pub mod claim;
mod follow;
mod health;
pub mod job_env;
mod monitoring;
mod node;
mod not_run;
pub mod outcome;
mod prepare;
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
