//! What the kernel counted about a job's memory between two moments: processes killed for want of it,
//! the limit that was reached and whose it is, the peak.
//!
//! `Before::take()` when the job is about to start, `.after()` when it is over and before its group
//! is removed. Where the kernel tells nothing (no control groups, no /proc), nothing is counted.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use super::cgroup::{self, Holder, Place, Version};
use super::job_group::JobGroup;
use super::kernel_log::{KernelLog, Kill};

/// The counters as they stand at the job's start.
#[derive(Debug)]
pub struct Before {
    place: Option<Place>,
    levels: Vec<Level>,
    alone: bool,
    machine: Option<u64>,
    log: Option<KernelLog>,
}

/// What happened since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// Whether the kernel counts for that group at all; if not, what was killed elsewhere on the machine
    /// may have been the job's.
    pub counted: bool,
    /// Processes that the kernel killed for want of memory in the job's group: its own, or else the
    /// agent's.
    pub kills: u64,
    /// Whether nobody but the agent and the job is in that group, so that who was killed there was
    /// the job's.
    pub alone: bool,
    /// Processes killed so anywhere on the machine, whatever was full. In a container, too, the whole
    /// host is counted.
    pub machine_kills: u64,
    /// Where memory ran out, if it did.
    pub ran_out: Option<RanOut>,
    /// The tightest limit that holds for the job.
    pub limit: Option<u64>,
    /// The most that the group used at once (files in the page cache count, too), if that was
    /// reached since the start.
    pub peak: Option<u64>,
    /// The kernel's own words, where they can be read: not in a container and not by everybody.
    pub log: Option<Vec<Kill>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RanOut {
    /// The limit of the job's own group was reached.
    Own { limit: Option<u64>, holder: Holder },
    /// That of a group around it, in which others may have used the memory.
    Around { limit: Option<u64>, holder: Holder },
    /// No limit: the machine had no memory left.
    Machine,
    /// The machine had none left, or a group around those that can be seen from here (a pod's).
    OutOfSight,
}

/// The figures of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    place: Place,
    /// Killed in this group and, in version 2, below it.
    kills: u64,
    /// How often this group's own limit could not be kept. Version 1 also counts the times when it
    /// could, by giving up cached files.
    at_limit: u64,
    limit: Option<u64>,
    peak: Option<u64>,
}

impl Level {
    /// In version 1, Linux 6.18 was seen not to count how often a limit could not be kept. A group that
    /// has used all that it may is then the best guess.
    fn has_been_full(&self) -> bool {
        let full = |(peak, limit): (u64, u64)| peak >= limit - limit / 64;
        self.place.version == Version::V1 && self.peak.zip(self.limit).is_some_and(full)
    }
}

impl Before {
    /// `group` is the job's own group, where it has one and is in it (or is about to be).
    pub fn take(group: Option<&JobGroup>) -> Before {
        let agent = rustix::process::getpid().as_raw_nonzero().get();
        let place = cgroup::of_memory(agent);
        let own = place
            .as_ref()
            .and_then(|place| group?.place(place.version))
            .filter(|place| level(place).is_some());
        let alone = own.is_some() || place.as_ref().is_some_and(|p| is_alone(&p.dir, agent));
        Before {
            alone,
            machine: machine_kills(),
            log: KernelLog::open(),
            ..Before::of(own.or(place))
        }
    }

    fn of(place: Option<Place>) -> Before {
        Before {
            levels: place.as_ref().map(levels).unwrap_or_default(),
            place,
            alone: false,
            machine: None,
            log: None,
        }
    }

    pub fn after(self) -> Memory {
        let now = self.place.as_ref().map(levels).unwrap_or_default();
        let hidden = self.place.as_ref().is_none_or(|place| !place.sees_root());
        let machine = self.machine.zip(machine_kills());
        let mut memory = Memory {
            alone: self.alone,
            machine_kills: machine.map_or(0, |(before, now)| now.saturating_sub(before)),
            log: self.log.and_then(KernelLog::kills),
            ..compare(&self.levels, &now, hidden)
        };
        if !memory.counted && memory.machine_kills > 0 {
            memory.ran_out = Some(beyond(hidden));
        }
        memory
    }
}

