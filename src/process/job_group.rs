//! A control group for the job alone, where the machine lets one be made: its memory and CPU time
//! are then the job's, and whatever the job starts can be found and killed, wherever it went.
//!
//! The group stands below the agent's own, so every limit that holds for the agent holds for the
//! job. No controller is switched on for it: in version 2 that would mean to move the agent (and its
//! siblings) out of their group first, which is for whoever made that group to decide. So it has
//! memory figures where its parent happens to give them (always in version 1), and the list of its
//! processes, CPU time and `cgroup.kill` in any case.
//!
//! An agent that is killed cannot remove its group. The next one does: each holds a lock on its
//! group's folder for as long as it lives.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::process::{Pid, Signal};

use super::cgroup::{self, Place, Version};

const PREFIX: &str = "clearml-agent-";
/// How long killed processes may take to leave before their group is given up.
const EMPTY_LIMIT: Duration = Duration::from_secs(3);

/// The job's group; it is removed, and what is still in it killed, when this is dropped.
#[derive(Debug)]
pub struct JobGroup {
    parts: Vec<Part>,
    entrance: Entrance,
}

/// The group in one hierarchy.
#[derive(Debug)]
struct Part {
    place: Place,
    /// Says to later agents that this group is in use.
    _lock: File,
}

/// What a new process needs to enter the group by itself, before it becomes the job's program: so
/// nothing it starts can be outside.
#[derive(Debug, Clone, Default)]
pub struct Entrance(Arc<[OwnedFd]>);

/// What the group has used. A figure that the kernel does not give is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// Bytes, with files in the page cache.
    pub peak_memory: Option<u64>,
    /// Of all processes that were ever in the group.
    pub cpu: Option<Duration>,
}

impl JobGroup {
    /// `None` where no group can or should be made, which is no failure: in most containers (the
    /// groups are read-only), for users without a group of their own, in batch systems' jobs (they
    /// follow the job by its group) and in a systemd unit without `Delegate=yes`.
    pub fn create() -> Option<JobGroup> {
        let agent = rustix::process::getpid().as_raw_nonzero().get();
        let mut around: Vec<Place> = cgroup::unified(agent).into_iter().collect();
        around.extend(cgroup::of_memory(agent).filter(|p| p.version == Version::V1));
        if around.iter().any(|place| cgroup::is_batch_job(&place.name)) {
            tracing::debug!("no control group for the job: the batch system follows it by its own");
            return None;
        }
        let parts: Vec<Part> = around
            .iter()
            .filter(|place| may_divide(place))
            .filter_map(|place| {
                remove_abandoned(&place.dir);
                Part::create(place)
                    .inspect_err(|error| {
                        tracing::debug!(%error, dir = %place.dir.display(), "no control group for the job");
                    })
                    .ok()
            })
            .collect();
        let entrance = parts.iter().map(Part::entrance).collect::<Result<_, _>>();
        match entrance {
            _ if parts.is_empty() => None,
            Ok(entrance) => Some(JobGroup {
                parts,
                entrance: Entrance(entrance),
            }),
            Err(error) => {
                tracing::debug!(%error, "the job's control group cannot be entered");
                // Dropped: the folders go.
                drop(JobGroup {
                    parts,
                    entrance: Entrance::default(),
                });
                None
            }
        }
    }

    /// For the new process, between fork and exec.
    pub fn entrance(&self) -> Entrance {
        self.entrance.clone()
    }

    /// Moves a process that runs already; what it has started by then stays where it is.
    pub fn add(&self, pid: Pid) -> std::io::Result<()> {
        for part in &self.parts {
            let procs = part.place.dir.join("cgroup.procs");
            fs::write(procs, pid.as_raw_nonzero().to_string())?;
        }
        Ok(())
    }

    /// Gives up those parts that nobody is in, since a kernel may refuse what it let be made; says how
    /// many. Nobody is killed: the kernel removes only what is empty, and a leader that has ended by now
    /// may have left others there.
    pub fn give_up_empty(&mut self) -> usize {
        let before = self.parts.len();
        let is_empty = |part: &Part| fs::remove_dir(&part.place.dir).is_ok();
        self.parts.retain(|part| !is_empty(part));
        before - self.parts.len()
    }

    /// Whether all parts were given up.
    pub fn is_given_up(&self) -> bool {
        self.parts.is_empty()
    }

