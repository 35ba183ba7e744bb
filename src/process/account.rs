//! What a job used and why it failed, gathered around its life: the kernel's counts before and after,
//! looks at its processes while it runs, its control group where it could have one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::death::{self, Death, Evidence};
use super::job_group::{Entrance, JobGroup};
use super::last_words::files_named;
use super::memory::Before;
use super::usage::{self, Sampler};
use super::{Ended, disks};

/// A dead network share makes a look at the disks wait for ever.
const DISKS_LIMIT: Duration = Duration::from_secs(2);

/// What became of a job that is over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub usage: Usage,
    /// Why it failed; none if it did not, or for a reason of its own.
    pub death: Option<Death>,
}

/// What a job used. None where nothing on this machine tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The most memory that all of it had at once, in bytes: as its control group counts it (files in
    /// the page cache too), or else as seen at looks a few seconds apart.
    #[serde(rename = "peak_memory_bytes")]
    pub peak_memory: Option<u64>,
    /// Seconds of processor time, user and system.
    #[serde(serialize_with = "seconds", deserialize_with = "from_seconds")]
    #[serde(rename = "cpu_seconds")]
    pub cpu: Option<Duration>,
}

fn seconds<S: serde::Serializer>(cpu: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    cpu.map(|cpu| (cpu.as_secs_f64() * 1000.0).round() / 1000.0)
        .serialize(to)
}

fn from_seconds<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    let seconds: Option<f64> = Option::deserialize(from)?;
    Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
}

/// The watch that is kept on a job while it runs.
#[derive(Debug)]
pub(super) struct Watch {
    group: Option<JobGroup>,
    before: Before,
    sampler: Sampler,
    /// The last signal that the agent sent.
    pub sent: Option<i32>,
    cpu: Option<Duration>,
    working_dir: PathBuf,
    env: BTreeMap<String, String>,
}

impl Watch {
    /// Just before the job starts.
    pub fn begin(working_dir: PathBuf, env: BTreeMap<String, String>) -> Watch {
        let group = JobGroup::create();
        let before = Before::take(group.as_ref());
        Watch {
            group,
            before,
            sampler: Sampler::default(),
            sent: None,
            cpu: None,
            working_dir,
            env,
        }
    }

    /// For the job's process, between fork and exec.
    pub fn entrance(&self) -> Entrance {
        self.group
            .as_ref()
            .map(JobGroup::entrance)
            .unwrap_or_default()
    }

    /// The job runs, or has ended: what it used stands in a group that nobody is in any more.
    pub fn entered(&mut self, has_ended: bool) {
        let Some(group) = self.group.as_mut().filter(|_| !has_ended) else {
            return;
        };
        if group.give_up_empty() > 0 {
            tracing::debug!("the job did not get into all of its control group");
            self.group.take_if(|group| group.is_given_up());
            self.before = Before::take(self.group.as_ref());
        }
    }

    pub fn group(&self) -> Option<&JobGroup> {
        self.group.as_ref()
    }

    pub fn look(&mut self, pids: &[i32]) {
        self.sampler.look(pids);
    }

    /// How long to the next look.
    pub fn pause(&self) -> Duration {
        self.sampler.pause()
    }

    /// The last moment before the leader is reaped: its figures go with it.
    pub fn leader_goes(&mut self, leader: i32) {
        self.cpu = usage::cpu_time(leader);
    }

    /// The job is over. `last_lines` are the last hundred or so that it printed, secrets masked.
    pub async fn end(self, ended: Ended, leader: i32, last_lines: &[&str]) -> Account {
        let Watch {
            group,
            before,
            sampler,
            sent,
            cpu,
            working_dir,
            env,
        } = self;
        let of_group = group.as_ref().map(JobGroup::usage).unwrap_or_default();
        let memory = before.after();
        // It may have to wait for the kernel.
        tokio::task::spawn_blocking(move || drop(group));
        // A group is not charged for what others had in memory first: a process' own peak can be higher.
        let seen = sampler.peak();
        let peak = of_group.peak_memory.or(memory.peak).max(seen.process);
        let peak = peak.or(seen.together);
        let usage = Usage {
            peak_memory: peak.filter(|&bytes| bytes > 0),
            cpu: of_group.cpu.filter(|cpu| !cpu.is_zero()).or(cpu),
        };
        if ended == (Ended::Exited { code: 0 }) {
            return Account { usage, death: None };
        }
        let named: Vec<PathBuf> = last_lines.iter().flat_map(|l| files_named(l)).collect();
        let look = tokio::task::spawn_blocking(move || disks::look(&named, &working_dir, &env));
        let disks = match tokio::time::timeout(DISKS_LIMIT, look).await {
            Ok(Ok(disks)) => disks,
            _ => Vec::new(),
        };
        let mut pids: BTreeSet<i32> = sampler.seen().clone();
        pids.insert(leader);
        let death = death::cause(&Evidence {
            ended,
            sent,
            memory: &memory,
            peak: usage.peak_memory,
            pids: &pids,
            last_lines,
            disks: &disks,
            address_limit: usage::address_limit(),
        });
        Account { usage, death }
    }
}
