//! The mirrors of repositories, as `clearml-agent cache` has them: this machine's and those of containers.

use std::path::PathBuf;
use std::time::Duration;

use super::{ago, printable};
use crate::config::Config;
use crate::console::counted;
use crate::container::caches;
use crate::python::cache::store::gigabytes;
use crate::source::kept::{self, KeptMirror};

/// Mirrors in one folder.
pub(super) struct Mirrors {
    folder: PathBuf,
    /// Who runs in the containers whose they are.
    user: Option<String>,
    kept: Vec<KeptMirror>,
}

pub(super) fn all(config: &Config) -> Vec<Mirrors> {
    let Some(cache) = config.path("agent.vcs_cache.path") else {
        return Vec::new();
    };
    // The user may have put the folder elsewhere by a link; a container may not.
    let own = cache.canonicalize().unwrap_or_else(|_| cache.clone());
    let of = |folder: PathBuf, user: Option<String>| Mirrors {
        kept: kept::mirrors(&folder),
        folder,
        user,
    };
    let mut all = vec![of(own, None)];
    let users = caches::of_users(&cache).into_iter();
    all.extend(users.map(|(user, folder)| of(folder, Some(user))));
    all.retain(|mirrors| !mirrors.kept.is_empty());
    all
}

impl Mirrors {
    pub fn list(&self) {
        let whose = match &self.user {
            None => String::new(),
            Some(user) if user == "0" => " in containers".to_owned(),
            Some(user) => format!(" in containers, run by user {user}"),
        };
        println!("\nMirrors of repositories{whose}:");
        let mut bytes = 0;
        for mirror in &self.kept {
            bytes += mirror.bytes;
            let (name, used) = (&mirror.name, ago(mirror.last_used));
            let old = if mirror.is_out_of_use {
                "  out of use"
            } else {
                ""
            };
            let size = gigabytes(mirror.bytes);
            let line = format!("{name}  used {used} ago  {size:.2} GB{old}");
            println!("{}", printable(&line));
        }
        println!(
            "{} in {}, {:.2} GB",
            counted(self.kept.len() as u64, "mirror"),
            self.folder.display(),
            gigabytes(bytes)
        );
    }
}

/// Gives how many damaged ones stay.
pub(super) fn verify(all: &[Mirrors], remove: bool) -> usize {
    let (mut count, mut damaged, mut left) = (0, 0, 0);
    for mirror in all.iter().flat_map(|mirrors| &mirrors.kept) {
        count += 1;
        let name = printable(&mirror.name);
        let Some(why) = mirror.damage() else {
            println!("{name}  whole");
            continue;
        };
        damaged += 1;
        let (gone, removed) = match remove.then(|| mirror.remove()) {
            None => (false, String::new()),
            Some(Ok(true)) => (true, ", removed".to_owned()),
            Some(Ok(false)) => (false, ", stays: a run uses it just now".to_owned()),
            Some(Err(error)) => (false, format!(", cannot be removed: {error}")),
        };
        left += usize::from(!gone);
        println!("{name}  damaged{removed}\n    {}", printable(&why));
    }
    if count > 0 {
        println!("{}, {damaged} damaged", counted(count, "mirror"));
    }
    left
}

/// Removes those that nobody has used for so many days; gives how many, and whether all went well.
pub(super) fn prune(all: &[Mirrors], unused_days: u64) -> (u64, bool) {
    let (mut removed, mut well) = (0, true);
    for mirror in all.iter().flat_map(|mirrors| &mirrors.kept) {
        let unused = mirror.last_used.elapsed().unwrap_or(Duration::ZERO);
        if unused < Duration::from_secs(unused_days.saturating_mul(86_400)) {
            continue;
        }
        let name = printable(&mirror.name);
        match mirror.remove() {
            Ok(true) => {
                removed += 1;
                println!("{name}  removed, {:.2} GB", gigabytes(mirror.bytes));
            }
            Ok(false) => println!("{name}  stays: a run uses it just now"),
            Err(error) => {
                well = false;
                println!("{name}  cannot be removed: {error}");
            }
        }
    }
    (removed, well)
}
