//! Every way in which a container cannot be had, with what to do about it; and how the engine's own
//! errors are read.

use std::error::Error as _;
use std::io;

use bollard::errors::Error as EngineError;

use super::choice::ChoiceError;
use super::run_args::RunArgsError;

/// What kind of failure it is: from it come exit code and reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The engine cannot be reached.
    NoEngine,
    /// The engine is there, and this user may not use it.
    EngineNotAllowed,
    NoSuchImage,
    PullDenied,
    /// The registry does not answer, or not now.
    RegistryUnreachable,
    /// The arguments ask for something that the engine refuses.
    BadArguments,
    PortTaken,
    NameTaken,
    DiskFull,
    /// No GPU can be had by this engine.
    NoGpu,
    /// The image cannot run the agent: no shell, no or an old C library.
    ImageUnsuitable,
    /// The ClearML server does not answer.
    NoServer,
    /// The kernel ended the container for want of memory.
    OutOfMemory,
    /// Anything else that the engine said.
    Engine,
}

#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error(
        "no container engine answers at {address} ({named_by}): {cause}. Start it (`systemctl start docker`), \
         or set DOCKER_HOST to where it is"
    )]
    NoEngine {
        address: String,
        named_by: String,
        cause: String,
    },
    #[error(
        "this user may not use the container engine at {address}: permission denied. Add the user to the \
         group that owns the socket (`usermod -aG docker USER`, then log in again), or set DOCKER_HOST to a \
         rootless engine's socket"
    )]
    NotAllowed { address: String },
    #[error(
        "neither apptainer nor singularity is on PATH. Load it (on many clusters: `module load apptainer`), or \
         run the task with --docker"
    )]
    NoApptainer,
    #[error("{program} does not run: {cause}. Does `{program} --version` work at a shell?")]
    ApptainerBroken { program: String, cause: String },
    /// It did not start the container.
    #[error("Apptainer cannot run image {image}: {cause}. {next}")]
    Apptainer {
        kind: Kind,
        image: String,
        cause: String,
        next: &'static str,
    },
    #[error("the container cannot have the GPUs that were asked for: {0}")]
    Gpus(String),
    #[error("the run's folder cannot be laid out: {0}")]
    Folder(io::Error),
    /// A machine in between, or TLS, does not lead to it.
    #[error("the container engine at {address} cannot be reached: {cause}. {next}")]
    Unreachable {
        address: String,
        cause: String,
        next: String,
    },
    #[error("the container engine at {address} does not let this user in: {cause}. {next}")]
    NotLetIn {
        address: String,
        cause: String,
        next: String,
    },
    #[error("{0}")]
    BadAddress(String),
    #[error(
        "there is no image {image}: {cause}. Is the name right, and has this machine or a registry it?"
    )]
    NoSuchImage { image: String, cause: String },
    #[error("image {image} is not on this machine, and {why} forbids to pull it")]
    NotPulled { image: String, why: &'static str },
    #[error(
        "the registry refuses image {image} {whom}: {cause}. Log in with `docker login {registry}` as the user \
         that runs the agent"
    )]
    PullDenied {
        image: String,
        registry: String,
        whom: String,
        cause: String,
    },
    #[error(
        "image {image} cannot be pulled: {cause}. Is the registry reachable from the engine's machine?"
    )]
    Registry { image: String, cause: String },
    #[error(transparent)]
    Arguments(#[from] RunArgsError),
    #[error("the engine refuses the container's arguments: {cause}")]
    BadArguments { cause: String },
    #[error("a port that the container is to have is taken on this machine: {cause}")]
    PortTaken { cause: String },
    #[error("{cause}. Remove the other container, or leave out --name")]
    NameTaken { cause: String },
    #[error("the engine's disk is full: {cause}. `docker system prune` frees what nobody uses")]
    DiskFull { cause: String },
    #[error(
        "the engine cannot give the container a GPU: {cause}. Install the NVIDIA Container Toolkit, or use \
         --cpu-only"
    )]
    NoGpu { cause: String },
    #[error("image {image} cannot run a task: {cause}")]
    ImageUnsuitable { image: String, cause: String },
    #[error(
        "the container ran out of memory, and the kernel ended it. Give it more (--memory in the container's \
         arguments), or let the script use less"
    )]
    OutOfMemory,
    #[error("the container engine failed at {at}: {cause}")]
    Engine { at: &'static str, cause: String },
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error("the server does not say what container the task wants: {0}")]
    Task(String),
    /// Somebody asked for the end meanwhile.
    #[error("stopped")]
    Stopped,
}

