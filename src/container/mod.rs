//! Running the task in a container, through the Docker Engine's API.

pub mod run_args;
