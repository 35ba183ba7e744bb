//! Which CUDA the machine's driver is for. It chooses builds of packages and is a part of what a
//! kept environment is known by.

use nvml_wrapper::Nvml;

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// What the configuration says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// The driver is asked.
    #[default]
    OfTheDriver,
    /// `agent.cuda_version`
    This(Version),
    /// `--cpu-only`, `agent.cpu_only`, or the version 0.
    None,
}

impl Wanted {
    /// `12.6.3`, `12.6`, `126`, `12`; `0` means none. `None`: it is no version.
    pub fn of(text: &str) -> Option<Wanted> {
        let mut parts = text.trim().split('.').map(|part| part.parse::<u32>().ok());
        let first = parts.next()??;
        let version = match parts.next() {
            Some(minor) => Version(first, minor?),
            None if first == 0 => return Some(Wanted::None),
            // Numbers below 60 are major versions: there is no CUDA 5.9 to be meant.
            None if first < 60 => Version(first, 0),
            None => Version(first / 10, first % 10),
        };
        Some(Wanted::This(version))
    }
}

/// The version that counts; `None`: no GPU to build for.
pub async fn version(wanted: Wanted) -> Option<Version> {
    match wanted {
        Wanted::None => None,
        Wanted::This(version) => Some(version),
        Wanted::OfTheDriver => tokio::task::spawn_blocking(of_the_driver).await.ok()?,
    }
}

/// Machines and containers with a driver have its library under this name; the plain one comes with
/// the development files.
const LIBRARY: &str = "libnvidia-ml.so.1";

fn of_the_driver() -> Option<Version> {
    let nvml = Nvml::builder().lib_path(LIBRARY.as_ref()).init().ok()?;
    let number = nvml.sys_cuda_driver_version().ok()?.cast_unsigned();
    Some(Version(number / 1000, number % 1000 / 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_as_people_write_them() {
        for (text, wanted) in [
            ("12.6.3", Some(Wanted::This(Version(12, 6)))),
            ("126", Some(Wanted::This(Version(12, 6)))),
            ("11", Some(Wanted::This(Version(11, 0)))),
            ("11.8", Some(Wanted::This(Version(11, 8)))),
            ("0", Some(Wanted::None)),
            ("cuda", None),
            ("12.x", None),
        ] {
            assert_eq!(Wanted::of(text), wanted, "{text}");
        }
    }
}
