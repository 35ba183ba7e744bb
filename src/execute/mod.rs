//! The story of one run.

pub mod claim;
pub mod job_env;
pub mod outcome;