/// Reads the groups of `place`, the nearest first; those without memory figures are passed over.
fn levels(place: &Place) -> Vec<Level> {
    place.upwards().iter().filter_map(level).collect()
}

fn level(place: &Place) -> Option<Level> {
    let read = |file: &str| fs::read_to_string(place.dir.join(file)).ok();
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let counts = |file: &str| read(file).map(|text| fields(&text));
    let of = |counts: &HashMap<String, u64>, name: &str| counts.get(name).copied().unwrap_or(0);
    Some(match place.version {
        Version::V2 => {
            let events = counts("memory.events")?;
            // Linux before 5.2 has no file for the group alone.
            let local = counts("memory.events.local").unwrap_or_else(|| events.clone());
            Level {
                place: place.clone(),
                // A group that is killed as a whole counts each process here, too.
                kills: of(&events, "oom_kill"),
                at_limit: of(&local, "oom"),
                limit: number("memory.max"),
                peak: number("memory.peak"),
            }
        }
        Version::V1 => {
            // A page less than the largest signed number means none; "unlimited" of old kernels is
            // larger yet.
            const NO_LIMIT: u64 = 1 << 62;
            Level {
                place: place.clone(),
                // Linux before 4.13 does not count.
                kills: of(&counts("memory.oom_control")?, "oom_kill"),
                // The limit of memory and swap together is tried first; it is often the same.
                at_limit: ["memory.failcnt", "memory.memsw.failcnt"]
                    .into_iter()
                    .filter_map(number)
                    .sum(),
                limit: number("memory.limit_in_bytes").filter(|&limit| limit < NO_LIMIT),
                peak: number("memory.max_usage_in_bytes"),
            }
        }
    })
}

/// Lines of a name and a number.
fn fields(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.trim().parse().ok()?))
        })
        .collect()
}

fn compare(before: &[Level], now: &[Level], hidden: bool) -> Memory {
    let rose = |level: &Level, figure: fn(&Level) -> u64| {
        let then = before.iter().find(|then| then.place == level.place);
        figure(level).saturating_sub(then.map_or(0, figure))
    };
    let Some(own) = now.first() else {
        return Memory::default();
    };
    let kills = rose(own, |level| level.kills);
    let tightest = |reached: &dyn Fn(&Level) -> bool| {
        let reached = now.iter().filter(|level| reached(level));
        // Where more than one could not be kept, the tighter one is met first.
        reached.min_by_key(|level| level.limit.unwrap_or(u64::MAX))
    };
    let reached = tightest(&|level| rose(level, |level| level.at_limit) > 0)
        .or_else(|| tightest(&Level::has_been_full));
    let ran_out = match reached {
        _ if kills == 0 => None,
        Some(level) => {
            let limit = level.limit;
            let holder = cgroup::holder(&level.place.name, hidden);
            Some(if level.place == own.place {
                RanOut::Own { limit, holder }
            } else {
                RanOut::Around { limit, holder }
            })
        }
        None => Some(beyond(hidden)),
    };
    Memory {
        counted: true,
        kills,
        ran_out,
        limit: now.iter().filter_map(|level| level.limit).min(),
        peak: own
            .peak
            .filter(|_| rose(own, |level| level.peak.unwrap_or(0)) > 0),
        ..Memory::default()
    }
}

/// Where memory ran out if no limit was reached.
fn beyond(hidden: bool) -> RanOut {
    if hidden {
        RanOut::OutOfSight
    } else {
        RanOut::Machine
    }
}

