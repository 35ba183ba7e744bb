//! Whether a task can be taken now, by whom, and as which attempt. Pure.

use super::{ATTEMPT, CLAIMANT, Mode, PREEMPTED, ROUND, Refused, Taking};
use crate::api::tasks;
use crate::execute::scheduler::Claimant;
use crate::task::{Status, Task};

/// Which attempt this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attempt {
    pub number: u32,
    pub former_end: Option<String>,
}

impl Attempt {
    /// One that was preempted is gone on with by whoever takes it; one that broke off in silence by
    /// its own claimant.
    pub fn of(task: &Task, claimant: Option<&Claimant>) -> Attempt {
        let text = |key: &str| task.runtime.get(key).and_then(|value| value.as_str());
        let preempted = text(PREEMPTED).filter(|why| !why.is_empty());
        let broken_off = || {
            (task.status == Status::InProgress && is_held_by(task, claimant))
                .then_some("the agent was killed")
        };
        let former_end = preempted.or_else(broken_off).map(str::to_owned);
        let number = text(ATTEMPT).and_then(|number| number.parse().ok());
        match former_end {
            Some(_) => Attempt {
                number: number.unwrap_or(1) + 1,
                former_end,
            },
            None => Attempt {
                number: 1,
                former_end: None,
            },
        }
    }
}

/// Who has the task, as far as it says.
fn holder(task: &Task, claimant: Option<&Claimant>) -> String {
    let text = |key: &str| {
        let value = task.runtime.get(key).and_then(|value| value.as_str());
        value.filter(|value| !value.is_empty())
    };
    if is_held_by(task, claimant) {
        return "an earlier agent of this job still runs it".into();
    }
    let worker = task
        .last_worker
        .as_deref()
        .unwrap_or("one that has not reported");
    match (text(CLAIMANT), text(PREEMPTED)) {
        (Some(job), Some(why)) => format!("it is kept for {job} ({why})"),
        (Some(job), None) => format!("{job} has it, worker {worker}"),
        (None, _) => format!("worker {worker} has it"),
    }
}

fn is_held_by(task: &Task, claimant: Option<&Claimant>) -> bool {
    let holder = task.runtime.get(CLAIMANT).and_then(|value| value.as_str());
    claimant.is_some_and(|claimant| holder == Some(&claimant.id))
}

/// Whether the task can be taken now.
#[derive(Debug)]
pub enum Ready {
    Now,
    /// Not yet: it may be queued, or taken by the first rank, in a while.
    Later(Refused),
    Never(Refused),
}

