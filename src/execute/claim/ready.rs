//! Whether a task can be taken now, by whom, and as which attempt. Pure.

use std::time::Duration;

use super::{First, Mode, Refused, Taking, asking};
use crate::execute::batch::is_of_this_start;
use crate::execute::runtime::{ATTEMPT, CLAIM, CLAIMANT, KILLED, PREEMPTED, ROUND, said};
use crate::execute::scheduler::Claimant;
use crate::execute::watch::STOPPING;
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
        let preempted = said(&task.runtime, PREEMPTED);
        let broken_off = || is_broken_off(task, claimant).then_some("the agent was killed");
        let former_end = preempted.or_else(broken_off).map(str::to_owned);
        match former_end {
            Some(_) => Attempt {
                number: Self::recorded(task) + 1,
                former_end,
            },
            None => Attempt {
                number: 1,
                former_end: None,
            },
        }
    }

    /// The number that stands in the task.
    pub fn recorded(task: &Task) -> u32 {
        let number = said(&task.runtime, ATTEMPT).and_then(|number| number.parse().ok());
        number.unwrap_or(1)
    }
}

/// Who has the task, as far as it says.
fn holder(task: &Task) -> String {
    let worker = task
        .last_worker
        .as_deref()
        .unwrap_or("one that has not reported");
    let text = |key: &str| said(&task.runtime, key);
    match (text(CLAIMANT), text(PREEMPTED)) {
        (Some(job), Some(why)) => format!("it is kept for {job} ({why})"),
        (Some(job), None) => format!("{job} has it, worker {worker}"),
        (None, _) => format!("worker {worker} has it"),
    }
}

fn is_held_by(task: &Task, claimant: Option<&Claimant>) -> bool {
    let holder = said(&task.runtime, CLAIMANT);
    claimant.is_some_and(|claimant| holder == Some(&claimant.id))
}

/// The words with which ClearML's server stops a task of which it hears nothing.
const NOT_HEARD_OF: &str = "Forced stop (non-responsive)";

/// Whether the claimant had the task and the script did not come to an end of its own: it is in progress
/// still, others found that nobody ran it, or it was preempted and the job may come back.
fn is_broken_off(task: &Task, claimant: Option<&Claimant>) -> bool {
    is_held_by(task, claimant)
        && match task.status {
            Status::InProgress => true,
            Status::Failed => {
                let killed = said(&task.runtime, KILLED);
                killed.is_some() && killed == said(&task.runtime, CLAIM)
            }
            Status::Stopped => {
                let preempted = said(&task.runtime, PREEMPTED);
                task.status_reason.trim() == NOT_HEARD_OF
                    || preempted == Some(task.status_reason.as_str())
            }
            _ => false,
        }
}

/// Whether the job has the task, and somebody wants it stopped since: an abort of a task in progress is its
/// agent's to carry out, and that one is gone.
pub fn is_aborted(task: &Task, taking: &Taking<'_>) -> bool {
    taking.mode == Mode::FromQueue
        && task.status == Status::InProgress
        && task.status_message == STOPPING
        && is_held_by(task, taking.claimant)
}

/// Whether the task can be taken now.
#[derive(Debug)]
pub enum Ready {
    Now,
    /// If nobody answers within this time (see [`asking::ask`]).
    Unanswered(Duration),
    /// Not yet: it may be queued, or taken by the first rank, in a while.
    Later(Refused),
    Never(Refused),
}

/// `has_died` says whether a run of this machine that had a claim is known to be over.
pub fn ready(task: &Task, taking: &Taking<'_>, has_died: impl Fn(&str) -> bool) -> Ready {
    let id = task.id.clone();
    match (taking.mode, task.status) {
        (Mode::Any | Mode::Clone, _) | (Mode::FromQueue, Status::Queued) => Ready::Now,
        (Mode::FromQueue, _) if is_broken_off(task, taking.claimant) => {
            go_on(task, taking, has_died)
        }
        (Mode::FromQueue, Status::InProgress) => Ready::Never(Refused::Held {
            id,
            by: holder(task),
        }),
        (Mode::FromQueue, Status::Created | Status::Unknown) => Ready::Later(Refused::NotQueued {
            id,
            status: task.status,
        }),
        (Mode::FromQueue, status) => Ready::Never(Refused::Ended { id, status }),
        (Mode::AfterFirst { first }, _) => after_first(task, taking, first),
    }
}

