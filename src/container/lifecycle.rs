//! A container from its creation to its removal. It is removed, with its anonymous volumes, on every way
//! out; what a killed agent leaves is removed by the next one (`owner`).

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::errors::Error as EngineError;
use bollard::models::{ContainerCreateBody, EndpointSettings, NetworkConnectRequest};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, KillContainerOptions, WaitContainerOptions,
};
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio_util::bytes::Bytes;
use tokio_util::io::StreamReader;

use super::engine::Engine;
use super::error::{ContainerError, words};
use super::owner::removal;

/// How long the engine may take to remove a container that is killed.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

/// A container that exists. [`Container::remove`] it; dropping it removes it in the background.
#[derive(Debug)]
pub struct Container {
    engine: Engine,
    id: String,
    removed: bool,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub exit_code: i64,
    /// The kernel killed something in it for want of memory.
    pub out_of_memory: bool,
}

/// What the container says, and the way to speak to it.
pub struct Attached {
    pub output: Pin<Box<dyn AsyncRead + Send>>,
    pub input: Input,
}

/// Standard input of the inner agent. Its end tells that this agent is gone.
pub struct Input(Pin<Box<dyn AsyncWrite + Send>>);

impl Input {
    pub async fn line(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(format!("{text}\n").as_bytes()).await?;
        self.0.flush().await
    }
}

impl Container {
    pub async fn create(
        engine: &Engine,
        name: Option<&str>,
        platform: Option<&str>,
        body: ContainerCreateBody,
    ) -> Result<Container, ContainerError> {
        let options = CreateContainerOptions {
            name: name.map(str::to_owned),
            platform: platform.unwrap_or_default().to_owned(),
        };
        let created = engine.docker().create_container(Some(options), body).await;
        let created = created
            .map_err(|error| ContainerError::from_engine("creating the container", &error))?;
        for warning in &created.warnings {
            tracing::debug!(warning, "the engine on the new container");
        }
        Ok(Container {
            engine: engine.clone(),
            id: created.id,
            removed: false,
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Joins one more network.
    pub async fn join(
        &self,
        network: &str,
        endpoint: EndpointSettings,
    ) -> Result<(), ContainerError> {
        let request = NetworkConnectRequest {
            container: self.id.clone(),
            endpoint_config: Some(endpoint),
        };
        let joined = self.engine.docker().connect_network(network, request).await;
        joined.map_err(|error| ContainerError::from_engine("connecting a network", &error))
    }

    /// To be called before the start, so that nothing is missed.
    pub async fn attach(&self) -> Result<Attached, ContainerError> {
        let options = AttachContainerOptions {
            stream: true,
            stdin: true,
            stdout: true,
            stderr: true,
            ..AttachContainerOptions::default()
        };
        let attached = self
            .engine
            .docker()
            .attach_container(&self.id, Some(options))
            .await;
        let attached = attached
            .map_err(|error| ContainerError::from_engine("attaching to the container", &error))?;
        Ok(Attached {
            output: Box::pin(StreamReader::new(bytes_of(attached.output))),
            input: Input(attached.input),
        })
    }

    pub async fn start(&self) -> Result<(), ContainerError> {
        let started = self.engine.docker().start_container(&self.id, None).await;
        started.map_err(|error| ContainerError::from_engine("starting the container", &error))
    }

    /// Its first process, as this machine knows it; `None` where it cannot be seen from here.
    pub async fn pid(&self) -> Option<u32> {
        if !self.engine.is_local() {
            return None;
        }
        let inspected = self.engine.docker().inspect_container(&self.id, None).await;
        let pid = u32::try_from(inspected.ok()?.state?.pid?).ok()?;
        // This agent may be in a process namespace of its own, where the number means another one.
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_ours = words.split(|b| *b == 0).any(|word| word == b"--inside");
        is_ours.then_some(pid)
    }

    /// Waits for its end, as long as it takes.
    pub async fn wait(&self) -> Result<(), ContainerError> {
        let options = WaitContainerOptions {
            condition: "not-running".into(),
        };
        let docker = self.engine.patient();
        let mut ends = docker.wait_container(&self.id, Some(options));
        match ends.next().await {
            // The code is looked up afterwards, with all else.
            None | Some(Ok(_) | Err(EngineError::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => Err(ContainerError::from_engine(
                "waiting for the container",
                &error,
            )),
        }
    }

    /// How it ended; `None` while it runs.
    pub async fn ended(&self) -> Result<Option<Ended>, ContainerError> {
        let inspected = self.engine.docker().inspect_container(&self.id, None).await;
        let inspected = inspected
            .map_err(|error| ContainerError::from_engine("looking at the container", &error))?;
        let state = inspected.state.unwrap_or_default();
        if state.running.unwrap_or(false) {
            return Ok(None);
        }
        Ok(Some(Ended {
            exit_code: state.exit_code.unwrap_or(-1),
            out_of_memory: state.oom_killed.unwrap_or(false),
        }))
    }

    /// Ends it at once.
    pub async fn kill(&self) {
        self.signal("SIGKILL").await;
    }

    /// Sends a signal to its first process. One that has ended is as good.
    pub async fn signal(&self, name: &str) {
        let options = KillContainerOptions {
            signal: name.into(),
        };
        if let Err(error) = self
            .engine
            .docker()
            .kill_container(&self.id, Some(options))
            .await
        {
            tracing::debug!(%error, "kill");
        }
    }

    /// Removes it, running or not. The error is for people: nothing more can be done about it here.
    pub async fn remove(mut self) -> Result<(), String> {
        self.removed = true;
        remove(&self.engine, &self.id).await
    }
}

async fn remove(engine: &Engine, id: &str) -> Result<(), String> {
    let removing = engine.docker().remove_container(id, Some(removal()));
    match tokio::time::timeout(REMOVAL_LIMIT, removing).await {
        Ok(Ok(()))
        | Ok(Err(EngineError::DockerResponseServerError {
            // Somebody else has removed it, or is at it.
            status_code: 404 | 409,
            ..
        })) => Ok(()),
        Ok(Err(error)) => Err(words(&error)),
        Err(_) => Err("no answer".into()),
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (engine, id) = (self.engine.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move { remove(&engine, &id).await });
        }
    }
}

fn bytes_of(
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, EngineError>> + Send>>,
) -> Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>> {
    let pieces = output.map(|piece| {
        piece
            .map(LogOutput::into_bytes)
            .map_err(|error| io::Error::other(words(&error)))
    });
    Box::pin(pieces)
}