impl ContainerError {
    pub fn kind(&self) -> Kind {
        match self {
            ContainerError::NoEngine { .. }
            | ContainerError::Unreachable { .. }
            | ContainerError::NoApptainer
            | ContainerError::ApptainerBroken { .. }
            | ContainerError::BadAddress(_) => Kind::NoEngine,
            ContainerError::Apptainer { kind, .. } => *kind,
            ContainerError::Gpus(_) => Kind::NoGpu,
            ContainerError::Folder(error) => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::DiskFull,
                _ => Kind::Engine,
            },
            ContainerError::NotAllowed { .. } | ContainerError::NotLetIn { .. } => {
                Kind::EngineNotAllowed
            }
            ContainerError::NoSuchImage { .. } | ContainerError::NotPulled { .. } => {
                Kind::NoSuchImage
            }
            ContainerError::PullDenied { .. } => Kind::PullDenied,
            ContainerError::Registry { .. } => Kind::RegistryUnreachable,
            ContainerError::Arguments(_)
            | ContainerError::Choice(_)
            | ContainerError::BadArguments { .. } => Kind::BadArguments,
            ContainerError::Task(_) => Kind::NoServer,
            ContainerError::PortTaken { .. } => Kind::PortTaken,
            ContainerError::NameTaken { .. } => Kind::NameTaken,
            ContainerError::DiskFull { .. } => Kind::DiskFull,
            ContainerError::NoGpu { .. } => Kind::NoGpu,
            ContainerError::ImageUnsuitable { .. } => Kind::ImageUnsuitable,
            ContainerError::OutOfMemory => Kind::OutOfMemory,
            ContainerError::Engine { .. } | ContainerError::Stopped => Kind::Engine,
        }
    }

    /// What the engine's answer to `at` (creating, starting, …) means.
    pub fn from_engine(at: &'static str, error: &EngineError) -> ContainerError {
        let cause = words(error);
        let lower = cause.to_lowercase();
        let has = |part: &str| lower.contains(part);
        let status = match error {
            EngineError::DockerResponseServerError { status_code, .. } => Some(*status_code),
            _ => None,
        };
        match () {
            () if has("no space left on device") => ContainerError::DiskFull { cause },
            () if has("port is already allocated") || has("address already in use") => {
                ContainerError::PortTaken { cause }
            }
            () if has("device driver") && has("gpu") || has("nvidia-container") => {
                ContainerError::NoGpu { cause }
            }
            () if status == Some(409) && has("name") => ContainerError::NameTaken { cause },
            () if status == Some(400) => ContainerError::BadArguments { cause },
            () => ContainerError::Engine { at, cause },
        }
    }
}

/// The engine's message where it gave one, else the innermost cause.
pub(super) fn words(error: &EngineError) -> String {
    match error {
        EngineError::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        EngineError::DockerStreamError { error } => error.trim().to_owned(),
        EngineError::RequestTimeoutError => "no answer".to_owned(),
        other => {
            let mut cause: &dyn std::error::Error = other;
            while let Some(inner) = cause.source() {
                cause = inner;
            }
            cause.to_string()
        }
    }
}

/// The error of this kind among the causes of `error`, those that an [`io::Error`] wraps included.
pub(super) fn cause_of<'e, T: std::error::Error + 'static>(
    error: &'e (dyn std::error::Error + 'static),
) -> Option<&'e T> {
    if let Some(found) = error.downcast_ref::<T>() {
        return Some(found);
    }
    let inner = error.downcast_ref::<io::Error>();
    let inner = inner.and_then(|wrapper| wrapper.get_ref());
    match inner {
        Some(inner) => cause_of(inner),
        None => cause_of(error.source()?),
    }
}

/// The system's own error below the engine's, if there is one: connection refused, no permission.
pub(super) fn system_error(error: &EngineError) -> Option<io::ErrorKind> {
    if let EngineError::SocketNotFoundError(_) = error {
        return Some(io::ErrorKind::NotFound);
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = match error {
        EngineError::IOError { err } => return Some(err.kind()),
        other => other.source(),
    };
    // The enum's own variants are transparent for some, and sources for others.
    while let Some(inner) = cause {
        if let Some(found) = inner.downcast_ref::<io::Error>() {
            return Some(found.kind());
        }
        cause = inner.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_words_are_understood() {
        for (status_code, message, kind) in [
            (
                500,
                "driver failed programming external connectivity on endpoint x: Bind for 0.0.0.0:80 failed: \
                 port is already allocated",
                Kind::PortTaken,
            ),
            (
                500,
                "error creating overlay mount: no space left on device",
                Kind::DiskFull,
            ),
            (
                500,
                "could not select device driver \"\" with capabilities: [[gpu]]",
                Kind::NoGpu,
            ),
            (
                409,
                "Conflict. The container name \"/x\" is already in use by container \"y\"",
                Kind::NameTaken,
            ),
            (
                400,
                "Minimum memory limit allowed is 6MB",
                Kind::BadArguments,
            ),
            (500, "what nobody has seen", Kind::Engine),
        ] {
            let error = EngineError::DockerResponseServerError {
                status_code,
                message: message.into(),
            };
            let read = ContainerError::from_engine("creating the container", &error);
            assert_eq!(read.kind(), kind, "{message}");
            assert!(read.to_string().contains(message), "{read}");
        }
    }
}
