//! Running the task in a container, through the Docker Engine's API.

pub mod choice;
pub mod run_args;
pub mod template;
