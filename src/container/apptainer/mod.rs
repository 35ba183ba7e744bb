//! Containers of Apptainer (or Singularity), for clusters where nobody has a container engine: which
//! program it is, what an image's name means, what `docker run` flags come to, and why it did not start.
//! The container is a child process of the agent, with the caller's own rights.

pub mod arguments;
pub mod command;
pub mod failure;
pub mod folder;
pub mod gpus;
mod handling;
pub mod image;
pub mod limits;
pub mod program;