fn after_first(task: &Task, taking: &Taking<'_>, first: First) -> Ready {
    let Some(claimant) = taking.claimant else {
        return Ready::Now;
    };
    let (id, status) = (task.id.clone(), task.status);
    if is_of_this_start(&task.runtime, claimant) {
        match status {
            Status::InProgress => return Ready::Now,
            // The first rank of a short script may be through with it before this one has looked. Where
            // no step tells, all may have been started once more.
            Status::Completed if claimant.step.is_some() => return Ready::Now,
            Status::Failed | Status::Stopped if claimant.step.is_some() => {
                return Ready::Never(Refused::Ended { id, status });
            }
            _ => {}
        }
    }
    // What the first refuses will not become this one's.
    let as_first = Taking {
        mode: Mode::FromQueue,
        ..*taking
    };
    if first == First::FromQueue
        && let never @ Ready::Never(_) = ready(task, &as_first, |_| false)
    {
        return never;
    }
    Ready::Later(Refused::FirstRankSilent { id, status })
}

/// The task was this claimant's: whether that run is over.
fn go_on(task: &Task, taking: &Taking<'_>, has_died: impl Fn(&str) -> bool) -> Ready {
    // A batch system that counts its starts ends one before the next.
    let is_a_later_start = round(task)
        .zip(taking.claimant)
        .is_some_and(|(before, claimant)| claimant.round > before);
    if is_a_later_start {
        return Ready::Now;
    }
    let is_over = said(&task.runtime, PREEMPTED).is_some()
        || task.status != Status::InProgress
        || has_died(said(&task.runtime, CLAIM).unwrap_or_default());
    Ready::Unanswered(match is_over {
        true => asking::OTHERS_WITHIN,
        false => asking::ANSWER_WITHIN,
    })
}

