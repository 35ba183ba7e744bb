//! The image: whether the engine has it, and its pull, with progress in a few lines and stopped within
//! a moment.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bollard::errors::Error as EngineError;
use bollard::models::{CreateImageInfo, ImageInspect};
use bollard::query_parameters::CreateImageOptions;
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use super::address::{DockerConfig, Variables};
use super::credentials;
use super::engine::Engine;
use super::error::{ContainerError, system_error, words};
use super::run_args::Pull;
use crate::console::{Console, counted};

/// How often a long pull says how far it is.
const TELL_EACH: Duration = Duration::from_secs(10);

/// A name taken apart as the engine does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `docker.io`, or the part before the first slash where that looks like a host.
    pub registry: String,
    /// What is asked for: the name, with a digest where it has one.
    pub name: String,
    /// Empty with a digest.
    pub tag: String,
}

impl Reference {
    pub fn parse(image: &str) -> Reference {
        let first = image.split_once('/').map(|(first, _)| first);
        let registry = first.filter(|f| f.contains(['.', ':']) || *f == "localhost");
        let (name, tag) = match image.rsplit_once(':') {
            _ if image.contains('@') => (image, ""),
            // A colon before the last slash is a port's.
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (image, "latest"),
        };
        Reference {
            registry: registry.unwrap_or("docker.io").to_owned(),
            name: name.to_owned(),
            tag: tag.to_owned(),
        }
    }
}

/// What is wanted, and how.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub image: &'a str,
    /// `--pull`, and `agent.docker_force_pull`.
    pub policy: Pull,
    /// `--standalone-mode`, which is why nothing is pulled.
    pub offline: bool,
    /// `--platform`.
    pub platform: Option<&'a str>,
    pub config: &'a DockerConfig,
    /// What a program that keeps passwords inherits.
    pub env: &'a Variables,
}

/// The image, pulled where it must be.
pub async fn ensure(
    engine: &Engine,
    wanted: &Wanted<'_>,
    console: &Console,
    stop: &CancellationToken,
) -> Result<ImageInspect, ContainerError> {
    if wanted.policy != Pull::Always {
        match inspect(engine, wanted.image).await? {
            Some(found) => return Ok(found),
            None if wanted.policy == Pull::Never => {
                return Err(ContainerError::NotPulled {
                    image: wanted.image.to_owned(),
                    why: match wanted.offline {
                        true => "--standalone-mode",
                        false => "--pull=never",
                    },
                });
            }
            None => {}
        }
    }
    tokio::select! {
        pulled = pull(engine, wanted, console) => pulled?,
        // The engine gives a pull up when whoever asked for it hangs up.
        () = stop.cancelled() => return Err(ContainerError::Stopped),
    }
    inspect(engine, wanted.image)
        .await?
        .ok_or_else(|| ContainerError::NoSuchImage {
            image: wanted.image.to_owned(),
            cause: "it was pulled, and is gone again".into(),
        })
}

async fn inspect(engine: &Engine, image: &str) -> Result<Option<ImageInspect>, ContainerError> {
    match engine.docker().inspect_image(image).await {
        Ok(found) => Ok(Some(found)),
        Err(EngineError::DockerResponseServerError {
            status_code: 404, ..
        }) => Ok(None),
        Err(EngineError::DockerResponseServerError {
            status_code: 400,
            message,
        }) => Err(ContainerError::NoSuchImage {
            image: image.to_owned(),
            cause: message,
        }),
        Err(error) => Err(ContainerError::from_engine("looking for the image", &error)),
    }
}

async fn pull(
    engine: &Engine,
    wanted: &Wanted<'_>,
    console: &Console,
) -> Result<(), ContainerError> {
    let reference = Reference::parse(wanted.image);
    let known = credentials::for_registry(wanted.config, &reference.registry, wanted.env).await;
    let credentials = known.unwrap_or_else(|cause| {
        console.say(format!(
            "Note: no credentials for {}: {cause}",
            reference.registry
        ));
        None
    });
    let whom = match credentials.as_ref() {
        None => "without credentials".to_owned(),
        Some(known) => match &known.username {
            Some(user) => format!("to user {user}"),
            None => "for the token that is stored".to_owned(),
        },
    };
    console.say(format!("Pulling image {}", wanted.image));
    let begin = Instant::now();
    let options = CreateImageOptions {
        from_image: Some(reference.name.clone()),
        tag: Some(reference.tag.clone()).filter(|tag| !tag.is_empty()),
        platform: wanted.platform.unwrap_or_default().to_owned(),
        ..CreateImageOptions::default()
    };
    let docker = engine.patient();
    let mut events = docker.create_image(Some(options), None, credentials);
    let mut progress = Progress::default();
    let mut told = Instant::now();
    while let Some(event) = events.next().await {
        let event = event.map_err(|error| failed(wanted.image, &reference, &whom, &error))?;
        progress.add(&event);
        if told.elapsed() >= TELL_EACH {
            told = Instant::now();
            console.say(format!("Pulling image {}: {progress}", wanted.image));
        }
    }
    console.say(format!(
        "Pulled image {} in {:.1} s{}",
        wanted.image,
        begin.elapsed().as_secs_f64(),
        progress
            .digest
            .map(|d| format!(" ({d})"))
            .unwrap_or_default()
    ));
    Ok(())
}

