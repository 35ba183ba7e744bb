//! Which builds of PyTorch a machine gets: the package index for its CUDA version stands beside
//! the others, and the resolver chooses. No line of the list is changed.
//!
//! The rule, which `agent.package_manager.pytorch_resolve: none` switches off: where the list has a
//! PyTorch package, the index `extra_index_url_template` is asked for the driver's CUDA version and
//! then for each one below it, and the first that has the package (in the pinned version) is added.
//! One that is away is asked a few times; then the usual indexes have to do, and what is built so is
//! kept until that one answers.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::cuda::Version;
use super::requirements::{Line, List, TORCH};
use super::settings::Settings;
use super::tool::mask;
use super::uv::client_for;
use crate::api::retry::is_retryable;

/// `agent.package_manager.*`, as far as it concerns PyTorch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchSettings {
    /// `pytorch_resolve` is not `none`.
    pub choose_index: bool,
    /// `extra_index_url_template`, or that for nightly builds: `{}` is the CUDA version ×10.
    pub template: String,
    /// `agent.cpu_only`
    pub cpu_only: bool,
}

pub const TEMPLATE: &str = "https://download.pytorch.org/whl/cu{}/";
pub const NIGHTLY_TEMPLATE: &str = "https://download.pytorch.org/whl/nightly/cu{}/";

impl Default for TorchSettings {
    fn default() -> Self {
        Self {
            choose_index: true,
            template: TEMPLATE.into(),
            cpu_only: false,
        }
    }
}

/// How many versions below the driver's are tried; the Python agent's number.
const DEEPEST: u32 = 14;
/// For one answer; and for how long an index that is away is asked again.
const PATIENCE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// A machine that reaches no such index is not made to wait for it by each run.
const UNREACHABLE: Duration = Duration::from_secs(10 * 60);

/// An index to add, or why none is.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// There is nothing to choose.
    NotNeeded,
    Index {
        url: String,
        note: String,
    },
    None {
        note: String,
    },
    /// The index that would be right is away, and worth asking again after so long.
    Away {
        note: String,
        ask_again: Duration,
    },
}

/// The first PyTorch package of the list that comes from an index, and its version where that is
/// pinned.
fn wanted(list: &List) -> Option<(&str, Option<&str>)> {
    list.lines.iter().find_map(|line| match line {
        Line::Package { name, pin, .. } if TORCH.contains(&name.as_str()) => {
            Some((name.as_str(), pin.as_deref()))
        }
        _ => None,
    })
}

fn candidates(settings: &TorchSettings, cuda: Version) -> Vec<String> {
    if settings.cpu_only {
        return vec![settings.template.replace("cu{}", "cpu")];
    }
    let number = cuda.0 * 10 + cuda.1;
    (number.saturating_sub(DEEPEST)..=number)
        .rev()
        .map(|number| settings.template.replace("{}", &number.to_string()))
        .collect()
}

/// Chooses the index for `list` on a machine with this CUDA.
pub async fn choose(list: &List, cuda: Option<Version>, settings: &Settings) -> Choice {
    let torch = &settings.torch;
    let Some((name, version)) = wanted(list) else {
        return Choice::NotNeeded;
    };
    let cuda = match cuda {
        _ if !torch.choose_index || settings.indexes.no_index => return Choice::NotNeeded,
        None if !torch.cpu_only => return Choice::NotNeeded,
        cuda => cuda.unwrap_or(Version(0, 0)),
    };
    let reason = match torch.cpu_only {
        true => "agent.cpu_only is set".to_owned(),
        false => format!("the driver here is for CUDA {cuda}"),
    };
    let off = "agent.package_manager.pytorch_resolve: none switches this off";
    let urls = candidates(torch, cuda);
    for url in &urls {
        let page = format!("{}/{name}/", url.trim_end_matches('/'));
        match has_at_last(&page, version, name, settings).await {
            Ok(true) => {
                let note = format!(
                    "{name} is looked for at {} too, because {reason} ({off})",
                    mask(url)
                );
                return Choice::Index {
                    url: url.clone(),
                    note,
                };
            }
            Ok(false) => {}
            Err(Away { cause, reached }) => {
                let note = format!(
                    "{} does not answer as it should ({cause}), which may have {name} for this \
                     machine",
                    mask(url)
                );
                let ask_again = match reached {
                    true => Duration::ZERO,
                    false => UNREACHABLE,
                };
                return Choice::Away { note, ask_again };
            }
        }
    }
    let note = format!(
        "none of the PyTorch indexes from {} down to {} has {name}{}: it is taken from the usual \
         package indexes",
        urls.first().map(|url| mask(url)).unwrap_or_default(),
        urls.last().map(|url| mask(url)).unwrap_or_default(),
        version.map(|v| format!("=={v}")).unwrap_or_default(),
    );
    Choice::None { note }
}

