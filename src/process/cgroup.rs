//! Where a process stands in the kernel's control groups: which folder is its group's, and which
//! are those around it, as far up as can be seen from here.
//!
//! Version 1 (one hierarchy for each controller), version 2 (one for all) and the two side by side;
//! on the host, in a container that sees only its own part, and in a batch system's job. What the
//! groups tell is read by `memory`; groups of our own are made by `job_group`.

use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// A group in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub version: Version,
    /// The group's folder.
    pub dir: PathBuf,
    /// The folder of the highest group that can be seen: where the hierarchy is mounted.
    pub top: PathBuf,
    /// The kernel's name for the group: its path, from the root of the hierarchy or of the cgroup
    /// namespace.
    pub name: String,
}

/// The group in which `pid`'s memory is counted.
pub fn of_memory(pid: i32) -> Option<Place> {
    let (groups, mounts) = read(pid)?;
    place(&groups, &mounts, Some("memory")).or_else(|| place(&groups, &mounts, None))
}

/// The group of `pid` in the hierarchy of version 2.
pub fn unified(pid: i32) -> Option<Place> {
    let (groups, mounts) = read(pid)?;
    place(&groups, &mounts, None)
}

fn read(pid: i32) -> Option<(String, String)> {
    Some((
        fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?,
        fs::read_to_string("/proc/self/mountinfo").ok()?,
    ))
}

/// The group in the version 1 hierarchy of `controller`, or in that of version 2.
fn place(groups: &str, mounts: &str, controller: Option<&str>) -> Option<Place> {
    let name = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, name) = (fields.next()?, fields.next()?, fields.next()?);
        let wanted = match controller {
            Some(controller) => controllers.split(',').any(|c| c == controller),
            None => id == "0" && controllers.is_empty(),
        };
        wanted.then_some(name)
    })?;
    // A process outside the cgroup namespace is told as `/../x`: nothing of it can be seen.
    if name.split('/').any(|part| part == "..") {
        return None;
    }
    // The hierarchy may be mounted more than once; the widest view shows the most groups around.
    let (root, top) = mounts
        .lines()
        .filter_map(|line| mount(line, controller))
        .filter(|(root, _)| Path::new(name).starts_with(root))
        .min_by_key(|(root, _)| root.len())?;
    let below = Path::new(name).strip_prefix(&root).ok()?;
    Some(Place {
        version: controller.map_or(Version::V2, |_| Version::V1),
        // Joining an empty path would add a slash.
        dir: top.components().chain(below.components()).collect(),
        top,
        name: name.to_owned(),
    })
}

/// The mounted group and the mount point, if this line of mountinfo is about the wanted hierarchy:
/// `36 31 0:33 ROOT POINT options [optional fields] - TYPE source OPTIONS`.
fn mount(line: &str, controller: Option<&str>) -> Option<(String, PathBuf)> {
    let (mount, system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, mount.next()?);
    let mut system = system.split(' ');
    let (kind, options) = (system.next()?, system.nth(1).unwrap_or_default());
    let wanted = match controller {
        Some(controller) => kind == "cgroup" && options.split(',').any(|o| o == controller),
        None => kind == "cgroup2",
    };
    wanted.then(|| (unescaped(root), unescaped(point).into()))
}

/// Blanks and the like stand in mountinfo as `\040`.
fn unescaped(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(byte) if first == b'\\' => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Place {
    /// This group and those around it, the nearest first.
    pub fn upwards(&self) -> Vec<Place> {
        let mut places = vec![self.clone()];
        let mut here = self.clone();
        while here.dir != here.top && here.dir.pop() {
            let name = Path::new(&here.name).parent().unwrap_or(Path::new("/"));
            here.name = name.to_string_lossy().into_owned();
            places.push(here.clone());
        }
        places
    }

    /// A group below this one.
    pub fn below(&self, name: &str) -> Place {
        Place {
            dir: self.dir.join(name),
            name: format!("{}/{name}", self.name.trim_end_matches('/')),
            ..self.clone()
        }
    }

    /// Whether nothing is around the highest group that can be seen. (From within a container that
    /// one is the container's, whatever its name.)
    pub fn sees_root(&self) -> bool {
        let only_in_others = match self.version {
            Version::V1 => return self.top.join("cgroup.sane_behavior").exists(),
            Version::V2 => "cgroup.events",
        };
        self.top.join("cgroup.procs").exists() && !self.top.join(only_in_others).exists()
    }
}

/// The processes in the group at `dir`, those of groups below it included.
pub fn processes(dir: &Path) -> Vec<i32> {
    let mut pids = Vec::new();
    for dir in tree(dir) {
        let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// The folders of the group and of all below it, the innermost first.
pub fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_path_buf()];
    let mut next = 0;
    while let Some(dir) = found.get(next).cloned() {
        let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        found.extend(folders.map(|entry| entry.path()));
        next += 1;
    }
    found.reverse();
    found
}

/// What a group stands for, so that a person is told which knob to turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    BatchJob,
    Pod,
    Container,
    /// A service, scope or slice of systemd, by name.
    Unit(String),
    Machine,
    /// Any other group, by name.
    Group(String),
}