fn failed(image: &str, reference: &Reference, whom: &str, error: &EngineError) -> ContainerError {
    let cause = words(error);
    let lower = cause.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let image = image.to_owned();
    match () {
        () if has(&["no space left on device"]) => ContainerError::DiskFull { cause },
        () if has(&[
            "unauthorized",
            "authentication required",
            "no basic auth credentials",
            "forbidden",
            "denied",
        ]) =>
        {
            ContainerError::PullDenied {
                image,
                registry: reference.registry.clone(),
                whom: whom.to_owned(),
                cause,
            }
        }
        () if has(&[
            "manifest unknown",
            "not found",
            "no matching manifest",
            "invalid reference",
        ]) =>
        {
            ContainerError::NoSuchImage { image, cause }
        }
        () if system_error(error).is_some() => ContainerError::Engine {
            at: "pulling the image",
            cause,
        },
        () => ContainerError::Registry { image, cause },
    }
}

/// How far the layers are.
#[derive(Debug, Default)]
struct Progress {
    /// Bytes that have come, of how many, and whether the layer is there.
    layers: BTreeMap<String, (u64, u64, bool)>,
    digest: Option<String>,
}

impl Progress {
    fn add(&mut self, event: &CreateImageInfo) {
        let status = event.status.as_deref().unwrap_or_default();
        if let Some(digest) = status.strip_prefix("Digest: ") {
            self.digest = Some(digest.trim().to_owned());
        }
        let Some(id) = &event.id else { return };
        match status {
            "Downloading" => {
                let layer = self.layers.entry(id.clone()).or_default();
                if let Some(detail) = &event.progress_detail {
                    let bytes = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
                    layer.0 = bytes(detail.current).unwrap_or(layer.0);
                    layer.1 = bytes(detail.total).unwrap_or(layer.1);
                }
            }
            "Pull complete" | "Already exists" => {
                let layer = self.layers.entry(id.clone()).or_default();
                layer.0 = layer.1;
                layer.2 = true;
            }
            "Pulling fs layer" | "Waiting" | "Download complete" | "Extracting"
            | "Verifying Checksum" => {
                self.layers.entry(id.clone()).or_default();
            }
            // `Pulling from NAME` has the tag for an id.
            _ => {}
        }
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let done = self.layers.values().filter(|layer| layer.2).count();
        let (come, total) = self.layers.values().fold((0, 0), |(come, total), layer| {
            (come + layer.0, total + layer.1)
        });
        write!(
            f,
            "{done} of {}, {} of {} MB so far",
            counted(self.layers.len() as u64, "layer"),
            come / 1_000_000,
            total / 1_000_000
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ProgressDetail;

    #[test]
    fn names_are_taken_apart() {
        for (image, registry, name, tag) in [
            ("python", "docker.io", "python", "latest"),
            ("python:3.12", "docker.io", "python", "3.12"),
            ("org/img:1", "docker.io", "org/img", "1"),
            ("localhost/img", "localhost", "localhost/img", "latest"),
            (
                "127.0.0.1:5000/a/b",
                "127.0.0.1:5000",
                "127.0.0.1:5000/a/b",
                "latest",
            ),
            ("reg.io/a:2", "reg.io", "reg.io/a", "2"),
            ("reg.io/a@sha256:00", "reg.io", "reg.io/a@sha256:00", ""),
        ] {
            let expected = Reference {
                registry: registry.into(),
                name: name.into(),
                tag: tag.into(),
            };
            assert_eq!(Reference::parse(image), expected, "{image}");
        }
    }

    #[test]
    fn progress_is_the_sum_of_the_layers() {
        let mut progress = Progress::default();
        let event = |id: &str, status: &str, bytes: Option<(i64, i64)>| CreateImageInfo {
            id: Some(id.into()),
            status: Some(status.into()),
            progress_detail: bytes.map(|(current, total)| ProgressDetail {
                current: Some(current),
                total: Some(total),
            }),
            ..CreateImageInfo::default()
        };
        for event in [
            event("3.12", "Pulling from library/python", None),
            event("a", "Pulling fs layer", None),
            event("b", "Already exists", None),
            event("a", "Downloading", Some((3_000_000, 9_000_000))),
        ] {
            progress.add(&event);
        }
        assert_eq!(progress.to_string(), "1 of 2 layers, 3 of 9 MB so far");
        progress.add(&event("a", "Pull complete", None));
        assert_eq!(progress.to_string(), "2 of 2 layers, 9 of 9 MB so far");
    }
}
