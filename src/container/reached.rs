//! What runs containers, found once: before the task is touched, or when it is needed.

use tokio::sync::OnceCell;

use super::address::{self, DockerConfig, Variables};
use super::apptainer::program::{self, Program};
use super::engine::Engine;
use super::error::ContainerError;

/// Asking again costs a connection to another machine (`ssh://`) or the start of a slow program.
#[derive(Debug, Default)]
pub struct Reached {
    engine: OnceCell<Engine>,
    apptainer: OnceCell<Program>,
}

impl Reached {
    /// The engine that `env` and Docker's own configuration name.
    pub async fn engine(
        &self,
        env: &Variables,
        config: &DockerConfig,
    ) -> Result<&Engine, ContainerError> {
        let connect = || async { Engine::connect(address::address(env, config)?, env).await };
        self.engine.get_or_try_init(connect).await
    }

    pub async fn apptainer(&self, env: &Variables) -> Result<&Program, ContainerError> {
        self.apptainer.get_or_try_init(|| program::find(env)).await
    }
}
