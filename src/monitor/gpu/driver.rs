//! Finds and opens the library of NVIDIA's driver.

use std::path::Path;

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use crate::console::Console;

/// By this name the dynamic loader finds it on `LD_LIBRARY_PATH` and where the system has it.
const NAME: &str = "libnvidia-ml.so.1";

/// Where some systems have it that do not tell the loader: Google's Kubernetes nodes, Windows'
/// subsystem for Linux, NixOS.
const ELSEWHERE: [&str; 3] = [
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
];

/// `None` where there is no driver, which is no news; a driver that is there and does not work is
/// said.
pub fn open(console: &Console) -> Option<Nvml> {
    match try_open() {
        Ok(nvml) => Some(nvml),
        Err(error) if is_absence(&error) => {
            tracing::debug!(%error, "no NVIDIA driver");
            None
        }
        Err(error) => {
            console.say(format!(
                "Note: no figures of the GPUs: NVIDIA's driver does not work: {}",
                words(&error)
            ));
            None
        }
    }
}

pub fn try_open() -> Result<Nvml, NvmlError> {
    let first = match Nvml::builder().lib_path(NAME.as_ref()).init() {
        Err(error @ NvmlError::LibloadingError(_)) => error,
        opened => return opened,
    };
    let found = ELSEWHERE
        .iter()
        .map(|folder| Path::new(folder).join(NAME))
        .find(|path| path.exists());
    match found {
        Some(path) => Nvml::builder().lib_path(path.as_os_str()).init(),
        None => Err(first),
    }
}

/// No library, or a library (in an image, say) and no driver under it.
pub fn is_absence(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::LibloadingError(_) | NvmlError::DriverNotLoaded | NvmlError::LibraryNotFound
    )
}

/// What the error means for who runs the machine.
pub fn words(error: &NvmlError) -> String {
    match error {
        NvmlError::LibRmVersionMismatch => {
            "the kernel's module and the library are of different versions (the driver was updated: \
             reload the module, or restart the machine)"
                .into()
        }
        NvmlError::NoPermission => {
            "this user may not use it (/dev/nvidiactl, /dev/nvidia*)".into()
        }
        NvmlError::GpuLost => "the device has fallen off the bus (restart the machine)".into(),
        NvmlError::ResetRequired => "the device must be reset (nvidia-smi --gpu-reset)".into(),
        NvmlError::FailedToLoadSymbol(_) => "the driver is too old for what is asked".into(),
        error => error.to_string(),
    }
}