/// Whether the agent and those that started it are all that is in the group: a job script, a
/// container's init.
fn is_alone(dir: &Path, agent: i32) -> bool {
    let mut started_by = vec![agent];
    let mut pid = agent;
    while let Some(parent) = parent(pid).filter(|&parent| parent > 0) {
        started_by.push(parent);
        pid = parent;
    }
    let present = cgroup::processes(dir);
    !present.is_empty() && present.iter().all(|pid| started_by.contains(pid))
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

/// Counted since Linux 4.13.
fn machine_kills() -> Option<u64> {
    fields(&fs::read_to_string("/proc/vmstat").ok()?)
        .get("oom_kill")
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A hierarchy as files: for each group its kernel name and its files' texts.
    struct Hierarchy {
        dir: tempfile::TempDir,
        version: Version,
    }

    impl Hierarchy {
        fn new(version: Version) -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, version }
        }

        fn write(&self, group: &str, files: &[(&str, &str)]) -> &Self {
            let dir = self.dir.path().join(group);
            fs::create_dir_all(&dir).unwrap();
            for (name, text) in files {
                fs::write(dir.join(name), text).unwrap();
            }
            self
        }

        fn place(&self, group: &str) -> Place {
            let top = self.dir.path();
            Place {
                version: self.version,
                dir: top.join(group).components().collect(),
                top: top.into(),
                name: format!("/{group}"),
            }
        }

        /// What `happens` to a job in `group`.
        fn run(&self, group: &str, happens: impl FnOnce(&Self)) -> Memory {
            let before = Before::of(Some(self.place(group)));
            happens(self);
            before.after()
        }
    }

    fn v2_events(oom: u64, kills: u64) -> String {
        format!("low 0\nhigh 0\nmax 310\noom {oom}\noom_kill {kills}\noom_group_kill 0\n")
    }

    #[test]
    fn version_2_tells_whose_limit_it_was() {
        // Slurm: the step has the limit, the task is where the process was.
        let slurm = || {
            let hierarchy = Hierarchy::new(Version::V2);
            let quiet = v2_events(0, 0);
            for (group, max) in [
                ("job_7", "max\n"),
                ("job_7/step_0", "536870912\n"),
                ("job_7/step_0/task_0", "max\n"),
            ] {
                hierarchy.write(
                    group,
                    &[
                        ("memory.events", &quiet),
                        ("memory.events.local", &quiet),
                        ("memory.max", max),
                        ("memory.peak", "1048576\n"),
                    ],
                );
            }
            hierarchy.write("", &[("cgroup.procs", "")]);
            hierarchy
        };
        let happened = |group: &str, oom, kills, hierarchy: &Hierarchy| {
            hierarchy.write(group, &[("memory.events", &v2_events(oom, kills))]);
        };
        let at_limit = |group: &str, hierarchy: &Hierarchy| {
            hierarchy.write(group, &[("memory.events.local", &v2_events(1, 0))]);
        };

        let memory = slurm().run("job_7/step_0/task_0", |all| {
            happened("job_7/step_0/task_0", 0, 1, all);
            happened("job_7/step_0", 1, 1, all);
            happened("job_7", 1, 1, all);
            at_limit("job_7/step_0", all);
            all.write("job_7/step_0/task_0", &[("memory.peak", "536000000\n")]);
        });
        assert_eq!(memory.kills, 1);
        assert_eq!(
            memory.ran_out,
            Some(RanOut::Around {
                limit: Some(512 * MIB),
                holder: Holder::BatchJob
            })
        );
        assert_eq!(
            (memory.limit, memory.peak),
            (Some(512 * MIB), Some(536_000_000))
        );

        let memory = slurm().run("job_7/step_0", |all| {
            happened("job_7/step_0", 1, 3, all);
            at_limit("job_7/step_0", all);
        });
        assert_eq!((memory.kills, memory.peak), (3, None));
        assert!(matches!(memory.ran_out, Some(RanOut::Own { .. })));

        // Killed here with no limit reached anywhere: the machine.
        let memory = slurm().run("job_7/step_0", |all| happened("job_7/step_0", 0, 1, all));
        assert_eq!(memory.ran_out, Some(RanOut::Machine));

        // A neighbour's end is not ours.
        let memory = slurm().run("job_7/step_0", |all| {
            happened("job_7", 1, 1, all);
            at_limit("job_7", all);
        });
        assert_eq!((memory.kills, memory.ran_out), (0, None));
    }

    #[test]
    fn a_container_does_not_see_what_is_around_it() {
        let hierarchy = Hierarchy::new(Version::V2);
        // Every group but the root has cgroup.events.
        hierarchy.write(
            "",
            &[
                ("cgroup.procs", "1\n"),
                ("cgroup.events", "populated 1\nfrozen 0\n"),
                ("memory.events", &v2_events(0, 0)),
                ("memory.max", "67108864\n"),
            ],
        );
        let kill = |all: &Hierarchy| {
            all.write("", &[("memory.events", &v2_events(0, 1))]);
        };
        assert_eq!(hierarchy.run("", kill).ran_out, Some(RanOut::OutOfSight));
        // Without a file for the group alone (Linux before 5.2), the hierarchical one tells.
        let at_limit = |all: &Hierarchy| {
            all.write("", &[("memory.events", &v2_events(1, 2))]);
        };
        let own = RanOut::Own {
            limit: Some(64 * MIB),
            holder: Holder::Container,
        };
        assert_eq!(hierarchy.run("", at_limit).ran_out, Some(own));
    }

    #[test]
    fn version_1_counts_in_the_victims_group() {
        let hierarchy = Hierarchy::new(Version::V1);
        let quiet = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
        for (group, limit) in [("", "9223372036854771712\n"), ("docker/4f9c", "67108864\n")] {
            hierarchy.write(
                group,
                &[
                    ("memory.oom_control", quiet),
                    ("memory.failcnt", "17\n"),
                    ("memory.limit_in_bytes", limit),
                    ("memory.max_usage_in_bytes", "4096\n"),
                ],
            );
        }
        hierarchy.write("", &[("cgroup.sane_behavior", "0\n")]);
        // Cached files were given up to keep the limit: nobody was killed.
        let memory = hierarchy.run("docker/4f9c", |all| {
            all.write("docker/4f9c", &[("memory.failcnt", "90\n")]);
        });
        assert_eq!((memory.kills, memory.ran_out), (0, None));
        assert_eq!(memory.limit, Some(64 * MIB));

        let killed = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let memory = hierarchy.run("docker/4f9c", |all| {
            let files = [
                ("memory.oom_control", killed),
                ("memory.failcnt", "123\n"),
                ("memory.max_usage_in_bytes", "67108864\n"),
            ];
            all.write("docker/4f9c", &files);
        });
        let own = RanOut::Own {
            limit: Some(64 * MIB),
            holder: Holder::Container,
        };
        assert_eq!((memory.kills, memory.ran_out), (1, Some(own)));
        assert_eq!(memory.peak, Some(64 * MIB));

        // Linux 6.18 leaves failcnt at 0; the peak tells.
        let again = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n";
        let memory = hierarchy.run("docker/4f9c", |all| {
            all.write("docker/4f9c", &[("memory.oom_control", again)]);
        });
        assert!(matches!(memory.ran_out, Some(RanOut::Own { .. })));

        let far_below = [("memory.max_usage_in_bytes", "4096\n")];
        hierarchy.write("docker/4f9c", &far_below);
        let memory = hierarchy.run("docker/4f9c", |all| {
            all.write("docker/4f9c", &[("memory.oom_control", "oom_kill 5\n")]);
        });
        assert_eq!(memory.ran_out, Some(RanOut::Machine));
    }

    #[test]
    fn what_the_kernel_does_not_tell_is_not_there() {
        assert_eq!(Before::of(None).after(), Memory::default());
        let empty = Hierarchy::new(Version::V2);
        assert_eq!(empty.run("", |_| {}), Memory::default());
    }
}