    /// The processes in it, those that have ended left out.
    pub fn processes(&self) -> Vec<i32> {
        let mut pids: Vec<i32> = self
            .parts
            .iter()
            .flat_map(|part| cgroup::processes(&part.place.dir))
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Sends SIGKILL to all of them. Where the kernel cannot do that in one step (before Linux 5.14,
    /// and in version 1) one that is just being started may get away: call again until
    /// `processes()` is empty.
    pub fn kill(&self) {
        for part in &self.parts {
            kill(&part.place.dir);
        }
    }

    pub fn usage(&self) -> GroupUsage {
        let read = |name: &str| {
            let mut files = self.parts.iter().map(|part| part.place.dir.join(name));
            files.find_map(|path| fs::read_to_string(path).ok())
        };
        let peak = read("memory.peak").or_else(|| read("memory.max_usage_in_bytes"));
        let cpu = read("cpu.stat").and_then(|text| {
            let usage = text.lines().find_map(|l| l.strip_prefix("usage_usec "))?;
            usage.trim().parse().ok()
        });
        GroupUsage {
            peak_memory: peak.and_then(|text| text.trim().parse().ok()),
            cpu: cpu.map(Duration::from_micros),
        }
    }

    /// The group in the hierarchy of `version`.
    pub(super) fn place(&self, version: Version) -> Option<Place> {
        let mut places = self.parts.iter().map(|part| &part.place);
        places.find(|place| place.version == version).cloned()
    }
}

impl Drop for JobGroup {
    fn drop(&mut self) {
        for part in &self.parts {
            empty_and_remove(&part.place.dir);
        }
    }
}

impl Part {
    fn create(around: &Place) -> std::io::Result<Part> {
        let me = rustix::process::getpid().as_raw_nonzero();
        let random = uuid::Uuid::new_v4().simple().to_string();
        let place = around.below(&format!("{PREFIX}{me}-{}", &random[..8]));
        fs::create_dir(&place.dir)?;
        let locked = File::open(&place.dir).and_then(|dir| {
            rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
            Ok(dir)
        });
        match locked {
            Ok(lock) => Ok(Part { place, _lock: lock }),
            // Another agent took it for abandoned in the moment before the lock: it removes it.
            Err(error) => {
                let _ = fs::remove_dir(&place.dir);
                Err(error)
            }
        }
    }

    fn entrance(&self) -> std::io::Result<OwnedFd> {
        let procs = self.place.dir.join("cgroup.procs");
        Ok(File::options().write(true).open(procs)?.into())
    }
}

impl Entrance {
    /// Moves the calling process into the group; where that is refused it stays outside (see
    /// `JobGroup::give_up_empty`). Between fork
    /// and exec this is safe: one write for each hierarchy, nothing else.
    pub fn enter(&self) {
        for procs in self.0.iter() {
            // 0 is whoever writes.
            let _ = rustix::io::write(procs, b"0");
        }
    }
}

/// Whether groups may be made below `place`: where nobody else is in charge of it. A container has
/// its part of the hierarchy for itself; systemd wants its units left alone unless it was told
/// otherwise, which it marks.
fn may_divide(place: &Place) -> bool {
    let marked = |name: &str| {
        let mut value = [0; 8];
        let read = rustix::fs::getxattr(&place.dir, name, &mut value);
        read.is_ok_and(|length| value[..length] == *b"1")
    };
    let own_root = place.dir == place.top && !place.sees_root();
    let allowed = own_root
        || !Path::new("/run/systemd/system").exists()
        || marked("user.delegate")
        || marked("trusted.delegate");
    // Without this a group of version 1 would not be bound by the limits around it.
    let bound = place.version == Version::V2
        || fs::read_to_string(place.dir.join("memory.use_hierarchy"))
            .is_ok_and(|text| text.trim() == "1");
    allowed && bound
}

/// Removes the groups of agents that were killed, and kills what is left of their jobs.
fn remove_abandoned(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let groups = entries
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(PREFIX.as_bytes())
        })
        .map(|entry| entry.path());
    for group in groups {
        let Ok(folder) = File::open(&group) else {
            continue;
        };
        // Whose agent lives is locked.
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            empty_and_remove(&group);
        }
    }
}

fn kill(dir: &Path) {
    if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    for pid in cgroup::processes(dir).into_iter().filter_map(Pid::from_raw) {
        // Gone meanwhile is as good.
        let _ = rustix::process::kill_process(pid, Signal::KILL);
    }
}

fn empty_and_remove(dir: &Path) {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    loop {
        let left: Vec<PathBuf> = cgroup::tree(dir)
            .into_iter()
            .filter(|dir| fs::remove_dir(dir).is_err() && dir.exists())
            .collect();
        if left.is_empty() {
            return;
        }
        if waited >= EMPTY_LIMIT {
            tracing::debug!(dir = %dir.display(), "the job's control group could not be removed");
            return;
        }
        kill(dir);
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
}