/// `runs_here` says whether an agent on this machine still runs by a claim.
pub fn ready(task: &Task, taking: &Taking<'_>, runs_here: impl Fn(&str) -> bool) -> Ready {
    let id = task.id.clone();
    let claim = || {
        let claim = task.runtime.get(tasks::CLAIM);
        claim.and_then(|claim| claim.as_str()).unwrap_or_default()
    };
    match (taking.mode, task.status) {
        (Mode::Any | Mode::Clone, _) | (Mode::FromQueue, Status::Queued) => Ready::Now,
        (Mode::FromQueue, Status::InProgress) => {
            if is_held_by(task, taking.claimant) && !runs_here(claim()) {
                Ready::Now
            } else {
                Ready::Never(Refused::Held {
                    id,
                    by: holder(task, taking.claimant),
                })
            }
        }
        (Mode::FromQueue, Status::Created | Status::Unknown) => Ready::Later(Refused::NotQueued {
            id,
            status: task.status,
        }),
        (Mode::FromQueue, status) => Ready::Never(Refused::Ended { id, status }),
        (Mode::AfterFirst, status) => {
            let Some(claimant) = taking.claimant else {
                return Ready::Now;
            };
            let round = task.runtime.get(ROUND).and_then(|value| value.as_str());
            let of_this_start = round == Some(claimant.round.to_string().as_str());
            let held = is_held_by(task, Some(claimant)) && of_this_start;
            match status {
                Status::InProgress if held => Ready::Now,
                _ => Ready::Later(Refused::FirstRankSilent { id, status }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(status: &str, runtime: serde_json::Value) -> Task {
        serde_json::from_value(json!({"id": "t1", "status": status, "runtime": runtime})).unwrap()
    }

    #[test]
    fn who_may_take_what() {
        let mine = Claimant {
            id: "slurm:c:7".into(),
            round: 2,
        };
        let held = |claimant: &str, round: &str| json!({"clearml_agent_claimant": claimant, "clearml_agent_round": round, "clearml_agent_claim": "run1"});
        let nobody = json!({});
        for (mode, status, runtime, claimant, runs_here, expected) in [
            (Mode::FromQueue, "queued", &nobody, None, false, "now"),
            (Mode::FromQueue, "created", &nobody, None, false, "later 75"),
            (
                Mode::FromQueue,
                "in_progress",
                &nobody,
                None,
                false,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:7", "1"),
                None,
                false,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:8", "1"),
                Some(&mine),
                false,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:7", "1"),
                Some(&mine),
                false,
                "now",
            ),
            (
                Mode::FromQueue,
                "in_progress",
                &held("slurm:c:7", "1"),
                Some(&mine),
                true,
                "never 76",
            ),
            (
                Mode::FromQueue,
                "completed",
                &held("slurm:c:7", "1"),
                Some(&mine),
                false,
                "never 67",
            ),
            (Mode::FromQueue, "stopped", &nobody, None, false, "never 67"),
            (
                Mode::FromQueue,
                "published",
                &nobody,
                None,
                false,
                "never 67",
            ),
            (Mode::Any, "completed", &nobody, None, false, "now"),
            (
                Mode::Clone,
                "in_progress",
                &nobody,
                Some(&mine),
                false,
                "now",
            ),
            (Mode::AfterFirst, "queued", &nobody, None, false, "now"),
            (
                Mode::AfterFirst,
                "queued",
                &nobody,
                Some(&mine),
                false,
                "later 75",
            ),
            // Of an earlier start of the same job.
            (
                Mode::AfterFirst,
                "in_progress",
                &held("slurm:c:7", "1"),
                Some(&mine),
                false,
                "later 75",
            ),
            (
                Mode::AfterFirst,
                "in_progress",
                &held("slurm:c:7", "2"),
                Some(&mine),
                false,
                "now",
            ),
        ] {
            let taking = Taking {
                mode,
                worker: "w:0",
                run: "run2",
                claimant,
            };
            let task = task(status, runtime.clone());
            let found = match ready(&task, &taking, |claim| runs_here && claim == "run1") {
                Ready::Now => "now".to_owned(),
                Ready::Later(why) => format!("later {}", why.exit_code()),
                Ready::Never(why) => format!("never {}", why.exit_code()),
            };
            assert_eq!(found, expected, "{mode:?} {status} {runtime} {claimant:?}");
        }
    }

    #[test]
    fn attempts_are_counted_where_one_goes_on_with_another() {
        let mine = Claimant {
            id: "a".into(),
            round: 0,
        };
        for (status, runtime, number, goes_on) in [
            ("queued", json!({}), 1, false),
            ("queued", json!({"clearml_agent_attempt": "4"}), 1, false),
            (
                "queued",
                json!({"clearml_agent_attempt": "4", "clearml_agent_preempted": "SIGTERM"}),
                5,
                true,
            ),
            (
                "in_progress",
                json!({"clearml_agent_attempt": "1", "clearml_agent_claimant": "a"}),
                2,
                true,
            ),
            (
                "in_progress",
                json!({"clearml_agent_attempt": "1", "clearml_agent_claimant": "b"}),
                1,
                false,
            ),
        ] {
            let attempt = Attempt::of(&task(status, runtime.clone()), Some(&mine));
            assert_eq!(attempt.number, number, "{runtime}");
            assert_eq!(attempt.former_end.is_some(), goes_on, "{runtime}");
        }
    }
}
