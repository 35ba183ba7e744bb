//! What the agent on the host gives to the one inside, and what it gets back: a folder in the container
//! that only the container's user can enter. Nothing of it is in the container's arguments or
//! variables, where `docker inspect` would show it, and the part with secrets is removed by its reader.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::apptainer::limits::Limit;
use super::archive::{Content, Item};
use super::programs::Program;
use super::user::User;
use crate::execute::scheduler::Claimant;

/// Where all of it is in the container: a volume of the container's own, so that it works with a
/// read-only image, too.
pub const FOLDER: &str = "/.clearml-agent";
/// The result document, once the inner agent has ended.
pub const RESULT: &str = "/.clearml-agent/out/result.json";
/// Why the agent cannot run in this image: what the image's loader said.
pub const UNSUITABLE: &str = "/.clearml-agent/out/unsuitable";
/// The configuration, which is the task's environment's business, too.
pub const CONFIG: &str = "/.clearml-agent/private/clearml.conf";
/// The certificates that the host trusts for the API server, where it names a bundle of its own.
pub const CERTIFICATES: &str = "/.clearml-agent/private/certificates.pem";
/// What uv keeps, and beside it the run, so that uv can link the one into the other: a folder of the
/// host's where the engine has it, else of the volume.
pub const CACHE: &str = "/.clearml-agent/cache";
pub const RUNS: &str = "/.clearml-agent/cache/runs";
pub const UV_CACHE: &str = "/.clearml-agent/cache/uv";
pub const PYTHONS: &str = "/.clearml-agent/cache/python";
pub const VENVS_CACHE: &str = "/.clearml-agent/cache/venvs";
pub const JOURNAL: &str = "/.clearml-agent/journal";

const START: &str = "start";
/// As long as it is there, the agent inside has not begun.
pub const LETTER: &str = "private/handover.json";

/// The image's shell runs this: it finds out whether the agent can run here before anything else does.
const START_SCRIPT: &str = r#"agent=/.clearml-agent/bin/clearml-agent
if ! said=$("$agent" --version 2>&1); then
    printf '%s\n' "$said" >/.clearml-agent/out/unsuitable
    exit 125
fi
# A mounted folder may not be writable in here: a network share gives root no rights.
cache=/.clearml-agent/cache
if ! mkdir -p "$cache/runs" "$cache/uv" 2>/dev/null || ! [ -w "$cache/runs" ] || ! [ -w "$cache/uv" ]; then
    export CLEARML_AGENT__AGENT__VENVS_DIR=/.clearml-agent/runs UV_CACHE_DIR=/.clearml-agent/uv-cache \
        UV_PYTHON_INSTALL_DIR=/.clearml-agent/python \
        CLEARML_AGENT__AGENT__VENVS_CACHE__PATH=/.clearml-agent/venvs
fi
exec "$agent" "$@"
"#;

/// What the inner agent is told.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Handover {
    /// Variables that it and all that it runs get, over the container's own. May hold secrets.
    pub variables: BTreeMap<String, String>,
    /// Run by the image's shell before the task, line by line; empty: nothing.
    pub setup_script: String,
    /// Of several nodes that run one task.
    pub rank: u32,
    /// Which attempt at the task it is, counted from 1, and how the one before ended.
    pub attempt: u32,
    pub former_end: Option<String>,
    /// One of several ranks, and by what they know each other.
    pub several: Option<Claimant>,
    /// `--standalone-mode`: the folder of what was put into the image beforehand.
    pub standalone: Option<PathBuf>,
    /// Variables of the container that are taken away.
    pub unset: Vec<String>,
    /// Of the agent inside and all that it starts.
    pub limits: Vec<Limit>,
    /// The agent outside alone says when to stop: signals of a batch system reach both of them.
    pub orders_alone: bool,
}