/// Reads the group's kind from its kernel name. `hidden` says that there are groups around the
/// highest one to be seen, which is then a container's.
pub fn holder(name: &str, hidden: bool) -> Holder {
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let last = name.rsplit('/').next().unwrap_or_default();
    if is_batch_job(name) {
        return Holder::BatchJob;
    }
    if has(&["kubepods"]) {
        return Holder::Pod;
    }
    if has(&["docker", "libpod", "containerd", "crio-", "/lxc", "podman"]) {
        return Holder::Container;
    }
    match last.rsplit_once('.') {
        _ if last.is_empty() && hidden => Holder::Container,
        _ if last.is_empty() => Holder::Machine,
        Some((_, "service" | "scope" | "slice")) => Holder::Unit(last.to_owned()),
        _ => Holder::Group(name.to_owned()),
    }
}

/// Slurm (both layouts), PBS, LSF, HTCondor and Grid Engine, which follow and count a job's processes
/// by the group that they made for it.
pub fn is_batch_job(name: &str) -> bool {
    const WORDS: [&str; 6] = ["slurm", "pbs", "/lsf", "htcondor", "condor_", "/sge"];
    let numbered = |part: &str| {
        let number = part.strip_prefix("job_");
        number.is_some_and(|n| n.starts_with(|first: char| first.is_ascii_digit()))
    };
    WORDS.iter().any(|word| name.contains(word)) || name.split('/').any(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2_HOST: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate";
    const V1_HOST: &str = "\
31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:12 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,nosuid shared:14 - cgroup cgroup rw,memory
";
    const HYBRID: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    /// Docker on version 1: no cgroup namespace, its own part alone is mounted.
    const V1_DOCKER: &str = "\
641 638 0:32 /docker/4f9c /sys/fs/cgroup/memory ro,nosuid master:17 - cgroup cgroup rw,memory
650 638 0:32 /docker/4f9c/x /mnt/other ro - cgroup cgroup rw,memory
";
    const V1_POD: &str = "\
1211 1209 0:33 /kubepods/burstable/pod8c/7de1 /sys/fs/cgroup/memory ro master:11 - cgroup cgroup rw,memory
";
    const V2_CONTAINER: &str = "\
719 718 0:26 / /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw
";

    #[test]
    fn the_group_is_found_in_every_layout() {
        for (what, groups, mounts, controller, expected) in [
            (
                "version 2 on the host",
                "0::/user.slice/user-0.slice/session-3.scope",
                V2_HOST,
                None,
                Some("/sys/fs/cgroup/user.slice/user-0.slice/session-3.scope"),
            ),
            (
                "version 2 has no hierarchy for memory alone",
                "0::/x",
                V2_HOST,
                Some("memory"),
                None,
            ),
            (
                "version 1 on the host",
                "6:cpu,cpuacct:/a\n4:memory:/user.slice/a:b",
                V1_HOST,
                Some("memory"),
                Some("/sys/fs/cgroup/memory/user.slice/a:b"),
            ),
            (
                "controllers mounted together",
                "6:cpu,cpuacct:/a\n4:memory:/b",
                V1_HOST,
                Some("cpuacct"),
                Some("/sys/fs/cgroup/cpu,cpuacct/a"),
            ),
            (
                "no version 2 there",
                "4:memory:/b\n1:name=systemd:/c",
                V1_HOST,
                None,
                None,
            ),
            (
                "hybrid: memory",
                "4:memory:/job\n0::/",
                HYBRID,
                Some("memory"),
                Some("/sys/fs/cgroup/memory/job"),
            ),
            (
                "hybrid: the unified half",
                "4:memory:/job\n0::/",
                HYBRID,
                None,
                Some("/sys/fs/cgroup/unified"),
            ),
            (
                "Docker, version 1",
                "4:memory:/docker/4f9c",
                V1_DOCKER,
                Some("memory"),
                Some("/sys/fs/cgroup/memory"),
            ),
            (
                "of two mounts, the widest",
                "4:memory:/docker/4f9c/x/y",
                V1_DOCKER,
                Some("memory"),
                Some("/sys/fs/cgroup/memory/x/y"),
            ),
            (
                "a process that is not in what is mounted",
                "4:memory:/docker/4f9cd",
                V1_DOCKER,
                Some("memory"),
                None,
            ),
            (
                "Kubernetes, version 1",
                "4:memory:/kubepods/burstable/pod8c/7de1",
                V1_POD,
                Some("memory"),
                Some("/sys/fs/cgroup/memory"),
            ),
            (
                "a container's cgroup namespace, version 2",
                "0::/",
                V2_CONTAINER,
                None,
                Some("/sys/fs/cgroup"),
            ),
            (
                "outside of the namespace",
                "0::/../other",
                V2_CONTAINER,
                None,
                None,
            ),
            (
                "Slurm, version 1",
                "4:memory:/slurm/uid_1000/job_77/step_batch/task_0",
                V1_HOST,
                Some("memory"),
                Some("/sys/fs/cgroup/memory/slurm/uid_1000/job_77/step_batch/task_0"),
            ),
            (
                "Slurm, version 2",
                "0::/system.slice/slurmstepd.scope/job_77/step_0/user/task_0",
                V2_HOST,
                None,
                Some("/sys/fs/cgroup/system.slice/slurmstepd.scope/job_77/step_0/user/task_0"),
            ),
            (
                "a blank in the mount point",
                "0::/a",
                r"30 23 0:26 / /my\040groups rw - cgroup2 c rw",
                None,
                Some("/my groups/a"),
            ),
            ("nothing at all", "", "", None, None),
        ] {
            let found = place(groups, mounts, controller);
            let dir = found.as_ref().map(|place| place.dir.as_path());
            assert_eq!(dir, expected.map(Path::new), "{what}");
        }
    }

    #[test]
    fn the_groups_around_are_those_that_are_mounted() {
        let walk = |groups, mounts, controller| -> Vec<(String, String)> {
            let place = place(groups, mounts, controller).unwrap();
            let told = |p: Place| (p.dir.display().to_string(), p.name);
            place.upwards().into_iter().map(told).collect()
        };
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            let owned = |&(a, b): &(&str, &str)| (a.to_owned(), b.to_owned());
            list.iter().map(owned).collect()
        };
        assert_eq!(
            walk("0::/system.slice/a.service", V2_HOST, None),
            pairs(&[
                (
                    "/sys/fs/cgroup/system.slice/a.service",
                    "/system.slice/a.service"
                ),
                ("/sys/fs/cgroup/system.slice", "/system.slice"),
                ("/sys/fs/cgroup", "/"),
            ])
        );
        assert_eq!(
            walk("4:memory:/docker/4f9c/sub", V1_DOCKER, Some("memory")),
            pairs(&[
                ("/sys/fs/cgroup/memory/sub", "/docker/4f9c/sub"),
                ("/sys/fs/cgroup/memory", "/docker/4f9c"),
            ])
        );
    }

    #[test]
    fn a_groups_name_tells_whose_it_is() {
        for (name, hidden, expected) in [
            ("/", false, Holder::Machine),
            ("/", true, Holder::Container),
            ("/docker/4f9c", true, Holder::Container),
            ("/system.slice/docker-4f9c.scope", false, Holder::Container),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod8c.slice",
                false,
                Holder::Pod,
            ),
            ("/kubepods/burstable/pod8c/7de1", true, Holder::Pod),
            ("/slurm/uid_1000/job_77/step_batch", false, Holder::BatchJob),
            (
                "/system.slice/slurmstepd.scope/job_77/step_0/user/task_0",
                false,
                Holder::BatchJob,
            ),
            ("/job_77/step_0", true, Holder::BatchJob),
            (
                "/htcondor/condor_var_lib_slot1_1@node",
                false,
                Holder::BatchJob,
            ),
            (
                "/user.slice/user-0.slice/session-3.scope",
                false,
                Holder::Unit("session-3.scope".into()),
            ),
            ("/ci/job_x", false, Holder::Group("/ci/job_x".into())),
        ] {
            assert_eq!(holder(name, hidden), expected, "{name}");
        }
    }

    #[test]
    fn this_process_is_in_its_group() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        for place in [of_memory(me), unified(me)].into_iter().flatten() {
            if place.dir.is_dir() {
                assert!(processes(&place.dir).contains(&me), "{place:?}");
            }
        }
    }
}