/// The start of the job that has the task.
fn round(task: &Task) -> Option<u32> {
    said(&task.runtime, ROUND).and_then(|round| round.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::runtime::STEP;
    use serde_json::json;

    fn task(status: &str, runtime: serde_json::Value) -> Task {
        serde_json::from_value(json!({"id": "t1", "status": status, "runtime": runtime})).unwrap()
    }

    #[test]
    fn who_may_take_what() {
        use Mode::{Any, Clone, FromQueue};
        const RANK: Mode = Mode::AfterFirst { first: First::Any };
        const RANK_OF_QUEUED: Mode = Mode::AfterFirst {
            first: First::FromQueue,
        };
        let mine = Claimant {
            id: "slurm:c:7".into(),
            round: 2,
            step: None,
        };
        let held = |claimant: &str, round: &str| json!({"clearml_agent_claimant": claimant, "clearml_agent_round": round, "clearml_agent_claim": "run1"});
        let with = |key: &str, value: &str| {
            let mut runtime = held("slurm:c:7", "2");
            runtime[key] = value.into();
            runtime
        };
        let nobody = json!({});
        let stranger = held("slurm:c:8", "1");
        let (before, now) = (held("slurm:c:7", "1"), held("slurm:c:7", "2"));
        let killed = with(KILLED, "run1");
        let killed_once = with(KILLED, "run0");
        let kept = with(PREEMPTED, "SIGTERM");
        let step = with(STEP, "1");
        let me = Some(&mine);
        let mine_in_step = Claimant {
            step: Some("1".into()),
            ..mine.clone()
        };
        let in_step = Some(&mine_in_step);
        for (mode, status, runtime, claimant, died, expected) in [
            (FromQueue, "queued", &nobody, None, false, "now"),
            (FromQueue, "created", &nobody, None, false, "later 75"),
            (FromQueue, "in_progress", &nobody, None, false, "never 76"),
            (FromQueue, "in_progress", &before, None, false, "never 76"),
            (FromQueue, "in_progress", &stranger, me, false, "never 76"),
            // A later start of the job, which comes when the former one is over.
            (FromQueue, "in_progress", &before, me, false, "now"),
            (FromQueue, "failed", &before, me, false, "never 67"),
            // The same start, or one of the same name: who runs it is asked.
            (FromQueue, "in_progress", &now, me, false, "ask 15000"),
            (FromQueue, "in_progress", &now, me, true, "ask 4000"),
            (FromQueue, "in_progress", &kept, me, false, "ask 4000"),
            // Others have found that nobody runs it, and have set the status for that.
            (FromQueue, "failed", &killed, me, false, "ask 4000"),
            (FromQueue, "failed", &killed_once, me, false, "never 67"),
            (FromQueue, "failed", &killed, None, false, "never 67"),
            (FromQueue, "completed", &killed, me, false, "never 67"),
            (FromQueue, "completed", &now, me, false, "never 67"),
            (FromQueue, "stopped", &now, me, false, "never 67"),
            (FromQueue, "published", &nobody, None, false, "never 67"),
            (Any, "completed", &nobody, None, false, "now"),
            (Clone, "in_progress", &nobody, me, false, "now"),
            (RANK, "queued", &nobody, None, false, "now"),
            (RANK, "queued", &nobody, me, false, "later 75"),
            // Of an earlier start of the same job.
            (RANK, "in_progress", &before, me, false, "later 75"),
            (RANK, "in_progress", &now, me, false, "now"),
            // Whether the first has had it in this start, or refuses it, is not known.
            (RANK, "completed", &now, me, false, "later 75"),
            (RANK, "in_progress", &stranger, me, false, "later 75"),
            // Refused by the first as well.
            (RANK_OF_QUEUED, "queued", &nobody, me, false, "later 75"),
            (RANK_OF_QUEUED, "created", &nobody, me, false, "later 75"),
            (
                RANK_OF_QUEUED,
                "in_progress",
                &stranger,
                me,
                false,
                "never 76",
            ),
            (RANK_OF_QUEUED, "completed", &before, me, false, "never 67"),
            (RANK_OF_QUEUED, "failed", &killed, me, false, "later 75"),
            (
                RANK_OF_QUEUED,
                "in_progress",
                &before,
                me,
                false,
                "later 75",
            ),
            (RANK_OF_QUEUED, "in_progress", &now, me, false, "now"),
            // One `srun` has started both.
            (RANK, "completed", &step, in_step, false, "now"),
            (RANK_OF_QUEUED, "completed", &step, in_step, false, "now"),
            (RANK, "failed", &step, in_step, false, "never 67"),
            (RANK, "stopped", &step, in_step, false, "never 67"),
            (RANK, "in_progress", &step, in_step, false, "now"),
            (RANK, "in_progress", &now, in_step, false, "later 75"),
            (
                RANK_OF_QUEUED,
                "completed",
                &now,
                in_step,
                false,
                "never 67",
            ),
        ] {
            let taking = Taking {
                mode,
                worker: "w:0",
                run: "run2",
                claimant,
            };
            let task = task(status, runtime.clone());
            let found = match ready(&task, &taking, |claim| died && claim == "run1") {
                Ready::Now => "now".to_owned(),
                Ready::Unanswered(within) => format!("ask {}", within.as_millis()),
                Ready::Later(why) => format!("later {}", why.exit_code()),
                Ready::Never(why) => format!("never {}", why.exit_code()),
            };
            assert_eq!(found, expected, "{mode:?} {status} {runtime} {claimant:?}");
        }
    }

    #[test]
    fn a_job_goes_on_with_a_task_that_nobody_wanted_stopped() {
        let mine = Claimant {
            id: "a".into(),
            round: 1,
            step: None,
        };
        let mut task = task(
            "stopped",
            json!({"clearml_agent_claimant": "a", "clearml_agent_round": "0"}),
        );
        assert!(!is_broken_off(&task, Some(&mine)));
        task.status_reason = NOT_HEARD_OF.into();
        assert!(is_broken_off(&task, Some(&mine)));
        assert!(!is_broken_off(&task, None));
        // Or by its last agent, not knowing of this start.
        task.runtime
            .insert(PREEMPTED.into(), "preempted: SIGTERM".into());
        task.status_reason = "preempted: SIGTERM".into();
        assert!(is_broken_off(&task, Some(&mine)));
        task.status_reason = "a user stopped it".into();
        assert!(!is_broken_off(&task, Some(&mine)));
    }

    #[test]
    fn attempts_are_counted_where_one_goes_on_with_another() {
        let mine = Claimant {
            id: "a".into(),
            round: 0,
            step: None,
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