impl Handover {
    /// Reads what the host has left in `folder`, and removes it.
    pub fn take(folder: &Path) -> std::io::Result<Handover> {
        let path = folder.join(LETTER);
        let text = std::fs::read_to_string(&path)?;
        std::fs::remove_file(&path)?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// Everything that is placed in [`FOLDER`].
pub struct Parcel<'a> {
    pub agent: Program,
    /// The program that installs packages, where there is one that may run anywhere.
    pub uv: Option<Program>,
    pub config: String,
    pub certificates: Option<PathBuf>,
    pub letter: &'a Handover,
    /// [`CACHE`] is there already.
    pub cache_is_mounted: bool,
    pub user: &'a User,
}

impl Parcel<'_> {
    pub fn items(self) -> Result<Vec<Item>, serde_json::Error> {
        let (uid, gid) = (self.user.uid, self.user.gid);
        let item = |path: &str, mode, content| Item {
            path: path.to_owned(),
            mode,
            uid,
            gid,
            content,
        };
        let mut items = vec![
            item(START, 0o644, Content::Text(START_SCRIPT.into())),
            item("private", 0o700, Content::Folder),
            item("private/clearml.conf", 0o600, Content::Text(self.config)),
            item(
                LETTER,
                0o600,
                Content::Text(serde_json::to_string(self.letter)?),
            ),
            item("out", 0o700, Content::Folder),
            item("runs", 0o700, Content::Folder),
            item("journal", 0o700, Content::Folder),
            item("uv-cache", 0o700, Content::Folder),
        ];
        if !self.cache_is_mounted {
            items.push(item("cache", 0o700, Content::Folder));
        }
        items.push(item("bin", 0o755, Content::Folder));
        for (program, path) in [(Some(self.agent), "bin/clearml-agent"), (self.uv, "bin/uv")] {
            if let Some(Program::Copied(file)) = program {
                items.push(item(path, 0o755, Content::File(file)));
            }
        }
        if let Some(bundle) = self.certificates {
            items.push(item(
                "private/certificates.pem",
                0o600,
                Content::File(bundle),
            ));
        }
        Ok(items)
    }
}

/// The container's entry point: the words before the agent's own arguments.
pub fn entrypoint() -> Vec<String> {
    vec!["/bin/sh".to_owned(), format!("{FOLDER}/{START}")]
}

/// A file of this machine at `path` (absolute) in the container, for its user alone.
pub fn private_file(path: &str, file: PathBuf, user: &User) -> Item {
    Item {
        path: path.trim_start_matches('/').to_owned(),
        mode: 0o600,
        uid: user.uid,
        gid: user.gid,
        content: Content::File(file),
    }
}

/// The plain files of `from` and of its folders, into the folder `into` (absolute) of the container.
/// Sockets and the like have no use there.
pub fn folder_items(from: &Path, into: &str, user: &User, items: &mut Vec<Item>) {
    let Ok(entries) = std::fs::read_dir(from) else {
        return;
    };
    items.push(Item {
        path: into.trim_start_matches('/').to_owned(),
        mode: 0o700,
        uid: user.uid,
        gid: user.gid,
        content: Content::Folder,
    });
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let (path, into) = (entry.path(), format!("{into}/{name}"));
        // A link to a folder could lead in a circle; one to a file is as good as the file.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            folder_items(&path, &into, user, items);
        } else if path.is_file() {
            items.push(private_file(&into, path, user));
        }
    }
}

/// The newest version of glibc that the loader (ld.so) misses: it names each in a line of its own, as
/// ``version `GLIBC_2.34' not found``.
fn missing_glibc(said: &str) -> Option<(u32, u32)> {
    let versions = said.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| c != '.' && !c.is_ascii_digit());
        let (major, minor) = rest[..end.unwrap_or(rest.len())].split_once('.')?;
        Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
    });
    versions.max()
}

/// Why the agent does not run in an image, from what its loader said.
pub fn why_unsuitable(said: &str) -> String {
    let said = said.trim();
    let lower = said.to_lowercase();
    if let Some((major, minor)) = missing_glibc(said) {
        return format!(
            "its C library (glibc) is older than {major}.{minor}, which this agent was built for; the portable build \
             (README, \"One binary for all machines\") runs with 2.28 and later, as in Debian 10, Ubuntu 20.04, RHEL 8"
        );
    }
    let why = match () {
        () if lower.contains("not found") || lower.contains("no such file") => {
            "it has no glibc, which the agent needs (images of Alpine and busybox have another C library)"
        }
        () if lower.contains("exec format") => "it is for another kind of processor than the agent",
        () if lower.contains("permission denied") => {
            "the agent may not be executed in it (a volume mounted with noexec, or a security profile)"
        }
        () => "the agent does not start in it",
    };
    match said.lines().next_back() {
        Some(last) => format!("{why} ({last})"),
        None => why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_loader_says_is_explained() {
        let old = "/a: /lib/x86_64-linux-gnu/libm.so.6: version `GLIBC_2.29' not found (required by /a)\n\
                   /a: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by /a)\n\
                   /a: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.4' not found (required by /a)";
        assert_eq!(missing_glibc(old), Some((2, 34)));
        for (said, why) in [
            (old, "older than 2.34, which this agent was built for"),
            ("sh: 1: /a: not found", "no glibc"),
            ("sh: /a: Exec format error", "another kind of processor"),
            ("sh: /a: Permission denied", "noexec"),
            ("Killed", "does not start in it (Killed)"),
            ("version `GLIBC_PRIVATE' is odd", "does not start in it"),
            ("", "does not start in it"),
        ] {
            let explained = why_unsuitable(said);
            assert!(explained.contains(why), "{said}: {explained}");
        }
    }
}
