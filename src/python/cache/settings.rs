//! What the configuration says about the cache of environments (`agent.venvs_cache.*`).

use std::path::PathBuf;
use std::time::Duration;

/// How a run's copy shares its files with the kept environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkMode {
    /// By reflink, else by hard link, else not at all.
    #[default]
    Auto,
    Reflink,
    HardLink,
    Copy,
}

impl LinkMode {
    pub fn of(text: &str) -> Option<LinkMode> {
        match text.to_lowercase().as_str() {
            "auto" => Some(LinkMode::Auto),
            "reflink" | "clone" => Some(LinkMode::Reflink),
            "hardlink" => Some(LinkMode::HardLink),
            "copy" => Some(LinkMode::Copy),
            _ => None,
        }
    }
}

/// Where environments are kept, and how many.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheSettings {
    /// `agent.venvs_cache.path`
    pub path: PathBuf,
    /// `max_entries`; 0: no limit.
    pub max_entries: usize,
    /// `max_size_gb`, in bytes.
    pub max_size: Option<u64>,
    /// `free_space_threshold_gb`, in bytes: so much stays free on the disk.
    pub free_space: u64,
    /// `lock_timeout`: how long to wait for a run that builds the same; for ever where it is not
    /// set: a lock ends with its holder.
    pub lock_timeout: Option<Duration>,
    /// `resolve_after_hours`: a list that leaves versions open is resolved anew after this time.
    pub resolve_after: Option<Duration>,
    /// `link_mode`
    pub link_mode: LinkMode,
}

impl CacheSettings {
    /// With the defaults of `clearml.conf`.
    pub fn at(path: PathBuf) -> CacheSettings {
        CacheSettings {
            path,
            max_entries: 10,
            max_size: None,
            free_space: 2 << 30,
            lock_timeout: None,
            resolve_after: Some(Duration::from_secs(24 * 3600)),
            link_mode: LinkMode::Auto,
        }
    }
}