/// Why an index is away.
struct Away {
    cause: String,
    /// There was an answer, of whatever kind.
    reached: bool,
}

/// [`has`], asked again for a while where the index is away.
async fn has_at_last(
    page: &str,
    version: Option<&str>,
    name: &str,
    settings: &Settings,
) -> Result<bool, Away> {
    let (started, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        let found = has(page, version, name, settings).await;
        if found.is_ok() || started.elapsed() + pause > PATIENCE {
            return found;
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Whether the page is there and names the version.
async fn has(
    page: &str,
    version: Option<&str>,
    name: &str,
    settings: &Settings,
) -> Result<bool, Away> {
    let unreached = |cause: String| Away {
        cause,
        reached: false,
    };
    let reached = |cause: String| Away {
        cause,
        reached: true,
    };
    let url = url::Url::parse(page).map_err(|e| unreached(e.to_string()))?;
    let client = client_for(&url, settings).map_err(unreached)?;
    let answer = client.get(url).timeout(PATIENCE).send().await;
    let answer = answer.map_err(|e| unreached(e.without_url().to_string()))?;
    let status = answer.status();
    if is_retryable(status.as_u16()) {
        return Err(reached(status.to_string()));
    }
    if !status.is_success() {
        return Ok(false);
    }
    let Some(version) = version else {
        return Ok(true);
    };
    let text = answer.text().await;
    let text = text.map_err(|e| reached(e.without_url().to_string()))?;
    // `torch-2.3.1+cu121-cp311-…`, where the plus may be encoded.
    let start = format!("{name}-{version}");
    Ok(text
        .match_indices(&start)
        .any(|(at, _)| text[at + start.len()..].starts_with(['-', '+', '%'])))
}

/// A build without CUDA where there is a GPU to use.
pub fn cpu_build(site_packages: &[PathBuf], cuda: Option<Version>) -> Option<String> {
    let cuda = cuda?;
    let text = site_packages
        .iter()
        .find_map(|folder| std::fs::read_to_string(folder.join("torch/version.py")).ok())?;
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (left, right) = line.split_once('=')?;
            let left = left.split(':').next().unwrap_or(left).trim();
            (left == name).then(|| right.trim().trim_matches(['\'', '"']).to_owned())
        })
    };
    let without = |name: &str| value(name).is_none_or(|value| value == "None");
    (without("cuda") && without("hip")).then(|| {
        format!(
            "torch {} is a build without CUDA, and this machine has a GPU (CUDA {cuda}): the \
             script will run on the CPU",
            value("__version__").unwrap_or_default()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_indexes_in_their_order() {
        let urls = candidates(&TorchSettings::default(), Version(12, 2));
        assert_eq!(urls.len(), 15);
        assert_eq!(urls[0], "https://download.pytorch.org/whl/cu122/");
        assert_eq!(urls[1], "https://download.pytorch.org/whl/cu121/");
        let cpu = TorchSettings {
            cpu_only: true,
            ..TorchSettings::default()
        };
        assert_eq!(
            candidates(&cpu, Version(0, 0)),
            ["https://download.pytorch.org/whl/cpu/"]
        );
    }

    #[test]
    fn a_cpu_build_on_a_gpu_machine_is_said() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("torch")).unwrap();
        let gpu = Some(Version(12, 2));
        let site = [dir.path().to_owned()];
        assert_eq!(cpu_build(&site, gpu), None);
        for (cuda, said) in [("None", true), ("'12.1'", false)] {
            let text = format!(
                "__version__ = '2.3.1'\ncuda: Optional[str] = {cuda}\nhip: Optional[str] = None\n"
            );
            std::fs::write(dir.path().join("torch/version.py"), text).unwrap();
            assert_eq!(cpu_build(&site, gpu).is_some(), said, "{cuda}");
            assert_eq!(cpu_build(&site, None), None);
        }
    }
}
